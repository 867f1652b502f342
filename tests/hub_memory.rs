//! What hooks of an OpenVPN hub have said is never overruled by a status file that is older, whatever
//! else was forgotten in between: by a reload with other names, or by a restart.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use common::{
    device::Device,
    feed::Feed,
    gateway::{Gateway, PREAMBLE},
    leases::{connect, fleet, whose},
    upstream::Upstream,
    wait_until,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const A_AND_B: &str = "a = \"acme/press-07\", b = \"acme/press-08\"";

/// A hub with a status file and these names, and a feed; `leases` are more lines of `[leases]`.
fn configuration(url: &str, leases: &str, names: &str) -> String {
    format!(
        "{PREAMBLE}[leases]\nsocket = \"feed.sock\"\n{leases}[[openvpn]]\nhub = \"north\"\n\
         status = \"north.status\"\npoll = \"1s\"\ncommon_names = {{ {names} }}\n{}",
        fleet("acme", url, &["press-07", "press-08", "press-09"]),
    )
}

/// Has the hub write its status at this moment, with these networks of clients that nothing else is
/// known of, and waits until the gateway has taken it in.
fn write_status(gateway: &Gateway, number: u8, routes: &[(&str, &str)]) {
    let mark = format!("file-{number}");
    let mark_network = format!("127.99.0.{number}");
    let routes = routes.iter().copied();
    let routes: Vec<_> = routes.chain([(&*mark_network, &*mark)]).collect();
    let written = SystemTime::now();
    // The file's own time, which is finer, counts.
    let later = written.duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(2);
    let mut text = format!(
        "TITLE\tx\nTIME\tx\t{}\n\
         HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tConnected Since (time_t)\n",
        later.as_secs()
    );
    for (_, name) in &routes {
        text.push_str(&format!("CLIENT_LIST\t{name}\t{name}:1\t10.8.0.2\t1\n"));
    }
    text.push_str("HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\n");
    for (network, name) in &routes {
        text.push_str(&format!("ROUTING_TABLE\t{network}\t{name}\t{name}:1\n"));
    }
    text.push_str("GLOBAL_STATS\tMax bcast/mcast queue length\t0\nEND\n");
    let new = gateway.path("new.status");
    fs::write(&new, text).unwrap();
    let file = fs::File::options().write(true).open(&new).unwrap();
    file.set_modified(written).unwrap();
    fs::rename(new, gateway.path("north.status")).unwrap();
    wait_until("the status", || times_read(gateway, number) > 0);
}

/// How many readers of the hub have taken that status in: each tells once of its mark.
fn times_read(gateway: &Gateway, number: u8) -> usize {
    let told = format!("is routed to \"file-{number}\"");
    gateway.log().matches(&told).count()
}

/// Reloads with this configuration, and waits until the status has been read anew.
fn reload(gateway: &Gateway, configuration: &str, number: u8) {
    let before = times_read(gateway, number);
    fs::write(gateway.path("m2u.toml"), configuration).unwrap();
    gateway.signal("HUP");
    wait_until("another look at the status", || {
        times_read(gateway, number) > before
    });
}

fn release(feed: &mut Feed, session: &str) {
    feed.done(&format!(
        r#"{{"op":"release","source":"openvpn:north","session":"{session}"}}"#
    ));
}

fn add(feed: &mut Feed, address: &str, name: &str, session: &str) {
    feed.done(&format!(
        r#"{{"op":"add","source":"openvpn:north","address":"{address}","common_name":"{name}","session":"{session}"}}"#
    ));
}

/// By its status, a has 127.0.0.7; then hooks say that a has left, and that b has it.
fn hand_over(gateway: &Gateway, routes: &[(&str, &str)]) -> Feed {
    write_status(gateway, 1, routes);
    let is_whose = whose("127.0.0.7", gateway.address());
    assert_eq!(is_whose, Ok("press-07".to_owned()));
    let mut feed = connect(gateway);
    release(&mut feed, "a@1");
    add(&mut feed, "127.0.0.7", "b", "b@2");
    feed
}

#[test]
fn a_reload_with_other_names_keeps_what_hooks_have_said() {
    let upstream = Upstream::echo();
    let with = |names: &str| configuration(&upstream.url(), "", names);
    let gateway = Gateway::start(&with(A_AND_B));
    let whose = |address| whose(address, gateway.address());
    let routes = [("127.0.0.7", "a"), ("127.0.0.8", "b"), ("127.0.0.9", "c")];
    let mut feed = hand_over(&gateway, &routes);
    add(&mut feed, "127.0.0.10", "b", "b@2");
    let known = ["127.0.0.7", "127.0.0.8", "127.0.0.10"];
    // One name more: the status of before says whose its client's address is, and nothing else.
    reload(
        &gateway,
        &with(&format!("{A_AND_B}, c = \"acme/press-09\"")),
        1,
    );
    for address in known {
        assert_eq!(whose(address), Ok("press-08".to_owned()), "{address}");
    }
    assert_eq!(whose("127.0.0.9"), Ok("press-09".to_owned()));
    // A name that stands for another device: nobody says of now where that is.
    let others = "a = \"acme/press-07\", b = \"acme/press-09\", c = \"acme/press-09\"";
    reload(&gateway, &with(others), 1);
    for address in known {
        assert_eq!(whose(address), Err(503), "{address}");
    }
    assert_eq!(whose("127.0.0.9"), Ok("press-09".to_owned()));
    write_status(&gateway, 2, &known.map(|address| (address, "b")));
    for address in known {
        assert_eq!(whose(address), Ok("press-09".to_owned()), "{address}");
    }
    assert_eq!(whose("127.0.0.9"), Err(403));
    gateway.stop();
}

