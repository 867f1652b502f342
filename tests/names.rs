//! Servers by name, from the name to the request: the hosts file, a name server, and what stands
//! behind a name.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::Ipv4Addr;

use common::{
    device,
    gateway::{Gateway, PREAMBLE, acme},
    name_server::NameServer,
    upstream::Upstream,
    wire::Message as Answer,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// Asks a server by `url`, with these networks allowed.
fn ask(url: &str, networks: &str, flags: &[&str]) -> Answer {
    let preamble = PREAMBLE.replacen("[\"127.0.0.0/8\"]", networks, 1);
    let gateway = Gateway::start_with(&format!("{preamble}{}", acme(url)), flags);
    let answer = device::ask("127.0.0.7", gateway.address(), GET);
    gateway.stop();
    answer
}

const REFUSED: (u16, Option<&str>) = (502, Some("destination_ip_prohibited"));

#[test]
fn a_name_of_this_host_is_resolved_and_then_refused_unless_it_is_allowed() {
    let upstream = Upstream::echo();
    let authority = format!("localhost:{}", upstream.address.port());
    let url = format!("http://{authority}");
    let answer = ask(&url, "[]", &[]);
    assert_eq!((answer.status(), answer.token()), REFUSED);
    assert_eq!(upstream.connections(), 0);
    assert_eq!(ask(&url, "[\"127.0.0.0/8\"]", &[]).status(), 200);
    assert_eq!(upstream.request().field("Host"), Some(&*authority));
}

#[test]
fn a_name_is_asked_for_and_what_stands_behind_it_is_judged() {
    let upstream = Upstream::echo();
    let authority = format!("ingest.acme.example:{}", upstream.address.port());
    let url = format!("http://{authority}");
    // The first address is a dead end: nobody listens there.
    let names = NameServer::start(&[Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST]);
    let nameserver = names.address.to_string();
    let flags = ["--nameserver", &nameserver];
    let answer = ask(&url, "[]", &flags);
    assert_eq!((answer.status(), answer.token()), REFUSED);
    assert_eq!(upstream.connections(), 0);
    let answer = ask(&url, "[\"127.0.0.0/8\"]", &flags);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(upstream.request().field("Host"), Some(&*authority));
}

#[test]
fn a_name_without_addresses_is_told() {
    let names = NameServer::start(&[]);
    let nameserver = names.address.to_string();
    let flags = ["--nameserver", &nameserver];
    let answer = ask("http://ingest.acme.example", "[\"127.0.0.0/8\"]", &flags);
    assert_eq!((answer.status(), answer.token()), (502, Some("dns_error")));
}
