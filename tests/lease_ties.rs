//! The table where it is close: what comes late, at the same moment, again, or in another scope.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::claims::{self, account, place};
use m2u::{
    control::lease::{
        claim::{Offer, Refused},
        directory::Directory,
        seen::Seen,
        table::{Commit, LeaseTable},
    },
    snapshot::{
        identity::IdentityTable,
        scope::{Scope, Unknown},
    },
};

const HUB: &str = "openvpn:north";
/// The address of the configuration's own press, of acme.
const FIXED: &str = "10.0.0.1";
const PLACE: &str = "10.0.0.2";
const NOBODYS: Result<&str, Unknown> = Err(Unknown::NoLease);
const DISPUTED: Result<&str, Unknown> = Err(Unknown::Disputed);
const UNCONFIRMED: Result<&str, Unknown> = Err(Unknown::Unconfirmed);

/// The devices of two accounts, and the one address that the configuration has.
fn configuration() -> (Directory, Arc<IdentityTable>) {
    claims::configuration(&[
        account(
            "acme",
            &[
                ("press", "1", &[FIXED]),
                ("mill", "1", &[]),
                ("saw", "1", &[]),
            ],
        ),
        account("beta", &[("press", "1", &[])]),
    ])
}

/// Two scopes and a hub, at 1,000; with room for so many leases.
fn table_for(leases: usize) -> LeaseTable {
    let mut table = LeaseTable::with_room_for(leases, 2);
    let (directory, fixed) = configuration();
    table.adopt(directory, fixed);
    table.advance(1_000);
    table.expect_reports(HUB).unwrap();
    table.commit();
    table
}

fn table() -> LeaseTable {
    table_for(100)
}

fn offer<'a>(address: &str, device: &'a str) -> Offer<'a> {
    Offer {
        place: place(0, address),
        account: "acme",
        device,
        session: "",
        expires: None,
        replace: true,
    }
}

fn scoped<'a>(scope: u8, address: &str, device: &'a str) -> Offer<'a> {
    Offer {
        place: place(scope, address),
        ..offer(address, device)
    }
}

/// Has the table hear what was seen of the hub; answers why some of it could not be taken in.
fn report(table: &mut LeaseTable, as_of: u64, seen: &[(&str, &str)]) -> Vec<&'static str> {
    let offers: Vec<_> = seen.iter().map(|(at, device)| offer(at, device)).collect();
    let refused = reconcile(table, as_of, &offers);
    refused.iter().map(Refused::token).collect()
}

/// Has the table remember what "vpn" said at 900, to be served until `until`.
fn remember(table: &mut LeaseTable, epoch: u64, offer: &Offer<'_>, until: u64) {
    table.recall("vpn", epoch, offer, None).unwrap();
    table.carry(0, until, |_, _| false);
    table.publish_recalled(900);
}

