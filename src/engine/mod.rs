//! The data plane: one thread a core; never blocks, never resolves names, never logs with a lock.
//!
//! Imports run one way: `http1`, `net` <- `upstream` <- `shard` <- `proxy` <- `worker`.

pub mod http1;
pub mod net;
