//! Connections that have been idle for a while: they cost next to nothing, and nobody can tell.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::{
    device::Device,
    gateway::{Gateway, PREAMBLE, acme},
    pace,
    upstream::Upstream,
    wait_until,
};
use m2u::limits;
use socket2::SockRef;

const PRESS: &str = "127.0.0.7";
const OTHER: &str = "127.0.0.8";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const POST: &str = "POST /in HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\nhello";

fn gateway(tables: &str, upstream: &Upstream) -> Gateway {
    Gateway::start(&format!("{PREAMBLE}{tables}{}", acme(&upstream.url())))
}

fn wait_until_dormant(gateway: &Gateway, connections: usize) {
    wait_until("connections to be dormant", || {
        gateway.counts()["dormant"] == connections
    });
}

/// A device that has had an answer, and whose connection is dormant.
fn dormant(gateway: &Gateway) -> Device {
    let mut device = Device::connect(PRESS, gateway.address());
    assert_eq!(device.ask(POST).status(), 200);
    wait_until_dormant(gateway, 1);
    device
}

#[test]
fn whatever_wakes_a_connection_is_answered() {
    let upstream = Upstream::echo();
    let gateway = gateway("", &upstream);
    let mut device = dormant(&gateway);
    for cut in [1, 20, POST.len() - 3] {
        device.send_cut(POST, cut);
        assert_eq!(device.receive().status(), 200);
        wait_until_dormant(&gateway, 1);
    }
    device.send(format!("{POST}{GET}"));
    assert_eq!(device.receive().status(), 200);
    assert_eq!(device.receive().status(), 200);
    wait_until_dormant(&gateway, 1);
    // More than the buffer that it wakes up with.
    let body = "x".repeat(5 * limits::PARKED_BYTES);
    let length = body.len();
    device.send(format!(
        "POST /in HTTP/1.1\r\nHost: m2u\r\nContent-Length: {length}\r\n\r\n{body}"
    ));
    assert_eq!(device.receive().status(), 200);
    let sent = upstream.requests().last().unwrap().body.len();
    assert_eq!(sent, length);
    drop(device);
    gateway.stop();
}

#[test]
fn a_connection_may_sleep_before_its_first_request() {
    let upstream = Upstream::echo();
    let gateway = gateway("", &upstream);
    let mut device = Device::connect(PRESS, gateway.address());
    wait_until_dormant(&gateway, 1);
    assert_eq!(device.ask(GET).status(), 200);
    drop(device);
    gateway.stop();
}

#[test]
fn empty_lines_count_as_long_as_no_request_follows() {
    let upstream = Upstream::echo();
    let gateway = gateway("", &upstream);
    let mut device = dormant(&gateway);
    let piece = "\r\n".repeat(12);
    for _ in 0..2 {
        device.send(&piece);
        wait_until_dormant(&gateway, 1);
    }
    device.send(&piece);
    assert_eq!(device.receive().status(), 400);
    assert!(device.is_closed());
    gateway.stop();
}

#[test]
fn a_drain_ends_dormant_connections_at_once() {
    let upstream = Upstream::echo();
    let mut gateway = gateway("[timeouts]\ndrain = \"60s\"\n", &upstream);
    let mut device = dormant(&gateway);
    let begun = Instant::now();
    gateway.signal("TERM");
    assert!(device.is_closed());
    assert!(gateway.wait().success());
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn the_keepalive_timeout_counts_from_the_last_answer() {
    let upstream = Upstream::echo();
    let gateway = gateway("[timeouts]\nkeepalive = \"3s\"\n", &upstream);
    let mut device = Device::connect(PRESS, gateway.address());
    assert_eq!(device.ask(GET).status(), 200);
    let answered = Instant::now();
    wait_until_dormant(&gateway, 1);
    assert!(device.is_closed());
    let silent = answered.elapsed();
    println!("ended after {silent:?}");
    // A host that pauses can only make it later.
    assert!(silent > Duration::from_millis(2_900), "{silent:?}");
    assert!(
        silent < Duration::from_secs(3) + limits::DORMANT_AFTER,
        "{silent:?}"
    );
    wait_until("the end to be counted", || {
        gateway.counts().get("ended.idle") == Some(&1)
    });
    gateway.stop();
}

#[test]
fn a_dormant_connection_ends_with_its_device() {
    let upstream = Upstream::echo();
    let gateway = gateway("", &upstream);
    let mut device = dormant(&gateway);
    device.finish();
    assert!(device.is_closed());
    wait_until("the end to be counted", || {
        gateway.counts().get("ended.finished") == Some(&1)
    });
    let device = dormant(&gateway);
    SockRef::from(device.stream())
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(device);
    wait_until("the reset to be counted", || {
        gateway.counts().get("ended.reset") == Some(&1)
    });
    wait_until_dormant(&gateway, 0);
    gateway.stop();
}

#[test]
fn requests_that_meet_the_moment_of_falling_asleep_are_answered() {
    const CONNECTIONS: usize = 120;
    const REQUESTS: usize = 5;
    let upstream = Upstream::echo();
    let gateway = gateway("", &upstream);
    let address = gateway.address();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            thread::spawn(move || {
                let source = if number % 2 == 0 { PRESS } else { OTHER };
                let mut device = Device::connect(source, address);
                for request in 0..REQUESTS {
                    assert_eq!(device.ask(POST).status(), 200);
                    // Within the two ticks in which the sweep may come.
                    let spread = Duration::from_millis(((number + request * 31) % 110) as u64);
                    pace(limits::DORMANT_AFTER - Duration::from_millis(5) + spread);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), CONNECTIONS * REQUESTS);
    assert!(requests.iter().all(|request| request.body == b"hello"));
    gateway.stop();
}
