//! A whole set of a source on its way into the table, in turns: others' changes come in between.
//!
//! It is checked first, offer by offer, and may be refused: nothing has changed then. From there on
//! nobody else can refuse it: whoever claims what it has is told that it is taken, and its room is its
//! own. What it changes is held back from the cores until all of it is in; they see it at once. An
//! address about which somebody says something meanwhile goes ahead of the others, so that no answer
//! rests on what the set has overtaken. Its source alone can still end it, by beginning a new run.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter, mem,
    ops::Bound,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    claim::{Offer, Place, Refused, SourceId, UnixMs},
    directory::DeviceId,
    table::{Commit, LeaseTable},
};
use crate::{
    limits,
    snapshot::{identity::IdentityTable, scope::Scope},
};

/// What a set is to have.
#[derive(Debug)]
pub struct Offers {
    source: Box<str>,
    epoch: Option<u64>,
    wanted: BTreeMap<Place, Wanted>,
}

/// What a set says of one place.
#[derive(Debug)]
pub(super) struct Wanted {
    device: DeviceId,
    session: Box<str>,
    expires: Option<UnixMs>,
    /// Where it stands in the set.
    position: usize,
}

/// A set that comes in by turns.
#[derive(Debug)]
pub(super) struct Set {
    offers: Offers,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// It may still be refused.
    Checked {
        /// What has to be checked again: something was said of it since.
        doubtful: BTreeSet<Place>,
        /// How much of that has come since the last turn.
        come: usize,
    },
    /// It takes effect.
    Taken(Taken),
    /// It did, until its source began anew: nothing of it is left.
    Overtaken,
}

/// First comes what the source had before, in order: it is renewed or ends. What is still wanted then is
/// new. So there are never more leases on the way than before it or behind it, but for what went ahead
/// while something had still to end.
#[derive(Debug)]
struct Taken {
    source: SourceId,
    /// How much of what it had before is not yet as it has to be.
    old: usize,
    /// What it had up to there is.
    cursor: Option<Place>,
    /// What it has behind it that went ahead.
    settled: BTreeSet<Place>,
    /// What the cores will see: of no scope, then of scope 1, 2 …
    next: Vec<Arc<IdentityTable>>,
    /// What is another's there than in what they see now.
    moved: Vec<(Scope, IpNet)>,
}

impl Offers {
    /// None yet, of a source's run.
    pub(super) fn of(source: &str, epoch: Option<u64>) -> Self {
        Self {
            source: source.into(),
            epoch,
            wanted: BTreeMap::new(),
        }
    }

    /// Whether there is one for `place`.
    pub(super) fn has(&self, place: Place) -> bool {
        self.wanted.contains_key(&place)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Each of them.
    pub(super) fn into_each(self) -> impl Iterator<Item = (Place, Wanted)> {
        self.wanted.into_iter()
    }
}

impl LeaseTable {
    /// Begins a set that comes in by turns.
    ///
    /// # Errors
    /// [`Refused`]; there is no set then.
    pub fn begin_set(&mut self, source: &str, epoch: Option<u64>) -> Result<(), Refused> {
        let offers = Offers::of(source, epoch);
        self.check_set(&offers)?;
        let stage = Stage::Checked {
            doubtful: BTreeSet::new(),
            come: 0,
        };
        self.set = Some(Set { offers, stage });
        Ok(())
    }

    /// Takes an offer into the set that has begun; `position` is where it stands there.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn add_to_set(&mut self, offer: &Offer<'_>, position: usize) -> Result<(), Refused> {
        let Some(mut set) = self.set.take() else {
            return Ok(());
        };
        let checked = self.check_offer(&mut set.offers, offer, position);
        self.set = Some(set);
        checked
    }

