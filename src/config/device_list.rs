//! The device list, `devices.csv`: read line by line, then checked as a whole.
//!
//! Built for a million lines. Lines without a quote, all of them as a rule, are cut at their commas;
//! the first that has one goes to the CSV reader with all behind it. What must not be twice is found
//! by sorting. Asks nothing of the network.

use std::{hash::BuildHasher, str, sync::Arc};

use csv::{ByteRecord, ReaderBuilder};
use hashbrown::{DefaultHashBuilder, HashSet};
use ipnet::IpNet;
use memchr::{memchr, memchr_iter, memchr2};

use super::{
    devices::{References, Roster, bounded, taken},
    problem::{Place, Report},
    settings::{Account, Device},
    value,
};

const HEADER: [&str; 4] = ["address", "account", "device", "serial"];
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A list being read into the accounts it names.
pub(super) struct DeviceList<'a> {
    place: Place,
    /// The file that has the accounts.
    config: &'a Arc<str>,
    references: &'a References<'a>,
    accounts: &'a mut [Account],
    report: &'a mut Report,
    /// The account of the line before, which is that of most lines.
    last: Option<(String, usize)>,
    rows: Vec<Written>,
    /// Networks and the rows that claim them.
    claims: Vec<(IpNet, u32)>,
    /// Half a hash of account and name, then the row.
    names: Vec<u64>,
    hasher: DefaultHashBuilder,
    /// The column of the address may be empty.
    pub(super) is_leased: bool,
}

/// Where a row was written, and the device it became.
struct Written {
    account: u32,
    device: u32,
    line: u32,
}

/// Rows that name a device again.
#[derive(Default)]
struct Doubles {
    /// What makes one device of them: account, first device, another.
    joins: Vec<(u32, u32, u32)>,
    /// Rows at odds with the first, and why.
    faults: Vec<(u32, String)>,
}

/// What of a list is still to be read.
struct Rest<'b> {
    bytes: &'b [u8],
    /// The number of its first line.
    line: u64,
    header_seen: bool,
}

impl<'a> DeviceList<'a> {
    /// The list at `place`, for `accounts` of the file `config`.
    pub(super) fn new(
        place: Place,
        config: &'a Arc<str>,
        accounts: &'a mut [Account],
        references: &'a References<'a>,
        report: &'a mut Report,
    ) -> Self {
        Self {
            place,
            config,
            references,
            accounts,
            report,
            last: None,
            rows: Vec::new(),
            claims: Vec::new(),
            names: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            is_leased: false,
        }
    }

