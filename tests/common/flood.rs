//! Thousands of connections at once, driven from one thread: they send little, and read only when
//! asked to.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::{device::Device, wait_until};

/// Bytes of an answer that are kept: its first line.
const SEEN_BYTES_MAX: usize = 64;

/// Lets this process, and the gateways that it starts, open as many files as the system allows.
///
/// # Panics
/// If that is not enough for a flood of `connections` with both its ends in this process.
pub fn raise_file_limit(connections: u64) {
    let files = rlimit::Resource::NOFILE;
    let (_, hard) = files.get().unwrap();
    files.set(hard, hard).unwrap();
    let wanted = 2 * connections + 1_024;
    assert!(hard >= wanted, "needs ulimit -Hn {wanted}, has {hard}");
}

/// Connections of devices that mean no good.
pub struct Flood {
    connections: Vec<Connection>,
}

/// One of them.
struct Connection {
    stream: TcpStream,
    seen: Vec<u8>,
    received_bytes: usize,
    end: End,
}

/// How the gateway has ended a connection so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Closed,
    Reset,
}

/// What the gateway has done about a flood.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Connections that are still open.
    pub open: usize,
    /// Connections that had the answer looked for.
    pub answered: usize,
    /// Connections that ended without a byte.
    pub unanswered: usize,
    /// Connections that had something else.
    pub others: usize,
}

impl Flood {
    /// Opens `count` connections, `per_address` from each address from 127.`network`.0.1 on.
    pub fn connect(count: usize, network: u8, per_address: usize, gateway: SocketAddr) -> Self {
        let connect = |number| Connection::connect(number / per_address, network, gateway);
        Self {
            connections: (0..count).map(connect).collect(),
        }
    }

    /// Sends `bytes` on every connection, as much of them as it takes.
    pub fn send(&mut self, bytes: &[u8]) {
        for connection in &mut self.connections {
            // What became of the others is told by `verdict`.
            let _ = connection.stream.write(bytes);
        }
    }

    /// Reads what has come, and tells how many have an answer with this status.
    pub fn verdict(&mut self, status: u16) -> Verdict {
        let line = format!("HTTP/1.1 {status} ");
        let mut verdict = Verdict::default();
        for connection in &mut self.connections {
            connection.look();
            verdict.open += usize::from(connection.end == End::Open);
            match connection.seen.as_slice() {
                [] if connection.end == End::Open => {}
                [] => verdict.unanswered += 1,
                seen if seen.starts_with(line.as_bytes()) => verdict.answered += 1,
                _ => verdict.others += 1,
            }
        }
        verdict
    }

    /// Bytes that all connections have received and read.
    pub fn received_bytes(&self) -> usize {
        let received = self.connections.iter();
        received.map(|connection| connection.received_bytes).sum()
    }

    /// Connections that have been reset.
    pub fn resets(&self) -> usize {
        let ends = self.connections.iter().map(|connection| connection.end);
        ends.filter(|end| *end == End::Reset).count()
    }

    /// Waits until the gateway has ended every connection; tells how.
    pub fn wait_for_end(&mut self, status: u16) -> Verdict {
        wait_until("the flood to be ended", || self.verdict(status).open == 0);
        self.verdict(status)
    }
}

impl Connection {
    fn connect(address: usize, network: u8, gateway: SocketAddr) -> Self {
        let address = u16::try_from(address + 1).expect("a network has no more");
        let [high, low] = address.to_be_bytes();
        let source = Ipv4Addr::new(127, network, high, low);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::new(source.into(), 0).into())
            .unwrap();
        socket.connect(&gateway.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            stream: socket.into(),
            seen: Vec::new(),
            received_bytes: 0,
            end: End::Open,
        }
    }

    fn look(&mut self) {
        let mut buffer = [0; 4_096];
        while self.end == End::Open {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.end = End::Closed,
                Ok(received) => {
                    self.received_bytes += received;
                    let room = SEEN_BYTES_MAX - self.seen.len();
                    self.seen.extend_from_slice(&buffer[..received.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.end = End::Reset,
            }
        }
    }
}

/// A server that accepts, and never reads or writes a byte.
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<SinkShared>,
}

#[derive(Default)]
struct SinkShared {
    held: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

impl Sink {
    pub fn start() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        // What it never reads must not fill the kernel's memory.
        listener.set_recv_buffer_size(4_096).unwrap();
        listener.listen(4_096).unwrap();
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(SinkShared::default());
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if shared.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    shared.held.lock().unwrap().push(stream);
                }
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.held.lock().unwrap().len()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(5));
    }
}

/// A device that behaves, and asks all the time while others do not.
pub struct Bystander {
    answers: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Duration>>,
}

impl Bystander {
    /// Asks from `source` on a new connection each time; every answer must be 200.
    pub fn start(source: &'static str, gateway: SocketAddr) -> Self {
        let (answers, over) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = thread::spawn({
            let (answers, over) = (Arc::clone(&answers), Arc::clone(&over));
            move || {
                let mut slowest = Duration::ZERO;
                while !over.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    let mut device = Device::connect(source, gateway);
                    let answer = device.ask(
                        "POST /in HTTP/1.1\r\nHost: m2u\r\nConnection: close\r\n\
                         Content-Length: 5\r\n\r\nhello",
                    );
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    slowest = slowest.max(begun.elapsed());
                    answers.fetch_add(1, Ordering::SeqCst);
                }
                slowest
            }
        });
        Self {
            answers,
            over,
            thread: Some(thread),
        }
    }

    /// Waits until it has had some more answers.
    pub fn wait_for_more(&self) {
        let before = self.answers.load(Ordering::SeqCst);
        wait_until("the bystander's answers", || {
            let failed = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            assert!(!failed, "the bystander was not served");
            self.answers.load(Ordering::SeqCst) >= before + 10
        });
    }

    /// Stops asking; how many answers it had, and how long it waited for the slowest.
    pub fn finish(mut self) -> (usize, Duration) {
        self.over.store(true, Ordering::SeqCst);
        let slowest = self.thread.take().unwrap().join().unwrap();
        (self.answers.load(Ordering::SeqCst), slowest)
    }
}
