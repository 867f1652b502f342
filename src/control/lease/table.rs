//! Who may speak from which address, as sources change it: claims come, go, end and move.
//!
//! Every change is taken in whole or refused; what came of them is told by [`LeaseTable::commit`].
//! Reads no clock and does no I/O; never settles a conflict by itself.

use std::{
    collections::{BTreeSet, HashSet},
    mem,
    ops::Bound,
    sync::Arc,
};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{
    claim::{Claim, Lease, Offer, Place, Refused, SourceId, Standing, UnixMs},
    claims::{CONFIGURATION, Claims, Verdict},
    directory::{DeviceId, Directory},
    set::{Offers, Set},
};
use crate::{
    limits,
    snapshot::{
        identity::{Change, Identity, IdentityTable},
        scope::{Identities, Scope},
    },
};

/// What came of a number of changes.
#[derive(Debug)]
pub struct Commit {
    /// Whose addresses are whose from now on.
    pub identities: Identities,
    /// Networks that have another device, or none.
    pub moved: Vec<(Scope, IpNet)>,
    /// Claims that came, went, or changed.
    pub touched: Vec<(Place, SourceId)>,
    /// Sources that began a new run.
    pub begun: Vec<SourceId>,
    /// Number of the newest change.
    pub revision: u64,
}

#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: Arc<str>,
    pub(super) epoch: u64,
    /// What it claims.
    pub(super) places: BTreeSet<Place>,
    /// When its newest run was heard of.
    begun: UnixMs,
    /// When claims ended that a report may still have; `None`: nobody reports on this source.
    ended: Option<HashMap<Place, UnixMs>>,
}

/// Every claim, and the tables that follow from them.
#[derive(Debug, Default)]
pub struct LeaseTable {
    pub(super) claims: Claims,
    /// As published: of no scope, then of scope 1, 2 …
    pub(super) tables: Vec<Arc<IdentityTable>>,
    pub(super) len: usize,
    pub(super) sources: Vec<Source>,
    pub(super) by_name: HashMap<Arc<str>, SourceId>,
    /// When claims end, or are no longer believed.
    pub(super) timers: BTreeSet<(UnixMs, Place, SourceId)>,
    pub(super) touched: Vec<(Place, SourceId)>,
    pub(super) begun: Vec<SourceId>,
    /// When the oldest report was made that counts.
    reports_from: UnixMs,
    /// Places whose published state may have to change.
    pub(super) stale: BTreeSet<Place>,
    pub(super) revision: u64,
    /// A large set that comes in by turns.
    pub(super) set: Option<Set>,
}

impl LeaseTable {
    /// No claims yet, for listeners of so many scopes.
    pub fn new(scopes: usize) -> Self {
        let claims = Claims {
            scopes: scopes as u8,
            ..Claims::default()
        };
        Self {
            claims,
            tables: vec![Arc::default(); scopes + 1],
            ..Self::default()
        }
    }

