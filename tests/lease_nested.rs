//! Networks of hubs' clients within one another, on the table alone: nobody is served where they
//! overlap, nor in what one of them has left, until a report shows whose it is.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::claims::{acme, place};
use m2u::{
    control::lease::{
        claim::{Offer, Place, Refused},
        seen::Seen,
        table::LeaseTable,
    },
    snapshot::scope::{Scope, Unknown},
};

const NORTH: &str = "openvpn:north";
const SOUTH: &str = "openvpn:south";
const OUTER: &str = "10.64.0.0/10";
const INNER: &str = "10.65.0.0/16";
/// A host in both.
const BOTH: &str = "10.65.0.5";
/// A host in the outer one alone.
const ALONE: &str = "10.66.0.5";
const DISPUTED: Result<&str, Unknown> = Err(Unknown::Disputed);
const UNCONFIRMED: Result<&str, Unknown> = Err(Unknown::Unconfirmed);
const NOBODYS: Result<&str, Unknown> = Err(Unknown::NoLease);

/// Two scopes and two hubs, at 1,000.
fn table() -> LeaseTable {
    let mut table = LeaseTable::new(2);
    table.adopt(acme(&["press", "mill", "saw"]), Arc::default());
    table.advance(1_000);
    for hub in [NORTH, SOUTH] {
        begin(&mut table, hub);
    }
    table
}

/// Takes a source for a hub, by whose first report nobody is connected.
fn begin(table: &mut LeaseTable, hub: &str) {
    table.expect_reports(hub).unwrap();
    table.reconcile(hub, 1_000, &Seen::default());
}

/// What a hub says of a device: its session is called like it.
fn offer<'a>(scope: u8, network: &str, device: &'a str) -> Offer<'a> {
    Offer {
        place: place(scope, network),
        account: "acme",
        device,
        session: device,
        expires: None,
        replace: true,
    }
}

fn add(table: &mut LeaseTable, source: &str, network: &str, device: &str) {
    table.add(source, None, &offer(0, network, device)).unwrap();
}

/// Has the table remember what the hub north said of `network`, as if it was confirmed just now.
fn remember(table: &mut LeaseTable, network: &str, device: &str) {
    let offer = offer(0, network, device);
    table.recall(NORTH, 0, &offer, None).unwrap();
}

/// Has the table hear a report of the hub north; answers what could not be served.
fn report(table: &mut LeaseTable, as_of: u64, routes: &[(&str, &str)]) -> Vec<String> {
    let offers = routes.iter().map(|(network, who)| offer(0, network, who));
    let offers: Vec<_> = offers.collect();
    let seen = Seen {
        offers: &offers,
        strangers: &[],
    };
    let refused = table.reconcile(NORTH, as_of, &seen);
    refused.iter().map(Refused::to_string).collect()
}

/// Asserts whose addresses are at listeners of a scope.
#[track_caller]
fn assert_whose(table: &mut LeaseTable, scope: u8, expected: &[(&str, Result<&str, Unknown>)]) {
    table.commit();
    let identities = table.identities();
    for (address, expected) in expected {
        let found = identities.resolve(Scope(scope), address.parse().unwrap());
        assert_eq!(found.map(|identity| identity.name), *expected, "{address}");
    }
}

#[test]
fn nobody_is_served_where_networks_of_two_devices_overlap() {
    // Whatever comes first, and at whatever hub.
    for (first, second) in [(OUTER, INNER), (INNER, OUTER)] {
        for hub in [NORTH, SOUTH] {
            let mut table = table();
            let device = |network| if network == OUTER { "press" } else { "mill" };
            add(&mut table, NORTH, first, device(first));
            assert_whose(&mut table, 0, &[(BOTH, Ok(device(first)))]);
            add(&mut table, hub, second, device(second));
            assert_whose(&mut table, 0, &[(BOTH, DISPUTED), (ALONE, Ok("press"))]);
            let disputed = table
                .leases_behind(None)
                .flat_map(|(_, leases)| leases)
                .filter(|lease| lease.is_disputed);
            let disputed: Vec<_> = disputed.map(|lease| lease.device).collect();
            assert_eq!(disputed, ["mill"]);
            // Without the outer one, the inner is as good as any.
            table
                .release_session(NORTH, None, "press")
                .unwrap_or_default();
            let _ = table.release_session(SOUTH, None, "press");
            let expected = [(BOTH, Ok("mill")), (ALONE, NOBODYS)];
            report(&mut table, 1_000, &[]);
            add(&mut table, hub, INNER, "mill");
            assert_whose(&mut table, 0, &expected);
        }
    }
}

