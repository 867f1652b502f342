//! The rules of leases, on the table alone: who may claim what, what ends it, and what follows.

#![allow(clippy::unwrap_used)]

mod common;

use common::claims::{account, configuration, network, place};
use m2u::{
    config::settings::Account,
    control::lease::{
        claim::{Offer, Refused},
        seen::Seen,
        table::LeaseTable,
    },
    snapshot::scope::{Scope, Unknown},
};

fn fleet() -> Vec<Account> {
    vec![
        account(
            "acme",
            &[
                ("press", "1", &["10.0.0.1"]),
                ("mill", "2", &[]),
                ("saw", "3", &[]),
            ],
        ),
        account("beta", &[("press", "4", &[])]),
    ]
}

fn table() -> LeaseTable {
    let mut table = LeaseTable::new(2);
    let (directory, fixed) = configuration(&fleet());
    assert!(table.adopt(directory, fixed).is_empty());
    table.advance(1_000);
    table
}

fn offer<'a>(address: &str, device: &'a str) -> Offer<'a> {
    Offer {
        place: place(0, address),
        account: "acme",
        device,
        session: "",
        expires: None,
        replace: false,
    }
}

/// Has the table hear what was seen at a hub, and of no strangers; answers what could not be served.
fn reconcile(table: &mut LeaseTable, hub: &str, as_of: u64, offers: &[Offer<'_>]) -> Vec<Refused> {
    let strangers = &[];
    table.reconcile(hub, as_of, &Seen { offers, strangers })
}

/// Has the table remember what was said at 900, to be served until 5,000.
fn remember(table: &mut LeaseTable, source: &str, epoch: u64, offers: &[Offer<'_>]) {
    for offer in offers {
        table.recall(source, epoch, offer, None).expect("known");
    }
    table.carry(0, 5_000, |_, _| false);
    assert_eq!(table.publish_recalled(900).known, offers.len());
}

/// Whose an address is, once what changed is published.
fn whose(table: &mut LeaseTable, scope: u8, address: &str) -> Result<String, Unknown> {
    table.commit();
    let identities = table.identities();
    let address = address.parse().expect("an address");
    let found = identities.resolve(Scope(scope), address);
    found.map(|identity| format!("{}{}", identity.name, identity.serial))
}

#[test]
fn a_claim_to_what_another_device_has_is_refused() {
    let mut table = table();
    let fixed = table.add("vpn", None, &offer("10.0.0.1", "mill"));
    assert_eq!(fixed.expect_err("press has it").token(), "conflict");
    table
        .add("vpn", None, &offer("10.0.0.1", "press"))
        .expect("the same");
    table
        .add("vpn", None, &offer("10.0.0.2", "mill"))
        .expect("free");
    for source in ["vpn", "manual"] {
        let refused = table.add(source, None, &offer("10.0.0.2", "saw"));
        let words = refused.expect_err("mill has it").to_string();
        assert!(
            words.contains("\"mill\"") && words.contains("says vpn"),
            "{words}"
        );
    }
    let replacing = Offer {
        replace: true,
        ..offer("10.0.0.2", "saw")
    };
    assert!(
        table.add("manual", None, &replacing).is_err(),
        "not its own"
    );
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
    table.add("vpn", None, &replacing).expect("its own");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
    assert_eq!(table.len(), 2);
}

#[test]
fn two_sources_may_agree_and_one_may_go() {
    let mut table = table();
    table
        .add("vpn", None, &offer("10.0.0.2", "mill"))
        .expect("free");
    table
        .add("manual", None, &offer("10.0.0.2", "mill"))
        .expect("the same");
    let released = table.release("vpn", None, place(0, "10.0.0.2"), Some(""));
    released.expect("its own");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
    let again = table.release("vpn", None, place(0, "10.0.0.2"), Some(""));
    assert_eq!(again, Err(Refused::NoLease(network("10.0.0.2"))));
    table
        .release("manual", None, place(0, "10.0.0.2"), None)
        .expect("its own");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::NoLease));
}

