//! `[[openvpn]]` on real files: what `m2u check` accepts, and how it names every mistake.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, time::Duration};

use common::folder::Folder;
use m2u::config::settings::{HubStatus, Settings};

const CONFIGURATION: &str = r#"listen = [{ address = "127.0.0.1:8080", scope = "north" }]

[leases]

[[openvpn]]
hub = "north"
scope = "north"
status = "north.status"
poll = "10s"
common_names = { "ewon-0007" = "acme/press-07", ewon-8 = "plant/b/mill" }
pattern = "{account}.{device}"
csv = "north.csv"

[[openvpn]]
hub = "south"
management = "/run/openvpn/south.sock"
csv = "north.csv"

[[account]]
ref = "acme"

[[account.device]]
name = "press-07"
serial = "1932-0069-24"

[[account.device]]
name = "press-08"
serial = "1932-0070-24"

[[account]]
ref = "plant/b"

[[account.device]]
name = "mill"
serial = "2001-0001-24"
"#;

const LIST: &str = "common_name,account,device\n\
    ewon-0008,acme,press-08\n\
    \"ewon, nine\",plant/b,mill\n\
    ewon-0007,acme,press-08\n";

fn folder() -> Folder {
    let folder = Folder::new();
    folder.write("north.csv", LIST);
    folder
}

fn settings() -> Settings {
    folder().load(CONFIGURATION)
}

/// Checks the configuration with `from` turned into `to`, which must be refused for one reason.
fn refuses(from: &str, to: &str, expected: &str) {
    assert_eq!(CONFIGURATION.matches(from).count(), 1, "{from:?}");
    folder().refuses_text(&CONFIGURATION.replace(from, to), expected);
}

/// Likewise, with another list.
fn refuses_list(list: &str, expected: &str) {
    let folder = folder();
    folder.write("north.csv", list);
    folder.refuses_text(CONFIGURATION, expected);
}

#[test]
fn hubs_are_what_the_file_says() {
    let settings = settings();
    let [north, south] = &settings.openvpn[..] else {
        panic!("two hubs");
    };
    assert_eq!(
        (&*north.name, north.scope.as_deref()),
        ("north", Some("north"))
    );
    assert!(matches!(&north.status, HubStatus::File(path) if path.ends_with("north.status")));
    assert_eq!(north.poll, Duration::from_secs(10));
    let names = &north.common_names;
    assert_eq!(
        names.device("ewon-0007"),
        Some(("acme", "press-07")),
        "written beats listed"
    );
    assert_eq!(names.device("ewon-8"), Some(("plant/b", "mill")));
    assert_eq!(names.device("ewon, nine"), Some(("plant/b", "mill")));
    assert_eq!(names.device("acme.press-08"), Some(("acme", "press-08")));
    assert_eq!(names.device("ewon-0009"), None);

    let socket = "/run/openvpn/south.sock".into();
    assert_eq!(
        (south.scope.as_deref(), &south.status),
        (None, &HubStatus::Socket(socket))
    );
    assert_eq!(south.poll, Duration::from_secs(30));
    assert_eq!(
        south.common_names.device("ewon-0007"),
        Some(("acme", "press-08"))
    );
    assert_eq!(south.source(), "openvpn:south");

    for (text, host, port) in [("127.0.0.1:7505", "127.0.0.1", 7505), ("[::1]:1", "::1", 1)] {
        let text = CONFIGURATION.replace("/run/openvpn/south.sock", text);
        let settings = folder().load(&text);
        let expected = HubStatus::Address(host.into(), port);
        assert_eq!(settings.openvpn[1].status, expected);
    }
}

