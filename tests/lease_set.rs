//! A large set that comes in by turns, on the table alone: others change leases in between, and nobody
//! ever sees a state that no order of whole changes would lead to.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use common::{claims, random::Random};
use ipnet::IpNet;
use m2u::{
    control::lease::{
        claim::{Offer, Place, Refused},
        table::LeaseTable,
    },
    limits,
    snapshot::scope::Scope,
};

const DEVICES: usize = 4;
const HOSTS: usize = 24;
const SOURCES: [&str; 3] = ["fleet", "hub", "manual"];
const ROUNDS: u64 = 20_000;

/// More than anybody needs here.
const ROOM: usize = limits::LEASES_MAX;

fn table() -> LeaseTable {
    table_for(ROOM)
}

fn table_for(leases: usize) -> LeaseTable {
    let names = (0..DEVICES).map(|number| number.to_string());
    let names: Vec<String> = names.collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut table = LeaseTable::with_room_for(leases, 0);
    table.adopt(claims::acme(&names), Arc::default());
    table.advance(1_000);
    table
}

fn address(host: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host as u8).into()
}

fn place(host: usize) -> Place {
    Place {
        scope: Scope::NONE,
        network: IpNet::from(address(host)),
    }
}

fn offer(host: usize, device: &str) -> Offer<'_> {
    Offer {
        place: place(host),
        account: "acme",
        device,
        session: "",
        expires: None,
        replace: false,
    }
}

/// Who says what of each host.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model(BTreeMap<(usize, &'static str), usize>);

impl Model {
    /// How much room is taken of a table with so many leases: a set on its way, which counts here, has
    /// what it is going to need.
    fn taken(&self, leases: usize) -> usize {
        self.0.len().max(leases)
    }

    fn has_room_for_set(&self, source: &str, set: &BTreeMap<usize, usize>, room: usize) -> bool {
        let others = self.0.keys().filter(|(_, of)| *of != source);
        others.count() + set.len() <= room
    }

    fn allows(&self, source: &str, host: usize, device: usize, replace: bool) -> bool {
        SOURCES.iter().all(|other| {
            let holder = self.0.get(&(host, other));
            holder.is_none_or(|holder| *holder == device || (replace && *other == source))
        })
    }

    fn allows_set(&self, source: &str, set: &BTreeMap<usize, usize>) -> bool {
        set.iter()
            .all(|(host, device)| self.allows(source, *host, *device, true))
    }

    fn put(&mut self, source: &'static str, set: &BTreeMap<usize, usize>) {
        self.0.retain(|(_, of), _| *of != source);
        let set = set.iter();
        self.0
            .extend(set.map(|(host, device)| ((*host, source), *device)));
    }

    fn device(&self, host: usize) -> Option<usize> {
        SOURCES
            .iter()
            .find_map(|source| self.0.get(&(host, source)).copied())
    }
}

fn any_set(random: &mut Random) -> BTreeMap<usize, usize> {
    let count = random.below(HOSTS);
    let hosts = (0..count).map(|_| (random.below(HOSTS), random.below(DEVICES)));
    hosts.collect()
}

/// One change by anybody, in the table and in the model; answers the hosts that it was about.
fn change(
    table: &mut LeaseTable,
    model: &mut Model,
    random: &mut Random,
    room: usize,
) -> Vec<usize> {
    let source = SOURCES[random.below(SOURCES.len())];
    let (host, device) = (random.below(HOSTS), random.below(DEVICES));
    if random.below(12) == 0 {
        // All that a source has is of one session. Of a set on its way the cores see nothing yet.
        let released = table.release_session(source, None, "");
        if source == "fleet" && table.is_taking() {
            assert_eq!(released.unwrap_err().token(), "source");
            return Vec::new();
        }
        let is_own = |(_, owner): &(usize, &str)| *owner == source;
        let own: Vec<_> = model.0.keys().filter(|key| is_own(key)).copied().collect();
        model.0.retain(|key, _| !is_own(key));
        assert_eq!(released.is_ok(), !own.is_empty());
        return own.into_iter().map(|(host, _)| host).collect();
    }
    if random.below(3) == 0 {
        let released = table.release(source, None, place(host), None);
        assert_eq!(released.is_ok(), model.0.remove(&(host, source)).is_some());
        return vec![host];
    }
    let replace = random.below(2) == 0;
    let name = device.to_string();
    let wanted = Offer {
        replace,
        ..offer(host, &name)
    };
    let added = table.add(source, None, &wanted);
    let is_new = !model.0.contains_key(&(host, source));
    // What the set says of the host has gone ahead.
    let before = table.len() - usize::from(is_new && added.is_ok());
    let has_room = !is_new || model.taken(before) < room;
    let is_allowed = model.allows(source, host, device, replace) && has_room;
    assert_eq!(added.is_ok(), is_allowed, "{source} {host} {device}");
    if is_allowed {
        model.0.insert((host, source), device);
    }
    vec![host]
}

