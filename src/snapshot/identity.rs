//! VPN address -> device: exact address first, else the longest matching prefix.
//!
//! Immutable once published; a change makes a new table that shares everything it did not touch.
//! The whole table is cut into shards by hash, and these are bundled: changing one of a million
//! leases copies an eight-thousandth of the entries and two short lists of pointers, and a core
//! that reads never waits.

use std::{array, fmt, hash::BuildHasher, hint, io::Write, net::IpAddr, sync::Arc};

use hashbrown::DefaultHashBuilder;
use ipnet::IpNet;

use super::{
    lengths::Lengths,
    route::AccountId,
    shard::{self, Address, Key, Place, Shard},
};

/// Bundles of a family, and shards of a bundle: lists of about as many bytes, for a change copies both.
const BUNDLES: usize = 128;
const SHARDS_PER_BUNDLE: usize = 64;
/// Entries of a table being built whose slots are fetched into the cache together.
const FETCHED_AT_ONCE: usize = 64;

/// The devices by address.
#[derive(Clone, Default)]
pub struct IdentityTable {
    v4: Arc<Family<u32>>,
    v6: Arc<Family<u128>>,
}

/// What is known of the device behind an address. Borrowed from the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Whose device it is.
    pub account: AccountId,
    /// The device's name.
    pub name: &'a str,
    /// The device's serial number.
    pub serial: &'a str,
}

impl Identity<'_> {
    /// Stands in the place of an account where more than one device claims an address.
    pub const DISPUTED: AccountId = AccountId(u32::MAX);
    /// Stands in the place of an account where a lease was not confirmed in time.
    pub const UNCONFIRMED: AccountId = AccountId(u32::MAX - 1);
    /// Stands in the place of an account where a network is no device's, though a wider one is.
    pub const NOBODY: AccountId = AccountId(u32::MAX - 2);

    /// Appends `X_Talk2M_Device: name\r\nX_Talk2M_SerialNumber: serial\r\n`.
    ///
    /// Rendered for each request: five short copies, where a million rendered ahead take 60 MB.
    #[inline]
    pub fn write_fields(&self, out: &mut Vec<u8>) {
        for part in [
            "X_Talk2M_Device: ",
            self.name,
            "\r\nX_Talk2M_SerialNumber: ",
            self.serial,
            "\r\n",
        ] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Appends `Forwarded: for=source\r\n`, as RFC 7239 §6 writes an address.
pub fn write_forwarded(source: IpAddr, out: &mut Vec<u8>) {
    // Writing to a vector can't fail.
    let _ = match source.to_canonical() {
        IpAddr::V4(source) => write!(out, "Forwarded: for={source}\r\n"),
        IpAddr::V6(source) => write!(out, "Forwarded: for=\"[{source}]\"\r\n"),
    };
}

/// The network already belongs to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupied;

/// One difference between two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// The network speaks for this device from now on, whoever it spoke for before.
    Assign {
        /// Address or prefix.
        network: IpNet,
        /// Whose device it is.
        account: AccountId,
        /// The device's name.
        name: &'a str,
        /// The device's serial number.
        serial: &'a str,
    },
    /// The network speaks for nobody.
    Release {
        /// Address or prefix, as it was assigned.
        network: IpNet,
    },
}

/// A network's key in the family it counts to: IPv4-mapped IPv6 is IPv4.
enum AnyKey {
    V4(Key<u32>),
    V6(Key<u128>),
}

impl AnyKey {
    fn of(network: IpNet) -> Self {
        const MAPPED_BITS: u8 = 96;
        let (address, length) = (network.addr(), network.prefix_len());
        match (address, address.to_canonical()) {
            (IpAddr::V4(v4), _) => Self::V4(Key::new(v4.to_bits(), length)),
            (IpAddr::V6(_), IpAddr::V4(mapped)) if length >= MAPPED_BITS => {
                Self::V4(Key::new(mapped.to_bits(), length - MAPPED_BITS))
            }
            (IpAddr::V6(v6), _) => Self::V6(Key::new(v6.to_bits(), length)),
        }
    }
}

