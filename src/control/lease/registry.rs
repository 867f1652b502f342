//! Live identity put together: sources' words go to the table, and what follows to whoever listens.
//!
//! The order is what the promise rests on: table, journal, publication, reply. A reply that says
//! "done" is sent when every core sees the change.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{
    claim::{Lease, Offer, Place, Refused, SourceId},
    clock::{Anchor, instant_of, now},
    directory::Directory,
    feed::{self, Batch, Feed, Job, Lines, Outcome},
    journal::Journal,
    names::{self, Fault, Names},
    openvpn::{poll::Heard, report::HubReport, told::Told},
    protocol::{self, Changed, Event, Happening, Op, Reply, Request, Shown},
    seen::Seen,
    table::LeaseTable,
    turns::{Listing, Publish, Started, Telling},
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
    pub(super) table: LeaseTable,
    pub(super) names: Names,
    feed: Option<Feed>,
    pub(super) journal: Option<Journal>,
    pub(super) watchers: Watchers,
    /// What of each hub's report could not be served, as it was told.
    told: HashMap<String, Told>,
    /// When this run began.
    pub(super) anchor: Anchor,
    pub(super) unconfirmed: Duration,
    pub(super) alive: Instant,
    /// Requests whose next job is a set that comes in by turns; the first one's does.
    pub(super) sets: VecDeque<Started>,
    /// What the watchers have still to be told of sets.
    pub(super) telling: VecDeque<Telling>,
    /// How many turns there have been.
    pub(super) turns: usize,
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
    /// The journal's disk has done something, or failed to.
    Disk(io::Result<()>),
    /// Time has passed.
    Time,
    /// Something that takes long goes on.
    Turn,
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
            anchor: Anchor::now(),
            unconfirmed: settings.unconfirmed,
            alive: Instant::now(),
            sets: VecDeque::new(),
            telling: VecDeque::new(),
            turns: 0,
            counts: Counts::default(),
        };
        registry.table.advance(now());
        // As long as it runs: a reload gives listeners nothing new.
        let believed = listen.iter().flat_map(|listen| &listen.proxy_protocol_from);
        registry.table.believe(believed.copied());
        registry.table.begin(directory, fixed);
        registry.follow(hubs);
        let mut news = Vec::new();
        if let Some(path) = &settings.journal {
            let opened = registry.open_journal(path, &mut news);
            opened.map_err(|error| RegistryError::Journal(path.clone(), error))?;
        }
        // Last of all: until then whoever speaks is told at once that nobody listens, and waits for
        // nothing.
        if let Some(path) = &settings.socket {
            let users = settings.users.iter().map(|user| user.uid);
            let feed = Feed::listen(path, users.collect());
            let feed = feed.map_err(|error| RegistryError::Socket(path.clone(), error))?;
            registry.feed = Some(feed);
        }
        registry.ask_soon();
        Ok((registry, news))
    }

    /// Whose addresses are whose now.
    pub fn identities(&self) -> Identities {
        self.table.identities()
    }

    /// The source of the set that is being checked or taken in, if one is.
    pub fn set_on_its_way(&self) -> Option<&str> {
        self.table.begun_source()
    }

    /// Puts the configuration's devices, addresses and hubs in the place of those before; answers
    /// what there is to tell. `publish` hears of the identities, new or not. Not while a set is
    /// [on its way](Self::set_on_its_way), which names devices by the numbers of before; those that
    /// wait name them as their sources do.
    pub fn adopt(
        &mut self,
        directory: Directory,
        fixed: Arc<IdentityTable>,
        hubs: &[Hub],
        publish: impl FnOnce(Identities, &[(Scope, IpNet)]),
    ) -> Vec<String> {
        self.table.advance(now());
        self.follow(hubs);
        let ended = self.table.adopt(directory, fixed);
        match self.table.commit() {
            Some(commit) => {
                self.record(&commit);
                publish(commit.identities, &commit.moved);
                self.tell_watchers(&commit.touched, commit.revision);
            }
            None => publish(self.identities(), &[]),
        }
        self.ask_soon();
        match ended.len() {
            0 => Vec::new(),
            count => vec![format!(
                "{count} leases end: the configuration no longer has their devices, such as {}",
                ended[0]
            )],
        }
    }

    /// Asks `hubs` from now on; the leases of those that are no longer among them end, and of those that
    /// are, what their names no longer say. What else hooks have said stays: a status that is read again
    /// may be older.
    fn follow(&mut self, hubs: &[Hub]) {
        for before in self.names.hubs.follow(hubs) {
            let source = before.source();
            let is_same = |hub: &Hub| (&hub.name, &hub.scope) == (&before.name, &before.scope);
            if hubs.iter().any(is_same) {
                let names = &self.names;
                self.table.end_unsaid(&source, |session, device| {
                    names.still_means(&source, session, device)
                });
            } else {
                self.table.forget_hub(&source);
                self.told.remove(&source);
            }
        }
        for hub in hubs {
            // Beyond all sources that there may be, its reports will be refused.
            let _ = self.table.expect_reports(&hub.source());
        }
    }

    /// Waits until there is something to do. May be dropped; nothing is lost.
    pub async fn next(&mut self) -> Work {
        let timer = self.table.next_timer().map(instant_of);
        let sync_by = self.journal.as_ref().and_then(Journal::sync_by);
        let due = [timer, sync_by].into_iter().flatten();
        let at = due.fold(self.alive, Instant::min);
        let is_busy = self.is_busy();
        let is_taking = self.table.is_taking();
        let (feed, journal) = (self.feed.as_mut(), self.journal.as_mut());
        tokio::select! {
            batch = async {
                match feed {
                    Some(feed) => feed.next().await,
                    None => std::future::pending().await,
                }
            } => Work::Feed(batch),
            // It would contradict what is half in place.
            heard = self.names.hubs.next(), if !is_taking => Work::Hub(heard),
            done = async {
                match journal {
                    Some(journal) => journal.settled().await,
                    None => std::future::pending().await,
                }
            } => Work::Disk(done),
            () = sleep_until(at) => Work::Time,
            // Lets connections be read first.
            () = yield_now(), if is_busy => Work::Turn,
        }
    }

    /// Does what there is to do; answers what there is to tell. `publish` hears of new identities
    /// before anybody has a reply.
    pub fn apply(
        &mut self,
        work: Work,
        mut publish: impl FnMut(Identities, &[(Scope, IpNet)]),
    ) -> Vec<String> {
        self.table.advance(now());
        let mut done = Vec::new();
        let mut news = Vec::new();
        match work {
            Work::Feed(batch) => self.perform(Started::new(batch), &mut done),
            Work::Hub(Heard::Report(report)) => news = self.reconcile(report),
            Work::Hub(Heard::Failure(failure)) => {
                news.push(format!("{}: {failure}", failure.source));
            }
            Work::Disk(Ok(())) | Work::Turn => {}
            Work::Disk(Err(error)) => self.give_up(&error),
            Work::Time => self.note_time(),
        }
        // Whatever else has come shares the publication.
        while done.len() < limits::FEED_CONNECTIONS_MAX
            && let Some(batch) = self.feed.as_mut().and_then(Feed::try_next)
        {
            self.perform(Started::new(batch), &mut done);
        }
        self.conclude(done, &mut publish);
        thread::yield_now();
        if self.is_busy() {
            self.take_turn(&mut publish);
        }
        self.ask_soon();
        news
    }

    /// Has hubs asked soon whose next report somebody waits for.
    fn ask_soon(&self) {
        self.names.ask_soon(|source| self.table.is_in_doubt(source));
    }

    /// Publishes what has been done, and answers whoever asked for it.
    pub(super) fn conclude(&mut self, done: Vec<(Batch, Vec<Answer>)>, publish: Publish<'_>) {
        if let Some(commit) = self.table.commit() {
            self.counts.changes += commit.touched.len() as u64;
            self.record(&commit);
            if !commit.moved.is_empty() {
                publish(commit.identities.clone(), &commit.moved);
            }
            self.tell_watchers(&commit.touched, commit.revision);
        }
        let revision = self.table.revision();
        for (batch, answers) in done {
            self.answer(batch, answers, revision);
        }
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
    /// what ends leases: it has given up, and may have told others that nothing was leased. What comes
    /// in by turns, and whatever stands behind it, has to wait for its turn.
    pub(super) fn perform(&mut self, started: Started, done: &mut Vec<(Batch, Vec<Answer>)>) {
        let Started { batch, mut answers } = started;
        let is_given_up = batch.peer.is_gone();
        while let Some(job) = batch.jobs.get(answers.len()) {
            feed::give_way(answers.len());
            let answer = match is_given_up && job.leases() {
                true => self.give_up_job(),
                false if self.takes_turns(job) => {
                    self.sets.push_back(Started { batch, answers });
                    return;
                }
                false => self.perform_one(job),
            };
            let is_over = matches!(answer, Answer::Watch);
            answers.push(answer);
            // Behind a request to watch, nothing would be answered.
            if is_over {
                break;
            }
        }
        done.push((batch, answers));
    }

    /// Notes that a job is not done: whoever asked for it has given up.
    pub(super) fn give_up_job(&mut self) -> Answer {
        self.counts.given_up += 1;
        Answer::Nobody
    }

    fn perform_one(&mut self, job: &Job) -> Answer {
        let (id, outcome) = match job {
            Job::Refused(reply) => {
                self.counts.refused += 1;
                return Answer::Is(reply.clone());
            }
            Job::Answered(reply) => return Answer::Is(reply.clone()),
            Job::Listing(listing) => return Answer::List(listing.clone()),
            Job::Single(request) => match request.op {
                Some(Op::Add) => (request.id, self.add(request).map(|()| None)),
                Some(Op::Release) => (request.id, self.release(request).map(|()| None)),
                Some(Op::List) => match Listing::of(request) {
                    Ok(listing) => return Answer::List(listing),
                    Err(reply) => return Answer::Is(reply),
                },
                Some(Op::Watch) => return Answer::Watch,
                _ => return Answer::Is(Reply::refused(request.id, "malformed", "has no op")),
            },
            Job::Sync { head, lines, id } => {
                let synced = self.sync(head, lines);
                return self.answer_to_set(*id, synced);
            }
        };
        match outcome {
            Ok(count) => Answer::Done { id, count },
            Err((error, reason)) => {
                self.counts.refused += 1;
                Answer::Is(Reply::refused(id, error, reason))
            }
        }
    }

    /// What is answered to a set: how many leases it has, or what is wrong with it.
    pub(super) fn answer_to_set(
        &mut self,
        id: Option<u64>,
        synced: Result<usize, SetFault>,
    ) -> Answer {
        match synced {
            Ok(count) => Answer::Done {
                id,
                count: Some(count),
            },
            Err((line, (error, reason))) => {
                self.counts.refused += 1;
                let reply = Reply::refused(id, error, reason);
                Answer::Is(Reply { line, ..reply })
            }
        }
    }

    /// Notes how many leases a set has changed.
    pub(super) fn count_changes(&mut self, count: usize) {
        self.counts.changes += count as u64;
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

    /// Takes a small set in at once.
    fn sync(&mut self, head: &Request, lines: &Lines) -> Result<usize, SetFault> {
        let source = names::source(head).map_err(whole)?;
        let mut offers = Vec::with_capacity(lines.len());
        for (position, line) in lines.iter().enumerate() {
            let offer = self.names.offer(line, now());
            offers.push(offer.map_err(|fault| at_line(position, fault))?);
        }
        let synced = self.table.sync(source, head.epoch, &offers);
        synced.map_err(set_fault)?;
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
        let seen = Seen {
            offers: &offers,
            strangers: &strangers,
        };
        Ok(self.table.reconcile(&report.source, report.as_of, &seen))
    }

    fn answer(&mut self, batch: Batch, answers: Vec<Answer>, revision: u64) {
        let mut text = Vec::new();
        let mut events = None;
        let mut rest = Vec::new();
        for (position, (job, answer)) in batch.jobs.into_iter().zip(answers).enumerate() {
            feed::give_way(position);
            let id = job.id();
            let answer = match answer {
                Answer::Done { id, count } => Answer::Is(Reply {
                    count,
                    ..Reply::done(id, revision)
                }),
                answer => answer,
            };
            // Whatever stands behind half a list is answered behind the rest of it.
            let is_behind = !rest.is_empty();
            match answer {
                Answer::Is(reply) if is_behind => rest.push(Job::Answered(reply)),
                Answer::Is(reply) => text.extend(feed::line(&reply)),
                Answer::List(_) | Answer::Watch if is_behind => rest.push(job),
                Answer::List(listing) => match self.list(listing, &mut text) {
                    Ok(reply) => text.extend(feed::line(&reply)),
                    Err(listing) => rest.push(Job::Listing(listing)),
                },
                Answer::Watch => {
                    events = Some(self.watchers.admit());
                    text.extend(feed::line(&Reply::done(id, revision)));
                    break;
                }
                Answer::Done { .. } | Answer::Nobody => {}
            }
        }
        // Whoever is gone needs no answer.
        let _ = batch.reply.send(Outcome { text, events, rest });
    }

    pub(super) fn shown<'t>(&'t self, lease: &Lease<'t>) -> Shown<'t> {
        Shown::new(lease, self.names.scope_name(lease.place.scope), now())
    }

    /// Tells whoever watches what became of leases, which change number `revision` has touched.
    pub(super) fn tell_watchers(&mut self, touched: &[(Place, SourceId)], revision: u64) {
        if self.watchers.is_empty() {
            return;
        }
        let mut text = Vec::new();
        for (place, source) in touched {
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
                revision,
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
pub(super) enum Answer {
    Is(Reply),
    Done {
        id: Option<u64>,
        count: Option<usize>,
    },
    List(Listing),
    Watch,
    /// Whoever asked is gone.
    Nobody,
}

/// Why a set is refused, and which line of it is at fault, the first being 1, if it is one.
pub(super) type SetFault = (Option<usize>, Fault);

pub(super) fn whole(fault: Fault) -> SetFault {
    (None, fault)
}

pub(super) fn at_line(position: usize, (error, reason): Fault) -> SetFault {
    let line = position + 1;
    let reason = format!("line {line} of the set: {reason}");
    (Some(line), (error, reason))
}

pub(super) fn set_fault((position, error): (Option<usize>, Refused)) -> SetFault {
    match position {
        Some(position) => at_line(position, refused(error)),
        None => whole(refused(error)),
    }
}

pub(super) fn refused(refused: Refused) -> Fault {
    (refused.token(), refused.to_string())
}
