//! How a device's connection ends behind its last answer: it counts until the device's system has all of
//! that, whether the device has ended its side or is silent, and what the device sends all the same within
//! [`LINGER`] does not cost it the answer.
//!
//! Says nothing of devices that are refused, nor of a link on which anything takes time.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Instant,
};

use common::{
    PATIENCE,
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, account, acme, server},
    upstream::{Conversation, Step, Upstream},
    wait_until,
};
use m2u::limits::{DELIVERY_PATIENCE_FLOOR, LINGER};
use socket2::{Domain, Socket, Type};

const PRESS: &str = "127.0.0.7";
const OTHER: &str = "127.0.0.8";
const TRIES: usize = 20;
/// More than a small window takes, less than the gateway's socket holds.
const BYTES: usize = 400_000;
/// One core, and one idle connection to the server.
const FLAGS: &[&str] = &["--cores", "0", "--pool-per-core", "1"];
const LAST_REQUESTS: [&str; 2] = [
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\r\n",
];
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

fn answer(conversation: &mut Conversation) -> Step {
    while conversation.request()?.is_some() {
        conversation.answer(vec![b'x'; BYTES])?;
    }
    Ok(())
}

fn count(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'x').count()
}

/// What a device does behind its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Silence,
    End,
}

/// Asks on a connection with a small window, and reads no more than a status.
fn begin(
    source: &str,
    gateway: SocketAddr,
    request: &str,
    behind: Behind,
) -> (TcpStream, [u8; 12]) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let source: SocketAddr = format!("{source}:0").parse().unwrap();
    socket.bind(&source.into()).unwrap();
    socket.connect(&gateway.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    if behind == Behind::End {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    (stream, status)
}

/// Asks as `begin` does, as soon as there is a place, and waits until all of the answer has left the
/// gateway: the connection to the server on which it came serves another device then, and there is no
/// other that could. Answers as well when it asked.
fn begin_and_wait(
    gateway: &Gateway,
    upstream: &Upstream,
    request: &str,
    behind: Behind,
) -> (TcpStream, Instant) {
    let mut begun = None;
    wait_until("a place", || {
        let at = Instant::now();
        let (press, status) = begin(PRESS, gateway.address(), request, behind);
        begun = status.ends_with(b"200").then_some((press, at));
        begun.is_some()
    });
    wait_until("the answer to leave the gateway", || {
        let before = upstream.connections();
        let is_served = device::ask(OTHER, gateway.address(), LAST_REQUESTS[0]).status() == 200;
        is_served && upstream.connections() == before
    });
    begun.unwrap()
}

/// Reads what is left of an answer; how much of it that was, and why it was no more.
fn read_rest(press: &mut TcpStream) -> (usize, Option<io::Error>) {
    let mut rest = Vec::new();
    let received = press.read_to_end(&mut rest);
    (count(&rest), received.err())
}

/// Waits until the gateway waits no longer for what a device says that has its answer already.
fn wait_for_silence(gateway: &Gateway) {
    let mut silent = Device::connect(OTHER, gateway.address());
    silent.send(LAST_REQUESTS[0]);
    assert_eq!(count(&silent.receive_rest().unwrap()), BYTES);
    wait_until("the silent device's place", || {
        device::ask(OTHER, gateway.address(), LAST_REQUESTS[0]).status() == 200
    });
}

#[test]
fn a_device_that_takes_no_answer_keeps_its_place_until_it_does() {
    let upstream = Upstream::start(answer);
    let limits = "[limits]\nconnections_per_address = 1\n";
    let config = format!("{PREAMBLE}{limits}{}", acme(&upstream.url()));
    let gateway = Gateway::start_with(&config, FLAGS);
    for (request, behind) in [
        (LAST_REQUESTS[0], Behind::Silence),
        (LAST_REQUESTS[1], Behind::Silence),
        (LAST_REQUESTS[0], Behind::End),
        (LAST_REQUESTS[1], Behind::End),
        (REQUEST, Behind::End),
    ] {
        let (mut held, _) = begin_and_wait(&gateway, &upstream, request, behind);
        if behind == Behind::Silence {
            wait_for_silence(&gateway);
        }
        for _ in 0..5 {
            let (_refused, status) = begin(PRESS, gateway.address(), request, behind);
            assert!(status.ends_with(b"429"), "{request} {behind:?}");
        }
        wait_until("the end behind the answer", || {
            device::has_been_ended(&held)
        });
        let outcome = read_rest(&mut held);
        assert!(matches!(outcome, (BYTES, None)), "{request}: {outcome:?}");
    }
    gateway.stop();
}

#[test]
fn a_device_that_has_its_answer_is_served_again_however_soon_it_comes() {
    let upstream = Upstream::start(answer);
    let limits = "[limits]\nconnections_per_address = 1\n";
    let config = format!("{PREAMBLE}{limits}{}", acme(&upstream.url()));
    let gateway = Gateway::start_with(&config, FLAGS);
    let mut in_time = 0;
    let requests = [REQUEST].into_iter().chain(LAST_REQUESTS);
    for request in requests.cycle().take(TRIES) {
        let (mut press, begun) = begin_and_wait(&gateway, &upstream, request, Behind::End);
        wait_until("the end behind the answer", || {
            device::has_been_ended(&press)
        });
        let outcome = read_rest(&mut press);
        assert!(matches!(outcome, (BYTES, None)), "{outcome:?}");
        let (_again, status) = begin(PRESS, gateway.address(), request, Behind::End);
        // Later the gateway looks less often.
        if begun.elapsed() < LINGER / 5 * 2 {
            in_time += 1;
            assert!(status.ends_with(b"200"), "{request}");
        }
    }
    assert!(in_time > 0, "none asked again soon enough to show anything");
    gateway.stop();
}

#[test]
fn a_gateway_that_ends_leaves_the_answer_to_the_kernel() {
    let upstream = Upstream::start(answer);
    let timeouts = "[timeouts]\ndrain = \"600s\"\n";
    let config = format!("{PREAMBLE}{timeouts}{}", acme(&upstream.url()));
    let gateway = Gateway::start_with(&config, FLAGS);
    let (mut held, _) = begin_and_wait(&gateway, &upstream, REQUEST, Behind::End);
    gateway.stop();
    let outcome = read_rest(&mut held);
    assert!(matches!(outcome, (BYTES, None)), "{outcome:?}");
}

#[test]
fn a_device_may_take_nothing_for_as_long_as_its_server_lets_it() {
    let upstream = Upstream::start(answer);
    let (usual, patient) = (
        server("m2u", &upstream.url()),
        server("m2u2", &upstream.url()),
    );
    let servers = format!("{usual}{patient}timeouts = {{ body = \"600s\" }}\n");
    let devices = [("press-07", PRESS), ("press-08", OTHER)];
    let timeouts = "[timeouts]\nbody = \"1s\"\n";
    let accounts = account("acme", &servers, &devices);
    let gateway = Gateway::start(&format!("{PREAMBLE}{timeouts}{accounts}"));
    let patient = REQUEST.replace("m2u", "m2u2");
    let begun = Instant::now();
    let mut waiting = [&patient, REQUEST].map(|request| {
        let (device, status) = begin(OTHER, gateway.address(), request, Behind::End);
        assert!(status.ends_with(b"200"), "{request}");
        device
    });
    // A connection that was reset has no peer.
    wait_until("the end of patience", || waiting[1].peer_addr().is_err());
    assert!(begun.elapsed() >= DELIVERY_PATIENCE_FLOOR);
    wait_until("the failure to be counted", || {
        gateway.counts().get("failed.device_stalled") == Some(&1)
    });
    let outcome = read_rest(&mut waiting[0]);
    assert!(matches!(outcome, (BYTES, None)), "{outcome:?}");
    let (received, error) = read_rest(&mut waiting[1]);
    assert_eq!(error.unwrap().kind(), io::ErrorKind::ConnectionReset);
    assert!(received < BYTES);
    gateway.stop();
}

#[test]
fn a_byte_behind_the_last_request_does_not_cost_the_answer() {
    let upstream = Upstream::start(answer);
    let config = format!("{PREAMBLE}{}", acme(&upstream.url()));
    let gateway = Gateway::start_with(&config, FLAGS);
    for request in LAST_REQUESTS {
        let mut in_time = 0;
        for _ in 0..TRIES {
            let (mut press, begun) = begin_and_wait(&gateway, &upstream, request, Behind::Silence);
            let sent = press.write_all(b"\r\n");
            let outcome = read_rest(&mut press);
            if begun.elapsed() < LINGER {
                in_time += 1;
                sent.unwrap();
                assert!(matches!(outcome, (BYTES, None)), "{request}: {outcome:?}");
            }
        }
        assert!(in_time > 0, "each try took longer than the gateway waits");
    }
    gateway.stop();
}

#[test]
fn an_answer_that_does_not_go_at_once_is_whole_all_the_same() {
    const LARGE: usize = 9_000_000;
    let upstream = Upstream::start(|conversation| {
        let request = conversation.request()?.expect("a request");
        if request.target() == "/length" {
            return conversation.answer(vec![b'x'; LARGE]);
        }
        conversation.write("HTTP/1.1 200 OK\r\n\r\n")?;
        conversation.write(vec![b'x'; LARGE])?;
        conversation.say_goodbye()
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for target in ["/length", "/until-close"] {
        for line in ["HTTP/1.1\r\nConnection: close", "HTTP/1.0"] {
            let mut press = Device::connect(PRESS, gateway.address());
            press.send(format!("GET {target} {line}\r\nHost: m2u\r\n\r\n"));
            // More than the sockets hold: its end waits until the device reads.
            let rest = press.receive_rest().unwrap();
            assert_eq!(count(&rest), LARGE, "{target} {line}");
        }
    }
    gateway.stop();
}
