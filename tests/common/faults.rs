//! Ways in which a device or a server breaks off, and what a device can tell of an answer.

use std::{io, net::Shutdown, time::Duration};

use socket2::SockRef;

use super::{
    device::Device,
    upstream::{Conversation, Step},
    wire::{self, Message},
};

/// How one side breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Ends the connection in order.
    Close,
    /// Ends its sending half alone, and reads on.
    HalfClose,
    /// Resets the connection.
    Reset,
    /// Says nothing more, and keeps the connection.
    Stall,
}

impl Conversation {
    /// Breaks off; returns once the gateway has ended the connection where this side does not.
    pub fn break_off(&mut self, fault: Fault) -> Step {
        match fault {
            Fault::Close => self.cut()?,
            Fault::HalfClose => {
                self.socket().shutdown(Shutdown::Write)?;
                self.read_wire_to_end()?;
            }
            Fault::Reset => self.reset()?,
            Fault::Stall => self.read_wire_to_end()?,
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    fn read_wire_to_end(&mut self) -> Step {
        io::copy(&mut self.socket(), &mut io::sink()).map(|_| ())
    }
}

impl Device {
    /// Breaks off; the device comes back if it can still hear an answer.
    pub fn break_off(self, fault: Fault) -> Option<Self> {
        match fault {
            Fault::Close => return None,
            Fault::HalfClose => self.finish(),
            Fault::Reset => {
                let socket = SockRef::from(self.stream());
                socket.set_linger(Some(Duration::ZERO)).unwrap();
                return None;
            }
            Fault::Stall => {}
        }
        Some(self)
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Orderly,
    Reset,
}

/// What a device heard, and what it can tell of it by HTTP's own rules alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Not a byte of a final answer.
    Silence(End),
    /// A complete answer.
    Whole(Message),
    /// An answer that can be seen to be incomplete, with the part of its body that came.
    Cut(Message, End),
    /// What no gateway should ever send.
    Strange(Vec<u8>, End),
}

/// Everything that a device heard in reply to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub interims: Vec<Message>,
    pub heard: Heard,
    /// Bytes behind the answer, as far as they came with it.
    pub behind: Vec<u8>,
}

/// What the bytes so far are.
enum Reading {
    /// More must come.
    Partial,
    /// A message, and its length.
    Complete(Message, usize),
    /// An answer that lasts until the connection ends.
    UntilClose(Message),
}

fn read(bytes: &[u8]) -> Reading {
    let mut rest = bytes;
    let Ok(Some(mut message)) = wire::read_head(&mut rest) else {
        return Reading::Partial;
    };
    let framed = message.field("Content-Length").is_some()
        || message.field("Transfer-Encoding").is_some()
        || matches!(message.status(), 100..=199 | 204 | 304);
    if !framed {
        message.body = rest.to_vec();
        return Reading::UntilClose(message);
    }
    match wire::read_response_body(&mut rest, &mut message, false) {
        Ok(()) => Reading::Complete(message, bytes.len() - rest.len()),
        Err(_) => Reading::Partial,
    }
}

/// The part of a body that is there, of an answer that ended too early.
pub fn read_cut(bytes: &[u8]) -> Option<Message> {
    let mut rest = bytes;
    let mut message = wire::read_head(&mut rest).ok()??;
    if message.field("Transfer-Encoding").is_none() {
        message.body = rest.to_vec();
        return Some(message);
    }
    while let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        let here = size.min(rest.len());
        message.body.extend_from_slice(&rest[..here]);
        rest = rest.get(size + 2..).unwrap_or_default();
    }
    Some(message)
}

impl Device {
    /// Listens until a final answer is complete or the connection ends, or until an interim one is if
    /// `interim_only`; `bytes` have been heard before.
    pub fn listen(&mut self, interim_only: bool, mut bytes: Vec<u8>) -> Reply {
        let mut interims = Vec::new();
        let end = loop {
            match read(&bytes) {
                Reading::Complete(message, length) if message.status() < 200 => {
                    interims.push(message);
                    bytes.drain(..length);
                    if interim_only {
                        let heard = Heard::Silence(End::Orderly);
                        let behind = bytes;
                        return Reply {
                            interims,
                            heard,
                            behind,
                        };
                    }
                    continue;
                }
                Reading::Complete(message, length) => {
                    let behind = bytes.split_off(length);
                    let heard = Heard::Whole(message);
                    return Reply {
                        interims,
                        heard,
                        behind,
                    };
                }
                Reading::Partial | Reading::UntilClose(_) => {}
            }
            match self.receive_piece() {
                Ok(piece) if piece.is_empty() => break End::Orderly,
                Ok(piece) => bytes.extend(piece),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    panic!("nothing comes any more after {:?}", text(&bytes))
                }
                Err(_) => break End::Reset,
            }
        };
        let heard = match (read(&bytes), end) {
            _ if bytes.is_empty() => Heard::Silence(end),
            (Reading::UntilClose(message), End::Orderly) => Heard::Whole(message),
            _ => match read_cut(&bytes) {
                Some(message) => Heard::Cut(message, end),
                None => Heard::Strange(bytes, end),
            },
        };
        Reply {
            interims,
            heard,
            behind: Vec::new(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
