//! Floods: thousands of connections that are slow, silent, deaf or too many.
//!
//! While each lasts, a device that behaves is served on and memory stays within a bound for each
//! connection; afterwards descriptors, memory and counts are back where they were, without a
//! restart. The figures are printed.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use common::{
    certificates::{Authority, Validity},
    device::{self, Device},
    flood::{self, Bystander, Flood, Sink, Verdict},
    gateway::{self, Gateway, PREAMBLE},
    upstream::Upstream,
    wait_until,
};
use m2u::limits;

/// Connections of the large floods.
const FLOOD: usize = 5_000;
/// Connections of floods that cost a thread or many descriptors each.
const SMALL_FLOOD: usize = 500;
/// Connections of floods that fill the kernel's buffers.
const DEAF_FLOOD: usize = 100;
/// The second byte of the addresses that floods come from.
const NETWORK: u8 = 16;
const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
/// Resident bytes of a connection that has said nothing for a while.
const SILENT_BYTES_MAX: usize = 1_000;
/// Resident bytes that may stay after a flood: tables that grew, spare small buffers.
const LEFT_BYTES_MAX: usize = 8_000_000;
/// Descriptors that come and go with the bystander's own connections.
const COMING_AND_GOING: usize = 8;

/// A large flood needs most of the descriptors that this process may have.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    flood::raise_file_limit(FLOOD as u64);
    turn
}

/// A configuration whose floods go to `url`, and whose bystander goes to a server of its own.
fn config(tables: &str, url: &str, ours: &Upstream) -> String {
    let flood = gateway::server("m2u", url);
    let flood = gateway::account("flood", &flood, &[("many", "127.16.0.0/16")]);
    let good = gateway::server("m2u", &ours.url());
    let good = gateway::account("good", &good, &[("press-07", PRESS)]);
    format!("{PREAMBLE}{tables}{flood}{good}")
}

/// A gateway before, in and after a flood.
struct Scene {
    gateway: Gateway,
    bystander: Bystander,
    descriptors: usize,
    resident_bytes: usize,
    begun: Instant,
    _ours: Upstream,
}

impl Scene {
    fn start(tables: &str, url: &str) -> Self {
        Self::start_with(tables, url, &[])
    }

    fn start_with(tables: &str, url: &str, flags: &[&str]) -> Self {
        let ours = Upstream::echo();
        let gateway = Gateway::start_with(&config(tables, url, &ours), flags);
        let bystander = Bystander::start(PRESS, gateway.address());
        bystander.wait_for_more();
        Self {
            descriptors: gateway.descriptors(),
            resident_bytes: gateway.resident_bytes(),
            gateway,
            bystander,
            begun: Instant::now(),
            _ours: ours,
        }
    }

    fn flood(&self, count: usize) -> Flood {
        Flood::connect(count, NETWORK, 50, self.gateway.address())
    }

    fn has_descriptors_for(&self, connections: usize) -> bool {
        self.gateway.descriptors() >= self.descriptors + connections - COMING_AND_GOING
    }

    /// In the middle of a flood: others are served, and each connection holds so much at most.
    fn hold(&self, what: &str, connections: usize, bytes_max: usize) {
        self.bystander.wait_for_more();
        let resident = self.gateway.resident_bytes();
        let each = resident.saturating_sub(self.resident_bytes) / connections;
        println!(
            "{what}: {connections} connections, {} descriptors, {:.1} MB resident: {each} bytes each",
            self.gateway.descriptors(),
            resident as f64 / 1e6,
        );
        assert!(each <= bytes_max, "{what}: {each} bytes each");
    }

    /// After a flood: everything is back where it was. Answers the counts.
    fn recover(self, what: &str) {
        wait_until("the descriptors to come back", || {
            self.gateway.descriptors() <= self.descriptors + COMING_AND_GOING
        });
        // The allocator gives memory back as it is used.
        wait_until("the memory to come back", || {
            self.gateway.resident_bytes() <= self.resident_bytes + LEFT_BYTES_MAX
        });
        self.bystander.wait_for_more();
        let (resident, descriptors) = (self.gateway.resident_bytes(), self.gateway.descriptors());
        let (answers, slowest) = self.bystander.finish();
        wait_until("the counts to come back", || {
            let counts = self.gateway.counts();
            let ended = counts.iter().filter(|(name, _)| name.starts_with("ended."));
            let ended: usize = ended.map(|(_, count)| count).sum();
            counts["open"] == 0 && counts["accepted"] == ended && counts["refusing"] == 0
        });
        println!(
            "{what}: after {:.1} s {descriptors} descriptors (from {}), {:.1} MB resident (from \
             {:.1}); the bystander had {answers} answers, the slowest in {slowest:?}\n{}",
            self.begun.elapsed().as_secs_f64(),
            self.descriptors,
            resident as f64 / 1e6,
            self.resident_bytes as f64 / 1e6,
            self.gateway.log().lines().last().unwrap_or_default(),
        );
        self.gateway.stop();
    }

