//! Which connections to servers may carry a next request, perhaps another device's: never one that
//! a device may have logged in or left a body on, nor one whose address has been refused since. And which
//! are kept for that: a few, and none that no settings lead to any more.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs, io,
    net::SocketAddr,
    sync::{Mutex, mpsc},
    thread,
};

use common::{
    PATIENCE,
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, account, acme, server},
    sockets::{self, ESTABLISHED},
    upstream::{Conversation, Step, Upstream},
    wait_until,
};

const PRESS: &str = "127.0.0.7";
const OTHER: &str = "127.0.0.8";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// Bytes that a server here may take with a head.
const READ_AHEAD_MAX: usize = 8_192;

/// A gateway with a single core, so that all devices share its idle connections.
fn gateway(tables: &str, accounts: &str, flags: &[&str]) -> Gateway {
    let flags = [&["--cores", "0"], flags].concat();
    Gateway::start_with(&format!("{PREAMBLE}{tables}{accounts}"), &flags)
}

/// Answers each request; what stands behind `/challenge/` in its target as a challenge.
fn challenge(conversation: &mut Conversation) -> Step {
    while let Some(request) = conversation.request()? {
        let challenge = request.target().strip_prefix("/challenge/");
        let field = challenge.map_or_else(String::new, |value| {
            let value = value.replace('/', " ");
            format!("WWW-Authenticate: {value}\r\n")
        });
        let body = match request.first_line().starts_with("HEAD ") {
            true => "",
            false => "ok",
        };
        conversation.write(format!(
            "HTTP/1.1 200 OK\r\n{field}Content-Length: 2\r\n\r\n{body}"
        ))?;
    }
    Ok(())
}

/// Whether the connection of `request` is used again for another device's.
fn is_shared(extra: &str, request: &str) -> bool {
    let upstream = Upstream::start(challenge);
    let url = upstream.url();
    let servers = server("m2u", &url) + extra;
    let devices = [("press-07", PRESS), ("press-08", OTHER)];
    let gateway = gateway("", &account("acme", &servers, &devices), &[]);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(request);
    let answer = match request.starts_with("HEAD ") {
        true => press.receive_head(),
        false => press.receive(),
    };
    assert_eq!(answer.status(), 200, "{request}");
    let answer = device::ask(OTHER, gateway.address(), GET);
    assert_eq!((answer.status(), &*answer.text()), (200, "ok"), "{request}");
    // The same device's next request has no claim to it either.
    assert_eq!(press.ask(GET).status(), 200);
    gateway.stop();
    match upstream.connections() {
        1 => true,
        // The two requests that followed share the second one.
        2 => false,
        count => panic!("{count} connections after {request}"),
    }
}

#[test]
fn a_connection_that_a_request_may_log_in_is_not_shared() {
    for (login, shared) in [
        ("NTLM TlRMTVNTUAADAAAA", false),
        ("ntlm TlRMTVNTUAADAAAA", false),
        ("Negotiate YIIJvwYGKwYBBQUCoIIJszCC", false),
        ("NEGOTIATE", false),
        ("Basic YWNtZTpzZWNyZXQ=", true),
        ("Bearer NTLM", true),
        ("Negotiated YWJj", true),
    ] {
        let request = GET.replace("Host", &format!("Authorization: {login}\r\nHost"));
        assert_eq!(is_shared("", &request), shared, "{login}");
    }
    // Where the server has a central login, no other one gets there.
    let central = "login = { username = \"acme\", password = \"secret\" }\n";
    let request = GET.replace("Host", "Authorization: NTLM TlRMTVNTUAADAAAA\r\nHost");
    assert!(is_shared(central, &request));
}

#[test]
fn a_connection_that_an_answer_may_log_in_is_not_shared() {
    for (challenge, shared) in [
        ("NTLM", false),
        ("ntlm/TlRMTVNTUAACAAAA", false),
        ("Negotiate", false),
        ("negotiate/oRQwEqADCgEA", false),
        ("Negotiate,NTLM", false),
        ("Basic/realm=NTLM", true),
        ("Bearer", true),
    ] {
        let request = GET.replace("GET /", &format!("GET /challenge/{challenge}"));
        assert_eq!(is_shared("", &request), shared, "{challenge}");
        // What a server says of itself counts whoever logs in.
        let central = "login = { username = \"acme\", password = \"secret\" }\n";
        assert_eq!(is_shared(central, &request), shared, "{challenge}");
    }
}

