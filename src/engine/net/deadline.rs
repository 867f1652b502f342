//! Deadlines of a core's sockets: the only place that ends I/O early.
//!
//! A monoio future must never be dropped while its operation is in flight (bytes would be lost). A
//! sweep shuts the socket down instead, and the pending operation completes by itself. Only the
//! receive of a connection that has been idle for a while is cancelled, and its completion is waited
//! for like any other: it brings what came before it could be stopped, or says that nothing has.
//! Setting a deadline is one store; there is no timer per operation.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::{IpAddr, Ipv6Addr},
    os::fd::RawFd,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use monoio::io::{CancelHandle, Canceller};
use slab::Slab;

use super::{
    sends::Sends,
    sys::{self, Side},
    turns::Turns,
};
use crate::{
    limits,
    snapshot::{
        moved::{Moved, ShortMark},
        scope::Scope,
    },
};

/// How often a core sweeps. No deadline fires early; it fires at most three ticks late, and later
/// only if the core itself did not run meanwhile, or what was waited for has come.
pub const TICK: Duration = Duration::from_millis(50);
/// By how much one sweep advances the core's clock at most, and so how stale the clock may be.
const STEP_MAX: Duration = TICK.saturating_mul(2);
/// Sweeps after which an idle connection's receive is called back.
const IDLE_SWEEPS: u8 = (limits::DORMANT_AFTER.as_millis() / TICK.as_millis()) as u8;
/// Sweeps that find a receive waiting for a batch before it is let go.
const BATCH_SWEEPS: u8 = 2;

/// A point in a core's time, in milliseconds of which it was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due(u64);

impl Due {
    /// Later than everything.
    pub const NEVER: Due = Due(u64::MAX);

    /// So many milliseconds later.
    pub fn after_ms(self, span: u64) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// The sockets of one core with their deadlines, and the core's coarse clock.
#[derive(Debug)]
pub struct Deadlines {
    swept: Cell<Instant>,
    now_ms: Cell<u64>,
    /// Microseconds beyond `now_ms`.
    rest_us: Cell<u64>,
    sockets: RefCell<Slab<Entry>>,
    /// Of the sockets whose speaker has an IPv6 address.
    speakers_v6: RefCell<HashMap<u32, Ipv6Addr>>,
    /// Of the sockets whose send a sweep has found under way.
    pub(super) sends: RefCell<Sends>,
    /// Who waits for a sweep.
    pub turns: Turns,
}

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    speaker: Speaker,
    scope: Scope,
    /// What the speaker was taken for last.
    mark: ShortMark,
    waiting: Waiting,
    cut: Cut,
    noted: Noted,
    /// Sweeps that found its receive waiting, one after the other, where that counts.
    sweeps: u8,
    read_due: Due,
    write_due: Due,
    recall: Option<Recall>,
}

/// Calls back the receive that waits for a next request.
#[derive(Default)]
struct Recall(Canceller);

impl fmt::Debug for Recall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recall")
    }
}

/// How a connection ends that must end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// In order: what was sent says by itself whether it is complete.
    Orderly,
    /// By a reset: an orderly end would make half an answer a whole one.
    Reset,
}

impl Entry {
    fn end(&self) {
        match self.cut {
            Cut::Orderly => sys::shutdown(self.fd, Side::Both),
            Cut::Reset => sys::reset(self.fd),
        }
    }

    /// Counts one more sweep; tells whether its receive has been idle for long enough to be called
    /// back.
    fn tire(&mut self) -> bool {
        if self.waiting != Waiting::Idle || self.recall.is_none() {
            return false;
        }
        self.sweeps = self.sweeps.saturating_add(1);
        self.sweeps >= IDLE_SWEEPS
    }

    /// Has a receive that two sweeps found waiting for a batch wait for it no more: what has come of it
    /// is received at once. Whether it has just done so: nobody is late whose bytes were kept waiting.
    fn let_go(&mut self) -> bool {
        if self.noted.0 & Noted::BATCH == 0 || self.read_due == Due::NEVER {
            return false;
        }
        self.sweeps = self.sweeps.saturating_add(1);
        let lets_go = self.sweeps >= BATCH_SWEEPS;
        if lets_go {
            self.noted.0 &= !Noted::BATCH;
            sys::set_low_water(self.fd, 1);
        }
        lets_go && sys::has_bytes(self.fd)
    }

