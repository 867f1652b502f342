//! `m2u lease` against a running gateway, and what devices see of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    process::{Child, ChildStderr, Stdio},
    time::Instant,
};

use common::{
    device::Device,
    gateway::{Gateway, acme, command, run_to_end},
    leases::{self, Outcome, connect, fleet, identity, lease, lease_command, lease_with, whose},
    upstream::Upstream,
    wait_until,
};
use m2u::config;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

const PRESS: &str = "--account acme --device press-07";
const OTHER_PRESS: &str = "--account acme --device press-08";

fn press(name: &str) -> Result<String, u16> {
    Ok(name.to_owned())
}

#[test]
fn an_added_address_is_stamped_and_a_released_one_refused() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let whose = |source| whose(source, gateway.address());
    assert_eq!(whose("127.0.0.7"), Err(403));
    assert_eq!(
        lease(&gateway, &format!("add 127.0.0.7 {PRESS}")).done(),
        ""
    );
    assert_eq!(whose("127.0.0.7"), press("press-07"));
    assert_eq!(whose("127.0.0.8"), Err(403));
    lease(&gateway, &format!("add 127.0.8.0/24 {OTHER_PRESS}")).done();
    assert_eq!(whose("127.0.8.200"), press("press-08"));
    assert_eq!(lease(&gateway, "release 127.0.0.7").done(), "");
    assert_eq!(whose("127.0.0.7"), Err(403));
    lease(&gateway, "release 127.0.0.7").refused("the source has no lease of 127.0.0.7");
    lease(&gateway, "release 127.0.8.0/24").done();
    assert_eq!(whose("127.0.8.200"), Err(403));
    gateway.stop();
}

#[test]
fn a_late_release_does_not_end_a_newer_visit() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    for visit in ["first", "second"] {
        lease(
            &gateway,
            &format!("add 127.0.0.7 {PRESS} --session {visit}"),
        )
        .done();
    }
    let late = "leased in another session";
    lease(&gateway, "release 127.0.0.7 --session first").refused(late);
    lease(&gateway, "release 127.0.0.7").refused(late);
    assert_eq!(whose("127.0.0.7", gateway.address()), press("press-07"));
    lease(&gateway, "release 127.0.0.7 --session second").done();
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(403));
    lease(&gateway, &format!("add 127.0.0.7 {PRESS} --session third")).done();
    lease(&gateway, "release 127.0.0.7 --any-session").done();
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(403));
    for address in ["127.0.0.7", "127.0.8.0/24"] {
        lease(&gateway, &format!("add {address} {PRESS} --session fourth")).done();
    }
    lease(&gateway, "release --session third").refused("no lease of the session");
    assert_eq!(whose("127.0.8.1", gateway.address()), press("press-07"));
    lease(&gateway, "release --session fourth").done();
    for address in ["127.0.0.7", "127.0.8.1"] {
        assert_eq!(whose(address, gateway.address()), Err(403));
    }
}

#[test]
fn an_address_moves_only_when_it_is_told_to() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    lease(&gateway, &format!("add 127.0.0.7 {PRESS}")).done();
    let taken = "is the device \"press-07\"'s of \"acme\", says manual";
    lease(&gateway, &format!("add 127.0.0.7 {OTHER_PRESS}")).refused(taken);
    lease(
        &gateway,
        &format!("add 127.0.0.7 {OTHER_PRESS} --source hub --replace"),
    )
    .refused(taken);
    lease(&gateway, &format!("add 127.0.0.7 {PRESS} --source hub")).done();
    lease(&gateway, "release 127.0.0.7 --source hub").done();

    let mut device = Device::connect("127.0.0.7", gateway.address());
    assert_eq!(identity(&mut device), press("press-07"));
    lease(&gateway, &format!("add 127.0.0.7 {OTHER_PRESS} --replace")).done();
    assert!(device.is_closed(), "an idle connection outlives its lease");
    assert_eq!(whose("127.0.0.7", gateway.address()), press("press-08"));
}

#[test]
fn the_configurations_own_addresses_are_nobody_elses() {
    let upstream = Upstream::echo();
    let url = upstream.url();
    let leases = "[leases]\nsocket = \"feed.sock\"\n";
    let beta = fleet("beta", &url, &["mill-1"]);
    let gateway = Gateway::with(&format!("{leases}{}{beta}", acme(&url)));
    let mill = "--account beta --device mill-1";
    lease(&gateway, &format!("add 127.0.0.7 {mill} --replace")).refused("says config");
    lease(&gateway, &format!("add 127.0.0.9 {mill} --source config")).refused("\"config\" is");
    assert_eq!(whose("127.0.0.7", gateway.address()), press("press-07"));
    assert_eq!(whose("127.0.0.9", gateway.address()), Err(403));
}

