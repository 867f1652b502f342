//! The accounts of the file: their servers, logins and devices.
//!
//! Reads password files, and never shows what they hold.

use std::{net::SocketAddr, path::Path, sync::Arc};

use hashbrown::HashMap;

use super::{
    certificates::Certificates,
    devices::{References, Roster},
    entry::{Entry, Table},
    files::{self, Folder},
    gateway::{self, Defaults},
    problem::{Place, Report},
    server_url,
    settings::{
        Account, ClientCertificate, Login, OnFailure, Scheme, Server, ServerLimits, Slot, Timeouts,
    },
    value,
};
use crate::limits;

const ACCOUNT_KEYS: &[&str] = &["ref", "expose_identity", "server", "device"];
const SERVER_KEYS: &[&str] = &[
    "slot",
    "url",
    "login",
    "client_certificate",
    "client_key",
    "ca",
    "crl",
    "hyphen_aliases",
    "forwarded",
    "on_failure",
    "address",
    "timeouts",
    "limits",
];
const LOGIN_KEYS: &[&str] = &["username", "password", "password_file"];
const LOGIN_FORM: &str =
    "login = { username = \"…\", password = \"…\" }, or password_file instead of password";

/// Reads the accounts one after the other; whatever they share is kept here.
pub(super) struct AccountReader<'f> {
    pub(super) folder: &'f Folder,
    pub(super) defaults: Defaults,
    /// The gateway's own certificate, for servers that have none.
    pub(super) client_certificate: Option<Arc<ClientCertificate>>,
    pub(super) certificates: Certificates<'f>,
    pub(super) roster: Roster,
    /// Where each account stands, by its ref.
    pub(super) by_reference: HashMap<String, (usize, Place)>,
    /// Some account has no ref, so that one which seems unknown may be that.
    pub(super) unnamed: bool,
}