#[test]
fn a_connection_on_which_a_body_may_have_been_left_is_not_shared() {
    let bodies = [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ];
    for (method, shared) in [
        ("GET", false),
        ("DELETE", false),
        ("HEAD", false),
        ("OPTIONS", false),
        // Servers are known that take these for the same, and that know no others.
        ("get", false),
        ("post", false),
        ("REPORT", false),
        ("PUT", true),
        ("POST", true),
        ("PATCH", true),
    ] {
        for body in bodies {
            let request = format!("{method} / HTTP/1.1\r\nHost: m2u\r\n{body}");
            assert_eq!(is_shared("", &request), shared, "{method} {body}");
        }
        let request = format!("{method} / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 0\r\n\r\n");
        // The server's answer to a HEAD announces a body here, which may come after all.
        let shared = method != "HEAD";
        assert_eq!(is_shared("", &request), shared, "{method}, an empty body");
    }
    // A server that answers behind a large one has read it.
    for length in [30_000, 400_000] {
        let head = format!("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: {length}\r\n\r\n");
        let request = head + &"x".repeat(length);
        assert!(is_shared("", &request), "{length} bytes");
    }
}

#[test]
fn a_server_hears_that_no_request_follows_a_body_that_it_may_leave() {
    // Reads no body, as servers do that expect none, and ends the connection if it is told to.
    let upstream = Upstream::start(|conversation| {
        while let Some(request) = conversation.head()? {
            conversation.answer("")?;
            if request.field("Connection") == Some("close") {
                break;
            }
        }
        Ok(())
    });
    let gateway = gateway("", &acme(&upstream.url()), &[]);
    let forged = "POST /forged HTTP/1.1\r\nHost: m2u\r\nX_Talk2M_Device: other\r\n\r\n";
    let methods = ["GET", "DELETE", "HEAD", "OPTIONS", "get", "FOO"];
    let bodiless = methods.map(|method| (method, ""));
    // Whoever announces the body, and sends it nevertheless before it is asked for.
    let announced = [("POST", "Expect: 100-continue\r\n")];
    for (method, field) in bodiless.into_iter().chain(announced) {
        let length = forged.len();
        let request = format!(
            "{method} /own HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n{field}\
             Content-Length: {length}\r\n\r\n{forged}"
        );
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(request);
        let received = press.receive_rest().unwrap();
        assert!(received.starts_with(b"HTTP/1.1 200 "), "{method}");
    }
    gateway.stop();
    let requests = upstream.requests();
    let targets: Vec<_> = requests.iter().map(|request| request.target()).collect();
    assert_eq!(targets, ["/own"; 7]);
}

/// Bytes of the connections to `server` that it has not acknowledged, or not read.
fn on_the_way(server: SocketAddr) -> usize {
    let rows = sockets::all().into_iter();
    let open = rows.filter(|row| row.state == ESTABLISHED);
    open.map(|row| match server {
        _ if row.local == server => row.to_read,
        _ if row.remote == server => row.to_send,
        _ => 0,
    })
    .sum()
}

