//! The OpenVPN hubs of the file, `[[openvpn]]`: where each says who is connected, and whose device
//! a client is.
//!
//! Reads the lists that hubs name; asks no hub, for none need run yet.

use std::{
    path::{Path, PathBuf},
    str,
    sync::Arc,
    time::Duration,
};

use csv::{ByteRecord, ReaderBuilder};
use hashbrown::{HashMap, HashSet};

use super::{
    common_names::{CommonNames, Draft, NAMELESS, NameList, Pattern},
    device_list,
    devices::References,
    entry::{Entry, Table},
    files::{self, Folder},
    problem::{Place, Report},
    settings::{Account, Hub, HubStatus, Listen},
    value,
};
use crate::limits;

const HUB_KEYS: &[&str] = &[
    "hub",
    "scope",
    "status",
    "management",
    "poll",
    "common_names",
    "pattern",
    "csv",
];
const FORM: &str = "[[openvpn]] with hub, status or management, and common_names, pattern or csv";
const HEADER: [&str; 3] = ["common_name", "account", "device"];

/// Reads the hubs one after the other; whatever they share is kept here.
pub(super) struct HubReader<'a> {
    folder: &'a Folder,
    /// The file that has the accounts.
    config: &'a Place,
    listen: &'a [Listen],
    accounts: &'a [Account],
    references: References<'a>,
    /// Devices by account and name; made when the first one is looked up.
    devices: Option<HashSet<(usize, &'a str)>>,
    /// Where each hub, and each place to ask, stands.
    hubs: HashMap<String, Place>,
    asked: HashMap<HubStatus, Place>,
    /// Lists read so far. One that failed is kept as `None`, reported once.
    lists: HashMap<PathBuf, Option<Arc<NameList>>>,
}

impl<'a> HubReader<'a> {
    /// For hubs whose clients are devices of `accounts`, which the file `config` has, and which speak
    /// to the listeners `listen`.
    pub(super) fn new(
        folder: &'a Folder,
        config: &'a Place,
        listen: &'a [Listen],
        accounts: &'a [Account],
        references: References<'a>,
    ) -> Self {
        Self {
            folder,
            config,
            listen,
            accounts,
            references,
            devices: None,
            hubs: HashMap::new(),
            asked: HashMap::new(),
            lists: HashMap::new(),
        }
    }

    /// Reads every `[[openvpn]]`. What is refused is left out, under a problem.
    pub(super) fn read_all(&mut self, root: &Table<'_>, report: &mut Report) -> Vec<Hub> {
        let Some(entry) = root.entry("openvpn") else {
            return Vec::new();
        };
        if root.entry("leases").is_none() {
            let message = "stands without [leases]; write it as well, with the socket that hooks \
                           speak to: socket = \"/run/m2u/feed.sock\"";
            report.add_missing(&entry.place, message);
        }
        let tables = entry.elements("tables: [[openvpn]]", report);
        let tables = tables.unwrap_or_default();
        let tables = tables.iter();
        tables
            .filter_map(|entry| {
                let table = entry.table(HUB_KEYS, FORM, report)?;
                self.read(&table, report)
            })
            .collect()
    }

    fn read(&mut self, table: &Table<'_>, report: &mut Report) -> Option<Hub> {
        let name = self.read_name(table, report);
        let scope = table
            .entry("scope")
            .map(|entry| self.read_scope(&entry, report));
        let status = self.read_status(table, report);
        let poll = table.entry("poll").map(|entry| {
            let wanted = "a duration in quotes, such as \"30s\"";
            entry.parse_as(wanted, poll, report)
        });
        let common_names = self.read_common_names(table, report);
        Some(Hub {
            name: name?.into(),
            scope: scope
                .map_or(Some(None), |scope| scope.map(Some))?
                .map(Into::into),
            status: status?,
            poll: poll.unwrap_or(Some(limits::HUB_POLL_DEFAULT))?,
            common_names,
        })
    }

