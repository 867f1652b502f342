//! The data plane: one thread a core; never blocks, never resolves names, never logs with a lock.
//!
//! Imports run one way: `http1`, `net` <- `upstream`, `admission`, `buffers`, `date` <- `shard` <-
//! `proxy` <- `worker`. [`Engine`] starts the workers and stops them; it is all that the rest of the program
//! knows of this zone.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod admission;
pub mod buffers;
pub mod date;
pub mod http1;
pub mod net;
pub mod proxy;
pub mod shard;
pub mod upstream;
pub mod worker;

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use core_affinity::CoreId;

use crate::{
    config::settings::{Limits, Listen, Slot, Timeouts, Tuning},
    file_limit,
    observe::{
        access_log::Log,
        metrics::{CoreMetrics, Totals},
    },
    snapshot::{publish::Publisher, scope::Scope},
};
use admission::Admission;
use net::listener;
use proxy::{connection::Entrance, failure::Failure};
use shard::Shard;
use worker::{Control, Door};

/// What the engine is started with; none of it changes while it runs.
#[derive(Debug)]
pub struct EngineSettings {
    /// Sockets that devices reach; never empty.
    pub listen: Vec<Listen>,
    /// Durations that apply where a server does not set its own.
    pub timeouts: Timeouts,
    /// Sizes and counts that apply where a server does not set its own.
    pub limits: Limits,
    /// Cores, rings, buffers and pools.
    pub tuning: Tuning,
    /// Where exchanges are logged; `None`: nowhere. Closed by whoever opened it, after the engine.
    pub log: Option<Arc<Log>>,
}

/// The running workers.
#[derive(Debug)]
pub struct Engine {
    control: Arc<Control>,
    addresses: Vec<(SocketAddr, Slot)>,
    cores: Vec<usize>,
    workers: Vec<JoinHandle<()>>,
    metrics: Vec<Arc<CoreMetrics>>,
}

/// Why the engine did not start; nothing of it is left running.
#[derive(Debug)]
pub enum StartError {
    /// No core to run on, or a core that this process may not use.
    Cores(String),
    /// A listener could not be bound.
    Listen(SocketAddr, io::Error),
    /// io_uring is missing, forbidden or limited.
    Ring(io::Error),
    /// A core's timer could not be made.
    Timer(io::Error),
    /// A thread could not be started.
    Thread(io::Error),
}

/// A worker ended by itself.
#[derive(Debug)]
pub struct EngineError;

impl Engine {
    /// Binds every listener on every core, starts the workers, and waits until all of them serve.
    ///
    /// # Errors
    /// [`StartError`], which says what to do; all workers have ended by then.
    pub fn start(settings: EngineSettings, publisher: &Publisher) -> Result<Self, StartError> {
        let cores = choose_cores(&settings.tuning)?;
        let (addresses, doors) = bind_all(&settings.listen, cores.len())?;
        let control = Arc::new(Control::default());
        let admission = Admission::new(&settings.limits);
        let (ready, reports) = mpsc::channel();
        let mut engine = Self {
            control: Arc::clone(&control),
            addresses,
            cores: cores.iter().map(|core| core.id).collect(),
            workers: Vec::with_capacity(cores.len()),
            metrics: Vec::with_capacity(cores.len()),
        };
        for (core, doors) in cores.into_iter().zip(doors) {
            let metrics = Arc::new(CoreMetrics::default());
            engine.metrics.push(Arc::clone(&metrics));
            let bounds = (Arc::clone(&admission), metrics);
            let worker = worker(core, &settings, &control, bounds, publisher, doors, &ready);
            match worker {
                Ok(worker) => engine.workers.push(worker),
                Err(error) => return Err(engine.give_up(StartError::Thread(error))),
            }
        }
        drop(ready);
        for _ in 0..engine.workers.len() {
            match reports.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(engine.give_up(error)),
                Err(_) => {
                    let error = io::Error::other("a worker ended before it served");
                    return Err(engine.give_up(StartError::Thread(error)));
                }
            }
        }
        Ok(engine)
    }

    /// The listeners as bound, with the slot of requests that name no host.
    pub fn addresses(&self) -> &[(SocketAddr, Slot)] {
        &self.addresses
    }

    /// Numbers of the cores that serve.
    pub fn cores(&self) -> &[usize] {
        &self.cores
    }

    /// What all cores have counted so far.
    pub fn totals(&self) -> Totals {
        let cores = self.metrics.iter().map(Arc::as_ref);
        Totals::sum(cores, &Failure::ALL.map(Failure::name))
    }

    /// Tells the workers to stop accepting and to finish what is under way within `limit`.
    pub fn drain(&self, limit: Duration) {
        self.control.drain(limit);
    }

    /// Whether every worker has ended.
    pub fn is_stopped(&self) -> bool {
        self.control.running.load(Ordering::Acquire) == 0
    }

    /// Whether a worker has ended by itself: the process should end too, and be started again.
    pub fn is_broken(&self) -> bool {
        self.control.broken.load(Ordering::Acquire)
    }

    /// Waits until every worker has ended.
    ///
    /// # Errors
    /// A worker ended by itself, or by a panic.
    pub fn join(self) -> Result<(), EngineError> {
        let panicked = self
            .workers
            .into_iter()
            .map(JoinHandle::join)
            .filter(Result::is_err)
            .count();
        let broken = self.control.broken.load(Ordering::Acquire);
        if broken || panicked > 0 {
            Err(EngineError)
        } else {
            Ok(())
        }
    }

    /// Ends the workers that have started.
    fn give_up(self, error: StartError) -> StartError {
        self.drain(Duration::ZERO);
        // What went wrong first is what must be told.
        let _ = self.join();
        error
    }
}

