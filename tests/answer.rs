//! What a device gets of a server's answer: status, fields, framing, and the connection afterwards.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{self, Read},
    sync::{Mutex, mpsc},
    time::Instant,
};

use common::{
    PATIENCE,
    certificates::{Authority, Validity, quoted},
    device::{self, Device},
    gateway::{Gateway, account, acme, server},
    upstream::Upstream,
    wait_until,
    wire::undated,
};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const GET_1_0: &str = "GET / HTTP/1.0\r\nHost: m2u\r\n\r\n";

/// A server that answers every request with the same bytes, and closes if `close` says so.
fn canned(answer: &'static str, close: bool) -> Upstream {
    Upstream::start(move |conversation| {
        while conversation.request()?.is_some() {
            conversation.write(answer)?;
            if close {
                return Ok(());
            }
        }
        Ok(())
    })
}

/// Everything that a device gets for `request` up to the end of the connection.
fn raw(gateway: &Gateway, request: &str) -> String {
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(request);
    undated(&String::from_utf8(press.receive_rest().unwrap()).unwrap())
}

#[test]
fn status_reason_fields_and_body_come_back_as_they_are() {
    let upstream = canned(
        "HTTP/1.1 299 Fine: by me\r\nsERVER: x\r\nSet-Cookie: a=1\r\nX_Talk2M_Account: theirs\r\n\
         Set-Cookie: b=2\r\nX-Empty:\r\nContent-Length: 4\r\nDate: today\r\nVia: 1.1 other\r\n\
         Proxy-Status: other; error=dns_error\r\n\r\nbody",
        false,
    );
    let gateway = Gateway::with(&acme(&upstream.url()));
    let answer = device::ask(PRESS, gateway.address(), GET);
    assert_eq!(answer.first_line(), "HTTP/1.1 299 Fine: by me");
    assert_eq!(
        answer.fields(),
        [
            ("sERVER", "x"),
            ("Set-Cookie", "a=1"),
            ("X_Talk2M_Account", "theirs"),
            ("Set-Cookie", "b=2"),
            ("X-Empty", ""),
            ("Date", "today"),
            ("Via", "1.1 other"),
            ("Proxy-Status", "other; error=dns_error"),
            ("Content-Length", "4"),
        ]
    );
    assert_eq!(answer.text(), "body");
    gateway.stop();
}

#[test]
fn a_reason_may_be_missing() {
    for line in ["HTTP/1.1 200 ", "HTTP/1.1 200"] {
        let answer: &'static str =
            Box::leak(format!("{line}\r\nContent-Length: 0\r\n\r\n").into_boxed_str());
        let upstream = canned(answer, false);
        let gateway = Gateway::with(&acme(&upstream.url()));
        let answer = device::ask(PRESS, gateway.address(), GET);
        assert_eq!(answer.first_line(), "HTTP/1.1 200 ");
        gateway.stop();
    }
}

#[test]
fn hop_by_hop_fields_of_an_answer_go() {
    let upstream = canned(
        "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: X-Listed, close\r\nX-Listed: 1\r\n\
         Proxy-Connection: close\r\nUpgrade: h2c\r\nTrailer: X-Sum\r\nTE: x\r\n\
         Proxy-Authenticate: Basic\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n",
        false,
    );
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    let expected = [("X-Kept", "1"), ("Content-Length", "0")];
    assert_eq!(press.ask(GET).undated().fields(), expected);
    // The server's wish to close concerns its own connection.
    assert_eq!(press.ask(GET).undated().fields(), expected);
    assert_eq!(upstream.connections(), 2);
    gateway.stop();
}

#[test]
fn a_chunked_answer_is_framed_anew_for_the_device() {
    let upstream = canned(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;ext\r\nhello\r\n1\r\n \r\n6\r\nworld!\r\n0\r\nX-Sum: 1\r\n\r\n",
        false,
    );
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..2 {
        let answer = press.ask(GET).undated();
        assert_eq!(answer.fields(), [("Transfer-Encoding", "chunked")]);
        assert_eq!(answer.text(), "hello world!");
    }
    assert_eq!(
        raw(&gateway, GET_1_0),
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world!"
    );
    // HTTP/1.0 can't keep a connection whose close is the body's end.
    let kept = GET_1_0.replace("Host", "Connection: keep-alive\r\nHost");
    assert_eq!(
        raw(&gateway, &kept),
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world!"
    );
    gateway.stop();
}

