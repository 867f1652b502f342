//! Whose device an address is by the configuration, and what is stamped on its requests.
//!
//! Asks the same tables as a request does. Knows of no lease: these are the running gateway's.

use std::net::IpAddr;

use ipnet::IpNet;

use super::effective;
use crate::{
    config::settings::{Account, Settings},
    control::reload::Assembly,
    snapshot::{
        Snapshot,
        identity::{self, Identity},
        route::{Route, Stamp},
        scope::Scope,
    },
};

/// What the answer is made of.
pub(super) struct View<'a> {
    pub(super) settings: &'a Settings,
    pub(super) assembly: &'a Assembly,
    pub(super) snapshot: &'a Snapshot,
}

impl View<'_> {
    /// The device at `address`; `None` if there is none.
    pub(super) fn render(&self, address: IpAddr) -> Option<String> {
        let identity = self
            .snapshot
            .identities
            .resolve(Scope::NONE, address)
            .ok()?;
        let account_ref = self.assembly.account_ref(identity.account)?;
        let accounts = &self.settings.accounts;
        let account = accounts.iter().find(|a| a.reference == account_ref)?;
        let lease = lease(account, identity.name, address.to_canonical())?;
        let mut out = format!(
            "address  {address}\nlease    {lease}\naccount  {account_ref}\ndevice   {}\nserial   \
             {}\n",
            identity.name, identity.serial
        );
        if account.servers.is_empty() {
            out.push_str("\nThe account has no server: every request is answered 404.\n");
        }
        for server in &account.servers {
            let route = self
                .snapshot
                .routes
                .resolve(identity.account, server.slot)?;
            out.push_str(&format!("\n{} -> {}\n", server.slot, server.url));
            for line in stamped(route, &identity, address).lines() {
                out.push_str(&format!("    {line}\n"));
            }
        }
        Some(out)
    }
}

/// The network that speaks for the device at `address`.
fn lease(account: &Account, name: &str, address: IpAddr) -> Option<String> {
    let device = account.devices.iter().find(|device| device.name == name)?;
    let networks = device.networks.iter();
    let longest = networks
        .filter(|network| network.contains(&address))
        .max_by_key(|network| network.prefix_len())?;
    let is_exact = longest.prefix_len() == longest.max_prefix_len();
    let kind = if is_exact { "exact" } else { "longest prefix" };
    Some(format!("{} ({kind})", shown(longest)))
}

fn shown(network: &IpNet) -> String {
    effective::network(network)
}

/// The fields that tell `route` who sent a request, from `address`.
fn stamped(route: &Route, identity: &Identity<'_>, address: IpAddr) -> String {
    let mut fields = match &route.stamp {
        Stamp::Exposed { account_field } => {
            let mut fields = account_field.to_vec();
            identity.write_fields(&mut fields);
            fields
        }
        Stamp::Concealed => {
            b"X_Talk2M_Account:\r\nX_Talk2M_Device:\r\nX_Talk2M_SerialNumber:\r\n".to_vec()
        }
    };
    if route.hyphen_aliases {
        let aliases: String = text(&fields).lines().map(alias).collect();
        fields.extend_from_slice(aliases.as_bytes());
    }
    if route.forwarded {
        identity::write_forwarded(address, &mut fields);
    }
    text(&fields)
}

/// Values were checked to be UTF-8 where they entered.
fn text(fields: &[u8]) -> String {
    String::from_utf8_lossy(fields).into_owned()
}

/// The same field under the name that every server lets pass.
fn alias(line: &str) -> String {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    format!("{}:{value}\r\n", name.replace('_', "-"))
}
