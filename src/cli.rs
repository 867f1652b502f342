//! Arguments -> command. Does no work of its own.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{check, dns, lease, receive, run, show};

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
    /// Run the gateway until a signal ends it
    #[command(after_help = RUN_EXAMPLES)]
    Run(run::Arguments),
    /// Check a configuration: everything that `run` would refuse, all at once
    #[command(after_help = CHECK_EXAMPLES)]
    Check(check::Arguments),
    /// Show the settings in force, the routes, and whose device an address is
    #[command(after_help = SHOW_EXAMPLES)]
    Show(show::Arguments),
    /// Put m2u's own names into another DNS server
    Dns(dns::Arguments),
    /// Tell a running gateway who speaks from which address, or show what it knows
    #[command(after_help = LEASE_EXAMPLES)]
    Lease(lease::Arguments),
    /// Receive as a small customer's server would, and print what arrives
    #[command(after_help = RECEIVE_EXAMPLES)]
    Receive(receive::Arguments),
}

const RUN_EXAMPLES: &str = "\
Examples:
  m2u run
  m2u run --config /etc/m2u/m2u.toml
  m2u run --listen 10.8.0.2:80 --cores 0-3
  kill -HUP $(pidof m2u)            take over a changed configuration

Signals:
  SIGTERM, SIGINT   stop accepting, finish what is under way within timeouts.drain, exit 0;
                    a second one exits at once
  SIGHUP            read the configuration again, with the same flags: if anything in it is wrong,
                    every problem is printed and nothing changes; otherwise accounts, devices,
                    servers, certificates and domain take effect. Requests under way end as they
                    began; idle connections of an address that is another device's now are closed.
                    What listens and what is sized at start (listen, dns.listen, access_log, leases,
                    limits but body_bytes and pool_per_server, timeouts.head and keepalive) needs a
                    restart; m2u says so if it changed
  SIGUSR1           print one line of counts

m2u is ready when it prints \"m2u: ready\" on standard error, one line after the addresses that it
listens on.

Exit codes: 0 ended by a signal, all in order; 1 refused, or broken off; 2 wrong usage.";

const SHOW_EXAMPLES: &str = "\
Examples:
  m2u show                          every setting in force, and the routes
  m2u show --resolve                with the addresses that servers' names have now
  m2u show --device 10.8.0.7        whose device that VPN address is, and what is stamped
  m2u show > effective.toml         what is printed is a configuration again; passwords are \"***\"

Whose an address is the file says here; whether it is leased, `m2u lease list --address`.

Exit codes: 0 shown, 1 the configuration is refused or gives the address to no device, 2 wrong usage.";

const LEASE_EXAMPLES: &str = "\
Examples:
  m2u lease add 10.8.0.7 --account acme --device press-07
  m2u lease add 192.168.7.0/24 --account acme --device press-07 --expires 10m
  m2u lease release 10.8.0.7
  m2u lease sync fleet.csv --source plant    the whole set of a source, at once
  m2u lease list --address 10.8.0.7          whose it is, and who says so
  m2u lease watch --json                     every change, one JSON object a line
  wg show all allowed-ips | m2u lease import --wireguard - --peers peers.csv

The gateway is the one whose socket is leases.socket of the configuration, or --socket. A command
that ends with 0 has taken effect on every core. Sources, sessions, epochs and the words of the
socket are described in scripts/leases/README.md.

Exit codes: 0 done, 1 refused or not reached (the reason is on standard error), 2 wrong usage.";

const RECEIVE_EXAMPLES: &str = "\
Examples:
  m2u receive --listen 127.0.0.1:8080
  m2u receive --listen 0.0.0.0:8443 --cert server.pem --key server.key
  m2u receive --cert server.pem --key server.key --client-ca gateway-ca.pem
  m2u receive --json | jq .identity

Each request is printed on standard output once its body has been counted, and answered with 200.
Field names are shown in lower case, in which HTTP does not tell them apart; underscore and hyphen
stay what they were. Passwords and tokens are never shown, bodies never kept. It is a tool for
commissioning and for demonstrations, not a server to build on.

Exit codes: 0 ended by a signal, 1 could not begin, 2 wrong usage.";

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
        Command::Run(arguments) => run::execute(arguments),
        Command::Show(arguments) => show::execute(arguments),
        Command::Check(arguments) => check::execute(arguments),
        Command::Dns(arguments) => dns::execute(arguments),
        Command::Lease(arguments) => lease::execute(arguments),
        Command::Receive(arguments) => receive::execute(arguments),
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
