//! What is decided about a request before a byte of it is sent: who sent it, where it goes, how it
//! is framed, or why it is refused.
//!
//! Synchronous from end to end, over one snapshot. What a plan holds outlives the request's head.

use std::net::IpAddr;

use super::{
    device::{Device, Noted},
    failure::Failure,
    relay::{BodyError, Intake},
};
use crate::{
    config::settings::Slot,
    engine::{
        http1::{
            authority::{self, Named},
            framing::{Body, Version},
            head::{self, Method, Persist, Request},
            rewrite::{REQUEST_ID_BYTES, UpstreamHead},
            target,
        },
        shard::Shard,
    },
    limits,
    snapshot::{
        Snapshot,
        moved::Mark,
        route::{AccountId, Route},
        scope::{Scope, Unknown},
    },
};

/// A request that will be sent: everything that outlives its head.
#[derive(Debug)]
pub struct Plan<'s> {
    /// Where it goes.
    pub route: &'s Route,
    /// What the method means here.
    pub method: Method,
    /// Version the device speaks.
    pub version: Version,
    /// How the request's body is framed, to the device and to the server alike.
    pub body: Body,
    /// Whether the device wants to go on.
    pub persist: Persist,
    /// Whether the server's connection may carry another request after this one.
    pub upstream: Persist,
    /// Whether the device may be waiting for an interim answer before it sends the body.
    pub expects: bool,
    /// The authority the device used.
    pub authority: Authority,
    /// Who sent it, in a word.
    pub mark: Mark,
    /// The name of the device that did.
    pub device: &'s str,
    /// Bytes that came with, and behind, the head: many if the device does not trickle.
    pub arrived: usize,
}

impl<'s> Plan<'s> {
    /// Who sent the request: the account's *ref* and the device's name.
    pub fn sender(&self) -> (&'s str, &'s str) {
        (&self.route.account_ref, self.device)
    }

    /// Whether the answer has no body whatever its head says.
    pub fn to_head(&self) -> bool {
        self.method == Method::Head
    }
}

/// The authority that a device used, kept to map `Location` back.
///
/// Most names are short; with room for the longest in it, most of what a request moves would be that.
#[derive(Debug)]
pub struct Authority(Kept);

#[derive(Debug)]
enum Kept {
    Nothing,
    /// So many of the bytes.
    Short(u8, [u8; limits::AUTHORITY_BYTES_SHORT]),
    Long(Box<[u8]>),
}

impl Authority {
    /// Keeps `authority`; one that is too long for any name of ours counts as none.
    fn keep(authority: Option<&[u8]>) -> Self {
        Self(match authority {
            None | Some([]) => Kept::Nothing,
            Some(authority) if authority.len() <= limits::AUTHORITY_BYTES_SHORT => {
                let mut bytes = [0; limits::AUTHORITY_BYTES_SHORT];
                bytes[..authority.len()].copy_from_slice(authority);
                Kept::Short(authority.len() as u8, bytes)
            }
            Some(authority) if authority.len() <= limits::AUTHORITY_BYTES_MAX => {
                Kept::Long(authority.into())
            }
            Some(_) => Kept::Nothing,
        })
    }

    /// The bytes as the device wrote them.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Kept::Nothing => None,
            Kept::Short(length, bytes) => Some(&bytes[..usize::from(*length)]),
            Kept::Long(bytes) => Some(bytes),
        }
    }
}

/// A request that will not be sent.
#[derive(Debug, Clone, Copy)]
pub struct Refusal {
    /// Why.
    pub failure: Failure,
    /// Whether the answer must have no body.
    pub to_head: bool,
    /// Whether the connection may go on.
    pub persist: Persist,
    /// Who sent it, in a word, where the connection goes on.
    pub mark: Option<Mark>,
}

impl Refusal {
    /// A refusal after which nothing that the device sent can be made sense of.
    fn closing(failure: Failure) -> Self {
        Self {
            failure,
            to_head: false,
            persist: Persist::Close,
            mark: None,
        }
    }
}