#[test]
fn a_connection_whose_server_may_not_have_read_the_body_is_not_shared() {
    // Answers before it has the body, which is small and late, or large and not taken off its hands.
    let (begun, told) = mpsc::channel();
    let (go, wanted) = mpsc::channel();
    let (begun, wanted) = (Mutex::new(begun), Mutex::new(wanted));
    let upstream = Upstream::start_narrow(8_192, move |conversation| {
        while let Some(request) = conversation.head()? {
            match request.target() {
                "/early" => {
                    conversation.write("HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nno")?;
                    begun.lock().unwrap().send(()).map_err(io::Error::other)?;
                    conversation.read(5)?;
                    conversation.write("ne")?;
                }
                "/large" => {
                    let wanted = wanted.lock().unwrap();
                    wanted.recv().map_err(io::Error::other)?;
                    conversation.answer("large")?;
                    wanted.recv().map_err(io::Error::other)?;
                    return conversation.read_rest().map(drop);
                }
                _ => conversation.answer("")?,
            }
        }
        Ok(())
    });
    let devices = [("press-07", PRESS), ("press-08", OTHER)];
    let accounts = account("acme", &server("m2u", &upstream.url()), &devices);
    let gateway = gateway("", &accounts, &[]);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send("POST /early HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\n");
    told.recv_timeout(PATIENCE).unwrap();
    // The gateway has heard when its device has.
    let begun = press.receive_head();
    assert_eq!(
        (begun.status(), &*press.receive_bytes(2)),
        (404, &b"no"[..])
    );
    press.send("hello");
    assert_eq!(press.receive_rest().unwrap(), b"ne");
    let answer = device::ask(OTHER, gateway.address(), GET);
    assert_eq!((answer.status(), upstream.connections()), (200, 2));

    // The whole of it is on its way, in many pieces or in one segment with the head: the gateway has nothing
    // left to send.
    for (number, length) in [(3, 400_000), (4, 30_000)] {
        press = Device::connect(PRESS, gateway.address());
        let head = format!("POST /large HTTP/1.1\r\nHost: m2u\r\nContent-Length: {length}\r\n\r\n");
        press.send([head.into_bytes(), vec![b'x'; length]].concat());
        wait_until("the body to be handed over", || {
            on_the_way(upstream.address) + READ_AHEAD_MAX >= length
        });
        go.send(()).unwrap();
        assert_eq!(press.receive().text(), "large");
        go.send(()).unwrap();
        let answer = device::ask(OTHER, gateway.address(), GET);
        assert_eq!((answer.status(), upstream.connections()), (200, number));
    }
    gateway.stop();
}

#[test]
fn a_connection_to_a_network_that_is_refused_since_is_not_used_again() {
    let (arrived, told) = mpsc::channel();
    let (go, wanted) = mpsc::channel();
    let (arrived, wanted) = (Mutex::new(arrived), Mutex::new(wanted));
    let upstream = Upstream::start(move |conversation| {
        while conversation.request()?.is_some() {
            arrived.lock().unwrap().send(()).map_err(io::Error::other)?;
            wanted.lock().unwrap().recv().map_err(io::Error::other)?;
            conversation.answer("ok")?;
        }
        Ok(())
    });
    let mut gateway = gateway("", &acme(&upstream.url()), &[]);
    let mut press = Device::connect(PRESS, gateway.address());
    press.send(GET);
    told.recv_timeout(PATIENCE).unwrap();

    let refusing = PREAMBLE.replacen("[\"127.0.0.0/8\"]", "[]", 1);
    let path = gateway.path("m2u.toml");
    fs::write(path, format!("{refusing}{}", acme(&upstream.url()))).unwrap();
    gateway.signal("HUP");
    gateway.wait_for_log("m2u: reloaded");
    // What is under way may end, and its connection is kept as it was made before the reload.
    go.send(()).unwrap();
    assert_eq!(press.receive().status(), 200);
    for source in [PRESS, OTHER] {
        let answer = device::ask(source, gateway.address(), GET);
        assert_eq!(answer.status(), 502);
        assert_eq!(answer.token(), Some("destination_ip_prohibited"));
    }
    assert_eq!(
        press.ask(GET).token(),
        Some("destination_ip_prohibited"),
        "the connection of a device that stays is no way around either"
    );
    assert_eq!(upstream.requests().len(), 1);
    wait_until("the old connection to end", || upstream.open() == 0);
    gateway.stop();
}

