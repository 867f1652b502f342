//! Bodies that turn out to be malformed once their heads are at the server: 400 for the device, and
//! a request that is visibly cut off for the server. What is refused before is in the golden files.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    device::Device,
    gateway::{Gateway, acme},
    upstream::{Conversation, Step, Upstream},
    wait_until,
};

const PRESS: &str = "127.0.0.7";

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
        "1\r\nxy\r\n",
        "1;a\nb\r\nx\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\n\n",
    ] {
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
    let requests = upstream.requests();
    assert!(requests.iter().all(|request| request.body.is_empty()));
    gateway.stop();
}
