//! What `m2u check` says of the files that a configuration names: certificates, keys, device lists.
//!
//! Keys and certificates are made afresh; the passphrase-protected keys by the openssl program.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Command,
};

use common::{
    certificates::{Authority, Validity},
    folder::*,
    servers::program,
};
use rcgen::date_time_ymd;

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
fn revocation_lists_are_looked_at() {
    let folder = Folder::new();
    let list = Authority::new("acme").revoke(&[], Validity::Current);
    let due = Authority::new("late").revoke(&[], Validity::Expired);
    folder.write("two.pem", &[list.as_str(), &due].concat());
    folder.write("torn.pem", "-----BEGIN X509 CRL-----\nAAAA\n");
    folder.write(
        "broken.pem",
        &format!("{list}-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"),
    );
    let older = Authority::new("acme").revoke(&[], Validity::Expired);
    let part =
        |name: &str| Authority::new("acme").revoke_part(&format!("http://acme.example/{name}"));
    folder.write("parts.pem", &[part("1"), part("2")].concat());
    folder.write("mixed.pem", &[part("1"), list.clone()].concat());
    folder.write("twice.pem", &[older, list].concat());
    fs::write(folder.path("binary.pem"), [0x30, 0x82, 0x01]).unwrap();
    folder.write("database", "");
    folder.write(
        "openssl.cnf",
        "[ca]\ndefault_ca = it\n[it]\ndatabase = database\ndefault_md = sha256\n\
         default_crl_days = 30\n",
    );
    folder.openssl(&[
        "ca",
        "-gencrl",
        "-config",
        "openssl.cnf",
        "-cert",
        "acme-ca.pem",
        "-keyfile",
        "acme-ca.key",
        "-out",
        "v1.pem",
    ]);
    let with = |name: &str| EXAMPLE.replace("hyphen", &format!("crl = \"{name}\"\nhyphen"));
    for (name, words) in [
        ("none.pem", "the file \"none.pem\" does not exist"),
        (
            "acme-ca.pem",
            "the file \"acme-ca.pem\" holds no revocation list; it needs a \"-----BEGIN X509 CRL",
        ),
        (
            "binary.pem",
            "the file \"binary.pem\" is binary, not PEM; convert it: openssl crl -inform der",
        ),
        ("torn.pem", "the file \"torn.pem\" is damaged PEM"),
        (
            "broken.pem",
            "list 2 of 2 in \"broken.pem\" cannot be used (",
        ),
        (
            "twice.pem",
            "list 2 of 2 in \"twice.pem\" is of the same authority as list 1, for the same certificates",
        ),
        (
            "mixed.pem",
            "list 2 of 2 in \"mixed.pem\" is of the same authority as list 1, for the same certificates",
        ),
        (
            "v1.pem",
            "list 1 of 1 in \"v1.pem\" is of version 1; have it made with extensions",
        ),
    ] {
        let expected = format!("account[0].server[0].crl: {words}");
        folder.refuses_text(&with(name), &expected);
    }
    let parts = folder.check(&with("parts.pem"), &[]);
    assert_eq!(parts.code, Some(0), "{}", parts.stderr);
    // A gateway starts all the same, and only warns.
    let plain = EXAMPLE.replace("8080/\"\n", "8080/\"\ncrl = \"torn.pem\"\n");
    folder.refuses_text(
        &plain,
        "account[0].server[1].crl: does nothing for a server that shows no certificate",
    );
    folder.refuses_text(
        &with("two.pem"),
        "account[0].server[0].crl: list 2 of 2 in \"two.pem\" ran out on Jan  1 ",
    );
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
fn quotes_change_neither_devices_nor_lines() {
    let folder = Folder::new();
    let list = "address,account,device,serial\n10.8.2.1,acme,a,1\n\"10.8.2.2\",\"acme\",\"b, c\",\
                2\n\n10.8.2.3,acme,a,1\r\n10.8.2.4,beta,a,2\n";
    for list in [list.to_owned(), list.replace("10.8.2.1", "\"10.8.2.1\"")] {
        folder.write("devices.csv", &list);
        let settings = folder.load(EXAMPLE);
        let devices = settings.accounts.iter().flat_map(|account| {
            let shown = |device: m2u::config::settings::Device<'_>| {
                format!(
                    "{} {} {:?}",
                    account.reference, device.name, device.networks
                )
            };
            account.devices.iter().map(shown).collect::<Vec<_>>()
        });
        let listed: Vec<_> = devices
            .filter(|device| device.contains("10.8.2."))
            .collect();
        assert_eq!(
            listed,
            [
                "acme a [10.8.2.1/32, 10.8.2.3/32]",
                "acme b, c [10.8.2.2/32]",
                "beta a [10.8.2.4/32]",
            ]
        );
        folder.write(
            "devices.csv",
            &format!("{list}10.8.2.1,acme,d,4\n10.8.2.5,acme,\"b, c\",3\n"),
        );
        let outcome = folder.check(EXAMPLE, &[]);
        for words in [
            "devices.csv:7: address: 10.8.2.1 already belongs to the device at devices.csv:2",
            "devices.csv:8: serial: the device \"b, c\" has the serial \"2\" at devices.csv:3",
            "2 problems",
        ] {
            let said = outcome.stderr.lines().any(|line| line.starts_with(words));
            assert!(said, "{words}\n{}", outcome.stderr);
        }
    }
}