    /// Adds what `bytes` hold to the accounts. Each line is checked by itself.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        let lines = memchr_iter(b'\n', bytes).count();
        self.rows.reserve_exact(lines);
        self.claims.reserve_exact(lines);
        self.names.reserve_exact(lines);
        if let [account] = &mut *self.accounts {
            account.devices.reserve(lines, bytes.len());
        }
        let rest = self.read_plain(bytes);
        self.read_quoted(rest);
    }

    /// Reads up to the first line that a split at commas would not do justice to.
    fn read_plain<'b>(&mut self, bytes: &'b [u8]) -> Rest<'b> {
        let mut rest = Rest {
            bytes: bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes),
            line: 1,
            header_seen: false,
        };
        while !rest.bytes.is_empty() {
            let end = memchr(b'\n', rest.bytes).unwrap_or(rest.bytes.len());
            let line = &rest.bytes[..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if !line.is_empty() {
                match plain_columns(line) {
                    Some(columns) if rest.header_seen => {
                        let row = Row::read(self.is_leased, |index| Ok(columns[index]));
                        self.add(row, rest.line);
                    }
                    Some(HEADER) => rest.header_seen = true,
                    _ => break,
                }
            }
            rest.bytes = rest.bytes.get(end + 1..).unwrap_or_default();
            rest.line += 1;
        }
        rest
    }

    /// Reads the rest as CSV has it, with quotes and what may be between them.
    fn read_quoted(&mut self, rest: Rest<'_>) {
        let mut header_seen = rest.header_seen;
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(rest.bytes);
        let mut record = ByteRecord::new();
        // Reading from memory into bytes cannot fail: `flexible` allows any number of columns.
        while let Ok(true) = reader.read_byte_record(&mut record) {
            let line = rest.line - 1 + record_line(rest.bytes, &record);
            if header_seen {
                self.add(Row::of_record(self.is_leased, &record), line);
                continue;
            }
            header_seen = true;
            if let Err(message) = check_header(&record, &HEADER) {
                self.report.add(&self.place.at_line(line), message);
                return;
            }
        }
        if !header_seen {
            self.report
                .add(&self.place, header_advice("is empty", &HEADER));
        }
    }

    fn add(&mut self, row: Result<Row<'_>, Fault>, line: u64) {
        let row = match row {
            Ok(row) => row,
            Err(fault) => return self.refuse(line, fault),
        };
        let Some(account) = self.account(row.account) else {
            if self.references.complete {
                let message = format!(
                    "the account {:?} is not in {}; write the ref of an account there",
                    row.account, self.config
                );
                let place = self.place.at_line(line).at_key("account");
                self.report.add_missing(&place, message);
            }
            return;
        };
        // The list has 1 GiB at most.
        let number = self.rows.len() as u32;
        let devices = &mut self.accounts[account].devices;
        let hash = self.hasher.hash_one((account, row.device));
        self.names
            .push(hash & !u64::from(u32::MAX) | u64::from(number));
        self.claims
            .extend(row.network.map(|network| (network, number)));
        self.rows.push(Written {
            account: account as u32,
            device: devices.len() as u32,
            line: bounded(line),
        });
        devices.push(Device {
            name: row.device,
            serial: row.serial,
            networks: row.network.as_slice(),
        });
    }

    /// The number of the account with this ref.
    fn account(&mut self, reference: &str) -> Option<usize> {
        if let Some((last, account)) = &self.last
            && last == reference
        {
            return Some(*account);
        }
        let (account, _) = self.references.by_name.get(reference)?;
        self.last = Some((reference.to_owned(), *account));
        Some(*account)
    }

    /// Checks what was read as a whole, beside what `roster` has from the configuration.
    ///
    /// Each device then has all its networks. Returns every network, with its line.
    pub(super) fn check(mut self, roster: &Roster) -> Vec<(IpNet, u32)> {
        let refused = self.check_networks(roster);
        self.check_names(roster, refused);
        for (_, row) in &mut self.claims {
            *row = self.rows[*row as usize].line;
        }
        self.claims
    }

    /// Refuses rows whose network another device has, and returns their numbers.
    fn check_networks(&mut self, roster: &Roster) -> HashSet<u32> {
        self.claims.sort_unstable();
        let mut faults = Vec::new();
        for same in self.claims.chunk_by(|a, b| a.0 == b.0) {
            let (network, row) = same[0];
            let (first, others) = match roster.claimed(network) {
                Some(first) => (first, same),
                None if same.len() == 1 => continue,
                None => (self.place_of(row), &same[1..]),
            };
            let message = taken(network, &first);
            faults.extend(others.iter().map(|(_, row)| (*row, message.clone())));
        }
        faults.sort_unstable();
        let rows = faults.into_iter();
        rows.map(|(row, message)| {
            self.refuse(self.line(row), ("address", message));
            row
        })
        .collect()
    }

    /// Joins the rows of each device; refuses those at odds with its first, save `refused` ones.
    fn check_names(&mut self, roster: &Roster, mut refused: HashSet<u32>) {
        for row in 0..self.rows.len() as u32 {
            let device = self.device(row);
            let account = self.rows[row as usize].account as usize;
            let Some(first) = roster.named(account, device.name) else {
                continue;
            };
            if refused.insert(row) {
                let message = format!(
                    "the device {:?} is already at {first}; add this address there",
                    device.name
                );
                self.refuse(self.line(row), ("device", message));
            }
        }
        let doubles = self.find_doubles(&refused);
        for (row, message) in doubles.faults {
            self.refuse(self.line(row), ("serial", message));
        }
        for same in doubles.joins.chunk_by(|a, b| a.0 == b.0) {
            let joins: Vec<_> = same.iter().map(|(_, first, row)| (*first, *row)).collect();
            self.accounts[same[0].0 as usize].devices.join(&joins);
        }
    }

    /// The rows, save `refused` ones, whose device has been named before, in order.
    fn find_doubles(&mut self, refused: &HashSet<u32>) -> Doubles {
        self.names.sort_unstable();
        let mut doubles = Doubles::default();
        let mut firsts = Vec::new();
        for same in self.names.chunk_by(|a, b| a >> 32 == b >> 32) {
            if same.len() == 1 {
                continue;
            }
            firsts.clear();
            for row in same.iter().map(|name| *name as u32) {
                if refused.contains(&row) {
                    continue;
                }
                let (device, written) = (self.device(row), &self.rows[row as usize]);
                let is_same = |first: &u32| {
                    self.rows[*first as usize].account == written.account
                        && self.device(*first).name == device.name
                };
                let Some(first) = firsts.iter().copied().find(is_same) else {
                    firsts.push(row);
                    continue;
                };
                let serial = self.device(first).serial;
                if serial == device.serial {
                    let first = self.rows[first as usize].device;
                    doubles.joins.push((written.account, first, written.device));
                } else {
                    let message = format!(
                        "the device {:?} has the serial {serial:?} at {}; write the same on each \
                         of its lines",
                        device.name,
                        self.place_of(first)
                    );
                    doubles.faults.push((row, message));
                }
            }
        }
        doubles.joins.sort_unstable();
        doubles.faults.sort_unstable();
        doubles
    }

    fn device(&self, row: u32) -> Device<'_> {
        let written = &self.rows[row as usize];
        let account = &self.accounts[written.account as usize];
        account.devices.device(written.device as usize)
    }

    fn line(&self, row: u32) -> u64 {
        self.rows[row as usize].line.into()
    }

    fn place_of(&self, row: u32) -> Place {
        self.place.at_line(self.line(row))
    }

    fn refuse(&mut self, line: u64, (column, message): Fault) {
        let place = self.place.at_line(line).at_key(column);
        self.report.add(&place, message);
    }
}

