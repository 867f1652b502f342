//! What one core owns: its view of the snapshot, its connections, its buffers, its counters.
//!
//! Shared with nobody: no lock on a request's way, and no atomic that another core writes to, but for
//! the connection limits.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use super::{
    admission::Admission,
    http1::rewrite::REQUEST_ID_BYTES,
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
            pools: Pools::new(&deadlines, limits.pool_per_server, tuning.pool_per_core),
            buffers: Buffers::new(tuning.relay_bytes, limits.head_bytes),
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

/// Spare buffers of two sizes: one to park a silent connection on, one to move bodies with.
#[derive(Debug)]
pub struct Buffers {
    parked: RefCell<Spares>,
    relay: RefCell<Spares>,
    relay_bytes: usize,
    relay_capacity: usize,
}

/// Spare buffers of one size.
#[derive(Debug)]
struct Spares {
    buffers: Vec<Vec<u8>>,
    /// How many of them nothing has needed since the last sweep.
    unused: usize,
}

impl Spares {
    fn new() -> Self {
        Self {
            buffers: Vec::with_capacity(limits::SPARE_BUFFERS_MAX),
            unused: 0,
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let buffer = self.buffers.pop();
        self.unused = self.unused.min(self.buffers.len());
        buffer
    }

    fn put(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < limits::SPARE_BUFFERS_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// Frees some of those that nothing needs; after a flood, all but a few within seconds.
    fn sweep(&mut self) {
        let excess = self.unused.saturating_sub(limits::SPARE_BUFFERS_FLOOR);
        let kept = self.buffers.len() - excess.div_ceil(16);
        self.buffers.truncate(kept);
        self.unused = kept;
    }
}

impl Buffers {
    fn new(relay_bytes: usize, head_bytes: usize) -> Self {
        Self {
            parked: RefCell::new(Spares::new()),
            relay: RefCell::new(Spares::new()),
            relay_bytes,
            relay_capacity: relay_bytes.max(head_bytes) + limits::HEAD_GROWTH_BYTES_MAX,
        }
    }

    /// Body bytes that one receive takes at most.
    pub fn relay_bytes(&self) -> usize {
        self.relay_bytes
    }

    /// An empty buffer for a connection that waits for a request.
    pub fn take_parked(&self) -> Vec<u8> {
        let spare = self.parked.borrow_mut().take();
        spare.unwrap_or_else(|| Vec::with_capacity(limits::PARKED_BYTES))
    }

    /// An empty buffer with room for a rewritten head, or for a piece of a body.
    pub fn take_relay(&self) -> Vec<u8> {
        let spare = self.relay.borrow_mut().take();
        spare.unwrap_or_else(|| Vec::with_capacity(self.relay_capacity))
    }

    /// An empty buffer in place of `buffer`, for the next receive of a connection of which the last
    /// one brought `received` bytes: small until a small one was filled, so that whoever trickles
    /// holds little; at most one receive more for a whole body.
    pub fn refit(&self, mut buffer: Vec<u8>, received: usize) -> Vec<u8> {
        let is_brisk = received >= limits::PARKED_FULL_BYTES;
        let capacity = if is_brisk {
            self.relay_capacity
        } else {
            limits::PARKED_BYTES
        };
        if buffer.capacity() == capacity {
            buffer.clear();
            return buffer;
        }
        self.put(buffer);
        if is_brisk {
            self.take_relay()
        } else {
            self.take_parked()
        }
    }

    /// A buffer with more room for what is in `buffer`, which is full.
    pub fn enlarge(&self, buffer: Vec<u8>) -> Vec<u8> {
        let mut larger = self.take_relay();
        larger.extend_from_slice(&buffer);
        self.put(buffer);
        larger
    }

    /// Takes a buffer of either size back; whichever grew or is one too many is freed.
    pub fn put(&self, buffer: Vec<u8>) {
        let spares = match buffer.capacity() {
            limits::PARKED_BYTES => &self.parked,
            capacity if capacity == self.relay_capacity => &self.relay,
            _ => return,
        };
        spares.borrow_mut().put(buffer);
    }

    /// Frees what nothing needs any more; called every tick.
    fn sweep(&self) {
        self.parked.borrow_mut().sweep();
        self.relay.borrow_mut().sweep();
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

    #[test]
    fn buffers_come_back_empty_and_only_in_their_size() {
        let buffers = Buffers::new(65_536, 16_384);
        let mut relay = buffers.take_relay();
        relay.extend_from_slice(b"a device's secret");
        let address = relay.as_ptr();
        buffers.put(relay);
        buffers.put(Vec::with_capacity(77));
        let again = buffers.take_relay();
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
        assert!(
            buffers.relay.borrow().buffers.is_empty() && buffers.parked.borrow().buffers.is_empty()
        );
    }

    #[test]
    fn a_buffer_is_large_only_after_a_small_one_was_filled() {
        let buffers = Buffers::new(65_536, 16_384);
        let capacity = |received| buffers.refit(Vec::new(), received).capacity();
        assert_eq!(capacity(0), limits::PARKED_BYTES);
        assert_eq!(
            capacity(limits::PARKED_FULL_BYTES - 1),
            limits::PARKED_BYTES
        );
        assert!(capacity(limits::PARKED_FULL_BYTES) > 65_536);
        let small = buffers.refit(buffers.take_relay(), 1);
        assert_eq!(small.capacity(), limits::PARKED_BYTES);
        assert_eq!(buffers.relay.borrow().buffers.len(), 1);
        let full = vec![b'x'; limits::PARKED_BYTES];
        assert_eq!(buffers.enlarge(full.clone()), full);
        assert!(buffers.relay.borrow().buffers.is_empty());
    }

    #[test]
    fn spare_buffers_are_bounded_and_go_when_nothing_needs_them() {
        let buffers = Buffers::new(65_536, 16_384);
        let taken: Vec<_> = (0..2 * limits::SPARE_BUFFERS_MAX)
            .map(|_| buffers.take_parked())
            .collect();
        taken.into_iter().for_each(|buffer| buffers.put(buffer));
        let spares = || buffers.parked.borrow().buffers.len();
        assert_eq!(spares(), limits::SPARE_BUFFERS_MAX);
        buffers.sweep();
        assert_eq!(
            spares(),
            limits::SPARE_BUFFERS_MAX,
            "they were needed just now"
        );
        (0..200).for_each(|_| buffers.sweep());
        assert_eq!(spares(), limits::SPARE_BUFFERS_FLOOR);
    }
}
