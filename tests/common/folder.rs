//! The specification's example configuration in a folder, with every file that it names.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use m2u::config::{self, flags::Overrides, settings::Settings};
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

/// What no output may ever hold.
pub const SECRET: &str = "geheim-4711";

/// The specification's example (section 7), every key of it.
pub const EXAMPLE: &str = r#"domain = "talk2m.com"
listen = [
    "127.0.0.1:8080",
    { address = "127.0.0.2:80", slot = "m2u2", proxy_protocol_from = ["10.9.0.0/24"] },
]
devices = "devices.csv"

[timeouts]
head = "10s"
body = "30s"
connect = "5s"
response = "30s"
keepalive = "75s"
pool = "60s"
drain = "2m"

[limits]
head_bytes = 16384
fields = 100
body_bytes = 104857600
connections = 100000
connections_per_address = 64
pool_per_server = 32

[access_log]
path = "access.log"
format = "json"

[upstream]
allow_networks = ["127.0.0.0/8"]
client_certificate = "gateway.pem"
client_key = "gateway.key"

[[account]]
ref = "acme"
expose_identity = true

[[account.server]]
slot = "m2u"
url = "https://ingest.acme.example/base"
login = { username = "acme", password = "geheim-4711" }
client_certificate = "acme.pem"
client_key = "acme.key"
ca = "acme-ca.pem"
hyphen_aliases = false
on_failure = "respond"
address = ["203.0.113.7:8443"]
timeouts = { connect = "250ms", response = "10s" }
limits = { body_bytes = 1048576 }

[[account.server]]
slot = "m2u3"
url = "http://10.0.0.9:8080/"
ca = "acme-ca.pem"
login = { username = "acme", password_file = "password" }

[[account.device]]
name = "press-07"
serial = "1932-0069-24"
address = ["10.8.0.7", "192.168.7.0/24"]

[[account]]
ref = "beta"
"#;

pub const LIST: &str = "address,account,device,serial\n\
    10.8.1.1,beta,mill-1,2001-0001-24\n\
    192.168.9.0/24,beta,mill-1,2001-0001-24\n\
    10.8.1.2,acme,press-08,1932-0070-24\n";

/// A folder with the example and every file it names.
pub struct Folder {
    dir: TempDir,
}

pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Folder {
    pub fn new() -> Self {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        folder.pair("gateway", |_| {});
        folder.pair("acme", |_| {});
        folder.pair("acme-ca", |_| {});
        folder.write("password", &format!("{SECRET}\r\n"));
        folder.write("devices.csv", LIST);
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Makes `NAME.pem` and `NAME.key`.
    pub fn pair(&self, name: &str, adjust: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    pub fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl")
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .expect("openssl is missing: apt-get install openssl");
        assert!(done.status.success(), "openssl {arguments:?}: {done:?}");
    }

    pub fn check(&self, configuration: &str, flags: &[&str]) -> Outcome {
        self.end_of(self.command("check", configuration).args(flags))
    }

    pub fn show(&self, configuration: &str) -> Outcome {
        self.end_of(&mut self.command("show", configuration))
    }

    /// Runs a gateway until it is ready, then ends it; or to its own end.
    pub fn run(&self, configuration: &str, flags: &[&str]) -> Outcome {
        self.end_of(self.command("run", configuration).args(flags))
    }

    /// A subcommand on a system that has no roots of its own.
    pub fn without_roots(&self, subcommand: &str, configuration: &str) -> Outcome {
        let mut command = self.command(subcommand, configuration);
        let none = self.path("none");
        self.end_of(
            command
                .env("SSL_CERT_FILE", &none)
                .env("SSL_CERT_DIR", &none),
        )
    }

    fn command(&self, subcommand: &str, configuration: &str) -> Command {
        self.write("m2u.toml", configuration);
        let mut command = Command::new(env!("CARGO_BIN_EXE_m2u"));
        command.arg(subcommand).current_dir(self.dir.path());
        command
    }

    /// Lets a subcommand run to its end, which a gateway meets as soon as it is ready.
    fn end_of(&self, command: &mut Command) -> Outcome {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = String::new();
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            if line.starts_with("m2u: ready") {
                let id = child.id().to_string();
                let kill = Command::new("kill").args(["-s", "TERM", &id]).status();
                assert!(kill.unwrap().success());
            }
            stderr.push_str(&line);
            stderr.push('\n');
        }
        let done = child.wait_with_output().unwrap();
        let outcome = Outcome {
            code: done.status.code(),
            stdout: String::from_utf8(done.stdout).unwrap(),
            stderr,
        };
        for stream in [&outcome.stdout, &outcome.stderr] {
            assert!(!stream.contains("geheim"), "a secret is shown: {stream}");
        }
        outcome
    }

    pub fn load(&self, configuration: &str) -> Settings {
        self.write("m2u.toml", configuration);
        config::load(&self.path("m2u.toml"), &Overrides::default())
            .unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    /// Checks the example with `from` turned into `to`, which must be refused for one reason.
    pub fn refuses(&self, from: &str, to: &str, expected: &str) {
        assert_eq!(EXAMPLE.matches(from).count(), 1, "{from:?} is not unique");
        self.refuses_text(&EXAMPLE.replace(from, to), expected);
    }

    pub fn refuses_text(&self, configuration: &str, expected: &str) {
        let outcome = self.check(configuration, &[]);
        assert_eq!(outcome.code, Some(1), "{expected}\n{}", outcome.stderr);
        assert!(
            outcome.stderr.contains(expected),
            "{expected}\n{}",
            outcome.stderr
        );
        assert!(
            outcome.stderr.ends_with("\n1 problem\n"),
            "{expected}\n{}",
            outcome.stderr
        );
        assert_eq!(outcome.stdout, "");
    }
}

/// `m2u.toml:LINE: ` of the example's line that holds `text`.
pub fn at(text: &str) -> String {
    let before = &EXAMPLE[..EXAMPLE.find(text).unwrap()];
    format!("m2u.toml:{}: ", before.matches('\n').count() + 1)
}
