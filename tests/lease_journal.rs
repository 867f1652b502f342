//! What outlives a restart: the journal, whole or damaged, and the clock that tells how old it is.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use common::{
    PATIENCE,
    device::Device,
    gateway::Gateway,
    leases::{self, PRESS, add, connect, gateway_of_press, lease, line, whose},
    upstream::Upstream,
    wait_until,
};
use m2u::{
    config::{self, flags::Overrides},
    control::{
        lease::{directory::Directory, registry::Registry},
        reload::Assembly,
    },
    limits,
};
use serde_json::Value;

const HOUR_MS: i64 = 3_600_000;

/// Changes each line of the journal in `folder`.
fn edit(folder: &Path, change: impl Fn(&mut Value)) {
    let path = folder.join("journal");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        change(&mut record);
        format!("{record}\n")
    });
    let lines: String = lines.collect();
    fs::write(&path, lines).unwrap();
}

/// Has every time of the journal be so much later.
fn shift(record: &mut Value, ms: i64) {
    let times = [
        "/head/at_ms",
        "/alive/at_ms",
        "/lease/until_ms",
        "/lease/expires_ms",
    ];
    for time in times {
        if let Some(at) = record.pointer_mut(time) {
            *at = (at.as_i64().unwrap() + ms).into();
        }
    }
}

/// Has each run in the journal be of another run of the host than any is of now; those of different
/// ones still are.
fn reboot(record: &mut Value) {
    if let Some(boot) = record.pointer_mut("/head/boot") {
        *boot = format!("before {}", boot.as_str().unwrap()).into();
    }
}

/// Makes the journal in `folder` as old as if host and gateway had been away for so long.
fn age(folder: &Path, ms: i64) {
    edit(folder, |record| {
        reboot(record);
        shift(record, -ms);
    });
}

/// Appends to the journal in `folder`.
fn append(folder: &Path, text: impl AsRef<[u8]>) {
    let path = folder.join("journal");
    let mut journal = fs::OpenOptions::new().append(true).open(path).unwrap();
    journal.write_all(text.as_ref()).unwrap();
}

/// For how many seconds the gateway says that it remembers leases.
fn remembered_s(gateway: &Gateway) -> u64 {
    let log = gateway.log();
    let (_, rest) = log.split_once("leases are remembered, for ").unwrap();
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn what_ends_is_written_before_what_comes_with_it() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    // Both are in one change as a rule; two of them are written as they come.
    let makes_room = (0..20).any(|host| {
        let (old, new) = (format!("127.0.1.{host}"), format!("127.0.2.{host}"));
        feed.done(&add(&old, "press-08", ""));
        let release = format!(r#"{{"op":"release","source":"vpn","address":"{old}"}}"#);
        feed.send(format!("{}\n{release}\n", add(&new, "press-09", "")));
        for _ in 0..2 {
            assert_eq!(feed.receive().unwrap()["ok"], true);
        }
        let journal = fs::read_to_string(gateway.path("journal")).unwrap();
        let came = journal.find(&format!("{new}\"")).unwrap();
        journal.rfind(&format!("{old}\"")).unwrap() < came
    });
    assert!(makes_room);
    gateway.stop();
}

#[test]
fn leases_outlive_a_crash_until_their_source_speaks() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    feed.done(&add(
        "127.0.8.0/24",
        "press-08",
        ",\"session\":\"s1\",\"expires_in\":86400",
    ));
    feed.done(&add("127.0.0.9", "press-09", ""));
    feed.done(r#"{"op":"release","source":"vpn","address":"127.0.0.9"}"#);
    let gateway = gateway.crash_and_restart(|_| {});
    assert!(
        gateway.log().contains("m2u: 2 leases are remembered"),
        "{}",
        gateway.log()
    );
    let mut feed = connect(&gateway);
    assert_eq!(
        feed.leases(),
        [
            "127.0.0.7 press-07 unconfirmed",
            "127.0.8.0/24 press-08 unconfirmed"
        ]
    );
    assert_eq!(
        whose("127.0.0.7", gateway.address()),
        Ok("press-07".to_owned())
    );
    assert_eq!(
        whose("127.0.8.1", gateway.address()),
        Ok("press-08".to_owned())
    );
    assert_eq!(whose("127.0.0.9", gateway.address()), Err(403));
    // It is what it was: its session, its end.
    let release = r#"{"op":"release","source":"vpn","address":"127.0.8.0/24"}"#;
    feed.refused(release, "other_session");
    let shown = lease(&gateway, "list --address 127.0.8.0/24 --json").done();
    assert!(
        shown.contains("\"session\":\"s1\"") && shown.contains("\"expires_ms\":"),
        "{shown}"
    );
    // Whoever had it may have lost it meanwhile: what its source says now counts.
    feed.done(&add("127.0.0.7", "press-09", ""));
    assert_eq!(
        whose("127.0.0.7", gateway.address()),
        Ok("press-09".to_owned())
    );
    let reply = feed.ask(&format!(
        "{{\"op\":\"sync\",\"source\":\"vpn\"}}\n{}\n{{\"op\":\"commit\"}}",
        line("127.0.8.0/24", "press-08")
    ));
    assert_eq!(reply["count"], 1);
    assert_eq!(feed.leases(), ["127.0.8.0/24 press-08 confirmed"]);
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(403));
    gateway.stop();
}

