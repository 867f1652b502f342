//! A part of the identity table: the networks that fell to it, and one text with what they hold.
//!
//! Never changed once it is in a table; a change makes another of exactly the size it needs. Knows
//! nothing of the other parts.

use std::hash::Hash;

use super::{
    identity::{Identity, Occupied},
    route::AccountId,
};
use crate::limits::IDENTITY_VALUE_BYTES_MAX;

/// Slots for each four entries: one in five is free, so that a search ends after a few.
const SLOTS_PER_FOUR: usize = 5;
/// The prefix length of a free slot.
const FREE: u8 = u8::MAX;
/// Neighbours that one hash serves, in bits of the address.
const NEIGHBOUR_BITS: u8 = 4;
/// Spreads neighbours over their shard: 2^32 divided by the golden ratio.
const SPREAD: u32 = 0x9e37_79b9;

/// The bits of an address of one family.
pub(super) trait Address: Copy + Eq + Hash + Default {
    /// How many there are.
    const LENGTH_MAX: u8;

    /// The first `length` of them, the others zero.
    fn masked(self, length: u8) -> Self;

    /// The bits that neighbours have in common, and the few in which they differ.
    fn split(self) -> (Self, u32);
}

impl Address for u32 {
    const LENGTH_MAX: u8 = 32;

    fn masked(self, length: u8) -> Self {
        let hidden = u32::from(Self::LENGTH_MAX - length);
        self & Self::MAX.checked_shl(hidden).unwrap_or(0)
    }

    fn split(self) -> (Self, u32) {
        let block = self >> NEIGHBOUR_BITS;
        (block, self ^ (block << NEIGHBOUR_BITS))
    }
}

impl Address for u128 {
    const LENGTH_MAX: u8 = 128;

    fn masked(self, length: u8) -> Self {
        let hidden = u32::from(Self::LENGTH_MAX - length);
        self & Self::MAX.checked_shl(hidden).unwrap_or(0)
    }

    fn split(self) -> (Self, u32) {
        let block = self >> NEIGHBOUR_BITS;
        (block, (self ^ (block << NEIGHBOUR_BITS)) as u32)
    }
}

/// A network in the form it is looked up by: host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key<A> {
    pub(super) bits: A,
    /// Prefix length.
    pub(super) length: u8,
}

impl<A: Address> Key<A> {
    pub(super) fn new(bits: A, length: u8) -> Self {
        Self {
            bits: bits.masked(length),
            length,
        }
    }

    /// Where it belongs.
    ///
    /// Neighbours share a shard: a list in the order of its addresses is built from warm memory.
    pub(super) fn place(&self, hash: impl FnOnce((A, u8)) -> u64) -> Place {
        let (block, rest) = self.bits.split();
        let hash = hash((block, self.length));
        Place {
            shard: (hash >> 32) as u32,
            // Of other bits than the shard, or its entries would crowd in a few places.
            slot: (hash as u32).wrapping_add(rest.wrapping_mul(SPREAD)),
        }
    }
}

/// Shard of a table and slot of a shard, each out of 2^32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) shard: u32,
    slot: u32,
}

/// Open addressing: an entry stands in its slot or in one of those behind it, up to a free one.
#[derive(Debug, Default)]
pub(super) struct Shard<A> {
    slots: Box<[Slot<A>]>,
    text: String,
}

#[derive(Debug, Clone, Copy)]
struct Slot<A> {
    bits: A,
    account: AccountId,
    /// Where the name begins in the text; the serial follows it.
    begin: u32,
    length: u8,
    name_bytes: u8,
    serial_bytes: u8,
}

impl<A: Address> Shard<A> {
    /// Empty, with room for so many entries and so many bytes of names and serials.
    pub(super) fn with_room(entries: usize, text_bytes: usize) -> Self {
        let free = Slot {
            bits: A::default(),
            account: AccountId(0),
            begin: 0,
            length: FREE,
            name_bytes: 0,
            serial_bytes: 0,
        };
        let slots = match entries {
            0 => 0,
            entries => entries * SLOTS_PER_FOUR / 4 + 1,
        };
        Self {
            slots: vec![free; slots].into(),
            text: String::with_capacity(text_bytes),
        }
    }

