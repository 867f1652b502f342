//! Tests of the identity table.

use std::{
    mem,
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    time::Instant,
};

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    let host = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| host()).expect("a network")
}

fn table(entries: &[(&str, &str)]) -> IdentityTable {
    let mut table = IdentityTable::default();
    for (network, name) in entries {
        table
            .insert(net(network), AccountId(1), name, "s")
            .expect("free");
    }
    table
}

fn name_of<'t>(table: &'t IdentityTable, address: &str) -> Option<&'t str> {
    table
        .resolve(address.parse().expect("an address"))
        .map(|identity| identity.name)
}

#[test]
fn an_address_beats_a_prefix_and_a_long_prefix_a_short_one() {
    let table = table(&[
        ("0.0.0.0/0", "any"),
        ("10.0.0.0/8", "ten"),
        ("10.8.0.0/24", "hub"),
        ("10.8.0.7", "press"),
        ("2001:db8::/32", "six"),
        ("2001:db8::7", "six-press"),
    ]);
    for (address, name) in [
        ("10.8.0.7", Some("press")),
        ("::ffff:10.8.0.7", Some("press")),
        ("10.8.0.8", Some("hub")),
        ("10.9.0.8", Some("ten")),
        ("192.0.2.1", Some("any")),
        ("2001:db8::7", Some("six-press")),
        ("2001:db8::8", Some("six")),
        ("2001:db9::8", None),
    ] {
        assert_eq!(name_of(&table, address), name, "{address}");
    }
}

#[test]
fn families_do_not_mix() {
    let table = table(&[("::/0", "six"), ("::ffff:10.8.0.0/120", "mapped")]);
    assert_eq!(name_of(&table, "10.8.0.9"), Some("mapped"));
    assert_eq!(name_of(&table, "10.9.0.9"), None);
    assert_eq!(name_of(&table, "fe80::1"), Some("six"));
}

#[test]
fn a_network_belongs_to_one_device() {
    let mut table = table(&[("10.8.0.7", "press")]);
    let again = table.insert(net("::ffff:10.8.0.7"), AccountId(2), "other", "s");
    assert_eq!((again, table.len()), (Err(Occupied), 1));
    assert_eq!(
        table.insert(net("10.8.0.0/31"), AccountId(2), "other", "s"),
        Ok(())
    );
}

#[test]
fn fields_are_rendered() {
    let mut table = IdentityTable::default();
    table
        .insert(net("10.8.0.7"), AccountId(3), "Präge 07", "1932-0069-24")
        .expect("free");
    let identity = table.resolve([10, 8, 0, 7].into()).expect("known");
    assert_eq!(
        (identity.account, identity.name),
        (AccountId(3), "Präge 07")
    );
    assert_eq!(identity.serial, "1932-0069-24");
    let fields = "X_Talk2M_Device: Präge 07\r\nX_Talk2M_SerialNumber: 1932-0069-24\r\n";
    let mut written = Vec::new();
    identity.write_fields(&mut written);
    assert_eq!(written, fields.as_bytes());
}

#[test]
fn a_change_leaves_the_old_table_as_it_was_and_shares_the_rest() {
    let mut old = IdentityTable::default();
    for host in 0..10_000_u32 {
        let address = Ipv4Addr::from_bits(0x0a08_0000 + host);
        old.insert(IpAddr::V4(address).into(), AccountId(1), "old", "s")
            .expect("free");
    }
    let network = net("10.8.0.7");
    let assign = Change::Assign {
        network,
        account: AccountId(2),
        name: "new",
        serial: "t",
    };
    let new = old.with_changes([
        assign,
        Change::Release {
            network: net("10.8.0.8"),
        },
    ]);
    assert_eq!(name_of(&old, "10.8.0.7"), Some("old"));
    assert_eq!(name_of(&old, "10.8.0.8"), Some("old"));
    assert_eq!(name_of(&new, "10.8.0.7"), Some("new"));
    assert_eq!(name_of(&new, "10.8.0.8"), None);
    assert_eq!((old.len(), new.len()), (10_000, 9_999));
    let (bytes, shards) = copied(&old, &new);
    assert!((1..=2).contains(&shards), "{shards} shards were copied");
    assert!(bytes < 8_192, "{bytes} bytes were copied");
}

