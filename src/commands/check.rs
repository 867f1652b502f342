//! `m2u check`: everything that `run` would refuse, or warn of, all at once.
//!
//! Opens no socket, sends nothing, writes no file.

use std::process::ExitCode;

use crate::{
    config::{flags::ConfigArguments, problem::Summary, settings::Settings},
    control::reload::Assembly,
};

/// Arguments of `m2u check`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which configuration to check.
    #[command(flatten)]
    pub config: ConfigArguments,
}

/// Checks the configuration: 0 if `run` would find nothing wrong, 1 with every problem on standard error.
pub fn execute(arguments: Arguments) -> ExitCode {
    match arguments.config.load() {
        Ok(settings) => {
            let file = arguments.config.config.display();
            // What the file alone cannot tell: whether this system has what its servers need.
            if let Err(error) = Assembly::default().adopt(&settings) {
                eprintln!("{file}: {error}");
                return ExitCode::FAILURE;
            }
            if !settings.doubts.is_empty() {
                eprint!("{}", Summary(&settings.doubts));
                return ExitCode::FAILURE;
            }
            let (inventory, listeners) = (settings.inventory(), listeners(&settings));
            println!("{file}: fine: {inventory}, {listeners}");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            eprint!("{}", Summary(&problems));
            ExitCode::FAILURE
        }
    }
}

fn listeners(settings: &Settings) -> String {
    match settings.listen.len() {
        1 => "1 listener".to_owned(),
        count => format!("{count} listeners"),
    }
}
