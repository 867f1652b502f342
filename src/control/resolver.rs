//! Names of servers -> addresses: asked ahead, refreshed by TTL, the last good answer kept.
//!
//! Runs on the control thread only; the data path never waits for a name. The hosts file comes
//! first, as everywhere on the system, then the name servers. Says nothing by itself: what is
//! worth telling comes out as an [`Event`].

use std::{
    collections::BTreeSet,
    fmt, fs, iter,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hashbrown::{HashMap, HashSet};
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RecordType},
    },
    system_conf,
};
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, sleep_until},
};

use crate::limits;

/// The names in use, with their addresses.
#[derive(Debug)]
pub struct Resolver {
    system: System,
    names: HashMap<Arc<str>, Known>,
    /// When which name is asked for next; a name that is being asked for is absent.
    due: BTreeSet<(Instant, Arc<str>)>,
    lookups: JoinSet<Answers>,
    /// Whose lookup each task is, so that a task that fails is missed.
    asking: HashMap<Id, Arc<str>>,
}

/// What is known of a name's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolution {
    /// In the order to try them; empty while the name has never been resolved.
    pub addresses: Arc<[IpAddr]>,
    /// Why there are none.
    pub unresolved: Option<Arc<str>>,
}

/// Something that an operator may want to know, and after which addresses may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A name has other addresses than before, or is well again.
    Resolved {
        /// The name.
        host: Arc<str>,
        /// Its addresses now.
        addresses: Arc<[IpAddr]>,
    },
    /// A name could not be resolved, although it could before or was asked for the first time.
    Failed {
        /// The name.
        host: Arc<str>,
        /// What went wrong.
        reason: Arc<str>,
        /// How many addresses of the last good answer stay in use.
        kept: usize,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolved { host, addresses } => {
                write!(f, "{host} is at")?;
                addresses.iter().try_for_each(|ip| write!(f, " {ip}"))
            }
            Self::Failed { host, reason, kept } => {
                write!(f, "{host} cannot be resolved: {reason}; ")?;
                match kept {
                    0 => f.write_str("devices get 502 until it can"),
                    _ => f.write_str("its last known addresses stay in use"),
                }
            }
        }
    }
}

impl Resolver {
    /// Follows no name yet. `nameserver` is asked in place of those of the system.
    pub fn new(nameserver: Option<SocketAddr>) -> Self {
        Self::with_system(System::new(nameserver))
    }

    fn with_system(system: System) -> Self {
        Self {
            system,
            names: HashMap::new(),
            due: BTreeSet::new(),
            lookups: JoinSet::new(),
            asking: HashMap::new(),
        }
    }

