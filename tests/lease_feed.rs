//! The feed's socket as any program may speak to it, well or badly.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use common::{
    feed::Feed,
    gateway::Gateway,
    leases::{self, PRESS, add, connect, gateway_of_press, line, whose},
    upstream::Upstream,
    wait_until,
};
use m2u::limits;
use serde_json::{Value, json};

/// Nothing but that address is leased.
fn is_unchanged(gateway: &Gateway) {
    let leases = connect(gateway).leases();
    assert_eq!(leases, ["127.0.0.7 press-07 confirmed"]);
    let seen = whose("127.0.0.7", gateway.address());
    assert_eq!(seen, Ok("press-07".to_owned()));
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    for (line, words) in [
        ("hello", "is no request"),
        ("[]", "is no request"),
        ("{\"op\":\"add\"", "is no request"),
        ("{\"op\":\"grab\"}", "unknown variant `grab`"),
        (
            "{\"op\":\"add\",\"adress\":\"127.0.0.8\"}",
            "unknown field `adress`",
        ),
        ("{\"op\":\"add\",\"epoch\":-1}", "invalid value"),
        ("{\"op\":\"list\"} {\"op\":\"list\"}", "trailing characters"),
        ("{\"op\":\"add\",\"source\":\"vpn\"}", "has no address"),
        ("{\"op\":\"release\",\"source\":\"vpn\"}", "has no address"),
        (
            "{\"op\":\"release\",\"source\":\"vpn\",\"session\":\"s\",\"any_session\":true}",
            "ends a whole session",
        ),
        (
            "{\"op\":\"release\",\"source\":\"vpn\",\"session\":\"s\",\"scope\":\"north\"}",
            "ends a whole session",
        ),
        (
            "{\"op\":\"add\",\"source\":\"vpn\",\"address\":\"127.0.0.8\",\"account\":\"acme\"}",
            "must have an account and a device",
        ),
        (
            "{\"op\":\"add\",\"address\":\"127.0.0.8\",\"account\":\"acme\",\"device\":\"press-08\"}",
            "has no source",
        ),
        (&add("127.0.0.8/24", "press-08", ""), "has bits set behind"),
        (&add("localhost", "press-08", ""), "neither an address nor"),
        (
            &add("127.0.0.8", "press-08", ",\"session\":\"a\\u0007b\""),
            "control character",
        ),
        (
            &add("127.0.0.8", "press-08", ",\"expires_in\":4294967296"),
            "invalid value",
        ),
        (
            "{\"op\":\"list\",\"address\":\"press\"}",
            "neither an address nor",
        ),
    ] {
        let reason = feed.refused(line, "malformed");
        assert!(reason.contains(words), "{line}: {reason}");
    }
    let long = "s".repeat(limits::LEASE_WORD_BYTES_MAX + 1);
    let reason = feed.refused(&PRESS.replace("vpn", &long), "malformed");
    assert!(reason.contains("source is longer than"), "{reason}");
    feed.send(b"{\"op\":\"list\",\"source\":\"\xff\"}\n");
    assert_eq!(feed.next()["error"], "malformed");
    // Empty lines are no requests, and the connection is as good as before.
    feed.send("\n\r\n  \n");
    feed.done(PRESS);
    is_unchanged(&gateway);
    gateway.stop();
}

#[test]
fn a_line_that_is_too_long_ends_the_connection() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let room = limits::FEED_LINE_BYTES_MAX - PRESS.len();
    feed.done(&format!("{PRESS}{}", " ".repeat(room)));
    // What stood before it is done, what stands behind is not.
    let long = add(
        "127.0.0.8",
        "press-08",
        &" ".repeat(limits::FEED_LINE_BYTES_MAX),
    );
    feed.send(format!(
        "{PRESS}\n{long}\n{}\n",
        add("127.0.0.9", "press-09", "")
    ));
    assert_eq!(feed.next()["ok"], true);
    assert_eq!(feed.next()["error"], "too_long");
    assert!(feed.is_closed());
    // Nor has it to come to its end.
    let mut feed = connect(&gateway);
    feed.send("x".repeat(limits::FEED_LINE_BYTES_MAX + 1));
    assert_eq!(feed.next()["error"], "too_long");
    assert!(feed.is_closed());
    is_unchanged(&gateway);
}