    /// Whether a send under way is overdue and its peer has acknowledged nothing meanwhile.
    fn is_stalled(&mut self, key: u32, now: Due, sends: &mut Sends) -> bool {
        if self.write_due == Due::NEVER {
            return false;
        }
        let is_overdue = self.write_due <= now;
        if self.noted.0 & Noted::SEND_SEEN == 0 {
            self.noted.0 |= Noted::SEND_SEEN;
            sends.note(key, self.fd, self.write_due.0.saturating_sub(now.0));
        } else if is_overdue && let Some(due) = sends.renew(key, self.fd, now) {
            self.write_due = due;
            return false;
        }
        is_overdue
    }

    /// Whether the next request has come and only waits for its turn: nobody is late then, nor idle.
    fn is_called_upon(&self) -> bool {
        self.waiting == Waiting::Idle && sys::has_bytes(self.fd)
    }
}

/// What a socket's reader is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// The rest of something begun.
    Busy,
    /// The first byte of a next request: may be closed when the core drains.
    Idle,
}

impl Deadlines {
    /// No sockets; time begins now.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            swept: Cell::new(Instant::now()),
            now_ms: Cell::new(0),
            rest_us: Cell::new(0),
            sockets: RefCell::new(Slab::new()),
            speakers_v6: RefCell::default(),
            sends: RefCell::default(),
            turns: Turns::default(),
        })
    }

    /// The deadline `after` from now.
    pub fn due_in(&self, after: Duration) -> Due {
        let span = after
            .saturating_add(STEP_MAX)
            .as_millis()
            .try_into()
            .unwrap_or(u64::MAX);
        Due(self.now_ms.get()).after_ms(span)
    }

    /// Milliseconds since the core began, as of the last sweep, without those in which it stood
    /// still.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Whether `due` has passed.
    pub fn is_past(&self, due: Due) -> bool {
        due <= Due(self.now_ms.get())
    }

    /// Puts a socket under watch. The watch must be dropped before the socket is closed.
    pub fn watch(self: &Rc<Self>, fd: RawFd) -> Watch {
        let entry = Entry {
            fd,
            speaker: Speaker::Nobody,
            scope: Scope::NONE,
            mark: ShortMark::default(),
            waiting: Waiting::Busy,
            cut: Cut::Orderly,
            noted: Noted::default(),
            sweeps: 0,
            read_due: Due::NEVER,
            write_due: Due::NEVER,
            recall: None,
        };
        let key = self.sockets.borrow_mut().insert(entry);
        Watch {
            deadlines: Rc::clone(self),
            key: key.try_into().expect("fewer sockets than descriptors"),
            fd,
        }
    }

    /// Advances the clock and ends what is overdue: a receive by ending the read side, so that an
    /// answer can still be sent; a send by ending both. Calls back what has been idle for a while, and
    /// wakes those whose turn it is.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    /// Likewise, at a time that tests choose.
    ///
    /// A core that was not given its processor for a while finds everything overdue that others did
    /// in time, and even what it began a moment ago by its stale clock. So its own standstill counts
    /// as a step, not as anybody's silence.
    pub(in crate::engine) fn sweep_at(&self, instant: Instant) {
        let passed = instant.saturating_duration_since(self.swept.replace(instant));
        let step = passed.min(STEP_MAX).as_micros() as u64 + self.rest_us.get();
        self.rest_us.set(step % 1_000);
        let now = Due(self.now_ms.get() + step / 1_000);
        self.now_ms.set(now.0);
        let mut recalls = 0;
        let mut sends = self.sends.borrow_mut();
        for (key, entry) in self.sockets.borrow_mut().iter_mut() {
            let has_let_go = entry.let_go();
            if entry.read_due <= now && !has_let_go && !entry.is_called_upon() {
                entry.read_due = Due::NEVER;
                entry.noted.0 |= Noted::READ_EXPIRED;
                sys::shutdown(entry.fd, Side::Read);
            }
            if entry.is_stalled(key as u32, now, &mut sends) {
                entry.write_due = Due::NEVER;
                entry.noted.0 |= Noted::WRITE_EXPIRED;
                entry.end();
            }
            if entry.tire()
                && recalls < limits::RECALLS_PER_TICK_MAX
                && let Some(Recall(canceller)) = entry.recall.take()
            {
                recalls += 1;
                canceller.cancel();
            }
        }
        drop(sends);
        self.turns.next();
    }

    /// Ends every connection, whatever it is doing.
    pub fn close_all(&self) {
        for (_, entry) in self.sockets.borrow().iter() {
            entry.end();
        }
    }

    /// Ends every connection that waits for a next request, of which nothing has come, if `moved`
    /// concerns its address and that is not what it was taken for any more, says `mark`; those on
    /// which something is under way once they wait again.
    pub fn close_moved(&self, moved: &Moved, mark: impl Fn(Scope, IpAddr) -> Option<ShortMark>) {
        let speakers_v6 = self.speakers_v6.borrow();
        for (key, entry) in self.sockets.borrow_mut().iter_mut() {
            let address: Option<IpAddr> = match entry.speaker {
                Speaker::Nobody => None,
                Speaker::V4(octets) => Some(octets.into()),
                Speaker::V6 => speakers_v6.get(&(key as u32)).map(|v6| (*v6).into()),
            };
            let is_moved = address.is_some_and(|address| {
                let scope = entry.scope;
                moved.concerns(scope, address) && mark(scope, address) != Some(entry.mark)
            });
            if is_moved && entry.waiting == Waiting::Busy {
                // What is under way ends under the identity it began with.
                entry.noted.0 |= Noted::MOVED;
            } else if is_moved && !entry.is_called_upon() {
                sys::shutdown(entry.fd, Side::Read);
            }
        }
    }

    /// Ends every connection that waits for a next request, of which nothing has come.
    pub fn close_idle(&self) {
        for (_, entry) in self.sockets.borrow_mut().iter_mut() {
            if entry.waiting == Waiting::Idle && !entry.is_called_upon() {
                sys::shutdown(entry.fd, Side::Read);
            }
        }
    }
}

