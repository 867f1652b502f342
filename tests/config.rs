//! `m2u check` on real files: what it accepts, and how it names every mistake.
//!
//! The files that a configuration names have tests of their own, in `config_files.rs`.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, net::SocketAddr, path::Path, process::Command, sync::Arc, time::Duration};

use common::folder::*;
use m2u::config::{
    self,
    settings::{LogFormat, OnFailure, Scheme},
};
use rcgen::date_time_ymd;

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
    assert_eq!(first.limits.body_bytes, 1_048_576);
    assert_eq!(first.limits.pool_per_server, 32);
    assert_eq!(second.slot.number(), 3);
    assert_eq!(second.url.to_string(), "http://10.0.0.9:8080");
    assert_eq!(second.login.as_ref().unwrap().password, SECRET);
    assert_eq!(second.limits.body_bytes, 104_857_600);

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
            "{ body_bytes = 1048576, pool_per_server = 4097 }",
            "account[0].server[0].limits.pool_per_server: 4097 is out of range",
        ),
        (
            "{ body_bytes = 1048576 }",
            "{ body_bytes = 1048576, fields = 50 }",
            "account[0].server[0].limits.fields: applies to the whole gateway; write it under [limits]",
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
fn a_network_whose_peers_are_believed_holds_no_device() {
    let folder = Folder::new();
    let believed = "[\"10.9.0.0/24\"]";
    let (line, device) = (at(believed), at("\"10.8.0.7\", \"192.168.7.0/24\""));
    let device = device.trim_end_matches(": ");
    for (network, theirs, place) in [
        ("10.8.0.0/24", "10.8.0.7/32", device),
        ("192.168.7.9", "192.168.7.0/24", device),
        ("192.168.0.0/21", "192.168.7.0/24", device),
        ("192.168.7.0/24", "192.168.7.0/24", device),
        ("10.8.1.0/31", "10.8.1.1/32", "devices.csv:2"),
        ("192.168.9.128/25", "192.168.9.0/24", "devices.csv:3"),
    ] {
        let ours = match network.contains('/') {
            true => network.to_owned(),
            false => format!("{network}/32"),
        };
        let expected = format!(
            "{line}listen[1].proxy_protocol_from[0]: {ours} overlaps {theirs}, a device's address \
             at {place}; such a device could speak as any other"
        );
        folder.refuses(believed, &format!("[\"{network}\"]"), &expected);
    }
    // A balancer that is a device by itself, for its own checks; and one beside all devices.
    for network in ["10.8.0.7", "10.8.1.2/32", "10.8.2.0/24"] {
        let text = EXAMPLE.replace(believed, &format!("[\"{network}\"]"));
        let outcome = folder.check(&text, &[]);
        assert_eq!(outcome.code, Some(0), "{network}: {}", outcome.stderr);
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
        ["--splice-threshold", "0"],
        ["--splice-threshold", "some"],
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