impl AccountReader<'_> {
    /// Reads every `[[account]]`. What is refused is left out, under a problem.
    pub(super) fn read_all(&mut self, root: &Table<'_>, report: &mut Report) -> Vec<Account> {
        const FORM: &str = "[[account]] with a ref";
        let advice = "write at least one [[account]] with a ref";
        let Some(entry) = root.required("account", advice, report) else {
            return Vec::new();
        };
        let tables = entry.elements("tables: [[account]]", report);
        if tables.as_ref().is_some_and(Vec::is_empty) {
            report.add(&entry.place, format!("is empty; {advice}"));
        }
        let tables = tables.unwrap_or_default();
        let mut accounts = Vec::with_capacity(tables.len());
        for entry in &tables {
            if let Some(table) = entry.table(ACCOUNT_KEYS, FORM, report) {
                accounts.push(self.read_account(&table, accounts.len(), report));
            }
        }
        accounts
    }

    /// Reads the device list at `path`, which the file names at `named`, into `accounts`.
    pub(super) fn read_list(
        &mut self,
        path: &Path,
        named: &Place,
        accounts: &mut [Account],
        report: &mut Report,
    ) {
        let references = References {
            by_name: &self.by_reference,
            complete: !self.unnamed,
        };
        self.roster
            .read_list(path, named, accounts, &references, report);
    }

    fn read_account(&mut self, table: &Table<'_>, index: usize, report: &mut Report) -> Account {
        let reference = table
            .required("ref", "write the value stamped as X_Talk2M_Account", report)
            .and_then(|entry| self.read_reference(&entry, index, report));
        self.unnamed |= reference.is_none();
        let expose_identity = table
            .entry("expose_identity")
            .and_then(|entry| entry.boolean(report));
        let servers = table
            .entry("server")
            .and_then(|entry| entry.elements("tables: [[account.server]]", report))
            .map(|tables| self.read_servers(&tables, report));
        self.roster.add_account();
        let devices = table
            .entry("device")
            .and_then(|entry| entry.elements("tables: [[account.device]]", report))
            .map(|tables| self.roster.read_tables(&tables, report));
        Account {
            reference: reference.unwrap_or_default(),
            expose_identity: expose_identity.unwrap_or(true),
            servers: servers.unwrap_or_default(),
            devices: devices.unwrap_or_default(),
        }
    }

    fn read_reference(
        &mut self,
        entry: &Entry<'_>,
        index: usize,
        report: &mut Report,
    ) -> Option<String> {
        let written = entry.parse(|text| Ok(text.to_owned()), report)?;
        if let Err(message) = value::identity_value(&written) {
            report.add(&entry.place, message);
        }
        // A refused ref counts as well: the device list need not be refused for the same slip.
        let visible = written.replace(char::is_control, "");
        let reference = visible.trim().to_owned();
        if let Some((_, first)) = self.by_reference.get(&reference) {
            let message = format!(
                "the account {reference:?} is already at {first}; give each account its own ref"
            );
            report.add(&entry.place, message);
        } else {
            let standing = (index, entry.place.clone());
            self.by_reference.insert(reference.clone(), standing);
        }
        Some(reference)
    }

    fn read_servers(&mut self, tables: &[Entry<'_>], report: &mut Report) -> Vec<Server> {
        let mut servers = Vec::with_capacity(tables.len());
        let mut slots: HashMap<Slot, Place> = HashMap::new();
        for entry in tables {
            let form = "[[account.server]] with a url";
            let Some(table) = entry.table(SERVER_KEYS, form, report) else {
                continue;
            };
            let server = self.read_server(&table, &mut slots, report);
            servers.extend(server);
        }
        servers
    }

    fn read_server(
        &mut self,
        table: &Table<'_>,
        slots: &mut HashMap<Slot, Place>,
        report: &mut Report,
    ) -> Option<Server> {
        let slot = read_slot(table, slots, report);
        let url = table
            .required(
                "url",
                "write where requests go: \"https://HOST/BASE\"",
                report,
            )
            .and_then(|entry| entry.parse(server_url::parse, report));
        let port = url.as_ref().map_or(443, |url| url.port);
        let flag = |key, report: &mut Report| table.entry(key)?.boolean(report);
        let hyphen_aliases = flag("hyphen_aliases", report);
        let forwarded = flag("forwarded", report);
        let on_failure = table
            .entry("on_failure")
            .and_then(|entry| entry.parse(value::on_failure, report));
        let login = table
            .entry("login")
            .and_then(|entry| self.read_login(&entry, report));
        let own_certificate =
            gateway::read_client_certificate(table, &mut self.certificates, report);
        let trust = table
            .entry("ca")
            .and_then(|entry| self.certificates.trust(&entry, report));
        let is_plain = url.as_ref().is_some_and(|url| url.scheme == Scheme::Http);
        let revoked = table.entry("crl").and_then(|entry| match is_plain {
            true => {
                let message = "does nothing for a server that shows no certificate; leave it out, or \
                               write https:// in its url";
                report.add_doubt(&entry.place, message);
                None
            }
            false => self.certificates.revocations(&entry, report),
        });
        let addresses = table
            .entry("address")
            .and_then(|entry| read_addresses(&entry, port, report));
        Some(Server {
            slot: slot?,
            login,
            client_certificate: own_certificate.or_else(|| self.client_certificate.clone()),
            trust,
            revoked,
            hyphen_aliases: hyphen_aliases.unwrap_or(false),
            forwarded: forwarded.unwrap_or(false),
            on_failure: on_failure.unwrap_or(OnFailure::Respond),
            addresses: addresses.unwrap_or_default(),
            timeouts: self.read_timeouts(table, report),
            limits: self.read_limits(table, report),
            url: url?,
        })
    }

    fn read_timeouts(&self, table: &Table<'_>, report: &mut Report) -> Timeouts {
        let mut timeouts = self.defaults.timeouts;
        let form = "timeouts = { connect = \"2s\", response = \"10s\" }";
        let table = table
            .entry("timeouts")
            .and_then(|entry| entry.table(gateway::TIMEOUT_KEYS, form, report));
        if let Some(table) = table {
            gateway::read_timeouts(&table, &mut timeouts, report);
            let server_has_no_say = ["head", "keepalive", "drain"];
            report_gateway_wide(&table, &server_has_no_say, "timeouts", report);
        }
        timeouts
    }

    fn read_limits(&self, table: &Table<'_>, report: &mut Report) -> ServerLimits {
        let mut limits = self.defaults.limits;
        let table = table.entry("limits").and_then(|entry| {
            entry.table(
                gateway::LIMIT_KEYS,
                "limits = { body_bytes = 1048576, pool_per_server = 8 }",
                report,
            )
        });
        if let Some(table) = table {
            gateway::read_limits(&table, &mut limits, report);
            let server_has_no_say: Vec<_> = gateway::LIMIT_KEYS
                .iter()
                .copied()
                .filter(|key| !gateway::SERVER_LIMIT_KEYS.contains(key))
                .collect();
            report_gateway_wide(&table, &server_has_no_say, "limits", report);
        }
        limits.each_server
    }

    fn read_login(&self, entry: &Entry<'_>, report: &mut Report) -> Option<Login> {
        let table = entry.table(LOGIN_KEYS, LOGIN_FORM, report)?;
        let username = table
            .required("username", "write the user name", report)
            .and_then(|entry| entry.parse(username, report));
        let password = match (table.entry("password"), table.entry("password_file")) {
            (Some(entry), None) => entry.parse(password, report),
            (None, Some(entry)) => entry.parse(|name| self.read_password_file(name), report),
            (Some(_), Some(file)) => {
                report.add(
                    &file.place,
                    "stands beside password; leave out one of the two",
                );
                None
            }
            (None, None) => {
                let message = "has neither password nor password_file; write one of the two";
                report.add_missing(&table.place, message);
                None
            }
        };
        let login = Login {
            username: username?,
            password: password?,
        };
        let raw_bytes = login.username.len() + 1 + login.password.len();
        let line_bytes = "Authorization: Basic \r\n".len() + raw_bytes.div_ceil(3) * 4;
        if line_bytes > limits::LOGIN_BYTES_MAX {
            let message = format!(
                "makes an Authorization field of {line_bytes} bytes; shorten it to at most {}",
                limits::LOGIN_BYTES_MAX
            );
            report.add(&table.place, message);
        }
        Some(login)
    }

    fn read_password_file(&self, name: &str) -> Result<String, String> {
        let path = self.folder.join(name);
        let shown = path.display();
        let bytes = files::read(&path, limits::PASSWORD_FILE_BYTES_MAX).map_err(|fault| {
            format!("{fault}; write the name of a file with the password alone")
        })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| format!("the file \"{shown}\" is not UTF-8 text"))?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line {
            "" => Err(format!(
                "the file \"{shown}\" is empty; put the password there"
            )),
            _ => password(line).map_err(|_| {
                format!(
                    "the file \"{shown}\" holds more than one line or a control character; \
                put the password there alone"
                )
            }),
        }
    }
}

