//! Large plain bodies, which are moved inside the kernel: byte for byte the same, whatever the
//! threshold, and broken off as visibly as any other.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    sync::{Mutex, mpsc},
};

use m2u::limits;
use socket2::SockRef;

use common::{
    device::Device,
    gateway::{Gateway, PREAMBLE, acme},
    upstream::Upstream,
    wait_until,
};

const PRESS: &str = "127.0.0.7";

/// Bytes of which no two neighbours of a kilobyte are the same.
fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at / 7) ^ (at >> 9)) as u8).collect()
}

fn gateway(upstream: &Upstream, threshold: &str, tables: &str) -> Gateway {
    let config = format!("{PREAMBLE}{tables}{}", acme(&upstream.url()));
    Gateway::start_with(&config, &["--cores", "0", "--splice-threshold", threshold])
}

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Pipes that the gateway has open.
fn pipes(gateway: &Gateway) -> usize {
    let folder = fs::read_dir(format!("/proc/{}/fd", gateway.id())).unwrap();
    let targets = folder.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

#[test]
fn bodies_arrive_byte_for_byte_both_ways_at_every_threshold() {
    let upstream = Upstream::start(|conversation| {
        while let Some(request) = conversation.request()? {
            conversation.answer(&request.body)?;
        }
        Ok(())
    });
    for threshold in ["1", "65536", "off"] {
        let gateway = gateway(&upstream, threshold, "");
        let before = upstream.connections();
        let mut press = Device::connect(PRESS, gateway.address());
        for length in [1, 2_047, 65_535, 65_536, 70_000, 1_048_577, 9_000_000] {
            let sent = body(length);
            let request = post(&sent);
            // What was sent must be taken while the answer is on its way.
            let (device, sender) = (press.stream().try_clone().unwrap(), request);
            let writer = std::thread::spawn(move || {
                std::io::Write::write_all(&mut { device }, &sender).unwrap();
            });
            let answer = press.receive();
            writer.join().unwrap();
            assert_eq!(answer.status(), 200, "{threshold} {length}");
            assert!(answer.body == sent, "{threshold} {length}: not the same");
        }
        assert_eq!(upstream.connections() - before, 1, "{threshold}");
        gateway.stop();
    }
}

#[test]
fn a_body_on_its_way_is_in_a_pipe_unless_that_is_off() {
    for (threshold, expected) in [("65536", 2), ("off", 0)] {
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let upstream = Upstream::start(move |conversation| {
            conversation.head()?.expect("a head");
            wait.lock().unwrap().recv().unwrap();
            conversation.read(20_000_000)?;
            conversation.answer("taken")
        });
        let gateway = gateway(&upstream, threshold, "");
        let before = pipes(&gateway);
        let press = Device::connect(PRESS, gateway.address());
        let writer = std::thread::spawn(move || {
            let mut press = press;
            press.send(post(&body(20_000_000)));
            press.receive().text()
        });
        // The server takes nothing, so all buffers on the way are filled.
        wait_until("the body to be under way", || {
            upstream.requests().len() == 1 && pipes(&gateway) - before == expected
        });
        go_on.send(()).unwrap();
        assert_eq!(writer.join().unwrap(), "taken");
        wait_until("the pipe to be given back", || pipes(&gateway) == before);
        gateway.stop();
    }
}

#[test]
fn a_device_that_stops_within_a_large_body_is_told() {
    let upstream = Upstream::start(|conversation| {
        conversation.head()?;
        // Must end without the rest.
        assert!(conversation.read(5_000_000).is_err());
        Ok(())
    });
    let gateway = gateway(&upstream, "65536", "[timeouts]\nbody = \"200ms\"\n");
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(&post(&body(5_000_000))[..3_000_000]);
    let answer = press.receive();
    assert_eq!(
        (answer.status(), answer.token()),
        (408, Some("http_request_timeout"))
    );
    gateway.stop();
}

#[test]
fn a_server_that_takes_no_more_of_a_large_body_is_given_up() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |conversation| {
        conversation.head()?;
        // Until the test is over.
        let _ = wait.lock().unwrap().recv();
        Ok(())
    });
    let gateway = gateway(&upstream, "65536", "[timeouts]\nbody = \"200ms\"\n");
    let mut press = Device::connect(PRESS, gateway.address());
    let device = press.stream().try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        // The gateway stops to take it.
        let _ = std::io::Write::write_all(&mut { device }, &post(&body(50_000_000)));
    });
    let answer = press.receive();
    assert_eq!(
        (answer.status(), answer.token()),
        (504, Some("connection_write_timeout"))
    );
    drop(press);
    writer.join().unwrap();
    drop(go_on);
    gateway.stop();
}

#[test]
fn a_large_answer_that_breaks_off_looks_broken_off() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\n\r\n")?;
        conversation.write(&body(5_000_000)[..4_999_999])?;
        conversation.cut()
    });
    let gateway = gateway(&upstream, "65536", "");
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
    let seen = press.receive_rest().unwrap();
    let head = seen.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
    assert!(seen[head..] == body(5_000_000)[..4_999_999]);
    gateway.stop();
}

