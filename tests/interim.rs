//! Interim answers and what devices make of them: 100, 103, expectations, and protocol switches.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, acme},
    pace,
    upstream::Upstream,
    wait_until,
};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const EXPECTING: &str =
    "POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[test]
fn interim_answers_reach_http_1_1_devices_only() {
    let upstream = Upstream::start(|conversation| {
        while conversation.request()?.is_some() {
            conversation.write(
                "HTTP/1.1 100 Continue\r\n\r\n\
                 HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n\
                 HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            )?;
        }
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..2 {
        press.send(GET);
        let answer = press.receive();
        assert_eq!(answer.head, "HTTP/1.1 100 Continue\r\n\r\n");
        let answer = press.receive();
        assert_eq!(
            answer.head,
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        );
        let answer = press.receive();
        assert_eq!((answer.status(), &*answer.text()), (200, "ok"));
    }
    let answer = device::ask(PRESS, gateway.address(), "GET / HTTP/1.0\r\n\r\n");
    assert_eq!((answer.status(), &*answer.text()), (200, "ok"));
    gateway.stop();
}

#[test]
fn nobody_was_offered_another_protocol() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        conversation.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nraw",
        )?;
        conversation.read_rest().map(|_| ())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let ask = GET.replace("Host", "Connection: Upgrade\r\nUpgrade: x\r\nHost");
    let answer = device::ask(PRESS, gateway.address(), ask);
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.token(), Some("http_protocol_error"));
    let request = upstream.request();
    assert_eq!(request.field("Upgrade"), None);
    assert_eq!(request.field("Connection"), None);
    wait_until("the connection to end", || upstream.open() == 0);
    gateway.stop();
}

#[test]
fn a_server_that_only_ever_announces_is_given_up() {
    for (interims, status) in [(16, 200), (17, 502)] {
        let upstream = Upstream::start(move |conversation| {
            conversation.request()?;
            for _ in 0..interims {
                conversation.write("HTTP/1.1 102 Processing\r\n\r\n")?;
            }
            conversation.answer("ok")?;
            conversation.read_rest().map(|_| ())
        });
        let gateway = Gateway::with(&acme(&upstream.url()));
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(GET);
        for _ in 0..16 {
            assert_eq!(press.receive().status(), 102);
        }
        let answer = press.receive();
        assert_eq!(answer.status(), status, "{}", answer.head);
        if status == 502 {
            assert_eq!(answer.token(), Some("http_protocol_error"));
        }
        gateway.stop();
    }
}

