//! Upstream connections: kept, shared where they may be, and replaced where that does no harm.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, mpsc},
};

use common::{
    certificates::{Authority, Leaf, Validity, quoted},
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, account, acme, server},
    sockets::{self, ESTABLISHED},
    upstream::{self, Conversation, Step, Upstream},
    wait_until,
};
use socket2::SockRef;

const PRESS: &str = "127.0.0.7";
const OTHER: &str = "127.0.0.8";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\nhello";

/// A gateway with a single core, so that all devices share its idle connections.
fn gateway(tables: &str, accounts: &str) -> Gateway {
    Gateway::start_with(&format!("{PREAMBLE}{tables}{accounts}"), &["--cores", "0"])
}

/// Asks for 200 on a connection of its own.
fn succeed(gateway: &Gateway, source: &str, request: &str) {
    let answer = device::ask(source, gateway.address(), request);
    assert_eq!(answer.status(), 200, "{}{}", answer.head, answer.text());
}

#[test]
fn a_connection_serves_several_requests_and_devices() {
    let upstream = Upstream::echo();
    let gateway = gateway("", &acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for request in [GET, POST, GET] {
        assert_eq!(press.ask(request).status(), 200);
    }
    succeed(&gateway, OTHER, POST);
    succeed(&gateway, PRESS, "GET / HTTP/1.0\r\n\r\n");
    let names: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.field("X_Talk2M_Device").unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        ["press-07", "press-07", "press-07", "press-08", "press-07"]
    );
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

/// Waits until every connection to `server` shows that its server has ended it or spoken again.
///
/// What a server sent is on its way for a moment, even here; the kernel's table tells when it is
/// there.
fn wait_until_disturbed(server: SocketAddr) {
    wait_until("the server's last word to arrive", || {
        let rows = sockets::all();
        let mut open = rows
            .iter()
            .filter(|row| row.remote == server && row.state == ESTABLISHED);
        open.all(|row| row.to_read > 0)
    });
}

/// Answers one request on each connection and says when its end is on the wire.
fn one_each(gone: mpsc::Sender<()>) -> impl Fn(&mut Conversation) -> Step + Send + Sync {
    let gone = Mutex::new(gone);
    move |conversation| {
        let request = conversation.request()?.expect("a request");
        conversation.answer(&request.body)?;
        conversation.cut()?;
        gone.lock().unwrap().send(()).map_err(io::Error::other)
    }
}

#[test]
fn a_connection_that_its_server_closed_is_noticed_before_it_is_used() {
    let (gone, told) = mpsc::channel();
    let upstream = Upstream::start(one_each(gone));
    let gateway = gateway("", &acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    for number in 1..=20 {
        let answer = press.ask(POST);
        assert_eq!((answer.status(), &*answer.text()), (200, "hello"));
        told.recv().unwrap();
        wait_until_disturbed(upstream.address);
        assert_eq!(upstream.connections(), number);
    }
    gateway.stop();
}

#[test]
fn a_server_that_speaks_unasked_is_not_asked_again() {
    let (seen, told) = mpsc::channel();
    let seen = Mutex::new(seen);
    let upstream = Upstream::start(move |conversation| {
        while conversation.request()?.is_some() {
            conversation.answer("mine")?;
            // For whoever asks next.
            conversation.answer("forged")?;
            seen.lock().unwrap().send(()).map_err(io::Error::other)?;
        }
        Ok(())
    });
    let gateway = gateway("", &acme(&upstream.url()));
    for number in 1..=5 {
        let answer = device::ask(PRESS, gateway.address(), GET);
        assert_eq!(answer.text(), "mine");
        told.recv().unwrap();
        wait_until_disturbed(upstream.address);
        assert_eq!(upstream.connections(), number);
    }
    gateway.stop();
}

/// An answer whose body ends beyond the gateway's first receive.
fn long_answer() -> Vec<u8> {
    let body = "m".repeat(5_000);
    format!("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{body}").into_bytes()
}

/// What stands behind the body's last byte, in the same segment, must not be there for a request
/// that follows at once.
#[test]
fn what_follows_an_answer_is_nobodys_even_for_a_request_that_waits_already() {
    let upstream = Upstream::start(|conversation| {
        while conversation.request()?.is_some() {
            let forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged";
            conversation.write([&long_answer()[..], forged].concat())?;
        }
        Ok(())
    });
    let gateway = gateway("", &acme(&upstream.url()));
    for _ in 0..20 {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(GET.repeat(3));
        for _ in 0..3 {
            let answer = press.receive();
            assert_eq!((answer.status(), answer.body.len()), (200, 5_000));
        }
    }
    gateway.stop();
}

/// A server that ends its connection in the segment that ends its answer costs a waiting request
/// nothing, and that request may not be repeated.
#[test]
fn an_end_behind_an_answer_is_seen_by_a_request_that_waits_already() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        let socket = SockRef::from(conversation.socket());
        socket.set_tcp_cork(true)?;
        conversation.write(long_answer())?;
        conversation.cut()
    });
    let gateway = gateway("", &acme(&upstream.url()));
    for _ in 0..20 {
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(POST.repeat(3));
        for _ in 0..3 {
            let answer = press.receive();
            assert_eq!((answer.status(), answer.body.len()), (200, 5_000));
        }
    }
    gateway.stop();
}

