//! The cells of the fault matrix: where a side breaks off, and what that may end in.
//!
//! Knows the failure table (specification, section 5) and the shapes of exchanges; holds no socket.

use std::collections::BTreeSet;

use super::{
    faults::{End, Fault, Heard},
    shapes::{self, Framing, INTERIM, SHAPES, Shape, Turns},
};

/// Slots of the plain server: one where the answer must not take long, one where no body may stall.
pub const PLAIN: Slots = Slots {
    response: 101,
    body: 111,
};
pub const TLS: Slots = Slots {
    response: 102,
    body: 112,
};

#[derive(Clone, Copy)]
pub struct Slots {
    pub response: usize,
    pub body: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Device,
    Server,
}

/// One side of one exchange breaks off behind `position` bytes of what it has to say.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    pub shape: &'static Shape,
    pub side: Side,
    pub fault: Fault,
    pub position: usize,
}

/// What a cell's server saw of one attempt to bring it the request.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Whether its connection had been used before.
    pub reused: bool,
    pub device: String,
    pub request: Request,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Not read to its end by this server.
    Unread,
    Whole(Vec<u8>),
    Aborted,
}

/// What a cell may end in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device is gone.
    Unheard,
    /// The device is still there, and is told nothing.
    Silence,
    /// The gateway answers.
    Told {
        status: u16,
        token: &'static str,
        keeps: bool,
    },
    /// The server's answer, with as much of a body as it sent before it said that this was all.
    Whole(Vec<u8>),
    /// The server's answer, visibly cut off behind these bytes.
    Cut(Vec<u8>),
}

impl Outcome {
    pub fn name(&self) -> String {
        match self {
            Self::Unheard => "unheard".to_owned(),
            Self::Silence => "closed unanswered".to_owned(),
            Self::Told { status, token, .. } => format!("{status} {token}"),
            Self::Whole(_) => "answered".to_owned(),
            Self::Cut(_) => "visibly cut off".to_owned(),
        }
    }
}

/// The cells of a run, in the order in which they are played: each of them `rounds` times.
pub fn cells(faults: &[Fault], rounds: usize) -> Vec<Cell> {
    let mut cells = Vec::new();
    for shape in &SHAPES {
        for &fault in faults {
            for side in [Side::Device, Side::Server] {
                cells.extend(
                    positions(shape, side, fault)
                        .into_iter()
                        .map(|position| Cell {
                            shape,
                            side,
                            fault,
                            position,
                        }),
                );
            }
        }
    }
    // Neighbours differ in shape and fault, so that one's leftovers would meet another's.
    let (columns, length) = (97, cells.len());
    (0..columns)
        .flat_map(|column| (column..length).step_by(columns))
        .map(|index| cells[index])
        .collect::<Vec<_>>()
        .repeat(rounds)
}

pub fn positions(shape: &Shape, side: Side, fault: Fault) -> Vec<usize> {
    let end = match side {
        Side::Device => shape.request_bytes(),
        Side::Server => shape.answer_wire_bytes(),
    };
    let all = match (side, fault) {
        // Its devices never send more than they do anyway.
        (Side::Device, _) if !shape.is_whole() => 0..0,
        // Silence between two requests is no fault, nor is silence when all has been said.
        (Side::Device, Fault::Stall) => 1..end,
        (Side::Server, Fault::Stall) if shape.answer != Framing::UntilClose => 0..end,
        _ => 0..end + 1,
    };
    match (shape.large, fault) {
        (false, _) => all.collect(),
        // Who is slow to say much may be found silent earlier.
        (true, Fault::Stall) => Vec::new(),
        (true, _) => {
            let ends = match side {
                Side::Device => shape.request_stretches(),
                Side::Server => shape.answer_stretches(),
            };
            let near = ends.iter().flat_map(|at| at - 1..=at + 1);
            // Anywhere within a head, but where each such exchange takes its time.
            let begin = if shape.tls { 0..1 } else { 0..ends[0] };
            let some: BTreeSet<_> = near.chain(begin).chain(end - 9..=end).collect();
            some.into_iter().filter(|at| all.contains(at)).collect()
        }
    }
}

