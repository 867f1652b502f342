//! The end of a gateway: what is under way is finished, nothing new is begun.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{Mutex, mpsc},
};

use common::{
    device::Device,
    gateway::{Gateway, PREAMBLE, acme},
    upstream::{Conversation, Step, Upstream},
    wait_until, wire,
};

const PRESS: &str = "127.0.0.7";
const OTHER: &str = "127.0.0.8";
/// Bytes of a body that no device has read at once, and that the kernel holds.
const LARGE: usize = 1_000_000;
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

fn gateway(drain: &str, upstream: &Upstream) -> Gateway {
    let accounts = acme(&upstream.url());
    Gateway::start(&format!(
        "{PREAMBLE}[timeouts]\ndrain = \"{drain}\"\n{accounts}"
    ))
}

/// A server that sends the rest of each answer when it is told to.
fn slow() -> (Upstream, mpsc::Sender<()>) {
    let (go, told) = mpsc::channel();
    let told = Mutex::new(told);
    let script = move |conversation: &mut Conversation| -> Step {
        while let Some(request) = conversation.request()? {
            if request.target() == "/slow-head" {
                told.lock().unwrap().recv().map_err(io::Error::other)?;
                conversation.answer("late")?;
            } else if request.target() == "/slow-body" {
                conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nla")?;
                told.lock().unwrap().recv().map_err(io::Error::other)?;
                conversation.write("te")?;
            } else if request.target() == "/slow-large" {
                conversation.write(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\nla"
                ))?;
                told.lock().unwrap().recv().map_err(io::Error::other)?;
                conversation.write("x".repeat(LARGE - 2))?;
            } else if request.target() == "/until-close" {
                conversation.write("HTTP/1.1 200 OK\r\n\r\nla")?;
                told.lock().unwrap().recv().map_err(io::Error::other)?;
                return conversation.write("te");
            } else {
                conversation.answer("ok")?;
            }
        }
        Ok(())
    };
    (Upstream::start(script), go)
}

/// Waits until nobody listens at `address` any more.
fn wait_until_closed(address: SocketAddr) {
    wait_until("new connections to be refused", || {
        TcpStream::connect(address).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    });
}

#[test]
fn a_slow_answer_is_completed_and_is_the_last() {
    let (upstream, go) = slow();
    let mut gateway = gateway("60s", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET.replace("/ ", "/slow-head "));
    wait_until("the request to arrive", || upstream.requests().len() == 1);
    gateway.signal("TERM");
    wait_until_closed(gateway.address());
    go.send(()).unwrap();
    let answer = press.receive();
    assert_eq!((answer.status(), &*answer.text()), (200, "late"));
    assert_eq!(answer.field("Connection"), Some("close"));
    assert!(press.is_closed());
    drop(press);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(gateway.log().contains("m2u: stopped"), "{}", gateway.log());
}

