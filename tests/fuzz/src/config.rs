//! Configurations: arbitrary text as `m2u.toml`, with a device list behind a NUL, through the whole
//! way from file to settings.
//!
//! Nothing panics, no message shows a password, and what is accepted can be put into a head as it
//! is. Both files lie in a folder of the process's own.

use std::{env, fs, path::Path};

use m2u::config::{self, flags::Overrides, settings::Settings};
use tempfile::TempDir;

/// Stands for a password wherever it is written as one.
const PASSWORD: &str = "Zq7unspeakable";
/// What the password file holds.
const FILED_PASSWORD: &str = "Xk9unutterable";

/// Panics if a configuration leads to more than problems or settings; answers whether it leads to
/// settings.
pub fn check(input: &[u8]) -> bool {
    // A configuration may name any file; one of these would be read for ever.
    if ["/dev", "/proc", "/sys", "\\u", "\\U", "\\x"]
        .iter()
        .any(|name| holds(input, name))
    {
        return false;
    }
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let text = parts.next().unwrap_or_default();
    let devices = parts.next().unwrap_or_default();
    let loaded = FOLDER.with(|folder| {
        write(folder.path(), "m2u.toml", text);
        write(folder.path(), "devices.csv", devices);
        config::load(&folder.path().join("m2u.toml"), &Overrides::default())
    });
    let secret = is_secret(text) && !holds(devices, PASSWORD);
    match &loaded {
        Ok(settings) => check_settings(settings, secret),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a word");
            for problem in problems {
                let shown = problem.to_string();
                assert!(!shown.contains(FILED_PASSWORD), "shows a file's password");
                assert!(
                    !secret || !shown.contains(PASSWORD),
                    "shows a password: {shown}"
                );
            }
        }
    }
    loaded.is_ok()
}

thread_local! {
    /// Where the files lie; removed with the thread.
    static FOLDER: TempDir = make_folder();
}

/// In memory, if that can be and nobody says otherwise: each write to a disk may wait for it.
fn make_folder() -> TempDir {
    let folder = match env::var_os("TMPDIR") {
        None => tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()),
        Some(_) => tempfile::tempdir(),
    };
    let folder = folder.expect("a folder");
    write(folder.path(), "acme.password", FILED_PASSWORD.as_bytes());
    folder
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    fs::write(folder.join(name), bytes).expect("a file of our own");
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    bytes
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

/// Whether the password stands nowhere but as the value of a `password`. What is no TOML is judged
/// by its lines, and by none at all if strings could span them.
fn is_secret(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    match text.parse::<toml::Table>() {
        Ok(table) => count_elsewhere(&toml::Value::Table(table), "") == 0,
        Err(_) => {
            let plain = !["'", "\"\"\"", "#", "\r"]
                .iter()
                .any(|mark| text.contains(mark));
            plain && text.lines().all(is_password_line)
        }
    }
}

/// How often the password stands in another place than it should.
fn count_elsewhere(value: &toml::Value, key: &str) -> usize {
    match value {
        toml::Value::String(text) => usize::from(text.contains(PASSWORD) && key != "password"),
        toml::Value::Array(values) => values.iter().map(|value| count_elsewhere(value, "")).sum(),
        toml::Value::Table(table) => {
            let counts = table.iter().map(|(key, value)| {
                usize::from(key.contains(PASSWORD)) + count_elsewhere(value, key)
            });
            counts.sum()
        }
        _ => 0,
    }
}

/// Whether a line either lacks the password, or holds it once, behind `password = "`.
fn is_password_line(line: &str) -> bool {
    let mut parts = line.split(PASSWORD);
    let before = parts.next().unwrap_or_default();
    let others = parts.count();
    let behind_key = before.strip_suffix("password = \"").is_some_and(|before| {
        let quotes = before.matches('"').count();
        quotes.is_multiple_of(2) && before.trim_end_matches(' ').ends_with(['{', ','])
    });
    others == 0 || (others == 1 && (behind_key || before == "password = \""))
}

/// What is accepted is as the engine relies on it.
fn check_settings(settings: &Settings, secret: bool) {
    assert!(!settings.listen.is_empty());
    if let Some(dns) = &settings.dns {
        let lists = [&dns.addresses].into_iter().chain(dns.slots.values());
        assert!(!dns.listen.is_empty() && lists.clone().all(|list| !list.is_empty()));
        assert!(lists.flatten().all(|address| !address.is_unspecified()));
    }
    let shown = format!("{settings:?}");
    assert!(!shown.contains(FILED_PASSWORD), "shows a file's password");
    assert!(!secret || !shown.contains(PASSWORD), "shows a password");
    for account in &settings.accounts {
        check_value(&account.reference);
        for device in account.devices.iter() {
            check_value(device.name);
            check_value(device.serial);
            assert!(!device.networks.is_empty());
        }
        for server in &account.servers {
            let url = &server.url;
            let written = [&url.host, &url.base_path].map(|part| part.as_bytes());
            for byte in written.concat() {
                assert!((0x21..0x7f).contains(&byte), "a byte that no URL has");
            }
            assert!(!url.host.is_empty() && !url.base_path.ends_with('/'));
            assert!(url.base_path.is_empty() || url.base_path.starts_with('/'));
            assert!(!url.base_path.contains(['?', '#']));
            if let Some(login) = &server.login {
                assert!(!login.username.contains(':'));
            }
        }
    }
}

/// A value that is stamped as it is.
fn check_value(value: &str) {
    assert!(value.len() <= 128 && value.trim() == value);
    assert!(!value.chars().any(char::is_control), "a control character");
}
