//! Turns file and flags into settings: what concerns the gateway as a whole, and the order of it.
//!
//! Everything is read before anything is given up, so that all mistakes are found at once.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hashbrown::HashMap;
use ipnet::IpNet;

use super::{
    account::AccountReader,
    certificates::Certificates,
    devices::{References, Roster},
    dns::read_dns,
    document::Document,
    entry::{Entry, Table},
    files::Folder,
    flags::Overrides,
    leases,
    openvpn::HubReader,
    problem::{Place, Problem, Report},
    settings::{AccessLog, ClientCertificate, Limits, Listen, LogFormat, Settings, Slot, Timeouts},
    value,
};
use crate::limits;

/// Keys of the file that stand in no table.
pub(super) const ROOT_KEYS: &[&str] = &[
    "domain",
    "listen",
    "devices",
    "timeouts",
    "limits",
    "access_log",
    "upstream",
    "dns",
    "leases",
    "openvpn",
    "account",
];
const LISTEN_KEYS: &[&str] = &["address", "slot", "scope", "proxy_protocol_from"];
const ACCESS_LOG_KEYS: &[&str] = &["path", "format"];
const UPSTREAM_KEYS: &[&str] = &["allow_networks", "client_certificate", "client_key"];

/// Keys of `[timeouts]`.
pub(super) const TIMEOUT_KEYS: &[&str] = &[
    "head",
    "body",
    "connect",
    "response",
    "keepalive",
    "pool",
    "drain",
];
/// Keys of `[limits]`.
pub(super) const LIMIT_KEYS: &[&str] = &[
    "head_bytes",
    "fields",
    "body_bytes",
    "connections",
    "connections_per_address",
    "pool_per_server",
];

/// Those of them that a server may have of its own.
pub(super) const SERVER_LIMIT_KEYS: &[&str] = &["body_bytes", "pool_per_server"];

/// What applies where a server does not set its own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defaults {
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
}

/// Reads the configuration at `path`, with `overrides` from the command line in force.
///
/// # Errors
/// Every problem of the file and of those it names, in the order of their lines.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Settings, Vec<Problem>> {
    let mut report = Report::default();
    let settings = assemble(path, overrides, &mut report);
    match settings {
        Some(settings) if report.is_fine() => Ok(Settings {
            doubts: report.into_problems(),
            ..settings
        }),
        _ => Err(report.into_problems()),
    }
}

fn assemble(path: &Path, overrides: &Overrides, report: &mut Report) -> Option<Settings> {
    let document = Document::read(path, report)?;
    let entries = document.parse(report);
    let root = Table::root(&document, &entries, ROOT_KEYS, report);
    let folder = Folder::of(path);

    let domain = root
        .entry("domain")
        .and_then(|entry| entry.parse(value::domain, report));
    let listeners = read_listen(&root, overrides, report);
    let defaults = read_defaults(&root, report);
    let access_log = read_access_log(&root, &folder, report);
    let leases = leases::read(&root, &folder, report);
    let dns = read_dns(&root, &listeners.listen, report);
    let mut certificates = Certificates::new(&folder);
    let (allow_networks, client_certificate) = read_upstream(&root, &mut certificates, report);
    let devices = root.entry("devices");
    let list = devices.and_then(|entry| {
        let name = entry.parse(file_name, report)?;
        Some((folder.join(&name), entry.place))
    });
    let list_place = list
        .as_ref()
        .map_or(root.place.clone(), |(path, _)| Place::file(path));
    let mut reader = AccountReader {
        folder: &folder,
        defaults,
        client_certificate,
        certificates,
        roster: Roster::new(
            root.place.clone(),
            list_place,
            root.entry("leases").is_some(),
        ),
        by_reference: HashMap::new(),
        unnamed: false,
    };
    let mut accounts = reader.read_all(&root, report);
    if let Some((path, named)) = list {
        reader.read_list(&path, &named, &mut accounts, report);
    }
    let references = References {
        by_name: &reader.by_reference,
        complete: !reader.unnamed,
    };
    let openvpn = HubReader::new(
        &folder,
        &root.place,
        &listeners.listen,
        &accounts,
        references,
    )
    .read_all(&root, report);
    for (network, place) in &listeners.believed {
        reader.roster.check_believed(*network, place, report);
    }
    overrides.check_cores(report);

    Some(Settings {
        domain: overrides.domain.clone().or(domain),
        listen: listeners.listen,
        timeouts: defaults.timeouts,
        limits: defaults.limits,
        access_log,
        dns,
        allow_networks,
        leases,
        openvpn,
        accounts,
        tuning: overrides.tuning(),
        doubts: Vec::new(),
    })
}

