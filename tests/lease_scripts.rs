//! The examples of a source, in Python and in shell, and the feed's words as they are described.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{
    gateway::Gateway,
    leases::{self, Outcome, connect, lease, whose},
    upstream::Upstream,
};
use m2u::{
    control::lease::protocol::{self, Event, Listed, Reply},
    limits,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/leases")
}

fn run(command: &mut Command) -> Outcome {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    Outcome::of(child.expect("python3 or sh is missing; run scripts/setup"))
}

fn python() -> Command {
    let mut python = Command::new("python3");
    // Nothing is to be left in the sources.
    python.arg("-B").env("PYTHONPATH", folder());
    python
}

#[test]
fn the_example_in_python_does_what_it_says() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let socket = gateway.path("feed.sock");
    let demo = || {
        let mut demo = python();
        demo.arg(folder().join("feed.py")).arg(&socket);
        run(demo.args(["127.0.0.7", "acme", "press-07"]))
    };
    assert_eq!(
        demo().done(),
        "added: 127.0.0.7 speaks for press-07\n\
         added: it has come back, in another session\n\
         refused: other_session: 127.0.0.7/32 has been leased in another session since\n\
         listed: 127.0.0.7 press-07 second confirmed\n\
         synced: 1\n\
         released\n"
    );
    assert!(connect(&gateway).leases().is_empty());
    lease(&gateway, "add 127.0.0.7 --account acme --device press-08").done();
    let refused = demo();
    assert_eq!((refused.code, &*refused.stdout), (Some(1), ""));
    assert!(
        refused.stderr.starts_with("feed.py: 127.0.0.7"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_program_can_be_built_on_the_example_in_python() {
    const PROGRAM: &str = "\
import sys
from feed import Feed, Refused
feed, watching = (Feed(sys.argv[1], source='vpn') for _ in range(2))
many = [{'address': f'127.1.{n // 200}.{n % 200}', 'account': 'acme', 'device': 'press-08'}
        for n in range(3000)]
many[1234]['device'] = 'saw'
[(lease, why)] = feed.add_all(many)
print(lease['address'], why.error)
feed.sync([{'address': '127.0.0.7', 'account': 'acme', 'device': 'press-07'}], epoch=7)
try:
    feed.sync(many, epoch=7)
except Refused as why:
    print(why.error, why.line)
events = watching.watch()
feed.add('127.0.0.8', 'acme', 'press-08', session='s1')
print([lease['address'] for lease in feed.list(address='127.0.0.0/24')])
feed.release('127.0.0.8', any_session=True)
for _ in range(2):
    event = next(events)
    print(event['event'], event['lease']['address'])
";
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let mut program = python();
    program.args(["-c", PROGRAM]).arg(gateway.path("feed.sock"));
    assert_eq!(
        run(&mut program).done(),
        "127.1.6.34 unknown_device\nunknown_device 1235\n['127.0.0.7', '127.0.0.8']\n\
         leased 127.0.0.8\nended 127.0.0.8\n"
    );
    assert_eq!(
        whose("127.0.0.7", gateway.address()),
        Ok("press-07".to_owned())
    );
    assert_eq!(whose("127.1.0.0", gateway.address()), Err(403));
}

fn hook(gateway: &Gateway, arguments: &str) -> Outcome {
    let mut hook = Command::new(folder().join("feed.sh"));
    hook.args(arguments.split(' '))
        .env("M2U", env!("CARGO_BIN_EXE_m2u"))
        .env("M2U_SOCKET", gateway.path("feed.sock"))
        .env("M2U_SOURCE", "hub")
        .current_dir(gateway.path(""));
    run(&mut hook)
}

#[test]
fn the_hooks_in_shell_follow_a_vpn() {
    let upstream = Upstream::echo();
    let gateway = leases::gateway(&upstream.url(), "");
    let whose = || whose("127.0.0.7", gateway.address());
    let press = Ok("press-07".to_owned());
    hook(&gateway, "up 127.0.0.7 acme press-07 first").done();
    assert_eq!(whose(), press);
    // It comes back before it has gone, and goes late.
    hook(&gateway, "up 127.0.0.7 acme press-07 second").done();
    hook(&gateway, "down 127.0.0.7 first").refused("another session");
    assert_eq!(whose(), press);
    hook(&gateway, "down 127.0.0.7 second").done();
    assert_eq!(whose(), Err(403));
    fs::write(
        gateway.path("all.csv"),
        "address,account,device\n127.0.0.7,acme,press-08\n",
    )
    .unwrap();
    assert_eq!(hook(&gateway, "all all.csv").done(), "1 lease of hub\n");
    assert_eq!(whose(), Ok("press-08".to_owned()));
    for wrong in ["", "up 127.0.0.7", "down 127.0.0.7", "grab"] {
        let outcome = hook(&gateway, wrong);
        assert_eq!(outcome.code, Some(2), "{wrong}");
        assert!(
            outcome.stderr.starts_with("feed.sh up ADDRESS"),
            "{}",
            outcome.stderr
        );
    }
    let path = gateway.path("feed.sock");
    fs::rename(&path, gateway.path("elsewhere")).unwrap();
    hook(&gateway, "up 127.0.0.7 acme press-07 third").refused("there is no socket");
}

fn described() -> String {
    fs::read_to_string(folder().join("README.md")).unwrap()
}

/// Says the same again as it was understood, so that no key gets lost.
fn is_understood<T: DeserializeOwned + Serialize>(line: &str) {
    let understood: T = serde_json::from_str(line).unwrap_or_else(|why| panic!("{line}: {why}"));
    let written: Value = serde_json::from_str(line).unwrap();
    assert_eq!(serde_json::to_value(understood).unwrap(), written);
}

#[test]
fn every_line_that_is_described_is_the_feeds_own() {
    let described = described();
    let blocks = described.split("```json\n").skip(1);
    let lines: Vec<&str> = blocks
        .flat_map(|block| block.split("```").next().unwrap().lines())
        .collect();
    assert!(lines.len() > 10);
    for line in lines {
        let value: Value = serde_json::from_str(line).unwrap();
        match () {
            () if value.get("ok").is_some() => is_understood::<Reply>(line),
            () if value.get("event").is_some() => is_understood::<Event<'_>>(line),
            () if value.get("lease").is_some() => is_understood::<Listed<'_>>(line),
            () => is_understood::<protocol::Request>(line),
        }
    }
}

#[test]
fn every_error_and_every_limit_is_described() {
    let described = described();
    let sources = ["claim.rs", "feed.rs", "names.rs", "registry.rs"].map(|name| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control/lease");
        fs::read_to_string(folder.join(name)).unwrap()
    });
    let table = described.split("| `error` |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let rows = table
        .lines()
        .skip(2)
        .filter_map(|row| row.split(" | ").next());
    let words: Vec<&str> = rows
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    for word in &words {
        let written = format!("\"{word}\"");
        assert!(
            sources.iter().any(|source| source.contains(&written)),
            "{word} is none"
        );
    }
    // The table's words, those that are refused before it is asked, and those of names.
    let tokens = sources[0].split("pub fn token").nth(1).unwrap();
    let tokens = tokens.split("\n    }\n").next().unwrap();
    let tokens = tokens.lines().filter_map(|line| line.split('"').nth(1));
    let early = sources
        .iter()
        .flat_map(|source| source.split("Reply::refused(").skip(1));
    let early = early.filter_map(|call| call.split(')').next()?.split('"').nth(1));
    let names = sources[2].split("(\"").skip(1);
    let names = names.filter_map(|rest| Some(rest.split_once("\", reason)")?.0));
    let mut known = 0;
    for token in tokens
        .chain(early)
        .chain(names.filter(|token| !token.contains(' ')))
    {
        assert!(words.contains(&token), "{token} is not described");
        known += 1;
    }
    assert!(known > 18, "{known}");
    for (number, text) in [
        (limits::FEED_LINE_BYTES_MAX, "4,096 bytes"),
        (limits::FEED_CONNECTIONS_MAX, "| 64;"),
        (limits::FEED_CONNECTIONS_PER_USER_MAX, "of one user 32;"),
        (
            limits::FEED_CONNECTIONS_MAX - limits::FEED_CONNECTIONS_KEPT_FOR_OWNERS,
            "m2u's own user 56",
        ),
        (limits::FEED_WATCHES_MAX, "| 32;"),
        (limits::FEED_WATCHES_PER_USER_MAX, "of one user 16;"),
        (limits::WATCH_BYTES_MAX as usize / 1_048_576, "| 4 MiB"),
        (limits::LEASE_WORD_BYTES_MAX, "256 bytes"),
        (limits::LEASES_MAX, "4,194,304"),
        (limits::LEASE_SOURCES_MAX, "| 4,096 |"),
    ] {
        let digits: String = text
            .replace("m2u", "")
            .chars()
            .filter(char::is_ascii_digit)
            .collect();
        assert_eq!(digits.parse(), Ok(number));
        assert!(described.contains(text), "{text}");
    }
}
