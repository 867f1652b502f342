//! What takes long, in turns of a few milliseconds: large sets, lists, the journal written anew, and
//! what watchers are told of a set. Whoever asks for something else meanwhile waits for one turn.

use std::{collections::VecDeque, mem, sync::Arc, thread};

use ipnet::IpNet;

use super::{
    claim::{Place, SourceId},
    clock::now,
    feed::{self, Batch, Job},
    journal::Journal,
    names,
    protocol::{Listed, Reply, Request},
    registry::{Answer, Registry, SetFault, at_line, set_fault, whole},
};
use crate::{
    limits,
    snapshot::scope::{Identities, Scope},
};

/// Where new identities go.
pub(super) type Publish<'p> = &'p mut dyn FnMut(Identities, &[(Scope, IpNet)]);

/// A batch of requests of which the first ones have been done.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) batch: Batch,
    /// What they will be answered.
    pub(super) answers: Vec<Answer>,
}

impl Started {
    /// None has.
    pub(super) fn new(batch: Batch) -> Self {
        let answers = Vec::with_capacity(batch.jobs.len());
        Self { batch, answers }
    }

    /// The set that is next.
    fn set(&mut self) -> Option<&mut Job> {
        let next = self.answers.len();
        self.batch.jobs.get_mut(next)
    }
}

/// What a set has touched, in the order in which watchers are told.
#[derive(Debug)]
pub(super) struct Telling {
    /// Number of its change; `None`: it is not whole.
    revision: Option<u64>,
    touched: VecDeque<Vec<(Place, SourceId)>>,
}

/// A list of leases that has come so far.
///
/// It goes through the places in order. A lease that stands from its beginning to its end is in it,
/// once; one that changes meanwhile is as it was at some moment, or missing if it came or went.
#[derive(Debug, Clone)]
pub struct Listing {
    id: Option<u64>,
    source: Option<Arc<str>>,
    network: Option<IpNet>,
    /// The last place that was looked at.
    cursor: Option<Place>,
    count: usize,
    /// The newest change when it began.
    revision: Option<u64>,
}

impl Listing {
    /// What a request asks for.
    ///
    /// # Errors
    /// The reply that refuses it.
    pub(super) fn of(request: &Request) -> Result<Self, Reply> {
        let network = request.address.as_deref().map(crate::config::network);
        let network = network
            .transpose()
            .map_err(|reason| Reply::refused(request.id, "malformed", reason))?;
        Ok(Self {
            id: request.id,
            source: request.source.as_deref().map(Arc::from),
            network,
            cursor: None,
            count: 0,
            revision: None,
        })
    }

    fn wants(&self, place: Place, source: &str) -> bool {
        let network = place.network;
        let is_there = self
            .network
            .is_none_or(|wanted| wanted.contains(&network) || network.contains(&wanted));
        is_there && self.source.as_deref().is_none_or(|wanted| wanted == source)
    }
}

impl Registry {
    /// Whether there is something to do that takes turns.
    pub(super) fn is_busy(&self) -> bool {
        self.is_copying()
            || !self.sets.is_empty()
            || !self.telling.is_empty()
            || self.table.is_behind()
    }

    fn is_copying(&self) -> bool {
        let missing = self.journal.as_ref().and_then(Journal::missing_behind);
        missing.is_some()
    }

    /// Does one turn's worth of what there is to do, one thing after the other.
    pub(super) fn take_turn(&mut self, publish: Publish<'_>) {
        self.turns += 1;
        let is_told = self
            .telling
            .front()
            .is_some_and(|set| set.revision.is_some());
        let copies = self.is_copying() && (self.sets.is_empty() || self.turns.is_multiple_of(2));
        match (copies, is_told && self.turns.is_multiple_of(3)) {
            (_, true) => self.tell_turn(),
            (true, _) => self.copy_to_journal(),
            (false, _) if !self.sets.is_empty() => self.take_set_turn(publish),
            (false, _) => self.tell_turn(),
        }
    }

    /// Whether a job is a set that is too large to be taken in at once, or has to wait for another of
    /// its source.
    pub(super) fn takes_turns(&self, job: &Job) -> bool {
        let Job::Sync { head, lines, .. } = job else {
            return false;
        };
        let source = head.source.as_deref().unwrap_or_default();
        let is_waiting = |started: &Started| {
            let next = started.batch.jobs.get(started.answers.len());
            matches!(next, Some(Job::Sync { head, .. }) if head.source.as_deref() == Some(source))
        };
        lines.len() > limits::LEASE_TURN
            || self.table.len_of(source) > limits::LEASE_TURN
            || self.sets.iter().any(is_waiting)
    }

    /// Does one turn's worth for the first of the sets.
    fn take_set_turn(&mut self, publish: Publish<'_>) {
        let Some(mut started) = self.sets.pop_front() else {
            return;
        };
        // As long as anybody can refuse it, it ends with whoever waits for it.
        let is_certain = self.table.is_taking() || self.table.overtaken().is_some();
        let answer = match !is_certain && started.batch.peer.is_gone() {
            true => {
                self.discard(&mut started);
                Some(self.give_up_job())
            }
            false => self.advance_set(&mut started, publish),
        };
        let Some(answer) = answer else {
            self.sets.push_front(started);
            return;
        };
        started.answers.push(answer);
        let mut done = Vec::new();
        self.perform(started, &mut done);
        self.conclude(done, publish);
    }