/// What is published of each host.
fn seen(table: &LeaseTable) -> Vec<Option<usize>> {
    let identities = table.identities();
    let seen = (0..HOSTS).map(|host| {
        let found = identities.resolve(Scope::NONE, address(host)).ok()?;
        found.name.parse().ok()
    });
    seen.collect()
}

fn modelled(model: &Model) -> Vec<Option<usize>> {
    (0..HOSTS).map(|host| model.device(host)).collect()
}

/// Takes a set in by turns of the smallest size, with changes in between.
fn take_by_turns(
    table: &mut LeaseTable,
    model: &mut Model,
    random: &mut Random,
    room: usize,
) -> bool {
    let (source, set) = ("fleet", any_set(random));
    let mut meanwhile = |table: &mut LeaseTable, model: &mut Model| {
        let count = random.below(3);
        let hosts = (0..count).flat_map(|_| change(table, model, random, room));
        let hosts: Vec<usize> = hosts.collect();
        table.commit();
        hosts
    };
    table.begin_set(source, None).unwrap();
    for (position, (host, device)) in set.iter().enumerate() {
        meanwhile(table, model);
        let is_allowed = model.allows(source, *host, *device, true);
        let added = table.add_to_set(&offer(*host, &device.to_string()), position);
        assert_eq!(added.is_ok(), is_allowed);
        if !is_allowed {
            table.drop_set();
            assert_eq!(seen(table), modelled(model));
            return false;
        }
    }
    meanwhile(table, model);
    let closed = table.close_set();
    let is_allowed = model.allows_set(source, &set) && model.has_room_for_set(source, &set, room);
    assert_eq!(closed.is_ok(), is_allowed, "{closed:?}");
    if closed.is_err() {
        table.drop_set();
        assert_eq!(seen(table), modelled(model));
        return false;
    }
    // From here on the set counts, and is not seen.
    let before = modelled(model);
    model.put(source, &set);
    let mut ahead = BTreeSet::new();
    let mut is_whole = false;
    while !is_whole {
        ahead.extend(meanwhile(table, model));
        for (host, device) in seen(table).into_iter().enumerate() {
            // Whoever says something of a host sees what the set says of it.
            let expected = match ahead.contains(&host) {
                true => model.device(host),
                false => before[host],
            };
            assert_eq!(device, expected, "host {host}, ahead: {ahead:?}");
        }
        is_whole = table.take_set(1);
        table.hold();
        // What goes ahead may come before what is to end.
        assert!(table.len() <= room.saturating_add(ahead.len()));
    }
    let commit = table.finish_set().unwrap();
    for (host, was) in before.iter().enumerate() {
        let is_told = commit.moved.contains(&(Scope::NONE, place(host).network));
        let has_moved = *was != model.device(host);
        assert!(!has_moved || is_told || ahead.contains(&host), "{host}");
    }
    true
}

#[test]
fn a_set_by_turns_is_one_change_among_others() {
    take_sets(ROOM);
}

#[test]
fn a_set_on_its_way_has_the_room_that_it_needs_and_no_more() {
    take_sets(16);
}

