//! What SIGUSR1 tells: every connection that ends, and every exchange that fails, is counted once
//! and under the right name.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;

use common::{
    device::Device,
    gateway::{self, Gateway, PREAMBLE},
    upstream::{self, Upstream},
    wait_until,
};
use m2u::{engine::proxy::failure::Failure, observe::metrics::Ending};

const PRESS: &str = "127.0.0.7";
const TABLES: &str = "[timeouts]\nhead = \"300ms\"\nbody = \"300ms\"\nresponse = \"300ms\"\n\
    keepalive = \"300ms\"\n[limits]\nbody_bytes = 1000\nhead_bytes = 2048\n\
    connections_per_address = 4\n";

/// What is counted under `ended.` and `failed.`.
fn reasons(gateway: &Gateway) -> HashMap<String, usize> {
    let counts = gateway.counts();
    let is_reason = |name: &str| name.starts_with("ended.") || name.starts_with("failed.");
    counts
        .into_iter()
        .filter(|(name, _)| is_reason(name))
        .collect()
}

fn start(upstream: &Upstream) -> Gateway {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refusing = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let servers = [
        gateway::server("m2u", &upstream.url()),
        gateway::server("m2u2", &refusing),
        gateway::server("m2u3", "http://10.255.255.1:80"),
    ];
    let account = gateway::account("acme", &servers.concat(), &[("press-07", PRESS)]);
    Gateway::start(&format!("{PREAMBLE}{TABLES}{account}"))
}

/// A server that fails as the path says.
fn failing() -> Upstream {
    Upstream::start(|conversation| {
        while let Some(request) = conversation.head()? {
            match request.target() {
                "/close" => return Ok(()),
                "/garbage" => conversation.write("SSH-2.0-nonsense\r\n\r\n")?,
                "/large" => conversation.write(format!("HTTP/1.1 200 {}", "x".repeat(4_096)))?,
                "/short" => {
                    conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort")?;
                    return Ok(());
                }
                "/silent" => return conversation.read_rest().map(drop),
                "/body" => return conversation.read_rest().map(drop),
                _ => conversation.answer(&request.head)?,
            }
        }
        Ok(())
    })
}

