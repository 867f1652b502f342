//! Random exchanges, all of them valid: what the device sends, what its server must see, what the
//! server answers, and what the device must see.
//!
//! An independent reading of the specification: shares no code with the crate under test, and holds
//! no socket.

use proptest::{collection::vec, option, prelude::*, sample::select, strategy::Union};

/// A body, made of its length and a seed so that a failing case stays readable.
#[derive(Debug, Clone, Copy)]
pub struct Filler {
    pub length: usize,
    pub seed: u64,
}

impl Filler {
    pub fn bytes(self) -> Vec<u8> {
        let mut state = self.seed | 1;
        (0..self.length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    }
}

/// How a body crosses the wire.
#[derive(Debug, Clone)]
pub enum Coding {
    Absent,
    Length,
    /// In chunks of these lengths, over and over, each line dressed in its own way.
    Chunked {
        lengths: Vec<usize>,
        dresses: Vec<usize>,
        trailer: bool,
    },
    /// Ended by the end of the connection; answers only.
    UntilClose,
}

/// A field as sent, and whether it goes on to the other side.
#[derive(Debug, Clone)]
pub struct Sent {
    pub name: String,
    pub value: String,
    /// What stands around the value.
    pub blank: (&'static str, &'static str),
    pub passes: bool,
}

/// One request and its answer.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub method: &'static str,
    pub path: String,
    pub absolute: bool,
    pub host: usize,
    pub minor: u8,
    pub fields: Vec<Sent>,
    /// Options of `Connection`: `close`, `keep-alive`, nominations.
    pub options: Vec<&'static str>,
    pub expects: bool,
    pub coding: Coding,
    pub body: Filler,
    pub answer: Answer,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub reason: &'static str,
    pub minor: u8,
    pub fields: Vec<Sent>,
    pub closes: bool,
    /// Interim answers before the final one: status and a field.
    pub interims: Vec<(u16, bool)>,
    pub coding: Coding,
    pub body: Filler,
}

/// Lengths of the pieces in which one side sends, over and over.
#[derive(Debug, Clone)]
pub struct Cuts {
    pub lengths: Vec<usize>,
    /// Whether pieces are given time to arrive apart.
    pub paced: bool,
}

/// What one device does on one connection.
#[derive(Debug, Clone)]
pub struct Case {
    pub tls: bool,
    pub exchanges: Vec<Exchange>,
    /// Whether requests are sent without waiting for answers.
    pub pipelined: bool,
    pub device_cuts: Cuts,
    pub server_cuts: Cuts,
}

const HOSTS: [&str; 4] = ["", ".talk2m.com", ".TALK2M.com.", ".talk2m.com:8080"];
const DRESSES: [&str; 5] = ["", ";a", ";a=b", "; a=\"q;x\"", " \t"];
pub const TRAILER: &str = "X_Talk2M_Device: forged\r\n";

impl Exchange {
    /// What `Host` says.
    pub fn authority(&self, tls: bool) -> String {
        let slot = if tls { "m2u2" } else { "m2u" };
        format!("{slot}{}", HOSTS[self.host])
    }

    /// The request's head and body as they cross the wire.
    pub fn request(&self, id: &str, tls: bool) -> (Vec<u8>, Vec<u8>) {
        let authority = self.authority(tls);
        let origin = if self.absolute {
            format!("http://{authority}")
        } else {
            String::new()
        };
        let mut head = format!(
            "{} {origin}{} HTTP/1.{}\r\nHost: {authority}\r\nX-Id: {id}\r\n",
            self.method, self.path, self.minor
        );
        write_fields(&mut head, &self.fields);
        if !self.options.is_empty() {
            head += &format!("Connection: {}\r\n", self.options.join(", "));
        }
        if self.options.contains(&"X-Hop") {
            head += "x-hop: nominated\r\n";
        }
        if self.expects {
            head += "Expect: 100-continue\r\n";
        }
        let (line, body) = self.coding.encode(self.body);
        head += &line;
        head += "\r\n";
        (head.into_bytes(), body)
    }

    /// What must arrive as fields from the device, in this order.
    pub fn passing(&self, id: &str) -> Vec<(String, String)> {
        let mut passing = vec![("X-Id".to_owned(), id.to_owned())];
        passing.extend(pass(&self.fields));
        if self.expects && self.minor == 1 {
            passing.push(("Expect".to_owned(), "100-continue".to_owned()));
        }
        passing
    }

    /// The body without its coding.
    pub fn payload(&self) -> Vec<u8> {
        match self.coding {
            Coding::Absent => Vec::new(),
            _ => self.body.bytes(),
        }
    }

