//! Asks every hub at start and again and again, each in a task of its own.
//!
//! A hub that hangs keeps no other waiting. One whose report somebody waits for is asked soon, and again
//! until that is over, but no more than once a second. Prints nothing: what is worth telling comes out with a
//! report, or in its place, and once only.

use std::{
    collections::HashMap,
    fmt, fs,
    future::pending,
    iter, mem,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::{
    pin, select,
    sync::{
        mpsc::{self, Receiver, Sender},
        watch,
    },
    task::JoinSet,
    time::sleep,
};

use super::{
    ask::{AskFault, ask},
    looks::Looks,
    report::{self, Findings, HubReport},
    status::{self, StatusFault},
    told::Told,
};
use crate::{
    config::settings::{Hub, HubStatus},
    control::lease::clock::{self, now, unix_ms},
    limits,
};

/// The hubs of the configuration in force.
#[derive(Debug)]
pub struct Hubs {
    hubs: Vec<Hub>,
    /// What goes with each.
    followed: Vec<Followed>,
    tasks: JoinSet<()>,
    heard: Receiver<Heard>,
}

/// What goes with a hub.
#[derive(Debug)]
struct Followed {
    /// The source of its leases.
    source: String,
    /// Whether it is to be asked soon.
    wanted: watch::Sender<bool>,
    /// What was seen of its status file; outlives changes of the configuration.
    looks: Arc<Mutex<Looks>>,
}

/// What came of asking a hub.
#[derive(Debug)]
pub enum Heard {
    /// It says who is connected.
    Report(HubReport),
    /// It says nothing that could be believed, for another reason than the last time.
    Failure(HubFailure),
}

/// A hub that says nothing that could be believed.
#[derive(Debug)]
pub struct HubFailure {
    /// The source of its leases.
    pub source: String,
    status: HubStatus,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    Ask(AskFault),
    Status(StatusFault),
}

impl fmt::Display for HubFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.status {
            HubStatus::File(path) => write!(f, "the status file \"{}\" ", path.display())?,
            HubStatus::Socket(path) => write!(f, "the management socket \"{}\" ", path.display())?,
            HubStatus::Address(host, port) => {
                write!(f, "the management interface {host}:{port} ")?;
            }
        }
        match &self.fault {
            Fault::Ask(fault) => fault.fmt(f),
            Fault::Status(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for HubFailure {}

impl Default for Hubs {
    fn default() -> Self {
        Self::new()
    }
}

impl Hubs {
    /// No hubs yet.
    pub fn new() -> Self {
        Self {
            hubs: Vec::new(),
            followed: Vec::new(),
            tasks: JoinSet::new(),
            heard: mpsc::channel(1).1,
        }
    }

    /// Asks `hubs` from now on, at once first; what was heard of those before is forgotten. Answers
    /// those before that are gone, or whose clients are other devices now.
    ///
    /// Changes nothing if they are the same. To be called within a tokio runtime.
    pub fn follow(&mut self, hubs: &[Hub]) -> Vec<Hub> {
        if self.hubs == hubs {
            return Vec::new();
        }
        let (sender, heard) = mpsc::channel(limits::HUB_REPORTS_MAX);
        // Dropped, the tasks end.
        self.tasks = JoinSet::new();
        self.heard = heard;
        let before: HashMap<_, _> = iter::zip(&self.hubs, self.followed.drain(..))
            .map(|(hub, followed)| (&hub.status, followed.looks))
            .collect();
        for hub in hubs {
            let (wanted, is_wanted) = watch::channel(false);
            let looks = before.get(&hub.status).cloned().unwrap_or_default();
            self.followed.push(Followed {
                source: hub.source(),
                wanted,
                looks: Arc::clone(&looks),
            });
            let hub = Arc::new(hub.clone());
            let task = attend(hub, sender.clone(), is_wanted, looks);
            self.tasks.spawn(task);
        }
        drop(before);
        let mut gone = mem::replace(&mut self.hubs, hubs.to_vec());
        let is_same = |one: &Hub, other: &Hub| {
            one.name == other.name
                && one.scope == other.scope
                && one.common_names == other.common_names
        };
        gone.retain(|hub| !hubs.iter().any(|other| is_same(hub, other)));
        gone
    }

    /// Has each hub asked soon, and every second then, for as long as it `is_wanted`, also by the source of
    /// its leases; the others as often as their configuration says.
    pub fn ask_soon(&self, is_wanted: impl Fn(&Hub, &str) -> bool) {
        for (hub, followed) in iter::zip(&self.hubs, &self.followed) {
            let is_wanted = is_wanted(hub, &followed.source);
            let wanted = &followed.wanted;
            wanted.send_if_modified(|known| mem::replace(known, is_wanted) != is_wanted);
        }
    }

    /// The hub whose leases have this source.
    pub fn hub(&self, source: &str) -> Option<&Hub> {
        let name = source.strip_prefix(Hub::SOURCE_PREFIX)?;
        self.hubs.iter().find(|hub| *hub.name == *name)
    }

    /// Waits for news of a hub: for ever, if there is none. May be dropped; no news are lost.
    pub async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            None => std::future::pending().await,
        }
    }
}

/// Asks one hub until nobody listens any more. One whose status was written before is soon asked
/// again, as if it was wanted: until it has written it anew, much of it may not be served.
async fn attend(
    hub: Arc<Hub>,
    heard: Sender<Heard>,
    mut is_wanted: watch::Receiver<bool>,
    looks: Arc<Mutex<Looks>>,
) {
    let begun = now();
    let looks = || looks.lock().unwrap_or_else(PoisonError::into_inner);
    let mut problems = Told::default();
    let mut failure = Told::default();
    loop {
        let mut is_old = false;
        let mut known = None;
        // In this order: a date that is found late counts as ahead, and so makes the file older.
        let (system, at) = clock::by_both();
        let date = written(&hub.status);
        looks().look(date, system, at);
        let news = match report(&hub).await {
            Ok((mut report, bound)) => {
                if let HubStatus::File(_) = hub.status {
                    report.as_of = report.as_of.min(looks().no_younger_than(bound));
                }
                is_old = report.as_of < begun;
                known = Some(bound);
                failure.news(Vec::new());
                report.problems = problems.news(report.problems);
                Some(Heard::Report(report))
            }
            Err(fault) => {
                let news = HubFailure {
                    source: hub.source(),
                    status: hub.status.clone(),
                    fault,
                };
                let told = failure.news(vec![news.to_string()]);
                (!told.is_empty()).then_some(Heard::Failure(news))
            }
        };
        if let Some(news) = news
            && heard.send(news).await.is_err()
        {
            return;
        }
        let poll = sleep(hub.poll);
        pin!(poll);
        loop {
            let soon = async {
                sleep(limits::HUB_POLL_FLOOR).await;
                // Not before: what it said last may have settled it.
                if !is_old && is_wanted.wait_for(|is_wanted| *is_wanted).await.is_err() {
                    pending().await
                }
            };
            select! {
                () = &mut poll => break,
                () = soon => if says_more(&hub.status, known) { break },
            }
        }
    }
}

/// Whether a hub may say something else than when its status was known to be of `known`, if it was: one
/// that is asked has something new to say at any time, but a file only once it was written.
fn says_more(status: &HubStatus, known: Option<SystemTime>) -> bool {
    match status {
        HubStatus::File(_) => written(status) != known,
        HubStatus::Socket(_) | HubStatus::Address(..) => true,
    }
}

/// The date of a status file, if there is one.
fn written(status: &HubStatus) -> Option<SystemTime> {
    match status {
        HubStatus::File(path) => fs::metadata(path).and_then(|file| file.modified()).ok(),
        HubStatus::Socket(_) | HubStatus::Address(..) => None,
    }
}

/// What a hub says, and when that is from by its file's date, or by when it was asked.
async fn report(hub: &Hub) -> Result<(HubReport, SystemTime), Fault> {
    let answer = ask(&hub.status, limits::HUB_ANSWER)
        .await
        .map_err(Fault::Ask)?;
    let status = status::parse(&answer.text).map_err(Fault::Status)?;
    let as_of = match hub.status {
        HubStatus::File(_) => report::as_of(status.time, answer.bound),
        // Whatever clock the hub has: it was asked then.
        HubStatus::Socket(_) | HubStatus::Address(..) => answer.bound,
    };
    let Findings {
        claims,
        strangers,
        problems,
    } = report::findings(&status, hub);
    let report = HubReport {
        source: hub.source(),
        scope: hub.scope.clone(),
        as_of: unix_ms(as_of),
        claims,
        strangers,
        problems,
    };
    Ok((report, answer.bound))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::Path,
        time::{Duration, SystemTime},
    };

    use tokio::{runtime, time::timeout};

    use super::*;
    use crate::config::{self, flags::Overrides};

    const STATUS: &str = include_str!("status.txt");

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let bounded = async { timeout(Duration::from_secs(60), future).await };
        runtime
            .expect("a runtime")
            .block_on(bounded)
            .expect("in time")
    }

    /// Hubs whose files are in `folder`, asked without a pause.
    fn hubs(folder: &Path, names: &[&str]) -> Vec<Hub> {
        let path = folder.join("m2u.toml");
        let mut listen = Vec::new();
        let mut text = "[leases]\n[[account]]\nref = \"acme\"\n".to_owned();
        for name in names {
            listen.push(format!(
                "{{ address = \"127.0.0.1:0\", scope = \"{name}\" }}"
            ));
            text.push_str(&format!(
                "[[openvpn]]\nhub = \"{name}\"\nscope = \"{name}\"\nstatus = \"{name}.status\"\n\
                 pattern = \"{{account}}.{{device}}\"\n"
            ));
        }
        let text = format!("listen = [{}]\n{text}", listen.join(", "));
        fs::write(&path, &text).expect("a file");
        let mut hubs = config::load(&path, &Overrides::default())
            .expect(&text)
            .openvpn;
        for hub in &mut hubs {
            hub.poll = Duration::from_millis(1);
        }
        hubs
    }

    fn write(folder: &Path, name: &str, text: &str) {
        // In one step, as OpenVPN does not: what a reader makes of that is tested elsewhere.
        let new = folder.join("new");
        fs::write(&new, text).expect("a file");
        let file = fs::File::options().write(true).open(&new).expect("a file");
        let rested = SystemTime::now() - limits::HUB_STATUS_REST;
        file.set_modified(rested).expect("a time");
        fs::rename(new, folder.join(name)).expect("renamed");
    }

    #[test]
    fn every_hub_is_asked_again_and_again_and_tells_its_problems_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        write(folder, "north.status", STATUS);
        let mut followed = Hubs::new();
        block_on(async {
            followed.follow(&hubs(folder, &["north", "south"]));
            let mut reports = Vec::new();
            let mut failures = Vec::new();
            while reports.len() < 3 || failures.is_empty() {
                match followed.next().await {
                    Heard::Report(report) => reports.push(report),
                    Heard::Failure(failure) => failures.push(failure),
                }
            }
            assert!(
                reports
                    .iter()
                    .all(|report| report.source == "openvpn:north")
            );
            let problems: Vec<_> = reports.iter().map(|report| report.problems.len()).collect();
            assert_eq!(problems[..3], [2, 0, 0]);
            assert_eq!(reports[1].claims.len(), 6);
            assert_eq!(reports[1].scope.as_deref(), Some("north"));
            let [failure] = &failures[..] else {
                panic!("{failures:?}");
            };
            assert_eq!(failure.source, "openvpn:south");
            assert!(failure.to_string().contains("does not exist"), "{failure}");

            write(folder, "south.status", STATUS.trim_end_matches("END\n"));
            let cut = loop {
                if let Heard::Failure(failure) = followed.next().await {
                    break failure.to_string();
                }
            };
            assert!(cut.contains("south.status\" is cut short"), "{cut}");
        });
    }

    #[test]
    fn hubs_that_are_no_longer_followed_are_not_heard() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        write(folder, "north.status", STATUS);
        write(folder, "south.status", STATUS);
        let mut followed = Hubs::new();
        block_on(async {
            followed.follow(&hubs(folder, &["north"]));
            assert!(matches!(followed.next().await, Heard::Report(_)));
            let gone = followed.follow(&hubs(folder, &["south"]));
            assert_eq!(gone.len(), 1);
            for _ in 0..3 {
                let Heard::Report(report) = followed.next().await else {
                    panic!("a failure");
                };
                assert_eq!(report.source, "openvpn:south");
            }
            followed.follow(&[]);
            let silence = timeout(Duration::from_millis(20), followed.next()).await;
            assert!(silence.is_err(), "{silence:?}");
        });
    }

    #[test]
    fn a_file_is_no_younger_than_when_it_was_first_seen() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("north.status");
        let time = STATUS.lines().find(|line| line.starts_with("TIME"));
        let text = STATUS.replace(time.expect("a time"), "TIME\tx\t9000000000");
        assert_ne!(text, STATUS);
        fs::write(&path, text).expect("a file");
        let file = fs::File::options().write(true).open(&path).expect("a file");
        block_on(async {
            let (mut followed, failure) = loop {
                // Ahead of the clock as if that had been set back, if the poller is not late.
                let ahead = SystemTime::now() + Duration::from_secs(1);
                file.set_modified(ahead).expect("a time");
                let mut followed = Hubs::new();
                followed.follow(&hubs(folder.path(), &["north"]));
                if let Heard::Failure(failure) = followed.next().await {
                    break (followed, failure);
                }
            };
            assert!(failure.to_string().contains("lies ahead"), "{failure}");
            let Heard::Report(report) = followed.next().await else {
                panic!("another failure");
            };
            assert_eq!(report.as_of, 0, "it may have been there for ever");
            // To be followed anew for what another hub has makes it no younger.
            followed.follow(&hubs(folder.path(), &["north", "south"]));
            let again = loop {
                if let Heard::Report(report) = followed.next().await {
                    break report;
                }
            };
            assert_eq!(again.as_of, 0);
            // Written anew it is as young as its date, and no younger than when that was found.
            let before = now();
            file.set_modified(SystemTime::now()).expect("a time");
            // Dates are cut to milliseconds. One that was asked meanwhile may be older than that.
            let is_new = |heard: &Heard| match heard {
                Heard::Report(report) => report.as_of >= before - 2,
                Heard::Failure(_) => false,
            };
            while !is_new(&followed.next().await) {}
        });
    }
}
