//! Exchanges of every shape that the wire knows: what each side says, byte for byte.
//!
//! Holds no socket. Every message bears the number of its exchange, so that one which strays into
//! another is seen.

use Framing::{Absent, Chunked, Length, UntilClose};

use m2u::limits;

use super::{
    faults,
    wire::{self, Message},
};

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Absent,
    Length,
    Chunked,
    UntilClose,
}

/// When each side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turns {
    /// The server answers a complete request.
    Ordinary,
    /// The device sends its body after an interim answer.
    Expecting,
    /// The server answers a request of which it has read all that was sent, but which is not whole.
    Early,
    /// Likewise, and the server has not even read what was sent of the body.
    Heedless,
}

/// One exchange as it would be if nobody broke off.
#[derive(Debug)]
pub struct Shape {
    pub name: &'static str,
    pub method: &'static str,
    /// Minor version of HTTP/1 that the device speaks.
    pub minor: u8,
    pub request: Framing,
    pub answer: Framing,
    pub turns: Turns,
    pub tls: bool,
    /// Comes second on the device's connection, and to a server's connection in use before.
    pub warm: bool,
    /// Whether bodies are longer than any buffer on the way.
    pub large: bool,
}

pub const SHAPES: [Shape; 23] = [
    shape("GET", "GET", Absent),
    shape("GET, chunked answer", "GET", Absent).answer(Chunked),
    shape("GET, answer until close", "GET", Absent).answer(UntilClose),
    shape("POST", "POST", Length),
    shape("POST chunked", "POST", Chunked).answer(Chunked),
    shape("second GET", "GET", Absent).warm(),
    shape("second POST", "POST", Length).warm(),
    shape("second POST chunked", "POST", Chunked)
        .answer(Chunked)
        .warm(),
    shape("100-continue", "POST", Length).turns(Turns::Expecting),
    shape("early answer", "POST", Length).turns(Turns::Early),
    shape("early answer until close", "POST", Length)
        .answer(UntilClose)
        .turns(Turns::Early),
    shape("early answer, body unread", "POST", Length).turns(Turns::Heedless),
    shape("HTTP/1.0 POST, chunked answer", "POST", Length)
        .answer(Chunked)
        .minor(0),
    shape("HTTP/1.0 GET, answer until close", "GET", Absent)
        .answer(UntilClose)
        .minor(0),
    shape("large POST", "POST", Length).large(),
    shape("large POST chunked", "POST", Chunked)
        .answer(Chunked)
        .large(),
    shape("TLS POST", "POST", Length).tls(),
    shape("TLS second POST", "POST", Length).warm().tls(),
    shape("TLS POST chunked, answer until close", "POST", Chunked)
        .answer(UntilClose)
        .tls(),
    shape("TLS second GET, chunked answer", "GET", Absent)
        .answer(Chunked)
        .warm()
        .tls(),
    shape("TLS HTTP/1.0 GET, answer until close", "GET", Absent)
        .answer(UntilClose)
        .minor(0)
        .tls(),
    shape("TLS large POST", "POST", Length).tls().large(),
    shape("TLS large POST chunked", "POST", Chunked)
        .answer(Chunked)
        .tls()
        .large(),
];

/// A request over plain HTTP/1.1 on a fresh connection, and an answer with a length.
const fn shape(name: &'static str, method: &'static str, request: Framing) -> Shape {
    Shape {
        name,
        method,
        minor: 1,
        request,
        answer: Framing::Length,
        turns: Turns::Ordinary,
        tls: false,
        warm: false,
        large: false,
    }
}

impl Shape {
    const fn answer(self, answer: Framing) -> Self {
        Self { answer, ..self }
    }

    const fn turns(self, turns: Turns) -> Self {
        Self { turns, ..self }
    }

    const fn minor(self, minor: u8) -> Self {
        Self { minor, ..self }
    }

    const fn warm(self) -> Self {
        Self { warm: true, ..self }
    }

    const fn large(self) -> Self {
        Self {
            large: true,
            ..self
        }
    }

    const fn tls(self) -> Self {
        Self { tls: true, ..self }
    }
}