impl Shape {
    /// Whether its device sends the whole request.
    pub fn is_whole(&self) -> bool {
        self.request_bytes_sent() == self.request_bytes()
    }

    pub fn slots(&self) -> Slots {
        if self.tls { TLS } else { PLAIN }
    }
}

impl Cell {
    /// Bytes of the server's words that the gateway can read.
    fn answered(&self) -> usize {
        match self.side {
            Side::Device => self.shape.answer_bytes(),
            Side::Server => self.shape.answer_bytes_in(self.position),
        }
    }

    /// Whether the gateway gets a final head before the server breaks off.
    fn has_head(&self) -> bool {
        self.answered() >= self.shape.answer_head_bytes()
    }

    /// The slot whose short timeout is the one that this cell's silence must run into.
    pub fn slot(&self) -> usize {
        let waits_for_device = match self.shape.turns {
            Turns::Ordinary => false,
            Turns::Expecting => self.answered() < INTERIM.len(),
            Turns::Early | Turns::Heedless => true,
        };
        let slots = self.shape.slots();
        match self.side {
            Side::Server if !self.has_head() && !waits_for_device => slots.response,
            _ => slots.body,
        }
    }

    /// Everything that this cell may end in; `reused` says whether the server's connection was, and
    /// `interim` whether the device heard an interim answer.
    pub fn outcomes(&self, number: usize, reused: bool, interim: bool) -> Vec<Outcome> {
        match self.side {
            Side::Device => self.outcomes_of_device(number),
            Side::Server => self.outcomes_of_server(number, reused, interim),
        }
    }

    fn outcomes_of_device(&self, number: usize) -> Vec<Outcome> {
        let told = |status, token| Outcome::Told {
            status,
            token,
            keeps: false,
        };
        let shape = self.shape;
        let whole = self.position == shape.request_bytes();
        match self.fault {
            Fault::Close | Fault::Reset => vec![Outcome::Unheard],
            Fault::HalfClose if whole => {
                vec![Outcome::Whole(shape.answer_payload(number))]
            }
            Fault::HalfClose => vec![Outcome::Silence],
            Fault::Stall => {
                let mut outcomes = vec![told(408, "http_request_timeout")];
                let past_head = self.position >= self.shape.request_head_bytes();
                if self.shape.turns == Turns::Expecting && past_head {
                    // The server's interim answer may be as late as the device's body.
                    outcomes.push(told(504, "http_response_timeout"));
                }
                outcomes
            }
        }
    }

    fn outcomes_of_server(&self, number: usize, reused: bool, interim: bool) -> Vec<Outcome> {
        let shape = self.shape;
        let answered = self.answered();
        let continued = shape.turns != Turns::Expecting || answered >= INTERIM.len();
        let late_device = Outcome::Told {
            status: 408,
            token: "http_request_timeout",
            keeps: false,
        };
        let mut outcomes = Vec::new();
        if self.fault == Fault::Stall && shape.turns == Turns::Expecting && !interim {
            // Its interim answer may be later than a device may take with its body.
            outcomes.push(Outcome::Told {
                status: 504,
                token: "http_response_timeout",
                keeps: false,
            });
        }
        if !self.has_head() {
            let keeps = shape.persists() && continued;
            let told = |status, token| Outcome::Told {
                status,
                token,
                keeps,
            };
            outcomes.push(match self.fault {
                Fault::Stall if !shape.is_whole() => late_device,
                Fault::Stall => told(504, "http_response_timeout"),
                _ if reused && shape.method == "GET" && answered == 0 => {
                    Outcome::Whole(shape.answer_payload(number))
                }
                _ => told(502, "connection_terminated"),
            });
            return outcomes;
        }
        let body = shape.answer_body_in(number, answered);
        let whole = match shape.answer {
            Framing::UntilClose if shape.tls => self.position == shape.answer_wire_bytes(),
            // Nobody can tell where such an answer should have ended.
            Framing::UntilClose => matches!(self.fault, Fault::Close | Fault::HalfClose),
            _ => answered == shape.answer_bytes(),
        };
        outcomes.push(if whole {
            Outcome::Whole(body.clone())
        } else {
            Outcome::Cut(body.clone())
        });
        if self.may_lose_more() {
            outcomes.push(Outcome::Cut(body));
        }
        if self.fault == Fault::Stall && (shape.turns != Turns::Ordinary) {
            // Both sides are silent, or the device waited for a late server.
            outcomes.push(late_device);
        }
        outcomes
    }

