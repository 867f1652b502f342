//! Settings and addresses -> snapshots. Opens no socket, publishes nothing by itself.
//!
//! Numbers of accounts and pools and TLS configurations live on from one snapshot to the next, so
//! that a reload closes no connection that it need not close. Between two reloads everything that
//! no new address concerns is shared.

use std::{
    fmt, iter,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hashbrown::{HashMap, HashSet, hash_map::Entry};
use ipnet::IpNet;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::ServerName;

use super::{
    dns::zone::Zone,
    resolver::Resolver,
    trust::{TrustError, TrustId, TrustStore, Trusted},
};
use crate::{
    config::settings::{
        Account, Login, OnFailure, Scheme, Server, ServerLimits, Settings, Slot, Timeouts,
    },
    snapshot::{
        Snapshot,
        identity::{Identity, IdentityTable},
        route::{AccountId, PoolId, Route, RouteTable, Secret, Stamp, Upstream, UpstreamTls},
    },
};

/// Makes snapshots, and remembers what must stay the same between them.
#[derive(Debug, Default)]
pub struct Assembly {
    trusts: TrustStore,
    accounts: HashMap<String, AccountId>,
    pools: HashMap<PoolKey, Pool>,
    pool_next: u32,
    plan: Plan,
    /// What follows it, once its names are known.
    next: Option<Plan>,
}

/// Why settings that were read without a problem cannot be put to use.
#[derive(Debug)]
pub enum ReloadError {
    /// A server's TLS configuration cannot be made.
    Trust(TrustError),
    /// A server's URL has a host that no certificate could bear.
    Host(String),
    /// Two devices have the same network.
    Occupied(IpNet),
}

impl fmt::Display for ReloadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trust(error) => error.fmt(f),
            Self::Host(host) => write!(f, "{host:?} is no name that a certificate could bear"),
            Self::Occupied(network) => write!(f, "{network} belongs to two devices"),
        }
    }
}

impl std::error::Error for ReloadError {}

impl From<TrustError> for ReloadError {
    fn from(error: TrustError) -> Self {
        Self::Trust(error)
    }
}

/// What makes two connections different, and how many are kept; equal keys share their connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PoolKey {
    scheme: Scheme,
    host: String,
    port: u16,
    /// The configured addresses; empty: the host's own.
    fixed: Vec<SocketAddr>,
    trust: Option<TrustId>,
    /// A server that shall keep none must not be sent a request over one that another's request went over.
    kept_max: usize,
}

/// A set of connections.
#[derive(Debug)]
struct Pool {
    id: Arc<PoolId>,
    /// What its connections are made with, and the sessions that they resume.
    tls: Option<UpstreamTls>,
}

/// The settings in use, with everything rendered but the addresses of names.
#[derive(Debug, Default)]
struct Plan {
    identities: Arc<IdentityTable>,
    domain: Arc<str>,
    allow_networks: Arc<[IpNet]>,
    zone: Option<Arc<Zone>>,
    upstreams: Vec<UpstreamPlan>,
    /// The upstreams whose addresses are those of a name.
    named: HashMap<Box<str>, Vec<usize>>,
    routes: Vec<RoutePlan>,
    /// The *ref* of each account.
    refs: Arc<HashMap<AccountId, Box<str>>>,
    /// What a snapshot was made with last, if one was made of these settings.
    rendered: Option<Arc<RouteTable>>,
}

#[derive(Debug)]
struct UpstreamPlan {
    pool: Arc<PoolId>,
    scheme: Scheme,
    host: Box<str>,
    port: u16,
    source: Source,
    tls: Option<UpstreamTls>,
    /// Indices of the routes that lead to it.
    routes: Vec<usize>,
    /// As published last.
    current: Option<Arc<Upstream>>,
}

/// Where an upstream's addresses come from.
#[derive(Debug)]
enum Source {
    Fixed(Arc<[SocketAddr]>),
    Name,
}

#[derive(Debug)]
struct RoutePlan {
    account: AccountId,
    account_ref: Box<str>,
    slot: Slot,
    host_field: Box<[u8]>,
    base_path: Box<[u8]>,
    stamp: Stamp,
    hyphen_aliases: bool,
    forwarded: bool,
    authorization: Option<Secret>,
    on_failure: OnFailure,
    timeouts: Timeouts,
    limits: ServerLimits,
}

impl Assembly {
    /// No settings yet; towards servers, TLS will offer what `provider` has.
    pub fn offering(provider: CryptoProvider) -> Self {
        Self {
            trusts: TrustStore::offering(provider),
            ..Self::default()
        }
    }

