//! HTTPS servers, accepted and refused: names, authorities, dates, client certificates, versions.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    process::Command,
    sync::{Arc, Mutex, mpsc},
};

use common::{
    PATIENCE,
    certificates::{Authority, Leaf, Validity, quoted},
    device,
    gateway::{Gateway, PREAMBLE, account, server},
    upstream::{Upstream, echo},
    wire::Message,
};
use m2u::limits::{self, TLS_TICKETS_MAX};
use rustls::ServerConfig;
use socket2::SockRef;

const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

/// Asks a server at `upstream` by `url`, trusting `authority`.
fn ask(url: &str, upstream: &Upstream, authority: &Authority, extra: &str) -> Message {
    let server = format!(
        "[[account.server]]\nurl = \"{url}\"\naddress = [\"{}\"]\nca = {}\n{extra}",
        upstream.address,
        quoted(&authority.pem()),
    );
    let gateway = Gateway::with(&account("acme", &server, &[("press-07", "127.0.0.7")]));
    let answer = device::ask("127.0.0.7", gateway.address(), GET);
    gateway.stop();
    answer
}

/// A gateway to `upstream`, trusting `authority`.
fn gateway(upstream: &Upstream, authority: &Authority) -> Gateway {
    let server = format!(
        "[[account.server]]\nurl = \"https://{}\"\nca = {}\n",
        upstream.address,
        quoted(&authority.pem()),
    );
    Gateway::with(&account("acme", &server, &[("press-07", "127.0.0.7")]))
}

fn serve(leaf: &Leaf, clients: Option<&Authority>) -> Upstream {
    Upstream::start_tls(Authority::server_config(leaf, clients), echo)
}

/// A server of one TLS version only.
fn versions(
    leaf: &Leaf,
    clients: Option<&Authority>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<ServerConfig> {
    Authority::server_config_of(leaf, clients, &[version])
}

#[test]
fn a_certificate_that_does_not_hold_is_refused_before_a_request_is_sent() {
    let (known, unknown) = (Authority::new("Known CA"), Authority::new("Unknown CA"));
    let namesake = Authority::new("Known CA");
    let names = &["ingest.acme.example"];
    for (case, words, leaf, url) in [
        (
            "wrong name",
            "another host",
            known.server(&["other.example"], Validity::Current),
            "https://ingest.acme.example",
        ),
        (
            "wrong address",
            "another host",
            known.server(names, Validity::Current),
            "https://127.0.0.1",
        ),
        (
            "a name for an address",
            "another host",
            known.server(&["127.0.0.2"], Validity::Current),
            "https://127.0.0.1",
        ),
        (
            "unknown authority",
            "no trusted authority",
            unknown.server(names, Validity::Current),
            "https://ingest.acme.example",
        ),
        (
            "an authority of the same name",
            "no trusted authority",
            namesake.server(names, Validity::Current),
            "https://ingest.acme.example",
        ),
        (
            "expired",
            "out of date",
            known.server(names, Validity::Expired),
            "https://ingest.acme.example",
        ),
    ] {
        let upstream = serve(&leaf, None);
        let answer = ask(url, &upstream, &known, "");
        assert_eq!(
            (answer.status(), answer.token()),
            (502, Some("tls_certificate_error")),
            "{case}"
        );
        assert!(answer.text().contains(words), "{}", answer.text());
        assert!(upstream.requests().is_empty(), "{case}");
    }
}

#[test]
fn a_certificate_that_holds_is_accepted_by_name_and_by_address() {
    let authority = Authority::new("Known CA");
    for (names, url) in [
        (&["ingest.acme.example"][..], "https://ingest.acme.example"),
        (&["*.acme.example"], "https://ingest.acme.example"),
        (&["other.example", "127.0.0.1"], "https://127.0.0.1"),
    ] {
        let upstream = serve(&authority.server(names, Validity::Current), None);
        assert_eq!(
            ask(url, &upstream, &authority, "").status(),
            200,
            "{names:?}"
        );
        assert_eq!(upstream.request().identity_like().len(), 3);
    }
}

#[test]
fn the_servers_name_is_sent_for_names_only() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["ingest.acme.example", "127.0.0.1"], Validity::Current);
    for (url, expected) in [
        (
            "https://ingest.acme.example",
            Some("ingest.acme.example".to_owned()),
        ),
        ("https://127.0.0.1", None),
    ] {
        let (config, seen) = Authority::server_config_that_notes_names(&leaf);
        let upstream = Upstream::start_tls(config, echo);
        assert_eq!(ask(url, &upstream, &authority, "").status(), 200);
        assert_eq!(*seen.lock().unwrap(), [expected], "{url}");
    }
}

