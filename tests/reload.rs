//! A reload takes effect in one step, when the names of its servers are known: what it brings is in
//! force as a whole or not at all, whoever has leases.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, net::Ipv4Addr, time::Instant};

use common::{
    device,
    gateway::{Gateway, PREAMBLE, account, server},
    leases::{self, add, connect, whole_set, whose},
    name_server::NameServer,
    upstream::Upstream,
    wait_until,
};
use m2u::limits;

/// The name of a server that the name server says nothing of until it is told to.
const SLOW: &str = "slow.example";
const RELOADED: &str = "m2u: reloaded";
const WAITS: &str = "m2u: reload: waits until a set of first that is on its way is whole";
/// How often it is tried where a machine may be too busy to see what was in time.
const ROUNDS: usize = 10;
/// Leases of a set that takes long.
const LARGE: usize = 30_000;

/// A gateway, and the name server that it asks.
struct Scene {
    names: NameServer,
    gateway: Gateway,
}

/// A configuration that has been read, but for [`SLOW`]: it waits.
struct Waiting {
    /// At most so long ago.
    begun: Instant,
}

impl Waiting {
    /// Whether it waits for certain: on a busy machine its time may be over at any moment.
    fn is_certain(&self) -> bool {
        self.begun.elapsed() < limits::DNS_FIRST_ANSWERS
    }
}

impl Scene {
    /// A gateway with this configuration, whose name server has these addresses.
    fn start(config: &str, addresses: &[Ipv4Addr]) -> Self {
        let names = NameServer::start(addresses);
        let nameserver = names.address.to_string();
        let gateway = Gateway::start_with(config, &["--nameserver", &nameserver]);
        names.hold(&format!("{SLOW}."));
        Self { names, gateway }
    }

    fn reloads(&self) -> usize {
        self.gateway.log().matches(RELOADED).count()
    }

    /// Has another configuration read.
    fn ask_for(&self, config: &str) -> Instant {
        fs::write(self.gateway.path("m2u.toml"), config).unwrap();
        let begun = Instant::now();
        self.gateway.signal("HUP");
        begun
    }

    /// Has a configuration read that has a server at [`SLOW`] besides.
    fn begin(&self, config: &str) -> Waiting {
        let begun = self.ask_for(&format!("{config}{}", third()));
        let name = format!("{SLOW}.");
        wait_until("the question", || self.names.asked().contains(&name));
        Waiting { begun }
    }

    /// Has [`SLOW`] resolved, and waits until the configuration is in force.
    fn finish(&self) {
        self.names.release();
        wait_until("the reload", || self.reloads() > 0);
    }
}

/// An account whose server is at [`SLOW`].
fn third() -> String {
    account("third", &server("m2u", &format!("http://{SLOW}")), &[])
}

/// The account and the server that a request of 127.0.0.7 is delivered as and to, or its status.
fn delivery(gateway: &Gateway) -> Result<(String, String), u16> {
    let answer = device::ask(
        "127.0.0.7",
        gateway.address(),
        "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n",
    );
    let text = answer.text();
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_default().to_owned()
    };
    match answer.status() {
        200 => Ok((field("X_Talk2M_Account: "), field("Host: "))),
        status => Err(status),
    }
}

#[test]
fn a_device_that_is_moved_is_at_its_old_server_or_at_its_new_one() {
    let [own, before, after] = std::array::from_fn(|_| Upstream::echo());
    for leases in ["", "[leases]\n"] {
        let configuration = |spare: &Upstream, [acme, beta]: [&[(&str, &str)]; 2]| {
            let acme = account("acme", &server("m2u", &own.url()), acme);
            let beta = account("beta", &server("m2u", &spare.url()), beta);
            format!("{PREAMBLE}{leases}{acme}{beta}")
        };
        let press = [("press-07", "127.0.0.7")];
        let old = Ok(("acme".to_owned(), own.address.to_string()));
        let new = Ok(("beta".to_owned(), after.address.to_string()));
        let scene = Scene::start(&configuration(&before, [&press, &[]]), &[]);
        assert_eq!(delivery(&scene.gateway), old);
        let waiting = scene.begin(&configuration(&after, [&[], &press]));
        let delivered = delivery(&scene.gateway);
        match waiting.is_certain() {
            true => assert_eq!(delivered, old, "{leases}"),
            false => assert!([&old, &new].contains(&&delivered), "{delivered:?}"),
        }
        scene.finish();
        assert_eq!(delivery(&scene.gateway), new, "{leases}");
        // Another server alone is as much of a step.
        scene.ask_for(&configuration(&own, [&[], &press]));
        wait_until("the reload", || scene.reloads() == 2);
        let own = Ok(("beta".to_owned(), own.address.to_string()));
        assert_eq!(delivery(&scene.gateway), own, "{leases}");
        scene.gateway.stop();
    }
    assert_eq!(before.connections(), 0);
}

