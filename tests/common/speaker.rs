//! Devices that speak without a pause, and an origin that notices a request under a wrong name.
//!
//! A request says where it truly comes from, in a field of its own. Whatever happens meanwhile, it
//! arrives under the name of that very device, or not at all.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

use super::{
    namespace::Namespace,
    pace,
    upstream::Upstream,
    wait_until,
    wire::{self, Message},
};

/// The field that says where a request truly comes from: `ACCOUNT.DEVICE`, and `/` with what else
/// tells a speaker from others of the same device.
const FROM: &str = "X-From";
/// How long a device waits for the gateway; packets that a hub drops are never answered.
const PATIENCE: Duration = Duration::from_millis(700);
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(10);
/// Requests on one connection.
const REQUESTS: usize = 3;

/// What became of all requests, by the device that they truly come from.
#[derive(Default)]
pub struct Ledger {
    tallies: Mutex<HashMap<String, Tally>>,
    wrong: Mutex<Vec<String>>,
}

/// What became of a device's requests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Arrived at the origin under the device's own name.
    pub arrived: usize,
    /// Answered 403 or 503 by the gateway.
    pub refused: usize,
    /// Never answered: nothing got through, or the connection ended.
    pub lost: usize,
}

impl Ledger {
    /// What became of this device's requests so far.
    pub fn tally(&self, who: &str) -> Tally {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.get(who).copied().unwrap_or_default()
    }

    /// All devices together.
    pub fn total(&self) -> Tally {
        let tallies = self.tallies.lock().unwrap();
        tallies.values().fold(Tally::default(), |sum, tally| Tally {
            arrived: sum.arrived + tally.arrived,
            refused: sum.refused + tally.refused,
            lost: sum.lost + tally.lost,
        })
    }

    /// Requests that came under a wrong name, or were answered as none should be.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// Waits until three more of this device's requests have arrived.
    pub fn wait_for_arrival(&self, who: &str) {
        self.wait_for(&format!("requests of {who}"), who, |tally| tally.arrived);
    }

    /// Waits until three more of this device's requests have been refused.
    pub fn wait_for_refusal(&self, who: &str) {
        self.wait_for(&format!("refusals of {who}"), who, |tally| tally.refused);
    }

    /// Waits until three more of this device's requests have come to nothing.
    pub fn wait_for_loss(&self, who: &str) {
        self.wait_for(&format!("losses of {who}"), who, |tally| tally.lost);
    }

    fn wait_for(&self, what: &str, who: &str, count: impl Fn(Tally) -> usize) {
        let before = count(self.tally(who));
        wait_until(what, || {
            let wrong = self.wrong();
            assert!(wrong.is_empty(), "{wrong:?}");
            count(self.tally(who)) >= before + 3
        });
    }

    fn note(&self, who: &str, change: impl FnOnce(&mut Tally)) {
        change(
            self.tallies
                .lock()
                .unwrap()
                .entry(who.to_owned())
                .or_default(),
        );
    }

    fn accuse(&self, what: String) {
        self.wrong.lock().unwrap().push(what);
    }

    /// An origin in `namespace` that enters every request here.
    pub fn origin(self: &Arc<Self>, namespace: &Namespace) -> Upstream {
        let ledger = Arc::clone(self);
        namespace.inside(move || {
            Upstream::start(move |conversation| {
                while let Some(request) = conversation.request()? {
                    ledger.enter(&request);
                    conversation.answer("received\n")?;
                }
                Ok(())
            })
        })
    }

    fn enter(&self, request: &Message) {
        let who = request.field(FROM).unwrap_or_default();
        let named = |name| request.all(name).join(" and ");
        let name = format!("{}.{}", named("X_Talk2M_Account"), named("X_Talk2M_Device"));
        let serial = format!("{}-serial", named("X_Talk2M_Device"));
        let device = who.split('/').next().unwrap_or_default();
        if name != device || named("X_Talk2M_SerialNumber") != serial {
            self.accuse(format!("{who} speaks as {name}: {}", request.head));
        }
        self.note(who, |tally| tally.arrived += 1);
    }
}

/// A device that speaks until it is dropped.
pub struct Speaker {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Speaker {
    /// Speaks from `namespace`, which is that of the device `who` (`ACCOUNT.DEVICE`, perhaps with a
    /// `/PART` of it), under the address `source` or whatever the system chooses.
    pub fn start(
        namespace: &Namespace,
        who: &str,
        source: Option<&str>,
        gateway: &str,
        ledger: &Arc<Ledger>,
    ) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let script = Script {
            who: who.to_owned(),
            source: source.map(|text| text.parse().unwrap()),
            gateway: gateway.parse().unwrap(),
            ledger: Arc::clone(ledger),
            ended: Arc::clone(&ended),
        };
        let home = namespace.file();
        let thread = thread::spawn(move || script.run(home));
        Self {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "a speaker has failed");
        }
    }
}

struct Script {
    who: String,
    source: Option<IpAddr>,
    gateway: SocketAddr,
    ledger: Arc<Ledger>,
    ended: Arc<AtomicBool>,
}

impl Script {
    fn run(&self, home: File) {
        setns(home, CloneFlags::CLONE_NEWNET).unwrap();
        while !self.ended.load(Ordering::SeqCst) {
            if self.converse().is_err() {
                self.ledger.note(&self.who, |tally| tally.lost += 1);
                pace(PAUSE);
            }
            pace(PAUSE);
        }
    }

    /// Some requests on one connection.
    fn converse(&self) -> io::Result<()> {
        let mut stream = BufReader::new(self.connect()?);
        for number in 1..=REQUESTS {
            let close = if number == REQUESTS {
                "Connection: close\r\n"
            } else {
                ""
            };
            let who = &self.who;
            let request =
                format!("GET /{number} HTTP/1.1\r\nHost: m2u\r\n{FROM}: {who}\r\n{close}\r\n");
            stream.get_mut().write_all(request.as_bytes())?;
            let head = wire::read_head(&mut stream)?;
            let mut answer = head.ok_or(io::ErrorKind::UnexpectedEof)?;
            wire::read_response_body(&mut stream, &mut answer, false)?;
            match answer.status() {
                200 => {}
                403 | 503 => self.ledger.note(who, |tally| tally.refused += 1),
                _ => self
                    .ledger
                    .accuse(format!("{who} is answered {}", answer.head)),
            }
            pace(PAUSE);
        }
        stream.get_ref().shutdown(Shutdown::Both)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.gateway), Type::STREAM, None)?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&self.gateway.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }
}