    fn read_name(&mut self, table: &Table<'_>, report: &mut Report) -> Option<String> {
        let advice = "write the name that its hooks have as well, such as \"north\"";
        let entry = table.required("hub", advice, report)?;
        let name = entry.parse(hub_name, report)?;
        if let Some(first) = self.hubs.get(&name) {
            let message = format!(
                "the hub {name:?} is already at {first}; give each hub its own name, for what one \
                 says would end what the other said"
            );
            report.add(&entry.place, message);
            return None;
        }
        self.hubs.insert(name.clone(), entry.place);
        Some(name)
    }

    fn read_scope(&self, entry: &Entry<'_>, report: &mut Report) -> Option<String> {
        let scope = entry.parse(value::identity_value, report)?;
        let mut scopes = self.listen.iter().map(|listen| listen.scope.as_deref());
        if !scopes.any(|known| known == Some(&scope)) {
            let message = format!(
                "no listener has the scope {scope:?}, so that none would know the hub's clients; \
                 write it to one as well: {{ address = \"10.8.0.1:80\", scope = {scope:?} }}"
            );
            report.add(&entry.place, message);
        }
        Some(scope)
    }

    fn read_status(&mut self, table: &Table<'_>, report: &mut Report) -> Option<HubStatus> {
        let (entry, status) = match (table.entry("status"), table.entry("management")) {
            (Some(entry), None) => {
                let status = entry.parse(|name| status_file(name, self.folder), report)?;
                (entry, status)
            }
            (None, Some(entry)) => {
                let status = entry.parse(|text| management(text, self.folder), report)?;
                (entry, status)
            }
            (Some(_), Some(management)) => {
                let message = "stands beside status, which says the same; leave out one of the two";
                report.add(&management.place, message);
                return None;
            }
            (None, None) => {
                let message = "has neither status nor management; write the hub's status file, or \
                               its management socket: without one, nothing repairs what a hook \
                               could not say";
                report.add_missing(&table.place, message);
                return None;
            }
        };
        if let Some(first) = self.asked.get(&status) {
            let message = format!(
                "is what the hub at {first} has; each hub has its own, for the same client would \
                 be taken for one of both"
            );
            report.add(&entry.place, message);
            return None;
        }
        self.asked.insert(status.clone(), entry.place);
        Some(status)
    }

    fn read_common_names(&mut self, table: &Table<'_>, report: &mut Report) -> CommonNames {
        let keys = ["common_names", "pattern", "csv"];
        let [written, pattern, csv] = keys.map(|key| table.entry(key));
        if [&written, &pattern, &csv]
            .iter()
            .all(|entry| entry.is_none())
        {
            let message = "does not say whose device a client is; write common_names, pattern or \
                           csv";
            report.add_missing(&table.place, message);
        }
        CommonNames {
            written: written
                .map(|entry| self.read_written(&entry, report))
                .unwrap_or_default(),
            listed: csv.and_then(|entry| self.read_list(&entry, report)),
            pattern: pattern.and_then(|entry| self.read_pattern(&entry, report)),
        }
    }

    /// `common_names = { "NAME" = "ACCOUNT/DEVICE" }`.
    fn read_written(&mut self, entry: &Entry<'_>, report: &mut Report) -> NameList {
        let form = "common_names = { \"COMMON NAME\" = \"ACCOUNT/DEVICE\" }";
        let mut draft = Draft::new();
        for (name, entry) in entry.pairs(form, report).unwrap_or_default() {
            if let Err(message) = common_name(name) {
                report.add(&entry.place, message);
                continue;
            }
            let device = entry.parse(|text| self.split(text), report);
            if let Some((account, device)) = device {
                self.check_device(&account, &device, &entry.place, report);
                draft.push([name, &account, &device], ());
            }
        }
        // TOML itself allows a key once only.
        draft.finish(|_, (), ()| {})
    }