#[test]
fn every_failure_and_every_end_is_counted_once() {
    let upstream = failing();
    let gateway = start(&upstream);
    let get = |host: &str, path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    };
    let post = |path: &str, rest: &str| format!("POST {path} HTTP/1.1\r\nHost: m2u\r\n{rest}");
    let cases = [
        (
            "failed.malformed_head",
            "nonsense\r\n\r\n".to_owned(),
            PRESS,
        ),
        (
            "failed.malformed_body",
            post("/body", "Transfer-Encoding: chunked\r\n\r\nx\r\n"),
            PRESS,
        ),
        ("failed.escapes_base", get("m2u", "/../x"), PRESS),
        (
            "failed.method_refused",
            "TRACE / HTTP/1.1\r\nHost: m2u\r\n\r\n".to_owned(),
            PRESS,
        ),
        ("failed.no_lease", get("m2u", "/"), "127.0.0.99"),
        ("failed.no_such_slot", get("m2u9", "/"), PRESS),
        ("failed.not_our_name", get("example.com", "/"), PRESS),
        ("failed.head_timeout", "GET / HT".to_owned(), PRESS),
        (
            "failed.body_timeout",
            post("/body", "Content-Length: 9\r\n\r\nx"),
            PRESS,
        ),
        (
            "failed.body_too_large",
            post("/", "Content-Length: 1001\r\n\r\n"),
            PRESS,
        ),
        (
            "failed.target_too_long",
            format!("GET /{}", "x".repeat(2_048)),
            PRESS,
        ),
        (
            "failed.head_too_large",
            format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(2_048)),
            PRESS,
        ),
        ("failed.address_prohibited", get("m2u3", "/"), PRESS),
        ("failed.connection_refused", get("m2u2", "/"), PRESS),
        ("failed.connection_terminated", get("m2u", "/close"), PRESS),
        ("failed.response_malformed", get("m2u", "/garbage"), PRESS),
        (
            "failed.response_head_too_large",
            get("m2u", "/large"),
            PRESS,
        ),
        ("failed.response_incomplete", get("m2u", "/short"), PRESS),
        ("failed.response_timeout", get("m2u", "/silent"), PRESS),
        ("ended.finished", get("m2u", "/"), PRESS),
        ("ended.idle", String::new(), PRESS),
    ];
    let mut expected = HashMap::new();
    for (name, request, source) in &cases {
        let mut device = Device::connect(source, gateway.address());
        device.send(request);
        // To its end, whatever it is.
        let _ = device.receive_rest();
        drop(device);
        *expected.entry((*name).to_owned()).or_insert(0) += 1;
        if name.starts_with("failed.") {
            *expected.entry("ended.failed".to_owned()).or_insert(0) += 1;
        }
        wait_until(name, || reasons(&gateway) == expected);
    }
    // Devices that leave without waiting for an answer.
    let leaving = [
        ("ended.head_abandoned", "GET / HT".to_owned()),
        (
            "failed.device_gone",
            post("/body", "Content-Length: 9\r\n\r\nx"),
        ),
        ("ended.finished", String::new()),
    ];
    for (name, request) in &leaving {
        let device = {
            let mut device = Device::connect(PRESS, gateway.address());
            device.send(request);
            device
        };
        device.finish();
        *expected.entry((*name).to_owned()).or_insert(0) += 1;
        if name.starts_with("failed.") {
            *expected.entry("ended.failed".to_owned()).or_insert(0) += 1;
        }
        wait_until(name, || reasons(&gateway) == expected);
    }
    let mut held: Vec<_> = (0..5)
        .map(|_| Device::connect(PRESS, gateway.address()))
        .collect();
    for device in &mut held {
        let _ = device.receive_rest();
    }
    drop(held);
    *expected
        .entry("failed.too_many_connections".to_owned())
        .or_insert(0) += 1;
    *expected.entry("ended.failed".to_owned()).or_insert(0) += 1;
    *expected.entry("ended.idle".to_owned()).or_insert(0) += 4;
    wait_until("too many", || reasons(&gateway) == expected);
    wait_until("none to be open", || gateway.counts()["open"] == 0);
    let counts = gateway.counts();
    let of = |group: &str| -> usize {
        let named = counts.iter().filter(|(name, _)| name.starts_with(group));
        named.map(|(_, count)| count).sum()
    };
    assert_eq!(counts["accepted"], of("ended."));
    assert_eq!(counts["ended.failed"], of("failed."));
    gateway.stop();
}

#[test]
fn counts_are_asked_for_as_often_as_one_likes() {
    let upstream = Upstream::start(upstream::echo);
    let gateway = Gateway::with(&gateway::acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for asked in 1..=3 {
        assert_eq!(
            press.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n").status(),
            200
        );
        assert_eq!(gateway.counts()["requests"], asked);
    }
    wait_until("what is open", || {
        let counts = gateway.counts();
        (counts["open"], counts["pooled"]) == (1, 1)
    });
    assert_eq!(gateway.counts()["descriptors"], gateway.descriptors());
    gateway.stop();
}

#[test]
fn the_readme_knows_the_names_of_silent_ends() {
    let readme = include_str!("../README.md");
    for ending in [
        Ending::Idle,
        Ending::Reset,
        Ending::HeadAbandoned,
        Ending::ProxyHeaderMissing,
        Ending::RefusedUnanswered,
    ] {
        assert!(readme.contains(&format!("`ended.{}`", ending.name())));
    }
    for failure in [
        Failure::DeviceGone,
        Failure::DeviceStalled,
        Failure::ResponseIncomplete,
    ] {
        assert!(readme.contains(&format!("`failed.{}`", failure.name())));
    }
}
