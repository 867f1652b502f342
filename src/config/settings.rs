//! The settings as used: checked, complete, with every default filled in.
//!
//! Nothing here reads files or knows TOML; `document` turns a file into these.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::problem::Problem;
pub use super::{
    common_names::{CommonNames, NameList, Pattern},
    fleet::{Device, Fleet},
};
use crate::limits;

/// Everything `m2u run` needs, from file and flags.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The domain behind `m2u.`: lower-case, no dot at either end; `None` accepts bare names only.
    pub domain: Option<String>,
    /// Sockets that devices reach; never empty.
    pub listen: Vec<Listen>,
    /// Durations that apply where a server does not set its own.
    pub timeouts: Timeouts,
    /// Sizes and counts that apply where a server does not set its own.
    pub limits: Limits,
    /// Where exchanges are logged; `None`: nowhere.
    pub access_log: Option<AccessLog>,
    /// Where m2u's own names are answered for; `None`: nowhere.
    pub dns: Option<Dns>,
    /// Networks that upstream addresses may lie in although they are refused by default.
    pub allow_networks: Vec<IpNet>,
    /// Where leases come from beside the file; `None`: from nowhere.
    pub leases: Option<Leases>,
    /// OpenVPN servers whose clients are devices, in the file's order.
    pub openvpn: Vec<Hub>,
    /// Accounts in the file's order.
    pub accounts: Vec<Account>,
    /// Engine tuning, from flags.
    pub tuning: Tuning,
    /// Problems that the gateway can run with: client certificates that are out of date.
    pub doubts: Vec<Problem>,
}

impl Settings {
    /// The slots in which some account has a server; a slot of several comes several times.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        let servers = self.accounts.iter().flat_map(|account| &account.servers);
        servers.map(|server| server.slot)
    }

    /// What there is to serve.
    pub fn inventory(&self) -> Inventory {
        let accounts = self.accounts.iter();
        Inventory {
            accounts: self.accounts.len(),
            servers: accounts.clone().map(|account| account.servers.len()).sum(),
            devices: accounts.map(|account| account.devices.len()).sum(),
        }
    }
}

/// How much there is to serve, for people: `1 account, 2 servers, 3 devices`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inventory {
    /// Customers.
    pub accounts: usize,
    /// Destinations of all accounts.
    pub servers: usize,
    /// Devices of all accounts.
    pub devices: usize,
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        let (accounts, servers, devices) = (self.accounts, self.servers, self.devices);
        write!(f, "{accounts} account{}, ", plural(accounts))?;
        write!(f, "{servers} server{}, ", plural(servers))?;
        write!(f, "{devices} device{}", plural(devices))
    }
}

/// One socket that devices reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Address and port.
    pub address: SocketAddr,
    /// The slot of requests that name no host.
    pub slot: Slot,
    /// Whose leases are known here, beside those of no scope.
    pub scope: Option<Box<str>>,
    /// Peers whose PROXY protocol header is required and believed.
    pub proxy_protocol_from: Vec<IpNet>,
}

/// Longest durations of each phase of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Whole request head, from its first byte.
    pub head: Duration,
    /// Between two pieces of a body, either side.
    pub body: Duration,
    /// TCP and TLS together.
    pub connect: Duration,
    /// From the request's last byte to the answer's head.
    pub response: Duration,
    /// Idle downstream connection.
    pub keepalive: Duration,
    /// Idle upstream connection.
    pub pool: Duration,
    /// What is under way at shutdown.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            connect: Duration::from_secs(5),
            response: Duration::from_secs(30),
            keepalive: Duration::from_secs(75),
            pool: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// Largest sizes and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request or answer head.
    pub head_bytes: usize,
    /// Fields of a head.
    pub fields: usize,
    /// Open downstream connections, all cores together.
    pub connections: usize,
    /// Open downstream connections of one source address, all cores together.
    pub connections_per_address: usize,
    /// In force for servers that do not say otherwise.
    pub each_server: ServerLimits,
}

/// Sizes and counts that may differ from server to server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Bytes of a request body.
    pub body_bytes: u64,
    /// Idle upstream connections, each core.
    pub pool_per_server: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: limits::HEAD_BYTES_DEFAULT,
            fields: limits::FIELDS_DEFAULT,
            connections: limits::CONNECTIONS_DEFAULT,
            connections_per_address: limits::CONNECTIONS_PER_ADDRESS_DEFAULT,
            each_server: ServerLimits::default(),
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            body_bytes: limits::BODY_BYTES_DEFAULT,
            pool_per_server: limits::POOL_PER_SERVER_DEFAULT,
        }
    }
}

