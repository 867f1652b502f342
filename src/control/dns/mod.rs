//! The responder for m2u's own names: how a device finds the gateway without another DNS server.
//!
//! In reading order: [`zone`] says which names there are and what they resolve to, [`mod@answer`]
//! turns a question's bytes into an answer's, [`responder`] has the sockets, on a thread of its own,
//! and `counts` what came of the questions. Knows no names but m2u's, asks nobody, forwards nothing.

pub mod answer;
mod counts;
pub mod responder;
pub mod zone;
