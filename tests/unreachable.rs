//! Servers that can't be reached, or with which nothing moves: silent addresses, networks without
//! a way, uploads that nobody reads, answers that stop in the middle.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs, io,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use common::{
    certificates::{Authority, Validity, quoted},
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, account, acme, server},
    sockets::{self, SYN_SENT},
    upstream::{Upstream, echo},
    wait_until,
};
use socket2::{Domain, Socket, Type};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// A listener at which connections are neither made nor refused: its queue is full.
struct Full {
    address: SocketAddr,
    _sockets: Vec<Socket>,
}

impl Full {
    fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            // In progress, or made while there is room.
            let _ = socket.connect(&address.into());
            sockets.push(socket);
        }
        wait_until("the queue to be full", || waiting_at(address) > 0);
        Self {
            address,
            _sockets: sockets,
        }
    }
}

/// Connections to `address` that have been asked for and not been made.
fn waiting_at(address: SocketAddr) -> usize {
    let rows = sockets::all().into_iter();
    rows.filter(|row| row.remote == address && row.state == SYN_SENT)
        .count()
}

/// A server by name, with these addresses.
fn named(url: &str, addresses: &[SocketAddr], extra: &str) -> String {
    let server = format!("{}address = {addresses:?}\n{extra}", server("m2u", url));
    let quoted = addresses.iter().fold(server, |text, address| {
        text.replace(&address.to_string(), &format!("\"{address}\""))
    });
    account(
        "acme",
        &quoted,
        &[("press-07", PRESS), ("press-08", "127.0.0.8")],
    )
}

#[test]
fn a_connection_that_is_never_made_takes_too_long() {
    let full = Full::start();
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}[timeouts]\nconnect = \"300ms\"\n{}",
        acme(&format!("http://{}", full.address))
    ));
    let mut press = Device::connect(PRESS, gateway.address());
    for _ in 0..2 {
        let answer = press.ask(GET);
        assert_eq!(answer.first_line(), "HTTP/1.1 504 Gateway Timeout");
        assert_eq!(answer.token(), Some("connection_timeout"));
        assert_eq!(answer.field("Connection"), Some("keep-alive"));
    }
    gateway.stop();
}

#[test]
fn an_address_at_which_nobody_answers_does_not_hide_the_next() {
    let (full, live) = (Full::start(), Upstream::echo());
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}[timeouts]\nconnect = \"1s\"\n{}",
        named("http://ingest.example", &[full.address, live.address], "")
    ));
    let answer = device::ask(PRESS, gateway.address(), GET);
    assert_eq!(answer.status(), 200);
    gateway.stop();
}

#[test]
fn a_silent_address_costs_one_request_and_is_tried_last_from_then_on() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["ingest.example"], Validity::Current);
    let silent = Upstream::start(|conversation| conversation.read_rest().map(|_| ()));
    let live = Upstream::start_tls(Authority::server_config(&leaf, None), echo);
    let extra = format!("ca = {}\n", quoted(&authority.pem()));
    let addresses = [silent.address, live.address];
    let accounts = named("https://ingest.example", &addresses, &extra);
    // Each request needs a connection of its own, and one core remembers for all of them.
    let tables = "[timeouts]\nconnect = \"1s\"\n[limits]\npool_per_server = 0\n";
    let config = format!("{PREAMBLE}{tables}{accounts}");
    let gateway = Gateway::start_with(&config, &["--cores", "0"]);
    for (number, source) in [PRESS, "127.0.0.8", PRESS, PRESS].into_iter().enumerate() {
        let answer = device::ask(source, gateway.address(), GET);
        assert_eq!(answer.status(), 200);
        assert_eq!(silent.connections(), 1, "request {number}");
        assert_eq!(live.connections(), number + 1);
    }
    // It is not given up for good: where no other one answers, it is tried.
    let none = gateway.path("m2u.toml");
    fs::write(none, config.replace(&format!(", \"{}\"", live.address), "")).unwrap();
    let mut gateway = gateway;
    gateway.signal("HUP");
    gateway.wait_for_log("m2u: reloaded");
    let answer = device::ask(PRESS, gateway.address(), GET);
    assert_eq!(answer.token(), Some("connection_timeout"));
    assert_eq!(silent.connections(), 2);
    assert_eq!(live.connections(), 4);
    gateway.stop();
}

/// Passes connections on to `server`, at every address of the loopback range, each once it is let through.
struct Gate {
    port: u16,
    accepted: Arc<AtomicUsize>,
    open: mpsc::Sender<()>,
}

