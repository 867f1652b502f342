//! What is printed of a request: who sent it, with which login and certificate, and how much.
//!
//! Never shows a password or a token.

use std::{fmt, net::SocketAddr};

use base64::{Engine, prelude::BASE64_STANDARD};
use hyper::{HeaderMap, http::request::Parts};
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

/// One request as it arrived. The library underneath hands field names out in lower case.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Where the connection came from.
    peer: SocketAddr,
    method: String,
    /// Path and query.
    target: String,
    version: String,
    /// Every field that a lenient server reads as one of the identity fields.
    identity: Vec<(String, String)>,
    /// Scheme of the login, with the user's name if it is Basic.
    login: Option<String>,
    /// Subject of the client's certificate.
    certificate: Option<String>,
    /// Body bytes, the chunked coding taken off.
    size: u64,
    /// All fields in order, logins without their secret.
    fields: Vec<(String, String)>,
}

impl Report {
    /// Takes in what is known once the whole body has been received.
    pub(super) fn new(
        peer: SocketAddr,
        head: &Parts,
        certificate: Option<String>,
        size: u64,
    ) -> Self {
        let fields = shown_fields(&head.headers);
        Self {
            peer,
            method: head.method.to_string(),
            target: head.uri.to_string(),
            version: format!("{:?}", head.version),
            identity: fields
                .iter()
                .filter(|(name, _)| is_identity(name))
                .cloned()
                .collect(),
            login: head
                .headers
                .get("authorization")
                .map(|value| login(value.as_bytes())),
            certificate,
            size,
            fields,
        }
    }

    /// The device's name as it is stamped, under either spelling.
    pub(super) fn device(&self) -> &str {
        let device = |name: &str| matches!(name, "x_talk2m_device" | "x-talk2m-device");
        let field = self
            .identity
            .iter()
            .find(|(name, value)| device(name) && !value.is_empty());
        field.map_or("a sender without a name", |(_, value)| value)
    }

    /// One JSON object.
    pub(super) fn to_json(&self) -> String {
        // Strings and numbers alone: nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    fn field(&self, wanted: &str) -> &str {
        let field = self.fields.iter().find(|(name, _)| name == wanted);
        field.map_or("-", |(_, value)| value)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {}", self.method, self.target, self.version)?;
        for (name, value) in &self.identity {
            writeln!(f, "  {name}: {value}")?;
        }
        if self.identity.is_empty() {
            writeln!(f, "  no identity")?;
        }
        writeln!(f, "  login: {}", self.login.as_deref().unwrap_or("none"))?;
        writeln!(
            f,
            "  client certificate: {}",
            self.certificate.as_deref().unwrap_or("none")
        )?;
        writeln!(f, "  content-type: {}", self.field("content-type"))?;
        writeln!(f, "  forwarded: {}", self.field("forwarded"))?;
        writeln!(f, "  via: {}", self.field("via"))?;
        writeln!(f, "  x-request-id: {}", self.field("x-request-id"))?;
        writeln!(f, "  body: {} bytes", self.size)
    }
}

/// The subject of a certificate in DER, as people write it.
pub(super) fn subject(certificate: &[u8]) -> String {
    match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => certificate.subject().to_string(),
        Err(_) => "unreadable".to_owned(),
    }
}

fn shown_fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let shown = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
        let value = match name.as_str() {
            "authorization" | "proxy-authorization" => login(value.as_bytes()),
            _ => String::from_utf8_lossy(value.as_bytes()).into_owned(),
        };
        (name.to_string(), value)
    };
    headers.iter().map(shown).collect()
}

/// Whether CGI, WSGI or PHP would read a name as one of the identity fields.
fn is_identity(name: &str) -> bool {
    let folded = name.chars().map(|c| match c.is_ascii_alphanumeric() {
        true => c.to_ascii_lowercase(),
        false => '_',
    });
    folded.take("x_talk2m_".len()).eq("x_talk2m_".chars())
}

/// What may be shown of an `Authorization` value.
fn login(value: &[u8]) -> String {
    let value = String::from_utf8_lossy(value);
    let (scheme, secret) = value.split_once(' ').unwrap_or((&value, ""));
    if !scheme.eq_ignore_ascii_case("basic") {
        // Without a scheme the whole value may be the secret.
        let named = !secret.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric());
        return format!(
            "{} (not shown)",
            if named { scheme } else { "unknown scheme" }
        );
    }
    let user = BASE64_STANDARD.decode(secret.trim()).ok();
    let user = user.and_then(|pair| String::from_utf8(pair).ok());
    match user.as_deref().and_then(|pair| pair.split_once(':')) {
        Some((user, _)) => format!("Basic, user {user}, with a password"),
        None => "Basic, unreadable".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_never_shows_its_secret() {
        for (value, shown) in [
            (
                "Basic YWNtZTpnZWhlaW0=",
                "Basic, user acme, with a password",
            ),
            ("basic YWNtZQ==", "Basic, unreadable"),
            ("Basic geheim", "Basic, unreadable"),
            ("Bearer geheim", "Bearer (not shown)"),
            ("geheim", "unknown scheme (not shown)"),
            ("ge:heim x", "unknown scheme (not shown)"),
        ] {
            assert_eq!(login(value.as_bytes()), shown);
        }
    }

    #[test]
    fn whatever_reads_like_identity_is_shown() {
        for name in ["x_talk2m_device", "x-talk2m-account", "x.talk2m-other"] {
            assert!(is_identity(name), "{name}");
        }
        assert!(!is_identity("x-talk2"));
    }
}
