//! The sockets on which m2u's own names are answered for, served by a thread of their own.
//!
//! A flood of questions may fill that thread, and loses questions then; it never takes a core's
//! turn, and no question waits for the control plane. A TCP connection is one of a bounded number,
//! and ends when it is slow.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener, UdpSocket as StdSocket},
    panic::{self, AssertUnwindSafe},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use arc_swap::ArcSwap;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::{self, Runtime},
    sync::oneshot,
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};

use super::{
    answer::{Outcome, Transport, answer},
    counts::Counts,
    zone::Zone,
};
use crate::{file_limit, limits};

/// Ports that are tried when the kernel chooses one, until it is free for UDP and TCP alike.
const PORTS_TRIED: usize = 16;

/// A running responder. Dropped, it ends and gives its sockets back.
#[derive(Debug)]
pub struct Responder {
    desk: Arc<Desk>,
    addresses: Vec<SocketAddr>,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Why a responder did not start; nothing of it is left running.
#[derive(Debug)]
pub enum StartError {
    /// A socket could not be bound.
    Listen(SocketAddr, io::Error),
    /// Its thread could not be started.
    Thread(io::Error),
}

/// What all sockets share.
#[derive(Debug)]
struct Desk {
    zone: ArcSwap<Zone>,
    counts: Counts,
}

impl Responder {
    /// Binds every address, by UDP and TCP, and answers from `zone` until dropped.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub fn start(listen: &[SocketAddr], zone: Arc<Zone>) -> Result<Self, StartError> {
        let mut addresses = Vec::with_capacity(listen.len());
        let mut sockets = Vec::with_capacity(listen.len());
        for address in listen {
            let bound = bind(*address).map_err(|error| StartError::Listen(*address, error))?;
            let (bound, datagrams, streams) = bound;
            addresses.push(bound);
            sockets.push((datagrams, streams));
        }
        let desk = Arc::new(Desk {
            zone: ArcSwap::new(zone),
            counts: Counts::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let (ready, report) = mpsc::channel();
        let thread = thread::Builder::new().name("m2u-dns".to_owned()).spawn({
            let desk = Arc::clone(&desk);
            move || serve(sockets, &desk, stopped, &ready)
        });
        let responder = Self {
            desk,
            addresses,
            stop: Some(stop),
            thread: Some(thread.map_err(StartError::Thread)?),
        };
        let ended = || Err(io::Error::other("it ended before it served"));
        let started = report.recv().unwrap_or_else(|_| ended());
        started.map(|()| responder).map_err(StartError::Thread)
    }

    /// The sockets as bound.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Makes `zone` what the next question is answered from.
    pub fn publish(&self, zone: &Arc<Zone>) {
        self.desk.zone.store(Arc::clone(zone));
    }

    /// What has been counted so far, as words of the line that SIGUSR1 asks for.
    pub fn counts(&self) -> String {
        self.desk.counts.words()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic, if there was one, has been told where it was.
            let _ = thread.join();
        }
    }
}

/// Binds both sockets of an address, on one port.
fn bind(address: SocketAddr) -> io::Result<(SocketAddr, StdSocket, StdListener)> {
    let mut tries = if address.port() == 0 { PORTS_TRIED } else { 1 };
    loop {
        tries -= 1;
        let datagrams = bind_datagrams(address)?;
        let bound = datagrams.local_addr()?;
        match bind_streams(bound) {
            Ok(streams) => return Ok((bound, datagrams, streams)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn bind_datagrams(address: SocketAddr) -> io::Result<StdSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // A fleet asks in the same second; a smaller queue, which the kernel's limit may force, only
    // makes some of it ask twice.
    let _ = socket.set_recv_buffer_size(limits::DNS_QUEUE_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_streams(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::DNS_CONNECTIONS_MAX as i32)?;
    Ok(socket.into())
}

/// The thread's life; tells `ready` whether it has begun.
fn serve(
    sockets: Vec<(StdSocket, StdListener)>,
    desk: &Arc<Desk>,
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<io::Result<()>>,
) {
    let begin = || -> io::Result<(Runtime, JoinSet<()>)> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let inside = runtime.enter();
        let mut doors = JoinSet::new();
        for (datagrams, streams) in sockets {
            let datagrams = UdpSocket::from_std(datagrams)?;
            let streams = TcpListener::from_std(streams)?;
            doors.spawn(answer_datagrams(datagrams, Arc::clone(desk)));
            doors.spawn(answer_streams(streams, Arc::clone(desk)));
        }
        drop(inside);
        Ok((runtime, doors))
    };
    let begun = begin();
    // Whoever started this thread waits for the report.
    match begun {
        Ok((runtime, _doors)) => {
            let _ = ready.send(Ok(()));
            // An error says that the other end is gone, which is what was waited for.
            let _ = runtime.block_on(stopped);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

impl Desk {
    /// Answers one message and counts it; `wire` is empty if there is nothing to send.
    fn answer(&self, message: &[u8], transport: Transport, wire: &mut Vec<u8>) {
        let zone = self.zone.load();
        // Bytes from the network must not end the thread, whatever the decoder makes of them.
        let judge = AssertUnwindSafe(|| answer(message, &zone, transport, wire));
        match panic::catch_unwind(judge) {
            Ok(outcome) => self.counts.count(outcome),
            Err(_) => {
                self.counts.faults.add();
                wire.clear();
            }
        }
    }
}

/// Answers what comes to one UDP socket, in bursts: the runtime is asked between two of them.
async fn answer_datagrams(socket: UdpSocket, desk: Arc<Desk>) {
    // One byte more than a question may have, so that a longer one shows.
    let mut message = [0; limits::DNS_QUERY_BYTES_MAX + 1];
    let mut wire = Vec::with_capacity(limits::DNS_ANSWER_BYTES_MAX);
    loop {
        if socket.readable().await.is_err() {
            desk.pause().await;
        }
        for _ in 0..limits::DNS_BURST {
            let (length, asker) = match socket.try_recv_from(&mut message) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    desk.pause().await;
                    break;
                }
            };
            desk.answer(&message[..length], Transport::Udp, &mut wire);
            if !wire.is_empty() && socket.try_send_to(&wire, asker).is_err() {
                desk.counts.unsent.add();
            }
        }
        yield_now().await;
    }
}

/// Accepts what comes to one TCP socket, as many as may be open.
async fn answer_streams(listener: TcpListener, desk: Arc<Desk>) {
    let mut connections = JoinSet::new();
    let mut askers = HashMap::new();
    loop {
        let (stream, asker) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, asker)) => (stream, asker.ip()),
                Err(_) => {
                    desk.pause().await;
                    continue;
                }
            },
            Some(ended) = connections.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                askers.remove(&id);
                continue;
            }
        };
        desk.counts.connections.add();
        let of_asker = askers
            .values()
            .filter(|other: &&IpAddr| **other == asker)
            .count();
        if askers.len() >= limits::DNS_CONNECTIONS_MAX
            || of_asker >= limits::DNS_CONNECTIONS_PER_ADDRESS_MAX
        {
            desk.counts.connections_refused.add();
            continue;
        }
        let task = connections.spawn(answer_stream(stream, Arc::clone(&desk)));
        askers.insert(task.id(), asker);
    }
}