    /// Account and device of `ACCOUNT/DEVICE`; both may hold slashes, as long as one reading has an
    /// account that exists.
    fn split(&self, text: &str) -> Result<(String, String), String> {
        let splits = text.match_indices('/');
        let mut splits = splits.map(|(at, _)| (&text[..at], &text[at + 1..]));
        let is_known = |(account, _): &(&str, &str)| self.references.by_name.contains_key(*account);
        let known: Vec<_> = splits.clone().filter(is_known).collect();
        match known[..] {
            [(account, device)] => value::identity_value(device)
                .map(|device| (account.to_owned(), device))
                .map_err(|message| format!("has a device that {message}")),
            [(one, _), (other, _), ..] => Err(format!(
                "{text:?} may be a device of {one:?} or of {other:?}; put it into a list, under \
                 csv, which has a column for each"
            )),
            [] => match splits.next() {
                Some((account, device)) if !self.references.complete => {
                    Ok((account.to_owned(), device.to_owned()))
                }
                Some((account, _)) => Err(format!(
                    "the account {account:?} is not in {}; write \"ACCOUNT/DEVICE\" with the ref \
                     of an account there",
                    self.config
                )),
                None => Err(format!(
                    "{text:?} names no device; write \"ACCOUNT/DEVICE\", such as \"acme/press-07\""
                )),
            },
        }
    }

    fn read_pattern(&self, entry: &Entry<'_>, report: &mut Report) -> Option<Pattern> {
        let pattern = entry.parse(Pattern::parse, report)?;
        for account in self.accounts {
            let reference = account.reference.as_str();
            let Some(other) = pattern.mistakes(reference) else {
                continue;
            };
            if self.references.by_name.contains_key(other) {
                let message = format!(
                    "would take devices of the account {reference:?} for those of {other:?}, for \
                     its ref holds {:?}; write another separator, or name its clients in \
                     common_names or csv and leave the pattern out",
                    pattern.separator()
                );
                report.add(&entry.place, message);
            }
        }
        Some(pattern)
    }

    fn read_list(
        &mut self,
        entry: &Entry<'_>,
        report: &mut Report,
    ) -> Option<(PathBuf, Arc<NameList>)> {
        let path = entry.parse(|name| file(name, self.folder), report)?;
        let list = match self.lists.get(&path) {
            Some(known) => known.clone(),
            None => {
                let read = self.read_new_list(&path, entry, report).map(Arc::new);
                self.lists.insert(path.clone(), read.clone());
                read
            }
        };
        Some((path, list?))
    }

    fn read_new_list(
        &mut self,
        path: &Path,
        entry: &Entry<'_>,
        report: &mut Report,
    ) -> Option<NameList> {
        let bytes = files::read(path, limits::HUB_LIST_BYTES_MAX)
            .map_err(|fault| {
                report.add(
                    &entry.place,
                    format!("{fault}; write the name of a CSV file"),
                );
            })
            .ok()?;
        let place = Place::file(path);
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(bytes.as_slice());
        let mut record = ByteRecord::new();
        let mut draft = Draft::new();
        let mut header_seen = false;
        // Reading from memory into bytes cannot fail: `flexible` allows any number of columns.
        while let Ok(true) = reader.read_byte_record(&mut record) {
            let line = device_list::record_line(&bytes, &record);
            if !header_seen {
                header_seen = true;
                if let Err(message) = device_list::check_header(&record, &HEADER) {
                    report.add(&place.at_line(line), message);
                    return None;
                }
                continue;
            }
            match columns(&record) {
                Ok(columns @ [_, account, device]) => {
                    self.check_device(account, device, &place.at_line(line), report);
                    draft.push(columns, line);
                }
                Err((key, message)) => report.add(&place.at_line(line).at_key(key), message),
            }
        }
        if !header_seen {
            report.add(&place, device_list::header_advice("is empty", &HEADER));
        }
        Some(draft.finish(|name, first, another| {
            let message = format!(
                "the common name {name:?} is already at {}; leave one of the lines out",
                place.at_line(*first)
            );
            report.add(&place.at_line(*another).at_key(HEADER[0]), message);
        }))
    }