/// As many devices as `count`, at addresses that follow each other.
fn fleet(count: u32) -> IdentityTable {
    let values: Vec<_> = (0..count)
        .map(|host| (format!("press-{host:07}"), format!("1932-{host:05}-24")))
        .collect();
    let entries = values.iter().zip(0..).map(|((name, serial), host)| {
        let identity = Identity {
            account: AccountId(1),
            name,
            serial,
        };
        (address(host), identity)
    });
    IdentityTable::build(entries).expect("no network is there twice")
}

fn address(host: u32) -> IpNet {
    IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + host)))
}

/// Bytes of a table's shards, and of the lists of pointers that lead to them.
fn bytes(table: &IdentityTable) -> usize {
    let bundles = table.v4.bundles.iter();
    let shards = bundles.flat_map(|bundle| bundle.iter());
    let pointers = size_of::<Family<u32>>() + BUNDLES * size_of::<Bundle<u32>>();
    pointers + shards.map(|shard| shard.bytes()).sum::<usize>()
}

/// Bytes of `new` that it does not share with `old`, and how many shards of it.
fn copied(old: &IdentityTable, new: &IdentityTable) -> (usize, usize) {
    let (mut bytes, mut count) = (size_of::<Family<u32>>(), 0);
    for (old, new) in old.v4.bundles.iter().zip(&new.v4.bundles) {
        if !Arc::ptr_eq(old, new) {
            bytes += size_of::<Bundle<u32>>();
            let shards = old.iter().zip(new.iter());
            for (_, shard) in shards.filter(|(old, new)| !old.is_shared_with(new)) {
                bytes += shard.bytes();
                count += 1;
            }
        }
    }
    (bytes, count)
}

#[test]
fn what_is_built_is_what_is_inserted_one_by_one() {
    let built = fleet(10_000);
    let mut inserted = IdentityTable::default();
    for host in 0..10_000 {
        let known = built.lookup(address(host)).expect("known");
        assert_eq!(known.name, format!("press-{host:07}"));
        let inserting = inserted.insert(address(host), known.account, known.name, known.serial);
        inserting.expect("free");
    }
    assert_eq!((built.len(), inserted.len()), (10_000, 10_000));
    for host in 0..20_000 {
        assert_eq!(built.lookup(address(host)), inserted.lookup(address(host)));
    }
    let identity = built.lookup(address(7)).expect("known");
    let network = net("10.0.0.0/8");
    let twice = [
        (network, identity),
        (address(7), identity),
        (network, identity),
    ];
    let refused = IdentityTable::build(twice.into_iter());
    assert_eq!(refused.err(), Some(network));
}

#[test]
fn an_entry_takes_little_room() {
    let table = fleet(100_000);
    let each = bytes(&table) / table.len();
    assert!(each <= 92, "{each} bytes an entry");
}

#[test]
fn long_names_are_kept_whole_beside_short_ones() {
    // Neighbours, which share a shard, have some of both.
    let values = |host: u32| {
        let (name, serial) = match host % 2 {
            0 => (host % 12, 0),
            _ => (host % 62, host % 13),
        };
        let name = "ü".repeat(name as usize);
        (
            format!("{name}{host}"),
            "0123456789".repeat(serial as usize),
        )
    };
    let values: Vec<_> = (0..30_000).map(values).collect();
    let identity = |host: u32| {
        let (name, serial) = &values[host as usize];
        Identity {
            account: AccountId(host),
            name,
            serial,
        }
    };
    let is_whole = |table: &IdentityTable, network: &dyn Fn(u32) -> IpNet, hosts: Range<u32>| {
        hosts
            .into_iter()
            .all(|host| table.lookup(network(host)) == Some(identity(host)))
    };
    let v6 = |host: u32| IpNet::from(IpAddr::V6(Ipv6Addr::from_bits(1 << 127 | u128::from(host))));
    for network in [&address as &dyn Fn(u32) -> IpNet, &v6] {
        let entries = (0..20_000).map(|host| (network(host), identity(host)));
        let built = IdentityTable::build(entries).expect("no network is there twice");
        assert!(is_whole(&built, network, 0..20_000));
        let added = (20_000..30_000).map(|host| Change::Assign {
            network: network(host),
            account: AccountId(host),
            name: &values[host as usize].0,
            serial: &values[host as usize].1,
        });
        let released = (0..10_000).map(|host| Change::Release {
            network: network(host),
        });
        let changed = built.with_changes(added.chain(released));
        assert!(is_whole(&changed, network, 10_000..30_000));
        assert_eq!(changed.len(), 20_000);
        assert!(is_whole(&built, network, 0..20_000));
    }
}