/// Changes leases while a configuration waits that has a press-10 instead of a press-09; `None`: it
/// may have waited no longer.
fn change_leases_meanwhile(upstream: &Upstream) -> Option<()> {
    let whole = leases::configuration(&upstream.url(), "");
    let scene = Scene::start(&whole, &[]);
    let mut feed = connect(&scene.gateway);
    feed.done(&add("127.0.0.8", "press-08", ""));
    let waiting = scene.begin(&whole.replace("press-09", "press-10"));
    let who = |address| whose(address, scene.gateway.address());
    let replies = [
        add("127.0.0.7", "press-07", ""),
        add("127.0.0.9", "press-09", ""),
        add("127.0.0.10", "press-10", ""),
        r#"{"op":"release","source":"vpn","address":"127.0.0.8"}"#.to_owned(),
    ]
    .map(|line| feed.ask(&line)["error"].clone());
    let nine = who("127.0.0.9");
    if !waiting.is_certain() {
        return None;
    }
    let done = || serde_json::Value::Null;
    let refused = "unknown_device".into();
    assert_eq!(replies, [done(), done(), refused, done()]);
    assert_eq!(nine, Ok("press-09".to_owned()));
    scene.finish();
    assert_eq!(feed.leases(), ["127.0.0.7 press-07 confirmed"]);
    assert_eq!(who("127.0.0.7"), Ok("press-07".to_owned()));
    assert_eq!(who("127.0.0.9"), Err(403));
    feed.done(&add("127.0.0.10", "press-10", ""));
    assert_eq!(who("127.0.0.10"), Ok("press-10".to_owned()));
    let said = scene.gateway.stop();
    let ends = "m2u: 1 leases end: the configuration no longer has their devices";
    let (before, _) = said.split_once(RELOADED).unwrap();
    assert!(before.contains(ends), "{said}");
    Some(())
}

#[test]
fn leases_are_those_of_the_devices_of_before_until_the_step_and_of_the_new_ones_from_there_on() {
    let upstream = Upstream::echo();
    let seen = (0..ROUNDS).find_map(|_| change_leases_meanwhile(&upstream));
    seen.expect("a reload that waited so long");
}

/// Has a set begin while a configuration waits for a name; `None`: it did not begin in time, or was
/// whole before the name was known.
fn begin_a_set_meanwhile(upstream: &Upstream) -> Option<()> {
    let whole = leases::configuration(&upstream.url(), "");
    let scene = Scene::start(&whole, &[]);
    let mut source = connect(&scene.gateway);
    scene.begin(&whole.replace("press-09", "press-10"));
    source.send(whole_set("first", 1, "press-09", LARGE));
    let journal = || fs::read_to_string(scene.gateway.path("journal")).unwrap();
    wait_until("the set", || {
        journal().contains("{\"set\"") || scene.reloads() > 0
    });
    scene.names.release();
    let is_told = || scene.gateway.log().contains(WAITS);
    wait_until("the reload", || is_told() || scene.reloads() > 0);
    if !is_told() {
        return None;
    }
    // It began with the devices of before, and they end with its last lease in place.
    assert_eq!(source.next()["count"], LARGE);
    wait_until("the reload", || scene.reloads() > 0);
    assert_eq!(whose("127.1.9.9", scene.gateway.address()), Err(403));
    assert_eq!(source.leases(), [""; 0]);
    scene.gateway.stop();
    Some(())
}

