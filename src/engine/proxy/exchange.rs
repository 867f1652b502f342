//! One request: the order of events from its head to the end of its answer.
//!
//! Takes the snapshot once and keeps it to the end. What may be repeated is decided here, and
//! nowhere else.

use std::rc::Rc;

use super::{
    answer::{self, Answer, Ended},
    device::{After, Device},
    failure::Failure,
    flow::{Flow, RequestPhase, Tally},
    plan::{self, Plan, Refusal},
    record::Record,
    relay::{self, Intake},
    upload::Upload,
};
use crate::{
    engine::{
        http1::head::Persist,
        net::stream::{Stream, WriteError},
        shard::Shard,
        upstream::{connect, pool::Connection},
    },
    observe::metrics::Ending,
    snapshot::Snapshot,
};

/// Takes the request whose head is the inbox's first `head_bytes` to its server, and the answer
/// back; says why the connection ends, if it does.
pub async fn run(shard: &Rc<Shard>, device: &mut Device, head_bytes: usize) -> (After, Ending) {
    shard.metrics.requests.add();
    let snapshot = shard.snapshot();
    let tally = Tally::default();
    let record = Record::begin(shard);
    let mut outbox = shard.buffers.take_relay();
    let (after, sender) = match plan::prepare(shard, &snapshot, device, head_bytes, &mut outbox) {
        Ok((plan, intake)) => {
            tally.received.set(intake.taken());
            device.set_mark(plan.mark);
            device.patience = plan.route.timeouts.body;
            device.give_back_large_inbox(shard);
            let after = deliver(shard, &snapshot, device, &plan, intake, outbox, &tally).await;
            (after, Some(plan.sender()))
        }
        Err(refusal) => {
            shard.buffers.put(outbox);
            let Refusal {
                failure,
                to_head,
                persist,
                mark,
            } = refusal;
            if let Some(mark) = mark {
                device.set_mark(mark);
            }
            // Whose server it would have been nobody knows.
            let withheld = failure.status() >= 500 && snapshot.routes.withholds_failures();
            let after = if failure == Failure::DeviceGone || withheld {
                tally.failure.set(Some(failure));
                // An answer of before may still be on its way.
                After::Linger
            } else {
                tally.note_refusal(failure);
                device.refuse(shard, failure, to_head, persist).await
            };
            (after, None)
        }
    };
    if let Some(failure) = tally.failure.get() {
        shard.metrics.count_failure(failure as usize);
    }
    if let Some(record) = record {
        // A request may be refused before anybody asks who sent it.
        let sender = sender.or_else(|| plan::sender(&snapshot, device));
        record.end(shard, device.source, sender, device.noted.parts(), &tally);
    }
    let ending = match tally.failure.get() {
        Some(_) => Ending::Failed,
        None => Ending::Finished,
    };
    (after, ending)
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
            result => {
                let response_due = shard.deadlines.due_in(plan.route.timeouts.response);
                flow.note_first_send(result, response_due);
            }
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
                let (id, per_id_max) =
                    (&plan.route.upstream.pool, plan.route.limits.pool_per_server);
                shard
                    .pools
                    .put(id, connection, per_id_max, plan.route.timeouts.pool);
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
        // The network may have been refused, or given to a device, since it was made.
        if connect::is_permitted(connection.address.ip(), snapshot) {
            return Ok((connection, true));
        }
        connection.stream.close();
    }
    let timeout = plan.route.timeouts.connect;
    let connection = connect::connect(upstream, snapshot, &shard.pools, timeout).await?;
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
        last: plan.arrived,
    };
    let (writer, watch) = (&mut device.writer, &device.watch);
    let (reader, upstream_watch) = (&mut upstream.reader, &upstream.watch);
    let answer = Answer::new(shard, plan, flow, writer, watch, reader, upstream_watch);
    let ((), ended) = relay::join(|| upload.relay(), || answer.relay(false)).await;
    ended
}
