//! Requests that are malformed, or could be read two ways: 400, the end of the connection, and
//! never a byte for the server.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    device::Device,
    gateway::{Gateway, acme},
    upstream::{Conversation, Step, Upstream},
    wait_until,
    wire::Message,
};

const PRESS: &str = "127.0.0.7";

/// The answer to a request that is refused, on a connection that ends with it.
fn refused(gateway: &Gateway, request: impl AsRef<[u8]>) -> Message {
    let mut press = Device::connect(PRESS, gateway.address());
    let request = request.as_ref();
    press.send_if_wanted(request).unwrap_or_default();
    let answer = press
        .receive_answer(false)
        .unwrap_or_else(|error| panic!("{error} to {:?}", request.escape_ascii().to_string()));
    assert_eq!(answer.field("Connection"), Some("close"));
    assert!(press.is_closed());
    answer
}

fn assert_malformed(gateway: &Gateway, request: impl AsRef<[u8]>) {
    let request = request.as_ref();
    let answer = refused(gateway, request);
    let shown = request.escape_ascii().to_string();
    assert_eq!(answer.first_line(), "HTTP/1.1 400 Bad Request", "{shown}");
    assert_eq!(answer.token(), Some("http_request_error"), "{shown}");
}

#[test]
fn a_malformed_head_is_refused_and_no_server_hears_of_it() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let lines: &[&[u8]] = &[
        // Request lines.
        b"GET / HTTP/1.1\nHost: m2u\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\n\n",
        b"\nGET / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: m2u\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET / x HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET /\x0b HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET /\x7f HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: m2u\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: m2u\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: m2u\r\n\r\n",
        b"GET / http/1.1\r\nHost: m2u\r\n\r\n",
        b"GET / HTTP/1.01\r\nHost: m2u\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        // Targets.
        b"GET x HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET m2u:80 HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET https://m2u/ HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\nHost: m2u\r\n\r\n",
        b"GET http://user@m2u/ HTTP/1.1\r\nHost: m2u\r\n\r\n",
        // Hosts.
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET http://m2u/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nHost: m2u\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: m2u\r\nhost: m2u2\r\n\r\n",
        b"GET http://m2u/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u, m2u2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u:x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@m2u\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u/\r\n\r\n",
        // Fields.
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : m2u\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA: b\r\n\tc\r\n\r\n",
        b"GET / HTTP/1.1\r\n A: b\r\nHost: m2u\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA\0: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA: b\x7f\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA\xe9: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: m2u\r\nA(: b\r\n\r\n",
    ];
    for request in lines {
        assert_malformed(&gateway, request);
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn ambiguous_framing_is_refused_and_no_server_hears_of_it() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\nContent-Length: 3\r\n",
        "Content-Length: 3\r\ncontent-length: 4\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: -3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: 3 3\r\n",
        "Content-Length: 3.0\r\n",
        "Content-Length:\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content_Length: 3\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;x\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer.Encoding: chunked\r\nContent-Length: 3\r\n",
        "Transfer-Encoding : chunked\r\n",
    ] {
        assert_malformed(
            &gateway,
            format!("POST / HTTP/1.1\r\nHost: m2u\r\n{fields}\r\n0\r\n\r\n"),
        );
    }
    assert_malformed(
        &gateway,
        "POST / HTTP/1.0\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    );
    // The names that Connection lists are bounded.
    let nominations = "x, ".repeat(40);
    assert_malformed(
        &gateway,
        format!("GET / HTTP/1.1\r\nHost: m2u\r\nConnection: {nominations}\r\n\r\n"),
    );
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn endless_empty_lines_are_no_request() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    assert_malformed(&gateway, "\r\n".repeat(1_000));
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

/// Reads what comes of a request; what it was is told by the requests noted.
fn read_what_comes(conversation: &mut Conversation) -> Step {
    conversation.head()?;
    conversation.read_rest().map(|_| ())
}

#[test]
fn a_body_that_breaks_the_chunked_coding_is_refused_and_cut_off_for_the_server() {
    let upstream = Upstream::start(read_what_comes);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let head = "POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in [
        "zz\r\n",
        "\r\n",
        "-1\r\nx",
        "+1\r\nx",
        "0x1\r\nx",
        " 1\r\nx",
        "1\nx\r\n",
        "1\r\nxy\r\n",
        "1\r\nx\n",
        "1;a\nb\r\nx\r\n",
        "1;a\x00\r\nx\r\n",
        "11111111111111111\r\nx",
        "1 x\r\nx\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\n\n",
    ] {
        // With the head: no server hears of it.
        let before = upstream.connections();
        assert_malformed(&gateway, format!("{head}{body}"));
        assert_eq!(upstream.connections(), before, "{body:?}");
        // Behind it: the server sees that the request is cut off.
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(head);
        wait_until("the head to arrive", || upstream.open() == 1);
        press.send(body);
        let answer = press.receive();
        assert_eq!(answer.status(), 400, "{body:?}");
        assert_eq!(answer.token(), Some("http_request_error"));
        assert!(press.is_closed());
        wait_until("the server to see the end", || upstream.open() == 0);
    }
    let long = format!("{head}1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(600));
    assert_malformed(&gateway, long);
    let trailers = format!("{head}0\r\n{}\r\n", "A: b\r\n".repeat(2_000));
    assert_malformed(&gateway, trailers);
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.body.is_empty())
    );
    gateway.stop();
}
