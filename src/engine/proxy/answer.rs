//! The answer: from the server to the device, or the failure that takes its place.
//!
//! The only file that sends to the device during an exchange. Never lets an answer that broke off
//! pass for a complete one.

use std::rc::Rc;

use super::{
    device::After,
    failure::Failure,
    flow::{Flow, RequestPhase, ResponsePhase},
    plan::Plan,
    relay::{self, Intake, RESERVE},
};
use crate::{
    config::settings::OnFailure,
    engine::{
        http1::{
            framing::{Body, Version},
            head::{self, HeadError, Persist, Response},
            location,
            rewrite::{self, DATE_FIELD_BYTES, Delivery, Origin},
        },
        net::{
            deadline::{Cut, Watch},
            pace::Pace,
            pipe::Splice,
            stream::{Reader, SocketWriter, StreamError},
            sys::Side,
        },
        shard::Shard,
    },
    limits,
};

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The device has all it will get.
    Over {
        /// What becomes of the device's connection.
        after: After,
        /// Whether the server's connection may carry another request.
        upstream: Persist,
    },
    /// A warm connection died before a byte came back, and the request may be sent again.
    Unanswered,
}

impl Ended {
    fn broken(after: After) -> Self {
        Self::Over {
            after,
            upstream: Persist::Close,
        }
    }
}

/// One answer on its way.
#[derive(Debug)]
pub struct Answer<'a> {
    shard: &'a Shard,
    plan: &'a Plan<'a>,
    flow: &'a Flow<'a>,
    device: &'a mut SocketWriter,
    device_watch: &'a Rc<Watch>,
    upstream: &'a mut Reader,
    upstream_watch: &'a Rc<Watch>,
    /// What was received from the server and is not yet a head.
    received: Vec<u8>,
    /// Bytes that the last receive brought.
    last: usize,
    /// How fast the body comes, where it is received and not moved.
    pace: Pace,
    /// What the interim answers so far leave of the server's connection.
    interim_persist: Persist,
}

/// What a final head decided; the head is in the outbox.
#[derive(Debug)]
pub struct Start {
    /// Status of the answer.
    pub status: u16,
    /// What is still to come of the body.
    pub intake: Intake,
    /// How the body is framed for the device.
    pub delivered: Body,
    /// Whether the device's connection may go on.
    pub downstream: Persist,
    /// Whether the server's connection may carry another request.
    pub upstream: Persist,
}

/// Why there is no final head.
enum NoHead {
    Unanswered,
    Failed(Failure),
    DeviceLost(Failure),
}

/// What a complete head turned out to be.
#[derive(Debug)]
pub enum Heard {
    /// Another one follows.
    Interim {
        /// Status of this one.
        status: u16,
        /// What it leaves of the server's connection.
        upstream: Persist,
    },
    /// The answer itself.
    Final(Start),
}

impl<'a> Answer<'a> {
    /// An answer that is awaited.
    pub fn new(
        shard: &'a Shard,
        plan: &'a Plan<'a>,
        flow: &'a Flow<'a>,
        device: &'a mut SocketWriter,
        device_watch: &'a Rc<Watch>,
        upstream: &'a mut Reader,
        upstream_watch: &'a Rc<Watch>,
    ) -> Self {
        // Answers may be long in coming: only one that fills it needs a larger one.
        let received = shard.buffers.take_parked();
        Self {
            shard,
            plan,
            flow,
            device,
            device_watch,
            upstream,
            upstream_watch,
            received,
            last: 0,
            pace: Pace::default(),
            interim_persist: Persist::Keep,
        }
    }