/// How leases come and go while the gateway runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leases {
    /// The Unix socket of `m2u lease`; `None`: there is no feed.
    pub socket: Option<PathBuf>,
    /// Who may use it beside root and the user that m2u runs as.
    pub users: Vec<FeedUser>,
    /// Where leases survive a restart; `None`: nowhere.
    pub journal: Option<PathBuf>,
    /// How old the news of a lease may be that nobody has confirmed since the start.
    pub unconfirmed: Duration,
}

/// A user of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedUser {
    /// As the file names it.
    pub name: Box<str>,
    /// Its number.
    pub uid: u32,
}

/// Where and how exchanges are logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// File, resolved against the configuration's folder; `-` is standard output.
    pub path: PathBuf,
    /// One line an exchange.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Columns for people.
    Text,
}

/// Where questions for m2u's own names are answered, and with which addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Sockets that devices ask, by UDP and TCP; never empty.
    pub listen: Vec<SocketAddr>,
    /// What every name resolves to; never empty, IPv4-mapped ones as IPv4.
    pub addresses: Vec<IpAddr>,
    /// What the names of single slots resolve to instead; none of the lists is empty.
    pub slots: BTreeMap<Slot, Vec<IpAddr>>,
}

/// An OpenVPN server whose clients are devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Its name, which no other hub has.
    pub name: Box<str>,
    /// Whose listeners its clients are known to; `None`: all know them.
    pub scope: Option<Box<str>>,
    /// Where it says who is connected.
    pub status: HubStatus,
    /// How often it is asked.
    pub poll: Duration,
    /// Whose device a client is.
    pub common_names: CommonNames,
}

impl Hub {
    /// What the source of a hub's leases begins with; the hub's name follows.
    pub const SOURCE_PREFIX: &str = "openvpn:";

    /// What its leases have as their source.
    pub fn source(&self) -> String {
        format!("{}{}", Self::SOURCE_PREFIX, self.name)
    }
}

/// Where a hub says who is connected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HubStatus {
    /// In the file that it writes (`status`, `status-version 3`).
    File(PathBuf),
    /// On its management interface, a Unix socket.
    Socket(PathBuf),
    /// Likewise, at a host and port.
    Address(Box<str>, u16),
}

/// A customer: devices that send and servers that receive.
#[derive(Debug, Clone)]
pub struct Account {
    /// The value stamped as `X_Talk2M_Account`.
    pub reference: String,
    /// Off: the identity fields are sent with empty values.
    pub expose_identity: bool,
    /// Destinations, one a slot.
    pub servers: Vec<Server>,
    /// Devices of the file and of `devices.csv`.
    pub devices: Fleet,
}

/// One configured destination of an account.
#[derive(Debug, Clone)]
pub struct Server {
    /// The name it is reached by.
    pub slot: Slot,
    /// Where requests go.
    pub url: ServerUrl,
    /// Central Basic login; replaces the device's own `Authorization`.
    pub login: Option<Login>,
    /// Certificate shown to the server: its own, else the gateway's, else none.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// Roots that sign the server's certificate; `None`: the system's.
    pub trust: Option<Arc<Trust>>,
    /// What the authorities of the server's certificate have revoked; `None`: not looked at.
    pub revoked: Option<Arc<RevocationLists>>,
    /// Send `X-Talk2M-…` beside `X_Talk2M_…`.
    pub hyphen_aliases: bool,
    /// Send the device's address as `Forwarded: for=…` (RFC 7239).
    pub forwarded: bool,
    /// What a device sees when its request could not be delivered.
    pub on_failure: OnFailure,
    /// Connect here instead of resolving the URL's host; empty: resolve.
    pub addresses: Vec<SocketAddr>,
    /// In force for this server.
    pub timeouts: Timeouts,
    /// In force for this server.
    pub limits: ServerLimits,
}