#[test]
fn unconfirmed_leases_are_not_served_past_their_age() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "unconfirmed = \"1s\"");
    let mut feed = connect(&gateway);
    feed.done(PRESS);
    feed.done(&add("127.0.0.8", "press-08", ""));
    let gateway = gateway.crash_and_restart(|_| {});
    wait_until("the lease to be too old", || {
        whose("127.0.0.7", gateway.address()) == Err(503)
    });
    let mut device = Device::connect("127.0.0.8", gateway.address());
    let answer = device.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
    assert_eq!(
        (answer.status(), answer.token()),
        (503, Some("destination_unavailable"))
    );
    assert!(answer.field("Retry-After").is_some(), "{}", answer.head);
    let mut feed = connect(&gateway);
    assert_eq!(
        feed.leases(),
        [
            "127.0.0.7 press-07 suspended",
            "127.0.0.8 press-08 suspended"
        ]
    );
    feed.done(PRESS);
    assert_eq!(
        whose("127.0.0.7", gateway.address()),
        Ok("press-07".to_owned())
    );
    assert_eq!(whose("127.0.0.8", gateway.address()), Err(503));
    gateway.stop();
}

#[test]
fn who_is_unconfirmed_gets_no_answer_if_any_server_wants_none() {
    let upstream = Upstream::echo();
    let silent = leases::fleet("gamma", &upstream.url(), &["saw-1"]).replacen(
        "slot = \"m2u\"\n",
        "slot = \"m2u\"\non_failure = \"close\"\n",
        1,
    );
    let config = leases::configuration(&upstream.url(), "unconfirmed = \"1s\"");
    let gateway = Gateway::start(&format!("{config}{silent}"));
    connect(&gateway).done(PRESS);
    let gateway = gateway.crash_and_restart(|_| {});
    let count = |name: &str| gateway.counts().get(name).copied().unwrap_or_default();
    // Served until it is too old, and then not refused: a connector may take any answer for a receipt.
    wait_until("the lease to be too old", || {
        let mut device = Device::connect("127.0.0.7", gateway.address());
        device.send(
            "POST / HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
        );
        device.receive_rest().unwrap().is_empty()
    });
    assert!(count("failed.unconfirmed_lease") >= 1);
    // What the device does wrong is told, as ever.
    assert_eq!(whose("127.0.0.9", gateway.address()), Err(403));
    gateway.stop();
}

#[test]
fn restarts_make_no_lease_younger() {
    let upstream = Upstream::echo();
    let (gateway, _feed) = gateway_of_press(&upstream);
    let gateway = gateway.crash_and_restart(|folder| age(folder, 300_000));
    assert_eq!(
        whose("127.0.0.7", gateway.address()),
        Ok("press-07".to_owned())
    );
    // Six minutes later it is eleven minutes old, and ten are allowed.
    let gateway = gateway.crash_and_restart(|folder| age(folder, 360_000));
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
    let gateway = gateway.crash_and_restart(|_| {});
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
    gateway.stop();
}

