//! Whom the gateway believes: the folder that its socket stands in, hubs' names of devices, and load
//! balancers, none of which may be a device.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::Path,
    process::{Command, Stdio},
};

use common::{
    feed::Feed,
    gateway::{Gateway, PREAMBLE, command, listening},
    leases::{self, connect, fleet, whose},
    upstream::Upstream,
    wait_until,
};
use m2u::limits;

/// The number of another user of this system.
fn nobody() -> u32 {
    let done = Command::new("id").args(["-u", "nobody"]).output().unwrap();
    String::from_utf8(done.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// Starts a gateway whose socket stands in `folder`; answers how it ends and what it says, or that it
/// came to listen there.
fn listens_in(folder: &Path) -> Result<(), String> {
    let text = leases::configuration("http://127.0.0.1:9", "");
    let socket = folder.join("feed.sock");
    let text = text.replace("\"feed.sock\"", &format!("{:?}", socket.to_str().unwrap()));
    let own = tempfile::tempdir().unwrap();
    fs::write(own.path().join("m2u.toml"), text).unwrap();
    let mut gateway = command()
        .args(["run", "--config"])
        .arg(own.path().join("m2u.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ended = None;
    wait_until("a socket, or the end", || {
        ended = gateway.try_wait().unwrap();
        ended.is_some() || socket.exists()
    });
    if ended.is_none() {
        gateway.kill().unwrap();
    }
    let done = gateway.wait_with_output().unwrap();
    match ended {
        None => Ok(()),
        Some(status) => {
            assert_eq!(status.code(), Some(1));
            assert!(!socket.exists());
            Err(String::from_utf8(done.stderr).unwrap())
        }
    }
}

#[test]
fn the_socket_stands_where_others_can_put_none_of_theirs() {
    let nobody = nobody();
    // Whoever listens in the gateway's place hears what hooks say, and agrees to it.
    for (mode, owner, group, refused) in [
        (0o700, 0, 0, None),
        (0o755, 0, 0, None),
        (0o750, 0, nobody, None),
        // As /tmp is: others' files are safe there.
        (0o1777, 0, 0, None),
        (0o777, 0, 0, Some("others may write to {},")),
        (0o775, 0, nobody, Some("others may write to {},")),
        (0o757, 0, 0, Some("others may write to {},")),
        (0o755, nobody, 0, Some("{} belongs to user ")),
        (0o1777, nobody, 0, Some("{} belongs to user ")),
    ] {
        // Wherever on the way it is, it is that folder which is named.
        for way in ["", "within", "within/deeper"] {
            let folder = tempfile::tempdir().unwrap();
            let last = folder.path().join(way);
            fs::create_dir_all(&last).unwrap();
            let modes = fs::Permissions::from_mode(mode);
            fs::set_permissions(folder.path(), modes).unwrap();
            chown(folder.path(), Some(owner), Some(group))
                .expect("only root may give a folder away; run the tests as root");
            let outcome = listens_in(&last);
            let what = format!("{mode:o} of {owner}:{group}, {way:?}: {outcome:?}");
            is_told(outcome, refused.map(|words| (words, folder.path())), &what);
        }
    }
}

/// A gateway started, or it says these words of this folder, and where to look.
#[track_caller]
fn is_told(outcome: Result<(), String>, refused: Option<(&str, &Path)>, what: &str) {
    match (outcome, refused) {
        (Ok(()), None) => {}
        (Err(said), Some((words, folder))) => {
            let reason = said.split_once("can't be made: ").expect(what).1;
            let words = words.replace("{}", folder.to_str().unwrap());
            assert!(reason.starts_with(&words), "{what}: {said}");
            assert!(reason.contains("look at leases.socket"), "{what}");
        }
        _ => panic!("{what}"),
    }
}

#[test]
fn links_lead_to_the_socket_only_where_others_can_change_none() {
    let (nobody, folder) = (Some(nobody()), tempfile::tempdir().unwrap());
    let root = folder.path().canonicalize().unwrap();
    let path = |name: &str| root.join(name);
    for (name, mode) in [("safe", 0o755), ("loose", 0o777), ("shared", 0o1777)] {
        fs::create_dir_all(path(name).join("within")).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    // Where it stands, where it leads, who owns it.
    for (link, target, owner) in [
        ("safe/near", "within", None),
        ("shared/own", "../safe/within", None),
        ("shared/chain", "own", None),
        ("shared/theirs", "../safe", nobody),
        ("safe/theirs", "../shared/theirs", None),
        ("loose/out", "../safe", None),
        ("safe/through", "../loose/within", None),
        ("safe/back", "../loose/../safe", None),
    ] {
        symlink(target, path(link)).unwrap();
        lchown(path(link), owner, None)
            .expect("only root may give a link away; run the tests as root");
    }
    symlink(path("loose"), path("safe/whole")).unwrap();
    symlink("round", path("safe/round")).unwrap();
    let loose = Some(("others may write to {},", path("loose")));
    let theirs = Some(("{} belongs to user ", path("shared/theirs")));
    for (way, refused) in [
        ("safe/near", &None),
        ("shared/own", &None),
        ("shared/chain", &None),
        ("shared/../safe", &None),
        ("shared/theirs", &theirs),
        ("safe/theirs", &theirs),
        ("safe/theirs/within", &theirs),
        ("loose/out", &loose),
        ("safe/through", &loose),
        ("safe/back", &loose),
        ("safe/whole/within", &loose),
        ("loose/../safe", &loose),
    ] {
        let refused = refused.as_ref();
        let refused = refused.map(|(words, folder)| (*words, folder.as_path()));
        is_told(listens_in(&path(way)), refused, way);
        let _ = fs::remove_file(path(way).join("feed.sock"));
    }
    let endless = listens_in(&path("safe/round")).unwrap_err();
    assert!(endless.contains("too many links lead to it"), "{endless}");
    // As many as the system follows, and one more.
    let chain = |number: usize| path("safe").join(number.to_string());
    symlink("within", chain(1)).unwrap();
    for number in 2..=limits::LINKS_MAX + 1 {
        symlink((number - 1).to_string(), chain(number)).unwrap();
    }
    let longest = chain(limits::LINKS_MAX).canonicalize();
    assert_eq!(longest.unwrap(), path("safe/within"));
    assert_eq!(listens_in(&chain(limits::LINKS_MAX)), Ok(()));
    let longer = listens_in(&chain(limits::LINKS_MAX + 1)).unwrap_err();
    assert!(longer.contains("too many links lead to it"), "{longer}");
}

/// Two hubs, whose names for devices are these.
fn hubs(url: &str, north: &str, south: &str) -> String {
    let hub = |name: &str, names: &str| {
        format!(
            "[[openvpn]]\nhub = \"{name}\"\nstatus = \"{name}.status\"\n\
             common_names = {{ {names} }}\n"
        )
    };
    format!(
        "{PREAMBLE}[leases]\nsocket = \"feed.sock\"\njournal = \"journal\"\n{}{}{}",
        hub("north", north),
        hub("south", south),
        fleet("acme", url, &["press-07", "press-08", "press-09"]),
    )
}

fn add(hub: &str, address: &str, name: &str) -> String {
    format!(
        "{{\"op\":\"add\",\"source\":\"openvpn:{hub}\",\"address\":\"{address}\",\
         \"common_name\":\"{name}\",\"session\":\"{name}@1\"}}"
    )
}

fn reload(gateway: &Gateway, configuration: &str) {
    let done = || gateway.log().matches("m2u: reloaded").count();
    let before = done();
    fs::write(gateway.path("m2u.toml"), configuration).unwrap();
    gateway.signal("HUP");
    wait_until("the reload", || done() > before);
}

#[test]
fn a_name_that_a_hub_no_longer_has_speaks_for_nobody() {
    let upstream = Upstream::echo();
    let with = |north: &str, south: &str| hubs(&upstream.url(), north, south);
    let whole = "a = \"acme/press-07\", b = \"acme/press-08\"";
    let south = "c = \"acme/press-09\"";
    let gateway = Gateway::start(&with(whole, south));
    let whose = |address| whose(address, gateway.address());
    let mut feed = connect(&gateway);
    feed.done(&add("north", "127.0.0.7", "a"));
    feed.done(&add("north", "127.0.0.8", "b"));
    feed.done(&add("south", "127.0.0.9", "c"));
    assert_eq!(whose("127.0.0.7"), Ok("press-07".to_owned()));
    // A reload that leaves the names alone leaves all leases alone.
    reload(&gateway, &with(whole, south));
    assert_eq!(feed.leases().len(), 3);
    // The name is withdrawn: its leases end, and it gets no new ones. Its client may be connected still,
    // until the hub says otherwise.
    reload(&gateway, &with("b = \"acme/press-08\"", south));
    assert_eq!(whose("127.0.0.7"), Err(503));
    feed.refused(&add("north", "127.0.0.7", "a"), "unknown_common_name");
    let other_name = add("north", "127.0.0.7", "c");
    feed.refused(&other_name, "unknown_common_name");
    // What else the hub has said stays.
    assert_eq!(whose("127.0.0.8"), Ok("press-08".to_owned()));
    assert_eq!(feed.leases().len(), 2);
    // The name stands for another device now.
    reload(&gateway, &with("b = \"acme/press-07\"", south));
    assert_eq!(whose("127.0.0.8"), Err(503));
    is_south(&mut feed);
    feed.done(&add("north", "127.0.0.6", "b"));
    assert_eq!(whose("127.0.0.6"), Ok("press-07".to_owned()));
    // Who has it after that, the hub's next report has to say.
    feed.done(&add("north", "127.0.0.8", "b"));
    assert_eq!(whose("127.0.0.8"), Err(503));
    // The hub itself is withdrawn.
    let gone = with("b = \"acme/press-07\"", south).replace("\"north\"", "\"west\"");
    reload(&gateway, &gone);
    assert_eq!(whose("127.0.0.6"), Err(403));
    assert_eq!(whose("127.0.0.8"), Err(403));
    feed.refused(&add("north", "127.0.0.8", "b"), "unknown_hub");
    is_south(&mut feed);
    assert_eq!(whose("127.0.0.9"), Ok("press-09".to_owned()));
    // A restart brings none of them back.
    let gateway = gateway.crash_and_restart(|_| {});
    assert_eq!(
        connect(&gateway).leases(),
        ["127.0.0.9 press-09 unconfirmed"]
    );
    // Nor does one with other names, or without the hub, bring back what they no longer mean.
    let west =
        hubs(&upstream.url(), "b = \"acme/press-07\"", south).replace("\"south\"", "\"west\"");
    for other in [with(whole, "c = \"acme/press-08\""), west] {
        let gateway = Gateway::start(&with(whole, south));
        let mut feed = connect(&gateway);
        feed.done(&add("south", "127.0.0.9", "c"));
        let gateway = gateway.crash_and_restart(|folder| {
            fs::write(folder.join("m2u.toml"), &other).unwrap();
        });
        let left = connect(&gateway).leases();
        assert!(
            !left.iter().any(|lease| lease.contains("127.0.0.9")),
            "{left:?}"
        );
        gateway.stop();
    }
}

/// The other hub's lease is there, and no other.
fn is_south(feed: &mut Feed) {
    assert_eq!(feed.leases(), ["127.0.0.9 press-09 confirmed"]);
}

/// A preamble with a second listener, of the scope `north`, that believes whoever connects from there.
fn with_north(network: &str) -> String {
    listening(&format!(
        "\"127.0.0.1:0\", {{ address = \"127.0.0.1:0\", scope = \"north\", \
         proxy_protocol_from = [\"{network}\"] }}"
    ))
}

#[test]
fn nobody_is_leased_an_address_by_which_one_could_speak_as_any_other() {
    let upstream = Upstream::echo();
    let text = hubs(
        &upstream.url(),
        "a = \"acme/press-07\"",
        "b = \"acme/press-08\"",
    );
    let gateway = Gateway::start(&text.replace(PREAMBLE, &with_north("127.0.9.0/24")));
    let mut feed = connect(&gateway);
    let leased = |address: &str, more: &str| leases::add(address, "press-07", more);
    feed.done(&leased("127.0.8.7", ""));
    let words = "overlaps 127.0.9.0/24 of proxy_protocol_from";
    // In it, it itself, around it; for all listeners, and for others than the one that believes.
    for (address, more) in [
        ("127.0.9.7", ""),
        ("127.0.9.0/24", ""),
        ("127.0.9.128/25", ""),
        ("127.0.0.0/16", ""),
        ("127.0.9.7", ",\"scope\":\"north\""),
    ] {
        let reason = feed.refused(&leased(address, more), "believed");
        assert!(
            reason.starts_with(address) && reason.contains(words),
            "{reason}"
        );
    }
    // By a hook, with several addresses, in a set, and by the command.
    feed.refused(&add("north", "127.0.9.7", "a"), "believed");
    let both = leased("127.0.8.8", "").replace(
        "\"address\":\"127.0.8.8\"",
        "\"addresses\":[\"127.0.8.8\",\"127.0.9.7\"]",
    );
    feed.refused(&both, "believed");
    let set = [("127.0.8.8", "press-07"), ("127.0.9.7", "press-08")];
    let set = set.map(|(address, device)| leases::line(address, device) + "\n");
    let set = format!(
        "{{\"op\":\"sync\",\"source\":\"vpn\"}}\n{}{{\"op\":\"commit\"}}",
        set.concat()
    );
    let reason = feed.refused(&set, "believed");
    assert!(
        reason.starts_with("line 2 of the set: 127.0.9.7/32"),
        "{reason}"
    );
    leases::lease(&gateway, "add 127.0.9.7 --account acme --device press-07").refused(words);
    assert_eq!(feed.leases(), ["127.0.8.7 press-07 confirmed"]);
    assert_eq!(whose("127.0.9.7", gateway.address()), Err(403));
    gateway.stop();
}

#[test]
fn a_lease_is_not_remembered_where_connections_are_believed_now() {
    let upstream = Upstream::echo();
    let before = leases::configuration(&upstream.url(), "");
    let after = before.replace(PREAMBLE, &with_north("127.0.9.0/24"));
    let gateway = Gateway::start(&before);
    let mut feed = connect(&gateway);
    for address in ["127.0.8.7", "127.0.9.7", "127.0.9.0/28", "127.0.0.0/16"] {
        feed.done(&leases::add(address, "press-07", ""));
    }
    // A reload makes nobody believed, and so ends none of them.
    fs::write(gateway.path("m2u.toml"), &after).unwrap();
    gateway.signal("HUP");
    wait_until("the reload", || gateway.log().contains("m2u: reloaded"));
    assert!(
        gateway
            .log()
            .contains("needs a restart to take effect: listen")
    );
    assert_eq!(feed.leases().len(), 4);
    let gateway = gateway.crash_and_restart(|_| {});
    assert_eq!(
        connect(&gateway).leases(),
        ["127.0.8.7 press-07 unconfirmed"]
    );
    let told = "3 leases of the journal are of devices";
    assert!(gateway.log().contains(told), "{}", gateway.log());
    assert_eq!(whose("127.0.9.7", gateway.address()), Err(403));
    gateway.stop();
}

#[test]
fn a_reload_gives_no_device_what_is_believed_until_a_restart() {
    let upstream = Upstream::echo();
    let text = |network: &str, address: &str| {
        let fleet = fleet("acme", &upstream.url(), &["press-07"]);
        let preamble = with_north(network);
        format!("{preamble}[leases]\n{fleet}address = [\"{address}\"]\n")
    };
    let gateway = Gateway::start(&text("127.0.9.0/24", "127.0.8.7"));
    let told = |words: &str| gateway.log().contains(words);
    fs::write(gateway.path("m2u.toml"), text("127.0.6.0/24", "127.0.9.7")).unwrap();
    gateway.signal("HUP");
    wait_until("the refusal", || told("m2u: reload"));
    let refused = "m2u: reload refused; the configuration in force stays: 127.0.9.7/32, a device's \
                   address, overlaps 127.0.9.0/24, which proxy_protocol_from has until a restart";
    assert!(told(refused), "{}", gateway.log());
    assert_eq!(whose("127.0.9.7", gateway.address()), Err(403));
    // Beside both of them, it may.
    fs::write(gateway.path("m2u.toml"), text("127.0.6.0/24", "127.0.7.7")).unwrap();
    gateway.signal("HUP");
    wait_until("the reload", || told("m2u: reloaded"));
    assert_eq!(
        whose("127.0.7.7", gateway.address()),
        Ok("press-07".to_owned())
    );
    gateway.stop();
}