/// Decides everything about a request of `device`, as [`decide`] has it.
///
/// # Errors
/// [`Refusal`]: the request is answered by the gateway, unless its device has gone, and no server hears of it.
pub fn prepare<'s>(
    shard: &Shard,
    snapshot: &'s Snapshot,
    device: &mut Device,
    head_bytes: usize,
    outbox: &mut Vec<u8>,
) -> Result<(Plan<'s>, Intake), Refusal> {
    device.noted.clear();
    let sender = Sender {
        source: device.source,
        scope: device.scope,
        slot: device.slot,
        mark: device.mark,
        fields_max: shard.limits.fields,
        keeps_upstream: shard.pools.keeps_any(),
        noted: shard.is_logging().then_some(&mut device.noted),
    };
    let request_id = || shard.next_request_id();
    let (plan, intake) = decide(
        snapshot,
        sender,
        &mut device.inbox,
        head_bytes,
        request_id,
        outbox,
    )?;
    // It came as the wait for it ended: no more can be received, for which it is not to blame.
    if !intake.is_done() && device.watch.read_expired() && !device.watch.has_bytes() {
        return Err(Refusal::closing(Failure::DeviceGone));
    }
    Ok((plan, intake))
}

/// Who sent a request, and what holds for it before it is read.
#[derive(Debug)]
pub struct Sender<'n> {
    /// The address that speaks.
    pub source: IpAddr,
    /// Whose leases the listener knows.
    pub scope: Scope,
    /// The slot of requests that name no host.
    pub slot: Slot,
    /// Whom the connection was made by, if that is known.
    pub mark: Option<Mark>,
    /// Fields of a head at most.
    pub fields_max: usize,
    /// Whether this core keeps connections for another request to any server that allows it.
    pub keeps_upstream: bool,
    /// Where method and path are kept for the access log, if there is one.
    pub noted: Option<&'n mut Noted>,
}

/// Decides everything about the request whose head is the inbox's first `head_bytes`, and writes
/// its head and what came of its body to `outbox`.
///
/// The head, and the part of the body that came with it, leave the inbox. Answers the plan, and
/// what is still to come of the body. `request_id` is asked only for a request that will be sent.
///
/// # Errors
/// [`Refusal`]: no server may hear of the request, whatever the outbox holds by then.
pub fn decide<'s>(
    snapshot: &'s Snapshot,
    sender: Sender<'_>,
    inbox: &mut Vec<u8>,
    head_bytes: usize,
    request_id: impl FnOnce() -> [u8; REQUEST_ID_BYTES],
    outbox: &mut Vec<u8>,
) -> Result<(Plan<'s>, Intake), Refusal> {
    let (head, rest) = inbox.split_at_mut(head_bytes);
    let mut space = head::field_space();
    let request = Request::parse(head, &mut space, sender.fields_max)
        .map_err(|error| Refusal::closing(error.into()))?;
    let to_head = request.method == Method::Head;
    let refuse = |failure| Refusal {
        to_head,
        ..Refusal::closing(failure)
    };
    if request.method == Method::Refused {
        return Err(refuse(Failure::MethodRefused));
    }
    let malformed = || refuse(Failure::MalformedHead);
    let target = target::parse(request.target).map_err(|_| malformed())?;
    if let Some(noted) = sender.noted {
        noted.keep(request.method_name, target.path);
    }
    let asks_for_all = request.method == Method::Options && target.path.is_empty();
    // RFC 9112 §3.2.4: an absolute form without a path is the asterisk of a server further on.
    let path = if asks_for_all { b"*" } else { target.path };
    if path == b"*" && request.method != Method::Options {
        return Err(malformed());
    }
    let identity = snapshot.identities.resolve(sender.scope, sender.source);
    let identity = identity.map_err(|unknown| refuse(unknown.into()))?;
    let mark = Mark::of(&identity);
    // What comes over a connection was sent by whoever made it, while the address was theirs.
    if sender.mark.is_some_and(|made_by| made_by != mark) {
        return Err(refuse(Failure::MovedLease));
    }

    // A refusal keeps the connection only if nothing of its request is still to come.
    let complete = request.body == Body::Absent || request.body == Body::Length(0);
    let persist = if complete {
        request.persist
    } else {
        Persist::Close
    };
    let outcome = route(&request, &target, snapshot, sender.slot, identity.account);
    let route = match outcome {
        Ok(route) => route,
        Err(failure) if failure.persist() == Persist::Keep && persist == Persist::Keep => {
            let refusal = Refusal {
                failure,
                to_head,
                persist,
                mark: Some(mark),
            };
            inbox.drain(..head_bytes);
            return Err(refusal);
        }
        Err(failure) => return Err(refuse(failure)),
    };
    if target::escapes_base(target.path) {
        return Err(refuse(Failure::EscapesBase));
    }
    if matches!(request.body, Body::Length(length) if length > route.limits.body_bytes) {
        return Err(refuse(Failure::BodyTooLarge));
    }

    let request_id = request_id();
    let keeps = sender.keeps_upstream && route.limits.pool_per_server > 0;
    let upstream = upstream_persist(&request, route, keeps);
    UpstreamHead {
        request: &request,
        path,
        identity: &identity,
        source: sender.source,
        route,
        request_id: &request_id,
        persist: upstream,
    }
    .write(outbox);
    let plan = Plan {
        route,
        method: request.method,
        version: request.version,
        body: request.body,
        persist: request.persist,
        upstream,
        expects: request.expects,
        authority: Authority::keep(target.authority.or(request.host)),
        mark,
        device: identity.name,
        arrived: head_bytes + rest.len(),
    };
    let mut intake = Intake::new(plan.body, route.limits.body_bytes);
    let taken = intake
        .append(rest, outbox, plan.body)
        .map_err(|error| refuse(error.into()))?;
    inbox.drain(..head_bytes + taken);
    Ok((plan, intake))
}

