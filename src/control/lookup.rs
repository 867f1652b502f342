//! One name -> what the hosts file, else the name servers, say of it now.
//!
//! Remembers nothing: what is worth keeping is kept by the resolver. A lookup that finds nothing
//! says why.

use std::{
    fmt, fs, iter,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{Query, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
    system_conf,
};
use tokio::time::timeout;

use crate::limits;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// What one lookup of a name brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) v6: Answer,
    pub(super) v4: Answer,
    /// How long they may be believed.
    pub(super) ttl: Duration,
}

/// What is known of one family of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// At least one address.
    Found(Vec<IpAddr>),
    /// The name servers say that there is none.
    Absent(Arc<str>),
    /// The name servers could not say.
    Failed(Arc<str>),
}

impl Answers {
    /// Neither family could be asked for.
    pub(super) fn failed(reason: &str) -> Self {
        let failed = Answer::Failed(reason.into());
        Self {
            v6: failed.clone(),
            v4: failed,
            ttl: Duration::ZERO,
        }
    }

    /// What is wrong; a name needs one family only.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        match (&self.v6, &self.v4) {
            // "No name server answers" says more than "has no IPv6 address".
            (_, Answer::Failed(reason)) | (Answer::Failed(reason), _) => Some(Arc::clone(reason)),
            (Answer::Absent(_), Answer::Absent(reason)) => Some(Arc::clone(reason)),
            _ => None,
        }
    }

    /// The name has an address.
    pub(super) fn found_any(&self) -> bool {
        matches!(self.v6, Answer::Found(_)) || matches!(self.v4, Answer::Found(_))
    }
}

/// How this machine resolves names.
#[derive(Debug)]
pub(super) struct System {
    nameserver: Option<SocketAddr>,
    pub(super) hosts_path: PathBuf,
    /// The name servers; rebuilt when the system's list changes.
    servers: Result<Servers, Arc<str>>,
    /// When the system's list was last written.
    written: Option<SystemTime>,
}

impl System {
    /// The hosts file, and `nameserver` in place of those of the system.
    pub(super) fn new(nameserver: Option<SocketAddr>) -> Self {
        Self {
            nameserver,
            hosts_path: PathBuf::from(HOSTS),
            servers: Servers::new(nameserver),
            written: written(Path::new(RESOLV_CONF)),
        }
    }