    /// Whether the answer is one without a body, whatever its head says.
    fn is_bodiless(&self) -> bool {
        self.method == "HEAD" || matches!(self.answer.status, 204 | 304)
    }

    /// The server's interim answers, and its final one, as they cross the wire.
    pub fn answer_words(&self) -> (Vec<u8>, Vec<u8>) {
        let answer = &self.answer;
        let interims: String = answer.interims.iter().map(interim_head).collect();
        let mut head = format!(
            "HTTP/1.{} {} {}\r\n",
            answer.minor, answer.status, answer.reason
        );
        write_fields(&mut head, &answer.fields);
        if answer.closes {
            head += "Connection: close, X-Hop\r\nX-Hop: nominated\r\n";
        }
        let (line, body) = answer.coding.encode(answer.body);
        if !matches!(answer.status, 204 | 304) {
            head += &line;
        }
        head += "\r\n";
        let mut words = head.into_bytes();
        if !self.is_bodiless() {
            words.extend(body);
        }
        (interims.into_bytes(), words)
    }

    /// The heads of the interim answers that the device must see.
    pub fn interims_heard(&self) -> Vec<String> {
        let interims: &[_] = match self.minor {
            0 => &[],
            _ => &self.answer.interims,
        };
        interims.iter().map(interim_head).collect()
    }

    /// The fields of the answer that the device must see, in this order, those of framing and
    /// connection apart.
    pub fn answer_passing(&self) -> Vec<(String, String)> {
        pass(&self.answer.fields).collect()
    }

    /// The fields of framing and connection that the device must see.
    pub fn answer_framing(&self) -> Vec<(String, String)> {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut fields = Vec::new();
        let head = self.method == "HEAD";
        match (&self.answer.coding, self.minor) {
            _ if matches!(self.answer.status, 204 | 304) => {}
            (Coding::Length, _) => {
                let length = self.answer.body.length.to_string();
                fields.push(field("Content-Length", &length));
            }
            (Coding::Chunked { .. }, 1) => fields.push(field("Transfer-Encoding", "chunked")),
            (Coding::UntilClose, 1) if !head => {
                fields.push(field("Transfer-Encoding", "chunked"));
            }
            _ => {}
        }
        match (self.persists(), self.minor) {
            (false, _) => fields.push(field("Connection", "close")),
            (true, 0) => fields.push(field("Connection", "keep-alive")),
            (true, _) => {}
        }
        fields
    }

    /// The answer's body as the device must read it.
    pub fn answer_payload(&self) -> Vec<u8> {
        match self.answer.coding {
            _ if self.is_bodiless() => Vec::new(),
            Coding::Absent => Vec::new(),
            _ => self.answer.body.bytes(),
        }
    }

    /// Whether the device's connection goes on afterwards.
    pub fn persists(&self) -> bool {
        let wanted = match self.minor {
            0 => self.options.contains(&"keep-alive"),
            _ => !self.options.contains(&"close"),
        };
        let until_close = self.minor == 0
            && !self.is_bodiless()
            && matches!(
                self.answer.coding,
                Coding::Chunked { .. } | Coding::UntilClose
            );
        wanted && !until_close
    }

    /// Whether the server's connection goes on afterwards.
    pub fn server_persists(&self) -> bool {
        let until_close = !self.is_bodiless() && matches!(self.answer.coding, Coding::UntilClose);
        self.answer.minor == 1 && !self.answer.closes && !until_close
    }

    /// Whether the gateway may use the server's connection again if the server lets it: not where
    /// a body was sent, or announced, that one of both may not have taken for one.
    pub fn leaves_no_doubt(&self) -> bool {
        let announces = !matches!(self.answer.status, 204 | 304)
            && self.method == "HEAD"
            && is_body(&self.answer.coding, self.answer.body);
        !(announces || self.surprises())
    }

    /// Whether it has a body that a server may leave unread, which must hear that no request follows.
    pub fn surprises(&self) -> bool {
        let may_expect = self.expects && self.minor == 1;
        let defines_content = ["POST", "PUT", "PATCH"].contains(&self.method);
        is_body(&self.coding, self.body) && (may_expect || !defines_content)
    }
}

fn is_body(coding: &Coding, body: Filler) -> bool {
    match coding {
        Coding::Absent | Coding::UntilClose => false,
        Coding::Length => body.length > 0,
        Coding::Chunked { .. } => true,
    }
}

fn interim_head(interim: &(u16, bool)) -> String {
    let link = if interim.1 { "Link: </a>\r\n" } else { "" };
    format!("HTTP/1.1 {} Wait\r\n{link}\r\n", interim.0)
}