#[test]
fn an_address_alone_and_six_are_no_exception() {
    let mut table = table();
    add(&mut table, NORTH, "10.0.0.0/8", "press");
    add(&mut table, NORTH, "10.8.0.7", "mill");
    add(&mut table, NORTH, "fd00::/16", "press");
    add(&mut table, NORTH, "fd00:8::7", "mill");
    add(&mut table, NORTH, "10.8.0.8", "press");
    let expected = [
        ("10.8.0.7", DISPUTED),
        ("fd00:8::7", DISPUTED),
        ("10.8.0.8", Ok("press")),
        ("10.8.0.9", Ok("press")),
    ];
    assert_whose(&mut table, 0, &expected);
}

#[test]
fn a_device_may_have_networks_within_its_own() {
    let mut table = table();
    for _ in 0..2 {
        for network in [OUTER, INNER, BOTH] {
            add(&mut table, NORTH, network, "press");
        }
        assert_whose(&mut table, 0, &[(BOTH, Ok("press")), (ALONE, Ok("press"))]);
        // It comes back at once.
        table.release_session(NORTH, None, "press").unwrap();
        assert_whose(&mut table, 0, &[(BOTH, NOBODYS), (ALONE, NOBODYS)]);
    }
    assert!(table.is_empty());
}

#[test]
fn what_a_feed_says_within_a_hubs_network_stands() {
    let mut table = table();
    add(&mut table, NORTH, OUTER, "press");
    add(&mut table, "manual", BOTH, "mill");
    assert_whose(&mut table, 0, &[(BOTH, Ok("mill")), (ALONE, Ok("press"))]);
    add(&mut table, "manual", "10.0.0.0/8", "saw");
    assert_whose(
        &mut table,
        0,
        &[(ALONE, Ok("press")), ("10.1.1.1", Ok("saw"))],
    );
    // Once it is a hub, its word weighs no more than another's.
    table.expect_reports("manual").unwrap();
    let expected = [(BOTH, DISPUTED), (ALONE, DISPUTED), ("10.1.1.1", Ok("saw"))];
    assert_whose(&mut table, 0, &expected);
    table.forget_hub("manual");
    assert_whose(&mut table, 0, &[(BOTH, Ok("press")), ("10.1.1.1", NOBODYS)]);
}

#[test]
fn scopes_overlap_only_with_themselves_and_with_that_of_all() {
    let mut table = table();
    let mut add = |scope, network, device| {
        let offer = offer(scope, network, device);
        table.add(NORTH, None, &offer).unwrap();
    };
    add(1, OUTER, "press");
    add(2, INNER, "mill");
    add(0, "10.66.0.0/16", "saw");
    add(0, "172.16.0.0/12", "saw");
    add(2, "172.16.0.7", "mill");
    assert_whose(&mut table, 1, &[(BOTH, Ok("press")), (ALONE, DISPUTED)]);
    assert_whose(
        &mut table,
        2,
        &[(BOTH, Ok("mill")), ("172.16.0.7", DISPUTED)],
    );
    let adopted = acme(&["press", "mill", "saw"]);
    table.adopt(adopted, Arc::default());
    assert_whose(&mut table, 1, &[(BOTH, Ok("press")), (ALONE, DISPUTED)]);
    assert_whose(
        &mut table,
        2,
        &[(BOTH, Ok("mill")), ("172.16.0.7", DISPUTED)],
    );
}

