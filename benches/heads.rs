//! What a core does with the bytes of a request and of its answer: reads heads, tells where bodies
//! end, decides, writes heads anew, takes chunks apart.
//!
//! Fed by what the golden files say that real devices and servers send; a figure is the mean over
//! all of them. Opens no socket.

use std::hint::black_box;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use m2u::{
    config::settings::Slot,
    engine::{
        http1::{
            chunked::Decoder,
            field,
            framing::{Body, Framing, Version},
            head::{self, Request},
            rewrite::DATE_FIELD_BYTES,
        },
        proxy::{
            answer::{self, Heard},
            plan::{self, Plan, Sender},
        },
    },
    limits::FIELDS_DEFAULT,
    snapshot::{Snapshot, scope::Scope},
};

use common::{
    engine,
    golden::{self, Step},
};

#[path = "../tests/common/mod.rs"]
mod common;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const REQUEST_ID: [u8; 32] = *b"0123456789abcdef0123456789abcdef";
const DATE: [u8; DATE_FIELD_BYTES] = *b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
/// An upload in many chunks, such as BASIC sends: how many, and of what size.
const CHUNKS: usize = 8;
const CHUNK_BYTES: usize = 2_048;

criterion_group!(benches, heads, chunks);
criterion_main!(benches);

fn heads(criterion: &mut Criterion) {
    let requests = requests("devices");
    let mut group = criterion.benchmark_group("head");
    over(&mut group, "parse", &requests, |request| {
        let (head, _) = request.split_at(head_bytes(request));
        let mut space = head::field_space();
        black_box(Request::parse(head, &mut space, FIELDS_DEFAULT).expect("a request"));
    });
    let fields: Vec<_> = requests.iter().map(|request| fields(request)).collect();
    over(&mut group, "framing", &fields, |(version, fields)| {
        let mut framing = Framing::default();
        for (name, value) in fields {
            let known = field::classify_request(name);
            framing.take(known, value).expect("one reading");
        }
        black_box(framing.request_body(*version).expect("one reading"));
    });

    let snapshot = snapshot();
    let (mut inbox, mut outbox) = (Vec::new(), Vec::new());
    over(&mut group, "decide", &requests, |request| {
        black_box(decide(&snapshot, request, &mut inbox, &mut outbox));
    });
    let plan = decide(&snapshot, &requests[0], &mut inbox, &mut outbox);
    let answers = answers(&plan);
    over(&mut group, "answer", &answers, |answer| {
        black_box(hear(&plan, answer, &mut inbox, &mut outbox));
    });
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let golden: Vec<_> = requests("devices")
        .iter()
        .filter(|request| is_chunked(request))
        .map(|request| request[head_bytes(request)..].to_vec())
        .collect();
    let chunk = [b"800\r\n", &[b'9'; CHUNK_BYTES][..], b"\r\n"].concat();
    let large = [chunk.repeat(CHUNKS), b"0\r\n\r\n".to_vec()].concat();
    let mut group = criterion.benchmark_group("chunks");
    for (name, bodies) in [("a device's", golden), ("8 of 2 KiB", vec![large])] {
        let bytes: usize = bodies.iter().map(Vec::len).sum();
        group.throughput(Throughput::Bytes((bytes / bodies.len()) as u64));
        over(&mut group, name, &bodies, |body| {
            black_box(unchunk(body));
        });
    }
    group.finish();
}

/// Measures `work` on one of `items` after the other.
fn over<T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    items: &[T],
    mut work: impl FnMut(&T),
) {
    let mut items = items.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.iter(|| work(black_box(items.next().expect("there are some"))));
    });
}

/// What devices send in the golden files of one theme, all of it forwarded.
fn requests(theme: &str) -> Vec<Vec<u8>> {
    let cases = golden::load("forward").into_iter();
    cases
        .filter(|case| case.theme == theme)
        .map(|case| case.sent())
        .collect()
}

/// What servers send in the golden files that leaves their connection fit for another request, and
/// needs no other request than that of `plan`.
fn answers(plan: &Plan<'_>) -> Vec<Vec<u8>> {
    let cases = golden::load("answer").into_iter();
    let (mut received, mut outbox) = (Vec::new(), Vec::new());
    cases
        .filter(|case| case.says("reuse"))
        .filter_map(|case| {
            case.steps.into_iter().find_map(|step| match step {
                Step::Server(bytes) => Some(bytes),
                _ => None,
            })
        })
        .filter(|bytes| matches!(head::find_end(bytes, 0), Ok(Some(_))))
        .filter(|bytes| hear(plan, bytes, &mut received, &mut outbox))
        .collect()
}

fn snapshot() -> Snapshot {
    let slots = ["m2u", "m2u2"].map(|name| Slot::parse(name.as_bytes()).expect("a slot's name"));
    let server = ([127, 0, 0, 1], 80).into();
    engine::snapshot(
        "127.0.0.1/32",
        slots.map(|slot| engine::route(slot, server, None)),
    )
}

fn head_bytes(message: &[u8]) -> usize {
    let end = head::find_end(message, 0).expect("lines end in CRLF");
    end.expect("a whole head")
}

type Pair = (Vec<u8>, Vec<u8>);

/// Version and fields of a request, by name and value.
fn fields(request: &[u8]) -> (Version, Vec<Pair>) {
    let mut space = head::field_space();
    let head = &request[..head_bytes(request)];
    let request = Request::parse(head, &mut space, FIELDS_DEFAULT).expect("a request");
    let fields = request.fields.iter();
    let pairs = fields.map(|field| (field.name.into(), field.value.into()));
    (request.version, pairs.collect())
}

fn is_chunked(request: &[u8]) -> bool {
    let mut space = head::field_space();
    let head = &request[..head_bytes(request)];
    let request = Request::parse(head, &mut space, FIELDS_DEFAULT).expect("a request");
    request.body == Body::Chunked
}

/// From a received request to the head that its server gets, and what came with it of the body.
fn decide<'s>(
    snapshot: &'s Snapshot,
    request: &[u8],
    inbox: &mut Vec<u8>,
    outbox: &mut Vec<u8>,
) -> Plan<'s> {
    inbox.clear();
    inbox.extend_from_slice(request);
    outbox.clear();
    let head_bytes = head_bytes(inbox);
    let sender = Sender {
        scope: Scope::NONE,
        source: [127, 0, 0, 1].into(),
        slot: Slot::FIRST,
        mark: None,
        fields_max: FIELDS_DEFAULT,
        keeps_upstream: true,
        noted: None,
    };
    let decided = plan::decide(snapshot, sender, inbox, head_bytes, || REQUEST_ID, outbox);
    decided.expect("a request that is forwarded").0
}

/// From a received answer to what its device gets; says whether it is a final one.
fn hear(plan: &Plan<'_>, answer: &[u8], received: &mut Vec<u8>, outbox: &mut Vec<u8>) -> bool {
    received.clear();
    received.extend_from_slice(answer);
    let head_bytes = head_bytes(received);
    let heard = answer::hear(
        plan,
        received,
        head_bytes,
        FIELDS_DEFAULT,
        true,
        || DATE,
        outbox,
    );
    matches!(heard, Ok(Heard::Final(_)))
}

/// Reads a body to its end; answers the bytes of its payload.
fn unchunk(mut wire: &[u8]) -> usize {
    let mut decoder = Decoder::new();
    let mut payload_bytes = 0;
    loop {
        let decoded = decoder.decode(wire).expect("well-formed chunks");
        payload_bytes += decoded.payload.len();
        if decoded.finished {
            return payload_bytes;
        }
        wire = &wire[decoded.consumed..];
    }
}