#[test]
fn a_server_that_demands_a_certificate_gets_it_or_is_told_apart() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let client = authority.client("m2u.talk2m.com");
    let unknown = Authority::new("Unknown CA");
    let stranger = unknown.client("stranger");
    let shows = |leaf: &Leaf| {
        let (pem, key) = (quoted(&leaf.pem), quoted(&leaf.key));
        format!("client_certificate = {pem}\nclient_key = {key}\n")
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let start = || Upstream::start_tls(versions(&leaf, Some(&authority), version), echo);
        let upstream = start();
        assert_eq!(
            ask("https://127.0.0.1", &upstream, &authority, &shows(&client)).status(),
            200
        );
        for extra in [String::new(), shows(&stranger)] {
            let upstream = start();
            let answer = ask("https://127.0.0.1", &upstream, &authority, &extra);
            let seen = (answer.status(), answer.token());
            assert_eq!(
                seen,
                (502, Some("tls_certificate_error")),
                "{version:?} {extra}"
            );
            assert!(
                answer.text().contains("client certificate"),
                "{}",
                answer.text()
            );
            assert!(upstream.requests().is_empty());
        }
    }
}

#[test]
fn a_client_certificate_that_ran_out_costs_its_server_alone() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let late = authority.server(&["late.example"], Validity::Expired);
    let (strict, plain) = (serve(&leaf, Some(&authority)), Upstream::echo());
    let servers = format!(
        "[[account.server]]\nurl = \"https://{}\"\nca = {}\nclient_certificate = {}\n\
         client_key = {}\n{}",
        strict.address,
        quoted(&authority.pem()),
        quoted(&late.pem),
        quoted(&late.key),
        server("m2u2", &plain.url()),
    );
    let mut gateway = Gateway::with(&account("acme", &servers, &[("press-07", "127.0.0.7")]));
    let warnings = |log: &str| {
        let lines = log.lines().filter(|line| line.contains("warning: "));
        lines.filter(|line| line.contains("expired on")).count()
    };
    for reloads in 0..2 {
        assert_eq!(warnings(&gateway.log()), 1 + reloads, "{}", gateway.log());
        let statuses = ["m2u", "m2u2"].map(|host| {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            device::ask("127.0.0.7", gateway.address(), request).status()
        });
        assert_eq!(statuses, [502, 200]);
        if reloads == 0 {
            gateway.signal("HUP");
            gateway.wait_for_log("reloaded: ");
        }
    }
    assert_eq!(gateway.counts()["failed.client_certificate"], 2);
    gateway.stop();
}

#[test]
fn keys_of_either_kind_serve_on_both_sides_in_whatever_form_they_are_kept() {
    for (authority, form) in [
        (Authority::new("ECDSA CA"), "BEGIN EC PRIVATE KEY"),
        (Authority::with_rsa_keys("RSA CA"), "BEGIN RSA PRIVATE KEY"),
    ] {
        let leaf = authority.server(&["127.0.0.1"], Validity::Current);
        let client = authority.client("m2u.talk2m.com");
        let old = authority.path("traditional.key");
        let mut convert = Command::new("openssl");
        convert.args(["pkey", "-traditional", "-in"]);
        convert.arg(&client.key).arg("-out").arg(&old);
        assert!(convert.status().unwrap().success());
        let is_old = fs::read_to_string(&old).unwrap().contains(form);
        assert!(is_old, "openssl wrote no {form}");
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for key in [&client.key, &old] {
                let config = versions(&leaf, Some(&authority), version);
                let upstream = Upstream::start_tls(config, echo);
                let (pem, key) = (quoted(&client.pem), quoted(key));
                let extra = format!("client_certificate = {pem}\nclient_key = {key}\n");
                let answer = ask("https://127.0.0.1", &upstream, &authority, &extra);
                assert_eq!(answer.status(), 200, "{form} {version:?} {key}");
            }
        }
    }
}

