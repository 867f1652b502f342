//! Devices and the addresses that speak for them, wherever they are written.
//!
//! An address or prefix belongs to one device only; each claim remembers where it stands. Reads the
//! configuration's own devices; `device_list` reads the many of `devices.csv`.

use std::path::Path;

use hashbrown::{HashMap, hash_map::Entry as Slot};
use ipnet::IpNet;

use super::{
    device_list::DeviceList,
    entry::{Entry, Table},
    files,
    problem::{Place, Report},
    settings::{Account, Device, Fleet},
    value,
};
use crate::limits;

const DEVICE_KEYS: &[&str] = &["name", "serial", "address"];

/// Who has which address, and where every device was first written down.
pub(super) struct Roster {
    /// Lines of the configuration, by network.
    claims: HashMap<IpNet, u32>,
    /// The same by account, then by the device's name.
    names: Vec<HashMap<Box<str>, u32>>,
    /// Networks of the list, with their lines.
    listed: Vec<(IpNet, u32)>,
    /// The two files that devices are written in.
    config: Place,
    list: Place,
    /// Devices may get their addresses while the gateway runs.
    pub(super) is_leased: bool,
}

/// The accounts that a device list may name.
pub(super) struct References<'a> {
    /// Number and place of each account, by its ref.
    pub(super) by_name: &'a HashMap<String, (usize, Place)>,
    /// Every account has a ref, so that one which is not found does not exist.
    pub(super) complete: bool,
}

/// Where something was written first, by line: the list comes second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Config(u32),
    List(u32),
}

fn line_of(place: &Place) -> u32 {
    bounded(place.line.unwrap_or(0))
}