fn read_listen(root: &Table<'_>, overrides: &Overrides, report: &mut Report) -> Listeners {
    let advice = "write the addresses that devices reach: [\"10.8.0.2:80\"]";
    let entry = match overrides.listen.is_empty() {
        true => root.required("listen", advice, report),
        false => root.entry("listen"),
    };
    let what = "addresses: [\"10.8.0.2:80\"]";
    let elements = entry
        .as_ref()
        .and_then(|entry| entry.elements(what, report));
    if let (Some(entry), Some([])) = (&entry, elements.as_deref())
        && overrides.listen.is_empty()
    {
        report.add(&entry.place, format!("is empty; {advice}"));
    }
    let mut written = Listeners::default();
    for element in elements.unwrap_or_default() {
        if let Some((listen, place)) = read_listener(&element, &mut written.believed, report) {
            written.add(listen, place, report);
        }
    }
    check_scopes(&written, report);
    if overrides.listen.is_empty() {
        return written;
    }
    let mut replaced = Listeners::default();
    for address in &overrides.listen {
        let listen = Listen {
            address: *address,
            slot: Slot::FIRST,
            scope: None,
            proxy_protocol_from: Vec::new(),
        };
        replaced.add(listen, Place::flag("--listen"), report);
    }
    replaced
}

/// Reports the first listener whose scope is one too many.
fn check_scopes(listeners: &Listeners, report: &mut Report) {
    let mut scopes: Vec<&str> = Vec::new();
    for listen in &listeners.listen {
        let Some(scope) = listen
            .scope
            .as_deref()
            .filter(|name| !scopes.contains(name))
        else {
            continue;
        };
        scopes.push(scope);
        if scopes.len() == limits::SCOPES_MAX + 1 {
            let place = listeners.places.get(&listen.address);
            let message = format!(
                "is the scope one too many; write at most {}",
                limits::SCOPES_MAX
            );
            let root = Place::flag("listen");
            report.add(place.unwrap_or(&root), message);
        }
    }
}

/// Listeners so far; each address once.
#[derive(Default)]
struct Listeners {
    listen: Vec<Listen>,
    places: HashMap<SocketAddr, Place>,
    /// Networks whose peers say by the PROXY protocol who speaks.
    believed: Vec<(IpNet, Place)>,
}

impl Listeners {
    fn add(&mut self, listen: Listen, place: Place, report: &mut Report) {
        let address = listen.address;
        let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
        // The kernel chooses another port each time, so port 0 may repeat.
        if let Some(first) = self.places.get(&canonical).filter(|_| address.port() != 0) {
            let message = format!("{address} is already at {first}; listen on each address once");
            report.add(&place, message);
        }
        self.places.entry(canonical).or_insert(place);
        self.listen.push(listen);
    }
}

fn read_listener(
    element: &Entry<'_>,
    believed: &mut Vec<(IpNet, Place)>,
    report: &mut Report,
) -> Option<(Listen, Place)> {
    if !element.is_table() {
        let address = element.parse(value::listen_address, report)?;
        let listen = Listen {
            address,
            slot: Slot::FIRST,
            scope: None,
            proxy_protocol_from: Vec::new(),
        };
        return Some((listen, element.place.clone()));
    }
    let table = element.table(LISTEN_KEYS, "{ address = \"10.8.0.2:80\" }", report)?;
    let address = table.required("address", "write ADDRESS:PORT: \"10.8.0.2:80\"", report);
    let place = address
        .as_ref()
        .map_or(element.place.clone(), |entry| entry.place.clone());
    let address = address.and_then(|entry| entry.parse(value::listen_address, report));
    let slot = match table.entry("slot") {
        Some(entry) => entry.parse(value::slot, report),
        None => Some(Slot::FIRST),
    };
    let scope = table
        .entry("scope")
        .and_then(|entry| entry.parse(value::identity_value, report));
    let peers = table
        .entry("proxy_protocol_from")
        .map(|entry| read_networks(&entry, report))
        .unwrap_or_default();
    let listen = Listen {
        address: address?,
        slot: slot?,
        scope: scope.map(String::into_boxed_str),
        proxy_protocol_from: peers.iter().map(|(network, _)| *network).collect(),
    };
    believed.extend(peers);
    Some((listen, place))
}