#[test]
fn both_versions_carry_bodies_of_any_size() {
    const BUFFER: usize = limits::RELAY_BYTES_DEFAULT;
    const PIECE: usize = BUFFER - BUFFER % limits::TLS_RECORD_BYTES;
    const LARGE: usize = limits::TLS_RELAY_BYTES_DEFAULT;
    const FIRST: usize = limits::BY_PACKETS_BYTES;
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let upstream = Upstream::start_tls(versions(&leaf, None, version), |conversation| {
            while let Some(request) = conversation.request()? {
                conversation.answer(&request.body)?;
            }
            Ok(())
        });
        let gateway = gateway(&upstream, &authority);
        let mut device = device::Device::connect("127.0.0.7", gateway.address());
        // Around the sizes of records, of pieces, and of what comes by the smaller ones.
        let edges = [
            PIECE,
            BUFFER,
            2 * PIECE,
            LARGE,
            limits::BATCH_BYTES,
            FIRST - PIECE,
            FIRST,
            FIRST + LARGE,
        ];
        let around = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
        let few = [
            0, 1, 8_186, 8_187, 8_192, 16_384, 65_535, 65_536, 65_537, 300_000,
        ];
        for size in few.into_iter().chain(around) {
            let body: Vec<u8> = (0..size).map(|index| (index * 7 % 251) as u8).collect();
            let head = format!("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: {size}\r\n\r\n");
            let answer = device.ask([head.as_bytes(), &body].concat());
            assert_eq!(answer.status(), 200);
            assert!(answer.body == body, "{size} bytes came back changed");
        }
        assert_eq!(upstream.connections(), 1);
        gateway.stop();
    }
}

#[test]
fn a_server_may_renew_the_keys_amid_bodies_both_ways() {
    // Beyond the first megabyte, behind which the gateway's pieces are larger.
    const PIECE: usize = 150_000;
    const PIECES: usize = 20;
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let config = versions(&leaf, None, &rustls::version::TLS13);
    let upstream = Upstream::start_tls(config, |conversation| {
        while conversation.head()?.is_some() {
            let mut body = Vec::new();
            for _ in 0..PIECES {
                body.extend(conversation.read(PIECE)?);
                conversation.renew_keys()?;
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            conversation.write(head)?;
            for piece in body.chunks(PIECE) {
                conversation.renew_keys()?;
                conversation.write(piece)?;
            }
        }
        Ok(())
    });
    let gateway = gateway(&upstream, &authority);
    let mut device = device::Device::connect("127.0.0.7", gateway.address());
    let size = PIECE * PIECES;
    let body: Vec<u8> = (0..size).map(|index| (index * 7 % 251) as u8).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: {size}\r\n\r\n");
    for _ in 0..3 {
        let answer = device.ask([head.as_bytes(), &body].concat());
        assert_eq!(answer.status(), 200);
        assert!(answer.body == body, "it came back changed");
    }
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

#[test]
fn a_long_body_comes_back_whole_in_both_framings() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let upstream = Upstream::start_tls(Authority::server_config(&leaf, None), |conversation| {
        while let Some(request) = conversation.request()? {
            match request.field("Transfer-Encoding") {
                None => conversation.answer(request.body)?,
                Some(_) => {
                    conversation.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
                    for piece in request.body.chunks(70_001) {
                        conversation.write(format!("{:x}\r\n", piece.len()))?;
                        conversation.write([piece, b"\r\n"].concat())?;
                    }
                    conversation.write("0\r\n\r\n")?;
                }
            }
        }
        Ok(())
    });
    let gateway = gateway(&upstream, &authority);
    let mut device = device::Device::connect("127.0.0.7", gateway.address());
    let body: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let head = "POST / HTTP/1.1\r\nHost: m2u\r\n";
    for _ in 0..2 {
        device.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()));
        device.send(&body);
        let answer = device.receive();
        assert!(
            answer.body == body,
            "{} bytes came changed",
            answer.body.len()
        );

        device.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
        for piece in body.chunks(50_003) {
            device.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
        }
        device.send("0\r\n\r\n");
        let answer = device.receive();
        assert!(
            answer.body == body,
            "{} bytes came changed",
            answer.body.len()
        );
    }
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

