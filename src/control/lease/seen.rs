//! Leases of hubs: what their hooks say is believed as far as what was seen of them allows.
//!
//! A hook may be lost, or given up after it was heard, and a hub says nothing at all of some changes.
//! Wherever that leaves it open whose a network is, it is nobody's until a report on the hub shows it.
//! Reads no clock and does no I/O.

use std::mem;

use hashbrown::{HashMap, HashSet};

use super::{
    claim::{Offer, Place, Refused, SourceId, Standing, UnixMs},
    claims::Outer,
    directory::DeviceId,
    nested::Why,
    table::{LeaseTable, is_host},
};

/// What was seen at a hub.
#[derive(Debug, Default)]
pub struct Seen<'a> {
    /// What it lets devices use.
    pub offers: &'a [Offer<'a>],
    /// What it lets somebody use of whom nothing is known.
    pub strangers: &'a [Place],
}

/// What is kept of a source whose claims a hub reports on.
#[derive(Debug)]
pub(super) struct Reported {
    /// Where it has claims.
    pub(super) places: HashSet<Place>,
    /// When claims ended that a report may still have.
    pub(super) ended: HashMap<Place, UnixMs>,
    /// Since when it is remembered what the source says.
    since: UnixMs,
    /// What becomes of reports from before.
    earlier: Earlier,
    /// No report has been taken in since a start or a restart: it is not known what is nobody's in the
    /// networks of its clients.
    pub(super) is_forgetful: bool,
    /// Somebody is not served until a report of then, or of later, says whose the network is.
    doubted: Option<UnixMs>,
}

/// What becomes of a report that was made before it is remembered what its source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Earlier {
    /// Hooks may have said otherwise since, and that is forgotten: nobody is served by it.
    Doubted,
    /// What they said by then is known as well, from before a restart: it says nothing more.
    Ignored,
}

impl Reported {
    /// Of a source of which nothing is known at `now`.
    fn new(now: UnixMs) -> Self {
        Self {
            places: HashSet::new(),
            ended: HashMap::new(),
            since: now,
            earlier: Earlier::Doubted,
            is_forgetful: true,
            doubted: None,
        }
    }
}

impl LeaseTable {
    /// Takes `source` for a hub: remembers what it takes back, for a report may have been made before,
    /// and serves nobody where networks of two of its devices overlap; nor in any network that a hook
    /// tells of before the first report.
    ///
    /// # Errors
    /// [`Refused::Source`]
    pub fn expect_reports(&mut self, source: &str) -> Result<(), Refused> {
        let source = self.source(source)?;
        if self.claims.nested.is_hub(source) {
            return Ok(());
        }
        // What it has said so far, as a feed or before a restart.
        let places = self.places_of(source);
        self.claims.nested.add_hub(source);
        for place in &places {
            self.claims.nested.add(*place);
        }
        for place in &places {
            self.mark_stale(*place, source);
        }
        let mut reported = Reported::new(self.claims.now);
        reported.places.extend(places);
        self.sources[source.0 as usize].reported = Some(reported);
        Ok(())
    }

    /// Ends all claims of `source`, and all that is known of it as a hub.
    pub fn forget_hub(&mut self, source: &str) {
        let Some(source) = self.by_name.get(source).copied() else {
            return;
        };
        for place in self.places_of(source) {
            self.remove(place, source);
        }
        for place in self.claims.nested.let_go(source, |_| true) {
            self.mark_stale(place, source);
        }
        self.claims.nested.remove_hub(source);
        let reported = self.sources[source.0 as usize].reported.take();
        self.ended -= reported.map_or(0, |reported| reported.ended.len());
    }

    /// What hubs said by the time of `alive` is remembered from before a restart: reports that were made
    /// earlier count for nothing, and later ones for as much as any.
    pub fn forget_reports_before(&mut self, alive: UnixMs) {
        for reported in self
            .sources
            .iter_mut()
            .filter_map(|source| source.reported.as_mut())
        {
            reported.since = alive;
            reported.earlier = Earlier::Ignored;
        }
    }

    /// Ends the claims of `source`, a hub, of whose session, account and device it `is_said` no longer:
    /// its names stand for other devices now.
    pub fn end_unsaid(&mut self, source: &str, is_said: impl Fn(&str, (&str, &str)) -> bool) {
        let Some(source) = self.by_name.get(source).copied() else {
            return;
        };
        for place in self.places_of(source) {
            let claim = self.claims.claim(place, source);
            let is_over = claim.is_some_and(|claim| {
                let device = self.claims.directory.names(claim.device);
                !is_said(&claim.session, device)
            });
            if is_over {
                self.disown(place, source);
            }
        }
    }

