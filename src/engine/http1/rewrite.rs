//! Heads written anew by copying spans into a buffer that the caller allocated ahead.
//!
//! The only place that decides what a forwarded head looks like on the wire. Never looks at a
//! socket, and never writes an identity that did not come from the snapshot.

use std::net::IpAddr;

use super::{
    framing::{Body, Version},
    head::{Method, Persist, Request, Response},
    location::{self, Mapped},
};
use crate::snapshot::{
    identity::{self, Identity},
    route::{Route, Stamp},
};

/// Bytes of a rendered request id.
pub const REQUEST_ID_BYTES: usize = 32;
/// Bytes of a whole `Date` field, such as `Date: Sun, 06 Nov 1994 08:49:37 GMT` and the end of its line.
pub const DATE_FIELD_BYTES: usize = 37;

/// The identity of a device that is not exposed.
const CONCEALED: &[u8] = b"X_Talk2M_Account: \r\nX_Talk2M_Device: \r\nX_Talk2M_SerialNumber: \r\n";
/// The same under names that every server passes on.
const CONCEALED_ALIASES: &[u8] =
    b"X-Talk2M-Account: \r\nX-Talk2M-Device: \r\nX-Talk2M-SerialNumber: \r\n";

/// What a request head becomes on its way to the server.
#[derive(Debug)]
pub struct UpstreamHead<'a> {
    /// The device's head.
    pub request: &'a Request<'a, 'a>,
    /// Path and query, byte for byte; a slash is put before it if it has none.
    pub path: &'a [u8],
    /// Who speaks.
    pub identity: &'a Identity<'a>,
    /// The address that speaks.
    pub source: IpAddr,
    /// Where it goes.
    pub route: &'a Route,
    /// Sent as `X-Request-Id` if the device sent none.
    pub request_id: &'a [u8; REQUEST_ID_BYTES],
    /// Whether the server's connection may carry another request. It must hear if not: one that takes no
    /// body where the device sent one would take that for a request, with fields that nobody stamped.
    pub persist: Persist,
}

impl UpstreamHead<'_> {
    /// Appends the head, empty line included (specification, section 4).
    ///
    /// Stamped fields follow everything that came from the device.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        let Self { request, route, .. } = self;
        put(out, request.method_name);
        put(out, b" ");
        put(out, &route.base_path);
        if self.path.first() != Some(&b'/') && !self.is_asterisk() {
            put(out, b"/");
        }
        put(
            out,
            if self.is_asterisk() && !route.base_path.is_empty() {
                b"/"
            } else {
                self.path
            },
        );
        put(out, b" HTTP/1.1\r\n");
        put(out, &route.host_field);
        self.write_kept(out);
        self.write_identity(out);
        if route.forwarded {
            identity::write_forwarded(self.source, out);
        }
        if let Some(login) = &route.authorization {
            put(out, login.expose());
        }
        if !request.has_request_id {
            put(out, b"X-Request-Id: ");
            put(out, self.request_id);
            put(out, b"\r\n");
        }
        put(
            out,
            match request.version {
                Version::Http10 => b"Via: 1.0 m2u\r\n",
                Version::Http11 => b"Via: 1.1 m2u\r\n",
            },
        );
        if self.persist == Persist::Close {
            put(out, b"Connection: close\r\n");
        }
        write_framing(out, request.body);
        put(out, b"\r\n");
    }

    /// `OPTIONS *` asks about the server as a whole; below a base path it asks about the base.
    fn is_asterisk(&self) -> bool {
        self.request.method == Method::Options && self.path == b"*"
    }

    fn write_kept(&self, out: &mut Vec<u8>) {
        let request = self.request;
        let replaces_login = self.route.authorization.is_some();
        for (index, header) in request.fields.iter().enumerate() {
            if request.kept.contains(index)
                && !(replaces_login && request.authorization.contains(index))
            {
                write_field(out, header.name.as_bytes(), header.value);
            }
        }
    }

    fn write_identity(&self, out: &mut Vec<u8>) {
        match &self.route.stamp {
            Stamp::Exposed { account_field } => {
                put(out, account_field);
                self.identity.write_fields(out);
                if self.route.hyphen_aliases {
                    write_field(out, b"X-Talk2M-Account", self.route.account_ref.as_bytes());
                    write_field(out, b"X-Talk2M-Device", self.identity.name.as_bytes());
                    write_field(
                        out,
                        b"X-Talk2M-SerialNumber",
                        self.identity.serial.as_bytes(),
                    );
                }
            }
            Stamp::Concealed => {
                put(out, CONCEALED);
                if self.route.hyphen_aliases {
                    put(out, CONCEALED_ALIASES);
                }
            }
        }
    }
}

