//! Real OpenVPN servers and clients in network namespaces, with m2u behind them: whatever happens to
//! the VPN, a device speaks under its own name or not at all.
//!
//! Every device speaks all the time, and the origin looks at every request. The steps, with what was
//! expected and seen, go to standard error, shown whether the test passes or not. Where TUN is not
//! permitted the test fails, unless `M2U_TEST_WITHOUT_TUN=1` says that it shall be left out.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::HashMap,
    env,
    fmt::Display,
    fs,
    io::{self, Write},
    iter,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use common::{
    certificates::{Authority, Leaf},
    feed::Feed,
    gateway::{self, Gateway},
    namespace::Namespace,
    speaker::{Ledger, Speaker},
    upstream::Upstream,
    vpn::{self, HubOptions, OpenVpn},
    wait_until,
};
use serde_json::Value;
use tempfile::TempDir;

const CONNECTED: &str = "Initialization Sequence Completed";
const NORTH: &str = "10.8.0.1:80";
const SOUTH: &str = "10.9.0.1:80";
/// The address that `acme.b`, `acme.c` and, at the other hub, `beta.f` are given.
const SHARED: &str = "10.8.0.50";
/// A host behind `acme.a`, and behind `acme.c` once that is connected.
const LAN_HOST: &str = "192.168.7.5";
const WEST: &str = "10.10.0.1:80";
/// A host in the network behind `acme.i`, which is a part of the network behind `acme.o`.
const INNER_HOST: &str = "10.65.0.5";
/// A host in the network behind `acme.o`, and in no other.
const OUTER_HOST: &str = "10.66.0.5";

#[test]
fn a_device_speaks_under_its_own_name_or_not_at_all() {
    if let Err(fault) = Namespace::permitted() {
        if env::var("M2U_TEST_WITHOUT_TUN").is_ok_and(|value| value == "1") {
            tell(format_args!(
                "left out, as M2U_TEST_WITHOUT_TUN=1 says: {fault}"
            ));
            return;
        }
        panic!("{fault}; run as root with /dev/net/tun, or set M2U_TEST_WITHOUT_TUN=1");
    }
    let mut scene = Scene::new();
    let speakers = scene.speakers();
    connect(&mut scene);
    lan(&mut scene);
    several_hubs(&mut scene);
    killed_client(&mut scene);
    takeover(&mut scene);
    give_back(&mut scene);
    server_stop(&mut scene);
    server_kill(&mut scene);
    hook_failure(&mut scene);
    repair(&mut scene);
    late_news(&mut scene);
    spoof(&mut scene);
    nested(&mut scene);
    pushed(&scene);
    inner_leaves(&mut scene);
    inner_leaves_unheard(&mut scene);
    stale_route(&mut scene);
    drop(speakers);
    let (total, wrong) = (scene.ledger.total(), scene.ledger.wrong());
    tell(format_args!(
        "in all: {} requests arrived, {} were refused, {} came to nothing; {} under a wrong name",
        total.arrived,
        total.refused,
        total.lost,
        wrong.len()
    ));
    assert!(wrong.is_empty(), "{wrong:?}");
    drop(scene.hubs);
    scene.gateway.stop();
}

/// One line of the test's report, past the capture of output.
fn tell(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "openvpn: {line}");
}

fn connect(scene: &mut Scene) {
    scene.step("connect", "each device under its own name", |scene| {
        scene.start("acme.a");
        scene.start("acme.b");
        scene.arrive(&["acme.a", "acme.b"])
    });
}

fn lan(scene: &mut Scene) {
    scene.step("iroute", "a host behind acme.a speaks as acme.a", |scene| {
        scene.arrive(&["acme.a/lan"])
    });
}

fn several_hubs(scene: &mut Scene) {
    let expected = "beta.f at the other hub, under the address of acme.b, as beta.f";
    scene.step("several hubs", expected, |scene| {
        scene.start("beta.f");
        let seen = scene.arrive(&["beta.f", "acme.b"]);
        let mut holders = scene.holders(SHARED);
        holders.sort();
        assert_eq!(holders, ["acme.b in north", "beta.f in south"]);
        seen
    });
}

