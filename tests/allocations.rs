//! A warm request on kept-alive connections allocates nothing on the heap, unless it names a host of more than
//! `AUTHORITY_BYTES_SHORT` bytes.
//!
//! The engine runs inside this test, on one core, under an allocator that counts. Devices and
//! servers here use fixed buffers, so that every allocation that is seen is the gateway's.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "an allocator is unsafe by its nature")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    backtrace::Backtrace,
    cell::Cell,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use common::{
    certificates::{Authority, Validity},
    engine,
};
use m2u::{
    config::settings::{AccessLog, LogFormat, Slot},
    observe::access_log::Log,
    snapshot::route::{Route, UpstreamTls},
};
use rustls::{ClientConfig, RootCertStore, ServerConnection, pki_types::pem::PemObject};

/// Remembers where each allocation came from while it is armed.
struct Recorder;

static ARMED: AtomicBool = AtomicBool::new(false);
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    static RECORDING: Cell<bool> = const { Cell::new(false) };
}

impl Recorder {
    fn record(&self) {
        if !ARMED.load(Ordering::SeqCst) || RECORDING.replace(true) {
            return;
        }
        let trace = Backtrace::force_capture().to_string();
        SEEN.lock().unwrap().push(trace);
        RECORDING.set(false);
    }
}

