//! One request: who sent it, where it goes, and the order of events until its answer is out.
//!
//! Reads the snapshot once and keeps it to the end. Never sends a byte to a server before identity,
//! route and framing are decided.

use std::rc::Rc;

use super::{
    answer::{self, Answer, Ended},
    connection::Device,
    failure::Failure,
    flow::{Flow, RequestPhase, Tally},
    record::Record,
    relay::{self, BodyError, Intake},
    upload::Upload,
};
use crate::{
    config::settings::Slot,
    engine::{
        http1::{
            authority::{self, Named},
            framing::{Body, Version},
            head::{self, Method, Persist, Request},
            rewrite::UpstreamHead,
            target,
        },
        net::stream::{Stream, WriteError},
        shard::Shard,
        upstream::{connect, pool::Connection},
    },
    limits,
    snapshot::{
        Snapshot,
        route::{AccountId, Route},
    },
};

/// What becomes of the device's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It may carry another request.
    Keep,
    /// It has been answered; what the device still sends is read and thrown away for a while.
    Linger,
    /// It ends.
    Close,
    /// It ends by a reset, so that the answer can't pass for complete.
    Reset,
}

/// A request that will be sent: everything that outlives its head.
#[derive(Debug)]
pub struct Plan<'s> {
    /// Where it goes.
    pub route: &'s Route,
    /// What the method means here.
    pub method: Method,
    /// Version the device speaks.
    pub version: Version,
    /// How the request's body is framed, to the device and to the server alike.
    pub body: Body,
    /// Whether the device wants to go on.
    pub persist: Persist,
    /// Whether the device may be waiting for an interim answer before it sends the body.
    pub expects: bool,
    /// The authority the device used.
    pub authority: Authority,
}

impl Plan<'_> {
    /// Whether the answer has no body whatever its head says.
    pub fn to_head(&self) -> bool {
        self.method == Method::Head
    }
}

/// The authority that a device used, kept to map `Location` back.
#[derive(Debug, Clone, Copy)]
pub struct Authority {
    bytes: [u8; limits::AUTHORITY_BYTES_MAX],
    length: usize,
}

impl Authority {
    /// Keeps `authority`; one that is too long for any name of ours counts as none.
    fn keep(authority: Option<&[u8]>) -> Self {
        let mut kept = Self {
            bytes: [0; limits::AUTHORITY_BYTES_MAX],
            length: 0,
        };
        if let Some(authority) = authority
            && let Some(room) = kept.bytes.get_mut(..authority.len())
        {
            room.copy_from_slice(authority);
            kept.length = authority.len();
        }
        kept
    }

    /// The bytes as the device wrote them.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        (self.length > 0).then(|| &self.bytes[..self.length])
    }
}

/// A request that will not be sent.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    failure: Failure,
    to_head: bool,
    persist: Persist,
}

impl Refusal {
    /// A refusal after which nothing that the device sent can be made sense of.
    fn closing(failure: Failure) -> Self {
        Self {
            failure,
            to_head: false,
            persist: Persist::Close,
        }
    }
}

/// Takes the request whose head is the inbox's first `head_bytes` to its server, and the answer
/// back.
pub async fn run(shard: &Rc<Shard>, device: &mut Device, head_bytes: usize) -> After {
    let snapshot = shard.snapshot();
    let tally = Tally::default();
    let record = Record::begin(shard);
    let mut outbox = shard.buffers.take_relay();
    let after = match prepare(shard, &snapshot, device, head_bytes, &mut outbox) {
        Ok((plan, intake)) => {
            tally.received.set(intake.taken());
            deliver(shard, &snapshot, device, &plan, intake, outbox, &tally).await
        }
        Err(refusal) => {
            tally.note_refusal(refusal.failure);
            refuse(shard, device, refusal, outbox).await
        }
    };
    if let Some(record) = record {
        let sender = snapshot.identities.resolve(device.source);
        let sender = sender.map(|identity| {
            let account = snapshot
                .routes
                .account_ref(identity.account)
                .unwrap_or_default();
            (account, identity.name)
        });
        record.end(shard, device.source, sender, device.noted.parts(), &tally);
    }
    after
}

