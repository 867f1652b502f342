//! Deadlines of a core's sockets: the only place that ends I/O early.
//!
//! A monoio future must never be dropped while its operation is in flight (bytes would be lost),
//! so nothing is cancelled here. A sweep shuts the socket down instead, and the pending operation
//! completes by itself. Setting a deadline is one store; there is no timer per operation.

use std::{
    cell::{Cell, RefCell},
    os::fd::RawFd,
    rc::Rc,
    time::{Duration, Instant},
};

use slab::Slab;

use super::sys::{self, Side};

/// How often a core sweeps. No deadline fires early; it fires at most three ticks late, and later
/// only if the core itself did not run meanwhile.
pub const TICK: Duration = Duration::from_millis(50);
/// By how much one sweep advances the core's clock at most, and so how stale the clock may be.
const STEP_MAX: Duration = TICK.saturating_mul(2);

/// A point in a core's time, in milliseconds of which it was running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due(u64);

impl Due {
    /// Later than everything.
    pub const NEVER: Due = Due(u64::MAX);
}

/// The sockets of one core with their deadlines, and the core's coarse clock.
#[derive(Debug)]
pub struct Deadlines {
    swept: Cell<Instant>,
    now_ms: Cell<u64>,
    /// Microseconds beyond `now_ms`.
    rest_us: Cell<u64>,
    sockets: RefCell<Slab<Entry>>,
}

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    read_due: Due,
    write_due: Due,
    waiting: Waiting,
    cut: Cut,
    read_expired: bool,
    write_expired: bool,
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
        })
    }

    /// The deadline `after` from now.
    pub fn due_in(&self, after: Duration) -> Due {
        let span = after
            .saturating_add(STEP_MAX)
            .as_millis()
            .try_into()
            .unwrap_or(u64::MAX);
        Due(self.now_ms.get().saturating_add(span))
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
    pub fn watch(self: &Rc<Self>, fd: RawFd) -> Rc<Watch> {
        let entry = Entry {
            fd,
            read_due: Due::NEVER,
            write_due: Due::NEVER,
            waiting: Waiting::Busy,
            cut: Cut::Orderly,
            read_expired: false,
            write_expired: false,
        };
        let key = self.sockets.borrow_mut().insert(entry);
        Rc::new(Watch {
            deadlines: Rc::clone(self),
            key,
            fd,
        })
    }

    /// Advances the clock and ends what is overdue: a receive by ending the read side, so that an
    /// answer can still be sent; a send by ending both.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    /// Likewise, at a time that tests choose.
    ///
    /// A core that was not given its processor for a while finds everything overdue that others did
    /// in time, and even what it began a moment ago by its stale clock. So its own standstill counts
    /// as a step, not as anybody's silence.
    fn sweep_at(&self, instant: Instant) {
        let passed = instant.saturating_duration_since(self.swept.replace(instant));
        let step = passed.min(STEP_MAX).as_micros() as u64 + self.rest_us.get();
        self.rest_us.set(step % 1_000);
        let now = Due(self.now_ms.get() + step / 1_000);
        self.now_ms.set(now.0);
        for (_, entry) in self.sockets.borrow_mut().iter_mut() {
            if entry.read_due <= now {
                entry.read_due = Due::NEVER;
                entry.read_expired = true;
                sys::shutdown(entry.fd, Side::Read);
            }
            if entry.write_due <= now {
                entry.write_due = Due::NEVER;
                entry.write_expired = true;
                entry.end();
            }
        }
    }

    /// Ends every connection, whatever it is doing.
    pub fn close_all(&self) {
        for (_, entry) in self.sockets.borrow().iter() {
            entry.end();
        }
    }

    /// Ends every connection that waits for a next request.
    pub fn close_idle(&self) {
        for (_, entry) in self.sockets.borrow_mut().iter_mut() {
            if entry.waiting == Waiting::Idle {
                sys::shutdown(entry.fd, Side::Read);
            }
        }
    }
}

/// One socket's deadlines. Reader and writer of the socket share it.
#[derive(Debug)]
pub struct Watch {
    deadlines: Rc<Deadlines>,
    key: usize,
    fd: RawFd,
}

impl Watch {
    /// From now on a receive is overdue at `due`.
    pub fn set_read(&self, due: Due) {
        self.with(|entry| entry.read_due = due);
    }

    /// From now on a send is overdue at `due`.
    pub fn set_write(&self, due: Due) {
        self.with(|entry| entry.write_due = due);
    }

    /// Says that the reader waits for the first byte of a next request, until `due`.
    pub fn set_idle(&self, due: Due) {
        self.with(|entry| {
            entry.read_due = due;
            entry.waiting = Waiting::Idle;
        });
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
        self.with(|entry| entry.read_expired)
    }

    /// Whether the sweep ended a send.
    pub fn write_expired(&self) -> bool {
        self.with(|entry| entry.write_expired)
    }

    /// Whether nothing has arrived that no receive was posted for; a system call.
    pub fn is_quiet(&self) -> bool {
        sys::is_quiet(self.fd)
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

    /// Ends one side, or both, right now.
    pub fn shutdown(&self, side: Side) {
        sys::shutdown(self.fd, side);
    }

    /// Ends the connection by a reset: what was sent so far must not pass for complete.
    pub fn reset(&self) {
        sys::reset(self.fd);
    }

    fn with<T>(&self, act: impl FnOnce(&mut Entry) -> T) -> T {
        act(&mut self.deadlines.sockets.borrow_mut()[self.key])
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.deadlines.sockets.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd,
        thread,
    };

    use super::*;

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
        std::io::Write::write_all(&mut near, b"408").expect("write side open");
        drop((watch, near));
        let mut answer = String::new();
        (&far).read_to_string(&mut answer).expect("answer");
        assert_eq!(answer, "408");
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
}
