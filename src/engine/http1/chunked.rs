//! The chunked coding (RFC 9112 §7.1), taken off and put on.
//!
//! An explicit state machine, since input may stop at any byte. Strict where lenience lets two
//! parsers see two bodies: CRLF only, plain hexadecimal digits, bounded lines. Extensions and
//! trailers are read and dropped; nothing behind the body's end is looked at.

use std::ops::Range;

use crate::limits;

/// Bytes of the longest size line that [`size_line_before`] writes: 16 digits and CRLF.
pub const SIZE_LINE_BYTES_MAX: usize = limits::CHUNK_SIZE_DIGITS_MAX + 2;
/// What ends a body that has no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Takes the coding off one body.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    /// Bytes of the current chunk that are still to come; while its line is read, its size.
    chunk: u64,
    /// Digits of the size, then bytes of the line, read so far.
    line: usize,
    /// Bytes of the trailer section read so far.
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the digits of a size.
    Size,
    /// In blanks behind the size.
    Blank,
    /// In the extensions.
    Extension,
    /// Behind the CR of a size line.
    SizeLineFeed,
    /// In a chunk's payload.
    Payload,
    /// Behind the payload.
    PayloadReturn,
    /// Behind the CR that ends the payload.
    PayloadLineFeed,
    /// At the beginning of a trailer line.
    TrailerBegin,
    /// In the name of a trailer.
    TrailerName,
    /// In the value of a trailer.
    TrailerValue,
    /// Behind the CR of a trailer line.
    TrailerLineFeed,
    /// Behind the CR of the empty line.
    LastLineFeed,
    /// Behind the end.
    Finished,
}

/// What one piece of input held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Where in the input a run of the body's bytes is; may be empty.
    pub payload: Range<usize>,
    /// Bytes of the input that were read; call again with the rest.
    pub consumed: usize,
    /// Whether the body ends there.
    pub finished: bool,
}

/// The coding is broken; the sender's fault, and the end of the message is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkError {
    /// A byte that does not belong there, or a size beyond 64 bits.
    Malformed,
    /// A size line longer than `limits::CHUNK_LINE_BYTES_MAX`.
    LineTooLong,
    /// Trailers longer than `limits::TRAILER_BYTES_MAX`.
    TrailerTooLarge,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// At the beginning of a body.
    pub fn new() -> Self {
        Self {
            state: State::Size,
            chunk: 0,
            line: 0,
            trailers: 0,
        }
    }

    /// Reads `input` up to the end of one run of payload, of the body, or of the input.
    ///
    /// # Errors
    /// [`ChunkError`]: 400 and close for a device, a cut-off answer for a server.
    pub fn decode(&mut self, input: &[u8]) -> Result<Decoded, ChunkError> {
        let mut position = 0;
        while position < input.len() && self.state != State::Finished {
            if self.state == State::Payload {
                let here = input.len() - position;
                let length = usize::try_from(self.chunk).map_or(here, |left| left.min(here));
                self.chunk -= length as u64;
                if self.chunk == 0 {
                    self.state = State::PayloadReturn;
                }
                let end = position + length;
                return Ok(Decoded {
                    payload: position..end,
                    consumed: end,
                    finished: false,
                });
            }
            self.state = self.step(input[position])?;
            position += 1;
        }
        let finished = self.state == State::Finished;
        Ok(Decoded {
            payload: position..position,
            consumed: position,
            finished,
        })
    }

    /// Takes one byte outside the payload.
    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        use State as S;
        match (self.state, byte) {
            (S::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            // A size needs a digit.
            (S::Size, _) if self.line == 0 => Err(ChunkError::Malformed),
            // Blanks alone are tolerated: some servers pad their sizes, and what goes on is ours.
            (S::Size | S::Blank | S::Extension, b'\r') => Ok(S::SizeLineFeed),
            (S::Size | S::Blank, b' ' | b'\t') => self.in_line(S::Blank),
            (S::Size | S::Blank, b';') => self.in_line(S::Extension),
            (S::Extension, byte) if !is_control(byte) => self.in_line(S::Extension),
            (S::SizeLineFeed, b'\n') if self.chunk == 0 => Ok(S::TrailerBegin),
            (S::SizeLineFeed, b'\n') => Ok(S::Payload),
            (S::PayloadReturn, b'\r') => Ok(S::PayloadLineFeed),
            (S::PayloadLineFeed, b'\n') => {
                self.line = 0;
                Ok(S::Size)
            }
            (S::TrailerBegin, b'\r') => Ok(S::LastLineFeed),
            (S::TrailerBegin | S::TrailerName, byte) if is_token(byte) => {
                self.in_trailer(S::TrailerName)
            }
            (S::TrailerName, b':') => self.in_trailer(S::TrailerValue),
            (S::TrailerValue, b'\r') => self.in_trailer(S::TrailerLineFeed),
            (S::TrailerValue, byte) if !is_control(byte) => self.in_trailer(S::TrailerValue),
            (S::TrailerLineFeed, b'\n') => self.in_trailer(S::TrailerBegin),
            (S::LastLineFeed, b'\n') => Ok(S::Finished),
            _ => Err(ChunkError::Malformed),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, ChunkError> {
        self.line += 1;
        if self.line > limits::CHUNK_SIZE_DIGITS_MAX {
            return Err(ChunkError::Malformed);
        }
        let digit = char::from(byte).to_digit(16).ok_or(ChunkError::Malformed)?;
        // No overflow: sixteen digits are 64 bits.
        self.chunk = self.chunk << 4 | u64::from(digit);
        Ok(State::Size)
    }

    fn in_line(&mut self, next: State) -> Result<State, ChunkError> {
        self.line += 1;
        if self.line > limits::CHUNK_LINE_BYTES_MAX {
            return Err(ChunkError::LineTooLong);
        }
        Ok(next)
    }

    fn in_trailer(&mut self, next: State) -> Result<State, ChunkError> {
        self.trailers += 1;
        if self.trailers > limits::TRAILER_BYTES_MAX {
            return Err(ChunkError::TrailerTooLarge);
        }
        Ok(next)
    }
}

/// Control characters but for the tab, which a quoted value may hold.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\t'
}

