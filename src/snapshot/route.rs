//! (account, slot) -> server, with the server's part of every request rendered ahead.
//!
//! Holds no sockets and resolves no names: addresses are what the control plane last learned.

use std::{fmt, net::SocketAddr, sync::Arc};

use hashbrown::HashMap;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

use crate::config::settings::{OnFailure, Scheme, ServerLimits, Slot, Timeouts};

/// Number of an account, the same in every snapshot of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(pub u32);

/// Number of a set of interchangeable upstream connections, never given to another set. Whatever has it holds
/// the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u32);

/// Parts of a table, of which a change copies those that it falls into.
const SHARDS: usize = 256;

/// Every configured server by account and slot.
#[derive(Debug)]
pub struct RouteTable {
    /// By the account's number.
    shards: Box<[Arc<Shard>; SHARDS]>,
    /// The *ref* of each account, of those as well that have no server.
    refs: Arc<HashMap<AccountId, Box<str>>>,
    withholds: bool,
}

type Shard = HashMap<(AccountId, Slot), Arc<Route>>;

impl RouteTable {
    /// No servers of accounts with these *refs*.
    pub fn of(refs: Arc<HashMap<AccountId, Box<str>>>) -> Self {
        let empty = Arc::default();
        Self {
            shards: Box::new(std::array::from_fn(|_| Arc::clone(&empty))),
            refs,
            withholds: false,
        }
    }

    /// Whether a server has its failures kept from its devices. Who can't be told yet may be one of
    /// them: some connectors delete their payload upon any answer.
    pub fn withholds_failures(&self) -> bool {
        self.withholds
    }

    /// The server that `account` configured for `slot`.
    pub fn resolve(&self, account: AccountId, slot: Slot) -> Option<&Arc<Route>> {
        self.shards[shard_of(account)].get(&(account, slot))
    }

    /// The *ref* of an account.
    pub fn account_ref(&self, account: AccountId) -> Option<&str> {
        self.refs.get(&account).map(|reference| &**reference)
    }

    /// All routes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    /// The table with `routes` in the place of those of the same accounts and slots; it shares with
    /// this one whatever they do not concern.
    pub fn with_routes(&self, routes: impl IntoIterator<Item = Arc<Route>>) -> Self {
        let mut shards = self.shards.clone();
        let mut withholds = self.withholds;
        for route in routes {
            withholds |= route.on_failure == OnFailure::Close;
            let shard = Arc::make_mut(&mut shards[shard_of(route.account)]);
            shard.insert((route.account, route.slot), route);
        }
        Self {
            shards,
            refs: Arc::clone(&self.refs),
            withholds,
        }
    }
}

fn shard_of(account: AccountId) -> usize {
    account.0 as usize % SHARDS
}

impl Default for RouteTable {
    fn default() -> Self {
        Self::of(Arc::default())
    }
}

impl FromIterator<Route> for RouteTable {
    fn from_iter<I: IntoIterator<Item = Route>>(routes: I) -> Self {
        let routes: Vec<_> = routes.into_iter().map(Arc::new).collect();
        let refs = routes
            .iter()
            .map(|route| (route.account, route.account_ref.clone()));
        Self::of(Arc::new(refs.collect())).with_routes(routes)
    }
}

/// One server as the data path needs it.
#[derive(Debug)]
pub struct Route {
    /// Whose server it is.
    pub account: AccountId,
    /// The account's *ref*, for the access log.
    pub account_ref: Box<str>,
    /// The name it is reached by.
    pub slot: Slot,
    /// How to connect.
    pub upstream: Arc<Upstream>,
    /// `Host: authority\r\n`.
    pub host_field: Box<[u8]>,
    /// Begins with `/` and does not end with one; empty for the root.
    pub base_path: Box<[u8]>,
    /// What is stamped of the account, and whether the device's part follows.
    pub stamp: Stamp,
    /// Stamp `X-Talk2M-…` as well.
    pub hyphen_aliases: bool,
    /// Tell the address that speaks as well (`Forwarded`, RFC 7239).
    pub forwarded: bool,
    /// `Authorization: Basic …\r\n`, which replaces the device's own.
    pub authorization: Option<Secret>,
    /// What a device sees when its request could not be delivered.
    pub on_failure: OnFailure,
    /// Longest durations of each phase.
    pub timeouts: Timeouts,
    /// Bytes of a request body, and idle connections of a core, at most.
    pub limits: ServerLimits,
}

/// The account's share of the identity fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stamp {
    /// `account_field` is `X_Talk2M_Account: ref\r\n`; the device's fields follow it.
    Exposed {
        /// The rendered line.
        account_field: Box<[u8]>,
    },
    /// Identity is not exposed: all three fields with empty values.
    Concealed,
}

/// Where a server is and how it is trusted: everything that makes two connections different.
#[derive(Debug)]
pub struct Upstream {
    /// Which connections may be shared. Those that idle are let go with the last snapshot that has it.
    pub pool: Arc<PoolId>,
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Host of the server's URL, lower-case.
    pub host: Box<str>,
    /// Port of the server's URL.
    pub port: u16,
    /// Addresses to try, in order; empty while the name has never been resolved.
    pub addresses: Arc<[SocketAddr]>,
    /// Why there are no addresses, for the failure's message.
    pub unresolved: Option<Box<str>>,
    /// Trust, client certificate and the name to check; `None` for plain TCP.
    pub tls: Option<UpstreamTls>,
}

/// The TLS half of an upstream.
#[derive(Clone)]
pub struct UpstreamTls {
    /// The pool's, with the sessions that it resumes.
    pub config: Arc<ClientConfig>,
    /// The name or address the server's certificate must bear.
    pub name: ServerName<'static>,
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Bytes that never show in a log: a rendered login.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Takes the bytes in.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// Hands the bytes out, for the wire alone.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
