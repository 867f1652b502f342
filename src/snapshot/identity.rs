//! VPN address -> device: exact address first, else the longest matching prefix.
//!
//! Immutable once published; a change makes a new table that shares everything it did not touch.
//! The whole table is cut into shards by hash, so that changing one of a million leases copies a
//! thousandth of it, and a core that reads never waits.

use std::{
    fmt,
    hash::BuildHasher,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use ipnet::IpNet;

use super::route::AccountId;
use crate::limits::IDENTITY_VALUE_BYTES_MAX;

const SHARDS: usize = 1_024;
const DEVICE: &str = "X_Talk2M_Device: ";
const SERIAL: &str = "\r\nX_Talk2M_SerialNumber: ";
const END: &str = "\r\n";
/// Bits of an IPv4 and of an IPv6 address.
const BITS: [u8; 2] = [32, 128];

/// The devices by address.
#[derive(Clone)]
pub struct IdentityTable {
    shards: Box<[Arc<Shard>]>,
    hasher: DefaultHashBuilder,
    /// Entries of each prefix length, per family.
    lengths: [Lengths; 2],
    len: usize,
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
    /// `X_Talk2M_Device: name\r\nX_Talk2M_SerialNumber: serial\r\n`.
    pub fields: &'a [u8],
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

/// A network in the form it is looked up by: IPv4-mapped IPv6 is IPv4, host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    bits: [u8; 16],
    /// Prefix length; IPv4 counts on behind IPv6's 128.
    length: u8,
}

/// A part of the table: entries by key, and one text that holds what they render to.
#[derive(Debug, Clone, Default)]
struct Shard {
    entries: HashTable<Entry>,
    text: String,
    /// Bytes of `text` that belong to no entry any more.
    unused: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    account: AccountId,
    begin: u32,
    key: Key,
    name_bytes: u8,
    serial_bytes: u8,
}

impl Entry {
    fn bytes(&self) -> usize {
        let values = usize::from(self.name_bytes) + usize::from(self.serial_bytes);
        DEVICE.len() + SERIAL.len() + END.len() + values
    }
}

/// How many entries there are of each prefix length.
#[derive(Clone)]
struct Lengths {
    counts: [u32; 129],
    /// The lengths that occur.
    present: u128,
}

impl Lengths {
    fn add(&mut self, length: u8) {
        self.counts[usize::from(length)] += 1;
        self.mark(length);
    }

    fn remove(&mut self, length: u8) {
        self.counts[usize::from(length)] -= 1;
        self.mark(length);
    }

    /// Full lengths are looked up in any case, so 128 bits are enough.
    fn mark(&mut self, length: u8) {
        if let Some(bit) = 1_u128.checked_shl(u32::from(length)) {
            let present = self.counts[usize::from(length)] > 0;
            self.present = if present {
                self.present | bit
            } else {
                self.present & !bit
            };
        }
    }

    /// The lengths that occur below `bits`, longest first.
    fn shorter_than(&self, bits: u8) -> impl Iterator<Item = u8> + use<> {
        let below = 1_u128
            .checked_shl(u32::from(bits))
            .map_or(u128::MAX, |bit| bit - 1);
        let mut left = self.present & below;
        std::iter::from_fn(move || {
            let length = left.checked_ilog2()?;
            left &= !(1 << length);
            u8::try_from(length).ok()
        })
    }
}

impl Default for IdentityTable {
    fn default() -> Self {
        let empty = Arc::new(Shard::default());
        let lengths = Lengths {
            counts: [0; 129],
            present: 0,
        };
        Self {
            shards: (0..SHARDS).map(|_| Arc::clone(&empty)).collect(),
            hasher: DefaultHashBuilder::default(),
            lengths: [lengths.clone(), lengths],
            len: 0,
        }
    }
}

impl fmt::Debug for IdentityTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityTable")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl IdentityTable {
    /// The device that speaks from `address`; IPv4-mapped IPv6 counts as IPv4.
    #[inline]
    pub fn resolve(&self, address: IpAddr) -> Option<Identity<'_>> {
        let address = address.to_canonical();
        let family = usize::from(address.is_ipv6());
        self.find(&Key::new(address, BITS[family])).or_else(|| {
            self.lengths[family]
                .shorter_than(BITS[family])
                .find_map(|length| self.find(&Key::new(address, length)))
        })
    }

    /// The device that this very network was assigned to.
    pub fn lookup(&self, network: IpNet) -> Option<Identity<'_>> {
        self.find(&Key::of(network).0)
    }

    /// Networks in the table.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the table has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `network` for a device while the table is being built.
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
        let (key, family) = Key::of(network);
        if self.find(&key).is_some() {
            return Err(Occupied);
        }
        let (hash, index) = self.place(&key);
        let hasher = &self.hasher;
        Arc::make_mut(&mut self.shards[index]).insert(hash, key, account, name, serial, |entry| {
            hasher.hash_one(entry.key)
        });
        self.lengths[family].add(key.prefix_length(family));
        self.len += 1;
        Ok(())
    }

    /// This table after `changes`, in order; every shard that none of them touches is shared.
    pub fn with_changes<'a>(&self, changes: impl IntoIterator<Item = Change<'a>>) -> Self {
        let mut changed = self.clone();
        for change in changes {
            match change {
                Change::Release { network } => changed.remove(network),
                Change::Assign {
                    network,
                    account,
                    name,
                    serial,
                } => {
                    changed.remove(network);
                    // Its place has just been made free.
                    let _ = changed.insert(network, account, name, serial);
                }
            }
        }
        changed
    }

    fn remove(&mut self, network: IpNet) {
        let (key, family) = Key::of(network);
        if self.find(&key).is_none() {
            return;
        }
        let (hash, index) = self.place(&key);
        Arc::make_mut(&mut self.shards[index]).remove(hash, &key);
        self.lengths[family].remove(key.prefix_length(family));
        self.len -= 1;
    }

    fn find(&self, key: &Key) -> Option<Identity<'_>> {
        let (hash, index) = self.place(key);
        let shard = &self.shards[index];
        let entry = shard.entries.find(hash, |entry| entry.key == *key)?;
        Some(shard.render(entry))
    }

    /// A key's hash and shard; the shard is taken from bits that the shard's own table uses little.
    fn place(&self, key: &Key) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        (hash, (hash >> 32) as usize % SHARDS)
    }
}

