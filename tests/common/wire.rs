//! HTTP/1 messages as they cross the wire, read plainly and without the crate under test.

use std::{
    io::{self, Read},
    time::{Duration, SystemTime},
};

use super::PATIENCE;

/// A message as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// First line and fields, byte for byte, up to and with the empty line.
    pub head: String,
    /// The body, its coding taken off.
    pub body: Vec<u8>,
}

impl Message {
    pub fn first_line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Status of an answer.
    pub fn status(&self) -> u16 {
        self.first_line()
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0)
    }

    /// Target of a request.
    pub fn target(&self) -> &str {
        self.first_line().split(' ').nth(1).unwrap_or_default()
    }

    /// All fields in order, in their own spelling.
    pub fn fields(&self) -> Vec<(&str, &str)> {
        let lines = self
            .head
            .split("\r\n")
            .skip(1)
            .filter(|line| !line.is_empty());
        lines
            .map(|line| {
                line.split_once(": ")
                    .unwrap_or((line.trim_end_matches(':'), ""))
            })
            .collect()
    }

    /// Values of the fields with this exact spelling.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields()
            .into_iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, value)| value)
            .collect()
    }

    /// The only value of a field, its name in any case; fails on a second one.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self
            .fields()
            .into_iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value);
        assert!(values.next().is_none(), "{name} twice in {}", self.head);
        value
    }

    /// Names whose folding is that of an identity field.
    pub fn identity_like(&self) -> Vec<&str> {
        let folded = |name: &str| {
            name.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
                .to_ascii_lowercase()
        };
        let fields = self.fields();
        let names = fields.into_iter().map(|(name, _)| name);
        names
            .filter(|name| folded(name).starts_with("x_talk2m_"))
            .collect()
    }

    /// Takes out the only `Date`, which must be of now: the gateway's, where the server sent none.
    pub fn undated(self) -> Self {
        let head = undated(&self.head);
        Self { head, ..self }
    }

    /// The token of `Proxy-Status`.
    pub fn token(&self) -> Option<&str> {
        self.field("Proxy-Status")
            .and_then(|value| value.strip_prefix("m2u; error="))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn is_chunked(&self) -> bool {
        self.field("Transfer-Encoding")
            .is_some_and(|coding| coding.contains("chunked"))
    }

    fn length(&self) -> Option<usize> {
        self.field("Content-Length")
            .map(|length| length.parse().expect("a length"))
    }
}

/// Takes the only `Date` out of a head, or of one and its body; it must be of now.
pub fn undated(text: &str) -> String {
    let (before, rest) = text.split_once("\r\nDate: ").expect("a date");
    let (date, after) = rest.split_once("\r\n").expect("a line's end");
    let undated = format!("{before}\r\n{after}");
    assert!(is_now(date) && !undated.contains("\r\nDate: "), "{text}");
    undated
}

/// Whether it is a `Date` as RFC 9110 §5.6.7 writes it, and of the last minutes.
pub fn is_now(value: &str) -> bool {
    let Ok(date) = httpdate::parse_http_date(value) else {
        return false;
    };
    let is_now = match SystemTime::now().duration_since(date) {
        Ok(age) => age <= 2 * PATIENCE,
        // The clock may be set back a little meanwhile.
        Err(later) => later.duration() <= Duration::from_secs(2),
    };
    is_now && httpdate::fmt_http_date(date) == value
}

/// Reads what comes next, however often the wait for it is interrupted; 0 is the end.
pub fn read_next(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Reads bytes up to and with the empty line; `None` if the peer ends before the first byte.
pub fn read_head(from: &mut impl Read) -> io::Result<Option<Message>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if read_next(from, &mut byte)? == 0 {
            if head.is_empty() {
                return Ok(None);
            }
            let cut = format!("ended in a head: {:?}", String::from_utf8_lossy(&head));
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cut));
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?;
    Ok(Some(Message {
        head,
        body: Vec::new(),
    }))
}

/// Reads the body of a request.
pub fn read_request_body(from: &mut impl Read, message: &mut Message) -> io::Result<()> {
    if message.is_chunked() {
        read_chunks(from, &mut message.body)
    } else {
        let length = message.length().unwrap_or(0);
        read_length(from, &mut message.body, length)
    }
}

/// Reads the body of an answer; one without framing lasts until the peer closes.
pub fn read_response_body(
    from: &mut impl Read,
    message: &mut Message,
    to_head: bool,
) -> io::Result<()> {
    match message.status() {
        100..=199 | 204 | 304 => Ok(()),
        _ if to_head => Ok(()),
        _ if message.is_chunked() => read_chunks(from, &mut message.body),
        _ => match message.length() {
            Some(length) => read_length(from, &mut message.body, length),
            None => from.read_to_end(&mut message.body).map(|_| ()),
        },
    }
}

pub fn read_length(from: &mut impl Read, body: &mut Vec<u8>, length: usize) -> io::Result<()> {
    body.resize(length, 0);
    from.read_exact(body)
}

/// Takes the chunked coding off.
pub fn read_chunks(from: &mut impl Read, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let line = read_line(from)?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(io::Error::other)?;
        let begin = body.len();
        body.resize(begin + size, 0);
        from.read_exact(&mut body[begin..])?;
        if size == 0 {
            while !read_line(from)?.is_empty() {}
            return Ok(());
        }
        let end = read_line(from)?;
        if !end.is_empty() {
            return Err(io::Error::other("a chunk does not end where it should"));
        }
    }
}

fn read_line(from: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.ends_with(b"\r\n") {
            line.truncate(line.len() - 2);
            return String::from_utf8(line).map_err(io::Error::other);
        }
    }
}
