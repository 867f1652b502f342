//! `m2u check` on real files: what it accepts, and how it names every mistake.
//!
//! Keys and certificates are made afresh; the passphrase-protected keys by the openssl program.

#![allow(clippy::unwrap_used)]

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use m2u::config::{
    self,
    flags::Overrides,
    settings::{LogFormat, OnFailure, Scheme, Settings},
};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// What no output may ever hold.
const SECRET: &str = "geheim-4711";

/// The specification's example (section 7), every key of it.
const EXAMPLE: &str = r#"domain = "talk2m.com"
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

const LIST: &str = "address,account,device,serial\n\
    10.8.1.1,beta,mill-1,2001-0001-24\n\
    192.168.9.0/24,beta,mill-1,2001-0001-24\n\
    10.8.1.2,acme,press-08,1932-0070-24\n";

/// A folder with the example and every file it names.
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
        folder.pair("gateway", |_| {});
        folder.pair("acme", |_| {});
        folder.pair("acme-ca", |_| {});
        folder.write("password", &format!("{SECRET}\r\n"));
        folder.write("devices.csv", LIST);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Makes `NAME.pem` and `NAME.key`.
    fn pair(&self, name: &str, adjust: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn openssl(&self, arguments: &[&str]) {
        let done = Command::new("openssl")
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .expect("openssl is missing: apt-get install openssl");
        assert!(done.status.success(), "openssl {arguments:?}: {done:?}");
    }

    fn check(&self, configuration: &str, flags: &[&str]) -> Outcome {
        self.write("m2u.toml", configuration);
        let done = Command::new(env!("CARGO_BIN_EXE_m2u"))
            .arg("check")
            .args(flags)
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let outcome = Outcome {
            code: done.status.code(),
            stdout: String::from_utf8(done.stdout).unwrap(),
            stderr: String::from_utf8(done.stderr).unwrap(),
        };
        for stream in [&outcome.stdout, &outcome.stderr] {
            assert!(!stream.contains("geheim"), "a secret is shown: {stream}");
        }
        outcome
    }

    fn load(&self, configuration: &str) -> Settings {
        self.write("m2u.toml", configuration);
        config::load(&self.path("m2u.toml"), &Overrides::default())
            .unwrap_or_else(|problems| panic!("{problems:?}"))
    }

    /// Checks the example with `from` turned into `to`, which must be refused for one reason.
    fn refuses(&self, from: &str, to: &str, expected: &str) {
        assert_eq!(EXAMPLE.matches(from).count(), 1, "{from:?} is not unique");
        self.refuses_text(&EXAMPLE.replace(from, to), expected);
    }

    fn refuses_text(&self, configuration: &str, expected: &str) {
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
fn at(text: &str) -> String {
    let before = &EXAMPLE[..EXAMPLE.find(text).unwrap()];
    format!("m2u.toml:{}: ", before.matches('\n').count() + 1)
}

#[test]
fn the_whole_example_is_accepted() {
    let folder = Folder::new();
    let outcome = folder.check(EXAMPLE, &[]);
    assert_eq!(outcome.stderr, "");
    assert_eq!(
        outcome.stdout,
        "m2u.toml: fine: 2 accounts, 2 servers, 3 devices, 2 listeners\n"
    );
    assert_eq!(outcome.code, Some(0));
    assert!(
        !folder.path("access.log").exists(),
        "check must leave no trace"
    );
}

#[test]
fn the_settings_are_what_the_example_says() {
    let folder = Folder::new();
    let settings = folder.load(EXAMPLE);

    assert_eq!(settings.domain.as_deref(), Some("talk2m.com"));
    let listen = &settings.listen[1];
    assert_eq!(listen.address, SocketAddr::from(([127, 0, 0, 2], 80)));
    assert_eq!(listen.slot.number(), 2);
    assert_eq!(listen.proxy_protocol_from[0].to_string(), "10.9.0.0/24");
    assert_eq!(settings.timeouts.drain, Duration::from_secs(120));
    let access_log = settings.access_log.unwrap();
    assert_eq!(access_log.path, folder.path("access.log"));
    assert_eq!(access_log.format, LogFormat::Json);

    let [acme, beta] = &settings.accounts[..] else {
        panic!("two accounts");
    };
    let [first, second] = &acme.servers[..] else {
        panic!("two servers");
    };
    assert_eq!(first.url.scheme, Scheme::Https);
    assert_eq!(first.url.base_path, "/base");
    assert_eq!(first.login.as_ref().unwrap().password, SECRET);
    assert_eq!(first.on_failure, OnFailure::Respond);
    assert_eq!(
        first.addresses,
        [SocketAddr::from(([203, 0, 113, 7], 8443))]
    );
    assert_eq!(first.timeouts.connect, Duration::from_millis(250));
    assert_eq!(first.timeouts.body, Duration::from_secs(30));
    assert_eq!(first.body_bytes, 1_048_576);
    assert_eq!(second.slot.number(), 3);
    assert_eq!(second.url.to_string(), "http://10.0.0.9:8080");
    assert_eq!(second.login.as_ref().unwrap().password, SECRET);
    assert_eq!(second.body_bytes, 104_857_600);

    let own = first.client_certificate.as_ref().unwrap();
    assert_eq!(own.path, folder.path("acme.pem"));
    let gateways = second.client_certificate.as_ref().unwrap();
    assert_eq!(gateways.path, folder.path("gateway.pem"));
    let (one, other) = (
        first.trust.as_ref().unwrap(),
        second.trust.as_ref().unwrap(),
    );
    assert!(Arc::ptr_eq(one, other), "one file, one copy");

    let names = |account: &config::settings::Account| -> Vec<String> {
        account
            .devices
            .iter()
            .map(|device| format!("{} {:?}", device.name, device.networks))
            .collect()
    };
    assert_eq!(
        names(acme),
        [
            "press-07 [10.8.0.7/32, 192.168.7.0/24]",
            "press-08 [10.8.1.2/32]"
        ]
    );
    assert_eq!(names(beta), ["mill-1 [10.8.1.1/32, 192.168.9.0/24]"]);
    assert!(!format!("{acme:?}").contains(SECRET));
}

#[test]
fn a_few_lines_are_enough() {
    let folder = Folder::new();
    let settings = folder.load("listen = [\"127.0.0.1:0\"]\n[[account]]\nref = \"acme\"\n");
    assert_eq!(settings.domain, None);
    assert_eq!(settings.timeouts, config::settings::Timeouts::default());
    assert_eq!(settings.limits, config::settings::Limits::default());
    assert!(settings.accounts[0].expose_identity);
}

#[test]
fn ten_mistakes_are_named_at_once_with_their_lines() {
    let folder = Folder::new();
    folder.pair("expired", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let mistakes = [
        (
            "domain = \"talk2m.com\"",
            "domain = \"talk 2m\"",
            "domain: \"talk 2m\" is not a domain",
        ),
        (
            "head = \"10s\"",
            "head = \"10\"",
            "timeouts.head: \"10\" has no unit; write \"10s\"",
        ),
        (
            "keepalive = \"75s\"",
            "keepalife = \"75s\"",
            "did you mean \"keepalive\"?",
        ),
        (
            "fields = 100",
            "fields = \"100\"",
            "limits.fields: is text in quotes; write a whole",
        ),
        (
            "[\"127.0.0.0/8\"]",
            "[\"127.0.0.1/8\"]",
            "upstream.allow_networks[0]: ",
        ),
        (
            "https://ingest.acme.example/base",
            "htp://x",
            "account[0].server[0].url: \"htp://x\" has no scheme m2u knows; write http:// or \
            https://",
        ),
        (
            "client_certificate = \"acme.pem\"",
            "client_certificate = \"expired.pem\"",
            "expired on ",
        ),
        (
            "on_failure = \"respond\"",
            "on_failure = \"retry\"",
            "account[0].server[0].on_failure: ",
        ),
        (
            "slot = \"m2u3\"",
            "slot = \"m2u\"",
            "account[0].server[1].slot: overlapping slots",
        ),
        (
            "password_file = \"password\"",
            "password_file = \"none\"",
            "login.password_file: the file \"none\" does not exist",
        ),
        (
            "\"192.168.7.0/24\"",
            "\"10.8.0.7\"",
            "account[0].device[0].address[1]: 10.8.0.7 already belongs",
        ),
        (
            "ref = \"beta\"",
            "ref = \"beta \"",
            "account[1].ref: \"beta \" begins or ends with a space",
        ),
    ];
    let mut configuration = EXAMPLE.to_owned();
    for (from, to, _) in mistakes {
        assert_eq!(
            configuration.matches(from).count(),
            1,
            "{from:?} is not unique"
        );
        configuration = configuration.replace(from, to);
    }
    // An unreadable line beside them hides nothing: the parser goes on behind it.
    configuration.push_str("expose_identity = maybe\n");
    let outcome = folder.check(&configuration, &[]);
    assert_eq!(outcome.code, Some(1));
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    for (from, _, words) in mistakes {
        let start = at(from);
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with(&start) && line.contains(words)),
            "{start}{words}\n{}",
            outcome.stderr
        );
    }
    let last = configuration.lines().count();
    let unreadable = format!("m2u.toml:{last}: is not TOML: ");
    assert!(
        lines.iter().any(|line| line.starts_with(&unreadable)),
        "{}",
        outcome.stderr
    );
    let shown = lines
        .iter()
        .filter_map(|line| line.split(':').nth(1)?.parse::<u64>().ok());
    assert!(shown.is_sorted(), "{}", outcome.stderr);
}

#[test]
fn each_mistake_alone_is_named() {
    let folder = Folder::new();
    for (from, to, words) in [
        (
            "[\n    \"127.0.0.1:8080\"",
            "[\n    \"127.0.0.1\"",
            "listen[0]: \"127.0.0.1\" has no port; write ADDRESS:PORT, such as \"127.0.0.1:80\"",
        ),
        (
            "\"127.0.0.2:80\"",
            "\"127.0.0.1:8080\"",
            "listen[1].address: 127.0.0.1:8080 is already at m2u.toml:3: listen[0]",
        ),
        (
            "[\"10.9.0.0/24\"]",
            "[\"10.9.0.1/24\"]",
            "listen[1].proxy_protocol_from[0]: \"10.9.0.1/24\" has bits set behind its prefix; \
            write \"10.9.0.0/24\"",
        ),
        (
            "slot = \"m2u2\"",
            "slot = \"m2u1\"",
            "listen[1].slot: \"m2u1\" is not a slot",
        ),
        (
            "slot = \"m2u2\"",
            "sloth = \"m2u2\"",
            "listen[1].sloth: is not a key that m2u knows; did you mean \"slot\"?",
        ),
        (
            "devices = \"devices.csv\"",
            "devices = \"none.csv\"",
            "devices: the file \"none.csv\" does not exist",
        ),
        (
            "response = \"30s\"",
            "response = 30",
            "timeouts.response: is a whole number; write a duration in quotes, such as \"250ms\"",
        ),
        (
            "pool = \"60s\"",
            "pool = \"1h\"",
            "timeouts.pool: \"1h\" has the unit \"h\"",
        ),
        (
            "head_bytes = 16384",
            "head_bytes = 65537",
            "limits.head_bytes: 65537 is out of range; write a number from 1024 to 65536",
        ),
        (
            "body_bytes = 104857600",
            "body_bytes = 1e8",
            "limits.body_bytes: is a number with a fraction; write a whole number",
        ),
        (
            "connections = 100000",
            "connections = -1",
            "limits.connections: -1 is out of range",
        ),
        (
            "path = \"access.log\"",
            "path = \"none/access.log\"",
            "access_log.path: the folder of \"none/access.log\" does not exist",
        ),
        ("path = \"access.log\"", "", "access_log.path: is missing"),
        (
            "format = \"json\"",
            "format = \"xml\"",
            "access_log.format: \"xml\" is no log format; write \"json\" or \"text\"",
        ),
        (
            "client_key = \"gateway.key\"\n",
            "",
            "upstream.client_certificate: has no client_key beside it",
        ),
        (
            "client_certificate = \"gateway.pem\"\n",
            "",
            "upstream.client_key: has no client_certificate beside it",
        ),
        ("ref = \"acme\"\n", "", "account[0].ref: is missing"),
        (
            "ref = \"beta\"",
            "ref = \"b\\teta\"",
            "account[1].ref: \"b\\teta\" holds a control character",
        ),
        (
            "expose_identity = true",
            "expose_identity = \"yes\"",
            "account[0].expose_identity: is text in quotes; write true or false",
        ),
        (
            "url = \"http://10.0.0.9:8080/\"\n",
            "",
            "account[0].server[1].url: is missing; write where requests go",
        ),
        (
            "https://ingest.acme.example/base",
            "https://acme:geheim@ingest.acme.example",
            "account[0].server[0].url: \"https://…@ingest.acme.example\" carries a login",
        ),
        (
            "http://10.0.0.9:8080/",
            "http://10.0.0.9:0/",
            "account[0].server[1].url: \"http://10.0.0.9:0/\" has no proper port",
        ),
        (
            "http://10.0.0.9:8080/",
            "http://a_b-.example/",
            "account[0].server[1].url: ",
        ),
        (
            "login = { username = \"acme\", password = \"geheim-4711\" }",
            "login = \"acme:geheim-4711\"",
            "account[0].server[0].login: is text in quotes; write a table: login = {",
        ),
        (
            "password = \"geheim-4711\"",
            "password = \"geheim\\n4711\"",
            "account[0].server[0].login.password: holds a control character",
        ),
        (
            "password = \"geheim-4711\"",
            "password = \"geheim\", password_file = \"password\"",
            "account[0].server[0].login.password_file: stands beside password",
        ),
        (
            ", password = \"geheim-4711\"",
            "",
            "account[0].server[0].login: has neither password nor password_file",
        ),
        (
            ", password = \"geheim-4711\"",
            ", pasword = \"geheim\", password_file = \"password\"",
            "account[0].server[0].login.pasword: is not a key that m2u knows; did you mean \
            \"password\"?",
        ),
        (
            "username = \"acme\", password = ",
            "username = \"ac:me\", password = ",
            "account[0].server[0].login.username: holds a colon",
        ),
        (
            "hyphen_aliases = false",
            "hyphen_alias = false",
            "account[0].server[0].hyphen_alias: is not a key that m2u knows; did you mean \
            \"hyphen_aliases\"?",
        ),
        (
            "[\"203.0.113.7:8443\"]",
            "[\"203.0.113.7\"]",
            "account[0].server[0].address[0]: \"203.0.113.7\" has no port; write ADDRESS:PORT, \
            such as \"203.0.113.7:443\"",
        ),
        (
            "{ connect = \"250ms\",",
            "{ drain = \"250ms\",",
            "account[0].server[0].timeouts.drain: applies to the whole gateway; write it under \
            [timeouts]",
        ),
        (
            "{ body_bytes = 1048576 }",
            "{ body_bytes = 0 }",
            "account[0].server[0].limits.body_bytes: 0 is out of range",
        ),
        (
            "serial = \"1932-0069-24\"\n",
            "",
            "account[0].device[0].serial: is missing",
        ),
        (
            "serial = \"1932-0069-24\"",
            "serial = \"\"",
            "account[0].device[0].serial: is empty",
        ),
        (
            "[\"10.8.0.7\", \"192.168.7.0/24\"]",
            "[]",
            "account[0].device[0].address: is empty",
        ),
        (
            "\"192.168.7.0/24\"]",
            "\"192.168.7.5/24\"]",
            "account[0].device[0].address[1]: \"192.168.7.5/24\" has bits set behind its prefix; \
            write \"192.168.7.0/24\"",
        ),
    ] {
        folder.refuses(from, to, words);
    }
    // Where the line that is named is the very line that was changed.
    for (from, to, words) in [
        (
            "format = \"json\"",
            "format = \"xml\"",
            "access_log.format: ",
        ),
        (
            "slot = \"m2u3\"",
            "slot = \"m2u03\"",
            "account[0].server[1].slot: ",
        ),
        (
            "\"192.168.7.0/24\"",
            "\n  \"10.8.0\"",
            "account[0].device[0].address[1]: ",
        ),
    ] {
        let line = at(from);
        let line = match to.starts_with('\n') {
            true => format!(
                "m2u.toml:{}: ",
                EXAMPLE[..EXAMPLE.find(from).unwrap()].lines().count() + 1
            ),
            false => line,
        };
        folder.refuses(from, to, &format!("{line}{words}"));
    }
}

#[test]
fn what_stands_twice_is_named_with_both_places() {
    let folder = Folder::new();
    let device =
        "\n[[account.device]]\nname = \"press-07\"\nserial = \"1\"\naddress = [\"10.8.3.3\"]\n";
    for (added, words) in [
        (
            "[[account]]\nref = \"acme\"\n".to_owned(),
            format!(
                "account[2].ref: the account \"acme\" is already at {}account[0].ref",
                at("ref = \"acme\"")
            ),
        ),
        (
            format!("{device}{device}").replacen("10.8.3.3", "10.8.3.4", 1),
            "account[1].device[1].name: the device \"press-07\" is already at m2u.toml:".to_owned(),
        ),
        (
            device.replace("10.8.3.3", "::ffff:10.8.0.7"),
            format!(
                "account[1].device[0].address[0]: 10.8.0.7 already belongs to the device at {}",
                at("address = [\"10.8.0.7\"").trim_end_matches(": ")
            ),
        ),
        (
            "ref = \"gamma\"\n".to_owned(),
            "the key ref stands here twice; leave one out".to_owned(),
        ),
    ] {
        folder.refuses_text(&format!("{EXAMPLE}{added}"), &words);
    }
}

#[test]
fn certificates_and_keys_are_looked_at() {
    let folder = Folder::new();
    folder.pair("expired", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    folder.pair("future", |params| {
        params.not_before = date_time_ymd(2190, 1, 1)
    });
    folder.write("text.pem", "no certificate\n");
    folder.write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    folder.write("torn.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    folder.write(
        "key.pem",
        &fs::read_to_string(folder.path("acme.key")).unwrap(),
    );
    fs::write(folder.path("binary.pem"), [0x30, 0x82, 0x01]).unwrap();
    let pass = &format!("pass:{SECRET}");
    folder.openssl(&[
        "pkcs8",
        "-topk8",
        "-in",
        "acme.key",
        "-out",
        "pkcs8.key",
        "-passout",
        pass,
    ]);
    folder.openssl(&[
        "ec",
        "-in",
        "acme.key",
        "-aes128",
        "-out",
        "legacy.key",
        "-passout",
        pass,
    ]);
    let legacy = fs::read_to_string(folder.path("legacy.key")).unwrap();
    assert!(legacy.contains("Proc-Type: 4,ENCRYPTED"), "{legacy}");

    let certificate = "client_certificate = \"acme.pem\"\nclient_key = \"acme.key\"";
    for (pem, key, words) in [
        (
            "acme.pem",
            "none.key",
            "client_key: the file \"none.key\" does not exist",
        ),
        (
            "none.pem",
            "acme.key",
            "client_certificate: the file \"none.pem\" does not exist",
        ),
        (
            "acme.pem",
            "gateway.key",
            "client_key: the key in \"gateway.key\" does not belong to the first certificate in \
            \"acme.pem\"",
        ),
        (
            "expired.pem",
            "expired.key",
            "client_certificate: the certificate in \"expired.pem\" expired on Jan  1 ",
        ),
        (
            "future.pem",
            "future.key",
            "client_certificate: the certificate in \"future.pem\" is not valid before ",
        ),
        (
            "text.pem",
            "acme.key",
            "client_certificate: the file \"text.pem\" is not PEM",
        ),
        (
            "binary.pem",
            "acme.key",
            "client_certificate: the file \"binary.pem\" is binary, not PEM; convert it: openssl",
        ),
        (
            "key.pem",
            "acme.key",
            "client_certificate: the file \"key.pem\" holds no certificate",
        ),
        (
            "broken.pem",
            "acme.key",
            "client_certificate: certificate 1 of 1 in \"broken.pem\" cannot be parsed",
        ),
        (
            "torn.pem",
            "acme.key",
            "client_certificate: the file \"torn.pem\" is damaged PEM",
        ),
        (
            "acme.pem",
            "acme.pem",
            "client_key: the file \"acme.pem\" holds no private key",
        ),
        (
            "acme.pem",
            "pkcs8.key",
            "remove it: openssl pkey -in \"pkcs8.key\" -out plain.key",
        ),
        (
            "acme.pem",
            "legacy.key",
            "remove it: openssl pkey -in \"legacy.key\" -out plain.key",
        ),
    ] {
        let to = format!("client_certificate = \"{pem}\"\nclient_key = \"{key}\"");
        folder.refuses(certificate, &to, words);
    }
    // One bad file that two servers name is one mistake.
    for (name, words) in [
        ("none.pem", "the file \"none.pem\" does not exist"),
        (
            "broken.pem",
            "certificate 1 of 1 in \"broken.pem\" cannot be parsed",
        ),
        ("key.pem", "the file \"key.pem\" holds no certificate"),
    ] {
        let text = EXAMPLE.replace("acme-ca.pem", name);
        folder.refuses_text(&text, &format!("account[0].server[0].ca: {words}"));
    }
}

#[test]
fn a_chain_and_its_key_may_share_a_file() {
    let folder = Folder::new();
    let both = ["acme.pem", "acme.key"].map(|name| fs::read_to_string(folder.path(name)).unwrap());
    folder.write("acme.pem", &both.concat());
    let text = EXAMPLE.replace("client_key = \"acme.key\"", "client_key = \"acme.pem\"");
    assert_eq!(folder.check(&text, &[]).code, Some(0));
}

#[test]
fn the_device_list_has_its_own_lines() {
    let folder = Folder::new();
    for (rows, words) in [
        (
            "10.8.2.1,gamma,a,1\n",
            "devices.csv:2: account: the account \"gamma\" is not in m2u.toml",
        ),
        (
            "\n\n10.8.2,acme,a,1\n",
            "devices.csv:4: address: \"10.8.2\" is neither an address nor a prefix",
        ),
        (
            "\r\n10.8.2.1/24,acme,a,1\r\n",
            "devices.csv:3: address: \"10.8.2.1/24\" has bits set behind its prefix; write \
            \"10.8.2.0/24\"",
        ),
        (
            "10.8.2.1,acme,a\n",
            "devices.csv:2: has 3 columns; write four: address,account,device,serial",
        ),
        ("10.8.2.1,acme,,1\n", "devices.csv:2: device: is empty"),
        (
            "10.8.2.1,acme,a, 1\n",
            "devices.csv:2: serial: \" 1\" begins or ends with a space",
        ),
        (
            "10.8.2.1,acme,\"a\nb\",1\n",
            "devices.csv:2: device: \"a\\nb\" holds a control character",
        ),
        (
            "10.8.2.1,acme,a,1\n10.8.2.1,acme,b,2\n",
            "devices.csv:3: address: 10.8.2.1 already belongs to the device at devices.csv:2",
        ),
        (
            "10.8.2.1,acme,a,1\n10.8.2.2,acme,a,2\n",
            "devices.csv:3: serial: the device \"a\" has the serial \"1\" at devices.csv:2",
        ),
        (
            "192.168.7.0/24,acme,a,1\n",
            "devices.csv:2: address: 192.168.7.0/24 already belongs to the device at m2u.toml:",
        ),
        (
            "10.8.2.1,acme,press-07,1932-0069-24\n",
            "devices.csv:2: device: the device \"press-07\" is already at m2u.toml:",
        ),
    ] {
        folder.write(
            "devices.csv",
            &format!("address,account,device,serial\n{rows}"),
        );
        folder.refuses_text(EXAMPLE, words);
    }
    for (text, words) in [
        (
            "",
            "devices.csv: is empty; the first line must be: address,account,device,serial",
        ),
        ("10.8.2.1,acme,a,1\n", "devices.csv:1: has another header"),
        (
            "address;account;device;serial\n",
            "devices.csv:1: has columns separated by semicolons, not commas",
        ),
    ] {
        folder.write("devices.csv", text);
        folder.refuses_text(EXAMPLE, words);
    }
    // A byte order mark and the line ends of Windows are no mistakes.
    folder.write(
        "devices.csv",
        "\u{feff}address,account,device,serial\r\n10.8.2.1,acme,a,1\r\n",
    );
    assert_eq!(folder.check(EXAMPLE, &[]).code, Some(0));
    fs::write(
        folder.path("devices.csv"),
        b"address,account,device,serial\n10.8.2.1,acme,M\xfchle,1\n",
    )
    .unwrap();
    folder.refuses_text(EXAMPLE, "devices.csv:2: device: is not UTF-8 text");
}

#[test]
fn long_lists_load_and_their_problems_are_cut_short() {
    const DEVICES: u32 = 200_000;
    let folder = Folder::new();
    let mut list = String::from("address,account,device,serial\n");
    for n in 0..DEVICES {
        let address = std::net::Ipv4Addr::from(0x0b00_0000 + n);
        writeln!(list, "{address},acme,press {n},{n}").unwrap();
    }
    folder.write("devices.csv", &list);
    let settings = folder.load(EXAMPLE);
    assert_eq!(settings.accounts[0].devices.len(), DEVICES as usize + 1);

    folder.write("devices.csv", &list.replace(",acme,", ",emca,"));
    let outcome = folder.check(EXAMPLE, &[]);
    assert!(
        outcome
            .stderr
            .ends_with("and 199900 more problems\n200000 problems\n"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 102);
}

#[test]
fn paths_are_relative_to_the_file() {
    let folder = Folder::new();
    folder.write("m2u.toml", EXAMPLE);
    let path = folder.path("m2u.toml");
    let done = Command::new(env!("CARGO_BIN_EXE_m2u"))
        .args(["check", "--config"])
        .arg(&path)
        .current_dir(Path::new("/"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn an_unreadable_configuration_is_named() {
    let folder = Folder::new();
    let outcome = folder.check(EXAMPLE, &["--config", "none.toml"]);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(
        outcome.stderr,
        "none.toml: the file \"none.toml\" does not exist; name the configuration with --config \
         FILE\n1 problem\n"
    );
    fs::write(folder.path("latin1.toml"), b"listen = []\n# M\xfchle\n").unwrap();
    let outcome = folder.check(EXAMPLE, &["--config", "latin1.toml"]);
    assert!(
        outcome
            .stderr
            .starts_with("latin1.toml:2: is not UTF-8 text"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn flags_override_the_file() {
    let folder = Folder::new();
    let start = EXAMPLE.find("listen = [").unwrap();
    let end = EXAMPLE.find("devices = ").unwrap();
    let without = format!("{}{}", &EXAMPLE[..start], &EXAMPLE[end..]);
    folder.refuses_text(&without, "m2u.toml: listen: is missing");
    assert_eq!(
        folder.check(&without, &["--listen", "127.0.0.1:80"]).code,
        Some(0)
    );
    let twice = ["--listen", "127.0.0.1:80", "--listen", "127.0.0.1:80"];
    let outcome = folder.check(EXAMPLE, &twice);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome
            .stderr
            .starts_with("--listen: 127.0.0.1:80 is already at"),
        "{}",
        outcome.stderr
    );
    let outcome = folder.check(EXAMPLE, &["--cores", "4095"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.starts_with("--cores: core 4095 is not one"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn wrong_usage_is_told_apart_from_refusal() {
    let folder = Folder::new();
    for flags in [
        ["--ring-entries", "100"],
        ["--relay-bytes", "1"],
        ["--cores", "3-0"],
        ["--listen", "localhost:80"],
        ["--domain", "10.8.0.1"],
        ["--defer-taskrun", "maybe"],
        ["--cofnig", "m2u.toml"],
    ] {
        let outcome = folder.check(EXAMPLE, &flags);
        assert_eq!(outcome.code, Some(2), "{flags:?}: {}", outcome.stderr);
    }
    for flags in [["--help"], ["-h"]] {
        let outcome = folder.check(EXAMPLE, &flags);
        assert_eq!(outcome.code, Some(0));
        for words in [
            "--config <FILE>",
            "--cores <LIST>",
            "0-3,6",
            "[default: m2u.toml]",
        ] {
            assert!(
                outcome.stdout.contains(words),
                "{words}\n{}",
                outcome.stdout
            );
        }
    }
}