#[test]
fn a_set_takes_effect_whole() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let whose = |source| whose(source, gateway.address());
    lease(&gateway, &format!("add 127.0.0.9 {PRESS}")).done();
    let set = "address,account,device,session\n\
        127.0.0.7,acme,press-07,s1\n\
        127.0.8.0/24,acme,press-08,\n";
    fs::write(gateway.path("set.csv"), set).unwrap();
    let said = lease(&gateway, "sync set.csv --source hub").done();
    assert_eq!(said, "2 leases of hub\n");
    assert_eq!(whose("127.0.0.7"), press("press-07"));
    assert_eq!(whose("127.0.8.1"), press("press-08"));

    // What is not in the next set ends, what has moved has moved, and other sources stay.
    let set = "device,account,address\npress-09,acme,127.0.0.7\n";
    let said = lease_with(&gateway, "sync - --source hub", set).done();
    assert_eq!(said, "1 lease of hub\n");
    assert_eq!(whose("127.0.0.7"), press("press-09"));
    assert_eq!(whose("127.0.8.1"), Err(403));
    assert_eq!(whose("127.0.0.9"), press("press-07"));

    let none = "address,account,device\n";
    let said = lease_with(&gateway, "sync - --source hub", none).done();
    assert_eq!(said, "0 leases of hub\n");
    assert_eq!(whose("127.0.0.7"), Err(403));
}

#[test]
fn a_mistake_in_a_set_is_told_by_its_line_and_changes_nothing() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    lease(
        &gateway,
        &format!("add 127.0.0.7 {PRESS} --source hub --epoch 5"),
    )
    .done();
    lease(&gateway, &format!("add 127.0.0.9 {PRESS}")).done();
    for (row, words) in [
        // What the command itself finds.
        ("127.0.0,acme,press-08", "set.csv:4: \"127.0.0\" is neither"),
        ("127.0.0.8,acme", "set.csv:4: has 2 columns"),
        (
            "127.0.0.10,acme,press-08",
            "set.csv:4: 127.0.0.10 stands at set.csv:2 already",
        ),
        // What the gateway finds.
        (
            "127.0.0.9,acme,press-08",
            "set.csv:4: line 2 of the set: 127.0.0.9",
        ),
        (
            "127.0.0.8,acme,saw",
            "set.csv:4: line 2 of the set: the account \"acme\" has no device",
        ),
        (
            "127.0.0.8,gamma,saw",
            "set.csv:4: line 2 of the set: no account has the ref \"gamma\"",
        ),
    ] {
        let set = format!("address,account,device\n127.0.0.10,acme,press-09\n\n{row}\n");
        fs::write(gateway.path("set.csv"), set).unwrap();
        lease(&gateway, "sync set.csv --source hub").refused(words);
    }
    fs::write(
        gateway.path("set.csv"),
        "address,account,device\n127.0.0.10,acme,press-09\n",
    )
    .unwrap();
    // No line's fault.
    let old = "m2u lease: the source has begun anew since, with epoch 5\n";
    let outcome = lease(&gateway, "sync set.csv --source hub --epoch 4");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), old));
    lease(&gateway, "sync none.csv --source hub").refused("none.csv can't be read");
    fs::write(gateway.path("set.csv"), "address;account;device\n").unwrap();
    lease(&gateway, "sync set.csv --source hub").refused("set.csv:1: the first line must be");
    let mut feed = connect(&gateway);
    assert_eq!(
        feed.leases(),
        [
            "127.0.0.7 press-07 confirmed",
            "127.0.0.9 press-07 confirmed"
        ]
    );
}

