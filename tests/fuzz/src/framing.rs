//! Fields in, body out: what the gateway and the strict reader say of the same framing fields.
//!
//! The first byte of an input chooses version, direction and status; each line behind it is a field.

use m2u::engine::http1::{
    field,
    framing::{Body, Framing, FramingError, Version},
};

use crate::strict::{self, Fault, Field, Reading, StatusLine};

const STATUSES: [u16; 8] = [200, 100, 199, 204, 304, 404, 205, 999];

/// Panics if the two differ; answers whether any field decides, and without doubt.
pub fn check(input: &[u8]) -> bool {
    let [bits, lines @ ..] = input else {
        return false;
    };
    let fields: Vec<Field<'_>> = lines
        .split(|byte| *byte == b'\n')
        .filter_map(|line| strict::field(line).ok())
        .collect();
    let (version, minor) = match bits & 1 {
        0 => (Version::Http10, 0),
        _ => (Version::Http11, 1),
    };
    let requested = request_body(version, &fields);
    same(requested, strict::request_framing(minor, &fields));

    let status = STATUSES[usize::from(bits >> 1 & 7)];
    let line = StatusLine {
        minor,
        status,
        reason: b"",
    };
    for to_head in [false, true] {
        let answered = response_body(version, status, to_head, &fields);
        let framing = strict::response_framing(&line, &fields, Reading::Received, to_head);
        same(answered, framing);
    }
    requested.is_ok_and(|body| body != Body::Absent)
}

fn request_body(version: Version, fields: &[Field<'_>]) -> Result<Body, FramingError> {
    let mut framing = Framing::default();
    for (name, value) in fields {
        framing.take(field::classify_request(name), value)?;
    }
    framing.request_body(version)
}

fn response_body(
    version: Version,
    status: u16,
    to_head: bool,
    fields: &[Field<'_>],
) -> Result<Body, FramingError> {
    let mut framing = Framing::default();
    for (name, value) in fields {
        framing.take_of_response(field::classify_response(name), value)?;
    }
    framing.response_body(version, status, to_head)
}

fn same(gateway: Result<Body, FramingError>, strict: Result<strict::Framing, Fault>) {
    match (gateway, strict) {
        (Ok(body), Ok(framing)) => assert_eq!(of_gateway(body), framing),
        (Err(_), Err(_)) => {}
        (gateway, strict) => panic!("{gateway:?}, but {strict:?}"),
    }
}

/// The gateway's word for a body, in the strict reader's.
pub fn of_gateway(body: Body) -> strict::Framing {
    match body {
        Body::Absent => strict::Framing::Absent,
        Body::Length(length) => strict::Framing::Length(length),
        Body::Chunked => strict::Framing::Chunked,
        Body::UntilClose => strict::Framing::UntilClose,
    }
}
