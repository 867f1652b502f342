//! Who may speak from which address: the claims of every source, and what follows from them.
//!
//! A source claims a network for a device. As long as all claims to a network agree, its device is
//! known there; if they do not, nobody's requests are served from it. Reads no clock and does no
//! I/O; never settles a conflict by itself.

use std::{collections::BTreeSet, fmt, mem, sync::Arc};

use hashbrown::{HashMap, HashSet};
use ipnet::IpNet;

use super::directory::{Absent, DeviceId, Directory};
use crate::{
    limits,
    snapshot::{
        identity::{Change, Identity, IdentityTable},
        scope::{Identities, Scope},
    },
};

/// The source that the configuration's own addresses count to; no feed may use it.
pub const CONFIGURATION: &str = "config";
/// A table of which a larger part changes at once is built anew: that is cheaper.
const REBUILT_PART: usize = 8;
/// Below so many changes a table is never built anew.
const REBUILT_FLOOR: usize = 1_000;

/// Milliseconds since 1970-01-01 (UTC), by the system's clock.
pub type UnixMs = u64;

/// A network in a scope: what can be leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Whose listeners know it; `Scope::NONE`: all.
    pub scope: Scope,
    /// Address or prefix, host bits zero, IPv4-mapped ones as IPv4.
    pub network: IpNet,
}

/// Number of a source, as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(u32);

/// What a source says: this network speaks for this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// What is claimed.
    pub place: Place,
    /// *ref* of the device's account.
    pub account: &'a str,
    /// The device's name.
    pub device: &'a str,
    /// The visit that it belongs to; a release must name the same. Empty: none.
    pub session: &'a str,
    /// When it ends by itself.
    pub expires: Option<UnixMs>,
    /// Whether it takes over from another device of the same source.
    pub replace: bool,
}

/// Why a change is refused; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// No account has this *ref*.
    UnknownAccount(Box<str>),
    /// The account has no device of this name.
    UnknownDevice(Box<str>, Box<str>),
    /// The network is another device's.
    Conflict {
        /// What was claimed.
        network: IpNet,
        /// Whose it is: account and device.
        holder: (Box<str>, Box<str>),
        /// Which source says so.
        source: Box<str>,
    },
    /// The network stands twice in one set.
    Repeated(IpNet),
    /// It belongs to an earlier run of the source than the newest.
    OutOfOrder {
        /// The newest run.
        newest: u64,
    },
    /// The source has no lease there.
    NoLease(IpNet),
    /// The lease there belongs to another session.
    OtherSession(IpNet),
    /// It would have ended already.
    Expired,
    /// The name is the configuration's own, too long, or one too many.
    Source(&'static str),
    /// There are as many leases as there may be.
    Full,
}

impl Refused {
    /// One word for machines.
    pub fn token(&self) -> &'static str {
        match self {
            Self::UnknownAccount(_) => "unknown_account",
            Self::UnknownDevice(..) => "unknown_device",
            Self::Conflict { .. } => "conflict",
            Self::Repeated(_) => "repeated",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::NoLease(_) => "no_lease",
            Self::OtherSession(_) => "other_session",
            Self::Expired => "expired",
            Self::Source(_) => "source",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownAccount(reference) => {
                write!(
                    f,
                    "no account has the ref {reference:?}; add it to the configuration"
                )
            }
            Self::UnknownDevice(reference, device) => write!(
                f,
                "the account {reference:?} has no device {device:?}; add it to the configuration"
            ),
            Self::Conflict {
                network,
                holder: (account, device),
                source,
            } => write!(
                f,
                "{network} is the device {device:?}'s of {account:?}, says {source}; release it \
                 there first"
            ),
            Self::Repeated(network) => {
                write!(f, "{network} stands twice in the set; leave one out")
            }
            Self::OutOfOrder { newest } => {
                write!(f, "the source has begun anew since, with epoch {newest}")
            }
            Self::NoLease(network) => write!(f, "the source has no lease of {network}"),
            Self::OtherSession(network) => {
                write!(f, "{network} has been leased in another session since")
            }
            Self::Expired => f.write_str("it would end at once; give it more time"),
            Self::Source(why) => f.write_str(why),
            Self::Full => write!(f, "there are {} leases; no more fit", limits::LEASES_MAX),
        }
    }
}

