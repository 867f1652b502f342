//! Several requests on one connection, and answers whose locations lead back through the gateway.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io,
    sync::{Mutex, mpsc},
};

use common::{
    device::{self, Device},
    gateway::{Gateway, account, acme, server},
    upstream::{Conversation, Step, Upstream},
    wait_until,
};

const PRESS: &str = "127.0.0.7";

/// Answers with the request's method, target and body.
fn repeat(conversation: &mut Conversation) -> Step {
    while let Some(request) = conversation.request()? {
        let line = request.first_line().trim_end_matches(" HTTP/1.1");
        conversation.answer(format!("{line} {}", request.text()))?;
    }
    Ok(())
}

#[test]
fn requests_sent_at_once_are_answered_in_order() {
    let upstream = Upstream::start(repeat);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(
        "GET /1 HTTP/1.1\r\nHost: m2u\r\n\r\n\
         \r\nPOST /2 HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\nT: x\r\n\r\n\
         POST /3 HTTP/1.1\r\nHost: m2u\r\nContent-Length: 4\r\n\r\nbody\
         \r\n\r\nGET /4 HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\r\n\
         GET /never HTTP/1.1\r\nHost: m2u\r\n\r\n",
    );
    for expected in ["GET /1 ", "POST /2 abc", "POST /3 body", "GET /4 "] {
        assert_eq!(press.receive().text(), expected);
    }
    assert_eq!(press.receive_rest().unwrap_or_default(), b"");
    assert_eq!(upstream.requests().len(), 4);
    gateway.stop();
}

#[test]
fn half_an_answer_is_read_whole_although_another_request_waits_behind_it() {
    let (go, told) = mpsc::channel();
    let told = Mutex::new(told);
    let upstream = Upstream::start(move |conversation: &mut Conversation| -> Step {
        conversation.request()?;
        conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nha")?;
        told.lock().unwrap().recv().map_err(io::Error::other)?;
        conversation.write("lf")
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("GET /1 HTTP/1.1\r\nHost: m2u\r\n\r\n");
    assert_eq!(press.receive_head().status(), 200);
    press.send("GET /2 HTTP/1.1\r\nHost: m2u\r\n\r\n");
    go.send(()).unwrap();
    wait_until("the connection to be ended", || press.has_been_ended());
    assert_eq!(press.receive_rest().unwrap(), b"half");
    gateway.stop();
}

#[test]
fn pipelined_requests_are_told_apart_at_every_cut() {
    let upstream = Upstream::start(repeat);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let ask = "POST /1 HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n\
               3\r\nabc\r\n0\r\n\r\n\r\n\r\n\r\n\
               GET /2 HTTP/1.1\r\nHost: m2u\r\n\r\n\
               PUT /3 HTTP/1.1\r\nHost: m2u\r\nContent-Length: 3\r\n\r\nxyz";
    let mut press = Device::connect(PRESS, gateway.address());
    for cut in 1..ask.len() {
        press.send_cut(ask, cut);
        for expected in ["POST /1 abc", "GET /2 ", "PUT /3 xyz"] {
            assert_eq!(press.receive().text(), expected, "{cut}");
        }
    }
    gateway.stop();
}

#[test]
fn a_device_may_say_that_it_is_done_before_it_has_its_answers() {
    let upstream = Upstream::start(repeat);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(
        "GET /1 HTTP/1.1\r\nHost: m2u\r\n\r\n\
         PUT /2 HTTP/1.1\r\nHost: m2u\r\nContent-Length: 1\r\n\r\nx",
    );
    press.finish();
    assert_eq!(press.receive().text(), "GET /1 ");
    assert_eq!(press.receive().text(), "PUT /2 x");
    assert!(press.is_closed());
    gateway.stop();
}

#[test]
fn many_pipelined_requests_are_answered() {
    let upstream = Upstream::start(repeat);
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    let asks: String = (0..2_000)
        .map(|number| format!("GET /{number} HTTP/1.1\r\nHost: m2u\r\n\r\n"))
        .collect();
    press.send(asks);
    for number in 0..2_000 {
        assert_eq!(press.receive().text(), format!("GET /{number} "));
    }
    gateway.stop();
}

#[test]
fn locations_inside_the_servers_url_come_back_as_the_gateways() {
    let upstream = Upstream::start(|conversation| {
        while let Some(request) = conversation.request()? {
            let location = request.field("X-Go").unwrap();
            conversation.write(format!(
                "HTTP/1.1 201 Created\r\nlocation: {location}\r\nContent-Location: {location}\r\n\
                 Content-Length: 0\r\n\r\n"
            ))?;
        }
        Ok(())
    });
    let port = upstream.address.port();
    let own = format!("http://Ingest.example:{port}");
    let own_url = own.to_lowercase();
    let address = format!("address = [\"{}\"]\n", upstream.address);
    let based = server("m2u", &format!("{own_url}/base")) + &address;
    let root = server("m2u2", &own_url) + &address;
    let gateway = Gateway::with(&account("acme", &(based + &root), &[("press", PRESS)]));
    for (host, location, expected) in [
        (
            "m2u.talk2m.com:8080",
            format!("{own}/base/x?y#z"),
            "http://m2u.talk2m.com:8080/x?y#z",
        ),
        ("M2U", format!("{own}/base"), "http://M2U/"),
        ("m2u", format!("{own}/base?q"), "http://m2u/?q"),
        ("m2u", "/base/x".into(), "/x"),
        ("m2u", "/base".into(), "/"),
        // A path that would name another host by itself.
        (
            "m2u",
            "/base//evil.example/".into(),
            "http://m2u//evil.example/",
        ),
        ("m2u2", format!("{own}/x"), "http://m2u2/x"),
        ("m2u2", own.clone(), "http://m2u2/"),
        ("m2u2", "/base/x".into(), "/base/x"),
        ("127.0.0.1", format!("{own}/base/x"), "http://127.0.0.1/x"),
        // Others' URLs are no business of the gateway's.
        ("m2u", format!("{own}/basement"), &format!("{own}/basement")),
        ("m2u", format!("{own}/other"), &format!("{own}/other")),
        (
            "m2u",
            "https://ingest.example/base/".into(),
            "https://ingest.example/base/",
        ),
        (
            "m2u",
            "//ingest.example/base/".into(),
            "//ingest.example/base/",
        ),
        ("m2u", "x/y".into(), "x/y"),
    ] {
        let ask = format!("PUT / HTTP/1.1\r\nHost: {host}\r\nX-Go: {location}\r\n\r\n");
        let answer = device::ask(PRESS, gateway.address(), ask);
        let expected = [("location", expected), ("Content-Location", expected)];
        assert_eq!(answer.fields()[..2], expected, "{host} {location}");
    }
    // Whoever named no host can't be given one, but a path below the base still loses it.
    for (location, expected) in [
        (format!("{own_url}/base/x"), &*format!("{own_url}/base/x")),
        ("/base/x".into(), "/x"),
    ] {
        let ask = format!("GET / HTTP/1.0\r\nX-Go: {location}\r\n\r\n");
        let answer = device::ask(PRESS, gateway.address(), ask);
        assert_eq!(answer.field("Location"), Some(expected), "{location}");
    }
    gateway.stop();
}
