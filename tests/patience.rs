//! How long the gateway waits, and for how many: slow heads, stalled bodies, idle connections,
//! connection limits.

#![allow(clippy::unwrap_used)]

mod common;

use std::{io, thread, time::Duration};

use common::{
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, acme},
    pace,
    upstream::Upstream,
    wait_until,
};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// The usual configuration with more tables in front of its accounts.
fn gateway(tables: &str, upstream: &Upstream) -> Gateway {
    Gateway::start(&format!("{PREAMBLE}{tables}{}", acme(&upstream.url())))
}

#[test]
fn a_slow_head_is_given_up() {
    let upstream = Upstream::echo();
    let gateway = gateway("[timeouts]\nhead = \"200ms\"\n", &upstream);
    for begin in ["G", "GET / HTTP/1.1\r\nHost: m2u\r\nA: ", "\r\n\r\nGET"] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(begin);
        let answer = press.receive();
        assert_eq!(answer.first_line(), "HTTP/1.1 408 Request Timeout");
        assert_eq!(answer.token(), Some("http_request_timeout"));
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(press.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn a_head_that_trickles_is_given_up_all_the_same() {
    let upstream = Upstream::echo();
    let gateway = gateway("[timeouts]\nhead = \"300ms\"\n", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    let sender = thread::spawn({
        use std::io::Write;
        let mut stream = press.stream().try_clone().unwrap();
        move || {
            // Each byte is in time; all of them are not. Ends with the connection.
            while stream.write_all(b"G").is_ok() {
                pace(Duration::from_millis(10));
            }
        }
    });
    assert_eq!(press.receive().status(), 408);
    drop(press);
    sender.join().unwrap();
    gateway.stop();
}

#[test]
fn a_stalled_body_is_given_up_and_the_server_sees_it_cut_off() {
    let upstream = Upstream::echo();
    let gateway = gateway("[timeouts]\nbody = \"200ms\"\n", &upstream);
    for body in [
        "Content-Length: 5\r\n\r\n",
        "Content-Length: 5\r\n\r\nhell",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        let answer = press.ask(format!("POST / HTTP/1.1\r\nHost: m2u\r\n{body}"));
        assert_eq!(answer.first_line(), "HTTP/1.1 408 Request Timeout");
        assert_eq!(answer.token(), Some("http_request_timeout"));
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(press.is_closed());
        wait_until("the server to see the end", || upstream.open() == 0);
    }
    gateway.stop();
}

#[test]
fn a_body_may_take_long_if_it_never_stalls() {
    let upstream = Upstream::echo();
    let tables = "[timeouts]\nbody = \"2s\"\nresponse = \"300ms\"\nhead = \"300ms\"\n";
    let gateway = gateway(tables, &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 12\r\n\r\n");
    for _ in 0..12 {
        pace(Duration::from_millis(100));
        press.send("x");
    }
    // Neither the head's time nor the answer's ran while the body came.
    assert_eq!(press.receive().status(), 200);
    gateway.stop();
}

#[test]
fn a_device_that_goes_away_within_its_body_takes_the_request_with_it() {
    let upstream = Upstream::start(|conversation| {
        let mut request = conversation.head()?.expect("a request");
        let outcome = conversation.body(&mut request);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        Ok(())
    });
    let gateway = gateway("", &upstream);
    for body in [
        "Content-Length: 5\r\n\r\nhell",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        let before = upstream.requests().len();
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(format!("POST / HTTP/1.1\r\nHost: m2u\r\n{body}"));
        wait_until("the head", || upstream.requests().len() > before);
        press.finish();
        wait_until("the server to see the end", || upstream.open() == 0);
        assert_eq!(press.receive_rest().unwrap(), b"");
    }
    gateway.stop();
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let upstream = Upstream::echo();
    let gateway = gateway("[timeouts]\nkeepalive = \"200ms\"\n", &upstream);
    let mut silent = Device::connect(PRESS, gateway.address());
    assert!(silent.is_closed());
    let mut press = Device::connect(PRESS, gateway.address());
    assert_eq!(press.ask(GET).status(), 200);
    assert!(press.is_closed());
    gateway.stop();
}

#[test]
fn one_address_may_not_have_all_connections() {
    let upstream = Upstream::echo();
    let gateway = gateway("[limits]\nconnections_per_address = 2\n", &upstream);
    let mut held = [(); 2].map(|()| Device::connect(PRESS, gateway.address()));
    for device in &mut held {
        assert_eq!(device.ask(GET).status(), 200);
    }
    let mut one_too_many = Device::connect(PRESS, gateway.address());
    let answer = one_too_many.receive();
    assert_eq!(answer.first_line(), "HTTP/1.1 429 Too Many Requests");
    assert_eq!(answer.token(), Some("connection_limit_reached"));
    assert_eq!(answer.field("Retry-After"), Some("5"));
    assert!(one_too_many.is_closed());
    assert_eq!(
        device::ask("127.0.0.8", gateway.address(), GET).status(),
        200
    );
    drop(held);
    wait_until("its place to be free", || {
        device::ask(PRESS, gateway.address(), GET).status() == 200
    });
    gateway.stop();
}

#[test]
fn all_addresses_together_are_bounded() {
    let upstream = Upstream::echo();
    let gateway = gateway("[limits]\nconnections = 2\n", &upstream);
    let mut held = ["127.0.0.7", "127.0.0.8"].map(|from| Device::connect(from, gateway.address()));
    for device in &mut held {
        assert_eq!(device.ask(GET).status(), 200);
    }
    let mut one_too_many = Device::connect("127.0.0.9", gateway.address());
    assert_eq!(one_too_many.receive().status(), 429);
    gateway.stop();
}

#[test]
fn a_device_that_stops_reading_is_given_up_and_can_tell() {
    let upstream = Upstream::start(|conversation| {
        let request = conversation.request()?.expect("a request");
        conversation.write(match request.target() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\n\r\n",
        })?;
        // More than all the buffers on the way; ends when the gateway ends the connection.
        loop {
            conversation.write([b'x'; 65_536])?;
        }
    });
    let gateway = gateway("[timeouts]\nbody = \"300ms\"\n", &upstream);
    for line in ["GET /length HTTP/1.1", "GET / HTTP/1.1", "GET / HTTP/1.0"] {
        let before = upstream.connections();
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(format!("{line}\r\nHost: m2u\r\n\r\n"));
        wait_until("the request", || upstream.connections() > before);
        wait_until("the server's connection to end", || upstream.open() == 0);
        match line {
            "GET / HTTP/1.0" => {
                let error = press.receive_rest().expect_err("no orderly end");
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
            _ => assert!(press.receive_answer(false).is_err()),
        }
    }
    gateway.stop();
}
