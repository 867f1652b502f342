//! The devices of all listeners: one table that every listener knows, and one for each scope.
//!
//! Two VPN hubs may use the same addresses. Each has a listener of its own then, and leases of its
//! scope are known there alone.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::identity::{Identity, IdentityTable};
use crate::config::settings::Listen;

/// Number of a listener's scope, the same as long as the process lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(pub u8);

impl Scope {
    /// Of a listener that has no scope, and of a lease that every listener knows.
    pub const NONE: Self = Self(0);

    /// The number of the scope that is called `name`, which one of the listeners has.
    pub fn of(name: Option<&str>, listen: &[Listen]) -> Self {
        let found = name.and_then(|name| Self::find(name, listen));
        found.unwrap_or(Self::NONE)
    }

    /// The number of the scope that is called `name`, if a listener has it.
    pub fn find(name: &str, listen: &[Listen]) -> Option<Self> {
        let position = Self::names(listen)
            .iter()
            .position(|known| *known == name)?;
        u8::try_from(position + 1).ok().map(Self)
    }

    /// The names of the listeners' scopes, of scope 1 first.
    pub fn names(listen: &[Listen]) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in listen.iter().filter_map(|listen| listen.scope.as_deref()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// VPN address -> device, for each scope.
#[derive(Clone, Default)]
pub struct Identities {
    everywhere: Arc<IdentityTable>,
    /// Of scope 1, 2 …
    scoped: Box<[Arc<IdentityTable>]>,
}

/// Why a request of an address is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// No device has it.
    NoLease,
    /// More than one device claims it.
    Disputed,
    /// A device had it before the gateway started, and nobody has confirmed that in time; or a hub may have
    /// given it to another, and has not said yet whose it is.
    Unconfirmed,
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scoped = self.scoped.iter();
        f.debug_struct("Identities")
            .field("everywhere", &self.everywhere)
            .field(
                "scoped",
                &scoped.map(|table| table.len()).collect::<Vec<_>>(),
            )
            .finish()
    }
}

impl From<Arc<IdentityTable>> for Identities {
    /// Without scopes.
    fn from(everywhere: Arc<IdentityTable>) -> Self {
        Self {
            everywhere,
            scoped: Box::default(),
        }
    }
}

impl From<IdentityTable> for Identities {
    fn from(everywhere: IdentityTable) -> Self {
        Self::from(Arc::new(everywhere))
    }
}

impl Identities {
    /// The table that every listener knows, and those of scope 1, 2 …
    pub fn new(everywhere: Arc<IdentityTable>, scoped: Vec<Arc<IdentityTable>>) -> Self {
        Self {
            everywhere,
            scoped: scoped.into(),
        }
    }

    /// The table of one scope alone; of `Scope::NONE`, the one that every listener knows.
    pub fn table(&self, scope: Scope) -> Option<&Arc<IdentityTable>> {
        match scope.0 {
            0 => Some(&self.everywhere),
            number => self.scoped.get(usize::from(number) - 1),
        }
    }

