//! `m2u show` on real files: the settings in force, the routes, and whose device an address is.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::PathBuf, process::Command};

use common::certificates::{Authority, Validity};
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// What no output may ever hold.
const SECRET: &str = "geheim-4711";

const CONFIGURATION: &str = r#"domain = "talk2m.com"
listen = ["127.0.0.1:8080", { address = "127.0.0.2:80", slot = "m2u2" }]
devices = "devices.csv"

[timeouts]
drain = "90s"
connect = "250ms"

[access_log]
path = "access.log"

[dns]
listen = ["127.0.0.1:53"]
addresses = ["10.8.0.2", "::ffff:10.8.0.9"]
slots = { m2u3 = ["10.8.0.3", "fd00::3"] }

[upstream]
allow_networks = ["127.0.0.0/8"]
client_certificate = "gateway.pem"
client_key = "gateway.key"

[[account]]
ref = "acme"

[[account.server]]
url = "https://ingest.acme.example/base"
login = { username = "acme", password = "geheim-4711" }
client_certificate = "acme.pem"
client_key = "acme.key"
ca = "acme-ca.pem"
crl = "acme-crl.pem"
hyphen_aliases = true
forwarded = true
on_failure = "close"
address = ["203.0.113.7:8443"]
timeouts = { response = "2m" }
limits = { body_bytes = 1048576, pool_per_server = 7 }

[[account.server]]
slot = "m2u3"
url = "http://10.0.0.9:8080/"

[[account.device]]
name = "press-07"
serial = "1932-0069-24"
address = ["10.8.0.7", "192.168.7.0/24", "192.168.0.0/16"]

[[account]]
ref = "beta"
expose_identity = false

[[account.server]]
slot = "m2u2"
url = "https://10.0.0.9:8443"
ca = "acme-ca.pem"

[[account]]
ref = "gamma"
"#;

const LIST: &str = "address,account,device,serial\n\
    10.8.1.1,beta,mill-1,2001-0001-24\n\
    10.8.1.2,gamma,saw,2001-0002-24\n";

struct Folder {
    dir: TempDir,
}