fn killed_client(scene: &mut Scene) {
    let expected = "acme.a and the host behind it under its name again";
    scene.step("kill -9 and reconnect", expected, |scene| {
        scene.end("acme.a", "KILL");
        scene.start("acme.a");
        scene.arrive(&["acme.a", "acme.a/lan"])
    });
}

fn takeover(scene: &mut Scene) {
    let expected = "acme.c under its own name once the hub says so; acme.b and the host behind \
                    acme.a not at all";
    scene.step("address and network taken over", expected, |scene| {
        scene.start("acme.c");
        let seen = scene.arrive(&["acme.c", "acme.c/lan"]);
        let before = ["acme.b", "acme.a/lan"].map(|who| scene.ledger.tally(who));
        scene.ledger.wait_for_loss("acme.b");
        scene.ledger.wait_for_loss("acme.a/lan");
        scene.arrive(&["acme.c", "acme.c/lan", "acme.a"]);
        let after = ["acme.b", "acme.a/lan"].map(|who| scene.ledger.tally(who));
        assert_eq!(
            after.map(|tally| tally.arrived),
            before.map(|tally| tally.arrived)
        );
        format!("{seen}; nothing of acme.b and acme.a/lan")
    });
}

fn give_back(scene: &mut Scene) {
    let expected = "acme.b and the host behind acme.a under their names again, acme.c not at all";
    scene.step("taken back by a reconnect", expected, |scene| {
        scene.end("acme.c", "KILL");
        for who in ["acme.b", "acme.a"] {
            scene.end(who, "KILL");
            scene.start(who);
        }
        scene.arrive(&["acme.b", "acme.a", "acme.a/lan"])
    });
}

fn server_stop(scene: &mut Scene) {
    let expected = "no lease is left; then every device under its own name again";
    scene.step("server stopped and started", expected, |scene| {
        scene.end_hub("north", "TERM");
        wait_until("the leases to end", || {
            scene.leases("openvpn:north").is_empty()
        });
        scene.start_hub("north");
        let seen = scene.arrive(&["acme.a", "acme.b", "acme.a/lan"]);
        format!("no lease was left; {seen}")
    });
}

fn server_kill(scene: &mut Scene) {
    let expected = "acme.d, under what was acme.a's address, as acme.d; then acme.a as acme.a";
    scene.step("server killed, addresses swapped", expected, |scene| {
        let address = scene.address("acme.a");
        scene.end("acme.a", "KILL");
        scene.end_hub("north", "KILL");
        assert_eq!(
            scene.holders(&address),
            ["acme.a in north"],
            "nobody said so yet"
        );
        scene.start_hub("north");
        scene.start("acme.d");
        let seen = scene.arrive(&["acme.d"]);
        assert_eq!(scene.holders(&address), ["acme.d in north"]);
        scene.start("acme.a");
        let then = scene.arrive(&["acme.a", "acme.b"]);
        format!("{seen} under {address}, then {then}")
    });
}

fn hook_failure(scene: &mut Scene) {
    let expected = "acme.b turned away; acme.d goes on speaking";
    scene.step("feed unreachable", expected, |scene| {
        scene.hide_feed();
        scene.end("acme.b", "KILL");
        scene.begin("acme.b");
        let client = scene.client("acme.b");
        client.wait_for_log("AUTH_FAILED");
        let before = scene.ledger.tally("acme.b");
        let seen = scene.arrive(&["acme.d"]);
        scene.ledger.wait_for_loss("acme.b");
        assert_eq!(scene.ledger.tally("acme.b").arrived, before.arrived);
        format!("acme.b turned away; {seen}")
    });
    let expected = "beta.g, admitted by a hub that shall, refused until the report, then as beta.g";
    scene.step("repaired by the next report", expected, |scene| {
        scene.start("beta.g");
        let seen = scene.arrive(&["beta.g"]);
        let refused = scene.ledger.tally("beta.g").refused;
        // Its hook could not say so, either.
        scene.end("beta.g", "TERM");
        wait_until("the lease to end", || scene.holders("10.8.0.60").is_empty());
        format!("{refused} refused, then {seen}; its lease ended with it")
    });
}

