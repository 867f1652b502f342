//! Requests on their way to a server, against the strict reader.
//!
//! Arbitrary bytes go through the engine's own search for a head, its decision and its framing of
//! bodies. Whatever would be forwarded must be exactly one request, nothing behind it, with the
//! body that the strict reader finds in the device's bytes, the gateway's own fields and no forged
//! one. The same connection goes on to its next request as long as the gateway would.
//!
//! The first byte of an input chooses device and server, the second where the rest is cut.

use std::net::IpAddr;

use m2u::{
    engine::{
        http1::head::Persist,
        proxy::{
            connection::{Found, HeadSearch},
            plan::{self, Plan, Sender},
            relay::{self, Intake, RESERVE},
        },
    },
    snapshot::scope::Scope,
};

use crate::{
    pieces::{PIECE_BUFFER_BYTES, Pieces},
    scene::{self, FIELDS_MAX, HEAD_BYTES_MAX, Party, REQUEST_ID},
    strict::{self, Fault, Field, Framing, Message, Reading, RequestLine},
};

/// Requests of one connection that are looked at.
const REQUESTS_MAX: usize = 4;

/// Panics if anything would be forwarded that should not be; answers whether anything would.
pub fn check(input: &[u8]) -> bool {
    let [bits, pattern, wire @ ..] = input else {
        return false;
    };
    let party = Party::choose(*bits);
    let mut pieces = Pieces::new(wire, *pattern);
    let mut inbox = Vec::new();
    let mut forwarded = false;
    for _ in 0..REQUESTS_MAX {
        let Some(head_bytes) = next_head(&mut inbox, &mut pieces) else {
            break;
        };
        let begin = wire.len() - pieces.left() - inbox.len();
        let sent = &wire[begin..];
        let outcome = one_request(party, sent, head_bytes, &mut inbox, &mut pieces);
        forwarded |= outcome.forwarded;
        if outcome.persist == Persist::Close {
            break;
        }
    }
    forwarded
}

/// What came of one request.
struct Outcome {
    /// Whether a server got all of it.
    forwarded: bool,
    persist: Persist,
}

impl Outcome {
    fn refused(persist: Persist) -> Self {
        Self {
            forwarded: false,
            persist,
        }
    }
}

/// Length of the head that the inbox comes to begin with; `None` if the connection ends before.
fn next_head(inbox: &mut Vec<u8>, pieces: &mut Pieces<'_>) -> Option<usize> {
    let mut search = HeadSearch::default();
    loop {
        if let Found::Head(length) = search.look(inbox, HEAD_BYTES_MAX).ok()? {
            return Some(length);
        }
        inbox.extend_from_slice(pieces.next(usize::MAX)?);
    }
}

/// Takes one request through the engine; `sent` is all that the device sends from its head on.
fn one_request(
    party: Party,
    sent: &[u8],
    head_bytes: usize,
    inbox: &mut Vec<u8>,
    pieces: &mut Pieces<'_>,
) -> Outcome {
    let sender = Sender {
        scope: Scope::NONE,
        source: party.source,
        slot: party.slot,
        mark: None,
        fields_max: FIELDS_MAX,
        keeps_upstream: true,
        noted: None,
    };
    let received = inbox.len();
    let mut out = Vec::new();
    let decided = plan::decide(
        scene::snapshot(),
        sender,
        inbox,
        head_bytes,
        || REQUEST_ID,
        &mut out,
    );
    let (plan, mut intake) = match decided {
        Ok(decided) => decided,
        Err(refusal) if refusal.persist == Persist::Keep => {
            assert_eq!(inbox.len(), received - head_bytes, "more than a head left");
            let head = strict::request(&sent[..head_bytes], Reading::Received);
            let head = head.expect("a head without a body");
            assert!(head.body.is_empty(), "a refused body is still to come");
            return Outcome::refused(Persist::Keep);
        }
        Err(_) => return Outcome::refused(Persist::Close),
    };
    let unread = received + pieces.left();
    let whole = relay_body(&plan, &mut intake, inbox, pieces, &mut out);
    let forwarded = strict::request(&out, Reading::Written);
    if !whole {
        // What the server got must look cut off.
        assert_eq!(forwarded.err(), Some(Fault::Incomplete));
        return Outcome::refused(Persist::Close);
    }
    let forwarded = forwarded.expect("what is forwarded is a request");
    assert_eq!(forwarded.length, out.len(), "bytes behind the request");
    let original = strict::request(sent, Reading::Received).expect("what came is a request");
    let taken = unread - inbox.len() - pieces.left();
    assert_eq!(taken, original.length, "bytes of another request");
    assert!(forwarded.body == original.body, "another body");
    assert_eq!(forwarded.framing, original.framing);
    assert!(original.body.len() as u64 <= party.body_bytes_max());
    assert_eq!(intake.taken(), original.body.len() as u64);
    check_line(party, &original, &forwarded);
    check_fields(party, &original, &forwarded, plan.upstream);
    if plan.upstream == Persist::Keep {
        check_reuse(&forwarded);
    }
    if plan.persist == Persist::Keep {
        let options = strict::connection_options(&original.fields);
        assert!(
            !options.contains(&"close".to_owned()),
            "goes on after close"
        );
        let asked = options.contains(&"keep-alive".to_owned());
        assert!(original.line.minor == 1 || asked, "HTTP/1.0 goes on");
    }
    Outcome {
        forwarded: true,
        persist: plan.persist,
    }
}