    /// Brings the answer to the device; `repeatable` says that a request that got no byte of an
    /// answer may be sent again.
    pub async fn relay(mut self, repeatable: bool) -> Ended {
        let mut outbox = Vec::new();
        let ended = match self.await_final(&mut outbox, repeatable).await {
            Ok(start) => self.relay_final(start, std::mem::take(&mut outbox)).await,
            Err(NoHead::Unanswered) => Ended::Unanswered,
            Err(NoHead::DeviceLost(failure)) => {
                self.flow.tally.failure.set(Some(failure));
                Ended::broken(After::unsent(failure, After::Close))
            }
            Err(NoHead::Failed(failure)) => {
                let Self {
                    shard, plan, flow, ..
                } = self;
                let after = fail(shard, plan, flow, self.device, self.device_watch, failure).await;
                Ended::broken(after)
            }
        };
        self.shard.buffers.put(outbox);
        self.shard.buffers.put(std::mem::take(&mut self.received));
        if ended != Ended::Unanswered {
            self.flow.response.set(ResponsePhase::Over);
            self.stop_upload(ended);
        }
        ended
    }

    /// Receives up to the final head, passing interim ones on, and writes it anew to `outbox`.
    async fn await_final(
        &mut self,
        outbox: &mut Vec<u8>,
        repeatable: bool,
    ) -> Result<Start, NoHead> {
        let head_bytes_max = self.shard.limits.head_bytes;
        let mut interims = 0;
        let mut scanned = 0;
        loop {
            match head::find_end(&self.received, scanned) {
                Ok(Some(length)) if length <= head_bytes_max => {
                    self.take_burst().await;
                    match self.hear(length, outbox).map_err(NoHead::Failed)? {
                        // A server that gave up waiting before the request reached it (RFC 9110 §15.5.9); whatever
                        // else it may be is repeated once as well.
                        Heard::Final(Start {
                            status: 408,
                            upstream: Persist::Close,
                            ..
                        }) if repeatable && interims == 0 => {
                            self.flow.tally.forget_answer();
                            return Err(NoHead::Unanswered);
                        }
                        Heard::Final(start) => return Ok(start),
                        Heard::Interim { .. } => interims += 1,
                    }
                    if interims > limits::INTERIM_RESPONSES_MAX {
                        return Err(NoHead::Failed(Failure::ResponseMalformed));
                    }
                    self.received.drain(..length);
                    scanned = 0;
                    self.send_interim(outbox).await?;
                    continue;
                }
                Ok(None) if self.received.len() < head_bytes_max => {}
                Ok(_) => return Err(NoHead::Failed(Failure::ResponseHeadTooLarge)),
                Err(_) => return Err(NoHead::Failed(Failure::ResponseMalformed)),
            }
            scanned = self.received.len();
            if scanned > 0 || interims > 0 {
                self.upstream_watch.acknowledge();
            }
            let mut buffer = std::mem::take(&mut self.received);
            if buffer.len() == buffer.capacity() {
                buffer = self.shard.buffers.enlarge(buffer);
            }
            let due = self.flow.response_due.get();
            // No more than what fits the outbox behind the head that is written anew.
            let room = self.shard.buffers.head_room();
            let (result, buffer) = self.upstream.read(buffer, room, due).await;
            self.received = buffer;
            let error = match result {
                Ok(received) if received > 0 => {
                    self.last = received;
                    continue;
                }
                Ok(_) => None,
                Err(error) => Some(error),
            };
            let untouched = interims == 0 && self.received.is_empty();
            return Err(match self.failure_of(error.as_ref()) {
                Failure::ConnectionTerminated if repeatable && untouched => NoHead::Unanswered,
                failure => NoHead::Failed(failure),
            });
        }
    }

    /// Receives what waits behind a head that came with more than the small buffer holds: it goes
    /// on with the head, and saves a send.
    async fn take_burst(&mut self) {
        let is_full = self.received.len() == limits::PARKED_BYTES;
        if !is_full
            || self.received.capacity() != limits::PARKED_BYTES
            || !self.upstream.has_more(self.upstream_watch)
        {
            return;
        }
        let buffers = &self.shard.buffers;
        let buffer = buffers.enlarge(std::mem::take(&mut self.received));
        let room = buffers.head_room() - buffer.len();
        let due = self.shard.deadlines.due_in(self.plan.route.timeouts.body);
        // With bytes there it meets neither an end nor an error.
        let (result, buffer) = self.upstream.read(buffer, room, due).await;
        self.received = buffer;
        self.last += result.unwrap_or_default();
    }