/// Answers the first request of the first connection; ends that connection at the second one.
fn dies_warm(conversation: &mut Conversation) -> Step {
    if conversation.number > 1 {
        return upstream::echo(conversation);
    }
    conversation.request()?;
    conversation.answer("first")?;
    conversation.request()?;
    conversation.cut()
}

#[test]
fn a_repeatable_request_is_repeated_once_on_a_fresh_connection() {
    for request in [
        GET,
        "PUT / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\nhello",
        "DELETE / HTTP/1.1\r\nHost: m2u\r\n\r\n",
        "OPTIONS / HTTP/1.1\r\nHost: m2u\r\n\r\n",
    ] {
        let upstream = Upstream::start(dies_warm);
        let gateway = gateway("", &acme(&upstream.url()));
        succeed(&gateway, PRESS, GET);
        succeed(&gateway, PRESS, request);
        let requests = upstream.requests();
        assert_eq!(requests.len(), 3);
        assert_eq!(upstream.connections(), 2);
        // Byte for byte the same request, with the same id.
        assert_eq!(requests[1], requests[2]);
        gateway.stop();
    }
}

/// Answers the first request of the first connection, and then says that it has waited long enough, for the
/// second one was on its way.
fn tires(farewell: &'static str) -> impl Fn(&mut Conversation) -> Step + Send + Sync {
    move |conversation| {
        if conversation.number > 1 {
            return upstream::echo(conversation);
        }
        conversation.request()?;
        conversation.answer("first")?;
        conversation.request()?;
        conversation.write(farewell)?;
        conversation.cut()
    }
}

#[test]
fn a_repeatable_request_that_crosses_a_servers_timeout_is_repeated() {
    const TIRED: &str = "HTTP/1.1 408 Request Timeout\r\n\
        Connection: close\r\nContent-Length: 0\r\n\r\n";
    const KEPT: &str = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 102 Processing\r\n\r\n\
        HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    for (request, farewell, status, connections) in [
        (GET, TIRED, 200, 2),
        // What it says may be an answer to this one.
        (GET, KEPT, 408, 1),
        (GET, BUSY, 408, 1),
        (POST, TIRED, 408, 1),
    ] {
        let upstream = Upstream::start(tires(farewell));
        let gateway = gateway("", &acme(&upstream.url()));
        succeed(&gateway, PRESS, GET);
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(request);
        let answer = loop {
            let answer = press.receive();
            if answer.status() != 102 {
                break answer;
            }
        };
        assert_eq!(answer.status(), status, "{farewell}");
        assert_eq!(upstream.connections(), connections, "{farewell}");
        gateway.stop();
    }
    // A fresh connection has not waited for anything.
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        conversation.write(TIRED)
    });
    let gateway = gateway("", &acme(&upstream.url()));
    let answer = device::ask(PRESS, gateway.address(), GET);
    assert_eq!(answer.status(), 408);
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

#[test]
fn a_request_that_may_have_been_carried_out_is_not_repeated() {
    for method in ["POST", "PATCH", "get", "PROPFIND"] {
        let upstream = Upstream::start(dies_warm);
        let gateway = gateway("", &acme(&upstream.url()));
        succeed(&gateway, PRESS, GET);
        let answer = device::ask(PRESS, gateway.address(), POST.replace("POST", method));
        assert_eq!(answer.status(), 502, "{method}");
        assert_eq!(answer.token(), Some("connection_terminated"));
        assert_eq!(upstream.requests().len(), 2, "{method}");
        assert_eq!(upstream.connections(), 1);
        gateway.stop();
    }
}

#[test]
fn nothing_is_repeated_after_a_byte_of_an_answer() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        conversation.answer("first")?;
        conversation.request()?;
        conversation.write("H")?;
        conversation.cut()
    });
    let gateway = gateway("", &acme(&upstream.url()));
    succeed(&gateway, PRESS, GET);
    let answer = device::ask(PRESS, gateway.address(), GET);
    assert_eq!(answer.token(), Some("connection_terminated"));
    assert_eq!(upstream.requests().len(), 2);
    gateway.stop();
}

#[test]
fn a_fresh_connection_that_dies_is_no_reason_to_repeat() {
    let upstream = Upstream::start(|conversation| conversation.request().map(|_| ()));
    let gateway = gateway("", &acme(&upstream.url()));
    let answer = device::ask(PRESS, gateway.address(), GET);
    assert_eq!(answer.token(), Some("connection_terminated"));
    assert_eq!(upstream.requests().len(), 1);
    gateway.stop();
}