/// Networks, each with the place where it is written.
fn read_networks(entry: &Entry<'_>, report: &mut Report) -> Vec<(IpNet, Place)> {
    let what = "networks: [\"10.9.0.0/24\"]";
    let elements = entry.elements(what, report).unwrap_or_default();
    let mut networks: Vec<(IpNet, Place)> = Vec::with_capacity(elements.len());
    for element in elements {
        let Some(network) = element.parse(value::network, report) else {
            continue;
        };
        if networks.iter().any(|(known, _)| *known == network) {
            report.add(
                &element.place,
                format!("{network} stands here twice; leave one out"),
            );
        }
        networks.push((network, element.place));
    }
    networks
}

fn read_defaults(root: &Table<'_>, report: &mut Report) -> Defaults {
    let mut defaults = Defaults::default();
    let timeouts = root
        .entry("timeouts")
        .and_then(|entry| entry.table(TIMEOUT_KEYS, "[timeouts]", report));
    if let Some(table) = timeouts {
        read_timeouts(&table, &mut defaults.timeouts, report);
    }
    let limits = root
        .entry("limits")
        .and_then(|entry| entry.table(LIMIT_KEYS, "[limits]", report));
    if let Some(table) = limits {
        read_limits(&table, &mut defaults.limits, report);
    }
    defaults
}

/// Puts the durations that `table` sets into `timeouts`.
pub(super) fn read_timeouts(table: &Table<'_>, timeouts: &mut Timeouts, report: &mut Report) {
    let fields: [(&str, &mut Duration); 7] = [
        ("head", &mut timeouts.head),
        ("body", &mut timeouts.body),
        ("connect", &mut timeouts.connect),
        ("response", &mut timeouts.response),
        ("keepalive", &mut timeouts.keepalive),
        ("pool", &mut timeouts.pool),
        ("drain", &mut timeouts.drain),
    ];
    for (key, field) in fields {
        let wanted = "a duration in quotes, such as \"250ms\", \"10s\" or \"2m\"";
        let duration = table
            .entry(key)
            .and_then(|entry| entry.parse_as(wanted, value::duration, report));
        if let Some(duration) = duration {
            *field = duration;
        }
    }
}

/// Puts the sizes and counts that `table` sets into `limits`.
pub(super) fn read_limits(table: &Table<'_>, limits: &mut Limits, report: &mut Report) {
    let fields: [(&str, &mut usize, usize, usize); 5] = [
        (
            "head_bytes",
            &mut limits.head_bytes,
            limits::HEAD_BYTES_FLOOR,
            limits::HEAD_BYTES_CEILING,
        ),
        ("fields", &mut limits.fields, 1, limits::FIELDS_CEILING),
        (
            "connections",
            &mut limits.connections,
            1,
            limits::CONNECTIONS_CEILING,
        ),
        (
            "connections_per_address",
            &mut limits.connections_per_address,
            1,
            limits::CONNECTIONS_CEILING,
        ),
        (
            "pool_per_server",
            &mut limits.each_server.pool_per_server,
            0,
            limits::POOL_PER_CORE_MAX,
        ),
    ];
    for (key, field, least, most) in fields {
        let written = table.entry(key);
        if let Some(number) = written.and_then(|entry| entry.integer(least..=most, report)) {
            *field = number;
        }
    }
    let bytes = table.entry("body_bytes");
    if let Some(number) = bytes.and_then(|entry| entry.integer(1..=i64::MAX as u64, report)) {
        limits.each_server.body_bytes = number;
    }
}

