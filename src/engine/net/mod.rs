//! Sockets, TLS and deadlines: the only place that names monoio sockets, rustls and unsafe code.

pub mod deadline;
pub mod listener;
pub mod open;
pub mod pace;
pub mod pipe;
pub mod seal;
pub mod sends;
pub mod standby;
pub mod stream;
pub mod suites;
pub mod sys;
pub mod tick;
pub mod tls;
pub mod turns;