#[test]
fn idle_connections_that_no_settings_lead_to_are_let_go() {
    let (arrived, told) = mpsc::channel();
    let (go, wanted) = mpsc::channel();
    let (arrived, wanted) = (Mutex::new(arrived), Mutex::new(wanted));
    let before = Upstream::start(move |conversation| {
        while let Some(request) = conversation.request()? {
            if request.target() == "/slow" {
                arrived.lock().unwrap().send(()).map_err(io::Error::other)?;
                wanted.lock().unwrap().recv().map_err(io::Error::other)?;
            }
            conversation.answer("ok")?;
        }
        Ok(())
    });
    let (after, other) = (Upstream::echo(), Upstream::echo());
    let tables = "[timeouts]\npool = \"10m\"\n";
    let accounts = |url: &str| {
        let servers = server("m2u", url) + &server("m2u2", &other.url());
        account(
            "acme",
            &servers,
            &[("press-07", PRESS), ("press-08", OTHER)],
        )
    };
    let mut gateway = gateway(tables, &accounts(&before.url()), &[]);
    let other_get = GET.replace("m2u", "m2u2");
    let mut slow = Device::connect(OTHER, gateway.address());
    slow.send(GET.replace("GET /", "GET /slow"));
    told.recv_timeout(PATIENCE).unwrap();
    for request in [GET, &other_get] {
        let answer = device::ask(PRESS, gateway.address(), request);
        assert_eq!(answer.status(), 200);
    }
    assert_eq!((before.open(), other.open()), (2, 1));

    let path = gateway.path("m2u.toml");
    fs::write(
        path,
        format!("{PREAMBLE}{tables}{}", accounts(&after.url())),
    )
    .unwrap();
    gateway.signal("HUP");
    gateway.wait_for_log("m2u: reloaded");
    // What is under way has the old settings to its end.
    go.send(()).unwrap();
    assert_eq!(slow.receive().status(), 200);
    wait_until("both to end", || before.open() == 0);
    for request in [GET, &other_get] {
        let answer = device::ask(PRESS, gateway.address(), request);
        assert_eq!(answer.status(), 200);
    }
    assert_eq!((after.connections(), other.connections()), (1, 1));
    gateway.stop();
}

/// Lets `count` requests by slots arrive at once, then answers them all; waits until no more than
/// `kept` connections are left, and shows that these are used again.
fn keeps(limits: &str, flags: &[&str], slots: &[&str], kept: usize) {
    let (go, wanted) = mpsc::channel::<()>();
    let wanted = Mutex::new(wanted);
    let upstream = Upstream::start(move |conversation| {
        while conversation.request()?.is_some() {
            // Ends for all once the test lets go.
            let _ = wanted.lock().unwrap().recv();
            conversation.answer("ok")?;
        }
        Ok(())
    });
    // Other names make other servers of one address.
    let address = format!("address = [\"{}\"]\n", upstream.address);
    let named = |slot: &str| server(slot, &format!("http://{slot}.example")) + &address;
    let servers = ["m2u", "m2u2", "m2u3"].map(named).concat();
    let accounts = account("acme", &servers, &[("press-07", PRESS)]);
    let gateway = gateway(limits, &accounts, flags);
    let ask = |slot: &str| {
        let request = GET.replace("m2u", slot);
        let mut press = Device::connect(PRESS, gateway.address());
        press.send(request);
        press
    };
    let devices: Vec<Device> = slots.iter().map(|slot| ask(slot)).collect();
    wait_until("all requests", || upstream.requests().len() == slots.len());
    assert_eq!(upstream.connections(), slots.len());
    drop(go);
    let answers = devices.into_iter().map(|mut device| {
        thread::spawn(move || {
            assert_eq!(device.receive().status(), 200);
        })
    });
    answers.for_each(|answer| answer.join().unwrap());
    wait_until("what is too many to end", || upstream.open() == kept);
    // One after the other, each slot once: those kept are used, the others made anew.
    let before = upstream.connections();
    let mut asked: Vec<&str> = slots.to_vec();
    asked.dedup();
    for slot in &asked {
        assert_eq!(ask(slot).receive().status(), 200);
    }
    let made = upstream.connections() - before;
    assert_eq!(made, asked.len() - kept.min(asked.len()), "{slots:?}");
    for request in upstream.requests() {
        let told = (kept == 0).then_some("close");
        assert_eq!(request.field("Connection"), told, "{slots:?}");
    }
    gateway.stop();
}

