//! What each subcommand of `m2u lease` asks for, and what it makes of the answer.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Deserialize;

use super::{
    set::{self, Set},
    shown,
    wire::Wire,
    wireguard::{self, Owners, Peer},
};
use crate::{
    config,
    control::lease::protocol::{self, Event, Listed, Op, Reply, Request},
    limits,
};

/// Stands for standard input where a file is asked for.
const STANDARD_INPUT: &str = "-";

/// Arguments of `m2u lease`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say that an address or a prefix speaks for a device
    Add(Add),
    /// Say that it does so no longer
    Release(Release),
    /// Put a whole set in the place of all that a source has said
    #[command(after_help = SYNC_HELP)]
    Sync(Sync),
    /// Show the leases
    #[command(after_help = LIST_HELP)]
    List(List),
    /// Show changes as they come, until interrupted
    Watch(Watch),
    /// Put the addresses of a VPN's peers in the place of all that a source has said
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
}

const SYNC_HELP: &str = "\
The file is CSV. Its first line names the columns: address,account,device, and if need be session,
scope and expires_in (seconds). All of it takes effect at once, or nothing: leases of the source
that are not in it end. A file with nothing but the first line ends them all.";

const LIST_HELP: &str = "\
State: confirmed; unconfirmed, remembered from before a restart and served for a while; suspended,
likewise for too long, answered 503; disputed, sources do not agree, answered 403. Times are UTC.";

const IMPORT_HELP: &str = "\
The text is what \"wg show all allowed-ips\" prints, or \"wg show wg0 allowed-ips\". Text that holds
private keys, such as a dump or a file of wg-quick, is refused. The CSV file's first line is
public_key,account,device.";

/// Which gateway, and how long it may take.
#[derive(Debug, Args)]
struct Gateway {
    /// The gateway's socket; no configuration is read then
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,

    /// Configuration whose leases.socket it is
    #[arg(long, short, value_name = "FILE", default_value = "m2u.toml")]
    config: PathBuf,

    /// How long everything may take together
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = config::duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
struct Add {
    /// Address or prefix that speaks for the device, such as 10.8.0.7 or 192.168.7.0/24; of several,
    /// all are added or none
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = config::network, required = true)]
    networks: Vec<IpNet>,

    /// Ref of the device's account
    #[arg(long, value_name = "REF", requires = "device", value_parser = config::identity_value)]
    #[arg(required_unless_present = "common_name")]
    account: Option<String>,

    /// Name of the device
    #[arg(long, value_name = "NAME", requires = "account", value_parser = config::identity_value)]
    #[arg(required_unless_present = "common_name")]
    device: Option<String>,

    /// In place of both: the common name in the device's certificate
    #[arg(long, value_name = "NAME", conflicts_with_all = ["account", "device"])]
    #[arg(value_parser = word)]
    common_name: Option<String>,

    /// Who says so
    #[arg(long, value_name = "NAME", default_value = "manual", value_parser = word)]
    source: String,

    /// The visit that the lease belongs to; a release must name the same
    #[arg(long, value_name = "NAME", value_parser = word)]
    session: Option<String>,

    /// The run of the source; a greater one ends all that was said in earlier runs
    #[arg(long, value_name = "NUMBER")]
    epoch: Option<u64>,

    /// Let it hold for listeners of this scope alone
    #[arg(long, value_name = "NAME", value_parser = word)]
    scope: Option<String>,

    /// Let it end by itself after so long, in whole seconds, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    expires: Option<u32>,

    /// Take the address over from another device of the same source
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Debug, Args)]
struct Release {
    /// Address or prefix, as it was added; without one, all that the session has
    #[arg(value_name = "ADDRESS|PREFIX", value_parser = config::network)]
    #[arg(required_unless_present = "session")]
    network: Option<IpNet>,

    /// Who said so
    #[arg(long, value_name = "NAME", default_value = "manual", value_parser = word)]
    source: String,

    /// The visit that the lease belongs to; that of another one is left alone
    #[arg(long, value_name = "NAME", value_parser = word)]
    session: Option<String>,