    /// Reports a device that no account has.
    fn check_device(&mut self, account: &str, device: &str, place: &Place, report: &mut Report) {
        let Some((number, _)) = self.references.by_name.get(account) else {
            if self.references.complete {
                let message = format!(
                    "the account {account:?} is not in {}; write the ref of an account there",
                    self.config
                );
                report.add_missing(place, message);
            }
            return;
        };
        // A device that was refused would be missed here once more.
        if !report.is_fine() {
            return;
        }
        let devices = self.devices.get_or_insert_with(|| {
            let accounts = self.accounts.iter().enumerate();
            let devices = accounts.flat_map(|(number, account)| {
                let devices = account.devices.iter();
                devices.map(move |device| (number, device.name))
            });
            devices.collect()
        });
        if !devices.contains(&(*number, device)) {
            let message = format!(
                "the account {account:?} has no device {device:?}; write the name of one that it \
                 has, or add it to the account's devices"
            );
            report.add(place, message);
        }
    }
}

/// A column at fault, and what is wrong with it.
type Fault = (&'static str, String);

/// The three columns of a list's line, each checked.
fn columns(record: &ByteRecord) -> Result<[&str; 3], Fault> {
    if record.len() != HEADER.len() {
        let (count, header) = (record.len(), HEADER.join(","));
        return Err(("", format!("has {count} columns; write three: {header}")));
    }
    let column = |index: usize| {
        let key = HEADER[index];
        let text = str::from_utf8(&record[index])
            .map_err(|_| (key, "is not UTF-8 text; save the file as UTF-8".to_owned()))?;
        let checked = match index {
            0 => common_name(text),
            _ => value::check_identity(text),
        };
        checked.map(|()| text).map_err(|message| (key, message))
    };
    Ok([column(0)?, column(1)?, column(2)?])
}

fn hub_name(text: &str) -> Result<String, String> {
    let bytes_max = limits::HUB_NAME_BYTES_MAX;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match text.chars().all(is_plain) && (1..=bytes_max).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is no name for a hub; write letters, digits, \"-\", \"_\" and \".\", at \
             most {bytes_max}"
        )),
    }
}

fn common_name(text: &str) -> Result<(), String> {
    let bytes_max = limits::COMMON_NAME_BYTES_MAX;
    match text {
        "" => Err("has no common name; write the one in the client's certificate".to_owned()),
        NAMELESS => Err(format!(
            "{NAMELESS:?} is what OpenVPN calls a client without a name; give it a certificate"
        )),
        _ if text.len() > bytes_max => Err(format!(
            "has a common name of {} bytes; no certificate has more than {bytes_max}",
            text.len()
        )),
        _ if text.chars().any(char::is_control) => {
            Err("has a common name with a control character, which no client can have".to_owned())
        }
        _ => Ok(()),
    }
}

fn poll(text: &str) -> Result<Duration, String> {
    let (floor, ceiling) = (limits::HUB_POLL_FLOOR, limits::HUB_POLL_CEILING);
    let poll = value::duration(text)?;
    match (floor..=ceiling).contains(&poll) {
        true => Ok(poll),
        false => Err(format!(
            "{text:?} is out of range; write a duration from \"{}s\" to \"{}m\"",
            floor.as_secs(),
            ceiling.as_secs() / 60
        )),
    }
}

fn file(name: &str, folder: &Folder) -> Result<PathBuf, String> {
    match name {
        "" => Err("is empty; write the name of a file".to_owned()),
        _ => Ok(folder.join(name)),
    }
}

fn status_file(name: &str, folder: &Folder) -> Result<HubStatus, String> {
    file(name, folder).map(HubStatus::File)
}

/// A Unix socket's path, which has a slash, or HOST:PORT.
fn management(text: &str, folder: &Folder) -> Result<HubStatus, String> {
    if text.contains('/') {
        return Ok(HubStatus::Socket(folder.join(text)));
    }
    let parts = text.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse().ok().filter(|port: &u16| *port > 0)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty() && !host.contains(char::is_whitespace)).then(|| (host.into(), port))
    });
    parts
        .map(|(host, port)| HubStatus::Address(host, port))
        .ok_or_else(|| {
            format!(
                "{text:?} is no management interface; write what the hub's \"management\" says: \
                 the path of its Unix socket, with a \"/\", or \"127.0.0.1:7505\""
            )
        })
}