/// The server's connection is left fit for a request of another device.
fn check_reuse(forwarded: &Request<'_>) {
    let with_body = ["POST", "PUT", "PATCH"].map(str::as_bytes);
    let expects = |(name, _): &Field<'_>| name.eq_ignore_ascii_case(b"expect");
    let surprises = !forwarded.body.is_empty()
        && (!with_body.contains(&forwarded.line.method) || forwarded.fields.iter().any(expects));
    assert!(
        !surprises,
        "reused behind a body that may be taken for a request"
    );
    let logs_in = |(name, value): &Field<'_>| {
        let value = String::from_utf8_lossy(value).to_ascii_lowercase();
        let scheme = value.split([' ', '\t', ',']).next().unwrap_or_default();
        name.eq_ignore_ascii_case(b"authorization") && ["ntlm", "negotiate"].contains(&scheme)
    };
    assert!(
        !forwarded.fields.iter().any(logs_in),
        "reused although logged in"
    );
}

/// Moves the rest of a body as `proxy::upload` does; answers whether it came to its end.
fn relay_body(
    plan: &Plan<'_>,
    intake: &mut Intake,
    inbox: &mut Vec<u8>,
    pieces: &mut Pieces<'_>,
    out: &mut Vec<u8>,
) -> bool {
    let mut buffer = Vec::with_capacity(PIECE_BUFFER_BYTES);
    while !intake.is_done() {
        let room = relay::make_room(&mut buffer);
        let Some(piece) = pieces.next(intake.room(room)) else {
            return false;
        };
        buffer.extend_from_slice(piece);
        let Ok(piece) = intake.take(&mut buffer, RESERVE) else {
            return false;
        };
        inbox.extend_from_slice(&buffer[piece.end..]);
        let begin = relay::frame(&mut buffer, piece.payload, plan.body, intake.is_done());
        out.extend_from_slice(&buffer[begin..]);
    }
    true
}

type Request<'a> = Message<'a, RequestLine<'a>>;

/// The request line names the device's own path, below the base path and nowhere else.
fn check_line(party: Party, original: &Request<'_>, forwarded: &Request<'_>) {
    let (line, target) = (&original.line, original.line.target);
    assert_eq!(forwarded.line.method, line.method);
    assert_eq!(forwarded.line.minor, 1);
    assert!(
        !["CONNECT", "TRACE"]
            .iter()
            .any(|method| method.as_bytes() == line.method)
    );
    assert!(!target.contains(&b'#'), "a fragment");
    let (_, path) = split_target(target);
    let base = party.base();
    let asterisk = line.method == b"OPTIONS" && (path.is_empty() || path == b"*");
    let expected = match (asterisk, base) {
        (true, "") => b"*".to_vec(),
        (true, _) => [base.as_bytes(), b"/"].concat(),
        (false, _) if path.starts_with(b"/") => [base.as_bytes(), path].concat(),
        (false, _) => [base.as_bytes(), b"/", path].concat(),
    };
    assert!(forwarded.line.target == expected, "another target");
    assert!(asterisk || path != b"*", "an asterisk as a path");
    for rounds in 0..4 {
        assert!(!climbs(path, rounds), "leads above the base path");
    }
}

/// The authority of an absolute-form target, and what follows it.
fn split_target(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    if target.first() == Some(&b'/') || target == b"*" {
        return (None, target);
    }
    let scheme = target.get(..7).map(<[u8]>::to_ascii_lowercase);
    assert_eq!(scheme.as_deref(), Some(&b"http://"[..]), "another scheme");
    let rest = &target[7..];
    let end = rest.iter().position(|byte| b"/?".contains(byte));
    let (authority, path) = rest.split_at(end.unwrap_or(rest.len()));
    (Some(authority), path)
}

