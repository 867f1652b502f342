//! The rest of a request's body, from the device to the server.
//!
//! Runs beside the answer. Never sends to the device, and never ends its connection.

use std::rc::Rc;

use super::{
    failure::Failure,
    flow::{Flow, RequestPhase, ResponsePhase},
    plan::Plan,
    relay::{self, Intake, RESERVE},
};
use crate::{
    engine::{
        http1::framing::Body,
        net::{
            deadline::{Due, Watch},
            pipe::Splice,
            stream::{SocketReader, StreamError, WriteError, Writer},
            sys::Side,
        },
        shard::Shard,
    },
    limits,
};

/// One request's body on its way.
#[derive(Debug)]
pub struct Upload<'a> {
    /// The core.
    pub shard: &'a Shard,
    /// The request.
    pub plan: &'a Plan<'a>,
    /// What is shared with the answer.
    pub flow: &'a Flow<'a>,
    /// Bytes from the device.
    pub device: &'a mut SocketReader,
    /// Takes what the device sent after this request.
    pub inbox: &'a mut Vec<u8>,
    /// Bytes to the server.
    pub upstream: &'a mut Writer,
    /// The server's connection, for ending it.
    pub upstream_watch: &'a Rc<Watch>,
    /// What is still to come.
    pub intake: Intake,
    /// Bytes that the last receive brought.
    pub last: usize,
}

