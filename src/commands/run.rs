//! `m2u run`: the gateway, until a signal ends it.
//!
//! Reads the configuration and hands over to [`server`]; prints nothing but problems.

use std::process::ExitCode;

use nix::sys::prctl;

use crate::{
    config::{flags::ConfigArguments, problem::Summary},
    server,
};

/// Arguments of `m2u run`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which configuration to run.
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// Runs the gateway: 0 once a signal has ended it in order, 1 if it refuses to start or breaks.
pub fn execute(arguments: Arguments) -> ExitCode {
    // With huge pages for everybody (the kernel's default) a buffer that holds a few bytes may take
    // two megabytes. If the system refuses, the gateway serves all the same.
    let _ = prctl::set_thp_disable(true);
    match arguments.config.load() {
        Ok(settings) => server::run(settings, arguments.config),
        Err(problems) => {
            eprint!("{}", Summary(&problems));
            ExitCode::FAILURE
        }
    }
}
