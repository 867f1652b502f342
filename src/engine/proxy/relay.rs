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
/// Bytes that the chunked coding adds to one piece at most.
pub const FRAMING_BYTES_MAX: usize = RESERVE + TRAILING;

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
        self.taken += self.take_uncoded(bytes) as u64;
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
            Rest::Chunked(decoder) => {
                let (piece, finished) = unchunk(decoder, bytes, begin)?;
                if finished {
                    self.rest = Rest::Nothing;
                }
                piece
            }
            _ => {
                let end = begin + self.take_uncoded(bytes.len() - begin);
                Piece {
                    payload: begin..end,
                    end,
                }
            }
        };
        self.count(piece.payload.len())?;
        Ok(piece)
    }

    /// Takes in `bytes`, which came with a head, and appends their payload to `out`, framed for the other
    /// side; answers where the bytes begin that belong to the next message.
    ///
    /// # Errors
    /// [`BodyError`], as [`take`](Self::take) has it; whatever `out` holds by then must not be sent.
    pub fn append(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        body: Body,
    ) -> Result<usize, BodyError> {
        let line = out.len();
        if body == Body::Chunked && !bytes.is_empty() {
            // Of a longer payload than there can be: it mostly has as many digits.
            out.resize(line + chunked::size_line_bytes(bytes.len()), 0);
        }
        let begin = out.len();
        let end = match &mut self.rest {
            Rest::Chunked(decoder) => {
                let (end, finished) = append_unchunked(decoder, bytes, out)?;
                if finished {
                    self.rest = Rest::Nothing;
                }
                end
            }
            _ => {
                let end = self.take_uncoded(bytes.len());
                out.extend_from_slice(&bytes[..end]);
                end
            }
        };
        let length = out.len() - begin;
        self.count(length)?;
        if body == Body::Chunked {
            if length > 0 {
                let written = chunked::size_line_before(out, begin, length);
                out.drain(line..written);
                out.extend_from_slice(b"\r\n");
            } else {
                out.truncate(line);
            }
            if self.is_done() {
                out.extend_from_slice(chunked::LAST_CHUNK);
            }
        }
        Ok(end)
    }

    /// Takes the first of `here` bytes that are no chunks: as many as it answers.
    fn take_uncoded(&mut self, here: usize) -> usize {
        let ours = self.room(here);
        if let Rest::Length(left) = &mut self.rest {
            *left -= ours as u64;
            if *left == 0 {
                self.rest = Rest::Nothing;
            }
        }
        ours
    }

    fn count(&mut self, payload: usize) -> Result<(), BodyError> {
        self.taken += payload as u64;
        match self.taken > self.bytes_max {
            true => Err(BodyError::TooLarge),
            false => Ok(()),
        }
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

/// Appends what is in the chunks of `bytes` to `out`; answers where the coding ends in it, and whether the
/// body does.
fn append_unchunked(
    decoder: &mut Decoder,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(usize, bool), BodyError> {
    let mut read = 0;
    loop {
        let rest = &bytes[read..];
        let decoded = decoder.decode(rest).map_err(|_| BodyError::Malformed)?;
        out.extend_from_slice(&rest[decoded.payload]);
        read += decoded.consumed;
        if decoded.finished || read == bytes.len() {
            return Ok((read, decoded.finished));
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

/// Empties a buffer for the next piece, which goes behind the reserve; answers how many bytes it may
/// have.
pub fn make_room(buffer: &mut Vec<u8>) -> usize {
    buffer.clear();
    buffer.resize(RESERVE, 0);
    buffer.capacity() - FRAMING_BYTES_MAX
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
            assert!(buffer.len() - begin <= piece.len() + FRAMING_BYTES_MAX);
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
        // Line by line: what came, its framing, that of the other side, what goes out, what is left.
        const LONG: &[u8] = &[b'x'; 300];
        let chunks = [b"96\r\n", &LONG[..150], b"\r\n", b"096\r\n", &LONG[150..]].concat();
        let long = [b"12c\r\n", LONG, b"\r\n"].concat();
        let (chunked, length) = (Body::Chunked, Body::Length);
        type Row<'a> = (&'a [u8], Body, Body, &'a [u8], &'a [u8]);
        let rows: &[Row<'_>] = &[
            (b"", chunked, chunked, b"", b""),
            (b"3\r\n", chunked, chunked, b"", b""),
            (b"3\r\nabc\r\n", chunked, chunked, b"3\r\nabc\r\n", b""),
            (
                b"3\r\nabc\r\n0\r\n\r\nGET",
                chunked,
                chunked,
                b"3\r\nabc\r\n0\r\n\r\n",
                b"GET",
            ),
            (b"0\r\n\r\nGET", chunked, chunked, b"0\r\n\r\n", b"GET"),
            // The coding takes a digit more than the payload, and as many.
            (
                b"9;x=0123456\r\nabcdefghi",
                chunked,
                chunked,
                b"9\r\nabcdefghi\r\n",
                b"",
            ),
            (&chunks, chunked, chunked, &long, b""),
            (&chunks, chunked, Body::UntilClose, LONG, b""),
            (LONG, Body::UntilClose, chunked, &long, b""),
            (b"abcGET", length(3), length(3), b"abc", b"GET"),
            (b"ab", length(3), length(3), b"ab", b""),
            (b"GET", Body::Absent, Body::Absent, b"", b"GET"),
        ];
        for &(came, from, to, sent, left) in rows {
            let mut out = b"a head".to_vec();
            let mut intake = Intake::new(from, u64::MAX);
            let end = intake.append(came, &mut out, to).expect("well-formed");
            let shown = came.escape_ascii().to_string();
            assert_eq!(out, [b"a head", sent].concat(), "{shown}");
            assert_eq!(&came[end..], left, "{shown}");
        }
        let refused = |came: &[u8]| Intake::new(chunked, 4).append(came, &mut Vec::new(), chunked);
        assert_eq!(refused(b"5\r\nabcde"), Err(BodyError::TooLarge));
        assert_eq!(refused(b"3\nabc"), Err(BodyError::Malformed));
    }
}
