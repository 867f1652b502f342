//! Names of servers -> addresses: asked ahead, refreshed by TTL, the last good answer kept.
//!
//! Runs on the control thread only; the data path never waits for a name. Prints nothing: what is
//! worth telling comes out as an [`Event`].

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hashbrown::{HashMap, HashSet};
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, sleep_until},
};

use super::lookup::{Answer, Answers, System};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// In the order to try them; empty while the name has never been resolved.
    pub addresses: Arc<[IpAddr]>,
    /// Why there are none; `None` if there are some.
    pub unresolved: Option<Arc<str>>,
}

/// Something that an operator may want to know, and after which addresses may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A name has other addresses than before; many do every minute.
    Moved {
        /// The name.
        host: Arc<str>,
        /// Its addresses now.
        addresses: Arc<[IpAddr]>,
    },
    /// A name that could not be resolved is well again.
    Recovered {
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

impl Event {
    /// The name that it is about.
    pub fn host(&self) -> &str {
        match self {
            Self::Moved { host, .. } | Self::Recovered { host, .. } | Self::Failed { host, .. } => {
                host
            }
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moved { host, addresses } => {
                write!(f, "{host} is at {}", Listed(addresses))
            }
            Self::Recovered { host, addresses } => {
                write!(f, "{host} can be resolved again: {}", Listed(addresses))
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

/// Addresses one after the other.
struct Listed<'a>(&'a [IpAddr]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, ip)| {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{ip}")
        })
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

    /// Keeps exactly `hosts` resolved from now on. Known ones keep their addresses; those that
    /// could not be resolved are asked for again at once, because somebody may have mended them.
    pub fn follow<'a>(&mut self, hosts: impl IntoIterator<Item = &'a str>) {
        let hosts: HashSet<&str> = hosts.into_iter().collect();
        self.forget_others(&hosts);
        for host in &hosts {
            if !self.names.contains_key(*host) {
                let host: Arc<str> = (*host).into();
                self.names.insert(Arc::clone(&host), Known::default());
                self.plan(host, Instant::now());
            }
        }
        let is_ill = |(_, known): &(&Arc<str>, &Known)| known.failure.is_some();
        let ill = self.names.iter().filter(is_ill);
        let ill: Vec<_> = ill.map(|(host, _)| Arc::clone(host)).collect();
        for host in ill {
            self.plan(host, Instant::now());
        }
    }

    /// Keeps no other name than `hosts` resolved from now on.
    pub fn forget_others(&mut self, hosts: &HashSet<&str>) {
        self.names.retain(|host, _| hosts.contains(&**host));
        self.due.retain(|(_, host)| hosts.contains(&**host));
    }

    /// Has `host` asked for at `at`, unless it is due sooner.
    fn plan(&mut self, host: Arc<str>, at: Instant) {
        let Some(known) = self.names.get_mut(&host) else {
            return;
        };
        match known.due.replace(at) {
            Some(sooner) if sooner <= at => known.due = Some(sooner),
            Some(later) => {
                self.due.remove(&(later, Arc::clone(&host)));
                self.due.insert((at, host));
            }
            None => {
                self.due.insert((at, host));
            }
        }
    }

    /// Every name has been asked for at least once.
    pub fn is_settled(&self) -> bool {
        self.names.values().all(|known| known.asked)
    }

    /// Whether `host` has been asked for at least once.
    pub fn has_asked(&self, host: &str) -> bool {
        self.names.get(host).is_some_and(|known| known.asked)
    }

    /// What is known of `host` now.
    pub fn resolution(&self, host: &str) -> Resolution {
        match self.names.get(host) {
            Some(known) => known.resolution(),
            None => Known::default().resolution(),
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
            if let Some(known) = self.names.get_mut(&host) {
                known.due = None;
            }
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
        // It may be due already, if it was given up and came back meanwhile.
        self.plan(host, Instant::now() + wait);
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
    /// When it is asked for next; `None` while it is.
    due: Option<Instant>,
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
            None if !was_well => Some(Event::Recovered {
                host: Arc::clone(host),
                addresses: Arc::clone(&self.addresses),
            }),
            None if moved => Some(Event::Moved {
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

#[cfg(test)]
impl Resolver {
    /// As if a lookup of `host` had just brought `addresses`.
    pub(super) fn pretend(&mut self, host: &str, addresses: &[IpAddr]) {
        let known = self.names.get_mut(host).expect("a name that is followed");
        known.addresses = addresses.into();
        known.asked = true;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::UdpSocket,
        sync::{Mutex, PoisonError},
        thread::{self, JoinHandle},
    };

    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::{RData, Record, RecordType},
    };

    use super::*;

    const HOST: &str = "ingest.acme.example";
    const TTL_SECONDS: u32 = 30;

    /// A name server on a loopback port, with answers that a test may change.
    struct NameServer {
        address: SocketAddr,
        zone: Arc<Mutex<Zone>>,
        thread: Option<JoinHandle<()>>,
    }

    #[derive(Default)]
    struct Zone {
        addresses: Vec<IpAddr>,
        /// Answered in place of addresses.
        fault: Option<ResponseCode>,
        /// Never answered at all.
        mute: Option<RecordType>,
        questions: usize,
        is_over: bool,
    }

    impl NameServer {
        fn start(addresses: &[&str]) -> Self {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a loopback port");
            let address = socket.local_addr().expect("an address");
            let zone = Arc::new(Mutex::new(Zone::default()));
            let shared = Arc::clone(&zone);
            let thread = thread::spawn(move || answer_all(&socket, &shared));
            let server = Self {
                address,
                zone,
                thread: Some(thread),
            };
            server.set(addresses, None);
            server
        }

        fn set(&self, addresses: &[&str], fault: Option<ResponseCode>) {
            let mut zone = self.zone();
            zone.addresses = ips(addresses);
            zone.fault = fault;
        }

        fn zone(&self) -> std::sync::MutexGuard<'_, Zone> {
            self.zone.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl Drop for NameServer {
        fn drop(&mut self) {
            self.zone().is_over = true;
            let waker = UdpSocket::bind("127.0.0.1:0").expect("a loopback port");
            waker.send_to(&[], self.address).expect("loopback is there");
            let thread = self.thread.take().expect("a thread, once");
            thread.join().expect("the name server did not panic");
        }
    }

    fn answer_all(socket: &UdpSocket, zone: &Mutex<Zone>) {
        let mut buffer = [0; 4_096];
        loop {
            let (count, from) = socket.recv_from(&mut buffer).expect("a datagram");
            let mut zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
            if zone.is_over {
                return;
            }
            let question = Message::from_vec(&buffer[..count]).expect("a question");
            zone.questions += 1;
            let query = question.queries[0].clone();
            if zone.mute == Some(query.query_type()) {
                continue;
            }
            let mut response = Message::response(question.metadata.id, question.metadata.op_code);
            response.add_query(query.clone());
            match zone.fault {
                Some(code) => response.metadata.response_code = code,
                None => {
                    let wanted =
                        |ip: &&IpAddr| ip.is_ipv6() == (query.query_type() == RecordType::AAAA);
                    let record = |ip: &IpAddr| {
                        Record::from_rdata(query.name().clone(), TTL_SECONDS, RData::from(*ip))
                    };
                    response.add_answers(zone.addresses.iter().filter(wanted).map(record));
                }
            }
            let bytes = response.to_vec().expect("an answer");
            socket.send_to(&bytes, from).expect("loopback is there");
        }
    }

    fn ips(addresses: &[&str]) -> Vec<IpAddr> {
        let parsed = addresses.iter().map(|text| text.parse().expect(text));
        parsed.collect()
    }

    fn resolver(server: &NameServer, hosts: &str) -> (Resolver, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), hosts).expect("a file");
        let mut system = System::new(Some(server.address));
        system.hosts_path = file.path().to_owned();
        (Resolver::with_system(system), file)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(test);
    }

    /// Makes every name due now, as if its time had passed.
    fn expire(resolver: &mut Resolver) {
        let now = Instant::now();
        let due = std::mem::take(&mut resolver.due);
        resolver.due = due.into_iter().map(|(_, host)| (now, host)).collect();
        for known in resolver.names.values_mut() {
            known.due = known.due.map(|_| now);
        }
    }

    fn moved(addresses: &[&str]) -> Event {
        Event::Moved {
            host: HOST.into(),
            addresses: ips(addresses).into(),
        }
    }

    fn recovered(addresses: &[&str]) -> Event {
        Event::Recovered {
            host: HOST.into(),
            addresses: ips(addresses).into(),
        }
    }

    #[test]
    fn both_families_are_asked_for_and_take_turns() {
        run(async {
            let server = NameServer::start(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]);
            let (mut resolver, _hosts) = resolver(&server, "");
            resolver.follow([HOST]);
            assert!(!resolver.is_settled());
            assert!(resolver.resolution(HOST).unresolved.is_some());
            let expected = ["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"];
            assert_eq!(resolver.events().await, [moved(&expected)]);
            assert!(resolver.is_settled());
            assert_eq!(*resolver.resolution(HOST).addresses, *ips(&expected));
            assert_eq!(resolver.resolution(HOST).unresolved, None);
            let (due, _) = resolver.due.first().expect("a refresh is planned");
            let wait = *due - Instant::now();
            assert!(wait <= Duration::from_secs(TTL_SECONDS.into()));
            assert!(wait > limits::DNS_TTL_FLOOR, "{wait:?}");
        });
    }

    #[test]
    fn new_answers_take_the_place_of_old_ones() {
        run(async {
            let server = NameServer::start(&["192.0.2.1"]);
            let (mut resolver, _hosts) = resolver(&server, "");
            resolver.follow([HOST]);
            resolver.events().await;
            server.set(&["192.0.2.9", "2001:db8::9"], None);
            expire(&mut resolver);
            let expected = ["2001:db8::9", "192.0.2.9"];
            assert_eq!(resolver.events().await, [moved(&expected)]);
        });
    }

    #[test]
    fn the_last_good_answer_outlives_ill_name_servers() {
        run(async {
            let server = NameServer::start(&["192.0.2.1"]);
            let (mut resolver, _hosts) = resolver(&server, "");
            resolver.follow([HOST]);
            resolver.events().await;
            for fault in [ResponseCode::ServFail, ResponseCode::NXDomain] {
                server.set(&[], Some(fault));
                expire(&mut resolver);
                let events = resolver.events().await;
                assert!(
                    matches!(events[..], [Event::Failed { kept: 1, .. }]),
                    "{events:?}"
                );
                let known = resolver.resolution(HOST);
                assert_eq!(*known.addresses, *ips(&["192.0.2.1"]));
                assert_eq!(known.unresolved, None);
                let (due, _) = resolver.due.first().expect("another try is planned");
                assert!(*due <= Instant::now() + limits::DNS_RETRY_FLOOR);
                server.set(&["192.0.2.1"], None);
                expire(&mut resolver);
                assert_eq!(resolver.events().await, [recovered(&["192.0.2.1"])]);
            }
        });
    }

    #[test]
    fn a_name_that_never_resolved_says_why() {
        run(async {
            let server = NameServer::start(&[]);
            let (mut resolver, _hosts) = resolver(&server, "");
            server.set(&[], Some(ResponseCode::NXDomain));
            resolver.follow([HOST]);
            let events = resolver.events().await;
            let told = events[0].to_string();
            assert_eq!(
                told,
                "ingest.acme.example cannot be resolved: the name does not exist; devices get 502 \
                 until it can"
            );
            let known = resolver.resolution(HOST);
            assert!(known.addresses.is_empty());
            assert_eq!(known.unresolved.as_deref(), Some("the name does not exist"));
            assert!(resolver.is_settled());
        });
    }

    #[test]
    fn the_hosts_file_comes_first_for_both_families_and_is_read_afresh() {
        run(async {
            let server = NameServer::start(&["192.0.2.1", "2001:db8::1"]);
            let (mut resolver, hosts) = resolver(&server, "10.0.0.5 other Ingest.ACME.example\n");
            resolver.follow([HOST]);
            assert_eq!(resolver.events().await, [moved(&["10.0.0.5"])]);
            assert_eq!(server.zone().questions, 0);
            fs::write(hosts.path(), "10.0.0.6 ingest.acme.example\n").expect("a file");
            expire(&mut resolver);
            assert_eq!(resolver.events().await, [moved(&["10.0.0.6"])]);
            fs::write(hosts.path(), "").expect("a file");
            expire(&mut resolver);
            let from_server = moved(&["2001:db8::1", "192.0.2.1"]);
            assert_eq!(resolver.events().await, [from_server]);
        });
    }

    #[test]
    fn a_family_that_is_never_answered_does_not_hold_up_the_other() {
        run(async {
            let server = NameServer::start(&["192.0.2.1", "2001:db8::1"]);
            server.zone().mute = Some(RecordType::AAAA);
            let (mut resolver, _hosts) = resolver(&server, "");
            resolver.follow([HOST]);
            let asked = Instant::now();
            assert_eq!(resolver.events().await, [moved(&["192.0.2.1"])]);
            assert!(asked.elapsed() >= limits::DNS_SECOND_FAMILY);
            server.zone().mute = None;
            expire(&mut resolver);
            let expected = ["2001:db8::1", "192.0.2.1"];
            assert_eq!(resolver.events().await, [moved(&expected)]);
        });
    }

    #[test]
    fn an_ill_name_is_asked_for_again_when_the_list_is_read_again() {
        run(async {
            let server = NameServer::start(&["192.0.2.1"]);
            server.set(&[], Some(ResponseCode::Refused));
            let (mut resolver, _hosts) = resolver(&server, "");
            resolver.follow([HOST]);
            resolver.events().await;
            let far = Instant::now() + Duration::from_secs(3_600);
            resolver.due = [(far, HOST.into())].into();
            resolver.names.get_mut(HOST).expect("known").due = Some(far);
            server.set(&["192.0.2.1"], None);
            resolver.follow([HOST]);
            assert_eq!(resolver.due.len(), 1);
            let events = resolver.events().await;
            assert_eq!(events, [recovered(&["192.0.2.1"])]);
            assert_eq!(
                events[0].to_string(),
                "ingest.acme.example can be resolved again: 192.0.2.1"
            );
        });
    }

    #[test]
    fn more_names_than_lookups_at_a_time_are_all_resolved() {
        run(async {
            let server = NameServer::start(&["192.0.2.1"]);
            let (mut resolver, _hosts) = resolver(&server, "");
            let count = limits::DNS_LOOKUPS_MAX * 3;
            let hosts: Vec<_> = (0..count).map(|n| format!("h{n}.example")).collect();
            resolver.follow(hosts.iter().map(String::as_str));
            while !resolver.is_settled() {
                resolver.events().await;
                assert!(resolver.lookups.len() <= limits::DNS_LOOKUPS_MAX);
            }
            for host in &hosts {
                assert_eq!(*resolver.resolution(host).addresses, *ips(&["192.0.2.1"]));
            }
        });
    }

    #[test]
    fn a_name_that_is_given_up_is_forgotten_and_the_others_are_kept() {
        run(async {
            let server = NameServer::start(&["192.0.2.1"]);
            let (mut resolver, _hosts) = resolver(&server, "");
            resolver.follow([HOST, "b.example"]);
            while !resolver.is_settled() {
                resolver.events().await;
            }
            let questions = server.zone().questions;
            resolver.follow([HOST]);
            assert!(resolver.is_settled());
            assert_eq!(resolver.resolution(HOST).addresses.len(), 1);
            assert!(resolver.resolution("b.example").addresses.is_empty());
            assert!(resolver.resolution("b.example").unresolved.is_some());
            assert_eq!(resolver.due.len(), 1);
            assert_eq!(server.zone().questions, questions);
        });
    }

    fn found(addresses: &[&str]) -> Answer {
        Answer::Found(ips(addresses))
    }

    fn answers(v6: Answer, v4: Answer) -> Answers {
        let ttl = Duration::from_secs(100);
        Answers { v6, v4, ttl }
    }

    #[test]
    fn each_family_is_kept_while_it_alone_cannot_be_asked_for() {
        let host: Arc<str> = HOST.into();
        let mut known = Known::default();
        known.learn(
            &host,
            answers(found(&["2001:db8::1"]), found(&["192.0.2.1"])),
        );
        let failed = Answer::Failed("late".into());
        let (event, wait) = known.learn(&host, answers(failed.clone(), found(&["192.0.2.2"])));
        let both = ["2001:db8::1", "192.0.2.2"];
        assert_eq!(event, Some(moved(&both)));
        assert_eq!(wait, limits::DNS_RETRY_FLOOR);
        // Said to be absent, it goes; another order alone is no news.
        let absent = Answer::Absent("none".into());
        let (event, wait) = known.learn(&host, answers(absent.clone(), found(&["192.0.2.2"])));
        assert_eq!(event, Some(moved(&["192.0.2.2"])));
        assert_eq!(wait, Duration::from_secs(100));
        // No family at all: what is known stays.
        let (event, _) = known.learn(&host, answers(absent, failed));
        assert!(matches!(event, Some(Event::Failed { kept: 1, .. })));
        assert_eq!(*known.addresses, *ips(&["192.0.2.2"]));
    }

    #[test]
    fn another_order_is_no_news_and_a_failure_is_told_once() {
        let host: Arc<str> = HOST.into();
        let mut known = Known::default();
        let none = || Answer::Absent("none".into());
        known.learn(&host, answers(none(), found(&["192.0.2.1", "192.0.2.2"])));
        let (event, _) = known.learn(&host, answers(none(), found(&["192.0.2.2", "192.0.2.1"])));
        assert_eq!(event, None);
        assert_eq!(known.addresses[0], ips(&["192.0.2.1"])[0]);
        let (event, _) = known.learn(&host, Answers::failed("late"));
        assert!(event.is_some());
        let (event, wait) = known.learn(&host, Answers::failed("late"));
        assert_eq!(event, None);
        assert_eq!(wait, 2 * limits::DNS_RETRY_FLOOR);
    }

    #[test]
    fn waits_and_lists_are_bounded() {
        assert_eq!(back_off(1), limits::DNS_RETRY_FLOOR);
        assert_eq!(back_off(3), 4 * limits::DNS_RETRY_FLOOR);
        assert_eq!(back_off(u32::MAX), limits::DNS_RETRY_CEILING);
        let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let few = ips(&["2001:db8::1"]);
        let ordered = in_order(&few, &many);
        assert_eq!(ordered.len(), limits::ADDRESSES_PER_UPSTREAM_MAX);
        assert_eq!(ordered[..2], [few[0], many[0]]);
        let host: Arc<str> = HOST.into();
        for (ttl, expected) in [
            (0, limits::DNS_TTL_FLOOR),
            (86_400, limits::DNS_TTL_CEILING),
        ] {
            let ttl = Duration::from_secs(ttl);
            let fresh = Answers {
                ttl,
                ..answers(found(&["2001:db8::1"]), found(&["192.0.2.1"]))
            };
            assert_eq!(Known::default().learn(&host, fresh).1, expected);
        }
    }
}