#[test]
fn a_late_release_does_not_end_a_newer_session() {
    let mut table = table();
    let visit = |session| Offer {
        session,
        ..offer("10.0.0.2", "mill")
    };
    table.add("vpn", None, &visit("first")).expect("free");
    table
        .add("vpn", None, &visit("second"))
        .expect("the same device");
    let late = table.release("vpn", None, place(0, "10.0.0.2"), Some("first"));
    assert_eq!(late, Err(Refused::OtherSession(network("10.0.0.2"))));
    assert!(whose(&mut table, 0, "10.0.0.2").is_ok());
    let due = table.release("vpn", None, place(0, "10.0.0.2"), Some("second"));
    due.expect("its own");
}

#[test]
fn a_new_run_of_a_source_ends_what_the_run_before_said() {
    let mut table = table();
    table
        .add("vpn", Some(5), &offer("10.0.0.2", "mill"))
        .expect("free");
    table
        .add("other", Some(1), &offer("10.0.0.3", "mill"))
        .expect("free");
    table
        .add("vpn", Some(6), &offer("10.0.0.2", "saw"))
        .expect("a new run");
    table
        .add("vpn", Some(6), &offer("10.0.0.4", "mill"))
        .expect("free");
    let late = table.add("vpn", Some(5), &offer("10.0.0.5", "saw"));
    assert_eq!(late, Err(Refused::OutOfOrder { newest: 6 }));
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
    table.sync("vpn", Some(7), &[]).expect("a new run");
    assert_eq!(whose(&mut table, 0, "10.0.0.4"), Err(Unknown::NoLease));
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Ok("mill2".to_owned()));
}

#[test]
fn a_set_is_taken_in_whole_or_not_at_all() {
    let mut table = table();
    table
        .add("vpn", None, &offer("10.0.0.2", "mill"))
        .expect("free");
    table
        .add("manual", None, &offer("10.0.0.9", "mill"))
        .expect("free");
    for (position, bad) in [
        (1, offer("10.0.0.9", "saw")),
        (1, offer("10.0.0.3", "saw")),
        (1, offer("10.0.0.4", "lathe")),
    ] {
        let set = [offer("10.0.0.3", "press"), bad];
        let (at, _) = table.sync("vpn", None, &set).expect_err("a bad one");
        assert_eq!(at, Some(position));
    }
    // What is wrong with all of it is no line's fault.
    let (at, _) = table
        .sync("config", None, &[offer("10.0.0.3", "press")])
        .expect_err("a name");
    assert_eq!(at, None);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Err(Unknown::NoLease));
    // Within a set, devices may change places.
    let set = [offer("10.0.0.2", "saw"), offer("10.0.0.3", "mill")];
    table.sync("vpn", None, &set).expect("a good one");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
    assert_eq!(table.len(), 3);
    let commit = table.commit();
    assert!(commit.is_none(), "{commit:?}");
}

#[test]
fn what_was_seen_does_not_undo_what_was_said_since() {
    let mut table = table();
    table.expect_reports("hub").expect("a source");
    table
        .add("hub", None, &offer("10.0.0.2", "mill"))
        .expect("free");
    table.advance(2_000);
    table
        .add("hub", None, &offer("10.0.0.3", "saw"))
        .expect("free");
    table
        .release("hub", None, place(0, "10.0.0.2"), None)
        .expect("its own");
    // Seen before both: mill still there, saw not yet.
    let refused = reconcile(&mut table, "hub", 1_500, &[offer("10.0.0.4", "mill")]);
    assert!(refused.is_empty());
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Ok("saw3".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.4"), Ok("mill2".to_owned()));
    table.advance(3_000);
    let seen = [offer("10.0.0.1", "saw"), offer("10.0.0.5", "lathe")];
    let refused = reconcile(&mut table, "hub", 2_500, &seen);
    let tokens: Vec<_> = refused.iter().map(Refused::token).collect();
    assert_eq!(tokens, ["conflict", "unknown_device"]);
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Err(Unknown::NoLease));
    assert_eq!(whose(&mut table, 0, "10.0.0.1"), Err(Unknown::Disputed));
    reconcile(&mut table, "hub", 2_500, &[]);
    assert_eq!(whose(&mut table, 0, "10.0.0.1"), Ok("press1".to_owned()));
}