#[test]
fn numbers_of_changes_and_runs_go_on_after_a_restart() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let mut newest = 0;
    for _ in 0..20 {
        newest = feed.done(&add("127.0.0.7", "press-07", ",\"epoch\":5"));
    }
    // A run is remembered even if nothing of it is left.
    newest =
        newest.max(feed.done(&add("127.0.0.8", "press-08", ",\"epoch\":9").replace("vpn", "hub")));
    let end = r#"{"op":"release","source":"hub","address":"127.0.0.8"}"#;
    newest = newest.max(feed.done(end));
    let gateway = gateway.crash_and_restart(|_| {});
    let mut feed = connect(&gateway);
    feed.refused(
        &add("127.0.0.7", "press-07", ",\"epoch\":4"),
        "out_of_order",
    );
    let old = add("127.0.0.8", "press-08", ",\"epoch\":8").replace("vpn", "hub");
    feed.refused(&old, "out_of_order");
    let next = feed.done(&add("127.0.0.7", "press-07", ",\"epoch\":5"));
    assert!(next > newest, "{next} after {newest}");
    // Likewise after an orderly end.
    let reply = feed.ask(r#"{"op":"watch"}"#);
    assert_eq!(reply["revision"], next);
    gateway.stop();
}

#[test]
fn a_lease_that_ended_while_the_gateway_was_away_is_over() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    feed.done(&add("127.0.0.8", "press-08", ",\"expires_in\":3600"));
    let gateway = gateway.crash_and_restart(|folder| {
        edit(folder, |record| {
            if let Some(at) = record.pointer_mut("/lease/expires_ms") {
                *at = (at.as_i64().unwrap() - HOUR_MS).into();
            }
        });
    });
    assert!(
        gateway
            .log()
            .contains("m2u: 1 leases of the journal are over")
    );
    assert_eq!(
        connect(&gateway).leases(),
        ["127.0.0.7 press-07 unconfirmed"]
    );
    assert_eq!(whose("127.0.0.8", gateway.address()), Err(403));
    gateway.stop();
}

#[test]
fn crash_after_crash_makes_no_lease_younger() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "unconfirmed = \"2s\"");
    connect(&gateway).done(PRESS);
    let begun = Instant::now();
    let mut gateway = Some(gateway);
    loop {
        let restarted = gateway.take().unwrap().crash_and_restart(|_| {});
        if whose("127.0.0.7", restarted.address()) == Err(503) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it is served for ever");
        gateway = Some(restarted);
    }
}

#[test]
fn a_run_that_ended_before_its_journal_was_written_anew_made_nothing_younger() {
    let upstream = Upstream::echo();
    for (age_ms, expected) in [(300_000, Ok("press-07".to_owned())), (660_000, Err(503))] {
        let (gateway, _feed) = gateway_of_press(&upstream);
        let gateway = gateway.crash_and_restart(|folder| {
            let text = fs::read_to_string(folder.join("journal")).unwrap();
            let is_begun = |line: &&str| {
                ["{\"head\"", "{\"alive\""]
                    .iter()
                    .any(|s| line.starts_with(s))
            };
            let begun: Vec<_> = text.lines().filter(is_begun).collect();
            age(folder, age_ms);
            // All that it wrote: that it had begun, and was at work until now.
            append(folder, begun.join("\n") + "\n");
        });
        let seen = whose("127.0.0.7", gateway.address());
        assert_eq!(seen, expected, "{age_ms}");
        gateway.stop();
    }
}

/// A run in `folder` that crashes as soon as it could be ready: its journal is not yet written anew.
fn start_and_crash(folder: &Path) {
    let settings = config::load(&folder.join("m2u.toml"), &Overrides::default()).unwrap();
    let mut assembly = Assembly::default();
    assembly.adopt(&settings).unwrap();
    let accounts = settings.accounts.iter();
    let directory = Directory::build(accounts.map(|account| {
        let id = assembly.account_id(&account.reference).unwrap();
        (id, account)
    }));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(async {
        let fixed = Arc::clone(assembly.identities());
        let leases = settings.leases.as_ref().unwrap();
        Registry::start(leases, &settings.listen, &[], directory, fixed).unwrap();
    });
    assert!(folder.join("journal.new").exists());
}

