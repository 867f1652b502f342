//! What one user of the feed, or one who only listens, can take from the others: not much.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use common::{
    feed::Feed,
    gateway::Gateway,
    leases::{self, PRESS, connect, lease},
    wait_until,
};
use m2u::limits;

const WATCH: &str = r#"{"op":"watch"}"#;

/// Nothing has to reach a server here.
fn gateway(leases: &str) -> Gateway {
    leases::gateway("http://127.0.0.1:9", leases)
}

/// Puts so many leases in the place of all of a source's; `session` makes each of them new.
fn sync(source: &mut Feed, leases: usize, session: usize) {
    let mut set = "{\"op\":\"sync\",\"source\":\"vpn\"}\n".to_owned();
    for number in 0..leases {
        let (high, low) = (number / 256, number % 256);
        writeln!(
            set,
            "{{\"address\":\"10.7.{high}.{low}\",\"account\":\"acme\",\"device\":\"press-07\",\
             \"session\":\"s{session}\"}}"
        )
        .unwrap();
    }
    source.done(&format!("{set}{{\"op\":\"commit\"}}"));
}

/// Reads events until something else comes, which is answered.
fn last_word(watcher: &mut Feed) -> serde_json::Value {
    loop {
        let line = watcher.next();
        if line.get("event").is_none() {
            return line;
        }
    }
}

#[test]
fn a_watcher_that_falls_behind_is_cut_off_and_no_other() {
    const LEASES: usize = 10_000;
    let gateway = gateway("");
    let lost = || gateway.counts()["lease_watchers_lost"];
    let mut source = connect(&gateway);
    let mut watchers: Vec<Feed> = (0..3).map(|_| connect(&gateway)).collect();
    for watcher in &mut watchers {
        watcher.done(WATCH);
    }
    let descriptors = gateway.descriptors();
    let [mut slow, _stuck, mut quick] = watchers.try_into().ok().unwrap();
    let mut session = 0;
    while lost() < 2 {
        session += 1;
        assert!(session < 20, "nobody is cut off");
        sync(&mut source, LEASES, session);
        for _ in 0..LEASES {
            assert_eq!(quick.next()["event"], "leased");
        }
    }
    // About 130 bytes each, and what the sockets hold: the bound is the bytes', not the changes'.
    assert!((2..8).contains(&session), "cut off after {session} sets");
    let word = last_word(&mut slow);
    assert_eq!(word["error"], "lost", "{word}");
    let reason = word["reason"].as_str().unwrap();
    assert!(reason.contains("list, then watch again"), "{reason}");
    assert!(slow.is_closed());
    // Whoever does not even read that is not waited for. Each connection has two descriptors.
    wait_until("the one that is stuck to be closed", || {
        gateway.descriptors() <= descriptors - 4
    });
    // The third one goes on, and hears all of a set that is told in many turns.
    source.done(PRESS);
    assert_eq!(quick.next()["lease"]["address"], "127.0.0.7");
    sync(&mut source, 2 * LEASES, session + 1);
    let told = (0..=2 * LEASES).map(|_| quick.next());
    let (leased, ended): (Vec<_>, Vec<_>) = told.partition(|event| event["event"] == "leased");
    assert_eq!((leased.len(), ended.len()), (2 * LEASES, 1));
    assert_eq!(ended[0]["lease"]["address"], "127.0.0.7");
    assert_eq!(lost(), 2);
    source.done(PRESS);
    gateway.stop();
}

#[test]
fn an_idle_connection_gives_way_to_the_next_of_its_user() {
    let gateway = gateway("");
    let mut feeds: Vec<Feed> = (0..limits::FEED_CONNECTIONS_PER_USER_MAX)
        .map(|_| {
            let mut feed = connect(&gateway);
            feed.done(PRESS);
            feed
        })
        .collect();
    // The first of them has just been used: the second has been idle longest.
    feeds[0].done(PRESS);
    // A hook comes through, whoever holds connections.
    lease(&gateway, "add 127.0.0.8 --account acme --device press-08").done();
    let told = feeds[1].next();
    assert_eq!(told["error"], "idle", "{told}");
    assert!(feeds[1].is_closed());
    drop(feeds.remove(1));
    for feed in &mut feeds {
        feed.done(PRESS);
    }
    // One in the middle of a line is idle as well.
    feeds[0].send("{\"op\":");
    let mut one_more = connect(&gateway);
    one_more.done(PRESS);
    for feed in &mut feeds[1..] {
        feed.done(PRESS);
    }
    lease(&gateway, "list").done();
    assert_eq!(feeds[0].next()["error"], "idle");
    one_more.done(PRESS);
    gateway.stop();
}