#[test]
fn what_is_left_within_a_network_is_nobodys_until_a_report_shows_whose_it_is() {
    let mut table = table();
    add(&mut table, NORTH, OUTER, "press");
    add(&mut table, NORTH, INNER, "mill");
    add(&mut table, NORTH, "10.8.0.7", "mill");
    table.advance(2_000);
    table.release_session(NORTH, None, "mill").unwrap();
    let left = [
        (BOTH, UNCONFIRMED),
        (ALONE, Ok("press")),
        ("10.8.0.7", NOBODYS),
    ];
    assert_whose(&mut table, 0, &left);
    // A report of a moment ago does not know it yet, and a new configuration changes nothing.
    report(&mut table, 1_999, &[(OUTER, "press"), (INNER, "mill")]);
    assert_whose(&mut table, 0, &left);
    table.adopt(acme(&["press", "mill", "saw"]), Arc::default());
    assert_whose(&mut table, 0, &left);
    report(&mut table, 2_000, &[(OUTER, "press")]);
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);

    // Unheard, the report itself ends it.
    add(&mut table, NORTH, INNER, "mill");
    assert_whose(&mut table, 0, &[(BOTH, DISPUTED)]);
    report(&mut table, 2_001, &[(OUTER, "press")]);
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
}

#[test]
fn a_network_that_a_hub_forgets_may_leave_hosts_behind() {
    let mut table = table();
    add(&mut table, NORTH, INNER, "mill");
    add(&mut table, NORTH, "10.8.0.7", "mill");
    for network in [INNER, "10.8.0.7"] {
        table.release(NORTH, None, place(0, network), None).unwrap();
    }
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED), ("10.8.0.7", NOBODYS)]);
    add(&mut table, NORTH, BOTH, "saw");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED)]);
    let refused = report(&mut table, 1_000, &[(OUTER, "press"), (BOTH, "mill")]);
    assert_eq!(
        refused,
        [format!(
            "{BOTH}/32 lies in {OUTER}, which is the device \"press\"'s of \"acme\": nobody is \
             served there; give each its own networks (iroute)"
        )]
    );
    let expected = [(BOTH, DISPUTED), ("10.65.0.6", Ok("press"))];
    assert_whose(&mut table, 0, &expected);
}

#[test]
fn what_was_taken_over_and_left_before_any_report_is_nobodys() {
    let mut table = table();
    add(&mut table, NORTH, INNER, "mill");
    // The hub may have given the hook up, and left the network with mill.
    add(&mut table, NORTH, INNER, "saw");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED)]);
    add(&mut table, NORTH, INNER, "saw");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED)]);
    add(&mut table, NORTH, BOTH, "saw");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED)]);
    table.release_session(NORTH, None, "saw").unwrap();
    add(&mut table, NORTH, OUTER, "press");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED), (ALONE, Ok("press"))]);
    add(&mut table, NORTH, INNER, "saw");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED)]);
    report(&mut table, 1_001, &[(INNER, "mill")]);
    assert_whose(&mut table, 0, &[(BOTH, Ok("mill")), (ALONE, NOBODYS)]);
}

#[test]
fn whoever_is_in_a_network_that_waits_for_a_report_waits_with_it() {
    let suspended = |table: &LeaseTable| {
        let leases = table.leases_behind(None).flat_map(|(_, leases)| leases);
        let leases = leases.filter(|lease| lease.is_suspended && !lease.is_disputed);
        leases.map(|lease| lease.place).collect::<Vec<_>>()
    };
    for owner in ["mill", "press"] {
        let mut table = table();
        // Who had the network may still have it; and of that nothing is told.
        add(&mut table, NORTH, OUTER, "saw");
        add(&mut table, NORTH, OUTER, owner);
        add(&mut table, NORTH, BOTH, "mill");
        assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED), (ALONE, UNCONFIRMED)]);
        assert_eq!(suspended(&table), [place(0, OUTER), place(0, BOTH)]);
        let refused = report(&mut table, 999, &[(OUTER, "saw")]);
        assert_eq!(refused, [""; 0]);
        // A third one's network around both is reason enough to refuse for good.
        add(&mut table, NORTH, "10.0.0.0/8", "saw");
        assert_whose(&mut table, 0, &[(BOTH, DISPUTED), (ALONE, UNCONFIRMED)]);
        table
            .release(NORTH, None, place(0, "10.0.0.0/8"), None)
            .unwrap();
        let refused = report(&mut table, 1_000, &[(OUTER, owner), (BOTH, "mill")]);
        let served = match owner {
            "mill" => Ok("mill"),
            _ => DISPUTED,
        };
        assert_eq!(refused.len(), usize::from(owner != "mill"), "{refused:?}");
        assert_whose(&mut table, 0, &[(BOTH, served), (ALONE, Ok(owner))]);
        assert_eq!(suspended(&table), []);
    }
}

