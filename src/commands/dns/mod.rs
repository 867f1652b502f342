//! `m2u dns`: m2u's own names in an operator's own DNS server.
//!
//! `command` finds out what the names resolve to, `snippet` writes it as each server wants it. The
//! responder that needs no other server is [`control::dns`](crate::control::dns).

mod command;
mod snippet;

pub use command::{Arguments, execute};