/// What is to be remembered of a socket; flags of their own would make every entry larger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Noted(u8);

impl Noted {
    /// The sweep ended its receive.
    const READ_EXPIRED: u8 = 1;
    /// The sweep ended its send.
    const WRITE_EXPIRED: u8 = 2;
    /// The next wait for a request ends at once: its speaker is another device now.
    const MOVED: u8 = 4;
    /// Its receives wait for a batch.
    const BATCH: u8 = 8;
    /// A sweep has found its send under way.
    const SEND_SEEN: u8 = 16;
}

/// The address that speaks through a socket. IPv6 ones stand in a list beside, so that a million
/// idle connections don't each have room for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speaker {
    Nobody,
    V4([u8; 4]),
    V6,
}

/// One socket's deadlines. Reader and writer of the socket share it. If a fault of ours unwinds past
/// it, it resets the connection: nobody can say then how much of a message is out.
#[derive(Debug)]
pub struct Watch {
    deadlines: Rc<Deadlines>,
    key: u32,
    fd: RawFd,
}

impl Watch {
    /// Says which address speaks through the socket, to a listener of which scope, and what it is taken
    /// for: its idle connection ends when that is no longer so.
    pub fn set_speaker(&self, scope: Scope, address: IpAddr, mark: ShortMark) {
        let speaker = match address {
            IpAddr::V4(address) => Speaker::V4(address.octets()),
            IpAddr::V6(address) => {
                let mut speakers = self.deadlines.speakers_v6.borrow_mut();
                speakers.insert(self.key, address);
                Speaker::V6
            }
        };
        self.with(|entry| {
            entry.speaker = speaker;
            entry.scope = scope;
            entry.mark = mark;
        });
    }

    /// From now on a receive is overdue at `due`.
    pub fn set_read(&self, due: Due) {
        self.with(|entry| {
            entry.read_due = due;
            entry.sweeps = 0;
        });
    }

    /// From now on receives wait until `bytes` have come, or the stream has ended, or two sweeps have
    /// found one waiting, which sets them back to 1. More must be sure to come.
    pub fn set_batch(&self, bytes: usize) {
        sys::set_low_water(self.fd, bytes);
        self.with(|entry| match bytes > 1 {
            true => entry.noted.0 |= Noted::BATCH,
            false => entry.noted.0 &= !Noted::BATCH,
        });
    }

    /// Whether receives wait for more than a byte.
    pub fn waits_for_batch(&self) -> bool {
        self.with(|entry| entry.noted.0 & Noted::BATCH != 0)
    }