#[test]
fn mistakes_of_a_hub_are_named() {
    refuses(
        "hub = \"south\"",
        "",
        "m2u.toml:14: openvpn[1].hub: is missing; write the name",
    );
    refuses(
        "\"south\"",
        "\"so uth\"",
        "m2u.toml:15: openvpn[1].hub: \"so uth\" is no name",
    );
    refuses(
        "\"south\"",
        "\"north\"",
        "openvpn[1].hub: the hub \"north\" is already at m2u.toml:6: openvpn[0].hub",
    );
    refuses(
        "scope = \"north\"\nstatus",
        "scope = \"nrth\"\nstatus",
        "no listener has the scope",
    );
    refuses(
        "status = \"north.status\"",
        "",
        "has neither status nor management",
    );
    refuses(
        "status = \"north.status\"",
        "status = \"north.status\"\nmanagement = \"/m\"",
        "openvpn[0].management: stands beside status",
    );
    refuses(
        "status = \"north.status\"",
        "management = \"/run/openvpn/south.sock\"",
        "openvpn[1].management: is what the hub at m2u.toml:8: openvpn[0].management has",
    );
    for management in ["7505", "localhost", "host:0", "host:65536", ":7505", ""] {
        let to = format!("management = \"{management}\"");
        let from = "management = \"/run/openvpn/south.sock\"";
        refuses(
            from,
            &to,
            "is no management interface; write what the hub's",
        );
    }
    refuses(
        "\"10s\"",
        "\"500ms\"",
        "write a duration from \"1s\" to \"60m\"",
    );
    refuses(
        "\"10s\"",
        "10",
        "openvpn[0].poll: is a whole number; write a duration in quotes",
    );
    refuses(
        "poll =",
        "pol =",
        "openvpn[0].pol: is not a key that m2u knows; did you mean \"poll\"?",
    );
    let alone = folder().check(&CONFIGURATION.replace("[leases]\n", ""), &[]);
    let expected = "m2u.toml:4: openvpn: stands without [leases]; write it as well";
    assert!(alone.stderr.contains(expected), "{}", alone.stderr);
    refuses(
        "sock\"\ncsv = \"north.csv\"",
        "sock\"",
        "m2u.toml:14: openvpn[1]: does not say whose device a client is",
    );
    let hubs = "openvpn = 7\n";
    let text = format!(
        "{hubs}{}",
        CONFIGURATION.split("[[openvpn]]").next().unwrap()
    );
    let text = format!("{text}[[account]]\nref = \"acme\"\n");
    folder().refuses_text(
        &text,
        "openvpn: is a whole number; write an array of tables",
    );
}

#[test]
fn a_common_name_stands_for_a_device_that_exists() {
    refuses(
        "\"acme/press-07\"",
        "\"acme/press-7\"",
        "m2u.toml:10: openvpn[0].common_names.ewon-0007: the account \"acme\" has no device",
    );
    refuses(
        "\"acme/press-07\"",
        "\"amce/press-07\"",
        "the account \"amce\" is not in m2u.toml",
    );
    refuses(
        "\"acme/press-07\"",
        "\"press-07\"",
        "\"press-07\" names no device; write \"ACCOUNT/",
    );
    refuses(
        "\"acme/press-07\"",
        "\"acme/\"",
        "has a device that is empty",
    );
    refuses(
        "\"acme/press-07\"",
        "7",
        "common_names.ewon-0007: is a whole number; write text in",
    );
    refuses(
        "\"ewon-0007\" =",
        "\"\" =",
        "openvpn[0].common_names.\"\": has no common name",
    );
    refuses(
        "\"ewon-0007\" =",
        "\"UNDEF\" =",
        "is what OpenVPN calls a client without a name",
    );
    refuses(
        "\"ewon-0007\" =",
        "\"a\\tb\" =",
        "common_names.\"a\\tb\": has a common name with a",
    );
    let text = CONFIGURATION.replace("ref = \"acme\"", "ref = \"plant\"");
    let text = text.replace("acme/press-07", "plant/press-07");
    let folder = Folder::new();
    folder.write("north.csv", "common_name,account,device\n");
    folder.refuses_text(
        &text,
        "\"plant/b/mill\" may be a device of \"plant\" or of \"plant/b\"",
    );
}

