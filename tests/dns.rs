//! The responder for m2u's own names: asked with dig, and with what no dig would send.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use common::{
    PATIENCE, device,
    dig::{Reply, dig},
    folder::Folder,
    gateway::{self, Gateway, account, server},
    upstream::Upstream,
    wait_until,
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};

const PREAMBLE: &str = "domain = \"talk2m.com\"\n\
    listen = [\"127.0.0.1:0\", { address = \"127.0.0.2:0\", slot = \"m2u2\" }]\n\
    [upstream]\nallow_networks = [\"127.0.0.0/8\"]\n";
const DNS: &str = "[dns]\nlisten = [\"127.0.0.1:0\"]\naddresses = [\"127.0.0.1\", \"fd00::1\"]\n\
    slots = { m2u2 = [\"127.0.0.2\"], m2u3 = [MANY] }\n";

/// Servers in the slots 1, 2 and 3, the last of which has a long list of addresses.
fn configuration(dns: &str, url: &str) -> String {
    let many: Vec<_> = (1..=32).map(|n| format!("\"10.9.0.{n}\"")).collect();
    let dns = dns.replace("MANY", &many.join(", "));
    let servers = ["m2u", "m2u2", "m2u3"].map(|slot| server(slot, &format!("{url}/{slot}")));
    let acme = account("acme", &servers.concat(), &[("press-07", "127.0.0.7")]);
    format!("{PREAMBLE}{dns}{acme}")
}

struct Names {
    gateway: Gateway,
    address: SocketAddr,
}

impl Names {
    fn start() -> Self {
        Self::with(&configuration(DNS, "http://192.0.2.1"))
    }

    fn with(configuration: &str) -> Self {
        let gateway = Gateway::start(configuration);
        let log = gateway.log();
        let lines = log.lines();
        let mut addresses = lines.filter_map(|l| l.strip_prefix("m2u: answering for names on "));
        let address = addresses.next().expect("an address").parse().unwrap();
        Self { gateway, address }
    }

    fn dig(&self, words: &str) -> Reply {
        dig(self.address, words)
    }

    /// By UDP and TCP, which must agree.
    fn dig_both(&self, words: &str) -> Reply {
        let by_udp = self.dig(&format!("{words} +notcp"));
        let by_tcp = self.dig(&format!("{words} +tcp"));
        let seen = |reply: &Reply| {
            let Reply {
                status,
                flags,
                answers,
                authorities,
                bytes,
                ..
            } = reply.clone();
            (status, flags, answers, authorities, bytes)
        };
        assert_eq!(seen(&by_udp), seen(&by_tcp));
        by_udp
    }

    fn count(&self, name: &str) -> usize {
        let counts = self.gateway.counts();
        counts
            .get(&format!("dns.{name}"))
            .copied()
            .unwrap_or_default()
    }

