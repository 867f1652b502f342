//! A fresh connection to a server: TCP, then TLS, over every address the control plane knows.
//!
//! Resolves nothing. Refuses addresses inside the operator's own network after resolution, so that
//! no name can be made to point there (specification, section 3).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use ipnet::IpNet;

use super::pool::{Connection, Pools};
use crate::{
    engine::net::{
        deadline::Deadlines,
        stream::{self, Stream, StreamError},
        tls,
    },
    limits,
    snapshot::{Snapshot, route::Upstream},
};

/// The shortest time that one of several addresses is given to answer at all.
const SHARE_MIN: Duration = Duration::from_millis(250);

/// Why there is no connection, worst understood first: of several addresses' failures the one that
/// got furthest is told.
#[derive(Debug)]
pub enum ConnectError {
    /// The name has no addresses; the control plane says why.
    Unresolved,
    /// Every address lies in a network that upstream addresses are refused in.
    Prohibited(SocketAddr),
    /// No descriptor, no port or no memory is left for it.
    Exhausted,
    /// No way there, or the kernel gave up.
    Unroutable(io::Error),
    /// The server's host said no.
    Refused,
    /// Nobody answered in time.
    TimedOut,
    /// The connection broke during the TLS handshake.
    Terminated,
    /// TLS failed: the certificate, or the server's alert.
    Tls(rustls::Error),
}

impl ConnectError {
    /// What it means that connecting to `address` failed.
    fn at(address: SocketAddr, error: StreamError) -> Self {
        match error.into() {
            // All ports for this address are taken; or, for IPv6, this host has no address to speak from.
            Self::Unroutable(error)
                if address.is_ipv4() && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) =>
            {
                Self::Exhausted
            }
            failure => failure,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Unresolved => 0,
            Self::Prohibited(_) => 1,
            Self::Exhausted => 2,
            Self::Unroutable(_) => 3,
            Self::Refused => 4,
            Self::TimedOut => 5,
            Self::Terminated => 6,
            Self::Tls(_) => 7,
        }
    }
}

impl From<StreamError> for ConnectError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::TimedOut => Self::TimedOut,
            StreamError::Tls(error) => Self::Tls(error),
            StreamError::Truncated => Self::Terminated,
            StreamError::Io(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Self::Refused,
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::WriteZero => Self::Terminated,
                io::ErrorKind::TimedOut => Self::TimedOut,
                _ => match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        Self::Exhausted
                    }
                    _ => Self::Unroutable(error),
                },
            },
        }
    }
}

/// Connects to `upstream`: each address in order until one speaks, all within `timeout`. One that
/// lately did not answer at all comes last, so that it does not cost every device its patience.
///
/// # Errors
/// [`ConnectError`] of the address that got furthest; 502, or 504 if it was too slow.
pub async fn connect(
    upstream: &Upstream,
    snapshot: &Snapshot,
    pools: &Pools,
    timeout: Duration,
) -> Result<Connection, ConnectError> {
    let deadlines = pools.deadlines();
    let begun = deadlines.now_ms();
    let mut worst = ConnectError::Unresolved;
    let mut fail = |failure: ConnectError| {
        if failure.rank() >= worst.rank() {
            worst = failure;
        }
    };
    // Decided before the first attempt: one that fails now must not come twice.
    let (mut lively, mut silent) = (Vec::new(), Vec::new());
    for address in upstream.addresses.iter().copied() {
        match is_permitted(address.ip(), snapshot) {
            true if pools.is_silent(address) => silent.push(address),
            true => lively.push(address),
            false => fail(ConnectError::Prohibited(address)),
        }
    }
    let count = lively.len() + silent.len();
    for (tried, address) in lively.into_iter().chain(silent).enumerate() {
        let spent = Duration::from_millis(deadlines.now_ms() - begun);
        let left = timeout.saturating_sub(spent);
        if left.is_zero() {
            break;
        }
        match connect_to(address, upstream, deadlines, left, (count - tried) as u32).await {
            Ok(stream) => {
                let retires = deadlines.due_in(limits::UPSTREAM_CONNECTION_AGE_MAX);
                return Ok(Connection {
                    stream,
                    address,
                    retires,
                });
            }
            Err(error) => {
                let failure = ConnectError::at(address, error);
                if matches!(failure, ConnectError::TimedOut) {
                    pools.note_silent(address);
                }
                fail(failure);
            }
        }
    }
    Err(worst)
}

