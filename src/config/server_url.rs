//! A server's URL, taken apart under stricter rules than a browser's.
//!
//! Nothing is repaired: the host ends up in `Host` and in the certificate check, the base path in
//! front of every path a device names. Never shows a login or a query, which may hold secrets.

use std::net::{Ipv4Addr, Ipv6Addr};

use rustls_pki_types::DnsName;

use super::settings::{Scheme, ServerUrl};
use crate::limits;

/// Reads `http://host`, `https://host:8443/base` and the like (specification, section 3).
///
/// # Errors
/// What is wrong with the URL, and what would be right.
pub(super) fn parse(text: &str) -> Result<ServerUrl, String> {
    let shown = shown(text);
    let (scheme, rest) = scheme(text, &shown)?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err(format!(
            "{shown} carries a login; leave it out and write login = {{ username = …, password = \
            … }}"
        ));
    }
    let (host, port) = split_port(authority, &shown)?;
    Ok(ServerUrl {
        scheme,
        host: self::host(host, &shown)?,
        port: match port {
            Some(digits) => self::port(digits, &shown)?,
            None => scheme.default_port(),
        },
        base_path: base_path(path, &shown)?,
    })
}

/// The URL as a message may show it: without user name, password and query.
fn shown(text: &str) -> String {
    let text = match text.find(['?', '#']) {
        Some(at) => format!("{}{}…", &text[..at], &text[at..=at]),
        None => text.to_owned(),
    };
    let Some(at) = text.rfind('@') else {
        return format!("{text:?}");
    };
    let start = text.find("://").map_or(0, |at| at + 3);
    let start = start.min(at);
    format!("{:?}", format!("{}…{}", &text[..start], &text[at..]))
}

fn scheme<'a>(text: &'a str, shown: &str) -> Result<(Scheme, &'a str), String> {
    let Some((name, rest)) = text.split_once("://") else {
        return Err(format!(
            "{shown} has no scheme; write http:// or https:// in front"
        ));
    };
    match name.to_ascii_lowercase().as_str() {
        "http" => Ok((Scheme::Http, rest)),
        "https" => Ok((Scheme::Https, rest)),
        _ => Err(format!(
            "{shown} has no scheme m2u knows; write http:// or https://"
        )),
    }
}

/// Host and digits of the port; the colons of an IPv6 literal are the host's.
fn split_port<'a>(authority: &'a str, shown: &str) -> Result<(&'a str, Option<&'a str>), String> {
    if authority.starts_with('[') {
        let Some(end) = authority.find(']') else {
            return Err(format!(
                "{shown} has a \"[\" that nothing closes; write \"]\" behind the address"
            ));
        };
        let (host, rest) = authority.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!(
                "{shown} has text behind \"]\"; write a colon and the port"
            )),
        };
    }
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Err(format!(
            "{shown} has an IPv6 address; write it in brackets: [{authority}]"
        ));
    }
    Ok(match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    })
}

fn port(digits: &str, shown: &str) -> Result<u16, String> {
    let only_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(port) if only_digits && port > 0 => Ok(port),
        _ => Err(format!(
            "{shown} has no proper port; write a number from 1 to 65535"
        )),
    }
}

fn host(host: &str, shown: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err(format!(
            "{shown} has no host; write https://HOST or https://HOST/BASE"
        ));
    }
    if let Some(literal) = host.strip_prefix('[') {
        let address = literal.trim_end_matches(']').parse::<Ipv6Addr>();
        return match address {
            Ok(_) => Ok(host.to_ascii_lowercase()),
            Err(_) => Err(format!(
                "{shown} has no IPv6 address between its brackets; write one"
            )),
        };
    }
    if host.parse::<Ipv4Addr>().is_ok() {
        return Ok(host.to_owned());
    }
    if !host.is_ascii() {
        return Err(match url::Host::parse(host) {
            Ok(ascii) => format!("{shown} has a host that is not ASCII; write {ascii}"),
            Err(_) => format!("{shown} has a host that is not ASCII; write its xn-- form"),
        });
    }
    let last_label = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    if last_label.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!(
            "{shown} has a host that is no IPv4 address; write four numbers up to 255"
        ));
    }
    match DnsName::try_from(host) {
        Ok(_) => Ok(host.to_ascii_lowercase()),
        Err(_) => Err(format!(
            "{shown} has a host that is no DNS name; write letters, digits, hyphens and dots, 63 \
             characters at most between dots"
        )),
    }
}

