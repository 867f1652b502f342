//! Who may speak from which address, as sources change it: claims come, go, end and move.
//!
//! Every change is taken in whole or refused; what came of them is told by [`LeaseTable::commit`].
//! Reads no clock and does no I/O; never settles a conflict by itself.

use std::{collections::BTreeSet, mem, ops::Bound, slice, sync::Arc};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{
    claim::{Claim, Lease, Offer, Place, Refused, SourceId, Standing, UnixMs},
    claims::{CONFIGURATION, Claims, Verdict},
    directory::{DeviceId, Directory},
    seen::Reported,
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
    pub(super) begun: UnixMs,
    /// `None`: nobody reports on this source.
    pub(super) reported: Option<Reported>,
}

/// Every claim, and the tables that follow from them.
#[derive(Debug, Default)]
pub struct LeaseTable {
    pub(super) claims: Claims,
    /// As published: of no scope, then of scope 1, 2 …
    pub(super) tables: Vec<Arc<IdentityTable>>,
    pub(super) len: usize,
    /// Of all hubs, what is remembered because it ended.
    pub(super) ended: usize,
    /// How many leases there may be, and how much there may be of both.
    pub(super) len_max: usize,
    pub(super) sources: Vec<Source>,
    pub(super) by_name: HashMap<Arc<str>, SourceId>,
    /// When claims end, or are no longer believed.
    pub(super) timers: BTreeSet<(UnixMs, Place, SourceId)>,
    pub(super) touched: Vec<(Place, SourceId)>,
    pub(super) begun: Vec<SourceId>,
    /// Places whose published state may have to change.
    pub(super) stale: BTreeSet<Place>,
    pub(super) revision: u64,
    /// A large set that comes in by turns.
    pub(super) set: Option<Set>,
    /// What has become another's in the tables since the last commit: by a set that was overtaken, or
    /// by another configuration.
    pub(super) moved: Vec<(Scope, IpNet)>,
}

impl LeaseTable {
    /// No claims yet, for listeners of so many scopes.
    pub fn new(scopes: usize) -> Self {
        Self::with_room_for(limits::LEASES_MAX, scopes)
    }