/// Connects to the first of `count` addresses that have `left` between them. A host that does not answer
/// takes its share of that; one that does has half of what is left for TLS, whose way there and back may
/// be long, or all of it if it is the last.
async fn connect_to(
    address: SocketAddr,
    upstream: &Upstream,
    deadlines: &Rc<Deadlines>,
    left: Duration,
    count: u32,
) -> Result<Stream, StreamError> {
    let begun = deadlines.now_ms();
    let share = (left / count).max(SHARE_MIN).min(left);
    let socket = stream::connect(address, deadlines, deadlines.due_in(share)).await?;
    match &upstream.tls {
        None => Ok(Stream::plain(socket, deadlines)),
        Some(tls) => {
            let spent = Duration::from_millis(deadlines.now_ms() - begun);
            let left = left.saturating_sub(spent) / count.min(2);
            let due = deadlines.due_in(left);
            let (config, name) = (tls.config.clone(), tls.name.clone());
            tls::connect(socket, deadlines, config, name, due, left).await
        }
    }
}

/// Whether requests may be sent to `address`: public, or in a network the operator allows.
///
/// Addresses that devices speak from are refused as well, whatever range they are of.
pub fn is_permitted(address: IpAddr, snapshot: &Snapshot) -> bool {
    let address = address.to_canonical();
    let allowed = |network: &IpNet| network.contains(&address);
    let is_devices = |address| snapshot.identities.has(address);
    snapshot.allow_networks.iter().any(allowed)
        || (is_public(address)
            && !is_devices(address)
            && !v4_inside(address).is_some_and(|inside| is_devices(inside.into())))
}

/// The IPv4 address that a translator or a tunnel would send to in place of `address` (RFC 6052, RFC 3056).
fn v4_inside(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    match address.segments() {
        [0x2002, high, low, ..] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Some(Ipv4Addr::new(a, b, c, d))
        }
        _ => None,
    }
}

/// Whether the Internet at large routes `address` (IANA's special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol_assignments = a == 192 && b == 0 && c == 0;
    let benchmarking = a == 198 && (b == 18 || b == 19);
    !(a == 0
        || a >= 240
        || shared
        || protocol_assignments
        || benchmarking
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inside) = v4_inside(address.into()) {
        return is_public_v4(inside);
    }
    // Only 2000::/3 is handed out.
    match address.segments() {
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::snapshot::{
        identity::IdentityTable,
        route::{AccountId, RouteTable},
    };

    fn snapshot(allowed: &[&str], devices: &[&str]) -> Snapshot {
        let mut identities = IdentityTable::default();
        for network in devices {
            let network = network.parse().expect("network");
            identities
                .insert(network, AccountId(0), "press", "1")
                .expect("free");
        }
        Snapshot {
            identities: identities.into(),
            routes: Arc::new(RouteTable::default()),
            domain: "".into(),
            allow_networks: allowed
                .iter()
                .map(|n| n.parse().expect("network"))
                .collect(),
        }
    }

    #[test]
    fn addresses_inside_the_operators_network_are_refused() {
        let snapshot = snapshot(&[], &["198.51.200.0/24"]);
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "198.51.200.9",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001::1",
            "2001:db8::1",
            "3fff:fff::1",
            "::127.0.0.1",
            "64:ff9b::198.51.200.9",
            "2002:c633:c809::1",
        ] {
            assert!(
                !is_permitted(address.parse().expect("address"), &snapshot),
                "{address}"
            );
        }
        for address in [
            "93.184.216.34",
            "2606:2800::1",
            "64:ff9b::5db8:d822",
            "198.51.201.9",
            "64:ff9b::198.51.201.9",
            "2002:c633:c909::1",
        ] {
            assert!(
                is_permitted(address.parse().expect("address"), &snapshot),
                "{address}"
            );
        }
    }

    #[test]
    fn a_gateway_without_ports_blames_no_server() {
        let none = || io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
        for (address, is_own) in [("192.0.2.7:443", true), ("[2001:db8::7]:443", false)] {
            let address = address.parse().expect("an address");
            let failure = ConnectError::at(address, none().into());
            assert_eq!(
                matches!(failure, ConnectError::Exhausted),
                is_own,
                "{address}"
            );
            assert_eq!(matches!(failure, ConnectError::Unroutable(_)), !is_own);
        }
    }

    #[test]
    fn the_operator_may_allow_a_network() {
        let snapshot = snapshot(&["127.0.0.0/8", "10.8.0.0/24"], &["10.8.0.7/32"]);
        for (address, permitted) in [
            ("127.0.0.9", true),
            ("10.8.0.7", true),
            ("10.9.0.1", false),
            ("::1", false),
        ] {
            let address = address.parse().expect("address");
            assert_eq!(is_permitted(address, &snapshot), permitted, "{address}");
        }
    }
}
