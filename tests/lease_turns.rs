//! The control plane's part of live identity, driven by hand over its own socket: what happens between
//! two turns of what takes long, and on connections whose requests wait.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    PATIENCE,
    claims::acme,
    leases::{Outcome, PRESS, add},
};
use m2u::{
    config::settings::Leases,
    control::lease::registry::{Registry, Work},
    limits,
    snapshot::scope::{Identities, Scope},
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    runtime,
    time::timeout,
};

const TURN: usize = limits::LEASE_TURN;

/// All about leases, which does nothing unless it is told to.
struct Control {
    registry: Registry,
    /// What it said when it began.
    news: Vec<String>,
    /// What the cores see.
    published: Identities,
    folder: PathBuf,
}

impl Control {
    /// Begins in `folder`, and has done what there is to do at first.
    async fn start(folder: PathBuf) -> Self {
        let settings = Leases {
            socket: Some(folder.join("feed.sock")),
            users: Vec::new(),
            journal: Some(folder.join("journal")),
            unconfirmed: Duration::from_secs(600),
        };
        let devices = acme(&["press-07", "press-08", "press-09"]);
        let started = Registry::start(&settings, &[], &[], devices, Arc::default());
        let (registry, news) = started.unwrap();
        let published = registry.identities();
        let mut control = Self {
            registry,
            news,
            published,
            folder,
        };
        while !matches!(control.step().await, Work::Time) {}
        control
    }

    /// Does what there is to do next; answers what kind of thing that was.
    async fn step(&mut self) -> Work {
        let work = timeout(PATIENCE, self.registry.next()).await.unwrap();
        let kind = match &work {
            Work::Feed(_) | Work::Turn => Work::Turn,
            _ => Work::Time,
        };
        self.apply(work);
        kind
    }

    fn apply(&mut self, work: Work) {
        let published = &mut self.published;
        self.registry
            .apply(work, |identities, _| *published = identities);
    }

    /// Does one thing after the other until it is so.
    async fn step_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < PATIENCE, "it does not come to that");
            self.step().await;
        }
    }

    /// Does whatever there is to do until `done` has come to its end.
    async fn until<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = std::pin::pin!(timeout(PATIENCE, done));
        loop {
            tokio::select! {
                done = &mut done => return done.unwrap(),
                work = self.registry.next() => self.apply(work),
            }
        }
    }

    async fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.folder.join("feed.sock")).await;
        Connection(BufReader::new(stream.unwrap()))
    }

    /// Has a set be sent, and taken from the socket, but not a turn of it be done.
    async fn send_set(&mut self, connection: Connection, set: String) -> Connection {
        let sending = tokio::spawn(async move {
            let mut connection = connection;
            connection.send(&set).await;
            connection
        });
        self.step().await;
        timeout(PATIENCE, sending).await.unwrap().unwrap()
    }

    /// What has been counted under this name.
    fn count(&self, name: &str) -> usize {
        let counts = self.registry.counts();
        let mut words = counts.split(' ').filter_map(|word| word.split_once('='));
        let (_, count) = words.find(|(known, _)| *known == name).unwrap();
        count.parse().unwrap()
    }

    /// The device that the cores take for that of an address.
    fn whose(&self, address: &str) -> Option<&str> {
        let address: IpAddr = address.parse().unwrap();
        let found = self.published.resolve(Scope::NONE, address);
        found.ok().map(|identity| identity.name)
    }
}

/// A source's end of a connection.
struct Connection(BufReader<UnixStream>);

impl Connection {
    async fn send(&mut self, lines: &str) {
        self.0.write_all(lines.as_bytes()).await.unwrap();
        self.0.write_all(b"\n").await.unwrap();
    }

