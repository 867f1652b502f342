//! The subcommands, one file or folder each; `print` is what those share that print and end.

pub mod check;
pub mod dns;
pub mod lease;
mod print;
pub mod receive;
pub mod run;
pub mod show;