/// A takeover that m2u hears of too late: the hub has turned the client away by then.
fn late_news(scene: &mut Scene) {
    let expected =
        "acme.c turned away; acme.b, whose address it would have had, as acme.b after it";
    scene.step("gateway stands still", expected, |scene| {
        scene.gateway.signal("STOP");
        scene.begin("acme.c");
        scene.client("acme.c").wait_for_log("AUTH_FAILED");
        scene.end("acme.c", "KILL");
        scene.gateway.signal("CONT");
        let seen = scene.arrive(&["acme.b", "acme.a"]);
        for who in ["acme.a", "acme.b", "acme.d"] {
            let log = scene.client(who).log();
            assert!(
                !log.contains("Inactivity timeout"),
                "the hub stood still:\n{log}"
            );
        }
        format!("acme.c turned away; {seen}")
    });
}

fn repair(scene: &mut Scene) {
    scene.step(
        "feed reachable again",
        "acme.b gets in by itself",
        |scene| {
            scene.show_feed();
            scene.arrive(&["acme.b"])
        },
    );
}

fn spoof(scene: &mut Scene) {
    let expected = "what acme.a sends under the address of acme.b is dropped by the hub";
    scene.step("spoofed source address", expected, |scene| {
        let device = &scene.devices["acme.a"].namespace;
        device.ip(&["address", "add", &format!("{SHARED}/32"), "dev", "lo"]);
        let (ledger, spoof) = (&scene.ledger, "acme.a/spoof");
        let speaker = Speaker::start(device, spoof, Some(SHARED), NORTH, ledger);
        ledger.wait_for_loss(spoof);
        scene.hubs["north"].wait_for_log(&format!("bad source address from client [{SHARED}]"));
        let seen = scene.arrive(&["acme.b", "acme.a"]);
        drop(speaker);
        let tally = scene.ledger.tally(spoof);
        assert_eq!((tally.arrived, tally.refused), (0, 0));
        format!("{} attempts, none arrived; {seen}", tally.lost)
    });
}

/// A network within another, of two devices: whoever speaks there may be either.
fn nested(scene: &mut Scene) {
    let expected = "acme.o where its network is its own; neither where they overlap";
    scene.step("a network within another's", expected, |scene| {
        scene.start("acme.o");
        let alone = scene.arrive(&["acme.o", "acme.o/outer", "acme.o/inner"]);
        scene.start("acme.i");
        let seen = scene.arrive(&["acme.i", "acme.o", "acme.o/outer"]);
        let before = scene.ledger.tally("acme.i/inner");
        scene.ledger.wait_for_refusal("acme.i/inner");
        scene.ledger.wait_for_loss("acme.o/inner");
        assert_eq!(scene.ledger.tally("acme.i/inner").arrived, before.arrived);
        format!("before: {alone}; then {seen}; {}", scene.nested_routes())
    });
}

/// What `m2u dns snippet --format openvpn` prints is a part of that hub's configuration.
fn pushed(scene: &Scene) {
    let client = scene.client("acme.o");
    let log = client.log();
    let reply = log.lines().find(|line| line.contains("'PUSH_REPLY,"));
    for option in ["DNS 10.10.0.1", "DOMAIN talk2m.com"] {
        let option = format!("dhcp-option {option},");
        assert!(reply.unwrap().contains(&option), "{log}");
    }
    assert!(log.contains("dhcp-option options modified"), "{log}");
    let words = reply
        .unwrap()
        .split(',')
        .filter(|word| word.starts_with("dhcp-option"));
    let words = words.collect::<Vec<_>>().join(", ");
    tell(format_args!(
        "the snippet for OpenVPN | a client is told: {words}"
    ));
}

fn inner_leaves(scene: &mut Scene) {
    let expected = "the inner network is acme.o's at once in the hub, and in m2u with its report";
    scene.step("the inner one leaves", expected, |scene| {
        scene.end("acme.i", "KILL");
        let seen = scene.arrive(&["acme.o/inner", "acme.o/outer"]);
        format!("{seen}; {}", scene.nested_routes())
    });
}