#[test]
fn a_server_that_pauses_within_a_fast_answer_keeps_nobody_waiting() {
    const BURST: usize = 2_000_000;
    const REST: usize = 500_000;
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let (go, waits) = mpsc::channel();
    let waits = Mutex::new(waits);
    // Less than a record, a few, and hardly less than what a receive waits for.
    let pauses = [1, 50_001, 130_000];
    let upstream =
        Upstream::start_tls(Authority::server_config(&leaf, None), move |conversation| {
            while conversation.request()?.is_some() {
                let size: usize = pauses.iter().map(|pause| BURST + pause).sum();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", size + REST);
                conversation.write(head)?;
                for pause in pauses {
                    // What comes second finds a receive that waits for much.
                    for (byte, size) in [(b'b', BURST), (b'p', pause)] {
                        conversation.write(vec![byte; size])?;
                        waits.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                    }
                }
                conversation.write(vec![b'r'; REST])?;
            }
            Ok(())
        });
    let gateway = gateway(&upstream, &authority);
    let mut device = device::Device::connect("127.0.0.7", gateway.address());
    for _ in 0..2 {
        device.send("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(device.receive_head().status(), 200);
        for pause in pauses {
            for (byte, size) in [(b'b', BURST), (b'p', pause)] {
                assert!(device.receive_bytes(size) == vec![byte; size]);
                go.send(()).unwrap();
            }
        }
        assert_eq!(device.receive_bytes(REST), vec![b'r'; REST]);
    }
    assert_eq!(upstream.connections(), 1);
    gateway.stop();
}

#[test]
fn what_came_before_a_session_broke_is_the_servers_answer() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    // A record that does not decrypt; an alert that is fatal, and in the clear.
    let garbage = [&[23, 3, 3, 0, 40][..], &[0x5a; 40]].concat();
    let alert = vec![21, 3, 3, 0, 2, 2, 80];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for broken in [&garbage, &alert] {
            let broken = broken.clone();
            let config = versions(&leaf, None, version);
            let upstream = Upstream::start_tls(config, move |conversation| {
                while conversation.request()?.is_some() {
                    // Both in one segment, so that one receive brings both.
                    SockRef::from(conversation.socket()).set_tcp_cork(true)?;
                    conversation.answer("complete")?;
                    let mut socket = conversation.socket();
                    socket.write_all(&broken)?;
                    SockRef::from(socket).set_tcp_cork(false)?;
                }
                Ok(())
            });
            let gateway = gateway(&upstream, &authority);
            let mut device = device::Device::connect("127.0.0.7", gateway.address());
            for connections in 1..=3 {
                let answer = device.ask(GET);
                assert_eq!((answer.status(), &*answer.text()), (200, "complete"));
                assert_eq!(upstream.connections(), connections, "{version:?}");
            }
            gateway.stop();
        }
    }
}

#[test]
fn a_connection_that_had_many_tickets_carries_no_further_request() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    for (tickets, connections) in [(TLS_TICKETS_MAX / 2, 1), (TLS_TICKETS_MAX / 2 + 1, 2)] {
        let config = versions(&leaf, None, &rustls::version::TLS13);
        let mut config = Arc::unwrap_or_clone(config);
        config.send_tls13_tickets = tickets as usize;
        let upstream = Upstream::start_tls(Arc::new(config), echo);
        let gateway = gateway(&upstream, &authority);
        // One connection, so that one core serves both.
        let mut device = device::Device::connect("127.0.0.7", gateway.address());
        for _ in 0..2 {
            assert_eq!(device.ask(GET).status(), 200, "{tickets} tickets");
        }
        assert_eq!(upstream.connections(), connections, "{tickets} tickets");
        gateway.stop();
    }
}