#[test]
fn an_answer_whose_head_is_out_is_completed_too() {
    let (upstream, go) = slow();
    let mut gateway = gateway("60s", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET.replace("/ ", "/slow-body "));
    let head = wire::read_head(&mut press.stream()).unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(press.receive_bytes(2), b"la");
    gateway.signal("TERM");
    wait_until_closed(gateway.address());
    go.send(()).unwrap();
    // Its head has promised to go on; the connection ends all the same, behind the answer.
    assert_eq!(press.receive_rest().unwrap(), b"te");
    drop(press);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_request_that_is_no_longer_served_cuts_no_answer_short() {
    let (upstream, go) = slow();
    let mut gateway = gateway("60s", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET.replace("/ ", "/slow-large "));
    assert_eq!(press.receive_head().status(), 200);
    press.send(GET);
    gateway.signal("TERM");
    wait_until_closed(gateway.address());
    go.send(()).unwrap();
    wait_until("the answer to be sent", || press.has_been_ended());
    assert_eq!(press.receive_rest().unwrap().len(), LARGE);
    drop(press);
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn a_body_under_way_is_taken_to_its_end() {
    let upstream = Upstream::echo();
    let mut gateway = gateway("60s", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 4\r\n\r\nbo");
    wait_until("the head to arrive", || upstream.requests().len() == 1);
    gateway.signal("TERM");
    wait_until_closed(gateway.address());
    let answer = press.ask("dy");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.field("Connection"), Some("close"));
    assert_eq!(upstream.request().text(), "body");
    drop(press);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_head_under_way_is_still_answered() {
    let upstream = Upstream::echo();
    let mut gateway = gateway("60s", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    assert_eq!(press.ask(GET).status(), 200);
    let (begin, end) = GET.split_at(20);
    press.send(begin);
    // Another connection's answer tells that the core has gone on since.
    for source in [OTHER; 20] {
        assert_eq!(
            Device::connect(source, gateway.address()).ask(GET).status(),
            200
        );
    }
    gateway.signal("TERM");
    wait_until_closed(gateway.address());
    let answer = press.ask(end);
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.field("Connection"), Some("close"));
    drop(press);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn idle_connections_are_closed_at_once() {
    let (upstream, go) = slow();
    let mut gateway = gateway("60s", &upstream);
    let mut busy = Device::connect(PRESS, gateway.address());
    busy.send(GET.replace("/ ", "/slow-head "));
    let mut silent = Device::connect(OTHER, gateway.address());
    let mut idle = Device::connect(OTHER, gateway.address());
    assert_eq!(idle.ask(GET).status(), 200);
    wait_until("both requests", || upstream.requests().len() == 2);
    gateway.signal("TERM");
    assert!(idle.is_closed());
    assert_eq!(silent.receive_rest().unwrap_or_default(), b"");
    // Idle connections to servers go as well; only the one in use stays.
    wait_until("the idle upstream connection to end", || {
        upstream.open() == 1
    });
    go.send(()).unwrap();
    assert_eq!(busy.receive().text(), "late");
    drop(busy);
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn nothing_under_way_means_an_end_at_once() {
    let upstream = Upstream::echo();
    let mut gateway = gateway("60m", &upstream);
    let mut idle = Device::connect(PRESS, gateway.address());
    assert_eq!(idle.ask(GET).status(), 200);
    gateway.signal("INT");
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(idle.is_closed());
}

#[test]
fn devices_that_wait_to_be_accepted_when_a_drain_begins_are_served() {
    let upstream = Upstream::echo();
    let gateway = gateway("2m", &upstream);
    // Stopped, it accepts nobody; connections are made all the same, by the kernel.
    gateway.signal("STOP");
    let mut devices: Vec<Device> = (0..20)
        .map(|_| {
            let mut device = Device::connect(PRESS, gateway.address());
            device.send(GET);
            device
        })
        .collect();
    gateway.signal("TERM");
    gateway.signal("CONT");
    for device in &mut devices {
        assert_eq!(device.receive().status(), 200);
        assert!(device.is_closed());
    }
    let mut gateway = gateway;
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn what_takes_longer_than_the_limit_is_cut_off() {
    let (upstream, _go) = slow();
    let mut gateway = gateway("300ms", &upstream);
    let mut awaiting = Device::connect(PRESS, gateway.address());
    awaiting.send(GET.replace("/ ", "/slow-head "));
    let mut relaying = Device::connect(OTHER, gateway.address());
    relaying.send(GET.replace("/ ", "/slow-body "));
    assert_eq!(
        wire::read_head(&mut relaying.stream())
            .unwrap()
            .unwrap()
            .status(),
        200
    );
    wait_until("both requests", || upstream.requests().len() == 2);
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(relaying.receive_rest().unwrap_or_default(), b"la");
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
    assert_eq!(awaiting.receive_rest().unwrap_or_default(), b"");
}

#[test]
fn an_answer_that_is_cut_off_does_not_pass_for_complete() {
    let (upstream, _go) = slow();
    let mut gateway = gateway("300ms", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("GET /until-close HTTP/1.0\r\n\r\n");
    let head = wire::read_head(&mut press.stream()).unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(press.receive_bytes(2), b"la");
    gateway.signal("TERM");
    let rest = press.receive_rest().map_err(|error| error.kind());
    assert_eq!(rest, Err(io::ErrorKind::ConnectionReset));
    assert_eq!(gateway.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (upstream, _go) = slow();
    let mut gateway = gateway("60m", &upstream);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET.replace("/ ", "/slow-head "));
    wait_until("the request to arrive", || upstream.requests().len() == 1);
    gateway.signal("TERM");
    gateway.wait_for_log("draining");
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(1));
    assert_eq!(press.receive_rest().unwrap_or_default(), b"");
}