/// Answers the questions of one TCP connection in turn (RFC 7766), until it ends or is too slow.
async fn answer_stream(stream: TcpStream, desk: Arc<Desk>) {
    // Each answer leaves in one piece; none must wait for another.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::with_capacity(2 + limits::DNS_QUERY_BYTES_MAX, stream);
    let mut message = Vec::new();
    let mut wire = Vec::new();
    loop {
        let received = timeout(
            limits::DNS_CONNECTION_IDLE,
            receive(&mut stream, &mut message),
        );
        match received.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                // Any other kind says that the asker has gone, as it should.
                if error.kind() == io::ErrorKind::InvalidData {
                    desk.counts.count(Outcome::Malformed);
                }
                return;
            }
            Err(_) => {
                desk.counts.connections_idle.add();
                return;
            }
        }
        desk.answer(&message, Transport::Tcp, &mut wire);
        if wire.is_empty() {
            // Whoever sends what is no question has nothing to say that could be understood.
            return;
        }
        // An answer of TCP has 64 KiB at most: it says so with two bytes.
        let length = u16::try_from(wire.len()).unwrap_or(u16::MAX);
        wire.splice(0..0, length.to_be_bytes());
        let sent = timeout(
            limits::DNS_CONNECTION_IDLE,
            stream.get_mut().write_all(&wire),
        );
        if !matches!(sent.await, Ok(Ok(()))) {
            desk.counts.unsent.add();
            return;
        }
    }
}

/// Receives one message behind its length.
async fn receive(stream: &mut BufReader<TcpStream>, message: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > limits::DNS_QUERY_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    message.resize(length, 0);
    stream.read_exact(message).await?;
    Ok(())
}

impl Desk {
    /// Waits after a receive or an accept that failed, so that a lasting fault costs no core.
    async fn pause(&self) {
        const PAUSE: Duration = limits::ACCEPT_PAUSE_FLOOR;
        self.counts.failed.add();
        sleep(PAUSE).await;
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thread(error) => write!(f, "the names' responder can't start: {error}"),
            Self::Listen(address, error) => {
                let remedy = remedy(error);
                write!(f, "can't answer for names on {address}: {error}; {remedy}")
            }
        }
    }
}

impl std::error::Error for StartError {}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "if another DNS server holds it, leave the names to that one (`m2u dns snippet` prints \
             what it needs); else end the program that does, or choose another address in dns.listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "name an address of this host in dns.listen, such as the VPN's"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
        }
        _ => file_limit::remedy(error).unwrap_or("check dns.listen"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_finds_no_descriptor_is_told_with_the_remedy() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        let message = StartError::Listen(any, error).to_string();
        assert!(message.contains("LimitNOFILE="), "{message}");
    }
}