/// What came of a number of changes.
#[derive(Debug)]
pub struct Commit {
    /// Whose addresses are whose from now on.
    pub identities: Identities,
    /// Networks that have another device, or none.
    pub moved: Vec<(Scope, IpNet)>,
    /// Claims that came, went, or changed.
    pub touched: Vec<(Place, SourceId)>,
    /// Number of the newest change.
    pub revision: u64,
}

/// How far a lease is to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The source said so since this process began.
    Confirmed,
    /// It is remembered from before, and holds until then.
    Unconfirmed(UnixMs),
}

/// What one source says of one network.
#[derive(Debug, Clone)]
pub struct Claim {
    source: SourceId,
    device: DeviceId,
    /// The visit that it belongs to; empty: none.
    pub session: Box<str>,
    /// The run of the source that it belongs to.
    pub epoch: u64,
    /// When it ends by itself.
    pub expires: Option<UnixMs>,
    /// How far it is to be believed.
    pub standing: Standing,
    /// When the source said so last.
    pub said: UnixMs,
}

#[derive(Debug)]
struct Source {
    name: Arc<str>,
    epoch: u64,
}

/// A lease as it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Lease<'t> {
    /// What is leased.
    pub place: Place,
    /// The source's name.
    pub source: &'t str,
    /// *ref* of the device's account.
    pub account: &'t str,
    /// The device's name.
    pub device: &'t str,
    /// What the source says of it.
    pub claim: &'t Claim,
    /// Whether another claim says otherwise.
    pub is_disputed: bool,
}

/// Every claim, and the tables that follow from them.
#[derive(Debug, Default)]
pub struct LeaseTable {
    directory: Directory,
    /// The addresses of the configuration itself.
    fixed: Arc<IdentityTable>,
    /// As published: of no scope, then of scope 1, 2 …
    tables: Vec<Arc<IdentityTable>>,
    claims: HashMap<Place, Vec<Claim>>,
    len: usize,
    sources: Vec<Source>,
    by_name: HashMap<Arc<str>, SourceId>,
    /// When claims end, or are no longer believed.
    timers: BTreeSet<(UnixMs, Place, SourceId)>,
    touched: Vec<(Place, SourceId)>,
    /// Places whose published state may have to change.
    stale: HashSet<Place>,
    now: UnixMs,
    revision: u64,
}

/// What a place is published as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict<'t> {
    Nobody,
    Known(Identity<'t>),
    Disputed,
    Unconfirmed,
}

impl<'t> Verdict<'t> {
    /// The entry of the identity table; `None`: there is none.
    fn entry(self) -> Option<Identity<'t>> {
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
        }
    }
}

impl LeaseTable {
    /// No claims yet, for listeners of so many scopes.
    pub fn new(scopes: usize) -> Self {
        Self {
            tables: vec![Arc::default(); scopes + 1],
            ..Self::default()
        }
    }