fn write_fields(head: &mut String, fields: &[Sent]) {
    for Sent {
        name, value, blank, ..
    } in fields
    {
        *head += &format!("{name}:{}{value}{}\r\n", blank.0, blank.1);
    }
}

fn pass(fields: &[Sent]) -> impl Iterator<Item = (String, String)> {
    let passing = fields.iter().filter(|field| field.passes);
    passing.map(|field| (field.name.clone(), field.value.clone()))
}

impl Coding {
    /// The field that announces the body, and the body as it crosses the wire.
    fn encode(&self, body: Filler) -> (String, Vec<u8>) {
        let plain = body.bytes();
        match self {
            Self::Absent => (String::new(), Vec::new()),
            Self::UntilClose => (String::new(), plain),
            Self::Length => (format!("Content-Length: {}\r\n", plain.len()), plain),
            Self::Chunked {
                lengths,
                dresses,
                trailer,
            } => {
                let mut wire = Vec::new();
                for (number, chunk) in cut(&plain, lengths).enumerate() {
                    let size = chunk.len();
                    let dress = dresses[number % dresses.len()];
                    let size = match dress % 3 {
                        0 => format!("{size:x}"),
                        1 => format!("{size:X}"),
                        _ => format!("000{size:x}"),
                    };
                    let line = format!("{size}{}\r\n", DRESSES[dress % DRESSES.len()]);
                    wire.extend(line.as_bytes());
                    wire.extend(chunk);
                    wire.extend(b"\r\n");
                }
                wire.extend(b"0\r\n");
                if *trailer {
                    wire.extend(TRAILER.as_bytes());
                }
                wire.extend(b"\r\n");
                ("Transfer-Encoding: chunked\r\n".to_owned(), wire)
            }
        }
    }
}

