//! Fuzz targets of m2u. Each takes arbitrary bytes, gives them to the gateway's own functions, and
//! panics if what comes of them is wrong.
//!
//! What is right is said by [`strict`], a reader of HTTP/1 that shares no code with the gateway and
//! trades speed and lenience for being easy to check. Nothing here opens a socket.
//!
//! `scripts/fuzz` runs the targets under libFuzzer; `tests/short.rs` runs the same functions with
//! mutations of the seeds, for a short while and without libFuzzer.

pub mod answer;
pub mod chunked;
pub mod config;
pub mod dns;
pub mod framing;
pub mod head;
pub mod pieces;
pub mod proxy_protocol;
pub mod rewrite;
pub mod scene;
pub mod seeds;
pub mod strict;

/// A target: its name, and what it does with an input. It answers whether the gateway took the
/// input for what the target is about, so that there was more to judge than a refusal.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Every target, by the name of its file in `fuzz_targets`.
pub const TARGETS: [Target; 8] = [
    ("head", head::check),
    ("framing", framing::check),
    ("chunked", chunked::check),
    ("rewrite", rewrite::check),
    ("answer", answer::check),
    ("proxy_protocol", proxy_protocol::check),
    ("dns", dns::check),
    ("config", config::check),
];
