//! Answers on their way to a device, against the strict reader.
//!
//! Arbitrary bytes of a server go through the engine's own hearing of an answer and its framing of
//! bodies. Whatever the device would receive must be interim answers and exactly one final one, with
//! the body that the strict reader finds in the server's bytes, or visibly cut off. A connection
//! with anything left over must not be used again.
//!
//! The first byte of an input chooses request and server, the second where the rest is cut, the
//! third how the server's connection ends.

use m2u::{
    engine::{
        http1::{
            framing::{Body, Version},
            head::{self, Persist},
        },
        proxy::{
            answer::{self, Heard, Start},
            plan::{self, Plan, Sender},
            relay::{self, RESERVE},
        },
    },
    limits,
    snapshot::scope::Scope,
};

use crate::{
    pieces::{PIECE_BUFFER_BYTES, Pieces},
    scene::{self, DATE, FIELDS_MAX, HEAD_BYTES_MAX, Party, REQUEST_ID},
    strict::{self, Fault, Field, Framing, Message, Reading, StatusLine},
};

const REQUESTS: [&[u8]; 8] = [
    b"GET /a HTTP/1.1\r\nHost: m2u\r\n\r\n",
    b"HEAD /a HTTP/1.1\r\nHost: m2u.talk2m.com:80\r\n\r\n",
    b"GET /a HTTP/1.0\r\n\r\n",
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: m2u2\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
    b"HEAD /a HTTP/1.0\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nHost: 10.8.0.2\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    b"GET http://m2u.talk2m.com/a HTTP/1.1\r\nHost: m2u\r\n\r\n",
];

/// What came of a server's bytes.
struct Relayed {
    /// What the device received.
    out: Vec<u8>,
    /// Interim answers that were heard.
    interims: usize,
    /// What the final head decided; `None` if there was none.
    start: Option<Start>,
    /// Where the final head begins in the server's bytes.
    begin: usize,
    /// Whether the answer came to its end.
    whole: bool,
    /// Whether bytes behind the end came with it, or an interim answer ends the connection.
    spent: bool,
}

/// Panics if the device would receive what it should not; answers whether it would receive a final
/// answer.
pub fn check(input: &[u8]) -> bool {
    let [choice, pattern, ending, wire @ ..] = input else {
        return false;
    };
    let party = Party::choose(choice >> 3 & 8 | 3);
    let sender = Sender {
        scope: Scope::NONE,
        source: party.source,
        slot: party.slot,
        mark: None,
        fields_max: FIELDS_MAX,
        keeps_upstream: true,
        noted: None,
    };
    let mut inbox = REQUESTS[usize::from(choice & 7)].to_vec();
    let head_bytes = strict::head(&inbox).expect("a request").1;
    let (snapshot, id) = (scene::snapshot(), || REQUEST_ID);
    let decided = plan::decide(
        snapshot,
        sender,
        &mut inbox,
        head_bytes,
        id,
        &mut Vec::new(),
    );
    let (plan, _) = decided.expect("a request that is sent");
    let (ends, may_keep) = (ending & 1 != 0, ending & 2 == 0);
    let mut pieces = Pieces::new(wire, *pattern);
    let relayed = relay(&plan, wire, &mut pieces, ends, may_keep);
    let fed = wire.len() - pieces.left();
    check_interims(&plan, &relayed);
    if let Some(start) = &relayed.start {
        check_final(
            &plan,
            &relayed,
            start,
            &wire[relayed.begin..fed],
            ends,
            may_keep,
        );
    }
    relayed.start.is_some()
}

