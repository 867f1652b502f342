//! Bodies on the move: what belongs to a body, and how it is framed on the other side.
//!
//! A piece of a body is taken apart and framed anew where it was received; it is copied only where
//! several chunks arrived in one piece. Never takes a byte for body that belongs to the next
//! message, and never looks into a body.

use std::{future::Future, ops::Range, pin::pin, task::Poll};

use crate::{
    engine::http1::{
        chunked::{self, Decoder},
        framing::Body,
    },
    limits,
};

/// Room kept before a received piece, for the size line of its chunk.
pub const RESERVE: usize = chunked::SIZE_LINE_BYTES_MAX;
/// Room kept behind a received piece, for what ends its chunk and the body.
const TRAILING: usize = 2 + chunked::LAST_CHUNK.len();

/// A body that is being received.
#[derive(Debug)]
pub struct Intake {
    rest: Rest,
    taken: u64,
    bytes_max: u64,
}

/// What is still to come.
#[derive(Debug)]
enum Rest {
    Nothing,
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// Why a body can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// It breaks the chunked coding.
    Malformed,
    /// It is over the limit.
    TooLarge,
}

/// What one received piece held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where the body's bytes are now.
    pub payload: Range<usize>,
    /// Where the bytes begin that belong to the next message.
    pub end: usize,
}

impl Intake {
    /// A body of which nothing has been received, of at most `bytes_max` bytes.
    pub fn new(body: Body, bytes_max: u64) -> Self {
        let rest = match body {
            Body::Absent | Body::Length(0) => Rest::Nothing,
            Body::Length(length) => Rest::Length(length),
            Body::Chunked => Rest::Chunked(Decoder::new()),
            Body::UntilClose => Rest::UntilClose,
        };
        Self {
            rest,
            taken: 0,
            bytes_max,
        }
    }