    /// Leases of all sources.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of the newest change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Goes on counting changes from there, after a restart.
    pub fn resume(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Puts the configuration's devices and addresses in the place of those before; answers the
    /// leases whose device is no longer known, which end.
    pub fn adopt(&mut self, directory: Directory, fixed: Arc<IdentityTable>) -> Vec<String> {
        let before = mem::replace(&mut self.directory, directory);
        self.fixed = fixed;
        let mut ended = Vec::new();
        for (place, claims) in &mut self.claims {
            claims.retain_mut(|claim| {
                let (account, device) = before.names(claim.device);
                match self.directory.find(account, device) {
                    Ok(device) => {
                        claim.device = device;
                        true
                    }
                    Err(_) => {
                        ended.push(format!("{}: {account}/{device}", place.network));
                        self.timers
                            .retain(|(_, of, source)| (*of, *source) != (*place, claim.source));
                        self.touched.push((*place, claim.source));
                        false
                    }
                }
            });
        }
        self.len -= ended.len();
        self.claims.retain(|_, claims| !claims.is_empty());
        // Which of the configuration's addresses changed is not known: compared with what is out.
        for scope in 0..self.tables.len() {
            let scope = Scope(scope as u16);
            self.tables[usize::from(scope.0)] = Arc::new(self.built(scope));
        }
        self.stale.clear();
        ended
    }

    /// Whose addresses are whose now.
    pub fn identities(&self) -> Identities {
        let mut tables = self.tables.iter().cloned();
        let everywhere = tables.next().unwrap_or_default();
        Identities::new(everywhere, tables.collect())
    }

    /// Says what time it is; ends what is over by then.
    pub fn advance(&mut self, now: UnixMs) {
        self.now = self.now.max(now);
        while let Some((at, place, source)) = self.timers.first().copied() {
            if at > self.now {
                break;
            }
            self.timers.pop_first();
            self.stale.insert(place);
            let is_over = self
                .claim(place, source)
                .is_some_and(|claim| claim.expires.is_some_and(|expires| expires <= now));
            if is_over {
                self.remove(place, source);
            }
        }
    }

    /// When [`advance`](Self::advance) has something to do.
    pub fn next_timer(&self) -> Option<UnixMs> {
        self.timers.first().map(|(at, ..)| *at)
    }

    /// Takes a claim of `source` in.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn add(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        offer: &Offer<'_>,
    ) -> Result<(), Refused> {
        let device = self.find(offer)?;
        let known = self.by_name.get(source).copied();
        self.check_epoch(known, epoch)?;
        self.check_holder(known, epoch, offer, device)?;
        if self.len >= limits::LEASES_MAX {
            return Err(Refused::Full);
        }
        let source = self.source(source)?;
        self.begin_epoch(source, epoch);
        self.put(source, offer, device);
        Ok(())
    }

    /// Takes a claim of `source` back.
    ///
    /// `session` must be the claim's own; `None` says that it does not matter.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed.
    pub fn release(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        place: Place,
        session: Option<&str>,
    ) -> Result<(), Refused> {
        let known = self.by_name.get(source).copied();
        self.check_epoch(known, epoch)?;
        let claim = known.and_then(|source| Some((source, self.claim(place, source)?)));
        let (source, claim) = claim.ok_or(Refused::NoLease(place.network))?;
        if session.is_some_and(|session| *session != *claim.session) {
            return Err(Refused::OtherSession(place.network));
        }
        self.remove(place, source);
        Ok(())
    }