    /// Leases of all sources.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of the newest change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Goes on counting changes from there, after a restart.
    pub fn resume(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Puts the configuration's devices and addresses in the place of those before; answers the
    /// leases whose device is no longer known, which end.
    pub fn adopt(&mut self, directory: Directory, fixed: Arc<IdentityTable>) -> Vec<String> {
        debug_assert!(self.set.is_none(), "its devices have numbers of before");
        self.claims.fixed = fixed;
        let before = mem::replace(&mut self.claims.directory, directory);
        let mut orphans = Vec::new();
        for (place, claims) in &mut self.claims.by_place {
            for claim in claims {
                let (account, device) = before.names(claim.device);
                match self.claims.directory.find(account, device) {
                    Ok(device) => claim.device = device,
                    Err(_) => {
                        let what = format!("{} of {account}/{device}", place.network);
                        orphans.push((*place, claim.source, what));
                    }
                }
            }
        }
        for (place, source, _) in &orphans {
            self.remove(*place, *source);
        }
        // Which of the configuration's own addresses changed is not known.
        self.build();
        orphans.into_iter().map(|(.., what)| what).collect()
    }

    /// Makes every table anew.
    pub(super) fn build(&mut self) {
        for number in 0..self.tables.len() {
            self.tables[number] = Arc::new(self.claims.built(Scope(number as u8)));
        }
        self.stale.clear();
    }

    /// Whose addresses are whose now.
    pub fn identities(&self) -> Identities {
        let mut tables = self.tables.iter().cloned();
        let everywhere = tables.next().unwrap_or_default();
        Identities::new(everywhere, tables.collect())
    }

    /// Says what time it is; ends what is over by then, but no more than a turn's worth: see
    /// [`is_behind`](Self::is_behind).
    pub fn advance(&mut self, now: UnixMs) {
        self.claims.now = self.claims.now.max(now);
        for _ in 0..limits::LEASE_TURN {
            let first = self.timers.first().copied();
            let Some((_, place, source)) = first.filter(|(at, ..)| *at <= self.claims.now) else {
                return;
            };
            self.timers.pop_first();
            self.stale.insert(place);
            let is_over = self
                .claims
                .claim(place, source)
                .is_some_and(|claim| claim.expires.is_some_and(|expires| expires <= now));
            if is_over {
                self.remove(place, source);
            }
        }
    }

    /// Whether more is over than one call of [`advance`](Self::advance) could end.
    pub fn is_behind(&self) -> bool {
        self.next_timer().is_some_and(|at| at <= self.claims.now)
    }

    /// When [`advance`](Self::advance) has something to do.
    pub fn next_timer(&self) -> Option<UnixMs> {
        self.timers.first().map(|(at, ..)| *at)
    }

    /// Takes a claim of `source` in. One that takes over from another device is served at once, or
    /// once a report has it, if there are reports on that source.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn add(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        offer: &Offer<'_>,
    ) -> Result<(), Refused> {
        let device = self.claims.find(offer)?;
        let known = self.by_name.get(source).copied();
        self.check_epoch(known, epoch)?;
        self.settle(offer.place);
        self.check_holder(known, epoch, offer, device)?;
        if self.len >= limits::LEASES_MAX {
            return Err(Refused::Full);
        }
        let source = self.source(source)?;
        self.begin_epoch(source, epoch);
        let before = self.claims.claim(offer.place, source);
        let is_taken_over = before.is_some_and(|claim| claim.device != device);
        self.put(source, offer, device, self.claims.now);
        if is_taken_over && self.sources[source.0 as usize].ended.is_some() {
            self.await_report(offer.place, source);
        }
        Ok(())
    }

    /// Has a claim wait for the next report on its source.
    ///
    /// Whoever took an address over may have given up before we heard of it, and a hub leaves it
    /// with whom it was then: until the hub itself says who has it, nobody is served there.
    fn await_report(&mut self, place: Place, source: SourceId) {
        let now = self.claims.now;
        if let Some(claim) = self.claims.claim_mut(place, source) {
            claim.standing = Standing::Unconfirmed(now);
        }
    }