#[test]
fn what_was_seen_does_not_bring_back_what_ended_since() {
    let mut table = table();
    table.expect_reports("hub").expect("a source");
    table
        .add("hub", Some(1), &offer("10.0.0.2", "mill"))
        .expect("free");
    table.advance(2_000);
    table
        .release("hub", Some(1), place(0, "10.0.0.2"), None)
        .expect("its own");
    let seen = [offer("10.0.0.2", "mill")];
    reconcile(&mut table, "hub", 1_500, &seen);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::NoLease));
    reconcile(&mut table, "hub", 2_500, &seen);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));

    // The hub begins anew: what was seen of its earlier run says nothing of this one.
    table.advance(4_000);
    table
        .add("hub", Some(2), &offer("10.0.0.3", "saw"))
        .expect("free");
    let seen = [offer("10.0.0.2", "mill"), offer("10.0.0.4", "mill")];
    reconcile(&mut table, "hub", 3_500, &seen);
    for address in ["10.0.0.2", "10.0.0.4"] {
        assert_eq!(whose(&mut table, 0, address), Err(Unknown::NoLease));
    }
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Ok("saw3".to_owned()));
    reconcile(&mut table, "hub", 4_500, &seen);
    assert_eq!(whose(&mut table, 0, "10.0.0.4"), Ok("mill2".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Err(Unknown::NoLease));
}

#[test]
fn what_a_hub_takes_over_is_served_once_its_report_has_it() {
    let takes_over = |address, device| Offer {
        replace: true,
        ..offer(address, device)
    };
    let mut table = table();
    table.expect_reports("hub").expect("a source");
    for source in ["hub", "feed"] {
        let address = if source == "hub" {
            "10.0.0.2"
        } else {
            "10.0.0.3"
        };
        table
            .add(source, Some(1), &takes_over(address, "mill"))
            .expect("free");
        assert_eq!(whose(&mut table, 0, address), Ok("mill2".to_owned()));
        table
            .add(source, Some(1), &takes_over(address, "mill"))
            .expect("its own");
        assert_eq!(whose(&mut table, 0, address), Ok("mill2".to_owned()));
        table
            .add(source, Some(1), &takes_over(address, "saw"))
            .expect("taken over");
    }
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Ok("saw3".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::Unconfirmed));
    // A report from before does not know; the next one does.
    reconcile(&mut table, "hub", 500, &[takes_over("10.0.0.2", "mill")]);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::Unconfirmed));
    reconcile(&mut table, "hub", 1_500, &[takes_over("10.0.0.2", "saw")]);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));

    // One who gave up has not got it, whatever was heard of that.
    table.advance(2_000);
    table
        .add("hub", Some(1), &takes_over("10.0.0.2", "mill"))
        .expect("taken over");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::Unconfirmed));
    reconcile(&mut table, "hub", 2_500, &[takes_over("10.0.0.2", "saw")]);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));

    // A new run of the hub has ended what was there.
    table
        .add("hub", Some(2), &takes_over("10.0.0.2", "mill"))
        .expect("free again");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
}

#[test]
fn what_is_remembered_is_believed_for_a_while_and_yields_to_news() {
    let mut table = table();
    let lathe = table.recall("vpn", 3, &offer("10.0.0.4", "lathe"), None);
    assert_eq!(lathe.expect_err("not known").token(), "unknown_device");
    let both = [offer("10.0.0.2", "mill"), offer("10.0.0.3", "mill")];
    remember(&mut table, "vpn", 3, &both);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
    assert_eq!(table.next_timer(), Some(5_000));
    table.advance(4_000);
    table
        .add("vpn", Some(3), &offer("10.0.0.2", "saw"))
        .expect("news");
    table.advance(5_000);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Err(Unknown::Unconfirmed));
    table
        .add("vpn", Some(3), &offer("10.0.0.3", "mill"))
        .expect("confirmed");
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Ok("mill2".to_owned()));
    assert_eq!(table.next_timer(), None);
}

#[test]
fn a_lease_ends_by_itself() {
    let mut table = table();
    let brief = |expires| Offer {
        expires: Some(expires),
        ..offer("10.0.0.2", "mill")
    };
    assert_eq!(table.add("vpn", None, &brief(1_000)), Err(Refused::Expired));
    table.add("vpn", None, &brief(1_500)).expect("free");
    table.add("vpn", None, &brief(3_000)).expect("renewed");
    table.advance(2_999);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
    table.advance(3_000);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::NoLease));
    assert!(table.is_empty() && table.next_timer().is_none());
}

