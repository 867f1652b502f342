//! Control plane: may block and allocate; never touches a device connection.
//!
//! [`resolver`] keeps the addresses of servers' names, which `lookup` asks for; [`trust`] keeps the
//! TLS configurations; [`reload`] makes snapshots of both and of the settings. [`lease`] has the
//! devices' addresses that come and go, [`dns`] answers their questions for m2u's own names.

pub mod dns;
pub mod lease;
mod lookup;
pub mod reload;
pub mod resolver;
pub mod trust;
