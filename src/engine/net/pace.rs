//! How fast a body comes, and how much of it a receive should wait for.
//!
//! A sender's core often hands over a record at a time. Where a body comes fast, its receives wait for
//! many of them (`SO_RCVLOWAT`, socket(7)): a core that is woken once for eight records receives and
//! sends them at once. Never waits for more than is known to come: a piece of a record that has come
//! already will not come again. Never lets a body that comes slowly, or stops, wait for longer than two
//! ticks: the sweep lets go of it.

use super::deadline::Watch;
use crate::limits::{BATCH_BYTES, FAST_BYTES, TLS_RECORD_BYTES};

/// The pace of one body.
#[derive(Debug, Default)]
pub struct Pace {
    /// The tick that the last receive fell into.
    tick_ms: u64,
    /// Bytes that came in it.
    brought: usize,
    /// What its socket was told last.
    batch: usize,
}

impl Pace {
    /// Takes note of what a receive brought, and says to its socket what the next one waits for, with
    /// `left` bytes still to be received, where that is known. Must be told of the body's last bytes, so that
    /// nothing behind them is waited for.
    pub fn note(&mut self, watch: &Watch, received: usize, left: Option<u64>) {
        let now_ms = watch.deadlines().now_ms();
        if self.tick_ms != now_ms {
            (self.tick_ms, self.brought) = (now_ms, 0);
        }
        self.brought += received;
        // Once let go, it has to be fast anew.
        let waits = watch.waits_for_batch();
        let is_fast = waits || self.brought >= FAST_BYTES;
        let left = left.map_or(0, |left| usize::try_from(left).unwrap_or(BATCH_BYTES));
        let batch = match is_fast && left > TLS_RECORD_BYTES {
            true => left.min(BATCH_BYTES),
            false => 1,
        };
        if batch != if waits { self.batch } else { 1 } {
            self.batch = batch;
            watch.set_batch(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        net::{TcpListener, TcpStream},
        os::fd::{AsFd, AsRawFd},
        rc::Rc,
        time::{Duration, Instant},
    };

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::{super::deadline::Deadlines, *};

    /// A body's sender, and its receiver under watch.
    struct Body {
        far: TcpStream,
        // Before the socket.
        watch: Watch,
        near: TcpStream,
        deadlines: Rc<Deadlines>,
        pace: Pace,
    }

    impl Body {
        fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
            let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
            near.set_nonblocking(true).expect("a socket");
            let deadlines = Deadlines::new();
            Self {
                far: listener.accept().expect("accept").0,
                watch: deadlines.watch(near.as_raw_fd()),
                near,
                deadlines,
                pace: Pace::default(),
            }
        }

        /// Has `bytes` more come, so that `waiting` are there.
        fn send(&mut self, bytes: usize, waiting: usize) {
            self.far.write_all(&vec![b'x'; bytes]).expect("room");
            let mut seen = vec![0; waiting + 1];
            loop {
                match self.near.peek(&mut seen) {
                    Ok(there) if there == waiting => return,
                    Ok(there) => assert!(there < waiting, "{there}"),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        }

        fn note(&mut self, received: usize, left: u64) {
            self.pace.note(&self.watch, received, Some(left));
        }

        fn is_readable(&self) -> bool {
            let mut near = [PollFd::new(self.near.as_fd(), PollFlags::POLLIN)];
            poll(&mut near, PollTimeout::ZERO).expect("a poll") > 0
        }

        /// Sweeps until the core's clock has moved.
        fn tick(&self) {
            let before = self.deadlines.now_ms();
            while self.deadlines.now_ms() == before {
                self.deadlines.sweep();
            }
        }
    }

    #[test]
    fn a_fast_body_is_waited_for_by_the_batch() {
        let mut body = Body::new();
        body.send(1, 1);
        body.note(FAST_BYTES - 1, 1 << 20);
        assert!(body.is_readable(), "not fast yet");
        body.note(1, 1 << 20);
        assert!(!body.is_readable());
        body.send(BATCH_BYTES - 2, BATCH_BYTES - 1);
        assert!(!body.is_readable());
        body.send(1, BATCH_BYTES);
        assert!(body.is_readable());
    }

    #[test]
    fn nothing_is_waited_for_that_may_not_come() {
        let mut body = Body::new();
        body.note(FAST_BYTES, 40_000);
        body.send(39_999, 39_999);
        assert!(!body.is_readable());
        body.send(1, 40_000);
        assert!(body.is_readable());
        body.note(1, TLS_RECORD_BYTES as u64);
        assert!(!body.watch.waits_for_batch(), "one record is no batch");
        body.note(FAST_BYTES, 40_000);
        body.pace.note(&body.watch, 1, None);
        assert!(!body.watch.waits_for_batch(), "the body is over");

        body.note(FAST_BYTES, 50_000);
        body.far.shutdown(std::net::Shutdown::Write).expect("open");
        while !body.is_readable() {}
    }

    #[test]
    fn a_body_that_comes_slowly_is_taken_as_it_comes() {
        let mut body = Body::new();
        for _ in 0..8 {
            body.note(FAST_BYTES - 1, 1 << 20);
            body.tick();
        }
        assert!(!body.watch.waits_for_batch());
    }

    #[test]
    fn a_body_that_stops_is_let_go_by_the_second_sweep_and_has_to_be_fast_anew() {
        let mut body = Body::new();
        body.note(FAST_BYTES, 1 << 20);
        body.send(1, 1);
        let due = body.deadlines.due_in(Duration::from_secs(60));
        for _ in 0..3 {
            body.watch.set_read(due);
            body.deadlines.sweep();
            assert!(!body.is_readable(), "a receive that has just begun");
        }
        body.watch.clear_read();
        body.deadlines.sweep();
        assert!(!body.is_readable(), "nobody waits");
        body.watch.set_read(due);
        body.deadlines.sweep();
        body.deadlines.sweep();
        assert!(body.is_readable());
        body.tick();
        body.note(FAST_BYTES - 1, 1 << 20);
        assert!(!body.watch.waits_for_batch());
        body.note(1, 1 << 20);
        assert!(body.watch.waits_for_batch());
    }

    #[test]
    fn what_was_kept_waiting_is_not_late() {
        for comes in [true, false] {
            let mut body = Body::new();
            body.note(FAST_BYTES, 1 << 20);
            if comes {
                body.send(1, 1);
            }
            let due = body.deadlines.due_in(Duration::from_millis(50));
            body.watch.set_read(due);
            // A core that was away for a while: its second sweep finds both.
            let begin = Instant::now();
            for passed in [100, 200] {
                assert!(!body.is_readable() && !body.watch.read_expired());
                let instant = begin + Duration::from_millis(passed);
                body.deadlines.sweep_at(instant);
            }
            assert!(body.deadlines.is_past(due));
            // Bytes, or the end that the sweep has made.
            assert!(body.is_readable());
            assert_eq!(body.watch.read_expired(), !comes);
        }
    }
}
