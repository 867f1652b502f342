//! Single values of the configuration and of flags: durations, networks, addresses, names.
//!
//! Each reader takes the text as written and answers with the value, or with what is wrong and
//! what would be right. Nothing here knows where the text stands or reads a file.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};

use super::settings::{LogFormat, OnFailure, Slot};
use crate::limits;

/// A duration: a whole number and one of the units `ms`, `s`, `m`.
///
/// # Errors
/// In words, if it is none, or longer than a day.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        _ if number.is_empty() => {
            return Err(format!(
                "{text:?} is not a duration; write a whole number and a unit, such as \"250ms\", \
                 \"10s\" or \"2m\""
            ));
        }
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "" => {
            return Err(format!(
                "{text:?} has no unit; write \"{number}s\" for seconds, or a unit of ms or m"
            ));
        }
        _ => {
            return Err(format!(
                "{text:?} has the unit {unit:?}, which m2u does not know; write ms, s or m, such \
                 as \"250ms\", \"10s\" or \"2m\""
            ));
        }
    };
    let total = number
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(milliseconds));
    match total {
        Some(ms) if (limits::TIMEOUT_MS_FLOOR..=limits::TIMEOUT_MS_CEILING).contains(&ms) => {
            Ok(Duration::from_millis(ms))
        }
        _ => Err(format!(
            "{text:?} is out of range; write a duration from \"{}ms\" to \"{}m\"",
            limits::TIMEOUT_MS_FLOOR,
            limits::TIMEOUT_MS_CEILING / 60_000
        )),
    }
}

/// A value that is stamped on requests: account, device or serial number (specification, 2.5).
///
/// # Errors
/// In words, if it is empty, longer than 128 bytes, begins or ends with a space or holds a control
/// character. Such a value must be refused where it enters; the wire would carry it as forgery.
pub fn identity_value(text: &str) -> Result<String, String> {
    check_identity(text).map(|()| text.to_owned())
}

/// [`identity_value`] without a copy.
pub(super) fn check_identity(text: &str) -> Result<(), String> {
    let bytes_max = limits::IDENTITY_VALUE_BYTES_MAX;
    // Most are plain ASCII, and there may be millions.
    let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let has_edges = text.trim_ascii().len() == text.len();
    if is_plain && has_edges && (1..=bytes_max).contains(&text.len()) {
        return Ok(());
    }
    if text.is_empty() {
        return Err("is empty; write the value to be stamped".to_owned());
    }
    if text.len() > bytes_max {
        return Err(format!(
            "is {} bytes long; write at most {bytes_max} bytes of UTF-8",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(format!(
            "{text:?} holds a control character; write visible text only"
        ));
    }
    let edges = [text.chars().next(), text.chars().next_back()];
    if edges.into_iter().flatten().any(char::is_whitespace) {
        return Err(format!(
            "{text:?} begins or ends with a space; write it without"
        ));
    }
    Ok(())
}

/// A domain name such as `talk2m.com`, returned in lower case and without a dot at its end.
pub(super) fn domain(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        bytes.len() <= 63
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let sound = name.len() <= 240
        && name.split('.').all(label)
        && !name.rsplit('.').next().is_some_and(numeric);
    match sound {
        true => Ok(name),
        false => Err(format!(
            "{text:?} is not a domain name; write what follows \"m2u.\", such as \"talk2m.com\""
        )),
    }
}

/// A slot's name: `m2u`, `m2u2` … `m2u999`.
///
/// # Errors
/// In words, with what is a slot.
pub fn slot(text: &str) -> Result<Slot, String> {
    match Slot::parse(text.as_bytes()) {
        Some(slot) => Ok(slot),
        None if text.eq_ignore_ascii_case("m2u1") => {
            Err("\"m2u1\" is not a slot; the first one is \"m2u\", the next \"m2u2\"".to_owned())
        }
        None => Err(format!(
            "{text:?} is not a slot; write \"m2u\", or \"m2u2\" to \"m2u{}\"",
            limits::SLOT_MAX
        )),
    }
}

/// An address and port to listen on; port 0 lets the kernel choose.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    socket_address(text, 80)
}

/// An address and port to answer questions on; port 0 lets the kernel choose.
///
/// Every address of the host at once is refused: an answer must come from the one that was asked.
pub(super) fn dns_listen_address(text: &str) -> Result<SocketAddr, String> {
    let address = socket_address(text, 53)?;
    match address.ip().to_canonical().is_unspecified() {
        true => Err(format!(
            "{text:?} stands for every address of this host; name the one that devices ask, such as \
             \"10.8.0.1:{}\"",
            address.port()
        )),
        false => Ok(address),
    }
}

/// An address that a name may resolve to; an IPv4-mapped one is IPv4.
///
/// # Errors
/// In words, if it is no address, or none that a device could connect to.
pub fn resolved_address(text: &str) -> Result<IpAddr, String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(match text.parse::<SocketAddr>() {
            Ok(address) => format!(
                "{text:?} has a port, which no name can say; write \"{}\"",
                address.ip()
            ),
            Err(_) => format!("{text:?} is not an address; write numbers, such as \"10.8.0.2\""),
        });
    };
    let address = address.to_canonical();
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    match address.is_unspecified() || address.is_multicast() || is_broadcast {
        true => Err(format!(
            "{text:?} is no address that a device can connect to; write the one that m2u has inside \
             the VPN, such as \"10.8.0.2\""
        )),
        false => Ok(address),
    }
}

