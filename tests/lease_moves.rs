//! A lease that moves or ends: what is idle closes, what is under way ends as it began, and what
//! comes next is judged anew.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

use common::{
    device::Device,
    feed::Feed,
    gateway::{Gateway, PREAMBLE, believing, listening},
    upstream::Upstream,
    wait_until,
};

const LEASED: &str = "127.0.7.1";
const OTHER: &str = "127.0.7.2";
const BALANCER: &str = "127.0.9.1";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// Two devices without an address of their own, `press` and `mill`.
fn configuration(url: &str) -> String {
    let preamble = listening(&format!("\"127.0.0.1:0\", {}", believing("127.0.9.0/24")));
    format!(
        "leases = {{ socket = \"feed.sock\" }}\n{preamble}\
         [[account]]\nref = \"acme\"\n[[account.server]]\nurl = \"{url}\"\n\
         [[account.device]]\nname = \"press\"\nserial = \"1\"\n\
         [[account.device]]\nname = \"mill\"\nserial = \"2\"\n"
    )
}

fn start(upstream: &Upstream) -> (Gateway, Feed) {
    let gateway = Gateway::start(&configuration(&upstream.url()));
    let feed = Feed::connect(&gateway.path("feed.sock"));
    (gateway, feed)
}

/// Leases `address` to `device`, whoever had it before.
fn lease(feed: &mut Feed, address: &str, device: &str) {
    feed.done(&format!(
        "{{\"op\":\"add\",\"source\":\"vpn\",\"address\":\"{address}\",\"account\":\"acme\",\
         \"device\":\"{device}\",\"replace\":true}}"
    ));
}

fn release(feed: &mut Feed, address: &str) {
    feed.done(&format!(
        "{{\"op\":\"release\",\"source\":\"vpn\",\"address\":\"{address}\"}}"
    ));
}

/// Whether a request, echoed, was stamped for `device`.
fn is_from(answer: &common::wire::Message, device: &str) -> bool {
    answer.status() == 200
        && answer
            .text()
            .contains(&format!("X_Talk2M_Device: {device}\r\n"))
}

#[test]
fn idle_connections_of_the_address_close_and_no_others() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = start(&upstream);
    lease(&mut feed, LEASED, "press");
    lease(&mut feed, OTHER, "mill");
    for is_dormant in [false, true] {
        for ends in [true, false] {
            let [mut leased, mut other] =
                [LEASED, OTHER].map(|source| Device::connect(source, gateway.address()));
            assert!(is_from(&leased.ask(GET), "press"));
            assert!(is_from(&other.ask(GET), "mill"));
            if is_dormant {
                wait_until("sleep", || gateway.counts().get("dormant") == Some(&2));
            }
            match ends {
                true => release(&mut feed, LEASED),
                false => lease(&mut feed, LEASED, "mill"),
            }
            wait_until("the end", || leased.has_been_ended());
            assert!(leased.is_closed(), "in order");
            assert!(is_from(&other.ask(GET), "mill"), "on the same connection");
            lease(&mut feed, LEASED, "press");
        }
    }
    gateway.stop();
}

#[test]
fn a_connection_of_which_no_server_has_heard_yet_is_no_exception() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = start(&upstream);
    lease(&mut feed, OTHER, "mill");
    for (host, status) in [("m2u9", 404), ("www.example.org", 421)] {
        let ask = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        for ends in [true, false] {
            lease(&mut feed, LEASED, "press");
            let [mut leased, mut other] =
                [LEASED, OTHER].map(|source| Device::connect(source, gateway.address()));
            for device in [&mut leased, &mut other] {
                assert_eq!(device.ask(&*ask).status(), status);
            }
            // On the same connection, and so one that is kept.
            assert_eq!(leased.ask(&*ask).status(), status);
            match ends {
                true => release(&mut feed, LEASED),
                false => lease(&mut feed, LEASED, "mill"),
            }
            wait_until("the end", || leased.has_been_ended());
            assert!(leased.is_closed(), "in order");
            assert_eq!(other.ask(&*ask).status(), status, "on the same connection");
        }
    }
    // One that was refused for want of a lease has ended by then.
    release(&mut feed, LEASED);
    let mut refused = Device::connect(LEASED, gateway.address());
    assert_eq!(refused.ask(GET).status(), 403);
    wait_until("the end", || refused.has_been_ended());
    gateway.stop();
}