/// A column at fault, and what is wrong with it.
type Fault = (&'static str, String);

/// One line of the list, checked by itself.
struct Row<'r> {
    network: Option<IpNet>,
    account: &'r str,
    device: &'r str,
    serial: &'r str,
}

impl<'r> Row<'r> {
    /// The row of a CSV record.
    fn of_record(is_leased: bool, record: &'r ByteRecord) -> Result<Self, Fault> {
        if record.len() != HEADER.len() {
            let message = format!(
                "has {} columns; write four: {}",
                record.len(),
                HEADER.join(",")
            );
            return Err(("", message));
        }
        Self::read(is_leased, |index| {
            str::from_utf8(&record[index]).map_err(|_| {
                let message = "is not UTF-8 text; save the file as UTF-8".to_owned();
                (HEADER[index], message)
            })
        })
    }

    fn read(
        is_leased: bool,
        column: impl Fn(usize) -> Result<&'r str, Fault>,
    ) -> Result<Self, Fault> {
        let stamped = |index: usize| {
            let text = column(index)?;
            match value::check_identity(text) {
                Ok(()) => Ok(text),
                Err(message) => Err((HEADER[index], message)),
            }
        };
        let network = match column(0)? {
            "" if is_leased => None,
            text => Some(value::network(text).map_err(|message| (HEADER[0], message))?),
        };
        Ok(Self {
            network,
            account: column(1)?,
            device: stamped(2)?,
            serial: stamped(3)?,
        })
    }
}

/// The columns of a line that CSV would cut at its commas and nowhere else.
fn plain_columns(line: &[u8]) -> Option<[&str; 4]> {
    if memchr2(b'"', b'\r', line).is_some() {
        return None;
    }
    let text = str::from_utf8(line).ok()?;
    let mut commas = memchr_iter(b',', line);
    let (one, two, three) = (commas.next()?, commas.next()?, commas.next()?);
    let columns = [
        &text[..one],
        &text[one + 1..two],
        &text[two + 1..three],
        &text[three + 1..],
    ];
    commas.next().is_none().then_some(columns)
}

/// A message about a list's first line, which must be `header`.
pub(super) fn header_advice(fault: &str, header: &[&str]) -> String {
    format!("{fault}; the first line must be: {}", header.join(","))
}

/// Checks that a list's first line is `header`.
pub(super) fn check_header(record: &ByteRecord, header: &[&str]) -> Result<(), String> {
    if record.iter().eq(header.iter().map(|name| name.as_bytes())) {
        return Ok(());
    }
    let separators = [(b';', "semicolons"), (b'\t', "tabs")];
    let other = separators
        .iter()
        .find(|(byte, _)| record.iter().any(|column| column.contains(byte)));
    let fault = match other {
        Some((_, name)) => format!("has columns separated by {name}, not commas"),
        None => "has another header".to_owned(),
    };
    Err(header_advice(&fault, header))
}

/// The line of `bytes` that a record read from them begins on, from 1.
pub fn record_line(bytes: &[u8], record: &ByteRecord) -> u64 {
    let Some(position) = record.position() else {
        return 1;
    };
    // The reader counts from where it stopped, before blank lines.
    let start = usize::try_from(position.byte()).unwrap_or(bytes.len());
    let blank = bytes.get(start..).unwrap_or_default().iter();
    let skipped = blank
        .take_while(|byte| matches!(byte, b'\r' | b'\n'))
        .filter(|byte| **byte == b'\n');
    position.line() + skipped.count() as u64
}