/// Hears and relays as `proxy::answer` does.
fn relay(
    plan: &Plan<'_>,
    wire: &[u8],
    pieces: &mut Pieces<'_>,
    ends: bool,
    may_keep: bool,
) -> Relayed {
    let mut relayed = Relayed {
        out: Vec::new(),
        interims: 0,
        start: None,
        begin: 0,
        whole: false,
        spent: false,
    };
    let (mut received, mut outbox) = (Vec::new(), Vec::new());
    let mut scanned = 0;
    let mut start = loop {
        let found = head::find_end(&received, scanned);
        match found {
            Ok(Some(length)) if length <= HEAD_BYTES_MAX => {
                let begin = wire.len() - pieces.left() - received.len();
                match answer::hear(
                    plan,
                    &mut received,
                    length,
                    FIELDS_MAX,
                    may_keep,
                    || DATE,
                    &mut outbox,
                ) {
                    Ok(Heard::Final(start)) => {
                        relayed.begin = begin;
                        break start;
                    }
                    Ok(Heard::Interim { upstream, .. })
                        if relayed.interims < limits::INTERIM_RESPONSES_MAX =>
                    {
                        relayed.spent |= upstream == Persist::Close;
                        relayed.interims += 1;
                        received.drain(..length);
                        scanned = 0;
                        if plan.version == Version::Http11 {
                            relayed.out.extend_from_slice(&outbox);
                        }
                        continue;
                    }
                    Ok(Heard::Interim { .. }) | Err(_) => return relayed,
                }
            }
            Ok(None) if received.len() < HEAD_BYTES_MAX => {}
            Ok(_) | Err(_) => return relayed,
        }
        scanned = received.len();
        let Some(piece) = pieces.next(1_024) else {
            return relayed;
        };
        received.extend_from_slice(piece);
    };
    relayed.out.extend_from_slice(&outbox);
    let mut buffer = Vec::with_capacity(PIECE_BUFFER_BYTES);
    relayed.whole = loop {
        if start.intake.is_done() {
            break true;
        }
        let room = relay::make_room(&mut buffer);
        match pieces.next(start.intake.room(room)) {
            Some(piece) => buffer.extend_from_slice(piece),
            None if ends && start.intake.ends_by_close() => start.intake.finish(),
            None => break false,
        }
        let Ok(piece) = start.intake.take(&mut buffer, RESERVE) else {
            break false;
        };
        relayed.spent |= piece.end < buffer.len();
        let done = start.intake.is_done();
        let begin = relay::frame(&mut buffer, piece.payload, start.delivered, done);
        relayed.out.extend_from_slice(&buffer[begin..]);
    };
    relayed.start = Some(start);
    relayed
}

/// What precedes the final answer is whole interim answers, for a device that knows them.
fn check_interims(plan: &Plan<'_>, relayed: &Relayed) {
    let mut rest = &relayed.out[..];
    let mut interims = 0;
    while let Ok(message) = strict::response(rest, Reading::Written, plan.to_head(), false)
        && message.line.status < 200
    {
        assert_ne!(message.line.status, 101, "another protocol");
        assert!(message.fields.iter().all(|(name, _)| !is_hop(name)));
        rest = &rest[message.length..];
        interims += 1;
    }
    let expected = match plan.version {
        Version::Http10 => 0,
        Version::Http11 => relayed.interims,
    };
    assert_eq!(interims, expected);
    assert_eq!(
        rest.is_empty(),
        relayed.start.is_none(),
        "bytes without a head"
    );
}

type Response<'a> = Message<'a, StatusLine<'a>>;

/// The final answer is the server's; `sent` is what was received from its head on.
fn check_final(
    plan: &Plan<'_>,
    relayed: &Relayed,
    start: &Start,
    sent: &[u8],
    ends: bool,
    may_keep: bool,
) {
    let mut rest = &relayed.out[..];
    if plan.version == Version::Http11 {
        for _ in 0..relayed.interims {
            rest = &rest[strict::head(rest).expect("an interim answer").1..];
        }
    }
    let to_head = plan.to_head();
    let seen = strict::response(rest, Reading::Written, to_head, relayed.whole);
    let original = strict::response(sent, Reading::Received, to_head, ends);
    if !relayed.whole {
        // By the end of the connection, which is a reset where the end would say "complete".
        assert_eq!(seen.err(), Some(Fault::Incomplete), "passes for complete");
        assert!(original.is_err(), "broke off although it was whole");
        return;
    }
    let seen = seen.expect("what the device sees is an answer");
    let original = original.expect("what the server sent is an answer");
    assert_eq!(seen.length, rest.len(), "bytes behind the answer");
    assert!(seen.body == original.body, "another body");
    assert_eq!(seen.line.status, original.line.status);
    // A reason that is not ASCII is left out, which RFC 9112 §4 allows.
    let reason = original.line.reason;
    assert_eq!(
        seen.line.reason,
        if reason.is_ascii() { reason } else { b"" }
    );
    assert_eq!(seen.line.minor, 1);
    let keeps = start.downstream == Persist::Keep;
    assert!(
        !keeps || seen.framing != Framing::UntilClose,
        "no end but the connection's"
    );
    assert!(!keeps || (may_keep && plan.persist == Persist::Keep));
    if start.upstream == Persist::Keep && !relayed.spent {
        assert_eq!(original.length, sent.len(), "reused with bytes left over");
        assert_ne!(original.framing, Framing::UntilClose);
        // A server that is wrong about a body where none may come sends it later.
        let is_zero = |value: &[u8]| value.iter().all(|byte| *byte == b'0');
        let announces = |(name, value): &Field<'_>| is_framing(name) && !is_zero(value);
        let may_follow =
            original.framing == Framing::Absent && original.fields.iter().any(announces);
        assert!(!may_follow, "reused before a body that may come");
        let options = strict::connection_options(&original.fields);
        assert!(!options.contains(&"close".to_owned()), "reused after close");
        let asked = options.contains(&"keep-alive".to_owned());
        let may_know = asked && plan.body != Body::Chunked;
        assert!(original.line.minor == 1 || may_know, "HTTP/1.0 reused");
    }
    check_fields(plan, start, &original, &seen, keeps);
}

