//! Leases that are remembered from before a restart, on their way into the table.
//!
//! They come as the journal has them, the last word counting, each run's in its own time; they are
//! taken from one run's time into the next one's, and published at the end. Nothing is remembered as
//! confirmed, and of a hub's networks nothing is served before it has been seen again.

use std::mem;

use super::{
    claim::{Claim, Offer, Place, Refused, Standing, UnixMs},
    table::{LeaseTable, is_host},
};

/// What came of what was remembered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// Leases that are known.
    pub known: usize,
    /// Leases that have ended since.
    pub over: usize,
    /// Until when the last of them is served, unless it is confirmed.
    pub until: UnixMs,
}

impl LeaseTable {
    /// Remembers a lease, and until when it is served if nobody confirms it; `None`: it was confirmed
    /// in its run. It is known once all that is remembered is [published](Self::publish_recalled).
    ///
    /// # Errors
    /// [`Refused`]: its device is not known any more, or there are too many.
    pub fn recall(
        &mut self,
        source: &str,
        epoch: u64,
        offer: &Offer<'_>,
        until: Option<UnixMs>,
    ) -> Result<(), Refused> {
        let endless = Offer {
            expires: None,
            ..*offer
        };
        let device = self.claims.find(&endless)?;
        let source = self.source(source)?;
        let is_known = self.claims.claim(offer.place, source).is_some();
        if !is_known && self.len >= self.len_max {
            return Err(Refused::Full(self.len_max));
        }
        let known = &mut self.sources[source.0 as usize];
        known.epoch = epoch.max(known.epoch);
        let claim = Claim {
            source,
            device,
            session: offer.session.into(),
            epoch,
            expires: offer.expires,
            standing: until.map_or(Standing::Confirmed, Standing::Unconfirmed),
            said: 0,
        };
        let is_new = known.places.insert(offer.place);
        let claims = self.claims.by_place.entry(offer.place).or_default();
        match claims.iter_mut().find(|claim| claim.source == source) {
            Some(known) => *known = claim,
            None => claims.push(claim),
        }
        self.len += usize::from(is_new);
        Ok(())
    }

    /// Forgets a lease that was remembered, for it ended.
    pub fn forget(&mut self, source: &str, place: Place) {
        let Some(source) = self.by_name.get(source).copied() else {
            return;
        };
        if !self.sources[source.0 as usize].places.remove(&place) {
            return;
        }
        self.len -= 1;
        if let Some(claims) = self.claims.by_place.get_mut(&place) {
            claims.retain(|claim| claim.source != source);
            if claims.is_empty() {
                self.claims.by_place.remove(&place);
            }
        }
    }

    /// Takes what is remembered so far into the time of the next run, whose times are `shift`
    /// milliseconds later: it is served no longer than `until` there, and not at all if it
    /// `is_doubtful`.
    pub fn carry(&mut self, shift: i64, until: UnixMs, is_doubtful: impl Fn(&str, Place) -> bool) {
        let shifted = |at: UnixMs| at.saturating_add_signed(shift);
        for (place, claims) in &mut self.claims.by_place {
            for claim in claims {
                let name = &self.sources[claim.source.0 as usize].name;
                claim.expires = claim.expires.map(shifted);
                let until = match claim.standing {
                    _ if is_doubtful(name, *place) => 0,
                    Standing::Confirmed => until,
                    Standing::Unconfirmed(before) => shifted(before).min(until),
                };
                claim.standing = Standing::Unconfirmed(until);
            }
        }
    }

    /// Publishes what is remembered, said at `said` at the latest, and served at no time later than
    /// each lease says; what is over by now has ended.
    pub fn publish_recalled(&mut self, said: UnixMs) -> Recalled {
        let now = self.claims.now;
        let mut recalled = Recalled::default();
        let mut timers = Vec::new();
        let mut by_place = mem::take(&mut self.claims.by_place);
        for (place, claims) in &mut by_place {
            claims.retain_mut(|claim| {
                claim.said = said;
                let is_over = claim.expires.is_some_and(|expires| expires <= now);
                if is_over {
                    self.sources[claim.source.0 as usize].places.remove(place);
                    recalled.over += 1;
                    return false;
                }
                let known = &mut self.sources[claim.source.0 as usize];
                if let Some(reported) = &mut known.reported {
                    reported.is_forgetful = true;
                    if reported.places.insert(*place) {
                        self.claims.nested.add(*place);
                    }
                    // Somebody else may have been in it.
                    if !is_host(*place) {
                        claim.standing = Standing::Unconfirmed(0);
                    }
                }
                if let Standing::Unconfirmed(until) = claim.standing {
                    recalled.until = recalled.until.max(until);
                    timers.push((until, *place, claim.source));
                }
                timers.extend(claim.expires.map(|at| (at, *place, claim.source)));
                true
            });
            recalled.known += claims.len();
        }
        // What is no longer served needs no timer.
        timers.retain(|(at, ..)| *at > now);
        timers.sort_unstable();
        self.timers = timers.into_iter().collect();
        by_place.retain(|_, claims| !claims.is_empty());
        self.len = recalled.known;
        self.claims.by_place = by_place;
        self.build();
        recalled
    }
}