    /// Release it whatever its session is
    #[arg(long, conflicts_with = "session")]
    any_session: bool,

    /// The run of the source
    #[arg(long, value_name = "NUMBER")]
    epoch: Option<u64>,

    /// The scope that it was added for
    #[arg(long, value_name = "NAME", value_parser = word, requires = "network")]
    scope: Option<String>,

    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Debug, Args)]
struct Sync {
    /// The set, CSV; "-" reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Whose set it is
    #[arg(long, value_name = "NAME", value_parser = word)]
    source: String,

    /// The run of the source; what is older than the newest is refused
    #[arg(long, value_name = "NUMBER")]
    epoch: Option<u64>,

    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Debug, Args)]
struct List {
    /// Only what this source has said
    #[arg(long, value_name = "NAME", value_parser = word)]
    source: Option<String>,

    /// Only leases that hold this address or prefix, or lie in it
    #[arg(long, value_name = "ADDRESS|PREFIX", value_parser = config::network)]
    address: Option<IpNet>,

    /// Print the feed's own lines, one JSON object each
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Debug, Args)]
struct Watch {
    /// Print the feed's own lines, one JSON object each
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Debug, Args)]
struct Import {
    /// What "wg show all allowed-ips" prints; "-" reads standard input
    #[arg(long, value_name = "FILE")]
    wireguard: PathBuf,

    /// Which device has which public key, CSV; "-" reads standard input
    #[arg(long, value_name = "FILE")]
    peers: PathBuf,

    /// Whose set it is
    #[arg(long, value_name = "NAME", default_value = "wireguard", value_parser = word)]
    source: String,

    /// Let it hold for listeners of this scope alone
    #[arg(long, value_name = "NAME", value_parser = word)]
    scope: Option<String>,

    /// Leave peers out that the CSV file does not have, instead of refusing everything
    #[arg(long)]
    skip_unknown: bool,

    #[command(flatten)]
    gateway: Gateway,
}

/// Asks the gateway: 0 done, 1 refused or not reached, with the reason on standard error.
pub fn execute(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Add(add) => add.execute(),
        Command::Release(release) => release.execute(),
        Command::Sync(sync) => sync.execute(),
        Command::List(list) => list.execute(),
        Command::Watch(watch) => watch.execute(),
        Command::Import(import) => import.execute(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            tell(&reason);
            ExitCode::FAILURE
        }
    }
}

impl Gateway {
    fn connect(&self) -> Result<Wire, String> {
        let path = match &self.socket {
            Some(path) => path.clone(),
            None => self.configured()?,
        };
        Wire::connect(&path, self.timeout).map_err(|error| error.to_string())
    }

    fn configured(&self) -> Result<PathBuf, String> {
        let file = self.config.display();
        match config::feed_socket(&self.config) {
            Ok(Some(path)) => Ok(path),
            Ok(None) => Err(format!(
                "{file} names no leases.socket; write one there, or give the gateway's with --socket"
            )),
            Err(problems) => {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                let problems = problems.join("\n");
                Err(format!(
                    "{problems}; or give the gateway's socket with --socket"
                ))
            }
        }
    }

    /// Has one request done.
    fn ask(&self, request: &Request) -> Result<Reply, String> {
        let mut wire = self.connect()?;
        send(&mut wire, request)?;
        let reply = wire.reply().map_err(|error| error.to_string())?;
        done(reply)
    }

    /// Puts a set in the place of all that `source` has said, and tells how many leases that makes.
    fn put(&self, set: &Set, source: &str, epoch: Option<u64>) -> Result<(), String> {
        let mut wire = self.connect()?;
        let sent = wire.send(&set.requests(source, epoch));
        let reply = sent.and_then(|()| wire.reply());
        let reply = reply.map_err(|error| error.to_string())?;
        let place = reply.line.map(|number| set.place(number));
        let reply = done(reply);
        let reply = reply.map_err(|reason| format!("{}{reason}", place.unwrap_or_default()))?;
        let count = reply.count.unwrap_or_default();
        let leases = if count == 1 { "lease" } else { "leases" };
        print(&format!("{count} {leases} of {source}\n"))
    }
}