#[test]
fn a_set_that_begins_meanwhile_is_whole_before_the_step() {
    let upstream = Upstream::echo();
    let seen = (0..ROUNDS).find_map(|_| begin_a_set_meanwhile(&upstream));
    seen.expect("a set that was on its way");
}

/// An account whose server has a name, and its devices.
fn named(upstream: &Upstream, devices: &[(&str, &str)]) -> String {
    let url = format!("http://named.example:{}", upstream.address.port());
    format!(
        "{PREAMBLE}{}",
        account("acme", &server("m2u", &url), devices)
    )
}

const PRESS: (&str, &str) = ("press-07", "127.0.0.7");
const MILL: (&str, &str) = ("mill-1", "127.0.0.9");

#[test]
fn a_reload_takes_the_place_of_one_that_waits() {
    let [upstream, other] = std::array::from_fn(|_| Upstream::echo());
    let scene = Scene::start(&named(&upstream, &[PRESS]), &[Ipv4Addr::LOCALHOST]);
    // Whatever is asked for anew has no address.
    scene.names.answer_with(&[]);
    let elsewhere = account("beta", &server("m2u", &other.url()), &[PRESS]);
    let waiting = scene.begin(&format!("{PREAMBLE}{elsewhere}"));
    scene.ask_for(&named(&upstream, &[PRESS, MILL]));
    let said = |words: &str| scene.gateway.log().contains(words);
    wait_until("the second one", || {
        said("m2u: reloaded: 1 account, 1 server, 2 devices")
    });
    if waiting.is_certain() {
        assert_eq!((scene.reloads(), other.connections()), (1, 0));
    }
    // It had its server all the time, whose address is known.
    let authority = format!("named.example:{}", upstream.address.port());
    assert_eq!(delivery(&scene.gateway), Ok(("acme".to_owned(), authority)));
    assert_eq!(
        whose("127.0.0.9", scene.gateway.address()),
        Ok("mill-1".to_owned())
    );
    scene.gateway.stop();
}

#[test]
fn a_reload_that_is_refused_leaves_the_one_that_waits() {
    let upstream = Upstream::echo();
    let acme = |devices: &[_]| account("acme", &server("m2u", &upstream.url()), devices);
    let scene = Scene::start(&format!("{PREAMBLE}{}", acme(&[PRESS])), &[]);
    scene.begin(&format!("{PREAMBLE}{}", acme(&[MILL])));
    scene.ask_for("listn = []\n");
    let said = |words: &str| scene.gateway.log().contains(words);
    wait_until("the refusal", || said("m2u: reload refused"));
    scene.finish();
    let who = |address| whose(address, scene.gateway.address());
    assert_eq!(who("127.0.0.9"), Ok("mill-1".to_owned()));
    assert_eq!(who("127.0.0.7"), Err(403));
    scene.gateway.stop();
}

/// Gives a server its first address while a configuration waits; `None`: it may have waited no longer.
fn move_a_server_meanwhile(upstream: &Upstream) -> Option<()> {
    let config = named(upstream, &[PRESS]);
    let scene = Scene::start(&config, &[]);
    assert_eq!(delivery(&scene.gateway), Err(502));
    scene.names.answer_with(&[Ipv4Addr::LOCALHOST]);
    let waiting = scene.begin(&config);
    wait_until("the server", || delivery(&scene.gateway).is_ok());
    let is_seen = waiting.is_certain();
    scene.finish();
    scene.gateway.stop();
    is_seen.then_some(())
}

#[test]
fn servers_of_before_are_followed_while_a_reload_waits() {
    let upstream = Upstream::echo();
    let seen = (0..ROUNDS).find_map(|_| move_a_server_meanwhile(&upstream));
    seen.expect("a reload that waited so long");
}

#[test]
fn a_reload_that_waits_for_a_name_is_refused_at_the_end() {
    let upstream = Upstream::echo();
    let config = format!(
        "{PREAMBLE}{}",
        account("acme", &server("m2u", &upstream.url()), &[PRESS])
    );
    let scene = Scene::start(&config, &[]);
    scene.begin(&config);
    let said = scene.gateway.stop();
    let refused = said.matches("m2u: reload refused: m2u is ending").count();
    assert_eq!(refused, usize::from(!said.contains(RELOADED)), "{said}");
}
