//! Another configuration under many leases: all that it concerns is judged anew, and only that.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeSet, sync::Arc};

use common::{
    claims::{self, place},
    random::Random,
};
use m2u::{
    config::settings::Account,
    control::lease::{
        claim::{Offer, Place},
        directory::Directory,
        table::LeaseTable,
    },
    snapshot::{
        identity::IdentityTable,
        scope::{Identities, Scope},
    },
};

const SEED: u64 = 0x6d32_7531;
const ROUNDS: usize = 1_500;
const SCOPES: u8 = 2;
const HUB: &str = "openvpn:north";
const ACCOUNTS: [&str; 2] = ["acme", "beta"];
const DEVICES: [&str; 4] = ["press", "mill", "saw", "lathe"];
const SERIALS: [&str; 2] = ["1", "2"];
/// Some lie in others.
const NETWORKS: [&str; 7] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.1",
    "10.1.0.2",
    "10.2.0.1",
    "fd00::/64",
    "fd00::1",
];

fn one_of<'a>(random: &mut Random, all: &[&'a str]) -> &'a str {
    all[random.below(all.len())]
}

/// Accounts of which some may have other devices, in another order, of other serial numbers and
/// addresses; each address belongs to one at most.
fn accounts(random: &mut Random) -> Vec<Account> {
    let mut free: Vec<&str> = NETWORKS.to_vec();
    let accounts = ACCOUNTS.iter().map(|reference| {
        let mut names = DEVICES.to_vec();
        let first = random.below(names.len());
        names.rotate_left(first);
        names.truncate(2 + random.below(3_usize));
        let devices: Vec<_> = names
            .into_iter()
            .map(|name| {
                let has_address = random.below(3_u8) == 0 && !free.is_empty();
                let address = has_address.then(|| free.swap_remove(random.below(free.len())));
                (name, one_of(random, &SERIALS), Vec::from_iter(address))
            })
            .collect();
        let devices = devices
            .iter()
            .map(|(name, serial, networks)| (*name, *serial, &networks[..]));
        claims::account(reference, &devices.collect::<Vec<_>>())
    });
    accounts.collect()
}

fn configuration(random: &mut Random) -> (Directory, Arc<IdentityTable>) {
    claims::configuration(&accounts(random))
}

fn any_place(random: &mut Random) -> Place {
    place(random.below(SCOPES + 1), one_of(random, &NETWORKS))
}

/// Makes or ends some lease, if that is allowed.
fn change(table: &mut LeaseTable, random: &mut Random) {
    let source = one_of(random, &["vpn", HUB]);
    let place = any_place(random);
    if random.below(4_u8) == 0 {
        let _ = table.release(source, None, place, None);
        return;
    }
    let offer = Offer {
        place,
        account: one_of(random, &ACCOUNTS),
        device: one_of(random, &DEVICES),
        session: "",
        expires: None,
        replace: random.below(2_u8) == 0,
    };
    let _ = table.add(source, None, &offer);
}

fn differences(one: &Identities, other: &Identities) -> BTreeSet<(Scope, ipnet::IpNet)> {
    one.differences(other).into_iter().collect()
}

#[test]
fn whatever_another_configuration_concerns_is_judged_anew() {
    let mut random = Random(SEED);
    let mut table = LeaseTable::new(SCOPES.into());
    let (directory, fixed) = configuration(&mut random);
    table.begin(directory, fixed);
    table.expect_reports(HUB).unwrap();
    let (mut moves, mut ends) = (0, 0);
    for round in 0..ROUNDS {
        table.advance(1_000 + round as u64);
        for _ in 0..3 {
            change(&mut table, &mut random);
        }
        table.commit();
        let before = table.identities();
        let (directory, fixed) = configuration(&mut random);
        // It asserts by itself that its tables are those that would be made anew.
        ends += table.adopt(directory, fixed).len();
        let after = table.identities();
        let moved = table.commit().map_or(BTreeSet::new(), |commit| {
            assert!(differences(&after, &commit.identities).is_empty());
            commit.moved.into_iter().collect()
        });
        assert_eq!(moved, differences(&before, &after), "in round {round}");
        moves += moved.len();
    }
    println!("{ROUNDS} configurations: {moves} networks moved, {ends} leases ended");
    assert!(moves > ROUNDS && ends > ROUNDS / 20);
}

#[test]
fn nothing_moves_under_the_same_configuration() {
    let mut random = Random(SEED);
    let accounts = accounts(&mut random);
    let mut table = LeaseTable::new(SCOPES.into());
    let (directory, fixed) = claims::configuration(&accounts);
    table.begin(directory, fixed);
    (0..20).for_each(|_| change(&mut table, &mut random));
    table.commit();
    let revision = table.revision();
    let (directory, fixed) = claims::configuration(&accounts);
    assert!(table.adopt(directory, fixed).is_empty());
    assert!(table.commit().is_none());
    assert_eq!(table.revision(), revision);
}