/// Its receives waited for batches, and would go on to where nobody takes note of what is left of it.
#[test]
fn a_server_is_heard_at_once_behind_a_body_that_came_fast_and_then_through_a_pipe() {
    const PIECE: usize = 1_500;
    const PIECES: usize = limits::FAST_BYTES.div_ceil(PIECE);
    const LENGTH: usize = PIECES * PIECE + limits::BATCH_BYTES + 8_192;
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |conversation| {
        conversation.request()?.expect("a request");
        let wait = wait.lock().unwrap();
        conversation.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"
        ))?;
        let body = body(LENGTH);
        let (small, large) = body.split_at(PIECES * PIECE);
        for piece in small.chunks(PIECE).chain([large]) {
            wait.recv().unwrap();
            conversation.write(piece)?;
        }
        conversation.head()?.expect("another one");
        conversation.write("HTTP/1.1 100 Continue\r\n\r\n")?;
        conversation.read(2)?;
        conversation.answer("taken")
    });
    let gateway = gateway(&upstream, "65536", "");
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
    assert_eq!(press.receive_head().status(), 200);
    let mut seen = Vec::new();
    for length in [PIECE; PIECES].into_iter().chain([LENGTH - PIECES * PIECE]) {
        go_on.send(()).unwrap();
        seen.extend(press.receive_bytes(length));
    }
    assert!(seen == body(LENGTH));
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(press.receive_head().status(), 100);
    press.send("hi");
    assert_eq!(press.receive().text(), "taken");
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

/// splice(2) does not lead past an urgent byte (RFC 9293 §3.8.5), which belongs to no body.
#[test]
fn an_urgent_byte_within_a_large_body_stops_nothing() {
    let upstream = Upstream::start(|conversation| {
        while let Some(request) = conversation.request()? {
            conversation.answer(request.body.len().to_string())?;
        }
        Ok(())
    });
    let gateway = gateway(&upstream, "65536", "");
    let mut press = Device::connect(PRESS, gateway.address());
    let request = post(&body(3_000_000));
    press.send(&request[..1_000_000]);
    let socket = SockRef::from(press.stream());
    assert_eq!(socket.send_out_of_band(b"!").unwrap(), 1);
    press.send(&request[1_000_000..]);
    assert_eq!(press.receive().text(), "3000000");
    gateway.stop();
}

/// Both directions of both sockets are used at once, by the ring and past it.
#[test]
fn an_early_answer_larger_than_all_buffers_arrives_whole_while_the_upload_is_moved() {
    const LENGTH: usize = 30_000_000;
    let sent = body(LENGTH);
    let chunks = sent
        .chunks(100_000)
        .map(|piece| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    let chunked = chunks.collect::<Vec<_>>().concat();
    for (fields, answer, last) in [
        ("Content-Length: 30000000", sent.clone(), &b""[..]),
        ("Transfer-Encoding: chunked", chunked, &b"0\r\n\r\n"[..]),
    ] {
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let upstream = Upstream::start(move |conversation| {
            conversation.head()?.expect("a head");
            wait.lock().unwrap().recv().unwrap();
            conversation.write(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"))?;
            conversation.write(&answer)?;
            // The device reads by now, or this would not have left; the rest is taken beside it.
            conversation.read(LENGTH)?;
            conversation.write(last)
        });
        let gateway = gateway(&upstream, "65536", "");
        let before = pipes(&gateway);
        let mut press = Device::connect(PRESS, gateway.address());
        let device = press.stream().try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            // Where the answer is complete before the request is, nobody wants the rest.
            let _ = std::io::Write::write_all(&mut { device }, &post(&body(LENGTH)));
        });
        wait_until("the body to be under way", || {
            upstream.requests().len() == 1 && pipes(&gateway) > before
        });
        go_on.send(()).unwrap();
        let answer = press.receive();
        assert_eq!(answer.status(), 200, "{fields}");
        assert!(answer.body == sent, "{fields}: not the same");
        drop(press);
        writer.join().unwrap();
        gateway.stop();
    }
}

#[test]
fn an_upload_that_begins_to_trickle_gives_its_pipe_back() {
    let upstream = Upstream::start(|conversation| {
        let request = conversation.request()?.expect("a request");
        conversation.answer(request.body.len().to_string())
    });
    let gateway = gateway(&upstream, "65536", "");
    let before = pipes(&gateway);
    let mut press = Device::connect(PRESS, gateway.address());
    let request = post(&body(1_000_000));
    let mut sent = 500_000;
    press.send(&request[..sent]);
    wait_until("the body to be moved", || pipes(&gateway) > before);
    wait_until("the pipe to be given back", || {
        press.send(&request[sent..=sent]);
        sent += 1;
        pipes(&gateway) == before
    });
    press.send(&request[sent..]);
    assert_eq!(press.receive().text(), "1000000");
    gateway.stop();
}

#[test]
fn a_late_answer_is_awaited_and_both_connections_go_on() {
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |conversation| {
        while let Some(request) = conversation.request()? {
            wait.lock().unwrap().recv().unwrap();
            conversation.answer(request.body.len().to_string())?;
        }
        Ok(())
    });
    let gateway = gateway(&upstream, "65536", "");
    let mut press = Device::connect(PRESS, gateway.address());
    // The first body finds a new connection, the next ones a connection that has carried one.
    for (round, length) in [5_000_000, 5_000_000, 10].into_iter().enumerate() {
        press.send(post(&body(length)));
        wait_until("the server to have all of it", || {
            let requests = upstream.requests();
            requests.len() == round + 1 && requests[round].body.len() == length
        });
        go_on.send(()).unwrap();
        assert_eq!(press.receive().text(), length.to_string());
    }
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

#[test]
fn an_answer_without_a_length_that_is_reset_where_a_buffer_ends_looks_broken_off() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        let mut answer = b"HTTP/1.0 200 OK\r\n\r\n".to_vec();
        // As much as the gateway's first receive takes.
        answer.resize(2_048, b'x');
        conversation.write(answer)?;
        conversation.reset()
    });
    let gateway = gateway(&upstream, "65536", "");
    for _ in 0..50 {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send("GET / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\r\n");
        let seen = press.receive_rest().unwrap_or_default();
        let is_complete = seen.starts_with(b"HTTP/1.1 200") && seen.ends_with(b"\r\n0\r\n\r\n");
        assert!(!is_complete, "a reset passed for an end");
    }
    gateway.stop();
}