impl Add {
    fn execute(self) -> Result<(), String> {
        let (address, addresses) = match self.networks[..] {
            [network] => (Some(protocol::written(network)), None),
            ref networks => {
                let addresses = networks.iter().map(|network| protocol::written(*network));
                (None, Some(addresses.collect()))
            }
        };
        let request = Request {
            op: Some(Op::Add),
            address,
            addresses,
            account: self.account,
            device: self.device,
            common_name: self.common_name,
            source: Some(self.source),
            session: self.session,
            epoch: self.epoch,
            scope: self.scope,
            expires_in: self.expires,
            replace: self.replace,
            ..Request::default()
        };
        self.gateway.ask(&request).map(drop)
    }
}

impl Release {
    fn execute(self) -> Result<(), String> {
        let request = Request {
            op: Some(Op::Release),
            address: self.network.map(protocol::written),
            source: Some(self.source),
            session: self.session,
            any_session: self.any_session,
            epoch: self.epoch,
            scope: self.scope,
            ..Request::default()
        };
        self.gateway.ask(&request).map(drop)
    }
}

impl Sync {
    fn execute(self) -> Result<(), String> {
        let set = Set::read(&name(&self.file), &read(&self.file)?)?;
        self.gateway.put(&set, &self.source, self.epoch)
    }
}

impl List {
    fn execute(self) -> Result<(), String> {
        /// What comes in answer to a request to list.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Answer {
            Lease(Listed<'static>),
            Reply(Reply),
        }

        let request = Request {
            op: Some(Op::List),
            source: self.source,
            address: self.address.map(protocol::written),
            ..Request::default()
        };
        let mut wire = self.gateway.connect()?;
        send(&mut wire, &request)?;
        // Nothing is printed before all has come: half a list could be taken for a whole one.
        let (mut lines, mut leases) = (Vec::new(), Vec::new());
        loop {
            let line = wire.line().map_err(|error| error.to_string())?;
            match Wire::read(&line).map_err(|error| error.to_string())? {
                Answer::Reply(reply) => {
                    done(reply)?;
                    break;
                }
                Answer::Lease(_) if self.json => lines.extend(line),
                Answer::Lease(Listed { lease }) => leases.push(lease),
            }
        }
        match self.json {
            true => print_bytes(&lines),
            false => print(&shown::table(&leases)),
        }
    }
}

impl Watch {
    fn execute(self) -> Result<(), String> {
        let request = Request {
            op: Some(Op::Watch),
            ..Request::default()
        };
        let mut wire = self.gateway.connect()?;
        send(&mut wire, &request)?;
        let reply = done(wire.reply().map_err(|error| error.to_string())?)?;
        wire.wait_for_ever();
        // What comes from now on is shown: for whoever waits for that.
        let revision = reply.revision.unwrap_or_default();
        tell(&format!("watching from revision {revision} on"));
        if !self.json {
            print(&shown::event_titles())?;
        }
        loop {
            let line = wire.line().map_err(|error| error.to_string())?;
            let event: Event<'_> = match Wire::read(&line) {
                Ok(event) => event,
                // The gateway may end it with a reason.
                Err(strange) => {
                    let reply = Wire::read(&line).map_err(|_| strange.to_string())?;
                    return done(reply).map(drop);
                }
            };
            match self.json {
                true => print_bytes(&line)?,
                false => print(&shown::event(&event))?,
            }
        }
    }
}

impl Import {
    fn execute(self) -> Result<(), String> {
        let file = name(&self.wireguard);
        let text = read(&self.wireguard)?;
        let text = str::from_utf8(&text)
            .map_err(|_| format!("{file} is no text of \"wg show all allowed-ips\""))?;
        let peers = wireguard::parse(text).map_err(|fault| format!("{file} {fault}"))?;
        let list = name(&self.peers);
        let owners = Owners::read(&list, &read(&self.peers)?)?;
        self.check_known(&file, &list, &peers, &owners)?;
        let mut set = Set::of(&file);
        for peer in &peers {
            let Some(owner) = owners.owner(peer.key) else {
                continue;
            };
            for network in &peer.networks {
                let request = Request {
                    account: Some(owner.account.clone()),
                    device: Some(owner.device.clone()),
                    scope: self.scope.clone(),
                    ..Request::default()
                };
                let line = peer.line;
                set.push(line, *network, request)
                    .map_err(|reason| format!("{file}:{line}: {reason}"))?;
            }
        }
        self.gateway.put(&set, &self.source, None)
    }