/// Takes many sets in, in a table that has room for so many leases.
fn take_sets(room: usize) {
    let mut random = Random(20_261_126);
    let (mut table, mut model) = (table_for(room), Model::default());
    let (mut taken, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        for _ in 0..random.below(4) {
            change(&mut table, &mut model, &mut random, room);
            table.commit();
        }
        if round % 16 == 0 {
            // Room for sets that are not refused.
            for source in ["hub", "manual"] {
                table.sync(source, None, &[]).unwrap();
                model.put(source, &BTreeMap::new());
            }
            table.commit();
        }
        match take_by_turns(&mut table, &mut model, &mut random, room) {
            true => taken += 1,
            false => refused += 1,
        }
        assert_eq!(seen(&table), modelled(&model), "round {round}");
        assert_eq!(table.len(), model.0.len());
        assert!(table.len() <= room);
    }
    println!("{taken} sets taken in, {refused} refused");
    assert!(taken > ROUNDS / 10 && refused > ROUNDS / 10);
}

#[test]
fn a_set_says_nothing_twice_nor_of_an_earlier_run() {
    let mut table = table();
    table.add("fleet", Some(5), &offer(1, "0")).unwrap();
    let old = table.begin_set("fleet", Some(4));
    assert_eq!(old, Err(Refused::OutOfOrder { newest: 5 }));
    table.begin_set("fleet", None).unwrap();
    table.add_to_set(&offer(2, "0"), 0).unwrap();
    let again = table.add_to_set(&offer(2, "0"), 1);
    assert_eq!(again, Err(Refused::Repeated(place(2).network)));
    // A new run that begins meanwhile has overtaken it.
    table.drop_set();
    table.begin_set("fleet", Some(5)).unwrap();
    table.add_to_set(&offer(2, "0"), 0).unwrap();
    table.add("fleet", Some(6), &offer(3, "1")).unwrap();
    let closed = table.close_set();
    assert_eq!(closed, Err((None, Refused::OutOfOrder { newest: 6 })));
    table.drop_set();
}

#[test]
fn a_new_run_ends_the_set_of_an_earlier_one_at_once() {
    let mut table = table();
    for host in [1, 5, 9] {
        table.add("fleet", Some(6), &offer(host, "1")).unwrap();
    }
    table.add("hub", None, &offer(7, "1")).unwrap();
    table.commit();
    table.begin_set("fleet", Some(6)).unwrap();
    for (position, host) in [2, 4, 5, 6].into_iter().enumerate() {
        let added = table.add_to_set(&offer(host, "0"), position);
        added.unwrap();
    }
    assert_eq!(table.close_set(), Ok(true));
    // The first one has ended, the second is another's, the third ends behind them: nobody sees it.
    table.take_set(2);
    table.hold();
    assert_eq!(
        seen(&table)[..6],
        [None, Some(1), None, None, None, Some(1)]
    );
    assert!(table.is_taking() && table.overtaken().is_none());
    let late = table.add("fleet", Some(5), &offer(3, "1"));
    assert_eq!(late, Err(Refused::OutOfOrder { newest: 6 }));
    assert!(table.is_taking(), "a late word is none of a new run");
    table.add("fleet", Some(7), &offer(3, "1")).unwrap();
    let commit = table.commit().unwrap();
    let known = |table: &LeaseTable| -> Vec<usize> {
        let seen = seen(table).into_iter().enumerate();
        seen.filter_map(|(host, device)| device.map(|_| host))
            .collect()
    };
    assert_eq!(known(&table), [3, 7]);
    for host in [1, 3, 5, 9] {
        let network = place(host).network;
        assert!(commit.moved.contains(&(Scope::NONE, network)), "{host}");
    }
    assert!(!table.is_taking());
    assert_eq!(table.overtaken(), Some(Refused::OutOfOrder { newest: 7 }));
    // What it leaves behind changes nothing more, and the next one begins as any does.
    table.add("hub", None, &offer(8, "1")).unwrap();
    table.commit();
    let before = table.identities();
    table.drop_set();
    assert!(table.commit().is_none() && table.overtaken().is_none());
    table.adopt(claims::acme(&["0", "1", "2", "3"]), Arc::default());
    let differences = before.differences(&table.identities());
    assert!(differences.is_empty(), "{differences:?}");
    table.begin_set("fleet", None).unwrap();
    table.add_to_set(&offer(2, "0"), 0).unwrap();
    assert_eq!(table.close_set(), Ok(true));
    while !table.take_set(1) {}
    table.hold();
    table.finish_set().unwrap();
    assert_eq!(known(&table), [2, 7, 8]);
}