    /// From now on a send, or a connect, is overdue at `due`; a send whose peer acknowledges some of what it
    /// was sent only once it has acknowledged nothing for as long, or twice as long at most, or has had as
    /// long again [`limits::SEND_RENEWALS_MAX`] times.
    pub fn set_write(&self, due: Due) {
        let was_seen = self.with(|entry| {
            let noted = entry.noted.0;
            entry.noted.0 &= !Noted::SEND_SEEN;
            entry.write_due = due;
            noted & Noted::SEND_SEEN != 0
        });
        if was_seen {
            self.deadlines.sends.borrow_mut().forget(self.key);
        }
    }

    /// Says that the reader waits for the first byte of a next request, until `due`.
    pub fn set_idle(&self, due: Due) {
        self.with(|entry| {
            entry.read_due = due;
            entry.waiting = Waiting::Idle;
        });
    }

    /// Likewise, for a receive that is called back when it has waited for
    /// [`limits::DORMANT_AFTER`]. The deadline stands until it is taken back.
    pub fn set_idle_until_recalled(&self, due: Due) -> CancelHandle {
        self.with(|entry| {
            entry.read_due = match entry.noted.0 & Noted::MOVED {
                0 => due,
                _ => Due(0),
            };
            entry.waiting = Waiting::Idle;
            entry.sweeps = 0;
            // What called one receive back serves no other.
            entry.recall.get_or_insert_default().0.handle()
        })
    }

    /// The deadline of a wait for a next request that stands.
    pub fn idle_due(&self) -> Option<Due> {
        self.with(|entry| (entry.waiting == Waiting::Idle).then_some(entry.read_due))
    }

    /// Takes the read deadline back.
    pub fn clear_read(&self) {
        self.with(|entry| {
            entry.read_due = Due::NEVER;
            entry.waiting = Waiting::Busy;
        });
    }

    /// From now on an early end is one of this kind.
    pub fn set_cut(&self, cut: Cut) {
        self.with(|entry| entry.cut = cut);
    }

    /// Whether the sweep ended a receive.
    pub fn read_expired(&self) -> bool {
        self.with(|entry| entry.noted.0 & Noted::READ_EXPIRED != 0)
    }

    /// Whether the sweep ended a send.
    pub fn write_expired(&self) -> bool {
        self.with(|entry| entry.noted.0 & Noted::WRITE_EXPIRED != 0)
    }

    /// Whether nothing has arrived that no receive was posted for; a system call.
    pub fn is_quiet(&self) -> bool {
        sys::is_quiet(self.fd)
    }

    /// Bytes that the peer has not acknowledged; a system call.
    pub fn unacknowledged(&self) -> usize {
        sys::unacknowledged(self.fd)
    }

    /// Whether bytes wait to be received; a system call.
    pub fn has_bytes(&self) -> bool {
        sys::has_bytes(self.fd)
    }

    /// The socket's descriptor, valid as long as its stream is.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// The core's deadlines and clock.
    pub fn deadlines(&self) -> &Rc<Deadlines> {
        &self.deadlines
    }

    /// Sends as much as goes without waiting; answers how many bytes that is.
    pub fn send_at_once(&self, bytes: &[u8]) -> usize {
        sys::send_at_once(self.fd, bytes)
    }

    /// Ends one side, or both, right now.
    pub fn shutdown(&self, side: Side) {
        sys::shutdown(self.fd, side);
    }

    /// Acknowledges what has come of something longer, and only that: its sender may wait for it before it goes
    /// on (Nagle, RFC 9293 §3.7.4).
    pub fn acknowledge(&self) {
        sys::acknowledge(self.fd);
    }

    /// Has what is sent next wait for the end that follows at once, so that both take one segment.
    pub fn hold_last_segment(&self) {
        sys::hold_last_segment(self.fd);
    }