fn reconcile(table: &mut LeaseTable, as_of: u64, offers: &[Offer<'_>]) -> Vec<Refused> {
    let strangers = &[];
    table.reconcile(HUB, as_of, &Seen { offers, strangers })
}

fn release(table: &mut LeaseTable, source: &str, address: &str) {
    let released = table.release(source, None, place(0, address), None);
    released.unwrap();
}

/// Asserts whose an address is at listeners of a scope, once all is published.
#[track_caller]
fn assert_whose(table: &mut LeaseTable, at: (u8, &str), expected: Result<&str, Unknown>) {
    table.commit();
    let identities = table.identities();
    let found = identities.resolve(Scope(at.0), at.1.parse().unwrap());
    assert_eq!(found.map(|identity| identity.name), expected);
}

#[test]
fn what_was_released_stays_so_however_many_old_reports_come() {
    let mut table = table();
    table.add(HUB, None, &offer(PLACE, "mill")).unwrap();
    table.advance(2_000);
    release(&mut table, HUB, PLACE);
    for as_of in [1_500, 1_600, 1_600, 1_999] {
        report(&mut table, as_of, &[(PLACE, "mill")]);
        // A reload says again that the source is a hub.
        table.expect_reports(HUB).unwrap();
        assert_whose(&mut table, (0, PLACE), NOBODYS);
    }
    // Moments are a status's whole seconds, cut off: what was seen in one came behind its begin.
    report(&mut table, 2_000, &[(PLACE, "mill")]);
    assert_whose(&mut table, (0, PLACE), Ok("mill"));
}

#[test]
fn by_a_report_from_before_anything_is_remembered_nobody_is_served() {
    let mut table = table();
    table.add(HUB, None, &offer("10.0.0.3", "saw")).unwrap();
    table.add(HUB, None, &offer("10.0.0.4", "saw")).unwrap();
    release(&mut table, HUB, "10.0.0.4");
    let stranger = [place(0, "10.0.0.5")];
    let old = [
        (PLACE, "mill"),
        ("10.0.0.3", "mill"),
        ("10.0.0.4", "mill"),
        ("10.0.0.6", "ghost"),
    ];
    for _ in 0..2 {
        let offers = &old.map(|(at, device)| offer(at, device));
        let strangers = &stranger;
        table.reconcile(HUB, 999, &Seen { offers, strangers });
        for (address, expected) in [
            (PLACE, Err(Unknown::Unconfirmed)),
            ("10.0.0.5", Err(Unknown::Unconfirmed)),
            ("10.0.0.6", Err(Unknown::Unconfirmed)),
            // What hooks said since then stands.
            ("10.0.0.3", Ok("saw")),
            ("10.0.0.4", NOBODYS),
        ] {
            assert_whose(&mut table, (0, address), expected);
        }
        // Read again, it brings no news.
        assert!(table.commit().is_none());
    }
    // Nor is anybody else's word worth less for it.
    table.add("vpn", None, &offer("10.0.0.6", "saw")).unwrap();
    assert_whose(&mut table, (0, "10.0.0.6"), Ok("saw"));
    // A hook may have been given up: the report of since then tells.
    table.add(HUB, None, &offer(PLACE, "saw")).unwrap();
    assert_whose(&mut table, (0, PLACE), Err(Unknown::Unconfirmed));
    report(&mut table, 1_000, &[(PLACE, "saw"), ("10.0.0.4", "mill")]);
    for (address, expected) in [
        (PLACE, Ok("saw")),
        ("10.0.0.3", NOBODYS),
        ("10.0.0.4", Ok("mill")),
        ("10.0.0.5", NOBODYS),
    ] {
        assert_whose(&mut table, (0, address), expected);
    }
}

#[test]
fn what_was_said_since_a_report_was_made_beats_it() {
    let mut table = table();
    table.advance(2_000);
    table.add(HUB, None, &offer(PLACE, "saw")).unwrap();
    report(&mut table, 1_500, &[(PLACE, "mill")]);
    assert_whose(&mut table, (0, PLACE), Ok("saw"));
    // Said again, it is as new as if it had been said for the first time.
    table.advance(3_000);
    table.add(HUB, None, &offer(PLACE, "saw")).unwrap();
    report(&mut table, 2_500, &[]);
    assert_whose(&mut table, (0, PLACE), Ok("saw"));
    report(&mut table, 3_000, &[(PLACE, "mill")]);
    assert_whose(&mut table, (0, PLACE), Ok("mill"));
}

#[test]
fn a_report_that_names_nobody_known_ends_what_was_there() {
    let mut table = table();
    table.add(HUB, None, &offer(PLACE, "mill")).unwrap();
    table.advance(2_000);
    let refused = report(&mut table, 2_000, &[(PLACE, "lathe")]);
    assert_eq!(refused, ["unknown_device"]);
    table.commit();
    assert!(table.is_empty());
}

#[test]
fn a_visit_that_is_renewed_at_a_hub_is_served_on() {
    let mut table = table();
    for session in ["first", "second"] {
        let visit = Offer {
            session,
            ..offer(PLACE, "mill")
        };
        table.add(HUB, None, &visit).unwrap();
        assert_whose(&mut table, (0, PLACE), Ok("mill"));
    }
}

#[test]
fn what_comes_of_an_earlier_run_changes_nothing() {
    let mut table = table();
    table.add("vpn", Some(6), &offer(PLACE, "mill")).unwrap();
    table.commit();
    let late = Err(Refused::OutOfOrder { newest: 6 });
    assert_eq!(table.add("vpn", Some(5), &offer(PLACE, "mill")), late);
    let released = table.release("vpn", Some(5), place(0, PLACE), None);
    assert_eq!(released, late);
    let (at, refused) = table.sync("vpn", Some(5), &[]).unwrap_err();
    assert_eq!((at, Err(refused)), (None, late));
    assert!(table.commit().is_none());
    // The run that goes on ends nothing of its own.
    table
        .add("vpn", Some(6), &offer("10.0.0.3", "mill"))
        .unwrap();
    assert_whose(&mut table, (0, PLACE), Ok("mill"));
    // Another source's runs are its own.
    let one = Offer {
        replace: false,
        ..offer(PLACE, "saw")
    };
    let refused = table.add("manual", Some(9), &one).unwrap_err();
    assert_eq!(refused.token(), "conflict");
}

#[test]
fn runs_are_remembered_and_never_go_back() {
    let mut table = table();
    for epoch in [7, 4] {
        table.restore_epoch("other", epoch);
    }
    for (epoch, address) in [(9, PLACE), (3, "10.0.0.3")] {
        remember(&mut table, epoch, &offer(address, "mill"), 5_000);
    }
    let late = table.add("vpn", Some(8), &offer(PLACE, "mill"));
    assert_eq!(late, Err(Refused::OutOfOrder { newest: 9 }));
    let late = table.add("other", Some(6), &offer(PLACE, "mill"));
    assert_eq!(late, Err(Refused::OutOfOrder { newest: 7 }));
    // What is left of an earlier run has no weight against its source's newest one.
    table
        .add("vpn", Some(9), &scoped(1, "10.0.0.3", "saw"))
        .unwrap();
    let refused = table.add("vpn", Some(9), &scoped(1, PLACE, "saw"));
    assert_eq!(refused.unwrap_err().token(), "conflict");
}

#[test]
fn nothing_is_left_of_times_that_no_longer_count() {
    let mut table = table();
    let brief = |expires| Offer {
        expires: Some(expires),
        ..offer(PLACE, "mill")
    };
    table.add("vpn", None, &brief(1_500)).unwrap();
    table.add("vpn", None, &brief(3_000)).unwrap();
    assert_eq!(table.next_timer(), Some(3_000));
    table.add("vpn", None, &offer(PLACE, "mill")).unwrap();
    assert_eq!(table.next_timer(), None);
    table.add("vpn", None, &brief(1_500)).unwrap();
    release(&mut table, "vpn", PLACE);
    assert_eq!(table.next_timer(), None);
    for is_said_again in [true, false] {
        remember(&mut table, 0, &brief(4_000), 2_000);
        assert_eq!(table.next_timer(), Some(2_000));
        match is_said_again {
            true => table.add("vpn", None, &offer(PLACE, "mill")).unwrap(),
            false => release(&mut table, "vpn", PLACE),
        }
        assert_eq!(table.next_timer(), None);
    }
}

#[test]
fn time_does_not_go_back() {
    let mut table = table();
    table.advance(500);
    let over = Offer {
        expires: Some(1_000),
        ..offer(PLACE, "mill")
    };
    assert_eq!(table.add("vpn", None, &over), Err(Refused::Expired));
}

#[test]
fn every_change_has_a_number_and_no_number_comes_twice() {
    let mut table = table();
    table.resume(40);
    table.resume(7);
    let mut newest = 40;
    for device in ["mill", "saw", "mill"] {
        table.add("vpn", None, &offer(PLACE, device)).unwrap();
        let commit = table.commit().unwrap();
        assert!(commit.revision > newest);
        assert_eq!(commit.revision, table.revision());
        newest = commit.revision;
    }
}

#[test]
fn only_what_becomes_another_devices_has_moved() {
    let mut table = table();
    let mut moved = |offer: Offer<'_>, source: &str| -> usize {
        table.add(source, None, &offer).unwrap();
        let Commit { moved, touched, .. } = table.commit().unwrap();
        assert_eq!(touched.len(), 1);
        moved.len()
    };
    assert_eq!(moved(offer(PLACE, "mill"), "vpn"), 1);
    let visit = Offer {
        session: "second",
        ..offer(PLACE, "mill")
    };
    assert_eq!(moved(visit, "vpn"), 0, "another visit of the same");
    assert_eq!(moved(offer(PLACE, "mill"), "manual"), 0, "it says the same");
    assert_eq!(moved(offer(FIXED, "press"), "vpn"), 0, "so does this");
}

