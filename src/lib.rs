//! m2u: the gateway through which fleets of eWON routers push data to their owners' web servers.
//!
//! Three zones and one meeting place:
//!
//! - [`config`] turns files and flags into checked settings; [`limits`] bounds everything.
//! - [`snapshot`] is the meeting place: immutable tables that control publishes and cores read.
//! - [`engine`] is the data plane: one thread a core, HTTP/1 between devices and servers.
//! - [`control`] is the control plane: names, trust, snapshots, signals.
//! - [`commands`] are the program's subcommands, read by [`cli`]; [`server`] wires a running
//!   gateway together, and [`file_limit`] counts the files that it may open.
//!
//! `engine` and `control` never import each other.

pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod engine;
pub mod file_limit;
pub mod limits;
pub mod observe;
pub mod server;
pub mod snapshot;
