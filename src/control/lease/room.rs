//! How much room there is: what counts for the bound of all leases.
//!
//! A lease counts, and so does what must be remembered of a hub's that ended, until a report on the hub
//! has come that was made since: whoever adds and releases ever new addresses in a hub's name is
//! refused in the end, also if no report ever comes. A release puts what has ended in the place of the
//! lease, and need never be refused. What a set on its way will bring has its room from the moment on in
//! which it is certain. What a report has of strangers counts for nothing: the next one
//! takes its place, so that there is never more of it than one report can hold
//! (`limits::HUB_STATUS_BYTES_MAX`). Counts only; never goes through anything.

use super::{
    claim::{Offer, Place, Refused, SourceId},
    set::Offers,
    table::LeaseTable,
};

impl LeaseTable {
    /// What ended of hubs, and could still be in a report.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// How much room is taken.
    fn taken_room(&self) -> usize {
        self.len + self.coming() + self.ended
    }

    /// Whether what is new in `offers` has room, beside what stays.
    pub(super) fn check_room(
        &self,
        source: Option<SourceId>,
        epoch: Option<u64>,
        offers: &[Offer<'_>],
    ) -> Result<(), Refused> {
        let counts = |offer: &&Offer<'_>| {
            source.is_some_and(|source| {
                self.claims.claim(offer.place, source).is_some()
                    || self.has_ended(offer.place, source)
            })
        };
        let new = offers.len() - offers.iter().filter(counts).count();
        if new == 0 || self.taken_room() + new <= self.len_max {
            return Ok(());
        }
        // A new run ends all of the earlier ones; they are counted where it matters alone. What ends of
        // a hub's goes on to count.
        let begins = source.filter(|source| {
            epoch > Some(self.sources[source.0 as usize].epoch)
                && !self.claims.nested.is_hub(*source)
        });
        match begins {
            Some(source) => self.check_taken(self.room_without(source) + offers.len()),
            None => self.check_taken(self.taken_room() + new),
        }
    }

    /// Whether a source's whole set has room in the place of what the source has.
    pub(super) fn check_room_for(
        &self,
        offers: &Offers,
        source: Option<SourceId>,
    ) -> Result<(), Refused> {
        let others = source.map_or(self.taken_room(), |source| self.room_without(source));
        self.check_taken(others + offers.len())
    }

    /// Whether one more lease that a report has finds room.
    pub(super) fn check_room_for_one(&self) -> Result<(), Refused> {
        self.check_taken(self.taken_room() + 1)
    }

    /// How much room is taken without what `source` has, and what is coming of it.
    fn room_without(&self, source: SourceId) -> usize {
        let coming = match self.is_taking_of(source) {
            true => self.coming(),
            false => 0,
        };
        self.taken_room() - coming - self.sources[source.0 as usize].places.len()
    }

    /// Whether so much may be taken.
    fn check_taken(&self, room: usize) -> Result<(), Refused> {
        match room <= self.len_max {
            true => Ok(()),
            false => Err(Refused::Full(self.len_max)),
        }
    }

    /// Whether a claim of `source` has ended at `place` that a report may still have.
    pub(super) fn has_ended(&self, place: Place, source: SourceId) -> bool {
        let reported = self.sources[source.0 as usize].reported.as_ref();
        reported.is_some_and(|reported| reported.ended.contains_key(&place))
    }
}
