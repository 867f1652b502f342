//! One answer, read piece by piece and judged when it is complete.
//!
//! No I/O. Keeps of a body only as much as can name a device.

use crate::options::Echo;

/// Bytes of an answer's head at most.
const HEAD_BYTES_MAX: usize = 16_384;
/// Fields of an answer's head at most.
const FIELDS_MAX: usize = 64;
/// Bytes of a body that are kept to be compared.
const KEPT_BYTES_MAX: usize = 256;

/// Why an answer is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It names another device than the one that asked.
    MixedUp(String),
    /// Anything else.
    Wrong(String),
}

/// What an answer must be.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Where it names the device.
    pub(crate) echo: Echo,
    /// Bytes of its body, if known.
    pub(crate) body_bytes: Option<u64>,
}

/// How far an answer has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// It is complete and right.
    Complete {
        /// The connection may carry another request.
        keep: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    /// Body bytes that are still to come.
    Sized(u64),
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    UntilClose,
    Complete,
}

/// An answer being read.
#[derive(Debug)]
pub(crate) struct Answer {
    part: Part,
    /// An unfinished head or line.
    partial: Vec<u8>,
    kept: Vec<u8>,
    named: Option<Vec<u8>>,
    body_bytes: u64,
    keep: bool,
    started: bool,
}

impl Answer {
    /// Before the first byte.
    pub(crate) fn new() -> Self {
        Self {
            part: Part::Head,
            partial: Vec::new(),
            kept: Vec::new(),
            named: None,
            body_bytes: 0,
            keep: true,
            started: false,
        }
    }

    /// Makes it ready for the next answer of the same connection.
    pub(crate) fn reset(&mut self) {
        self.part = Part::Head;
        self.partial.clear();
        self.kept.clear();
        self.named = None;
        self.body_bytes = 0;
        self.keep = true;
        self.started = false;
    }

    /// Whether any byte of it has come.
    pub(crate) fn has_started(&self) -> bool {
        self.started
    }