    /// Keeps exactly `hosts` resolved from now on. Known ones keep their addresses.
    pub fn follow<'a>(&mut self, hosts: impl IntoIterator<Item = &'a str>) {
        let hosts: HashSet<&str> = hosts.into_iter().collect();
        self.names.retain(|host, _| hosts.contains(&**host));
        self.due.retain(|(_, host)| hosts.contains(&**host));
        let now = Instant::now();
        for host in hosts {
            if !self.names.contains_key(host) {
                let host: Arc<str> = host.into();
                self.names.insert(Arc::clone(&host), Known::default());
                self.due.insert((now, host));
            }
        }
    }

    /// Every name has been asked for at least once.
    pub fn is_settled(&self) -> bool {
        self.names.values().all(|known| known.asked)
    }

    /// What is known of `host` now.
    pub fn resolution(&self, host: &str) -> Resolution {
        match self.names.get(host) {
            Some(known) => known.resolution(),
            None => Resolution::default(),
        }
    }

    /// Looks up what is due, until there is something to tell; never returns an empty list.
    ///
    /// May be dropped at any time: the next call goes on where this one was.
    pub async fn events(&mut self) -> Vec<Event> {
        loop {
            self.ask();
            let has_room = self.lookups.len() < limits::DNS_LOOKUPS_MAX;
            let next = self.due.first().map(|(at, _)| *at).filter(|_| has_room);
            tokio::select! {
                Some(done) = self.lookups.join_next_with_id() => {
                    let mut events = Vec::new();
                    let mut done = Some(done);
                    // What came in together is told together, and published once.
                    while let Some(answer) = done {
                        events.extend(self.take_in(answer));
                        done = self.lookups.try_join_next_with_id();
                    }
                    if !events.is_empty() {
                        return events;
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    fn ask(&mut self) {
        let now = Instant::now();
        while self.lookups.len() < limits::DNS_LOOKUPS_MAX
            && self.due.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, host)) = self.due.pop_first()
        {
            let lookup = self.system.lookup(&host);
            let task = self.lookups.spawn(lookup);
            self.asking.insert(task.id(), host);
        }
    }

    fn take_in(&mut self, done: Result<(Id, Answers), tokio::task::JoinError>) -> Option<Event> {
        let (id, answers) = match done {
            Ok(done) => done,
            Err(error) => (error.id(), Answers::failed("the lookup broke off")),
        };
        let host = self.asking.remove(&id)?;
        // A name may have been given up while it was asked for.
        let known = self.names.get_mut(&host)?;
        let (event, wait) = known.learn(&host, answers);
        // A name that was given up and came back is already due.
        if !self.due.iter().any(|(_, waiting)| *waiting == host) {
            self.due.insert((Instant::now() + wait, host));
        }
        event
    }
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Known {
    v6: Vec<IpAddr>,
    v4: Vec<IpAddr>,
    /// Both, in the order to try them.
    addresses: Arc<[IpAddr]>,
    /// Why the last lookup failed.
    failure: Option<Arc<str>>,
    /// Failed lookups in a row.
    failures: u32,
    asked: bool,
}

/// What one lookup of a name brought.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answers {
    v6: Answer,
    v4: Answer,
    /// How long they may be believed.
    ttl: Duration,
}

/// What is known of one family of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// At least one address.
    Found(Vec<IpAddr>),
    /// The name servers say that there is none.
    Absent(Arc<str>),
    /// The name servers could not say.
    Failed(Arc<str>),
}

impl Answers {
    fn failed(reason: &str) -> Self {
        let failed = Answer::Failed(reason.into());
        Self {
            v6: failed.clone(),
            v4: failed,
            ttl: Duration::ZERO,
        }
    }

    /// What is wrong; a name needs one family only.
    fn failure(&self) -> Option<Arc<str>> {
        match (&self.v6, &self.v4) {
            // "No name server answers" says more than "has no IPv6 address".
            (_, Answer::Failed(reason)) | (Answer::Failed(reason), _) => Some(Arc::clone(reason)),
            (Answer::Absent(_), Answer::Absent(reason)) => Some(Arc::clone(reason)),
            _ => None,
        }
    }

    fn found_any(&self) -> bool {
        matches!(self.v6, Answer::Found(_)) || matches!(self.v4, Answer::Found(_))
    }
}

impl Known {
    fn resolution(&self) -> Resolution {
        let is_empty = self.addresses.is_empty();
        Resolution {
            addresses: Arc::clone(&self.addresses),
            unresolved: is_empty.then(|| match &self.failure {
                Some(reason) => Arc::clone(reason),
                None => "the name server has not answered yet".into(),
            }),
        }
    }

    /// Takes answers in; returns what to tell and how long to wait before the next lookup.
    ///
    /// A family that could not be asked for keeps its last good answer. One that is absent loses
    /// it only if the other one is there: a name without any address is somebody's mistake.
    fn learn(&mut self, host: &Arc<str>, answers: Answers) -> (Option<Event>, Duration) {
        let failure = answers.failure();
        let any = answers.found_any();
        // Both families are kept, whichever of them moved: no short cut between the two.
        let moved = any && (keep(&mut self.v6, answers.v6) | keep(&mut self.v4, answers.v4));
        if moved {
            self.addresses = in_order(&self.v6, &self.v4);
        }
        let first = !self.asked;
        let was_well = self.failure.is_none();
        self.asked = true;
        self.failures = match failure {
            Some(_) => self.failures.saturating_add(1),
            None => 0,
        };
        // One family alone is enough; what the other one lacks is tried again, and not told.
        self.failure = failure.clone().filter(|_| !any);
        let event = match &self.failure {
            None if moved || !was_well => Some(Event::Resolved {
                host: Arc::clone(host),
                addresses: Arc::clone(&self.addresses),
            }),
            Some(reason) if first || was_well => Some(Event::Failed {
                host: Arc::clone(host),
                reason: Arc::clone(reason),
                kept: self.addresses.len(),
            }),
            _ => None,
        };
        let believed = answers
            .ttl
            .clamp(limits::DNS_TTL_FLOOR, limits::DNS_TTL_CEILING);
        let wait = match (failure, any) {
            (None, _) => believed,
            (Some(_), true) => believed.min(back_off(self.failures)),
            (Some(_), false) => back_off(self.failures),
        };
        (event, wait)
    }
}

/// Puts `answer` in the place of `known`; says whether the set of addresses changed.
///
/// Another order alone is no change: name servers rotate, and each change costs a publication.
fn keep(known: &mut Vec<IpAddr>, answer: Answer) -> bool {
    let fresh = match answer {
        Answer::Found(addresses) => addresses,
        Answer::Absent(_) => Vec::new(),
        Answer::Failed(_) => return false,
    };
    let sorted = |addresses: &[IpAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
    if sorted(known) == sorted(&fresh) {
        return false;
    }
    *known = fresh;
    true
}

/// The order of RFC 8305 §4: families take turns, IPv6 first. At most as many as are ever tried.
fn in_order(v6: &[IpAddr], v4: &[IpAddr]) -> Arc<[IpAddr]> {
    let turns = v6.len().max(v4.len());
    (0..turns)
        .flat_map(|turn| v6.get(turn).into_iter().chain(v4.get(turn)))
        .copied()
        .take(limits::ADDRESSES_PER_UPSTREAM_MAX)
        .collect()
}

/// Doubles from the floor to the ceiling.
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let wait = limits::DNS_RETRY_FLOOR * (1 << doublings);
    wait.min(limits::DNS_RETRY_CEILING)
}

/// How this machine resolves names.
#[derive(Debug)]
struct System {
    nameserver: Option<SocketAddr>,
    hosts_path: PathBuf,
    /// The name servers; rebuilt when the system's list changes.
    servers: Result<Servers, Arc<str>>,
    /// When the system's list was last written.
    written: Option<SystemTime>,
}

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

impl System {
    fn new(nameserver: Option<SocketAddr>) -> Self {
        Self {
            nameserver,
            hosts_path: PathBuf::from(HOSTS),
            servers: Servers::new(nameserver),
            written: written(Path::new(RESOLV_CONF)),
        }
    }

    /// A lookup of `host`, which may run while others do.
    fn lookup(&mut self, host: &str) -> impl Future<Output = Answers> + Send + use<> {
        let written = written(Path::new(RESOLV_CONF));
        if self.nameserver.is_none() && written != self.written {
            self.servers = Servers::new(None);
            self.written = written;
        }
        let name = Name::from_ascii(host);
        let listed = name.as_ref().ok().and_then(|name| self.in_hosts_file(name));
        let servers = self.servers.clone();
        async move {
            match (listed, name, servers) {
                (Some(listed), _, _) => listed,
                (_, Err(_), _) => Answers::failed("it is no DNS name"),
                (_, _, Err(reason)) => Answers::failed(&reason),
                (_, Ok(name), Ok(servers)) => servers.lookup(name).await,
            }
        }
    }

    /// The hosts file's own answer. A name that it lists is never asked for elsewhere, not even
    /// for the other family.
    fn in_hosts_file(&self, name: &Name) -> Option<Answers> {
        let file = fs::File::open(&self.hosts_path).ok()?;
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(file).ok()?;
        let mut name = name.to_lowercase();
        name.set_fqdn(true);
        let find = |record_type| {
            let lookup = hosts.lookup_static_host(&Query::query(name.clone(), record_type));
            let records = lookup.iter().flat_map(|lookup| lookup.answers());
            let addresses: Vec<_> = records.filter_map(|record| record.data.ip_addr()).collect();
            match addresses.is_empty() {
                true => Answer::Absent("the hosts file has no address for it".into()),
                false => Answer::Found(addresses),
            }
        };
        let answers = Answers {
            v6: find(RecordType::AAAA),
            v4: find(RecordType::A),
            ttl: limits::HOSTS_FILE_TTL,
        };
        answers.found_any().then_some(answers)
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|found| found.modified()).ok()
}

/// The name servers, and how short names are completed.
#[derive(Clone)]
struct Servers {
    dns: TokioResolver,
    search: Arc<[Name]>,
    ndots: usize,
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers")
            .field("search", &self.search)
            .field("ndots", &self.ndots)
            .finish_non_exhaustive()
    }
}