fn read_slot(
    table: &Table<'_>,
    slots: &mut HashMap<Slot, Place>,
    report: &mut Report,
) -> Option<Slot> {
    let (slot, place) = match table.entry("slot") {
        Some(entry) => (entry.parse(value::slot, report)?, entry.place),
        None => (Slot::FIRST, table.place.clone()),
    };
    if let Some(first) = slots.get(&slot) {
        let message = format!(
            "overlapping slots: {slot} is already at {first}; give each server of an account its \
             own slot"
        );
        report.add(&place, message);
        return None;
    }
    slots.insert(slot, place);
    Some(slot)
}

fn read_addresses(entry: &Entry<'_>, port: u16, report: &mut Report) -> Option<Vec<SocketAddr>> {
    let elements = entry.elements("addresses: [\"203.0.113.7:8443\"]", report)?;
    if elements.len() > limits::ADDRESSES_PER_UPSTREAM_MAX {
        let message = format!(
            "has {} addresses; write at most {}",
            elements.len(),
            limits::ADDRESSES_PER_UPSTREAM_MAX
        );
        report.add(&entry.place, message);
    }
    let mut addresses = Vec::with_capacity(elements.len());
    for element in elements {
        let read = |text: &str| value::upstream_address(text, port);
        let Some(address) = element.parse(read, report) else {
            continue;
        };
        if addresses.contains(&address) {
            report.add(
                &element.place,
                format!("{address} stands here twice; leave one out"),
            );
        }
        addresses.push(address);
    }
    Some(addresses)
}

/// Reports settings that take effect before a server is chosen, or for all servers at once.
fn report_gateway_wide(table: &Table<'_>, keys: &[&str], section: &str, report: &mut Report) {
    for key in keys {
        if let Some(entry) = table.entry(key) {
            let message = format!("applies to the whole gateway; write it under [{section}]");
            report.add(&entry.place, message);
        }
    }
}

/// A user name of Basic authentication (RFC 7617 §2).
fn username(text: &str) -> Result<String, String> {
    if text.contains(':') {
        return Err("holds a colon, which ends the user name on the wire; leave it out".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character; write visible text only".to_owned());
    }
    Ok(text.to_owned())
}

/// A password of Basic authentication (RFC 7617 §2), which no message shows.
fn password(text: &str) -> Result<String, String> {
    match text.chars().any(char::is_control) {
        true => Err("holds a control character; write visible text only".to_owned()),
        false => Ok(text.to_owned()),
    }
}