#[test]
fn an_answer_that_lasts_until_the_close_becomes_chunked() {
    for line in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"] {
        let answer: &'static str = Box::leak(format!("{line}hello").into_boxed_str());
        let upstream = canned(answer, true);
        let gateway = Gateway::with(&acme(&upstream.url()));
        let mut press = Device::connect(PRESS, gateway.address());
        for _ in 0..2 {
            let answer = press.ask(GET).undated();
            assert_eq!(answer.fields(), [("Transfer-Encoding", "chunked")]);
            assert_eq!(answer.text(), "hello");
        }
        assert_eq!(
            raw(&gateway, GET_1_0),
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
        );
        gateway.stop();
    }
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    let upstream = Upstream::start(|conversation| {
        while let Some(request) = conversation.request()? {
            conversation.write(match request.target() {
                "/204" => "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"x\"\r\n\r\n",
                "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "/bare" => "HTTP/1.1 200 OK\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            })?;
        }
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    let ask = |method: &str, path: &str| format!("{method} {path} HTTP/1.1\r\nHost: m2u\r\n\r\n");
    for _ in 0..2 {
        press.send(ask("GET", "/204"));
        assert_eq!(press.receive().undated().fields(), [("X-A", "b")]);
        press.send(ask("GET", "/304"));
        assert_eq!(
            press.receive().undated().fields(),
            [("ETag", "\"x\""), ("Content-Length", "5")]
        );
        press.send(ask("HEAD", "/length"));
        assert_eq!(
            press.receive_head().undated().fields(),
            [("Content-Length", "5")]
        );
        press.send(ask("HEAD", "/chunked"));
        assert_eq!(
            press.receive_head().undated().fields(),
            [("Transfer-Encoding", "chunked")]
        );
        press.send(ask("HEAD", "/bare"));
        assert_eq!(press.receive_head().undated().fields(), []);
    }
    assert_eq!(upstream.requests().len(), 10);
    gateway.stop();
}

#[test]
fn http_1_0_devices_may_keep_their_connection() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..3 {
        let answer = press.ask("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.field("Connection"), Some("keep-alive"));
    }
    assert_eq!(press.ask(GET_1_0).field("Connection"), Some("close"));
    assert!(press.is_closed());
    let mut press = Device::connect(PRESS, gateway.address());
    let answer = press.ask("GET / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.field("Connection"), Some("close"));
    assert!(press.is_closed());
    gateway.stop();
}

#[test]
fn a_cut_off_answer_can_be_told_from_a_complete_one() {
    let cut = |answer: &'static str| {
        let upstream = canned(answer, true);
        let gateway = Gateway::with(&acme(&upstream.url()));
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(GET);
        let outcome = press.receive_answer(false).map_err(|error| error.kind());
        let mut old = Device::connect(PRESS, gateway.address());
        old.send(GET_1_0);
        let old = old.receive_rest().map_err(|error| error.kind());
        gateway.stop();
        (outcome, old)
    };
    let (answer, _) = cut("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(answer, Err(io::ErrorKind::UnexpectedEof));
    for body in ["5\r\nhello\r\n", "5\r\nhel", "5\r\nhello\r\n0\r\n"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n-\r\n";
        let (answer, old) = cut(Box::leak(format!("{head}{body}").into_boxed_str()));
        assert!(answer.is_err(), "{body:?}: {answer:?}");
        // An orderly close would say that this is all.
        assert_eq!(old, Err(io::ErrorKind::ConnectionReset), "{body:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_behind_its_head_is_never_ended_in_order() {
    let (seen, told) = mpsc::channel();
    let told = Mutex::new(told);
    let upstream = Upstream::start(move |conversation| {
        let request = conversation.request()?.expect("a request");
        conversation.write(match request.target() {
            "/close" => "HTTP/1.1 200 OK\r\n\r\nhello",
            _ => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        })?;
        // What breaks the answer must not overtake the bytes.
        told.lock().unwrap().recv().map_err(io::Error::other)?;
        if request.target() == "/close" {
            return conversation.reset();
        }
        conversation.write("zz\r\n")?;
        // Whether the gateway ends this connection is told by the read.
        conversation.read_rest().map(|_| ())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let chunked = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let until_close = "Connection: close\r\n\r\nhello";
    for (line, begin, outcome) in [
        ("GET /close HTTP/1.1", chunked, Ok(vec![])),
        ("GET /broken HTTP/1.1", chunked, Ok(vec![])),
        (
            "GET /close HTTP/1.0",
            until_close,
            Err(io::ErrorKind::ConnectionReset),
        ),
        (
            "GET /broken HTTP/1.0",
            until_close,
            Err(io::ErrorKind::ConnectionReset),
        ),
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(format!("{line}\r\nHost: m2u\r\n\r\n"));
        let (head, begin) = begin.split_once("\r\n\r\n").unwrap();
        let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
        assert_eq!(press.receive_head().undated().head, head);
        assert_eq!(press.receive_bytes(begin.len()), begin.as_bytes());
        seen.send(()).unwrap();
        let rest = press.receive_rest().map_err(|error| error.kind());
        assert_eq!(rest, outcome, "{line}");
    }
    wait_until("the connections to end", || upstream.open() == 0);
    gateway.stop();
}

#[test]
fn a_tls_server_that_goes_without_a_word_has_not_ended_its_answer() {
    let authority = Authority::new("authority");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let config = Authority::server_config(&leaf, None);
    let upstream = Upstream::start_tls(config, |conversation| {
        conversation.request()?;
        conversation.write("HTTP/1.1 200 OK\r\n\r\nhello")?;
        // No close_notify: whoever sits on the way can cut a connection as well.
        conversation.cut()
    });
    let url = format!("https://{}", upstream.address);
    let ca = format!("ca = {}\n", quoted(&authority.pem()));
    let accounts = account("acme", &(server("m2u", &url) + &ca), &[("press-07", PRESS)]);
    let gateway = Gateway::with(&accounts);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET);
    let rest = String::from_utf8(press.receive_rest().unwrap()).unwrap();
    assert!(rest.ends_with("\r\n\r\n5\r\nhello\r\n"), "{rest}");
    let mut old = Device::connect(PRESS, gateway.address());
    old.send(GET_1_0);
    let error = old.receive_rest().expect_err("no orderly end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    gateway.stop();
}

#[test]
fn the_last_bytes_of_a_connection_and_its_end_leave_as_one() {
    const ASK: &str = "GET / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\r\n";
    let upstream = canned("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody", false);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let tries = 40;
    let ends_with_its_bytes = || {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(ASK);
        let mut stream = press.stream();
        stream.set_nonblocking(true).unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 4_096];
        let begun = Instant::now();
        // Looked for without a pause: whoever is woken sees both, however they came.
        while !answer.ends_with(b"\r\n\r\nbody") {
            assert!(begun.elapsed() < PATIENCE, "no answer");
            if let Ok(received) = stream.read(&mut piece) {
                assert_ne!(received, 0, "cut off");
                answer.extend_from_slice(&piece[..received]);
            }
        }
        matches!(stream.read(&mut piece), Ok(0))
    };
    let together = (0..tries).filter(|_| ends_with_its_bytes()).count();
    // The kernel lets the bytes go alone if the gateway is kept from its core for long.
    assert!(together > tries * 9 / 10, "{together} of {tries}");
    gateway.stop();
}

#[test]
fn a_length_said_twice_alike_is_passed_on_once() {
    for (fields, status) in [
        ("Content-Length: 2\r\ncontent-length: 2\r\n", 200),
        ("Content-Length: 2\r\nContent-Length: 3\r\n", 502),
        ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 502),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\nok");
        let upstream = Upstream::start(move |conversation| {
            conversation.request()?;
            conversation.write(&answer)
        });
        let gateway = Gateway::with(&acme(&upstream.url()));
        let answer = device::ask(
            "127.0.0.7",
            gateway.address(),
            "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        );
        assert_eq!(answer.status(), status, "{fields}");
        if status == 200 {
            assert_eq!(
                (answer.field("Content-Length"), answer.text()),
                (Some("2"), "ok".into())
            );
        }
        gateway.stop();
    }
}