#[test]
fn leases_are_listed_for_people_and_for_programs() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    lease(
        &gateway,
        &format!("add 127.0.8.0/24 {OTHER_PRESS} --source hub --epoch 3"),
    )
    .done();
    lease(
        &gateway,
        &format!("add 127.0.0.7 {PRESS} --session s1 --expires 10m"),
    )
    .done();

    let shown = lease(&gateway, "list").done();
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|row| row.split_whitespace().collect())
        .collect();
    let titles = "address scope source account device session state expires";
    assert_eq!(rows[0].join(" "), titles);
    assert_eq!(
        rows[1][..7].join(" "),
        "127.0.0.7 - manual acme press-07 s1 confirmed"
    );
    assert!(rows[1][7].ends_with('Z'), "{shown}");
    assert_eq!(
        rows[2].join(" "),
        "127.0.8.0/24 - hub acme press-08 - confirmed -"
    );
    assert_eq!(rows.len(), 3);

    let lines = lease(&gateway, "list --json").done();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    let first = &lines[0]["lease"];
    assert_eq!(
        (&first["address"], &first["session"]),
        (&"127.0.0.7".into(), &"s1".into())
    );
    assert!(first["expires_ms"].is_u64() && first.get("scope").is_none());
    assert_eq!(lines[1]["lease"]["epoch"], 3);

    for (arguments, addresses) in [
        ("--source hub", "127.0.8.0/24"),
        ("--address 127.0.8.9", "127.0.8.0/24"),
        ("--address 127.0.0.0/29", "127.0.0.7"),
        ("--address 127.0.0.0/8", "127.0.0.7 127.0.8.0/24"),
        ("--address 127.0.0.0/8 --source manual", "127.0.0.7"),
        ("--source none", ""),
    ] {
        let shown = lease(&gateway, &format!("list {arguments}")).done();
        let rows = shown.lines().skip(1);
        let found: Vec<_> = rows
            .filter_map(|row| row.split_whitespace().next())
            .collect();
        assert_eq!(found.join(" "), addresses, "{arguments}");
    }
}

/// A `m2u lease watch` that has begun, its lines, and what it says on standard error.
fn watch(
    gateway: &Gateway,
    flags: &str,
) -> (
    Child,
    impl Iterator<Item = String> + use<>,
    BufReader<ChildStderr>,
) {
    let mut child = lease_command(gateway, &format!("watch {flags}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    errors.read_line(&mut said).unwrap();
    assert!(
        said.starts_with("m2u lease: watching from revision "),
        "{said}"
    );
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.map(Result::unwrap), errors)
}

#[test]
fn changes_are_watched_as_they_come() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let (people, mut rows, errors) = watch(&gateway, "");
    let (mut program, mut lines, unheard) = watch(&gateway, "--json");
    lease(&gateway, &format!("add 127.0.0.7 {PRESS} --session s1")).done();
    lease(&gateway, "release 127.0.0.7 --session s1").done();

    let mut next = || {
        rows.next()
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(next().starts_with("event address scope"));
    assert_eq!(
        next(),
        "leased 127.0.0.7 - manual acme press-07 s1 confirmed -"
    );
    assert_eq!(next(), "ended 127.0.0.7 - manual - - - - -");

    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap()).unwrap();
    let (leased, ended) = (next(), next());
    assert_eq!(
        (&leased["event"], &ended["event"]),
        (&"leased".into(), &"ended".into())
    );
    assert_eq!(leased["lease"]["device"], "press-07");
    assert_eq!(ended["lease"]["address"], "127.0.0.7");
    assert!(leased["revision"].as_u64() < ended["revision"].as_u64());

    // They end with the gateway, and say so; nobody has to listen.
    drop(unheard);
    gateway.stop();
    assert_eq!(program.wait().unwrap().code(), Some(1));
    assert_eq!(Outcome::of(people).code, Some(1));
    let said: Vec<_> = errors.lines().map(Result::unwrap).collect();
    assert_eq!(
        said,
        ["m2u lease: m2u has closed the connection; is it ending?"]
    );
}

#[test]
fn a_lease_ends_by_itself() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let mut feed = connect(&gateway);
    lease(&gateway, &format!("add 127.0.0.7 {PRESS} --expires 1s")).done();
    lease(
        &gateway,
        &format!("add 127.0.0.8 {OTHER_PRESS} --expires 1440m"),
    )
    .done();
    wait_until("the lease to end", || {
        whose("127.0.0.7", gateway.address()) == Err(403)
    });
    assert_eq!(feed.leases(), ["127.0.0.8 press-08 confirmed"]);
    // Whoever says so again gives it more time.
    lease(&gateway, &format!("add 127.0.0.7 {PRESS} --expires 1s")).done();
    lease(&gateway, &format!("add 127.0.0.7 {PRESS}")).done();
    let shown = lease(&gateway, "list --address 127.0.0.7").done();
    assert!(shown.lines().nth(1).unwrap().ends_with(" -"), "{shown}");
}

