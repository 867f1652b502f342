//! From a device's connection to the server's answer: one file a stage.
//!
//! `connection` reads requests off a device's socket; `exchange` decides about one of them and
//! takes it to its server; `upload` moves the rest of its body while `answer` brings back what the
//! server says, and `flow` is what those two tell each other. `relay` frames bodies; `failure` is
//! the table of everything that can go wrong, with what the device sees then; `record` is what the
//! access log will say.

pub mod answer;
pub mod connection;
pub mod exchange;
pub mod failure;
pub mod flow;
pub mod record;
pub mod relay;
pub mod upload;