impl Servers {
    fn new(nameserver: Option<SocketAddr>) -> Result<Self, Arc<str>> {
        let (config, mut options) = match nameserver {
            Some(address) => (only(address), ResolverOpts::default()),
            None => system_conf::read_system_conf().map_err(|error| -> Arc<str> {
                format!("{RESOLV_CONF} names no name server: {error}").into()
            })?,
        };
        // The hosts file is read here, for both families at once and afresh each time; what is
        // worth keeping is kept here as well, so that a refresh is never answered from a cache.
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = 0;
        let search = config.search().to_vec().into();
        let ndots = options.ndots;
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let dns = builder
            .build()
            .map_err(|error| Arc::from(format!("the resolver did not start: {error}")))?;
        Ok(Self { dns, search, ndots })
    }

    /// Asks for both families of each completed name in turn, until one of them exists.
    ///
    /// A name whose servers are ill ends the search: the next completion may be another machine.
    async fn lookup(self, name: Name) -> Answers {
        let mut last = Answers::failed("it is no DNS name");
        for candidate in self.candidates(&name) {
            let v6 = self.dns.lookup(candidate.clone(), RecordType::AAAA);
            let v4 = self.dns.lookup(candidate, RecordType::A);
            let (v6, v4) = tokio::join!(v6, v4);
            let (v6, v6_ttl) = answer(v6);
            let (v4, v4_ttl) = answer(v4);
            let ttl = v6_ttl.into_iter().chain(v4_ttl).min().unwrap_or_default();
            last = Answers { v6, v4, ttl };
            if !matches!((&last.v6, &last.v4), (Answer::Absent(_), Answer::Absent(_))) {
                break;
            }
        }
        last
    }