struct Outcome {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Folder {
    fn new() -> Self {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for name in ["gateway", "acme", "acme-ca"] {
            folder.pair(name);
        }
        let list = Authority::new("acme").revoke(&[], Validity::Current);
        folder.write("acme-crl.pem", &list);
        folder.write("devices.csv", LIST);
        folder.write("m2u.toml", CONFIGURATION);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn pair(&self, name: &str) {
        let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
        params.not_after = date_time_ymd(2091, 2, 3);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("{name}\u{1b}[31m"));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn m2u(&self, arguments: &[&str]) -> Outcome {
        let done = Command::new(env!("CARGO_BIN_EXE_m2u"))
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let outcome = Outcome {
            code: done.status.code(),
            stdout: String::from_utf8(done.stdout).unwrap(),
            stderr: String::from_utf8(done.stderr).unwrap(),
        };
        for stream in [&outcome.stdout, &outcome.stderr] {
            assert!(!stream.contains(SECRET), "a secret is shown: {stream}");
            assert!(!stream.contains('\u{1b}'), "a terminal is told what to do");
        }
        outcome
    }

    fn shows(&self, arguments: &[&str]) -> String {
        let arguments = [&["show"], arguments].concat();
        let outcome = self.m2u(&arguments);
        assert_eq!(outcome.stderr, "");
        assert_eq!(outcome.code, Some(0));
        outcome.stdout
    }
}

#[test]
fn every_setting_is_shown_with_its_value() {
    let folder = Folder::new();
    let shown = folder.shows(&[]);
    let settings: toml::Table = shown.parse().expect("what is shown is TOML");
    let expected: toml::Table = r#"
        domain = "talk2m.com"
        listen = [
            { address = "127.0.0.1:8080", slot = "m2u", proxy_protocol_from = [] },
            { address = "127.0.0.2:80", slot = "m2u2", proxy_protocol_from = [] },
        ]
        timeouts = { head = "10s", body = "30s", connect = "250ms", response = "30s",
            keepalive = "75s", pool = "1m", drain = "90s" }
        limits = { head_bytes = 16384, fields = 100, body_bytes = 104857600,
            connections = 100000, connections_per_address = 64, pool_per_server = 32 }
        access_log = { path = "FOLDER/access.log", format = "json" }
        dns = { listen = ["127.0.0.1:53"], addresses = ["10.8.0.2", "10.8.0.9"],
            slots = { m2u3 = ["10.8.0.3", "fd00::3"] } }
        upstream = { allow_networks = ["127.0.0.0/8"] }

        [[account]]
        ref = "acme"
        expose_identity = true
        [[account.server]]
        slot = "m2u"
        url = "https://ingest.acme.example/base"
        login = { username = "acme", password = "***" }
        client_certificate = "FOLDER/acme.pem"
        client_key = "FOLDER/acme.key"
        ca = "FOLDER/acme-ca.pem"
        crl = "FOLDER/acme-crl.pem"
        hyphen_aliases = true
        forwarded = true
        on_failure = "close"
        address = ["203.0.113.7:8443"]
        timeouts = { body = "30s", connect = "250ms", response = "2m", pool = "1m" }
        limits = { body_bytes = 1048576, pool_per_server = 7 }
        [[account.server]]
        slot = "m2u3"
        url = "http://10.0.0.9:8080"
        client_certificate = "FOLDER/gateway.pem"
        client_key = "FOLDER/gateway.key"
        hyphen_aliases = false
        forwarded = false
        on_failure = "respond"
        timeouts = { body = "30s", connect = "250ms", response = "30s", pool = "1m" }
        limits = { body_bytes = 104857600, pool_per_server = 32 }
        [[account.device]]
        name = "press-07"
        serial = "1932-0069-24"
        address = ["10.8.0.7", "192.168.7.0/24", "192.168.0.0/16"]

        [[account]]
        ref = "beta"
        expose_identity = false
        [[account.server]]
        slot = "m2u2"
        url = "https://10.0.0.9:8443"
        client_certificate = "FOLDER/gateway.pem"
        client_key = "FOLDER/gateway.key"
        ca = "FOLDER/acme-ca.pem"
        hyphen_aliases = false
        forwarded = false
        on_failure = "respond"
        timeouts = { body = "30s", connect = "250ms", response = "30s", pool = "1m" }
        limits = { body_bytes = 104857600, pool_per_server = 32 }
        [[account.device]]
        name = "mill-1"
        serial = "2001-0001-24"
        address = ["10.8.1.1"]

        [[account]]
        ref = "gamma"
        expose_identity = true
        [[account.device]]
        name = "saw"
        serial = "2001-0002-24"
        address = ["10.8.1.2"]
        "#
    .replace(
        "FOLDER",
        &folder
            .dir
            .path()
            .canonicalize()
            .unwrap()
            .display()
            .to_string(),
    )
    .parse()
    .unwrap();
    assert_eq!(settings, expected);
}

#[test]
fn what_is_shown_is_a_configuration_that_shows_the_same() {
    let folder = Folder::new();
    let flags = [
        "--domain",
        "other.example",
        "--listen",
        "127.0.0.9:81",
        "--relay-bytes",
        "8192",
        "--nameserver",
        "192.0.2.53",
    ];
    let shown = folder.shows(&flags);
    assert!(shown.contains("domain = \"other.example\"\n"));
    assert!(shown.contains("address = \"127.0.0.9:81\""));
    assert!(shown.contains("#   --relay-bytes    8192\n"));
    // One flag sets both.
    let default = folder.shows(&[]);
    assert!(default.contains("#   --relay-bytes    61440, with TLS 114688 after the first MiB\n"));
    assert!(shown.contains("#   --nameserver     192.0.2.53:53\n"));
    // In another folder: every path must still be right.
    let elsewhere = Folder {
        dir: tempfile::tempdir().unwrap(),
    };
    elsewhere.write("m2u.toml", &shown);
    assert_eq!(elsewhere.shows(&flags), shown);
    let check = elsewhere.m2u(&["check"]);
    assert_eq!((check.code, check.stderr.as_str()), (Some(0), ""));
}

/// The cells of the route at `slot` of `account`.
fn route(shown: &str, account: &str, slot: &str) -> Vec<String> {
    let mut rows = shown.lines().map(|line| -> Vec<String> {
        let cells = line.trim_start_matches('#').split("  ");
        let cells = cells.map(str::trim).filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    });
    rows.find(|row| row.len() > 2 && row[0] == account && row[1] == slot)
        .unwrap_or_else(|| panic!("no route {account} {slot} in {shown}"))
}

#[test]
fn routes_tell_where_requests_go_and_as_whom() {
    let folder = Folder::new();
    let shown = folder.shows(&[]);
    let first = route(&shown, "acme", "m2u");
    assert_eq!(first[2], "https://ingest.acme.example/base");
    assert_eq!(first[3], "acme");
    assert_eq!(first[4], "CN=acme?[31m");
    assert_eq!(first[5], "2091-02-03");
    assert!(first[6].ends_with("/acme-ca.pem"), "{}", first[6]);
    assert!(first[7].ends_with("/acme-crl.pem"), "{}", first[7]);
    // Plain HTTP shows no certificate and checks none.
    let plain = route(&shown, "acme", "m2u3");
    assert_eq!(plain[3..8], ["-"; 5]);
    let gateways = route(&shown, "beta", "m2u2");
    assert_eq!(gateways[4], "CN=gateway?[31m");
    assert_eq!(gateways[7], "-");
    assert_ne!(first[8], plain[8]);
    assert_ne!(first[8], gateways[8]);
}

#[test]
fn addresses_are_shown_when_asked_for() {
    let folder = Folder::new();
    folder.write(
        "m2u.toml",
        "listen = [\"127.0.0.1:0\"]\n[[account]]\nref = \"acme\"\n[[account.server]]\nurl = \
         \"http://localhost:81\"\n[[account.server]]\nslot = \"m2u2\"\nurl = \
         \"http://nowhere.invalid\"\n[[account.server]]\nslot = \"m2u3\"\nurl = \
         \"http://192.0.2.1\"\n",
    );
    // Nobody answers there; localhost and addresses need nobody.
    let shown = folder.shows(&["--resolve", "--nameserver", "127.0.0.1:9"]);
    let addresses = |slot| route(&shown, "acme", slot)[9].clone();
    assert!(addresses("m2u").contains("127.0.0.1:81"));
    assert!(addresses("m2u2").starts_with("none: "));
    assert_eq!(addresses("m2u3"), "192.0.2.1:80");
}

#[test]
fn a_device_is_resolved_as_a_request_would_be() {
    let folder = Folder::new();
    let shown = folder.shows(&["--device", "10.8.0.7"]);
    assert_eq!(
        shown,
        "address  10.8.0.7\n\
         lease    10.8.0.7 (exact)\n\
         account  acme\n\
         device   press-07\n\
         serial   1932-0069-24\n\
         \n\
         m2u -> https://ingest.acme.example/base\n    \
             X_Talk2M_Account: acme\n    \
             X_Talk2M_Device: press-07\n    \
             X_Talk2M_SerialNumber: 1932-0069-24\n    \
             X-Talk2M-Account: acme\n    \
             X-Talk2M-Device: press-07\n    \
             X-Talk2M-SerialNumber: 1932-0069-24\n    \
             Forwarded: for=10.8.0.7\n\
         \n\
         m2u3 -> http://10.0.0.9:8080\n    \
             X_Talk2M_Account: acme\n    \
             X_Talk2M_Device: press-07\n    \
             X_Talk2M_SerialNumber: 1932-0069-24\n"
    );
    for (address, lease) in [
        ("::ffff:10.8.0.7", "10.8.0.7 (exact)"),
        ("192.168.7.9", "192.168.7.0/24 (longest prefix)"),
        ("192.168.8.9", "192.168.0.0/16 (longest prefix)"),
    ] {
        let shown = folder.shows(&["--device", address]);
        assert!(shown.contains(&format!("lease    {lease}\n")), "{shown}");
        let speaks = address.trim_start_matches("::ffff:");
        assert!(
            shown.contains(&format!("Forwarded: for={speaks}\n")),
            "{shown}"
        );
    }
}

#[test]
fn identity_that_is_not_exposed_is_shown_empty() {
    let folder = Folder::new();
    let shown = folder.shows(&["--device", "10.8.1.1"]);
    assert!(shown.contains("device   mill-1\n"));
    assert!(shown.ends_with(
        "\nm2u2 -> https://10.0.0.9:8443\n    X_Talk2M_Account:\n    X_Talk2M_Device:\n    \
         X_Talk2M_SerialNumber:\n"
    ));
    let shown = folder.shows(&["--device", "10.8.1.2"]);
    assert!(shown.ends_with("\nThe account has no server: every request is answered 404.\n"));
}

#[test]
fn an_address_without_a_device_is_a_refusal() {
    let folder = Folder::new();
    let outcome = folder.m2u(&["show", "--device", "10.8.0.8"]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(outcome.stdout, "");
    assert_eq!(
        outcome.stderr,
        "10.8.0.8 belongs to no device: its requests are answered 403\n"
    );
}

#[test]
fn a_bad_configuration_is_refused_with_every_problem() {
    let folder = Folder::new();
    folder.write("m2u.toml", "listn = []\n[[account]]\n");
    let outcome = folder.m2u(&["show"]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(outcome.stdout, "");
    assert!(
        outcome.stderr.contains("m2u.toml:1: "),
        "{}",
        outcome.stderr
    );
    let usage = folder.m2u(&["show", "--device", "press-07"]);
    assert_eq!(usage.code, Some(2));
}

#[test]
fn missing_system_roots_are_refused_by_check_and_show_alike() {
    let folder = Folder::new();
    folder.write(
        "m2u.toml",
        "listen = [\"127.0.0.1:0\"]\n[[account]]\nref = \"acme\"\n[[account.server]]\nurl = \
         \"https://h.example\"\n",
    );
    for command in ["check", "show"] {
        let done = Command::new(env!("CARGO_BIN_EXE_m2u"))
            .arg(command)
            .current_dir(folder.dir.path())
            .env("SSL_CERT_FILE", "/dev/null")
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap();
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{command}");
        assert!(stderr.contains("apt install ca-certificates"), "{stderr}");
    }
}

#[test]
fn what_the_file_says_of_a_device_a_lease_may_override() {
    let folder = Folder::new();
    let leases = "[leases]\nsocket = \"feed.sock\"\n";
    let config = std::fs::read_to_string(folder.path("m2u.toml")).unwrap();
    folder.write(
        "m2u.toml",
        &config.replacen("[[account]]", &format!("{leases}[[account]]"), 1),
    );
    let shown = folder.shows(&["--device", "10.8.0.7"]);
    let hint = "Whether it is leased says: m2u lease list --address 10.8.0.7\n";
    assert!(shown.ends_with(&format!("\n{hint}")), "{shown}");
    let outcome = folder.m2u(&["show", "--device", "10.8.0.8"]);
    assert_eq!((outcome.code, &*outcome.stdout), (Some(1), ""));
    assert_eq!(
        outcome.stderr,
        format!(
            "10.8.0.8 belongs to no device of the file. {}",
            hint.replace("0.7", "0.8")
        )
    );
}
