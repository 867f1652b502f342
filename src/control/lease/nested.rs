//! Networks of hubs' clients that lie within one another, and places that are kept from whoever has
//! the network around them.
//!
//! A hub lets a client use all of its network but what it routes to another at that moment. The moment
//! the other one is gone the first has that part as well, and no hook tells; a hook that was given up
//! may leave it the other way round. So the longest prefix, which is how addresses are resolved, says
//! nothing certain where networks of two devices overlap. Knows places, never devices; decides nothing.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Bound,
};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::claim::{Place, SourceId, UnixMs};
use crate::snapshot::scope::Scope;

/// Where hubs have clients, and what is withheld because of them.
#[derive(Debug, Default)]
pub struct Nested {
    hubs: HashSet<SourceId>,
    /// For how many reasons a place is there: a hub's client, or one that it is withheld for. In order,
    /// so that what lies in a network stands behind it.
    places: BTreeMap<Place, usize>,
    /// How many places there are of a scope, a family (whether it is IPv6), and a prefix length.
    lengths: BTreeMap<(Scope, bool, u8), usize>,
    withheld: HashMap<Place, Vec<(SourceId, Why)>>,
}

/// Why a place that nobody claims is kept from whoever has the network around it. Whoever has it may
/// have what lies in it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its device left it at this time, and no report shows yet who has it since.
    Left(UnixMs),
    /// A hub lets somebody use it of whom nothing is known.
    Stranger,
}

impl Nested {
    /// Whether a source is a hub.
    pub fn is_hub(&self, source: SourceId) -> bool {
        self.hubs.contains(&source)
    }

    /// Counts a source to the hubs.
    pub fn add_hub(&mut self, source: SourceId) {
        self.hubs.insert(source);
    }

    /// Counts it to them no longer; its places have been removed.
    pub fn remove_hub(&mut self, source: SourceId) {
        self.hubs.remove(&source);
    }

    /// Notes that one more hub has a client at `place`.
    pub fn add(&mut self, place: Place) {
        let count = self.places.entry(place).or_default();
        *count += 1;
        if *count == 1 {
            *self.lengths.entry(length(place)).or_default() += 1;
        }
    }

    /// Notes that one hub less has.
    pub fn remove(&mut self, place: Place) {
        if !take_one(&mut self.places, place) {
            take_one(&mut self.lengths, length(place));
        }
    }

    /// Places of the same scope that `place` lies in, beside itself.
    pub fn around(&self, place: Place) -> impl Iterator<Item = Place> {
        let (scope, is_v6, longest) = length(place);
        let lengths = self
            .lengths
            .range((scope, is_v6, 0)..(scope, is_v6, longest));
        let wider = lengths.map(move |((.., length), _)| Place {
            network: IpNet::new_assert(place.network.addr(), *length).trunc(),
            ..place
        });
        wider.filter(|wider| self.places.contains_key(wider))
    }

    /// Places of the same scope that lie in `place`, beside itself.
    pub fn within(&self, place: Place) -> impl Iterator<Item = Place> {
        let behind = (Bound::Excluded(place), Bound::Unbounded);
        let behind = self.places.range(behind).map(|(behind, _)| *behind);
        behind.take_while(move |behind| {
            behind.scope == place.scope && place.network.contains(&behind.network)
        })
    }

    /// Keeps `place` from others, because of what happened at a hub.
    pub fn withhold(&mut self, place: Place, hub: SourceId, why: Why) {
        let reasons = self.withheld.entry(place).or_default();
        match reasons.iter_mut().find(|(source, _)| *source == hub) {
            Some((_, known)) => *known = why,
            None => {
                reasons.push((hub, why));
                self.add(place);
            }
        }
    }

    /// Lets go of `place` as far as it is kept because of `hub`.
    pub fn let_go_of(&mut self, place: Place, hub: SourceId) {
        let Some(reasons) = self.withheld.get_mut(&place) else {
            return;
        };
        let before = reasons.len();
        reasons.retain(|(source, _)| *source != hub);
        let is_one_less = reasons.len() < before;
        if reasons.is_empty() {
            self.withheld.remove(&place);
        }
        if is_one_less {
            self.remove(place);
        }
    }

    /// Whether `place` is kept from others because of `hub`.
    pub fn is_withheld_for(&self, place: Place, hub: SourceId) -> bool {
        let reasons = self.withheld.get(&place);
        reasons.is_some_and(|reasons| reasons.iter().any(|(source, _)| *source == hub))
    }

    /// Why `place` is kept from others, if it is.
    pub fn withheld(&self, place: Place) -> Option<Why> {
        let reasons = self.withheld.get(&place)?;
        reasons.first().map(|(_, why)| *why)
    }

    /// All places that are kept from others.
    pub fn all_withheld(&self) -> impl Iterator<Item = Place> + Clone {
        self.withheld.keys().copied()
    }