#[test]
fn a_set_does_not_contradict_itself_in_scopes() {
    let mut table = table();
    let set = [
        scoped(2, "10.0.0.3", "saw"),
        scoped(1, PLACE, "saw"),
        scoped(0, PLACE, "mill"),
    ];
    let (at, refused) = table.sync("vpn", None, &set).unwrap_err();
    // The first that says otherwise than one before it.
    assert_eq!((at, refused.token()), (Some(2), "repeated"));
    assert!(table.is_empty());
    let same = [scoped(1, PLACE, "mill"), scoped(0, PLACE, "mill")];
    table.sync("vpn", None, &same).unwrap();
    // Nor does it take over, by replacing, what it has said in another scope.
    let one = table.add("vpn", None, &scoped(0, PLACE, "saw"));
    assert_eq!(one.unwrap_err().token(), "conflict");
}

#[test]
fn what_is_disputed_everywhere_is_so_in_each_scope() {
    let mut table = table();
    table.add("vpn", None, &scoped(1, PLACE, "mill")).unwrap();
    table.add("vpn", None, &scoped(0, PLACE, "mill")).unwrap();
    assert_eq!(report(&mut table, 2_000, &[(PLACE, "saw")]), ["conflict"]);
    for scope in [0, 1, 2] {
        assert_whose(&mut table, (scope, PLACE), DISPUTED);
    }
    report(&mut table, 2_000, &[]);
    assert_whose(&mut table, (1, PLACE), Ok("mill"));
}

