//! The chunked coding: the decoder at any cuts says what it says of the whole and what the strict
//! reader says, and what is coded anew is the same body.
//!
//! The first byte of an input says where the rest is cut.

use m2u::engine::{
    http1::{
        chunked::{ChunkError, Decoder},
        framing::Body,
    },
    proxy::relay::{self, Intake, RESERVE},
};

use crate::{
    pieces::{PIECE_BUFFER_BYTES, Pieces},
    strict::{self, Fault, Reading},
};

/// What came of a body: its bytes, the bytes read, and whether it ended there.
type Outcome = Result<(Vec<u8>, usize, bool), ChunkError>;

/// Panics if the readings differ; answers whether there is a whole body.
pub fn check(input: &[u8]) -> bool {
    let [pattern, wire @ ..] = input else {
        return false;
    };
    let whole = decode(wire, 0);
    let cut = decode(wire, *pattern);
    assert!(whole == cut, "the cut decides");
    let strict = strict::chunked(wire, Reading::Received);
    match (&whole, &strict) {
        (Ok((payload, read, true)), Ok((body, length))) => {
            assert!(payload == body && read == length, "another body");
        }
        (Ok((_, read, false)), Err(Fault::Incomplete)) => assert_eq!(*read, wire.len()),
        (Err(_), Err(_)) => {}
        (whole, strict) => panic!("{whole:?}, but {strict:?}"),
    }
    let finished = matches!(whole, Ok((_, _, true)));
    recode(wire, *pattern, whole);
    finished
}

fn decode(wire: &[u8], pattern: u8) -> Outcome {
    let mut pieces = Pieces::new(wire, pattern);
    let mut decoder = Decoder::new();
    let mut payload = Vec::new();
    let mut read = 0;
    while let Some(mut piece) = pieces.next(usize::MAX) {
        while !piece.is_empty() {
            let decoded = decoder.decode(piece)?;
            payload.extend_from_slice(&piece[decoded.payload]);
            read += decoded.consumed;
            if decoded.finished {
                return Ok((payload, read, true));
            }
            piece = &piece[decoded.consumed..];
        }
    }
    Ok((payload, read, false))
}

/// Frames the body anew as the relay does, and has it read again.
fn recode(wire: &[u8], pattern: u8, whole: Outcome) {
    let mut pieces = Pieces::new(wire, pattern);
    let mut intake = Intake::new(Body::Chunked, u64::MAX);
    let (mut buffer, mut out) = (Vec::with_capacity(PIECE_BUFFER_BYTES), Vec::new());
    let mut intact = true;
    while intact
        && !intake.is_done()
        && let Some(piece) = pieces.next(relay::make_room(&mut buffer))
    {
        buffer.extend_from_slice(piece);
        match intake.take(&mut buffer, RESERVE) {
            Ok(piece) => {
                let done = intake.is_done();
                let begin = relay::frame(&mut buffer, piece.payload, Body::Chunked, done);
                out.extend_from_slice(&buffer[begin..]);
            }
            Err(_) => intact = false,
        }
    }
    let again = strict::chunked(&out, Reading::Written);
    match whole {
        Ok((payload, _, true)) => {
            assert!(intact && intake.is_done());
            assert!(
                again == Ok((payload, out.len())),
                "another body, coded anew"
            );
        }
        Ok(_) => assert!(intact && again == Err(Fault::Incomplete)),
        Err(_) => assert!(!intact && again == Err(Fault::Incomplete)),
    }
}