/// What the name of a field is made of (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Bytes of the size line of a chunk of `length` bytes.
pub fn size_line_bytes(length: usize) -> usize {
    let bits = usize::BITS - length.leading_zeros();
    bits.div_ceil(4).max(1) as usize + 2
}

/// Writes the size line of a chunk of `length` bytes so that it ends where the payload begins, and
/// answers where the line begins. At least [`size_line_bytes`] bytes must be free there.
pub fn size_line_before(buffer: &mut [u8], payload_begin: usize, length: usize) -> usize {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut begin = payload_begin - 2;
    buffer[begin..payload_begin].copy_from_slice(b"\r\n");
    let mut rest = length;
    loop {
        begin -= 1;
        buffer[begin] = DIGITS[rest & 15];
        rest >>= 4;
        if rest == 0 {
            return begin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `wire` in pieces of `cut` bytes; answers the body and what lies behind it.
    fn decode(wire: &[u8], cut: usize) -> Result<(Vec<u8>, bool, usize), ChunkError> {
        let mut decoder = Decoder::new();
        let (mut body, mut read) = (Vec::new(), 0);
        for piece in wire.chunks(cut) {
            let mut rest = piece;
            while !rest.is_empty() {
                let decoded = decoder.decode(rest)?;
                body.extend_from_slice(&rest[decoded.payload]);
                read += decoded.consumed;
                if decoded.finished {
                    return Ok((body, true, read));
                }
                rest = &rest[decoded.consumed..];
            }
        }
        Ok((body, false, read))
    }

    #[test]
    fn bodies_are_the_same_at_every_cut() {
        for (wire, body) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            (
                "00005\r\nhello\r\n6;a=\"b c\";d\r\n world\r\n000\r\n\r\n",
                "hello world",
            ),
            (
                "A \t;x\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nY:\r\n\r\n",
                "0123456789",
            ),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
        ] {
            let wire = format!("{wire}GET / HTTP/1.1\r\n");
            let end = wire.len() - "GET / HTTP/1.1\r\n".len();
            for cut in 1..=wire.len() {
                let expected = (body.as_bytes().to_vec(), true, end);
                assert_eq!(
                    decode(wire.as_bytes(), cut),
                    Ok(expected),
                    "{wire:?} cut by {cut}"
                );
            }
            for length in 0..end {
                let prefix = &wire.as_bytes()[..length];
                let finished = decode(prefix, 3).map(|(_, finished, _)| finished);
                assert_eq!(finished, Ok(false), "{wire:?} up to {length}");
            }
        }
    }

    #[test]
    fn a_broken_coding_is_refused() {
        for wire in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na",
            " 1\r\na",
            "0x1\r\na",
            "1\na",
            "1\r\rx",
            "1\r\nab",
            "1\r\na\n",
            "1\r\na\r0",
            "1;\u{1}\r\n",
            "1;a\nb\r\n",
            "0\r\n x: y\r\n\r\n",
            "0\r\nname\r\n\r\n",
            "0\r\n: x\r\n\r\n",
            "0\r\na b: x\r\n\r\n",
            "0\r\na: b\nc\r\n\r\n",
            "0\r\na: b\r\n folded\r\n\r\n",
            "0\r\n\n",
            "0\r\n\rx",
            "11111111111111111\r\n",
            "1g\r\n",
            "1 1\r\na",
            "0\r\na: \u{0}\r\n\r\n",
        ] {
            for cut in [1, 2, wire.len()] {
                let refused = decode(wire.as_bytes(), cut);
                assert_eq!(refused, Err(ChunkError::Malformed), "{wire:?} cut by {cut}");
            }
        }
    }

    #[test]
    fn lines_and_trailers_are_bounded() {
        let line = format!("1;{}", "x".repeat(limits::CHUNK_LINE_BYTES_MAX));
        assert_eq!(decode(line.as_bytes(), 64), Err(ChunkError::LineTooLong));
        let trailers = format!(
            "0\r\n{}",
            "a: b\r\n".repeat(limits::TRAILER_BYTES_MAX / 6 + 1)
        );
        assert_eq!(
            decode(trailers.as_bytes(), 64),
            Err(ChunkError::TrailerTooLarge)
        );
    }

    #[test]
    fn the_largest_size_is_sixty_four_bits() {
        let mut decoder = Decoder::new();
        let decoded = decoder.decode(b"ffffffffffffffff\r\nabc").expect("a size");
        assert_eq!(decoded.payload, 18..21);
        assert_eq!(decoder.chunk, u64::MAX - 3);
    }

    #[test]
    fn size_lines_stand_right_before_the_payload() {
        for (length, line) in [(1, "1\r\n"), (16, "10\r\n"), (65_536, "10000\r\n")] {
            let mut buffer = [b'.'; SIZE_LINE_BYTES_MAX + 1];
            let begin = size_line_before(&mut buffer, SIZE_LINE_BYTES_MAX, length);
            assert_eq!(&buffer[begin..SIZE_LINE_BYTES_MAX], line.as_bytes());
        }
        let mut buffer = [b'.'; SIZE_LINE_BYTES_MAX];
        assert_eq!(
            size_line_before(&mut buffer, SIZE_LINE_BYTES_MAX, usize::MAX),
            0
        );
    }
}
