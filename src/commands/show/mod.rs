//! `m2u show`: the settings in force, the routes, and whose device an address is.
//!
//! In reading order: [`command`] decides what is shown, `effective` prints the settings as a
//! configuration, `routes` the servers, `device` one address. Nothing shows a password or a key.

pub mod command;
mod device;
mod effective;
mod routes;

pub use command::{Arguments, execute};