    /// Puts `offers` in the place of all that `source` has claimed, at once.
    ///
    /// # Errors
    /// [`Refused`] with the position of the offer at fault; nothing has changed.
    pub fn sync(
        &mut self,
        source: &str,
        epoch: Option<u64>,
        offers: &[Offer<'_>],
    ) -> Result<(), (usize, Refused)> {
        let known = self.by_name.get(source).copied();
        let whole = |refused| (0, refused);
        self.check_epoch(known, epoch).map_err(whole)?;
        let mut wanted = HashMap::with_capacity(offers.len());
        for (position, offer) in offers.iter().enumerate() {
            let at = |refused| (position, refused);
            let device = self.find(offer).map_err(at)?;
            // A set takes over from whatever the source said before.
            let offer = Offer {
                replace: true,
                ..*offer
            };
            self.check_holder(known, epoch, &offer, device)
                .map_err(at)?;
            if wanted.insert(offer.place, (offer, device)).is_some() {
                return Err(at(Refused::Repeated(offer.place.network)));
            }
        }
        if let Some(refused) = self.check_pairs(&wanted) {
            return Err(whole(refused));
        }
        if self.len + wanted.len() > limits::LEASES_MAX {
            return Err(whole(Refused::Full));
        }
        let source = self.source(source).map_err(whole)?;
        self.begin_epoch(source, epoch);
        for place in self.places_of(source) {
            if !wanted.contains_key(&place) {
                self.remove(place, source);
            }
        }
        for (offer, device) in wanted.into_values() {
            self.put(source, &offer, device);
        }
        Ok(())
    }

    /// Brings the claims of `source` in line with what it was seen to have at `as_of`; what it said
    /// since then stays. What contradicts other sources is taken in as well: nobody is served there
    /// until they agree. Answers what could not be taken in.
    pub fn reconcile(&mut self, source: &str, as_of: UnixMs, offers: &[Offer<'_>]) -> Vec<Refused> {
        let mut refused = Vec::new();
        let source = match self.source(source) {
            Ok(source) => source,
            Err(error) => return vec![error],
        };
        let mut seen = HashSet::with_capacity(offers.len());
        for offer in offers {
            seen.insert(offer.place);
            let claim = self.claim(offer.place, source);
            if claim.is_some_and(|claim| claim.said > as_of) {
                continue;
            }
            match self.find(offer) {
                Ok(device) if self.len < limits::LEASES_MAX => {
                    if let Err(conflict) = self.check_holder(Some(source), None, offer, device) {
                        refused.push(conflict);
                    }
                    self.put(source, offer, device);
                }
                Ok(_) => refused.push(Refused::Full),
                Err(error) => {
                    refused.push(error);
                    seen.remove(&offer.place);
                }
            }
        }
        for place in self.places_of(source) {
            let claim = self.claim(place, source);
            let is_old = claim.is_some_and(|claim| claim.said <= as_of);
            if is_old && !seen.contains(&place) {
                self.remove(place, source);
            }
        }
        refused
    }

    /// Takes a claim in that is remembered from before a restart, and believed until `until`.
    ///
    /// # Errors
    /// [`Refused`]: it is not known any more, or is over.
    pub fn restore(
        &mut self,
        source: &str,
        epoch: u64,
        offer: &Offer<'_>,
        until: UnixMs,
    ) -> Result<(), Refused> {
        let device = self.find(offer)?;
        let source = self.source(source)?;
        let newest = &mut self.sources[source.0 as usize].epoch;
        *newest = epoch.max(*newest);
        self.put(source, offer, device);
        let claim = self.claim_mut(offer.place, source).expect("put just now");
        claim.epoch = epoch;
        claim.standing = Standing::Unconfirmed(until);
        self.timers.insert((until, offer.place, source));
        Ok(())
    }

    /// Notes the newest run of a source, as remembered from before a restart.
    pub fn restore_epoch(&mut self, source: &str, epoch: u64) {
        if let Ok(source) = self.source(source) {
            let newest = &mut self.sources[source.0 as usize].epoch;
            *newest = epoch.max(*newest);
        }
    }

    /// What came of all changes since this was asked last; `None` if there were none.
    pub fn commit(&mut self) -> Option<Commit> {
        if self.stale.is_empty() && self.touched.is_empty() {
            return None;
        }
        self.revision += 1;
        let mut stale = mem::take(&mut self.stale);
        let mut moved = Vec::new();
        for number in 0..self.tables.len() {
            let scope = Scope(number as u16);
            let table = Arc::clone(&self.tables[number]);
            let places = stale.iter().filter(|place| place.scope == scope);
            let mut changes = Vec::new();
            for place in places {
                let entry = self.verdict(*place).entry();
                if table.lookup(place.network) != entry {
                    changes.push(change(place.network, entry));
                    moved.push((scope, place.network));
                }
            }
            if changes.is_empty() {
                continue;
            }
            let many = REBUILT_FLOOR.max(table.len() / REBUILT_PART);
            self.tables[number] = Arc::new(match changes.len() > many {
                true => self.built(scope),
                false => table.with_changes(changes),
            });
        }
        stale.clear();
        self.stale = stale; // For its room.
        Some(Commit {
            identities: self.identities(),
            moved,
            touched: mem::take(&mut self.touched),
            revision: self.revision,
        })
    }

    /// What `source` says of `place`.
    pub fn lease(&self, place: Place, source: SourceId) -> Option<Lease<'_>> {
        let claim = self.claim(place, source)?;
        Some(self.shown(place, claim))
    }

    /// All leases, in no order.
    pub fn leases(&self) -> impl Iterator<Item = Lease<'_>> {
        self.claims.iter().flat_map(|(place, claims)| {
            let claims = claims.iter();
            claims.map(|claim| self.shown(*place, claim))
        })
    }

    /// The name of a source, and its newest run.
    pub fn source_of(&self, source: SourceId) -> (&str, u64) {
        let source = &self.sources[source.0 as usize];
        (&source.name, source.epoch)
    }

    /// Every source, with its newest run.
    pub fn sources(&self) -> impl Iterator<Item = (&str, u64)> {
        let sources = self.sources.iter();
        sources.map(|source| (&*source.name, source.epoch))
    }