    /// Refuses peers with addresses that are nobody's, or tells of each that is left out.
    fn check_known(
        &self,
        file: &str,
        list: &str,
        peers: &[Peer<'_>],
        owners: &Owners,
    ) -> Result<(), String> {
        let is_unknown =
            |peer: &&Peer<'_>| !peer.networks.is_empty() && owners.owner(peer.key).is_none();
        let mut unknown = peers.iter().filter(is_unknown).peekable();
        let Some(first) = unknown.peek() else {
            return Ok(());
        };
        if !self.skip_unknown {
            let (line, key) = (first.line, first.key);
            let others = match unknown.count() - 1 {
                0 => String::new(),
                others => format!(" (nor {others} more)"),
            };
            return Err(format!(
                "{file}:{line}: {list} does not have the peer {key}{others}; add it there, or leave \
                 such peers out with --skip-unknown"
            ));
        }
        for Peer { line, key, .. } in unknown {
            tell(&format!(
                "{file}:{line}: left out: {list} does not have the peer {key}"
            ));
        }
        Ok(())
    }
}

fn send(wire: &mut Wire, request: &Request) -> Result<(), String> {
    let sent = wire.send(&set::line_of(request));
    sent.map_err(|error| error.to_string())
}

/// A reply that says "done"; what another one says is the reason, as it is.
fn done(reply: Reply) -> Result<Reply, String> {
    match (reply.ok, reply.reason) {
        (true, reason) => Ok(Reply { reason, ..reply }),
        (false, Some(reason)) => Err(reason),
        (false, None) => Err("m2u refuses, and gives no reason".to_owned()),
    }
}

/// The bytes of a file, or of standard input.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let bytes_max = limits::DEVICES_BYTES_MAX;
    let mut bytes = Vec::new();
    let taken = match path == Path::new(STANDARD_INPUT) {
        true => io::stdin().take(bytes_max + 1).read_to_end(&mut bytes),
        false => File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_end(&mut bytes)),
    };
    match taken {
        Ok(_) if bytes.len() as u64 > bytes_max => {
            Err(format!("{} is larger than {bytes_max} bytes", name(path)))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("{} can't be read: {error}", name(path))),
    }
}

fn name(path: &Path) -> String {
    match path == Path::new(STANDARD_INPUT) {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

/// Tells people. Whether they listen makes no difference to what has been done.
fn tell(message: &str) {
    let _ = writeln!(io::stderr().lock(), "m2u lease: {message}");
}

fn print(text: &str) -> Result<(), String> {
    print_bytes(text.as_bytes())
}

/// Prints at once; a reader that has seen enough (`| head`) ends the command in order.
fn print_bytes(bytes: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        done => done.map_err(|error| format!("standard output cannot be written: {error}")),
    }
}

/// A name of a source, a session or a scope.
fn word(text: &str) -> Result<String, String> {
    protocol::check_word("it", text).map(|()| text.to_owned())
}

/// A duration of whole seconds.
fn seconds(text: &str) -> Result<u32, String> {
    let duration = config::duration(text)?;
    let seconds = u32::try_from(duration.as_secs()).ok();
    seconds
        .filter(|_| duration.subsec_nanos() == 0)
        .ok_or_else(|| format!("{text:?} is no number of whole seconds; write \"10s\" or \"10m\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_expire_after_whole_seconds() {
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("2000ms"), Ok(2));
        assert!(seconds("1500ms").is_err_and(|message| message.contains("whole seconds")));
        assert!(seconds("10").is_err());
    }
}