#[test]
fn a_run_that_crashes_at_once_has_begun_all_the_same() {
    let upstream = Upstream::echo();
    let (gateway, _feed) = gateway_of_press(&upstream);
    wait_until("a new journal", || !gateway.path("journal.new").exists());
    let gateway = gateway.crash_and_restart(|folder| {
        age(folder, 300_000);
        start_and_crash(folder);
        // That it was at work then, six minutes ago, says nothing of what was said before it.
        age(folder, 360_000);
    });
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
    gateway.stop();
}

#[test]
fn a_journal_that_cannot_be_written_is_removed_and_leases_go_on() {
    let upstream = Upstream::echo();
    let text = leases::configuration(&upstream.url(), "");
    let gateway = Gateway::start_under_size_limit(&text, 64);
    let mut feed = connect(&gateway);
    feed.done(PRESS);
    let is_given_up = || {
        gateway
            .log()
            .contains("journal can't be written: File too large")
    };
    let mut number = 0;
    while !is_given_up() {
        number += 1;
        assert!(number < 1_000, "it is written without end");
        let more = format!(",\"session\":\"s{number}\"");
        feed.done(&add("127.0.0.8", "press-08", &more));
    }
    let left = || ["journal", "journal.new"].map(|name| gateway.path(name).exists());
    wait_until("the files to go", || left() == [false, false]);
    // What has been said holds, and goes on to change.
    feed.done(&add("127.0.0.9", "press-09", ""));
    let release =
        format!(r#"{{"op":"release","source":"vpn","address":"127.0.0.8","session":"s{number}"}}"#);
    feed.done(&release);
    assert!(whose("127.0.0.7", gateway.address()).is_ok());
    assert!(whose("127.0.0.9", gateway.address()).is_ok());
    assert_eq!(whose("127.0.0.8", gateway.address()), Err(403));
    let gateway = gateway.crash_and_restart(|_| {});
    assert_eq!(connect(&gateway).leases(), [""; 0]);
    gateway.stop();
}

#[test]
fn setting_the_clock_between_two_runs_changes_no_age() {
    let upstream = Upstream::echo();
    for step in [-HOUR_MS, HOUR_MS] {
        let (gateway, mut feed) = gateway_of_press(&upstream);
        feed.done(&add("127.0.0.8", "press-08", ",\"expires_in\":600"));
        // A clock that is set back by an hour finds times that are an hour ahead.
        let gateway = gateway.crash_and_restart(|folder| edit(folder, |line| shift(line, step)));
        let left = remembered_s(&gateway);
        assert!((500..=600).contains(&left), "{left} s, {step}");
        for (address, device) in [("127.0.0.7", "press-07"), ("127.0.0.8", "press-08")] {
            let seen = whose(address, gateway.address());
            assert_eq!(seen, Ok(device.to_owned()), "{step}");
        }
        let shown = lease(&gateway, "list --address 127.0.0.8 --json").done();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let ends = shown["lease"]["expires_ms"].as_i64().unwrap() - now.as_millis() as i64;
        assert!((500_000..=600_000).contains(&ends), "{ends} ms, {step}");
        gateway.stop();
    }
}

#[test]
fn after_a_start_of_the_host_the_clock_has_the_word_where_it_makes_sense() {
    let upstream = Upstream::echo();
    for (age_ms, expected) in [
        (300_000, Ok("press-07".to_owned())),
        (660_000, Err(503)),
        // The clock is behind what was written before: nobody knows for how long that has been so.
        (-60_000, Err(503)),
    ] {
        let (gateway, _feed) = gateway_of_press(&upstream);
        let gateway = gateway.crash_and_restart(|folder| age(folder, age_ms));
        let seen = whose("127.0.0.7", gateway.address());
        assert_eq!(seen, expected, "{age_ms}");
        let told = gateway
            .log()
            .contains("the system's clock is behind the journal");
        assert_eq!(told, age_ms < 0, "{}", gateway.log());
        // Its source has the last word in any case.
        connect(&gateway).done(PRESS);
        assert!(whose("127.0.0.7", gateway.address()).is_ok());
        gateway.stop();
    }
    // A journal that does not say when it was begun is like one of another host.
    let (gateway, _feed) = gateway_of_press(&upstream);
    let gateway = gateway.crash_and_restart(|folder| {
        let path = folder.join("journal");
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with("{\"head\""));
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(&path, lines).unwrap();
        age(folder, 660_000);
    });
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
}

