//! The snapshot that the targets decide over: a device for every way in which a server can be
//! configured, and what each server is entitled to see, written down by hand.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, OnceLock},
};

use m2u::{
    config::settings::{OnFailure, Scheme, ServerLimits, Slot, Timeouts},
    engine::http1::rewrite::DATE_FIELD_BYTES,
    snapshot::{
        Snapshot,
        identity::IdentityTable,
        route::{AccountId, PoolId, Route, RouteTable, Secret, Stamp, Upstream},
    },
};

/// Fields of a head at most.
pub const FIELDS_MAX: usize = 64;
/// Bytes of a head at most.
pub const HEAD_BYTES_MAX: usize = 2_048;
/// Bytes of a body at most, where the server is strict about it.
pub const BODY_BYTES_SMALL: u64 = 48;
/// What the gateway calls a request that has no name.
pub const REQUEST_ID: [u8; 32] = *b"0123456789abcdef0123456789abcdef";
/// `Date` of answers that came without one.
pub const DATE: [u8; DATE_FIELD_BYTES] = *b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

const LOGIN: &str = "Basic YWNtZTpzZWNyZXQ=";
const VARIANTS: u8 = 64;

/// A device, its account and the servers of that account.
#[derive(Debug, Clone, Copy)]
pub struct Party {
    /// The address that the device speaks from.
    pub source: IpAddr,
    /// The slot of requests that name no host.
    pub slot: Slot,
    variant: u8,
}

impl Party {
    /// The party that the bits of a byte choose; some speak from an address that nobody knows.
    pub fn choose(bits: u8) -> Self {
        let variant = bits & (VARIANTS - 1);
        let host = match bits >> 6 {
            3 => 200,
            _ => 1 + variant,
        };
        let source = match variant & 36 {
            36 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into(),
            _ => Ipv4Addr::new(10, 8, 0, host).into(),
        };
        Self {
            source,
            slot: slot(1 + u16::from(bits >> 6 & 1)),
            variant,
        }
    }

    /// The value of the only `Authorization`, where the server has a login.
    pub fn login(self) -> Option<&'static str> {
        (self.variant & 1 != 0).then_some(LOGIN)
    }

    /// The three values that are stamped: empty where the identity is concealed.
    pub fn identity(self) -> [String; 3] {
        match self.variant & 2 {
            0 => [const { String::new() }; 3],
            _ => [
                account(self.variant),
                device(self.variant),
                serial(self.variant),
            ],
        }
    }

    /// Whether the identity is stamped under hyphenated names as well.
    pub fn has_aliases(self) -> bool {
        self.variant & 4 != 0
    }

    /// Whether the server is told the address that speaks.
    pub fn is_told_addresses(self) -> bool {
        self.variant & 32 != 0
    }

    /// What precedes the device's path.
    pub fn base(self) -> &'static str {
        match self.variant & 8 {
            0 => "",
            _ => "/base/a%20b",
        }
    }

    /// Bytes of a body at most.
    pub fn body_bytes_max(self) -> u64 {
        match self.variant & 16 {
            0 => 1_000_000,
            _ => BODY_BYTES_SMALL,
        }
    }

    /// The `Host` that a server sees.
    pub fn host(self, slot: u16) -> String {
        format!("{}.example:8443", host(slot))
    }
}

fn account(variant: u8) -> String {
    format!("acme-{variant}")
}

fn device(variant: u8) -> String {
    format!("press \u{fc} {variant}")
}

fn serial(variant: u8) -> String {
    format!("1932-0069-{variant}")
}

fn host(slot: u16) -> &'static str {
    match slot {
        1 => "first",
        _ => "second",
    }
}

fn slot(number: u16) -> Slot {
    let name = match number {
        1 => "m2u".to_owned(),
        _ => format!("m2u{number}"),
    };
    Slot::parse(name.as_bytes()).expect("a slot's name")
}

/// The snapshot: every account has the slots `m2u` and `m2u2`, below `talk2m.com`.
pub fn snapshot() -> &'static Snapshot {
    static SNAPSHOT: OnceLock<Snapshot> = OnceLock::new();
    SNAPSHOT.get_or_init(|| {
        let mut identities = IdentityTable::default();
        for variant in 0..VARIANTS {
            let source = Party::choose(variant).source;
            let (device, serial) = (device(variant), serial(variant));
            let account = AccountId(variant.into());
            identities
                .insert(source.into(), account, &device, &serial)
                .expect("an address of its own");
        }
        let variants = 0..VARIANTS;
        let routes = variants.flat_map(|variant| [route(variant, 1), route(variant, 2)]);
        Snapshot {
            identities: identities.into(),
            routes: Arc::new(RouteTable::from_iter(routes)),
            domain: "talk2m.com".into(),
            allow_networks: [].into(),
        }
    })
}

fn route(variant: u8, number: u16) -> Route {
    let party = Party::choose(variant);
    let reference = account(variant);
    Route {
        account: AccountId(variant.into()),
        account_ref: reference.as_str().into(),
        slot: slot(number),
        upstream: Arc::new(Upstream {
            pool: Arc::new(PoolId(u32::from(variant) * 2 + u32::from(number))),
            scheme: Scheme::Http,
            host: format!("{}.example", host(number)).into(),
            port: 8443,
            addresses: Arc::new([]),
            unresolved: None,
            tls: None,
        }),
        host_field: format!("Host: {}\r\n", party.host(number))
            .into_bytes()
            .into(),
        base_path: party.base().as_bytes().into(),
        stamp: match variant & 2 {
            0 => Stamp::Concealed,
            _ => Stamp::Exposed {
                account_field: format!("X_Talk2M_Account: {reference}\r\n")
                    .into_bytes()
                    .into(),
            },
        },
        hyphen_aliases: party.has_aliases(),
        forwarded: party.is_told_addresses(),
        authorization: party
            .login()
            .map(|login| Secret::new(format!("Authorization: {login}\r\n").into_bytes())),
        on_failure: OnFailure::Respond,
        timeouts: Timeouts::default(),
        limits: ServerLimits {
            body_bytes: party.body_bytes_max(),
            ..ServerLimits::default()
        },
    }
}