const KEYS: [&str; 3] = [
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
    "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
];

#[test]
fn wireguards_peers_are_imported_as_one_set() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let whose = |source| whose(source, gateway.address());
    let [one, two, three] = KEYS;
    let peers = format!("public_key,account,device\n{one},acme,press-07\n{two},acme,press-08\n");
    fs::write(gateway.path("peers.csv"), peers).unwrap();
    let import = |text: &str, flags: &str| {
        let arguments = format!("import --wireguard - --peers peers.csv {flags}");
        lease_with(&gateway, &arguments, text)
    };

    let all = format!("wg0\t{one}\t127.0.0.7/32 127.0.7.0/24\nwg1\t{two}\t127.0.0.8/32\n");
    assert_eq!(import(&all, "").done(), "3 leases of wireguard\n");
    assert_eq!(whose("127.0.0.7"), press("press-07"));
    assert_eq!(whose("127.0.7.9"), press("press-07"));
    assert_eq!(whose("127.0.0.8"), press("press-08"));
    let again = format!("{one}\t(none)\n{two}\t127.0.0.7/32\n{three}\t(none)\n");
    assert_eq!(import(&again, "").done(), "1 lease of wireguard\n");
    assert_eq!(whose("127.0.0.7"), press("press-08"));
    assert_eq!(whose("127.0.7.9"), Err(403));

    // Somebody who is not known.
    let strange = format!("{all}wg1\t{three}\t127.0.0.9/32\n");
    let words = format!("standard input:3: peers.csv does not have the peer {three}; add it");
    import(&strange, "").refused(&words);
    assert_eq!(whose("127.0.0.7"), press("press-08"), "nothing has changed");
    let outcome = import(&strange, "--skip-unknown --source other");
    assert_eq!(outcome.code, Some(1), "the address is wireguard's");
    let outcome = import(&strange, "--skip-unknown");
    assert_eq!(
        (outcome.code, &*outcome.stdout),
        (Some(0), "3 leases of wireguard\n")
    );
    let words = format!("standard input:3: left out: peers.csv does not have the peer {three}");
    assert!(outcome.stderr.contains(&words), "{}", outcome.stderr);
    assert_eq!(whose("127.0.0.7"), press("press-07"));
    assert_eq!(whose("127.0.0.9"), Err(403));

    // Two interfaces with the same addresses need a scope each.
    let twice = format!("wg0\t{one}\t127.0.0.7/32\nwg1\t{two}\t127.0.0.7/32\n");
    import(&twice, "").refused("standard input:2: 127.0.0.7 stands at standard input:1 already");
}

#[test]
fn a_text_with_private_keys_is_refused_and_never_shown() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let [secret, public, shared] = KEYS;
    let peers = format!("public_key,account,device\n{public},acme,press-07\n");
    fs::write(gateway.path("peers.csv"), peers).unwrap();
    let import = |text: &str| {
        lease_with(
            &gateway,
            "import --wireguard - --peers peers.csv --skip-unknown",
            text,
        )
    };
    import(&format!("wg0\t{public}\t127.0.0.7/32\n")).done();
    for text in [
        // wg show all dump
        format!(
            "wg0\t{secret}\t{public}\t51820\toff\nwg0\t{public}\t{shared}\t(none)\t127.0.0.7/32\t0\t0\t0\toff\n"
        ),
        // wg show all private-keys, preshared-keys; wg genkey
        format!("wg0\t{secret}\n"),
        format!("{public}\t{shared}\n"),
        format!("{secret}\n"),
        // wg showconf, wg-quick, wg show
        format!("[Interface]\nPrivateKey = {secret}\n[Peer]\nPublicKey = {public}\n"),
        format!("interface: wg0\n  public key: {public}\n  private key: {secret}\n"),
    ] {
        let outcome = import(&text);
        for key in KEYS {
            assert!(!outcome.stderr.contains(&key[..8]), "{}", outcome.stderr);
        }
        outcome.refused("standard input may hold private keys, and was not read");
    }
    // Nor are leases ended because wg said nothing.
    import("").refused("standard input is empty");
    import(&format!("wg0\t{public}\t127.0.0.7/3")).refused("cut short");
    assert_eq!(whose("127.0.0.7", gateway.address()), press("press-07"));
}

