//! What the names in a request stand for: a network in a scope, a device, a hub's client.
//!
//! Knows which scopes and hubs there are, not which devices. Changes no lease.

use std::borrow::Cow;

use super::{
    claim::{Offer, Place, UnixMs},
    openvpn::poll::Hubs,
    protocol::{self, Request, Shown},
};
use crate::{
    config::settings::{Hub, Listen},
    limits,
    snapshot::scope::Scope,
};

/// Why a request is not done: in one word, and in a sentence.
pub(super) type Fault = (&'static str, String);

/// The names that requests may use.
#[derive(Debug)]
pub(super) struct Names {
    /// Names of scope 1, 2 …
    scopes: Vec<Box<str>>,
    pub(super) hubs: Hubs,
}

impl Names {
    /// Those of `listen`, and no hubs yet.
    pub(super) fn new(listen: &[Listen]) -> Self {
        Self {
            scopes: Scope::names(listen).into_iter().map(Box::from).collect(),
            hubs: Hubs::new(),
        }
    }

    /// How many scopes have a name.
    pub(super) fn scopes(&self) -> usize {
        self.scopes.len()
    }

    /// The scope that is called `name`; without a name, that of all listeners.
    pub(super) fn scope(&self, name: Option<&str>) -> Result<Scope, Fault> {
        let Some(name) = name else {
            return Ok(Scope::NONE);
        };
        let position = self.scopes.iter().position(|known| **known == *name);
        let position = position.ok_or_else(|| {
            let reason = format!("no listener has the scope {name:?}");
            ("unknown_scope", reason)
        })?;
        Ok(Scope(position as u8 + 1))
    }

    /// How a scope is called.
    pub(super) fn scope_name(&self, scope: Scope) -> Option<&str> {
        let position = usize::from(scope.0).checked_sub(1)?;
        self.scopes.get(position).map(|name| &**name)
    }

    /// Has each hub asked soon that `is_in_doubt`, by the source of its leases; but where no listener has
    /// its scope, for whom no answer settles anything.
    pub(super) fn ask_soon(&self, is_in_doubt: impl Fn(&str) -> bool) {
        self.hubs.ask_soon(|hub, source| {
            is_in_doubt(source) && self.scope(hub.scope.as_deref()).is_ok()
        });
    }

    /// What a request is about; a hub's has the hub's scope unless it names one.
    pub(super) fn place(&self, request: &Request) -> Result<Place, Fault> {
        let address = request.address.as_deref();
        self.place_of(request, address.ok_or_else(|| malformed("has no address"))?)
    }

    fn place_of(&self, request: &Request, address: &str) -> Result<Place, Fault> {
        let network = crate::config::network(address).map_err(malformed)?;
        let hub = request.source.as_deref();
        let hub = hub.and_then(|source| self.hubs.hub(source));
        let scope = request.scope.as_deref();
        let scope = scope.or_else(|| hub?.scope.as_deref());
        Ok(Place {
            scope: self.scope(scope)?,
            network,
        })
    }

    /// What a request to add claims at `now`, for each of its addresses.
    pub(super) fn offers<'r>(
        &'r self,
        request: &'r Request,
        now: UnixMs,
    ) -> Result<Vec<Offer<'r>>, Fault> {
        let addresses_max = limits::FEED_ADDRESSES_MAX;
        let places = match (&request.address, &request.addresses) {
            (_, None) => vec![self.place(request)?],
            (None, Some(addresses)) if (1..=addresses_max).contains(&addresses.len()) => {
                let addresses = addresses.iter();
                let places = addresses.map(|address| self.place_of(request, address));
                places.collect::<Result<_, _>>()?
            }
            _ => {
                let wanted =
                    format!("must have an address, or up to {addresses_max} addresses alone");
                return Err(malformed(wanted));
            }
        };
        let offers = places.into_iter();
        let offers = offers.map(|place| self.offer_of(request, place, now));
        offers.collect()
    }

    /// What a line of a set claims at `now`.
    pub(super) fn offer<'r>(
        &'r self,
        request: &'r Request,
        now: UnixMs,
    ) -> Result<Offer<'r>, Fault> {
        self.offer_of(request, self.place(request)?, now)
    }

    fn offer_of<'r>(
        &'r self,
        request: &'r Request,
        place: Place,
        now: UnixMs,
    ) -> Result<Offer<'r>, Fault> {
        let (account, device) = self.device(request)?;
        let session = request.session.as_deref().unwrap_or_default();
        if !session.is_empty() {
            protocol::check_word("session", session).map_err(malformed)?;
        }
        let expires_in = request.expires_in;
        Ok(Offer {
            place,
            account,
            device,
            session,
            expires: expires_in.map(|seconds| now + u64::from(seconds) * 1_000),
            replace: request.replace,
        })
    }

    /// Whether the source of a lease, if it is a hub, would say the same by the configuration of now:
    /// it may have changed while the gateway was away.
    pub(super) fn still_says(&self, lease: &Shown<'_>) -> bool {
        if !lease.source.starts_with(Hub::SOURCE_PREFIX) {
            return true;
        }
        let hub = self.hubs.hub(&lease.source);
        let session = lease.session.as_deref().unwrap_or_default();
        let device = (&*lease.account, &*lease.device);
        hub.is_some_and(|hub| hub.scope.as_deref() == lease.scope.as_deref())
            && self.still_means(&lease.source, session, device)
    }

    /// Whether a visit at the hub that is called `source` would be this account's and device's by the
    /// configuration of now.
    pub(super) fn still_means(&self, source: &str, session: &str, device: (&str, &str)) -> bool {
        self.hubs.hub(source).is_some_and(|hub| {
            // Without a name, somebody said it in the hub's.
            let name = session.rsplit_once('@').map(|(name, _)| name);
            name.is_none_or(|name| hub.common_names.device(name) == Some(device))
        })
    }

    /// Account and device, as a request has them or as its hub knows them.
    fn device<'r>(&'r self, request: &'r Request) -> Result<(&'r str, &'r str), Fault> {
        let name = match (&request.account, &request.device, &request.common_name) {
            (Some(account), Some(device), None) => return Ok((account, device)),
            (None, None, Some(name)) => name,
            _ => {
                let wanted = "must have an account and a device, or the common name alone";
                return Err(malformed(wanted));
            }
        };
        let source = request.source.as_deref().unwrap_or_default();
        let hub = self.hubs.hub(source).ok_or_else(|| {
            let reason = format!("{source:?} is no hub of the configuration; look at [[openvpn]]");
            ("unknown_hub", reason)
        })?;
        hub.common_names.device(name).ok_or_else(|| {
            let reason = format!(
                "the hub {:?} knows no device under the common name {name:?}; add it to its \
                 common_names or csv",
                hub.name
            );
            ("unknown_common_name", reason)
        })
    }
}

/// Who says it.
pub(super) fn source(request: &Request) -> Result<&str, Fault> {
    let source = request.source.as_deref();
    let source = source.ok_or_else(|| malformed("has no source"))?;
    protocol::check_word("source", source).map_err(malformed)?;
    Ok(source)
}

pub(super) fn malformed(reason: impl Into<Cow<'static, str>>) -> Fault {
    ("malformed", reason.into().into_owned())
}