    fn socket(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn question(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    [&length, message].concat()
}

fn read_framed(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).unwrap();
    Message::from_vec(&message).unwrap()
}

/// Whether the other side has ended a connection, one way or the other.
fn is_ended(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn names_have_the_addresses_of_their_slots() {
    let names = Names::start();
    for (name, kind, data) in [
        ("m2u.talk2m.com", "A", &["127.0.0.1"][..]),
        ("m2u.talk2m.com", "AAAA", &["fd00::1"]),
        ("m2u", "A", &["127.0.0.1"]),
        ("m2u2.talk2m.com", "A", &["127.0.0.2"]),
        ("m2u2", "A", &["127.0.0.2"]),
        ("m2u.talk2m.com", "ANY", &["127.0.0.1"]),
    ] {
        let reply = names.dig_both(&format!("{name} {kind}"));
        assert_eq!(
            (reply.status.as_str(), reply.data()),
            ("NOERROR", data.to_vec())
        );
        let kind = if kind == "ANY" { "A" } else { kind };
        assert_eq!(reply.answers, [format!("{name}. 60 IN {kind} {}", data[0])]);
        assert!(reply.has_flag("aa") && !reply.has_flag("ra") && !reply.has_edns);
    }
    assert!(names.gateway.threads().contains(&"m2u-dns".to_owned()));
    names.gateway.stop();
}

#[test]
fn a_kind_that_a_name_lacks_is_no_missing_name() {
    let names = Names::start();
    for (name, kind) in [
        ("m2u2.talk2m.com", "AAAA"),
        ("m2u", "TXT"),
        ("m2u.talk2m.com", "HTTPS"),
    ] {
        let reply = names.dig_both(&format!("{name} {kind}"));
        assert!(reply.is_no_data() && reply.has_flag("aa"), "{reply:?}");
        assert_eq!(
            reply.authorities,
            [format!("{name}. 60 IN SOA {name}. . 1 3600 600 86400 60")]
        );
    }
    names.gateway.stop();
}

#[test]
fn other_names_classes_and_operations_are_not_ours() {
    let names = Names::start();
    for words in [
        "talk2m.com A",
        "talk2m.com ANY",
        "www.talk2m.com A",
        "m2u4.talk2m.com A",
        "m2u1.talk2m.com A",
        "x.m2u.talk2m.com A",
        "m2u.example.com A",
        ". NS",
        "version.bind TXT CH",
        "m2u.talk2m.com A CH",
    ] {
        let reply = names.dig_both(words);
        assert_eq!(reply.status, "REFUSED", "{}", reply.text());
        assert!(reply.answers.is_empty() && reply.authorities.is_empty() && !reply.has_flag("aa"));
    }
    for words in ["m2u +opcode=4", "m2u +opcode=5", "m2u +opcode=15"] {
        assert_eq!(names.dig_both(words).status, "NOTIMP");
    }
    assert_eq!(names.count("refused"), 20);
    assert_eq!(names.count("not_implemented"), 6);
    names.gateway.stop();
}

#[test]
fn edns_is_spoken_with_those_who_speak_it() {
    let names = Names::start();
    let reply = names.dig_both("m2u.talk2m.com A +edns=0 +cookie +dnssec");
    assert_eq!(reply.data(), ["127.0.0.1"]);
    assert!(
        reply.has_edns && reply.text().contains("flags: do; udp: 1232"),
        "{}",
        reply.text()
    );
    let reply = names.dig_both("m2u.talk2m.com A +edns=1 +noednsnegotiation");
    assert_eq!((reply.status.as_str(), reply.has_edns), ("BADVERS", true));
    assert!(reply.answers.is_empty());
    let reply = names.dig_both("www.talk2m.com A +edns=0");
    assert_eq!((reply.status.as_str(), reply.has_edns), ("REFUSED", true));
    names.gateway.stop();
}

#[test]
fn what_has_no_room_in_a_datagram_comes_by_tcp() {
    let names = Names::start();
    let short = names.dig("m2u3.talk2m.com A +ignore");
    assert!(
        short.has_flag("tc") && short.bytes <= 512 && short.bytes > 490,
        "{short:?}"
    );
    assert!(short.data().len() > 20);
    let again = names.dig("m2u3.talk2m.com A");
    assert!(!again.has_flag("tc") && again.text().contains("retrying in TCP mode"));
    assert_eq!(again.data().len(), 32);
    let long = names.dig("m2u3.talk2m.com A +ignore +bufsize=1232");
    assert_eq!((long.has_flag("tc"), long.data().len()), (false, 32));
    let bounded = names.dig("m2u3.talk2m.com A +ignore +bufsize=520");
    assert!(bounded.has_flag("tc") && bounded.bytes <= 520);
    assert_eq!(names.count("truncated"), 3);
    names.gateway.stop();
}

#[test]
fn the_case_of_a_question_is_kept() {
    let names = Names::start();
    let reply = names.dig_both("M2u2.tAlK2m.CoM A");
    assert_eq!(reply.question, ";M2u2.tAlK2m.CoM. IN A");
    assert_eq!(reply.answers, ["M2u2.tAlK2m.CoM. 60 IN A 127.0.0.2"]);
    names.gateway.stop();
}

#[test]
fn a_slot_with_an_address_of_its_own_is_found_without_a_host() {
    let upstream = Upstream::echo();
    let names = Names::with(&configuration(DNS, &upstream.url()));
    for (name, listener) in [("m2u", 0), ("m2u2", 1)] {
        let listener = names.gateway.addresses()[listener];
        let reply = names.dig(&format!("{name}.talk2m.com A"));
        assert_eq!(reply.data(), [listener.ip().to_string()]);
        let answer = device::ask("127.0.0.7", listener, "GET /in HTTP/1.0\r\n\r\n");
        assert_eq!(answer.status(), 200);
        assert_eq!(
            upstream.requests().last().unwrap().target(),
            format!("/{name}/in")
        );
    }
    names.gateway.stop();
}

#[test]
fn what_is_no_question_is_dropped_and_counted() {
    let names = Names::start();
    let socket = names.socket();
    let sound = question(1, "m2u.", RecordType::A);
    let mut answer = sound.clone();
    answer[2] |= 0x80;
    let mut pointer = sound.clone();
    pointer[12..14].copy_from_slice(&[0xc0, 12]);
    let overlong = [&sound[..], &[0; 1_500]].concat();
    for garbage in [
        &[][..],
        b"x",
        &sound[..11],
        &sound[..20],
        &pointer,
        &overlong,
        &answer,
    ] {
        socket.send(garbage).unwrap();
    }
    // Nothing overtakes on one socket: what comes first is the answer to what was sent last.
    socket.send(&question(2, "m2u.", RecordType::A)).unwrap();
    let mut buffer = [0; 512];
    let count = socket.recv(&mut buffer).unwrap();
    assert_eq!(Message::from_vec(&buffer[..count]).unwrap().metadata.id, 2);
    assert_eq!(names.count("dropped_malformed"), 6);
    assert_eq!(names.count("dropped_unasked"), 1);
    assert_eq!(names.count("answered"), 1);
    let mut none = sound.clone();
    none[5] = 0;
    socket.send(&none).unwrap();
    let count = socket.recv(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..count]).unwrap();
    assert_eq!(
        (count, reply.metadata.response_code),
        (12, ResponseCode::FormErr)
    );
    assert_eq!(names.count("format_error"), 1);
    assert_eq!(names.count("faults"), 0);
    names.gateway.stop();
}

#[test]
fn questions_of_one_connection_are_answered_in_turn() {
    let names = Names::start();
    let mut stream = names.connect();
    let three: Vec<u8> = [(7, "m2u."), (8, "www.talk2m.com."), (9, "m2u3.")]
        .iter()
        .flat_map(|(id, name)| framed(&question(*id, name, RecordType::A)))
        .collect();
    let (first, second) = three.split_at(33);
    stream.write_all(first).unwrap();
    assert_eq!(read_framed(&mut stream).metadata.id, 7);
    stream.write_all(second).unwrap();
    let refused = read_framed(&mut stream);
    assert_eq!(
        (refused.metadata.id, refused.metadata.response_code),
        (8, ResponseCode::Refused)
    );
    assert_eq!(read_framed(&mut stream).answers.len(), 32);
    drop(stream);
    // A length past the limit, and what is no question, end a connection.
    for garbage in [&[0xff, 0xff][..], &framed(b"nonsense")] {
        let mut stream = names.connect();
        stream.write_all(garbage).unwrap();
        assert!(is_ended(&mut stream));
    }
    assert_eq!(names.count("dropped_malformed"), 2);
    names.gateway.stop();
}

#[test]
fn connections_are_bounded_and_idle_ones_end() {
    const PER_ADDRESS: usize = m2u::limits::DNS_CONNECTIONS_PER_ADDRESS_MAX;
    let names = Names::start();
    let mut streams: Vec<_> = (0..PER_ADDRESS).map(|_| names.connect()).collect();
    // Half a question is as idle as none.
    streams[0].write_all(&[0, 40, 1]).unwrap();
    wait_until("them to be accepted", || {
        names.count("connections") == PER_ADDRESS
    });
    let mut surplus = names.connect();
    assert!(is_ended(&mut surplus));
    assert_eq!(names.count("connections_refused"), 1);
    assert_eq!(names.dig("m2u A").data(), ["127.0.0.1"], "datagrams go on");
    for stream in &mut streams {
        assert!(is_ended(stream));
    }
    wait_until("all to end", || {
        names.count("connections_idle") == PER_ADDRESS
    });
    assert_eq!(
        names.dig("m2u A +tcp").data(),
        ["127.0.0.1"],
        "there is room again"
    );
    names.gateway.stop();
}

#[test]
fn a_reload_brings_other_addresses_and_names_with_the_routes() {
    let before = configuration(DNS, "http://192.0.2.1");
    let mut names = Names::with(&before);
    assert_eq!(names.dig("m2u5.talk2m.com A").status, "REFUSED");
    let path = names.gateway.path("m2u.toml");
    let after = before
        .replace(
            "addresses = [\"127.0.0.1\", \"fd00::1\"]",
            "addresses = [\"10.8.0.2\"]",
        )
        .replace("slot = \"m2u3\"\nurl", "slot = \"m2u5\"\nurl");
    fs::write(&path, after).unwrap();
    names.gateway.signal("HUP");
    names.gateway.wait_for_log("m2u: reloaded: ");
    assert_eq!(names.dig("m2u.talk2m.com A").data(), ["10.8.0.2"]);
    assert!(names.dig("m2u.talk2m.com AAAA").is_no_data());
    assert_eq!(names.dig("m2u5.talk2m.com A").data(), ["10.8.0.2"]);
    assert_eq!(names.dig("m2u3.talk2m.com A").status, "REFUSED");
    // Without the section it goes on as it was, until a restart.
    fs::write(&path, configuration("", "http://192.0.2.1")).unwrap();
    names.gateway.signal("HUP");
    names
        .gateway
        .wait_for_log("needs a restart to take effect: dns.listen");
    assert_eq!(names.dig("m2u.talk2m.com A").data(), ["10.8.0.2"]);
    let log = names.gateway.stop();
    assert!(log.ends_with("m2u: stopped\n"), "{log}");
}

#[test]
fn an_address_that_is_taken_is_refused_with_a_remedy() {
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let streams = TcpListener::bind("127.0.0.1:0").unwrap();
    for taken in [
        datagrams.local_addr().unwrap(),
        streams.local_addr().unwrap(),
    ] {
        let dns = DNS.replace("127.0.0.1:0", &taken.to_string());
        let configuration = configuration(&dns, "http://192.0.2.1");
        let done = gateway::run_to_end(&configuration, &["run"]);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{said}");
        let words = format!("m2u: can't answer for names on {taken}: Address already in use");
        assert!(
            said.contains(&words) && said.contains("`m2u dns snippet`"),
            "{said}"
        );
    }
}

#[test]
fn a_gateway_without_the_section_answers_nobody() {
    let gateway = Gateway::start(&configuration("", "http://192.0.2.1"));
    assert!(!gateway.log().contains("answering for names"));
    assert!(!gateway.threads().contains(&"m2u-dns".to_owned()));
    assert!(!gateway.counts().keys().any(|name| name.starts_with("dns.")));
    gateway.stop();
}

#[test]
fn mistakes_in_the_section_are_named() {
    let folder = Folder::new();
    let sound = configuration(DNS, "http://192.0.2.1");
    assert_eq!(folder.check(&sound, &[]).code, Some(0));
    for (from, to, words) in [
        (
            "addresses = ",
            "address = ",
            "dns.address: is not a key that m2u knows; did you mean \"addresses\"?",
        ),
        (
            "[dns]",
            "[dsn]",
            "dsn: is not a key that m2u knows; the nearest is \"dns\"",
        ),
        (
            "listen = [\"127.0.0.1:0\"]\naddr",
            "listen = [\"127.0.0.1\"]\naddr",
            "dns.listen[0]: \"127.0.0.1\" has no port; write ADDRESS:PORT, such as \"127.0.0.1:53\"",
        ),
        (
            "listen = [\"127.0.0.1:0\"]\naddr",
            "addr",
            "dns.listen: is missing; write the addresses that devices ask",
        ),
        (
            "listen = [\"127.0.0.1:0\"]\naddr",
            "listen = []\naddr",
            "dns.listen: is empty",
        ),
        (
            "listen = [\"127.0.0.1:0\"]\naddr",
            "listen = [\"0.0.0.0:53\"]\naddr",
            "dns.listen[0]: \"0.0.0.0:53\" stands for every address of this host",
        ),
        (
            "addresses = [\"127.0.0.1\", \"fd00::1\"]\n",
            "",
            "dns.addresses: is missing; write what m2u's names resolve to",
        ),
        (
            "\"fd00::1\"",
            "\"127.0.0.1\"",
            "dns.addresses[1]: 127.0.0.1 stands here twice",
        ),
        (
            "\"fd00::1\"",
            "\"fd00::1/64\"",
            "dns.addresses[1]: \"fd00::1/64\" is not an address",
        ),
        (
            "\"10.9.0.1\"",
            "\"10.9.0.1\", \"10.9.1.1\"",
            "dns.slots.m2u3: has 33 addresses; write at most 32",
        ),
        (
            "slots = { m2u2 =",
            "slots = { m2u1 =",
            "dns.slots.m2u1: \"m2u1\" is not a slot",
        ),
        (
            "slots = { m2u2 =",
            "slots = { M2U3 = [\"10.9.0.1\"], m2u2 =",
            "dns.slots.m2u3: m2u3 stands here twice",
        ),
        (
            "m2u2 = [\"127.0.0.2\"]",
            "m2u2 = \"127.0.0.2\"",
            "dns.slots.m2u2: is text in quotes; write an array of addresses",
        ),
    ] {
        assert_eq!(sound.matches(from).count(), 1, "{from:?}");
        let outcome = folder.check(&sound.replace(from, to), &[]);
        assert_eq!(outcome.code, Some(1), "{words}");
        assert!(
            outcome.stderr.contains(words),
            "{words}\n{}",
            outcome.stderr
        );
    }
    let taken = sound.replace(
        "listen = [\"127.0.0.1:0\", ",
        "listen = [\"127.0.0.1:5353\", ",
    );
    let taken = taken.replace(
        "listen = [\"127.0.0.1:0\"]\naddr",
        "listen = [\"127.0.0.1:5353\"]\naddr",
    );
    folder.refuses_text(
        &taken,
        "dns.listen[0]: 127.0.0.1:5353 is where devices' requests are listened for",
    );
}
