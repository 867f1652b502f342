//! A device's connection: reads one request head after the other and hands each to an exchange.
//!
//! Knows how a connection begins and waits; never looks into a head.

use std::{net::SocketAddr, rc::Rc};

use ipnet::IpNet;
use monoio::net::TcpStream;

use super::{
    device::{After, Device},
    exchange,
    failure::Failure,
    flow::Tally,
    record::Record,
};
use crate::{
    config::settings::Slot,
    engine::{
        admission::Admitted,
        http1::{
            head::{self, Persist},
            proxy_protocol::{self, Parsed},
        },
        net::{deadline::Due, stream::StreamError},
        shard::Shard,
    },
    limits,
    observe::metrics::Ending,
};

/// What a listener says about the connections it accepts.
#[derive(Debug, Clone)]
pub struct Entrance {
    /// The slot of requests that name no host.
    pub slot: Slot,
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

/// Looks for the next head in what a device sends, piece by piece.
#[derive(Debug, Default)]
pub struct HeadSearch {
    /// Bytes of the inbox that were looked at before.
    scanned: usize,
    /// Bytes of empty lines thrown away so far.
    skipped: usize,
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
            self.skipped += empty;
            if self.skipped > limits::EMPTY_LINES_BYTES_MAX {
                return Err(Failure::MalformedHead);
            }
        }
        if inbox.is_empty() {
            return Ok(Found::Nothing);
        }
        match head::find_end(inbox, self.scanned)? {
            Some(length) if length <= head_bytes_max => Ok(Found::Head(length)),
            None if inbox.len() < head_bytes_max => {
                self.scanned = inbox.len();
                Ok(Found::Part)
            }
            _ => Err(oversize(inbox, head_bytes_max)),
        }
    }
}

/// Whether the request line alone is over the limit, or the fields that follow it.
fn oversize(inbox: &[u8], head_bytes_max: usize) -> Failure {
    let looked_at = inbox.len().min(head_bytes_max);
    match memchr::memchr(b'\n', &inbox[..looked_at]) {
        None => Failure::TargetTooLong,
        Some(_) => Failure::HeadTooLarge,
    }
}

/// Serves a device until its connection ends; says why it did.
pub async fn serve(
    shard: &Rc<Shard>,
    entrance: &Entrance,
    socket: TcpStream,
    peer: SocketAddr,
) -> Ending {
    let mut device = Device::new(shard, socket, peer, entrance.slot);
    match device.enter(shard, entrance).await {
        Ok(admitted) => {
            let (after, ending) = device.serve_requests(shard).await;
            device.end(shard, after).await;
            // A connection that lingers still counts.
            drop(admitted);
            ending
        }
        // To be refused takes time and a descriptor as well.
        Err(Stop::Failed(failure)) => match shard.begin_refusal() {
            Some(_refusing) => {
                let after = device.reject(shard, failure).await;
                device.end(shard, after).await;
                Ending::Failed
            }
            None => {
                device.end(shard, After::Close).await;
                Ending::RefusedUnanswered
            }
        },
        Err(Stop::Ended(ending)) => {
            device.end(shard, After::Close).await;
            ending
        }
    }
}