    /// Puts `settings` in the place of those before. The next snapshot is made of them.
    ///
    /// # Errors
    /// They cannot be put to use; then those before stay in force.
    pub fn adopt(&mut self, settings: &Settings) -> Result<(), ReloadError> {
        self.prepare(settings)?;
        self.change_over();
        Ok(())
    }

    /// Makes `settings` those that are next, in the place of others that are. Until they are
    /// [in use](Self::change_over), snapshots are made of those before.
    ///
    /// # Errors
    /// They cannot be put to use; then nothing changes.
    pub fn prepare(&mut self, settings: &Settings) -> Result<(), ReloadError> {
        let prepared = self.plan_for(settings).map(|plan| self.next = Some(plan));
        self.forget_unused();
        prepared
    }

    /// Puts the settings that are next in the place of those before.
    pub fn change_over(&mut self) {
        if let Some(next) = self.next.take() {
            self.plan = next;
            self.forget_unused();
        }
    }

    /// Forgets whatever no settings have by now, also what refused ones would have had.
    fn forget_unused(&mut self) {
        let upstreams = self.plans().flat_map(|plan| &plan.upstreams);
        let pools: HashSet<PoolId> = upstreams.map(|upstream| *upstream.pool).collect();
        self.pools.retain(|_, pool| pools.contains(&*pool.id));
        let trusts: HashSet<TrustId> = self.pools.keys().filter_map(|key| key.trust).collect();
        self.trusts.retain(&trusts);
    }

    fn plans(&self) -> impl Iterator<Item = &Plan> {
        iter::once(&self.plan).chain(&self.next)
    }

    fn plan_for(&mut self, settings: &Settings) -> Result<Plan, ReloadError> {
        // The operator may have renewed the system's roots since they were read.
        self.trusts.forget_system_roots();
        let zone = |dns| Zone::build(settings.domain.as_deref(), settings.slots(), dns);
        let mut plan = Plan {
            domain: settings.domain.as_deref().unwrap_or_default().into(),
            allow_networks: settings.allow_networks.clone().into(),
            zone: settings.dns.as_ref().map(zone).map(Arc::new),
            ..Plan::default()
        };
        let mut ids = Vec::with_capacity(settings.accounts.len());
        let mut refs = HashMap::with_capacity(settings.accounts.len());
        let mut planned = HashMap::new();
        for account in &settings.accounts {
            let id = self.account(&account.reference);
            ids.push(id);
            refs.insert(id, account.reference.as_str().into());
            for server in &account.servers {
                let (key, trusted) = self.key(server)?;
                let upstream = match planned.get(&key) {
                    Some(index) => *index,
                    None => {
                        let pool = self.pool(&key, trusted.as_ref())?;
                        let index = plan.add(UpstreamPlan::new(pool, &key));
                        planned.insert(key, index);
                        index
                    }
                };
                plan.upstreams[upstream].routes.push(plan.routes.len());
                plan.routes.push(RoutePlan::new(id, account, server));
            }
        }
        plan.refs = Arc::new(refs);
        let identities = IdentityTable::build(entries(&settings.accounts, &ids));
        plan.identities = Arc::new(identities.map_err(ReloadError::Occupied)?);
        Ok(plan)
    }

    /// The *ref* of the account with this number.
    pub fn account_ref(&self, id: AccountId) -> Option<&str> {
        let found = self.accounts.iter().find(|(_, known)| **known == id);
        found.map(|(reference, _)| reference.as_str())
    }

    /// The devices of the settings in use, by the addresses that those give them.
    pub fn identities(&self) -> &Arc<IdentityTable> {
        &self.plan.identities
    }

    /// The number of the account with this *ref*, if one had it since this process began.
    pub fn account_id(&self, reference: &str) -> Option<AccountId> {
        self.accounts.get(reference).copied()
    }

