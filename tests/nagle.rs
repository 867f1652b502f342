//! Devices whose system sends a small piece only when the one before it has been acknowledged (Nagle,
//! RFC 9293 §3.7.4): a request that comes in pieces is answered without a wait for delayed
//! acknowledgements.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{
    device::Device,
    gateway::{Gateway, PREAMBLE, acme},
    upstream::Upstream,
};

const PRESS: &str = "127.0.0.7";
const BALANCER: &str = "127.0.9.1";
/// The kernel delays an acknowledgement for at least 40 ms, however fast all else is.
const UNDELAYED: Duration = Duration::from_millis(30);
/// A loaded machine may be late most of the time.
const TRIES: usize = 100;

/// Requests as the pieces that a device writes.
const REQUESTS: &[&[&str]] = &[
    &[
        "POST / HTTP/1.1\r\nHost: m2u\r\nConte",
        "nt-Length: 5\r\n\r\nhello",
    ],
    &[
        "POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\n",
        "hello",
    ],
    &[
        "POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
    ],
];

/// Whether some of many requests in these pieces, on one connection each or all on one, was answered sooner
/// than a delayed acknowledgement lets any be.
fn is_undelayed(gateway: &Gateway, source: &str, pieces: &[&str], on_one: bool) -> bool {
    let connect = || {
        let device = Device::connect(source, gateway.address());
        device.stream().set_nodelay(false).unwrap();
        device
    };
    let mut device = connect();
    if on_one {
        let answer = device.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(answer.status(), 200);
    }
    (0..TRIES).any(|_| {
        if !on_one {
            device = connect();
        }
        let begun = Instant::now();
        for piece in pieces {
            device.send(piece);
        }
        assert_eq!(device.receive().status(), 200);
        begun.elapsed() < UNDELAYED
    })
}

#[test]
fn a_request_in_pieces_waits_for_no_delayed_acknowledgement() {
    let upstream = Upstream::echo();
    let gateway = Gateway::start(&format!("{PREAMBLE}{}", acme(&upstream.url())));
    for pieces in REQUESTS {
        for on_one in [false, true] {
            let is_undelayed = is_undelayed(&gateway, PRESS, pieces, on_one);
            assert!(is_undelayed, "{pieces:?}, all on one connection: {on_one}");
        }
    }
    gateway.stop();
}

#[test]
fn nor_does_what_follows_a_proxy_protocol_header() {
    let upstream = Upstream::echo();
    let preamble = PREAMBLE.replacen(
        "[\"127.0.0.1:0\"]",
        "[{ address = \"127.0.0.1:0\", proxy_protocol_from = [\"127.0.9.0/24\"] }]",
        1,
    );
    let gateway = Gateway::start(&format!("{preamble}{}", acme(&upstream.url())));
    for pieces in [
        &[
            "PROXY TCP4 127.0.0.7 127.0.0.1 12345 80\r\n",
            "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        ],
        &[
            "PROXY TCP4 127.0.0.7 ",
            "127.0.0.1 12345 80\r\nGET / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        ],
    ] {
        assert!(
            is_undelayed(&gateway, BALANCER, pieces, false),
            "{pieces:?}"
        );
    }
    gateway.stop();
}
