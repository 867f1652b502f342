//! `m2u lease`: tells a running gateway who speaks from which address, and shows what it knows.
//!
//! In reading order: `command` is what each subcommand does, over the `wire`, the feed's socket seen
//! from the other side. A whole `set` of leases comes from a `sheet`, a CSV file with named columns,
//! or from `wireguard`; `shown` is what people get to see. Changes nothing by itself.

mod command;
mod set;
mod sheet;
mod shown;
mod wire;
mod wireguard;

pub use command::{Arguments, execute};