#[test]
fn a_damaged_line_has_nothing_served_that_it_may_have_ended() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    feed.done(&add("127.0.0.8", "press-08", ""));
    feed.done(r#"{"op":"release","source":"vpn","address":"127.0.0.7"}"#);
    feed.done(&add("127.0.0.9", "press-09", ""));
    let gateway = gateway.crash_and_restart(|folder| {
        let path = folder.join("journal");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("{\"end\""), "{text}");
        fs::write(&path, text.replace("{\"end\"", "{\"e\u{0}d\"")).unwrap();
    });
    let log = gateway.log();
    let line = log.split_once("m2u: warning: line ").unwrap().1;
    let (number, rest) = line.split_once(' ').unwrap();
    assert!(number.parse::<usize>().unwrap() > 3, "{log}");
    assert!(
        rest.starts_with("of the journal is damaged (1 in all)"),
        "{log}"
    );
    for address in ["127.0.0.7", "127.0.0.8", "127.0.0.9"] {
        assert_eq!(whose(address, gateway.address()), Err(503), "{address}");
    }
    let mut feed = connect(&gateway);
    feed.done(&add("127.0.0.8", "press-08", ""));
    assert!(whose("127.0.0.8", gateway.address()).is_ok());
    // The journal is whole again, and what nobody has confirmed is as doubtful as before.
    wait_until("a new journal", || !gateway.path("journal.new").exists());
    let gateway = gateway.crash_and_restart(|_| {});
    assert!(!gateway.log().contains("damaged"), "{}", gateway.log());
    assert!(whose("127.0.0.8", gateway.address()).is_ok());
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
    gateway.stop();
}

#[test]
fn a_number_that_no_change_can_have_had_is_damage() {
    let upstream = Upstream::echo();
    for number in [u64::MAX, limits::REVISION_MAX + 1] {
        let (gateway, mut feed) = gateway_of_press(&upstream);
        let newest = feed.done(&add("127.0.0.8", "press-08", ""));
        let gateway = gateway.crash_and_restart(|folder| {
            let text = fs::read_to_string(folder.join("journal")).unwrap();
            let alive = text.lines().rfind(|line| line.starts_with("{\"alive\""));
            let mut record: Value = serde_json::from_str(alive.unwrap()).unwrap();
            *record.pointer_mut("/alive/revision").unwrap() = number.into();
            append(folder, format!("{record}\n"));
        });
        let log = gateway.log();
        assert!(log.contains("is damaged (1 in all)"), "{log}");
        assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
        let next = connect(&gateway).done(PRESS);
        assert!(
            (newest..newest + 10).contains(&next),
            "{newest}, then {next}"
        );
        assert!(whose("127.0.0.7", gateway.address()).is_ok());
        gateway.stop();
    }
}

#[test]
fn what_a_torn_line_was_about_is_not_served() {
    let upstream = Upstream::echo();
    let release = r#"{"end":{"address":"127.0.0.7","sour"#;
    let moved = r#"{"lease":{"address":"127.0.0.7","source":"vpn","account":"acme","device":"pr"#;
    for (torn, served) in [
        (release.as_bytes(), [false, true]),
        (moved.as_bytes(), [false, true]),
        (b"{\"alive\":{\"at_ms\":17", [true, true]),
        (b"\0\0\0\0\0\0\0\0", [true, true]),
        // It may have been about either.
        (b"{\"end\":{\"address\":\"127.0", [false, false]),
        (b"{\"ep", [false, false]),
    ] {
        let shown = String::from_utf8_lossy(torn);
        let (gateway, mut feed) = gateway_of_press(&upstream);
        feed.done(&add("127.0.0.8", "press-08", ""));
        let gateway = gateway.crash_and_restart(|folder| append(folder, torn));
        for (address, is_served) in ["127.0.0.7", "127.0.0.8"].into_iter().zip(served) {
            let seen = whose(address, gateway.address());
            assert_eq!(seen.is_ok(), is_served, "{address} behind {shown}");
            assert!(is_served || seen == Err(503), "{address} behind {shown}");
        }
        let is_told = gateway
            .log()
            .contains("the journal's last line was cut short");
        assert_eq!(is_told, served != [true, true], "{}", gateway.log());
        // What is written behind it can be read.
        connect(&gateway).done(&add("127.0.0.7", "press-09", ""));
        let gateway = gateway.crash_and_restart(|_| {});
        assert!(!gateway.log().contains("damaged"), "{}", gateway.log());
        let seen = whose("127.0.0.7", gateway.address());
        assert_eq!(seen, Ok("press-09".to_owned()), "{shown}");
        gateway.stop();
    }
}