    /// Ends the connection by a reset: what was sent so far must not pass for complete.
    pub fn reset(&self) {
        sys::reset(self.fd);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Entry) -> T) -> T {
        act(&mut self.deadlines.sockets.borrow_mut()[self.key as usize])
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.reset();
        }
        let entry = self
            .deadlines
            .sockets
            .borrow_mut()
            .remove(self.key as usize);
        if entry.speaker == Speaker::V6 {
            self.deadlines.speakers_v6.borrow_mut().remove(&self.key);
        }
        if entry.noted.0 & Noted::SEND_SEEN != 0 {
            self.deadlines.sends.borrow_mut().forget(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Future, poll_fn},
        io::{self, Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd,
        pin::pin,
        task::Poll,
    };

    use monoio::{IoUringDriver, RuntimeBuilder};

    use super::{
        super::stream::{self, Resting},
        *,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        (near, listener.accept().expect("accept").0)
    }

    fn sweep_until(deadlines: &Deadlines, done: impl Fn() -> bool) {
        while !done() {
            thread::sleep(Duration::from_millis(1));
            deadlines.sweep();
        }
    }

    #[test]
    fn an_overdue_receive_ends_and_the_peer_can_still_be_answered() {
        let (mut near, far) = pair();
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        let due = deadlines.due_in(Duration::from_millis(5));
        watch.set_read(due);
        sweep_until(&deadlines, || watch.read_expired());
        assert!(deadlines.is_past(due));
        assert_eq!(near.read(&mut [0; 8]).expect("read side ended"), 0);
        near.write_all(b"408").expect("write side open");
        drop((watch, near));
        let mut answer = String::new();
        (&far).read_to_string(&mut answer).expect("answer");
        assert_eq!(answer, "408");
    }

    #[test]
    fn who_has_spoken_is_neither_late_nor_idle() {
        let ((near, mut far), (silent, _far)) = (pair(), pair());
        let deadlines = Deadlines::new();
        let [spoken, silent] = [&near, &silent].map(|socket| deadlines.watch(socket.as_raw_fd()));
        let due = deadlines.due_in(Duration::from_millis(5));
        spoken.set_idle(due);
        silent.set_idle(due);
        far.write_all(b"GET").expect("a peer");
        while !spoken.has_bytes() {
            thread::yield_now();
        }
        sweep_until(&deadlines, || silent.read_expired());
        deadlines.close_idle();
        assert!(!spoken.read_expired());
        let mut request = [0; 3];
        (&near).read_exact(&mut request).expect("what was sent");
        near.set_nonblocking(true).expect("a socket");
        let rest = (&near).read(&mut request).expect_err("no end yet");
        assert_eq!(rest.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_core_that_stood_still_counts_that_as_nobodys_silence() {
        let (near, _far) = pair();
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        let begun = deadlines.swept.get();
        // Set by a clock that is a minute behind.
        watch.set_read(deadlines.due_in(Duration::from_millis(250)));
        let mut at = begun + Duration::from_secs(60);
        deadlines.sweep_at(at);
        let mut ticks = 0;
        while !watch.read_expired() {
            at += TICK;
            ticks += 1;
            deadlines.sweep_at(at);
        }
        assert_eq!(ticks, 5);
    }

    #[test]
    fn a_cleared_deadline_never_fires() {
        let (near, _far) = pair();
        let deadlines = Deadlines::new();
        let (first, second) = (
            deadlines.watch(near.as_raw_fd()),
            deadlines.watch(near.as_raw_fd()),
        );
        first.set_read(deadlines.due_in(Duration::ZERO));
        first.clear_read();
        second.set_write(deadlines.due_in(Duration::from_millis(5)));
        sweep_until(&deadlines, || second.write_expired());
        assert!(!first.read_expired());
    }

    #[test]
    fn idle_connections_are_closed_and_busy_ones_are_not() {
        let ((idle, _a), (busy, _b)) = (pair(), pair());
        let deadlines = Deadlines::new();
        let (first, second) = (
            deadlines.watch(idle.as_raw_fd()),
            deadlines.watch(busy.as_raw_fd()),
        );
        first.set_idle(Due::NEVER);
        second.set_read(Due::NEVER);
        deadlines.close_idle();
        assert_eq!((&idle).read(&mut [0; 8]).expect("read side ended"), 0);
        busy.set_nonblocking(true).expect("a socket");
        let error = (&busy).read(&mut [0; 8]).expect_err("nothing has come");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        drop((first, second));
    }

    /// Waits for first bytes until the sweep calls the receive back, with `before` done right before
    /// that and `after` right after it; answers all that came, in however many receives.
    fn receive_while_recalled(
        before: impl FnOnce(&mut TcpStream),
        after: impl FnOnce(&mut TcpStream),
    ) -> (usize, Vec<u8>) {
        let (near, mut far) = pair();
        let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
            .build()
            .expect("a ring");
        runtime.block_on(async {
            let deadlines = Deadlines::new();
            let socket = monoio::net::TcpStream::from_std(near).expect("a socket");
            let (mut reader, writer, watch) = stream::split(socket, &deadlines);
            let due = deadlines.due_in(Duration::from_secs(60));
            let (result, mut buffer) = {
                let mut receive = pin!(reader.read_first(Vec::with_capacity(64), 64, due));
                poll_fn(|context| {
                    assert!(receive.as_mut().poll(context).is_pending());
                    Poll::Ready(())
                })
                .await;
                before(&mut far);
                (0..IDLE_SWEEPS).for_each(|_| deadlines.sweep());
                after(&mut far);
                receive.await
            };
            let mut sleeps = 0;
            if result.expect("no error").is_none() {
                sleeps += 1;
                assert_eq!(watch.idle_due(), Some(due), "the deadline stands");
                let resting = Resting::join(reader, writer, watch);
                resting.readable().await.expect("bytes");
                let (mut reader, ..) = resting.split();
                let (result, received) = reader.read_first(buffer, usize::MAX, due).await;
                assert!(matches!(result, Ok(Some(received)) if received > 0));
                buffer = received;
            }
            (sleeps, buffer)
        })
    }

    #[test]
    fn a_receive_that_is_called_back_loses_no_byte_and_doubles_none() {
        let send = |far: &mut TcpStream| far.write_all(b"GET /").expect("a peer");
        let nothing = |_: &mut TcpStream| {};
        assert_eq!(receive_while_recalled(send, nothing).1, b"GET /");
        assert_eq!(receive_while_recalled(nothing, send).1, b"GET /");
        let later = |far: &mut TcpStream| {
            let mut far = far.try_clone().expect("a socket");
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                far.write_all(b"GET /").expect("a peer");
            });
        };
        assert_eq!(
            receive_while_recalled(nothing, later),
            (1, b"GET /".to_vec())
        );
    }

    #[test]
    fn a_receive_that_is_busy_is_never_called_back() {
        let (near, _far) = pair();
        let deadlines = Deadlines::new();
        let watch = deadlines.watch(near.as_raw_fd());
        let recall = |watch: &Watch| watch.with(|entry| entry.recall.is_none());
        drop(watch.set_idle_until_recalled(Due::NEVER));
        watch.clear_read();
        (0..IDLE_SWEEPS).for_each(|_| deadlines.sweep());
        assert!(!recall(&watch));
        drop(watch.set_idle_until_recalled(Due::NEVER));
        (1..IDLE_SWEEPS).for_each(|_| deadlines.sweep());
        assert!(!recall(&watch));
        deadlines.sweep();
        assert!(recall(&watch));
    }

    #[test]
    fn idle_connections_of_moved_addresses_are_closed_and_no_others() {
        let deadlines = Deadlines::new();
        let network = "10.8.0.0/24".parse().expect("a network");
        let six = "2001:db8::7/128".parse().expect("a network");
        let mut moved = Moved::default();
        moved.add(Scope(1), network);
        moved.add(Scope::NONE, six);
        let case = |scope, address: &str, idle| {
            let (near, far) = pair();
            let watch = deadlines.watch(near.as_raw_fd());
            let address = address.parse().expect("an address");
            watch.set_speaker(Scope(scope), address, ShortMark::default());
            if idle {
                watch.set_idle(Due::NEVER);
            }
            (watch, near, far)
        };
        let cases = [
            case(1, "10.8.0.7", true),
            case(2, "2001:db8::7", true),
            case(1, "10.8.0.7", false),
            case(2, "10.8.0.7", true),
            case(1, "10.8.1.7", true),
            case(1, "2001:db8::8", true),
        ];
        let is_closed = |near: &TcpStream| {
            near.set_nonblocking(true).expect("a socket");
            matches!((&mut &*near).read(&mut [0; 8]), Ok(0))
        };
        deadlines.close_moved(&moved, |_, _| Some(ShortMark::default()));
        let closed = cases.iter().filter(|(_, near, _)| is_closed(near));
        assert_eq!(closed.count(), 0, "each device is still the same");
        deadlines.close_moved(&moved, |_, _| None);
        cases[2].0.set_idle_until_recalled(Due::NEVER);
        deadlines.sweep();
        for (number, (_, near, _)) in cases.iter().enumerate() {
            assert_eq!(is_closed(near), number < 3, "case {number}");
        }
        drop(cases);
        assert!(deadlines.speakers_v6.borrow().is_empty());
    }

    #[test]
    fn a_socket_under_watch_takes_little_room() {
        assert!(size_of::<Entry>() <= 40, "{}", size_of::<Entry>());
    }
}
