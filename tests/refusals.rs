//! What the gateway itself answers to a device that asks for something it may not have
//! (specification, section 5).

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, acme},
    upstream::Upstream,
    wait_until,
    wire::Message,
};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// Checks everything that the gateway's own answers have in common.
fn assert_refusal(answer: &Message, line: &str, token: &str) {
    assert_eq!(answer.first_line(), line);
    assert_eq!(answer.token(), Some(token), "{line}");
    assert_eq!(
        answer.field("Content-Type"),
        Some("text/plain; charset=utf-8")
    );
    let text = answer.text();
    assert!(text.ends_with(".\n") && text.len() < 160, "{text:?}");
    assert_eq!(text.lines().count(), 1, "{text:?}");
    assert_eq!(
        answer.field("Content-Length"),
        Some(&*text.len().to_string())
    );
}

/// The usual configuration with more tables in front of its accounts.
fn config(tables: &str, upstream: &Upstream) -> String {
    format!("{PREAMBLE}{tables}{}", acme(&upstream.url()))
}

#[test]
fn connect_and_trace_are_not_for_this_gateway() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    for line in [
        "CONNECT m2u:443 HTTP/1.1",
        "CONNECT m2u:443 HTTP/1.0",
        "TRACE / HTTP/1.1",
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        let answer = press.ask(format!("{line}\r\nHost: m2u\r\n\r\n"));
        assert_refusal(
            &answer,
            "HTTP/1.1 405 Method Not Allowed",
            "http_request_error",
        );
        let allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
        assert_eq!(answer.field("Allow"), Some(allowed));
        assert!(press.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn an_unknown_address_is_refused() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut stranger = Device::connect("127.0.0.9", gateway.address());
    let answer = stranger.ask(GET);
    assert_refusal(&answer, "HTTP/1.1 403 Forbidden", "http_request_denied");
    assert!(stranger.is_closed());
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn another_slot_or_name_is_refused_and_the_connection_stays() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for host in ["m2u2", "m2u999.talk2m.com", "M2U3.TALK2M.COM.:80"] {
        let answer = press.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_refusal(&answer, "HTTP/1.1 404 Not Found", "destination_not_found");
    }
    for host in [
        "m2u0",
        "m2u1",
        "m2u02",
        "m2u1000",
        "m2ux",
        "xm2u",
        "m2u.example",
        "talk2m.com",
        "m2u.talk2m.com.example",
        "a.m2u.talk2m.com",
        "m2u..",
        "localhost",
    ] {
        let answer = press.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_refusal(
            &answer,
            "HTTP/1.1 421 Misdirected Request",
            "destination_not_found",
        );
    }
    press.send("HEAD / HTTP/1.1\r\nHost: elsewhere\r\n\r\n");
    assert_eq!(press.receive_head().status(), 421);
    let body = "Content-Length: 0\r\n\r\n";
    let answer = press.ask(format!("POST / HTTP/1.1\r\nHost: elsewhere\r\n{body}"));
    assert_eq!(answer.status(), 421);
    assert_eq!(upstream.connections(), 0);
    assert_eq!(press.ask(GET).status(), 200);
    gateway.stop();
}

#[test]
fn a_refused_request_with_a_body_ends_the_connection() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    for framing in [
        "Content-Length: 41\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: m2u\r\n\r\n....",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        let ask = format!("POST / HTTP/1.1\r\nHost: elsewhere\r\n{framing}{GET}");
        let answer = press.ask(ask);
        assert_eq!(answer.status(), 421);
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(press.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn a_path_that_leads_above_the_base_is_refused() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&format!("{}/base", upstream.url())));
    for path in [
        "/..",
        "/../x",
        "/a/../../x",
        "/%2e%2e/x",
        "/.%2E/x",
        "/..%2fx",
        "/..\\x",
        "/..%5cx",
        "/..;a/x",
        "/%252e%252e/x",
        "//../..//x",
        "/./../x",
        "http://m2u/../x",
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        let answer = press.ask(format!("GET {path} HTTP/1.1\r\nHost: m2u\r\n\r\n"));
        assert_refusal(&answer, "HTTP/1.1 400 Bad Request", "http_request_error");
        assert!(press.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn a_body_over_the_limit_is_refused_before_or_while_it_comes() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&config("[limits]\nbody_bytes = 1000\n", &upstream));
    let post = "POST / HTTP/1.1\r\nHost: m2u\r\n";
    let line = "HTTP/1.1 413 Content Too Large";

    let mut press = Device::connect(PRESS, gateway.address());
    let answer = press.ask(format!("{post}Content-Length: 1001\r\n\r\n"));
    assert_refusal(&answer, line, "http_request_error");
    assert!(press.is_closed());
    assert_eq!(upstream.connections(), 0);

    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(format!(
        "{post}Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}"
    ));
    wait_until("the head to arrive", || upstream.requests().len() == 1);
    let answer = press.ask("1\r\nx\r\n");
    assert_refusal(&answer, line, "http_request_error");
    assert!(press.is_closed());
    wait_until("the server to see the end", || upstream.open() == 0);

    let fits = format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    assert_eq!(device::ask(PRESS, gateway.address(), fits).status(), 200);
    let fits = format!("{post}Content-Length: 1000\r\n\r\n{}", "x".repeat(1000));
    assert_eq!(device::ask(PRESS, gateway.address(), fits).status(), 200);
    gateway.stop();
}

#[test]
fn a_server_may_have_a_limit_of_its_own() {
    let upstream = Upstream::echo();
    let accounts = acme(&upstream.url()).replacen(
        "slot = \"m2u\"\n",
        "slot = \"m2u\"\nlimits = { body_bytes = 3 }\n",
        1,
    );
    let gateway = Gateway::with(&accounts);
    for (body, status) in [("abc", 200), ("abcd", 413)] {
        let length = body.len();
        let ask = format!("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: {length}\r\n\r\n{body}");
        assert_eq!(device::ask(PRESS, gateway.address(), ask).status(), status);
    }
    gateway.stop();
}

#[test]
fn a_head_over_the_limit_is_refused() {
    let upstream = Upstream::echo();
    let tables = "[limits]\nhead_bytes = 2000\nfields = 10\n";
    let gateway = Gateway::start(&config(tables, &upstream));
    let uri = "HTTP/1.1 414 URI Too Long";
    let head = "HTTP/1.1 431 Request Header Fields Too Large";
    let long = "x".repeat(2000);
    for (request, line) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: m2u\r\n\r\n"), uri),
        (format!("GET /{long}{long}"), uri),
        (
            format!("GET / HTTP/1.1\r\nHost: m2u\r\nA: {long}\r\n\r\n"),
            head,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: m2u\r\nA: {long}{long}"),
            head,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: m2u\r\n{}\r\n",
                "A: b\r\n".repeat(10)
            ),
            head,
        ),
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send_if_wanted(request).unwrap_or_default();
        let answer = press.receive();
        assert_refusal(&answer, line, "http_request_error");
        assert!(press.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    let fits = format!(
        "GET / HTTP/1.1\r\nHost: m2u\r\n{}\r\n",
        "A: b\r\n".repeat(9)
    );
    assert_eq!(device::ask(PRESS, gateway.address(), fits).status(), 200);
    let begin = "GET / HTTP/1.1\r\nHost: m2u\r\nA: ";
    let fits = format!("{begin}{}\r\n\r\n", "x".repeat(2000 - begin.len() - 4));
    assert_eq!(fits.len(), 2000);
    assert_eq!(device::ask(PRESS, gateway.address(), &fits).status(), 200);
    let mut press = Device::connect(PRESS, gateway.address());
    let answer = press.ask(fits.replace("A: ", "A: x"));
    assert_refusal(&answer, head, "http_request_error");
    gateway.stop();
}