    /// What stands under `key`, which belongs at `place`.
    #[inline]
    pub(super) fn find(&self, place: Place, key: Key<A>) -> Option<Identity<'_>> {
        let (before, from) = self.slots.split_at(self.first(place));
        let slots = from.iter().chain(before);
        let found = slots
            .take_while(|slot| slot.length != FREE)
            .find(|slot| slot.key() == key)?;
        Some(self.identity(found))
    }

    /// Whether nothing stands at `place` itself.
    pub(super) fn is_free(&self, place: Place) -> bool {
        let slot = self.slots.get(self.first(place));
        slot.is_none_or(|slot| slot.length == FREE)
    }

    /// Adds an entry, for which there is room.
    ///
    /// # Errors
    /// `Occupied` if `key` has one; the shard is unchanged.
    pub(super) fn insert(
        &mut self,
        place: Place,
        key: Key<A>,
        identity: Identity<'_>,
    ) -> Result<(), Occupied> {
        let first = self.first(place);
        let (before, from) = self.slots.split_at_mut(first);
        let mut slots = from.iter_mut().chain(before);
        let free = slots
            .find(|slot| slot.length == FREE || slot.key() == key)
            .expect("there is room");
        if free.length != FREE {
            return Err(Occupied);
        }
        debug_assert!(identity.name.len() <= IDENTITY_VALUE_BYTES_MAX);
        debug_assert!(identity.serial.len() <= IDENTITY_VALUE_BYTES_MAX);
        *free = Slot {
            bits: key.bits,
            account: identity.account,
            begin: u32::try_from(self.text.len()).expect("a shard holds less than 4 GiB"),
            length: key.length,
            name_bytes: identity.name.len() as u8,
            serial_bytes: identity.serial.len() as u8,
        };
        self.text.push_str(identity.name);
        self.text.push_str(identity.serial);
        Ok(())
    }

    /// Its networks.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key<A>> {
        let taken = self.slots.iter().filter(|slot| slot.length != FREE);
        taken.map(Slot::key)
    }

    /// A shard of exactly the size it needs in which each key of `changes`, all different, has its
    /// identity, or nothing.
    pub(super) fn changed(
        &self,
        changes: &[(Key<A>, Option<Identity<'_>>)],
        place: impl Fn(Key<A>) -> Place,
    ) -> Self {
        let is_kept = |slot: &&Slot<A>| {
            slot.length != FREE && !changes.iter().any(|(key, _)| *key == slot.key())
        };
        let kept = self.slots.iter().filter(is_kept);
        let kept = kept.map(|slot| (slot.key(), self.identity(slot)));
        let new = changes.iter();
        let new = new.filter_map(|(key, identity)| Some((*key, (*identity)?)));
        let all = kept.chain(new);
        let (entries, text_bytes) = all.clone().fold((0, 0), |(entries, bytes), (_, identity)| {
            (entries + 1, bytes + identity.text_bytes())
        });
        let mut shard = Self::with_room(entries, text_bytes);
        for (key, identity) in all {
            // No key was twice in the old shard.
            let _ = shard.insert(place(key), key, identity);
        }
        shard
    }

    /// Bytes that this shard takes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.slots) + self.text.capacity()
    }

    fn first(&self, place: Place) -> usize {
        ((u64::from(place.slot) * self.slots.len() as u64) >> 32) as usize
    }

    fn identity(&self, slot: &Slot<A>) -> Identity<'_> {
        let begin = slot.begin as usize;
        let middle = begin + usize::from(slot.name_bytes);
        let end = middle + usize::from(slot.serial_bytes);
        Identity {
            account: slot.account,
            name: &self.text[begin..middle],
            serial: &self.text[middle..end],
        }
    }
}

impl<A: Address> Slot<A> {
    fn key(&self) -> Key<A> {
        Key {
            bits: self.bits,
            length: self.length,
        }
    }
}
