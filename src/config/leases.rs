//! The section `[leases]`: who may say which device has which address, and what outlives a restart.
//!
//! Looks users up in the system's list; makes neither socket nor journal.

use std::path::{Path, PathBuf};

use super::{
    document::Document,
    entry::{Entry, Table},
    files::Folder,
    gateway::{ROOT_KEYS, file_among_others, file_name},
    problem::{Problem, Report},
    settings::{FeedUser, Leases},
    value,
};
use crate::limits;

const KEYS: &[&str] = &["socket", "users", "journal", "unconfirmed"];
const FORM: &str = "[leases]";
/// Bytes of a Unix socket's path, as the system has it (`sun_path`, with its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The socket that the configuration at `path` gives to feeds, if any. Users and files that it names
/// are not looked at.
///
/// # Errors
/// What is wrong with the file itself, or with the socket's path.
pub fn feed_socket(path: &Path) -> Result<Option<PathBuf>, Vec<Problem>> {
    let mut report = Report::default();
    let socket = find_socket(path, &mut report);
    match report.is_fine() {
        true => Ok(socket),
        false => Err(report.into_problems()),
    }
}

fn find_socket(path: &Path, report: &mut Report) -> Option<PathBuf> {
    let document = Document::read(path, report)?;
    let entries = document.parse(report);
    let root = Table::root(&document, &entries, ROOT_KEYS, report);
    let table = root.entry("leases")?.table(KEYS, FORM, report)?;
    read_socket(&table, &Folder::of(path), report)
}

/// Reads the section, if there is one.
pub(super) fn read(root: &Table<'_>, folder: &Folder, report: &mut Report) -> Option<Leases> {
    let table = root.entry("leases")?.table(KEYS, FORM, report)?;
    let socket = read_socket(&table, folder, report);
    let users = table.entry("users").map(|entry| read_users(&entry, report));
    let journal = table
        .entry("journal")
        .and_then(|entry| entry.parse(|name| file_among_others(name, folder), report));
    let wanted = "a duration in quotes, such as \"10m\"";
    let unconfirmed = table
        .entry("unconfirmed")
        .and_then(|entry| entry.parse_as(wanted, value::duration, report));
    Some(Leases {
        socket,
        users: users.unwrap_or_default(),
        journal,
        unconfirmed: unconfirmed.unwrap_or(limits::UNCONFIRMED_DEFAULT),
    })
}

fn read_socket(table: &Table<'_>, folder: &Folder, report: &mut Report) -> Option<PathBuf> {
    let path = |name: &str| {
        let path = folder.join(&file_name(name)?);
        match path.as_os_str().len() {
            0..=SOCKET_PATH_BYTES_MAX => Ok(path),
            bytes => Err(format!(
                "makes a path of {bytes} bytes; the system allows {SOCKET_PATH_BYTES_MAX}: write \
                 a shorter one, such as \"/run/m2u/feed.sock\""
            )),
        }
    };
    table.entry("socket")?.parse(path, report)
}

fn read_users(entry: &Entry<'_>, report: &mut Report) -> Vec<FeedUser> {
    let elements = entry.elements("users of this system: [\"openvpn\"]", report);
    let elements = elements.unwrap_or_default();
    let users = elements.iter();
    users
        .filter_map(|user| user.parse(find_user, report))
        .collect()
}

fn find_user(name: &str) -> Result<FeedUser, String> {
    let user = nix::unistd::User::from_name(name);
    match user {
        Ok(Some(user)) => Ok(FeedUser {
            name: name.into(),
            uid: user.uid.as_raw(),
        }),
        Ok(None) => Err(format!(
            "{name:?} is no user of this system; write a name that `getent passwd` knows"
        )),
        Err(error) => Err(format!("the user {name:?} can't be looked up: {error}")),
    }
}