#[test]
fn as_many_may_watch_as_leave_room_for_others() {
    let gateway = gateway("");
    let mut watchers: Vec<Feed> = (0..limits::FEED_WATCHES_PER_USER_MAX)
        .map(|_| {
            let mut feed = connect(&gateway);
            feed.done(WATCH);
            feed
        })
        .collect();
    let mut one_more = connect(&gateway);
    let reason = one_more.refused(r#"{"op":"watch","id":3}"#, "busy");
    assert!(reason.contains("too many watch"), "{reason}");
    lease(&gateway, "watch").refused("too many watch");
    // It may say whatever else it likes; hooks come and go, and no watcher is idle.
    one_more.done(PRESS);
    for _ in 0..limits::FEED_CONNECTIONS_MAX {
        connect(&gateway).done(PRESS);
    }
    one_more.done(r#"{"op":"release","source":"vpn","address":"127.0.0.7"}"#);
    for watcher in &mut watchers {
        assert_eq!(watcher.next()["event"], "leased");
        assert_eq!(watcher.next()["event"], "ended");
    }
    // As soon as one ends, there is room.
    drop(watchers.pop());
    wait_until("room for one more", || one_more.ask(WATCH)["ok"] == true);
    gateway.stop();
}

#[test]
fn one_users_connections_keep_no_other_out() {
    // Has so many connections, and asks on each; the first ones have to give way.
    const SCRIPT: &str = "\
import json, os, pwd, socket, sys
nobody = pwd.getpwnam('nobody')
try:
    os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
except PermissionError:
    sys.exit('only root may become another user; run the tests as root')
feeds = []
def ask(feed):
    feed.write('{\"op\":\"release\",\"source\":\"x\",\"address\":\"10.0.0.1\"}\\n')
    feed.flush()
    return json.loads(feed.readline())['error']
for _ in range(40):
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(sys.argv[1])
    feeds.append(stream.makefile('rw'))
    assert ask(feeds[-1]) == 'no_lease'
print([json.loads(feed.readline())['error'] for feed in feeds[:8]], flush=True)
print([ask(feed) for feed in feeds[8:]].count('no_lease'), flush=True)
sys.stdin.read()
";
    let gateway = gateway("users = [\"nobody\"]");
    // So that the socket itself says no, not the folder.
    fs::set_permissions(gateway.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mut own: Vec<Feed> = (0..10)
        .map(|_| {
            let mut feed = connect(&gateway);
            feed.done(PRESS);
            feed
        })
        .collect();
    let mut other = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(gateway.path("feed.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is missing; run scripts/setup");
    let mut said = BufReader::new(other.stdout.take().unwrap()).lines();
    let mut next = || said.next().expect("it failed, see above").unwrap();
    assert_eq!(next(), format!("[{}]", ["'idle'"; 8].join(", ")));
    assert_eq!(next(), limits::FEED_CONNECTIONS_PER_USER_MAX.to_string());
    for feed in &mut own {
        feed.done(PRESS);
    }
    lease(&gateway, "list").done();
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    gateway.stop();
}

/// What a hub's hook says of a client with two addresses.
fn both(first: &str, second: &str) -> String {
    PRESS.replace(
        "\"address\":\"127.0.0.7\"",
        &format!("\"addresses\":[\"{first}\",\"{second}\"]"),
    )
}

#[test]
fn several_addresses_of_a_line_are_taken_in_or_none() {
    let gateway = gateway("");
    let mut feed = connect(&gateway);
    let other = PRESS.replace("press-07", "press-08");
    feed.done(&other.replace("127.0.0.7", "fd00::8"));
    let reason = feed.refused(&both("127.0.0.7", "fd00::8"), "conflict");
    assert!(reason.contains("\"press-08\""), "{reason}");
    feed.refused(&both("127.0.0.7", "127.0.0.7"), "repeated");
    let address = "127.0.0.7";
    for (line, words) in [
        (both(address, "127.0.0"), "neither an address nor"),
        (
            PRESS.replace("\"address\"", "\"addresses\":[],\"session\""),
            "or up to 16 addresses",
        ),
        (
            PRESS.replace("\"address\"", "\"addresses\":[\"127.0.0.9\"],\"address\""),
            "or up to 16 addresses",
        ),
        (
            both(address, "127.0.0.9").replace("\"add\"", "\"release\""),
            "an add's alone",
        ),
        (
            format!("{{\"op\":\"list\",\"addresses\":[\"{address}\"]}}"),
            "an add's alone",
        ),
    ] {
        let reason = feed.refused(&line, "malformed");
        assert!(reason.contains(words), "{line}: {reason}");
    }
    assert_eq!(feed.leases(), ["fd00::8 press-08 confirmed"]);
    feed.done(&both(address, "fd00::7"));
    assert_eq!(feed.leases().len(), 3);
    // As people say it.
    let add = "add 127.0.0.9 fd00::9 --account acme --device";
    lease(&gateway, &format!("{add} press-09")).done();
    lease(
        &gateway,
        "add 127.0.0.10 fd00::9 --account acme --device press-07",
    )
    .refused("press-09");
    assert_eq!(feed.leases().len(), 5);
    gateway.stop();
}

#[test]
fn whoever_has_given_up_leases_nothing_later() {
    let gateway = gateway("");
    let mut feed = connect(&gateway);
    feed.done(&PRESS.replace("127.0.0.7", "127.0.0.9"));
    // The gateway stands still while a hook asks, waits in vain, and is gone.
    gateway.signal("STOP");
    let set = "{\"op\":\"sync\",\"source\":\"set\"}\n{\"op\":\"commit\"}";
    let release = r#"{"op":"release","source":"vpn","address":"127.0.0.9"}"#;
    for line in [PRESS, &both("127.0.0.8", "fd00::8"), set, release] {
        connect(&gateway).send(format!("{line}\n"));
    }
    // Another has said all that it had to say, and waits for the reply.
    let mut patient = connect(&gateway);
    patient.send(format!("{}\n", PRESS.replace("127.0.0.7", "127.0.0.10")));
    patient.finish();
    gateway.signal("CONT");
    assert_eq!(patient.next()["ok"], true);
    assert!(patient.is_closed());
    wait_until("the release", || gateway.counts()["leases"] == 1);
    wait_until("the others", || gateway.counts()["lease_given_up"] == 3);
    assert_eq!(feed.leases(), ["127.0.0.10 press-07 confirmed"]);
    assert_eq!(gateway.counts()["lease_refused"], 0);
    gateway.stop();
}
