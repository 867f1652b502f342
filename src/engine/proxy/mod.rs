//! From a device's connection to the server's answer: one file a stage.
//!
//! `connection` reads requests off a `device`'s socket; `plan` decides about one of them;
//! `exchange` takes it to its server: `upload` moves the rest of its body while `answer` brings back
//! what the server says, and `flow` is what those two tell each other. `relay` frames bodies;
//! `failure` is the table of everything that can go wrong, with what the device sees then; `record`
//! leads to the access log.

pub mod answer;
pub mod connection;
pub mod device;
pub mod exchange;
pub mod failure;
pub mod flow;
pub mod plan;
pub mod record;
pub mod relay;
pub mod upload;
