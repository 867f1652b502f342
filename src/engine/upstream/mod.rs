//! Connections to servers: made, kept warm, and never shared between servers that differ.

pub mod connect;
pub mod pool;
