//! Reads `[dns]`: where m2u answers questions for its own names, and with which addresses.
//!
//! Binds nothing and asks nobody; whether an address is this host's shows at the start.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    entry::{Entry, Table},
    problem::Report,
    settings::{Dns, Listen, Slot},
    value,
};
use crate::limits;

const DNS_KEYS: &[&str] = &["listen", "addresses", "slots"];

/// The section; `None` if it is absent, or if something in it is wrong, which is reported.
///
/// `taken` are the listeners of devices, which hold their TCP ports.
pub(super) fn read_dns(root: &Table<'_>, taken: &[Listen], report: &mut Report) -> Option<Dns> {
    let table = root.entry("dns")?.table(DNS_KEYS, "[dns]", report)?;
    let listen = table.required(
        "listen",
        "write the addresses that devices ask: [\"10.8.0.1:53\"]",
        report,
    );
    let listen = listen.map(|entry| read_listen(&entry, taken, report));
    let addresses = table.required(
        "addresses",
        "write what m2u's names resolve to: [\"10.8.0.2\"]",
        report,
    );
    let addresses = addresses.map(|entry| read_addresses(&entry, report));
    let slots = table.entry("slots");
    let slots = slots.map(|entry| read_slots(&entry, report));
    Some(Dns {
        listen: listen?,
        addresses: addresses?,
        slots: slots.unwrap_or_default(),
    })
}

fn read_listen(entry: &Entry<'_>, taken: &[Listen], report: &mut Report) -> Vec<SocketAddr> {
    let what = "addresses: [\"10.8.0.1:53\"]";
    read_array(entry, what, report, |element, report| {
        let address = element.parse(value::dns_listen_address, report)?;
        let is_same = |listen: &&Listen| {
            let ip = listen.address.ip().to_canonical();
            address.port() != 0
                && listen.address.port() == address.port()
                && (ip.is_unspecified() || ip == address.ip().to_canonical())
        };
        if let Some(holder) = taken.iter().find(is_same) {
            let message = format!(
                "{address} is where devices' requests are listened for ({}); choose another port",
                holder.address
            );
            report.add(&element.place, message);
        }
        Some(address)
    })
}

fn read_addresses(entry: &Entry<'_>, report: &mut Report) -> Vec<IpAddr> {
    let addresses = read_array(
        entry,
        "addresses: [\"10.8.0.2\"]",
        report,
        |element, report| element.parse(value::resolved_address, report),
    );
    let most = limits::DNS_ADDRESSES_PER_NAME_MAX;
    if addresses.len() > most {
        let message = format!("has {} addresses; write at most {most}", addresses.len());
        report.add(&entry.place, message);
    }
    addresses
}

fn read_slots(entry: &Entry<'_>, report: &mut Report) -> BTreeMap<Slot, Vec<IpAddr>> {
    let form = "slots = { m2u2 = [\"10.8.0.3\"] }";
    let mut slots = BTreeMap::new();
    for (key, entry) in entry.pairs(form, report).unwrap_or_default() {
        let slot = match value::slot(key) {
            Ok(slot) => slot,
            Err(message) => {
                report.add(&entry.place, message);
                continue;
            }
        };
        // TOML tells keys apart by case, DNS does not.
        if slots.insert(slot, read_addresses(&entry, report)).is_some() {
            report.add(
                &entry.place,
                format!("{slot} stands here twice; leave one out"),
            );
        }
    }
    slots
}

/// What `read` makes of each element; an array that is empty or says something twice is reported.
fn read_array<T: PartialEq + ToString>(
    entry: &Entry<'_>,
    what: &str,
    report: &mut Report,
    read: impl Fn(&Entry<'_>, &mut Report) -> Option<T>,
) -> Vec<T> {
    let Some(elements) = entry.elements(what, report) else {
        return Vec::new();
    };
    if elements.is_empty() {
        report.add(&entry.place, format!("is empty; write an array of {what}"));
    }
    let mut values = Vec::with_capacity(elements.len());
    for element in elements {
        let Some(value) = read(&element, report) else {
            continue;
        };
        if values.contains(&value) {
            let message = format!("{} stands here twice; leave one out", value.to_string());
            report.add(&element.place, message);
        }
        values.push(value);
    }
    values
}
