//! Control plane: may block and allocate; never touches a device connection.
//!
//! [`resolver`] keeps the addresses of servers' names, [`trust`] the TLS configurations, and
//! [`reload`] makes snapshots of both and of the settings.

pub mod reload;
pub mod resolver;
pub mod trust;
