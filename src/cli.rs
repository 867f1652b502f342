//! Arguments -> command. Does no work of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::check;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 refused (the reason is on standard error), 2 wrong usage.

Start with a configuration of a few lines, m2u.toml:

  domain = \"talk2m.com\"
  listen = [\"10.8.0.2:80\"]

  [[account]]
  ref = \"acme\"

  [[account.server]]
  url = \"https://ingest.acme.example/base\"

  [[account.device]]
  name = \"press-07\"
  serial = \"1932-0069-24\"
  address = [\"10.8.0.7\"]

Durations in it are \"250ms\", \"10s\" or \"2m\", sizes are plain numbers of bytes.";

/// The gateway through which fleets of eWON routers push data to their owners' web servers
#[derive(Debug, Parser)]
#[command(name = "m2u", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check a configuration: everything that `run` would refuse, all at once
    #[command(after_help = CHECK_EXAMPLES)]
    Check(check::Arguments),
}

const CHECK_EXAMPLES: &str = "\
Examples:
  m2u check
  m2u check --config /etc/m2u/m2u.toml
  m2u check --listen 10.8.0.2:80 --cores 0-3";

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors: clap knows which stream and code is right.
            let printed = error.print().is_ok();
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return ExitCode::from(if printed { code } else { 1 });
        }
    };
    match cli.command {
        Command::Check(arguments) => check::execute(arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