#[test]
fn a_prefix_that_ends_closes_the_connections_of_all_its_addresses() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = start(&upstream);
    lease(&mut feed, "127.0.7.0/24", "press");
    let mut devices: Vec<_> = (1..9)
        .map(|last| Device::connect(&format!("127.0.7.{last}"), gateway.address()))
        .collect();
    for device in &mut devices {
        assert!(is_from(&device.ask(GET), "press"));
    }
    release(&mut feed, "127.0.7.0/24");
    wait_until("their ends", || devices.iter().all(Device::has_been_ended));
    gateway.stop();
}

#[test]
fn who_speaks_through_a_balancer_is_known_by_the_address_handed_over() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = start(&upstream);
    for address in ["2001:db8::7", "2001:db8::8", "198.51.100.7"] {
        lease(&mut feed, address, "press");
    }
    let connect = |family: &str, address: &str, own: &str| {
        let mut balancer = Device::connect(BALANCER, gateway.addresses()[1]);
        balancer.send(format!("PROXY {family} {address} {own} 12345 80\r\n"));
        assert!(is_from(&balancer.ask(GET), "press"), "{address}");
        balancer
    };
    let mut kept = connect("TCP6", "2001:db8::8", "::1");
    for (family, address, own) in [
        ("TCP6", "2001:db8::7", "::1"),
        ("TCP4", "198.51.100.7", "127.0.0.1"),
    ] {
        let balancer = connect(family, address, own);
        release(&mut feed, address);
        wait_until("the end", || balancer.has_been_ended());
    }
    assert!(is_from(&kept.ask(GET), "press"));
    gateway.stop();
}

#[test]
fn a_request_comes_from_whoever_made_its_connection() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = start(&upstream);
    lease(&mut feed, LEASED, "press");
    // It has said nothing, and yet takes a place of its address.
    let silent = Device::connect(LEASED, gateway.address());
    wait_until("sleep", || gateway.counts().get("dormant") == Some(&1));
    // Begun before the lease moves: not idle, so not closed.
    let mut begun = Device::connect(LEASED, gateway.address());
    assert!(is_from(&begun.ask(GET), "press"));
    let mut early = Device::connect(OTHER, gateway.address());
    let (head, rest) = GET.split_at(20);
    begun.send(head);
    wait_until("the first request", || gateway.counts()["requests"] == 1);
    lease(&mut feed, LEASED, "mill");
    wait_until("the end", || silent.has_been_ended());
    begun.send(rest);
    let refused = begun.receive();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.field("Retry-After"), Some("5"));
    assert!(begun.is_closed());
    wait_until("the count", || {
        gateway.counts().get("failed.moved_lease") == Some(&1)
    });
    // Nobody's when it was made: whoever the address is given to first may speak.
    lease(&mut feed, OTHER, "mill");
    assert!(is_from(&early.ask(GET), "mill"));
    assert_eq!(upstream.requests().len(), 2);
    release(&mut feed, LEASED);
    let refused = Device::connect(LEASED, gateway.address()).ask(GET);
    assert_eq!(refused.status(), 403);
    gateway.stop();
}

