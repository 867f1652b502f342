//! What one core owns: its view of the snapshot, its connections, its buffers, its counters.
//!
//! Shared with nobody: no lock on a request's way, and no atomic that another core writes to, but for
//! the connection limits.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::SystemTime,
};

use super::{
    admission::Admission,
    buffers::Buffers,
    date::DateField,
    http1::rewrite::{DATE_FIELD_BYTES, REQUEST_ID_BYTES},
    net::{deadline::Deadlines, pipe::Pipes},
    upstream::pool::Pools,
};
use crate::{
    config::settings::{Limits, Timeouts, Tuning},
    limits,
    observe::{
        access_log::CoreLog,
        log_line::Entry,
        metrics::{CoreMetrics, Ending},
    },
    snapshot::{Snapshot, moved::Mark, publish::Subscriber},
};

/// One core's belongings.
#[derive(Debug)]
pub struct Shard {
    /// Deadlines of the core's sockets, and its clock.
    pub deadlines: Rc<Deadlines>,
    /// Idle upstream connections.
    pub pools: Pools,
    /// Spare buffers.
    pub buffers: Buffers,
    /// Spare pipes.
    pub pipes: Pipes,
    /// Bytes of a plain body still to come from which on it is moved inside the kernel.
    pub splice_bytes: u64,
    /// Durations that apply where a server does not set its own.
    pub timeouts: Timeouts,
    /// Sizes and counts that apply where a server does not set its own.
    pub limits: Limits,
    /// Who may have how many connections, over all cores.
    pub admission: Arc<Admission>,
    /// What is counted.
    pub metrics: Arc<CoreMetrics>,
    is_logging: bool,
    log: RefCell<Option<CoreLog>>,
    snapshots: RefCell<Snapshots>,
    request_ids: RequestIds,
    date: DateField,
    draining: Cell<bool>,
    connections: Cell<usize>,
    dormant: Cell<usize>,
    refusals: Cell<usize>,
    second_tries: Cell<usize>,
    /// Connections that wait for a request on a large buffer.
    large_waits: Cell<usize>,
}

/// A counted reference that never leaves the core, so that requests of several cores don't write
/// to one count.
#[derive(Debug)]
struct Snapshots {
    subscriber: Subscriber,
    #[expect(
        clippy::redundant_allocation,
        reason = "the outer count is the core's own"
    )]
    newest: Rc<Arc<Snapshot>>,
}

impl Shard {
    /// A core that has not served anyone yet.
    pub fn new(
        mut subscriber: Subscriber,
        admission: Arc<Admission>,
        metrics: Arc<CoreMetrics>,
        timeouts: Timeouts,
        limits: Limits,
        tuning: &Tuning,
        log: Option<CoreLog>,
    ) -> Rc<Self> {
        let deadlines = Deadlines::new();
        let newest = Rc::new(Arc::clone(subscriber.load()));
        Rc::new(Self {
            pools: Pools::new(&deadlines, tuning.pool_per_core),
            buffers: Buffers::new(tuning, limits.head_bytes),
            pipes: Pipes::default(),
            splice_bytes: tuning.splice_bytes,
            deadlines,
            timeouts,
            limits,
            admission,
            metrics,
            is_logging: log.is_some(),
            log: RefCell::new(log),
            snapshots: RefCell::new(Snapshots { subscriber, newest }),
            request_ids: RequestIds::new(),
            date: DateField::default(),
            draining: Cell::new(false),
            connections: Cell::new(0),
            dormant: Cell::new(0),
            refusals: Cell::new(0),
            second_tries: Cell::new(0),
            large_waits: Cell::new(0),
        })
    }

    /// The newest snapshot; taken once per request and kept for that exchange.
    #[inline]
    pub fn snapshot(&self) -> Rc<Arc<Snapshot>> {
        let Snapshots { subscriber, newest } = &mut *self.snapshots.borrow_mut();
        let published = subscriber.load();
        if !Arc::ptr_eq(published, newest) {
            *newest = Rc::new(Arc::clone(published));
        }
        Rc::clone(newest)
    }

    /// A request id that no other request of this process, or of another, has.
    pub fn next_request_id(&self) -> [u8; REQUEST_ID_BYTES] {
        self.request_ids.next()
    }

    /// The `Date` of an answer that the gateway writes, or forwards and that came without one.
    pub fn date_field(&self) -> [u8; DATE_FIELD_BYTES] {
        self.date.at(SystemTime::now())
    }

    /// Whether the core finishes what is under way and takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// From now on every answer is the last of its connection; idle ones end at once.
    pub fn begin_drain(&self) {
        if !self.draining.replace(true) {
            self.deadlines.close_idle();
            self.deadlines.turns.wake_all();
            self.pools.clear();
        }
    }