#[test]
fn what_is_out_of_order_is_refused() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    feed.done(&add("127.0.0.7", "press-07", ",\"epoch\":7"));
    let order = "out_of_order";
    let reason = feed.refused(r#"{"op":"commit","id":3}"#, order);
    assert!(reason.contains("no sync"), "{reason}");
    feed.refused(&line("127.0.0.8", "press-08"), order);
    for epoch in [0, 6] {
        let old = format!(",\"epoch\":{epoch}");
        feed.refused(&add("127.0.0.8", "press-08", &old), order);
        let release = format!(r#"{{"op":"release","source":"vpn","address":"127.0.0.7"{old}}}"#);
        let reason = feed.refused(&release, order);
        assert!(reason.contains("with epoch 7"), "{reason}");
        let sync = format!("{{\"op\":\"sync\",\"source\":\"vpn\"{old}}}\n{{\"op\":\"commit\"}}");
        feed.refused(&sync, order);
    }
    // A request within a set spoils it; its one reply comes at its end.
    let set = format!(
        "{{\"op\":\"sync\",\"source\":\"vpn\"}}\n{}\n{}\n{}\n{{\"op\":\"commit\",\"id\":4}}\n",
        line("127.0.0.8", "press-08"),
        add("127.0.0.9", "press-09", ",\"id\":5"),
        line("127.0.0.10", "press-09"),
    );
    feed.send(set);
    let reply = feed.next();
    assert_eq!((&reply["error"], &reply["id"]), (&json!(order), &json!(4)));
    assert_eq!(reply["line"], 2);
    // The source's own newest run goes on.
    feed.done(&add("127.0.0.7", "press-07", ",\"epoch\":7"));
    is_unchanged(&gateway);
}

#[test]
fn whatever_is_not_known_is_refused() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let other = add("127.0.0.8", "press-08", "");
    for (line, error, words) in [
        (
            other.replace("acme", "gamma"),
            "unknown_account",
            "\"gamma\"",
        ),
        (
            other.replace("press-08", "saw"),
            "unknown_device",
            "\"saw\"",
        ),
        (
            other.replace("press-08", "mill-1"),
            "unknown_device",
            "\"acme\" has no device",
        ),
        (
            add("127.0.0.8", "press-08", ",\"scope\":\"north\""),
            "unknown_scope",
            "\"north\"",
        ),
        (
            add("127.0.0.8", "press-08", ",\"expires_in\":0"),
            "expired",
            "more time",
        ),
        (other.replace("vpn", "config"), "source", "another name"),
        (add("127.0.0.7", "press-08", ""), "conflict", "press-07"),
        (
            r#"{"op":"release","source":"vpn","address":"127.0.0.8"}"#.to_owned(),
            "no_lease",
            "127.0.0.8",
        ),
        (
            r#"{"op":"release","source":"vpn","address":"127.0.0.7","session":"s"}"#.to_owned(),
            "other_session",
            "127.0.0.7",
        ),
    ] {
        let reason = feed.refused(&line, error);
        assert!(reason.contains(words), "{line}: {reason}");
    }
    is_unchanged(&gateway);
    assert_eq!(gateway.counts()["lease_refused"], 9);
}

#[test]
fn a_set_is_refused_for_its_last_line() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let mut set: Vec<String> = (0..10_000)
        .map(|n| line(&format!("127.1.{}.{}", n / 200, n % 200), "press-08"))
        .collect();
    for (last, error) in [
        (line("127.1.0.0", "press-08"), "repeated"),
        (line("127.1.0.0", "press-09"), "repeated"),
        (line("127.2.0.1", "saw"), "unknown_device"),
        (line("127.2.0", "press-08"), "malformed"),
        ("{\"address\":".to_owned(), "malformed"),
        ("{}".to_owned(), "malformed"),
    ] {
        set.push(last);
        let text = format!(
            "{{\"op\":\"sync\",\"source\":\"vpn\"}}\n{}\n{{\"op\":\"commit\",\"id\":9}}",
            set.join("\n")
        );
        let reply = feed.ask(&text);
        assert_eq!(reply["error"], error, "{reply}");
        assert_eq!((&reply["line"], &reply["id"]), (&json!(10_001), &json!(9)));
        let reason = reply["reason"].as_str().unwrap();
        assert!(reason.starts_with("line 10001 of the set"), "{reason}");
        set.pop();
    }
    is_unchanged(&gateway);
    // Without it, all of the rest is taken.
    let text = format!(
        "{{\"op\":\"sync\",\"source\":\"vpn\"}}\n{}\n{{\"op\":\"commit\"}}",
        set.join("\n")
    );
    let reply = feed.ask(&text);
    assert_eq!(
        (&reply["ok"], &reply["count"]),
        (&json!(true), &json!(10_000))
    );
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(403));
    assert_eq!(
        whose("127.1.49.199", gateway.address()),
        Ok("press-08".to_owned())
    );
}

#[test]
fn a_connection_that_ends_within_a_set_changes_nothing() {
    let upstream = Upstream::echo();
    let (gateway, _feed) = gateway_of_press(&upstream);
    for end in ["", "{\"op\":\"commit\"}"] {
        let mut feed = connect(&gateway);
        let set = line("127.0.0.8", "press-08");
        feed.send(format!(
            "{{\"op\":\"sync\",\"source\":\"vpn\"}}\n{set}\n{end}"
        ));
        feed.finish();
        assert!(feed.is_closed());
        is_unchanged(&gateway);
    }
    // Nor is half a line a request.
    let mut feed = connect(&gateway);
    feed.send(add("127.0.0.8", "press-08", ""));
    feed.finish();
    assert!(feed.is_closed());
    is_unchanged(&gateway);
}

