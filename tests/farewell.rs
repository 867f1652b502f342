//! How a device's connection ends behind its last answer: at once where the device said that it sends
//! nothing more, and never so that what it sends all the same costs it the answer.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Mutex, mpsc};

use common::{
    device::Device,
    gateway::{Gateway, PREAMBLE, acme},
    upstream::{Conversation, Step, Upstream},
};

const PRESS: &str = "127.0.0.7";
const CLOSE: &str =
    "POST / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";

fn answer(conversation: &mut Conversation) -> Step {
    while conversation.request()?.is_some() {
        conversation.answer("heard")?;
    }
    Ok(())
}

#[test]
fn a_device_that_said_close_gives_its_place_up_with_its_answer() {
    let upstream = Upstream::start(answer);
    let limits = "[limits]\nconnections_per_address = 1\n";
    let gateway = Gateway::start_with(
        &format!("{PREAMBLE}{limits}{}", acme(&upstream.url())),
        &["--cores", "0"],
    );
    let mut answered = Vec::new();
    for pieces in [
        &["GET / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\r\n"][..],
        &["GET / HTTP/1.0\r\n\r\n"],
        &[CLOSE],
        &[&CLOSE[..CLOSE.len() - 5], "he", "llo"],
        &[
            "POST / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
        ],
    ] {
        // The place of the device before is free, although that has not ended its side.
        let mut press = Device::connect(PRESS, gateway.address());
        for piece in pieces {
            press.send(piece);
        }
        assert_eq!(press.receive().text(), "heard", "{pieces:?}");
        assert!(press.is_closed(), "{pieces:?}");
        answered.push(press);
    }
    assert_eq!(upstream.requests().len(), answered.len());
    gateway.stop();
}

#[test]
fn what_a_device_sends_behind_its_last_request_does_not_cost_it_the_answer() {
    let (say, told) = mpsc::channel();
    let told = Mutex::new(told);
    let upstream = Upstream::start(move |conversation| {
        while conversation.request()?.is_some() {
            told.lock().unwrap().recv().unwrap();
            conversation.answer("heard")?;
        }
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for with_request in [true, false] {
        let mut press = Device::connect(PRESS, gateway.address());
        match with_request {
            true => press.send(format!("{CLOSE}\r\n")),
            false => {
                let before = upstream.requests().len();
                press.send(CLOSE);
                common::wait_until("the request", || upstream.requests().len() > before);
                press.send("\r\n");
            }
        }
        say.send(()).unwrap();
        assert_eq!(press.receive().text(), "heard");
        assert!(press.is_closed());
        press.send("\r\n");
        press.finish();
        assert_eq!(press.receive_rest().unwrap(), b"");
    }
    gateway.stop();
}

#[test]
fn a_device_that_may_still_be_sending_is_listened_to() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        conversation.write("HTTP/1.0 200 OK\r\n\r\nheard")?;
        conversation.say_goodbye()
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    // One has not sent all of its request, the other may have sent its next one by then.
    for (request, rest) in [
        (&CLOSE[..CLOSE.len() - 2], "lo"),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET"),
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(request);
        let answer = press.receive_rest().unwrap();
        assert!(String::from_utf8(answer).unwrap().contains("heard"));
        press.send(rest);
        press.finish();
        assert_eq!(press.receive_rest().unwrap(), b"");
    }
    gateway.stop();
}

#[test]
fn an_answer_that_does_not_go_at_once_is_whole_all_the_same() {
    const BYTES: usize = 9_000_000;
    let upstream = Upstream::start(|conversation| {
        let request = conversation.request()?.expect("a request");
        if request.target() == "/length" {
            return conversation.answer(vec![b'x'; BYTES]);
        }
        conversation.write("HTTP/1.1 200 OK\r\n\r\n")?;
        conversation.write(vec![b'x'; BYTES])?;
        conversation.say_goodbye()
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    for target in ["/length", "/until-close"] {
        for line in ["HTTP/1.1\r\nConnection: close", "HTTP/1.0"] {
            let mut press = Device::connect(PRESS, gateway.address());
            press.send(format!("GET {target} {line}\r\nHost: m2u\r\n\r\n"));
            // More than the sockets hold: its end waits until the device reads.
            let rest = press.receive_rest().unwrap();
            let body = rest.iter().filter(|byte| **byte == b'x').count();
            assert_eq!(body, BYTES, "{target} {line}");
        }
    }
    gateway.stop();
}