    /// Takes what was received; `device` is who asked.
    ///
    /// # Errors
    /// The answer is wrong; the connection is of no further use.
    pub(crate) fn take(
        &mut self,
        mut bytes: &[u8],
        expected: &Expected,
        device: &[u8],
    ) -> Result<Progress, Fault> {
        self.started |= !bytes.is_empty();
        while !bytes.is_empty() {
            bytes = match self.part {
                Part::Head => self.take_head(bytes)?,
                Part::Sized(left) => {
                    let (rest, left) = self.take_body(bytes, left);
                    self.part = Part::Sized(left);
                    rest
                }
                Part::Chunk(left) => {
                    let (rest, left) = self.take_body(bytes, left);
                    self.part = match left {
                        0 => Part::ChunkEnd,
                        left => Part::Chunk(left),
                    };
                    rest
                }
                Part::UntilClose => self.take_body(bytes, u64::MAX).0,
                Part::ChunkLine | Part::ChunkEnd | Part::Trailer => self.take_line(bytes)?,
                Part::Complete => {
                    return Err(Fault::Wrong("bytes after the answer".to_owned()));
                }
            };
            if self.part == Part::Sized(0) {
                self.part = Part::Complete;
            }
        }
        if self.part != Part::Complete {
            return Ok(Progress::Incomplete);
        }
        self.judge(expected, device)?;
        Ok(Progress::Complete { keep: self.keep })
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// It ended before the answer did.
    pub(crate) fn end(&mut self, expected: &Expected, device: &[u8]) -> Result<Progress, Fault> {
        match self.part {
            Part::UntilClose | Part::Complete => {
                self.judge(expected, device)?;
                Ok(Progress::Complete { keep: false })
            }
            _ => Err(Fault::Wrong(format!(
                "closed within the answer ({:?})",
                self.part
            ))),
        }
    }

    fn take_head<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Fault> {
        // Nearly always a head comes in one piece, and is parsed where it lies.
        if self.partial.is_empty() {
            return match self.parse_head(bytes)? {
                Some(length) => Ok(&bytes[length..]),
                None => {
                    self.partial.extend_from_slice(bytes);
                    Ok(&[])
                }
            };
        }
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        let partial = std::mem::take(&mut self.partial);
        match self.parse_head(&partial)? {
            Some(length) => Ok(&bytes[length - before..]),
            None if partial.len() > HEAD_BYTES_MAX => {
                Err(Fault::Wrong("the answer's head is too long".to_owned()))
            }
            None => {
                self.partial = partial;
                Ok(&[])
            }
        }
    }

    /// Bytes of the head; `None` if it is not complete.
    fn parse_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(Fault::Wrong(format!("no HTTP: {error}"))),
        };
        match head.code {
            Some(200) => {}
            Some(code) => {
                let said = head
                    .headers
                    .iter()
                    .find(|field| field.name.eq_ignore_ascii_case("proxy-status"))
                    .map(|field| String::from_utf8_lossy(field.value).into_owned())
                    .unwrap_or_default();
                return Err(Fault::Wrong(format!("status {code} {said}")));
            }
            None => return Err(Fault::Wrong("no status".to_owned())),
        }
        self.keep = head.version == Some(1);
        let mut sized = None;
        let mut chunked = false;
        for field in head.headers.iter() {
            let name = field.name;
            if name.eq_ignore_ascii_case("content-length") {
                let digits = std::str::from_utf8(field.value).ok();
                sized = digits.and_then(|digits| digits.trim().parse().ok());
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = field.value.eq_ignore_ascii_case(b"chunked");
            } else if name.eq_ignore_ascii_case("connection") {
                self.keep &= !field.value.eq_ignore_ascii_case(b"close");
            } else if name.eq_ignore_ascii_case("x-device") {
                self.named = Some(field.value.to_vec());
            }
        }
        self.part = match (chunked, sized) {
            (true, _) => Part::ChunkLine,
            (false, Some(size)) => Part::Sized(size),
            (false, None) => Part::UntilClose,
        };
        Ok(Some(length))
    }

    fn take_body<'b>(&mut self, bytes: &'b [u8], left: u64) -> (&'b [u8], u64) {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let (body, rest) = bytes.split_at(here);
        let room = KEPT_BYTES_MAX.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&body[..here.min(room)]);
        self.body_bytes += here as u64;
        (rest, left - here as u64)
    }

    fn take_line<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Fault> {
        let Some(at) = bytes.iter().position(|byte| *byte == b'\n') else {
            self.partial.extend_from_slice(bytes);
            if self.partial.len() > HEAD_BYTES_MAX {
                return Err(Fault::Wrong("a chunk line is too long".to_owned()));
            }
            return Ok(&[]);
        };
        self.partial.extend_from_slice(&bytes[..=at]);
        let line = std::mem::take(&mut self.partial);
        let line = line.trim_ascii();
        self.part = match self.part {
            Part::ChunkLine => {
                let digits = line.split(|byte| *byte == b';').next().unwrap_or(line);
                let size = std::str::from_utf8(digits).ok();
                match size.and_then(|size| u64::from_str_radix(size.trim(), 16).ok()) {
                    Some(0) => Part::Trailer,
                    Some(size) => Part::Chunk(size),
                    None => return Err(Fault::Wrong("a chunk has no size".to_owned())),
                }
            }
            Part::ChunkEnd if line.is_empty() => Part::ChunkLine,
            Part::ChunkEnd => return Err(Fault::Wrong("a chunk is too long".to_owned())),
            _ if line.is_empty() => Part::Complete,
            other => other,
        };
        Ok(&bytes[at + 1..])
    }

    fn judge(&self, expected: &Expected, device: &[u8]) -> Result<(), Fault> {
        if expected
            .body_bytes
            .is_some_and(|bytes| bytes != self.body_bytes)
        {
            return Err(Fault::Wrong(format!("{} bytes of body", self.body_bytes)));
        }
        let named = match expected.echo {
            Echo::None => return Ok(()),
            Echo::Body => self.kept.as_slice(),
            Echo::Field => self.named.as_deref().unwrap_or_default(),
        };
        if named == device {
            return Ok(());
        }
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let told = format!("{:?} in place of {:?}", text(named), text(device));
        Err(Fault::MixedUp(told))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const DEVICE: &[u8] = b"device-7";

    fn read(wire: &[u8], expected: &Expected) -> Result<Progress, Fault> {
        let mut outcomes = Vec::new();
        for cut in 0..wire.len() {
            let mut answer = Answer::new();
            let first = answer.take(&wire[..cut], expected, DEVICE);
            outcomes.push(match first {
                Ok(Progress::Incomplete) => answer.take(&wire[cut..], expected, DEVICE),
                other => other,
            });
        }
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]));
        outcomes.pop().unwrap()
    }

    const NAMED: Expected = Expected {
        echo: Echo::Body,
        body_bytes: None,
    };

    #[test]
    fn a_right_answer_is_complete_wherever_it_is_cut() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndevice-7";
        assert_eq!(read(sized, &NAMED), Ok(Progress::Complete { keep: true }));
        let chunked = b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\ndev\r\n5;x\r\nice-7\r\n0\r\n\r\n";
        assert_eq!(
            read(chunked, &NAMED),
            Ok(Progress::Complete { keep: false })
        );
    }

    #[test]
    fn another_devices_answer_is_a_mix_up() {
        let body = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndevice-8";
        assert!(matches!(read(body, &NAMED), Err(Fault::MixedUp(_))));
        let field = b"HTTP/1.1 200 OK\r\nX-Device: device-8\r\nContent-Length: 1\r\n\r\n.";
        let expected = Expected {
            echo: Echo::Field,
            body_bytes: Some(1),
        };
        assert!(matches!(read(field, &expected), Err(Fault::MixedUp(_))));
    }

    #[test]
    fn wrong_status_length_and_end_are_wrong() {
        let refused = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(read(refused, &NAMED), Err(Fault::Wrong(_))));
        let short = b"HTTP/1.1 200 OK\r\nX-Device: device-7\r\nContent-Length: 1\r\n\r\n.";
        let expected = Expected {
            echo: Echo::Field,
            body_bytes: Some(2),
        };
        assert!(matches!(read(short, &expected), Err(Fault::Wrong(_))));
        let mut answer = Answer::new();
        let half = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ndevice";
        assert_eq!(answer.take(half, &NAMED, DEVICE), Ok(Progress::Incomplete));
        assert!(matches!(answer.end(&NAMED, DEVICE), Err(Fault::Wrong(_))));
    }
}