#[test]
fn a_stranger_in_a_network_is_not_taken_for_the_device_that_has_it() {
    let mut table = table();
    let offers = [offer(0, OUTER, "press"), offer(0, "10.67.0.0/16", "ghost")];
    let reconcile = |table: &mut LeaseTable, as_of, strangers: &[Place]| {
        let offers = &offers;
        table.reconcile(NORTH, as_of, &Seen { offers, strangers })
    };
    let strangers = [place(0, INNER), place(0, "10.8.0.0/16")];
    let refused = reconcile(&mut table, 1_000, &strangers);
    assert_eq!(refused.len(), 1, "{refused:?}");
    add(&mut table, NORTH, "10.8.0.7", "mill");
    let expected = [
        (BOTH, NOBODYS),
        ("10.67.0.5", NOBODYS),
        (ALONE, Ok("press")),
        ("10.8.0.7", DISPUTED),
    ];
    assert_whose(&mut table, 0, &expected);
    table.adopt(acme(&["press", "mill"]), Arc::default());
    assert_whose(&mut table, 0, &expected);
    reconcile(&mut table, 1_000, &[]);
    assert_whose(
        &mut table,
        0,
        &[(BOTH, Ok("press")), ("10.67.0.5", NOBODYS)],
    );
}

#[test]
fn what_was_left_after_a_report_of_strangers_waits_for_one_of_since_then() {
    let mut table = table();
    add(&mut table, NORTH, OUTER, "press");
    table.advance(1_700);
    add(&mut table, NORTH, INNER, "mill");
    table.advance(2_000);
    table.release_session(NORTH, None, "mill").unwrap();
    let offers = &[offer(0, OUTER, "press")];
    for (as_of, strangers, expected) in [
        (1_500, &[place(0, INNER)][..], UNCONFIRMED),
        (1_600, &[], UNCONFIRMED),
        (2_000, &[], Ok("press")),
    ] {
        table.reconcile(NORTH, as_of, &Seen { offers, strangers });
        assert_whose(&mut table, 0, &[(BOTH, expected)]);
    }
}

#[test]
fn a_device_that_the_configuration_gives_up_speaks_for_nobody_around() {
    let mut table = table();
    add(&mut table, NORTH, OUTER, "press");
    add(&mut table, NORTH, INNER, "mill");
    let ended = table.adopt(acme(&["press", "saw"]), Arc::default());
    assert_eq!(ended.len(), 1);
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED), (ALONE, Ok("press"))]);
}

#[test]
fn a_session_is_released_as_a_whole_and_no_other() {
    let mut table = table();
    for network in [OUTER, "10.8.0.7"] {
        add(&mut table, NORTH, network, "press");
        table.add("vpn", None, &offer(1, network, "press")).unwrap();
    }
    add(&mut table, NORTH, "10.8.0.8", "mill");
    for session in ["", "pres", "saw"] {
        let refused = table.release_session(NORTH, None, session);
        assert_eq!(refused.unwrap_err().token(), "no_lease");
    }
    assert!(table.release_session("none", None, "press").is_err());
    table.release_session(NORTH, None, "press").unwrap();
    assert_whose(
        &mut table,
        0,
        &[("10.8.0.7", NOBODYS), ("10.8.0.8", Ok("mill"))],
    );
    assert_eq!(table.len(), 3);
    table.release_session("vpn", None, "press").unwrap();
    assert_eq!(table.len(), 1);
    // Of a run that is over, nothing is left to release.
    let outer = offer(0, OUTER, "press");
    table.add(NORTH, Some(6), &outer).unwrap();
    table.add(NORTH, Some(7), &offer(0, BOTH, "press")).unwrap();
    let late = table.release_session(NORTH, Some(6), "press");
    assert_eq!(late.unwrap_err().token(), "out_of_order");
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
}