impl Upload<'_> {
    /// Moves the body until it ends, fails, or nobody wants it any more.
    pub async fn relay(mut self) {
        let mut buffer = Vec::new();
        let mut splice = None;
        // Small pieces are acknowledged one by one; what came with the head may have ended with one.
        if self.last >= limits::PARKED_FULL_BYTES {
            self.device.acknowledge();
        }
        while self.flow.request.get() == RequestPhase::Sending {
            if let Some(left) = self.left_for_splice(splice.is_some())
                && (splice.is_some() || self.begin_splice(&mut splice))
                && let Some(splice) = &mut splice
            {
                self.shard.buffers.put(std::mem::take(&mut buffer));
                self.splice_piece(splice, left).await;
            } else {
                // Whoever trickles by now must not hold what others could use.
                if let Some(splice) = splice.take() {
                    splice.end(&self.shard.pipes);
                }
                buffer = self.relay_piece(buffer).await;
            }
            if self.flow.response.get() == ResponsePhase::Over {
                break;
            }
        }
        self.shard.buffers.put(buffer);
        if let Some(splice) = splice {
            splice.end(&self.shard.pipes);
        }
    }

    /// Bytes still to come, if they are worth a pipe, or one is there already: whoever trickles gets
    /// none.
    fn left_for_splice(&self, has_begun: bool) -> Option<u64> {
        let left = self.intake.length_left()?;
        let is_worth = has_begun || left >= self.shard.splice_bytes;
        (is_worth && self.last >= limits::PARKED_FULL_BYTES).then_some(left)
    }

    fn begin_splice(&self, splice: &mut Option<Box<Splice>>) -> bool {
        let sink = self.upstream.plain_share();
        *splice = sink.and_then(|sink| Splice::begin(&self.shard.pipes, self.device.share(), sink));
        splice.is_some()
    }

    async fn splice_piece(&mut self, splice: &mut Splice, left: u64) {
        let patience = self.plan.route.timeouts.body;
        let due = self.shard.deadlines.due_in(patience);
        let result = splice.receive(left, due).await;
        let result = match result {
            // Copying a piece leads past what can't be moved.
            Ok(None) => {
                self.last = 0;
                return;
            }
            Ok(Some(received)) => Ok(received),
            Err(error) => Err(error),
        };
        if self.flow.response.get() == ResponsePhase::Over {
            return;
        }
        if let Some(failure) = self.failure_of(&result, due) {
            return self.fail(failure);
        }
        self.last = result.unwrap_or_default();
        self.intake.pass(self.last);
        self.flow.tally.received.set(self.intake.taken());
        let sent = splice.send_all(patience).await;
        self.note_piece(sent);
    }

    async fn relay_piece(&mut self, buffer: Vec<u8>) -> Vec<u8> {
        let buffers = &self.shard.buffers;
        let wire = self.upstream.wire();
        let (mut buffer, most) =
            buffers.refit_for_body(buffer, self.last, wire, self.intake.taken());
        // The coding's lines go into the same records.
        let framing = match self.plan.body {
            Body::Chunked => relay::FRAMING_BYTES_MAX,
            _ => 0,
        };
        let room = relay::make_room(&mut buffer).min(most - framing);
        let due = self.shard.deadlines.due_in(self.plan.route.timeouts.body);
        if self.last < limits::PARKED_FULL_BYTES {
            self.device.acknowledge();
        }
        let (result, mut buffer) = self.device.read(buffer, self.intake.room(room), due).await;
        if self.flow.response.get() == ResponsePhase::Over {
            return buffer;
        }
        if let Some(failure) = self.failure_of(&result, due) {
            self.fail(failure);
            return buffer;
        }
        self.last = buffer.len() - RESERVE;
        let piece = match self.intake.take(&mut buffer, RESERVE) {
            Ok(piece) => piece,
            Err(error) => {
                self.fail(error.into());
                return buffer;
            }
        };
        self.flow.tally.received.set(self.intake.taken());
        self.inbox.extend_from_slice(&buffer[piece.end..]);
        let is_last = self.intake.is_done();
        let begin = relay::frame(&mut buffer, piece.payload, self.plan.body, is_last);
        let patience = self.plan.route.timeouts.body;
        let (sent, buffer) = self.upstream.write_all(buffer, begin, patience).await;
        self.note_piece(sent);
        buffer
    }

    /// What it means how sending a piece went.
    fn note_piece(&self, sent: Result<(), WriteError>) {
        match sent {
            Err(failed) => {
                self.flow.note_unwanted(&failed.error, self.response_due());
                self.await_answer();
            }
            Ok(()) if self.intake.is_done() => {
                self.flow.note_sent(self.response_due());
                self.await_answer();
            }
            Ok(()) => {}
        }
    }

    /// What a receive from the device that was to last until `due` means if it brought nothing.
    fn failure_of(&self, result: &Result<usize, StreamError>, due: Due) -> Option<Failure> {
        let waits_for_server =
            self.plan.expects && self.intake.taken() == 0 && !self.flow.is_asked_for.get();
        match result {
            Ok(received) if *received > 0 => None,
            // The request came as the wait for it ended: the device was not slow, but it can't go on.
            Err(StreamError::TimedOut) if !self.shard.deadlines.is_past(due) => {
                Some(Failure::DeviceGone)
            }
            // A device that was promised a 100 and got none has nothing to answer for.
            Err(StreamError::TimedOut) if waits_for_server => Some(Failure::ResponseTimeout),
            Err(StreamError::TimedOut) => Some(Failure::BodyTimeout),
            _ => Some(Failure::DeviceGone),
        }
    }

    /// The body can't go on: the server must see that it is cut off, unless it has answered by now and the
    /// device is merely slow.
    fn fail(&self, failure: Failure) {
        let is_slow = matches!(failure, Failure::BodyTimeout | Failure::ResponseTimeout);
        if is_slow && self.flow.response.get() == ResponsePhase::Relaying {
            return self.flow.request.set(RequestPhase::Unwanted(failure));
        }
        self.flow.request.set(RequestPhase::Failed(failure));
        self.upstream_watch.shutdown(Side::Both);
    }

    fn response_due(&self) -> Due {
        self.shard
            .deadlines
            .due_in(self.plan.route.timeouts.response)
    }

    /// From now on the answer, if it has not come yet, has a deadline.
    fn await_answer(&self) {
        if self.flow.response.get() == ResponsePhase::Awaited {
            self.upstream_watch.set_read(self.flow.response_due.get());
        }
    }
}
