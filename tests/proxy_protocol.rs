//! The PROXY protocol: believed from listed peers, who must send it, and from nobody else.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    device::Device,
    gateway::{Gateway, acme, believing, listening},
    upstream::Upstream,
};

/// Balancers that the configuration lists; neither is a device.
const BALANCER: &str = "127.0.9.1";
const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn gateway(upstream: &Upstream, tables: &str) -> Gateway {
    let preamble = listening(&believing("127.0.9.0/24"));
    Gateway::start(&format!("{preamble}{tables}{}", acme(&upstream.url())))
}

fn version_2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
    header.extend(addresses);
    header
}

/// Headers that say that `press-08` speaks.
fn headers() -> Vec<Vec<u8>> {
    let v4 = [127, 0, 0, 8, 127, 0, 0, 1, 0x30, 0x39, 0, 80];
    let extras = [&v4[..], &[0x04, 0, 3, b'a', b'b', b'c']].concat();
    let mut mapped = [0_u8; 36];
    for address in [0, 16] {
        mapped[address + 10..][..6].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 8]);
    }
    vec![
        b"PROXY TCP4 127.0.0.8 127.0.0.1 12345 80\r\n".to_vec(),
        b"PROXY TCP6 ::ffff:127.0.0.8 ::1 12345 80\r\n".to_vec(),
        version_2(0x21, 0x11, &v4),
        version_2(0x21, 0x11, &extras),
        version_2(0x21, 0x21, &mapped),
    ]
}

#[test]
fn a_listed_peer_speaks_for_a_device_at_every_cut() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "");
    for header in headers() {
        let bytes = [&header[..], GET.as_bytes()].concat();
        for cut in 0..=header.len() + 4 {
            let mut balancer = Device::connect(BALANCER, gateway.address());
            balancer.send_cut(&bytes, cut);
            let answer = balancer.receive();
            assert_eq!(answer.status(), 200, "{cut} {}", answer.text());
            // The whole connection is the device's; a second header would be a request line.
            assert_eq!(balancer.ask(GET).status(), 200);
        }
    }
    for request in upstream.requests() {
        assert_eq!(request.all("X_Talk2M_Device"), ["press-08"]);
    }
    gateway.stop();
}

#[test]
fn a_listed_peer_may_speak_for_itself() {
    let upstream = Upstream::echo();
    let preamble = listening(&believing("127.0.0.7/32"));
    let gateway = Gateway::start(&format!("{preamble}{}", acme(&upstream.url())));
    let v4 = [127, 0, 0, 8, 127, 0, 0, 1, 0x30, 0x39, 0, 80];
    for header in [
        version_2(0x20, 0x00, &[]),
        version_2(0x20, 0x11, &v4),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 127.0.0.8 127.0.0.1 1 2\r\n".to_vec(),
    ] {
        let mut press = Device::connect(PRESS, gateway.address());
        let answer = press.ask([&header[..], GET.as_bytes()].concat());
        assert_eq!(answer.status(), 200, "{:?}", header.escape_ascii());
    }
    for request in upstream.requests() {
        assert_eq!(request.all("X_Talk2M_Device"), ["press-07"]);
    }
    gateway.stop();
}

#[test]
fn a_listed_peer_without_a_header_is_refused() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "");
    let v4 = [127, 0, 0, 8, 127, 0, 0, 1, 0x30, 0x39, 0, 80];
    for bytes in [
        GET.as_bytes().to_vec(),
        b"P".to_vec().repeat(2),
        b"PROXY TCP4 127.0.0.8\r\n".to_vec(),
        b"PROXY TCP4 127.0.0.8 127.0.0.1 12345 80\n".to_vec(),
        b"PROXY TCP4 127.0.0.8 127.0.0.1 12345 99999\r\n".to_vec(),
        b"PROXY TCP4 127.0.0.300 127.0.0.1 12345 80\r\n".to_vec(),
        b"PROXY TCP5 127.0.0.8 127.0.0.1 12345 80\r\n".to_vec(),
        b"proxy TCP4 127.0.0.8 127.0.0.1 12345 80\r\n".to_vec(),
        [b"PROXY TCP4 ", &[b'1'; 200][..]].concat(),
        version_2(0x31, 0x11, &v4),
        version_2(0x22, 0x11, &v4),
        version_2(0x21, 0x12, &v4),
        version_2(0x21, 0x11, &v4[..8]),
        version_2(0x21, 0x11, &[0; 2000]),
    ] {
        let mut balancer = Device::connect(BALANCER, gateway.address());
        balancer.send_if_wanted(&bytes).unwrap_or_default();
        let answer = balancer
            .receive_answer(false)
            .unwrap_or_else(|error| panic!("{error}: {}", bytes.escape_ascii()));
        assert_eq!(answer.status(), 400, "{}", bytes.escape_ascii());
        assert_eq!(answer.token(), Some("http_request_error"));
        assert!(balancer.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    gateway.stop();
}

#[test]
fn nobody_else_is_believed() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "");
    for header in headers() {
        let mut press = Device::connect(PRESS, gateway.address());
        press
            .send_if_wanted([&header[..], GET.as_bytes()].concat())
            .unwrap_or_default();
        let answer = press.receive();
        assert_eq!(answer.status(), 400, "{:?}", header.escape_ascii());
        assert!(press.is_closed());
    }
    assert_eq!(upstream.connections(), 0);
    // Without a header, who is not listed speaks for itself.
    let mut press = Device::connect(PRESS, gateway.address());
    assert_eq!(press.ask(GET).status(), 200);
    assert_eq!(
        upstream.request().field("X_Talk2M_Device"),
        Some("press-07")
    );
    gateway.stop();
}

#[test]
fn an_unknown_device_is_refused_whoever_speaks_for_it() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "");
    let mut balancer = Device::connect(BALANCER, gateway.address());
    let header = "PROXY TCP4 127.0.0.9 127.0.0.1 12345 80\r\n";
    let answer = balancer.ask(format!("{header}{GET}"));
    assert_eq!(answer.token(), Some("http_request_denied"));
    // Nor does the balancer's own address stand for any device.
    let mut balancer = Device::connect(BALANCER, gateway.address());
    let answer = balancer.ask(format!("PROXY UNKNOWN\r\n{GET}"));
    assert_eq!(answer.token(), Some("http_request_denied"));
    gateway.stop();
}

#[test]
fn connections_are_counted_for_the_device_not_for_the_balancer() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "[limits]\nconnections_per_address = 1\n");
    let speak_for = |device: &str| {
        let mut balancer = Device::connect(BALANCER, gateway.address());
        let header = format!("PROXY TCP4 {device} 127.0.0.1 12345 80\r\n{GET}");
        let status = balancer.ask(header).status();
        (status, balancer)
    };
    let held = [speak_for("127.0.0.7"), speak_for("127.0.0.8")];
    assert_eq!(held.each_ref().map(|(status, _)| *status), [200, 200]);
    assert_eq!(speak_for("127.0.0.7").0, 429);
    gateway.stop();
}

#[test]
fn a_header_that_never_comes_is_given_up() {
    let upstream = Upstream::echo();
    let gateway = gateway(&upstream, "[timeouts]\nhead = \"200ms\"\n");
    for begin in [&b""[..], b"PROXY TCP4 127", SIGNATURE] {
        let mut balancer = Device::connect(BALANCER, gateway.address());
        balancer.send(begin);
        assert!(balancer.is_closed());
    }
    gateway.stop();
}
