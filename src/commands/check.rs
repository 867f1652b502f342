//! `m2u check`: everything that `run` would refuse, all at once.
//!
//! Opens no socket, sends nothing, writes no file.

use std::process::ExitCode;

use crate::config::{flags::ConfigArguments, problem::Summary, settings::Settings};

/// Arguments of `m2u check`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which configuration to check.
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// Checks the configuration: 0 if `run` would accept it, 1 with every problem on standard error.
pub fn execute(arguments: Arguments) -> ExitCode {
    match arguments.config.load() {
        Ok(settings) => {
            let file = arguments.config.config.display();
            println!("{file}: fine: {}", inventory(&settings));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprint!("{}", Summary(&problems));
            ExitCode::FAILURE
        }
    }
}

fn inventory(settings: &Settings) -> String {
    let accounts = &settings.accounts;
    let servers = accounts.iter().map(|account| account.servers.len()).sum();
    let devices = accounts.iter().map(|account| account.devices.len()).sum();
    [
        counted(accounts.len(), "account"),
        counted(servers, "server"),
        counted(devices, "device"),
        counted(settings.listen.len(), "listener"),
    ]
    .join(", ")
}

fn counted(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}