const REQUEST_BODY: &[u8] = b"hello, world";
/// Bytes of a large body: several relay buffers, and the larger ones of TLS behind the first megabyte.
const LARGE_BODY_BYTES: usize = 200_000;
const LARGE_TLS_BODY_BYTES: usize = limits::BY_PACKETS_BYTES + LARGE_BODY_BYTES;
/// Bytes of a body of which the device of an early answer sends no more.
pub const EARLY_BODY_BYTES: usize = 5;
/// The interim answer.
pub const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Bytes that a TLS record holds at most, that TLS 1.3 adds to them, and of the record that says goodbye.
const RECORD_TEXT_BYTES: usize = 16_384;
const RECORD_BYTES: usize = 22;
const GOODBYE_BYTES: usize = RECORD_BYTES + 2;

impl Shape {
    /// Bytes of the request's head.
    pub fn request_head_bytes(&self) -> usize {
        self.request_bytes() - self.request_body().len()
    }

    /// Bytes of the request.
    pub fn request_bytes(&self) -> usize {
        self.request(0, 100).len()
    }

    /// The request's body without its coding.
    pub fn payload(&self) -> Vec<u8> {
        match self.request {
            Framing::Absent | Framing::UntilClose => Vec::new(),
            Framing::Length | Framing::Chunked => self.fill(REQUEST_BODY),
        }
    }

    /// The answer's body without its coding.
    pub fn answer_payload(&self, number: usize) -> Vec<u8> {
        self.fill(format!("cell {number:06}!").as_bytes())
    }

    fn fill(&self, pattern: &[u8]) -> Vec<u8> {
        let length = match (self.large, self.tls) {
            (true, true) => LARGE_TLS_BODY_BYTES,
            (true, false) => LARGE_BODY_BYTES,
            (false, _) => pattern.len(),
        };
        pattern.iter().copied().cycle().take(length).collect()
    }

    fn request_body(&self) -> Vec<u8> {
        match self.request {
            Framing::Chunked => chunks(&self.payload(), ";a=b", "T: x\r\n"),
            _ => self.payload(),
        }
    }