impl fmt::Debug for IdentityTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityTable")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl IdentityTable {
    /// The table of all `entries`, each shard of exactly the size it needs.
    ///
    /// Names and serials have been checked by `config::identity_value`.
    ///
    /// # Errors
    /// A network that two of the entries have.
    pub fn build<'a>(
        entries: impl Iterator<Item = (IpNet, Identity<'a>)> + Clone,
    ) -> Result<Self, IpNet> {
        let (mut v4, mut v6) = (Draft::default(), Draft::default());
        for (network, _) in entries.clone() {
            match AnyKey::of(network) {
                AnyKey::V4(key) => v4.make_room(key),
                AnyKey::V6(key) => v6.make_room(key),
            }
        }
        v4.allocate();
        v6.allocate();
        // Slots lie all over the memory: a few dozen are fetched at once, not one after the other.
        let mut entries = entries;
        let mut waiting = Vec::with_capacity(FETCHED_AT_ONCE);
        loop {
            waiting.extend(entries.by_ref().take(FETCHED_AT_ONCE));
            if waiting.is_empty() {
                break;
            }
            for (network, _) in &waiting {
                match AnyKey::of(*network) {
                    AnyKey::V4(key) => v4.fetch(key),
                    AnyKey::V6(key) => v6.fetch(key),
                }
            }
            for (network, identity) in waiting.drain(..) {
                let inserted = match AnyKey::of(network) {
                    AnyKey::V4(key) => v4.insert(key, identity),
                    AnyKey::V6(key) => v6.insert(key, identity),
                };
                inserted.map_err(|Occupied| network)?;
            }
        }
        Ok(Self {
            v4: Arc::new(v4.finish()),
            v6: Arc::new(v6.finish()),
        })
    }

    /// The device that speaks from `address`; IPv4-mapped IPv6 counts as IPv4.
    #[inline]
    pub fn resolve(&self, address: IpAddr) -> Option<Identity<'_>> {
        self.resolve_longest(address).map(|(_, identity)| identity)
    }

    /// Likewise, with the length of the prefix that matched.
    #[inline]
    pub fn resolve_longest(&self, address: IpAddr) -> Option<(u8, Identity<'_>)> {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.resolve(address.to_bits()),
            IpAddr::V6(address) => self.v6.resolve(address.to_bits()),
        }
    }

    /// The device that this very network was assigned to.
    pub fn lookup(&self, network: IpNet) -> Option<Identity<'_>> {
        match AnyKey::of(network) {
            AnyKey::V4(key) => self.v4.find(key),
            AnyKey::V6(key) => self.v6.find(key),
        }
    }

    /// Networks that one of two tables has and the other has not, or gives to another device.
    pub fn differences(&self, other: &Self) -> Vec<IpNet> {
        let differs = |network: &IpNet| self.lookup(*network) != other.lookup(*network);
        // What both have is found in the first.
        let only_there = |network: &IpNet| self.lookup(*network).is_none();
        let here = self.networks().filter(differs);
        here.chain(other.networks().filter(only_there)).collect()
    }

    fn networks(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self
            .v4
            .keys()
            .map(|key| (IpAddr::from(key.bits.to_be_bytes()), key.length));
        let v6 = self
            .v6
            .keys()
            .map(|key| (IpAddr::from(key.bits.to_be_bytes()), key.length));
        v4.chain(v6)
            .map(|(address, length)| IpNet::new_assert(address, length))
    }

    /// Networks in the table.
    pub fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Whether the table has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds `network` for a device; copies the shard that it falls to.
    ///
    /// `name` and `serial` have been checked by `config::identity_value`.
    ///
    /// # Errors
    /// `Occupied` if this very network already has a device; the table is unchanged.
    pub fn insert(
        &mut self,
        network: IpNet,
        account: AccountId,
        name: &str,
        serial: &str,
    ) -> Result<(), Occupied> {
        if self.lookup(network).is_some() {
            return Err(Occupied);
        }
        let identity = Identity {
            account,
            name,
            serial,
        };
        self.set(network, Some(identity));
        Ok(())
    }

    /// This table after `changes`, in order; every shard that none of them touches is shared, and
    /// each of the others is made once: a thousand neighbours cost little more than sixty changes.
    pub fn with_changes<'a>(&self, changes: impl IntoIterator<Item = Change<'a>>) -> Self {
        let mut changed = self.clone();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for change in changes {
            let (network, identity) = match change {
                Change::Release { network } => (network, None),
                Change::Assign {
                    network,
                    account,
                    name,
                    serial,
                } => {
                    let identity = Identity {
                        account,
                        name,
                        serial,
                    };
                    (network, Some(identity))
                }
            };
            match AnyKey::of(network) {
                AnyKey::V4(key) => v4.push((key, identity)),
                AnyKey::V6(key) => v6.push((key, identity)),
            }
        }
        if !v4.is_empty() {
            Arc::make_mut(&mut changed.v4).change(v4);
        }
        if !v6.is_empty() {
            Arc::make_mut(&mut changed.v6).change(v6);
        }
        changed
    }

    fn set(&mut self, network: IpNet, identity: Option<Identity<'_>>) {
        match AnyKey::of(network) {
            AnyKey::V4(key) => Arc::make_mut(&mut self.v4).change(vec![(key, identity)]),
            AnyKey::V6(key) => Arc::make_mut(&mut self.v6).change(vec![(key, identity)]),
        }
    }
}

type Bundle<A> = [Shard<A>; SHARDS_PER_BUNDLE];

/// The networks of one address family.
#[derive(Clone)]
struct Family<A> {
    bundles: [Arc<Bundle<A>>; BUNDLES],
    hasher: DefaultHashBuilder,
    lengths: Lengths,
    len: usize,
}