#[test]
fn hubs_with_the_same_addresses_have_a_scope_each() {
    let upstream = Upstream::echo();
    let listen = "listen = [\n\
        { address = \"127.0.0.1:0\", scope = \"north\" },\n\
        { address = \"127.0.0.1:0\", scope = \"south\" },\n\
        \"127.0.0.1:0\" ]";
    let configuration = leases::configuration(&upstream.url(), "");
    let gateway = Gateway::start(&configuration.replacen("listen = [\"127.0.0.1:0\"]", listen, 1));
    let [north, south, none] = gateway.addresses() else {
        panic!("three listeners");
    };
    lease(&gateway, &format!("add 127.0.0.7 {PRESS} --scope north")).done();
    lease(
        &gateway,
        &format!("add 127.0.0.7 {OTHER_PRESS} --scope south"),
    )
    .done();
    let everywhere = "add 127.0.0.0/24 --account beta --device mill-1";
    lease(&gateway, everywhere).done();
    assert_eq!(whose("127.0.0.7", *north), press("press-07"));
    assert_eq!(whose("127.0.0.7", *south), press("press-08"));
    assert_eq!(whose("127.0.0.7", *none), press("mill-1"));
    assert_eq!(whose("127.0.0.8", *south), press("mill-1"));
    let shown = lease(&gateway, "list --address 127.0.0.7").done();
    assert!(shown.contains("127.0.0.7     north  manual"), "{shown}");

    lease(&gateway, "release 127.0.0.7").refused("no lease");
    lease(&gateway, "release 127.0.0.7 --scope north").done();
    assert_eq!(whose("127.0.0.7", *north), press("mill-1"));
    assert_eq!(whose("127.0.0.7", *south), press("press-08"));
    let east = format!("add 127.0.0.9 {PRESS} --scope east");
    lease(&gateway, &east).refused("no listener has the scope \"east\"");
    let set = "address,account,device,scope\n\
        127.0.0.7,acme,press-07,north\n127.0.0.7,acme,press-08,south\n";
    assert_eq!(
        lease_with(&gateway, "sync - --source manual", set).done(),
        "2 leases of manual\n"
    );
    assert_eq!(whose("127.0.0.7", *north), press("press-07"));
    assert_eq!(whose("127.0.0.7", *none), Err(403));
}

#[test]
fn devices_need_no_address_where_there_are_leases() {
    let folder = tempfile::tempdir().unwrap();
    let list = "address,account,device,serial\n,acme,press-07,1\n10.8.0.8,acme,press-08,2\n";
    fs::write(folder.path().join("devices.csv"), list).unwrap();
    let device = "[[account.device]]\nname = \"press-09\"\nserial = \"3\"\n";
    let check = |leases: &str, device: &str| {
        let text = format!(
            "listen = [\"127.0.0.1:0\"]\ndevices = \"devices.csv\"\n{leases}[[account]]\nref = \
             \"acme\"\n{device}"
        );
        let path = folder.path().join("m2u.toml");
        fs::write(&path, text).unwrap();
        let done = command()
            .arg("check")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let none = "[[account.device]]\nname = \"press-10\"\nserial = \"4\"\naddress = []\n";
    let (code, said) = check(
        "[leases]\nsocket = \"feed.sock\"\n",
        &format!("{device}{none}"),
    );
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let (code, said) = check("", &format!("{device}{none}"));
    assert_eq!(code, Some(1));
    for words in [
        "devices.csv:2: address: ",
        "account[0].device[0].address: is missing",
        "account[0].device[1].address: is empty",
        "\n3 problems\n",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn show_prints_the_leases_section_and_takes_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m2u.toml");
    let text = "listen = [{ address = \"127.0.0.1:8080\", scope = \"north\" }]\n\
        [leases]\nsocket = \"feed.sock\"\nusers = [\"nobody\"]\njournal = \"journal\"\n\
        unconfirmed = \"90s\"\n\
        [[account]]\nref = \"acme\"\n[[account.device]]\nname = \"press\"\nserial = \"1\"\n";
    let show = |text: &str| {
        fs::write(&path, text).unwrap();
        let done = command()
            .arg("show")
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!((done.status.code(), said.as_str()), (Some(0), ""));
        String::from_utf8(done.stdout).unwrap()
    };
    let shown = show(text);
    let root = folder.path().display();
    let section = format!(
        "[leases]\nsocket = \"{root}/feed.sock\"\nusers = [\"nobody\"]\n\
         journal = \"{root}/journal\"\nunconfirmed = \"90s\"\n"
    );
    assert!(shown.contains(&section), "{shown}");
    assert!(shown.contains("scope = \"north\""), "{shown}");
    assert_eq!(show(&shown), shown);

    let least = "listen = [\"127.0.0.1:8080\"]\n[leases]\n[[account]]\nref = \"acme\"\n";
    let shown = show(least);
    assert!(
        shown.contains("[leases]\nusers = []\n# journal is not set"),
        "{shown}"
    );
    assert!(shown.contains("unconfirmed = \"10m\""), "{shown}");
    assert_eq!(show(&shown), shown);
}

#[test]
fn mistakes_in_the_leases_section_are_named() {
    for (leases, words) in [
        (
            "users = [\"no-such-user\"]",
            "leases.users[0]: \"no-such-user\" is no user",
        ),
        (
            "journal = \"none/journal\"",
            "leases.journal: the folder of ",
        ),
        (
            "unconfirmed = 600",
            "leases.unconfirmed: is a whole number; write a duration",
        ),
        ("sockets = \"feed.sock\"", "leases.sockets: is not a key"),
    ] {
        let text =
            format!("listen = [\"127.0.0.1:0\"]\n[leases]\n{leases}\n[[account]]\nref = \"a\"\n");
        let done = run_to_end(&text, &["check"]);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(1), "{leases}");
        assert!(
            said.contains(words) && said.ends_with("\n1 problem\n"),
            "{leases}: {said}"
        );
    }
    let long = "x".repeat(120);
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\n[leases]\nsocket = \"{long}\"\n[[account]]\nref = \"a\"\n"
    );
    let said = String::from_utf8(run_to_end(&text, &["check"]).stderr).unwrap();
    assert!(said.contains("leases.socket: makes a path of "), "{said}");
}

