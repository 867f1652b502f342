//! What OpenVPN hubs say of their clients, beside what their hooks say through the feed.
//!
//! In reading order: [`poll`] asks every hub again and again; `ask` brings one hub's status, from its
//! file or its management interface; [`status`] reads it; [`report`] makes claims of it. Nothing here
//! changes a lease.

mod ask;
pub mod poll;
pub mod report;
pub mod status;