    /// The complete names that a name may stand for, in the order of resolv.conf(5).
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut own = name.clone();
        own.set_fqdn(true);
        if name.is_fqdn() || name.is_localhost() {
            return vec![own];
        }
        let completed = self
            .search
            .iter()
            .filter_map(|domain| name.clone().append_domain(domain).ok());
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        match dots >= self.ndots {
            true => iter::once(own).chain(completed).collect(),
            false => completed.chain(iter::once(own)).collect(),
        }
    }
}

fn only(nameserver: SocketAddr) -> ResolverConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    let connections = connections.map(|mut connection| {
        connection.port = nameserver.port();
        connection
    });
    let server = NameServerConfig::new(nameserver.ip(), true, connections.to_vec());
    ResolverConfig::from_parts(None, Vec::new(), vec![server])
}

/// One family's answer, and how long it may be believed.
fn answer(
    result: Result<hickory_resolver::lookup::Lookup, NetError>,
) -> (Answer, Option<Duration>) {
    let lookup = match result {
        Ok(lookup) => lookup,
        Err(error) => return (refusal(&error), None),
    };
    let records = lookup.answers();
    let addresses: Vec<_> = records.iter().filter_map(|r| r.data.ip_addr()).collect();
    if addresses.is_empty() {
        return (Answer::Absent("the name has no address".into()), None);
    }
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    let ttl = Duration::from_secs(ttl.into());
    (Answer::Found(addresses), Some(ttl))
}

fn refusal(error: &NetError) -> Answer {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Answer::Absent("the name does not exist".into()),
            ResponseCode::NoError => Answer::Absent("the name has no address".into()),
            code => Answer::Failed(format!("the name server answered: {code}").into()),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => {
            Answer::Failed(format!("the name server answered: {code}").into())
        }
        NetError::Timeout => Answer::Failed("no name server answered in time".into()),
        error => Answer::Failed(format!("no name server could be asked: {error}").into()),
    }
}