// SAFETY: every call goes on to the system's allocator unchanged; recording allocates through the
// same allocator, and can't enter itself.
unsafe impl GlobalAlloc for Recorder {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.record();
        // SAFETY: the caller's promises are the ones that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the ones that the system's allocator asks for.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.record();
        // SAFETY: the caller's promises are the ones that the system's allocator asks for.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static RECORDER: Recorder = Recorder;

const REQUEST: &[u8] = b"POST /ingest?x=1 HTTP/1.1\r\nHost: m2u.talk2m.com\r\n\
    Content-Type: application/json\r\nX-Talk2M-Device: forged\r\nContent-Length: 10\r\n\r\n\
    {\"a\":1234}";
const CHUNKED: &[u8] = b"POST /ingest?x=1 HTTP/1.1\r\nHost: m2u.talk2m.com\r\n\
    Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
    3\r\n{\"a\r\n7;x=y\r\n\":1234}\r\n0\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: fixed\r\nContent-Length: 2\r\n\r\nok";
const WARM_UP: usize = 200;
const MEASURED: usize = 1_000;

/// The tests count for the whole process, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Starts the engine on one core, asks warm requests, and answers where it allocated meanwhile.
fn allocations_of(route: Route, request: &[u8], log: Option<Arc<Log>>) -> Vec<String> {
    let engine = engine::start_logging([route], log);
    let mut device = TcpStream::connect(engine.addresses()[0].0).unwrap();
    device.set_read_timeout(Some(common::PATIENCE)).unwrap();
    ask(&mut device, request, WARM_UP);
    ARMED.store(true, Ordering::SeqCst);
    ask(&mut device, request, MEASURED);
    ARMED.store(false, Ordering::SeqCst);
    drop(device);
    engine.drain(Duration::from_secs(5));
    engine.join().unwrap();
    std::mem::take(&mut SEEN.lock().unwrap())
}

fn ask(device: &mut TcpStream, request: &[u8], times: usize) {
    let mut buffer = [0; 1024];
    for _ in 0..times {
        device.write_all(request).unwrap();
        let mut received = 0;
        while !buffer[..received].ends_with(b"\r\n\r\nok") {
            let more = device.read(&mut buffer[received..]).unwrap();
            assert!(more > 0, "{}", String::from_utf8_lossy(&buffer[..received]));
            received += more;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}

/// Answers every request on every connection, out of fixed buffers.
fn serve(stream: &mut (impl Read + Write)) {
    let mut buffer = [0; 4096];
    let mut received = 0;
    while let Ok(more) = stream.read(&mut buffer[received..]) {
        if more == 0 {
            return;
        }
        received += more;
        let is_whole = |end: &[u8]| buffer[..received].ends_with(end);
        if is_whole(b"{\"a\":1234}") || is_whole(b"\r\n0\r\n\r\n") {
            assert!(buffer.starts_with(b"POST /base/ingest?x=1 HTTP/1.1\r\n"));
            received = 0;
            if stream.write_all(ANSWER).is_err() {
                return;
            }
        }
    }
}

/// Likewise, over plain TCP.
fn plain_allocations_of(request: &[u8], log: Option<Arc<Log>>) -> Vec<String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve(&mut listener.accept().unwrap().0));
    let seen = allocations_of(engine::route(Slot::FIRST, address, None), request, log);
    server.join().unwrap();
    seen
}

#[test]
fn a_warm_plain_request_allocates_nothing() {
    let _turn = TURN.lock().unwrap();
    for request in [REQUEST, CHUNKED] {
        let seen = plain_allocations_of(request, None);
        assert!(
            seen.is_empty(),
            "{} allocations, the first:\n{}",
            seen.len(),
            seen[0]
        );
    }
}

#[test]
fn a_logged_request_allocates_nothing_but_a_buffer_for_many_lines() {
    let _turn = TURN.lock().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for format in [LogFormat::Json, LogFormat::Text] {
        let path = folder.path().join(format!("{format:?}"));
        let settings = AccessLog {
            path: path.clone(),
            format,
        };
        let log = Arc::new(Log::open(&settings).unwrap());
        let seen = plain_allocations_of(REQUEST, Some(Arc::clone(&log)));
        log.close();
        let lines = std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!(lines, WARM_UP + MEASURED);
        // How many buffers are on their way at once depends on the disk, not on the requests.
        for trace in &seen {
            assert!(is_log_buffer(trace), "{trace}");
        }
        assert!(seen.len() < MEASURED / 10, "{} allocations", seen.len());
    }
}

/// Whether the access log took a buffer, or made room to keep one.
fn is_log_buffer(trace: &str) -> bool {
    let ours = frames(trace).find(|frame| party(frame) != "std");
    ours.is_some_and(|frame| {
        let kept = [
            "CoreLog>::hand_on",
            "CoreLog::hand_on",
            "Shared>::put",
            "Shared::put",
        ];
        kept.iter().any(|name| frame.contains(name))
    })
}

#[test]
fn a_warm_request_over_tls_allocates_nothing_but_what_rustls_does() {
    let _turn = TURN.lock().unwrap();
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let mut roots = RootCertStore::empty();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_file(authority.pem()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = UpstreamTls {
        config: Arc::new(config),
        name: "127.0.0.1".try_into().unwrap(),
    };

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server_config = Authority::server_config(&leaf, None);
    let server = thread::spawn(move || {
        let session = ServerConnection::new(server_config).unwrap();
        let socket = listener.accept().unwrap().0;
        serve(&mut rustls::StreamOwned::new(session, socket));
    });
    let route = engine::route(Slot::FIRST, address, Some(tls));
    let seen = allocations_of(route, REQUEST, None);
    assert!(
        !seen.is_empty(),
        "rustls is known to allocate: the recorder must be deaf"
    );
    for trace in &seen {
        let asked = frames(trace).find(|frame| party(frame) != "std").unwrap();
        assert!(
            matches!(party(asked), "rustls" | "aws_lc_rs"),
            "{asked}:\n{trace}"
        );
    }
    server.join().unwrap();
}

/// The functions of a trace, innermost first.
fn frames(trace: &str) -> impl Iterator<Item = &str> {
    trace.lines().filter_map(|line| {
        let (number, function) = line.trim_start().split_once(": ")?;
        number.parse::<u32>().is_ok().then_some(function)
    })
}

/// Whose code a function is: the crate of its own path, whatever it is generic over. The standard
/// library, and the recorder inside it, only pass on what somebody asked for.
fn party(function: &str) -> &str {
    let path = function.trim_start_matches(['<', '&', '(', '[', '*']);
    let end = path
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(path.len());
    match &path[..end] {
        // A trait's method for a type that is not named, as in `<T as alloc::…>::to_vec`.
        "T" | "I" | "F" | "R" | "S" | "A" | "alloc" | "core" | "std" | "hashbrown" | "mut"
        | "dyn" | "allocations" => "std",
        name if name.starts_with("__r") || name.starts_with("backtrace") => "std",
        name => name,
    }
}

#[test]
fn a_function_belongs_to_the_crate_that_wrote_it() {
    for (function, crate_name) in [
        ("<m2u::engine::net::tls::Session>::advance", "m2u"),
        ("m2u::engine::net::tls::append::<rustls::Error>", "m2u"),
        ("rustls::record_layer::RecordLayer::encrypt", "rustls"),
        ("<rustls::msgs::X as core::clone::Clone>::clone", "rustls"),
        ("<alloc::vec::Vec<rustls::Error>>::push", "std"),
        ("alloc::vec::Vec<T,A>::reserve", "std"),
        ("<T as alloc::slice::hack::ConvertVec>::to_vec", "std"),
        ("monoio::driver::op::Op<T>::submit_with", "monoio"),
        ("__rustc::__rust_alloc", "std"),
    ] {
        assert_eq!(party(function), crate_name, "{function}");
    }
}