#[test]
fn the_same_network_in_a_scope_and_in_all_is_one_devices() {
    let mut table = table();
    let scoped = |scope, device| Offer {
        place: place(scope, "10.0.0.2"),
        ..offer("10.0.0.2", device)
    };
    table.add("north", None, &scoped(1, "mill")).expect("free");
    table
        .add("south", None, &scoped(2, "saw"))
        .expect("another scope");
    assert!(
        table.add("vpn", None, &scoped(0, "mill")).is_err(),
        "south has saw"
    );
    table
        .release("south", None, place(2, "10.0.0.2"), None)
        .expect("its own");
    table
        .add("vpn", None, &scoped(0, "mill"))
        .expect("all say mill");
    assert!(
        table.add("south", None, &scoped(2, "saw")).is_err(),
        "all have mill"
    );
    reconcile(&mut table, "south", 1_000, &[scoped(2, "saw")]);
    assert_eq!(whose(&mut table, 2, "10.0.0.2"), Err(Unknown::Disputed));
    assert_eq!(whose(&mut table, 1, "10.0.0.2"), Ok("mill2".to_owned()));
    table
        .release("vpn", None, place(0, "10.0.0.2"), None)
        .expect("its own");
    assert_eq!(whose(&mut table, 2, "10.0.0.2"), Ok("saw3".to_owned()));
}

#[test]
fn leases_follow_the_configuration() {
    let mut table = table();
    table
        .add("vpn", None, &offer("10.0.0.2", "mill"))
        .expect("free");
    table
        .add("vpn", None, &offer("10.0.0.3", "saw"))
        .expect("free");
    table.commit();
    let newer = [account(
        "acme",
        &[("saw", "3b", &["10.0.0.2"]), ("lathe", "5", &[])],
    )];
    let (directory, fixed) = configuration(&newer);
    let ended = table.adopt(directory, fixed);
    assert_eq!(ended, ["10.0.0.2/32 of acme/mill"]);
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Ok("saw3b".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3b".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.1"), Err(Unknown::NoLease));
    assert_eq!(table.len(), 1);
}

#[test]
fn a_report_from_after_the_last_sign_of_life_beats_what_is_remembered() {
    let mut table = table();
    table.expect_reports("hub").expect("a source");
    table.forget_reports_before(900);
    remember(&mut table, "hub", 3, &[offer("10.0.0.2", "mill")]);
    // Made before that: what it lacks may have come since, and what it has may have ended.
    reconcile(&mut table, "hub", 899, &[offer("10.0.0.3", "saw")]);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("mill2".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.3"), Err(Unknown::NoLease));
    // Made after it, but before the start.
    reconcile(&mut table, "hub", 950, &[offer("10.0.0.2", "saw")]);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
    reconcile(&mut table, "hub", 960, &[]);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::NoLease));
}

#[test]
fn what_is_not_believed_any_more_stands_in_nobodys_way() {
    let mut table = table();
    remember(&mut table, "old", 0, &[offer("10.0.0.2", "mill")]);
    let early = table.add("vpn", None, &offer("10.0.0.2", "saw"));
    assert_eq!(early.expect_err("mill may have it").token(), "conflict");
    table.advance(5_000);
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Err(Unknown::Unconfirmed));
    table
        .add("vpn", None, &offer("10.0.0.2", "saw"))
        .expect("news");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
}

#[test]
fn a_new_run_is_told_of_even_if_it_has_nothing() {
    let mut table = table();
    table.sync("vpn", Some(5), &[]).expect("a new run");
    let commit = table.commit().expect("something to remember");
    let begun = commit.begun.iter().map(|source| table.source_of(*source));
    assert_eq!(begun.collect::<Vec<_>>(), [("vpn", 5)]);
    table
        .add("vpn", Some(5), &offer("10.0.0.2", "mill"))
        .expect("free");
    assert!(
        table
            .commit()
            .is_some_and(|commit| commit.touched.len() == 1)
    );
    table
        .add("vpn", Some(5), &offer("10.0.0.2", "mill"))
        .expect("the same");
    assert!(table.commit().is_none(), "nothing is new");
}

