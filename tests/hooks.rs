//! The hooks of `scripts/openvpn`, run as OpenVPN runs them: what they tell m2u, and that they never
//! hold the server up.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::wait_until;
use tempfile::TempDir;

/// A stand-in for m2u that notes what it is asked, and ends as it is told to.
struct Asked {
    folder: TempDir,
}

/// What OpenVPN 2.6 has in the environment of its hooks.
const CLIENT: &[(&str, &str)] = &[
    ("common_name", "ewon-0007"),
    ("time_unix", "1795705817"),
    ("daemon_start_time", "1795705816"),
    ("ifconfig_pool_remote_ip", "10.8.0.2"),
    ("ifconfig_pool_remote_ip6", "fd00:8::1000"),
];

impl Asked {
    /// Ends with `end`, a line of shell.
    fn new(end: &str) -> Self {
        let asked = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let path = asked.path("m2u");
        let said = asked.path("said");
        let script = format!(
            "#!/bin/sh\nprintf '<%s> ' \"$@\" >> '{said}'\necho >> '{said}'\necho $$ > '{}'\n{end}\n",
            asked.path("id").display(),
            said = said.display(),
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        asked
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a hook with these arguments behind hub and socket, and these variables alone; answers
    /// whether OpenVPN would go on.
    fn run(&self, hook: &str, arguments: &[&str], variables: &[(&str, &str)]) -> bool {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/openvpn");
        let done = Command::new(scripts.join(hook))
            .args(["north", "/run/m2u/feed.sock"])
            .args(arguments)
            .env_clear()
            .env("M2U", self.path("m2u"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        done.status.success()
    }

    /// What it was asked, one request a line, the common words left out.
    fn said(&self) -> Vec<String> {
        let said = fs::read_to_string(self.path("said")).unwrap_or_default();
        let common = "<--timeout> <200ms> <--socket> </run/m2u/feed.sock> <--source> \
                      <openvpn:north> ";
        let lines = said.lines().map(|line| {
            assert!(line.contains(common), "{line}");
            line.replace(common, "").trim_end().to_owned()
        });
        lines.collect()
    }
}

#[test]
fn a_client_that_connects_has_its_addresses_leased() {
    let m2u = Asked::new("exit 0");
    assert!(m2u.run("client-connect", &["/tmp/options"], CLIENT));
    let rest = "<--replace> <--epoch> <1795705816> <--session=ewon-0007@1795705817> \
                <--common-name=ewon-0007>";
    // All at once: none of them is leased if another is refused.
    let both = format!("<lease> <add> <10.8.0.2> <fd00:8::1000> {rest}");
    assert_eq!(m2u.said(), [both]);
}

#[test]
fn a_client_that_m2u_does_not_agree_to_is_turned_away_unless_the_operator_says_otherwise() {
    let m2u = Asked::new("exit 1");
    assert!(!m2u.run("client-connect", &["/tmp/options"], CLIENT));
    assert_eq!(m2u.said().len(), 1, "one refusal is enough");
    let admit = [CLIENT, &[("M2U_ON_FAILURE", "admit")]].concat();
    assert!(m2u.run("client-connect", &["/tmp/options"], &admit));
    let other = [CLIENT, &[("M2U_ON_FAILURE", "yes")]].concat();
    assert!(!m2u.run("client-connect", &["/tmp/options"], &other));
    // An OpenVPN that does not say what its hooks need is no reason to admit anybody.
    let m2u = Asked::new("exit 0");
    assert!(!m2u.run("client-connect", &["/tmp/options"], &CLIENT[1..]));
    let (before, after) = (&CLIENT[..2], &CLIENT[3..]);
    assert!(!m2u.run(
        "client-connect",
        &["/tmp/options"],
        &[before, after].concat()
    ));
}

#[test]
fn a_client_that_leaves_gives_back_what_its_own_visit_had() {
    let m2u = Asked::new("exit 0");
    assert!(m2u.run("client-disconnect", &[], CLIENT));
    assert_eq!(
        m2u.said(),
        ["<lease> <release> <--epoch> <1795705816> <--session=ewon-0007@1795705817>"]
    );
    let m2u = Asked::new("exit 0");
    assert!(!m2u.run("client-disconnect", &[], &CLIENT[1..]), "whose?");
    assert_eq!(m2u.said(), [""; 0]);
}

#[test]
fn networks_behind_a_client_are_leased_and_hosts_in_them_are_not() {
    let m2u = Asked::new("exit 0");
    for operation in ["add", "update"] {
        for address in ["10.8.0.2", "192.168.7.5", "fd00:8::1000"] {
            assert!(m2u.run("learn-address", &[operation, address, "ewon-0007"], CLIENT));
        }
    }
    assert!(m2u.run("learn-address", &["delete", "192.168.7.5"], &[]));
    assert_eq!(m2u.said(), [""; 0]);

    assert!(m2u.run(
        "learn-address",
        &["add", "192.168.7.0/24", "ewon-0007"],
        CLIENT
    ));
    assert!(m2u.run(
        "learn-address",
        &["update", "fd00:7::/64", "ewon-0007"],
        CLIENT
    ));
    assert!(m2u.run("learn-address", &["delete", "192.168.7.0/24"], &[]));
    let rest = "<--replace> <--epoch> <1795705816> <--session=ewon-0007@1795705817> \
                <--common-name=ewon-0007>";
    assert_eq!(
        m2u.said(),
        [
            format!("<lease> <add> <192.168.7.0/24> {rest}"),
            format!("<lease> <add> <fd00:7::/64> {rest}"),
            "<lease> <release> <192.168.7.0/24> <--any-session>".to_owned(),
        ]
    );
    let m2u = Asked::new("exit 1");
    assert!(!m2u.run(
        "learn-address",
        &["add", "192.168.7.0/24", "ewon-0007"],
        CLIENT
    ));
}

#[test]
fn whatever_a_certificate_says_stays_one_argument() {
    let m2u = Asked::new("exit 0");
    let name = "-x \"a b\" $(id) 'ü' *";
    let client = [&[("common_name", name)], &CLIENT[1..4]].concat();
    assert!(m2u.run("client-connect", &["/tmp/options"], &client));
    let said = m2u.said().concat();
    assert!(
        said.contains(&format!("<--session={name}@1795705817>")),
        "{said}"
    );
    assert!(said.ends_with(&format!("<--common-name={name}>")), "{said}");
}

#[test]
fn a_hook_ends_whatever_m2u_does() {
    for (hook, arguments) in [
        ("client-connect", &["/tmp/options"][..]),
        ("client-disconnect", &[]),
        ("learn-address", &["add", "192.168.7.0/24", "ewon-0007"]),
    ] {
        let m2u = Asked::new("trap '' TERM\nwhile :; do sleep 1000; done");
        assert!(!m2u.run(hook, arguments, CLIENT), "{hook}");
        let id = fs::read_to_string(m2u.path("id")).unwrap();
        let state = Path::new("/proc").join(id.trim()).join("stat");
        // Whoever is its parent now need not have taken note yet.
        let is_over = || fs::read_to_string(&state).map_or(true, |state| state.contains(") Z "));
        wait_until("what hangs to end", is_over);
    }
}