    fn shown<'t>(&'t self, place: Place, claim: &'t Claim) -> Lease<'t> {
        let (account, device) = self.directory.names(claim.device);
        Lease {
            place,
            source: &self.sources[claim.source.0 as usize].name,
            account,
            device,
            claim,
            is_disputed: self.verdict(place) == Verdict::Disputed,
        }
    }

    fn find(&self, offer: &Offer<'_>) -> Result<DeviceId, Refused> {
        if offer.expires.is_some_and(|expires| expires <= self.now) {
            return Err(Refused::Expired);
        }
        let (account, device) = (offer.account, offer.device);
        let found = self.directory.find(account, device);
        found.map_err(|absent| match absent {
            Absent::Account => Refused::UnknownAccount(account.into()),
            Absent::Device => Refused::UnknownDevice(account.into(), device.into()),
        })
    }

    fn check_epoch(&self, source: Option<SourceId>, epoch: Option<u64>) -> Result<(), Refused> {
        let newest = source.map_or(0, |source| self.sources[source.0 as usize].epoch);
        match epoch {
            Some(epoch) if epoch < newest => Err(Refused::OutOfOrder { newest }),
            _ => Ok(()),
        }
    }

    /// Whether what `offer` claims is another device's already, at the same network: in its scope,
    /// in that of all, and, if it is for all, in any.
    fn check_holder(
        &self,
        source: Option<SourceId>,
        epoch: Option<u64>,
        offer: &Offer<'_>,
        device: DeviceId,
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
            for claim in self.claims.get(&place).into_iter().flatten() {
                let newest = Some(claim.source) == source;
                let is_own = newest && place == offer.place;
                // What the source said in an earlier run, or before a restart, has no weight.
                let is_past = newest && epoch.is_some_and(|epoch| epoch > claim.epoch);
                let is_remembered = is_own && claim.standing != Standing::Confirmed;
                let yields = is_past || is_remembered || (is_own && offer.replace);
                if claim.device != device && !yields {
                    let source = &self.sources[claim.source.0 as usize].name;
                    return Err(conflict(self.directory.names(claim.device), source));
                }
            }
        }
        Ok(())
    }

    /// A network that a set gives to one device for all listeners and to another in a scope.
    fn check_pairs(&self, wanted: &HashMap<Place, (Offer<'_>, DeviceId)>) -> Option<Refused> {
        let scoped = wanted
            .iter()
            .filter(|(place, _)| place.scope != Scope::NONE);
        for (place, (_, device)) in scoped {
            let common = Place {
                scope: Scope::NONE,
                ..*place
            };
            if let Some((_, other)) = wanted.get(&common)
                && other != device
            {
                return Some(Refused::Repeated(place.network));
            }
        }
        None
    }

    /// The places whose claims count for `place`, and for which its own count.
    fn related(&self, place: Place) -> impl Iterator<Item = Place> + use<> {
        let others = match place.scope {
            Scope::NONE => 1..self.tables.len() as u16,
            _ => 0..1,
        };
        let others = others.map(move |scope| Place {
            scope: Scope(scope),
            ..place
        });
        std::iter::once(place).chain(others)
    }

    /// The number of the source that is called `name`, which is new if need be.
    fn source(&mut self, name: &str) -> Result<SourceId, Refused> {
        if let Some(source) = self.by_name.get(name) {
            return Ok(*source);
        }
        if name == CONFIGURATION {
            return Err(Refused::Source(
                "\"config\" is the configuration's own; use another name",
            ));
        }
        if self.sources.len() >= limits::LEASE_SOURCES_MAX {
            return Err(Refused::Source(
                "there are too many sources; use names again",
            ));
        }
        let source = SourceId(self.sources.len() as u32);
        let name: Arc<str> = name.into();
        self.by_name.insert(Arc::clone(&name), source);
        self.sources.push(Source { name, epoch: 0 });
        Ok(source)
    }

    /// Ends what `source` claimed in earlier runs than `epoch`.
    fn begin_epoch(&mut self, source: SourceId, epoch: Option<u64>) {
        let newest = self.sources[source.0 as usize].epoch;
        let Some(epoch) = epoch.filter(|epoch| *epoch > newest) else {
            return;
        };
        self.sources[source.0 as usize].epoch = epoch;
        for place in self.places_of(source) {
            self.remove(place, source);
        }
    }

    fn places_of(&self, source: SourceId) -> Vec<Place> {
        let claims = self.claims.iter();
        let own = claims.filter(|(_, claims)| claims.iter().any(|claim| claim.source == source));
        own.map(|(place, _)| *place).collect()
    }

    fn claim(&self, place: Place, source: SourceId) -> Option<&Claim> {
        let claims = self.claims.get(&place)?;
        claims.iter().find(|claim| claim.source == source)
    }

    fn claim_mut(&mut self, place: Place, source: SourceId) -> Option<&mut Claim> {
        let claims = self.claims.get_mut(&place)?;
        claims.iter_mut().find(|claim| claim.source == source)
    }

    fn put(&mut self, source: SourceId, offer: &Offer<'_>, device: DeviceId) {
        let place = offer.place;
        self.forget_timers(place, source);
        let claim = Claim {
            source,
            device,
            session: offer.session.into(),
            epoch: self.sources[source.0 as usize].epoch,
            expires: offer.expires,
            standing: Standing::Confirmed,
            said: self.now,
        };
        let claims = self.claims.entry(place).or_default();
        match claims.iter_mut().find(|claim| claim.source == source) {
            Some(known) => *known = claim,
            None => {
                claims.push(claim);
                self.len += 1;
            }
        }
        if let Some(expires) = offer.expires {
            self.timers.insert((expires, place, source));
        }
        self.touch(place, source);
    }

    fn remove(&mut self, place: Place, source: SourceId) {
        self.forget_timers(place, source);
        let Some(claims) = self.claims.get_mut(&place) else {
            return;
        };
        let before = claims.len();
        claims.retain(|claim| claim.source != source);
        self.len -= before - claims.len();
        if claims.is_empty() {
            self.claims.remove(&place);
        }
        self.touch(place, source);
    }

    fn forget_timers(&mut self, place: Place, source: SourceId) {
        let Some(claim) = self.claim(place, source) else {
            return;
        };
        let until = match claim.standing {
            Standing::Unconfirmed(until) => Some(until),
            Standing::Confirmed => None,
        };
        for at in [claim.expires, until].into_iter().flatten() {
            self.timers.remove(&(at, place, source));
        }
    }

    fn touch(&mut self, place: Place, source: SourceId) {
        self.touched.push((place, source));
        let related = self.related(place);
        self.stale.extend(related);
    }

    /// What follows for `place` from all that is said of it.
    fn verdict(&self, place: Place) -> Verdict<'_> {
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

    /// Likewise, whatever is said of the same network in another scope.
    fn verdict_alone(&self, place: Place) -> Verdict<'_> {
        let fixed = match place.scope {
            Scope::NONE => self.fixed.lookup(place.network),
            _ => None,
        };
        let mut known = fixed;
        let mut is_believed = fixed.is_some();
        for claim in self.claims.get(&place).into_iter().flatten() {
            let identity = self.directory.identity(claim.device);
            if known.is_some_and(|known| !is_same(known, identity)) {
                return Verdict::Disputed;
            }
            known = Some(identity);
            is_believed |= match claim.standing {
                Standing::Confirmed => true,
                Standing::Unconfirmed(until) => until > self.now,
            };
        }
        match known {
            None => Verdict::Nobody,
            Some(_) if !is_believed => Verdict::Unconfirmed,
            Some(identity) => Verdict::Known(identity),
        }
    }

    /// The table of one scope, made of all that is said.
    fn built(&self, scope: Scope) -> IdentityTable {
        let leased = self.claims.keys().filter(move |place| place.scope == scope);
        let leased = leased.filter_map(|place| {
            let entry = self.verdict(*place).entry()?;
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
            !self.claims.contains_key(&Place { scope, network })
        });
        IdentityTable::build(leased.chain(fixed)).expect("each network is there once")
    }
}

fn is_same(one: Identity<'_>, other: Identity<'_>) -> bool {
    (one.account, one.name) == (other.account, other.name)
}

fn change(network: IpNet, entry: Option<Identity<'_>>) -> Change<'_> {
    match entry {
        None => Change::Release { network },
        Some(Identity {
            account,
            name,
            serial,
        }) => Change::Assign {
            network,
            account,
            name,
            serial,
        },
    }
}
