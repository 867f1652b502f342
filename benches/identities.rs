//! The device behind an address, in tables of up to a million, and a lease or a server's address
//! that changes in one.
//!
//! Addresses are asked for in random order, so that the caches hold as little of a large table as
//! they would on a gateway.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use m2u::{
    config::settings::{OnFailure, Scheme, ServerLimits, Slot, Timeouts},
    snapshot::{
        Snapshot,
        identity::{Change, Identity, IdentityTable},
        publish::Publisher,
        route::{AccountId, PoolId, Route, Stamp, Upstream},
        scope::Scope,
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MILLION: u32 = 1_000_000;
/// Networks of each kind beside a million addresses.
const NETWORKS: u32 = 100_000;
/// Accounts with a server each, beside them.
const ACCOUNTS: u32 = 10_000;

criterion_group!(benches, resolve, change);
criterion_main!(benches);

fn resolve(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resolve");
    let mut measure = |name, table: &IdentityTable, count, address: fn(u32) -> IpAddr| {
        let mut random = Random(0);
        group.bench_function(name, |bencher| {
            bencher.iter(|| table.resolve(black_box(address(random.below(count)))));
        });
    };
    measure("of 10 k", &table(10_000, 0), 10_000, device);
    measure("of 1 M", &table(MILLION, 0), MILLION, device);
    let mixed = table(MILLION, NETWORKS);
    measure("of 1 M beside networks", &mixed, MILLION, device);
    measure("in a /24", &mixed, NETWORKS, in_network_of_24);
    measure("in a /64", &mixed, NETWORKS, in_network_of_64);
    measure("nobody's", &mixed, MILLION, stranger);
    group.finish();
}

fn change(criterion: &mut Criterion) {
    let publisher = Publisher::new(Snapshot {
        identities: table(MILLION, 0).into(),
        routes: Arc::new((0..ACCOUNTS).map(|account| route(account, 1)).collect()),
        domain: "talk2m.com".into(),
        allow_networks: [].into(),
    });
    let mut subscriber = publisher.subscribe();
    let mut random = Random(0);
    let mut port = 1;
    criterion.bench_function("change/a server's address, published", |bencher| {
        bencher.iter(|| {
            let now = publisher.current();
            port = port % u16::MAX + 1;
            let moved = [Arc::new(route(random.below(ACCOUNTS), port))];
            publisher.publish(Snapshot {
                routes: Arc::new(now.routes.with_routes(moved)),
                ..Snapshot::clone(&now)
            });
            drop(now);
            black_box(subscriber.load());
        });
    });
    criterion.bench_function("change/a lease of 1 M, published", |bencher| {
        bencher.iter(|| {
            let now = publisher.current();
            let changes = [Change::Assign {
                network: device(random.below(MILLION)).into(),
                account: AccountId(1),
                name: "press-07",
                serial: "1932-0069-24",
            }];
            let table = now.identities.table(Scope::NONE).expect("the common one");
            publisher.publish(Snapshot {
                identities: table.with_changes(changes).into(),
                ..Snapshot::clone(&now)
            });
            drop(now);
            black_box(subscriber.load());
        });
    });
}

/// So many devices, and so many networks of each kind.
fn table(devices: u32, networks: u32) -> IdentityTable {
    let addresses = (0..devices).map(|index| IpNet::from(device(index)));
    let short = (0..networks).map(|index| network(in_network_of_24(index), 24));
    let long = (0..networks).map(|index| network(in_network_of_64(index), 64));
    let entries: Vec<_> = addresses
        .chain(short)
        .chain(long)
        .enumerate()
        .map(|(index, network)| {
            (
                network,
                format!("device-{index:07}"),
                format!("{index:07}-24"),
            )
        })
        .collect();
    let entries = entries.iter().map(|(network, name, serial)| {
        let account = AccountId(1);
        let identity = Identity {
            account,
            name,
            serial,
        };
        (*network, identity)
    });
    IdentityTable::build(entries).expect("networks of their own")
}

/// The only server of an account, at `port` of this machine.
fn route(account: u32, port: u16) -> Route {
    let reference = format!("account-{account:05}");
    Route {
        account: AccountId(account),
        account_ref: reference.as_str().into(),
        slot: Slot::FIRST,
        upstream: Arc::new(Upstream {
            pool: Arc::new(PoolId(account)),
            scheme: Scheme::Http,
            host: "server.example".into(),
            port,
            addresses: Arc::new([(Ipv4Addr::LOCALHOST, port).into()]),
            unresolved: None,
            tls: None,
        }),
        host_field: b"Host: server.example\r\n".as_slice().into(),
        base_path: [].into(),
        stamp: Stamp::Exposed {
            account_field: format!("X_Talk2M_Account: {reference}\r\n")
                .into_bytes()
                .into(),
        },
        hyphen_aliases: false,
        forwarded: false,
        authorization: None,
        on_failure: OnFailure::Respond,
        timeouts: Timeouts::default(),
        limits: ServerLimits::default(),
    }
}

fn network(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).expect("no longer than an address")
}

fn device(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + index).into()
}

fn in_network_of_24(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(16, 0, 0, 7).to_bits() + (index << 8)).into()
}

fn in_network_of_64(index: u32) -> IpAddr {
    let first = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).to_bits();
    Ipv6Addr::from_bits(first + (u128::from(index) << 64)).into()
}

fn stranger(index: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + index).into()
}

/// A sequence that looks random and costs next to nothing (Knuth's MMIX generator).
struct Random(u64);

impl Random {
    fn below(&mut self, count: u32) -> u32 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(count)) >> 32) as u32
    }
}
