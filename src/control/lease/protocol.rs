//! The words of the feed: one JSON object a line, each way, over a Unix socket.
//!
//! Stable: other programs write it. A request is [`Request`]; a reply is [`Reply`], one for each
//! request in the same order, sent when every core sees the change. Does no I/O.

use std::borrow::Cow;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::claim::{Lease, Standing, UnixMs};
use crate::limits;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A network speaks for a device from now on.
    Add,
    /// It does so no longer; without an address, nothing of the session does.
    Release,
    /// What follows, up to `commit`, is all that the source has.
    Sync,
    /// Ends a `sync`, which takes effect at once.
    Commit,
    /// Shows leases, one a line, before the reply.
    List,
    /// Shows every change from now on, one a line, after the reply.
    Watch,
}

/// One line to the gateway. Within a `sync`, lines have no `op`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub op: Option<Op>,
    /// Comes back with the reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Who says so, such as `manual`; `list`: only this one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Address or prefix; `list`: those that hold it, or lie in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `add`, in place of one: several, all of which are taken in, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<Vec<String>>,
    /// The listeners' scope that it is known in; absent: everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// *ref* of the device's account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// The device's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// In place of both: the common name, for a source that is an OpenVPN hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_name: Option<String>,
    /// The visit that the lease belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `release`: whatever the session is.
    #[serde(default, skip_serializing_if = "is_false")]
    pub any_session: bool,
    /// The run of the source; what is older than the newest is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Seconds after which it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u32>,
    /// `add`: take over from another device of the same source.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replace: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// One line to whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// The request's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Number of the newest change; every core sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Leases shown before, or taken in by a `sync`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Number of the line of a set that is at fault, the first behind `sync` being 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Why not, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'static, str>>,
    /// Why not, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Reply {
    /// It was done.
    pub fn done(id: Option<u64>, revision: u64) -> Self {
        Self {
            ok: true,
            id,
            revision: Some(revision),
            count: None,
            line: None,
            error: None,
            reason: None,
        }
    }

    /// It was not.
    pub fn refused(id: Option<u64>, error: &'static str, reason: impl Into<String>) -> Self {
        Self {
            ok: false,
            id,
            revision: None,
            count: None,
            line: None,
            error: Some(error.into()),
            reason: Some(reason.into()),
        }
    }
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its source said so since the gateway started.
    Confirmed,
    /// It is remembered from before, and served for a while.
    Unconfirmed,
    /// Likewise, for too long; or the hub has to say first whose it is, or whose the network around it:
    /// its requests are answered 503.
    Suspended,
    /// Another source names another device: its requests are answered 403.
    Disputed,
}

/// A lease as it is shown, and as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown<'a> {
    /// Address or prefix.
    pub address: Cow<'a, str>,
    /// The listeners' scope that it is known in; absent: everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Cow<'a, str>>,
    /// Who says so.
    pub source: Cow<'a, str>,
    /// *ref* of the device's account.
    pub account: Cow<'a, str>,
    /// The device's name.
    pub device: Cow<'a, str>,
    /// The visit that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Cow<'a, str>>,
    /// The run of the source that it belongs to; 0: none was named.
    pub epoch: u64,
    /// When it ends by itself, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<UnixMs>,
    /// While nobody has confirmed it: until when it is served all the same, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<UnixMs>,
    /// How it stands.
    pub state: State,
}