    /// How often `name` was counted.
    fn count(&self, name: &str) -> usize {
        self.gateway.counts().get(name).copied().unwrap_or(0)
    }
}

fn all_answered(count: usize) -> Verdict {
    Verdict {
        answered: count,
        ..Verdict::default()
    }
}

/// On a host that gives huge pages to everybody, each buffer could take two megabytes.
#[test]
fn huge_pages_are_declined() {
    let ours = Upstream::echo();
    let gateway = Gateway::start(&config("", &ours.url(), &ours));
    assert_eq!(gateway.status("THP_enabled"), "0");
}

#[test]
fn connections_that_say_nothing_are_closed_without_a_word() {
    let _turn = turn();
    let scene = Scene::start("[timeouts]\nkeepalive = \"20s\"\n", "http://127.0.0.1:1");
    let mut flood = scene.flood(FLOOD);
    wait_until("all to be accepted", || scene.has_descriptors_for(FLOOD));
    scene.hold("silent at first", FLOOD, 12_000);
    wait_until("all to be dormant", || scene.count("dormant") == FLOOD);
    // The allocator gives back what they had a moment later, as it is used.
    wait_until("what they do not need to come back", || {
        scene.gateway.resident_bytes() <= scene.resident_bytes + FLOOD * SILENT_BYTES_MAX
    });
    scene.hold("silent", FLOOD, SILENT_BYTES_MAX);
    let silent = Verdict {
        unanswered: FLOOD,
        ..Verdict::default()
    };
    assert_eq!(flood.wait_for_end(0), silent);
    assert_eq!(scene.count("ended.idle"), FLOOD);
    scene.recover("silent");
}

#[test]
fn heads_that_trickle_are_given_up() {
    let _turn = turn();
    let scene = Scene::start("[timeouts]\nhead = \"4s\"\n", "http://127.0.0.1:1");
    let mut flood = scene.flood(FLOOD);
    for byte in b"POST /" {
        flood.send(&[*byte]);
    }
    wait_until("all to be accepted", || scene.has_descriptors_for(FLOOD));
    scene.hold("slow heads", FLOOD, 12_000);
    assert_eq!(flood.wait_for_end(408), all_answered(FLOOD));
    assert_eq!(scene.count("failed.head_timeout"), FLOOD);
    drop(flood);
    scene.recover("slow heads");
}

#[test]
fn bodies_that_trickle_hold_little_and_are_given_up_when_they_stop() {
    let _turn = turn();
    let sink = Sink::start();
    let scene = Scene::start("[timeouts]\nbody = \"5s\"\n", &sink.url());
    let mut flood = scene.flood(FLOOD);
    flood.send(b"POST /in HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n");
    wait_until("the server to hear of all", || sink.connections() == FLOOD);
    for _ in 0..4 {
        flood.send(b"x");
        scene.hold("slow bodies", FLOOD, 20_000);
    }
    assert_eq!(flood.wait_for_end(408), all_answered(FLOOD));
    assert_eq!(scene.count("failed.body_timeout"), FLOOD);
    drop(flood);
    scene.recover("slow bodies");
}

#[test]
fn bodies_that_trickle_to_tls_servers_hold_little_more() {
    let _turn = turn();
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let server = Upstream::start_tls(Authority::server_config(&leaf, None), |conversation| {
        conversation.head()?;
        conversation.read_rest().map(drop)
    });
    let url = format!(
        "https://{}\"\nca = \"{}",
        server.address,
        authority.pem().display()
    );
    let scene = Scene::start("[timeouts]\nbody = \"5s\"\n", &url);
    let mut flood = scene.flood(SMALL_FLOOD);
    flood.send(b"POST /in HTTP/1.1\r\nHost: m2u\r\nContent-Length: 99999\r\n\r\n");
    wait_until("the server to hear of all", || {
        server.requests().len() == SMALL_FLOOD
    });
    for _ in 0..4 {
        flood.send(b"x");
        scene.hold("slow bodies over TLS", SMALL_FLOOD, 80_000);
    }
    assert_eq!(flood.wait_for_end(408), all_answered(SMALL_FLOOD));
    assert_eq!(scene.count("failed.body_timeout"), SMALL_FLOOD);
    drop(flood);
    scene.recover("slow bodies over TLS");
}

