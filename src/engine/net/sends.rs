//! Sends that take long: whether their peers acknowledge anything meanwhile.
//!
//! A full socket takes no more before a third of it is free, and a slow link may need any time for
//! that. Only sends that a sweep finds under way are looked at, so that others pay nothing.

use std::os::fd::RawFd;

use hashbrown::HashMap;

use super::{deadline::Due, sys};

/// The sends of one core that a sweep has found under way, by the keys of their sockets.
#[derive(Debug, Default)]
pub struct Sends(HashMap<u32, Pending>);

#[derive(Debug)]
struct Pending {
    /// Bytes that the peer had not acknowledged when it was looked at last.
    owed: usize,
    /// For how long it may acknowledge nothing.
    patience_ms: u64,
}

impl Sends {
    /// Notes a send that is found under way for the first time, `patience_ms` before it is overdue.
    pub fn note(&mut self, key: u32, socket: RawFd, patience_ms: u64) {
        let owed = sys::unacknowledged(socket);
        self.0.insert(key, Pending { owed, patience_ms });
    }

    /// Until when an overdue send may go on, if its peer has acknowledged something since it was looked
    /// at last: as long as before.
    pub fn renew(&mut self, key: u32, socket: RawFd, now: Due) -> Option<Due> {
        let pending = self.0.get_mut(&key)?;
        let owed = sys::unacknowledged(socket);
        let has_taken = owed < pending.owed;
        pending.owed = owed;
        has_taken.then(|| now.after_ms(pending.patience_ms))
    }

    /// Forgets a send that is over.
    pub fn forget(&mut self, key: u32) {
        self.0.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd,
    };

    use super::super::deadline::{Deadlines, TICK};

    #[test]
    fn a_send_is_overdue_only_while_its_peer_takes_nothing() {
        const SWEEPS: usize = 60;
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (mut near, _) = listener.accept().expect("accept");
        near.set_nonblocking(true).expect("a socket");
        while near.write(&[b'x'; 65_536]).is_ok() {}
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        let mut at = std::time::Instant::now();
        let mut sweep = || {
            at += TICK;
            deadlines.sweep_at(at);
            watch.write_expired()
        };
        // One that took long, but is over, is no matter.
        watch.set_write(deadlines.due_in(4 * TICK));
        assert!(!sweep() && !sweep());
        watch.set_write(deadlines.due_in((SWEEPS as u32 - 2) * TICK));
        let owed = watch.unacknowledged();
        assert!((1..SWEEPS / 2).all(|_| !sweep()));
        while watch.unacknowledged() == owed {
            far.read_exact(&mut [0; 65_536]).expect("what was sent");
        }
        let end = (SWEEPS / 2..10 * SWEEPS).find(|_| sweep());
        // From the sweep on that found it, and as long once more; twice if an acknowledgement was late.
        let ends = [2 * SWEEPS - 1, 3 * SWEEPS - 2];
        assert!(end.is_some_and(|end| ends.contains(&end)), "{end:?}");
        drop(watch);
        assert!(deadlines.sends.borrow().0.is_empty());
    }

    #[test]
    fn a_send_that_nobody_takes_is_overdue_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        watch.set_write(deadlines.due_in(4 * TICK));
        let mut at = std::time::Instant::now();
        let sweeps = (1..100).find(|_| {
            at += TICK;
            deadlines.sweep_at(at);
            watch.write_expired()
        });
        assert!((6..=7).contains(&sweeps.expect("at last")), "{sweeps:?}");
    }
}