#[test]
fn mistakes_of_a_list_are_named_with_their_lines() {
    refuses_list(
        "",
        "north.csv: is empty; the first line must be: common_name,account,device",
    );
    refuses_list("name,account,device\n", "north.csv:1: has another header");
    refuses_list(
        "common_name;account;device\n",
        "has columns separated by semicolons",
    );
    let line = |line: &str| format!("{LIST}{line}\n");
    refuses_list(
        &line("a,acme"),
        "north.csv:5: has 2 columns; write three: common_name,account,",
    );
    refuses_list(
        &line("a,amce,press-08"),
        "north.csv:5: the account \"amce\" is not in m2u.toml",
    );
    refuses_list(
        &line("a,acme,press"),
        "north.csv:5: the account \"acme\" has no device \"press\"",
    );
    refuses_list(
        &line(",acme,press-08"),
        "north.csv:5: common_name: has no common name",
    );
    refuses_list(&line("a,acme,"), "north.csv:5: device: is empty");
    refuses_list(
        &line("ewon-0008,acme,press-07"),
        "north.csv:5: common_name: the common name \"ewon-0008\" is already at north.csv:2",
    );
    let missing = Folder::new();
    missing.refuses_text(
        CONFIGURATION,
        "m2u.toml:12: openvpn[0].csv: the file \"north.csv\" does",
    );
}

#[test]
fn a_pattern_maps_no_client_to_another_account() {
    let pattern = "{account}.{device}";
    refuses(
        pattern,
        "{account}{device}",
        "does not say where the account ends",
    );
    refuses(
        pattern,
        "{account}--{device}",
        "which can overlap with itself",
    );
    refuses(
        pattern,
        "{device}",
        "openvpn[0].pattern: \"{device}\" is no pattern",
    );
    // An account whose ref holds the separator is harmless until its beginning is an account, too.
    let text = CONFIGURATION.replace("ref = \"plant/b\"", "ref = \"acme.b\"");
    let text = text.replace("\"plant/b/mill\"", "\"acme.b/mill\"");
    let folder = Folder::new();
    folder.write("north.csv", "common_name,account,device\n");
    folder.refuses_text(
        &text,
        "openvpn[0].pattern: would take devices of the account \"acme.b\" for those of \"acme\"",
    );
    let text = text
        .replace("ref = \"acme\"", "ref = \"other\"")
        .replace("acme/", "other/");
    assert_eq!(folder.check(&text, &[]).stderr, "");
}

#[test]
fn a_mistake_elsewhere_is_not_told_twice() {
    refuses(
        "serial = \"1932-0069-24\"",
        "",
        "account[0].device[0].serial: is missing",
    );
    refuses("ref = \"acme\"\n", "", "account[0].ref: is missing");
}

#[test]
fn what_is_shown_is_a_configuration_again() {
    let folder = folder();
    let shown = folder.show(CONFIGURATION);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let again = folder.load(&shown.stdout);
    assert_eq!(again.openvpn, folder.load(CONFIGURATION).openvpn);
    assert!(
        shown
            .stdout
            .contains("management = \"/run/openvpn/south.sock\"")
    );
}

#[test]
fn the_guides_configurations_are_accepted() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/openvpn/README.md");
    let guide = fs::read_to_string(guide).unwrap();
    let blocks = guide.split("```toml\n").skip(1);
    let blocks: Vec<&str> = blocks
        .map(|text| text.split("```").next().unwrap())
        .collect();
    let [first, scopes] = blocks[..] else {
        panic!("two configurations");
    };
    let folder = Folder::new();
    folder.write("north.csv", "common_name,account,device\n");
    // The user need not be there.
    let first = first.replace("\"openvpn\"", "\"root\"");
    let outcome = folder.check(&first, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let scopes = format!("{scopes}[leases]\n[[account]]\nref = \"acme\"\n");
    let outcome = folder.check(&scopes, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}