#[test]
fn devices_that_never_read_are_cut_off() {
    cut_off_those_that_never_read(&[]);
}

#[test]
fn devices_that_never_read_are_cut_off_where_nothing_is_spliced() {
    cut_off_those_that_never_read(&["--splice-threshold", "off"]);
}

fn cut_off_those_that_never_read(flags: &[&str]) {
    let _turn = turn();
    const ANSWER_BYTES: usize = 256 * 65_536;
    let server = Upstream::start(|conversation| {
        conversation.request()?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {ANSWER_BYTES}\r\n\r\n");
        conversation.write(head)?;
        // More than all buffers on the way hold; the gateway ends it.
        for _ in 0..ANSWER_BYTES / 65_536 {
            conversation.write([b'x'; 65_536])?;
        }
        Ok(())
    });
    let scene = Scene::start_with("[timeouts]\nbody = \"3s\"\n", &server.url(), flags);
    let mut flood = scene.flood(DEAF_FLOOD);
    flood.send(GET.as_bytes());
    wait_until("the server to hear of all", || {
        server.connections() == DEAF_FLOOD
    });
    scene.hold("deaf devices", DEAF_FLOOD, 100_000);
    wait_until("the gateway to have enough", || {
        scene.count("failed.device_stalled") == DEAF_FLOOD
    });
    let begun = Instant::now();
    wait_until("their connections to end", || {
        scene.count("ended.failed") == DEAF_FLOOD
    });
    assert!(
        begun.elapsed() < limits::DELIVERY_PATIENCE_FLOOR,
        "no patience is left by then"
    );
    wait_until("the servers' connections to end", || server.open() == 0);
    // What had come is there; that it is not all of it can be seen.
    assert_eq!(flood.wait_for_end(200), all_answered(DEAF_FLOOD));
    assert_eq!(flood.resets(), DEAF_FLOOD);
    assert!(flood.received_bytes() < DEAF_FLOOD * ANSWER_BYTES);
    scene.recover("deaf devices");
}

#[test]
fn a_server_that_never_reads_costs_its_devices_an_answer_only() {
    let _turn = turn();
    let sink = Sink::start();
    let scene = Scene::start("[timeouts]\nbody = \"3s\"\n", &sink.url());
    let mut flood = scene.flood(DEAF_FLOOD);
    flood.send(b"PUT /in HTTP/1.1\r\nHost: m2u\r\nContent-Length: 100000000\r\n\r\n");
    wait_until("the gateway to have enough", || {
        flood.send(&[b'x'; 65_536]);
        flood.verdict(504).answered == DEAF_FLOOD
    });
    scene.hold("deaf server", DEAF_FLOOD, 200_000);
    assert_eq!(scene.count("failed.write_timeout"), DEAF_FLOOD);
    drop(flood);
    scene.recover("deaf server");
}

#[test]
fn one_address_that_floods_is_refused_and_holds_no_more_than_its_share() {
    let _turn = turn();
    const SHARE: usize = 64;
    let scene = Scene::start("", "http://127.0.0.1:1");
    let address = scene.gateway.address();
    let begun = scene.count("accepted");
    let mut flood = Flood::connect(FLOOD, NETWORK, FLOOD, address);
    let cores = std::thread::available_parallelism().unwrap().get();
    let refused_max = limits::REFUSALS_PER_CORE_MAX + limits::SECOND_TRIES_PER_CORE_MAX;
    let held_max = SHARE + cores * refused_max;
    wait_until("all to be accepted", || {
        let held = scene.gateway.descriptors() - scene.descriptors.min(scene.gateway.descriptors());
        assert!(held <= held_max + COMING_AND_GOING, "{held} are held");
        scene.count("accepted") >= begun + FLOOD
    });
    scene.hold("flood from one address", FLOOD, 2_000);
    wait_until("those beyond its share to be ended", || {
        flood.verdict(429).open == SHARE
    });
    let verdict = flood.verdict(429);
    println!("flood from one address: {verdict:?}");
    assert_eq!(verdict.others, 0);
    assert_eq!(verdict.answered + verdict.unanswered, FLOOD - SHARE);
    assert_eq!(scene.count("failed.too_many_connections"), verdict.answered);
    assert_eq!(scene.count("ended.refused_unanswered"), verdict.unanswered);
    assert!(verdict.answered >= limits::REFUSALS_PER_CORE_MAX);
    drop(flood);
    scene.recover("flood from one address");
}