    /// The whole request, through a slot of three digits.
    pub fn request(&self, number: usize, slot: usize) -> Vec<u8> {
        let Self { method, minor, .. } = self;
        let framing = match self.request {
            Framing::Absent | Framing::UntilClose => String::new(),
            Framing::Length => format!("Content-Length: {}\r\n", self.payload().len()),
            Framing::Chunked => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        let expect = match self.turns {
            Turns::Expecting => "Expect: 100-continue\r\n",
            _ => "",
        };
        let head = format!(
            "{method} /{number:06} HTTP/1.{minor}\r\nHost: m2u{slot}\r\n{framing}{expect}\r\n"
        );
        [head.as_bytes(), &self.request_body()].concat()
    }

    /// Bytes of the request that the device sends if it does not break off.
    pub fn request_bytes_sent(&self) -> usize {
        match self.turns {
            Turns::Ordinary | Turns::Expecting => self.request_bytes(),
            Turns::Early | Turns::Heedless => self.request_head_bytes() + EARLY_BODY_BYTES,
        }
    }

    /// The server's words: an interim answer or nothing, the head, and the body in two pieces.
    pub fn words(&self, number: usize) -> [Vec<u8>; 4] {
        let body = self.answer_payload(number);
        let (framing, body) = match self.answer {
            Framing::Absent | Framing::UntilClose => (String::new(), body),
            Framing::Length => (format!("Content-Length: {}\r\n", body.len()), body),
            Framing::Chunked => {
                let field = "Transfer-Encoding: chunked\r\n".to_owned();
                (field, chunks(&body, "", ""))
            }
        };
        let interim = match self.turns {
            Turns::Expecting => INTERIM,
            _ => b"",
        };
        let head =
            format!("HTTP/1.1 200 OK\r\nX-Cell: {number:06}\r\n{framing}Connection: close\r\n\r\n");
        let (begin, end) = body.split_at(body.len() / 2);
        [interim, head.as_bytes(), begin, end].map(<[u8]>::to_vec)
    }

    /// Bytes of the server's words up to and with the final head.
    pub fn answer_head_bytes(&self) -> usize {
        self.words(0)[..2].iter().map(Vec::len).sum()
    }

    /// Bytes of the server's words.
    pub fn answer_bytes(&self) -> usize {
        self.words(0).iter().map(Vec::len).sum()
    }

    /// Bytes of the server's words that each TLS record holds, in order.
    fn records(&self) -> Vec<usize> {
        let words = self.words(0);
        let records = words.iter().flat_map(|word| word.chunks(RECORD_TEXT_BYTES));
        records.map(<[u8]>::len).collect()
    }

    /// Bytes of the server's words as they cross the wire; TLS adds to them, and a goodbye.
    pub fn answer_wire_bytes(&self) -> usize {
        match self.tls {
            false => self.answer_bytes(),
            true => {
                let records = self.records().len();
                self.answer_bytes() + records * RECORD_BYTES + GOODBYE_BYTES
            }
        }
    }

    /// Where the records end that the server's words cross the wire in.
    fn record_ends(&self) -> impl Iterator<Item = usize> {
        self.records().into_iter().scan(0, |end, bytes| {
            *end += bytes + RECORD_BYTES;
            Some(*end)
        })
    }

    /// Where a large request ends its head, and then a stretch of its body.
    pub fn request_stretches(&self) -> Vec<usize> {
        let ends = self.request_head_bytes()..=self.request_bytes();
        ends.step_by(self.stretch_bytes()).collect()
    }

    /// Likewise the server's words, as they cross the wire.
    pub fn answer_stretches(&self) -> Vec<usize> {
        match self.tls {
            false => {
                let ends = self.answer_head_bytes()..=self.answer_bytes();
                ends.step_by(self.stretch_bytes()).collect()
            }
            true => {
                let records = self.stretch_bytes() / RECORD_TEXT_BYTES;
                let last = self.answer_wire_bytes() - GOODBYE_BYTES;
                self.record_ends().step_by(records).chain([last]).collect()
            }
        }
    }

    /// Bytes of a large body between the places where a side breaks off: many records, for each such
    /// exchange takes its time.
    fn stretch_bytes(&self) -> usize {
        if self.tls {
            8 * RECORD_TEXT_BYTES
        } else {
            65_536
        }
    }

    /// Bytes of the server's words that can be read from the first `wire` bytes.
    pub fn answer_bytes_in(&self, wire: usize) -> usize {
        if !self.tls {
            return wire;
        }
        let records = self.records().into_iter().zip(self.record_ends());
        let whole = records.take_while(|(_, end)| *end <= wire);
        whole.map(|(bytes, _)| bytes).sum()
    }

    /// The body bytes among the first `bytes` of the server's words, which hold the final head.
    pub fn answer_body_in(&self, number: usize, bytes: usize) -> Vec<u8> {
        let [interim, words @ ..] = self.words(number);
        let words = words.concat();
        let message = faults::read_cut(&words[..bytes - interim.len()]);
        message.expect("a head").body
    }

    /// Whether the device learns the end of the answer from the end of the connection.
    pub fn ends_by_close(&self) -> bool {
        self.minor == 0 && matches!(self.answer, Framing::Chunked | Framing::UntilClose)
    }

    /// Whether the device's connection goes on after an answer to its whole request.
    pub fn persists(&self) -> bool {
        self.minor == 1 && !matches!(self.turns, Turns::Early | Turns::Heedless)
    }
}

/// A body in two chunks.
fn chunks(body: &[u8], extension: &str, trailer: &str) -> Vec<u8> {
    let (begin, end) = body.split_at(body.len() / 2 - 1);
    let first = format!("{:x}{extension}\r\n", begin.len());
    let second = format!("\r\n{:x}\r\n", end.len());
    let last = format!("\r\n0\r\n{trailer}\r\n");
    [
        first.as_bytes(),
        begin,
        second.as_bytes(),
        end,
        last.as_bytes(),
    ]
    .concat()
}

/// Whether this is the server's answer, complete or not, to exchange `number`.
pub fn is_answer_to(message: &Message, number: usize) -> bool {
    message.first_line() == "HTTP/1.1 200 OK"
        && message.all("X-Cell") == [format!("{number:06}")]
        && message.token().is_none()
}

/// The number of the exchange that a forwarded request belongs to.
pub fn number_of(message: &wire::Message) -> Option<usize> {
    message.target().strip_prefix('/')?.parse().ok()
}
