//! Live identity: leases come and go while the gateway runs.
//!
//! [`table`] has what every source claims and what follows from it, over the [`directory`] of the
//! configuration's devices. [`feed`] is the Unix socket that sources write to, in the words of
//! [`protocol`]; [`journal`] remembers them over a restart. [`registry`] puts it together.

pub mod directory;
pub mod feed;
pub mod journal;
pub mod protocol;
pub mod registry;
pub mod table;
