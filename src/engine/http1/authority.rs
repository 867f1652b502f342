//! The authority that a device names: one of the gateway's names, an address, or somebody else's.
//!
//! Decides by syntax and by the configured domain; resolves nothing (specification, section 3).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::settings::Slot;

/// Whom an authority names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// `m2u` or `m2uN`, bare or below the domain.
    Slot(Slot),
    /// Nobody in particular: an address, or nothing at all (RFC 9112 §3.2 lets `Host` be empty).
    Address,
    /// Another host.
    Other,
}

/// Not an authority as RFC 9110 §7.2 has it: 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAuthority;

/// Reads `host[:port]`; `domain` is lower-case, and empty if only bare names count.
///
/// # Errors
/// [`BadAuthority`]: the device's fault; 400, then close.
pub fn resolve(authority: &[u8], domain: &str) -> Result<Named, BadAuthority> {
    if authority.is_empty() {
        return Ok(Named::Address);
    }
    if let Some(rest) = authority.strip_prefix(b"[") {
        let end = memchr::memchr(b']', rest).ok_or(BadAuthority)?;
        let literal = std::str::from_utf8(&rest[..end]).map_err(|_| BadAuthority)?;
        literal.parse::<Ipv6Addr>().map_err(|_| BadAuthority)?;
        return match &rest[end + 1..] {
            [] => Ok(Named::Address),
            [b':', port @ ..] if is_port(port) => Ok(Named::Address),
            _ => Err(BadAuthority),
        };
    }
    let host = match memchr::memchr(b':', authority) {
        Some(colon) if is_port(&authority[colon + 1..]) => &authority[..colon],
        Some(_) => return Err(BadAuthority),
        None => authority,
    };
    if host.is_empty() || !host.iter().all(|byte| is_host_byte(*byte)) {
        return Err(BadAuthority);
    }
    let host = host.strip_suffix(b".").unwrap_or(host);
    if is_v4(host) {
        return Ok(Named::Address);
    }
    let (label, below) = match memchr::memchr(b'.', host) {
        Some(dot) => (&host[..dot], &host[dot + 1..]),
        None => (host, &b""[..]),
    };
    let ours = host.len() == label.len()
        || (!domain.is_empty() && below.eq_ignore_ascii_case(domain.as_bytes()));
    Ok(match Slot::parse(label) {
        Some(slot) if ours => Named::Slot(slot),
        _ => Named::Other,
    })
}

/// A port may be empty (RFC 3986 §3.2.3).
fn is_port(port: &[u8]) -> bool {
    port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

/// What the names of hosts are made of: `reg-name` without percent-encoding and sub-delimiters,
/// which no name of a host has, and with the underscore, which some have.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

fn is_v4(host: &[u8]) -> bool {
    std::str::from_utf8(host).is_ok_and(|host| host.parse::<Ipv4Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_names_are_told_from_others() {
        let second = Slot::parse(b"m2u2").expect("a slot");
        for (authority, named) in [
            ("m2u", Named::Slot(Slot::FIRST)),
            ("M2U.Talk2M.COM", Named::Slot(Slot::FIRST)),
            ("m2u2.talk2m.com.:8080", Named::Slot(second)),
            ("m2u2.:", Named::Slot(second)),
            ("m2u:80", Named::Slot(Slot::FIRST)),
            ("", Named::Address),
            ("10.8.0.2", Named::Address),
            ("10.8.0.2:80", Named::Address),
            ("[2001:db8::1]:80", Named::Address),
            ("[::1]", Named::Address),
            ("m2u1", Named::Other),
            ("m2u.other.com", Named::Other),
            ("m2u.talk2m.com.evil.com", Named::Other),
            ("xm2u.talk2m.com", Named::Other),
            ("talk2m.com", Named::Other),
            ("m2u..talk2m.com", Named::Other),
            ("my_host", Named::Other),
        ] {
            assert_eq!(
                resolve(authority.as_bytes(), "talk2m.com"),
                Ok(named),
                "{authority}"
            );
        }
    }

    #[test]
    fn without_a_domain_only_bare_names_count() {
        assert_eq!(resolve(b"m2u", ""), Ok(Named::Slot(Slot::FIRST)));
        assert_eq!(resolve(b"m2u.", ""), Ok(Named::Slot(Slot::FIRST)));
        assert_eq!(resolve(b"m2u.talk2m.com", ""), Ok(Named::Other));
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        for authority in [
            "m2u:80:80",
            "m2u:x",
            "m2u:123456",
            "a b",
            "m2u/",
            "user@m2u",
            "m2u,m2u",
            ":80",
            "[::1",
            "[::1]x",
            "[zz]",
            "m2u%2e",
            "m2u\t",
            "m\u{fc}u",
            "::1",
        ] {
            assert_eq!(
                resolve(authority.as_bytes(), "talk2m.com"),
                Err(BadAuthority),
                "{authority}"
            );
        }
    }
}