/// Slot of a server: `m2u`, `m2u2` … `m2u999`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot that is named `m2u`.
    pub const FIRST: Slot = Slot(1);

    /// Reads a slot's name in any case (specification, section 3).
    ///
    /// `None` for anything else: `m2u1`, a leading zero, a number past 999.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let (word, digits) = name.split_at_checked(3)?;
        if !word.eq_ignore_ascii_case(b"m2u") {
            return None;
        }
        match digits {
            [] => Some(Self::FIRST),
            [b'1'..=b'9', ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => {
                let number = digits
                    .iter()
                    .fold(0, |sum, d| sum * 10 + u16::from(d - b'0'));
                (number > 1).then_some(Self(number))
            }
            _ => None,
        }
    }

    /// 1 for `m2u`, N for `m2uN`.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("m2u"),
            number => write!(f, "m2u{number}"),
        }
    }
}

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// The scheme's name, lower-case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port of a URL that names none.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The address of a server, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Host as the URL spells it, lower-case; an IPv6 literal keeps its brackets.
    pub host: String,
    /// Port, the scheme's own if the URL names none.
    pub port: u16,
    /// Begins with `/` and does not end with one; empty for the root.
    pub base_path: String,
}

impl ServerUrl {
    /// `host` or `host:port`, as a `Host` field carries it.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            self.scheme.as_str(),
            self.authority(),
            self.base_path
        )
    }
}

/// A central Basic login (RFC 7617). Its `Debug` shows the user name only.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name; holds no colon.
    pub username: String,
    /// Password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A certificate chain with its private key, checked to belong together. `Debug` shows no key.
pub struct ClientCertificate {
    /// The file the chain came from, for messages.
    pub path: PathBuf,
    /// The file the key came from, for messages.
    pub key_path: PathBuf,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Unencrypted key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Roots of a server's own certificate authority.
#[derive(Debug)]
pub struct Trust {
    /// The file the roots came from, for messages.
    pub path: PathBuf,
    /// At least one certificate.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Certificate revocation lists (RFC 5280 §5).
pub struct RevocationLists {
    /// The file the lists came from, for messages.
    pub path: PathBuf,
    /// At least one list; each can be parsed, and no two are for the same certificates.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// SHA-256 over all of them.
    pub digest: [u8; 32],
}

impl fmt::Debug for RevocationLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationLists")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// What a device sees when its request could not be delivered (specification, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The table's 5xx.
    Respond,
    /// A closed connection, for connectors that delete their payload at any answer.
    Close,
}

/// Engine tuning; each has a flag of `m2u run`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Cores that get a worker, by number; empty: every core this process may use.
    pub cores: Vec<usize>,
    /// Entries of each core's submission ring.
    pub ring_entries: u32,
    /// `IORING_SETUP_DEFER_TASKRUN`; falls back where the kernel lacks it.
    pub defer_taskrun: bool,
    /// Bytes of a relay buffer.
    pub relay_bytes: usize,
    /// Bytes of a relay buffer where the server's side is TLS and a body's first megabyte is over.
    pub tls_relay_bytes: usize,
    /// Bytes of a plain body still to come from which on it is moved inside the kernel.
    pub splice_bytes: u64,
    /// Idle upstream connections of one core, all servers together.
    pub pool_per_core: usize,
    /// A name server to ask instead of the system's.
    pub nameserver: Option<SocketAddr>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            cores: Vec::new(),
            ring_entries: limits::RING_ENTRIES_DEFAULT,
            defer_taskrun: true,
            relay_bytes: limits::RELAY_BYTES_DEFAULT,
            tls_relay_bytes: limits::TLS_RELAY_BYTES_DEFAULT,
            splice_bytes: limits::SPLICE_BYTES_DEFAULT,
            pool_per_core: limits::POOL_PER_CORE_MAX,
            nameserver: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_m2u_and_m2u2_to_m2u999_only() {
        for (name, number) in [
            ("m2u", 1),
            ("M2U", 1),
            ("m2u2", 2),
            ("m2U10", 10),
            ("m2u999", 999),
        ] {
            assert_eq!(
                Slot::parse(name.as_bytes()).map(Slot::number),
                Some(number),
                "{name}"
            );
        }
        for name in [
            "", "m2", "m2u1", "m2u0", "m2u02", "m2u1000", "m2u+2", "m2u2x", "xm2u",
        ] {
            assert_eq!(Slot::parse(name.as_bytes()), None, "{name}");
        }
    }
}