    /// Checks a turn's worth of what was said meanwhile against the set, and as much as has come since
    /// the last turn: whoever says ever more never keeps it from its end. Says whether that was all,
    /// and the set is being taken in from now on.
    ///
    /// # Errors
    /// [`Refused`], with the position of the offer at fault if it is one; nothing has changed.
    pub fn close_set(&mut self) -> Result<bool, (Option<usize>, Refused)> {
        let Some(Set { offers, stage }) = &mut self.set else {
            return Ok(true);
        };
        let Stage::Checked { doubtful, come } = stage else {
            return Ok(true);
        };
        let count = limits::LEASE_TURN + mem::take(come);
        let first = iter::from_fn(|| doubtful.pop_first());
        let first: Vec<_> = first.take(count).collect();
        let is_all = doubtful.is_empty();
        let (epoch, known) = (offers.epoch, self.by_name.get(&*offers.source).copied());
        for place in first {
            let Some(wanted) = self
                .set
                .as_ref()
                .and_then(|set| set.offers.wanted.get(&place))
            else {
                continue;
            };
            let checked = self.check_holder(known, epoch, &wanted.offer(place), wanted.device);
            checked.map_err(|refused| (Some(wanted.position), refused))?;
        }
        if !is_all {
            return Ok(false);
        }
        self.open_set().map_err(|refused| (None, refused))?;
        Ok(true)
    }

    fn open_set(&mut self) -> Result<(), Refused> {
        let Some(mut set) = self.set.take() else {
            return Ok(());
        };
        // Not known until now: somebody else may have used it, or the last that there was.
        let opened = self.check_set(&set.offers).and_then(|()| {
            let known = self.by_name.get(&*set.offers.source).copied();
            self.check_room_for(&set.offers, known)?;
            self.source(&set.offers.source)
        });
        if let Ok(source) = opened {
            self.note_epoch(source, set.offers.epoch);
            set.stage = Stage::Taken(Taken {
                source,
                old: self.sources[source.0 as usize].places.len(),
                cursor: None,
                settled: BTreeSet::new(),
                next: self.tables.clone(),
                moved: Vec::new(),
            });
        }
        self.set = Some(set);
        opened.map(drop)
    }

    /// Whether a set is being taken in that nothing can refuse any more.
    pub fn is_taking(&self) -> bool {
        let stage = self.set.as_ref().map(|set| &set.stage);
        matches!(stage, Some(Stage::Taken(_)))
    }

    /// Whether nobody may end a session of `source` now: what its set has ended of that by now, the cores
    /// still see.
    pub(super) fn is_taking_of(&self, source: SourceId) -> bool {
        let stage = self.set.as_ref().map(|set| &set.stage);
        matches!(stage, Some(Stage::Taken(taken)) if taken.source == source)
    }

    /// Name of the source whose set has begun to come in, whether or not it is being taken in yet.
    pub fn begun_source(&self) -> Option<&str> {
        self.set.as_ref().map(|set| &*set.offers.source)
    }

    /// Name of the source whose set is being taken in.
    pub fn taken_source(&self) -> Option<&str> {
        let set = self.set.as_ref().filter(|_| self.is_taking())?;
        Some(&set.offers.source)
    }

    /// Gives up a set that was refused. What is returned takes a while to drop.
    pub fn drop_set(&mut self) -> Option<Offers> {
        self.set.take().map(|set| set.offers)
    }

    /// How many leases the set that is being taken in will bring, beyond those that it will end.
    pub(super) fn coming(&self) -> usize {
        match &self.set {
            Some(Set {
                offers,
                stage: Stage::Taken(taken),
            }) => offers.len().saturating_sub(taken.old),
            _ => 0,
        }
    }

