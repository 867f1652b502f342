//! Which of m2u's names there are, and what they resolve to. Immutable: a reload makes another.
//!
//! `m2u` is always there, so that a device without a server is told so by the gateway; `m2uN` is
//! there once an account has a server in that slot. Each is known bare, and with the domain.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hickory_proto::rr::Name;

use crate::config::settings::{Dns, Slot};

/// The names with their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    domain: Option<Box<str>>,
    names: BTreeMap<Slot, Addresses>,
}

/// What one name resolves to, in the order that it was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Answers to questions for A.
    pub v4: Vec<Ipv4Addr>,
    /// Answers to questions for AAAA.
    pub v6: Vec<Ipv6Addr>,
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut families = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(address) => families.v4.push(address),
                IpAddr::V6(address) => families.v6.push(address),
            }
        }
        families
    }
}

impl Zone {
    /// The names of the `slots` in use, with the addresses that `dns` gives them.
    pub fn build(domain: Option<&str>, slots: impl Iterator<Item = Slot>, dns: &Dns) -> Self {
        let addresses = |slot: Slot| {
            let own = dns.slots.get(&slot).unwrap_or(&dns.addresses);
            (slot, own.iter().copied().collect())
        };
        Self {
            domain: domain.map(Box::from),
            names: slots.chain([Slot::FIRST]).map(addresses).collect(),
        }
    }

    /// The domain behind the names, if there is one.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// Every slot that has a name, with the addresses of its names.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Addresses)> {
        self.names
            .iter()
            .map(|(slot, addresses)| (*slot, addresses))
    }

    /// What `name` resolves to, in any case; `None` if it is none of ours.
    pub(super) fn resolve(&self, name: &Name) -> Option<&Addresses> {
        let mut labels = name.iter();
        let slot = Slot::parse(labels.next()?)?;
        (labels.len() == 0 || self.is_domain(labels))
            .then(|| self.names.get(&slot))
            .flatten()
    }

    fn is_domain<'n>(&self, mut labels: impl Iterator<Item = &'n [u8]>) -> bool {
        let Some(domain) = &self.domain else {
            return false;
        };
        let mut own = domain.split('.').map(str::as_bytes);
        let is_same = |label: &[u8]| labels.next().is_some_and(|l| l.eq_ignore_ascii_case(label));
        own.all(is_same) && labels.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slots 2 and 999 in use below `talk2m.com`, the first of them with an address of its own.
    fn zone() -> Zone {
        let address = |text: &str| text.parse().expect("an address");
        let slot = |name: &str| Slot::parse(name.as_bytes()).expect("a slot");
        let dns = Dns {
            listen: Vec::new(),
            addresses: ["10.8.0.2", "fd00::2"].map(address).into(),
            slots: [("m2u2", "10.8.0.3"), ("m2u4", "10.8.0.4")]
                .map(|(name, own)| (slot(name), vec![address(own)]))
                .into(),
        };
        let slots = ["m2u2", "m2u999"].map(slot);
        Zone::build(Some("talk2m.com"), slots.into_iter(), &dns)
    }

    #[test]
    fn slots_in_use_are_found_bare_and_below_the_domain_in_any_case() {
        let zone = zone();
        let resolve = |name: &str| zone.resolve(&Name::from_ascii(name).expect("a name"));
        for name in [
            "m2u.",
            "M2U.",
            "m2u.talk2m.com.",
            "M2u.TALK2M.cOm.",
            "m2u999.",
        ] {
            let found = resolve(name).unwrap_or_else(|| panic!("{name} is ours"));
            assert_eq!(found.v4, [Ipv4Addr::new(10, 8, 0, 2)]);
            assert_eq!(found.v6.len(), 1);
        }
        let own = resolve("m2u2.talk2m.com.").expect("ours");
        assert_eq!(
            (own.v4.as_slice(), own.v6.len()),
            (&[Ipv4Addr::new(10, 8, 0, 3)][..], 0)
        );
        for name in [
            ".",
            "com.",
            "talk2m.com.",
            "www.talk2m.com.",
            "x.m2u.talk2m.com.",
            "m2u.talk2m.org.",
            "m2u.talk2m.",
            "m2u.talk2m.com.org.",
            "m2u.m2u.",
            "m2u3.talk2m.com.",
            "m2u4.talk2m.com.",
            "m2u1.talk2m.com.",
            "m2u02.talk2m.com.",
            "xm2u.talk2m.com.",
            "m2u.talk2m\\.com.",
        ] {
            assert_eq!(resolve(name), None, "{name}");
        }
    }

    #[test]
    fn without_a_domain_names_are_bare() {
        let bare = Zone {
            domain: None,
            ..zone()
        };
        let resolve = |name: &str| bare.resolve(&Name::from_ascii(name).expect("a name"));
        assert!(resolve("m2u2.").is_some());
        assert_eq!(resolve("m2u2.talk2m.com."), None);
    }
}