    /// Whether what the device heard is `outcome`.
    pub fn is(&self, outcome: &Outcome, number: usize, heard: &Heard) -> bool {
        let shape = self.shape;
        match (outcome, heard) {
            (Outcome::Silence, Heard::Silence(End::Orderly)) => true,
            (
                Outcome::Told {
                    status,
                    token,
                    keeps,
                },
                Heard::Whole(message),
            ) => {
                let connection = if *keeps { "keep-alive" } else { "close" };
                message.status() == *status
                    && message.token() == Some(token)
                    && message.field("Connection") == Some(connection)
            }
            (Outcome::Whole(body), Heard::Whole(message)) => {
                let connection = (!shape.persists()).then_some("close");
                shapes::is_answer_to(message, number)
                    && message.field("Connection") == connection
                    && message.body == *body
            }
            // A reset may overtake what was sent before it.
            (Outcome::Cut(_), Heard::Silence(End::Reset) | Heard::Strange(_, End::Reset)) => {
                shape.ends_by_close()
            }
            (Outcome::Cut(body), Heard::Cut(message, End::Reset)) => {
                shape.ends_by_close()
                    && shapes::is_answer_to(message, number)
                    && body.starts_with(&message.body)
            }
            (Outcome::Cut(body), Heard::Cut(message, End::Orderly)) => {
                let is_all = message.body == *body;
                let is_some = body.starts_with(&message.body);
                !shape.ends_by_close()
                    && shapes::is_answer_to(message, number)
                    && (is_all || self.may_lose_more() && is_some)
            }
            _ => false,
        }
    }

    /// Whether the server's kernel may throw away what it had been given to send.
    fn may_lose_more(&self) -> bool {
        self.shape.large && self.side == Side::Server && self.fault == Fault::Reset
    }

    /// Whether the whole request reached the gateway.
    fn is_requested(&self) -> bool {
        match self.side {
            Side::Device => self.position == self.shape.request_bytes(),
            Side::Server => self.shape.is_whole(),
        }
    }

    /// What is wrong with what the servers saw, if anything.
    pub fn blame(&self, device: &str, sightings: &[Sighting]) -> Option<&'static str> {
        let shape = self.shape;
        let bodies: Vec<_> = sightings
            .iter()
            .filter_map(|sighting| match &sighting.request {
                Request::Whole(body) => Some(body.as_slice()),
                _ => None,
            })
            .collect();
        let expected = shape.payload();
        let repeated = self.side == Side::Server
            && shape.method == "GET"
            && self.fault != Fault::Stall
            && self.answered() == 0;
        let gone = self.side == Side::Device && matches!(self.fault, Fault::Reset | Fault::Close);
        let unasked = self.side == Side::Server
            && shape.turns == Turns::Expecting
            && self.answered() < INTERIM.len();
        let cut_in_head =
            self.side == Side::Device && self.position < self.shape.request_head_bytes();
        match sightings {
            _ if sightings.iter().any(|sighting| sighting.device != device) => {
                Some("the server was told of another device")
            }
            [] if cut_in_head => None,
            [] if !(gone || self.fault == Fault::Stall) => Some("no server was asked"),
            _ if cut_in_head => Some("the server was asked half a question"),
            [first, ..] if sightings.len() > 1 && !(repeated && first.reused) => {
                Some("the request was repeated")
            }
            [_, _, _, ..] => Some("the request was repeated more than once"),
            _ if bodies.iter().any(|body| *body != expected) => Some("another body arrived"),
            _ if !self.is_requested() && !bodies.is_empty() => {
                Some("the server took a broken request for a whole one")
            }
            _ if self.is_requested()
                && bodies.is_empty()
                && !(gone || unasked || self.fault == Fault::Stall) =>
            {
                Some("the server did not get the whole request")
            }
            _ => None,
        }
    }
}
