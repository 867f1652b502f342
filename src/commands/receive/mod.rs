//! `m2u receive`: a small customer's server, for commissioning and demonstrations.
//!
//! `command` listens and answers, on hyper and tokio-rustls; `report` is what it prints of a
//! request. Shares no code with the engine, so that neither can hide a fault of the other.

mod command;
mod report;

pub use command::{Arguments, execute};