/// Whether a server that decodes a path so many times, takes `\` for `/` and forgets parameters
/// would climb above where the path begins.
fn climbs(path: &[u8], rounds: usize) -> bool {
    let mut path = path
        .split(|byte| *byte == b'?')
        .next()
        .unwrap_or_default()
        .to_vec();
    for _ in 0..rounds {
        path = percent_decode(&path);
    }
    let mut depth = 0;
    for segment in path.split(|byte| b"/\\".contains(byte)) {
        match segment
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
        {
            b"" | b"." => {}
            b".." => depth -= 1,
            _ => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

fn percent_decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let pair = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        match pair {
            Some((high, low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

/// The fields are the device's that pass on, in order, and the gateway's own.
fn check_fields(party: Party, original: &Request<'_>, forwarded: &Request<'_>, upstream: Persist) {
    let host = party.host(destination(party, original));
    let login = party.login();
    let options = strict::connection_options(&original.fields);
    let passes = |(name, _): &&Field<'_>| {
        let lower = String::from_utf8_lossy(name).to_ascii_lowercase();
        !is_ours(name, original.line.minor, login.is_some()) && !options.contains(&lower)
    };
    let passing: Vec<Field<'_>> = original.fields.iter().filter(passes).copied().collect();
    let (first, rest) = forwarded.fields.split_first().expect("a Host");
    assert_eq!(*first, (&b"Host"[..], host.as_bytes()));
    let (of_device, own) = rest
        .split_at_checked(passing.len())
        .expect("all that passes");
    assert!(of_device == passing, "a device's field was changed");

    let has_id = passing
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case(b"x-request-id"));
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut expect = |name: &str, value: &str| expected.push((name.into(), value.into()));
    let identity = party.identity();
    for (name, value) in ["Account", "Device", "SerialNumber"].iter().zip(&identity) {
        expect(&format!("X_Talk2M_{name}"), value);
        if party.has_aliases() {
            expect(&format!("X-Talk2M-{name}"), value);
        }
    }
    if party.is_told_addresses() {
        let node = match party.source {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        expect("Forwarded", &format!("for={node}"));
    }
    if let Some(login) = login {
        expect("Authorization", login);
    }
    if !has_id {
        expect("X-Request-Id", &String::from_utf8_lossy(&REQUEST_ID));
    }
    expect("Via", &format!("1.{} m2u", original.line.minor));
    // The server must hear of what the gateway does not mean to do.
    if upstream == Persist::Close {
        expect("Connection", "close");
    }
    match forwarded.framing {
        Framing::Length(length) => expect("Content-Length", &length.to_string()),
        Framing::Chunked => expect("Transfer-Encoding", "chunked"),
        Framing::Absent | Framing::UntilClose => {}
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut own: Vec<_> = own
        .iter()
        .map(|(name, value)| (text(name), text(value)))
        .collect();
    own.sort();
    expected.sort();
    assert_eq!(own, expected, "the gateway's own fields");
}

/// Whether a field is the gateway's to write, or no server's to see.
fn is_ours(name: &[u8], minor: u8, has_login: bool) -> bool {
    let folded = strict::fold(name);
    let lower = String::from_utf8_lossy(name).to_ascii_lowercase();
    let hop = [
        "connection",
        "keep-alive",
        "proxy",
        "proxy-connection",
        "proxy-authorization",
        "http2-settings",
        "trailer",
        "upgrade",
        "forwarded",
        "host",
        "content-length",
        "transfer-encoding",
    ];
    folded.starts_with("x_talk2m_")
        || folded.starts_with("x_forwarded")
        || folded == "x_real_ip"
        || folded == "te"
        || hop.contains(&lower.as_str())
        || (lower == "authorization" && has_login)
        || (lower == "expect" && minor == 0)
}

/// Number of the slot that a request names.
fn destination(party: Party, original: &Request<'_>) -> u16 {
    let is_host = |(name, _): &&Field<'_>| name.eq_ignore_ascii_case(b"host");
    let hosts: Vec<_> = original.fields.iter().filter(is_host).collect();
    assert!(hosts.len() <= 1, "two hosts");
    assert!(original.line.minor == 0 || hosts.len() == 1, "no host");
    let (authority, _) = split_target(original.line.target);
    let host = hosts.first().map(|(_, value)| *value);
    let named = authority.or(host).unwrap_or_default();
    let named = String::from_utf8_lossy(named).to_ascii_lowercase();
    assert!(!named.contains(['@', '/', ' ', ',']), "no authority");
    let port = named
        .rfind(':')
        .filter(|colon| !named[*colon..].contains(']'));
    let host = &named[..port.unwrap_or(named.len())];
    if let Some(port) = port {
        let digits = named[port + 1..].bytes().all(|byte| byte.is_ascii_digit());
        assert!(digits, "a port that is no number");
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let label = host.strip_suffix('.').unwrap_or(host);
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    if host.is_empty() || is_address(bare) || is_address(label) {
        return party.slot.number();
    }
    let label = label.strip_suffix(".talk2m.com").unwrap_or(label);
    match label {
        "m2u" => 1,
        "m2u2" => 2,
        _ => panic!("{label:?} names no server of ours"),
    }
}
