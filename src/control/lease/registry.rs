//! Live identity put together: sources' words go to the table, and what follows to whoever listens.
//!
//! The order is what the promise rests on: table, journal, publication, reply. A reply that says
//! "done" is sent when every core sees the change.

use std::{
    collections::HashMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use tokio::time::{Instant, sleep_until};

use super::{
    claim::{Lease, Offer, Place, Refused, UnixMs},
    directory::Directory,
    feed::{self, Batch, Feed, Job, Outcome},
    journal::{Journal, Memory, Record},
    names::{self, Fault, Names},
    openvpn::{poll::Heard, report::HubReport, told::Told},
    protocol::{self, Changed, Event, Happening, Listed, Op, Reply, Request, Shown},
    seen::Seen,
    table::{Commit, LeaseTable},
    watch::Watchers,
};
use crate::{
    config::settings::{Hub, Leases, Listen},
    limits,
    snapshot::{
        identity::IdentityTable,
        scope::{Identities, Scope},
    },
};

/// Everything about leases that lives while the gateway runs.
#[derive(Debug)]
pub struct Registry {
    table: LeaseTable,
    names: Names,
    feed: Option<Feed>,
    journal: Option<Journal>,
    watchers: Watchers,
    /// What of each hub's report could not be served, as it was told.
    told: HashMap<String, Told>,
    unconfirmed: Duration,
    alive: Instant,
    counts: Counts,
}

/// What has been counted since the start.
#[derive(Debug, Default)]
struct Counts {
    changes: u64,
    refused: u64,
    given_up: u64,
}

/// What there is to do.
#[derive(Debug)]
pub enum Work {
    /// Requests of feeds.
    Feed(Batch),
    /// News of an OpenVPN hub.
    Hub(Heard),
    /// Time has passed.
    Time,
}

/// Why leases cannot live.
#[derive(Debug)]
pub enum RegistryError {
    /// The feed's socket cannot be made.
    Socket(PathBuf, io::Error),
    /// The journal cannot be read or written.
    Journal(PathBuf, io::Error),
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path, error) => write!(
                f,
                "the feed's socket {} can't be made: {error}; look at leases.socket",
                path.display()
            ),
            Self::Journal(path, error) => write!(
                f,
                "the journal of leases {} can't be used: {error}; look at leases.journal",
                path.display()
            ),
        }
    }
}

impl std::error::Error for RegistryError {}

