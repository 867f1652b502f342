//! All claims by network, and what follows from them for a network: its device, or why it has none.
//!
//! As long as all claims to a network agree, its device is known there; if they do not, nobody's
//! requests are served from it. Nor are they where a hub's client has a network within that of
//! another device: which of both may speak there is the hub's to say at every moment, and a hook
//! that was not heard would leave it to the wrong one. Knows nothing of time but what it is told.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;

use super::{
    claim::{Claim, Offer, Place, Refused, SourceId, Standing, UnixMs},
    directory::{Absent, DeviceId, Directory},
    nested::{Nested, Why},
};
use crate::snapshot::{
    identity::{Identity, IdentityTable},
    scope::Scope,
};

/// The source that the configuration's own addresses count to; no feed may use it.
pub const CONFIGURATION: &str = "config";

/// Every claim, beside what the configuration says.
#[derive(Debug, Default)]
pub struct Claims {
    /// The devices that may be named.
    pub directory: Directory,
    /// The addresses of the configuration itself.
    pub fixed: Arc<IdentityTable>,
    /// What is claimed, by each source once. In order, so that whoever goes through it can stop
    /// anywhere; and no single change ever has to move all of it.
    pub by_place: BTreeMap<Place, Vec<Claim>>,
    /// Networks whose connections are believed when they say who speaks. Of all listeners: that a device
    /// has its address for those of one scope keeps it from none.
    pub believed: Vec<IpNet>,
    /// Where hubs have clients, and what is kept from them.
    pub nested: Nested,
    /// How many scopes there are.
    pub scopes: u8,
    /// What time it is.
    pub now: UnixMs,
}

/// What a place is published as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'t> {
    /// Nothing is claimed.
    Nobody,
    /// The address of this device.
    Known(Identity<'t>),
    /// More than one device is named.
    Disputed,
    /// Nobody has confirmed it in time; or its device has left it, and who has it since is not known; or
    /// that is so of what it lies in.
    Unconfirmed,
    /// It is nobody's, though it may lie in what is somebody's.
    Withheld,
}

/// What a place of a hub's client lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outer {
    /// A network that the hub lets somebody else use: this device, if it is known who that is.
    Others(Place, Option<DeviceId>),
    /// One of which a report has still to say whose it is, were it the same device's.
    Unclear,
}

impl<'t> Verdict<'t> {
    /// The entry of the identity table; `None`: there is none.
    pub fn entry(self) -> Option<Identity<'t>> {
        let blocked = |account| Identity {
            account,
            name: "",
            serial: "",
        };
        match self {
            Self::Nobody => None,
            Self::Known(identity) => Some(identity),
            Self::Disputed => Some(blocked(Identity::DISPUTED)),
            Self::Unconfirmed => Some(blocked(Identity::UNCONFIRMED)),
            Self::Withheld => Some(blocked(Identity::NOBODY)),
        }
    }
}

impl Claims {
    /// The device that an offer names.
    ///
    /// # Errors
    /// [`Refused`]: there is none, the offer is over, or no device may have what it is of.
    pub fn find(&self, offer: &Offer<'_>) -> Result<DeviceId, Refused> {
        if offer.expires.is_some_and(|expires| expires <= self.now) {
            return Err(Refused::Expired);
        }
        let network = offer.place.network;
        let overlaps = |believed: &IpNet| believed.contains(&network) || network.contains(believed);
        if let Some(believed) = self.believed.iter().find(|believed| overlaps(believed)) {
            let believed = *believed;
            return Err(Refused::Believed { network, believed });
        }
        let (account, device) = (offer.account, offer.device);
        let found = self.directory.find(account, device);
        found.map_err(|absent| match absent {
            Absent::Account => Refused::UnknownAccount(account.into()),
            Absent::Device => Refused::UnknownDevice(account.into(), device.into()),
        })
    }