    /// Takes in a turn's worth of the set that is next; says what is answered once it is over.
    fn advance_set(&mut self, started: &mut Started, publish: Publish<'_>) -> Option<Answer> {
        let Some(Job::Sync { head, lines, id }) = started.set() else {
            return None;
        };
        let (id, outcome) = (*id, self.take_part(head, lines, publish)?);
        if outcome.is_err() {
            self.discard(started);
        }
        Some(self.answer_to_set(id, outcome))
    }

    /// Takes in a turn's worth of a set; answers what came of it once it is over.
    fn take_part(
        &mut self,
        head: &Request,
        lines: &mut feed::Lines,
        publish: Publish<'_>,
    ) -> Option<Result<usize, SetFault>> {
        if self.table.is_taking() {
            return self.take_effect(lines.len(), publish).map(Ok);
        }
        if let Some(overtaken) = self.table.overtaken() {
            self.end_overtaken();
            return Some(Err(set_fault((None, overtaken))));
        }
        let checked = match lines.is_taken() {
            false => self.check_part(head, lines),
            true => self.table.close_set().map_err(set_fault),
        };
        match checked {
            Ok(false) => None,
            Ok(true) => {
                if let Some(source) = &head.source {
                    self.record_set(source, false);
                }
                self.telling.push_back(Telling {
                    revision: None,
                    touched: VecDeque::new(),
                });
                None
            }
            Err(fault) => Some(Err(fault)),
        }
    }

    /// Checks the next lines of a set. `false`: there is more to do.
    fn check_part(&mut self, head: &Request, lines: &mut feed::Lines) -> Result<bool, SetFault> {
        if lines.is_untouched() {
            let source = names::source(head).map_err(whole)?;
            let begun = self.table.begin_set(source, head.epoch);
            begun.map_err(|error| set_fault((None, error)))?;
        }
        let (first, part) = lines.take_part();
        for (position, line) in (first..).zip(&part) {
            feed::give_way(position);
            let offer = self.names.offer(line, now());
            let offer = offer.map_err(|fault| at_line(position, fault))?;
            let added = self.table.add_to_set(&offer, position);
            added.map_err(|error| set_fault((Some(position), error)))?;
        }
        Ok(false)
    }

    /// Puts the next leases of a set in place; once all are, publishes them and says how many.
    fn take_effect(&mut self, count: usize, publish: Publish<'_>) -> Option<usize> {
        let mut is_whole = false;
        for _ in 0..limits::LEASE_TURN / limits::FEED_TURN {
            is_whole = self.table.take_set(limits::FEED_TURN);
            if is_whole {
                break;
            }
            thread::yield_now();
        }
        let held = self.table.hold();
        self.count_changes(held.touched.len());
        if !held.touched.is_empty() || !held.begun.is_empty() {
            self.record(&held);
        }
        if !self.watchers.is_empty()
            && let Some(telling) = self.telling.back_mut()
        {
            telling.touched.push_back(held.touched);
        }
        if !is_whole {
            return None;
        }
        let source = self.table.taken_source().unwrap_or_default().to_owned();
        let commit = self.table.finish_set()?;
        self.record_set(&source, true);
        publish(commit.identities, &commit.moved);
        if let Some(telling) = self.telling.back_mut() {
            telling.revision = Some(commit.revision);
        }
        Some(count)
    }

    /// Has watchers hear what a set had changed by the time when its source has overtaken it.
    fn end_overtaken(&mut self) {
        if let Some(telling) = self.telling.back_mut() {
            telling.revision = Some(self.table.revision());
        }
    }

    /// Gives up a set that was refused. What it held is dropped elsewhere: that takes long.
    fn discard(&mut self, started: &mut Started) {
        let offers = self.table.drop_set();
        let lines = match started.set() {
            Some(Job::Sync { lines, .. }) => Some(mem::take(lines)),
            _ => None,
        };
        let thread = thread::Builder::new().name("m2u-discard".to_owned());
        // Without a thread it is dropped here and now.
        let _ = thread.spawn(move || drop((offers, lines)));
    }

    /// Tells watchers a turn's worth of what a set has touched.
    fn tell_turn(&mut self) {
        let Some(telling) = self.telling.front_mut() else {
            return;
        };
        let Some(revision) = telling.revision else {
            return;
        };
        match telling.touched.pop_front() {
            Some(touched) if !self.watchers.is_empty() => self.tell_watchers(&touched, revision),
            Some(_) => {}
            None => drop(self.telling.pop_front()),
        }
    }

    /// Writes up to a turn's worth of a list; answers the reply that ends it, or what is left.
    pub(super) fn list(&self, mut listing: Listing, text: &mut Vec<u8>) -> Result<Reply, Listing> {
        let newest = self.table.revision();
        let revision = *listing.revision.get_or_insert(newest);
        let mut looked = 0;
        for (place, leases) in self.table.leases_behind(listing.cursor) {
            if looked >= limits::LEASE_TURN {
                return Err(listing);
            }
            for lease in leases {
                feed::give_way(looked);
                looked += 1;
                if listing.wants(place, lease.source) {
                    let lease = self.shown(&lease);
                    // No map in it has keys that could be no text.
                    let _ = serde_json::to_writer(&mut *text, &Listed { lease });
                    text.push(b'\n');
                    listing.count += 1;
                }
            }
            listing.cursor = Some(place);
        }
        Ok(Reply {
            count: Some(listing.count),
            ..Reply::done(listing.id, revision)
        })
    }
}
