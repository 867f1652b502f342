//! Wiring of a running gateway: control thread, workers, signals, drain.
//!
//! The one place that knows both the engine and the control plane. Everything here runs on the
//! control thread; no device's byte passes it.

use std::{
    fmt,
    future::pending,
    io,
    mem::{self, ManuallyDrop},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};

use crate::{
    config::{
        flags::ConfigArguments,
        overlaps_believed,
        problem::{Problem, Summary},
        settings::{AccessLog, Leases, Limits, Listen, Settings, Timeouts},
    },
    control::{
        dns::responder::{self, Responder},
        lease::{
            directory::Directory,
            registry::{Registry, RegistryError, Work},
        },
        reload::{Assembly, ReloadError},
        resolver::{Event, Resolver},
        trust,
    },
    engine::{
        self, Engine, EngineError, EngineSettings, StartError,
        net::{suites, sys},
    },
    file_limit::{self, Demand},
    limits,
    observe::{access_log::Log, say::say},
    snapshot::{
        Snapshot,
        publish::Publisher,
        scope::{Identities, Scope},
    },
};

/// How often the workers' health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_millis(100);
/// How often a drain looks whether everything has ended.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);
/// How long past its limit a drain may take before it counts as broken.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Why a gateway did not start, or ended in disorder.
#[derive(Debug)]
enum Fault {
    Runtime(io::Error),
    Signals(io::Error),
    Settings(ReloadError),
    Leases(RegistryError),
    Log(PathBuf, io::Error),
    Names(responder::StartError),
    Start(StartError),
    Broken,
    Stuck,
    Interrupted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(error) => write!(f, "the control thread cannot start: {error}"),
            Self::Signals(error) => write!(f, "signals cannot be received: {error}"),
            Self::Settings(error) => error.fmt(f),
            Self::Leases(error) => error.fmt(f),
            Self::Log(path, error) => {
                write!(
                    f,
                    "the access log {} can't be opened: {error}",
                    path.display()
                )
            }
            Self::Names(error) => error.fmt(f),
            Self::Start(error) => error.fmt(f),
            Self::Broken => f.write_str("a worker has ended by itself; giving up"),
            Self::Stuck => f.write_str("the workers did not end in time; giving up"),
            Self::Interrupted => f.write_str("ended at once by a second signal"),
        }
    }
}

impl std::error::Error for Fault {}

