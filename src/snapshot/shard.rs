//! A part of the identity table: the networks that fell to it, each in a cache line of its own but
//! for long names.
//!
//! A device that has not spoken for a while has left the caches, and each line more is a wait for
//! memory. Never changed once it is in a table; a change makes another of exactly the size it
//! needs. Knows nothing of the other parts.

use std::{hash::Hash, iter, sync::Arc};

use super::{
    identity::{Identity, Occupied},
    route::AccountId,
};

/// Slots for each four entries: one in five is free, so that a search ends after a few.
const SLOTS_PER_FOUR: usize = 5;
/// Bytes of name and serial that a slot has room for: as many as fill its line for IPv6, whose address
/// is twelve bytes longer.
const SLOT_TEXT_BYTES: usize = 41;
/// Bytes of the place where a long text begins.
const BEGIN_BYTES: usize = size_of::<u32>();
/// The prefix length of a free slot.
const FREE: u8 = u8::MAX;
/// Neighbours that one hash serves, in bits of the address. With more of them shards differ more in size,
/// with fewer a table takes longer to build.
const NEIGHBOUR_BITS: u8 = 4;
/// Spreads neighbours over their shard: 2^32 divided by the golden ratio.
const SPREAD: u32 = 0x9e37_79b9;
/// Carries each bit of a hash into the higher ones: 2^64 divided by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

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
        // With one in fifty of its seeds, the hasher alone spreads numbers in a row badly. Mixed better
        // than this, a table of neighbours takes half as long again to build.
        let hash = hash((block, self.length)).wrapping_mul(MIX);
        Place {
            shard: (hash >> 48) as u16,
            // Of other bits than the shard, or its entries would crowd in a few places.
            slot: ((hash >> 16) as u32).wrapping_add(rest.wrapping_mul(SPREAD)),
        }
    }
}

/// Shard of a table, out of 2^16, and slot of a shard, out of 2^32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    shard: u16,
    slot: u32,
}

impl Place {
    /// The number of its shard, of so many.
    pub(super) fn shard_of(self, shards: usize) -> usize {
        (usize::from(self.shard) * shards) >> u16::BITS
    }

    /// The first of so many slots that an entry may stand in.
    fn slot_of(self, slots: usize) -> usize {
        ((u64::from(self.slot) * slots as u64) >> u32::BITS) as usize
    }
}

/// Open addressing: an entry stands in its slot or in one of those behind it, up to a free one.
///
/// To clone it is to share it.
#[derive(Debug, Clone)]
pub(super) struct Shard<A> {
    slots: Arc<[Slot<A>]>,
    /// Names and serials that are too long for their slots, if there are any.
    long: Option<Arc<String>>,
}

/// A shard while its entries are being put in.
#[derive(Debug)]
pub(super) struct Draft<A> {
    slots: Arc<[Slot<A>]>,
    long: String,
}

/// All that a request needs to know of a device: one cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Slot<A> {
    bits: A,
    account: AccountId,
    length: u8,
    name_bytes: u8,
    serial_bytes: u8,
    /// Name and serial; if they are longer, the place among the shard's long ones where they begin.
    text: [u8; SLOT_TEXT_BYTES],
}

const _: () = assert!(size_of::<Slot<u32>>() == 64 && size_of::<Slot<u128>>() == 64);

impl<A: Address> Draft<A> {
    /// Empty, with room for so many entries.
    pub(super) fn with_room(entries: usize) -> Self {
        let slots = match entries {
            0 => 0,
            entries => entries * SLOTS_PER_FOUR / 4 + 1,
        };
        Self {
            slots: iter::repeat_n(Slot::free(), slots).collect(),
            long: String::new(),
        }
    }

    /// Whether nothing stands at `place` itself.
    pub(super) fn is_free(&self, place: Place) -> bool {
        let slot = self.slots.get(place.slot_of(self.slots.len()));
        slot.is_none_or(Slot::is_free)
    }

    /// Adds an entry, for which there is room.
    ///
    /// # Errors
    /// `Occupied` if `key` has one; nothing is changed.
    pub(super) fn insert(
        &mut self,
        place: Place,
        key: Key<A>,
        identity: Identity<'_>,
    ) -> Result<(), Occupied> {
        let slots = Arc::get_mut(&mut self.slots).expect("nobody has it yet");
        let (before, from) = slots.split_at_mut(place.slot_of(slots.len()));
        let mut slots = from.iter_mut().chain(before);
        let slot = slots
            .find(|slot| slot.is_free() || slot.key() == key)
            .expect("there is room");
        if !slot.is_free() {
            return Err(Occupied);
        }
        *slot = Slot::new(key, identity, &mut self.long);
        Ok(())
    }