/// How an answer goes on to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The body that is announced to the device.
    pub body: Body,
    /// What `Connection` says; `None` says nothing, where the version's default is meant.
    pub connection: Option<&'static [u8]>,
    /// The `Date` of an answer that has none; `None` if it has one, or needs none.
    pub date: Option<[u8; DATE_FIELD_BYTES]>,
}

/// What a device needs to know to follow a `Location`.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The server whose URLs are mapped back.
    pub server: location::Server<'a>,
    /// The authority that the device used; `None` if it named none, so only paths are mapped.
    pub authority: Option<&'a [u8]>,
}

/// Appends an answer's head, empty line included (specification, section 5).
#[inline]
pub fn write_response(
    out: &mut Vec<u8>,
    response: &Response<'_, '_>,
    origin: &Origin<'_>,
    delivery: Delivery,
) {
    write_status(out, response.status, response.reason);
    for (index, header) in response.fields.iter().enumerate() {
        if !response.kept.contains(index) {
            continue;
        }
        let name = header.name.as_bytes();
        if response.locations.contains(index) {
            write_location(out, name, header.value, origin);
        } else {
            write_field(out, name, header.value);
        }
    }
    write_framing(out, delivery.body);
    if let Some(connection) = delivery.connection {
        put(out, connection);
    }
    if let Some(date) = &delivery.date {
        put(out, date);
    }
    put(out, b"\r\n");
}

fn write_status(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    put(out, b"HTTP/1.1 ");
    let digits = [status / 100, status / 10 % 10, status % 10];
    put(out, &digits.map(|digit| b'0' + digit as u8));
    put(out, b" ");
    put(out, reason);
    put(out, b"\r\n");
}

fn write_location(out: &mut Vec<u8>, name: &[u8], value: &[u8], origin: &Origin<'_>) {
    let (authority, rest) = match (location::map(value, &origin.server), origin.authority) {
        (Mapped::Absolute { rest }, Some(authority)) => (Some(authority), rest),
        // By itself it would name another host (RFC 3986 §4.2).
        (Mapped::Path { rest }, authority) if rest.starts_with(b"//") => match authority {
            Some(authority) => (Some(authority), rest),
            None => return write_field(out, name, value),
        },
        (Mapped::Path { rest }, _) => (None, rest),
        (Mapped::Absolute { .. }, None) | (Mapped::Unchanged, _) => {
            return write_field(out, name, value);
        }
    };
    put(out, name);
    put(out, b": ");
    if let Some(authority) = authority {
        put(out, b"http://");
        put(out, authority);
    }
    if rest.first() != Some(&b'/') {
        put(out, b"/");
    }
    put(out, rest);
    put(out, b"\r\n");
}

fn write_framing(out: &mut Vec<u8>, body: Body) {
    match body {
        Body::Absent | Body::UntilClose => {}
        Body::Chunked => put(out, b"Transfer-Encoding: chunked\r\n"),
        Body::Length(length) => {
            put(out, b"Content-Length: ");
            put_decimal(out, length);
            put(out, b"\r\n");
        }
    }
}

#[inline]
fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    put(out, name);
    put(out, b": ");
    put(out, value);
    put(out, b"\r\n");
}

/// Appends a number in decimal digits.
pub fn put_decimal(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0_u8; 20];
    let mut begin = digits.len();
    let mut rest = number;
    loop {
        begin -= 1;
        digits[begin] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    put(out, &digits[begin..]);
}

#[inline(always)]
fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}