    /// Likewise, with room for so many leases.
    pub fn with_room_for(leases: usize, scopes: usize) -> Self {
        let claims = Claims {
            scopes: scopes as u8,
            ..Claims::default()
        };
        Self {
            claims,
            tables: vec![Arc::default(); scopes + 1],
            len_max: leases,
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

    /// Leases nothing of these networks, whose connections are believed when they say who speaks.
    pub fn believe(&mut self, networks: impl IntoIterator<Item = IpNet>) {
        debug_assert!(self.is_empty(), "one of its leases may be of them");
        self.claims.believed.extend(networks);
    }

    /// Takes the configuration's devices and addresses for the first time.
    pub fn begin(&mut self, directory: Directory, fixed: Arc<IdentityTable>) {
        debug_assert!(self.is_empty(), "no lease can name a device yet");
        self.claims.directory = directory;
        self.claims.fixed = fixed;
        self.build();
    }

    /// Puts the configuration's devices and addresses in the place of those before; answers the
    /// leases whose device is no longer known, which end. The identities are new at once; the next
    /// commit tells what has moved.
    ///
    /// Looks at each lease only if a device has another number, or is stamped otherwise, and judges
    /// no network anew but those of which something else is said.
    pub fn adopt(&mut self, directory: Directory, fixed: Arc<IdentityTable>) -> Vec<String> {
        debug_assert!(self.set.is_none(), "its devices have numbers of before");
        let addresses = mem::replace(&mut self.claims.fixed, fixed);
        for network in addresses.differences(&self.claims.fixed) {
            let scope = Scope::NONE;
            let related = self.claims.related(Place { scope, network });
            self.stale.extend(related);
        }
        let before = mem::replace(&mut self.claims.directory, directory);
        let orphans = match self.claims.directory.continues(&before) {
            true => Vec::new(),
            false => self.follow_devices(&before),
        };
        for (place, source, _) in &orphans {
            self.disown(*place, *source);
        }
        self.judge();
        debug_assert!(self.is_as_built(), "something else was said of a network");
        orphans.into_iter().map(|(.., what)| what).collect()
    }

    /// Has each claim name its device by the number that it has now; answers those whose device there
    /// is no more, and what to call them.
    fn follow_devices(&mut self, before: &Directory) -> Vec<(Place, SourceId, String)> {
        let after = &self.claims.directory;
        let mut orphans = Vec::new();
        let mut changed = Vec::new();
        let mut numbers = HashMap::new();
        for (place, claims) in &mut self.claims.by_place {
            for claim in claims {
                let (account, device) = before.names(claim.device);
                let number = numbers
                    .entry(claim.device)
                    .or_insert_with(|| after.find(account, device).ok());
                let Some(number) = *number else {
                    let what = format!("{} of {account}/{device}", place.network);
                    orphans.push((*place, claim.source, what));
                    continue;
                };
                if before.identity(claim.device) != after.identity(number) {
                    changed.push((*place, claim.source));
                }
                claim.device = number;
            }
        }
        for (place, source) in changed {
            self.mark_stale(place, source);
        }
        orphans
    }

    /// Whether the tables are what they would be if they were made anew.
    fn is_as_built(&self) -> bool {
        let mut tables = (0..=u8::MAX).zip(&self.tables);
        tables.all(|(scope, table)| {
            let built = self.claims.built(Scope(scope));
            table.differences(&built).is_empty()
        })
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
            self.settle(place);
            self.mark_stale(place, source);
            let is_over = self
                .claims
                .claim(place, source)
                .is_some_and(|claim| claim.expires.is_some_and(|expires| expires <= now));
            if is_over {
                self.leave(&[place], source);
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
        self.add_all(source, epoch, slice::from_ref(offer))
    }

    /// Likewise with several, all of which are taken in or none.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn add_all(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        offers: &[Offer<'_>],
    ) -> Result<(), Refused> {
        let known = self.by_name.get(source).copied();
        self.check_epoch(known, epoch)?;
        let mut devices = Vec::with_capacity(offers.len());
        for (position, offer) in offers.iter().enumerate() {
            let device = self.claims.find(offer)?;
            self.settle(offer.place);
            self.check_holder(known, epoch, offer, device)?;
            if offers[..position]
                .iter()
                .any(|other| other.place == offer.place)
            {
                return Err(Refused::Repeated(offer.place.network));
            }
            devices.push(device);
        }
        self.check_room(known, epoch, offers)?;
        let source = self.source(source)?;
        self.begin_epoch(source, epoch);
        let is_hub = self.claims.nested.is_hub(source);
        for (offer, device) in offers.iter().zip(devices) {
            let is_unsure = is_hub && self.is_unsure(offer.place, source, Some(device));
            self.put(source, offer, device, self.claims.now);
            if is_unsure {
                self.await_report(offer.place, source);
            }
        }
        Ok(())
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
        self.leave(&[place], source);
        if !is_host(place) && self.claims.nested.is_hub(source) {
            // It may have forgotten the network alone: hosts in it that it has heard are its client's
            // for a while.
            self.withhold(place, source);
        }
        Ok(())
    }

    /// Takes all claims of `source` back that belong to `session`, at once.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn release_session(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        session: &str,
    ) -> Result<(), Refused> {
        let known = self.by_name.get(source).copied();
        self.check_epoch(known, epoch)?;
        let source = known.ok_or(Refused::NoSession)?;
        if self.is_taking_of(source) {
            return Err(Refused::Source(
                "the source has a set on its way; end its session once that is done",
            ));
        }
        let mut places = self.places_of(source);
        places.retain(|place| {
            let claim = self.claims.claim(*place, source);
            claim.is_some_and(|claim| *claim.session == *session)
        });
        if places.is_empty() {
            return Err(Refused::NoSession);
        }
        self.end(&places, source);
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
        let known = self.by_name.get(source).copied();
        self.check_room_for(&wanted, known).map_err(whole)?;
        let source = self.source(source).map_err(whole)?;
        self.begin_epoch(source, epoch);
        let mut places = self.places_of(source);
        places.retain(|place| !wanted.has(*place));
        self.end(&places, source);
        for (place, wanted) in wanted.into_each() {
            self.put_wanted(source, place, wanted);
        }
        Ok(())
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
        let has_news = !self.touched.is_empty() || !self.begun.is_empty();
        if !has_news && self.stale.is_empty() && self.moved.is_empty() {
            return None;
        }
        self.revision += 1;
        self.judge();
        Some(Commit {
            identities: self.identities(),
            moved: mem::take(&mut self.moved),
            touched: mem::take(&mut self.touched),
            begun: mem::take(&mut self.begun),
            revision: self.revision,
        })
    }

    /// Brings the tables up to date where something else may have to be said.
    fn judge(&mut self) {
        let stale: Vec<Place> = mem::take(&mut self.stale).into_iter().collect();
        for places in stale.chunk_by(|one, next| one.scope == next.scope) {
            let scope = places[0].scope;
            let number = usize::from(scope.0);
            if let Some((table, networks)) = self.changed(&self.tables[number], places) {
                self.tables[number] = Arc::new(table);
                let networks = networks.into_iter().map(|network| (scope, network));
                self.moved.extend(networks);
            }
            self.change_next(places);
        }
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
        let verdict = self.claims.verdict(place);
        Lease {
            place,
            source: &self.sources[claim.source.0 as usize].name,
            account,
            device,
            claim,
            is_disputed: verdict == Verdict::Disputed,
            is_suspended: verdict == Verdict::Unconfirmed,
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
            reported: None,
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
        let is_first = self.sources[source.0 as usize].epoch == 0;
        if !self.note_epoch(source, epoch) {
            return;
        }
        self.overtake_set(source);
        let places = self.places_of(source);
        if is_first && self.claims.nested.is_hub(source) {
            // Reports do not tell of which run they are: it may be this one, and its clients are there.
            for place in places {
                self.await_report(place, source);
            }
        } else {
            self.end(&places, source);
        }
    }

    /// Ends what `source` claims of `places`, behind what a set of another source says of them.
    fn end(&mut self, places: &[Place], source: SourceId) {
        for place in places {
            self.settle(*place);
        }
        self.leave(places, source);
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

    pub(super) fn places_of(&self, source: SourceId) -> Vec<Place> {
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
        if let Some(reported) = &mut self.sources[source.0 as usize].reported {
            self.ended -= usize::from(reported.ended.remove(&place).is_some());
            self.claims.nested.let_go_of(place, source);
            if reported.places.insert(place) {
                self.claims.nested.add(place);
            }
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
                self.note_new(place, source);
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
        if let Some(reported) = &mut known.reported
            && reported.places.remove(&place)
        {
            self.claims.nested.remove(place);
        }
        self.note_gone(place, source);
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

    pub(super) fn touch(&mut self, place: Place, source: SourceId) {
        self.touched.push((place, source));
        self.mark_stale(place, source);
    }

    /// Has it judged anew whose `place` is; where a hub has a client, also what lies in it.
    pub(super) fn mark_stale(&mut self, place: Place, source: SourceId) {
        let related = self.claims.related(place);
        if !is_host(place) && self.claims.nested.is_hub(source) {
            let within = related.clone();
            let within = within.flat_map(|place| self.claims.nested.within(place));
            self.stale.extend(within);
        }
        self.stale.extend(related);
        self.doubt_set(place);
    }
}

/// Whether it is one address.
pub(super) fn is_host(place: Place) -> bool {
    place.network.prefix_len() == place.network.max_prefix_len()
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