    /// Names that must be resolved for the settings in use, and for those that are next.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let named = self.plans().flat_map(|plan| plan.named.keys());
        named.map(|host| &**host)
    }

    /// Whether each name has been asked for that the settings need which are next.
    pub fn is_settled(&self, resolver: &Resolver) -> bool {
        let mut named = self.next.iter().flat_map(|plan| plan.named.keys());
        named.all(|host| resolver.has_asked(host))
    }

    /// m2u's own names for the settings in use; `None` if nobody shall answer for them.
    pub fn zone(&self) -> Option<&Arc<Zone>> {
        self.plan.zone.as_ref()
    }

    /// A snapshot of the settings in use with the addresses that `resolver` knows, of which those
    /// of `hosts` may be others than when the last one was made of these settings.
    ///
    /// `None`: they are not.
    pub fn snapshot<'h>(
        &mut self,
        resolver: &Resolver,
        hosts: impl IntoIterator<Item = &'h str>,
    ) -> Option<Snapshot> {
        match &self.plan.rendered {
            None => Some(self.first_snapshot(resolver)),
            Some(before) => {
                let before = Arc::clone(before);
                let moved = self.plan.renew(resolver, hosts);
                (!moved.is_empty()).then(|| self.plan.render(before.with_routes(moved)))
            }
        }
    }

    /// A snapshot of the settings in use with the addresses that `resolver` knows, in any case.
    pub fn first_snapshot(&mut self, resolver: &Resolver) -> Snapshot {
        let routes = self.plan.build(resolver);
        self.plan.render(routes)
    }

    /// The number that an account keeps as long as this process lives.
    fn account(&mut self, reference: &str) -> AccountId {
        let next = AccountId(u32::try_from(self.accounts.len()).unwrap_or(u32::MAX));
        *self.accounts.entry_ref(reference).or_insert(next)
    }

    /// The set of connections that have this key. Its number stays while it is in use and is never given
    /// again; its sessions stay as long.
    fn pool(&mut self, key: &PoolKey, trusted: Option<&Trusted>) -> Result<&Pool, ReloadError> {
        match self.pools.entry(key.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let tls = match trusted {
                    None => None,
                    Some(trusted) => Some(UpstreamTls {
                        config: trusted.for_one_pool(),
                        // An address is checked against IP SANs and never sent as SNI (RFC 6066 §3).
                        name: ServerName::try_from(without_brackets(&key.host).to_owned())
                            .map_err(|_| ReloadError::Host(key.host.clone()))?,
                    }),
                };
                let id = Arc::new(PoolId(self.pool_next));
                self.pool_next += 1;
                Ok(place.insert(Pool { id, tls }))
            }
        }
    }

    fn key(&mut self, server: &Server) -> Result<(PoolKey, Option<Trusted>), ReloadError> {
        let url = &server.url;
        let mut key = PoolKey {
            scheme: url.scheme,
            host: url.host.clone(),
            port: url.port,
            fixed: server.addresses.clone(),
            trust: None,
            kept_max: server.limits.pool_per_server,
        };
        if url.scheme == Scheme::Http {
            return Ok((key, None));
        }
        let trusted = self.trusts.config(
            server.trust.as_deref(),
            server.revoked.as_deref(),
            server.client_certificate.as_ref(),
        )?;
        key.trust = Some(trusted.id);
        Ok((key, Some(trusted)))
    }
}

impl Plan {
    /// Adds an upstream; answers its index.
    fn add(&mut self, upstream: UpstreamPlan) -> usize {
        let index = self.upstreams.len();
        if matches!(upstream.source, Source::Name) {
            let named = self.named.entry(upstream.host.clone()).or_default();
            named.push(index);
        }
        self.upstreams.push(upstream);
        index
    }

    /// Every route, with the addresses that `resolver` knows.
    fn build(&mut self, resolver: &Resolver) -> RouteTable {
        let upstreams = self.upstreams.iter_mut();
        let routes = upstreams.flat_map(|upstream| {
            let current = upstream.renew(resolver);
            upstream
                .routes
                .iter()
                .map(move |route| (*route, Arc::clone(&current)))
        });
        let routes = routes.map(|(route, upstream)| Arc::new(self.routes[route].build(&upstream)));
        RouteTable::of(Arc::clone(&self.refs)).with_routes(routes)
    }

    /// The routes to those of `hosts` that are elsewhere than when they were built.
    fn renew<'h>(
        &mut self,
        resolver: &Resolver,
        hosts: impl IntoIterator<Item = &'h str>,
    ) -> Vec<Arc<Route>> {
        let mut moved = Vec::new();
        for index in hosts
            .into_iter()
            .filter_map(|host| self.named.get(host))
            .flatten()
        {
            let upstream = &mut self.upstreams[*index];
            let before = upstream.current.clone();
            let current = upstream.renew(resolver);
            if before.is_some_and(|before| Arc::ptr_eq(&before, &current)) {
                continue;
            }
            let routes = upstream.routes.iter();
            moved.extend(routes.map(|route| Arc::new(self.routes[*route].build(&current))));
        }
        moved
    }

    fn render(&mut self, routes: RouteTable) -> Snapshot {
        let routes = Arc::new(routes);
        self.rendered = Some(Arc::clone(&routes));
        Snapshot {
            identities: Arc::clone(&self.identities).into(),
            routes,
            domain: self.domain.clone(),
            allow_networks: self.allow_networks.clone(),
        }
    }
}