fn inner_leaves_unheard(scene: &mut Scene) {
    let expected = "the same, with a hook that m2u does not hear";
    scene.step("the inner one leaves unheard", expected, |scene| {
        scene.start("acme.i");
        scene.arrive(&["acme.i", "acme.o/outer"]);
        scene.hide_feed();
        scene.end("acme.i", "KILL");
        let seen = scene.arrive(&["acme.o/inner", "acme.o/outer"]);
        scene.show_feed();
        format!("{seen}; {}", scene.nested_routes())
    });
}

/// A hub that forgets a network, and leaves the hosts in it to whom they have been.
fn stale_route(scene: &mut Scene) {
    let expected = "acme.i, which goes on speaking in what is acme.o's then, never as acme.o";
    scene.step("cached host of a network forgotten", expected, |scene| {
        for who in ["acme.o", "acme.i"] {
            if scene.devices[who].client.is_some() {
                scene.end(who, "KILL");
            }
        }
        scene.end_hub("west", "TERM");
        scene.west_options = "stale-routes-check 10 1\n";
        scene.start_hub("west");
        scene.start("acme.i");
        scene.arrive(&["acme.i/inner"]);
        // So that the hub forgets the inner network first.
        wait_until("the inner network to age", || scene.inner_age() >= 6);
        scene.start("acme.o");
        scene.arrive(&["acme.o/outer"]);
        wait_until("the inner network to be forgotten", || {
            scene.holders("10.65.0.0/16").is_empty()
        });
        scene.ledger.wait_for_refusal("acme.i/inner");
        // A slow machine may not see it before the outer network is forgotten as well.
        wait_until("the hub's report", || {
            let is_over = scene.holders("10.64.0.0/10").is_empty();
            is_over || scene.holders(INNER_HOST) == ["acme.i in west"]
        });
        let routes = scene.nested_routes();
        scene.ledger.wait_for_refusal("acme.i/inner");
        routes
    });
}

/// Hubs and m2u in one namespace, and a namespace for each device.
struct Scene {
    // Dropped in this order: what runs in a namespace ends before it goes.
    hubs: HashMap<&'static str, OpenVpn>,
    devices: HashMap<&'static str, Device>,
    gateway: Gateway,
    _origin: Upstream,
    ledger: Arc<Ledger>,
    feed: PathBuf,
    folder: TempDir,
    authority: Authority,
    server: Leaf,
    hub: Namespace,
    /// What the hub `west` has beside [`WEST_OPTIONS`].
    west_options: &'static str,
    begun: Instant,
    steps: usize,
}

/// An eWON with its certificate.
struct Device {
    client: Option<OpenVpn>,
    config: String,
    namespace: Namespace,
}

/// Every device, its hub, and the options that the hub has for it.
const DEVICES: [(&str, &str, &str); 8] = [
    ("acme.a", "north", "iroute 192.168.7.0 255.255.255.0"),
    ("acme.b", "north", "ifconfig-push 10.8.0.50 255.255.255.0"),
    (
        "acme.c",
        "north",
        "ifconfig-push 10.8.0.50 255.255.255.0\niroute 192.168.7.0 255.255.255.0",
    ),
    ("acme.d", "north", ""),
    ("beta.f", "south", "ifconfig-push 10.8.0.50 255.255.255.0"),
    ("beta.g", "south", "ifconfig-push 10.8.0.60 255.255.255.0"),
    ("acme.o", "west", "iroute 10.64.0.0 255.192.0.0"),
    ("acme.i", "west", "iroute 10.65.0.0 255.255.0.0"),
];

/// An ordinary hub, with the status file.
const NORTH_OPTIONS: &str = "server 10.8.0.0 255.255.255.0\nroute 192.168.7.0 255.255.255.0\n";
/// A hub whose clients have addresses that those of the other have as well; with its management
/// interface, and with hooks that admit whom m2u did not hear of.
const SOUTH_OPTIONS: &str = "mode server\ntls-server\nifconfig 10.9.0.1 255.255.255.0\n\
    push \"topology subnet\"\npush \"route-gateway 10.8.0.1\"\n\
    push \"route 10.9.0.1 255.255.255.255\"\nsetenv M2U_ON_FAILURE admit\n";
