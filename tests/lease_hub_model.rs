//! A hub as OpenVPN is one, with networks within one another, hooks that get lost or come too late,
//! and reports that are old by the time they are read: whatever address a client can speak from, it
//! is taken for its own device's or for nobody's; and as long as it waits for a report, one is asked for.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use common::{claims, random::Random};
use ipnet::IpNet;
use m2u::{
    control::lease::{
        claim::{Offer, Place},
        seen::Seen,
        table::LeaseTable,
    },
    snapshot::scope::{Scope, Unknown},
};

const STEPS: usize = 200_000;
const SEED: u64 = 20_261_126;
const HUB: &str = "openvpn:north";
const DEVICES: [&str; 5] = ["press", "mill", "saw", "lathe", "drill"];
/// Addresses that clients are given: some lie in networks.
const OWN: [&str; 4] = ["10.65.4.7", "10.65.4.8", "10.200.0.7", "172.16.0.7"];
const NETWORKS: [&str; 6] = [
    "10.0.0.0/8",
    "10.64.0.0/10",
    "10.65.0.0/16",
    "10.65.4.0/24",
    "10.65.4.9/32",
    "10.66.0.0/16",
];
/// Where requests come from.
const PROBES: [&str; 10] = [
    "10.65.4.7",
    "10.65.4.8",
    "10.65.4.9",
    "10.65.4.1",
    "10.65.9.9",
    "10.64.1.1",
    "10.66.1.1",
    "10.1.1.1",
    "10.200.0.7",
    "172.16.0.7",
];

fn one_of(random: &mut Random, texts: &[&'static str]) -> &'static str {
    texts[random.below(texts.len())]
}

/// What becomes of a hook.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    Heard,
    /// It reaches nobody.
    Lost,
    /// The gateway has it, and the hub has given it up.
    GivenUp,
}

/// A device and its visit.
type Client = (usize, u64);

/// The hub: whom it lets speak from where.
#[derive(Default, Clone)]
struct Hub {
    clients: BTreeMap<usize, u64>,
    routes: BTreeMap<IpNet, Client>,
    /// Hosts that were heard, until any network comes or goes.
    cached: BTreeMap<IpAddr, Client>,
    epoch: u64,
}

impl Hub {
    /// Whose packets from `address` get through: cached, else by the longest prefix.
    fn owner(&self, address: IpAddr) -> Option<Client> {
        let routes = self.routes.iter();
        let around = routes.filter(|(network, _)| network.contains(&address));
        let longest = around.max_by_key(|(network, _)| network.prefix_len());
        let exact = longest.filter(|(network, _)| network.prefix_len() == 32);
        let cached = self.cached.get(&address);
        let owner = exact.map(|(_, owner)| owner).or(cached);
        owner.or(longest.map(|(_, owner)| owner)).copied()
    }

    /// What its status shows, read as `report.rs` does.
    fn seen(&self) -> Vec<(IpNet, Client)> {
        let mut seen: Vec<_> = self.routes.iter().map(|(n, c)| (*n, *c)).collect();
        for (host, client) in &self.cached {
            let uncached = Hub {
                cached: BTreeMap::new(),
                ..self.clone()
            };
            let is_strayed = uncached.owner(*host).is_some_and(|owner| owner != *client);
            if is_strayed {
                seen.push(((*host).into(), *client));
            }
        }
        seen
    }
}

struct World {
    random: Random,
    hub: Hub,
    table: LeaseTable,
    now: u64,
    visits: u64,
    /// A status that is being read: when it was written, and what it shows.
    report: Option<(u64, Vec<(IpNet, Client)>)>,
    /// Nothing is known of the hub until a report of that time or later.
    blind: Option<u64>,
}

fn session((device, visit): Client) -> String {
    format!("{}@{visit}", DEVICES[device])
}

fn place(network: IpNet) -> Place {
    Place {
        scope: Scope::NONE,
        network,
    }
}

fn offer<'a>(network: IpNet, client: Client, session: &'a str) -> Offer<'a> {
    Offer {
        place: place(network),
        account: "acme",
        device: DEVICES[client.0],
        session,
        expires: None,
        replace: true,
    }
}

/// That of a gateway that starts at `now`, and remembers nothing.
fn table_at(now: u64) -> LeaseTable {
    let mut table = LeaseTable::new(0);
    table.adopt(claims::acme(&DEVICES), Arc::default());
    table.advance(now);
    table.expect_reports(HUB).unwrap();
    table
}

impl World {
    fn new() -> Self {
        Self {
            random: Random(SEED),
            hub: Hub {
                epoch: 1,
                ..Hub::default()
            },
            table: table_at(1_000),
            now: 1_000,
            visits: 0,
            report: None,
            blind: Some(1_000),
        }
    }

    fn hook(&mut self) -> Hook {
        match self.random.below(10) {
            0 => Hook::Lost,
            // Of a hub of which nothing is known, no takeover can be told from any other arrival.
            1 if self.blind.is_none() => Hook::GivenUp,
            _ => Hook::Heard,
        }
    }

    fn step(&mut self) {
        self.now += self.random.below(3) as u64;
        self.table.advance(self.now);
        let device = self.random.below(DEVICES.len());
        match self.random.below(20) {
            0..7 => self.connect(device),
            7..11 => self.disconnect(device),
            11..13 => self.forget(),
            13..15 => self.speak(),
            15 if self.random.below(20) == 0 => self.restart(),
            15 if self.random.below(20) == 0 => self.crash(),
            _ => self.look(),
        }
    }