fn read_access_log(root: &Table<'_>, folder: &Folder, report: &mut Report) -> Option<AccessLog> {
    let table = root
        .entry("access_log")?
        .table(ACCESS_LOG_KEYS, "[access_log]", report)?;
    let path = table
        .required(
            "path",
            "write a file name, or \"-\" for standard output",
            report,
        )
        .and_then(|entry| entry.parse(|name| access_log_path(name, folder), report));
    let format = match table.entry("format") {
        Some(entry) => entry.parse(value::log_format, report),
        None => Some(LogFormat::Json),
    };
    Some(AccessLog {
        path: path?,
        format: format?,
    })
}

fn access_log_path(name: &str, folder: &Folder) -> Result<PathBuf, String> {
    match name {
        "-" => Ok(PathBuf::from(name)),
        name => written_file(name, folder),
    }
}

/// A file that m2u writes. Nothing is created here: `check` must leave no trace.
pub(super) fn written_file(name: &str, folder: &Folder) -> Result<PathBuf, String> {
    let path = folder.join(&file_name(name)?);
    let shown = path.display();
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    if parent.is_some_and(|parent| !parent.is_dir()) {
        return Err(format!(
            "the folder of \"{shown}\" does not exist; make it first"
        ));
    }
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => Err(format!("\"{shown}\" is a folder; write a file's name")),
        Ok(_) if fs::OpenOptions::new().append(true).open(&path).is_err() => Err(format!(
            "the file \"{shown}\" may not be written by the user that m2u runs as"
        )),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("the file \"{shown}\" cannot be reached: {error}"))
        }
        Err(_) => among_others(path),
        Ok(_) => Ok(path),
    }
}

/// Likewise, one beside which m2u makes others.
pub(super) fn file_among_others(name: &str, folder: &Folder) -> Result<PathBuf, String> {
    among_others(written_file(name, folder)?)
}

/// The path again, if files can be made in its folder.
fn among_others(path: PathBuf) -> Result<PathBuf, String> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    match may_write(parent.unwrap_or(Path::new("."))) {
        true => Ok(path),
        false => Err(format!(
            "the folder of \"{}\" may not be written by the user that m2u runs as",
            path.display()
        )),
    }
}

/// Whether files can be made in `folder`: asked with a file that has no name, and leaves no trace.
fn may_write(folder: &Path) -> bool {
    let nameless = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(folder);
    match nameless {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        ),
    }
}

fn read_upstream(
    root: &Table<'_>,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> (Vec<IpNet>, Option<Arc<ClientCertificate>>) {
    let table = root
        .entry("upstream")
        .and_then(|entry| entry.table(UPSTREAM_KEYS, "[upstream]", report));
    let Some(table) = table else {
        return (Vec::new(), None);
    };
    let networks = table
        .entry("allow_networks")
        .map(|entry| read_networks(&entry, report));
    let certificate = read_client_certificate(&table, certificates, report);
    let networks = networks.unwrap_or_default().into_iter();
    (networks.map(|(network, _)| network).collect(), certificate)
}

/// The pair of `client_certificate` and `client_key`, if `table` has it.
pub(super) fn read_client_certificate(
    table: &Table<'_>,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<Arc<ClientCertificate>> {
    match (table.entry("client_certificate"), table.entry("client_key")) {
        (Some(certificate), Some(key)) => certificates.client(&certificate, &key, report),
        (Some(certificate), None) => {
            let message = "has no client_key beside it; write client_key = \"FILE\", which may be \
                           the same file";
            report.add_missing(&certificate.place, message);
            None
        }
        (None, Some(key)) => {
            let message = "has no client_certificate beside it; write client_certificate = \
                           \"FILE\"";
            report.add_missing(&key.place, message);
            None
        }
        (None, None) => None,
    }
}

pub(super) fn file_name(name: &str) -> Result<String, String> {
    match name {
        "" => Err("is empty; write the name of a file, or leave the line out".to_owned()),
        _ => Ok(name.to_owned()),
    }
}