    /// Lets go of what is kept because of `hub`, where `is_over` says so; answers what that is.
    pub fn let_go(&mut self, hub: SourceId, is_over: impl Fn(Why) -> bool) -> Vec<Place> {
        let mut gone = Vec::new();
        self.withheld.retain(|place, reasons| {
            let before = reasons.len();
            reasons.retain(|(source, why)| *source != hub || !is_over(*why));
            if reasons.len() < before {
                gone.push(*place);
            }
            !reasons.is_empty()
        });
        for place in &gone {
            self.remove(*place);
        }
        gone
    }
}

fn length(place: Place) -> (Scope, bool, u8) {
    let network = place.network;
    (place.scope, network.addr().is_ipv6(), network.prefix_len())
}

/// Counts one less of `key`; tells whether there are any left.
fn take_one<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    match counts.get_mut(&key) {
        Some(count) if *count > 1 => {
            *count -= 1;
            true
        }
        _ => {
            counts.remove(&key);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(scope: u8, network: &str) -> Place {
        Place {
            scope: Scope(scope),
            network: network.parse().expect("a network"),
        }
    }

    fn nested(networks: &[(u8, &str)]) -> Nested {
        let mut nested = Nested::default();
        for (scope, network) in networks {
            nested.add(place(*scope, network));
        }
        nested
    }

    #[test]
    fn what_lies_around_and_within_is_found_and_nothing_else() {
        let mut nested = nested(&[
            (1, "0.0.0.0/0"),
            (1, "10.0.0.0/8"),
            (1, "10.0.0.0/16"),
            (1, "10.1.0.0/16"),
            (1, "10.1.0.0/32"),
            (1, "10.1.255.255/32"),
            (1, "10.2.0.0/15"),
            (1, "11.0.0.0/8"),
            (1, "::/0"),
            (1, "a00::/8"),
            (2, "10.1.0.0/24"),
        ]);
        let around = |nested: &Nested, network: &str| -> Vec<String> {
            let around = nested.around(place(1, network));
            around.map(|place| place.network.to_string()).collect()
        };
        let within = |network: &str| -> Vec<String> {
            let within = nested.within(place(1, network));
            within.map(|place| place.network.to_string()).collect()
        };
        assert_eq!(
            within("10.0.0.0/8"),
            [
                "10.0.0.0/16",
                "10.1.0.0/16",
                "10.1.0.0/32",
                "10.1.255.255/32",
                "10.2.0.0/15"
            ]
        );
        assert_eq!(within("10.1.0.0/16"), ["10.1.0.0/32", "10.1.255.255/32"]);
        assert_eq!(within("::/0"), ["a00::/8"]);
        assert_eq!(within("10.1.0.0/32"), [""; 0]);
        assert_eq!(
            around(&nested, "10.1.0.0/32"),
            ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16"]
        );
        assert_eq!(around(&nested, "12.0.0.0/8"), ["0.0.0.0/0"]);
        assert_eq!(around(&nested, "a00::1/128"), ["::/0", "a00::/8"]);
        // Another hub has it as well, and one of both loses it.
        nested.add(place(1, "10.0.0.0/8"));
        nested.remove(place(1, "10.0.0.0/8"));
        assert_eq!(around(&nested, "10.9.0.0/16"), ["0.0.0.0/0", "10.0.0.0/8"]);
        nested.remove(place(1, "10.0.0.0/8"));
        assert_eq!(around(&nested, "10.9.0.0/16"), ["0.0.0.0/0"]);
    }

    #[test]
    fn what_is_withheld_is_let_go_by_the_hub_that_it_is_withheld_for() {
        let mut nested = Nested::default();
        let (north, south) = (SourceId(1), SourceId(2));
        let [one, two] = ["10.1.0.0/16", "10.2.0.0/16"].map(|network| place(1, network));
        nested.withhold(one, north, Why::Left(5));
        nested.withhold(one, north, Why::Left(7));
        nested.withhold(one, south, Why::Stranger);
        nested.withhold(two, north, Why::Left(9));
        let host = place(1, "10.1.0.1/32");
        assert_eq!(nested.around(host).collect::<Vec<_>>(), [one]);
        let before = |limit| move |why| matches!(why, Why::Left(at) if at <= limit);
        assert_eq!(nested.let_go(north, before(6)), [one; 0]);
        assert_eq!(nested.let_go(north, before(7)), [one]);
        assert_eq!(nested.withheld(one), Some(Why::Stranger));
        assert_eq!(nested.around(host).collect::<Vec<_>>(), [one]);
        assert_eq!(nested.let_go(south, |_| true), [one]);
        assert_eq!(nested.around(host).next(), None);
        assert_eq!(
            (nested.withheld(one), nested.withheld(two)),
            (None, Some(Why::Left(9)))
        );
        nested.let_go_of(two, south);
        assert!(nested.is_withheld_for(two, north));
        nested.let_go_of(two, north);
        assert!(!nested.is_withheld_for(two, north));
        assert_eq!(nested.within(place(1, "10.0.0.0/8")).next(), None);
    }
}