#[test]
fn an_idle_connection_is_let_go_after_a_while() {
    let upstream = Upstream::echo();
    let gateway = gateway("[timeouts]\npool = \"200ms\"\n", &acme(&upstream.url()));
    succeed(&gateway, PRESS, GET);
    assert_eq!(upstream.connections(), 1);
    wait_until("the connection to be let go", || upstream.open() == 0);
    succeed(&gateway, PRESS, GET);
    assert_eq!(upstream.connections(), 2);
    gateway.stop();
}

#[test]
fn accounts_with_the_same_server_share_its_connections() {
    let upstream = Upstream::echo();
    let one = server("m2u", &upstream.url());
    let login = "login = { username = \"acme\", password = \"secret\" }\n";
    let accounts = [
        account("acme", &(one.clone() + login), &[("press", PRESS)]),
        account(
            "bolt",
            &format!("{one}hyphen_aliases = true\n"),
            &[("saw", OTHER)],
        ),
    ];
    let gateway = gateway("", &accounts.concat());
    for _ in 0..2 {
        succeed(&gateway, PRESS, POST);
        succeed(&gateway, OTHER, POST);
    }
    assert_eq!(upstream.connections(), 1);
    // What is one account's own goes with the request, never with the connection.
    for (position, request) in upstream.requests().iter().enumerate() {
        let (reference, login) = match position % 2 {
            0 => ("acme", Some("Basic YWNtZTpzZWNyZXQ=")),
            _ => ("bolt", None),
        };
        assert_eq!(request.all("X_Talk2M_Account"), [reference]);
        assert_eq!(request.field("Authorization"), login);
    }
    gateway.stop();
}

#[test]
fn servers_with_other_names_do_not_share_connections() {
    let upstream = Upstream::echo();
    let address = format!("address = [\"{}\"]\n", upstream.address);
    let servers = server("m2u", "http://one.example")
        + &address
        + &server("m2u2", "http://two.example")
        + &address
        + &server("m2u3", "http://one.example/base")
        + &address;
    let gateway = gateway("", &account("acme", &servers, &[("press", PRESS)]));
    for (slot, connections) in [("m2u", 1), ("m2u2", 2), ("m2u3", 2), ("m2u2", 2)] {
        succeed(&gateway, PRESS, &GET.replace("m2u", slot));
        assert_eq!(upstream.connections(), connections, "{slot}");
    }
    gateway.stop();
}

#[test]
fn a_connection_is_never_shared_across_certificates_or_trust() {
    let (authority, stranger) = (Authority::new("authority"), Authority::new("stranger"));
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let config = Authority::server_config(&leaf, Some(&authority));
    let upstream = Upstream::start_tls(config, upstream::echo);
    let url = format!("https://{}", upstream.address);
    let acme_pem = authority.client("acme");
    let bolt_pem = authority.client("bolt");
    // Its trust is one certificate wider than the others'.
    let both = authority.path("both.pem");
    let bundle = [authority.pem(), stranger.pem()].map(|path| fs::read_to_string(path).unwrap());
    fs::write(&both, bundle.concat()).unwrap();
    let with = |slot: &str, ca: &Path, leaf: Option<&Leaf>| {
        let mut text = format!("{}ca = {}\n", server(slot, &url), quoted(ca));
        if let Some(leaf) = leaf {
            let (pem, key) = (quoted(&leaf.pem), quoted(&leaf.key));
            text += &format!("client_certificate = {pem}\nclient_key = {key}\n");
        }
        text
    };
    let ca = authority.pem();
    let acme = with("m2u", &ca, Some(&acme_pem))
        + &with("m2u2", &ca, Some(&bolt_pem))
        + &with("m2u3", &both, Some(&acme_pem))
        + &with("m2u4", &ca, None)
        + &with("m2u5", &stranger.pem(), Some(&acme_pem));
    let bolt = with("m2u", &ca, Some(&acme_pem));
    let accounts =
        account("acme", &acme, &[("press", PRESS)]) + &account("bolt", &bolt, &[("saw", OTHER)]);
    let gateway = gateway("", &accounts);
    for (source, slot, connections) in [
        (PRESS, "m2u", 1),
        (PRESS, "m2u2", 2),
        (PRESS, "m2u3", 3),
        (PRESS, "m2u", 3),
        (PRESS, "m2u2", 3),
        (PRESS, "m2u3", 3),
        // Another account, but the same server, certificate and trust.
        (OTHER, "m2u", 3),
    ] {
        succeed(&gateway, source, &GET.replace("m2u", slot));
        assert_eq!(upstream.connections(), connections, "{slot}");
    }
    // Without a certificate, or with another trust, a warm connection is no way in.
    for slot in ["m2u4", "m2u5"] {
        let answer = device::ask(PRESS, gateway.address(), GET.replace("m2u", slot));
        assert_eq!(answer.token(), Some("tls_certificate_error"), "{slot}");
    }
    gateway.stop();
}
