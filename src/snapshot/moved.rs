//! Networks that speak for another device than before, or for none: their idle connections close.
//!
//! Collected for one core until it comes to see to it; never grows past a bound.

use std::{hash::BuildHasher, net::IpAddr, num::NonZeroU64, sync::LazyLock};

use hashbrown::{DefaultHashBuilder, HashSet};
use ipnet::IpNet;

use super::{identity::Identity, scope::Scope};
use crate::limits;

/// What an address is taken for, in a word: they differ where that differs, but for an accident that nobody
/// can bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(NonZeroU64);

/// A few bits of a mark: they differ for nearly all that differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShortMark(u16);

impl Mark {
    /// The same for the same device, in whatever table.
    #[inline]
    pub fn of(identity: &Identity<'_>) -> Self {
        static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);
        let hash = HASHER.hash_one((identity.account, identity.name, identity.serial));
        Self(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MAX))
    }

    /// Its lower bits.
    pub fn short(self) -> ShortMark {
        ShortMark(self.0.get() as u16)
    }
}

/// Networks whose device changed.
#[derive(Debug, Default)]
pub struct Moved {
    networks: HashSet<(Scope, IpNet)>,
    /// Prefix lengths that occur, of IPv4 and of IPv6.
    lengths: [u128; 2],
    /// They were too many to be told apart.
    all: bool,
}

impl Moved {
    /// Adds a network of a scope, or of all scopes if that is `Scope::NONE`.
    pub fn add(&mut self, scope: Scope, network: IpNet) {
        if self.all {
            return;
        }
        if self.networks.len() >= limits::MOVED_NETWORKS_MAX {
            self.add_all();
            return;
        }
        // A prefix of full IPv6 length shares its bit with the next shorter one.
        let bit = 1_u128 << network.prefix_len().min(127);
        self.lengths[usize::from(network.addr().is_ipv6())] |= bit;
        self.networks.insert((scope, network));
    }

    /// They are too many to be told apart.
    pub fn add_all(&mut self) {
        self.all = true;
        self.networks = HashSet::new();
    }

    /// Whether there is nothing to see to.
    pub fn is_empty(&self) -> bool {
        !self.all && self.networks.is_empty()
    }

    /// Whether the device of `address`, at a listener of `scope`, may have changed.
    ///
    /// `address` is canonical: never an IPv4-mapped one.
    pub fn concerns(&self, scope: Scope, address: IpAddr) -> bool {
        if self.all {
            return true;
        }
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let present = self.lengths[usize::from(address.is_ipv6())];
        (0..=bits)
            .filter(|length| present & (1 << (*length).min(127)) != 0)
            .any(|length| {
                let network = IpNet::new_assert(address, length).trunc();
                self.networks.contains(&(scope, network))
                    || (scope != Scope::NONE && self.networks.contains(&(Scope::NONE, network)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concerns_the_addresses_of_its_networks_in_their_scope() {
        let mut moved = Moved::default();
        assert!(moved.is_empty());
        for (scope, network) in [
            (0, "10.8.0.7/32"),
            (1, "192.168.7.0/24"),
            (0, "2001:db8::7/128"),
            (2, "2001:db8:1::/64"),
        ] {
            moved.add(Scope(scope), network.parse().expect("a network"));
        }
        assert!(!moved.is_empty());
        for (scope, address, concerned) in [
            (0, "10.8.0.7", true),
            (5, "10.8.0.7", true),
            (0, "10.8.0.8", false),
            (1, "192.168.7.9", true),
            (0, "192.168.7.9", false),
            (2, "192.168.7.9", false),
            (1, "192.168.8.9", false),
            (1, "2001:db8::7", true),
            (0, "2001:db8::8", false),
            (2, "2001:db8:1::9", true),
            (1, "2001:db8:1::9", false),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(
                moved.concerns(Scope(scope), address),
                concerned,
                "{address} in {scope}"
            );
        }
    }

    #[test]
    fn too_many_concern_everybody() {
        let mut moved = Moved::default();
        for number in 0..=limits::MOVED_NETWORKS_MAX as u32 {
            moved.add(Scope::NONE, IpNet::from(IpAddr::from(number.to_be_bytes())));
        }
        assert!(moved.concerns(Scope(3), [192, 0, 2, 1].into()));
        assert!(moved.networks.is_empty());
    }
}
