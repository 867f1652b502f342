//! The subcommands, one file each.

pub mod check;
pub mod receive;
pub mod run;
pub mod show;