    /// Takes a claim of `source` back.
    ///
    /// `session` must be the claim's own; `None` says that it does not matter.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn release(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        place: Place,
        session: Option<&str>,
    ) -> Result<(), Refused> {
        let known = self.by_name.get(source).copied();
        self.check_epoch(known, epoch)?;
        self.settle(place);
        let claim = known.and_then(|source| Some((source, self.claims.claim(place, source)?)));
        let (source, claim) = claim.ok_or(Refused::NoLease(place.network))?;
        if session.is_some_and(|session| *session != *claim.session) {
            return Err(Refused::OtherSession(place.network));
        }
        self.remove(place, source);
        Ok(())
    }

    /// Puts `offers` in the place of all that `source` has claimed, at once.
    ///
    /// # Errors
    /// [`Refused`], with the position of the offer at fault if it is one; nothing has changed.
    pub fn sync(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        offers: &[Offer<'_>],
    ) -> Result<(), (Option<usize>, Refused)> {
        let whole = |refused| (None, refused);
        let mut wanted = Offers::of(source, epoch);
        self.check_set(&wanted).map_err(whole)?;
        for (position, offer) in offers.iter().enumerate() {
            self.settle(offer.place);
            self.check_offer(&mut wanted, offer, position)
                .map_err(|refused| (Some(position), refused))?;
        }
        if self.len + offers.len() > limits::LEASES_MAX {
            return Err(whole(Refused::Full));
        }
        let source = self.source(source).map_err(whole)?;
        self.begin_epoch(source, epoch);
        for place in self.places_of(source) {
            if !wanted.has(place) {
                self.remove(place, source);
            }
        }
        for (place, wanted) in wanted.into_each() {
            self.put_wanted(source, place, wanted);
        }
        Ok(())
    }

    /// Remembers what `source` takes back, for a report may have been made before.
    ///
    /// # Errors
    /// [`Refused::Source`]
    pub fn expect_reports(&mut self, source: &str) -> Result<(), Refused> {
        let source = self.source(source)?;
        let ended = &mut self.sources[source.0 as usize].ended;
        ended.get_or_insert_default();
        Ok(())
    }

    /// Brings the claims of `source` in line with what it was seen to have at `as_of`; what it said
    /// and took back since then stays, and what was seen of an earlier run counts for nothing. What
    /// contradicts other sources is taken in as well: nobody is served there until they agree.
    /// Answers what could not be taken in.
    pub fn reconcile(&mut self, source: &str, as_of: UnixMs, offers: &[Offer<'_>]) -> Vec<Refused> {
        let mut refused = Vec::new();
        let source = match self.source(source) {
            Ok(source) => source,
            Err(error) => return vec![error],
        };
        let known = &mut self.sources[source.0 as usize];
        if as_of < known.begun.max(self.reports_from) {
            return refused;
        }
        let mut ended = mem::take(known.ended.get_or_insert_default());
        ended.retain(|_, at| *at > as_of);
        let mut seen = HashSet::with_capacity(offers.len());
        for offer in offers {
            seen.insert(offer.place);
            let claim = self.claims.claim(offer.place, source);
            let is_newer = claim.is_some_and(|claim| claim.said > as_of);
            if is_newer || ended.contains_key(&offer.place) {
                continue;
            }
            match self.claims.find(offer) {
                Ok(device) if self.len < limits::LEASES_MAX => {
                    if let Err(conflict) = self.check_holder(Some(source), None, offer, device) {
                        refused.push(conflict);
                    }
                    self.put(source, offer, device, as_of);
                }
                Ok(_) => refused.push(Refused::Full),
                Err(error) => {
                    refused.push(error);
                    seen.remove(&offer.place);
                }
            }
        }
        for place in self.places_of(source) {
            let claim = self.claims.claim(place, source);
            let is_old = claim.is_some_and(|claim| claim.said <= as_of);
            if is_old && !seen.contains(&place) {
                self.remove(place, source);
            }
        }
        self.sources[source.0 as usize].ended = Some(ended);
        refused
    }

    /// Reports that were made before `alive`, when this process's forerunner was at work last, count
    /// for nothing: what ended shortly before that is forgotten.
    pub fn forget_reports_before(&mut self, alive: UnixMs) {
        self.reports_from = alive;
    }

    /// Notes the newest run of a source, as remembered from before a restart.
    pub fn restore_epoch(&mut self, source: &str, epoch: u64) {
        if let Ok(source) = self.source(source) {
            let newest = &mut self.sources[source.0 as usize].epoch;
            *newest = epoch.max(*newest);
        }
    }

    /// What came of all changes since this was asked last; `None` if there were none.
    pub fn commit(&mut self) -> Option<Commit> {
        if self.stale.is_empty() && self.touched.is_empty() && self.begun.is_empty() {
            return None;
        }
        self.revision += 1;
        let stale: Vec<Place> = mem::take(&mut self.stale).into_iter().collect();
        let mut moved = Vec::new();
        for places in stale.chunk_by(|one, next| one.scope == next.scope) {
            let scope = places[0].scope;
            let number = usize::from(scope.0);
            if let Some((table, networks)) = self.changed(&self.tables[number], places) {
                self.tables[number] = Arc::new(table);
                moved.extend(networks.into_iter().map(|network| (scope, network)));
            }
            self.change_next(places);
        }
        Some(Commit {
            identities: self.identities(),
            moved,
            touched: mem::take(&mut self.touched),
            begun: mem::take(&mut self.begun),
            revision: self.revision,
        })
    }

    /// `table` as it has to be at `places`, and the networks that are another's then; `None`: it is.
    pub(super) fn changed(
        &self,
        table: &IdentityTable,
        places: &[Place],
    ) -> Option<(IdentityTable, Vec<IpNet>)> {
        let mut changes = Vec::new();
        let mut networks = Vec::new();
        for place in places {
            let entry = self.claims.verdict(*place).entry();
            if table.lookup(place.network) != entry {
                changes.push(change(place.network, entry));
                networks.push(place.network);
            }
        }
        (!changes.is_empty()).then(|| (table.with_changes(changes), networks))
    }

    /// What `source` says of `place`.
    pub fn lease(&self, place: Place, source: SourceId) -> Option<Lease<'_>> {
        let claim = self.claims.claim(place, source)?;
        Some(self.shown(place, claim))
    }

    /// The leases of each place behind `cursor`, in order; of all, if that is `None`.
    ///
    /// Whoever stops at a place can go on behind it later, whatever has changed.
    pub fn leases_behind(
        &self,
        cursor: Option<Place>,
    ) -> impl Iterator<Item = (Place, impl Iterator<Item = Lease<'_>>)> {
        let begin = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let places = self.claims.by_place.range((begin, Bound::Unbounded));
        places.map(|(place, claims)| {
            let claims = claims.iter();
            (*place, claims.map(|claim| self.shown(*place, claim)))
        })
    }

    /// How many leases `source` has.
    pub fn len_of(&self, source: &str) -> usize {
        let source = self.by_name.get(source);
        source.map_or(0, |source| self.sources[source.0 as usize].places.len())
    }

    /// The name of a source, and its newest run.
    pub fn source_of(&self, source: SourceId) -> (&str, u64) {
        let source = &self.sources[source.0 as usize];
        (&source.name, source.epoch)
    }

    /// Every source, with its newest run.
    pub fn sources(&self) -> impl Iterator<Item = (&str, u64)> {
        let sources = self.sources.iter();
        sources.map(|source| (&*source.name, source.epoch))
    }

    fn shown<'t>(&'t self, place: Place, claim: &'t Claim) -> Lease<'t> {
        let (account, device) = self.claims.directory.names(claim.device);
        Lease {
            place,
            source: &self.sources[claim.source.0 as usize].name,
            account,
            device,
            claim,
            is_disputed: self.claims.verdict(place) == Verdict::Disputed,
        }
    }

    pub(super) fn check_epoch(
        &self,
        source: Option<SourceId>,
        epoch: Option<u64>,
    ) -> Result<(), Refused> {
        let newest = source.map_or(0, |source| self.sources[source.0 as usize].epoch);
        match epoch {
            Some(epoch) if epoch < newest => Err(Refused::OutOfOrder { newest }),
            _ => Ok(()),
        }
    }

    pub(super) fn check_holder(
        &self,
        source: Option<SourceId>,
        epoch: Option<u64>,
        offer: &Offer<'_>,
        device: DeviceId,
    ) -> Result<(), Refused> {
        let name_of = |source: SourceId| &*self.sources[source.0 as usize].name;
        self.claims
            .check_holder(source, epoch, offer, device, name_of)
    }

    /// The number of the source that is called `name`, which is new if need be.
    pub(super) fn source(&mut self, name: &str) -> Result<SourceId, Refused> {
        if let Some(source) = self.by_name.get(name) {
            return Ok(*source);
        }
        self.check_source(name)?;
        let source = SourceId(self.sources.len() as u32);
        let name: Arc<str> = name.into();
        self.by_name.insert(Arc::clone(&name), source);
        self.sources.push(Source {
            name,
            epoch: 0,
            places: BTreeSet::new(),
            begun: 0,
            ended: None,
        });
        Ok(source)
    }

    /// Whether there is a source of this name, or may be.
    pub(super) fn check_source(&self, name: &str) -> Result<(), Refused> {
        if name == CONFIGURATION {
            return Err(Refused::Source(
                "\"config\" is the configuration's own; use another name",
            ));
        }
        if self.sources.len() >= limits::LEASE_SOURCES_MAX && !self.by_name.contains_key(name) {
            return Err(Refused::Source(
                "there are too many sources; use names again",
            ));
        }
        Ok(())
    }

    /// Ends what `source` claimed in earlier runs than `epoch`.
    fn begin_epoch(&mut self, source: SourceId, epoch: Option<u64>) {
        if self.note_epoch(source, epoch) {
            self.empty_set(source);
            for place in self.places_of(source) {
                self.remove(place, source);
            }
        }
    }

    /// Notes the newest run of `source`; says whether it is new.
    pub(super) fn note_epoch(&mut self, source: SourceId, epoch: Option<u64>) -> bool {
        let newest = self.sources[source.0 as usize].epoch;
        let Some(epoch) = epoch.filter(|epoch| *epoch > newest) else {
            return false;
        };
        let known = &mut self.sources[source.0 as usize];
        known.epoch = epoch;
        known.begun = self.claims.now;
        self.begun.push(source);
        true
    }

    fn places_of(&self, source: SourceId) -> Vec<Place> {
        let places = self.sources[source.0 as usize].places.iter();
        places.copied().collect()
    }

    pub(super) fn put(
        &mut self,
        source: SourceId,
        offer: &Offer<'_>,
        device: DeviceId,
        said: UnixMs,
    ) {
        let place = offer.place;
        if let Some(ended) = &mut self.sources[source.0 as usize].ended {
            ended.remove(&place);
        }
        let epoch = self.sources[source.0 as usize].epoch;
        if let Some(known) = self.claims.claim_mut(place, source)
            && known.says(offer, device, epoch)
        {
            known.said = said;
            return;
        }
        self.forget_timers(place, source);
        let claim = Claim {
            source,
            device,
            session: offer.session.into(),
            epoch,
            expires: offer.expires,
            standing: Standing::Confirmed,
            said,
        };
        let claims = self.claims.by_place.entry(place).or_default();
        match claims.iter_mut().find(|claim| claim.source == source) {
            Some(known) => *known = claim,
            None => {
                claims.push(claim);
                self.len += 1;
                self.sources[source.0 as usize].places.insert(place);
            }
        }
        if let Some(expires) = offer.expires {
            self.timers.insert((expires, place, source));
        }
        self.touch(place, source);
    }

    pub(super) fn remove(&mut self, place: Place, source: SourceId) {
        self.forget_timers(place, source);
        let Some(claims) = self.claims.by_place.get_mut(&place) else {
            return;
        };
        let before = claims.len();
        claims.retain(|claim| claim.source != source);
        self.len -= before - claims.len();
        if claims.is_empty() {
            self.claims.by_place.remove(&place);
        }
        let known = &mut self.sources[source.0 as usize];
        known.places.remove(&place);
        if let Some(ended) = &mut known.ended {
            ended.insert(place, self.claims.now);
        }
        self.touch(place, source);
    }

    fn forget_timers(&mut self, place: Place, source: SourceId) {
        let Some(claim) = self.claims.claim(place, source) else {
            return;
        };
        let until = match claim.standing {
            Standing::Unconfirmed(until) => Some(until),
            Standing::Confirmed => None,
        };
        for at in [claim.expires, until].into_iter().flatten() {
            self.timers.remove(&(at, place, source));
        }
    }

    fn touch(&mut self, place: Place, source: SourceId) {
        self.touched.push((place, source));
        let related = self.claims.related(place);
        self.stale.extend(related);
        self.doubt_set(place);
    }
}

fn change(network: IpNet, entry: Option<Identity<'_>>) -> Change<'_> {
    match entry {
        None => Change::Release { network },
        Some(Identity {
            account,
            name,
            serial,
        }) => Change::Assign {
            network,
            account,
            name,
            serial,
        },
    }
}
