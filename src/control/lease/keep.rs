//! What the registry keeps in the journal, and what it takes back from it after a restart.

use std::{collections::HashSet, io, path::Path};

use tokio::time::Instant;

use super::{
    claim::{Offer, Place, UnixMs},
    clock::{Anchor, now},
    feed,
    journal::{
        Journal,
        reading::{Reading, Torn},
        record::Record,
    },
    names::{self, Fault},
    protocol::{self, Shown},
    recall::Recalled,
    registry::{Registry, refused},
    table::Commit,
};
use crate::limits;

/// What a journal said so far that no lease of its says by itself.
#[derive(Debug, Default)]
struct Memory {
    /// When the run began that is being read.
    anchor: Option<Anchor>,
    /// When it was at work last; 0: never.
    alive_ms: UnixMs,
    /// Sources whose set was not whole when it ended.
    unfinished: HashSet<String>,
    /// Leases whose device or scope the configuration no longer has, or which it does not allow now.
    unknown: usize,
}

impl Registry {
    /// Remembers what the journal has, and goes on with it.
    ///
    /// # Errors
    /// It cannot be used.
    pub(super) fn open_journal(&mut self, path: &Path, news: &mut Vec<String>) -> io::Result<()> {
        let (mut journal, mut reading) = Journal::open(path)?;
        self.remember(&mut reading, news)?;
        journal.resume(reading.bytes())?;
        // From here on what stood before is another run's: that the gateway is at work makes none of
        // it younger.
        journal.add(&Record::Head(self.anchor.clone()))?;
        journal.add(&self.alive_now())?;
        journal.flush()?;
        self.begin_anew(&mut journal)?;
        self.journal = Some(journal);
        Ok(())
    }

    fn remember(&mut self, reading: &mut Reading, news: &mut Vec<String>) -> io::Result<()> {
        let mut memory = Memory::default();
        while let Some(record) = reading.next_record()? {
            if self.recall(&mut memory, record).is_err() {
                reading.count_damage();
            }
        }
        let (damage, torn) = (reading.damage(), reading.torn());
        let is_lost = damage.is_some() || torn == Some(Torn::Anything);
        let to = self.anchor.clone();
        let alive = self.carry(&memory, &to, |_, place| {
            is_lost || torn == Some(Torn::Network(place.network))
        });
        // A journal that says nothing is none: what hooks said is forgotten.
        if memory.alive_ms > 0 {
            self.table.forget_reports_before(alive.unwrap_or(to.at_ms));
        }
        let recalled = self.table.publish_recalled(alive.unwrap_or_default());
        tell_recalled(&recalled, now(), news);
        if let Some(damage) = damage {
            news.push(format!(
                "warning: line {} of the journal is damaged ({} in all): what it remembers is not \
                 served until its sources confirm it",
                damage.line, damage.count
            ));
        }
        match torn {
            Some(Torn::Network(network)) => news.push(format!(
                "the journal's last line was cut short: nobody is served at {} until a source \
                 confirms it",
                protocol::written(network)
            )),
            Some(Torn::Anything) => news.push(
                "the journal's last line was cut short: what it remembers is not served until its \
                 sources confirm it"
                    .to_owned(),
            ),
            Some(Torn::Sign) | None => {}
        }
        if alive.is_none() && recalled.known > 0 && memory.alive_ms > 0 {
            news.push(
                "the system's clock is behind the journal: how old it is can't be told, and what it \
                 remembers is not served until its sources confirm it"
                    .to_owned(),
            );
        }
        for source in &memory.unfinished {
            news.push(format!(
                "a set of {source} was not taken in to its end: what it has is not served until it \
                 says so again"
            ));
        }
        if memory.unknown > 0 {
            news.push(format!(
                "{} leases of the journal are of devices or scopes that are not configured, no longer \
                 what their hub's names stand for, or of addresses that proxy_protocol_from has now",
                memory.unknown
            ));
        }
        Ok(())
    }