#[test]
fn as_many_scopes_as_there_may_be_know_of_conflicts() {
    let mut table = LeaseTable::new(m2u::limits::SCOPES_MAX);
    let (directory, fixed) = configuration(&fleet());
    table.adopt(directory, fixed);
    let scoped = Offer {
        place: place(255, "10.0.0.2"),
        ..offer("10.0.0.2", "saw")
    };
    table.add("south", None, &scoped).expect("free");
    assert!(table.add("vpn", None, &offer("10.0.0.2", "mill")).is_err());
}

/// A table with room for three leases, which `vpn` has, and a fourth device.
fn full() -> LeaseTable {
    let mut table = LeaseTable::with_room_for(3, 2);
    let (directory, fixed) = configuration(&fleet());
    table.adopt(directory, fixed);
    table.advance(1_000);
    for (address, device) in [
        ("10.0.0.2", "mill"),
        ("10.0.0.3", "mill"),
        ("10.0.0.4", "saw"),
    ] {
        let added = table.add("vpn", Some(1), &offer(address, device));
        added.expect("room");
    }
    table.commit();
    table
}

#[test]
fn no_more_leases_fit_than_there_may_be() {
    let mut table = full();
    for source in ["vpn", "manual"] {
        let one_more = table.add(source, None, &offer("10.0.0.5", "mill"));
        assert_eq!(one_more, Err(Refused::Full(3)));
        // Nor what is another source's already: it would be one more.
        let same = table.add(source, None, &offer("10.0.0.2", "mill"));
        assert_eq!(same.is_ok(), source == "vpn");
    }
    let set = ["10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6"].map(|at| offer(at, "mill"));
    let (at, refused) = table.sync("vpn", None, &set).expect_err("four");
    assert_eq!((at, refused), (None, Refused::Full(3)));
    let (_, refused) = table
        .sync("manual", None, &set[2..3])
        .expect_err("a fourth");
    assert_eq!(refused, Refused::Full(3));
    let refused = reconcile(&mut table, "hub", 2_000, &set[2..]);
    assert_eq!(refused, [Refused::Full(3), Refused::Full(3)]);
    // Two that are one too many: neither is taken in.
    let released = table.release("vpn", None, place(0, "10.0.0.4"), None);
    released.expect("its own");
    let refused = table.add_all("vpn", None, &set[2..]);
    assert_eq!(refused, Err(Refused::Full(3)));
    assert_eq!(table.len(), 2);
    table.add_all("vpn", None, &set[1..3]).expect("one is new");
    assert_eq!(table.len(), 3);
}

