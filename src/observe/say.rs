//! What the operator is told while m2u runs: lines on standard error, and nothing else.
//!
//! Never waits for a reader: what nobody takes is lost, and counted.

use std::{
    fmt,
    io::{self, Write},
    os::fd::AsFd,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes for which a pipe that takes any has room at once (POSIX's `PIPE_BUF` on Linux).
const PIECE_BYTES: usize = 4096;

/// Lines that nobody took, since somebody was told of such.
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Tells the operator. A standard error that nobody reads any more must not end a gateway, and one that
/// is full must not halt it: a line for which there is no room is lost, which the next one says.
pub fn say(line: fmt::Arguments<'_>) {
    let stderr = io::stderr().lock();
    let lost = LOST.swap(0, Relaxed);
    let mut text = String::new();
    if lost > 0 {
        text = format!("m2u: warning: {lost} lines were lost, for nobody read standard error\n");
    }
    text.push_str(&format!("m2u: {line}\n"));
    if !write_unless_full(stderr, text.as_bytes()) {
        LOST.fetch_add(lost + 1, Relaxed);
    }
}

/// Writes all of `text`, or as many pieces of it as there is room for; `false` if not all.
fn write_unless_full(mut out: impl Write + AsFd, text: &[u8]) -> bool {
    text.chunks(PIECE_BYTES).all(|piece| {
        let mut room = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
        let has_room = matches!(poll(&mut room, PollTimeout::ZERO), Ok(1));
        // Whether there is a reader at all the write finds out, which does not wait for that.
        if has_room {
            let _ = out.write_all(piece);
        }
        has_room
    })
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
        while write_unless_full(&writer, &line) {
            taken += line.len();
        }
        assert!(taken > 0);
        assert!(!write_unless_full(
            &writer,
            b"one byte more than there is room for"
        ));
        let mut all = vec![0; taken];
        reader.read_exact(&mut all).expect("what was written");
        assert!(write_unless_full(&writer, b"the next"));
        drop(writer);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).expect("the rest");
        assert_eq!(rest, b"the next");
    }

    #[test]
    fn who_has_gone_away_is_no_reason_to_stop() {
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        assert!(write_unless_full(&writer, b"a line"));
        assert!(write_unless_full(&writer, b"another"));
    }
}