    /// Whether what `offer` claims is another device's already, at the same network: in its scope,
    /// in that of all, and, if it is for all, in any.
    ///
    /// # Errors
    /// [`Refused::Conflict`]
    pub fn check_holder<'n>(
        &self,
        source: Option<SourceId>,
        epoch: Option<u64>,
        offer: &Offer<'_>,
        device: DeviceId,
        name_of: impl Fn(SourceId) -> &'n str,
    ) -> Result<(), Refused> {
        let network = offer.place.network;
        let identity = self.directory.identity(device);
        let conflict = |holder: (&str, &str), source: &str| Refused::Conflict {
            network,
            holder: (holder.0.into(), holder.1.into()),
            source: source.into(),
        };
        if let Some(fixed) = self.fixed.lookup(network)
            && !is_same(fixed, identity)
        {
            let account = self.directory.reference(fixed.account).unwrap_or_default();
            return Err(conflict((account, fixed.name), CONFIGURATION));
        }
        for place in self.related(offer.place) {
            for claim in self.by_place.get(&place).into_iter().flatten() {
                let newest = Some(claim.source) == source;
                let is_own = newest && place == offer.place;
                // What the source said in an earlier run, or before a restart, has no weight.
                let is_past = newest && epoch.is_some_and(|epoch| epoch > claim.epoch);
                let is_remembered = is_own && claim.standing != Standing::Confirmed;
                // Nor has what another said if that is not believed any more.
                let is_over = !claim.is_believed(self.now);
                let yields = is_past || is_remembered || is_over || (is_own && offer.replace);
                if claim.device != device && !yields {
                    return Err(conflict(
                        self.directory.names(claim.device),
                        name_of(claim.source),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The places whose claims count for `place`, and for which its own count.
    pub fn related(&self, place: Place) -> impl Iterator<Item = Place> + Clone + use<> {
        let others = match place.scope {
            Scope::NONE => 1..=self.scopes,
            _ => 0..=0,
        };
        let others = others.map(move |scope| Place {
            scope: Scope(scope),
            ..place
        });
        std::iter::once(place).chain(others)
    }

    /// What `source` says of `place`.
    pub fn claim(&self, place: Place, source: SourceId) -> Option<&Claim> {
        let claims = self.by_place.get(&place)?;
        claims.iter().find(|claim| claim.source == source)
    }

    /// Likewise, to be changed.
    pub fn claim_mut(&mut self, place: Place, source: SourceId) -> Option<&mut Claim> {
        let claims = self.by_place.get_mut(&place)?;
        claims.iter_mut().find(|claim| claim.source == source)
    }

    /// What follows for `place` from all that is said of it, and around it.
    pub fn verdict(&self, place: Place) -> Verdict<'_> {
        match self.verdict_there(place) {
            Verdict::Known(identity) => match self.outer(place) {
                Some(Outer::Others(..)) => Verdict::Disputed,
                Some(Outer::Unclear) => Verdict::Unconfirmed,
                None => Verdict::Known(identity),
            },
            Verdict::Nobody => match self.nested.withheld(place) {
                Some(Why::Left(_)) => Verdict::Unconfirmed,
                Some(Why::Stranger) => Verdict::Withheld,
                None => Verdict::Nobody,
            },
            verdict => verdict,
        }
    }

    /// What keeps a hub's client from being served at `place`, for it lies in another network of a hub's.
    /// What the configuration or a feed says of `place` is an operator's will, and stands.
    pub fn outer(&self, place: Place) -> Option<Outer> {
        let of_hubs = |place| {
            let claims = self.by_place.get(&place).into_iter().flatten();
            claims.filter(|claim| self.nested.is_hub(claim.source))
        };
        let mut inner = of_hubs(place).map(|claim| claim.device);
        let first = inner.next()?;
        let mut is_unclear = false;
        let around = self
            .related(place)
            .flat_map(|place| self.nested.around(place));
        for wider in around {
            for claim in of_hubs(wider) {
                match claim.is_believed(self.now) {
                    true if claim.device == first => {}
                    true => return Some(Outer::Others(wider, Some(claim.device))),
                    // It may be another's whose it was before.
                    false => is_unclear = true,
                }
            }
            match self.nested.withheld(wider) {
                Some(Why::Stranger) => return Some(Outer::Others(wider, None)),
                Some(Why::Left(_)) => is_unclear = true,
                None => {}
            }
        }
        is_unclear.then_some(Outer::Unclear)
    }

    /// Whether `place` lies in the network of a hub's client.
    pub fn is_surrounded(&self, place: Place) -> bool {
        let mut around = self
            .related(place)
            .flat_map(|place| self.nested.around(place));
        around.next().is_some()
    }

    /// What follows from the claims to this very network.
    fn verdict_there(&self, place: Place) -> Verdict<'_> {
        let own = self.verdict_alone(place);
        if place.scope == Scope::NONE || own == Verdict::Nobody {
            return own;
        }
        let common = self.verdict_alone(Place {
            scope: Scope::NONE,
            ..place
        });
        match (own, common) {
            (Verdict::Known(own), Verdict::Known(common)) if !is_same(own, common) => {
                Verdict::Disputed
            }
            (_, Verdict::Disputed) => Verdict::Disputed,
            _ => own,
        }
    }

    /// Likewise, whatever is said of the same network in another scope. What is not believed any more
    /// counts only where nothing else is said.
    fn verdict_alone(&self, place: Place) -> Verdict<'_> {
        let mut known = match place.scope {
            Scope::NONE => self.fixed.lookup(place.network),
            _ => None,
        };
        let mut is_doubtful = false;
        for claim in self.by_place.get(&place).into_iter().flatten() {
            if !claim.is_believed(self.now) {
                is_doubtful = true;
                continue;
            }
            let identity = self.directory.identity(claim.device);
            if known.is_some_and(|known| !is_same(known, identity)) {
                return Verdict::Disputed;
            }
            known = Some(identity);
        }
        match known {
            Some(identity) => Verdict::Known(identity),
            None if is_doubtful => Verdict::Unconfirmed,
            None => Verdict::Nobody,
        }
    }

    /// The table of one scope, made of all that is said.
    pub fn built(&self, scope: Scope) -> IdentityTable {
        let is_withheld = |place: &Place| self.verdict_there(*place) == Verdict::Nobody;
        let withheld = self.nested.all_withheld().filter(is_withheld);
        let leased = self.by_place.keys().copied().chain(withheld);
        let leased = leased.filter(move |place| place.scope == scope);
        let leased = leased.filter_map(|place| {
            let entry = self.verdict(place).entry()?;
            Some((place.network, entry))
        });
        let common = (scope == Scope::NONE).then(|| self.directory.devices());
        let fixed = common.into_iter().flatten().flat_map(|(account, device)| {
            let identity = Identity {
                account,
                name: device.name,
                serial: device.serial,
            };
            let networks = device.networks.iter();
            networks.map(move |network| (*network, identity))
        });
        let fixed = fixed.filter(move |(network, _)| {
            let network = *network;
            !self.by_place.contains_key(&Place { scope, network })
        });
        IdentityTable::build(leased.chain(fixed)).expect("each network is there once")
    }
}

fn is_same(one: Identity<'_>, other: Identity<'_>) -> bool {
    (one.account, one.name) == (other.account, other.name)
}
