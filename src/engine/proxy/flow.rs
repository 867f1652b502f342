//! What the two directions of one exchange tell each other.
//!
//! Each direction has its own phase and its own writer; neither waits for the other here.

use std::{cell::Cell, io::ErrorKind};

use super::failure::Failure;
use crate::engine::net::{
    deadline::Due,
    stream::{StreamError, WriteError},
};

/// What is counted of one exchange, for the access log.
#[derive(Debug, Default)]
pub struct Tally {
    /// Status that the device saw; 0 if none.
    pub status: Cell<u16>,
    /// What went wrong.
    pub failure: Cell<Option<Failure>>,
    /// Body bytes from the device.
    pub received: Cell<u64>,
    /// Body bytes from the server to the device.
    pub sent: Cell<u64>,
}

impl Tally {
    /// Takes back what was noted of an answer that the device does not get.
    pub fn forget_answer(&self) {
        self.status.set(0);
        self.sent.set(0);
    }

    /// Takes note of the gateway's own answer.
    pub fn note_refusal(&self, failure: Failure) {
        self.status.set(failure.status());
        self.failure.set(Some(failure));
    }
}

/// How far both directions are.
#[derive(Debug)]
pub struct Flow<'t> {
    /// How far the request is.
    pub request: Cell<RequestPhase>,
    /// How far the answer is.
    pub response: Cell<ResponsePhase>,
    /// When the answer's head is overdue: never, as long as the request is on its way.
    pub response_due: Cell<Due>,
    /// Whether the server has asked for the body (100).
    pub is_asked_for: Cell<bool>,
    /// What is counted.
    pub tally: &'t Tally,
    /// Whether a send found the server's connection ended out of order.
    is_torn: Cell<bool>,
    whole: bool,
}

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestPhase {
    /// Its body is on the way.
    Sending,
    /// All of it has been received and sent.
    Sent,
    /// The server takes no more of it, for this reason; it may have answered nevertheless.
    Unwanted(Failure),
    /// The device did not send it to its end.
    Failed(Failure),
}

/// How far an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponsePhase {
    /// No final head yet.
    Awaited,
    /// Its head is out; the body is on the way.
    Relaying,
    /// Nothing more will be sent to the device.
    Over,
}

impl<'t> Flow<'t> {
    /// A request that is about to be sent; `whole` says that all of its body is there already.
    pub fn new(whole: bool, tally: &'t Tally) -> Self {
        Self {
            request: Cell::new(RequestPhase::Sending),
            response: Cell::new(ResponsePhase::Awaited),
            response_due: Cell::new(Due::NEVER),
            is_asked_for: Cell::new(false),
            tally,
            is_torn: Cell::new(false),
            whole,
        }
    }

    /// Whether the device had sent the whole request before it was prepared.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether nothing of the request is still to be received from the device.
    pub fn is_received(&self) -> bool {
        self.whole || self.request.get() == RequestPhase::Sent
    }

    /// Whether the end of the server's connection, if that is what a receive meets, says that its answer is
    /// complete. It does not where the gateway ended it, nor where a reset was told to a send: the kernel
    /// tells it once, and receives meet a mere end.
    pub fn is_end_credible(&self) -> bool {
        !self.is_torn.get() && !matches!(self.request.get(), RequestPhase::Failed(_))
    }

    /// Takes note of how sending the head, and the body that came with it, went; an answer is
    /// overdue at `response_due`.
    pub fn note_first_send(&self, result: Result<(), WriteError>, response_due: Due) {
        match result {
            Ok(()) if self.whole => self.note_sent(response_due),
            Ok(()) => self.request.set(RequestPhase::Sending),
            Err(WriteError { error, .. }) => self.note_unwanted(&error, response_due),
        }
    }

    /// From now on the answer's head is awaited, until `response_due`.
    pub fn note_sent(&self, response_due: Due) {
        self.request.set(RequestPhase::Sent);
        self.response_due.set(response_due);
    }

    /// The server takes no more: an answer that it sent before may still be there.
    pub fn note_unwanted(&self, error: &StreamError, response_due: Due) {
        // A broken pipe is the end of a server that had ended its own side in order before.
        let is_orderly =
            matches!(error, StreamError::Io(error) if error.kind() == ErrorKind::BrokenPipe);
        self.is_torn.set(!is_orderly);
        let failure = Failure::from_upstream(error, Failure::WriteTimeout);
        self.request.set(RequestPhase::Unwanted(failure));
        self.response_due.set(response_due);
    }
}
