//! The rest of a request's body, from the device to the server.
//!
//! Runs beside the answer. Never sends to the device, and never ends its connection.

use super::{
    failure::Failure,
    flow::{Flow, RequestPhase, ResponsePhase},
    plan::Plan,
    relay::{self, Intake, RESERVE},
};
use crate::engine::{
    net::{
        deadline::{Due, Watch},
        stream::{SocketReader, StreamError, Writer},
        sys::Side,
    },
    shard::Shard,
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
    pub upstream_watch: &'a Watch,
    /// What is still to come.
    pub intake: Intake,
    /// Bytes that the last receive brought.
    pub last: usize,
}

impl Upload<'_> {
    /// Moves the body until it ends, fails, or nobody wants it any more.
    pub async fn relay(mut self) {
        let mut buffer = Vec::new();
        while self.flow.request.get() == RequestPhase::Sending {
            buffer = self.relay_piece(buffer).await;
            if self.flow.response.get() == ResponsePhase::Over {
                break;
            }
        }
        self.shard.buffers.put(buffer);
    }

    async fn relay_piece(&mut self, buffer: Vec<u8>) -> Vec<u8> {
        let buffers = &self.shard.buffers;
        let mut buffer = buffers.refit(buffer, self.last);
        let room = relay::make_room(&mut buffer).min(buffers.relay_bytes());
        let due = self.shard.deadlines.due_in(self.plan.route.timeouts.body);
        let (result, mut buffer) = self.device.read(buffer, self.intake.room(room), due).await;
        if self.flow.response.get() == ResponsePhase::Over {
            return buffer;
        }
        if let Some(failure) = self.failure_of(&result) {
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
        let (result, buffer) = self.upstream.write_all(buffer, begin, patience).await;
        match result {
            Err(failed) => {
                let failure = Failure::from_upstream(&failed.error, Failure::WriteTimeout);
                self.flow.note_unwanted(failure, self.response_due());
                self.await_answer();
            }
            Ok(()) if is_last => {
                self.flow.note_sent(self.response_due());
                self.await_answer();
            }
            Ok(()) => {}
        }
        buffer
    }

    /// What a receive from the device means if it brought nothing.
    fn failure_of(&self, result: &Result<usize, StreamError>) -> Option<Failure> {
        let waits_for_server =
            self.plan.expects && self.intake.taken() == 0 && !self.flow.interim.get();
        match result {
            Ok(received) if *received > 0 => None,
            // A device that was promised a 100 and got none has nothing to answer for.
            Err(StreamError::TimedOut) if waits_for_server => Some(Failure::ResponseTimeout),
            Err(StreamError::TimedOut) => Some(Failure::BodyTimeout),
            _ => Some(Failure::DeviceGone),
        }
    }

    /// The body can't go on: the server must see that it is cut off.
    fn fail(&self, failure: Failure) {
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
