//! A reload while large sets of leases come in: it waits for the one on its way, nobody for it.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{
    gateway::Gateway,
    leases::{self, add, connect, whole_set, whose},
    upstream::Upstream,
    wait_until,
};
use m2u::limits;

/// How often it is tried: a set may be whole before a signal comes.
const ROUNDS: usize = 10;
/// Leases of a set that takes long.
const LARGE: usize = 30_000;

#[test]
fn a_reload_waits_for_a_set_on_its_way_and_nobody_waits_for_it() {
    const WAITS: &str = "m2u: reload: waits until a set of first that is on its way is whole";
    const SMALL: usize = 2 * limits::LEASE_TURN;
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let (mut source, mut other) = (connect(&gateway), connect(&gateway));
    let whole = leases::configuration(&upstream.url(), "");
    let smaller = whole.replace("\"press-09\"", "\"press-10\"");
    assert_ne!(whole, smaller);
    let said = |words: &str| gateway.log().matches(words).count();
    // Where the journal said last that a set began, or was whole.
    let newest_set = || {
        let journal = fs::read_to_string(gateway.path("journal")).unwrap_or_default();
        journal.rfind("{\"set\"")
    };
    let (mut waited, mut served) = (0, 0);
    for round in 0..ROUNDS {
        fs::write(gateway.path("m2u.toml"), &whole).unwrap();
        let reloads = said("m2u: reloaded");
        gateway.signal("HUP");
        wait_until("the reload", || said("m2u: reloaded") > reloads);
        other.done(&add("127.0.0.9", "press-09", ""));
        fs::write(gateway.path("m2u.toml"), &smaller).unwrap();
        // The second one waits until the reload is over, as does the third.
        let (reloads, before) = (said("m2u: reloaded"), newest_set());
        let waits = said(WAITS);
        source.send(whole_set(
            "first",
            1,
            ["press-09", "press-07"][round % 2],
            LARGE,
        ));
        source.send(whole_set("second", 2, "press-09", SMALL));
        source.send(whole_set("third", 3, "press-08", SMALL));
        wait_until("the set", || newest_set() != before);
        gateway.signal("HUP");
        let is_told = || said(WAITS) > waits;
        wait_until("the signal", || {
            is_told() || said("m2u: reloaded") > reloads
        });
        if !is_told() {
            // The set was whole before the signal came.
            (0..3).for_each(|_| drop(source.next()));
            wait_until("the reload", || said("m2u: reloaded") > reloads);
            continue;
        }
        waited += usize::from(is_told());
        // What others say does not wait with it.
        other.done(&add("127.0.0.7", "press-07", ""));
        served += usize::from(is_told() && said("m2u: reloaded") == reloads);
        // It began with the devices of before, and they end with its last lease in place.
        assert_eq!(source.next()["count"], LARGE);
        wait_until("the reload", || said("m2u: reloaded") > reloads);
        let first = match round % 2 {
            0 => Err(403),
            _ => Ok("press-07".to_owned()),
        };
        assert_eq!(whose("127.1.9.9", gateway.address()), first);
        assert_eq!(whose("127.0.0.9", gateway.address()), Err(403));
        // These are of the devices that there are now.
        let second = source.next();
        assert_eq!(
            (&second["error"], &second["line"]),
            (&"unknown_device".into(), &1.into())
        );
        assert_eq!(source.next()["count"], SMALL);
        assert_eq!(whose("127.2.0.9", gateway.address()), Err(403));
        assert_eq!(
            whose("127.3.0.9", gateway.address()),
            Ok("press-08".to_owned())
        );
        if round > 0 && served > 0 {
            break;
        }
    }
    assert!(served > 0, "of {waited} reloads that waited");
    gateway.stop();
}

/// What a gateway says that is told to end while a reload waits for a set; `None`: the set was whole
/// before. Its log has been moved away by then.
fn end_while_a_reload_waits(upstream: &Upstream) -> Option<String> {
    let log = "[access_log]\npath = \"access.log\"\n";
    let text = leases::configuration(&upstream.url(), "");
    let mut gateway = Gateway::start(&text.replace("[upstream]", &format!("{log}[upstream]")));
    fs::rename(gateway.path("access.log"), gateway.path("moved.log")).unwrap();
    let mut source = connect(&gateway);
    source.send(whole_set("first", 1, "press-07", LARGE));
    let journal = || fs::read_to_string(gateway.path("journal")).unwrap_or_default();
    wait_until("the set", || journal().contains("{\"set\""));
    gateway.signal("HUP");
    let said = |words: &str| gateway.log().contains(words);
    wait_until("the signal", || {
        said("m2u: reload: waits") || said("m2u: reloaded")
    });
    gateway.signal("TERM");
    assert_eq!(gateway.wait().code(), Some(0), "{}", gateway.log());
    let has_reloaded = gateway.log().contains("m2u: reloaded");
    assert!(gateway.path("access.log").exists(), "{}", gateway.log());
    (!has_reloaded).then(|| gateway.log())
}

#[test]
fn a_reload_that_waits_has_opened_the_log_and_is_refused_at_the_end() {
    let upstream = Upstream::echo();
    let ends = (0..ROUNDS).find_map(|_| end_while_a_reload_waits(&upstream));
    let said = ends.expect("a reload that waited until the end");
    let refused = said.matches("m2u: reload refused: m2u is ending").count();
    assert_eq!(refused, 1, "{said}");
}