#[test]
fn a_device_is_known_by_its_account_too() {
    let mut table = table();
    let other = Offer {
        account: "beta",
        ..offer(FIXED, "press")
    };
    let refused = table.add("vpn", None, &other).unwrap_err();
    assert_eq!(refused.token(), "conflict");
    assert_eq!(reconcile(&mut table, 2_000, &[other]).len(), 1);
    assert_whose(&mut table, (0, FIXED), DISPUTED);
}

#[test]
fn a_lease_of_the_configurations_own_address_outlives_a_reload() {
    let mut table = table();
    table.add("vpn", None, &offer(FIXED, "press")).unwrap();
    let (directory, fixed) = configuration();
    assert!(table.adopt(directory, fixed).is_empty());
    assert_whose(&mut table, (0, FIXED), Ok("press"));
    release(&mut table, "vpn", FIXED);
    assert_whose(&mut table, (0, FIXED), Ok("press"));
}

#[test]
fn a_report_may_change_whose_a_lease_is_where_no_more_fit() {
    let mut table = table_for(1);
    table.add(HUB, None, &offer(PLACE, "mill")).unwrap();
    table.advance(2_000);
    assert!(report(&mut table, 2_000, &[(PLACE, "saw")]).is_empty());
    assert_whose(&mut table, (0, PLACE), Ok("saw"));
    // It takes what it no longer has from it first.
    assert!(report(&mut table, 2_000, &[("10.0.0.3", "saw")]).is_empty());
    assert_whose(&mut table, (0, "10.0.0.3"), Ok("saw"));
}

#[test]
fn no_more_is_remembered_than_there_may_be() {
    let mut table = table_for(1);
    remember(&mut table, 0, &offer(PLACE, "mill"), 5_000);
    let more = table.recall("vpn", 0, &offer("10.0.0.3", "mill"), None);
    assert_eq!(more, Err(Refused::Full(1)));
    // It has said so again since.
    remember(&mut table, 0, &offer(PLACE, "mill"), 5_000);
    table.advance(5_000);
    assert_whose(&mut table, (0, PLACE), UNCONFIRMED);
    let set = [offer(PLACE, "mill"), offer("10.0.0.3", "saw")];
    let (_, refused) = table.sync("vpn", None, &set).unwrap_err();
    assert_eq!(refused, Refused::Full(1));
    table.sync("vpn", None, &set[..1]).unwrap();
    assert_whose(&mut table, (0, PLACE), Ok("mill"));
}
