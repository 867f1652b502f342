//! `Location` and `Content-Location` mapped back, so that a device that follows one comes through
//! the gateway again (specification, section 5).
//!
//! Only URLs inside the server's own are mapped; all others pass as they are.

use crate::config::settings::Scheme;

/// The server's URL.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Host, lower-case; an IPv6 literal keeps its brackets.
    pub host: &'a [u8],
    /// Port, never absent.
    pub port: u16,
    /// Begins with `/` and does not end with one; empty for the root.
    pub base_path: &'a [u8],
}

/// What becomes of a value. `rest` is what follows the base path: it begins with `/`, `?` or `#`,
/// or is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped<'a> {
    /// It was a whole URL, and becomes one of the gateway's.
    Absolute {
        /// Goes behind the authority that the device used.
        rest: &'a [u8],
    },
    /// It was a path below the base path, which the device doesn't know of.
    Path {
        /// Goes to the device by itself.
        rest: &'a [u8],
    },
    /// It stays as it is.
    Unchanged,
}

/// Maps the value of a `Location` or `Content-Location` field.
pub fn map<'a>(value: &'a [u8], server: &Server<'_>) -> Mapped<'a> {
    if value.first() == Some(&b'/') {
        // Two slashes begin an authority (RFC 3986 §4.2).
        if value.get(1) == Some(&b'/') || server.base_path.is_empty() {
            return Mapped::Unchanged;
        }
        return below(value, server.base_path)
            .map_or(Mapped::Unchanged, |rest| Mapped::Path { rest });
    }
    after_authority(value, server)
        .and_then(|path| below(path, server.base_path))
        .map_or(Mapped::Unchanged, |rest| Mapped::Absolute { rest })
}

/// The part of an absolute URL behind the server's authority, or `None` for another server's.
fn after_authority<'a>(value: &'a [u8], server: &Server<'_>) -> Option<&'a [u8]> {
    let rest = strip_ignoring_case(value, server.scheme.as_str().as_bytes())?;
    let rest = strip_ignoring_case(rest.strip_prefix(b"://")?, server.host)?;
    let (port, rest) = match rest.strip_prefix(b":") {
        None => (server.scheme.default_port(), rest),
        Some(rest) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (port, rest) = rest.split_at(digits);
            let port = std::str::from_utf8(port).ok()?;
            let default = server.scheme.default_port();
            (
                if port.is_empty() {
                    default
                } else {
                    port.parse().ok()?
                },
                rest,
            )
        }
    };
    let ends = matches!(rest.first(), None | Some(b'/' | b'?' | b'#'));
    (ends && port == server.port).then_some(rest)
}

/// What follows `base` in `path`, if the base ends where a segment does.
fn below<'a>(path: &'a [u8], base: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(base)?;
    matches!(rest.first(), None | Some(b'/' | b'?' | b'#')).then_some(rest)
}

fn strip_ignoring_case<'a>(value: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = value.split_at_checked(prefix.len())?;
    begin.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASED: Server<'static> = Server {
        scheme: Scheme::Https,
        host: b"h.example",
        port: 443,
        base_path: b"/base",
    };

    #[test]
    fn urls_of_the_server_are_mapped() {
        for (value, rest) in [
            ("https://h.example/base/x?y#z", "/x?y#z"),
            ("HTTPS://H.Example:443/base", ""),
            ("https://h.example:/base?x", "?x"),
        ] {
            let rest = rest.as_bytes();
            assert_eq!(
                map(value.as_bytes(), &BASED),
                Mapped::Absolute { rest },
                "{value}"
            );
        }
        assert_eq!(map(b"/base/x", &BASED), Mapped::Path { rest: b"/x" });
        assert_eq!(map(b"/base", &BASED), Mapped::Path { rest: b"" });
    }

    #[test]
    fn everything_else_stays() {
        for value in [
            "https://h.example/basement",
            "https://h.example/other",
            "https://h.example:8443/base",
            "http://h.example/base",
            "https://h.example.evil/base",
            "https://h.examplex/base",
            "//h.example/base",
            "/basement",
            "/other",
            "base/x",
            "x",
            "",
            "?x",
            "https://h.example:99999/base",
        ] {
            assert_eq!(map(value.as_bytes(), &BASED), Mapped::Unchanged, "{value}");
        }
    }

    #[test]
    fn without_a_base_path_only_whole_urls_are_mapped() {
        let root = Server {
            scheme: Scheme::Http,
            host: b"[::1]",
            port: 8080,
            base_path: b"",
        };
        assert_eq!(
            map(b"http://[::1]:8080", &root),
            Mapped::Absolute { rest: b"" }
        );
        assert_eq!(
            map(b"http://[::1]:8080/x", &root),
            Mapped::Absolute { rest: b"/x" }
        );
        assert_eq!(map(b"/x", &root), Mapped::Unchanged);
        assert_eq!(map(b"http://[::1]/x", &root), Mapped::Unchanged);
    }
}