    /// What it means that nothing more came before a final head.
    fn failure_of(&self, error: Option<&StreamError>) -> Failure {
        let tls = matches!(error, Some(StreamError::Tls(_)));
        match self.flow.request.get() {
            RequestPhase::Failed(failure) => failure,
            // An alert says better than a broken pipe what the server did not like.
            RequestPhase::Unwanted(failure) if !tls => failure,
            _ => error.map_or(Failure::ConnectionTerminated, |error| {
                Failure::from_upstream(error, Failure::ResponseTimeout)
            }),
        }
    }

    /// Reads the head that is the first `length` bytes received, and writes it anew.
    fn hear(&mut self, length: usize, outbox: &mut Vec<u8>) -> Result<Heard, Failure> {
        let (shard, flow) = (self.shard, self.flow);
        let may_keep = flow.request.get() == RequestPhase::Sent && !shard.is_draining();
        let fields_max = shard.limits.fields;
        if outbox.capacity() == 0 {
            *outbox = shard.buffers.take_relay();
        }
        let mut heard = hear(
            self.plan,
            &mut self.received,
            length,
            fields_max,
            may_keep,
            || shard.date_field(),
            outbox,
        )?;
        match &mut heard {
            Heard::Interim { status, upstream } => {
                if *status == 100 {
                    flow.is_asked_for.set(true);
                }
                if *upstream == Persist::Close {
                    self.interim_persist = Persist::Close;
                }
            }
            Heard::Final(start) => {
                // A server that answers before it has the body may never read that, and takes it for the next
                // device's request, or it closes without having said so. What its system has not acknowledged
                // it can't have read.
                let is_short = flow.is_whole() && self.plan.arrived <= limits::SHORT_REQUEST_BYTES;
                let is_early = flow.request.get() != RequestPhase::Sent
                    || (!is_short && self.upstream_watch.unacknowledged() > 0);
                if is_early || self.interim_persist == Persist::Close {
                    start.upstream = Persist::Close;
                }
                flow.tally.status.set(start.status);
                flow.tally.sent.set(start.intake.taken());
            }
        }
        Ok(heard)
    }

    /// Passes an interim answer on to a device that knows what it is (RFC 9110 §15.2).
    async fn send_interim(&mut self, outbox: &mut Vec<u8>) -> Result<(), NoHead> {
        if self.plan.version == Version::Http10 {
            return Ok(());
        }
        let patience = self.plan.route.timeouts.body;
        let interim = std::mem::take(outbox);
        let (result, back) = self.device.write_all(interim, 0, patience).await;
        // The final head may be long in coming.
        self.shard.buffers.put(back);
        result.map_err(|failed| NoHead::DeviceLost(Failure::from_device(&failed.error)))
    }