impl Key {
    fn new(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                let masked = Ipv4Addr::from_bits(address.to_bits() & mask);
                Self {
                    bits: masked.to_ipv6_mapped().octets(),
                    length: 129 + length,
                }
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                let masked = Ipv6Addr::from_bits(address.to_bits() & mask);
                Self {
                    bits: masked.octets(),
                    length,
                }
            }
        }
    }

    /// A network's key, and the index of its family.
    fn of(network: IpNet) -> (Self, usize) {
        let (address, length) = (network.addr(), network.prefix_len());
        match address.to_canonical() {
            mapped @ IpAddr::V4(_) if address.is_ipv6() && length >= 96 => {
                (Self::new(mapped, length - 96), 0)
            }
            _ => (Self::new(address, length), usize::from(address.is_ipv6())),
        }
    }

    fn prefix_length(&self, family: usize) -> u8 {
        if family == 0 {
            self.length - 129
        } else {
            self.length
        }
    }
}

impl Shard {
    fn render(&self, entry: &Entry) -> Identity<'_> {
        let begin = entry.begin as usize;
        let name = begin + DEVICE.len()..begin + DEVICE.len() + usize::from(entry.name_bytes);
        let serial_begin = name.end + SERIAL.len();
        let serial = serial_begin..serial_begin + usize::from(entry.serial_bytes);
        Identity {
            account: entry.account,
            name: &self.text[name],
            serial: &self.text[serial],
            fields: &self.text.as_bytes()[begin..begin + entry.bytes()],
        }
    }

    fn insert(
        &mut self,
        hash: u64,
        key: Key,
        account: AccountId,
        name: &str,
        serial: &str,
        rehash: impl Fn(&Entry) -> u64,
    ) {
        debug_assert!(name.len().max(serial.len()) <= IDENTITY_VALUE_BYTES_MAX);
        let begin = u32::try_from(self.text.len()).expect("a shard holds less than 4 GiB");
        for part in [DEVICE, name, SERIAL, serial, END] {
            self.text.push_str(part);
        }
        let (name_bytes, serial_bytes) = (name.len() as u8, serial.len() as u8);
        let entry = Entry {
            account,
            begin,
            key,
            name_bytes,
            serial_bytes,
        };
        self.entries.insert_unique(hash, entry, rehash);
    }

    fn remove(&mut self, hash: u64, key: &Key) {
        if let Ok(occupied) = self.entries.find_entry(hash, |entry| entry.key == *key) {
            self.unused += occupied.remove().0.bytes();
        }
        if self.unused > self.text.len() / 2 {
            self.compact();
        }
    }

    /// Writes the text anew without what is unused.
    fn compact(&mut self) {
        let mut text = String::with_capacity(self.text.len() - self.unused);
        for entry in &mut self.entries {
            let old = entry.begin as usize;
            entry.begin = text.len() as u32;
            text.push_str(&self.text[old..old + entry.bytes()]);
        }
        self.text = text;
        self.unused = 0;
    }
}

#[cfg(test)]
mod tests {
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
    fn fields_are_rendered_ahead() {
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
        assert_eq!(identity.fields, fields.as_bytes());
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
        let pairs = old.shards.iter().zip(&new.shards);
        let copied = pairs.filter(|(old, new)| !Arc::ptr_eq(old, new)).count();
        assert!((1..=2).contains(&copied), "{copied} shards were copied");
    }

    #[test]
    fn an_entry_takes_little_room() {
        let mut table = IdentityTable::default();
        for host in 0..100_000_u32 {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + host);
            let (name, serial) = (format!("press-{host:05}"), format!("1932-{host:05}-24"));
            table
                .insert(IpAddr::V4(address).into(), AccountId(1), &name, &serial)
                .expect("free");
        }
        let bytes: usize = table
            .shards
            .iter()
            .map(|shard| shard.text.capacity() + shard.entries.allocation_size())
            .sum();
        assert!(
            bytes / table.len() <= 200,
            "{} bytes an entry",
            bytes / table.len()
        );
    }

    #[test]
    fn churn_does_not_grow_a_shard() {
        let mut table = table(&[("10.8.0.7", "press")]);
        let size = |table: &IdentityTable| -> usize {
            table.shards.iter().map(|shard| shard.text.len()).sum()
        };
        let one = size(&table);
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
        assert!(size(&table) <= 3 * one);
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
