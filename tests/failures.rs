//! What a device sees when its server can't be reached or makes no sense (specification,
//! section 5).

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::mpsc,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use common::{
    PATIENCE,
    certificates::{Authority, Validity},
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, account, acme, server},
    pace,
    upstream::{Conversation, Step, Upstream},
    wait_until,
};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// Asks twice on one connection, which must outlive the failures.
fn assert_fails(gateway: Gateway, line: &str, token: &str) {
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..2 {
        let answer = press.ask(GET);
        assert_eq!(answer.first_line(), format!("HTTP/1.1 {line}"));
        assert_eq!(answer.token(), Some(token), "{line}");
        assert_eq!(answer.field("Connection"), Some("keep-alive"));
        assert!(answer.text().ends_with(".\n"), "{}", answer.text());
    }
    gateway.stop();
}

/// A server that reads a request and answers with these bytes, then closes.
fn canned(answer: impl Into<Vec<u8>>) -> Upstream {
    let answer = answer.into();
    Upstream::start(move |conversation| {
        conversation.request()?;
        conversation.write(&answer)
    })
}

/// An address where nobody listens, as long as the socket is kept.
fn dead_port() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = "127.0.0.1:0".parse::<SocketAddr>().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, format!("http://{address}"))
}

#[test]
fn a_dead_port_refuses() {
    let (_held, url) = dead_port();
    assert_fails(
        Gateway::with(&acme(&url)),
        "502 Bad Gateway",
        "connection_refused",
    );
}

#[test]
fn a_server_that_closes_or_resets_without_an_answer_is_told() {
    let scripts: [fn(&mut Conversation) -> Step; 4] = [
        |_| Ok(()),
        |conversation| conversation.request().map(|_| ()),
        |conversation| {
            conversation.request()?;
            conversation.reset()
        },
        |conversation| {
            conversation.request()?;
            conversation.write("HTTP/1.1 200 OK\r\nContent-Le")
        },
    ];
    for script in scripts {
        let upstream = Upstream::start(script);
        assert_fails(
            Gateway::with(&acme(&upstream.url())),
            "502 Bad Gateway",
            "connection_terminated",
        );
    }
}

#[test]
fn an_answer_that_is_not_http_is_told() {
    for answer in [
        "SSH-2.0-OpenSSH_9\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\na",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\r\n\r\n",
        "<html>\r\n\r\n",
    ] {
        let upstream = canned(answer);
        assert_fails(
            Gateway::with(&acme(&upstream.url())),
            "502 Bad Gateway",
            "http_protocol_error",
        );
    }
}

#[test]
fn an_answers_head_over_the_limit_is_told() {
    let limits = "[limits]\nhead_bytes = 2000\nfields = 10\n";
    for answer in [
        format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(5000)),
        format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(2000)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(11)),
    ] {
        let upstream = canned(answer);
        assert_fails(
            Gateway::start(&format!("{PREAMBLE}{limits}{}", acme(&upstream.url()))),
            "502 Bad Gateway",
            "http_response_header_section_size",
        );
    }
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        conversation.read_rest().map(|_| ())
    });
    assert_fails(
        Gateway::start(&format!(
            "{PREAMBLE}[timeouts]\nresponse = \"100ms\"\n{}",
            acme(&upstream.url())
        )),
        "504 Gateway Timeout",
        "http_response_timeout",
    );
    wait_until("its connections to end", || upstream.open() == 0);
}

#[test]
fn a_handshake_that_never_comes_is_a_connection_that_takes_too_long() {
    let upstream = Upstream::start(|conversation| conversation.read_rest().map(|_| ()));
    let url = format!("https://{}", upstream.address);
    assert_fails(
        Gateway::start(&format!(
            "{PREAMBLE}[timeouts]\nconnect = \"100ms\"\n{}",
            acme(&url)
        )),
        "504 Gateway Timeout",
        "connection_timeout",
    );
}

#[test]
fn a_certificate_from_nobody_known_is_told() {
    let authority = Authority::new("nobody");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let config = Authority::server_config(&leaf, None);
    let (seen, told) = mpsc::channel();
    let upstream = Upstream::start_tls(config, move |conversation| {
        let error = conversation.request().expect_err("no request");
        seen.send(error.to_string()).unwrap();
        Ok(())
    });
    let url = format!("https://{}", upstream.address);
    assert_fails(
        Gateway::with(&acme(&url)),
        "502 Bad Gateway",
        "tls_certificate_error",
    );
    // The server's log says why, too.
    for _ in 0..2 {
        let error = told.recv_timeout(PATIENCE).unwrap();
        assert!(error.contains("UnknownCA"), "{error}");
    }
}