/// A hub that has a network within another.
const WEST_OPTIONS: &str = "server 10.10.0.0 255.255.255.0\nroute 10.64.0.0 255.192.0.0\n";

/// Hosts behind devices: whose, how each is called, and its address.
const HOSTS: [(&str, &str, &str); 5] = [
    ("acme.a", "acme.a/lan", LAN_HOST),
    ("acme.c", "acme.c/lan", LAN_HOST),
    ("acme.o", "acme.o/outer", OUTER_HOST),
    ("acme.o", "acme.o/inner", INNER_HOST),
    ("acme.i", "acme.i/inner", INNER_HOST),
];

impl Scene {
    /// The hubs and m2u at work, and nobody connected.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hub = Namespace::new("hub");
        let authority = Authority::new("hubs and devices");
        let server = authority.vpn_server("hub");
        let mut devices = HashMap::new();
        fs::create_dir(folder.path().join("clients")).unwrap();
        for (number, (who, at, options)) in (1..).zip(DEVICES) {
            let name = &who[who.len() - 1..];
            let namespace = Namespace::new(name);
            namespace.connect(&hub, name, number);
            let port = port(at);
            let remote = format!("172.31.{number}.1");
            let config = vpn::client(&authority, &authority.client(who), &remote, port);
            fs::write(folder.path().join("clients").join(who), options).unwrap();
            devices.insert(
                who,
                Device {
                    client: None,
                    config,
                    namespace,
                },
            );
        }
        for (who, _, host) in HOSTS {
            let host = format!("{host}/32");
            devices[who]
                .namespace
                .ip(&["address", "add", &host, "dev", "lo"]);
        }
        let ledger = Arc::new(Ledger::default());
        let origin = ledger.origin(&hub);
        let feed = folder.path().join("feed.sock");
        let start = |name| start_hub(name, "", &hub, &folder, &authority, &server, &feed);
        let hubs = HashMap::from(["north", "south", "west"].map(|name| (name, start(name))));
        // What the gateway says as 10.9.0.1 goes to the other hub's clients.
        hub.ip(&[
            "route",
            "add",
            "10.8.0.0/24",
            "dev",
            "tun-south",
            "table",
            "9",
        ]);
        hub.ip(&["rule", "add", "from", "10.9.0.1", "table", "9"]);
        let gateway = Gateway::start_inside(&hub, &configuration(&folder, &origin));
        Self {
            hubs,
            devices,
            gateway,
            _origin: origin,
            ledger,
            feed,
            folder,
            authority,
            server,
            hub,
            west_options: "",
            begun: Instant::now(),
            steps: 0,
        }
    }

    /// Every device and the hosts behind, speaking.
    fn speakers(&self) -> Vec<Speaker> {
        let ledger = &self.ledger;
        let start = |who: &str, source: Option<&str>| {
            let device = who.split('/').next().unwrap();
            let (_, hub, _) = DEVICES.iter().find(|(who, ..)| *who == device).unwrap();
            let at = match *hub {
                "north" => NORTH,
                "south" => SOUTH,
                _ => WEST,
            };
            Speaker::start(&self.devices[device].namespace, who, source, at, ledger)
        };
        let hosts = HOSTS.map(|(_, who, host)| start(who, Some(host)));
        let devices = DEVICES.map(|(who, ..)| start(who, None));
        devices.into_iter().chain(hosts).collect()
    }

    /// Does a step and tells of it: what was expected, and what was seen.
    fn step(&mut self, name: &str, expected: &str, work: impl FnOnce(&mut Self) -> String) {
        self.steps += 1;
        let seen = work(self);
        let wrong = self.ledger.wrong();
        let (number, at) = (self.steps, self.begun.elapsed().as_secs_f32());
        tell(format_args!(
            "step {number} at {at:.1} s: {name} | expected: {expected} | seen: {seen}, {} under a \
             wrong name",
            wrong.len()
        ));
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    /// Waits until requests of each arrive; says how many have by then.
    fn arrive(&self, whose: &[&str]) -> String {
        let begun = Instant::now();
        for who in whose {
            self.ledger.wait_for_arrival(who);
        }
        let after = begun.elapsed().as_secs_f32();
        format!("{} after {after:.1} s", whose.join(", "))
    }

    /// Connects a device, and waits until it is; one that has been turned away tries again.
    fn start(&mut self, who: &str) {
        self.begin(who);
        self.client(who).wait_for_log(CONNECTED);
    }

    /// Connects a device, without waiting.
    fn begin(&mut self, who: &str) {
        let device = self.devices.get_mut(who).unwrap();
        let (namespace, folder) = (&device.namespace, self.folder.path());
        device.client = Some(OpenVpn::begin(namespace, folder, &device.config));
    }

    fn client(&self, who: &str) -> &OpenVpn {
        self.devices[who].client.as_ref().unwrap()
    }

    /// Ends a device's connection by a signal.
    fn end(&mut self, who: &str, signal: &str) {
        let client = &mut self.devices.get_mut(who).unwrap().client;
        client.take().unwrap().end_by(signal);
    }

    fn start_hub(&mut self, name: &'static str) {
        let Self {
            hub,
            folder,
            authority,
            server,
            feed,
            west_options,
            ..
        } = &*self;
        let started = start_hub(name, west_options, hub, folder, authority, server, feed);
        self.hubs.insert(name, started);
    }

    fn end_hub(&mut self, name: &str, signal: &str) {
        self.hubs.remove(name).unwrap().end_by(signal);
    }

    /// Puts the feed's socket where no hook finds it.
    fn hide_feed(&mut self) {
        let hidden = self.feed.with_extension("hidden");
        fs::rename(&self.feed, &hidden).unwrap();
        self.feed = hidden;
    }

    /// Puts it back.
    fn show_feed(&mut self) {
        let shown = self.feed.with_extension("sock");
        fs::rename(&self.feed, &shown).unwrap();
        self.feed = shown;
    }

    /// Leases that m2u lists for this question: `"address":"…"` or `"source":"…"`.
    fn list(&self, question: &str) -> Vec<Value> {
        let mut feed = Feed::connect(&self.feed);
        feed.send(format!("{{\"op\":\"list\",{question}}}\n"));
        let lines = iter::from_fn(|| feed.receive());
        let leases = lines.take_while(|line| line["ok"].is_null());
        leases.map(|line| line["lease"].clone()).collect()
    }

    /// All leases of a source.
    fn leases(&self, source: &str) -> Vec<Value> {
        self.list(&format!("\"source\":\"{source}\""))
    }

    /// Whose this very address is, and in which scope.
    fn holders(&self, address: &str) -> Vec<String> {
        let leases = self.list(&format!("\"address\":\"{address}\""));
        let own = leases.iter().filter(|lease| lease["address"] == address);
        let text = |lease: &Value, key: &str| lease[key].as_str().unwrap().to_owned();
        own.map(|lease| {
            let (account, device) = (text(lease, "account"), text(lease, "device"));
            format!("{account}.{device} in {}", text(lease, "scope"))
        })
        .collect()
    }

    /// What the hub `west` says of the networks within one another.
    fn nested_routes(&self) -> String {
        let status = fs::read_to_string(self.folder.path().join("west.status")).unwrap();
        let routes = status.lines().filter_map(|line| {
            let mut values = line.strip_prefix("ROUTING_TABLE\t")?.split('\t');
            let (network, who) = (values.next()?, values.next()?);
            network
                .starts_with("10.6")
                .then(|| format!("{network} {who}"))
        });
        let mut routes: Vec<_> = routes.collect();
        routes.sort();
        format!("the hub has {}", routes.join(", "))
    }

    /// For how many seconds the hub `west` has had the inner network, as of its status.
    fn inner_age(&self) -> u64 {
        let status = fs::read_to_string(self.folder.path().join("west.status")).unwrap();
        let seconds = |begin: &str| -> Option<u64> {
            let line = status.lines().find(|line| line.starts_with(begin))?;
            line.rsplit('\t').next()?.parse().ok()
        };
        let learnt = seconds("ROUTING_TABLE\t10.65.0.0/16\t");
        let age = learnt.and_then(|learnt| seconds("TIME\t")?.checked_sub(learnt));
        age.unwrap_or_default()
    }

    /// The address that a device of the hub `north` was given.
    fn address(&self, who: &str) -> String {
        let leases = self.leases("openvpn:north");
        let own = leases.iter().find(|lease| {
            let address = lease["address"].as_str().unwrap();
            let (account, device) = who.split_once('.').unwrap();
            lease["account"] == account && lease["device"] == device && !address.contains('/')
        });
        own.unwrap()["address"].as_str().unwrap().to_owned()
    }
}

