//! What the tests share: the gateway as a process, devices and servers as scripts, certificates.
//!
//! Waits for conditions with a bound, never for a time; every process is ended by its id; nothing
//! leaves the loopback range.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "a part of each test"
)]

pub mod cells;
pub mod certificates;
pub mod claims;
pub mod device;
pub mod dig;
pub mod engine;
pub mod exchanges;
pub mod faults;
pub mod feed;
pub mod flood;
pub mod folder;
pub mod gateway;
pub mod golden;
pub mod leases;
pub mod name_server;
pub mod namespace;
pub mod random;
pub mod servers;
pub mod shapes;
pub mod sockets;
pub mod speaker;
pub mod upstream;
pub mod vpn;
pub mod wire;

use std::time::{Duration, Instant};

/// How long anything may take before a test says that it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done`; fails the test, naming `what`, if that takes too long.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The pace of a slow device or server: what a script does, never a way to wait for something.
pub fn pace(pause: Duration) {
    std::thread::sleep(pause);
}
