//! The lines of a journal, one JSON object each.

use serde::{Deserialize, Serialize};

use crate::control::lease::{claim::UnixMs, clock::Anchor, protocol::Shown};

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record<'a> {
    /// A gateway began its run then; times behind it are in this run's time.
    Head(Anchor),
    /// A source says so.
    Lease(Shown<'a>),
    /// It says so no longer.
    End {
        /// Address or prefix.
        address: String,
        /// The listeners' scope; absent: everywhere.
        #[serde(skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// Whose claim it was.
        source: String,
    },
    /// A large set of a source comes in, change by change, until it is whole.
    Set {
        /// The source's name.
        source: String,
        /// Whether it is.
        whole: bool,
    },
    /// Such a set will never be whole, for its source has begun anew: all that it has said since is here,
    /// and of the set nothing is left.
    Overtaken {
        /// The source's name.
        source: String,
    },
    /// The newest run of a source.
    Epoch {
        /// Its name.
        source: String,
        /// The run.
        epoch: u64,
    },
    /// The gateway was at work then.
    Alive {
        /// When.
        at_ms: UnixMs,
        /// Number of the newest change.
        revision: u64,
    },
}
