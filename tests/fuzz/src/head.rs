//! Heads of requests and of answers, read by the gateway and by the strict reader: both understand
//! them, and alike, or neither does.
//!
//! The first byte of an input says where it is cut when the end of the head is looked for.

use m2u::engine::http1::{
    field,
    field::Field,
    framing::Version,
    head::{self, HeadError, Request, Response},
};

use crate::{
    scene::FIELDS_MAX,
    strict::{self, Fault, Read},
};

/// Panics if the two readers differ; answers whether both understand the head.
pub fn check(input: &[u8]) -> bool {
    let [cut, wire @ ..] = input else {
        return false;
    };
    let wire = &wire[head::leading_empty_lines(wire)..];
    let found = head::find_end(wire, 0);
    check_cut(wire, usize::from(*cut) % (wire.len() + 1), found);
    let wire = match found {
        Ok(Some(length)) => &wire[..length],
        Ok(None) => {
            assert!(strict::head(wire).is_err(), "overlooks the end of a head");
            return false;
        }
        Err(_) => {
            // The line feed stands in a line, or at the beginning of one.
            assert!(strict::head(wire).is_err(), "refuses a head's lines");
            return false;
        }
    };
    let is_request = check_request(wire);
    check_response(wire) || is_request
}

/// The end is where it is, however often one has looked before.
fn check_cut(wire: &[u8], cut: usize, whole: Result<Option<usize>, HeadError>) {
    match head::find_end(&wire[..cut], 0) {
        Ok(None) => assert_eq!(head::find_end(wire, cut), whole),
        early => assert_eq!(early, whole),
    }
}

type Fields<'a> = Vec<strict::Field<'a>>;

fn strict_head<'a, L>(
    wire: &'a [u8],
    first: fn(&'a [u8]) -> Read<L>,
) -> Result<(L, Fields<'a>), Fault> {
    let (lines, length) = strict::head(wire)?;
    if length != wire.len() {
        return Err(Fault::Wrong("bytes behind the head"));
    }
    let fields = lines[1..]
        .iter()
        .map(|line| strict::field(line))
        .collect::<Read<_>>()?;
    Ok((first(lines[0])?, fields))
}

fn check_request(wire: &[u8]) -> bool {
    let mut space = head::field_space();
    let parsed = Request::parse(wire, &mut space, FIELDS_MAX);
    let strict = strict_head(wire, strict::request_line);
    let request = match (parsed, &strict) {
        (Ok(request), _) => request,
        (Err(HeadError::Malformed | HeadError::BareLineFeed), Ok(_)) => {
            panic!("refuses a well-formed request")
        }
        (Err(_), _) => return false,
    };
    let (line, fields) = strict.expect("a request that the gateway takes");
    assert_eq!(
        (request.method_name, request.target),
        (line.method, line.target)
    );
    assert_eq!(request.version == Version::Http11, line.minor == 1);
    let parsed = request
        .fields
        .iter()
        .map(|parsed| (parsed.name.as_bytes(), parsed.value));
    assert!(parsed.eq(fields.iter().copied()), "other fields");
    let framing = strict::request_framing(line.minor, &fields).expect("framing in no doubt");
    assert_eq!(crate::framing::of_gateway(request.body), framing);
    for (index, (name, _)) in fields.iter().enumerate() {
        if request.kept.contains(index) {
            assert!(
                !strict::fold(name).starts_with("x_talk2m_"),
                "a forgery passes"
            );
        }
        if request.authorization.contains(index) {
            assert_eq!(field::classify_request(name), Field::Authorization);
        }
    }
    true
}

fn check_response(wire: &[u8]) -> bool {
    let mut understood = false;
    for to_head in [false, true] {
        let mut space = head::field_space();
        let parsed = Response::parse(wire, &mut space, FIELDS_MAX, to_head);
        let strict = strict_head(wire, strict::status_line);
        let response = match (parsed, &strict) {
            (Ok(response), _) => response,
            (Err(HeadError::Malformed | HeadError::BareLineFeed), Ok(_)) => {
                panic!("refuses a well-formed answer")
            }
            (Err(_), _) => continue,
        };
        let (line, fields) = strict.expect("an answer that the gateway takes");
        assert_eq!(response.status, line.status);
        let reason = if line.reason.is_ascii() {
            line.reason
        } else {
            b""
        };
        assert_eq!(response.reason, reason);
        let parsed = response
            .fields
            .iter()
            .map(|parsed| (parsed.name.as_bytes(), parsed.value));
        assert!(parsed.eq(fields.iter().copied()), "other fields");
        let reading = strict::Reading::Received;
        let framing = strict::response_framing(&line, &fields, reading, to_head);
        assert_eq!(Ok(crate::framing::of_gateway(response.body)), framing);
        understood = true;
    }
    understood
}
