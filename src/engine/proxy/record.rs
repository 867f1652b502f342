//! What the access log will say of an exchange, kept until its end.
//!
//! Costs nothing where there is no log; never keeps a query, which may hold a key.

use std::{
    net::IpAddr,
    time::{Instant, SystemTime},
};

use super::{failure::Failure, flow::Tally};
use crate::{engine::shard::Shard, observe::access_log::Entry};

/// An exchange that will be logged.
#[derive(Debug)]
pub struct Record {
    begun: Instant,
    begun_at: SystemTime,
}

impl Record {
    /// Begins where a request's head is complete; `None` if nothing is logged.
    pub fn begin(shard: &Shard) -> Option<Self> {
        let begin = || Self {
            begun: Instant::now(),
            begun_at: SystemTime::now(),
        };
        shard.is_logging().then(begin)
    }

    /// Writes the line.
    pub fn end(
        self,
        shard: &Shard,
        source: IpAddr,
        sender: Option<(&str, &str)>,
        request: Option<(&[u8], &[u8])>,
        tally: &Tally,
    ) {
        shard.log(&Entry {
            begun: self.begun_at,
            took: self.begun.elapsed(),
            source,
            sender,
            request,
            status: tally.status.get(),
            error: tally.failure.get().map(Failure::token),
            received: tally.received.get(),
            sent: tally.sent.get(),
        });
    }
}

/// Method and path of the request under way; its head has left the inbox long before the end.
#[derive(Debug, Default)]
pub struct Noted {
    bytes: Vec<u8>,
    method_bytes: usize,
}

impl Noted {
    /// Keeps a request's method and the path of its target.
    pub fn keep(&mut self, method: &[u8], target: &[u8]) {
        let end = memchr::memchr(b'?', target).unwrap_or(target.len());
        self.bytes.clear();
        self.bytes.extend_from_slice(method);
        self.bytes.extend_from_slice(&target[..end]);
        self.method_bytes = method.len();
    }

    /// There is nothing to say of the next request yet.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Method and path, if a request has been read.
    pub fn parts(&self) -> Option<(&[u8], &[u8])> {
        (!self.bytes.is_empty()).then(|| self.bytes.split_at(self.method_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_never_kept() {
        let mut noted = Noted::default();
        assert_eq!(noted.parts(), None);
        noted.keep(b"POST", b"/in?key=secret");
        assert_eq!(noted.parts(), Some((&b"POST"[..], &b"/in"[..])));
        noted.clear();
        assert_eq!(noted.parts(), None);
    }
}
