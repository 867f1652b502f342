//! One core: its pinned thread, its ring, its accept loops and its tick.
//!
//! A panic in one connection ends that connection; the worker serves the others on.

use std::{
    cell::Cell,
    future::Future,
    io,
    net::TcpListener as StdListener,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::Sender,
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use io_uring::IoUring;
use monoio::{IoUringDriver, Runtime, RuntimeBuilder};
use pin_project_lite::pin_project;

use super::{
    StartError,
    net::{
        deadline::TICK,
        listener::{Acceptor, AcceptorCloser},
        tick::Ticker,
    },
    proxy::connection::{self, Entrance, Visit, build_in_place},
    shard::{Counted, Shard},
};
use crate::{
    config::settings::Tuning,
    observe::{metrics::Ending, say::say},
};

/// How long connections that were told to end may take to notice.
const CLOSING: Duration = Duration::from_secs(1);

/// What all workers and the one who started them share.
#[derive(Debug, Default)]
pub struct Control {
    /// Stop accepting, and finish what is under way.
    draining: AtomicBool,
    /// Milliseconds that what is under way may still take.
    drain_limit_ms: AtomicU64,
    /// Workers that are running.
    pub running: AtomicUsize,
    /// A worker ended without having been told to.
    pub broken: AtomicBool,
}

impl Control {
    /// Tells every worker to stop accepting and to finish within `limit`.
    pub fn drain(&self, limit: Duration) {
        let limit = limit.as_millis().try_into().unwrap_or(u64::MAX);
        self.drain_limit_ms.store(limit, Ordering::Relaxed);
        self.draining.store(true, Ordering::Release);
    }
}

/// A listening socket of one core, and what holds for its connections.
pub type Door = (StdListener, Entrance);

/// Counts a worker as running until it ends, however it ends.
struct Running<'a>(&'a Control);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.0.draining.load(Ordering::Acquire) {
            self.0.broken.store(true, Ordering::Release);
        }
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs one worker on the current thread until it is drained.
///
/// `build_shard` is called on this thread. `ready` hears once whether the worker serves.
pub fn run(
    core: core_affinity::CoreId,
    tuning: &Tuning,
    control: &Control,
    doors: Vec<Door>,
    build_shard: impl FnOnce() -> Rc<Shard>,
    ready: &Sender<Result<(), StartError>>,
) {
    let _running = Running(control);
    // A kernel or a filter that forbids it costs speed, not correctness.
    let pinned = core_affinity::set_for_current(core);
    let mut runtime = match build_runtime(tuning) {
        Ok(runtime) => runtime,
        Err(error) => return report(ready, Err(StartError::Ring(error))),
    };
    if !pinned {
        say(format_args!(
            "warning: core {} can't be pinned; its worker runs anywhere",
            core.id
        ));
    }
    runtime.block_on(async {
        let shard = build_shard();
        let mut closers = Vec::with_capacity(doors.len());
        for (listener, entrance) in doors {
            match open(&shard, listener, entrance) {
                Ok(closer) => closers.push(closer),
                // All that it can fail in is to be taken into the ring.
                Err(error) => return report(ready, Err(StartError::Ring(error))),
            }
        }
        let ticker = match Ticker::every(TICK) {
            Ok(ticker) => ticker,
            Err(error) => return report(ready, Err(StartError::Timer(error))),
        };
        report(ready, Ok(()));
        tick_until_drained(&shard, control, &closers, &ticker).await;
        shard.close_log();
    });
}

fn report(ready: &Sender<Result<(), StartError>>, outcome: Result<(), StartError>) {
    // Whoever started the workers gave up on them: nobody is left to be told.
    let _ = ready.send(outcome);
}