    /// Bytes still to come, where that is known and they need no other framing.
    pub fn length_left(&self) -> Option<u64> {
        match self.rest {
            Rest::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Takes note of `bytes` of the known length that went by unseen.
    pub fn pass(&mut self, bytes: usize) {
        if let Rest::Length(left) = &mut self.rest {
            *left = left.saturating_sub(bytes as u64);
            self.taken += bytes as u64;
            if *left == 0 {
                self.rest = Rest::Nothing;
            }
        }
    }

    /// Whether the whole body has been received.
    pub fn is_done(&self) -> bool {
        matches!(self.rest, Rest::Nothing)
    }

    /// Body bytes received so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Bytes to receive next, at most `room`: none that are known to belong to another message.
    pub fn room(&self, room: usize) -> usize {
        match self.rest {
            Rest::Nothing => 0,
            Rest::Length(left) => room.min(usize::try_from(left).unwrap_or(room)),
            Rest::Chunked(_) | Rest::UntilClose => room,
        }
    }

    /// Takes in `bytes[begin..]`, moving its payload together.
    ///
    /// # Errors
    /// [`BodyError`]; the body is the sender's fault and ends here.
    pub fn take(&mut self, bytes: &mut [u8], begin: usize) -> Result<Piece, BodyError> {
        let piece = match &mut self.rest {
            Rest::Nothing => Piece {
                payload: begin..begin,
                end: begin,
            },
            Rest::UntilClose => Piece {
                payload: begin..bytes.len(),
                end: bytes.len(),
            },
            Rest::Length(left) => {
                let here = bytes.len() - begin;
                let ours = usize::try_from(*left).map_or(here, |left| left.min(here));
                *left -= ours as u64;
                if *left == 0 {
                    self.rest = Rest::Nothing;
                }
                Piece {
                    payload: begin..begin + ours,
                    end: begin + ours,
                }
            }
            Rest::Chunked(decoder) => {
                let (piece, finished) = unchunk(decoder, bytes, begin)?;
                if finished {
                    self.rest = Rest::Nothing;
                }
                piece
            }
        };
        self.taken += piece.payload.len() as u64;
        if self.taken > self.bytes_max {
            return Err(BodyError::TooLarge);
        }
        Ok(piece)
    }

    /// Whether the end of the connection is the end of this body.
    pub fn ends_by_close(&self) -> bool {
        matches!(self.rest, Rest::UntilClose)
    }

    /// Says that the connection ended where the body may end.
    pub fn finish(&mut self) {
        self.rest = Rest::Nothing;
    }
}

/// Takes the coding off `bytes[begin..]`; the first chunk's payload stays where it is.
fn unchunk(
    decoder: &mut Decoder,
    bytes: &mut [u8],
    begin: usize,
) -> Result<(Piece, bool), BodyError> {
    let mut payload = begin..begin;
    let mut read = begin;
    loop {
        let decoded = decoder
            .decode(&bytes[read..])
            .map_err(|_| BodyError::Malformed)?;
        let (from, to) = (read + decoded.payload.start, read + decoded.payload.end);
        if payload.is_empty() {
            payload = from..to;
        } else {
            bytes.copy_within(from..to, payload.end);
            payload.end += to - from;
        }
        read += decoded.consumed;
        if decoded.finished || read == bytes.len() {
            if payload.is_empty() {
                payload = begin..begin;
            }
            return Ok((Piece { payload, end: read }, decoded.finished));
        }
    }
}

/// Frames a received piece for the other side, in place, and ends `buffer` behind it.
///
/// What follows the piece must have been saved. Returns where the bytes to send begin; nothing is
/// to be sent if that is the buffer's end.
pub fn frame(buffer: &mut Vec<u8>, payload: Range<usize>, body: Body, is_last: bool) -> usize {
    buffer.truncate(payload.end);
    if body != Body::Chunked {
        return payload.start;
    }
    let mut begin = payload.start;
    if !payload.is_empty() {
        begin = chunked::size_line_before(buffer, payload.start, payload.len());
        buffer.extend_from_slice(b"\r\n");
    }
    if is_last {
        buffer.extend_from_slice(chunked::LAST_CHUNK);
    }
    begin
}

/// Appends the piece that came with a head, framed for the other side.
pub fn append_framed(out: &mut Vec<u8>, payload: &[u8], body: Body, is_last: bool) {
    if body != Body::Chunked {
        return out.extend_from_slice(payload);
    }
    if !payload.is_empty() {
        let mut line = [0; RESERVE];
        let begin = chunked::size_line_before(&mut line, RESERVE, payload.len());
        out.extend_from_slice(&line[begin..]);
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
    }
    if is_last {
        out.extend_from_slice(chunked::LAST_CHUNK);
    }
}

/// Empties a buffer for the next piece, which goes behind the reserve; answers how many bytes it may
/// have.
pub fn make_room(buffer: &mut Vec<u8>) -> usize {
    buffer.clear();
    buffer.resize(RESERVE, 0);
    buffer.capacity() - RESERVE - TRAILING
}

/// A small buffer that holds all it can has been filled.
const _: () = assert!(limits::PARKED_BYTES - RESERVE - TRAILING >= limits::PARKED_FULL_BYTES);

/// Lets the futures that both begin run on this core until both are done.
///
/// Takes their beginnings: an argument that is pinned has two places in a connection's task.
pub async fn join<A: Future, B: Future>(
    first: impl FnOnce() -> A,
    second: impl FnOnce() -> B,
) -> (A::Output, B::Output) {
    let (mut first, mut second) = (pin!(first()), pin!(second()));
    let (mut first_done, mut second_done) = (None, None);
    std::future::poll_fn(move |context| {
        if first_done.is_none()
            && let Poll::Ready(output) = first.as_mut().poll(context)
        {
            first_done = Some(output);
        }
        if second_done.is_none()
            && let Poll::Ready(output) = second.as_mut().poll(context)
        {
            second_done = Some(output);
        }
        match (first_done.take(), second_done.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            (first, second) => {
                (first_done, second_done) = (first, second);
                Poll::Pending
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relays `wire` in pieces of `cut` bytes and answers what goes out, and what is left over.
    fn relay(
        wire: &[u8],
        cut: usize,
        from: Body,
        to: Body,
    ) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
        let mut intake = Intake::new(from, u64::MAX);
        let (mut out, mut left) = (Vec::new(), Vec::new());
        for piece in wire.chunks(cut) {
            if intake.is_done() {
                left.extend_from_slice(piece);
                continue;
            }
            let mut buffer = Vec::new();
            buffer.reserve_exact(RESERVE + piece.len() + TRAILING);
            assert!(make_room(&mut buffer) >= piece.len());
            buffer.extend_from_slice(piece);
            let taken = intake.take(&mut buffer, RESERVE)?;
            left.extend_from_slice(&buffer[taken.end..]);
            let begin = frame(&mut buffer, taken.payload, to, intake.is_done());
            out.extend_from_slice(&buffer[begin..]);
        }
        Ok((out, left))
    }

    #[test]
    fn a_chunked_body_comes_out_whole_at_every_cut() {
        let wire =
            b"5;x=y\r\nhello\r\n1\r\n \r\n0006\r\nworld!\r\n0\r\nTrailer: gone\r\n\r\nGET /next";
        for cut in 1..=wire.len() {
            let (plain, left) =
                relay(wire, cut, Body::Chunked, Body::UntilClose).expect("well-formed");
            assert_eq!(plain, b"hello world!", "{cut}");
            assert_eq!(left, b"GET /next", "{cut}");
            let (chunks, _) = relay(wire, cut, Body::Chunked, Body::Chunked).expect("well-formed");
            let (again, left) =
                relay(&chunks, cut, Body::Chunked, Body::UntilClose).expect("our own");
            assert_eq!(
                (&again[..], &left[..]),
                (&b"hello world!"[..], &b""[..]),
                "{cut}"
            );
        }
        let (chunks, _) =
            relay(wire, wire.len(), Body::Chunked, Body::Chunked).expect("well-formed");
        assert_eq!(chunks, b"c\r\nhello world!\r\n0\r\n\r\n");
    }

    #[test]
    fn a_length_takes_no_byte_of_the_next_request() {
        let mut intake = Intake::new(Body::Length(5), u64::MAX);
        assert_eq!(intake.room(100), 5);
        let mut bytes = *b"helloGET";
        let piece = intake.take(&mut bytes, 0);
        assert_eq!(
            piece,
            Ok(Piece {
                payload: 0..5,
                end: 5
            })
        );
        assert!(intake.is_done());
        assert_eq!(intake.room(100), 0);
    }

    #[test]
    fn a_body_over_the_limit_is_noticed_as_it_passes() {
        let mut intake = Intake::new(Body::Chunked, 4);
        let mut bytes = *b"3\r\nabc\r\n2\r\nde\r\n";
        assert_eq!(
            intake
                .take(&mut bytes[..8], 0)
                .map(|piece| piece.payload.len()),
            Ok(3)
        );
        assert_eq!(intake.take(&mut bytes[8..], 0), Err(BodyError::TooLarge));
    }

    #[test]
    fn a_piece_that_came_with_the_head_is_framed_like_any_other() {
        let mut out = Vec::new();
        append_framed(&mut out, b"abc", Body::Chunked, false);
        append_framed(&mut out, b"", Body::Chunked, true);
        assert_eq!(out, b"3\r\nabc\r\n0\r\n\r\n");
        out.clear();
        append_framed(&mut out, b"abc", Body::Length(3), true);
        assert_eq!(out, b"abc");
    }
}