    /// Whether `source` is a hub that a report is waited for: none has come yet, or somebody may not be
    /// served before the next.
    pub fn is_in_doubt(&self, source: &str) -> bool {
        let source = self.by_name.get(source);
        let reported = source.and_then(|source| self.sources[source.0 as usize].reported.as_ref());
        reported.is_some_and(|reported| reported.is_forgetful || reported.doubted.is_some())
    }

    /// Brings the claims of `source`, which is a hub, in line with what was `seen` of it at `as_of`;
    /// what it said and took back since then stays, and what was seen of an earlier run counts for
    /// nothing. By what was seen before anything is remembered of the hub nobody is served. What
    /// contradicts other sources, or lies in another device's network, is taken in as well: nobody is
    /// served there until they agree. Answers what could not be served.
    pub fn reconcile(&mut self, source: &str, as_of: UnixMs, seen: &Seen<'_>) -> Vec<Refused> {
        let mut refused = Vec::new();
        if let Err(error) = self.expect_reports(source) {
            return vec![error];
        }
        let source = self.by_name[source];
        let known = &mut self.sources[source.0 as usize];
        let reported = known.reported.as_mut().expect("it is a hub");
        if as_of < known.begun {
            return refused;
        }
        if as_of < reported.since {
            if reported.earlier == Earlier::Doubted {
                self.doubt(source, as_of, seen);
            }
            return refused;
        }
        let mut ended = mem::take(&mut reported.ended);
        self.ended -= ended.len();
        ended.retain(|_, at| *at > as_of);
        self.ended += ended.len();
        let mut strangers: HashSet<Place> = seen.strangers.iter().copied().collect();
        let offers = seen.offers;
        let devices: Vec<_> = offers.iter().map(|offer| self.claims.find(offer)).collect();
        let found = offers.iter().zip(&devices);
        let seen: HashSet<Place> = found
            .filter(|(_, device)| device.is_ok())
            .map(|(offer, _)| offer.place)
            .collect();
        // First of all what is gone: what has come may need its room.
        for place in self.places_of(source) {
            let claim = self.claims.claim(place, source);
            let is_old = claim.is_some_and(|claim| claim.said <= as_of);
            if is_old && !seen.contains(&place) {
                self.remove(place, source);
            }
        }
        for (offer, device) in offers.iter().zip(devices) {
            let claim = self.claims.claim(offer.place, source);
            let is_newer = claim.is_some_and(|claim| claim.said > as_of);
            if is_newer || ended.contains_key(&offer.place) {
                continue;
            }
            let is_new = claim.is_none();
            let found = device.and_then(|device| match is_new {
                true => self.check_room_for_one().map(|()| device),
                false => Ok(device),
            });
            match found {
                Ok(device) => {
                    if let Err(conflict) = self.check_holder(Some(source), None, offer, device) {
                        refused.push(conflict);
                    }
                    self.put(source, offer, device, as_of);
                }
                Err(error) => {
                    refused.push(error);
                    strangers.insert(offer.place);
                }
            }
        }
        // Of what had been left by the time of the report, it shows whose it is.
        let is_shown = |why| match why {
            Why::Left(at) => at <= as_of,
            Why::Stranger => true,
        };
        for place in self.claims.nested.let_go(source, is_shown) {
            self.mark_stale(place, source);
        }
        let reported = &mut self.sources[source.0 as usize].reported;
        let reported = reported.as_mut().expect("it is a hub");
        reported.doubted = reported.doubted.filter(|since| *since > as_of);
        for place in strangers {
            // Of what has ended since, a later report has the word.
            match ended.get(&place) {
                Some(at) => self.withhold_since(place, source, *at),
                None => {
                    self.claims.nested.withhold(place, source, Why::Stranger);
                    self.mark_stale(place, source);
                }
            }
        }
        let reported = &mut self.sources[source.0 as usize].reported;
        let reported = reported.as_mut().expect("it is a hub");
        reported.ended = ended;
        reported.is_forgetful = false;
        refused.extend(offers.iter().filter_map(|offer| self.nested(offer.place)));
        refused
    }

    /// Keeps what was `seen` of `source` from everybody, where nothing else is known of it, until a report
    /// says whose it is that was made since anything is remembered.
    fn doubt(&mut self, source: SourceId, as_of: UnixMs, seen: &Seen<'_>) {
        let strangers = seen.strangers.iter().map(|place| (*place, None));
        let offers = seen.offers.iter().map(|offer| (offer.place, Some(offer)));
        for (place, offer) in offers.chain(strangers) {
            let reported = self.sources[source.0 as usize].reported.as_ref();
            let since = reported.map_or(0, |reported| reported.since);
            let is_known = reported.is_some_and(|reported| {
                reported.places.contains(&place) || reported.ended.contains_key(&place)
            });
            if is_known || self.claims.nested.is_withheld_for(place, source) {
                continue;
            }
            let device = offer.and_then(|offer| self.claims.find(offer).ok());
            let device = device.filter(|_| self.check_room_for_one().is_ok());
            match (offer, device) {
                (Some(offer), Some(device)) => {
                    self.put(source, offer, device, as_of);
                    self.await_report_since(place, source, since);
                }
                _ => self.withhold_since(place, source, since),
            }
        }
    }

