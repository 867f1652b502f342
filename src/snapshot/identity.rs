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
    shard::{Address, Key, Place, Shard},
};

/// Bundles of a family, and shards of a bundle: about as many, for a change copies both lists.
const BUNDLES: usize = 64;
const SHARDS_PER_BUNDLE: usize = 128;
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
    /// Rendered for each request: four short copies, where a million rendered ahead take 60 MB.
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

    /// Bytes that it adds to a shard's text.
    pub(super) fn text_bytes(&self) -> usize {
        self.name.len() + self.serial.len()
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
        for (network, identity) in entries.clone() {
            match AnyKey::of(network) {
                AnyKey::V4(key) => v4.make_room(key, identity),
                AnyKey::V6(key) => v6.make_room(key, identity),
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

type Bundle<A> = [Arc<Shard<A>>; SHARDS_PER_BUNDLE];

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
        let shard = Arc::new(Shard::with_room(0, 0));
        let bundle = Arc::new(array::from_fn(|_| Arc::clone(&shard)));
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
        *shard = Arc::new(shard.changed(changes, |key| place(hasher, key)));
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
    place.shard as usize % (BUNDLES * SHARDS_PER_BUNDLE)
}

/// A family while all of its entries are being counted, and then put in.
struct Draft<A> {
    hasher: DefaultHashBuilder,
    lengths: Lengths,
    /// Entries of each shard, and bytes of their text.
    rooms: Vec<(u32, u32)>,
    shards: Vec<Shard<A>>,
    len: usize,
}

impl<A> Default for Draft<A> {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            lengths: Lengths::default(),
            rooms: vec![(0, 0); BUNDLES * SHARDS_PER_BUNDLE],
            shards: Vec::new(),
            len: 0,
        }
    }
}

impl<A: Address> Draft<A> {
    fn make_room(&mut self, key: Key<A>, identity: Identity<'_>) {
        let (entries, text_bytes) = &mut self.rooms[number(place(&self.hasher, key))];
        *entries += 1;
        *text_bytes += identity.text_bytes() as u32;
        self.lengths.add(key.length);
        self.len += 1;
    }