#[test]
fn what_was_nobodys_in_a_network_is_nobodys_after_a_restart() {
    let mut table = table();
    remember(&mut table, OUTER, "press");
    remember(&mut table, "10.8.0.7", "saw");
    table.carry(0, 5_000, |_, _| false);
    table.publish_recalled(900);
    // Who was in it, and is known to nobody, is forgotten.
    assert_whose(
        &mut table,
        0,
        &[(ALONE, UNCONFIRMED), ("10.8.0.7", Ok("saw"))],
    );
    // A hook does not tell either, whether it is the same network or another one.
    add(&mut table, NORTH, OUTER, "press");
    add(&mut table, NORTH, "10.200.0.0/16", "mill");
    assert_whose(
        &mut table,
        0,
        &[(ALONE, UNCONFIRMED), ("10.200.0.1", UNCONFIRMED)],
    );
    // The hub itself does.
    table.advance(2_000);
    report(
        &mut table,
        1_500,
        &[
            (OUTER, "press"),
            ("10.200.0.0/16", "mill"),
            ("10.8.0.7", "saw"),
        ],
    );
    assert_whose(
        &mut table,
        0,
        &[(ALONE, Ok("press")), ("10.200.0.1", Ok("mill"))],
    );
    add(&mut table, NORTH, "10.201.0.0/16", "mill");
    assert_whose(&mut table, 0, &[("10.201.0.1", Ok("mill"))]);
}

#[test]
fn before_the_first_report_on_a_hub_no_network_of_it_is_served() {
    let mut table = LeaseTable::new(2);
    table.adopt(acme(&["press", "mill", "saw"]), Arc::default());
    for begun in [1_000, 3_000] {
        table.advance(begun);
        table.expect_reports(NORTH).unwrap();
        add(&mut table, NORTH, OUTER, "press");
        add(&mut table, NORTH, "10.8.0.7", "saw");
        let waits = [(BOTH, UNCONFIRMED), ("10.8.0.7", Ok("saw"))];
        assert_whose(&mut table, 0, &waits);
        // One of before shows less than that.
        report(&mut table, begun - 1, &[(OUTER, "press")]);
        assert_whose(&mut table, 0, &waits);
        table.advance(begun + 1_000);
        // The hub alone knew who else was there.
        let offers = &[offer(0, OUTER, "press"), offer(0, "10.8.0.7", "saw")];
        let strangers = &[place(0, INNER)];
        table.reconcile(NORTH, begun + 500, &Seen { offers, strangers });
        let known = [(ALONE, Ok("press")), (BOTH, NOBODYS)];
        assert_whose(&mut table, 0, &known);
        // Given up and taken up again, it is as new.
        table.forget_hub(NORTH);
        assert_whose(&mut table, 0, &[(ALONE, NOBODYS)]);
    }
}

#[test]
fn the_first_run_that_a_hook_tells_of_may_be_the_reports_own_or_another() {
    let mut table = table();
    report(&mut table, 1_000, &[(INNER, "mill"), ("10.8.0.7", "saw")]);
    table.advance(2_000);
    table
        .add(NORTH, Some(7), &offer(0, OUTER, "press"))
        .unwrap();
    let waits = [
        (BOTH, UNCONFIRMED),
        ("10.8.0.7", UNCONFIRMED),
        (ALONE, Ok("press")),
    ];
    assert_whose(&mut table, 0, &waits);
    let routes = [(INNER, "mill"), (OUTER, "press"), ("10.8.0.7", "saw")];
    report(&mut table, 1_999, &routes);
    assert_whose(&mut table, 0, &waits);
    report(&mut table, 2_000, &routes);
    assert_whose(&mut table, 0, &[("10.8.0.7", Ok("saw")), (BOTH, DISPUTED)]);
    // Of the next one there is no doubt.
    table
        .add(NORTH, Some(8), &offer(0, "10.8.0.8", "saw"))
        .unwrap();
    assert_whose(&mut table, 0, &[("10.8.0.7", NOBODYS), (BOTH, NOBODYS)]);
}