#[test]
fn past_the_limit_of_all_connections_those_that_are_open_are_served_on() {
    let _turn = turn();
    const CONNECTIONS: usize = 500;
    let ours = Upstream::echo();
    let tables = format!("[limits]\nconnections = {CONNECTIONS}\n");
    let gateway = Gateway::start(&config(&tables, "http://127.0.0.1:1", &ours));
    let address = gateway.address();
    let mut press = Device::connect(PRESS, address);
    assert_eq!(press.ask(GET).status(), 200);
    let descriptors = gateway.descriptors();
    let mut flood = Flood::connect(FLOOD, NETWORK, 50, address);
    let cores = std::thread::available_parallelism().unwrap().get();
    let held_max = CONNECTIONS + cores * limits::REFUSALS_PER_CORE_MAX;
    wait_until("those beyond the limit to be ended", || {
        assert_eq!(press.ask(GET).status(), 200);
        // What a core has accepted and not yet judged, or just let go, is there for one look alone.
        let now = (0..5).map(|_| gateway.descriptors()).min().unwrap();
        assert!(
            now <= descriptors + held_max,
            "{now} descriptors, {descriptors} before"
        );
        flood.verdict(429).open == CONNECTIONS - 1
    });
    let verdict = flood.verdict(429);
    println!("past the limit: {verdict:?}");
    assert_eq!(verdict.others, 0);
    drop(flood);
    wait_until("room for others", || {
        device::ask("127.0.0.7", address, GET).status() == 200
    });
    drop(press);
    wait_until("the counts to come back", || gateway.counts()["open"] == 0);
    assert!(gateway.descriptors() <= descriptors + COMING_AND_GOING);
    gateway.stop();
}

#[test]
fn without_descriptors_those_that_are_open_are_served_on_and_all_comes_back() {
    let _turn = turn();
    const FILES: u64 = 300;
    let (ours, theirs) = (Upstream::echo(), Upstream::echo());
    let gateway = Gateway::start_under_file_limit(&config("", &theirs.url(), &ours), FILES);
    let warning = format!("this process may open {FILES} files, and limits.connections = 100000");
    assert!(gateway.log().contains(&warning), "{}", gateway.log());
    let address = gateway.address();
    let mut press = Device::connect(PRESS, address);
    assert_eq!(press.ask(GET).status(), 200);
    // Has no connection to its server yet.
    let mut newcomer = Device::connect("127.16.200.1", address);
    newcomer.send("GET / HT");
    let before = gateway.descriptors();
    let flood = Flood::connect(SMALL_FLOOD, NETWORK, 50, address);
    wait_until("the descriptors to run out", || {
        assert_eq!(press.ask(GET).status(), 200);
        // To count takes a descriptor for a moment, and may be what an accept fails for: only once
        // all are in use without that is none left.
        gateway.counts()["accept_failed"] > 0 && gateway.descriptors() == FILES as usize
    });
    assert!(
        gateway
            .log()
            .contains("can't accept connections: Too many open files")
    );
    newcomer.send("TP/1.1\r\nHost: m2u\r\n\r\n");
    let answer = newcomer.receive();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.token(), Some("proxy_internal_error"));
    assert_eq!(press.ask(GET).status(), 200);
    drop(flood);
    // Those that still wait in the kernel's queue have ended, and are let go as they come.
    assert_eq!(device::ask(PRESS, address, GET).status(), 200);
    wait_until("the descriptors to come back", || {
        gateway.descriptors() <= before + COMING_AND_GOING
    });
    assert_eq!(newcomer.ask(GET).status(), 200);
    assert_eq!(gateway.counts()["failed.exhausted"], 1);
    println!("without descriptors: {:?}", gateway.counts());
    gateway.stop();
}