#[test]
fn idle_connections_are_bounded_for_each_server() {
    let two = "[limits]\npool_per_server = 2\n";
    keeps(two, &[], &["m2u"; 5], 2);
    keeps("[limits]\npool_per_server = 0\n", &[], &["m2u"; 3], 0);
    // Each server has its own.
    let slots = ["m2u", "m2u", "m2u", "m2u2", "m2u2", "m2u2"];
    keeps(two, &[], &slots, 4);
}

#[test]
fn a_server_may_have_a_bound_of_its_own_which_a_reload_changes() {
    let upstream = Upstream::echo();
    // One server by two names: a request by one must not go over what a request by the other left.
    let accounts = |bounds: [usize; 2]| {
        let servers = ["m2u", "m2u2"].into_iter().zip(bounds);
        let servers = servers.map(|(slot, bound)| {
            let limits = format!("limits = {{ pool_per_server = {bound} }}\n");
            server(slot, &upstream.url()) + &limits
        });
        account("acme", &servers.collect::<String>(), &[("press-07", PRESS)])
    };
    let mut gateway = gateway("", &accounts([0, 1]), &[]);
    let ask = |gateway: &Gateway, slot: &str| {
        let before = upstream.requests().len();
        let answer = device::ask(PRESS, gateway.address(), GET.replace("m2u", slot));
        assert_eq!(answer.status(), 200);
        let told = upstream.requests().remove(before);
        told.field("Connection").map(str::to_owned)
    };
    let close = Some("close".to_owned());
    for _ in 0..2 {
        assert_eq!(
            [ask(&gateway, "m2u2"), ask(&gateway, "m2u")],
            [None, close.clone()]
        );
    }
    assert_eq!(upstream.connections(), 3);
    wait_until("all but one to end", || upstream.open() == 1);

    let text = format!("{PREAMBLE}{}", accounts([2, 0]));
    fs::write(gateway.path("m2u.toml"), text).unwrap();
    gateway.signal("HUP");
    gateway.wait_for_log("m2u: reloaded");
    for _ in 0..2 {
        assert_eq!(
            [ask(&gateway, "m2u"), ask(&gateway, "m2u2")],
            [None, close.clone()]
        );
    }
    // What was kept before carries nothing more.
    assert_eq!(upstream.connections(), 6);
    wait_until("all but one to end", || upstream.open() == 1);
    gateway.stop();
}

#[test]
fn idle_connections_are_bounded_in_all() {
    let flags = ["--pool-per-core", "2"];
    keeps("", &flags, &["m2u", "m2u2", "m2u3"], 2);
    keeps("", &["--pool-per-core", "0"], &["m2u", "m2u2"], 0);
}

#[test]
fn whatever_comes_unasked_behind_a_body_is_heard_however_fast_the_body_came() {
    // Too little for a pipe each, and together more than is fast.
    const PIECE: usize = 1_500;
    const PIECES: usize = 44;
    // More than a receive waits for, and then enough for a pipe.
    const REST: usize = 140_000;
    let (go, waits) = mpsc::channel();
    let waits = Mutex::new(waits);
    let upstream = Upstream::start(move |conversation| {
        let next = || waits.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        conversation.request()?;
        let length = PIECES * PIECE + REST;
        conversation.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        ))?;
        for size in [PIECE; PIECES].into_iter().chain([REST]) {
            next();
            conversation.write(vec![b'x'; size])?;
        }
        next();
        conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")?;
        conversation.read_rest()?;
        Ok(())
    });
    let servers = server("m2u", &upstream.url());
    let gateway = gateway("", &account("acme", &servers, &[("press-07", PRESS)]), &[]);
    // The first pieces may fall into two ticks.
    for _ in 0..4 {
        let mut device = Device::connect(PRESS, gateway.address());
        device.send(GET);
        assert_eq!(device.receive_head().status(), 200);
        for size in [PIECE; PIECES].into_iter().chain([REST]) {
            go.send(()).unwrap();
            device.receive_bytes(size);
        }
        go.send(()).unwrap();
        wait_until("the server's connection to end", || upstream.open() == 0);
    }
    assert_eq!(upstream.connections(), 4);
    gateway.stop();
}