#[test]
fn a_new_run_has_the_room_that_was_kept_for_the_set_it_ends() {
    let mut table = table_for(4);
    table.begin_set("fleet", Some(1)).unwrap();
    for host in 0..4 {
        table.add_to_set(&offer(host, "0"), host).unwrap();
    }
    assert_eq!(table.close_set(), Ok(true));
    // It is full of what is coming, for others and for the set's own run.
    for (source, epoch) in [("hub", None), ("fleet", None), ("fleet", Some(1))] {
        let more = table.add(source, epoch, &offer(9, "1"));
        assert_eq!(more, Err(Refused::Full(4)), "{source} {epoch:?}");
    }
    table.add("fleet", Some(2), &offer(9, "1")).unwrap();
    assert!(!table.is_taking());
    table.add("hub", None, &offer(8, "1")).unwrap();
    assert_eq!(table.len(), 2);
}

#[test]
fn what_would_end_by_itself_is_renewed_by_the_set_on_its_way() {
    let mut table = table_for(3);
    let brief = Offer {
        expires: Some(2_000),
        ..offer(2, "0")
    };
    table.add("fleet", None, &offer(1, "0")).unwrap();
    table.add("fleet", None, &brief).unwrap();
    table.commit();
    table.begin_set("fleet", None).unwrap();
    for (position, host) in [2, 5, 6].into_iter().enumerate() {
        table.add_to_set(&offer(host, "0"), position).unwrap();
    }
    assert_eq!(table.close_set(), Ok(true));
    table.advance(2_000);
    table.commit();
    assert_eq!(seen(&table)[2], Some(0));
    // Nor has anybody else the room that it had.
    let other = table.add("manual", None, &offer(9, "0"));
    assert_eq!(other, Err(Refused::Full(3)));
    while !table.take_set(1) {}
    table.hold();
    table.finish_set().unwrap();
    assert_eq!((table.len(), seen(&table)[2]), (3, Some(0)));
}

#[test]
fn whoever_says_ever_more_never_keeps_a_set_from_its_end() {
    const MANY: usize = 3 * limits::LEASE_TURN;
    let mut table = table();
    let place = |number: usize| Place {
        scope: Scope::NONE,
        network: IpNet::from(IpAddr::from(Ipv4Addr::from(number as u32))),
    };
    let offer = |number| Offer {
        place: place(number),
        ..offer(0, "0")
    };
    table.begin_set("fleet", None).unwrap();
    for number in 0..MANY {
        table.add_to_set(&offer(number), number).unwrap();
    }
    let mut is_closed = false;
    for turn in 0..=MANY / limits::LEASE_TURN {
        // More than a turn's worth, and of the same places each time.
        let session = turn.to_string();
        for number in 0..2 * limits::LEASE_TURN {
            let offer = Offer {
                session: &session,
                ..offer(number)
            };
            table.add("manual", None, &offer).unwrap();
        }
        table.commit();
        is_closed = table.close_set().unwrap();
    }
    assert!(is_closed, "it is still being checked");
}

/// A table with two scopes, the addresses of which a set of "fleet" gives to another device.
fn table_of_scopes() -> LeaseTable {
    let mut table = LeaseTable::new(2);
    table.adopt(claims::acme(&["0", "1"]), Arc::default());
    table.advance(1_000);
    table
}

fn in_scope<'o>(scope: u8, offer: &Offer<'o>) -> Offer<'o> {
    let place = Place {
        scope: Scope(scope),
        ..offer.place
    };
    Offer { place, ..*offer }
}

/// Whose an address is on listeners of each scope.
fn whose(table: &LeaseTable, host: usize) -> [Option<String>; 3] {
    [0, 1, 2].map(|scope| {
        let identities = table.identities();
        let found = identities.resolve(Scope(scope), address(host)).ok()?;
        Some(found.name.to_owned())
    })
}