    /// Sends the final head and what follows it.
    async fn relay_final(&mut self, start: Start, outbox: Vec<u8>) -> Ended {
        self.flow.response.set(ResponsePhase::Relaying);
        // The upload may have set the head's while an interim answer was being sent.
        self.upstream_watch.clear_read();
        self.shard.buffers.put(std::mem::take(&mut self.received));
        let Start {
            mut intake,
            delivered,
            downstream,
            mut upstream,
            ..
        } = start;
        // Where only the close tells the end, an orderly one would be a lie.
        let (cut, after_cut) = match delivered {
            Body::UntilClose => (Cut::Reset, After::Reset),
            _ => (Cut::Orderly, After::Close),
        };
        self.device_watch.set_cut(cut);
        let patience = self.plan.route.timeouts.body;
        let mut buffer = outbox;
        let mut begin = 0;
        let mut is_watched = false;
        let broken = loop {
            if intake.is_done() {
                is_watched = match begin < buffer.len() {
                    true => {
                        if downstream == Persist::Close {
                            self.device_watch.hold_last_segment();
                        }
                        self.watch_upstream(upstream)
                    }
                    // Nothing is left to send, so the ring does not turn.
                    false => self.upstream_watch.is_quiet(),
                };
            }
            let (result, back) = self.device.write_all(buffer, begin, patience).await;
            buffer = back;
            if let Err(failed) = result {
                let failure = Failure::from_device(&failed.error);
                self.flow.tally.failure.set(Some(failure));
                break Some(After::unsent(failure, after_cut));
            }
            if self.is_worth_a_pipe(&intake)
                && let Some(source) = self.upstream.plain_share()
                && let Some(splice) = Splice::begin(&self.shard.pipes, source, self.device.share())
            {
                self.shard.buffers.put(std::mem::take(&mut buffer));
                if let Err(failure) = self.splice_body(splice, &mut intake).await {
                    self.flow.tally.failure.set(Some(failure));
                    break Some(After::unsent(failure, after_cut));
                }
                is_watched = self.upstream_watch.is_quiet();
            }
            if intake.is_done() {
                break None;
            }
            let (result, back) = self.receive_piece(buffer, &mut intake, delivered).await;
            buffer = back;
            match result {
                Some(piece) => {
                    self.flow.tally.sent.set(intake.taken());
                    begin = piece.begin;
                    if piece.has_leftover {
                        upstream = Persist::Close;
                    }
                }
                None => {
                    let tally = self.flow.tally;
                    tally.failure.set(Some(Failure::ResponseIncomplete));
                    break Some(after_cut);
                }
            }
        };
        self.shard.buffers.put(buffer);
        self.device_watch.set_cut(Cut::Orderly);
        let may_idle = is_watched
            && self.flow.request.get() == RequestPhase::Sent
            && !self.shard.is_draining();
        match broken {
            Some(after) => Ended::broken(after),
            None => Ended::Over {
                after: match downstream {
                    Persist::Keep => After::Keep,
                    Persist::Close => After::Linger,
                },
                upstream: if may_idle { upstream } else { Persist::Close },
            },
        }
    }

    /// Lets the ring look for anything behind the answer while the last of it is sent: only a
    /// connection on which nothing has come by then may carry another device's request.
    fn watch_upstream(&mut self, upstream: Persist) -> bool {
        let may_idle = upstream == Persist::Keep && self.flow.request.get() == RequestPhase::Sent;
        if may_idle {
            self.upstream.park();
        }
        may_idle
    }

    /// Whether what is still to come is worth a pipe: whoever trickles gets none.
    fn is_worth_a_pipe(&self, intake: &Intake) -> bool {
        let is_large = intake
            .length_left()
            .is_some_and(|left| left >= self.shard.splice_bytes);
        is_large && self.last >= limits::PARKED_FULL_BYTES
    }

    /// Moves the body inside the kernel as long as that is worth it.
    async fn splice_body(
        &mut self,
        mut splice: Box<Splice>,
        intake: &mut Intake,
    ) -> Result<(), Failure> {
        let patience = self.plan.route.timeouts.body;
        while let Some(left) = intake.length_left()
            && self.is_worth_a_pipe(intake)
        {
            let due = self.shard.deadlines.due_in(patience);
            match splice.receive(left, due).await {
                Ok(Some(received)) if received > 0 => self.last = received,
                Ok(None) => {
                    self.last = 0;
                    break;
                }
                _ => return Err(Failure::ResponseIncomplete),
            }
            intake.pass(self.last);
            splice
                .send_all(patience)
                .await
                .map_err(|failed| Failure::from_device(&failed.error))?;
            self.flow.tally.sent.set(intake.taken());
        }
        splice.end(&self.shard.pipes);
        Ok(())
    }

