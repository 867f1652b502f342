//! The section `[leases]`: who may say which device has which address, and what outlives a restart.
//!
//! Looks users up in the system's list; makes neither socket nor journal.

use super::{
    entry::{Entry, Table},
    files::Folder,
    gateway::{file_name, written_file},
    problem::Report,
    settings::{FeedUser, Leases},
    value,
};
use crate::limits;

const KEYS: &[&str] = &["socket", "users", "journal", "unconfirmed"];
/// Bytes of a Unix socket's path, as the system has it (`sun_path`, with its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Reads the section, if there is one.
pub(super) fn read(root: &Table<'_>, folder: &Folder, report: &mut Report) -> Option<Leases> {
    let table = root.entry("leases")?.table(KEYS, "[leases]", report)?;
    let socket = table.entry("socket").and_then(|entry| {
        let path = |name: &str| {
            let path = folder.join(&file_name(name)?);
            match path.as_os_str().len() {
                0..=SOCKET_PATH_BYTES_MAX => Ok(path),
                bytes => Err(format!(
                    "makes a path of {bytes} bytes; the system allows {SOCKET_PATH_BYTES_MAX}: \
                     write a shorter one, such as \"/run/m2u/feed.sock\""
                )),
            }
        };
        entry.parse(path, report)
    });
    let users = table.entry("users").map(|entry| read_users(&entry, report));
    let journal = table
        .entry("journal")
        .and_then(|entry| entry.parse(|name| written_file(name, folder), report));
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