/// Starts accepting on one listener.
fn open(
    shard: &Rc<Shard>,
    listener: StdListener,
    entrance: Entrance,
) -> io::Result<AcceptorCloser> {
    let (acceptor, closer) = Acceptor::new(listener)?;
    let shard = Rc::clone(shard);
    let entrance = Rc::new(entrance);
    monoio::spawn(async move {
        let accept = |socket, peer| {
            let counted = shard.count_connection();
            let visit = Visit::begin(&shard, &entrance, socket, peer);
            let awake = build_in_place(|| visit.run());
            monoio::spawn(Contained {
                connection: connection::serve(awake, Visit::run),
                counted: Some(counted),
            });
        };
        let warned = Cell::new(None::<Instant>);
        let failed = |error: &io::Error| {
            shard.metrics.accept_failed.add();
            // Once a second at most: running out of descriptors must not fill a disk as well.
            if warned
                .get()
                .is_none_or(|at| at.elapsed() > Duration::from_secs(1))
            {
                warned.set(Some(Instant::now()));
                say(format_args!("warning: can't accept connections: {error}"));
            }
        };
        acceptor.run(accept, failed).await;
    });
    Ok(closer)
}

pin_project! {
    /// The task of a connection; a panic in it ends it alone.
    ///
    /// Not an `async` block: what that is given it keeps room for twice, and this is most of what
    /// an idle connection costs.
    struct Contained<C> {
        #[pin]
        connection: C,
        // Until it has ended.
        counted: Option<Counted>,
    }
}

impl<C: Future<Output = Ending>> Future for Contained<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let step = catch_unwind(AssertUnwindSafe(|| this.connection.poll(context)));
        let Ok(step) = step else {
            say(format_args!(
                "error: a connection was ended by a fault in m2u; the others go on"
            ));
            return Poll::Ready(());
        };
        step.map(|ending| {
            if let Some(counted) = this.counted.take() {
                counted.end(ending);
            }
        })
    }
}

/// Sweeps every tick; once told to drain, ends when nothing is under way or the limit has passed.
async fn tick_until_drained(
    shard: &Rc<Shard>,
    control: &Control,
    closers: &[AcceptorCloser],
    ticker: &Ticker,
) {
    let mut limit = None;
    loop {
        ticker.tick().await;
        shard.sweep();
        closers.iter().for_each(AcceptorCloser::tick);
        if !control.draining.load(Ordering::Acquire) {
            continue;
        }
        let limit = *limit.get_or_insert_with(|| {
            closers.iter().for_each(AcceptorCloser::close);
            shard.begin_drain();
            let limit = control.drain_limit_ms.load(Ordering::Relaxed);
            Instant::now().checked_add(Duration::from_millis(limit))
        });
        let now = Instant::now();
        // A connection that still waits to be handed over is not counted yet.
        if shard.connections() == 0 && closers.iter().all(AcceptorCloser::has_ended) {
            return;
        }
        if limit.is_some_and(|limit| now >= limit) {
            shard.deadlines.close_all();
            if limit.is_some_and(|limit| now >= limit + CLOSING) {
                return;
            }
        }
    }
}