#[test]
fn a_device_is_told_to_continue_by_the_server_alone() {
    let upstream = Upstream::start(|conversation| {
        while let Some(mut request) = conversation.head()? {
            conversation.write("HTTP/1.1 100 Continue\r\n\r\n")?;
            conversation.body(&mut request)?;
            conversation.answer(&request.body)?;
        }
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..2 {
        press.send(EXPECTING);
        assert_eq!(press.receive().head, "HTTP/1.1 100 Continue\r\n\r\n");
        let answer = press.ask("hello");
        assert_eq!((answer.status(), &*answer.text()), (200, "hello"));
        assert_eq!(answer.field("Connection"), None);
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    assert!(
        requests
            .iter()
            .all(|request| request.field("Expect") == Some("100-continue"))
    );
    gateway.stop();
}

#[test]
fn a_final_answer_instead_of_a_100_ends_the_connection() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")?;
        assert_eq!(conversation.read_rest()?, b"");
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(EXPECTING);
    let answer = press.receive();
    assert_eq!((answer.status(), &*answer.text()), (417, "no"));
    assert_eq!(answer.field("Connection"), Some("close"));
    // Neither the body nor a request behind it is taken for anything.
    press
        .send_if_wanted(format!("hello{GET}"))
        .unwrap_or_default();
    assert_eq!(press.receive_rest().unwrap_or_default(), b"");
    wait_until("the server to see the end", || upstream.open() == 0);
    assert_eq!(upstream.requests().len(), 1);
    gateway.stop();
}

#[test]
fn a_device_that_need_not_wait_for_the_100_does_not() {
    // Servers that never send a 100 are common; devices then send the body after a while.
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(EXPECTING);
    wait_until("the head to arrive", || upstream.requests().len() == 1);
    assert_eq!(press.ask("hello").status(), 200);
    assert_eq!(upstream.request().text(), "hello");
    gateway.stop();
}

#[test]
fn an_expectation_that_the_server_never_hears_of_is_not_waited_for() {
    let upstream = Upstream::echo();
    let timeouts = "[timeouts]\nbody = \"200ms\"\n";
    let gateway = Gateway::start(&format!("{PREAMBLE}{timeouts}{}", acme(&upstream.url())));
    let nominated = EXPECTING.replace("Expect:", "Connection: expect\r\nExpect:");
    let mut press = Device::connect(PRESS, gateway.address());
    let answer = press.ask(format!("{nominated}hello"));
    assert_eq!(answer.status(), 200);
    let request = upstream.request();
    assert_eq!(request.field("Expect"), None);
    assert_eq!(request.text(), "hello");
    // Nobody owes the device a 100: that its body does not come is its own fault.
    let answer = press.ask(&nominated);
    assert_eq!(answer.status(), 408);
    assert_eq!(answer.token(), Some("http_request_timeout"));
    assert!(press.is_closed());
    gateway.stop();
}

#[test]
fn a_device_that_waits_for_a_100_in_vain_is_told_whose_fault_it_is() {
    let upstream = Upstream::start(|conversation| {
        let request = conversation.head()?.expect("a request");
        match request.target() {
            "/continue" => conversation.write("HTTP/1.1 100 Continue\r\n\r\n")?,
            // Asks for nothing.
            "/wait" => conversation.write("HTTP/1.1 102 Processing\r\n\r\n")?,
            _ => {}
        }
        conversation.read_rest().map(|_| ())
    });
    let timeouts = "[timeouts]\nbody = \"200ms\"\n";
    let gateway = Gateway::start(&format!("{PREAMBLE}{timeouts}{}", acme(&upstream.url())));
    for (path, interim) in [("/", None), ("/wait", Some(102))] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(EXPECTING.replace("/ ", &format!("{path} ")));
        if let Some(status) = interim {
            assert_eq!(press.receive().status(), status);
        }
        let answer = press.receive();
        assert_eq!(answer.status(), 504);
        assert_eq!(answer.token(), Some("http_response_timeout"));
        assert!(press.is_closed());
    }

    let mut press = Device::connect(PRESS, gateway.address());
    press.send(EXPECTING.replace("/ ", "/continue "));
    assert_eq!(press.receive().status(), 100);
    let answer = press.receive();
    assert_eq!(answer.status(), 408);
    assert_eq!(answer.token(), Some("http_request_timeout"));
    assert!(press.is_closed());
    wait_until("the server to see the ends", || upstream.open() == 0);
    gateway.stop();
}

#[test]
fn an_answer_under_way_does_not_end_with_the_devices_patience() {
    const BODY: Duration = Duration::from_secs(1);
    let upstream = Upstream::start(move |conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        // Three times as long as a piece of the request may take, and never silent for that long.
        let begun = Instant::now();
        while begun.elapsed() < 3 * BODY {
            conversation.write("1\r\n.\r\n")?;
            pace(BODY / 20);
        }
        conversation.write("0\r\n\r\n")?;
        conversation.read_rest().map(|_| ())
    });
    let config = format!(
        "{PREAMBLE}[timeouts]\nbody = \"{}ms\"\n{}",
        BODY.as_millis(),
        acme(&upstream.url())
    );
    let gateway = Gateway::start(&config);
    // No body for a server that does not ask for it, and half of one that it does not wait for.
    for request in [
        EXPECTING.to_owned(),
        EXPECTING.replace("Expect: 100-continue\r\n", "") + "he",
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(request);
        let mut answer = Vec::new();
        loop {
            let piece = press.receive_piece().unwrap();
            if piece.is_empty() {
                break;
            }
            // A little more of what nobody waits for.
            if answer.is_empty() {
                press.send("l");
            }
            answer.extend(piece);
        }
        assert!(
            answer.ends_with(b"\r\n0\r\n\r\n"),
            "{}",
            answer.escape_ascii()
        );
    }
    assert_eq!(gateway.counts().get("failed.response_incomplete"), None);
    gateway.stop();
}
