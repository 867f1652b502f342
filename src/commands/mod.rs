//! The subcommands, one file each.

pub mod check;
pub mod lease;
pub mod receive;
pub mod run;
pub mod show;
