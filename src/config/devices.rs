//! Devices and the addresses that speak for them, from the configuration and from `devices.csv`.
//!
//! An address or prefix belongs to one device only, wherever it is written; each claim remembers
//! where it stands. Built for a million lines: one pass, one look-up a line.

use std::{path::Path, str};

use csv::{ByteRecord, ReaderBuilder};
use hashbrown::{HashMap, hash_map::Entry as Slot};
use ipnet::IpNet;

use super::{
    entry::{Entry, Table},
    files,
    problem::{Place, Report},
    settings::{Account, Device},
    value,
};
use crate::limits;

const DEVICE_KEYS: &[&str] = &["name", "serial", "address"];
const HEADER: [&str; 4] = ["address", "account", "device", "serial"];

/// Who has which address, and where every device was first written down.
pub(super) struct Roster {
    claims: HashMap<IpNet, Origin>,
    /// By account, then by the device's name.
    names: Vec<HashMap<Box<str>, Named>>,
    /// The two files that devices are written in.
    config: Place,
    list: Place,
}

/// The accounts that a device list may name.
pub(super) struct References<'a> {
    /// Number and place of each account, by its ref.
    pub(super) by_name: &'a HashMap<String, (usize, Place)>,
    /// Every account has a ref, so that one which is not found does not exist.
    pub(super) complete: bool,
}

/// Where something was written first, by line: kept small, for there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Config(u32),
    List(u32),
}

/// A device's first appearance, and its place among the account's devices.
struct Named {
    origin: Origin,
    index: usize,
}

fn config_origin(place: &Place) -> Origin {
    Origin::Config(bounded(place.line.unwrap_or(0)))
}

fn bounded(line: u64) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

impl Roster {
    /// Empty, for devices of the configuration file `config` and of the list `list`.
    pub(super) fn new(config: Place, list: Place) -> Self {
        Self {
            claims: HashMap::new(),
            names: Vec::new(),
            config,
            list,
        }
    }

    /// Makes room for the devices of one more account.
    pub(super) fn add_account(&mut self) {
        self.names.push(HashMap::new());
    }