impl Device {
    /// Learns who speaks and whether one more connection is allowed.
    async fn enter(&mut self, shard: &Shard, entrance: &Entrance) -> Result<Admitted, Stop> {
        let too_many = Stop::Failed(Failure::TooManyConnections);
        let Some(mut admitted) = shard.admission.admit() else {
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
        if admitted.charge(self.source) {
            Ok(admitted)
        } else {
            Err(too_many)
        }
    }

    /// Reads the PROXY protocol header that a listed peer must send first.
    async fn read_proxy_header(&mut self, shard: &Shard) -> Result<(), Stop> {
        let due = shard.deadlines.due_in(shard.timeouts.head);
        loop {
            match proxy_protocol::parse(&self.inbox) {
                Ok(Parsed::Complete { source, consumed }) => {
                    self.inbox.drain(..consumed);
                    self.source = source.map_or(self.source, |source| source.ip().to_canonical());
                    return Ok(());
                }
                Ok(Parsed::Partial) => {}
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

    async fn serve_requests(&mut self, shard: &Rc<Shard>) -> (After, Ending) {
        loop {
            let (after, ending) = match self.next_head(shard).await {
                Ok(head_bytes) => exchange::run(shard, self, head_bytes).await,
                Err(Stop::Failed(failure)) => (self.reject(shard, failure).await, Ending::Failed),
                Err(Stop::Ended(ending)) => (After::Close, ending),
            };
            if after != After::Keep {
                return (after, ending);
            }
            self.is_fresh = false;
        }
    }

    /// Receives until the inbox begins with a whole head; answers its length.
    async fn next_head(&mut self, shard: &Shard) -> Result<usize, Stop> {
        let mut search = HeadSearch::default();
        let mut due = None;
        loop {
            match search
                .look(&mut self.inbox, shard.limits.head_bytes)
                .map_err(Stop::Failed)?
            {
                Found::Head(length) => {
                    self.take_burst(shard).await;
                    return Ok(length);
                }
                Found::Nothing => {
                    due = None;
                    self.receive_first(shard).await?;
                }
                Found::Part => {
                    let due =
                        *due.get_or_insert_with(|| shard.deadlines.due_in(shard.timeouts.head));
                    self.receive_more(shard, due).await?;
                }
            }
        }
    }

    /// Waits for the first byte of a next request, parked on a small buffer.
    async fn receive_first(&mut self, shard: &Shard) -> Result<(), Stop> {
        // A connection that was made before the drain may have its first request under way.
        let keepalive = match (shard.is_draining(), self.is_fresh) {
            (true, false) => return Err(Stop::Ended(Ending::Drained)),
            (true, true) => limits::LINGER,
            (false, _) => shard.timeouts.keepalive,
        };
        let mut buffer = std::mem::take(&mut self.inbox);
        if buffer.capacity() != limits::PARKED_BYTES {
            shard.buffers.put(buffer);
            buffer = shard.buffers.take_parked();
        }
        let due = shard.deadlines.due_in(keepalive);
        let (result, buffer) = self.reader.read_idle(buffer, usize::MAX, due).await;
        self.inbox = buffer;
        Err(Stop::Ended(match result {
            Ok(received) if received > 0 => return Ok(()),
            Err(StreamError::TimedOut) => Ending::Idle,
            Ok(_) if shard.is_draining() => Ending::Drained,
            Ok(_) => Ending::Finished,
            Err(_) => Ending::Reset,
        }))
    }

    /// Receives what waits behind a head that came with more than the small buffer holds: it goes
    /// on with the head, and saves a send (a 16 KiB body costs one instead of two).
    async fn take_burst(&mut self, shard: &Shard) {
        let is_full = self.inbox.len() == limits::PARKED_BYTES;
        if !is_full || self.inbox.capacity() != limits::PARKED_BYTES || !self.watch.has_bytes() {
            return;
        }
        let buffer = shard.buffers.enlarge(std::mem::take(&mut self.inbox));
        let room = shard.buffers.relay_bytes() - buffer.len();
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
            Err(StreamError::TimedOut) => Err(Stop::Failed(Failure::HeadTimeout)),
            _ => Err(Stop::Ended(Ending::HeadAbandoned)),
        }
    }

    /// Answers a request that could not be read, after which the connection can't go on.
    async fn reject(&mut self, shard: &Shard, failure: Failure) -> After {
        shard.metrics.count_failure(failure as usize);
        if let Some(record) = Record::begin(shard) {
            let tally = Tally::default();
            tally.note_refusal(failure);
            record.end(shard, self.source, None, None, &tally);
        }
        self.refuse(shard, failure, false, Persist::Close).await
    }
}
