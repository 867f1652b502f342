//! An exchange on its way into the access log. Costs nothing where there is no log.

use std::{net::IpAddr, time::Instant};

use super::flow::Tally;
use crate::{engine::shard::Shard, observe::log_line::Entry};

/// An exchange that will be logged.
#[derive(Debug)]
pub struct Record {
    begun: Instant,
}

impl Record {
    /// Begins where a request's head is complete; `None` if nothing is logged.
    pub fn begin(shard: &Shard) -> Option<Self> {
        let begin = || Self {
            begun: Instant::now(),
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
            begun: self.begun,
            took: self.begun.elapsed(),
            source,
            sender,
            request,
            status: tally.status.get(),
            error: tally
                .failure
                .get()
                .map(|failure| (failure.token(), failure.name())),
            received: tally.received.get(),
            sent: tally.sent.get(),
        });
    }
}
