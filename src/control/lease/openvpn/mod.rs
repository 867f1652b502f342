//! What OpenVPN hubs say of their clients, beside what their hooks say through the feed.
//!
//! In reading order: [`poll`] asks every hub again and again; `ask` brings one hub's status, from its
//! file or its management interface; `looks` bounds how young a file is; [`status`] reads it;
//! [`report`] makes claims of it; [`told`] keeps what is worth telling from being told at every poll.
//! Nothing here changes a lease.

mod ask;
mod looks;
pub mod poll;
pub mod report;
pub mod status;
pub mod told;