    /// Receives a piece of the body and frames it for the device; `None` if it broke off.
    async fn receive_piece(
        &mut self,
        buffer: Vec<u8>,
        intake: &mut Intake,
        delivered: Body,
    ) -> (Option<Framed>, Vec<u8>) {
        let buffers = &self.shard.buffers;
        let wire = self.upstream.wire();
        let (mut buffer, most) = buffers.refit_for_body(buffer, self.last, wire, intake.taken());
        let room = relay::make_room(&mut buffer).min(most);
        let due = self.shard.deadlines.due_in(self.plan.route.timeouts.body);
        if self.last < limits::PARKED_FULL_BYTES {
            self.upstream_watch.acknowledge();
        }
        let (result, mut buffer) = self.upstream.read(buffer, intake.room(room), due).await;
        self.last = buffer.len() - RESERVE;
        match result {
            // After a failed request it was the gateway that ended the server's connection.
            Ok(0) if intake.ends_by_close() && self.flow.is_end_credible() => intake.finish(),
            Ok(received) if received > 0 => {}
            _ => return (None, buffer),
        }
        let Ok(piece) = intake.take(&mut buffer, RESERVE) else {
            return (None, buffer);
        };
        // What a pipe may move next must not wait for more than a byte.
        if let Reader::Tls(reader) = &*self.upstream {
            let held = reader.held() as u64;
            let left = intake.length_left().map(|left| left.saturating_sub(held));
            self.pace.note(self.upstream_watch, self.last, left);
        }
        let has_leftover = piece.end < buffer.len();
        let begin = relay::frame(&mut buffer, piece.payload, delivered, intake.is_done());
        (
            Some(Framed {
                begin,
                has_leftover,
            }),
            buffer,
        )
    }

    /// Nobody wants the rest of the request any more: wakes the upload wherever it waits, and tells
    /// a device that has its whole answer that nothing more will come.
    fn stop_upload(&self, ended: Ended) {
        if self.flow.request.get() != RequestPhase::Sending || self.flow.is_whole() {
            return;
        }
        self.upstream_watch.shutdown(Side::Both);
        if matches!(
            ended,
            Ended::Over {
                after: After::Linger,
                ..
            }
        ) {
            self.device_watch.shutdown(Side::Write);
            self.device_watch
                .set_read(self.shard.deadlines.due_in(limits::LINGER));
        } else {
            self.device_watch.shutdown(Side::Read);
        }
    }
}