impl Registry {
    /// Remembers what the journal has, listens to feeds, and asks hubs. Answers what there is to tell.
    /// To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn start(
        settings: &Leases,
        listen: &[Listen],
        hubs: &[Hub],
        directory: Directory,
        fixed: Arc<IdentityTable>,
    ) -> Result<(Self, Vec<String>), RegistryError> {
        let names = Names::new(listen);
        let mut registry = Self {
            table: LeaseTable::new(names.scopes()),
            names,
            feed: None,
            journal: None,
            watchers: Watchers::new(limits::WATCH_BYTES_MAX),
            told: HashMap::new(),
            unconfirmed: settings.unconfirmed,
            alive: Instant::now(),
            counts: Counts::default(),
        };
        registry.table.advance(now());
        registry.table.adopt(directory, fixed);
        registry.follow(hubs);
        let mut news = Vec::new();
        if let Some(path) = &settings.socket {
            let users = settings.users.iter().map(|user| user.uid);
            let feed = Feed::listen(path, users.collect());
            let feed = feed.map_err(|error| RegistryError::Socket(path.clone(), error))?;
            registry.feed = Some(feed);
        }
        if let Some(path) = &settings.journal {
            let fault = |error| RegistryError::Journal(path.clone(), error);
            let (mut journal, memory) = Journal::open(path).map_err(fault)?;
            registry.remember(memory, &mut news);
            // Nobody waits for it.
            drop(registry.table.commit());
            // Each line says by itself now until when it is believed: that the gateway is at work
            // makes none of them younger.
            registry.rewrite(&mut journal).map_err(fault)?;
            registry.journal = Some(journal);
        }
        Ok((registry, news))
    }

    /// Whose addresses are whose now.
    pub fn identities(&self) -> Identities {
        self.table.identities()
    }

    /// Puts the configuration's devices, addresses and hubs in the place of those before; answers
    /// what there is to tell. The identities are new then.
    pub fn adopt(
        &mut self,
        directory: Directory,
        fixed: Arc<IdentityTable>,
        hubs: &[Hub],
    ) -> Vec<String> {
        self.table.advance(now());
        self.follow(hubs);
        let ended = self.table.adopt(directory, fixed);
        if let Some(commit) = self.table.commit() {
            self.record(&commit);
            self.tell_watchers(&commit);
        }
        match ended.len() {
            0 => Vec::new(),
            count => vec![format!(
                "{count} leases end: the configuration no longer has their devices, such as {}",
                ended[0]
            )],
        }
    }

    /// Asks `hubs` from now on; the leases of those that are no longer among them end.
    fn follow(&mut self, hubs: &[Hub]) {
        for gone in self.names.hubs.follow(hubs) {
            self.table.forget_hub(&gone.source());
            self.told.remove(&gone.source());
        }
        for hub in hubs {
            // Beyond all sources that there may be, its reports will be refused.
            let _ = self.table.expect_reports(&hub.source());
        }
    }

    /// Waits until there is something to do. May be dropped; nothing is lost.
    pub async fn next(&mut self) -> Work {
        let timer = self.table.next_timer().map(|at| instant_of(at, now()));
        let at = timer.map_or(self.alive, |timer| timer.min(self.alive));
        let feed = self.feed.as_mut();
        tokio::select! {
            batch = async {
                match feed {
                    Some(feed) => feed.next().await,
                    None => std::future::pending().await,
                }
            } => Work::Feed(batch),
            heard = self.names.hubs.next() => Work::Hub(heard),
            () = sleep_until(at) => Work::Time,
        }
    }

    /// Does what there is to do; answers what there is to tell. `publish` hears of new identities
    /// before anybody has a reply.
    pub fn apply(
        &mut self,
        work: Work,
        publish: impl FnOnce(Identities, &[(Scope, IpNet)]),
    ) -> Vec<String> {
        self.table.advance(now());
        let mut done = Vec::new();
        let mut news = Vec::new();
        match work {
            Work::Feed(batch) => {
                self.take(batch, &mut done);
                // Whatever else has come shares the publication.
                while let Some(batch) = self.feed.as_mut().and_then(Feed::try_next) {
                    self.take(batch, &mut done);
                    if done.len() >= limits::FEED_CONNECTIONS_MAX {
                        break;
                    }
                }
            }
            Work::Hub(Heard::Report(report)) => news = self.reconcile(report),
            Work::Hub(Heard::Failure(failure)) => {
                news.push(format!("{}: {failure}", failure.source));
            }
            Work::Time => self.note_alive(),
        }
        if let Some(commit) = self.table.commit() {
            self.counts.changes += commit.touched.len() as u64;
            self.record(&commit);
            if !commit.moved.is_empty() {
                publish(commit.identities.clone(), &commit.moved);
            }
            self.tell_watchers(&commit);
        }
        let revision = self.table.revision();
        for (batch, answers) in done {
            self.answer(batch, answers, revision);
        }
        thread::yield_now();
        news
    }

    /// What has been counted, as words of the line that SIGUSR1 asks for.
    pub fn counts(&self) -> String {
        format!(
            "leases={} lease_changes={} lease_refused={} lease_given_up={} lease_watchers_lost={}",
            self.table.len(),
            self.counts.changes,
            self.counts.refused,
            self.counts.given_up,
            self.watchers.lost(),
        )
    }

    /// Takes a batch's changes in, and notes what will be answered. Of one whose sender is gone only
    /// what ends leases: it has given up, and may have told others that nothing was leased.
    fn take(&mut self, batch: Batch, done: &mut Vec<(Batch, Vec<Answer>)>) {
        let is_given_up = batch.peer.is_gone();
        let jobs = batch.jobs.iter().enumerate();
        let mut is_over = false;
        let answers = jobs.map_while(|(position, job)| {
            feed::give_way(position);
            // Behind a request to watch, nothing would be answered.
            let answer = (!is_over).then(|| match is_given_up && job.leases() {
                true => {
                    self.counts.given_up += 1;
                    Answer::Nobody
                }
                false => self.perform(job),
            });
            is_over = matches!(answer, Some(Answer::Watch));
            answer
        });
        let answers = answers.collect();
        done.push((batch, answers));
    }

    fn perform(&mut self, job: &Job) -> Answer {
        let (id, outcome) = match job {
            Job::Refused(reply) => {
                self.counts.refused += 1;
                return Answer::Is(reply.clone());
            }
            Job::Single(request) => match request.op {
                Some(Op::Add) => (request.id, self.add(request).map(|()| None)),
                Some(Op::Release) => (request.id, self.release(request).map(|()| None)),
                Some(Op::List) => return Answer::List,
                Some(Op::Watch) => return Answer::Watch,
                _ => return Answer::Is(Reply::refused(request.id, "malformed", "has no op")),
            },
            Job::Sync { head, lines, id } => match self.sync(head, lines) {
                Ok(count) => (*id, Ok(Some(count))),
                Err((line, (error, reason))) => {
                    self.counts.refused += 1;
                    let reply = Reply::refused(*id, error, reason);
                    return Answer::Is(Reply { line, ..reply });
                }
            },
        };
        match outcome {
            Ok(count) => Answer::Done { id, count },
            Err((error, reason)) => {
                self.counts.refused += 1;
                Answer::Is(Reply::refused(id, error, reason))
            }
        }
    }

    fn add(&mut self, request: &Request) -> Result<(), Fault> {
        let source = names::source(request)?;
        let offers = self.names.offers(request, now())?;
        let added = self.table.add_all(source, request.epoch, &offers);
        added.map_err(refused)
    }

    fn release(&mut self, request: &Request) -> Result<(), Fault> {
        let source = names::source(request)?;
        if let (None, Some(session)) = (&request.address, &request.session) {
            if request.scope.is_some() || request.any_session {
                let wanted = "ends a whole session, which any_session and scope say nothing of";
                return Err(names::malformed(wanted));
            }
            let released = self.table.release_session(source, request.epoch, session);
            return released.map_err(refused);
        }
        let place = self.names.place(request)?;
        let session = match request.any_session {
            true => None,
            false => Some(request.session.as_deref().unwrap_or_default()),
        };
        let released = self.table.release(source, request.epoch, place, session);
        released.map_err(refused)
    }

    /// Takes a set in; says which line of it is at fault, the first being 1, if it is one.
    fn sync(&mut self, head: &Request, lines: &[Request]) -> Result<usize, (Option<usize>, Fault)> {
        let whole = |fault| (None, fault);
        let at = |position: usize, (error, reason): Fault| {
            let line = position + 1;
            (
                Some(line),
                (error, format!("line {line} of the set: {reason}")),
            )
        };
        let source = names::source(head).map_err(whole)?;
        let mut offers = Vec::with_capacity(lines.len());
        for (position, line) in lines.iter().enumerate() {
            offers.push(
                self.names
                    .offer(line, now())
                    .map_err(|fault| at(position, fault))?,
            );
        }
        let synced = self.table.sync(source, head.epoch, &offers);
        synced.map_err(|(position, error)| match position {
            Some(position) => at(position, refused(error)),
            None => whole(refused(error)),
        })?;
        Ok(offers.len())
    }

    /// Brings a hub's leases in line with what it says; answers what there is to tell.
    fn reconcile(&mut self, report: HubReport) -> Vec<String> {
        let unserved = match self.take_in(&report) {
            Ok(refused) => refused.iter().map(Refused::to_string).collect(),
            Err((_, reason)) => vec![format!("{reason}, so that no lease can be known there")],
        };
        let told = self.told.entry(report.source.clone()).or_default();
        let unserved = told.news(unserved);
        self.counts.refused += unserved.len() as u64;
        let news = report.problems.into_iter().chain(unserved);
        news.map(|line| format!("{}: {line}", report.source))
            .collect()
    }

    /// Likewise; answers what could not be served, told or not.
    fn take_in(&mut self, report: &HubReport) -> Result<Vec<Refused>, Fault> {
        let scope = self.names.scope(report.scope.as_deref())?;
        let place = |network| Place { scope, network };
        let unknown = report.claims.iter().filter(|claim| claim.device.is_none());
        let unknown = unknown.map(|claim| claim.network);
        let strangers = report.strangers.iter().copied().chain(unknown).map(place);
        let strangers: Vec<_> = strangers.collect();
        let offers = report.claims.iter().filter_map(|claim| {
            let (account, device) = claim.device.as_ref()?;
            Some(Offer {
                place: place(claim.network),
                account,
                device,
                session: &claim.session,
                expires: None,
                replace: true,
            })
        });
        let offers: Vec<_> = offers.collect();
        let as_of = unix_ms(report.as_of);
        let seen = Seen {
            offers: &offers,
            strangers: &strangers,
        };
        Ok(self.table.reconcile(&report.source, as_of, &seen))
    }

    fn answer(&mut self, batch: Batch, answers: Vec<Answer>, revision: u64) {
        let mut text = Vec::new();
        let mut events = None;
        for (position, (job, answer)) in batch.jobs.iter().zip(answers).enumerate() {
            feed::give_way(position);
            let reply = match (answer, job) {
                (Answer::Is(reply), _) => reply,
                (Answer::Done { id, count }, _) => Reply {
                    count,
                    ..Reply::done(id, revision)
                },
                (Answer::List, Job::Single(request)) => self.list(request, &mut text),
                (Answer::Watch, Job::Single(request)) => {
                    events = Some(self.watchers.admit());
                    Reply::done(request.id, revision)
                }
                _ => continue,
            };
            text.extend(feed::line(&reply));
            if events.is_some() {
                break;
            }
        }
        // Whoever is gone needs no answer.
        let _ = batch.reply.send(Outcome { text, events });
    }

    /// Writes the leases that a request asks for; answers what follows them.
    fn list(&self, request: &Request, text: &mut Vec<u8>) -> Reply {
        let wanted = request.address.as_deref().map(crate::config::network);
        let wanted: Option<IpNet> = match wanted.transpose() {
            Ok(wanted) => wanted,
            Err(reason) => return Reply::refused(request.id, "malformed", reason),
        };
        let mut found: Vec<_> = self
            .table
            .leases()
            .filter(|lease| {
                let network = lease.place.network;
                let is_there = wanted
                    .is_none_or(|wanted| wanted.contains(&network) || network.contains(&wanted));
                let source = request.source.as_deref();
                is_there && source.is_none_or(|source| source == lease.source)
            })
            .collect();
        found.sort_unstable_by_key(|lease| lease.place);
        for lease in &found {
            let lease = self.shown(lease);
            // No map in it has keys that could be no text.
            let _ = serde_json::to_writer(&mut *text, &Listed { lease });
            text.push(b'\n');
        }
        Reply {
            count: Some(found.len()),
            ..Reply::done(request.id, self.table.revision())
        }
    }

    fn shown<'t>(&'t self, lease: &Lease<'t>) -> Shown<'t> {
        Shown::new(lease, self.names.scope_name(lease.place.scope), now())
    }

    /// Writes to the journal what came of changes. One that can't be written is given up: a memory
    /// with gaps is worse than none.
    fn record(&mut self, commit: &Commit) {
        let Some(mut journal) = self.journal.take() else {
            return;
        };
        match self.write(&mut journal, commit) {
            Ok(()) => self.journal = Some(journal),
            Err(error) => journal.give_up(&error),
        }
    }

    fn write(&self, journal: &mut Journal, commit: &Commit) -> io::Result<()> {
        if journal.is_long() {
            return self.rewrite(journal);
        }
        for source in &commit.begun {
            let (name, epoch) = self.table.source_of(*source);
            let source = name.to_owned();
            journal.add(&Record::Epoch { source, epoch })?;
        }
        for (position, (place, source)) in commit.touched.iter().enumerate() {
            feed::give_way(position);
            let (name, _) = self.table.source_of(*source);
            match self.table.lease(*place, *source) {
                Some(lease) => journal.add(&Record::Lease(self.shown(&lease)))?,
                None => journal.add(&Record::End {
                    address: protocol::written(place.network),
                    scope: self.names.scope_name(place.scope).map(str::to_owned),
                    source: name.to_owned(),
                })?,
            }
        }
        // The number with it: whoever was told it must never see it again.
        journal.add(&self.alive_now())?;
        journal.flush()
    }

    fn rewrite(&self, journal: &mut Journal) -> io::Result<()> {
        let line = |record: Record<'_>| Ok(serde_json::to_string(&record)?);
        let sources = self.table.sources().filter(|(_, epoch)| *epoch > 0);
        let epochs = sources.map(|(source, epoch)| Record::Epoch {
            source: source.to_owned(),
            epoch,
        });
        let alive = self.alive_now();
        let leases = self.table.leases();
        let leases = leases.map(|lease| line(Record::Lease(self.shown(&lease))));
        journal.rewrite(epochs.chain([alive]).map(line).chain(leases))
    }

    fn alive_now(&self) -> Record<'static> {
        Record::Alive {
            at_ms: now(),
            revision: self.table.revision(),
        }
    }

    fn note_alive(&mut self) {
        if Instant::now() < self.alive {
            return;
        }
        self.alive = Instant::now() + limits::JOURNAL_ALIVE;
        self.watchers.forget_gone();
        let alive = self.alive_now();
        let Some(journal) = &mut self.journal else {
            return;
        };
        if let Err(error) = journal.add(&alive).and_then(|()| journal.flush())
            && let Some(journal) = self.journal.take()
        {
            journal.give_up(&error);
        }
    }

    /// Takes in what was remembered; tells what came of it.
    fn remember(&mut self, memory: Memory, news: &mut Vec<String>) {
        self.table.resume(memory.revision);
        for (source, epoch) in &memory.epochs {
            self.table.restore_epoch(source, *epoch);
        }
        // A clock that was ahead then must not make them younger.
        let alive = memory.alive_ms.min(now());
        self.table.forget_reports_before(alive);
        let until = alive + self.unconfirmed.as_millis() as UnixMs;
        let (mut restored, mut dropped) = (0_usize, memory.unread);
        let mut latest = 0;
        for line in memory.leases.values() {
            match self.restore(line, alive, until) {
                Ok(until) => {
                    restored += 1;
                    latest = until.max(latest);
                }
                Err(_) => dropped += 1,
            }
        }
        if restored > 0 {
            let left = latest.saturating_sub(now()) / 1_000;
            news.push(format!(
                "{restored} leases are remembered, for {left} s unless they are confirmed"
            ));
        }
        if dropped > 0 {
            news.push(format!(
                "{dropped} lines of the journal are over, unknown, or were cut short"
            ));
        }
    }

    /// Takes in one lease, believed until then at most; answers until when it is.
    fn restore(&mut self, line: &str, alive: UnixMs, until: UnixMs) -> Result<UnixMs, Fault> {
        let record =
            serde_json::from_str(line).map_err(|error| names::malformed(error.to_string()))?;
        let Record::Lease(lease) = record else {
            return Err(names::malformed("is no lease"));
        };
        let network = crate::config::network(&lease.address).map_err(names::malformed)?;
        let offer = Offer {
            place: Place {
                scope: self.names.scope(lease.scope.as_deref())?,
                network,
            },
            account: &lease.account,
            device: &lease.device,
            session: lease.session.as_deref().unwrap_or_default(),
            expires: lease.expires_ms,
            replace: false,
        };
        // What nobody had confirmed before, either, is older than the last sign of life.
        let until = lease.until_ms.map_or(until, |before| before.min(until));
        let restored = self
            .table
            .restore(&lease.source, lease.epoch, &offer, (alive, until));
        restored.map(|()| until).map_err(refused)
    }

    fn tell_watchers(&mut self, commit: &Commit) {
        if self.watchers.is_empty() {
            return;
        }
        let mut text = Vec::new();
        for (place, source) in &commit.touched {
            let (event, lease) = match self.table.lease(*place, *source) {
                Some(lease) => (Happening::Leased, Changed::Whole(self.shown(&lease))),
                None => {
                    let ended = Changed::Place {
                        address: protocol::written(place.network),
                        scope: self.names.scope_name(place.scope).map(str::to_owned),
                        source: self.table.source_of(*source).0.to_owned(),
                    };
                    (Happening::Ended, ended)
                }
            };
            let event = Event {
                event,
                revision: commit.revision,
                lease,
            };
            // No map in it has keys that could be no text.
            let _ = serde_json::to_writer(&mut text, &event);
            text.push(b'\n');
            if text.len() > limits::WATCH_BYTES_MAX as usize {
                // Nobody will hear of it: the rest need not be written.
                break;
            }
        }
        self.watchers.tell(&text);
    }
}

/// What a request will be answered, once its change is published.
#[derive(Debug)]
enum Answer {
    Is(Reply),
    Done {
        id: Option<u64>,
        count: Option<usize>,
    },
    List,
    Watch,
    /// Whoever asked is gone.
    Nobody,
}

fn refused(refused: Refused) -> Fault {
    (refused.token(), refused.to_string())
}

/// The time: the system's clock as it was at the start, and what has passed since. Setting that clock
/// makes no lease longer, and no report older.
pub fn now() -> UnixMs {
    static BEGUN: LazyLock<(UnixMs, Instant)> = LazyLock::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let begun = since.unwrap_or_default().as_millis() as UnixMs;
        (begun, Instant::now())
    });
    let (begun, instant) = *BEGUN;
    begun + instant.elapsed().as_millis() as UnixMs
}

/// A moment of the system's clock in that time.
fn unix_ms(time: SystemTime) -> UnixMs {
    let age = SystemTime::now().duration_since(time).unwrap_or_default();
    now().saturating_sub(age.as_millis() as UnixMs)
}

fn instant_of(at: UnixMs, now: UnixMs) -> Instant {
    // A millisecond later: timers must not fire before the time has come.
    Instant::now() + Duration::from_millis(at.saturating_sub(now) + 1)
}