impl UpstreamPlan {
    fn new(pool: &Pool, key: &PoolKey) -> Self {
        let literal: Option<IpAddr> = without_brackets(&key.host).parse().ok();
        let source = match (key.fixed.as_slice(), literal) {
            ([], Some(address)) => {
                Source::Fixed(Arc::new([SocketAddr::new(address, key.port)]) as Arc<_>)
            }
            ([], None) => Source::Name,
            (fixed, _) => Source::Fixed(fixed.into()),
        };
        Self {
            pool: Arc::clone(&pool.id),
            scheme: key.scheme,
            host: key.host.as_str().into(),
            port: key.port,
            source,
            tls: pool.tls.clone(),
            routes: Vec::new(),
            current: None,
        }
    }

    /// Makes `current` what `resolver` knows now, and answers it; leaves it alone if that is what
    /// it says.
    fn renew(&mut self, resolver: &Resolver) -> Arc<Upstream> {
        let (addresses, unresolved) = match &self.source {
            Source::Fixed(addresses) => (Arc::clone(addresses), None),
            Source::Name => {
                let known = resolver.resolution(&self.host);
                let sockets = known.addresses.iter();
                let addresses = sockets.map(|ip| SocketAddr::new(*ip, self.port)).collect();
                (addresses, known.unresolved)
            }
        };
        let is_current = |upstream: &Arc<Upstream>| {
            upstream.addresses == addresses
                && upstream.unresolved.as_deref() == unresolved.as_deref()
        };
        if let Some(current) = self.current.as_ref().filter(|current| is_current(current)) {
            return Arc::clone(current);
        }
        let current = Arc::new(Upstream {
            pool: Arc::clone(&self.pool),
            scheme: self.scheme,
            host: self.host.clone(),
            port: self.port,
            addresses,
            unresolved: unresolved.as_deref().map(Box::from),
            tls: self.tls.clone(),
        });
        self.current = Some(Arc::clone(&current));
        current
    }
}

impl RoutePlan {
    fn new(id: AccountId, account: &Account, server: &Server) -> Self {
        let stamp = match account.expose_identity {
            true => Stamp::Exposed {
                account_field: line("X_Talk2M_Account", &account.reference),
            },
            false => Stamp::Concealed,
        };
        Self {
            account: id,
            account_ref: account.reference.as_str().into(),
            slot: server.slot,
            host_field: line("Host", &server.url.authority()),
            base_path: server.url.base_path.as_bytes().into(),
            stamp,
            hyphen_aliases: server.hyphen_aliases,
            forwarded: server.forwarded,
            authorization: server.login.as_ref().map(authorization),
            on_failure: server.on_failure,
            timeouts: server.timeouts,
            limits: server.limits,
        }
    }

    fn build(&self, upstream: &Arc<Upstream>) -> Route {
        Route {
            account: self.account,
            account_ref: self.account_ref.clone(),
            slot: self.slot,
            upstream: Arc::clone(upstream),
            host_field: self.host_field.clone(),
            base_path: self.base_path.clone(),
            stamp: self.stamp.clone(),
            hyphen_aliases: self.hyphen_aliases,
            forwarded: self.forwarded,
            authorization: self.authorization.clone(),
            on_failure: self.on_failure,
            timeouts: self.timeouts,
            limits: self.limits,
        }
    }
}

/// Every network of every device; the accounts' numbers are `ids`.
fn entries<'s>(
    accounts: &'s [Account],
    ids: &'s [AccountId],
) -> impl Iterator<Item = (IpNet, Identity<'s>)> + Clone {
    let accounts = accounts.iter().zip(ids);
    accounts.flat_map(|(account, id)| {
        account.devices.iter().flat_map(|device| {
            let identity = Identity {
                account: *id,
                name: device.name,
                serial: device.serial,
            };
            device
                .networks
                .iter()
                .map(move |network| (*network, identity))
        })
    })
}

fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn line(name: &str, value: &str) -> Box<[u8]> {
    format!("{name}: {value}\r\n").into_bytes().into()
}

/// The Basic scheme's field (RFC 7617 §2), in UTF-8.
fn authorization(login: &Login) -> Secret {
    let pair = format!("{}:{}", login.username, login.password);
    let line = format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(pair));
    Secret::new(line.into_bytes())
}

#[cfg(test)]
mod tests;