/// An address and port to connect to; port 0 is refused.
pub(super) fn upstream_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let address = socket_address(text, port)?;
    match address.port() {
        0 => Err(format!("{text:?} has port 0; write a port from 1 to 65535")),
        _ => Ok(address),
    }
}

/// An address and port; `port` serves as an example if the text has none.
fn socket_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    Err(match bare.parse() {
        Ok(address) => format!(
            "{text:?} has no port; write ADDRESS:PORT, such as \"{}\"",
            SocketAddr::new(address, port)
        ),
        Err(_) => format!(
            "{text:?} is not an address with a port; write numbers, such as \"10.8.0.2:{port}\" \
             or \"[fd00::2]:{port}\""
        ),
    })
}

/// An address or a prefix; an address alone is a prefix of full length, an IPv4-mapped one is IPv4.
///
/// # Errors
/// In words, if it is neither.
pub fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = address
        .or_else(|_| text.parse::<IpNet>())
        .map_err(|_| not_a_network(text))?;
    if network.addr() != network.network() {
        return Err(format!(
            "{text:?} has bits set behind its prefix; write \"{}\", or \"{}\" for the one address",
            network.trunc(),
            network.addr()
        ));
    }
    Ok(unmapped(network))
}

fn not_a_network(text: &str) -> String {
    let widest = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let address = text
        .split_once('/')
        .and_then(|(address, _)| address.parse().ok());
    match address {
        Some(address) => format!(
            "{text:?} has no proper prefix length; write a number from 0 to {} behind the slash",
            widest(address)
        ),
        None => format!(
            "{text:?} is neither an address nor a prefix; write \"10.8.0.7\" or \"192.168.7.0/24\""
        ),
    }
}

/// IPv4-mapped prefixes as IPv4, since devices behind either form are the same.
fn unmapped(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => {
            let mapped = |address: Ipv6Addr| -> Option<Ipv4Addr> { address.to_ipv4_mapped() };
            mapped(v6.network())
                .and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - MAPPED_BITS).ok())
                .map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

/// What a device sees when its request could not be delivered.
pub(super) fn on_failure(text: &str) -> Result<OnFailure, String> {
    match text {
        "respond" => Ok(OnFailure::Respond),
        "close" => Ok(OnFailure::Close),
        _ => Err(format!(
            "{text:?} is no way to fail; write \"respond\" or \"close\""
        )),
    }
}