/// Runs a gateway with `settings`, which `arguments` made and make again on SIGHUP.
///
/// Returns when a signal has ended it (0), or when it cannot start or go on (1, with the reason on
/// standard error).
pub fn run(settings: Settings, arguments: ConfigArguments) -> ExitCode {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(serve(settings, arguments)),
        Err(error) => Err(Fault::Runtime(error)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            say(format_args!("{fault}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: Settings, arguments: ConfigArguments) -> Result<(), Fault> {
    // First of all: a signal that comes early must not kill what it should drain.
    let mut signals = Signals::install().map_err(Fault::Signals)?;
    let cores = engine::choose_cores(&settings.tuning).map_err(Fault::Start)?;
    let demand = Demand::of(&settings, cores.len());
    file_limit::raise(&demand);
    warn(&settings.doubts);
    let gateway = tokio::select! {
        gateway = Gateway::start(&settings, arguments, demand) => gateway?,
        () = signals.end() => return Ok(()),
    };
    drop(settings); // A long device list lives on in the snapshot alone.
    gateway.attend(&mut signals).await
}

/// A gateway at work.
struct Gateway {
    arguments: ConfigArguments,
    assembly: Assembly,
    resolver: Resolver,
    /// Leases that come and go; `None`: all are the configuration's.
    leases: Option<Registry>,
    publisher: Publisher,
    /// Dropped by a finished drain only: to wait for its workers elsewhere could take for ever.
    engine: ManuallyDrop<Engine>,
    /// Where exchanges are logged; opened anew on SIGHUP, and closed after the engine.
    log: Option<Arc<Log>>,
    /// Answers for m2u's own names until the drain is over.
    names: Option<Responder>,
    started: Started,
    /// What the number of open files depends on.
    demand: Demand,
    drain: Duration,
    /// A configuration that was read, and is to be put in force.
    reload: Option<Reload>,
    /// The configuration was read, and the memory that took has not been given back.
    has_read: bool,
}

/// A reload that waits for the first answers for its names, and until no set of leases is halfway.
struct Reload {
    settings: Settings,
    /// When to go on without answers.
    by: Instant,
    /// That it waits for a set was told.
    is_told: bool,
}

/// What the engine was started with, and keeps.
struct Started {
    listen: Vec<Listen>,
    timeouts: Timeouts,
    limits: Limits,
    access_log: Option<AccessLog>,
    leases: Option<Leases>,
    /// Where m2u's own names are answered for; empty: nowhere.
    dns_listen: Vec<SocketAddr>,
}

impl Gateway {
    async fn start(
        settings: &Settings,
        arguments: ConfigArguments,
        demand: Demand,
    ) -> Result<Self, Fault> {
        let mut assembly = Assembly::offering(suites::share_keys(trust::provider()));
        assembly.adopt(settings).map_err(Fault::Settings)?;
        let mut resolver = Resolver::new(settings.tuning.nameserver);
        resolver.follow(assembly.names());
        let by = Instant::now() + limits::DNS_FIRST_ANSWERS;
        while !resolver.is_settled() {
            match timeout_at(by, resolver.events()).await {
                Ok(events) => tell(&events),
                Err(_) => break,
            }
        }
        let log = settings.access_log.as_ref().map(open_log).transpose()?;
        let leases = settings.leases.as_ref();
        let leases = leases.map(|leases| start_leases(leases, settings, &assembly));
        let leases = leases.transpose()?;
        let mut snapshot = assembly.first_snapshot(&resolver);
        if let Some(leases) = &leases {
            snapshot.identities = leases.identities();
        }
        let publisher = Publisher::new(snapshot);
        let names = start_names(settings, &assembly)?;
        let engine = Engine::start(
            EngineSettings {
                listen: settings.listen.clone(),
                timeouts: settings.timeouts,
                limits: settings.limits,
                tuning: settings.tuning.clone(),
                log: log.clone(),
            },
            &publisher,
        );
        let engine = engine.map_err(Fault::Start)?;
        for (address, slot) in engine.addresses() {
            say(format_args!("listening on {address} ({slot})"));
        }
        for address in names.iter().flat_map(Responder::addresses) {
            say(format_args!("answering for names on {address}"));
        }
        let cores = match engine.cores().len() {
            1 => "1 core".to_owned(),
            count => format!("{count} cores"),
        };
        say(format_args!("ready: {cores}, {}", settings.inventory()));
        Ok(Self {
            arguments,
            assembly,
            resolver,
            leases,
            publisher,
            engine: ManuallyDrop::new(engine),
            log,
            names,
            started: Started::with(settings),
            demand,
            drain: settings.timeouts.drain,
            reload: None,
            has_read: true,
        })
    }

    /// Keeps the gateway going until a signal ends it.
    async fn attend(mut self, signals: &mut Signals) -> Result<(), Fault> {
        let mut health = interval(HEALTH_INTERVAL);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let by = self.reload_by();
            tokio::select! {
                wanted = signals.next() => match wanted {
                    Wanted::End => return self.finish(signals).await,
                    Wanted::Reload => self.reload(),
                    Wanted::Counts => self.tell_counts(),
                },
                work = work(&mut self.leases) => {
                    self.change_leases(work);
                    self.reload_if_ready();
                }
                events = self.resolver.events() => {
                    self.learn(&events);
                    self.reload_if_ready();
                }
                () = until(by) => self.reload_if_ready(),
                _ = health.tick() => {
                    if self.engine.is_broken() {
                        return Err(Fault::Broken);
                    }
                    self.clear_up();
                }
            }
        }
    }

    /// Frees what was in force before, once no core uses it.
    fn clear_up(&mut self) {
        if self.publisher.clear_up() && mem::take(&mut self.has_read) {
            sys::give_memory_back();
        }
    }

    /// Prints one line with what has been counted.
    fn tell_counts(&self) {
        // One of them is the list itself. There may be none left for it.
        let descriptors = std::fs::read_dir("/proc/self/fd")
            .map(|list| format!("descriptors={} ", list.count() - 1))
            .unwrap_or_default();
        let words = [
            Some(self.engine.totals().to_string()),
            self.leases.as_ref().map(Registry::counts),
            self.names.as_ref().map(Responder::counts),
        ];
        let words = words.into_iter().flatten();
        let words: Vec<_> = words.filter(|words| !words.is_empty()).collect();
        say(format_args!("counts: {descriptors}{}", words.join(" ")));
    }

    /// Opens the log anew, and reads the configuration again; what it says is put in force in its turn.
    /// When it is refused, nothing changes.
    fn reload(&mut self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
        let refused = "reload refused; the configuration in force stays";
        let settings = match self.arguments.load() {
            Ok(settings) => settings,
            Err(problems) => {
                let problems = Summary(&problems).to_string();
                say(format_args!("{refused}:\n{}", problems.trim_end()));
                return;
            }
        };
        if let Some((network, believed)) = self.started.believed_device(&settings) {
            say(format_args!(
                "{refused}: {network}, a device's address, overlaps {believed}, which proxy_protocol_from \
                 has until a restart; such a device could speak as any other"
            ));
            return;
        }
        if let Err(error) = self.assembly.prepare(&settings) {
            say(format_args!("{refused}: {error}"));
            return;
        }
        warn(&settings.doubts);
        let fixed = self.started.differences(&settings);
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            say(format_args!(
                "reload: needs a restart to take effect: {keys}"
            ));
        }
        self.resolver.follow(self.assembly.names());
        // In the place of one that waits: nothing of that is in force.
        self.reload = Some(Reload {
            settings,
            by: Instant::now() + limits::DNS_FIRST_ANSWERS,
            is_told: false,
        });
        self.reload_if_ready();
    }

    /// When a reload goes on without answers; `None`: there is none, or it waits for a set of leases.
    fn reload_by(&self) -> Option<Instant> {
        let reload = self.reload.as_ref()?;
        let set = self.leases.as_ref().and_then(Registry::set_on_its_way);
        set.is_none().then_some(reload.by)
    }

    /// Puts a configuration that was read in force if its names have been asked for, and no set of leases
    /// is halfway: it goes on in turns, and whoever changes others meanwhile waits for one of those alone.
    fn reload_if_ready(&mut self) {
        let Some(reload) = &mut self.reload else {
            return;
        };
        if !self.assembly.is_settled(&self.resolver) && Instant::now() < reload.by {
            return;
        }
        let set = self.leases.as_ref().and_then(Registry::set_on_its_way);
        if let Some(source) = set {
            if !mem::replace(&mut reload.is_told, true) {
                say(format_args!(
                    "reload: waits until a set of {source} that is on its way is whole"
                ));
            }
            return;
        }
        if let Some(reload) = self.reload.take() {
            self.change_over(&reload.settings);
        }
    }

    /// Puts `settings` in force, which are prepared: routes, devices and leases in one step. A device
    /// that is moved must not be found under its new account where that has its servers of before.
    fn change_over(&mut self, settings: &Settings) {
        self.assembly.change_over();
        let names = self.assembly.names();
        self.resolver.forget_others(&names.collect());
        self.drain = settings.timeouts.drain;
        self.demand_files(settings);
        let snapshot = self.assembly.first_snapshot(&self.resolver);
        match &mut self.leases {
            None => self.put_in_force(snapshot),
            Some(leases) => {
                let directory = directory(settings, &self.assembly);
                let fixed = Arc::clone(self.assembly.identities());
                let publisher = &self.publisher;
                let publish = |identities, moved: &[(Scope, IpNet)]| {
                    let snapshot = Snapshot {
                        identities,
                        ..snapshot
                    };
                    publisher.publish_moved(snapshot, moved);
                };
                let news = leases.adopt(directory, fixed, &settings.openvpn, publish);
                news.iter().for_each(|news| say(format_args!("{news}")));
            }
        }
        if let (Some(names), Some(zone)) = (&self.names, self.assembly.zone()) {
            names.publish(zone);
        }
        self.has_read = true;
        say(format_args!("reloaded: {}", settings.inventory()));
    }

    /// Says so where servers or hubs of `settings` may need more open files than those before, and there may
    /// not be as many.
    fn demand_files(&mut self, settings: &Settings) {
        let next = self.demand.reloaded(settings);
        let before = mem::replace(&mut self.demand, next);
        if next.files() > before.files() {
            file_limit::raise(&next);
        }
    }

    fn change_leases(&mut self, work: Work) {
        let publish = publish_leases(&self.publisher);
        if let Some(leases) = &mut self.leases {
            let news = leases.apply(work, publish);
            news.iter().for_each(|news| say(format_args!("{news}")));
        }
    }

    /// Publishes `snapshot`, and has idle connections closed whose device is another in it.
    fn put_in_force(&self, snapshot: Snapshot) {
        let current = self.publisher.current();
        let moved = current.identities.differences(&snapshot.identities);
        drop(current);
        self.publisher.publish_moved(snapshot, &moved);
    }

    /// Publishes what other addresses of names make different.
    fn learn(&mut self, events: &[Event]) {
        tell(events);
        let hosts = events.iter().map(Event::host);
        if let Some(mut snapshot) = self.assembly.snapshot(&self.resolver, hosts) {
            if let Some(leases) = &self.leases {
                snapshot.identities = leases.identities();
            }
            self.put_in_force(snapshot);
        }
    }

    /// Lets what is under way end, within the limit.
    async fn finish(mut self, signals: &mut Signals) -> Result<(), Fault> {
        if self.reload.is_some() {
            refuse_late_reload();
        }
        let limit = self.drain;
        say(format_args!(
            "draining: no new connections, {limit:?} at most for what is under way"
        ));
        self.engine.drain(limit);
        let by = Instant::now() + limit + DRAIN_GRACE;
        let mut look = interval(DRAIN_INTERVAL);
        while !self.engine.is_stopped() {
            tokio::select! {
                wanted = signals.next() => match wanted {
                    Wanted::End => return Err(Fault::Interrupted),
                    Wanted::Reload => refuse_late_reload(),
                    Wanted::Counts => self.tell_counts(),
                },
                // What is still served must not be served under an old lease.
                work = work(&mut self.leases) => self.change_leases(work),
                _ = look.tick() => {
                    if Instant::now() > by {
                        return Err(Fault::Stuck);
                    }
                }
            }
        }
        // Every worker has ended, so that this waits for nothing.
        let ended = ManuallyDrop::into_inner(self.engine).join();
        if let Some(log) = self.log {
            log.close();
        }
        drop(self.names);
        ended.map_err(|EngineError| Fault::Broken)?;
        say(format_args!("stopped"));
        Ok(())
    }
}

impl Started {
    fn with(settings: &Settings) -> Self {
        Self {
            listen: settings.listen.clone(),
            timeouts: settings.timeouts,
            limits: settings.limits,
            access_log: settings.access_log.clone(),
            leases: settings.leases.clone(),
            dns_listen: dns_listen(settings).to_vec(),
        }
    }

    /// A device's address by which it could speak as any other, for whom the listeners believe stays as it
    /// was, and what they believe there. By the listeners of `settings` themselves, none does.
    fn believed_device(&self, settings: &Settings) -> Option<(IpNet, IpNet)> {
        if self.listen == settings.listen {
            return None;
        }
        let listen = self.listen.iter();
        let mut believed = listen.flat_map(|listen| listen.proxy_protocol_from.iter().copied());
        believed.find_map(|believed| {
            let devices = settings
                .accounts
                .iter()
                .flat_map(|account| account.devices.iter());
            let mut networks = devices.flat_map(|device| device.networks);
            let network = networks.find(|network| overlaps_believed(**network, believed));
            network.map(|network| (*network, believed))
        })
    }

    /// The keys whose new values cannot take effect while the engine runs.
    fn differences(&self, settings: &Settings) -> Vec<&'static str> {
        let (old, new) = (&self.limits, &settings.limits);
        [
            ("listen", self.listen != settings.listen),
            (
                "timeouts.head",
                self.timeouts.head != settings.timeouts.head,
            ),
            (
                "timeouts.body for m2u's own answers",
                self.timeouts.body != settings.timeouts.body,
            ),
            (
                "timeouts.keepalive",
                self.timeouts.keepalive != settings.timeouts.keepalive,
            ),
            ("limits.head_bytes", old.head_bytes != new.head_bytes),
            ("limits.fields", old.fields != new.fields),
            ("limits.connections", old.connections != new.connections),
            (
                "limits.connections_per_address",
                old.connections_per_address != new.connections_per_address,
            ),
            ("access_log", self.access_log != settings.access_log),
            ("leases", self.leases != settings.leases),
            ("dns.listen", self.dns_listen != dns_listen(settings)),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// The signals that the gateway acts on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user: Signal,
    /// A reload was asked for while it was too early for one.
    is_reload_due: bool,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
            is_reload_due: false,
        })
    }

    /// Waits for a signal. May be dropped; no signal is lost.
    async fn next(&mut self) -> Wanted {
        match mem::take(&mut self.is_reload_due) {
            true => Wanted::Reload,
            false => self.receive().await,
        }
    }

    /// Waits for a signal to end; keeps one to reload for later.
    async fn end(&mut self) {
        loop {
            match self.receive().await {
                Wanted::End => return,
                Wanted::Reload => self.is_reload_due = true,
                // Nothing has been counted yet.
                Wanted::Counts => {}
            }
        }
    }

    async fn receive(&mut self) -> Wanted {
        tokio::select! {
            biased;
            Some(()) = self.terminate.recv() => Wanted::End,
            Some(()) = self.interrupt.recv() => Wanted::End,
            Some(()) = self.hangup.recv() => Wanted::Reload,
            Some(()) = self.user.recv() => Wanted::Counts,
            else => pending().await,
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    End,
    Reload,
    Counts,
}

fn start_names(settings: &Settings, assembly: &Assembly) -> Result<Option<Responder>, Fault> {
    let zone = assembly.zone().map(Arc::clone);
    let responder = zone.map(|zone| Responder::start(dns_listen(settings), zone));
    responder.transpose().map_err(Fault::Names)
}

fn dns_listen(settings: &Settings) -> &[SocketAddr] {
    settings.dns.as_ref().map_or(&[], |dns| &dns.listen)
}

fn open_log(settings: &AccessLog) -> Result<Arc<Log>, Fault> {
    let open = Log::open(settings);
    open.map(Arc::new)
        .map_err(|error| Fault::Log(settings.path.clone(), error))
}

fn start_leases(
    leases: &Leases,
    settings: &Settings,
    assembly: &Assembly,
) -> Result<Registry, Fault> {
    let directory = directory(settings, assembly);
    let fixed = Arc::clone(assembly.identities());
    let (registry, news) = Registry::start(
        leases,
        &settings.listen,
        &settings.openvpn,
        directory,
        fixed,
    )
    .map_err(Fault::Leases)?;
    news.iter().for_each(|news| say(format_args!("{news}")));
    Ok(registry)
}

/// The devices that leases may be for.
fn directory(settings: &Settings, assembly: &Assembly) -> Directory {
    let accounts = settings.accounts.iter();
    Directory::build(accounts.filter_map(|account| {
        let id = assembly.account_id(&account.reference)?;
        Some((id, account))
    }))
}

/// Waits until leases have something to do.
async fn work(leases: &mut Option<Registry>) -> Work {
    match leases {
        Some(leases) => leases.next().await,
        None => pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Tells what an operator may have to act on: names fail and recover, but they move all the time.
fn tell(events: &[Event]) {
    for event in events {
        match event {
            Event::Moved { .. } => {}
            Event::Recovered { .. } => say(format_args!("{event}")),
            Event::Failed { .. } => say(format_args!("warning: {event}")),
        }
    }
}

/// Puts other identities in force, with the routes as they are; and tells what has moved with them.
fn publish_leases(publisher: &Publisher) -> impl Fn(Identities, &[(Scope, IpNet)]) {
    |identities, moved| {
        let current = Snapshot::clone(&publisher.current());
        let snapshot = Snapshot {
            identities,
            ..current
        };
        publisher.publish_moved(snapshot, moved);
    }
}

fn warn(doubts: &[Problem]) {
    for doubt in doubts {
        say(format_args!("warning: {doubt}"));
    }
}

fn refuse_late_reload() {
    say(format_args!("reload refused: m2u is ending"));
}