#[test]
fn what_goes_ahead_in_one_scope_goes_ahead_in_all() {
    let mut table = table_of_scopes();
    for scope in [0, 2] {
        let offer = in_scope(scope, &offer(1, "0"));
        table.add("fleet", None, &offer).unwrap();
    }
    table.commit();
    table.begin_set("fleet", Some(1)).unwrap();
    for (position, scope) in [0, 2].into_iter().enumerate() {
        let offer = in_scope(scope, &offer(1, "1"));
        table.add_to_set(&offer, position).unwrap();
    }
    assert_eq!(table.close_set(), Ok(true));
    // Refused, for in all scopes it is the set's.
    let refused = table.add("manual", None, &in_scope(1, &offer(1, "0")));
    assert_eq!(refused.unwrap_err().token(), "conflict");
    table.commit();
    let one = || Some("1".to_owned());
    assert_eq!(whose(&table, 1), [one(), one(), one()]);
}

#[test]
fn another_source_that_begins_anew_shows_no_half_of_a_set() {
    let mut table = table_of_scopes();
    table.add("fleet", None, &offer(1, "0")).unwrap();
    table.add("fleet", None, &offer(2, "0")).unwrap();
    table.add("hub", Some(1), &offer(1, "0")).unwrap();
    table.commit();
    // It moves to a scope of its own.
    table.begin_set("fleet", None).unwrap();
    table.add_to_set(&in_scope(1, &offer(1, "0")), 0).unwrap();
    assert_eq!(table.close_set(), Ok(true));
    table.take_set(1);
    table.hold();
    table.add("hub", Some(2), &offer(9, "0")).unwrap();
    table.commit();
    assert_eq!(whose(&table, 1), [None, Some("0".to_owned()), None]);
}

#[test]
fn whoever_stops_at_a_place_goes_on_behind_it() {
    let mut random = Random(7);
    let (mut table, mut model) = (table(), Model::default());
    for _ in 0..200 {
        let before = model.clone();
        let (mut cursor, mut shown, mut touched) = (None, Vec::new(), BTreeSet::new());
        loop {
            let Some((place, leases)) = table.leases_behind(cursor).next() else {
                break;
            };
            let IpAddr::V4(host) = place.network.addr() else {
                panic!("there are only these");
            };
            let host = usize::from(host.octets()[3]);
            shown.extend(leases.map(|lease| (host, lease.source.to_owned())));
            cursor = Some(place);
            for _ in 0..random.below(3) {
                touched.extend(change(&mut table, &mut model, &mut random, ROOM));
            }
            table.commit();
        }
        let places: Vec<_> = shown.iter().map(|(host, _)| *host).collect();
        assert!(places.is_sorted());
        for (host, source) in before.0.keys().filter(|(host, _)| !touched.contains(host)) {
            let of_it = |(other, by): &&(usize, String)| other == host && by == source;
            assert_eq!(shown.iter().filter(of_it).count(), 1, "{host} {source}");
        }
        let known: BTreeSet<_> = shown.iter().collect();
        assert_eq!(known.len(), shown.len(), "none is there twice");
    }
}

#[test]
fn what_ends_at_once_ends_in_turns() {
    let mut table = table();
    let count = 3 * limits::LEASE_TURN;
    for number in 0..count {
        let network = IpNet::from(IpAddr::from(Ipv4Addr::from_bits(
            0x0a01_0000 + number as u32,
        )));
        let offer = Offer {
            place: Place {
                scope: Scope::NONE,
                network,
            },
            expires: Some(2_000),
            ..offer(0, "0")
        };
        table.add("fleet", None, &offer).unwrap();
    }
    table.commit();
    table.advance(2_000);
    assert!(table.is_behind() && !table.is_empty());
    let ended = table.commit().unwrap();
    assert_eq!(ended.moved.len(), limits::LEASE_TURN);
    while table.is_behind() {
        table.advance(2_000);
        table.commit();
    }
    assert!(table.is_empty() && table.next_timer().is_none());
}