/// The path in front of every path a device names; a slash at its end is dropped.
fn base_path(path: &str, shown: &str) -> Result<String, String> {
    if path.contains(['?', '#']) {
        return Err(format!(
            "{shown} has a query or fragment; leave it out, devices bring their own query"
        ));
    }
    let base = path.strip_suffix('/').unwrap_or(path);
    if base.len() > limits::BASE_PATH_BYTES_MAX {
        return Err(format!(
            "has a base path of {} bytes; write at most {}",
            base.len(),
            limits::BASE_PATH_BYTES_MAX
        ));
    }
    if let Some(bad) = base.chars().find(|c| !is_path_character(*c)) {
        return Err(format!(
            "{shown} has {bad:?} in its base path; write it percent-encoded"
        ));
    }
    let escapes_are_whole = base
        .split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()));
    if !escapes_are_whole {
        return Err(format!(
            "{shown} has a lone \"%\" in its base path; write it as %25"
        ));
    }
    let decoded_dots = base.to_ascii_lowercase().replace("%2e", ".");
    let mut segments = decoded_dots.split('/').skip(1);
    if segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(format!(
            "{shown} has an empty, \".\" or \"..\" segment in its base path; write the path itself"
        ));
    }
    Ok(base.to_owned())
}

/// Characters of a path (RFC 3986 §3.3), with the slash and the percent sign.
fn is_path_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, shown, port) in [
            ("http://h", "http://h", 80),
            (
                "HTTPS://Ingest.Acme.example/Base",
                "https://ingest.acme.example/Base",
                443,
            ),
            ("https://h/base/", "https://h/base", 443),
            ("https://h:443/", "https://h", 443),
            ("https://h:8443/a/b", "https://h:8443/a/b", 8443),
            ("http://[FD00::2]:81/x", "http://[fd00::2]:81/x", 81),
            ("http://127.0.0.1:9", "http://127.0.0.1:9", 9),
            ("http://my_service/a%20b@c", "http://my_service/a%20b@c", 80),
        ] {
            let url = parse(text).expect(text);
            assert_eq!(
                (url.to_string().as_str(), url.port),
                (shown, port),
                "{text}"
            );
        }
    }

    #[test]
    fn faults_are_told_with_what_would_be_right() {
        for (text, words) in [
            (
                "htp://x",
                "has no scheme m2u knows; write http:// or https://",
            ),
            ("ingest.acme.example", "has no scheme; write http://"),
            ("", "has no scheme"),
            ("https://", "has no host"),
            ("https:///x", "has no host"),
            ("https://:443", "has no host"),
            ("https://h:0", "port"),
            ("https://h:", "port"),
            ("https://h:+1", "port"),
            ("https://h:65536", "port"),
            ("https://h:80:80", "port"),
            ("https://h/x?key=1", "has a query or fragment"),
            ("https://h#top", "has a query or fragment"),
            ("https://fd00::2/", "write it in brackets: [fd00::2]"),
            ("https://[fd00::2", "nothing closes"),
            ("https://[fd00::2]x", "behind \"]\""),
            ("https://[fd00::x]", "no IPv6 address"),
            ("https://256.1.1.1", "no IPv4 address"),
            ("https://zürich.example", "write xn--zrich-kva.example"),
            ("https://-h", "no DNS name"),
            ("https://a b", "no DNS name"),
            ("https://a..b", "no DNS name"),
            ("https://h/a b", "' ' in its base path"),
            ("https://h/a\r\nb", "'\\r' in its base path"),
            ("https://h/ü", "'ü' in its base path"),
            ("https://h/100%", "lone \"%\""),
            ("https://h/a/../b", "segment"),
            ("https://h/a/%2E%2e/b", "segment"),
            ("https://h/a//b", "segment"),
        ] {
            let message = parse(text).expect_err(text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn logins_and_queries_are_never_shown() {
        for text in [
            "https://acme:geheim@h/x",
            "htp://acme:geheim@h",
            "acme:geheim@h",
            "https://acme:ge@geheim@h",
            "https://h/x?key=geheim",
            "https://h:0/?geheim",
            "https://acme:geheim://@h",
            "https://acme:geheim/@h?x",
            "https://h/x#geheim@y",
        ] {
            let message = parse(text).expect_err(text);
            assert!(!message.contains("geheim"), "{text}: {message}");
        }
    }
}