/// A line's number, kept small.
pub(super) fn bounded(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Roster {
    /// Empty, for devices of the configuration file `config` and of the list `list`.
    ///
    /// `is_leased`: a device needs no address, for one may come while the gateway runs.
    pub(super) fn new(config: Place, list: Place, is_leased: bool) -> Self {
        Self {
            claims: HashMap::new(),
            names: Vec::new(),
            listed: Vec::new(),
            config,
            list,
            is_leased,
        }
    }

    /// Makes room for the devices of one more account.
    pub(super) fn add_account(&mut self) {
        self.names.push(HashMap::new());
    }

    /// Reads the `[[account.device]]` tables of the newest account.
    pub(super) fn read_tables(&mut self, tables: &[Entry<'_>], report: &mut Report) -> Fleet {
        let mut devices = Fleet::default();
        for entry in tables {
            let form = "[[account.device]] with name, serial and address";
            if let Some(table) = entry.table(DEVICE_KEYS, form, report) {
                self.read_table(&table, &mut devices, report);
            }
        }
        devices
    }

    fn read_table(
        &mut self,
        table: &Table<'_>,
        devices: &mut Fleet,
        report: &mut Report,
    ) -> Option<()> {
        let text = |key, advice, report: &mut Report| {
            let entry = table.required(key, advice, report)?;
            let value = entry.parse(value::identity_value, report)?;
            Some((value, entry.place))
        };
        let name = text("name", "write the device's name", report);
        let serial = text("serial", "write the device's serial number", report);
        let advice = "write its VPN address: [\"10.8.0.7\"]";
        let networks = match table.entry("address") {
            None if self.is_leased => Some(Vec::new()),
            _ => table
                .required("address", advice, report)
                .and_then(|entry| self.read_networks(&entry, report)),
        };
        let (name, place) = name?;
        let names = self.names.last_mut().expect("an account was added");
        match names.entry(name.clone().into_boxed_str()) {
            Slot::Vacant(slot) => {
                slot.insert(line_of(&place));
            }
            Slot::Occupied(slot) => {
                let first = self.config.at_line((*slot.get()).into());
                let message = format!(
                    "the device {name:?} is already at {first}; give each device of an account \
                     its own name, and all its addresses in one place"
                );
                report.add(&place, message);
                return None;
            }
        }
        // A device that is refused here keeps its name taken, so that its double is found too.
        devices.push(Device {
            name: &name,
            serial: &serial?.0,
            networks: &networks?,
        });
        Some(())
    }

    fn read_networks(&mut self, entry: &Entry<'_>, report: &mut Report) -> Option<Vec<IpNet>> {
        let elements = entry.elements("addresses: [\"10.8.0.7\", \"192.168.7.0/24\"]", report)?;
        if elements.is_empty() && !self.is_leased {
            report.add(
                &entry.place,
                "is empty; write at least one address or prefix: [\"10.8.0.7\"], or [leases] where \
                 it comes from",
            );
        }
        let mut networks = Vec::with_capacity(elements.len());
        for element in elements {
            let Some(network) = element.parse(value::network, report) else {
                continue;
            };
            match self.claims.entry(network) {
                Slot::Vacant(slot) => {
                    slot.insert(line_of(&element.place));
                    networks.push(network);
                }
                Slot::Occupied(slot) => {
                    let first = self.config.at_line((*slot.get()).into());
                    report.add(&element.place, taken(network, &first));
                }
            }
        }
        Some(networks)
    }

    /// Refuses that `network`, whose peers are believed when they say who speaks, holds an address
    /// of a device: it could speak as any other.
    pub(super) fn check_believed(&self, network: IpNet, place: &Place, report: &mut Report) {
        let overlaps = |device: &IpNet| overlaps_believed(*device, network);
        let written = self.claims.iter();
        let written = written.map(|(device, line)| (*device, Origin::Config(*line)));
        let listed = self.listed.iter();
        let listed = listed.map(|(device, line)| (*device, Origin::List(*line)));
        let claims = written.chain(listed);
        if let Some((device, origin)) = claims.filter(|(device, _)| overlaps(device)).min() {
            let message = format!(
                "{network} overlaps {device}, a device's address at {}; such a device could speak \
                 as any other: name the addresses of load balancers only",
                self.place(origin)
            );
            report.add(place, message);
        }
    }

    fn place(&self, origin: Origin) -> Place {
        match origin {
            Origin::Config(line) => self.config.at_line(line.into()),
            Origin::List(line) => self.list.at_line(line.into()),
        }
    }

    /// Where the configuration gives `network` to a device.
    pub(super) fn claimed(&self, network: IpNet) -> Option<Place> {
        let line = self.claims.get(&network)?;
        Some(self.config.at_line((*line).into()))
    }

    /// Where the configuration names a device of `account` so.
    pub(super) fn named(&self, account: usize, name: &str) -> Option<Place> {
        let line = self.names[account].get(name)?;
        Some(self.config.at_line((*line).into()))
    }

    /// Reads the list at `path`, which the configuration names at `named`, into `accounts`.
    pub(super) fn read_list(
        &mut self,
        path: &Path,
        named: &Place,
        accounts: &mut [Account],
        references: &References<'_>,
        report: &mut Report,
    ) {
        let bytes = match files::read(path, limits::DEVICES_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(fault) => {
                report.add(named, format!("{fault}; write the name of a CSV file"));
                return;
            }
        };
        let mut list =
            DeviceList::new(self.list.clone(), &named.file, accounts, references, report);
        list.is_leased = self.is_leased;
        list.read(&bytes);
        drop(bytes);
        self.listed = list.check(self);
    }
}

/// Whether a device that the configuration gives `device` to could speak as any other, for whoever
/// connects from `believed` is believed when it says who speaks.
pub fn overlaps_believed(device: IpNet, believed: IpNet) -> bool {
    let is_host = device.prefix_len() == device.max_prefix_len();
    // A balancer that is named by itself in both places is meant: it speaks for its own checks.
    let is_balancer = is_host && device == believed;
    !is_balancer && (device.contains(&believed) || believed.contains(&device))
}

/// Says that another device has `network` already.
pub(super) fn taken(network: IpNet, first: &Place) -> String {
    let shown = match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    };
    format!("{shown} already belongs to the device at {first}; give it to one device only")
}