    /// The device that speaks from `address` to a listener of `scope`: the longest match of both
    /// tables, the scope's own if they have the same network.
    ///
    /// # Errors
    /// [`Unknown`]; never a shorter prefix's device in place of one that cannot be told.
    #[inline]
    pub fn resolve(&self, scope: Scope, address: IpAddr) -> Result<Identity<'_>, Unknown> {
        let found = match scope {
            Scope::NONE => self.everywhere.resolve(address),
            scope => self.resolve_scoped(scope, address),
        };
        let identity = found.ok_or(Unknown::NoLease)?;
        match identity.account {
            Identity::DISPUTED => Err(Unknown::Disputed),
            Identity::UNCONFIRMED => Err(Unknown::Unconfirmed),
            Identity::NOBODY => Err(Unknown::NoLease),
            _ => Ok(identity),
        }
    }

    fn resolve_scoped(&self, scope: Scope, address: IpAddr) -> Option<Identity<'_>> {
        let own = self
            .table(scope)
            .and_then(|table| table.resolve_longest(address));
        let common = self.everywhere.resolve_longest(address);
        let (_, identity) = match (own, common) {
            (Some(own), Some(common)) if common.0 > own.0 => common,
            (Some(own), _) => own,
            (None, common) => common?,
        };
        Some(identity)
    }

    /// Networks whose device is another in `other`, with their scopes.
    pub fn differences(&self, other: &Self) -> Vec<(Scope, IpNet)> {
        let scopes = 0..=self.scoped.len().max(other.scoped.len()) as u8;
        let none = Arc::default();
        scopes
            .map(Scope)
            .flat_map(|scope| {
                let [here, there] = [self, other].map(|all| all.table(scope).unwrap_or(&none));
                let networks = match Arc::ptr_eq(here, there) {
                    true => Vec::new(),
                    false => here.differences(there),
                };
                networks.into_iter().map(move |network| (scope, network))
            })
            .collect()
    }

    /// Whether `address` is some device's, in whatever scope.
    pub fn has(&self, address: IpAddr) -> bool {
        let mut tables = std::iter::once(&self.everywhere).chain(&self.scoped);
        tables.any(|table| table.resolve(address).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{identity::Change, route::AccountId};

    fn table(entries: &[(&str, &str)]) -> Arc<IdentityTable> {
        let changes = entries.iter().map(|(network, name)| Change::Assign {
            network: network.parse().expect("a network"),
            account: match *name {
                "disputed" => Identity::DISPUTED,
                "unconfirmed" => Identity::UNCONFIRMED,
                "nobody" => Identity::NOBODY,
                _ => AccountId(1),
            },
            name,
            serial: "s",
        });
        Arc::new(IdentityTable::default().with_changes(changes))
    }

    #[test]
    fn a_scope_knows_its_own_leases_and_those_of_all() {
        let everywhere = table(&[("10.0.0.0/8", "wide"), ("10.8.0.9/32", "exact")]);
        let north = table(&[("10.8.0.0/16", "north"), ("10.8.0.7/32", "press")]);
        let south = table(&[("10.8.0.7/32", "mill"), ("10.0.0.0/8", "south")]);
        let identities = Identities::new(everywhere, vec![north, south]);
        let name = |scope, address: &str| {
            let address = address.parse().expect("an address");
            let found = identities.resolve(Scope(scope), address);
            found.map(|identity| identity.name)
        };
        for (address, names) in [
            ("10.8.0.7", ["wide", "press", "mill"]),
            ("10.8.0.8", ["wide", "north", "south"]),
            ("10.8.0.9", ["exact", "exact", "exact"]),
            ("10.9.0.1", ["wide", "wide", "south"]),
        ] {
            for (scope, expected) in (0..).zip(names) {
                assert_eq!(name(scope, address), Ok(expected), "{address} in {scope}");
            }
        }
        assert_eq!(name(3, "10.8.0.7"), Ok("wide"), "no leases of its own");
        assert_eq!(name(1, "192.0.2.1"), Err(Unknown::NoLease));
        assert!(identities.has([10, 8, 0, 7].into()));
        assert!(!identities.has([192, 0, 2, 1].into()));
    }

    #[test]
    fn what_cannot_be_told_is_never_a_shorter_prefixs() {
        let everywhere = table(&[("10.8.0.0/16", "wide"), ("10.8.0.7/32", "disputed")]);
        let north = table(&[("10.8.0.8/32", "unconfirmed"), ("10.8.0.9/32", "nobody")]);
        let identities = Identities::new(everywhere, vec![north]);
        let resolve = |scope, last| {
            let found = identities.resolve(Scope(scope), [10, 8, 0, last].into());
            found.map(|identity| identity.name)
        };
        assert_eq!(resolve(0, 7), Err(Unknown::Disputed));
        assert_eq!(resolve(1, 7), Err(Unknown::Disputed));
        assert_eq!(resolve(1, 8), Err(Unknown::Unconfirmed));
        assert_eq!(resolve(1, 9), Err(Unknown::NoLease));
        assert_eq!(resolve(0, 8), Ok("wide"));
    }

    #[test]
    fn identities_differ_in_what_came_went_or_moved() {
        let kept = table(&[("10.8.0.7/32", "saw")]);
        let old = table(&[
            ("10.8.0.7/32", "press"),
            ("10.8.0.8/32", "mill"),
            ("10.9.0.0/16", "hub"),
            ("2001:db8::7/128", "six"),
        ]);
        let new = table(&[
            ("10.8.0.7/32", "press"),
            ("10.8.0.8/32", "saw"),
            ("10.8.0.9/32", "mill"),
            ("2001:db8::/64", "six"),
        ]);
        let old = Identities::new(Arc::clone(&kept), vec![old]);
        let new = Identities::new(kept, vec![new]);
        let mut differences = old.differences(&new);
        differences.sort_unstable();
        let expected = [
            "10.8.0.8/32",
            "10.8.0.9/32",
            "10.9.0.0/16",
            "2001:db8::/64",
            "2001:db8::7/128",
        ];
        let expected = expected.map(|text| (Scope(1), text.parse().expect("a network")));
        assert_eq!(differences, expected);
        assert!(new.differences(&new.clone()).is_empty());
    }
}
