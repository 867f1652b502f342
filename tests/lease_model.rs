//! A million changes of leases against a plain model, with requests in between: each reply is what
//! the model says, and no request ever carries a wrong device's identity.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use common::{
    device::Device,
    feed::Feed,
    gateway::Gateway,
    random::Random,
    upstream::{Conversation, Step, Upstream},
};

const CHANGES: usize = 1_000_000;
/// Changes whose replies are read together.
const BATCH: usize = 250;
/// Requests after each batch.
const REQUESTS: usize = 4;
const SOURCES: [&str; 3] = ["vpn", "hub", "manual"];
const DEVICES: u32 = 200;
/// Devices with an address of the configuration, which nobody else can have.
const FIXED: u32 = 16;
const HOSTS: u32 = 240;
const SEED: u64 = 20_261_126;

/// First address and prefix length.
type Network = (u32, u8);

/// What one source says of one network.
#[derive(Clone)]
struct Claim {
    device: u32,
    session: u32,
}

/// Who has what, as simply as it can be said.
#[derive(Default)]
struct Model {
    claims: BTreeMap<(Network, &'static str), Claim>,
}

impl Model {
    fn add(
        &mut self,
        network: Network,
        source: &'static str,
        claim: Claim,
        replace: bool,
    ) -> &'static str {
        let is_fixed = network.1 == 32 && network.0 < fixed(FIXED) && network.0 >= fixed(0);
        let contradicts = |other: &Claim| other.device != claim.device;
        let refused = SOURCES.iter().any(|known| {
            let other = self.claims.get(&(network, known));
            other.is_some_and(contradicts) && !(replace && *known == source)
        });
        if is_fixed || refused {
            return "conflict";
        }
        self.claims.insert((network, source), claim);
        "ok"
    }

    fn release(&mut self, network: Network, source: &'static str, session: u32) -> &'static str {
        match self.claims.get(&(network, source)) {
            None => "no_lease",
            Some(claim) if claim.session != session => "other_session",
            Some(_) => {
                self.claims.remove(&(network, source));
                "ok"
            }
        }
    }

    fn sync(&mut self, source: &'static str, set: &[(Network, Claim)]) -> &'static str {
        let before = self.claims.clone();
        self.claims.retain(|(_, of), _| *of != source);
        for (position, (network, claim)) in set.iter().enumerate() {
            let is_repeated = set[..position].iter().any(|(other, _)| other == network);
            let refused = match self.add(*network, source, claim.clone(), true) {
                "ok" if is_repeated => "repeated",
                added => added,
            };
            if refused != "ok" {
                self.claims = before;
                return refused;
            }
        }
        "ok"
    }

    fn device(&self, host: u32) -> Option<u32> {
        let holds = |(first, length): Network| (host ^ first).leading_zeros() >= length.into();
        let claims = self.claims.iter();
        let found = claims.filter(|((network, _), _)| holds(*network));
        let longest = found.max_by_key(|(((_, length), _), _)| *length);
        longest.map(|(_, claim)| claim.device)
    }
}

/// The address of host `number`.
fn host(number: u32) -> u32 {
    u32::from(Ipv4Addr::new(127, 20, 0, 0)) + number
}

/// The address of the configuration's device `number`.
fn fixed(number: u32) -> u32 {
    u32::from(Ipv4Addr::new(127, 20, 1, 0)) + number
}

fn shown((first, length): Network) -> String {
    let first = Ipv4Addr::from(first);
    match length {
        32 => first.to_string(),
        length => format!("{first}/{length}"),
    }
}

/// An address, or a prefix with all of its hosts.
fn any_network(random: &mut Random) -> Network {
    let host = host(random.below(HOSTS));
    match random.below(8) {
        0 => (host & !0xf, 28),
        1 => (host & !0x3f, 26),
        _ => (host, 32),
    }
}

fn account(device: u32) -> &'static str {
    if device.is_multiple_of(2) {
        "acme"
    } else {
        "beta"
    }
}

/// One line of a change, and what the model says of it.
fn change(model: &mut Model, random: &mut Random, lines: &mut String) -> &'static str {
    let source = SOURCES[random.below(SOURCES.len() as u32) as usize];
    let network = any_network(random);
    let session = random.below(3);
    match random.below(100) {
        0..60 => {
            let device = random.below(DEVICES);
            let replace = random.below(2) == 0;
            writeln!(
                lines,
                "{{\"op\":\"add\",\"source\":\"{source}\",\"address\":\"{}\",\"account\":\"{}\",\
                 \"device\":\"device-{device}\",\"session\":\"s{session}\",\"replace\":{replace}}}",
                shown(network),
                account(device),
            )
            .unwrap();
            model.add(network, source, Claim { device, session }, replace)
        }
        60..99 => {
            // As a rule one that is there.
            let claims = model.claims.range((network, "")..);
            let (network, source, session) = match claims.into_iter().next() {
                Some(((network, source), claim)) if random.below(4) > 0 => {
                    (*network, *source, claim.session)
                }
                _ => (network, source, session),
            };
            writeln!(
                lines,
                "{{\"op\":\"release\",\"source\":\"{source}\",\"address\":\"{}\",\
                 \"session\":\"s{session}\"}}",
                shown(network),
            )
            .unwrap();
            model.release(network, source, session)
        }
        _ => {
            let set: Vec<_> = (0..random.below(12))
                .map(|_| {
                    let (device, session) = (random.below(DEVICES), random.below(3));
                    (any_network(random), Claim { device, session })
                })
                .collect();
            writeln!(lines, "{{\"op\":\"sync\",\"source\":\"{source}\"}}").unwrap();
            for (network, Claim { device, session }) in &set {
                writeln!(
                    lines,
                    "{{\"address\":\"{}\",\"account\":\"{}\",\"device\":\"device-{device}\",\
                     \"session\":\"s{session}\"}}",
                    shown(*network),
                    account(*device),
                )
                .unwrap();
            }
            lines.push_str("{\"op\":\"commit\"}\n");
            model.sync(source, &set)
        }
    }
}