    /// Takes one line in.
    ///
    /// # Errors
    /// It is none that was ever written.
    fn recall(&mut self, memory: &mut Memory, record: Record<'_>) -> Result<(), Fault> {
        match record {
            Record::Head(anchor) => {
                self.carry(memory, &anchor, |_, _| false);
                memory.unfinished.clear();
                memory.alive_ms = anchor.at_ms;
                memory.anchor = Some(anchor);
            }
            Record::Alive { at_ms, revision } => {
                // A number that no gateway can have reached leaves none for the next change.
                if revision > limits::REVISION_MAX {
                    return Err(names::malformed("has the number of no change"));
                }
                memory.alive_ms = at_ms;
                self.table.resume(revision);
            }
            Record::Epoch { source, epoch } => self.table.restore_epoch(&source, epoch),
            Record::Set { source, whole } => {
                match whole {
                    true => memory.unfinished.remove(&source),
                    false => memory.unfinished.insert(source),
                };
            }
            Record::Overtaken { source } => drop(memory.unfinished.remove(&source)),
            Record::End {
                address,
                scope,
                source,
            } => {
                let network = crate::config::network(&address).map_err(names::malformed)?;
                // In a scope that is not known, nothing is.
                if let Ok(scope) = self.names.scope(scope.as_deref()) {
                    self.table.forget(&source, Place { scope, network });
                }
            }
            Record::Lease(lease) => {
                let network = crate::config::network(&lease.address).map_err(names::malformed)?;
                if self.recall_lease(&lease, network).is_err() {
                    memory.unknown += 1;
                }
            }
        }
        Ok(())
    }

    fn recall_lease(&mut self, lease: &Shown<'_>, network: ipnet::IpNet) -> Result<(), Fault> {
        let scope = self.names.scope(lease.scope.as_deref())?;
        let place = Place { scope, network };
        if !self.names.still_says(lease) {
            self.table.forget(&lease.source, place);
            return Err(names::malformed("its hub says otherwise now"));
        }
        let offer = Offer {
            place,
            account: &lease.account,
            device: &lease.device,
            session: lease.session.as_deref().unwrap_or_default(),
            expires: lease.expires_ms,
            replace: false,
        };
        let source = &lease.source;
        let recalled = self
            .table
            .recall(source, lease.epoch, &offer, lease.until_ms);
        recalled.map_err(|error| {
            // Nor is what it said before.
            self.table.forget(source, place);
            refused(error)
        })
    }

    /// Takes what is remembered so far into the time of a run that began at `to`; answers when the one
    /// before was at work last, if that can be told.
    fn carry(
        &mut self,
        memory: &Memory,
        to: &Anchor,
        is_doubtful: impl Fn(&str, Place) -> bool,
    ) -> Option<UnixMs> {
        let (shift, alive) = to.since(memory.anchor.as_ref(), memory.alive_ms);
        let unconfirmed = self.unconfirmed.as_millis() as UnixMs;
        let until = alive.map_or(0, |alive| alive + unconfirmed);
        self.table.carry(shift, until, |source, place| {
            memory.unfinished.contains(source) || is_doubtful(source, place)
        });
        alive
    }

    /// Writes to the journal what came of changes. One that can't be written is given up: a memory
    /// with gaps is worse than none.
    pub(super) fn record(&mut self, commit: &Commit) {
        self.with_journal(|registry, journal| registry.write(journal, commit));
    }

    /// Writes that a set of a source is on its way, or whole.
    pub(super) fn record_set(&mut self, source: &str, whole: bool) {
        let source = source.to_owned();
        self.with_journal(|registry, journal| {
            journal.add(&Record::Set { source, whole })?;
            journal.add(&registry.alive_now())?;
            journal.flush()
        });
    }

    fn with_journal(&mut self, write: impl FnOnce(&mut Self, &mut Journal) -> io::Result<()>) {
        let Some(mut journal) = self.journal.take() else {
            return;
        };
        match write(self, &mut journal) {
            Ok(()) => self.journal = Some(journal),
            Err(error) => journal.give_up(&error),
        }
    }

    /// Does without a journal from now on.
    pub(super) fn give_up(&mut self, error: &io::Error) {
        if let Some(journal) = self.journal.take() {
            journal.give_up(error);
        }
    }