/// Reads the answer's head that is the first `length` bytes of `received`, and writes it anew to
/// `outbox`, with what came of the body behind it.
///
/// `may_keep` says whether the device's connection could go on after this answer, `date` what its `Date` is to be
/// if it came without.
///
/// # Errors
/// [`Failure`]: the server's fault; the device must see nothing of this answer, whatever the outbox
/// holds by then.
pub fn hear(
    plan: &Plan<'_>,
    received: &mut [u8],
    length: usize,
    fields_max: usize,
    may_keep: bool,
    date: impl FnOnce() -> [u8; DATE_FIELD_BYTES],
    outbox: &mut Vec<u8>,
) -> Result<Heard, Failure> {
    let (head, rest) = received.split_at_mut(length);
    let mut space = head::field_space();
    let response = Response::parse(head, &mut space, fields_max, plan.to_head()).map_err(
        |error| match error {
            HeadError::TooManyFields => Failure::ResponseHeadTooLarge,
            _ => Failure::ResponseMalformed,
        },
    )?;
    let upstream = &plan.route.upstream;
    let origin = Origin {
        server: location::Server {
            scheme: upstream.scheme,
            host: upstream.host.as_bytes(),
            port: upstream.port,
            base_path: &plan.route.base_path,
        },
        authority: plan.authority.as_bytes(),
    };
    outbox.clear();
    if response.is_interim() {
        // Nobody was offered another protocol (RFC 9110 §15.2.2).
        if response.status == 101 {
            return Err(Failure::ResponseMalformed);
        }
        let delivery = Delivery {
            body: Body::Absent,
            connection: None,
            // Nobody keeps it: whether it has one is the server's to say (RFC 9110 §6.6.1).
            date: None,
        };
        rewrite::write_response(outbox, &response, &origin, delivery);
        return Ok(Heard::Interim {
            status: response.status,
            upstream: response.persist,
        });
    }

    let delivered = self_framed(response.body, plan.version);
    let keeps = may_keep && plan.persist == Persist::Keep && delivered != Body::UntilClose;
    let connection: Option<&'static [u8]> = match (keeps, plan.version) {
        (false, _) => Some(b"Connection: close\r\n"),
        (true, Version::Http10) => Some(b"Connection: keep-alive\r\n"),
        (true, Version::Http11) => None,
    };
    let delivery = Delivery {
        body: announced(&response, delivered, plan),
        connection,
        date: (!response.has_date).then(date),
    };
    rewrite::write_response(outbox, &response, &origin, delivery);

    let mut intake = Intake::new(response.body, u64::MAX);
    let taken = intake
        .append(rest, outbox, delivered)
        .map_err(|_| Failure::ResponseMalformed)?;
    // Bytes behind the end belong to no request that was sent; and a server of HTTP/1.0 may not know where a
    // chunked one ended.
    let knows_coding = plan.body != Body::Chunked || response.version == Version::Http11;
    let clean = taken == rest.len() && response.body != Body::UntilClose && knows_coding;
    Ok(Heard::Final(Start {
        status: response.status,
        intake,
        delivered,
        downstream: if keeps { Persist::Keep } else { Persist::Close },
        upstream: if clean && plan.upstream == Persist::Keep {
            response.persist
        } else {
            Persist::Close
        },
    }))
}

/// A piece ready to be sent.
struct Framed {
    begin: usize,
    has_leftover: bool,
}

/// How a body is framed for the device (RFC 9112 §6.3 and §7.1).
fn self_framed(body: Body, version: Version) -> Body {
    match (body, version) {
        (Body::Chunked | Body::UntilClose, Version::Http11) => Body::Chunked,
        (Body::Chunked | Body::UntilClose, Version::Http10) => Body::UntilClose,
        (body, _) => body,
    }
}

/// What the head says of the body: a `HEAD` request and a 304 are told what a `GET` would get.
fn announced(response: &Response<'_, '_>, delivered: Body, plan: &Plan<'_>) -> Body {
    match response.status {
        204 => Body::Absent,
        304 if response.announced == Body::Chunked => Body::Absent,
        _ if response.status == 304 || plan.to_head() => match response.announced {
            Body::Chunked if plan.version == Version::Http10 => Body::Absent,
            announced => announced,
        },
        _ => delivered,
    }
}

/// Answers the device with a failure instead of the server's answer.
pub async fn fail(
    shard: &Shard,
    plan: &Plan<'_>,
    flow: &Flow<'_>,
    device: &mut SocketWriter,
    device_watch: &Watch,
    failure: Failure,
) -> After {
    flow.tally.failure.set(Some(failure));
    let silent = plan.route.on_failure == OnFailure::Close && failure.status() >= 500;
    if failure == Failure::DeviceGone {
        device_watch.shutdown(Side::Both);
        return After::Close;
    }
    if silent {
        // An answer of before may still be on its way.
        return After::Linger;
    }
    flow.tally.status.set(failure.status());
    let keeps = flow.is_received()
        && plan.persist == Persist::Keep
        && failure.persist() == Persist::Keep
        && !shard.is_draining();
    let persist = if keeps { Persist::Keep } else { Persist::Close };
    let mut outbox = shard.buffers.take_parked();
    failure.write(&mut outbox, plan.to_head(), persist, &shard.date_field());
    let patience = plan.route.timeouts.body;
    let (result, outbox) = device.write_all(outbox, 0, patience).await;
    shard.buffers.put(outbox);
    After::answer(result, persist)
}