impl<A: Address> Default for Family<A> {
    fn default() -> Self {
        let shard = shard::Draft::with_room(0).finish();
        let bundle = Arc::new(array::from_fn(|_| shard.clone()));
        Self {
            bundles: array::from_fn(|_| Arc::clone(&bundle)),
            hasher: DefaultHashBuilder::default(),
            lengths: Lengths::default(),
            len: 0,
        }
    }
}

impl<A: Address> Family<A> {
    #[inline]
    fn resolve(&self, bits: A) -> Option<(u8, Identity<'_>)> {
        let find = |length| Some((length, self.find(Key::new(bits, length))?));
        let shorter = || self.lengths.shorter_than(A::LENGTH_MAX).find_map(find);
        find(A::LENGTH_MAX).or_else(shorter)
    }

    #[inline]
    fn find(&self, key: Key<A>) -> Option<Identity<'_>> {
        let place = place(&self.hasher, key);
        let shard = number(place);
        self.bundles[shard / SHARDS_PER_BUNDLE][shard % SHARDS_PER_BUNDLE].find(place, key)
    }

    fn keys(&self) -> impl Iterator<Item = Key<A>> {
        let shards = self.bundles.iter().flat_map(|bundle| bundle.iter());
        shards.flat_map(|shard| shard.keys())
    }

    fn change(&mut self, changes: Vec<(Key<A>, Option<Identity<'_>>)>) {
        let hasher = self.hasher.clone();
        let numbered = changes.into_iter().map(|change| {
            let shard = number(place(&hasher, change.0));
            (shard, change)
        });
        let mut numbered: Vec<_> = numbered.collect();
        // Stable: what is said of a key last counts.
        numbered.sort_by_key(|(shard, _)| *shard);
        for group in numbered.chunk_by(|one, next| one.0 == next.0) {
            let mut last: Vec<(Key<A>, Option<Identity<'_>>)> = Vec::with_capacity(group.len());
            for (_, change) in group.iter().rev() {
                if !last.iter().any(|(key, _)| *key == change.0) {
                    last.push(*change);
                }
            }
            self.change_shard(group[0].0, &last);
        }
    }

    /// Makes one shard anew, with `changes` of different keys that belong there.
    fn change_shard(&mut self, number: usize, changes: &[(Key<A>, Option<Identity<'_>>)]) {
        for (key, identity) in changes {
            match (self.find(*key).is_some(), identity.is_some()) {
                (false, true) => self.add(key.length),
                (true, false) => self.remove(key.length),
                _ => {}
            }
        }
        let hasher = &self.hasher;
        let bundle = Arc::make_mut(&mut self.bundles[number / SHARDS_PER_BUNDLE]);
        let shard = &mut bundle[number % SHARDS_PER_BUNDLE];
        *shard = shard.changed(changes, |key| place(hasher, key));
    }

    fn add(&mut self, length: u8) {
        self.lengths.add(length);
        self.len += 1;
    }

    fn remove(&mut self, length: u8) {
        self.lengths.remove(length);
        self.len -= 1;
    }
}

fn place<A: Address>(hasher: &DefaultHashBuilder, key: Key<A>) -> Place {
    key.place(|block| hasher.hash_one(block))
}

/// The number of a place's shard.
fn number(place: Place) -> usize {
    place.shard_of(BUNDLES * SHARDS_PER_BUNDLE)
}

/// A family while all of its entries are being counted, and then put in.
struct Draft<A> {
    hasher: DefaultHashBuilder,
    lengths: Lengths,
    /// Entries of each shard.
    rooms: Vec<u32>,
    shards: Vec<shard::Draft<A>>,
    len: usize,
}

impl<A> Default for Draft<A> {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            lengths: Lengths::default(),
            rooms: vec![0; BUNDLES * SHARDS_PER_BUNDLE],
            shards: Vec::new(),
            len: 0,
        }
    }
}

impl<A: Address> Draft<A> {
    fn make_room(&mut self, key: Key<A>) {
        self.rooms[number(place(&self.hasher, key))] += 1;
        self.lengths.add(key.length);
        self.len += 1;
    }

    fn allocate(&mut self) {
        let rooms = self.rooms.iter();
        let allocate = |entries: &u32| shard::Draft::with_room(*entries as usize);
        self.shards = rooms.map(allocate).collect();
    }

    /// Brings the slot of `key` into the cache.
    fn fetch(&self, key: Key<A>) {
        let place = place(&self.hasher, key);
        hint::black_box(self.shards[number(place)].is_free(place));
    }

    fn insert(&mut self, key: Key<A>, identity: Identity<'_>) -> Result<(), Occupied> {
        let place = place(&self.hasher, key);
        self.shards[number(place)].insert(place, key, identity)
    }

    fn finish(self) -> Family<A> {
        let mut shards = self.shards.into_iter().map(shard::Draft::finish);
        let mut bundle = || Arc::new(array::from_fn(|_| shards.next().expect("one for each")));
        Family {
            bundles: array::from_fn(|_| bundle()),
            hasher: self.hasher,
            lengths: self.lengths,
            len: self.len,
        }
    }
}

#[cfg(test)]
mod tests;