/// The fields are the server's that pass on, in order, and the gateway's own.
fn check_fields(
    plan: &Plan<'_>,
    start: &Start,
    original: &Response<'_>,
    seen: &Response<'_>,
    keeps: bool,
) {
    let options = strict::connection_options(&original.fields);
    let passes = |(name, _): &&Field<'_>| {
        let lower = String::from_utf8_lossy(name).to_ascii_lowercase();
        !is_hop(name) && !is_framing(name) && !options.contains(&lower)
    };
    let passing: Vec<Field<'_>> = original.fields.iter().filter(passes).copied().collect();
    let (of_server, own) = seen
        .fields
        .split_at_checked(passing.len())
        .expect("all that passes");
    for ((name, value), (name_before, value_before)) in of_server.iter().zip(&passing) {
        assert_eq!(name, name_before);
        let folded = strict::fold(name);
        if folded == "location" || folded == "content_location" {
            let mapped = value.starts_with(b"/") || value.starts_with(b"http://m2u");
            assert!(value == value_before || mapped || value.starts_with(b"http://10.8.0.2"));
        } else {
            assert_eq!(value, value_before);
        }
    }
    let framed = own.iter().filter(|(name, _)| is_framing(name)).count();
    assert!(framed <= 1, "framed twice");
    assert!(plan.version == Version::Http11 || seen.framing != Framing::Chunked);
    if plan.version == Version::Http10 {
        assert!(
            own.iter().all(|(name, _)| *name != b"Transfer-Encoding"),
            "in HTTP/1.0"
        );
    }
    if start.delivered == Body::UntilClose {
        assert_eq!(framed, 0);
    }
    let is_date = |(name, _): &&Field<'_>| name.eq_ignore_ascii_case(b"date");
    let dates: Vec<_> = own.iter().filter(is_date).collect();
    match of_server.iter().any(|field| is_date(&field)) {
        true => assert!(dates.is_empty(), "dated twice"),
        false => assert_eq!(dates, [&(&b"Date"[..], &DATE[6..35])]),
    }
    let said = own
        .iter()
        .filter(|field| !is_framing(field.0) && !is_date(field));
    let said: Vec<_> = said.collect();
    match (keeps, plan.version) {
        (true, Version::Http11) => assert!(said.is_empty()),
        (true, Version::Http10) => assert_eq!(said, [&(&b"Connection"[..], &b"keep-alive"[..])]),
        (false, _) => assert_eq!(said, [&(&b"Connection"[..], &b"close"[..])]),
    }
}

fn is_framing(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"content-length") || name.eq_ignore_ascii_case(b"transfer-encoding")
}

/// Whether a field means something between two neighbours only.
fn is_hop(name: &[u8]) -> bool {
    let hop = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authentication-info",
        "te",
        "trailer",
        "upgrade",
    ];
    hop.contains(&String::from_utf8_lossy(name).to_ascii_lowercase().as_str())
}