    /// Reads the `[[account.device]]` tables of the newest account.
    pub(super) fn read_tables(&mut self, tables: &[Entry<'_>], report: &mut Report) -> Vec<Device> {
        let mut devices = Vec::with_capacity(tables.len());
        for entry in tables {
            let form = "[[account.device]] with name, serial and address";
            if let Some(table) = entry.table(DEVICE_KEYS, form, report)
                && let Some(device) = self.read_table(&table, devices.len(), report)
            {
                devices.push(device);
            }
        }
        devices
    }

    fn read_table(
        &mut self,
        table: &Table<'_>,
        index: usize,
        report: &mut Report,
    ) -> Option<Device> {
        let text = |key, advice, report: &mut Report| {
            let entry = table.required(key, advice, report)?;
            let value = entry.parse(value::identity_value, report)?;
            Some((value, entry.place))
        };
        let name = text("name", "write the device's name", report);
        let serial = text("serial", "write the device's serial number", report);
        let networks = table
            .required("address", "write its VPN address: [\"10.8.0.7\"]", report)
            .and_then(|entry| self.read_networks(&entry, report));
        let (name, place) = name?;
        let names = self.names.last_mut().expect("an account was added");
        match names.entry(name.clone().into_boxed_str()) {
            Slot::Vacant(slot) => {
                let origin = config_origin(&place);
                slot.insert(Named { origin, index });
            }
            Slot::Occupied(slot) => {
                let origin = slot.get().origin;
                let first = self.place(origin);
                let message = format!(
                    "the device {name:?} is already at {first}; give each device of an account \
                     its own name, and all its addresses in one place"
                );
                report.add(&place, message);
                return None;
            }
        }
        // A device that is refused below keeps its name taken, so that its double is found too;
        // its index is never used, since the whole configuration is refused then.
        Some(Device {
            name,
            serial: serial?.0,
            networks: networks?,
        })
    }

    fn read_networks(&mut self, entry: &Entry<'_>, report: &mut Report) -> Option<Vec<IpNet>> {
        let elements = entry.elements("addresses: [\"10.8.0.7\", \"192.168.7.0/24\"]", report)?;
        if elements.is_empty() {
            report.add(
                &entry.place,
                "is empty; write at least one address or prefix: [\"10.8.0.7\"]",
            );
        }
        let mut networks = Vec::with_capacity(elements.len());
        for element in elements {
            let Some(network) = element.parse(value::network, report) else {
                continue;
            };
            let origin = config_origin(&element.place);
            match self.claim(network, origin) {
                Ok(()) => networks.push(network),
                Err(first) => report.add(&element.place, taken(network, &self.place(first))),
            }
        }
        Some(networks)
    }

    /// Refuses that `network`, whose peers are believed when they say who speaks, holds an address
    /// of a device: it could speak as any other.
    pub(super) fn check_believed(&self, network: IpNet, place: &Place, report: &mut Report) {
        // A balancer that is named by itself in both places is meant: it speaks for its own checks.
        let overlaps = |device: &IpNet| {
            *device != network && (device.contains(&network) || network.contains(device))
        };
        let claims = self.claims.iter();
        let first = claims.filter(|(device, _)| overlaps(device)).min();
        if let Some((device, origin)) = first {
            let message = format!(
                "{network} overlaps {device}, a device's address at {}; such a device could speak \
                 as any other: name the addresses of load balancers only",
                self.place(*origin)
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

    fn claim(&mut self, network: IpNet, origin: Origin) -> Result<(), Origin> {
        match self.claims.entry(network) {
            Slot::Vacant(slot) => {
                slot.insert(origin);
                Ok(())
            }
            Slot::Occupied(slot) => Err(*slot.get()),
        }
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
        let list = self.list.clone();
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(bytes.as_slice());
        let mut record = ByteRecord::new();
        let mut header_seen = false;
        // Reading from memory into bytes cannot fail: `flexible` allows any number of columns.
        while let Ok(true) = reader.read_byte_record(&mut record) {
            let line = record_line(&bytes, &record);
            if !header_seen {
                header_seen = true;
                if let Err(message) = check_header(&record) {
                    report.add(&list.at_line(line), message);
                    return;
                }
                continue;
            }
            let row = match Row::read(&record) {
                Ok(row) => row,
                Err((column, message)) => {
                    report.add(&list.at_line(line).at_key(column), message);
                    continue;
                }
            };
            let Some((account, _)) = references.by_name.get(row.account) else {
                let message = format!(
                    "the account {:?} is not in {}; write the ref of an account there",
                    row.account, named.file
                );
                if references.complete {
                    report.add_missing(&list.at_line(line).at_key("account"), message);
                }
                continue;
            };
            let origin = Origin::List(bounded(line));
            let devices = &mut accounts[*account].devices;
            if let Err((column, message)) = self.add_row(&row, *account, origin, devices) {
                report.add(&list.at_line(line).at_key(column), message);
            }
        }
        if !header_seen {
            report.add(&list, header_advice("is empty"));
        }
    }

    fn add_row(
        &mut self,
        row: &Row<'_>,
        account: usize,
        origin: Origin,
        devices: &mut Vec<Device>,
    ) -> Result<(), Fault> {
        self.claim(row.network, origin)
            .map_err(|first| ("address", taken(row.network, &self.place(first))))?;
        let Some(known) = self.names[account].get(row.device) else {
            let index = devices.len();
            self.names[account].insert(row.device.into(), Named { origin, index });
            devices.push(Device {
                name: row.device.to_owned(),
                serial: row.serial.to_owned(),
                networks: vec![row.network],
            });
            return Ok(());
        };
        let first = self.place(known.origin);
        if let Origin::Config(_) = known.origin {
            let message = format!(
                "the device {:?} is already at {first}; add this address there",
                row.device
            );
            return Err(("device", message));
        }
        let device = &mut devices[known.index];
        if device.serial != row.serial {
            let message = format!(
                "the device {:?} has the serial {:?} at {first}; write the same on each of its \
                 lines",
                row.device, device.serial
            );
            return Err(("serial", message));
        }
        device.networks.push(row.network);
        Ok(())
    }
}

/// A column at fault, and what is wrong with it.
type Fault = (&'static str, String);

/// One line of the list, checked by itself.
struct Row<'r> {
    network: IpNet,
    account: &'r str,
    device: &'r str,
    serial: &'r str,
}

impl<'r> Row<'r> {
    fn read(record: &'r ByteRecord) -> Result<Self, Fault> {
        if record.len() != HEADER.len() {
            let message = format!(
                "has {} columns; write four: {}",
                record.len(),
                HEADER.join(",")
            );
            return Err(("", message));
        }
        let column = |index: usize| {
            str::from_utf8(&record[index]).map_err(|_| {
                let message = "is not UTF-8 text; save the file as UTF-8".to_owned();
                (HEADER[index], message)
            })
        };
        let stamped = |index: usize| {
            let text = column(index)?;
            match value::check_identity(text) {
                Ok(()) => Ok(text),
                Err(message) => Err((HEADER[index], message)),
            }
        };
        Ok(Self {
            network: value::network(column(0)?).map_err(|message| (HEADER[0], message))?,
            account: column(1)?,
            device: stamped(2)?,
            serial: stamped(3)?,
        })
    }
}

fn taken(network: IpNet, first: &Place) -> String {
    let shown = match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    };
    format!("{shown} already belongs to the device at {first}; give it to one device only")
}

fn header_advice(fault: &str) -> String {
    format!("{fault}; the first line must be: {}", HEADER.join(","))
}

fn check_header(record: &ByteRecord) -> Result<(), String> {
    if record.iter().eq(HEADER.map(str::as_bytes)) {
        return Ok(());
    }
    let separators = [(b';', "semicolons"), (b'\t', "tabs")];
    let other = separators
        .iter()
        .find(|(byte, _)| record.iter().any(|column| column.contains(byte)));
    Err(match other {
        Some((_, name)) => header_advice(&format!("has columns separated by {name}, not commas")),
        None => header_advice("has another header"),
    })
}

/// The line a record begins on. The reader counts from where it stopped, before blank lines.
fn record_line(bytes: &[u8], record: &ByteRecord) -> u64 {
    let Some(position) = record.position() else {
        return 1;
    };
    let start = usize::try_from(position.byte()).unwrap_or(bytes.len());
    let blank = bytes.get(start..).unwrap_or_default().iter();
    let skipped = blank
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .filter(|byte| **byte == b'\n');
    position.line() + skipped.count() as u64
}