#[test]
fn a_hook_that_says_again_what_a_report_doubts_waits_for_the_next_one() {
    let mut table = table();
    table.advance(1_200);
    add(&mut table, NORTH, BOTH, "press");
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
    let strangers = [place(0, BOTH)];
    let offers = &[];
    table.reconcile(
        NORTH,
        1_100,
        &Seen {
            offers,
            strangers: &strangers,
        },
    );
    // It is older than what the hook said.
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
    table.advance(1_400);
    add(&mut table, NORTH, BOTH, "press");
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED)]);
    report(&mut table, 1_500, &[(BOTH, "press")]);
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
}

#[test]
fn whatever_a_hub_has_its_status_says_and_no_set() {
    let mut table = table();
    add(&mut table, NORTH, OUTER, "press");
    let set = [offer(0, INNER, "mill")];
    let (_, refused) = table.sync(NORTH, None, &set).unwrap_err();
    assert_eq!(refused.token(), "source");
    assert_eq!(table.begin_set(NORTH, None).unwrap_err().token(), "source");
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
}

/// As [`table`], but with room for `leases` alone.
fn narrow(leases: usize) -> LeaseTable {
    let mut table = LeaseTable::with_room_for(leases, 2);
    table.adopt(acme(&["press", "mill", "saw"]), Arc::default());
    table.advance(1_000);
    begin(&mut table, NORTH);
    table
}

fn token(refused: Result<(), Refused>) -> &'static str {
    refused.map_or_else(|refused| refused.token(), |()| "done")
}

#[test]
fn what_comes_and_goes_between_two_reports_is_bounded_as_leases_are() {
    const ROOM: usize = 4;
    let mut table = narrow(ROOM);
    add(&mut table, NORTH, OUTER, "press");
    let inner = |number: usize| format!("10.65.{number}.0/24");
    let visit = |table: &mut LeaseTable, number| {
        let network = inner(number);
        token(table.add(NORTH, None, &offer(0, &network, "mill")))
    };
    // However they end: by one, by their session, by their time, by a run that is new.
    assert_eq!(visit(&mut table, 0), "done");
    table
        .release(NORTH, None, place(0, &inner(0)), None)
        .unwrap();
    assert_eq!(visit(&mut table, 1), "done");
    table.release_session(NORTH, None, "mill").unwrap();
    let brief = inner(2);
    let brief = Offer {
        expires: Some(1_500),
        ..offer(0, &brief, "mill")
    };
    table.add(NORTH, None, &brief).unwrap();
    table.advance(1_500);
    assert_eq!((table.len(), table.ended()), (1, 3));
    for number in 3..50 {
        assert_eq!(visit(&mut table, number), "full");
    }
    // What was there may come back and go again, for ever.
    for number in [0, 1, 2, 0, 1, 2] {
        assert_eq!(visit(&mut table, number), "done");
        table.release_session(NORTH, None, "mill").unwrap();
    }
    assert_eq!((table.len(), table.ended()), (1, 3));
    // Nobody else can have the room, and a new run of the hub has none either for what is new.
    assert_eq!(
        token(table.add("vpn", None, &offer(0, "10.9.0.1", "saw"))),
        "full"
    );
    assert_eq!(
        table
            .sync("vpn", None, &[offer(0, "10.9.0.1", "saw")])
            .unwrap_err()
            .1
            .token(),
        "full"
    );
    assert_eq!(
        token(table.add(NORTH, Some(7), &offer(0, "10.9.0.1", "saw"))),
        "full"
    );
    table
        .add(NORTH, Some(7), &offer(0, OUTER, "press"))
        .unwrap();
    assert_eq!((table.len(), table.ended()), (1, 3));
    // Nothing of it has been dropped: it is nobody's until a report of since then has come.
    for number in 0..3 {
        let host = inner(number).replace("0/24", "5");
        assert_whose(&mut table, 0, &[(&host, UNCONFIRMED)]);
    }
    table.advance(2_000);
    report(&mut table, 1_499, &[(OUTER, "press")]);
    assert_eq!(table.ended(), 3, "it is older than the new run");
    assert_eq!(visit(&mut table, 3), "full");
    report(&mut table, 1_600, &[(OUTER, "press")]);
    assert_eq!((table.len(), table.ended()), (1, 0));
    assert_whose(&mut table, 0, &[(BOTH, Ok("press"))]);
    assert_eq!(visit(&mut table, 3), "done");
}

