//! TEMPORARY: the contract of the data plane, so that its callers compile before it is merged.
//!
//! Holds no logic; the engine's owner replaces this file.

use std::{fmt, net::SocketAddr, time::Duration};

use crate::{
    config::settings::{Limits, Listen, Slot, Timeouts, Tuning},
    snapshot::publish::Publisher,
};

/// What the engine is told once, at start.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Sockets that devices reach.
    pub listen: Vec<Listen>,
    /// Durations of what is not a server's own.
    pub timeouts: Timeouts,
    /// Sizes and counts of what is not a server's own.
    pub limits: Limits,
    /// Cores, rings and buffers.
    pub tuning: Tuning,
}

/// A running data plane.
#[derive(Debug)]
pub struct Engine {}

/// Why the engine did not start.
#[derive(Debug)]
pub struct StartError;

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("engine missing")
    }
}

impl std::error::Error for StartError {}

/// Why a worker ended by itself.
#[derive(Debug)]
pub struct EngineError;

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("engine missing")
    }
}

impl std::error::Error for EngineError {}

impl Engine {
    /// Refuses.
    ///
    /// # Errors
    /// Always: there is no engine here.
    pub fn start(_: EngineSettings, _: &Publisher) -> Result<Self, StartError> {
        Err(StartError)
    }

    /// None.
    pub fn addresses(&self) -> &[(SocketAddr, Slot)] {
        &[]
    }

    /// None.
    pub fn cores(&self) -> &[usize] {
        &[]
    }

    /// Nothing to drain.
    pub fn drain(&self, _: Duration) {}

    /// Nothing runs.
    pub fn is_stopped(&self) -> bool {
        true
    }

    /// Nothing can break.
    pub fn is_broken(&self) -> bool {
        false
    }

    /// Nothing to wait for.
    ///
    /// # Errors
    /// Never.
    pub fn join(self) -> Result<(), EngineError> {
        Ok(())
    }
}