#[test]
fn half_a_set_is_not_served() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let other = add("127.0.0.9", "press-09", "").replace("vpn", "hub");
    feed.done(&other);
    let set = |whole: bool| format!("{{\"set\":{{\"source\":\"vpn\",\"whole\":{whole}}}}}\n");
    let moved = concat!(
        r#"{"lease":{"address":"127.0.0.8","source":"vpn","account":"acme","#,
        r#""device":"press-08","epoch":0,"state":"confirmed"}}"#,
    );
    let half = format!("{}{moved}\n", set(false));
    let gateway = gateway.crash_and_restart(|folder| append(folder, &half));
    assert!(
        gateway
            .log()
            .contains("m2u: a set of vpn was not taken in to its end")
    );
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
    assert_eq!(whose("127.0.0.8", gateway.address()), Err(503));
    assert_eq!(
        whose("127.0.0.9", gateway.address()),
        Ok("press-09".to_owned())
    );
    // Nor after one more start, whether or not the journal has been written anew.
    let gateway = gateway.crash_and_restart(|_| {});
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(503));
    connect(&gateway).done(PRESS);
    let whole = format!("{half}{}", set(true));
    let gateway = gateway.crash_and_restart(|folder| append(folder, whole));
    assert!(whose("127.0.0.7", gateway.address()).is_ok());
    assert!(whose("127.0.0.8", gateway.address()).is_ok());
    gateway.stop();
}

#[test]
fn a_second_gateway_leaves_the_journal_alone() {
    let upstream = Upstream::echo();
    let (first, mut feed) = gateway_of_press(&upstream);
    let journal = first.path("journal");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m2u.toml");
    let written = format!("{:?}", journal.display().to_string());
    let text = leases::configuration(&upstream.url(), "").replace("\"journal\"", &written);
    fs::write(&path, text).unwrap();
    // Until then the first one may put another file in its place.
    wait_until("a new journal", || !first.path("journal.new").exists());
    let before = fs::read(&journal).unwrap();
    // One that starts all the same is ended.
    let done = Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_m2u"), "run", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{said}");
    let words = format!(
        "the journal of leases {} can't be used: another m2u uses it; end that first",
        journal.display()
    );
    assert!(said.contains(&words), "{said}");
    assert!(fs::read(&journal).unwrap().starts_with(&before));
    // The first goes on with it, and the next one may have it.
    feed.done(&add("127.0.0.8", "press-08", ""));
    let first = first.crash_and_restart(|_| {});
    assert_eq!(connect(&first).leases().len(), 2);
    // Nobody else may read who is where.
    let mode = fs::metadata(&journal).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    first.stop();
}