#[test]
fn a_hub_that_comes_back_with_a_reload_is_not_known_by_a_status_of_before() {
    let upstream = Upstream::echo();
    let north = configuration(&upstream.url(), "", A_AND_B);
    let gateway = Gateway::start(&north);
    let whose = |address| whose(address, gateway.address());
    drop(hand_over(&gateway, &[("127.0.0.7", "a")]));
    let west = north.replace("\"north\"", "\"west\"");
    reload(&gateway, &west, 1);
    // It may be another one's status just as well.
    assert_eq!(whose("127.0.0.7"), Err(503));
    reload(&gateway, &north, 1);
    assert_eq!(whose("127.0.0.7"), Err(503));
    write_status(&gateway, 2, &[("127.0.0.7", "b")]);
    assert_eq!(whose("127.0.0.7"), Ok("press-08".to_owned()));
    gateway.stop();
}

#[test]
fn a_start_that_remembers_nothing_waits_for_a_status_of_since_then() {
    let upstream = Upstream::echo();
    let journal = "journal = \"journal\"\n";
    // Without a journal; with one that is gone, or empty, as after a full disk.
    for (leases, left) in [("", None), (journal, None), (journal, Some(""))] {
        let gateway = Gateway::start(&configuration(&upstream.url(), leases, A_AND_B));
        let routes = [("127.0.0.7", "a"), ("127.8.0.0/16", "b")];
        drop(hand_over(&gateway, &routes));
        let gateway = gateway.crash_and_restart(|folder| {
            let _ = fs::remove_file(folder.join("journal"));
            if let Some(left) = left {
                fs::write(folder.join("journal"), left).unwrap();
            }
            // However seldom the hub is asked, what it writes next is not waited for as long.
            let text = fs::read_to_string(folder.join("m2u.toml")).unwrap();
            let text = text.replace("poll = \"1s\"", "poll = \"60m\"");
            fs::write(folder.join("m2u.toml"), text).unwrap();
        });
        let whose = |address| whose(address, gateway.address());
        wait_until("the status", || times_read(&gateway, 1) > 0);
        let mut feed = connect(&gateway);
        let suspended = ["127.0.0.7 press-07", "127.8.0.0/16 press-08"];
        let suspended = suspended.map(|lease| format!("{lease} suspended"));
        assert_eq!(feed.leases(), suspended);
        for address in ["127.0.0.7", "127.8.0.1", "127.99.0.1"] {
            assert_eq!(whose(address), Err(503), "{address}");
        }
        // A hook speaks for what it says alone.
        add(&mut feed, "127.0.0.8", "b", "b@3");
        assert_eq!(whose("127.0.0.8"), Ok("press-08".to_owned()));
        assert_eq!(whose("127.0.0.7"), Err(503));
        let routes = [
            ("127.0.0.7", "b"),
            ("127.0.0.8", "b"),
            ("127.8.0.0/16", "b"),
        ];
        write_status(&gateway, 2, &routes);
        for address in ["127.0.0.7", "127.0.0.8", "127.8.0.1"] {
            assert_eq!(whose(address), Ok("press-08".to_owned()), "{address}");
        }
        assert_eq!(whose("127.99.0.1"), Err(403));
        gateway.stop();
    }
}

#[test]
fn a_status_file_is_looked_at_soon_while_somebody_waits_for_it() {
    let upstream = Upstream::echo();
    let hourly = configuration(&upstream.url(), "", A_AND_B).replace("\"1s\"", "\"60m\"");
    let gateway = Gateway::start(&hourly);
    let whose = |address| whose(address, gateway.address());
    // There is none yet; then the first; then one that says who has taken an address over.
    write_status(&gateway, 1, &[("127.0.0.7", "a")]);
    assert_eq!(whose("127.0.0.7"), Ok("press-07".to_owned()));
    connect(&gateway).done(
        "{\"op\":\"add\",\"source\":\"openvpn:north\",\"address\":\"127.0.0.7\",\
         \"common_name\":\"b\",\"session\":\"b@1\",\"replace\":true}",
    );
    let refused = Device::connect("127.0.0.7", gateway.address()).ask(GET);
    assert_eq!(refused.status(), 503);
    // What is said of that is true: the address was confirmed after the start.
    let sentence = "Whose address this is has still to be confirmed; try again later.";
    assert!(refused.text().contains(sentence), "{}", refused.text());
    write_status(&gateway, 2, &[("127.0.0.7", "b")]);
    assert_eq!(whose("127.0.0.7"), Ok("press-08".to_owned()));
    gateway.stop();
}
