//! The meeting place: what the control plane publishes and the engine reads.
//!
//! Everything here is immutable once published, and whatever can be rendered ahead is rendered
//! ahead. Nothing here does I/O or knows a runtime.

pub mod identity;
mod lengths;
pub mod moved;
pub mod publish;
pub mod route;
pub mod scope;
mod shard;

use std::sync::Arc;

use ipnet::IpNet;

use route::RouteTable;
use scope::Identities;

/// One consistent view of everything a request needs to know.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// VPN address -> device.
    pub identities: Identities,
    /// (account, slot) -> server.
    pub routes: Arc<RouteTable>,
    /// The domain behind `m2u.`, lower-case; empty: bare names only.
    pub domain: Arc<str>,
    /// Networks that upstream addresses may lie in although they are refused by default.
    pub allow_networks: Arc<[IpNet]>,
}
