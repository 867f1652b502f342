//! An exchange on its way into the access log. Costs nothing where there is no log.

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