impl Gate {
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (open, opened) = mpsc::channel();
        let count = Arc::clone(&accepted);
        // Ends with the test's process, if the gateway makes fewer connections than it has addresses.
        thread::spawn(move || {
            let mut waiting = Vec::new();
            for near in listener.incoming() {
                waiting.push(near.unwrap());
                count.fetch_add(1, Ordering::Relaxed);
                if waiting.len() == 1 && opened.recv().is_ok() {
                    let near = waiting[0].try_clone().unwrap();
                    let far = TcpStream::connect(server).unwrap();
                    let (mut from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                    thread::spawn(move || io::copy(&mut from, &mut to));
                    thread::spawn(move || io::copy(&mut &far, &mut &near));
                }
            }
        });
        Self {
            port,
            accepted,
            open,
        }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// A host that has answered is there: its TLS may take longer than a silent one's share of the time.
#[test]
fn many_addresses_leave_each_the_time_that_tls_takes() {
    const ADDRESSES: u8 = 16;
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["ingest.example"], Validity::Current);
    let live = Upstream::start_tls(Authority::server_config(&leaf, None), echo);
    let (gate, full) = (Gate::start(live.address), Full::start());
    let addresses: Vec<_> = (1..=ADDRESSES)
        .map(|host| SocketAddr::from(([127, 0, 3, host], gate.port)))
        .collect();
    let extra = format!(
        "ca = {}\n{}timeouts = {{ connect = \"1s\" }}\n",
        quoted(&authority.pem()),
        server("m2u2", &format!("http://{}", full.address))
    );
    let accounts = named("https://ingest.example", &addresses, &extra);
    // One core's clock is the other request's.
    let config = format!("{PREAMBLE}[timeouts]\nconnect = \"10s\"\n{accounts}");
    let gateway = Gateway::start_with(&config, &["--cores", "0"]);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET);
    wait_until("a connection to be made", || gate.accepted() > 0);
    let other = GET.replace("m2u", "m2u2");
    let answer = device::ask("127.0.0.8", gateway.address(), other);
    assert_eq!(answer.token(), Some("connection_timeout"));
    // A second has passed, and more than the sixteenth part of ten.
    gate.open.send(()).unwrap();
    assert_eq!(press.receive().status(), 200);
    assert_eq!(gate.accepted(), 1);
    gateway.stop();
}

#[test]
fn an_address_to_which_there_is_no_way_is_told() {
    // Addresses of many hosts: the kernel knows no way there for TCP, whatever routes it has.
    for address in ["127.255.255.255", "255.255.255.255", "224.0.0.1"] {
        let networks = format!("[\"{address}/32\"]");
        let preamble = PREAMBLE.replacen("[\"127.0.0.0/8\"]", &networks, 1);
        let gateway = Gateway::start(&format!("{preamble}{}", acme(&format!("http://{address}"))));
        let mut press = Device::connect(PRESS, gateway.address());
        for _ in 0..2 {
            let answer = press.ask(GET);
            assert_eq!(answer.status(), 502, "{address}");
            assert_eq!(
                answer.token(),
                Some("destination_ip_unroutable"),
                "{address}"
            );
        }
        gateway.stop();
    }
}

#[test]
fn an_upload_that_the_server_does_not_read_is_given_up() {
    let (done, over) = mpsc::channel::<()>();
    let over = Mutex::new(over);
    let upstream = Upstream::start(move |conversation| {
        conversation.head()?;
        // Ends with the test; nothing more is read until then.
        let _ = over.lock().unwrap().recv();
        Ok(())
    });
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}[timeouts]\nbody = \"300ms\"\n{}",
        acme(&upstream.url())
    ));
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 100000000\r\n\r\n");
    let sender = thread::spawn({
        let mut stream = press.stream().try_clone().unwrap();
        move || {
            // More than all the buffers on the way; ends when the gateway takes no more.
            while stream.write_all(&[b'x'; 65_536]).is_ok() {}
        }
    });
    let answer = press.receive();
    assert_eq!(answer.first_line(), "HTTP/1.1 504 Gateway Timeout");
    assert_eq!(answer.token(), Some("connection_write_timeout"));
    assert_eq!(answer.field("Connection"), Some("close"));
    press.stream().shutdown(std::net::Shutdown::Both).unwrap();
    sender.join().unwrap();
    drop(done);
    gateway.stop();
}

#[test]
fn an_answer_that_stops_in_the_middle_does_not_pass_for_complete() {
    let upstream = Upstream::start(|conversation| {
        let request = conversation.request()?.expect("a request");
        conversation.write(match request.target() {
            "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ",
            "/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf \r\n",
            _ => "HTTP/1.1 200 OK\r\n\r\nhalf ",
        })?;
        assert_eq!(conversation.read_rest()?, b"");
        Ok(())
    });
    let log = tempfile::tempdir().unwrap();
    let path = log.path().join("access.log");
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}[timeouts]\nbody = \"200ms\"\n[access_log]\npath = {}\n{}",
        quoted(&path),
        acme(&upstream.url())
    ));
    for target in ["/length", "/chunked", "/close"] {
        for version in ["1.0", "1.1"] {
            let mut press = Device::connect(PRESS, gateway.address());
            press.send(format!("GET {target} HTTP/{version}\r\nHost: m2u\r\n\r\n"));
            let error = press.receive_answer(false).expect_err(target);
            let kinds = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
            assert!(kinds.contains(&error.kind()), "{target}: {error}");
            wait_until("the server to see the end", || upstream.open() == 0);
        }
    }
    gateway.stop();
    let lines = fs::read_to_string(path).unwrap();
    assert_eq!(lines.lines().count(), 6, "{lines}");
    for line in lines.lines() {
        assert!(line.contains("\"status\":200"), "{line}");
        assert!(
            line.contains("\"error\":\"http_response_incomplete\""),
            "{line}"
        );
    }
}
