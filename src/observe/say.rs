//! What the operator is told while m2u runs: lines on standard error, and nothing else.
//!
//! Never waits for a reader: what nobody takes is lost, and counted.

use std::{
    fmt,
    io::{self, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes for which a pipe that takes any has room at once (POSIX's `PIPE_BUF` on Linux).
const PIECE_BYTES: usize = 4096;

/// Lines that nobody took, since somebody was told of such.
static LOST: AtomicUsize = AtomicUsize::new(0);
/// Whether the last of them was begun.
static CUT: AtomicBool = AtomicBool::new(false);

/// Tells the operator. A standard error that nobody reads any more must not end a gateway, and one that
/// is full must not halt it: a line for which there is no room is lost, which the next one says.
pub fn say(line: fmt::Arguments<'_>) {
    // Whoever has it speaks alone: what is kept of lost lines is theirs.
    let mut stderr = io::stderr().lock();
    let lost = LOST.load(Relaxed);
    let is_told = lost == 0
        || tell(
            &mut stderr,
            format_args!("warning: {lost} lines were lost, for nobody read standard error"),
        );
    if is_told {
        LOST.store(0, Relaxed);
    }
    if !is_told || !tell(&mut stderr, line) {
        LOST.fetch_add(1, Relaxed);
    }
}

/// Writes a line, behind the end of one that was begun; `false` if not all of it.
fn tell(out: impl Write + AsFd, line: fmt::Arguments<'_>) -> bool {
    let end = if CUT.load(Relaxed) { "\n" } else { "" };
    let outcome = write_unless_full(out, format!("{end}m2u: {line}\n").as_bytes());
    match outcome {
        Outcome::Written => CUT.store(false, Relaxed),
        Outcome::Cut => CUT.store(true, Relaxed),
        Outcome::Nothing => {}
    }
    outcome == Outcome::Written
}

/// How much of a text was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Written,
    Cut,
    Nothing,
}

/// Writes all of `text`, or as many pieces of it as there is room for.
fn write_unless_full(mut out: impl Write + AsFd, text: &[u8]) -> Outcome {
    let mut written = 0;
    for piece in text.chunks(PIECE_BYTES) {
        let mut room = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        let has_room = matches!(poll(&mut room, PollTimeout::ZERO), Ok(1));
        let bytes = match has_room.then(|| out.write(piece)) {
            Some(Ok(bytes)) => bytes,
            // Nobody is there to whom it could be lost.
            Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Outcome::Written;
            }
            Some(Err(_)) | None => 0,
        };
        written += bytes;
        if bytes < piece.len() {
            return match written {
                0 => Outcome::Nothing,
                _ => Outcome::Cut,
            };
        }
    }
    Outcome::Written
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn nobody_is_waited_for() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let line = [b'x'; PIECE_BYTES];
        let mut taken = 0;
        while write_unless_full(&writer, &line) == Outcome::Written {
            taken += line.len();
        }
        assert!(taken > 0);
        assert_eq!(write_unless_full(&writer, b"more"), Outcome::Nothing);
        reader.read_exact(&mut [0; PIECE_BYTES]).expect("a line");
        // Room for one piece of two.
        let two = [b'y'; 2 * PIECE_BYTES];
        assert_eq!(write_unless_full(&writer, &two), Outcome::Cut);
        let mut all = vec![0; taken];
        reader.read_exact(&mut all).expect("what was written");
        assert_eq!(write_unless_full(&writer, b"the next"), Outcome::Written);
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).expect("the rest");
        assert_eq!(rest, b"the next");
    }

    #[test]
    fn who_has_gone_away_is_no_reason_to_stop() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        for line in [b"a line", b"second"] {
            assert_eq!(write_unless_full(&writer, line), Outcome::Written);
        }
    }
}