#[test]
fn where_no_more_fit_leases_are_renewed_moved_and_replaced() {
    let mut table = full();
    let renewed = Offer {
        session: "second",
        ..offer("10.0.0.2", "mill")
    };
    table.add("vpn", None, &renewed).expect("its own");
    let moved = Offer {
        replace: true,
        ..offer("10.0.0.2", "saw")
    };
    table.add("vpn", None, &moved).expect("its own");
    assert_eq!(whose(&mut table, 0, "10.0.0.2"), Ok("saw3".to_owned()));
    // A source may say all again, whether it has more than half of the room or not.
    let set = ["10.0.0.2", "10.0.0.5", "10.0.0.6"].map(|at| offer(at, "mill"));
    table.sync("vpn", None, &set).expect("as many");
    assert_eq!(whose(&mut table, 0, "10.0.0.6"), Ok("mill2".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.4"), Err(Unknown::NoLease));
    // A new run ends what was there, and has its room.
    let anew = ["10.0.0.7", "10.0.0.8", "10.0.0.9", "10.0.0.10"].map(|at| offer(at, "saw"));
    let refused = table.add_all("vpn", Some(2), &anew);
    assert_eq!(refused, Err(Refused::Full(3)));
    assert_eq!(whose(&mut table, 0, "10.0.0.6"), Ok("mill2".to_owned()));
    table.add_all("vpn", Some(2), &anew[..3]).expect("room");
    assert_eq!(table.len(), 3);
    assert_eq!(whose(&mut table, 0, "10.0.0.9"), Ok("saw3".to_owned()));
    let refused = table.add("vpn", Some(2), &anew[3]);
    assert_eq!(refused, Err(Refused::Full(3)), "the run goes on");
    table.sync("vpn", Some(3), &set).expect("a new run");
    assert_eq!(table.len(), 3);
    // So has what a report no longer has.
    reconcile(&mut table, "vpn", 1_500, &anew[..3]);
    assert_eq!(table.len(), 3);
    assert_eq!(whose(&mut table, 0, "10.0.0.8"), Ok("saw3".to_owned()));
    assert_eq!(whose(&mut table, 0, "10.0.0.5"), Err(Unknown::NoLease));
}

#[test]
fn several_addresses_are_taken_in_or_none() {
    let mut table = table();
    table
        .add("vpn", Some(5), &offer("10.0.0.9", "saw"))
        .expect("free");
    table.commit();
    let both = |other: Offer<'static>| [offer("10.0.0.2", "mill"), other];
    for (other, token) in [
        (offer("10.0.0.1", "mill"), "conflict"),
        (offer("10.0.0.9", "mill"), "conflict"),
        (offer("10.0.0.2", "mill"), "repeated"),
        (offer("fd00::2", "lathe"), "unknown_device"),
        (
            Offer {
                expires: Some(1_000),
                ..offer("fd00::2", "mill")
            },
            "expired",
        ),
    ] {
        // Nor does a run begin, which would let an earlier address go.
        let refused = table.add_all("vpn", Some(5), &both(other));
        assert_eq!(refused.expect_err("a bad one").token(), token);
        assert!(table.commit().is_none());
    }
    let refused = table.add_all("vpn", Some(6), &both(offer("10.0.0.1", "mill")));
    assert!(refused.is_err() && table.commit().is_none());
    let taken = table.add_all("vpn", Some(6), &both(offer("fd00::2", "mill")));
    taken.expect("both are free");
    for address in ["10.0.0.2", "fd00::2"] {
        assert_eq!(whose(&mut table, 0, address), Ok("mill2".to_owned()));
    }
    assert_eq!(whose(&mut table, 0, "10.0.0.9"), Err(Unknown::NoLease));
}

#[test]
fn nothing_is_leased_of_what_is_believed_by_whatever_way_it_comes() {
    let mut table = LeaseTable::new(2);
    table.believe(["10.9.0.0/24", "fd00:9::1"].map(network));
    let (directory, fixed) = configuration(&fleet());
    table.begin(directory, fixed);
    table.advance(1_000);
    for (address, believed) in [
        ("10.9.0.7", "10.9.0.0/24"),
        ("10.0.0.0/8", "10.9.0.0/24"),
        ("fd00:9::1", "fd00:9::1/128"),
        ("fd00:9::/64", "fd00:9::1/128"),
    ] {
        let refused = Refused::Believed {
            network: network(address),
            believed: network(believed),
        };
        let offer = offer(address, "mill");
        let added = table.add("vpn", None, &offer);
        assert_eq!(added, Err(refused.clone()));
        let set = table.sync("vpn", None, &[offer]);
        assert_eq!(set, Err((Some(0), refused.clone())));
        // A set that comes in by turns.
        table.begin_set("vpn", None).expect("a set");
        assert_eq!(table.add_to_set(&offer, 0), Err(refused.clone()));
        table.drop_set();
        let recalled = table.recall("vpn", 0, &offer, None);
        assert_eq!(recalled, Err(refused.clone()));
        // By a report from before anything is remembered, and by one of since then.
        let hub = format!("hub of {address}");
        table.expect_reports(&hub).expect("a source");
        assert_eq!(reconcile(&mut table, &hub, 900, &[offer]), []);
        let first = network(address).addr().to_string();
        assert_eq!(whose(&mut table, 0, &first), Err(Unknown::Unconfirmed));
        assert_eq!(reconcile(&mut table, &hub, 1_000, &[offer]), [refused]);
        assert_eq!(whose(&mut table, 0, &first), Err(Unknown::NoLease));
        table.forget_hub(&hub);
    }
    assert!(table.is_empty());
    for address in ["10.9.1.0", "10.8.0.0/16", "fd00:9::2"] {
        let added = table.add("vpn", None, &offer(address, "mill"));
        added.expect("nobody is believed there");
    }
}