    fn allocate(&mut self) {
        let rooms = self.rooms.iter();
        let allocate =
            |(entries, bytes): &(u32, u32)| Shard::with_room(*entries as usize, *bytes as usize);
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
        let mut shards = self.shards.into_iter().map(Arc::new);
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
mod tests {
    use std::{mem, net::Ipv4Addr, time::Instant};

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        let host = || text.parse::<IpAddr>().map(IpNet::from);
        text.parse().or_else(|_| host()).expect("a network")
    }

    fn table(entries: &[(&str, &str)]) -> IdentityTable {
        let mut table = IdentityTable::default();
        for (network, name) in entries {
            table
                .insert(net(network), AccountId(1), name, "s")
                .expect("free");
        }
        table
    }

    fn name_of<'t>(table: &'t IdentityTable, address: &str) -> Option<&'t str> {
        table
            .resolve(address.parse().expect("an address"))
            .map(|identity| identity.name)
    }

    #[test]
    fn an_address_beats_a_prefix_and_a_long_prefix_a_short_one() {
        let table = table(&[
            ("0.0.0.0/0", "any"),
            ("10.0.0.0/8", "ten"),
            ("10.8.0.0/24", "hub"),
            ("10.8.0.7", "press"),
            ("2001:db8::/32", "six"),
            ("2001:db8::7", "six-press"),
        ]);
        for (address, name) in [
            ("10.8.0.7", Some("press")),
            ("::ffff:10.8.0.7", Some("press")),
            ("10.8.0.8", Some("hub")),
            ("10.9.0.8", Some("ten")),
            ("192.0.2.1", Some("any")),
            ("2001:db8::7", Some("six-press")),
            ("2001:db8::8", Some("six")),
            ("2001:db9::8", None),
        ] {
            assert_eq!(name_of(&table, address), name, "{address}");
        }
    }

    #[test]
    fn families_do_not_mix() {
        let table = table(&[("::/0", "six"), ("::ffff:10.8.0.0/120", "mapped")]);
        assert_eq!(name_of(&table, "10.8.0.9"), Some("mapped"));
        assert_eq!(name_of(&table, "10.9.0.9"), None);
        assert_eq!(name_of(&table, "fe80::1"), Some("six"));
    }

    #[test]
    fn a_network_belongs_to_one_device() {
        let mut table = table(&[("10.8.0.7", "press")]);
        let again = table.insert(net("::ffff:10.8.0.7"), AccountId(2), "other", "s");
        assert_eq!((again, table.len()), (Err(Occupied), 1));
        assert_eq!(
            table.insert(net("10.8.0.0/31"), AccountId(2), "other", "s"),
            Ok(())
        );
    }

    #[test]
    fn fields_are_rendered() {
        let mut table = IdentityTable::default();
        table
            .insert(net("10.8.0.7"), AccountId(3), "Präge 07", "1932-0069-24")
            .expect("free");
        let identity = table.resolve([10, 8, 0, 7].into()).expect("known");
        assert_eq!(
            (identity.account, identity.name),
            (AccountId(3), "Präge 07")
        );
        assert_eq!(identity.serial, "1932-0069-24");
        let fields = "X_Talk2M_Device: Präge 07\r\nX_Talk2M_SerialNumber: 1932-0069-24\r\n";
        let mut written = Vec::new();
        identity.write_fields(&mut written);
        assert_eq!(written, fields.as_bytes());
    }

    #[test]
    fn a_change_leaves_the_old_table_as_it_was_and_shares_the_rest() {
        let mut old = IdentityTable::default();
        for host in 0..10_000_u32 {
            let address = Ipv4Addr::from_bits(0x0a08_0000 + host);
            old.insert(IpAddr::V4(address).into(), AccountId(1), "old", "s")
                .expect("free");
        }
        let network = net("10.8.0.7");
        let assign = Change::Assign {
            network,
            account: AccountId(2),
            name: "new",
            serial: "t",
        };
        let new = old.with_changes([
            assign,
            Change::Release {
                network: net("10.8.0.8"),
            },
        ]);
        assert_eq!(name_of(&old, "10.8.0.7"), Some("old"));
        assert_eq!(name_of(&old, "10.8.0.8"), Some("old"));
        assert_eq!(name_of(&new, "10.8.0.7"), Some("new"));
        assert_eq!(name_of(&new, "10.8.0.8"), None);
        assert_eq!((old.len(), new.len()), (10_000, 9_999));
        let (bytes, shards) = copied(&old, &new);
        assert!((1..=2).contains(&shards), "{shards} shards were copied");
        assert!(bytes < 8_192, "{bytes} bytes were copied");
    }

    /// As many devices as `count`, at addresses that follow each other.
    fn fleet(count: u32) -> IdentityTable {
        let values: Vec<_> = (0..count)
            .map(|host| (format!("press-{host:07}"), format!("1932-{host:05}-24")))
            .collect();
        let entries = values.iter().zip(0..).map(|((name, serial), host)| {
            let identity = Identity {
                account: AccountId(1),
                name,
                serial,
            };
            (address(host), identity)
        });
        IdentityTable::build(entries).expect("no network is there twice")
    }

    fn address(host: u32) -> IpNet {
        IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + host)))
    }

    /// Bytes of a table's shards, and of the lists of pointers that lead to them.
    fn bytes(table: &IdentityTable) -> usize {
        let bundles = table.v4.bundles.iter();
        let shards = bundles.flat_map(|bundle| bundle.iter());
        let pointers = size_of::<Family<u32>>() + BUNDLES * size_of::<Bundle<u32>>();
        pointers + shards.map(|shard| shard.bytes()).sum::<usize>()
    }

    /// Bytes of `new` that it does not share with `old`, and how many shards of it.
    fn copied(old: &IdentityTable, new: &IdentityTable) -> (usize, usize) {
        let (mut bytes, mut count) = (size_of::<Family<u32>>(), 0);
        for (old, new) in old.v4.bundles.iter().zip(&new.v4.bundles) {
            if !Arc::ptr_eq(old, new) {
                bytes += size_of::<Bundle<u32>>();
                let shards = old.iter().zip(new.iter());
                for (_, shard) in shards.filter(|(old, new)| !Arc::ptr_eq(old, new)) {
                    bytes += shard.bytes();
                    count += 1;
                }
            }
        }
        (bytes, count)
    }

    #[test]
    fn what_is_built_is_what_is_inserted_one_by_one() {
        let built = fleet(10_000);
        let mut inserted = IdentityTable::default();
        for host in 0..10_000 {
            let known = built.lookup(address(host)).expect("known");
            assert_eq!(known.name, format!("press-{host:07}"));
            let inserting = inserted.insert(address(host), known.account, known.name, known.serial);
            inserting.expect("free");
        }
        assert_eq!((built.len(), inserted.len()), (10_000, 10_000));
        for host in 0..20_000 {
            assert_eq!(built.lookup(address(host)), inserted.lookup(address(host)));
        }
        let identity = built.lookup(address(7)).expect("known");
        let network = net("10.0.0.0/8");
        let twice = [
            (network, identity),
            (address(7), identity),
            (network, identity),
        ];
        let refused = IdentityTable::build(twice.into_iter());
        assert_eq!(refused.err(), Some(network));
    }

    #[test]
    fn an_entry_takes_little_room() {
        let table = fleet(100_000);
        let each = bytes(&table) / table.len();
        assert!(each <= 60, "{each} bytes an entry");
    }

    #[test]
    fn churn_does_not_grow_a_shard() {
        let mut table = table(&[("10.8.0.7", "press")]);
        let before = bytes(&table);
        for _ in 0..1_000 {
            let network = net("10.8.0.7");
            let (account, name, serial) = (AccountId(1), "press", "s");
            table = table.with_changes([Change::Assign {
                network,
                account,
                name,
                serial,
            }]);
        }
        assert_eq!(bytes(&table), before);
    }

    #[test]
    fn a_change_among_a_million_copies_next_to_nothing() {
        const MILLION: u32 = 1_000_000;
        let mut table = fleet(MILLION);
        println!("{} bytes an entry", bytes(&table) / table.len());
        // Assigned anew, released, moved, in turn, all over the table.
        let change = |number: u32| {
            let network = address(number.wrapping_mul(7_919) % MILLION);
            match number % 3 {
                0 => Change::Release { network },
                _ => Change::Assign {
                    network,
                    account: AccountId(2),
                    name: "another press",
                    serial: "1932-00007-25",
                },
            }
        };
        for batch in [1, 1_000] {
            let mut took = Vec::new();
            let mut bytes_max = 0;
            for first in (0..100 * batch).step_by(batch as usize) {
                let changes = (first..first + batch).map(change);
                let begun = Instant::now();
                let changed = table.with_changes(changes);
                let built = begun.elapsed();
                let (bytes, shards) = copied(&table, &changed);
                let before = mem::replace(&mut table, changed);
                let begun = Instant::now();
                drop(before);
                took.push(built + begun.elapsed());
                bytes_max = bytes_max.max(bytes);
                assert!(shards <= batch as usize);
            }
            took.sort_unstable();
            println!(
                "{batch} changed: {bytes_max} bytes copied at most, {:?} of work",
                took[50]
            );
            assert!(
                bytes_max <= 32_768 * batch as usize,
                "{bytes_max} bytes copied"
            );
        }
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        // Few bits vary, so that networks overlap.
        (any::<u32>(), 0..=32_u8).prop_map(|(bits, length)| {
            let address = Ipv4Addr::from_bits(bits & 0x0300_0103);
            let network = ipnet::Ipv4Net::new(address, length).expect("a length");
            IpNet::V4(network.trunc())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            rng_seed: prop::test_runner::RngSeed::Fixed(7),
            ..ProptestConfig::default()
        })]
        #[test]
        fn resolves_like_a_list_searched_from_end_to_end(
            changes in prop::collection::vec((any_network(), any::<bool>()), 0..40),
            probes in prop::collection::vec(any::<u32>(), 20),
        ) {
            let mut list: Vec<(IpNet, String)> = Vec::new();
            let mut table = IdentityTable::default();
            for (number, (network, assigns)) in changes.into_iter().enumerate() {
                let name = format!("device-{number}");
                list.retain(|(listed, _)| *listed != network);
                let change = if assigns {
                    list.push((network, name.clone()));
                    Change::Assign { network, account: AccountId(1), name: &name, serial: "s" }
                } else {
                    Change::Release { network }
                };
                table = table.with_changes([change]);
            }
            prop_assert_eq!(table.len(), list.len());
            for probe in probes {
                let address = IpAddr::V4(Ipv4Addr::from_bits(probe & 0x0300_0103));
                let expected = list
                    .iter()
                    .filter(|(network, _)| network.contains(&address))
                    .max_by_key(|(network, _)| network.prefix_len())
                    .map(|(_, name)| name.as_str());
                let resolved = table.resolve(address).map(|identity| identity.name);
                prop_assert_eq!(resolved, expected);
            }
        }
    }
}
