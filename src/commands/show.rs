//! x
use std::process::ExitCode;

use crate::config::flags::ConfigArguments;

/// Arguments of `m2u show`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which configuration to run.
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// x
pub fn execute(_: Arguments) -> ExitCode {
    ExitCode::FAILURE
}