#[test]
fn churn_does_not_grow_a_shard() {
    let mut table = table(&[("10.8.0.7", "press")]);
    let before = bytes(&table);
    for _ in 0..1_000 {
        let network = net("10.8.0.7");
        let (account, name, serial) = (AccountId(1), "press", "s");
        table = table.with_changes([Change::Assign {
            network,
            account,
            name,
            serial,
        }]);
    }
    assert_eq!(bytes(&table), before);
}

#[test]
fn a_change_among_a_million_copies_next_to_nothing() {
    const MILLION: u32 = 1_000_000;
    // A shard of three times the mean, and the lists that lead to it.
    const COPIED_BYTES_MAX: usize = 36_864;
    let mut table = fleet(MILLION);
    println!("{} bytes an entry", bytes(&table) / table.len());
    // Assigned anew, released, moved, in turn, all over the table.
    let change = |number: u32| {
        let network = address(number.wrapping_mul(7_919) % MILLION);
        match number % 3 {
            0 => Change::Release { network },
            _ => Change::Assign {
                network,
                account: AccountId(2),
                name: "another press",
                serial: "1932-00007-25",
            },
        }
    };
    for batch in [1, 1_000] {
        let mut took = Vec::new();
        let mut bytes_max = 0;
        for first in (0..100 * batch).step_by(batch as usize) {
            let changes = (first..first + batch).map(change);
            let begun = Instant::now();
            let changed = table.with_changes(changes);
            let built = begun.elapsed();
            let (bytes, shards) = copied(&table, &changed);
            let before = mem::replace(&mut table, changed);
            let begun = Instant::now();
            drop(before);
            took.push(built + begun.elapsed());
            bytes_max = bytes_max.max(bytes);
            assert!(shards <= batch as usize);
        }
        took.sort_unstable();
        println!(
            "{batch} changed: {bytes_max} bytes copied at most, {:?} of work",
            took[50]
        );
        assert!(
            bytes_max <= COPIED_BYTES_MAX * batch as usize,
            "{bytes_max} bytes copied"
        );
    }
}

fn any_network() -> impl Strategy<Value = IpNet> {
    // Few bits vary, so that networks overlap.
    (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| {
        let address = Ipv4Addr::from_bits(bits & 0x0300_0103);
        let network = ipnet::Ipv4Net::new(address, length).expect("a length");
        IpNet::V4(network.trunc())
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        rng_seed: prop::test_runner::RngSeed::Fixed(7),
        ..ProptestConfig::default()
    })]
    #[test]
    fn resolves_like_a_list_searched_from_end_to_end(
        changes in prop::collection::vec((any_network(), any::<bool>()), 0..40),
        probes in prop::collection::vec(any::<u32>(), 20),
    ) {
        let mut list: Vec<(IpNet, String)> = Vec::new();
        let mut table = IdentityTable::default();
        for (number, (network, assigns)) in changes.into_iter().enumerate() {
            let name = format!("device-{number}");
            list.retain(|(listed, _)| *listed != network);
            let change = if assigns {
                list.push((network, name.clone()));
                Change::Assign { network, account: AccountId(1), name: &name, serial: "s" }
            } else {
                Change::Release { network }
            };
            table = table.with_changes([change]);
        }
        prop_assert_eq!(table.len(), list.len());
        for probe in probes {
            let address = IpAddr::V4(Ipv4Addr::from_bits(probe & 0x0300_0103));
            let expected = list
                .iter()
                .filter(|(network, _)| network.contains(&address))
                .max_by_key(|(network, _)| network.prefix_len())
                .map(|(_, name)| name.as_str());
            let resolved = table.resolve(address).map(|identity| identity.name);
            prop_assert_eq!(resolved, expected);
        }
    }
}
