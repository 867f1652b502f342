//! PROXY protocol headers at every cut, and against a reader that knows the two forms by heart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use m2u::{
    engine::http1::proxy_protocol::{self, Parsed},
    limits,
};

/// Panics if a header is read differently in pieces, or names somebody it does not name; answers
/// whether it is whole.
pub fn check(wire: &[u8]) -> bool {
    let wire = &wire[..wire.len().min(2 * limits::PROXY_HEADER_BYTES_MAX)];
    let whole = proxy_protocol::parse(wire);
    for cut in 0..wire.len() {
        match proxy_protocol::parse(&wire[..cut]) {
            Ok(Parsed::Partial) => {}
            early => {
                assert_eq!(early, whole, "cut at {cut}");
                break;
            }
        }
    }
    match whole {
        Ok(Parsed::Complete { source, consumed }) => {
            assert!(consumed <= wire.len().min(limits::PROXY_HEADER_BYTES_MAX));
            let header = &wire[..consumed];
            let expected = match header.first() {
                Some(b'P') => source_of_line(header),
                _ => source_of_binary(header),
            };
            assert_eq!(Some(source), expected);
        }
        Ok(Parsed::Partial) => assert!(wire.len() < limits::PROXY_HEADER_BYTES_MAX),
        Err(_) => {}
    }
    matches!(whole, Ok(Parsed::Complete { .. }))
}

/// Whom a version 1 header names; `None` if it is none.
fn source_of_line(header: &[u8]) -> Option<Option<SocketAddr>> {
    let text = String::from_utf8_lossy(header);
    let text = text.strip_suffix("\r\n")?;
    // What follows that word must be ignored.
    if text.starts_with("PROXY UNKNOWN") {
        return Some(None);
    }
    let parts: Vec<&str> = text.split(' ').collect();
    let (source, destination, ports) = match parts[..] {
        ["PROXY", "TCP4", source, destination, a, b] => {
            let source: Ipv4Addr = source.parse().ok()?;
            let destination: Ipv4Addr = destination.parse().ok()?;
            (IpAddr::V4(source), IpAddr::V4(destination), [a, b])
        }
        ["PROXY", "TCP6", source, destination, a, b] => {
            let source: Ipv6Addr = source.parse().ok()?;
            let destination: Ipv6Addr = destination.parse().ok()?;
            (IpAddr::V6(source), IpAddr::V6(destination), [a, b])
        }
        _ => return None,
    };
    let [port, _] = ports.map(|port| port.parse::<u16>().ok());
    assert!(source.is_ipv4() == destination.is_ipv4());
    Some(Some(SocketAddr::new(source, port?)))
}

/// Whom a version 2 header names; `None` if it is none.
fn source_of_binary(header: &[u8]) -> Option<Option<SocketAddr>> {
    let rest = header.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n")?;
    let [command, family, high, low, addresses @ ..] = rest else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if addresses.len() != length {
        return None;
    }
    match (command, family) {
        (0x20, _) => Some(None),
        (0x21, 0x00) => Some(None),
        (0x21, 0x11) => {
            let source: [u8; 4] = addresses.get(..4)?.try_into().ok()?;
            let port = u16::from_be_bytes(addresses.get(8..10)?.try_into().ok()?);
            let address = IpAddr::V4(Ipv4Addr::from(source));
            (length >= 12).then_some(Some(SocketAddr::new(address, port)))
        }
        (0x21, 0x21) => {
            let source: [u8; 16] = addresses.get(..16)?.try_into().ok()?;
            let port = u16::from_be_bytes(addresses.get(32..34)?.try_into().ok()?);
            let address = IpAddr::V6(Ipv6Addr::from(source));
            (length >= 36).then_some(Some(SocketAddr::new(address, port)))
        }
        // A Unix socket: no address that a lease could have.
        (0x21, 0x31 | 0x32) => Some(None),
        _ => None,
    }
}
