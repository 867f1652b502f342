//! A device's connection: reads one request head after the other and hands each to an exchange.
//!
//! Knows how a connection begins and waits; never looks into a head.

use std::{future::Future, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use ipnet::IpNet;
use monoio::net::TcpStream;

use super::{
    device::{After, Device, Dormant},
    exchange,
    failure::Failure,
    flow::Tally,
    plan,
    record::Record,
};
use crate::{
    config::settings::Slot,
    engine::{
        admission::Charged,
        http1::{
            head::{self, Persist},
            proxy_protocol::{self, Parsed},
        },
        net::{deadline::Due, stream::StreamError},
        shard::Shard,
    },
    limits,
    observe::metrics::Ending,
    snapshot::{moved::Mark, scope::Scope},
};

/// What a listener says about the connections it accepts.
#[derive(Debug, Clone)]
pub struct Entrance {
    /// The slot of requests that name no host.
    pub slot: Slot,
    /// Whose leases are known here, beside those that every listener knows.
    pub scope: Scope,
    /// Peers whose PROXY protocol header is required and believed.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// Why there is no next request.
enum Stop {
    /// There is nothing to answer.
    Ended(Ending),
    /// The device said something that must be answered.
    Failed(Failure),
}

/// Why a device is served no further for now.
enum Pause {
    /// It has nothing to say; what it said last is remembered.
    Sleep(HeadSearch),
    /// Its connection ends.
    End(After, Ending),
}

/// Looks for the next head in what a device sends, piece by piece.
#[derive(Debug, Default)]
pub struct HeadSearch {
    /// Bytes of the inbox that were looked at before.
    scanned: u32,
    /// Bytes of empty lines thrown away so far.
    skipped: u32,
}

/// What an inbox begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing; no request has begun.
    Nothing,
    /// A part of a head.
    Part,
    /// A whole head of so many bytes.
    Head(usize),
}

impl HeadSearch {
    /// Looks at an inbox that grew behind what was seen before; empty lines leave it.
    ///
    /// # Errors
    /// [`Failure`]: the device's fault; answered, then close.
    pub fn look(&mut self, inbox: &mut Vec<u8>, head_bytes_max: usize) -> Result<Found, Failure> {
        // Looked for each time: the first of them may have come in two pieces.
        let empty = head::leading_empty_lines(inbox);
        if empty > 0 {
            inbox.drain(..empty);
            self.scanned = 0;
            self.skipped = self.skipped.saturating_add(bytes_u32(empty));
            if self.skipped as usize > limits::EMPTY_LINES_BYTES_MAX {
                return Err(Failure::MalformedHead);
            }
        }
        if inbox.is_empty() {
            return Ok(Found::Nothing);
        }
        match head::find_end(inbox, self.scanned as usize)? {
            Some(length) if length <= head_bytes_max => Ok(Found::Head(length)),
            None if inbox.len() < head_bytes_max => {
                self.scanned = bytes_u32(inbox.len());
                Ok(Found::Part)
            }
            _ => Err(oversize(inbox, head_bytes_max)),
        }
    }
}

/// A length of an inbox, which no limit lets grow that far.
fn bytes_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Whether the request line alone is over the limit, or the fields that follow it.
fn oversize(inbox: &[u8], head_bytes_max: usize) -> Failure {
    let looked_at = inbox.len().min(head_bytes_max);
    match memchr::memchr(b'\n', &inbox[..looked_at]) {
        None => Failure::TargetTooLong,
        Some(_) => Failure::HeadTooLarge,
    }
}

/// A connection while it is awake.
pub struct Visit {
    shard: Rc<Shard>,
    device: Device,
    standing: Standing,
    search: HeadSearch,
}

/// All that is kept of a connection while it sleeps.
pub struct Sleeper {
    shard: Rc<Shard>,
    device: Dormant,
    charged: Charged,
    search: HeadSearch,
}

/// What becomes of a connection that was awake.
pub enum Outcome {
    /// It sleeps until something comes.
    Asleep(Sleeper),
    /// It has ended.
    Ended(Ending),
}

/// How far a connection has come.
enum Standing {
    /// Nobody knows yet who speaks.
    AtEntrance(Rc<Entrance>),
    /// It counts.
    Charged(Charged),
}

/// Builds a future where it will stay. With its room there first, an optimised build copies only what a future
/// that has not begun holds, which is next to nothing, and not all the room that it will need.
pub fn build_in_place<R>(build: impl FnOnce() -> R) -> Pin<Box<R>> {
    let room = Box::new_uninit();
    Box::into_pin(Box::write(room, build()))
}

/// Serves a device until its connection ends; says why it did.
///
/// `run` is [`Visit::run`]. What it makes is nearly all that a connection needs, and is allocated
/// for as long as that is awake.
pub async fn serve<R: Future<Output = Outcome>>(
    mut awake: Pin<Box<R>>,
    run: impl Fn(Visit) -> R,
) -> Ending {
    loop {
        let sleeper = match awake.await {
            Outcome::Asleep(sleeper) => sleeper,
            Outcome::Ended(ending) => return ending,
        };
        sleeper.shard.begin_sleep();
        let _ = sleeper.device.sleep().await;
        sleeper.shard.end_sleep();
        let visit = sleeper.wake();
        awake = build_in_place(|| run(visit));
    }
}

impl Sleeper {
    fn wake(self) -> Visit {
        Visit {
            device: self.device.wake(&self.shard, self.charged.address()),
            shard: self.shard,
            standing: Standing::Charged(self.charged),
            search: self.search,
        }
    }
}

impl Visit {
    /// Takes over a connection that was accepted.
    pub fn begin(
        shard: &Rc<Shard>,
        entrance: &Rc<Entrance>,
        socket: TcpStream,
        peer: SocketAddr,
    ) -> Self {
        Self {
            shard: Rc::clone(shard),
            device: Device::new(shard, socket, peer, entrance),
            standing: Standing::AtEntrance(Rc::clone(entrance)),
            search: HeadSearch::default(),
        }
    }

    /// Serves the device until it has nothing to say for a while, or its connection ends.
    pub async fn run(self) -> Outcome {
        let Self {
            shard,
            mut device,
            standing,
            search,
        } = self;
        let charged = match standing {
            Standing::Charged(charged) => charged,
            Standing::AtEntrance(entrance) => match device.enter(&shard, &entrance).await {
                Ok(charged) => charged,
                Err(stop) => return Outcome::Ended(device.turn_away(&shard, stop).await),
            },
        };
        match device.serve_requests(&shard, search).await {
            Pause::Sleep(search) => Outcome::Asleep(Sleeper {
                device: device.fall_asleep(&shard),
                shard,
                charged,
                search,
            }),
            Pause::End(after, ending) => {
                let patience = device.patience.max(limits::DELIVERY_PATIENCE_FLOOR);
                let is_delivered = device.end(&shard, after, patience, Duration::MAX).await;
                // Until its device's system has its answer it still counts.
                drop(charged);
                // What has failed before has its name.
                if is_delivered || ending == Ending::Failed {
                    return Outcome::Ended(ending);
                }
                shard.metrics.count_failure(Failure::DeviceStalled as usize);
                Outcome::Ended(Ending::Failed)
            }
        }
    }
}

impl Device {
    /// Learns who speaks and whether one more connection is allowed.
    async fn enter(&mut self, shard: &Shard, entrance: &Entrance) -> Result<Charged, Stop> {
        let too_many = Stop::Failed(Failure::TooManyConnections);
        let Some(admitted) = shard.admission.admit() else {
            return Err(too_many);
        };
        let source = self.source;
        if entrance
            .proxy_protocol_from
            .iter()
            .any(|network| network.contains(&source))
        {
            self.read_proxy_header(shard).await?;
        }
        // Before it waits for anything else: the address may be another's by then.
        self.recognise(shard);
        if let Some(charged) = admitted.charge(self.source) {
            return Ok(charged);
        }
        // A device that has just got its last answer may come again before a sweep has found that the
        // place at its address is free. Two are enough where its system took something within the
        // second before, as a rule on other cores as well.
        if let Some(_trying) = shard.begin_second_try() {
            shard.deadlines.turns.wait(2).await;
            let admitted = shard.admission.admit();
            if let Some(charged) = admitted.and_then(|admitted| admitted.charge(self.source)) {
                return Ok(charged);
            }
        }
        Err(too_many)
    }

    /// Takes note of who makes the connection, if the address is anybody's yet.
    fn recognise(&mut self, shard: &Shard) {
        let snapshot = shard.snapshot();
        let identity = snapshot.identities.resolve(self.scope, self.source);
        if let Ok(identity) = &identity {
            self.set_mark(Mark::of(identity));
        }
    }

    /// Ends a connection that is not served.
    async fn turn_away(mut self, shard: &Shard, stop: Stop) -> Ending {
        let (after, ending) = match stop {
            // To be refused takes time and a descriptor as well.
            Stop::Failed(failure) => match shard.begin_refusal() {
                Some(_refusing) => {
                    let after = self.reject(shard, failure, false).await;
                    // Others may want the place in which it is told.
                    self.end(shard, after, limits::LINGER, limits::LINGER).await;
                    return Ending::Failed;
                }
                None => (After::Close, Ending::RefusedUnanswered),
            },
            Stop::Ended(ending) => (After::Close, ending),
        };
        // It was sent nothing.
        self.end(shard, after, limits::LINGER, limits::LINGER).await;
        ending
    }

    /// Reads the PROXY protocol header that a listed peer must send first.
    async fn read_proxy_header(&mut self, shard: &Shard) -> Result<(), Stop> {
        let due = shard.deadlines.due_in(shard.timeouts.head);
        loop {
            match proxy_protocol::parse(&self.inbox) {
                Ok(Parsed::Complete { source, consumed }) => {
                    self.inbox.drain(..consumed);
                    self.source = source.map_or(self.source, |source| source.ip().to_canonical());
                    if self.inbox.is_empty() {
                        self.watch.acknowledge();
                    }
                    return Ok(());
                }
                Ok(Parsed::Partial) if self.inbox.is_empty() => {}
                Ok(Parsed::Partial) => self.watch.acknowledge(),
                Err(_) => return Err(Stop::Failed(Failure::MalformedHead)),
            }
            // A header is shorter than a parked buffer, or `parse` has refused it by now.
            let buffer = std::mem::take(&mut self.inbox);
            // Idle until it speaks: a balancer's spare connection must not hold up a drain.
            let (result, buffer) = match buffer.is_empty() {
                true if shard.is_draining() => {
                    let due = due.min(shard.deadlines.due_in(limits::LINGER));
                    self.reader.read_idle(buffer, usize::MAX, due).await
                }
                true => self.reader.read_idle(buffer, usize::MAX, due).await,
                false => self.reader.read(buffer, usize::MAX, due).await,
            };
            self.inbox = buffer;
            if !matches!(result, Ok(received) if received > 0) {
                return Err(Stop::Ended(Ending::ProxyHeaderMissing));
            }
        }
    }

    /// Serves requests as long as they come; the search for the first may have begun.
    async fn serve_requests(&mut self, shard: &Rc<Shard>, mut search: HeadSearch) -> Pause {
        loop {
            let (after, ending) = match self.next_head(shard, &mut search).await {
                Ok(Some(head_bytes)) => exchange::run(shard, self, head_bytes).await,
                Ok(None) => return Pause::Sleep(search),
                Err(Stop::Failed(failure)) => {
                    (self.reject(shard, failure, true).await, Ending::Failed)
                }
                // Another request has come, which this core no longer serves. To close over it would
                // throw away what of the last answer has not left yet.
                Err(Stop::Ended(Ending::Drained)) if self.watch.has_bytes() => {
                    (After::Linger, Ending::Drained)
                }
                Err(Stop::Ended(ending)) => (After::Close, ending),
            };
            if after != After::Keep {
                return Pause::End(after, ending);
            }
            self.is_fresh = false;
            search = HeadSearch::default();
        }
    }

    /// Receives until the inbox begins with a whole head, and answers its length; or until nothing
    /// of it has come for a while.
    async fn next_head(
        &mut self,
        shard: &Shard,
        search: &mut HeadSearch,
    ) -> Result<Option<usize>, Stop> {
        let mut due = None;
        loop {
            match search
                .look(&mut self.inbox, shard.limits.head_bytes)
                .map_err(Stop::Failed)?
            {
                Found::Head(length) => {
                    self.take_burst(shard).await;
                    return Ok(Some(length));
                }
                Found::Nothing => {
                    // An empty line is no request, and nothing answers it.
                    if search.skipped > 0 {
                        self.watch.acknowledge();
                    }
                    due = None;
                    if self.receive_first(shard).await?.is_none() {
                        return Ok(None);
                    }
                }
                Found::Part => {
                    self.watch.acknowledge();
                    let due =
                        *due.get_or_insert_with(|| shard.deadlines.due_in(shard.timeouts.head));
                    self.receive_more(shard, due).await?;
                }
            }
        }
    }

    /// Waits for the first byte of a next request, parked on a small buffer unless the last one came with
    /// more than that; `None` if it has not come for a while.
    async fn receive_first(&mut self, shard: &Shard) -> Result<Option<usize>, Stop> {
        let due = match self.watch.idle_due() {
            // What woke it up is received first, whatever else has happened.
            Some(due) => due,
            None => shard.deadlines.due_in(self.patience(shard)?),
        };
        let is_brisk = self.last >= limits::PARKED_FULL_BYTES;
        let place = is_brisk.then(|| shard.begin_large_wait()).flatten();
        let expected = if place.is_some() { self.last } else { 0 };
        let buffer = std::mem::take(&mut self.inbox);
        let buffer = shard.buffers.refit(buffer, expected);
        let room = shard.buffers.head_room();
        let (result, buffer) = self.reader.read_first(buffer, room, due).await;
        drop(place);
        self.inbox = buffer;
        self.last = self.inbox.len();
        Err(Stop::Ended(match result {
            Ok(Some(0)) if shard.is_draining() => Ending::Drained,
            Ok(Some(0)) => Ending::Finished,
            Ok(received) => return Ok(received),
            Err(StreamError::TimedOut) => Ending::Idle,
            Err(_) => Ending::Reset,
        }))
    }

    /// How long the wait for a next request may last.
    fn patience(&self, shard: &Shard) -> Result<Duration, Stop> {
        match (shard.is_draining(), self.is_fresh) {
            (true, false) => Err(Stop::Ended(Ending::Drained)),
            // A connection that was made before the drain may have its first request under way.
            (true, true) => Ok(limits::LINGER),
            (false, _) => Ok(shard.timeouts.keepalive),
        }
    }

    /// Receives what waits behind a head that came with more than the small buffer holds: it goes
    /// on with the head, and saves a send (a 16 KiB body costs one instead of two).
    async fn take_burst(&mut self, shard: &Shard) {
        let is_full = self.inbox.len() == limits::PARKED_BYTES;
        if !is_full || self.inbox.capacity() != limits::PARKED_BYTES || !self.watch.has_bytes() {
            return;
        }
        let buffer = shard.buffers.enlarge(std::mem::take(&mut self.inbox));
        let room = shard.buffers.head_room() - buffer.len();
        let due = shard.deadlines.due_in(shard.timeouts.body);
        // With bytes there it meets neither an end nor an error.
        let (_, buffer) = self.reader.read(buffer, room, due).await;
        self.inbox = buffer;
    }

    async fn receive_more(&mut self, shard: &Shard, due: Due) -> Result<(), Stop> {
        let mut buffer = std::mem::take(&mut self.inbox);
        if buffer.len() == buffer.capacity() {
            buffer = shard.buffers.enlarge(buffer);
        }
        let (result, buffer) = self.reader.read(buffer, usize::MAX, due).await;
        self.inbox = buffer;
        match result {
            Ok(received) if received > 0 => Ok(()),
            // It began as the wait for it ended, and was not slow.
            Err(StreamError::TimedOut) if !shard.deadlines.is_past(due) => {
                Err(Stop::Ended(Ending::Idle))
            }
            Err(StreamError::TimedOut) => Err(Stop::Failed(Failure::HeadTimeout)),
            _ => Err(Stop::Ended(Ending::HeadAbandoned)),
        }
    }

    /// Answers a request that could not be read, after which the connection can't go on. Whether its
    /// address is known to be the device's: it may be that of a balancer which did not say.
    async fn reject(&mut self, shard: &Shard, failure: Failure, is_known: bool) -> After {
        shard.metrics.count_failure(failure as usize);
        if let Some(record) = Record::begin(shard) {
            let tally = Tally::default();
            tally.note_refusal(failure);
            let snapshot = is_known.then(|| shard.snapshot());
            let sender = snapshot.as_ref();
            let sender = sender.and_then(|snapshot| plan::sender(snapshot, self));
            record.end(shard, self.source, sender, None, &tally);
        }
        self.refuse(shard, failure, false, Persist::Close).await
    }
}