    /// A client comes, with an address and up to three networks; whoever has one before loses it.
    fn connect(&mut self, device: usize) {
        self.disconnect(device);
        self.visits += 1;
        let client = (device, self.visits);
        let own = one_of(&mut self.random, &OWN)
            .parse::<IpAddr>()
            .unwrap()
            .into();
        if !self.learn(own, client) {
            return;
        }
        self.hub.clients.insert(device, self.visits);
        for _ in 0..self.random.below(4) {
            let network = one_of(&mut self.random, &NETWORKS).parse().unwrap();
            self.hub.cached.clear();
            self.learn(network, client);
        }
    }

    /// Asks the hook for a client's address or network; tells whether the hub has it then.
    fn learn(&mut self, network: IpNet, client: Client) -> bool {
        let hook = self.hook();
        let session = session(client);
        let told = match hook {
            Hook::Lost => false,
            Hook::Heard | Hook::GivenUp => {
                let offer = offer(network, client, &session);
                let epoch = Some(self.hub.epoch);
                let before = self.known_epoch();
                let is_done = self.table.add(HUB, epoch, &offer).is_ok();
                if self.known_epoch() > before {
                    // Reports from before count for nothing, and what was known may be of another run.
                    let is_known = self.blind.is_none() && before > 0;
                    self.blind = (!is_known).then_some(self.now);
                }
                is_done
            }
        };
        let is_learnt = told && hook == Hook::Heard;
        if is_learnt {
            self.hub.routes.insert(network, client);
            self.hub.cached.remove(&network.addr());
        }
        is_learnt
    }

    fn disconnect(&mut self, device: usize) {
        let Some(visit) = self.hub.clients.remove(&device) else {
            return;
        };
        let client = (device, visit);
        self.hub.routes.retain(|_, owner| *owner != client);
        self.hub.cached.clear();
        if self.hook() != Hook::Lost {
            let epoch = Some(self.hub.epoch);
            // There may be nothing left of it.
            let _ = self.table.release_session(HUB, epoch, &session(client));
        }
    }

    /// The hub forgets a network while its client stays, and hosts in it are still cached.
    fn forget(&mut self) {
        let network: IpNet = one_of(&mut self.random, &NETWORKS).parse().unwrap();
        if self.hub.routes.remove(&network).is_some() && self.hook() != Hook::Lost {
            // Likewise.
            let _ = self.table.release(HUB, None, place(network), None);
        }
    }

    /// The hub hears a host, and caches whose it is.
    fn speak(&mut self) {
        let host = one_of(&mut self.random, &PROBES).parse().unwrap();
        if let Some(owner) = self.hub.owner(host) {
            self.hub.cached.insert(host, owner);
        }
    }

    fn restart(&mut self) {
        self.hub = Hub {
            epoch: self.hub.epoch + 1,
            ..Hub::default()
        };
    }

    /// The run of the hub that the gateway knows of; 0: none.
    fn known_epoch(&self) -> u64 {
        self.table.sources().next().unwrap().1
    }

    /// The gateway is killed, and starts without a journal; a status may have been written before.
    fn crash(&mut self) {
        self.table = table_at(self.now);
        self.blind = Some(self.now);
    }

    /// Begins to read the hub's status, or takes in what was read.
    fn look(&mut self) {
        let Some((as_of, seen)) = self.report.take() else {
            self.report = Some((self.now, self.hub.seen()));
            // What happens at the hub from now on happens later.
            self.now += 1;
            return;
        };
        let sessions: Vec<_> = seen.iter().map(|(_, client)| session(*client)).collect();
        let offers = seen.iter().zip(&sessions);
        let offers = offers.map(|((network, client), session)| offer(*network, *client, session));
        let offers: Vec<_> = offers.collect();
        let strangers = &[];
        let offers = &offers[..];
        let seen = Seen { offers, strangers };
        self.table.reconcile(HUB, as_of, &seen);
        self.blind = self.blind.filter(|begun| as_of < *begun);
    }

    /// Who is taken for whom, address by address: how many are served, and what is wrong.
    fn check(&mut self) -> (usize, Vec<String>) {
        self.table.commit();
        let identities = self.table.identities();
        let mut served = 0;
        let mut wrong = Vec::new();
        for probe in PROBES {
            let address = probe.parse().unwrap();
            let Some((device, _)) = self.hub.owner(address) else {
                continue;
            };
            match identities.resolve(Scope::NONE, address) {
                Ok(identity) => {
                    served += 1;
                    if identity.name != DEVICES[device] {
                        let device = DEVICES[device];
                        wrong.push(format!(
                            "{device} at {probe} is taken for {}",
                            identity.name
                        ));
                    }
                }
                Err(Unknown::Unconfirmed) if !self.table.is_in_doubt(HUB) => {
                    wrong.push(format!("{probe} waits for a report that nobody asks for"));
                }
                Err(_) => {}
            }
        }
        (served, wrong)
    }
}

#[test]
fn whoever_can_speak_from_an_address_is_taken_for_nobody_else() {
    let mut world = World::new();
    let mut served = 0;
    for step in 0..STEPS {
        world.step();
        let (more, wrong) = world.check();
        assert!(wrong.is_empty(), "step {step}: {wrong:?}");
        served += more;
        if step % 50 == 0 {
            // What was changed piece by piece is what would be built of it all.
            let before = world.table.identities();
            world.table.adopt(claims::acme(&DEVICES), Arc::default());
            let differences = before.differences(&world.table.identities());
            assert!(differences.is_empty(), "step {step}: {differences:?}");
        }
    }
    // Once the hub itself has shown all, nothing has to be remembered.
    for _ in 0..2 {
        world.now += 1;
        world.table.advance(world.now);
        world.look();
        world.look();
    }
    assert_eq!(world.table.ended(), 0);
    assert!(!world.table.is_in_doubt(HUB));
    println!("{STEPS} steps, {served} addresses served, none wrong");
    assert!(served > STEPS, "hardly anybody is served: {served}");
}