/// Who sends what comes over a device's connection, if that is whose address it is now: the account's *ref*
/// and the device's name.
pub fn sender<'s>(snapshot: &'s Snapshot, device: &Device) -> Option<(&'s str, &'s str)> {
    let identity = snapshot.identities.resolve(device.scope, device.source);
    let identity = identity.ok()?;
    if device
        .mark
        .is_some_and(|made_by| made_by != Mark::of(&identity))
    {
        return None;
    }
    let account = snapshot.routes.account_ref(identity.account);
    Some((account.unwrap_or_default(), identity.name))
}

/// Whether a request leaves the server's connection fit for another device's, if any is kept.
fn upstream_persist(request: &Request<'_, '_>, route: &Route, is_kept: bool) -> Persist {
    let logs_in = request.binds_connection && route.authorization.is_none();
    let has_body = !matches!(request.body, Body::Absent | Body::Length(0));
    // A server that refuses what was announced, or expects nothing, may take a body that comes nevertheless
    // for the next request.
    let may_be_left = has_body && (request.expects || !request.defines_content());
    if logs_in || may_be_left || !is_kept {
        Persist::Close
    } else {
        Persist::Keep
    }
}

/// Finds the server that a request names (specification, section 3).
fn route<'s>(
    request: &Request<'_, '_>,
    target: &target::Target<'_>,
    snapshot: &'s Snapshot,
    slot_of_listener: Slot,
    account: AccountId,
) -> Result<&'s Route, Failure> {
    let resolve = |authority: &[u8]| {
        authority::resolve(authority, &snapshot.domain).map_err(|_| Failure::MalformedHead)
    };
    // A malformed Host is refused even where the target's authority wins over it.
    let host = request.host.map(resolve).transpose()?;
    let named = match target.authority {
        Some(authority) => Some(resolve(authority)?),
        None => host,
    };
    let slot = match named {
        None | Some(Named::Address) => slot_of_listener,
        Some(Named::Slot(slot)) => slot,
        Some(Named::Other) => return Err(Failure::NotOurName),
    };
    let route = snapshot
        .routes
        .resolve(account, slot)
        .ok_or(Failure::NoSuchSlot)?;
    Ok(route)
}

impl From<Unknown> for Failure {
    fn from(unknown: Unknown) -> Self {
        match unknown {
            Unknown::NoLease => Self::NoLease,
            Unknown::Disputed => Self::DisputedLease,
            Unknown::Unconfirmed => Self::UnconfirmedLease,
        }
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Malformed => Self::MalformedBody,
            BodyError::TooLarge => Self::BodyTooLarge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_of_any_length_that_a_name_may_have_is_kept_whole() {
        use limits::{AUTHORITY_BYTES_MAX as MAX, AUTHORITY_BYTES_SHORT as SHORT};
        let long: Vec<u8> = (b'a'..=b'z').cycle().take(MAX + 1).collect();
        for length in [1, SHORT, SHORT + 1, MAX] {
            let kept = Authority::keep(Some(&long[..length]));
            assert_eq!(kept.as_bytes(), Some(&long[..length]));
            assert_eq!(matches!(kept.0, Kept::Long(_)), length > SHORT, "{length}");
        }
        for none in [None, Some(&[][..]), Some(&long[..])] {
            assert_eq!(Authority::keep(none).as_bytes(), None, "{none:?}");
        }
    }
}
