//! Peers whose system sends a small piece only when the one before it has been acknowledged (Nagle,
//! RFC 9293 §3.7.4): messages that come in pieces, from a device or from a server, wait for no delayed
//! acknowledgement.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{
    certificates::{Authority, Validity, quoted},
    device::Device,
    gateway::{Gateway, PREAMBLE, account, acme, believing, listening, server},
    upstream::{Conversation, Step, Upstream},
};

const PRESS: &str = "127.0.0.7";
const BALANCER: &str = "127.0.9.1";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
/// The kernel delays an acknowledgement for at least 40 ms, however fast all else is.
const UNDELAYED: Duration = Duration::from_millis(30);
/// More requests than the kernel acknowledges at once on a new connection, whatever it was told.
const REQUESTS: usize = 24;
/// A loaded machine may be late most of the time.
const TRIES: usize = 50;

/// What a device does.
#[derive(Debug, Clone, Copy)]
enum Act<'a> {
    Send(&'a str),
    /// Receives an answer.
    Hear,
}

use Act::{Hear, Send};

/// Reads requests whole, asking for the bodies that are announced.
fn answer(conversation: &mut Conversation) -> Step {
    while let Some(mut request) = conversation.head()? {
        if request.field("Expect").is_some() {
            conversation.write("HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        conversation.body(&mut request)?;
        conversation.answer("ok")?;
    }
    Ok(())
}

/// Answers in pieces; what `/apart` asks for with a head that is whole, `/hinted` behind an interim one.
fn answer_in_pieces(conversation: &mut Conversation) -> Step {
    conversation.socket().set_nodelay(false)?;
    while let Some(request) = conversation.request()? {
        let head: &[&str] = match request.target() {
            "/hinted" => &[
                "HTTP/1.1 103 Early Hints\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            ],
            "/apart" => &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"],
            _ => &["HTTP/1.1 200 OK\r\nContent-", "Length: 2\r\n\r\n"],
        };
        for piece in [head, &["o", "k"]].concat() {
            conversation.write(piece)?;
        }
    }
    Ok(())
}

/// Whether of so many requests in turn, on a connection each or all on one, each is answered sooner than a
/// delayed acknowledgement lets it be, one time of many.
fn is_undelayed(gateway: &Gateway, source: &str, acts: &[Act<'_>], on_one: bool) -> bool {
    let connect = || {
        let device = Device::connect(source, gateway.address());
        device.stream().set_nodelay(false).unwrap();
        device
    };
    let mut device = connect();
    if on_one {
        assert_eq!(device.ask(GET).status(), 200);
    }
    let mut is_fast = || {
        if !on_one {
            device = connect();
        }
        let begun = Instant::now();
        for act in acts {
            match act {
                Send(piece) => device.send(piece),
                Hear => assert!(matches!(device.receive().status(), 100 | 103 | 200)),
            }
        }
        assert_eq!(device.receive().status(), 200);
        begun.elapsed() < UNDELAYED
    };
    (0..REQUESTS).all(|_| (0..TRIES).any(|_| is_fast()))
}

#[test]
fn a_request_in_pieces_waits_for_no_delayed_acknowledgement() {
    const CHUNKED: Act<'_> =
        Send("POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n");
    const CHUNK: Act<'_> = Send("5\r\nhello\r\n");
    const LAST: Act<'_> = Send("0\r\n\r\n");
    let upstream = Upstream::start(answer);
    let gateway = Gateway::start(&format!("{PREAMBLE}{}", acme(&upstream.url())));
    let padding = "x".repeat(2_000);
    let long_head =
        format!("POST / HTTP/1.1\r\nHost: m2u\r\nPad: {padding}\r\nContent-Length: 5\r\n\r\n");
    let requests: &[&[Act<'_>]] = &[
        &[
            Send("POST / HTTP/1.1\r\nHost: m2u\r\nConte"),
            Send("nt-Length: 5\r\n\r\nhello"),
        ],
        &[
            Send("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\n"),
            Send("hello"),
        ],
        &[CHUNKED, CHUNK, CHUNK, LAST],
        // More than counts as a small piece.
        &[Send(&long_head), Send("hello")],
        &[
            Send(
                "POST / HTTP/1.1\r\nHost: m2u\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
            ),
            Hear,
            Send("hello"),
            Send("world"),
        ],
        &[Send("\r\n"), Send(GET)],
        &[Send(GET), Hear, Send("\r\n"), Send(GET)],
    ];
    for acts in requests {
        for on_one in [false, true] {
            let is_undelayed = is_undelayed(&gateway, PRESS, acts, on_one);
            assert!(is_undelayed, "{acts:?}, all on one connection: {on_one}");
        }
    }
    gateway.stop();
}

#[test]
fn nor_does_what_follows_a_proxy_protocol_header() {
    let upstream = Upstream::start(answer);
    let preamble = listening(&believing("127.0.9.0/24"));
    let gateway = Gateway::start(&format!("{preamble}{}", acme(&upstream.url())));
    const HEADER: &str = "PROXY TCP4 127.0.0.7 127.0.0.1 12345 80\r\n";
    let requests: &[&[Act<'_>]] = &[
        &[Send(HEADER), Send(GET)],
        &[
            Send("PROXY TCP4 127.0.0.7 "),
            Send("127.0.0.1 12345 80\r\nGET / HTTP/1.1\r\nHost: m2u\r\n\r\n"),
        ],
    ];
    for acts in requests {
        assert!(is_undelayed(&gateway, BALANCER, acts, false), "{acts:?}");
    }
    gateway.stop();
}

#[test]
fn nor_does_an_answer_in_pieces() {
    let authority = Authority::new("authority");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let config = Authority::server_config(&leaf, None);
    let plain = Upstream::start(answer_in_pieces);
    let tls = Upstream::start_tls(config, answer_in_pieces);
    let url = format!("https://{}", tls.address);
    let ca = format!("ca = {}\n", quoted(&authority.pem()));
    let servers = server("m2u", &plain.url()) + &server("m2u2", &url) + &ca;
    let gateway = Gateway::with(&account("acme", &servers, &[("press-07", PRESS)]));
    for slot in ["m2u", "m2u2"] {
        for (target, heard) in [("/", 0), ("/apart", 0), ("/hinted", 1)] {
            let get = GET.replace("/ HTTP", &format!("{target} HTTP"));
            let get = get.replace("m2u", slot);
            let acts = [&[Send(&get)], &[Hear; 2][..heard]].concat();
            for on_one in [false, true] {
                let is_undelayed = is_undelayed(&gateway, PRESS, &acts, on_one);
                assert!(is_undelayed, "{get}, all on one connection: {on_one}");
            }
        }
    }
    gateway.stop();
}

/// A server's system may have a ticket before the first answer of a connection.
#[test]
fn nor_does_the_first_answer_of_a_tls_connection() {
    let authority = Authority::new("authority");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let upstream = Upstream::start_tls(
        Authority::server_config(&leaf, None),
        |conversation: &mut Conversation| {
            conversation.socket().set_nodelay(false)?;
            answer(conversation)
        },
    );
    let url = format!("https://{}", upstream.address);
    let ca = format!("ca = {}\n", quoted(&authority.pem()));
    let accounts = account("acme", &(server("m2u", &url) + &ca), &[("press-07", PRESS)]);
    let unpooled = "[limits]\npool_per_server = 0\n";
    let gateway = Gateway::start(&format!("{PREAMBLE}{unpooled}{accounts}"));
    assert!(is_undelayed(&gateway, PRESS, &[Send(GET)], true));
    assert!(upstream.connections() > REQUESTS);
    gateway.stop();
}

/// Messages in pieces to and fro, within one request and its answer.
#[test]
fn nor_do_pieces_of_a_body_and_of_its_answer_at_once() {
    const CHUNK: &str = "5\r\nhello\r\n";
    let upstream = Upstream::start(|conversation| {
        conversation.socket().set_nodelay(false)?;
        conversation.head()?;
        conversation.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        while conversation.read(CHUNK.len())? == CHUNK.as_bytes() {
            conversation.write(&CHUNK[..3])?;
            conversation.write(&CHUNK[3..])?;
        }
        Ok(())
    });
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = Device::connect(PRESS, gateway.address());
    press.stream().set_nodelay(false).unwrap();
    press.send("POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(press.receive_head().status(), 200);
    let mut is_fast = || {
        let begun = Instant::now();
        press.send(&CHUNK[..3]);
        press.send(&CHUNK[3..]);
        assert_eq!(press.receive_bytes(CHUNK.len()), CHUNK.as_bytes());
        begun.elapsed() < UNDELAYED
    };
    assert!((0..REQUESTS).all(|_| (0..TRIES).any(|_| is_fast())));
    drop(press);
    gateway.stop();
}