/// Starts one worker's thread.
fn worker(
    core: CoreId,
    settings: &EngineSettings,
    control: &Arc<Control>,
    (admission, metrics): (Arc<Admission>, Arc<CoreMetrics>),
    publisher: &Publisher,
    doors: Vec<Door>,
    ready: &mpsc::Sender<Result<(), StartError>>,
) -> io::Result<JoinHandle<()>> {
    let EngineSettings {
        timeouts,
        limits,
        tuning,
        log,
        ..
    } = settings;
    let (timeouts, limits, tuning) = (*timeouts, *limits, tuning.clone());
    let log = log.as_deref().and_then(Log::core);
    let subscriber = publisher.subscribe();
    let (ready, control) = (ready.clone(), Arc::clone(control));
    control.running.fetch_add(1, Ordering::AcqRel);
    let body = {
        let control = Arc::clone(&control);
        move || {
            let build_shard = || {
                Shard::new(
                    subscriber, admission, metrics, timeouts, limits, &tuning, log,
                )
            };
            worker::run(core, &tuning, &control, doors, build_shard, &ready);
        }
    };
    let worker = thread::Builder::new()
        .name(format!("m2u-core-{}", core.id))
        .spawn(body);
    if worker.is_err() {
        control.running.fetch_sub(1, Ordering::AcqRel);
    }
    worker
}

/// The cores to run on: those asked for, or all that this process may use.
///
/// # Errors
/// [`StartError::Cores`]: there is none, or one that was asked for is not among those.
pub fn choose_cores(tuning: &Tuning) -> Result<Vec<CoreId>, StartError> {
    let usable = core_affinity::get_core_ids().unwrap_or_default();
    if usable.is_empty() {
        return Err(StartError::Cores(
            "the system names no core that m2u may use".to_owned(),
        ));
    }
    if tuning.cores.is_empty() {
        return Ok(usable);
    }
    let find = |wanted: &usize| {
        usable
            .iter()
            .find(|core| core.id == *wanted)
            .copied()
            .ok_or_else(|| {
                let usable: Vec<String> = usable.iter().map(|core| core.id.to_string()).collect();
                StartError::Cores(format!(
                    "core {wanted} is not one that m2u may use; --cores can name {}",
                    usable.join(", ")
                ))
            })
    };
    tuning.cores.iter().map(find).collect()
}

type Bound = (Vec<(SocketAddr, Slot)>, Vec<Vec<Door>>);