    /// Why nobody is served at `place`, if that is because it lies in another device's network, and not
    /// for the next report to say.
    fn nested(&self, place: Place) -> Option<Refused> {
        let Outer::Others(outer, device) = self.claims.outer(place)? else {
            return None;
        };
        let names = device.map(|device| self.claims.directory.names(device));
        Some(Refused::Nested {
            network: place.network,
            outer: outer.network,
            holder: names.map(|(account, device)| (account.into(), device.into())),
        })
    }

    /// Whether a hub may have left `place` with another device than the one that it spoke of last, or
    /// than `device`.
    pub(super) fn is_unsure(&self, place: Place, hub: SourceId, device: Option<DeviceId>) -> bool {
        let before = self.claims.claim(place, hub);
        before.is_some_and(|claim| {
            device.is_some_and(|device| claim.device != device)
                || !claim.is_believed(self.claims.now)
        }) || self.claims.nested.is_withheld_for(place, hub)
            || (!is_host(place) && self.is_forgetful(hub))
    }

    fn is_forgetful(&self, hub: SourceId) -> bool {
        let reported = self.sources[hub.0 as usize].reported.as_ref();
        reported.is_some_and(|reported| reported.is_forgetful)
    }

    /// Has a claim wait for the next report on its source.
    ///
    /// Whoever took an address over may have given up before we heard of it, and a hub leaves it
    /// with whom it was then: until the hub itself says who has it, nobody is served there.
    pub(super) fn await_report(&mut self, place: Place, source: SourceId) {
        self.await_report_since(place, source, self.claims.now);
    }

    /// Likewise; one that was made at `since` will do.
    fn await_report_since(&mut self, place: Place, source: SourceId, since: UnixMs) {
        let now = self.claims.now;
        if let Some(claim) = self.claims.claim_mut(place, source) {
            claim.standing = Standing::Unconfirmed(now);
            self.touch(place, source);
            self.note_doubt(source, since);
        }
    }

    /// Ends what `source` claims of `places`. Of a hub's, those stay nobody's until a report where it is
    /// not clear whose they are then: where another client has the network around, who has that as well
    /// from now on, while requests from here are still under way; and what was taken over before
    /// any report had it.
    pub(super) fn leave(&mut self, places: &[Place], source: SourceId) {
        let is_hub = self.claims.nested.is_hub(source);
        let unsure = places.iter().copied();
        let unsure = unsure.filter(|place| is_hub && self.is_unsure(*place, source, None));
        let unsure: Vec<_> = unsure.collect();
        for place in places {
            self.remove(*place, source);
            self.remember_end(*place, source);
        }
        for place in unsure {
            self.withhold(place, source);
        }
        for place in places {
            if is_hub && self.claims.is_surrounded(*place) {
                self.withhold(*place, source);
            }
        }
    }

    /// Ends a claim that means no device of the configuration any more. Of a hub's, its client may speak
    /// from there all the same: it stays nobody's until a report of since then.
    pub(super) fn disown(&mut self, place: Place, source: SourceId) {
        self.remove(place, source);
        if self.claims.nested.is_hub(source) {
            self.remember_end(place, source);
            self.withhold(place, source);
        }
    }

    /// Notes, of a hub's claim, that it ended: a report may still have it.
    pub(super) fn remember_end(&mut self, place: Place, source: SourceId) {
        if let Some(reported) = &mut self.sources[source.0 as usize].reported {
            let is_known = reported.ended.insert(place, self.claims.now).is_some();
            self.ended += usize::from(!is_known);
        }
    }

    pub(super) fn withhold(&mut self, place: Place, hub: SourceId) {
        self.withhold_since(place, hub, self.claims.now);
    }

    /// Keeps `place` from others until a report says whose it is that was made at `since` or later.
    fn withhold_since(&mut self, place: Place, hub: SourceId, since: UnixMs) {
        self.claims.nested.withhold(place, hub, Why::Left(since));
        self.mark_stale(place, hub);
        self.note_doubt(hub, since);
    }

    fn note_doubt(&mut self, hub: SourceId, since: UnixMs) {
        if let Some(reported) = &mut self.sources[hub.0 as usize].reported {
            reported.doubted = reported.doubted.max(Some(since));
        }
    }
}