#[test]
fn mistakes_of_both_files_are_named_at_once() {
    let folder = Folder::new();
    folder.write(
        "devices.csv",
        "address,account,device,serial\n10.8.1.1,gamma,a,1\n10.8.0.7,acme,b,2\n\
         10.8.1.3,beta,,3\n10.8.1,beta,c\n10.8.1.4,beta,d,4\n",
    );
    let mut text = EXAMPLE.to_owned();
    for (from, to) in [
        ("head = \"10s\"", "head = \"10\""),
        ("path = \"access.log\"", "path = \"none/access.log\""),
        ("slot = \"m2u3\"", "slot = \"m2u1\""),
        ("client_key = \"gateway.key\"", "client_key = \"acme.key\""),
        ("[\"10.9.0.0/24\"]", "[\"10.8.1.4/30\"]"),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from:?} is not unique");
        text = text.replace(from, to);
    }
    let outcome = folder.check(&text, &[]);
    assert_eq!((outcome.code, &*outcome.stdout), (Some(1), ""));
    let device = at("\"10.8.0.7\", \"192.168.7.0/24\"");
    let expected = [
        at("[\"10.9.0.0/24\"]") + "listen[1].proxy_protocol_from[0]: 10.8.1.4/30 overlaps 10.8.1.4",
        at("head = \"10s\"") + "timeouts.head: ",
        at("path = \"access.log\"") + "access_log.path: ",
        at("client_key = \"gateway.key\"") + "upstream.client_key: ",
        at("slot = \"m2u3\"") + "account[0].server[1].slot: ",
        "devices.csv:2: account: the account \"gamma\"".to_owned(),
        format!(
            "devices.csv:3: address: 10.8.0.7 already belongs to the device at {}",
            device.trim_end_matches(": ")
        ),
        "devices.csv:4: device: is empty".to_owned(),
        "devices.csv:5: has 3 columns".to_owned(),
    ];
    for words in &expected {
        let count = outcome
            .stderr
            .lines()
            .filter(|line| line.starts_with(words));
        assert_eq!(count.count(), 1, "{words}\n{}", outcome.stderr);
    }
    let summary = format!("\n{} problems\n", expected.len());
    assert!(outcome.stderr.ends_with(&summary), "{}", outcome.stderr);
}

/// That `check` and `run` refuse a configuration with these words.
fn assert_refused_without_privilege(folder: &Folder, text: &str, words: &str) {
    folder.write("m2u.toml", &text.replace("127.0.0.2:80", "127.0.0.2:0"));
    for subcommand in ["check", "run"] {
        let done = without_privilege(&["--config", "m2u.toml"], subcommand)
            .current_dir(folder.path(""))
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{subcommand}: {said}");
        assert!(said.contains(words), "{subcommand}: {said}");
    }
}

#[test]
fn a_log_that_could_not_be_made_is_refused() {
    let folder = Folder::new();
    let shut = folder.path("shut");
    fs::create_dir(&shut).unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o555)).unwrap();
    let text = EXAMPLE.replace("path = \"access.log\"", "path = \"shut/access.log\"");
    let words = "access_log.path: the folder of \"shut/access.log\" may not be written";
    assert_refused_without_privilege(&folder, &text, words);
    assert_eq!(fs::read_dir(&shut).unwrap().count(), 0);
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o755)).unwrap();
    let outcome = folder.check(&text, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(fs::read_dir(&shut).unwrap().count(), 0, "no trace is left");
}

#[test]
fn a_journal_beside_which_nothing_can_be_made_is_refused() {
    let folder = Folder::new();
    let shut = folder.path("shut");
    fs::create_dir(&shut).unwrap();
    fs::write(shut.join("journal"), "").unwrap();
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o555)).unwrap();
    let leases = "[leases]\nsocket = \"feed.sock\"\njournal = \"shut/journal\"\n[upstream]";
    let text = EXAMPLE.replacen("[upstream]", leases, 1);
    let words = "leases.journal: the folder of \"shut/journal\" may not be written";
    assert_refused_without_privilege(&folder, &text, words);
    fs::set_permissions(&shut, fs::Permissions::from_mode(0o755)).unwrap();
}

/// m2u, with no way around the permissions of files that root would have.
fn without_privilege(flags: &[&str], subcommand: &str) -> Command {
    let owner = fs::metadata("/proc/self").unwrap().uid();
    let mut command = match owner {
        0 => {
            let mut command = Command::new(program("setpriv"));
            command.args(["--bounding-set", "-dac_override,-dac_read_search"]);
            command.arg(env!("CARGO_BIN_EXE_m2u"));
            command
        }
        _ => Command::new(env!("CARGO_BIN_EXE_m2u")),
    };
    command.arg(subcommand).args(flags);
    command
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