/// The shape of the access log's lines.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err(format!(
            "{text:?} is no log format; write \"json\" or \"text\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_whole_number_and_a_unit() {
        for (text, milliseconds) in [("250ms", 250), ("10s", 10_000), ("2m", 120_000)] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for (text, words) in [
            ("10", "write \"10s\" for seconds"),
            ("", "is not a duration"),
            ("s", "is not a duration"),
            ("-1s", "is not a duration"),
            ("1.5s", "unit \".5s\""),
            ("10 s", "unit \" s\""),
            ("2h", "unit \"h\""),
            ("10S", "unit \"S\""),
            ("0s", "out of range"),
            ("1441m", "out of range"),
            ("99999999999999999999s", "out of range"),
            ("18446744073709551615m", "out of range"),
        ] {
            let message = duration(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn identity_values_are_refused_rather_than_repaired() {
        for text in [
            "acme",
            "press 07",
            "Zürich",
            &"x".repeat(128),
            "=1+1",
            "a:b",
        ] {
            assert_eq!(identity_value(text), Ok(text.to_owned()));
        }
        for (text, words) in [
            ("", "is empty"),
            (" acme", "begins or ends with a space"),
            ("acme ", "begins or ends with a space"),
            ("acme\u{a0}", "begins or ends with a space"),
            ("ac\r\nme", "control character"),
            ("ac\u{85}me", "control character"),
            ("\tacme", "control character"),
            (&"ü".repeat(65), "is 130 bytes long"),
        ] {
            let message = identity_value(text).expect_err(text);
            assert!(message.contains(words), "{text:?}: {message}");
            assert!(!message.contains(['\r', '\n', '\t']), "{message:?}");
        }
    }

    #[test]
    fn domains_come_out_lower_case_without_a_dot_at_the_end() {
        for (text, name) in [
            ("talk2m.com", "talk2m.com"),
            ("Talk2M.COM.", "talk2m.com"),
            ("plant-7", "plant-7"),
        ] {
            assert_eq!(domain(text), Ok(name.to_owned()));
        }
        for text in [
            "",
            ".",
            ".talk2m.com",
            "a..b",
            "-a.b",
            "a b",
            "10.8.0.1",
            "a/b",
            "zürich.ch",
        ] {
            assert!(domain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_have_no_bits_behind_their_prefix() {
        for (text, shown) in [
            ("10.8.0.7", "10.8.0.7/32"),
            ("192.168.7.0/24", "192.168.7.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::7", "fd00::7/128"),
            ("::ffff:10.8.0.7", "10.8.0.7/32"),
            ("::ffff:10.8.0.0/120", "10.8.0.0/24"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(
                network(text).map(|n| n.to_string()),
                Ok(shown.to_owned()),
                "{text}"
            );
        }
        for (text, words) in [
            (
                "192.168.7.5/24",
                "write \"192.168.7.0/24\", or \"192.168.7.5\"",
            ),
            ("10.8.0.0/33", "from 0 to 32"),
            ("fd00::/129", "from 0 to 128"),
            ("10.8.0", "neither an address nor a prefix"),
            ("10.8.0.7:80", "neither an address nor a prefix"),
            ("", "neither an address nor a prefix"),
        ] {
            let message = network(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn socket_addresses_need_a_port() {
        assert!(listen_address("127.0.0.1:0").is_ok());
        assert!(upstream_address("[fd00::2]:8443", 443).is_ok());
        for (text, words) in [
            ("203.0.113.7", "\"203.0.113.7:443\""),
            ("[fd00::2]", "\"[fd00::2]:443\""),
            ("fd00::2", "\"[fd00::2]:443\""),
            ("203.0.113.7:0", "port 0"),
            ("203.0.113.7:65536", "is not an address with a port"),
            ("localhost:443", "is not an address with a port"),
        ] {
            let message = upstream_address(text, 443).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn names_resolve_to_what_a_device_can_connect_to() {
        for (text, shown) in [
            ("10.8.0.2", "10.8.0.2"),
            ("fd00::2", "fd00::2"),
            ("::ffff:10.8.0.2", "10.8.0.2"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            let address = resolved_address(text).map(|address| address.to_string());
            assert_eq!(address, Ok(shown.to_owned()));
        }
        for (text, words) in [
            ("10.8.0.2:80", "write \"10.8.0.2\""),
            ("[fd00::2]:80", "write \"fd00::2\""),
            ("10.8.0.0/24", "is not an address"),
            ("gateway", "is not an address"),
            ("0.0.0.0", "can connect to"),
            ("::", "can connect to"),
            ("::ffff:0.0.0.0", "can connect to"),
            ("224.0.0.1", "can connect to"),
            ("ff02::1", "can connect to"),
            ("255.255.255.255", "can connect to"),
        ] {
            let message = resolved_address(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn questions_are_answered_on_an_address_of_its_own() {
        assert!(dns_listen_address("10.8.0.1:53").is_ok());
        assert!(dns_listen_address("[fd00::1]:0").is_ok());
        for (text, words) in [
            ("10.8.0.1", "\"10.8.0.1:53\""),
            ("0.0.0.0:53", "\"10.8.0.1:53\""),
            ("[::]:5353", "\"10.8.0.1:5353\""),
            ("[::ffff:0.0.0.0]:53", "every address of this host"),
        ] {
            let message = dns_listen_address(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn the_first_slot_has_no_number() {
        assert_eq!(slot("m2u2").map(Slot::number), Ok(2));
        assert!(
            slot("m2u1")
                .expect_err("m2u1")
                .contains("the first one is \"m2u\"")
        );
        assert!(slot("m2u1000").expect_err("m2u1000").contains("\"m2u999\""));
    }
}