    /// The shard of what was put in.
    pub(super) fn finish(mut self) -> Shard<A> {
        self.long.shrink_to_fit();
        Shard {
            slots: self.slots,
            long: (!self.long.is_empty()).then(|| Arc::new(self.long)),
        }
    }
}

impl<A: Address> Shard<A> {
    /// What stands under `key`, which belongs at `place`.
    #[inline]
    pub(super) fn find(&self, place: Place, key: Key<A>) -> Option<Identity<'_>> {
        let (before, from) = self.slots.split_at(place.slot_of(self.slots.len()));
        let slots = from.iter().chain(before);
        let found = slots
            .take_while(|slot| !slot.is_free())
            .find(|slot| slot.key() == key)?;
        Some(self.identity(found))
    }

    /// Its networks.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key<A>> {
        let taken = self.slots.iter().filter(|slot| !slot.is_free());
        taken.map(Slot::key)
    }

    /// A shard of exactly the size it needs in which each key of `changes`, all different, has its
    /// identity, or nothing.
    pub(super) fn changed(
        &self,
        changes: &[(Key<A>, Option<Identity<'_>>)],
        place: impl Fn(Key<A>) -> Place,
    ) -> Self {
        let is_kept =
            |slot: &&Slot<A>| !slot.is_free() && !changes.iter().any(|(key, _)| *key == slot.key());
        let kept = self.slots.iter().filter(is_kept);
        let kept = kept.map(|slot| (slot.key(), self.identity(slot)));
        let new = changes.iter();
        let new = new.filter_map(|(key, identity)| Some((*key, (*identity)?)));
        let all = kept.chain(new);
        let mut draft = Draft::with_room(all.clone().count());
        for (key, identity) in all {
            // No key was twice in the old shard.
            let _ = draft.insert(place(key), key, identity);
        }
        draft.finish()
    }

    /// Whether it is the other one, and no copy.
    #[cfg(test)]
    pub(super) fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.slots, &other.slots)
    }

    /// Bytes that this shard takes on the heap.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        // The counters of who shares it take a line.
        let slots = align_of::<Slot<A>>() + size_of_val(&*self.slots);
        let long =
            |long: &Arc<String>| 2 * size_of::<usize>() + size_of::<String>() + long.capacity();
        slots + self.long.as_ref().map_or(0, long)
    }

    fn identity<'a>(&'a self, slot: &'a Slot<A>) -> Identity<'a> {
        slot.identity(self.long.as_ref())
    }
}

impl<A: Address> Slot<A> {
    fn free() -> Self {
        Self {
            bits: A::default(),
            account: AccountId(0),
            length: FREE,
            name_bytes: 0,
            serial_bytes: 0,
            text: [0; SLOT_TEXT_BYTES],
        }
    }

    /// Holds `identity`; what it has no room for goes behind what is `long` already.
    fn new(key: Key<A>, identity: Identity<'_>, long: &mut String) -> Self {
        let Identity {
            account,
            name,
            serial,
        } = identity;
        let length =
            |text: &str| u8::try_from(text.len()).expect("it was checked when it was read");
        let mut text = [0; SLOT_TEXT_BYTES];
        if let Some(room) = text.get_mut(..name.len() + serial.len()) {
            let (name_room, serial_room) = room.split_at_mut(name.len());
            name_room.copy_from_slice(name.as_bytes());
            serial_room.copy_from_slice(serial.as_bytes());
        } else {
            let begin = u32::try_from(long.len()).expect("a shard holds less than 4 GiB");
            text[..BEGIN_BYTES].copy_from_slice(&begin.to_ne_bytes());
            long.push_str(name);
            long.push_str(serial);
        }
        Self {
            bits: key.bits,
            account,
            length: key.length,
            name_bytes: length(name),
            serial_bytes: length(serial),
            text,
        }
    }

    fn is_free(&self) -> bool {
        self.length == FREE
    }

    fn key(&self) -> Key<A> {
        Key {
            bits: self.bits,
            length: self.length,
        }
    }