#[test]
fn a_server_is_told_why_its_session_ended() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (told, heard) = mpsc::channel();
        let told = Mutex::new(told);
        let upstream = Upstream::start_tls(versions(&leaf, None, version), move |conversation| {
            conversation.request()?;
            conversation.write("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")?;
            let garbage = [&[23, 3, 3, 0, 40][..], &[0x5a; 40]].concat();
            conversation.socket().write_all(&garbage)?;
            let outcome = Read::read(conversation, &mut [0; 1]).map_err(|e| e.to_string());
            told.lock().unwrap().send(outcome).unwrap();
            Ok(())
        });
        let gateway = gateway(&upstream, &authority);
        let mut device = device::Device::connect("127.0.0.7", gateway.address());
        device.send(GET);
        let received = String::from_utf8(device.receive_rest().unwrap()).unwrap();
        assert!(received.ends_with("\r\n\r\nhalf"), "{received}");
        let outcome = heard.recv_timeout(PATIENCE).unwrap();
        let alert = outcome.expect_err("an alert");
        assert!(alert.contains("BadRecordMac"), "{version:?}: {alert}");
        gateway.stop();
    }
}

#[test]
fn a_connection_ends_with_a_close_notify_unless_a_request_is_cut_off() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (told, heard) = mpsc::channel();
        let told = Mutex::new(told);
        let upstream = Upstream::start_tls(versions(&leaf, None, version), move |conversation| {
            for _ in 0..2 {
                conversation.request()?;
                conversation.answer("")?;
            }
            let request = conversation.head()?.expect("a third");
            if request.target() == "/cut" {
                // All of the body that comes; the device goes away in the middle of it.
                assert_eq!(conversation.read(5)?, b"hello");
            } else {
                conversation
                    .write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            }
            let outcome = Read::read(conversation, &mut [0; 1]).map_err(|e| e.to_string());
            told.lock().unwrap().send(outcome).unwrap();
            Ok(())
        });
        let gateway = gateway(&upstream, &authority);
        let cut = "POST /cut HTTP/1.1\r\nHost: m2u\r\nContent-Length: 9\r\n\r\nhello";
        for (last, is_announced) in [(GET, true), (cut, false)] {
            let mut device = device::Device::connect("127.0.0.7", gateway.address());
            for _ in 0..2 {
                assert_eq!(device.ask(GET).status(), 200);
            }
            device.send(last);
            device.finish();
            // rustls tells an end that was not announced as an error.
            let outcome = heard.recv_timeout(PATIENCE).unwrap();
            assert_eq!(outcome.is_ok(), is_announced, "{version:?}: {outcome:?}");
        }
        gateway.stop();
    }
}

#[test]
fn a_server_without_an_authority_of_its_own_is_held_against_the_systems_roots() {
    let (known, unknown) = (Authority::new("Known CA"), Authority::new("Unknown CA"));
    let leaf = known.server(&["ingest.acme.example"], Validity::Current);
    let upstream = serve(&leaf, None);
    let server = format!(
        "[[account.server]]\nurl = \"https://ingest.acme.example\"\naddress = [\"{}\"]\n",
        upstream.address,
    );
    let config = format!(
        "{PREAMBLE}{}",
        account("acme", &server, &[("press-07", "127.0.0.7")])
    );
    for (roots, status) in [(&known, 200), (&unknown, 502)] {
        let roots = roots.pem();
        let gateway = Gateway::start_among(&config, &[], &[("SSL_CERT_FILE", &roots)]);
        let answer = device::ask("127.0.0.7", gateway.address(), GET);
        assert_eq!(answer.status(), status);
        if status == 502 {
            assert_eq!(answer.token(), Some("tls_certificate_error"));
        }
        gateway.stop();
    }
    assert_eq!(upstream.requests().len(), 1);
}

#[test]
fn an_answer_cut_off_below_tls_never_passes_for_complete() {
    let authority = Authority::new("Known CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let upstream = Upstream::start_tls(Authority::server_config(&leaf, None), |conversation| {
        conversation.request()?;
        conversation.write("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf of it")?;
        // Without TLS' own goodbye, an attacker in between may have cut it.
        conversation.cut()
    });
    let gateway = gateway(&upstream, &authority);
    for request in [GET, "GET / HTTP/1.0\r\n\r\n"] {
        let mut device = device::Device::connect("127.0.0.7", gateway.address());
        device.send(request);
        assert!(device.receive_answer(false).is_err(), "{request}");
    }
    gateway.stop();
}