/// Where a hub listens.
fn port(hub: &str) -> u16 {
    match hub {
        "north" => 1194,
        "south" => 1195,
        _ => 1196,
    }
}

fn start_hub(
    name: &'static str,
    west_options: &str,
    hub: &Namespace,
    folder: &TempDir,
    authority: &Authority,
    leaf: &Leaf,
    feed: &Path,
) -> OpenVpn {
    let path = |name: String| folder.path().join(name).display().to_string();
    let status = path(format!("{name}.status"));
    let more = match name {
        "north" => format!("{NORTH_OPTIONS}status {status} 1\n"),
        "south" => {
            let management = path("south.management".to_owned());
            format!("{SOUTH_OPTIONS}management {management} unix\n")
        }
        _ => format!(
            "{WEST_OPTIONS}{west_options}status {status} 1\n{}",
            snippet()
        ),
    };
    let config = vpn::hub(&HubOptions {
        name,
        port: port(name),
        authority,
        leaf,
        clients: &folder.path().join("clients"),
        feed,
        more: &more,
    });
    OpenVpn::start(hub, folder.path(), &config, CONNECTED)
}

/// What m2u prints for a hub, so that devices ask at its address.
fn snippet() -> String {
    let server = gateway::server("m2u", "http://192.0.2.1");
    let account = gateway::account("acme", &server, &[]);
    let printed = gateway::run_to_end(
        &format!("{}{account}", gateway::PREAMBLE),
        &[
            "dns",
            "snippet",
            "--format",
            "openvpn",
            "--server",
            "10.10.0.1",
        ],
    );
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

/// m2u's: a listener for each hub; devices without addresses.
fn configuration(folder: &TempDir, origin: &Upstream) -> String {
    let list = "common_name,account,device\nbeta.f,beta,f\nbeta.g,beta,g\n";
    fs::write(folder.path().join("south.csv"), list).unwrap();
    let folder = folder.path().display();
    let mut text = format!(
        "listen = [{{ address = \"{NORTH}\", scope = \"north\" }}, \
         {{ address = \"{SOUTH}\", scope = \"south\" }}, \
         {{ address = \"{WEST}\", scope = \"west\" }}]\n\
         [leases]\nsocket = \"{folder}/feed.sock\"\n\
         [upstream]\nallow_networks = [\"127.0.0.0/8\"]\n\
         [[openvpn]]\nhub = \"north\"\nscope = \"north\"\nstatus = \"{folder}/north.status\"\n\
         poll = \"1s\"\npattern = \"{{account}}.{{device}}\"\n\
         [[openvpn]]\nhub = \"west\"\nscope = \"west\"\nstatus = \"{folder}/west.status\"\n\
         poll = \"1s\"\npattern = \"{{account}}.{{device}}\"\n\
         [[openvpn]]\nhub = \"south\"\nscope = \"south\"\n\
         management = \"{folder}/south.management\"\npoll = \"1s\"\ncsv = \"{folder}/south.csv\"\n"
    );
    let server = gateway::server("m2u", &origin.url());
    for account in ["acme", "beta"] {
        text.push_str(&format!("[[account]]\nref = \"{account}\"\n{server}"));
        for (who, ..) in DEVICES {
            if let Some((_, name)) = who.split_once('.').filter(|(a, _)| *a == account) {
                text.push_str(&format!(
                    "[[account.device]]\nname = \"{name}\"\nserial = \"{name}-serial\"\n"
                ));
            }
        }
    }
    text
}