/// Echoes a request when it is allowed to, having said that it was asked.
fn gated() -> (Upstream, Receiver<()>, Sender<()>) {
    let (ask, asked) = channel();
    let (allow, allowed) = channel();
    let gate = (Mutex::new(ask), Mutex::new(allowed));
    let upstream = Upstream::start(move |conversation| {
        while let Some(mut message) = conversation.head()? {
            conversation.body(&mut message)?;
            gate.0.lock().unwrap().send(()).unwrap();
            // The test says when, or is over.
            let _ = gate.1.lock().unwrap().recv();
            let device = message
                .field("X_Talk2M_Device")
                .unwrap_or("none")
                .to_owned();
            conversation.forget();
            conversation.answer(format!("X_Talk2M_Device: {device}\r\n"))?;
        }
        Ok(())
    });
    (upstream, asked, allow)
}

/// Else whoever is given a new address would speak for the next one who has the old.
#[test]
fn what_was_sent_before_the_lease_moved_is_not_the_next_devices() {
    let (upstream, asked, allow) = gated();
    for second in [
        "POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 6\r\n\r\nforged",
        GET,
    ] {
        let (gateway, mut feed) = start(&upstream);
        lease(&mut feed, LEASED, "press");
        let mut device = Device::connect(LEASED, gateway.address());
        device.send([GET, second].concat());
        asked.recv().unwrap();
        lease(&mut feed, LEASED, "mill");
        allow.send(()).unwrap();
        assert!(is_from(&device.receive(), "press"));
        assert_eq!(device.receive().status(), 503);
        assert!(device.is_closed());
        // The server hears of the next device's own request first.
        let mut next = Device::connect(LEASED, gateway.address());
        allow.send(()).unwrap();
        assert!(is_from(&next.ask(GET), "mill"));
        asked.recv().unwrap();
        assert!(asked.try_recv().is_err());
        gateway.stop();
    }
    drop(allow);
}

#[test]
fn an_exchange_under_way_ends_under_the_identity_it_began_with() {
    let (upstream, asked, allow) = gated();
    let (gateway, mut feed) = start(&upstream);
    lease(&mut feed, LEASED, "press");
    let mut device = Device::connect(LEASED, gateway.address());
    device.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\nhello");
    asked.recv().unwrap();
    lease(&mut feed, LEASED, "mill");
    allow.send(()).unwrap();
    assert!(is_from(&device.receive(), "press"));
    // It is idle now, and was another device's.
    wait_until("the end", || device.has_been_ended());
    allow.send(()).unwrap();
    let mut device = Device::connect(LEASED, gateway.address());
    assert!(is_from(&device.ask(GET), "mill"));
    drop(allow);
    gateway.stop();
}

#[test]
fn a_reload_that_gives_an_address_to_another_device_closes_its_connections() {
    let upstream = Upstream::echo();
    for leases in ["", "leases = { socket = \"feed.sock\" }\n"] {
        let with = |device: &str, other: &str| {
            format!(
                "{leases}{PREAMBLE}[[account]]\nref = \"acme\"\n[[account.server]]\nurl = \"{}\"\n\
                 [[account.device]]\nname = \"{device}\"\nserial = \"1\"\naddress = [\"{LEASED}\"]\n\
                 [[account.device]]\nname = \"{other}\"\nserial = \"2\"\naddress = [\"{OTHER}\"]\n\
                 [[account.device]]\nname = \"saw\"\nserial = \"3\"\naddress = [\"127.0.7.3\"]\n",
                upstream.url()
            )
        };
        let mut gateway = Gateway::start(&with("press", "mill"));
        let mut moved = Device::connect(LEASED, gateway.address());
        let mut kept = Device::connect("127.0.7.3", gateway.address());
        assert!(is_from(&moved.ask(GET), "press"));
        assert!(is_from(&kept.ask(GET), "saw"));
        fs::write(gateway.path("m2u.toml"), with("mill", "press")).unwrap();
        gateway.signal("HUP");
        gateway.wait_for_log("m2u: reloaded");
        wait_until("the end", || moved.has_been_ended());
        assert!(moved.is_closed());
        assert!(is_from(&kept.ask(GET), "saw"), "on the same connection");
        gateway.stop();
    }
}
