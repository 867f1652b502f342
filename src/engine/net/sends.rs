//! Sends that take long: whether their peers acknowledge anything meanwhile.
//!
//! A full socket takes no more before a third of it is free, and a slow link may need any time for
//! that. Only sends that a sweep finds under way are looked at, so that others pay nothing.

use std::os::fd::RawFd;

use hashbrown::HashMap;

use super::{deadline::Due, sys};
use crate::limits;

/// The sends of one core that a sweep has found under way, by the keys of their sockets.
#[derive(Debug)]
pub struct Sends(HashMap<u32, Pending>);

#[derive(Debug)]
struct Pending {
    /// Bytes that the peer had not acknowledged when it was looked at last.
    owed: usize,
    /// For how long it may acknowledge nothing.
    patience_ms: u64,
    /// How often it may still have as long again.
    renewals: u32,
}

impl Default for Sends {
    /// With room for some, so that an ordinary request allocates nothing when a sweep meets it.
    fn default() -> Self {
        Self(HashMap::with_capacity(limits::SENDS_ROOM))
    }
}

impl Sends {
    /// Notes a send that is found under way for the first time, `patience_ms` before it is overdue.
    pub fn note(&mut self, key: u32, socket: RawFd, patience_ms: u64) {
        let pending = Pending {
            owed: sys::unacknowledged(socket),
            patience_ms,
            renewals: limits::SEND_RENEWALS_MAX,
        };
        self.0.insert(key, pending);
    }

    /// Until when an overdue send may go on, if its peer has acknowledged something since it was looked
    /// at last: as long as before, but not for ever.
    pub fn renew(&mut self, key: u32, socket: RawFd, now: Due) -> Option<Due> {
        let pending = self.0.get_mut(&key)?;
        let owed = sys::unacknowledged(socket);
        // Where it is more, room was made for that, and the ring has not told yet.
        let has_taken = owed != pending.owed;
        pending.owed = owed;
        pending.renewals = pending.renewals.checked_sub(1)?;
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
        time::{Duration, Instant},
    };

    use socket2::{Domain, Socket, Type};

    use super::{
        super::deadline::{Deadlines, TICK},
        *,
    };

    /// For how long a send may wait.
    const SWEEPS: usize = 60;
    /// For how long a read may find nothing of what should be there.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Has a send wait for as long as its peer lets it, which reads before the sweeps that `reads` says;
    /// answers at which sweep the send was ended.
    fn sweeps_until_overdue(reads: impl Fn(usize) -> bool) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let far = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // Of a size that stays: one that grows could take all there is within a few reads.
        far.set_recv_buffer_size(65_536).expect("a socket");
        let address = listener.local_addr().expect("bound");
        far.connect(&address.into()).expect("connect");
        let mut far = TcpStream::from(far);
        let (mut near, _) = listener.accept().expect("accept");
        near.set_nonblocking(true).expect("a socket");
        far.set_read_timeout(Some(PATIENCE)).expect("a socket");
        while near.write(&[b'x'; 65_536]).is_ok() {}
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        let mut at = Instant::now();
        let mut sweep = || {
            at += TICK;
            deadlines.sweep_at(at);
            watch.write_expired()
        };
        // One that took long, but is over, is no matter.
        watch.set_write(deadlines.due_in(4 * TICK));
        assert!(!sweep() && !sweep());
        watch.set_write(deadlines.due_in((SWEEPS as u32 - 2) * TICK));
        let mut number = 0;
        let ended = loop {
            number += 1;
            if sweep() {
                break number;
            }
            assert!(number < 100 * SWEEPS, "for ever");
            let owed = watch.unacknowledged();
            while reads(number) && watch.unacknowledged() == owed {
                far.read_exact(&mut [0; 4_096]).expect("what was sent");
            }
        };
        drop(watch);
        assert!(deadlines.sends.borrow().0.is_empty());
        ended
    }

    /// How often a send that was ended at this sweep had as long again: it has that from the sweep on
    /// that found it under way, which was the first.
    fn renewals(ended: usize) -> u32 {
        let (periods, rest) = ((ended - 1) / (SWEEPS - 1), (ended - 1) % (SWEEPS - 1));
        assert_eq!(rest, 0, "ended at {ended}");
        periods as u32 - 1
    }

    #[test]
    fn a_send_is_overdue_only_while_its_peer_takes_nothing() {
        let renewals = renewals(sweeps_until_overdue(|sweep| sweep == SWEEPS / 2));
        // Acknowledgements may be late.
        assert!((1..4).contains(&renewals), "{renewals}");
    }

    #[test]
    fn a_send_of_which_a_little_is_taken_at_a_time_does_not_last_for_ever() {
        let ended = sweeps_until_overdue(|sweep| sweep % (SWEEPS / 2) == 0);
        assert_eq!(renewals(ended), limits::SEND_RENEWALS_MAX);
    }

    #[test]
    fn a_send_of_which_nothing_is_taken_is_overdue_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        watch.set_write(deadlines.due_in(4 * TICK));
        let mut at = Instant::now();
        let sweeps = (1..100).find(|_| {
            at += TICK;
            deadlines.sweep_at(at);
            watch.write_expired()
        });
        assert!((5..=7).contains(&sweeps.expect("at last")), "{sweeps:?}");
    }
}
