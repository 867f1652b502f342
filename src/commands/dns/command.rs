//! What `m2u dns snippet` prints, and from which addresses.
//!
//! Opens no socket, asks nobody, writes no file.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use super::snippet::{self, Format};
use crate::{
    commands::print::print,
    config::{
        self,
        flags::ConfigArguments,
        problem::Summary,
        settings::{Dns, Settings, Slot},
    },
    control::dns::zone::Zone,
};

/// The port that devices ask on; they can't be told another.
const DNS_PORT: u16 = 53;

/// Arguments of `m2u dns`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print what an operator's own DNS server needs to know of m2u's names
    #[command(after_help = SNIPPET_EXAMPLES)]
    Snippet(SnippetArguments),
}

#[derive(Debug, clap::Args)]
struct SnippetArguments {
    /// Which configuration the names come from.
    #[command(flatten)]
    config: ConfigArguments,

    /// For which server
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        help_heading = "What to print"
    )]
    format: Format,

    /// What the names resolve to, such as 10.8.0.2, or m2u2=10.8.0.3 for one of them; may repeat
    /// [default: what the section dns says]
    #[arg(long, value_name = "[SLOT=]ADDRESS", value_parser = resolution)]
    #[arg(help_heading = "What to print")]
    address: Vec<Resolution>,

    /// DNS server that OpenVPN tells devices to ask; may repeat [default: where the section dns listens]
    #[arg(long, value_name = "ADDRESS", value_parser = config::resolved_address)]
    #[arg(help_heading = "What to print")]
    server: Vec<IpAddr>,
}

const SNIPPET_EXAMPLES: &str = "\
Examples:
  m2u dns snippet --format dnsmasq --address 10.8.0.2 > /etc/dnsmasq.d/m2u.conf
  m2u dns snippet --format unbound > /etc/unbound/unbound.conf.d/m2u.conf
  m2u dns snippet --format coredns --address 10.8.0.2 --address m2u2=10.8.0.3
  m2u dns snippet --format openvpn --server 10.8.0.1 >> /etc/openvpn/server/hub.conf

The names are m2u, and m2uN of every slot that some account uses, bare and with the domain. Print
and load it again when another slot comes into use. No other name is touched.

Exit codes: 0 printed, 1 the configuration is refused or an address is missing, 2 wrong usage.";

/// An address of all names, or of those of one slot.
type Resolution = (Option<Slot>, IpAddr);

fn resolution(text: &str) -> Result<Resolution, String> {
    match text.split_once('=') {
        Some((slot, address)) => Ok((
            Some(config::slot(slot)?),
            config::resolved_address(address)?,
        )),
        None => Ok((None, config::resolved_address(text)?)),
    }
}

/// What is not known, and no snippet can do without.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    /// What the names resolve to; perhaps this address, at which devices are listened for.
    Addresses(Option<IpAddr>),
    /// Which server devices shall ask.
    Server,
    /// How devices could ask a server at another port than theirs.
    Port(SocketAddr),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(listen) => {
                let example = listen.unwrap_or(IpAddr::from([10, 8, 0, 2]));
                write!(
                    f,
                    "there is no [dns] that says what the names resolve to; say it with --address, \
                     such as --address {example}, or write the section"
                )
            }
            Self::Server => f.write_str(
                "there is no [dns] that listens; name the DNS server that devices shall ask with \
                 --server, such as --server 10.8.0.1",
            ),
            Self::Port(address) => write!(
                f,
                "dns.listen has {address}, and devices ask on port {DNS_PORT} only; listen there, or \
                 name another DNS server with --server"
            ),
        }
    }
}

/// Prints a snippet: 0 printed, 1 the configuration is refused or something is missing.
pub fn execute(arguments: Arguments) -> ExitCode {
    let Command::Snippet(arguments) = arguments.command;
    let settings = match arguments.config.load() {
        Ok(settings) => settings,
        Err(problems) => {
            eprint!("{}", Summary(&problems));
            return ExitCode::FAILURE;
        }
    };
    match arguments.render(&settings) {
        Ok(text) => print(&text),
        Err(missing) => {
            eprintln!("{}: {missing}", arguments.config.config.display());
            ExitCode::FAILURE
        }
    }
}

impl SnippetArguments {
    fn render(&self, settings: &Settings) -> Result<String, Missing> {
        let domain = settings.domain.as_deref();
        match self.format {
            Format::Dnsmasq => Ok(snippet::dnsmasq(&self.zone(settings)?)),
            Format::Unbound => Ok(snippet::unbound(&self.zone(settings)?)),
            Format::Coredns => Ok(snippet::coredns(&self.zone(settings)?)),
            Format::Openvpn => Ok(snippet::openvpn(domain, &self.servers(settings)?)),
        }
    }

    /// The names, with the addresses that flags give them, else the configuration.
    fn zone(&self, settings: &Settings) -> Result<Zone, Missing> {
        let shared = self.address.iter().filter(|(slot, _)| slot.is_none());
        let mut dns = Dns {
            addresses: shared.map(|(_, address)| *address).collect(),
            ..settings.dns.clone().unwrap_or_default()
        };
        if dns.addresses.is_empty() {
            let written = settings.dns.as_ref().map(|dns| dns.addresses.clone());
            dns.addresses = written.ok_or_else(|| Missing::Addresses(specific(settings)))?;
        }
        let own = || {
            self.address
                .iter()
                .filter_map(|(slot, ip)| Some((*slot.as_ref()?, *ip)))
        };
        for (slot, _) in own() {
            dns.slots.remove(&slot);
        }
        for (slot, address) in own() {
            dns.slots.entry(slot).or_default().push(address);
        }
        let slots = settings.slots().chain(own().map(|(slot, _)| slot));
        Ok(Zone::build(settings.domain.as_deref(), slots, &dns))
    }

    /// The DNS servers that devices shall ask.
    fn servers(&self, settings: &Settings) -> Result<Vec<IpAddr>, Missing> {
        if !self.server.is_empty() {
            return Ok(self.server.clone());
        }
        let dns = settings.dns.as_ref().ok_or(Missing::Server)?;
        let server = |address: &SocketAddr| match address.port() {
            DNS_PORT => Ok(address.ip()),
            _ => Err(Missing::Port(*address)),
        };
        dns.listen.iter().map(server).collect()
    }
}

/// An address at which devices are listened for, if one is told apart.
fn specific(settings: &Settings) -> Option<IpAddr> {
    let mut addresses = settings.listen.iter().map(|listen| listen.address.ip());
    addresses.find(|address| !address.is_unspecified())
}