/// Answers with what the request says of its sender.
fn name_the_sender(conversation: &mut Conversation) -> Step {
    while let Some(head) = conversation.head()? {
        let field = |name| head.field(name).unwrap_or("none").to_owned();
        let body = format!(
            "{} {} {}",
            field("X_Talk2M_Account"),
            field("X_Talk2M_Device"),
            field("X_Talk2M_SerialNumber"),
        );
        conversation.forget();
        conversation.answer(body)?;
    }
    Ok(())
}

fn stamped(device: u32) -> String {
    format!("{} device-{device} serial-{device}", account(device))
}

/// What a request from `address` is answered on `connection`, which is made if there is none; it
/// may have been closed because its lease moved, or is told so and ends.
fn ask(connection: &mut Option<Device>, address: u32, gateway: &Gateway) -> Option<String> {
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
    if let Some(device) = connection
        && device.send_if_wanted(REQUEST).is_ok()
        && let Ok(answer) = device.receive_answer(false)
        && answer.status() != 503
    {
        return text_of(&answer, connection);
    }
    let address = Ipv4Addr::from(address).to_string();
    let device = connection.insert(Device::connect(&address, gateway.address()));
    let answer = device.ask(REQUEST);
    text_of(&answer, connection)
}

fn text_of(answer: &common::wire::Message, connection: &mut Option<Device>) -> Option<String> {
    match answer.status() {
        200 => Some(answer.text()),
        status => {
            assert_eq!(status, 403, "{}", answer.text());
            *connection = None;
            None
        }
    }
}

fn configuration(url: &str) -> String {
    let mut config = "listen = [\"127.0.0.1:0\"]\n\
        leases = { socket = \"feed.sock\", journal = \"leases.journal\" }\n\
        limits = { connections_per_address = 1000 }\n\
        upstream = { allow_networks = [\"127.0.0.0/8\"] }\n"
        .to_owned();
    for reference in ["acme", "beta"] {
        write!(
            config,
            "[[account]]\nref = \"{reference}\"\n[[account.server]]\nurl = \"{url}\"\n"
        )
        .unwrap();
        for device in (0..DEVICES).filter(|device| account(*device) == reference) {
            let address = match device < FIXED {
                true => format!("\"{}\"", Ipv4Addr::from(fixed(device))),
                false => String::new(),
            };
            write!(
                config,
                "[[account.device]]\nname = \"device-{device}\"\nserial = \"serial-{device}\"\n\
                 address = [{address}]\n"
            )
            .unwrap();
        }
    }
    config
}

/// Tells the others that it is over, also where a test fails.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks from the addresses that never change until told to stop; says how often.
fn ask_from_fixed(gateway: &Gateway, is_over: &AtomicBool) -> usize {
    let mut connections: Vec<Option<Device>> = (0..FIXED).map(|_| None).collect();
    let mut asked = 0;
    while !is_over.load(Ordering::Relaxed) {
        for device in 0..FIXED {
            let connection = &mut connections[device as usize];
            let answer = ask(connection, fixed(device), gateway);
            assert_eq!(answer, Some(stamped(device)));
            asked += 1;
        }
    }
    asked
}

#[test]
fn a_million_changes_of_leases_lead_to_no_wrong_identity() {
    let upstream = Upstream::start(name_the_sender);
    let gateway = Gateway::start(&configuration(&upstream.url()));
    let mut feed = Feed::connect(&gateway.path("feed.sock"));
    let (mut model, mut random) = (Model::default(), Random(SEED));
    let mut connections: Vec<Option<Device>> = (0..HOSTS).map(|_| None).collect();
    let (is_over, asked_meanwhile) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut done, mut known, mut unknown) = (0, 0, 0);
    thread::scope(|scope| {
        let told = Told(&is_over);
        let meanwhile = scope.spawn(|| ask_from_fixed(&gateway, &is_over));
        for _ in 0..CHANGES / BATCH {
            let mut lines = String::new();
            let expected: Vec<_> = (0..BATCH)
                .map(|_| change(&mut model, &mut random, &mut lines))
                .collect();
            feed.send(&lines);
            for (position, expected) in expected.iter().enumerate() {
                let reply = feed.receive().expect("a reply");
                let token = reply["error"].as_str().unwrap_or("ok");
                assert_eq!(token, *expected, "{position} of\n{lines}: {reply}");
                done += usize::from(token == "ok");
            }
            for _ in 0..REQUESTS {
                let number = random.below(HOSTS);
                let connection = &mut connections[number as usize];
                let answer = ask(connection, host(number), &gateway);
                let device = model.device(host(number));
                assert_eq!(answer, device.map(stamped), "{}", shown((host(number), 32)));
                match answer {
                    Some(_) => known += 1,
                    None => unknown += 1,
                }
            }
        }
        drop(told);
        asked_meanwhile.store(meanwhile.join().unwrap(), Ordering::Relaxed);
    });
    println!(
        "{CHANGES} changes, {done} of them done; {known} requests of known and {unknown} of unknown \
         devices after them, {} from addresses that never changed meanwhile; 0 wrong identities",
        asked_meanwhile.into_inner()
    );
    assert!(known > 2_000 && unknown > 500 && done > CHANGES / 4);
    gateway.stop();
}