#[test]
fn what_a_report_brings_has_the_room_that_is_left() {
    let mut table = narrow(2);
    add(&mut table, NORTH, OUTER, "press");
    add(&mut table, NORTH, INNER, "mill");
    table.advance(2_000);
    table.release_session(NORTH, None, "mill").unwrap();
    // Older than the release: it can't free the room, and what it has beside is withheld.
    let other = "10.66.0.0/16";
    let before = [(OUTER, "press"), (INNER, "mill"), (other, "saw")];
    let refused = report(&mut table, 1_999, &before);
    assert!(refused[0].contains("no more than 2 leases"), "{refused:?}");
    assert_eq!((table.len(), table.ended()), (1, 1));
    assert_whose(&mut table, 0, &[(BOTH, UNCONFIRMED), (ALONE, NOBODYS)]);
    report(&mut table, 2_000, &[(OUTER, "press"), (other, "press")]);
    assert_eq!((table.len(), table.ended()), (2, 0));
    assert_whose(&mut table, 0, &[(BOTH, Ok("press")), (ALONE, Ok("press"))]);
}

#[test]
fn what_ends_with_its_device_or_its_hub_is_counted_as_well() {
    let mut table = narrow(3);
    for (network, device) in [(OUTER, "press"), (INNER, "mill")] {
        add(&mut table, NORTH, network, device);
    }
    table.adopt(acme(&["press", "saw"]), Arc::default());
    assert_eq!((table.len(), table.ended()), (1, 1));
    add(&mut table, NORTH, "10.9.0.1", "saw");
    let more = table.add(NORTH, None, &offer(0, "10.9.0.2", "saw"));
    assert_eq!(more, Err(Refused::Full(3)));
    table.forget_hub(NORTH);
    assert_eq!((table.len(), table.ended()), (0, 0));
    table
        .add(NORTH, None, &offer(0, "10.9.0.2", "saw"))
        .unwrap();
}

#[test]
fn runs_that_a_hub_begins_between_two_reports_are_bounded_as_leases_are() {
    let mut table = narrow(4);
    add(&mut table, NORTH, OUTER, "press");
    let outer = place(0, OUTER);
    table.release(NORTH, None, outer, None).unwrap();
    let inner = |run: u64| format!("10.65.{run}.0/24");
    let begin = |table: &mut LeaseTable, run| {
        let network = inner(run);
        token(table.add(NORTH, Some(run), &offer(0, &network, "mill")))
    };
    // Each ends what the one before it had, which is withheld from then on.
    for run in 1..=3 {
        assert_eq!(begin(&mut table, run), "done");
    }
    assert_eq!((table.len(), table.ended()), (1, 3));
    for run in 4..50 {
        assert_eq!(begin(&mut table, run), "full");
    }
    for run in 1..=2 {
        let host = inner(run).replace("0/24", "5");
        assert_whose(&mut table, 0, &[(&host, UNCONFIRMED)]);
    }
    report(&mut table, 1_000, &[]);
    assert_eq!((table.len(), table.ended()), (0, 0));
    assert_eq!(begin(&mut table, 4), "done");
}