impl<'a> Shown<'a> {
    /// The lease as it stands at `now`; `scope` is the name of its scope.
    pub fn new(lease: &Lease<'a>, scope: Option<&'a str>, now: UnixMs) -> Self {
        let claim = lease.claim;
        let state = match claim.standing {
            _ if lease.is_disputed => State::Disputed,
            _ if lease.is_suspended => State::Suspended,
            Standing::Confirmed => State::Confirmed,
            Standing::Unconfirmed(until) if until > now => State::Unconfirmed,
            Standing::Unconfirmed(_) => State::Suspended,
        };
        let until_ms = match claim.standing {
            Standing::Confirmed => None,
            Standing::Unconfirmed(until) => Some(until),
        };
        Self {
            address: written(lease.place.network).into(),
            scope: scope.map(Cow::Borrowed),
            source: lease.source.into(),
            account: lease.account.into(),
            device: lease.device.into(),
            session: (!claim.session.is_empty()).then_some(Cow::Borrowed(&*claim.session)),
            epoch: claim.epoch,
            expires_ms: claim.expires,
            until_ms,
            state,
        }
    }
}

/// A line of `list`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed<'a> {
    /// One lease.
    pub lease: Shown<'a>,
}

/// A line of `watch`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event<'a> {
    /// What happened.
    pub event: Happening,
    /// Number of the change; several may share one.
    pub revision: u64,
    /// The lease as it is now; of one that ended, only whose it was and where.
    pub lease: Changed<'a>,
}

/// What happened to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// It came, or its source said something new of it.
    Leased,
    /// It went.
    Ended,
}

/// The lease of an event.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Changed<'a> {
    /// All of it.
    Whole(Shown<'a>),
    /// Where it was.
    Place {
        /// Address or prefix.
        address: String,
        /// The listeners' scope that it was known in; absent: everywhere.
        #[serde(skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// Who had said so.
        source: String,
    },
}

/// A network as people write it: one address without its prefix length.
pub fn written(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

/// Reads a request.
///
/// # Errors
/// A sentence that says what is wrong with the line.
pub fn parse(line: &[u8]) -> Result<Request, String> {
    let request: Request =
        serde_json::from_slice(line).map_err(|error| format!("is no request: {error}"))?;
    match &request.addresses {
        Some(_) if request.op != Some(Op::Add) => {
            Err("has addresses, which are an add's alone; name one address".to_owned())
        }
        _ => Ok(request),
    }
}

/// Checks what identifies a source or a session.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub fn check_word(name: &str, text: &str) -> Result<(), String> {
    let bytes_max = limits::LEASE_WORD_BYTES_MAX;
    match text {
        "" => Err(format!("{name} is empty")),
        _ if text.len() > bytes_max => Err(format!("{name} is longer than {bytes_max} bytes")),
        _ if text.chars().any(char::is_control) => Err(format!("{name} holds a control character")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_is_written() {
        let line = br#"{"op":"add","id":7,"source":"manual","address":"10.8.0.7","account":"acme",
            "device":"press-07","session":"s1","epoch":3,"expires_in":600,"replace":true}"#;
        let request = parse(line).expect("a request");
        assert_eq!(request.op, Some(Op::Add));
        assert_eq!(request.address.as_deref(), Some("10.8.0.7"));
        assert_eq!((request.epoch, request.expires_in), (Some(3), Some(600)));
        assert!(request.replace && !request.any_session);
        let again = serde_json::to_string(&request).expect("written");
        assert_eq!(parse(again.as_bytes()), Ok(request));
    }

    #[test]
    fn what_is_no_request_is_told_why() {
        for (line, word) in [
            ("", "EOF"),
            ("[]", "invalid"),
            ("{\"op\":\"grab\"}", "unknown variant"),
            ("{\"op\":\"add\",\"adress\":\"10.8.0.7\"}", "unknown field"),
            ("{\"op\":\"add\",\"epoch\":-1}", "invalid value"),
            ("{\"op\":\"add\"} {}", "trailing"),
            ("{\"op\":\"add\",\"op\":\"add\"}", "duplicate field"),
            ("{\"op\":\"list\",\"addresses\":[]}", "an add's alone"),
            ("{\"addresses\":[\"10.8.0.7\"]}", "an add's alone"),
        ] {
            let error = parse(line.as_bytes()).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
        assert!(parse(b"{\"op\":\"add\",\"source\":\"\xff\"}").is_err());
    }
}
