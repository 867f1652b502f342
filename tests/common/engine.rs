//! The engine inside a test's own process, on one core, over a snapshot made by hand.

use std::{net::SocketAddr, sync::Arc};

use m2u::{
    config::settings::{Limits, Listen, OnFailure, Scheme, ServerLimits, Slot, Timeouts, Tuning},
    engine::{Engine, EngineSettings},
    observe::access_log::Log,
    snapshot::{
        Snapshot,
        identity::IdentityTable,
        publish::Publisher,
        route::{AccountId, PoolId, Route, RouteTable, Secret, Stamp, Upstream, UpstreamTls},
    },
};

/// A server of the only account, with everything that a route can have.
pub fn route(slot: Slot, address: SocketAddr, tls: Option<UpstreamTls>) -> Route {
    Route {
        account: AccountId(0),
        account_ref: "acme".into(),
        slot,
        upstream: Arc::new(Upstream {
            pool: Arc::new(PoolId(slot.number().into())),
            scheme: if tls.is_some() {
                Scheme::Https
            } else {
                Scheme::Http
            },
            host: "127.0.0.1".into(),
            port: address.port(),
            addresses: Arc::new([address]),
            unresolved: None,
            tls,
        }),
        host_field: format!("Host: {address}\r\n").into_bytes().into(),
        base_path: b"/base".as_slice().into(),
        stamp: Stamp::Exposed {
            account_field: b"X_Talk2M_Account: acme\r\n".as_slice().into(),
        },
        hyphen_aliases: true,
        forwarded: false,
        authorization: Some(Secret::new(*b"Authorization: Basic YWNtZTpzZWNyZXQ=\r\n")),
        on_failure: OnFailure::Respond,
        timeouts: Timeouts::default(),
        limits: ServerLimits {
            body_bytes: 1_000_000,
            ..ServerLimits::default()
        },
    }
}

/// Starts the engine for the only device, which speaks from 127.0.0.1.
pub fn start(routes: impl IntoIterator<Item = Route>) -> Engine {
    start_on(0, "127.0.0.1/32", routes)
}

/// Likewise, and each exchange is logged.
pub fn start_logging(routes: impl IntoIterator<Item = Route>, log: Option<Arc<Log>>) -> Engine {
    start_whole(0, "127.0.0.1/32", routes, log)
}

/// Starts the engine on the core at `position`, modulo the cores there are, for the only device,
/// which speaks from `network`.
pub fn start_on(position: usize, network: &str, routes: impl IntoIterator<Item = Route>) -> Engine {
    start_whole(position, network, routes, None)
}

/// What there is for the only device, which speaks from `network`.
pub fn snapshot(network: &str, routes: impl IntoIterator<Item = Route>) -> Snapshot {
    let mut identities = IdentityTable::default();
    let network = network.parse().unwrap();
    identities
        .insert(network, AccountId(0), "press-07", "1932-0069-24")
        .unwrap();
    Snapshot {
        identities: identities.into(),
        routes: Arc::new(RouteTable::from_iter(routes)),
        domain: "talk2m.com".into(),
        allow_networks: ["127.0.0.0/8".parse().unwrap()].into(),
    }
}

fn start_whole(
    position: usize,
    network: &str,
    routes: impl IntoIterator<Item = Route>,
    log: Option<Arc<Log>>,
) -> Engine {
    let publisher = Publisher::new(snapshot(network, routes));
    let cores = core_affinity::get_core_ids().unwrap();
    let core = cores[position % cores.len()].id;
    let settings = EngineSettings {
        listen: vec![Listen {
            scope: None,
            address: "127.0.0.1:0".parse().unwrap(),
            slot: Slot::FIRST,
            proxy_protocol_from: Vec::new(),
        }],
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        tuning: Tuning {
            cores: vec![core],
            ..Tuning::default()
        },
        log,
    };
    Engine::start(settings, &publisher).unwrap()
}