    /// The next line; `None` once the connection has ended.
    async fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        let received = self.0.read_line(&mut line).await.unwrap();
        (received > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    async fn next(&mut self) -> Value {
        self.receive().await.expect("a line")
    }

    async fn ask(&mut self, lines: &str) -> Value {
        self.send(lines).await;
        self.next().await
    }

    /// Addresses of all leases, each with how it stands.
    async fn leases(&mut self) -> Vec<String> {
        self.send(r#"{"op":"list"}"#).await;
        let mut leases = Vec::new();
        loop {
            let line = self.next().await;
            let Some(lease) = line.get("lease") else {
                return leases;
            };
            let word = |key: &str| lease[key].as_str().unwrap();
            leases.push(format!("{} {}", word("address"), word("state")));
        }
    }
}

/// A set of so many addresses.
fn set(source: &str, epoch: u64, leases: usize) -> String {
    let mut set = format!("{{\"op\":\"sync\",\"source\":\"{source}\",\"epoch\":{epoch}}}\n");
    for number in 0..leases {
        let (high, low) = (number / 256, number % 256);
        writeln!(
            set,
            "{{\"address\":\"127.1.{high}.{low}\",\"account\":\"acme\",\"device\":\"press-08\"}}"
        )
        .unwrap();
    }
    set + "{\"op\":\"commit\",\"id\":9}"
}

fn run(test: impl AsyncFnOnce(PathBuf)) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(test(folder.path().to_owned()));
}

#[test]
fn a_set_whose_sender_gives_up_while_it_is_checked_leaves_nothing() {
    run(async |folder| {
        let mut control = Control::start(folder).await;
        let mut feed = control.connect().await;
        assert_eq!(control.until(feed.ask(PRESS)).await["ok"], true);
        let quitter = control.connect().await;
        let quitter = control.send_set(quitter, set("vpn", 1, 5 * TURN)).await;
        // Another one waits for its turn.
        let patient = control.connect().await;
        let mut patient = control.send_set(patient, set("hub", 1, TURN + 1)).await;
        assert_eq!(control.count("leases"), 1, "nothing of it is in place");
        drop(quitter);
        let reply = control.until(patient.next()).await;
        assert_eq!(reply["count"], TURN + 1, "{reply}");
        assert_eq!(control.count("lease_given_up"), 1);
        assert_eq!(control.count("leases"), 1 + TURN + 1);
        assert_eq!(control.count("lease_refused"), 0);
        assert_eq!(control.whose("127.0.0.7"), Some("press-07"));
        // Nor has it begun a run.
        let first = PRESS.replace("vpn\"", "vpn\",\"epoch\":1");
        assert_eq!(control.until(feed.ask(&first)).await["ok"], true);
    });
}

/// A set that ends 127.0.0.7 first of all, and is overtaken by an address of a new run when part of it
/// is in place.
async fn overtaken(control: &mut Control, watcher: &mut Connection) {
    let mut feed = control.connect().await;
    control.until(feed.ask(PRESS)).await;
    assert_eq!(
        control.until(watcher.ask(r#"{"op":"watch"}"#)).await["ok"],
        true
    );
    let sender = control.connect().await;
    let mut sender = control.send_set(sender, set("vpn", 5, 5 * TURN)).await;
    control
        .step_until(|control| control.count("leases") >= TURN)
        .await;
    assert!(control.count("leases") < 4 * TURN, "it is half in place");
    assert_eq!(control.whose("127.0.0.7"), Some("press-07"), "held back");
    let anew = add("127.2.0.1", "press-09", ",\"epoch\":6");
    let reply = control.until(feed.ask(&anew)).await;
    assert_eq!(reply["ok"], true, "{reply}");
    // Whoever has that reply may rest on it: all that was said before has ended.
    for address in ["127.0.0.7", "127.1.0.0"] {
        assert_eq!(control.whose(address), None, "{address}");
    }
    assert_eq!(control.whose("127.2.0.1"), Some("press-09"));
    let reply = control.until(sender.next()).await;
    assert_eq!((&reply["ok"], &reply["id"]), (&false.into(), &9.into()));
    assert_eq!(reply["error"], "out_of_order", "{reply}");
    assert!(reply.get("count").is_none(), "{reply}");
    let reason = reply["reason"].as_str().unwrap();
    assert!(reason.contains("with epoch 6"), "{reason}");
    assert_eq!(control.count("lease_refused"), 1);
    assert_eq!(control.until(feed.leases()).await, ["127.2.0.1 confirmed"]);
}

#[test]
fn a_set_that_its_own_source_overtakes_is_refused() {
    run(async |folder| {
        let mut control = Control::start(folder).await;
        let mut watcher = control.connect().await;
        overtaken(&mut control, &mut watcher).await;
        // Whoever watches has heard of all that there is, and of the end of what there was.
        let mut feed = control.connect().await;
        let last = control
            .until(feed.ask(&add("127.3.0.1", "press-09", "")))
            .await;
        let mut known = BTreeSet::from(["127.0.0.7".to_owned()]);
        let mut is_told = false;
        while !is_told || known.contains("127.0.0.7") {
            let event = control.until(watcher.next()).await;
            let address = event["lease"]["address"].as_str().unwrap().to_owned();
            is_told |= event["revision"] == last["revision"];
            match event["event"].as_str().unwrap() {
                "leased" => known.insert(address),
                _ => known.remove(&address),
            };
        }
        assert_eq!(
            known.into_iter().collect::<Vec<_>>(),
            ["127.2.0.1", "127.3.0.1"]
        );
        // The next one has its turn.
        let sender = control.connect().await;
        let mut sender = control.send_set(sender, set("vpn", 6, TURN + 1)).await;
        assert_eq!(control.until(sender.next()).await["count"], TURN + 1);
    });
}

#[test]
fn a_set_that_was_overtaken_casts_no_doubt_on_what_overtook_it() {
    run(async |folder| {
        let mut control = Control::start(folder.clone()).await;
        let mut watcher = control.connect().await;
        overtaken(&mut control, &mut watcher).await;
        let journal = fs::read_to_string(folder.join("journal")).unwrap();
        assert!(journal.contains("\"whole\":false"));
        assert!(!journal.contains("\"whole\":true"), "it never was");
        drop(control);
        let control = Control::start(folder).await;
        assert_eq!(control.news.len(), 1, "{:?}", control.news);
        assert!(control.news[0].starts_with("1 leases are remembered"));
        assert_eq!(control.whose("127.2.0.1"), Some("press-09"));
        for address in ["127.0.0.7", "127.1.0.0"] {
            assert_eq!(control.whose(address), None, "{address}");
        }
    });
}

#[test]
fn what_overtakes_a_set_is_past_doubt_before_anybody_sees_it() {
    run(async |folder| {
        let before = folder.join("before");
        fs::create_dir(&before).unwrap();
        let mut control = Control::start(before.clone()).await;
        let mut feed = control.connect().await;
        let sender = control.connect().await;
        let _sender = control.send_set(sender, set("vpn", 5, 5 * TURN)).await;
        control
            .step_until(|control| control.count("leases") >= TURN)
            .await;
        feed.send(&add("127.2.0.1", "press-09", ",\"epoch\":6"))
            .await;
        // A crash at that moment leaves this.
        let mut left = String::new();
        while !left.contains("127.2.0.1") {
            let work = timeout(PATIENCE, control.registry.next()).await.unwrap();
            control.registry.apply(work, |_, _| {
                if !left.contains("127.2.0.1") {
                    left = fs::read_to_string(before.join("journal")).unwrap();
                }
            });
        }
        let after = folder.join("after");
        fs::create_dir(&after).unwrap();
        fs::write(after.join("journal"), left).unwrap();
        let control = Control::start(after).await;
        assert_eq!(control.whose("127.2.0.1"), Some("press-09"));
        assert_eq!(control.news.len(), 1, "{:?}", control.news);
    });
}

#[test]
fn a_set_that_was_overtaken_is_over_also_if_its_sender_is_gone() {
    run(async |folder| {
        let mut control = Control::start(folder.clone()).await;
        let mut watcher = control.connect().await;
        control.until(watcher.ask(r#"{"op":"watch"}"#)).await;
        let mut feed = control.connect().await;
        control.until(feed.ask(PRESS)).await;
        let sender = control.connect().await;
        let sender = control.send_set(sender, set("vpn", 5, 5 * TURN)).await;
        control
            .step_until(|control| control.count("leases") >= TURN)
            .await;
        drop(sender);
        let anew = add("127.2.0.1", "press-09", ",\"epoch\":6");
        control.until(feed.ask(&anew)).await;
        control
            .step_until(|control| control.count("lease_refused") > 0)
            .await;
        assert_eq!(control.count("lease_given_up"), 0);
        let is_end =
            |event: &Value| event["event"] == "ended" && event["lease"]["address"] == "127.0.0.7";
        while !is_end(&control.until(watcher.next()).await) {}
        let journal = fs::read_to_string(folder.join("journal")).unwrap();
        assert!(journal.contains("{\"overtaken\":{\"source\":\"vpn\"}}"));
    });
}

#[test]
fn whoever_has_as_many_requests_under_way_as_may_be_is_told() {
    run(async |folder| {
        let mut control = Control::start(folder.clone()).await;
        let mut feeds = Vec::new();
        let mut waiting = Vec::new();
        // They are at work as long as nobody answers them.
        for _ in 0..limits::FEED_CONNECTIONS_PER_USER_MAX {
            let mut feed = control.connect().await;
            feed.send(PRESS).await;
            feeds.push(feed);
            loop {
                let work = timeout(PATIENCE, control.registry.next()).await.unwrap();
                if matches!(work, Work::Feed(_)) {
                    waiting.push(work);
                    break;
                }
            }
        }
        let mut one_more = control.connect().await;
        let told = timeout(PATIENCE, one_more.next()).await.unwrap();
        assert_eq!(
            (&told["ok"], &told["error"]),
            (&false.into(), &"busy".into())
        );
        let reason = told["reason"].as_str().unwrap();
        assert!(reason.contains("none is idle; close some"), "{reason}");
        let end = timeout(PATIENCE, one_more.receive()).await.unwrap();
        assert!(end.is_none(), "{end:?}");
        // As people hear it.
        fs::write(
            folder.join("m2u.toml"),
            "listen = [\"127.0.0.1:0\"]\n[leases]\nsocket = \"feed.sock\"\n",
        )
        .unwrap();
        let asked = tokio::task::spawn_blocking(move || {
            let child = Command::new(env!("CARGO_BIN_EXE_m2u"))
                .args(["lease", "list"])
                .current_dir(folder)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            Outcome::of(child.unwrap())
        });
        let asked = timeout(PATIENCE, asked).await.unwrap().unwrap();
        asked.refused("too many feeds are connected, and none is idle; close some");
        // None of the others has lost its place, and once they have been answered there is room.
        for work in waiting {
            control.apply(work);
        }
        for mut feed in feeds {
            assert_eq!(control.until(feed.next()).await["ok"], true);
        }
        let mut one_more = control.connect().await;
        assert_eq!(control.until(one_more.ask(PRESS)).await["ok"], true);
    });
}