    fn write(&self, journal: &mut Journal, commit: &Commit) -> io::Result<()> {
        for source in &commit.begun {
            let (name, epoch) = self.table.source_of(*source);
            let source = name.to_owned();
            journal.add(&Record::Epoch { source, epoch })?;
        }
        let touched = commit.touched.iter().map(|(place, source)| {
            let lease = self.table.lease(*place, *source);
            (place, source, lease)
        });
        // What has ended makes room first: whoever reads it never has more at a time than there may be.
        let (leases, ends): (Vec<_>, Vec<_>) = touched.partition(|(.., lease)| lease.is_some());
        for (position, (place, source, lease)) in ends.into_iter().chain(leases).enumerate() {
            feed::give_way(position);
            let (name, _) = self.table.source_of(*source);
            match lease {
                Some(lease) => journal.add(&Record::Lease(self.shown(&lease)))?,
                None => journal.add(&Record::End {
                    address: protocol::written(place.network),
                    scope: self.names.scope_name(place.scope).map(str::to_owned),
                    source: name.to_owned(),
                })?,
            }
        }
        // What overtook a set is past doubt with the change itself: its sender may have its reply soon.
        if let Some(source) = self.table.overtaken_source() {
            let source = source.to_owned();
            journal.add(&Record::Overtaken { source })?;
        }
        // The number with it: whoever was told it must never see it again.
        journal.add(&self.alive_now())?;
        journal.flush()?;
        match journal.is_long() {
            true => self.begin_anew(journal),
            false => Ok(()),
        }
    }

    /// Begins a journal that has each lease once; [`copy_to_journal`](Self::copy_to_journal) goes on
    /// with it.
    fn begin_anew(&self, journal: &mut Journal) -> io::Result<()> {
        let head = Record::Head(self.anchor.clone());
        let sources = self.table.sources().filter(|(_, epoch)| *epoch > 0);
        let epochs = sources.map(|(source, epoch)| Record::Epoch {
            source: source.to_owned(),
            epoch,
        });
        let set = self.table.taken_source().map(|source| Record::Set {
            source: source.to_owned(),
            whole: false,
        });
        let alive = [head, self.alive_now()];
        journal.begin_anew(alive.into_iter().chain(epochs).chain(set))
    }

    /// Copies a turn's worth of leases to the journal that is on its way.
    pub(super) fn copy_to_journal(&mut self) {
        self.with_journal(|registry, journal| {
            let Some(cursor) = journal.missing_behind() else {
                return Ok(());
            };
            let mut records = Vec::with_capacity(limits::LEASE_TURN);
            let mut reached = None;
            for (position, (place, leases)) in registry.table.leases_behind(cursor).enumerate() {
                feed::give_way(position);
                records.extend(leases.map(|lease| Record::Lease(registry.shown(&lease))));
                if records.len() >= limits::LEASE_TURN {
                    reached = Some(place);
                    break;
                }
            }
            journal.copy(records.into_iter(), reached)
        });
    }

    fn alive_now(&self) -> Record<'static> {
        Record::Alive {
            at_ms: now(),
            revision: self.table.revision(),
        }
    }

    /// Does what is due.
    pub(super) fn note_time(&mut self) {
        let time = Instant::now();
        if self.alive <= time {
            self.alive = time + limits::JOURNAL_ALIVE;
            self.watchers.forget_gone();
            self.with_journal(|registry, journal| {
                journal.add(&registry.alive_now())?;
                journal.flush()
            });
        }
        if let Some(journal) = &mut self.journal
            && journal.sync_by().is_some_and(|by| by <= time)
        {
            journal.sync();
        }
    }
}

fn tell_recalled(recalled: &Recalled, now: UnixMs, news: &mut Vec<String>) {
    if recalled.known > 0 {
        let left = recalled.until.saturating_sub(now) / 1_000;
        news.push(format!(
            "{} leases are remembered, for {left} s unless they are confirmed",
            recalled.known
        ));
    }
    if recalled.over > 0 {
        news.push(format!("{} leases of the journal are over", recalled.over));
    }
}