#[test]
fn a_plain_server_does_not_speak_tls() {
    let upstream = Upstream::start(|conversation| {
        conversation.read(5)?;
        conversation.write("HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    let url = format!("https://{}", upstream.address);
    assert_fails(
        Gateway::with(&acme(&url)),
        "502 Bad Gateway",
        "tls_protocol_error",
    );
}

#[test]
fn a_name_that_does_not_resolve_is_told() {
    // A name server that is not there: its port is taken by a socket that hears nobody else.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.connect("127.0.0.1:9").unwrap();
    let nameserver = silent.local_addr().unwrap().to_string();
    assert_fails(
        Gateway::start_with(
            &format!("{PREAMBLE}{}", acme("http://ingest.invalid")),
            &["--nameserver", &nameserver],
        ),
        "502 Bad Gateway",
        "dns_error",
    );
}

#[test]
fn an_address_in_the_operators_network_is_refused_at_connect() {
    let upstream = Upstream::echo();
    let port = upstream.address.port();
    for (networks, url) in [
        ("[]", upstream.url()),
        ("[\"127.0.0.2/32\"]", upstream.url()),
        ("[\"127.0.0.0/8\"]", format!("http://[::1]:{port}")),
        ("[\"::1/128\"]", upstream.url()),
        ("[]", format!("http://[::ffff:127.0.0.1]:{port}")),
        ("[]", format!("http://0.0.0.0:{port}")),
    ] {
        let preamble = PREAMBLE.replacen("[\"127.0.0.0/8\"]", networks, 1);
        assert_fails(
            Gateway::start(&format!("{preamble}{}", acme(&url))),
            "502 Bad Gateway",
            "destination_ip_prohibited",
        );
    }
    // Nor does an address stand behind a name.
    let preamble = PREAMBLE.replacen("[\"127.0.0.0/8\"]", "[]", 1);
    let address = format!("address = [\"{}\"]\n", upstream.address);
    let named = server("m2u", "http://ingest.example") + &address;
    let accounts = account("acme", &named, &[("press-07", PRESS)]);
    assert_fails(
        Gateway::start(&format!("{preamble}{accounts}")),
        "502 Bad Gateway",
        "destination_ip_prohibited",
    );
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn the_next_address_is_tried() {
    let (_held, dead) = dead_port();
    let dead = dead.trim_start_matches("http://");
    let upstream = Upstream::echo();
    let address = format!("address = [\"{dead}\", \"{}\"]\n", upstream.address);
    let named = server("m2u", "http://ingest.example") + &address;
    let gateway = Gateway::with(&account("acme", &named, &[("press-07", PRESS)]));
    assert_eq!(device::ask(PRESS, gateway.address(), GET).status(), 200);
    gateway.stop();
}

#[test]
fn the_answer_to_head_has_no_body() {
    let (_held, url) = dead_port();
    let gateway = Gateway::with(&acme(&url));
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..2 {
        press.send("HEAD / HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(press.receive_head().status(), 502);
    }
    gateway.stop();
}

#[test]
fn a_failure_before_the_body_came_ends_the_connection() {
    let (_held, url) = dead_port();
    let gateway = Gateway::with(&acme(&url));
    for (framing, kept) in [
        ("Content-Length: 5\r\n\r\nhello", true),
        ("Content-Length: 5\r\n\r\nhell", false),
        (
            "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            true,
        ),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", false),
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        let answer = press.ask(format!("POST / HTTP/1.1\r\nHost: m2u\r\n{framing}"));
        assert_eq!(answer.token(), Some("connection_refused"));
        if kept {
            assert_eq!(press.ask(GET).token(), Some("connection_refused"));
        } else {
            assert_eq!(answer.field("Connection"), Some("close"));
            assert!(press.is_closed());
        }
    }
    gateway.stop();
}

#[test]
fn a_server_may_have_its_failures_kept_from_the_device() {
    let silent = |url: &str| {
        acme(url).replacen(
            "slot = \"m2u\"\n",
            "slot = \"m2u\"\non_failure = \"close\"\n",
            1,
        )
    };
    let post = "POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\nhello";
    let (_held, dead) = dead_port();
    let garbage = canned("garbage\r\n\r\n");
    let never = Upstream::start(|conversation| {
        conversation.request()?;
        conversation.read_rest().map(|_| ())
    });
    let cut = canned("HTTP/1.1 200 OK\r\nContent-Le");
    for url in [dead, garbage.url(), never.url(), cut.url()] {
        let gateway = Gateway::start(&format!(
            "{PREAMBLE}[timeouts]\nresponse = \"100ms\"\n{}",
            silent(&url)
        ));
        for request in [GET, post] {
            let mut press = Device::connect(PRESS, gateway.address());
            press.send(request);
            assert_eq!(press.receive_rest().unwrap(), b"", "{url}");
        }
        // What the device did wrong is told, as ever.
        let answer = device::ask(
            PRESS,
            gateway.address(),
            "GET /.. HTTP/1.1\r\nHost: m2u\r\n\r\n",
        );
        assert_eq!(answer.status(), 400);
        gateway.stop();
    }
    // An answer of the server's own is no failure.
    let unavailable = canned("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let gateway = Gateway::with(&silent(&unavailable.url()));
    assert_eq!(device::ask(PRESS, gateway.address(), GET).status(), 503);
    gateway.stop();
}

#[test]
fn a_failure_kept_from_the_device_does_not_take_the_last_answer_with_it() {
    const ANSWER: usize = 400_000;
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {ANSWER}\r\n\r\n{}",
            "x".repeat(ANSWER)
        ))?;
        // The next one it leaves unanswered.
        conversation.head()?;
        Ok(())
    });
    let silent = acme(&upstream.url()).replacen(
        "slot = \"m2u\"\n",
        "slot = \"m2u\"\non_failure = \"close\"\n",
        1,
    );
    let gateway = Gateway::with(&silent);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET);
    // Nothing of the answer is taken by the time that the next request fails.
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 200000\r\n\r\n");
    wait_until("the failure", || {
        upstream.requests().len() == 2 && upstream.open() == 0
    });
    // It goes on, as nobody has told it to stop.
    for _ in 0..20 {
        press.send("y".repeat(5_000));
        pace(Duration::from_millis(10));
    }
    let answer = press.receive_rest().unwrap();
    assert_eq!(answer.iter().filter(|byte| **byte == b'x').count(), ANSWER);
    assert!(answer.ends_with(b"x"));
    gateway.stop();
}