    /// A lookup of `host`, which may run while others do.
    pub(super) fn lookup(&mut self, host: &str) -> impl Future<Output = Answers> + Send + use<> {
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
            let v6 = self.ask(&candidate, RecordType::AAAA);
            let v4 = self.ask(&candidate, RecordType::A);
            let ((v6, v6_ttl), (v4, v4_ttl)) = both(v6, v4).await;
            let ttl = v6_ttl.into_iter().chain(v4_ttl).min().unwrap_or_default();
            last = Answers { v6, v4, ttl };
            if !matches!((&last.v6, &last.v4), (Answer::Absent(_), Answer::Absent(_))) {
                break;
            }
        }
        last
    }

    async fn ask(&self, name: &Name, family: RecordType) -> Dated {
        let lookup = match self.dns.lookup(name.clone(), family).await {
            Ok(lookup) => lookup,
            Err(error) => return (refusal(&error), None),
        };
        let records = lookup.answers();
        let addresses = addresses(name, family, records);
        if addresses.is_empty() {
            return (Answer::Absent("the name has no address".into()), None);
        }
        let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
        let ttl = Duration::from_secs(ttl.into());
        (Answer::Found(addresses), Some(ttl))
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
type Dated = (Answer, Option<Duration>);

/// Waits for both families; once one has addresses, not for long for the other.
///
/// Some networks drop every question for AAAA: a server must not be out of reach because of that.
async fn both(v6: impl Future<Output = Dated>, v4: impl Future<Output = Dated>) -> (Dated, Dated) {
    let (mut v6, mut v4) = (pin!(v6), pin!(v4));
    tokio::select! {
        first = &mut v6 => {
            let second = soon(&first, v4).await;
            (first, second)
        }
        first = &mut v4 => {
            let second = soon(&first, v6).await;
            (second, first)
        }
    }
}

async fn soon(first: &Dated, second: impl Future<Output = Dated>) -> Dated {
    if !matches!(first, (Answer::Found(_), _)) {
        return second.await;
    }
    let late = || {
        (
            Answer::Failed("no name server answered in time".into()),
            None,
        )
    };
    let patience = timeout(limits::DNS_SECOND_FAMILY, second).await;
    patience.unwrap_or_else(|_| late())
}

/// The addresses of `name`, each once, also behind its aliases: a name server may say more than it was asked.
fn addresses(name: &Name, family: RecordType, records: &[Record]) -> Vec<IpAddr> {
    let mut name = name;
    // As many steps as there are records, or an alias of itself would never end.
    for _ in records {
        let mut own = records.iter().filter(|record| record.name == *name);
        let alias = own.find_map(|record| match &record.data {
            RData::CNAME(alias) => Some(&alias.0),
            _ => None,
        });
        match alias {
            Some(alias) => name = alias,
            None => break,
        }
    }
    let mut addresses = Vec::new();
    for record in records {
        if record.name == *name
            && record.record_type() == family
            && let Some(address) = record.data.ip_addr()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    addresses
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

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::CNAME;

    use super::*;

    #[test]
    fn a_name_servers_answer_counts_for_what_it_was_asked() {
        let name = |text: &str| Name::from_ascii(text).expect("a name");
        let record = |owner: &str, data: &str| {
            let data = match data.parse::<IpAddr>() {
                Ok(address) => address.into(),
                Err(_) => RData::CNAME(CNAME(name(data))),
            };
            Record::from_rdata(name(owner), 30, data)
        };
        let found = |family, records: &[Record]| -> Vec<String> {
            let addresses = addresses(&name("ingest.example."), family, records);
            addresses.iter().map(ToString::to_string).collect()
        };
        let (v4, v6) = (RecordType::A, RecordType::AAAA);
        let direct = [
            record("INGEST.example.", "192.0.2.7"),
            record("other.example.", "192.0.2.8"),
            record("ingest.example.", "192.0.2.9"),
            record("ingest.example.", "192.0.2.7"),
            record("ingest.example.", "2001:db8::7"),
        ];
        assert_eq!(found(v4, &direct), ["192.0.2.7", "192.0.2.9"]);
        assert_eq!(found(v6, &direct), ["2001:db8::7"]);
        let aliased = [
            record("edge.example.", "192.0.2.1"),
            record("other.example.", "192.0.2.8"),
            record("cdn.example.", "edge.example."),
            record("ingest.example.", "cdn.example."),
        ];
        assert_eq!(found(v4, &aliased), ["192.0.2.1"]);
        let circular = [
            record("cdn.example.", "ingest.example."),
            record("ingest.example.", "cdn.example."),
        ];
        assert_eq!(found(v4, &circular), Vec::<String>::new());
    }

    #[test]
    fn short_names_are_completed_as_resolv_conf_says() {
        let servers = Servers {
            search: [Name::from_ascii("corp.example").expect("a name")].into(),
            ..Servers::new(Some(SocketAddr::from(([127, 0, 0, 1], 53)))).expect("no socket yet")
        };
        let candidates = |name: &str| -> Vec<String> {
            let name = Name::from_ascii(name).expect("a name");
            let candidates = servers.candidates(&name);
            candidates.iter().map(ToString::to_string).collect()
        };
        assert_eq!(candidates("ingest"), ["ingest.corp.example.", "ingest."]);
        assert_eq!(candidates("a.b"), ["a.b.", "a.b.corp.example."]);
        assert_eq!(candidates("a.b."), ["a.b."]);
    }
}