/// Builds the core's ring with the best flags that this kernel knows.
///
/// # Errors
/// io_uring is missing, forbidden or limited; [`StartError`] says what to do.
pub fn build_runtime(tuning: &Tuning) -> io::Result<Runtime<IoUringDriver>> {
    // Measured for a relay of small requests: 13.3 µs with the first two, 16-20 µs with none.
    type Flags = fn(&mut io_uring::Builder);
    let defer: Flags = |ring| {
        ring.setup_single_issuer().setup_defer_taskrun();
    };
    let cooperate: Flags = |ring| {
        ring.setup_coop_taskrun();
    };
    let choices: [Option<Flags>; 3] = [
        tuning.defer_taskrun.then_some(defer),
        Some(cooperate),
        Some(|_| {}),
    ];
    let mut refused = io::Error::from(io::ErrorKind::InvalidInput);
    for flags in choices.into_iter().flatten() {
        let mut ring = IoUring::builder();
        flags(&mut ring);
        let builder = RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(ring)
            .with_entries(tuning.ring_entries);
        match builder.build() {
            // Flags that this kernel is too old for.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            outcome => return outcome,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{Read, Write},
        net::{IpAddr, SocketAddr, TcpStream as StdStream},
        pin::pin,
        sync::Arc,
    };

    use monoio::net::TcpStream;

    use super::*;
    use crate::{
        config::settings::{Limits, OnFailure, Scheme, ServerLimits, Slot, Timeouts},
        engine::{admission::Admission, net::listener},
        limits,
        observe::metrics::CoreMetrics,
        snapshot::{
            Snapshot,
            identity::IdentityTable,
            publish::Publisher,
            route::{AccountId, PoolId, Route, RouteTable, Stamp, Upstream},
            scope::Scope,
        },
    };

    fn idle_shard(tuning: &Tuning) -> Rc<Shard> {
        shard_of(tuning, IdentityTable::default(), RouteTable::default())
    }

    /// A shard that knows one device, at 127.0.0.1, and its server.
    fn shard_with_server(tuning: &Tuning, server: SocketAddr) -> Rc<Shard> {
        let mut identities = IdentityTable::default();
        let network = IpAddr::from([127, 0, 0, 1]).into();
        identities
            .insert(network, AccountId(0), "press-07", "1")
            .expect("the only one");
        let upstream = Upstream {
            pool: Arc::new(PoolId(0)),
            scheme: Scheme::Http,
            host: "server".into(),
            port: server.port(),
            addresses: [server].into(),
            unresolved: None,
            tls: None,
        };
        let route = Route {
            account: AccountId(0),
            account_ref: "acme".into(),
            slot: Slot::FIRST,
            upstream: Arc::new(upstream),
            host_field: (*b"Host: server\r\n").into(),
            base_path: [].into(),
            stamp: Stamp::Concealed,
            hyphen_aliases: false,
            forwarded: false,
            authorization: None,
            on_failure: OnFailure::Respond,
            timeouts: Timeouts::default(),
            limits: ServerLimits::default(),
        };
        shard_of(tuning, identities, RouteTable::from_iter([route]))
    }

    fn shard_of(tuning: &Tuning, identities: IdentityTable, routes: RouteTable) -> Rc<Shard> {
        let publisher = Publisher::new(Snapshot {
            identities: identities.into(),
            routes: Arc::new(routes),
            domain: "".into(),
            // Where the servers are, of which no device has an address.
            allow_networks: [IpAddr::from([127, 0, 0, 2]).into()].into(),
        });
        let limits = Limits::default();
        let admission = Admission::new(&limits);
        let subscriber = publisher.subscribe();
        Shard::new(
            subscriber,
            admission,
            Arc::new(CoreMetrics::default()),
            Timeouts::default(),
            limits,
            tuning,
            None,
        )
    }

    #[test]
    fn a_drain_waits_for_connections_that_nobody_has_been_handed_yet() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (address, mut sockets) = listener::bind(any, 1).expect("loopback");
        let _device = StdStream::connect(address).expect("a connection");
        let control = Control::default();
        control.drain(Duration::from_secs(60));
        let tuning = Tuning::default();
        let handed_over = Rc::new(Cell::new(0));
        let mut runtime = build_runtime(&tuning).expect("a ring");
        runtime.block_on(async {
            let shard = idle_shard(&tuning);
            let (acceptor, closer) = Acceptor::new(sockets.remove(0)).expect("a listener");
            let count = Rc::clone(&handed_over);
            monoio::spawn(async move {
                // As after an accept that failed for want of descriptors.
                acceptor.pause(5).await;
                let accept = |_, _| count.set(count.get() + 1);
                acceptor.run(accept, |error| panic!("{error}")).await;
            });
            let ticker = Ticker::every(TICK).expect("a descriptor");
            tick_until_drained(&shard, &control, &[closer], &ticker).await;
        });
        assert_eq!(handed_over.get(), 1);
    }

    /// Lets a connection of `shard` wait for longer than it may, and `first` come right then; answers how it
    /// ended, and what the device was sent.
    fn speak_as_the_wait_ends(
        shard: impl FnOnce(&Tuning) -> Rc<Shard>,
        first: &[u8],
    ) -> (Ending, Vec<u8>) {
        let listener = StdListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("an address");
        let mut device = StdStream::connect(address).expect("a connection");
        let (near, peer) = listener.accept().expect("a connection");
        let tuning = Tuning::default();
        let mut runtime = build_runtime(&tuning).expect("a ring");
        let ending = runtime.block_on(async {
            let shard = shard(&tuning);
            let entrance = Rc::new(Entrance {
                slot: Slot::FIRST,
                scope: Scope::NONE,
                proxy_protocol_from: Vec::new(),
            });
            let socket = TcpStream::from_std(near).expect("a socket");
            let visit = Visit::begin(&shard, &entrance, socket, peer);
            let mut serve = pin!(connection::serve(
                build_in_place(|| visit.run()),
                Visit::run
            ));
            poll_fn(|context| {
                assert!(serve.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            let due = shard.deadlines.due_in(Timeouts::default().keepalive);
            let mut at = Instant::now();
            while !shard.deadlines.is_past(due) {
                at += TICK;
                shard.deadlines.sweep_at(at);
            }
            device.write_all(first).expect("a peer");
            serve.await
        });
        let mut answer = Vec::new();
        device.read_to_end(&mut answer).expect("an orderly end");
        (ending, answer)
    }

    #[test]
    fn who_speaks_as_the_wait_ends_is_not_told_to_have_been_slow() {
        let head = b"POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 5\r\n\r\n";
        let (ending, answer) = speak_as_the_wait_ends(idle_shard, &head[..20]);
        assert_eq!((ending, &*answer), (Ending::Idle, &b""[..]));
        // All of it has come: it is answered, and be it with a refusal.
        let request = b"GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
        let (ending, answer) = speak_as_the_wait_ends(idle_shard, request);
        assert_eq!(ending, Ending::Failed);
        assert!(
            answer.starts_with(b"HTTP/1.1 403 "),
            "{}",
            answer.escape_ascii()
        );
    }

    #[test]
    fn who_sends_half_a_body_as_the_wait_ends_is_not_told_to_have_been_slow() {
        let server = StdListener::bind("127.0.0.2:0").expect("loopback");
        let address = server.local_addr().expect("an address");
        // More than goes with the head: the rest is received as a body of its own.
        let head = b"POST / HTTP/1.1\r\nHost: m2u\r\nContent-Length: 200000\r\n\r\n";
        let half = [&head[..], &[b'x'; 100_000]].concat();
        let shard = |tuning: &_| shard_with_server(tuning, address);
        let (ending, answer) = speak_as_the_wait_ends(shard, &half);
        assert_eq!(
            (ending, &*answer),
            (Ending::Failed, &b""[..]),
            "{}",
            answer.escape_ascii()
        );
    }

    #[test]
    fn the_task_of_a_connection_is_small_and_what_it_needs_awake_is_bounded() {
        fn size_of_output<A, C>(_: impl Fn(A) -> C) -> usize {
            size_of::<C>()
        }
        let awake = size_of_output(Visit::run);
        let serve = |visit: Visit| Contained {
            connection: connection::serve(build_in_place(|| visit.run()), Visit::run),
            counted: None,
        };
        let asleep = size_of_output(serve);
        println!("{asleep} bytes, {awake} bytes more while awake");
        assert!(asleep <= limits::CONNECTION_TASK_BYTES_MAX, "{asleep}");
        assert!(awake <= limits::CONNECTION_AWAKE_BYTES_MAX, "{awake}");
    }
}