/// Pieces of `bytes` of these lengths, over and over; the last of many is all the rest.
pub fn cut<'b>(bytes: &'b [u8], lengths: &'b [usize]) -> impl Iterator<Item = &'b [u8]> {
    const PIECES_MAX: usize = 200;
    let mut rest = bytes;
    (0..).map_while(move |number| {
        let length = match number {
            PIECES_MAX.. => rest.len(),
            _ => lengths[number % lengths.len()].min(rest.len()),
        };
        let (piece, behind) = rest.split_at(length);
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

fn filler() -> impl Strategy<Value = Filler> {
    let length = prop_oneof![
        8 => 0_usize..40,
        4 => 0_usize..3_000,
        2 => 60_000_usize..70_000,
        1 => 0_usize..300_000,
    ];
    (length, any::<u64>()).prop_map(|(length, seed)| Filler { length, seed })
}

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![
        2 => Just(1_usize),
        4 => 1_usize..50,
        3 => 50_usize..5_000,
        1 => 5_000_usize..80_000,
    ];
    vec(length, 1..6)
}

fn chunked() -> impl Strategy<Value = Coding> {
    (lengths(), vec(0_usize..15, 1..5), any::<bool>()).prop_map(|(lengths, dresses, trailer)| {
        Coding::Chunked {
            lengths,
            dresses,
            trailer,
        }
    })
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[!-~]",
        "[!-~][ -~]{0,30}[!-~]",
        Just("größer".to_owned()),
    ]
}

fn blank() -> impl Strategy<Value = (&'static str, &'static str)> {
    select(vec![(" ", ""), ("", ""), (" \t ", " ")])
}

fn sent(names: impl Strategy<Value = String>, passes: bool) -> impl Strategy<Value = Sent> {
    (names, value(), blank()).prop_map(move |(name, value, blank)| Sent {
        name,
        value,
        blank,
        passes,
    })
}

fn named(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(names).prop_map(str::to_owned)
}

/// A name that some origin reads as one of ours.
fn forged() -> impl Strategy<Value = String> {
    "[xX][-_.!~][tT][aA][lL][kK]2[mM][-_.+|](account|Device|SERIALNUMBER|sErIaL|x)"
}

fn request_field() -> impl Strategy<Value = Sent> {
    let ordinary = ["Accept", "Content-Type", "user-agent", "Cookie", "x_custom"];
    let dropped = [
        "Forwarded",
        "X-Forwarded-For",
        "x_forwarded_host",
        "X-Real-IP",
        "TE",
        "Keep-Alive",
        "Proxy-Connection",
        "Upgrade",
        "Trailer",
        // Replaced by the server's login.
        "Authorization",
    ];
    Union::new_weighted(vec![
        (4, sent(named(leak(ordinary)), true).boxed()),
        (2, sent("Q-[A-Z][a-z]{1,6}", true).boxed()),
        (2, sent(named(leak(dropped)), false).boxed()),
        (3, sent(forged(), false).boxed()),
    ])
}

fn answer_field() -> impl Strategy<Value = Sent> {
    let ordinary = ["Content-Type", "Set-Cookie", "ETag", "server", "X_Talk2M_X"];
    let dropped = ["Keep-Alive", "Upgrade", "Trailer", "Proxy-Connection"];
    Union::new_weighted(vec![
        (4, sent(named(leak(ordinary)), true).boxed()),
        (2, sent("Q-[A-Z][a-z]{1,6}", true).boxed()),
        (1, sent(named(leak(dropped)), false).boxed()),
    ])
}

fn leak<const N: usize>(names: [&'static str; N]) -> &'static [&'static str] {
    Box::leak(Box::new(names))
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        "(/[a-zA-Z0-9_~!$&'()*+,;=:@-]{0,12}){1,4}(\\?[a-z0-9=&/?.%-]{0,20})?",
        select(vec!["/", "//x", "/a/../b", "/a%20b", "/%2E/x?..", "/?"]).prop_map(str::to_owned),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    let coding = prop_oneof![
        3 => Just(Coding::Length),
        3 => chunked(),
        1 => Just(Coding::UntilClose),
    ];
    let interim = (select(vec![100_u16, 102, 103]), any::<bool>());
    (
        select(vec![200_u16, 200, 200, 201, 204, 304, 404, 500, 299]),
        select(vec!["OK", "", "I'm a teapot"]),
        prop::bool::weighted(0.1),
        vec(answer_field(), 0..5),
        prop::bool::weighted(0.15),
        prop_oneof![3 => Just(Vec::new()), 1 => vec(interim, 1..4)],
        coding,
        filler(),
    )
        .prop_map(
            |(status, reason, old, fields, closes, interims, coding, body)| Answer {
                status,
                reason,
                minor: u8::from(!old),
                fields,
                closes,
                interims,
                // HTTP/1.0 knows no chunks.
                coding: match coding {
                    Coding::Chunked { .. } if old => Coding::UntilClose,
                    coding => coding,
                },
                body,
            },
        )
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let methods = vec![
        "GET", "HEAD", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND",
    ];
    let coding = prop_oneof![
        2 => Just(Coding::Absent),
        3 => Just(Coding::Length),
        3 => chunked(),
    ];
    let nominations = vec(
        select(vec!["X_Talk2M_Device", "x-talk2m-account", "X-Hop"]),
        0..3,
    );
    (
        (select(methods), path(), any::<bool>(), 0..HOSTS.len()),
        (
            prop::bool::weighted(0.15),
            select(vec![
                "",
                "",
                "",
                "",
                "keep-alive",
                "keep-alive",
                "keep-alive",
                "close",
            ]),
        ),
        (vec(request_field(), 0..8), nominations),
        (prop::bool::weighted(0.15), coding, filler()),
        answer(),
    )
        .prop_map(
            |(
                (method, path, absolute, host),
                (old, option),
                (fields, nominations),
                (expects, coding, body),
                answer,
            )| {
                let mut options = nominations;
                options.extend((!option.is_empty()).then_some(option));
                Exchange {
                    method,
                    path,
                    absolute,
                    host,
                    minor: u8::from(!old),
                    fields,
                    options,
                    expects,
                    coding: match coding {
                        Coding::Chunked { .. } if old => Coding::Length,
                        coding => coding,
                    },
                    body,
                    answer,
                }
            },
        )
}

fn cuts() -> impl Strategy<Value = Cuts> {
    (lengths(), prop::bool::weighted(0.2)).prop_map(|(lengths, paced)| Cuts { lengths, paced })
}

/// Any case; an exchange after which the connection ends is its last.
pub fn case() -> impl Strategy<Value = Case> {
    let exchanges = vec(exchange(), 1..6).prop_map(|mut exchanges| {
        let last = exchanges.iter().position(|exchange| !exchange.persists());
        exchanges.truncate(last.map_or(exchanges.len(), |last| last + 1));
        exchanges
    });
    let pipelined = option::weighted(0.4, Just(())).prop_map(|yes| yes.is_some());
    (any::<bool>(), exchanges, pipelined, cuts(), cuts()).prop_map(
        |(tls, exchanges, pipelined, device_cuts, server_cuts)| Case {
            tls,
            exchanges,
            pipelined,
            device_cuts,
            server_cuts,
        },
    )
}