    fn identity<'a>(&'a self, long: Option<&'a Arc<String>>) -> Identity<'a> {
        let name_bytes = usize::from(self.name_bytes);
        let bytes = name_bytes + usize::from(self.serial_bytes);
        let text = match (self.text.get(..bytes), long) {
            // To check the text again costs less than to hold it elsewhere.
            (Some(text), _) => str::from_utf8(text).expect("it was copied from two texts"),
            (None, Some(long)) => {
                let begin = self.text[..BEGIN_BYTES].try_into().expect("its length");
                &long[u32::from_ne_bytes(begin) as usize..][..bytes]
            }
            (None, None) => unreachable!("a slot's long text is its shard's"),
        };
        let (name, serial) = text.split_at(name_bytes);
        Identity {
            account: self.account,
            name,
            serial,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::limits::IDENTITY_VALUE_BYTES_MAX;

    /// What a hasher of one multiplication makes of a number, for each of many seeds.
    fn folded() -> impl Iterator<Item = impl Fn(u64) -> u64> {
        let mut seed = 0_u64;
        iter::repeat_with(move || {
            seed = seed
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let (mask, factor) = (seed.rotate_left(40), seed | 1);
            move |number: u64| {
                let product = u128::from(number ^ mask) * u128::from(factor);
                product as u64 ^ (product >> u64::BITS) as u64
            }
        })
    }

    /// The largest of the shards, in entries, and how many in a hundred stand near their place.
    fn spread(hash: impl Fn(u64) -> u64) -> (usize, usize) {
        const SHARDS: usize = 512;
        const ENTRIES: usize = 128 * SHARDS;
        let mut shards = vec![Vec::new(); SHARDS];
        for bits in 0x0a00_0000..0x0a00_0000 + ENTRIES as u32 {
            let key = Key::new(bits, u32::LENGTH_MAX);
            let place = key.place(|(block, _)| hash(block.into()));
            shards[place.shard_of(SHARDS)].push((place, key));
        }
        let identity = Identity {
            account: AccountId(1),
            name: "press",
            serial: "7",
        };
        let mut near = 0;
        for entries in &shards {
            let mut draft = Draft::with_room(entries.len());
            for (place, key) in entries {
                draft.insert(*place, *key, identity).expect("it is new");
            }
            near += entries
                .iter()
                .filter(|(place, key)| {
                    let slots = &draft.slots[place.slot_of(draft.slots.len())..];
                    slots.iter().take(4).any(|slot| slot.key() == *key)
                })
                .count();
        }
        let largest = shards.iter().map(Vec::len).max();
        (largest.expect("there are some"), 100 * near / ENTRIES)
    }

    #[test]
    fn addresses_in_a_row_are_spread_whatever_the_seed() {
        for (number, hash) in folded().take(200).enumerate() {
            let (largest, near) = spread(hash);
            assert!(
                largest <= 512,
                "seed {number}: {largest} entries in a shard"
            );
            assert!(near >= 75, "seed {number}: {near} % near their place");
        }
        let (largest, near) = spread(|number| number);
        assert!(largest <= 512 && near >= 75, "no hash: {largest}, {near} %");
    }

    #[test]
    fn texts_of_every_length_are_kept_through_changes() {
        let all = "ü".repeat(IDENTITY_VALUE_BYTES_MAX / 2);
        let lengths = [
            (2, 2),
            (40, 0),
            (2, 38),
            (20, 20),
            (20, 22),
            (42, 0),
            (0, 42),
            (IDENTITY_VALUE_BYTES_MAX, IDENTITY_VALUE_BYTES_MAX),
        ];
        let identity = |(name, serial): (usize, usize)| Identity {
            account: AccountId(name as u32),
            name: &all[..name],
            serial: &all[..serial],
        };
        let key = |number: usize| Key::new(number as u128, u128::LENGTH_MAX);
        let place = |key: Key<u128>| key.place(|(block, _)| block as u64);
        let mut draft = Draft::with_room(lengths.len());
        for (number, lengths) in lengths.into_iter().enumerate() {
            let key = key(number);
            draft
                .insert(place(key), key, identity(lengths))
                .expect("it is new");
        }
        let mut shard = draft.finish();
        let bytes = shard.bytes();
        // Each gets the text of the one behind it, until they all have their own again.
        for turn in 0..=lengths.len() {
            for number in 0..lengths.len() {
                let expected = identity(lengths[(number + turn) % lengths.len()]);
                assert_eq!(shard.find(place(key(number)), key(number)), Some(expected));
            }
            assert_eq!(shard.bytes(), bytes);
            for number in 0..lengths.len() {
                let next = identity(lengths[(number + turn + 1) % lengths.len()]);
                shard = shard.changed(&[(key(number), Some(next))], place);
            }
        }
    }
}