#[test]
fn requests_that_are_sent_ahead_are_answered_in_order() {
    const REQUESTS: u64 = 5_000;
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let is_known = |id: u64| !id.is_multiple_of(7);
    let requests = (0..REQUESTS).map(|id| {
        let device = if is_known(id) { "press-08" } else { "saw" };
        format!("{}\n", add("127.0.0.8", device, &format!(",\"id\":{id}")))
    });
    let text: String = requests.collect();
    let mut sender = feed.sender();
    let sender = thread::spawn(move || sender.write_all(text.as_bytes()));
    // Another one is served in between.
    connect(&gateway).done(&add("127.0.0.9", "press-09", ""));
    let mut newest = 0;
    for id in 0..REQUESTS {
        let reply = feed.next();
        assert_eq!(reply["id"], id, "{reply}");
        assert_eq!(reply["ok"], is_known(id), "{reply}");
        if is_known(id) {
            let revision = reply["revision"].as_u64().unwrap();
            assert!(revision >= newest, "{reply}");
            newest = revision;
        }
    }
    sender.join().unwrap().unwrap();
    assert_eq!(
        whose("127.0.0.8", gateway.address()),
        Ok("press-08".to_owned())
    );
    gateway.stop();
}

/// Connects to `socket` as another user of this system; answers what the gateway says first.
fn as_nobody(socket: &Path) -> Value {
    const SCRIPT: &str = "\
import os, pwd, socket, sys
nobody = pwd.getpwnam('nobody')
feed = socket.socket(socket.AF_UNIX)
try:
    os.setgroups([]); os.setgid(nobody.pw_gid); os.setuid(nobody.pw_uid)
except PermissionError:
    sys.exit('only root may become another user; run the tests as root')
feed.connect(sys.argv[1])
try:
    feed.sendall(b'{\"op\":\"list\",\"id\":1}\\n')
except BrokenPipeError:
    pass
sys.stdout.write(feed.makefile().readline())
";
    let done = Command::new("python3")
        .args(["-c", SCRIPT])
        .arg(socket)
        .output()
        .expect("python3 is missing; run scripts/setup");
    let said = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{said}");
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn only_users_that_are_named_may_speak() {
    let upstream = Upstream::echo();
    for (users, expected) in [("", "denied"), ("users = [\"nobody\"]", "")] {
        let gateway = leases::gateway(&upstream.url(), users);
        // So that the socket itself says no, not the folder.
        fs::set_permissions(gateway.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let reply = as_nobody(&gateway.path("feed.sock"));
        assert_eq!(
            reply["error"].as_str().unwrap_or_default(),
            expected,
            "{reply}"
        );
        assert_eq!(reply["ok"], expected.is_empty());
        if !expected.is_empty() {
            let reason = reply["reason"].as_str().unwrap();
            assert!(reason.contains("leases.users"), "{reason}");
        }
    }
}

#[test]
fn the_socket_of_a_crash_is_replaced_and_a_live_one_is_not() {
    let upstream = Upstream::echo();
    let (first, _) = gateway_of_press(&upstream);
    let socket = first.path("feed.sock");
    // Another gateway with the same socket.
    let second = |socket: &Path| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m2u.toml");
        let text = leases::configuration(&upstream.url(), "");
        let written = format!("{:?}", socket.display().to_string());
        fs::write(&path, text.replace("\"feed.sock\"", &written)).unwrap();
        let done = common::gateway::command()
            .arg("run")
            .arg("--config")
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let (code, said) = second(&socket);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another process listens there"), "{said}");
    is_unchanged(&first);
    let gateway = first.crash_and_restart(|folder| assert!(folder.join("feed.sock").exists()));
    connect(&gateway).done(PRESS);
    // Nor is one that speaks in another way.
    let other = UnixDatagram::bind(gateway.path("other.sock")).unwrap();
    let (code, said) = second(&gateway.path("other.sock"));
    assert_eq!(code, Some(1), "{said}");
    assert!(gateway.path("other.sock").exists());
    drop(other);
    // A file that is no socket is somebody's.
    fs::write(gateway.path("precious"), "precious").unwrap();
    let (code, said) = second(&gateway.path("precious"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("that is no socket"), "{said}");
    assert_eq!(fs::read(gateway.path("precious")).unwrap(), b"precious");
    // An orderly end takes it away.
    gateway.signal("TERM");
    wait_until("the socket to go", || !socket.exists());
}

/// Everything that a request to list is answered with, the reply included.
fn listed(feed: &mut Feed) -> (Vec<String>, Value) {
    let mut addresses = Vec::new();
    loop {
        let line = feed.next();
        match line.pointer("/lease/address") {
            Some(address) => addresses.push(address.as_str().unwrap().to_owned()),
            None => return (addresses, line),
        }
    }
}

#[test]
fn what_is_asked_behind_a_long_list_is_answered_behind_it() {
    const LEASES: usize = 5 * limits::LEASE_TURN + 7;
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let mut feed = connect(&gateway);
    let address = |n: usize| format!("127.1.{}.{}", n / 200, n % 200);
    let set: String = (0..LEASES)
        .map(|n| format!("{}\n", line(&address(n), "press-08")))
        .collect();
    let set = format!("{{\"op\":\"sync\",\"source\":\"hub\"}}\n{set}{{\"op\":\"commit\"}}");
    assert_eq!(feed.ask(&set)["count"], LEASES);
    feed.send(format!(
        "{{\"op\":\"list\",\"id\":1}}\n{}\n{{\"op\":\"list\",\"id\":3,\"source\":\"vpn\"}}\n\
         {{\"op\":\"grab\"}}\n{{\"op\":\"watch\",\"id\":5}}\n",
        add("127.0.0.9", "press-09", ",\"id\":2"),
    ));
    let (addresses, reply) = listed(&mut feed);
    // It may show what was asked for behind it, and shows all that was asked for before.
    let expected: Vec<_> = (0..LEASES).map(address).collect();
    let from_set = addresses.iter().filter(|address| *address != "127.0.0.9");
    assert!(from_set.eq(&expected), "each once, and in order");
    assert_eq!(
        (&reply["id"], &reply["count"]),
        (&json!(1), &json!(addresses.len()))
    );
    assert_eq!(feed.next()["id"], 2);
    let (addresses, reply) = listed(&mut feed);
    assert_eq!(
        (addresses, &reply["id"]),
        (vec!["127.0.0.9".to_owned()], &json!(3))
    );
    assert_eq!(feed.next()["error"], "malformed");
    assert_eq!(feed.next()["id"], 5);
    // It is answered whole also to one who says nothing more.
    let mut feed = connect(&gateway);
    feed.send("{\"op\":\"list\",\"id\":6}\n");
    feed.finish();
    assert_eq!(listed(&mut feed).0.len(), LEASES + 1);
    assert!(feed.is_closed());
    gateway.stop();
}

#[test]
fn sets_are_taken_in_one_after_the_other_while_others_speak() {
    const LEASES: usize = 10 * limits::LEASE_TURN;
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let set = |device: &str, from: usize| {
        let address = |n: usize| format!("127.1.{}.{}", n / 200, n % 200);
        let lines = (from..from + LEASES).map(|n| format!("{}\n", line(&address(n), device)));
        let lines: String = lines.collect();
        format!("{{\"op\":\"sync\",\"source\":\"hub\"}}\n{lines}{{\"op\":\"commit\"}}\n")
    };
    // Two of one source, what stands behind them, and a reload in between.
    let mut sets = connect(&gateway);
    let mut sender = sets.sender();
    let text = format!("{}{}{PRESS}\n", set("press-08", 0), set("press-09", 50));
    let sender = thread::spawn(move || sender.write_all(text.as_bytes()));
    let mut newest = 0;
    for number in 0..200 {
        newest = newest.max(feed.done(&add("127.0.0.9", "press-09", "")));
        feed.done(r#"{"op":"release","source":"vpn","address":"127.0.0.9"}"#);
        if number == 100 {
            gateway.signal("HUP");
        }
    }
    for _ in 0..2 {
        let reply = sets.next();
        assert_eq!(
            (&reply["ok"], &reply["count"]),
            (&json!(true), &json!(LEASES))
        );
    }
    assert_eq!(sets.next()["ok"], true);
    sender.join().unwrap().unwrap();
    assert_eq!(whose("127.1.0.49", gateway.address()), Err(403));
    for address in ["127.1.0.50", "127.1.50.49"] {
        let seen = whose(address, gateway.address());
        assert_eq!(seen, Ok("press-09".to_owned()), "{address}");
    }
    assert_eq!(connect(&gateway).leases().len(), LEASES + 1);
    // An empty one ends them all, for whoever watches as well.
    let mut watcher = connect(&gateway);
    watcher.ask(r#"{"op":"watch"}"#);
    let reply = sets.ask("{\"op\":\"sync\",\"source\":\"hub\"}\n{\"op\":\"commit\"}");
    assert_eq!(reply["count"], 0);
    for _ in 0..LEASES {
        let event = watcher.next();
        assert_eq!(
            (&event["event"], &event["revision"]),
            (&json!("ended"), &reply["revision"])
        );
    }
    is_unchanged(&gateway);
    gateway.stop();
}
