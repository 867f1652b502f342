//! What sources say of addresses: the words that the table is made of. Decides nothing.

use std::fmt;

use ipnet::IpNet;

use super::directory::DeviceId;
use crate::snapshot::scope::Scope;

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
pub struct SourceId(pub(super) u32);

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
    pub(super) source: SourceId,
    pub(super) device: DeviceId,
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

impl Claim {
    /// Whether it is confirmed, and says just what `offer` does.
    pub(super) fn says(&self, offer: &Offer<'_>, device: DeviceId, epoch: u64) -> bool {
        self.standing == Standing::Confirmed
            && (self.device, self.epoch, self.expires) == (device, epoch, offer.expires)
            && *self.session == *offer.session
    }

    /// Whether it is to be believed at `now`.
    pub(super) fn is_believed(&self, now: UnixMs) -> bool {
        match self.standing {
            Standing::Confirmed => true,
            Standing::Unconfirmed(until) => until > now,
        }
    }
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
    /// Whether nobody is served there until somebody confirms whose it is, or what it lies in.
    pub is_suspended: bool,
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
    /// The network lies in that of another device, which the hub may let speak there as well.
    Nested {
        /// What was claimed.
        network: IpNet,
        /// What it lies in.
        outer: IpNet,
        /// Whose that is, if it is known: account and device.
        holder: Option<(Box<str>, Box<str>)>,
    },
    /// Whoever connects from there may say who speaks, and so could its device: as any other.
    Believed {
        /// What was claimed.
        network: IpNet,
        /// What it overlaps of `proxy_protocol_from`.
        believed: IpNet,
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
    /// The source has no lease of the session.
    NoSession,
    /// The lease there belongs to another session.
    OtherSession(IpNet),
    /// It would have ended already.
    Expired,
    /// The name is the configuration's own, too long, or one too many.
    Source(&'static str),
    /// There are as many leases as there may be; so many.
    Full(usize),
}

impl Refused {
    /// One word for machines.
    pub fn token(&self) -> &'static str {
        match self {
            Self::UnknownAccount(_) => "unknown_account",
            Self::UnknownDevice(..) => "unknown_device",
            Self::Conflict { .. } | Self::Nested { .. } => "conflict",
            Self::Believed { .. } => "believed",
            Self::Repeated(_) => "repeated",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::NoLease(_) | Self::NoSession => "no_lease",
            Self::OtherSession(_) => "other_session",
            Self::Expired => "expired",
            Self::Source(_) => "source",
            Self::Full(_) => "full",
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
            Self::Nested {
                network,
                outer,
                holder: Some((account, device)),
            } => write!(
                f,
                "{network} lies in {outer}, which is the device {device:?}'s of {account:?}: nobody is \
                 served there; give each its own networks (iroute)"
            ),
            Self::Nested { network, outer, .. } => write!(
                f,
                "{network} lies in {outer}, and whose that is is not known: nobody is served there; give \
                 each its own networks (iroute)"
            ),
            Self::Believed { network, believed } => write!(
                f,
                "{network} overlaps {believed} of proxy_protocol_from: whoever has it could speak as any \
                 device; lease another, or have proxy_protocol_from name load balancers only"
            ),
            Self::Repeated(network) => {
                write!(f, "{network} stands twice in the set; leave one out")
            }
            Self::OutOfOrder { newest } => {
                write!(f, "the source has begun anew since, with epoch {newest}")
            }
            Self::NoLease(network) => write!(f, "the source has no lease of {network}"),
            Self::NoSession => f.write_str("the source has no lease of the session"),
            Self::OtherSession(network) => {
                write!(f, "{network} has been leased in another session since")
            }
            Self::Expired => f.write_str("it would end at once; give it more time"),
            Self::Source(why) => f.write_str(why),
            Self::Full(leases_max) => write!(
                f,
                "no more than {leases_max} leases fit; end some that nobody needs"
            ),
        }
    }
}
