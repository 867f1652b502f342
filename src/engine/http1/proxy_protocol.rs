//! The PROXY protocol, versions 1 and 2: what a load balancer says about whom it speaks for.
//!
//! Bounds what the library `proxy-header` reads, and refuses early what can't become a header.
//! Whose word counts is decided elsewhere.

use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, Protocol, ProxyHeader};

use crate::limits;

const SIGNATURE_V1: &[u8] = b"PROXY ";
/// Bytes of the longest version 1 header, CRLF included.
const LINE_V1_BYTES_MAX: usize = 107;
const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a version 2 header before its addresses.
const FIXED_V2: usize = 16;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header.
    Partial,
    /// A whole header.
    Complete {
        /// Whom the peer speaks for; `None` if for itself, as health checks do.
        source: Option<SocketAddr>,
        /// Bytes of the header.
        consumed: usize,
    },
}

/// No PROXY protocol header, or one too long: the connection can't be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadHeader;

/// Reads the header that a listed peer sends first.
///
/// # Errors
/// [`BadHeader`]: 400, then close.
pub fn parse(bytes: &[u8]) -> Result<Parsed, BadHeader> {
    let signed = begins_alike(bytes, SIGNATURE_V1) || begins_alike(bytes, SIGNATURE_V2);
    let config = ParseConfig {
        include_tlvs: false,
        allow_v1: true,
        allow_v2: true,
    };
    let length_max = announced_length(bytes).unwrap_or(limits::PROXY_HEADER_BYTES_MAX);
    if !signed || is_broken_line(bytes) || length_max > limits::PROXY_HEADER_BYTES_MAX {
        return Err(BadHeader);
    }
    match ProxyHeader::parse(bytes, config) {
        Ok((header, consumed)) => match header.proxied_address() {
            Some(address) if address.protocol != Protocol::Stream => Err(BadHeader),
            address => Ok(Parsed::Complete {
                source: address.map(|a| a.source),
                consumed,
            }),
        },
        Err(Error::BufferTooShort) if bytes.len() < length_max && !is_ended_line(bytes) => {
            Ok(Parsed::Partial)
        }
        Err(_) => Err(BadHeader),
    }
}

/// Whether one is the beginning of the other.
fn begins_alike(bytes: &[u8], signature: &[u8]) -> bool {
    bytes
        .iter()
        .zip(signature)
        .all(|(byte, expected)| byte == expected)
}

/// Whether a version 1 header has its line feed: more bytes can't complete it.
fn is_ended_line(bytes: &[u8]) -> bool {
    bytes.starts_with(SIGNATURE_V1) && memchr::memchr(b'\n', bytes).is_some()
}

/// Whether a version 1 header is too long, or has a line feed without CR: the library would read on
/// to the next CRLF, if that has come.
fn is_broken_line(bytes: &[u8]) -> bool {
    let line = &bytes[..bytes.len().min(LINE_V1_BYTES_MAX)];
    line.starts_with(SIGNATURE_V1)
        && match memchr::memchr(b'\n', line) {
            Some(line_feed) => line[line_feed - 1] != b'\r',
            None => line.len() == LINE_V1_BYTES_MAX,
        }
}

/// Length of a version 2 header as it says itself; `None` before it has, and for version 1.
fn announced_length(bytes: &[u8]) -> Option<usize> {
    match bytes.get(..FIXED_V2)? {
        [b'\r', .., high, low] => Some(FIXED_V2 + usize::from(u16::from_be_bytes([*high, *low]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE_V2.to_vec();
        header.extend([command, family]);
        header.extend((addresses.len() as u16).to_be_bytes());
        header.extend(addresses);
        header
    }

    #[test]
    fn headers_are_read_at_every_cut() {
        let v4 = [10, 8, 0, 7, 10, 8, 0, 2, 0x30, 0x39, 0, 80];
        let longest = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 91], b"\r\n".to_vec()].concat();
        let with_extras = [&v4[..], &[0x04, 0, 3, b'a', b'b', b'c']].concat();
        for (header, source) in [
            (
                b"PROXY TCP4 10.8.0.7 10.8.0.2 12345 80\r\n".to_vec(),
                Some("10.8.0.7:12345"),
            ),
            (
                b"PROXY TCP6 2001:db8::7 2001:db8::2 9 80\r\n".to_vec(),
                Some("[2001:db8::7]:9"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (longest, None),
            (v2(0x21, 0x11, &v4), Some("10.8.0.7:12345")),
            (v2(0x21, 0x11, &with_extras), Some("10.8.0.7:12345")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
        ] {
            let wire = [&header[..], b"GET / HTTP/1.0\r\n"].concat();
            for cut in 0..header.len() {
                assert_eq!(
                    parse(&wire[..cut]),
                    Ok(Parsed::Partial),
                    "{header:?} cut at {cut}"
                );
            }
            let source = source.map(|source| source.parse().expect("address"));
            let complete = Parsed::Complete {
                source,
                consumed: header.len(),
            };
            assert_eq!(parse(&wire), Ok(complete), "{header:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"P ".to_vec(),
            b"PROXY TCP5 10.8.0.7 10.8.0.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 10.8.0.700 10.8.0.2 1 2\r\n".to_vec(),
            b"PROXY TCP4 10.8.0.7 10.8.0.2 1 2\rx".to_vec(),
            [b"PROXY UNKNOWN".to_vec(), vec![b'x'; 200]].concat(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 92], b"\r\n".to_vec()].concat(),
            b"PROXY UNKNOWN\nGET / HTTP/1.1\r\n".to_vec(),
            b"\r\n\r\nGET".to_vec(),
            v2(0x31, 0x11, &[0; 12]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x11, &[0; 4]),
            v2(0x21, 0x11, &[0; limits::PROXY_HEADER_BYTES_MAX])[..FIXED_V2].to_vec(),
        ] {
            assert_eq!(parse(&bytes), Err(BadHeader), "{bytes:?}");
        }
    }
}