#[test]
fn whoever_is_not_reached_costs_the_time_and_no_more() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let add = format!("add 127.0.0.7 {PRESS}");
    lease(&gateway, &format!("{add} --socket none.sock")).refused("there is no socket none.sock");
    lease(&gateway, &format!("{add} --config none.toml")).refused("none.toml: the file");
    fs::write(
        gateway.path("other.toml"),
        "listen = [\"127.0.0.1:0\"]\n[leases]\n",
    )
    .unwrap();
    lease(&gateway, &format!("{add} --config other.toml")).refused("names no leases.socket");
    // What else is wrong with a configuration is not asked.
    let text = "[leases]\nsocket = \"feed.sock\"\nusers = [\"no-such-user\"]\n";
    fs::write(gateway.path("other.toml"), text).unwrap();
    lease(&gateway, &format!("{add} --config other.toml")).done();

    drop(UnixListener::bind(gateway.path("dead.sock")).unwrap());
    lease(&gateway, &format!("{add} --socket dead.sock")).refused("nobody listens at dead.sock");

    // One that never answers, and one that does not even accept.
    let deaf = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    deaf.bind(&SockAddr::unix(gateway.path("deaf.sock")).unwrap())
        .unwrap();
    deaf.listen(0).unwrap();
    for _ in 0..2 {
        let begun = Instant::now();
        let outcome = lease(
            &gateway,
            &format!("{add} --socket deaf.sock --timeout 200ms"),
        );
        outcome.refused("m2u did not answer within 200ms");
        assert!(begun.elapsed() >= config::duration("200ms").unwrap());
        assert!(begun.elapsed() < common::PATIENCE / 4);
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    for arguments in [
        "add",
        "add 10.8.0.7",
        "add 10.8.0.7 --account acme",
        "add 10.8.0.7 --account acme --device press --common-name press",
        "add 10.8.0.7/24 --account acme --device press",
        "add press --account acme --device press",
        "add 10.8.0.7 --account acme --device press --expires 1500ms",
        "add 10.8.0.7 --account acme --device press --timeout 5",
        "add 10.8.0.7 --account acme --device press --socket a --config b",
        "release 10.8.0.7 --session s --any-session",
        "release",
        "release --any-session",
        "release --session s --scope north",
        "sync set.csv",
        "list --address press",
        "import --wireguard -",
        "import --peers peers.csv",
        "grab",
    ] {
        let outcome = Outcome::of(
            command()
                .arg("lease")
                .args(arguments.split(' '))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        assert_eq!(outcome.code, Some(2), "{arguments}: {}", outcome.stderr);
    }
}