/// Answers a request that will not be sent.
async fn refuse(
    shard: &Shard,
    device: &mut Device,
    refusal: Refusal,
    mut outbox: Vec<u8>,
) -> After {
    outbox.clear();
    let persist = if shard.is_draining() {
        Persist::Close
    } else {
        refusal.persist
    };
    refusal.failure.write(&mut outbox, refusal.to_head, persist);
    let patience = shard.timeouts.body;
    let (result, outbox) = device.writer.write_all(outbox, 0, patience).await;
    shard.buffers.put(outbox);
    match (result, persist) {
        (Err(_), _) => After::Close,
        (Ok(()), Persist::Keep) => After::Keep,
        (Ok(()), Persist::Close) => After::Linger,
    }
}

/// Decides everything about a request, and writes its head and what came of its body to `outbox`.
///
/// The head, and the part of the body that came with it, leave the inbox.
fn prepare<'s>(
    shard: &Shard,
    snapshot: &'s Snapshot,
    device: &mut Device,
    head_bytes: usize,
    outbox: &mut Vec<u8>,
) -> Result<(Plan<'s>, Intake), Refusal> {
    device.noted.clear();
    let (head, rest) = device.inbox.split_at_mut(head_bytes);
    let mut space = head::field_space();
    let request = Request::parse(head, &mut space, shard.limits.fields)
        .map_err(|error| Refusal::closing(error.into()))?;
    let to_head = request.method == Method::Head;
    let refuse = |failure| Refusal {
        to_head,
        ..Refusal::closing(failure)
    };
    if request.method == Method::Refused {
        return Err(refuse(Failure::MethodRefused));
    }
    let malformed = || refuse(Failure::MalformedHead);
    let target = target::parse(request.target).map_err(|_| malformed())?;
    if shard.is_logging() {
        device.noted.keep(request.method_name, target.path);
    }
    let asks_for_all = request.method == Method::Options && target.path.is_empty();
    // RFC 9112 §3.2.4: an absolute form without a path is the asterisk of a server further on.
    let path = if asks_for_all { b"*" } else { target.path };
    if path == b"*" && request.method != Method::Options {
        return Err(malformed());
    }
    let identity = snapshot.identities.resolve(device.source);
    let identity = identity.ok_or_else(|| refuse(Failure::NoLease))?;

    // A refusal keeps the connection only if nothing of its request is still to come.
    let complete = request.body == Body::Absent || request.body == Body::Length(0);
    let persist = if complete {
        request.persist
    } else {
        Persist::Close
    };
    let outcome = route(&request, &target, snapshot, device.slot, identity.account);
    let route = match outcome {
        Ok(route) => route,
        Err(failure) if failure.persist() == Persist::Keep && persist == Persist::Keep => {
            let refusal = Refusal {
                failure,
                to_head,
                persist,
            };
            device.inbox.drain(..head_bytes);
            return Err(refusal);
        }
        Err(failure) => return Err(refuse(failure)),
    };
    if target::escapes_base(target.path) {
        return Err(refuse(Failure::EscapesBase));
    }
    if matches!(request.body, Body::Length(length) if length > route.body_bytes_max) {
        return Err(refuse(Failure::BodyTooLarge));
    }

    let request_id = shard.next_request_id();
    UpstreamHead {
        request: &request,
        path,
        identity: &identity,
        route,
        request_id: &request_id,
    }
    .write(outbox);
    let plan = Plan {
        route,
        method: request.method,
        version: request.version,
        body: request.body,
        persist: request.persist,
        expects: request.expects,
        authority: Authority::keep(target.authority.or(request.host)),
    };
    let mut intake = Intake::new(plan.body, route.body_bytes_max);
    let piece = intake.take(rest, 0).map_err(|error| refuse(error.into()))?;
    relay::append_framed(outbox, &rest[piece.payload], plan.body, intake.is_done());
    device.inbox.drain(..head_bytes + piece.end);
    Ok((plan, intake))
}

/// Finds the server that a request names (specification, section 3).
fn route<'s>(
    request: &Request<'_, '_>,
    target: &target::Target<'_>,
    snapshot: &'s Snapshot,
    slot_of_listener: Slot,
    account: AccountId,
) -> Result<&'s Route, Failure> {
    let resolve = |authority: &[u8]| {
        authority::resolve(authority, &snapshot.domain).map_err(|_| Failure::MalformedHead)
    };
    // A malformed Host is refused even where the target's authority wins over it.
    let host = request.host.map(resolve).transpose()?;
    let named = match target.authority {
        Some(authority) => Some(resolve(authority)?),
        None => host,
    };
    let slot = match named {
        None | Some(Named::Address) => slot_of_listener,
        Some(Named::Slot(slot)) => slot,
        Some(Named::Other) => return Err(Failure::NotOurName),
    };
    let route = snapshot
        .routes
        .resolve(account, slot)
        .ok_or(Failure::NoSuchSlot)?;
    Ok(route)
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Malformed => Self::MalformedBody,
            BodyError::TooLarge => Self::BodyTooLarge,
        }
    }
}