    /// Ends what is overdue, and what waits at an address that has another device now; called every
    /// tick.
    pub fn sweep(&self) {
        let moved = self.snapshots.borrow().subscriber.take_moved();
        if let Some(moved) = moved {
            let snapshot = self.snapshot();
            let mark = |scope, address| {
                let identity = snapshot.identities.resolve(scope, address);
                identity
                    .ok()
                    .as_ref()
                    .map(|identity| Mark::of(identity).short())
            };
            self.deadlines.close_moved(&moved, mark);
        }
        self.deadlines.sweep();
        self.pools.sweep();
        self.pipes.sweep();
        self.buffers.sweep();
        if let Some(log) = &mut *self.log.borrow_mut() {
            log.tick();
        }
        self.metrics.open.set(self.connections.get() as u64);
        self.metrics.dormant.set(self.dormant.get() as u64);
        self.metrics.refusing.set(self.refusals.get() as u64);
        self.metrics.pooled.set(self.pools.len() as u64);
        // Lets go of a snapshot that was replaced while no request came.
        drop(self.snapshot());
    }

    /// Whether exchanges are logged.
    pub fn is_logging(&self) -> bool {
        self.is_logging
    }

    /// Hands on what has been logged, for good: tasks that outlive the core's loop may hold the
    /// shard for ever.
    pub fn close_log(&self) {
        self.log.borrow_mut().take();
    }

    /// Adds a line to the access log, if there is one.
    pub fn log(&self, entry: &Entry<'_>) {
        if let Some(log) = &mut *self.log.borrow_mut() {
            log.write(entry);
        }
    }

    /// Connections of devices that this core serves now.
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Counts one connection until the guard is dropped.
    pub fn count_connection(self: &Rc<Self>) -> Counted {
        self.connections.set(self.connections.get() + 1);
        self.metrics.accepted.add();
        Counted {
            shard: Rc::clone(self),
            ending: Ending::Fault,
        }
    }

    /// Counts one connection more that sleeps.
    pub fn begin_sleep(&self) {
        self.dormant.set(self.dormant.get() + 1);
    }

    /// Counts one connection less that sleeps.
    pub fn end_sleep(&self) {
        self.dormant.set(self.dormant.get() - 1);
    }

    /// A place among the connections that are told why they are not served; `None` if all are taken.
    pub fn begin_refusal(&self) -> Option<Place<'_>> {
        Place::take(&self.refusals, limits::REFUSALS_PER_CORE_MAX)
    }

    /// A place among the connections that wait for a request on a large buffer; `None` if all are taken.
    pub fn begin_large_wait(&self) -> Option<Place<'_>> {
        Place::take(&self.large_waits, limits::LARGE_WAITS_PER_CORE_MAX)
    }

    /// A place among the connections that wait a moment before they are refused; `None` if all are
    /// taken.
    pub fn begin_second_try(&self) -> Option<Place<'_>> {
        Place::take(&self.second_tries, limits::SECOND_TRIES_PER_CORE_MAX)
    }
}

/// A connection that counts.
#[derive(Debug)]
pub struct Counted {
    shard: Rc<Shard>,
    ending: Ending,
}

impl Counted {
    /// Says why it ended; without that it was a fault.
    pub fn end(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let shard = &self.shard;
        shard.metrics.count_end(self.ending);
        shard.connections.set(shard.connections.get() - 1);
    }
}

/// One of the places of which there are so many; given back when dropped.
#[derive(Debug)]
pub struct Place<'c>(&'c Cell<usize>);

impl<'c> Place<'c> {
    fn take(taken: &'c Cell<usize>, max: usize) -> Option<Self> {
        (taken.get() < max).then(|| {
            taken.set(taken.get() + 1);
            Self(taken)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Request ids: a random prefix for each core, then a count.
#[derive(Debug)]
struct RequestIds {
    prefix: u64,
    count: Cell<u64>,
}

impl RequestIds {
    fn new() -> Self {
        use std::hash::{BuildHasher, RandomState};
        // The standard library seeds each of these from the system's random source.
        Self {
            prefix: RandomState::new().hash_one(0),
            count: Cell::new(0),
        }
    }

    fn next(&self) -> [u8; REQUEST_ID_BYTES] {
        let count = self.count.get();
        self.count.set(count.wrapping_add(1));
        let mut id = [0; REQUEST_ID_BYTES];
        let bytes = self
            .prefix
            .to_be_bytes()
            .into_iter()
            .chain(count.to_be_bytes());
        for (pair, byte) in id.chunks_exact_mut(2).zip(bytes) {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_lower_case_hex_and_differ() {
        let ids = RequestIds::new();
        let (first, second) = (ids.next(), ids.next());
        assert_ne!(first, second);
        assert!(first.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        assert_ne!(RequestIds::new().next(), first);
    }
}