    /// Puts up to `count` leases of the set in place; says whether it is all there.
    pub fn take_set(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some(Set {
                offers,
                stage: Stage::Taken(taken),
            }) = &mut self.set
            else {
                return true;
            };
            let source = taken.source;
            let behind = taken.cursor.map_or(Bound::Unbounded, Bound::Excluded);
            let places = &self.sources[source.0 as usize].places;
            let old = places.range((behind, Bound::Unbounded)).next().copied();
            let Some(place) = old.filter(|_| taken.old > 0) else {
                let Some((place, wanted)) = offers.wanted.pop_first() else {
                    return true;
                };
                self.put_wanted(source, place, wanted);
                continue;
            };
            taken.cursor = Some(place);
            if taken.settled.remove(&place) {
                continue;
            }
            taken.old -= 1;
            match offers.wanted.remove(&place) {
                Some(wanted) => self.put_wanted(source, place, wanted),
                None => self.leave(&[place], source),
            }
        }
        false
    }

    /// Holds back from the cores what has changed; answers what that was.
    pub fn hold(&mut self) -> Commit {
        let stale: Vec<Place> = mem::take(&mut self.stale).into_iter().collect();
        for places in stale.chunk_by(|one, next| one.scope == next.scope) {
            self.change_next(places);
        }
        Commit {
            identities: self.identities(),
            moved: Vec::new(),
            touched: mem::take(&mut self.touched),
            begun: mem::take(&mut self.begun),
            revision: self.revision,
        }
    }

    /// Ends a set that is all there: what was held back is what the cores are to see.
    pub fn finish_set(&mut self) -> Option<Commit> {
        let Stage::Taken(taken) = self.set.take()?.stage else {
            return None;
        };
        self.tables = taken.next;
        self.revision += 1;
        Some(Commit {
            identities: self.identities(),
            moved: taken.moved,
            touched: Vec::new(),
            begun: Vec::new(),
            revision: self.revision,
        })
    }

    /// Brings `places`, all of one scope, up to date in what the cores will see.
    pub(super) fn change_next(&mut self, places: &[Place]) {
        let scope = places[0].scope;
        let number = usize::from(scope.0);
        let Some(taken) = self.taken() else {
            return;
        };
        let next = Arc::clone(&taken.next[number]);
        let Some((table, networks)) = self.changed(&next, places) else {
            return;
        };
        if let Some(taken) = self.taken() {
            taken.next[number] = Arc::new(table);
            // One more than are told apart says as much as all of them.
            let room = (limits::MOVED_NETWORKS_MAX + 1).saturating_sub(taken.moved.len());
            let networks = networks.into_iter().take(room);
            taken.moved.extend(networks.map(|network| (scope, network)));
        }
    }

    /// Has the set's word on `place`, and on what counts for it, go ahead of the rest.
    pub(super) fn settle(&mut self, place: Place) {
        if !self.is_taking() {
            return;
        }
        // What all scopes have counts in each of them: of none, half may be seen.
        let everywhere = Place {
            scope: Scope::NONE,
            ..place
        };
        for place in self.claims.related(everywhere) {
            let Some(Set {
                offers,
                stage: Stage::Taken(taken),
            }) = &mut self.set
            else {
                return;
            };
            let (source, wanted) = (taken.source, offers.wanted.remove(&place));
            if taken.old == 0 || taken.cursor.is_some_and(|cursor| place <= cursor) {
                match wanted {
                    Some(wanted) => self.put_wanted(source, place, wanted),
                    // It is in place, and has been held back.
                    None => drop(self.stale.insert(place)),
                }
                continue;
            }
            if taken.settled.contains(&place) {
                continue;
            }
            let is_old = self.claims.claim(place, source).is_some();
            taken.old -= usize::from(is_old);
            match wanted {
                Some(wanted) => {
                    taken.settled.insert(place);
                    self.put_wanted(source, place, wanted);
                }
                None if is_old => self.leave(&[place], source),
                None => {}
            }
        }
    }

    /// Notes that `source` has said something of `place` itself that the rest of its set must not end.
    pub(super) fn note_new(&mut self, place: Place, source: SourceId) {
        if let Some(taken) = self.taken()
            && taken.source == source
            && taken.old > 0
            && taken.cursor.is_none_or(|cursor| place > cursor)
        {
            taken.settled.insert(place);
        }
    }

    /// Notes that `source` says nothing of `place` any more.
    pub(super) fn note_gone(&mut self, place: Place, source: SourceId) {
        if let Some(taken) = self.taken()
            && taken.source == source
        {
            taken.settled.remove(&place);
        }
    }

    /// Has what was said of `place`, and of what it counts for, checked against the set once more.
    pub(super) fn doubt_set(&mut self, place: Place) {
        if let Some(Set { offers, stage }) = &mut self.set
            && let Stage::Checked { doubtful, come } = stage
        {
            let related = self.claims.related(place);
            let doubted = related.filter(|place| offers.has(*place) && doubtful.insert(*place));
            *come += doubted.count();
        }
    }

    /// Ends a set that `source` is overtaking itself, with a new run: what was held back of it is seen
    /// with that, for the run rests on it.
    pub(super) fn overtake_set(&mut self, source: SourceId) {
        if !self.is_taking_of(source) {
            return;
        }
        if let Some(set) = &mut self.set
            && let Stage::Taken(taken) = mem::replace(&mut set.stage, Stage::Overtaken)
        {
            self.tables = taken.next;
            self.moved = taken.moved;
        }
    }

    /// Why a set is over that was being taken in, if its source has overtaken it.
    pub fn overtaken(&self) -> Option<Refused> {
        let set = self.set.as_ref()?;
        let source = self.by_name.get(&*set.offers.source)?;
        let newest = self.sources[source.0 as usize].epoch;
        matches!(set.stage, Stage::Overtaken).then_some(Refused::OutOfOrder { newest })
    }

    /// Name of the source that has overtaken a set of its own, as long as that has not been given up.
    pub(super) fn overtaken_source(&self) -> Option<&str> {
        let set = self.set.as_ref()?;
        matches!(set.stage, Stage::Overtaken).then_some(&*set.offers.source)
    }

    /// Whether a source may have such a set.
    ///
    /// # Errors
    /// [`Refused`]
    pub(super) fn check_set(&self, offers: &Offers) -> Result<(), Refused> {
        let known = self.by_name.get(&*offers.source).copied();
        self.check_epoch(known, offers.epoch)?;
        if known.is_some_and(|source| self.claims.nested.is_hub(source)) {
            return Err(Refused::Source(
                "the source is a hub, whose whole set its status says; add and release what changes",
            ));
        }
        self.check_source(&offers.source)
    }

    /// Takes one more offer into a set.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub(super) fn check_offer(
        &self,
        offers: &mut Offers,
        offer: &Offer<'_>,
        position: usize,
    ) -> Result<(), Refused> {
        let device = self.claims.find(offer)?;
        let known = self.by_name.get(&*offers.source).copied();
        // A set takes over from whatever the source said before.
        let offer = Offer {
            replace: true,
            ..*offer
        };
        self.check_holder(known, offers.epoch, &offer, device)?;
        // Nor may it give a network to one device in a scope, and to another for all.
        let mut related = self.claims.related(offer.place);
        let is_repeated = related.any(|place| {
            let other = offers.wanted.get(&place);
            other.is_some_and(|other| place == offer.place || other.device != device)
        });
        if is_repeated {
            return Err(Refused::Repeated(offer.place.network));
        }
        let wanted = Wanted {
            device,
            session: offer.session.into(),
            expires: offer.expires,
            position,
        };
        offers.wanted.insert(offer.place, wanted);
        Ok(())
    }

    pub(super) fn put_wanted(&mut self, source: SourceId, place: Place, wanted: Wanted) {
        let now = self.claims.now;
        self.put(source, &wanted.offer(place), wanted.device, now);
    }

    fn taken(&mut self) -> Option<&mut Taken> {
        match &mut self.set.as_mut()?.stage {
            Stage::Taken(taken) => Some(taken),
            Stage::Checked { .. } | Stage::Overtaken => None,
        }
    }
}

impl Wanted {
    /// As an offer of `place`, whose account and device have been found already.
    fn offer(&self, place: Place) -> Offer<'_> {
        Offer {
            place,
            account: "",
            device: "",
            session: &self.session,
            expires: self.expires,
            replace: true,
        }
    }
}