/// Binds each listener once a core; answers the addresses, and each core's share.
fn bind_all(listen: &[Listen], cores: usize) -> Result<Bound, StartError> {
    let mut addresses = Vec::with_capacity(listen.len());
    let mut doors: Vec<Vec<Door>> = (0..cores).map(|_| Vec::new()).collect();
    for Listen {
        address,
        slot,
        scope,
        proxy_protocol_from,
    } in listen
    {
        let (bound, sockets) =
            listener::bind(*address, cores).map_err(|error| StartError::Listen(*address, error))?;
        addresses.push((bound, *slot));
        for (core, socket) in doors.iter_mut().zip(sockets) {
            let entrance = Entrance {
                slot: *slot,
                scope: Scope::of(scope.as_deref(), listen),
                proxy_protocol_from: proxy_protocol_from.clone(),
            };
            core.push((socket, entrance));
        }
    }
    Ok((addresses, doors))
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cores(why) => f.write_str(why),
            Self::Thread(error) => write!(f, "can't start a worker: {error}"),
            Self::Listen(address, error) => {
                write!(
                    f,
                    "can't listen on {address}: {error}; {}",
                    listen_remedy(error)
                )
            }
            Self::Ring(error) => {
                write!(f, "io_uring can't be used: {error}; {}", ring_remedy(error))
            }
            Self::Timer(error) => {
                let remedy = timer_remedy(error);
                write!(f, "a core's timer can't be made: {error}; {remedy}")
            }
        }
    }
}

impl std::error::Error for StartError {}

fn listen_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "end the program that holds it, or choose another port",
        io::ErrorKind::AddrNotAvailable => "name an address of this host, such as the VPN's",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
        }
        _ => file_limit::remedy(error).unwrap_or("check `listen`"),
    }
}

fn ring_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            "this kernel has none, or a container's filter hides it: m2u needs Linux 5.6 (6.1 is \
             better), and in Docker a seccomp profile that allows io_uring_setup, io_uring_enter \
             and io_uring_register"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "it is forbidden: set the sysctl kernel.io_uring_disabled to 0, or run the container \
             with a seccomp profile that allows io_uring_setup, io_uring_enter and \
             io_uring_register"
        }
        Some(libc::ENOMEM) => {
            "the limit of locked memory is too low: raise it (ulimit -l, or LimitMEMLOCK= of the \
             service), or lower --ring-entries"
        }
        _ => file_limit::remedy(error)
            .unwrap_or("check that the kernel is Linux 5.6 or newer and that io_uring is allowed"),
    }
}

fn timer_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => "the system has no memory left for it: end what else uses much",
        _ => file_limit::remedy(error).unwrap_or(
            "it is forbidden: run the container with a seccomp profile that allows timerfd_create \
             and timerfd_settime",
        ),
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a worker ended by itself")
    }
}

impl std::error::Error for EngineError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_does_not_exist_is_refused_with_the_ones_that_do() {
        let tuning = Tuning {
            cores: vec![100_000],
            ..Tuning::default()
        };
        let error = choose_cores(&tuning).expect_err("no such core").to_string();
        assert!(
            error.contains("core 100000") && error.contains("--cores can name"),
            "{error}"
        );
    }

    #[test]
    fn every_way_that_io_uring_fails_names_its_remedy() {
        for (code, word) in [
            (libc::ENOSYS, "seccomp"),
            (libc::EPERM, "kernel.io_uring_disabled"),
            (libc::ENOMEM, "LimitMEMLOCK"),
            (libc::EMFILE, "LimitNOFILE"),
        ] {
            let message = StartError::Ring(io::Error::from_raw_os_error(code)).to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn whatever_lacks_a_descriptor_is_told_as_what_it_is_with_the_same_remedy() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for (code, remedy) in [
            (libc::EMFILE, "LimitNOFILE="),
            // Of the whole system: this process' limit has nothing to do with it.
            (libc::ENFILE, "fs.file-max"),
        ] {
            let error = || io::Error::from_raw_os_error(code);
            for (failed, what) in [
                (StartError::Ring(error()), "io_uring"),
                (StartError::Timer(error()), "timer"),
                (StartError::Listen(any, error()), "can't listen on"),
            ] {
                let message = failed.to_string();
                assert!(message.contains(what), "{message}");
                assert!(message.contains(remedy), "{message}");
            }
        }
    }
}