#[test]
fn a_crash_while_the_journal_is_written_anew_loses_nothing() {
    const LEASES: usize = 50_000;
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let address = |n: usize| format!("127.{}.{}.{}", 1 + n / 40_000, n / 200 % 200, n % 200);
    let set: String = (0..LEASES)
        .map(|n| format!("{}\n", line(&address(n), "press-08")))
        .collect();
    let set = format!("{{\"op\":\"sync\",\"source\":\"hub\"}}\n{set}{{\"op\":\"commit\"}}");
    assert_eq!(feed.ask(&set)["count"], LEASES);
    let mut gateway = gateway;
    let (mut held, mut interrupted) = (LEASES + 1, 0);
    for round in 0..6 {
        gateway = gateway.crash_and_restart(|folder| {
            interrupted += usize::from(folder.join("journal.new").exists());
            // Nor does what such a crash leaves behind matter.
            if round % 2 == 0 {
                fs::write(folder.join("journal.new"), "{\"lease\":{\"addr").unwrap();
            }
            append(folder, "{\"alive\":{\"at_ms\":17");
        });
        let log = gateway.log();
        assert!(
            log.contains(&format!("m2u: {held} leases are remembered")),
            "{log}"
        );
        assert!(
            !log.contains("journal's") && !log.contains("damaged"),
            "{log}"
        );
        // Every start writes it anew: these come in between, to places behind and before.
        let mut feed = connect(&gateway);
        for last in ["250", "251"] {
            feed.done(&add(&format!("127.{round}.0.{last}"), "press-09", ""));
            feed.done(&add(&format!("127.200.{round}.{last}"), "press-09", ""));
            held += 2;
        }
        let gone = address(round);
        let release = format!(r#"{{"op":"release","source":"hub","address":"{gone}"}}"#);
        feed.done(&release);
        held -= 1;
        if round == 4 {
            wait_until("a new journal", || !gateway.path("journal.new").exists());
        }
    }
    println!("{interrupted} of 6 crashes met a journal on its way");
    let mut feed = connect(&gateway);
    assert_eq!(feed.leases().len(), held);
    for round in 0..6 {
        assert_eq!(whose(&address(round), gateway.address()), Err(403));
        let seen = whose(&format!("127.200.{round}.251"), gateway.address());
        assert_eq!(seen, Ok("press-09".to_owned()));
    }
    wait_until("a new journal", || !gateway.path("journal.new").exists());
    let text = fs::read_to_string(gateway.path("journal")).unwrap();
    assert_eq!(
        text.matches("{\"head\"").count(),
        1,
        "it has one run's lines only"
    );
    // Besides these, what came while it was on its way.
    let lines = text.matches("{\"lease\"").count();
    assert!(
        (held..held + 6).contains(&lines),
        "{lines} lines, {held} leases"
    );
    gateway.stop();
}

#[test]
fn what_a_lease_said_before_is_not_served_for_a_device_that_is_gone() {
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    feed.done(&add("127.0.0.7", "press-09", ",\"replace\":true"));
    let gateway = gateway.crash_and_restart(|folder| {
        edit(folder, |record| {
            if let Some(device) = record.pointer_mut("/lease/device")
                && *device == "press-09"
            {
                *device = "gone".into();
            }
        });
    });
    let said = "1 leases of the journal are of devices or scopes that are not configured";
    assert!(gateway.log().contains(said), "{}", gateway.log());
    assert_eq!(whose("127.0.0.7", gateway.address()), Err(403));
    gateway.stop();
}

#[test]
fn a_journal_of_mere_history_is_written_anew() {
    const BATCH: usize = 500;
    let upstream = Upstream::echo();
    let (gateway, mut feed) = gateway_of_press(&upstream);
    let floor = m2u::limits::JOURNAL_BYTES_FLOOR;
    let session = "s".repeat(m2u::limits::LEASE_WORD_BYTES_MAX);
    let size = || fs::metadata(gateway.path("journal")).unwrap().len();
    let (mut longest, mut number) = (0, 0);
    while size() >= longest {
        longest = size();
        assert!(longest < 3 * floor, "{longest} bytes");
        let lines = (0..BATCH).map(|_| {
            number += 1;
            let (_, rest) = session.split_at(number % 100);
            let more = format!(",\"session\":\"{number}{}\"", &rest[..100]);
            format!("{}\n", add("127.0.0.8", "press-08", &more))
        });
        feed.send(lines.collect::<String>());
        for _ in 0..BATCH {
            assert_eq!(feed.next()["ok"], true);
        }
    }
    // It may have been replaced before its longest was seen.
    assert!(longest > floor / 2, "{longest} bytes");
    let gateway = gateway.crash_and_restart(|_| {});
    let shown = lease(&gateway, "list --address 127.0.0.8 --json").done();
    assert!(
        shown.contains(&format!("\"session\":\"{number}s")),
        "{shown}"
    );
    assert_eq!(connect(&gateway).leases().len(), 2);
    gateway.stop();
}