/// Sends a prepared request and sees to its answer, on a second connection where that is safe.
async fn deliver(
    shard: &Rc<Shard>,
    snapshot: &Snapshot,
    device: &mut Device,
    plan: &Plan<'_>,
    intake: Intake,
    mut outbox: Vec<u8>,
    tally: &Tally,
) -> After {
    let flow = Flow::new(intake.is_done(), tally);
    let mut intake = Some(intake);
    let mut may_reuse = true;
    loop {
        let (mut connection, reused) = match open(shard, snapshot, plan, may_reuse).await {
            Ok(opened) => opened,
            Err(failure) => {
                shard.buffers.put(outbox);
                let (writer, watch) = (&mut device.writer, &device.watch);
                return answer::fail(shard, plan, &flow, writer, watch, failure).await;
            }
        };
        // Nothing but a warm connection fails for reasons of its own, so only that is retried.
        let repeatable = reused && flow.is_whole() && plan.method.is_idempotent();
        let patience = plan.route.timeouts.body;
        let upstream = &mut connection.stream;
        let (result, back) = upstream.writer.write_all(outbox, 0, patience).await;
        outbox = back;
        match result {
            Err(WriteError { began, .. }) if reused && (!began || repeatable) => {
                connection.stream.close();
                may_reuse = false;
                continue;
            }
            result => flow.note_first_send(shard, plan, result),
        }
        if !repeatable {
            shard.buffers.put(std::mem::take(&mut outbox));
        }
        let ended = match (flow.request.get(), intake.take()) {
            (RequestPhase::Sending, Some(intake)) => {
                exchange_bodies(shard, device, plan, &flow, upstream, intake).await
            }
            _ => {
                let (writer, watch) = (&mut device.writer, &device.watch);
                let (reader, upstream_watch) = (&mut upstream.reader, &upstream.watch);
                Answer::new(shard, plan, &flow, writer, watch, reader, upstream_watch)
                    .relay(repeatable)
                    .await
            }
        };
        match ended {
            Ended::Unanswered => {
                connection.stream.close();
                may_reuse = false;
            }
            Ended::Over {
                after,
                upstream: Persist::Keep,
            } => {
                shard.buffers.put(outbox);
                let route = plan.route;
                shard
                    .pools
                    .put(route.upstream.pool, connection, route.timeouts.pool);
                return after;
            }
            Ended::Over {
                after,
                upstream: Persist::Close,
            } => {
                shard.buffers.put(outbox);
                connection.stream.close();
                return after;
            }
        }
    }
}

/// A connection to the plan's server, and whether it has been used before.
async fn open(
    shard: &Shard,
    snapshot: &Snapshot,
    plan: &Plan<'_>,
    may_reuse: bool,
) -> Result<(Connection, bool), Failure> {
    let upstream = &plan.route.upstream;
    if may_reuse && let Some(connection) = shard.pools.take(upstream) {
        return Ok((connection, true));
    }
    let timeout = plan.route.timeouts.connect;
    let connection = connect::connect(upstream, snapshot, &shard.deadlines, timeout).await?;
    Ok((connection, false))
}

/// Moves both directions at once until neither has more to move.
async fn exchange_bodies(
    shard: &Rc<Shard>,
    device: &mut Device,
    plan: &Plan<'_>,
    flow: &Flow<'_>,
    upstream: &mut Stream,
    intake: Intake,
) -> Ended {
    let upload = Upload {
        shard,
        plan,
        flow,
        device: &mut device.reader,
        inbox: &mut device.inbox,
        upstream: &mut upstream.writer,
        upstream_watch: &upstream.watch,
        intake,
    };
    let (writer, watch) = (&mut device.writer, &device.watch);
    let (reader, upstream_watch) = (&mut upstream.reader, &upstream.watch);
    let answer = Answer::new(shard, plan, flow, writer, watch, reader, upstream_watch);
    let ((), ended) = relay::join(upload.relay(), answer.relay(false)).await;
    ended
}
