//! One connection as the proxy sees it: a reader and a writer of bytes, plain or TLS.
//!
//! Buffers are lent to the ring and come back with the result; a future from here is never dropped
//! before it completes. Deadlines are given with each operation.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    ops::Range,
    os::fd::{AsRawFd, IntoRawFd},
    rc::Rc,
    time::Duration,
};

use monoio::{
    buf::{IoBuf, IoBufMut},
    io::{
        AsyncReadRent, AsyncWriteRent, CancelableAsyncReadRent, OwnedReadHalf, OwnedWriteHalf,
        Splitable,
    },
    net::{TcpStream, UnixStream},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    deadline::{Deadlines, Due, Watch},
    standby::StandbyReader,
    sys::{self, Side},
    tls::{TlsReader, TlsWriter},
};
use crate::limits;

/// Why bytes did not move.
#[derive(Debug)]
pub enum StreamError {
    /// The deadline passed.
    TimedOut,
    /// The kernel said no: reset, refused, unreachable.
    Io(io::Error),
    /// TLS failed; the certificate or the peer's alert is inside.
    Tls(rustls::Error),
    /// A TLS peer closed the connection without saying that its data was complete.
    Truncated,
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustls::Error> for StreamError {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

/// The result of a lent buffer: what happened, and the buffer back.
pub type Lent<T> = (Result<T, StreamError>, Vec<u8>);

/// Both halves of a connection to a server.
#[derive(Debug)]
pub struct Stream {
    /// The socket's deadlines. First, so that the watch ends before the socket closes.
    pub watch: Rc<Watch>,
    /// Bytes that come in.
    pub reader: Reader,
    /// Bytes that go out.
    pub writer: Writer,
}

/// The incoming half.
#[derive(Debug)]
pub enum Reader {
    /// Plain TCP.
    Plain(StandbyReader),
    /// TLS over TCP.
    Tls(TlsReader),
}

/// The outgoing half.
#[derive(Debug)]
pub enum Writer {
    /// Plain TCP.
    Plain(SocketWriter),
    /// TLS over TCP.
    Tls(TlsWriter),
}

impl Stream {
    /// Takes over a connected socket, plain so far.
    pub fn plain(socket: TcpStream, deadlines: &Rc<Deadlines>) -> Self {
        let (reader, writer, watch) = split_standby(socket, deadlines);
        Self {
            watch,
            reader: Reader::Plain(reader),
            writer: Writer::Plain(writer),
        }
    }

    /// Ends the connection now; without it the kernel would hear of it only when the core wakes.
    pub fn close(self) {
        if let Reader::Tls(reader) = &self.reader {
            reader.say_goodbye();
        }
        self.watch.shutdown(Side::Both);
    }

    /// Whether nothing has arrived on this parked connection, as far as the ring has told.
    pub fn is_quiet(&mut self) -> bool {
        match &mut self.reader {
            Reader::Plain(reader) => reader.is_quiet(),
            Reader::Tls(reader) => reader.is_quiet(),
        }
    }
}

/// Opens a TCP connection to `address`.
///
/// # Errors
/// `TimedOut` at `due`, else what the kernel said.
pub async fn connect(
    address: SocketAddr,
    deadlines: &Rc<Deadlines>,
    due: Due,
) -> Result<TcpStream, StreamError> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from_std(socket.into())?;
    // A connect of monoio's own could not be ended at its deadline; a shut-down socket becomes
    // writable, and says why.
    let watch = deadlines.watch(socket.as_raw_fd());
    watch.set_write(due);
    let outcome = socket
        .writable(false)
        .await
        .and_then(|()| sys::connected(socket.as_raw_fd()));
    if watch.write_expired() {
        return Err(StreamError::TimedOut);
    }
    drop(watch);
    outcome?;
    Ok(socket)
}

/// Splits a connected socket into its halves and puts it under watch.
pub fn split(
    socket: TcpStream,
    deadlines: &Rc<Deadlines>,
) -> (SocketReader, SocketWriter, Rc<Watch>) {
    let watch = deadlines.watch(socket.as_raw_fd());
    split_watched(socket, watch)
}

fn split_watched(socket: TcpStream, watch: Watch) -> (SocketReader, SocketWriter, Rc<Watch>) {
    let watch = Rc::new(watch);
    let (read, write) = socket.into_split();
    let reader = SocketReader {
        watch: Rc::clone(&watch),
        half: read,
    };
    let writer = SocketWriter {
        watch: Rc::clone(&watch),
        half: write,
    };
    (reader, writer, watch)
}

/// Closes a connection on which nothing is under way. Left to the runtime it would cost two
/// operations of the ring, and a call that fails.
///
/// # Panics
/// If somebody else has a share of the watch, or the halves are not of one socket.
pub fn close(reader: SocketReader, writer: SocketWriter, watch: Rc<Watch>) {
    drop(sys::own(reunite(reader, writer, watch).1.into_raw_fd()));
}

/// Both halves of a socket in one, and their watch, which has no other holder: it must be gone
/// before the descriptor is.
fn reunite(reader: SocketReader, writer: SocketWriter, watch: Rc<Watch>) -> (Watch, TcpStream) {
    drop((reader.watch, writer.watch));
    let watch = Rc::into_inner(watch).expect("reader and writer had the other shares");
    let socket = reader.half.reunite(writer.half);
    (watch, socket.expect("halves of one socket"))
}

/// A connected socket under watch on which nothing is received or sent, as small as it gets.
#[derive(Debug)]
pub struct Resting {
    // Before the socket, so that it ends before that closes.
    watch: Watch,
    // For its readiness alone: a `TcpStream` has room for two addresses that nobody asks it for.
    socket: UnixStream,
}

impl Resting {
    /// Makes one of both halves of a socket, and of their watch, of which nobody else has a share.
    ///
    /// # Panics
    /// If they are not of one socket, or the watch is shared.
    pub fn join(reader: SocketReader, writer: SocketWriter, watch: Rc<Watch>) -> Self {
        let (watch, socket) = reunite(reader, writer, watch);
        let socket = sys::own(socket.into_raw_fd());
        Self {
            watch,
            socket: UnixStream::from_std(socket.into()).expect("the ring registers no sockets"),
        }
    }

    /// Waits, without a buffer, until a receive would bring something: bytes, an end, or an error.
    /// That receive also says why it failed, if it did.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> {
        self.socket.readable(false)
    }

    /// Splits it again.
    pub fn split(self) -> (SocketReader, SocketWriter, Rc<Watch>) {
        let socket = sys::own(self.socket.into_raw_fd());
        let socket = TcpStream::from_std(socket.into()).expect("the ring registers no sockets");
        split_watched(socket, self.watch)
    }
}

/// A share of a connected socket under watch, to wait for it beside its halves. It must be gone when
/// they become one again.
#[derive(Debug)]
pub struct Share {
    // Before the socket, so that it ends before that closes.
    watch: Rc<Watch>,
    socket: OwnedReadHalf<TcpStream>,
}

impl Share {
    /// One more share of the socket of `half`.
    pub fn of_reader(watch: &Rc<Watch>, half: &OwnedReadHalf<TcpStream>) -> Self {
        Self {
            watch: Rc::clone(watch),
            socket: OwnedReadHalf(Rc::clone(&half.0)),
        }
    }

    /// The socket's deadlines.
    pub fn watch(&self) -> &Rc<Watch> {
        &self.watch
    }

    /// Waits until a receive would bring something: bytes, an end, or an error.
    ///
    /// # Errors
    /// What the ring said; the socket itself is not asked.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> {
        sys::socket(&self.socket).readable(false)
    }

    /// Waits until a send would get something out, or an error.
    ///
    /// # Errors
    /// Likewise.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> {
        sys::socket(&self.socket).writable(false)
    }
}

impl Clone for Share {
    fn clone(&self) -> Self {
        Self::of_reader(&self.watch, &self.socket)
    }
}

/// Like [`split`], for a connection that may idle in a pool.
pub fn split_standby(
    socket: TcpStream,
    deadlines: &Rc<Deadlines>,
) -> (StandbyReader, SocketWriter, Rc<Watch>) {
    let (reader, writer, watch) = split(socket, deadlines);
    let reader = StandbyReader::new(reader.watch, reader.half);
    (reader, writer, watch)
}

/// How a connection carries what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// As it is.
    Plain,
    /// In records of TLS.
    Tls,
}

impl Reader {
    /// How what comes in is carried.
    pub fn wire(&self) -> Wire {
        match self {
            Self::Plain(_) => Wire::Plain,
            Self::Tls(_) => Wire::Tls,
        }
    }

    /// Lets the connection idle: gives back what only a busy one needs, and from the ring's next
    /// turn on notices whatever comes.
    pub fn park(&mut self) {
        match self {
            Self::Plain(reader) => reader.post(|mut spare| {
                if spare.capacity() != limits::PARKED_BYTES {
                    spare = Vec::with_capacity(limits::PARKED_BYTES);
                }
                spare
            }),
            Self::Tls(reader) => reader.park(),
        }
    }

    /// Whether more bytes have come than were received, as far as that can be told without waiting.
    pub fn has_more(&self, watch: &Watch) -> bool {
        match self {
            Self::Plain(_) => watch.has_bytes(),
            Self::Tls(reader) => reader.has_more(),
        }
    }

    /// A share of the socket, where what comes in is received as it is.
    pub fn plain_share(&self) -> Option<Share> {
        match self {
            Self::Plain(reader) => Some(reader.share()),
            Self::Tls(_) => None,
        }
    }

    /// Receives into the free room behind `buffer`'s bytes, at most `room` of it.
    ///
    /// 0 is the end of the stream. The buffer must have room.
    ///
    /// # Errors
    /// `StreamError`; the buffer's bytes stay as they were.
    pub async fn read(&mut self, buffer: Vec<u8>, room: usize, due: Due) -> Lent<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer, room, due).await,
            Self::Tls(reader) => reader.read(buffer, room, due).await,
        }
    }
}

impl Writer {
    /// How what goes out is carried.
    pub fn wire(&self) -> Wire {
        match self {
            Self::Plain(_) => Wire::Plain,
            Self::Tls(_) => Wire::Tls,
        }
    }

    /// A share of the socket, where what is sent goes out as it is.
    pub fn plain_share(&self) -> Option<Share> {
        match self {
            Self::Plain(writer) => Some(writer.share()),
            Self::Tls(_) => None,
        }
    }

    /// Sends all of `buffer` from `begin` on; the peer may take any time over it, as long as it
    /// never takes nothing for longer than `patience`.
    ///
    /// # Errors
    /// [`WriteError`], which says whether any byte had left.
    pub async fn write_all(
        &mut self,
        buffer: Vec<u8>,
        begin: usize,
        patience: Duration,
    ) -> (Result<(), WriteError>, Vec<u8>) {
        match self {
            Self::Plain(writer) => writer.write_all(buffer, begin, patience).await,
            Self::Tls(writer) => writer.write_all(buffer, begin, patience).await,
        }
    }
}

/// A send that failed.
#[derive(Debug)]
pub struct WriteError {
    /// Why.
    pub error: StreamError,
    /// Whether the kernel had taken any byte of this buffer: if not, nothing was delivered.
    pub began: bool,
}

/// The incoming half of a socket.
#[derive(Debug)]
pub struct SocketReader {
    // Before the half, so that the watch ends before the socket closes.
    watch: Rc<Watch>,
    half: OwnedReadHalf<TcpStream>,
}

impl SocketReader {
    /// A share of the socket.
    pub fn share(&self) -> Share {
        Share::of_reader(&self.watch, &self.half)
    }

    /// See [`Watch::acknowledge`].
    pub fn acknowledge(&self) {
        self.watch.acknowledge();
    }

    /// See [`Reader::read`].
    pub async fn read(&mut self, buffer: Vec<u8>, room: usize, due: Due) -> Lent<usize> {
        self.watch.set_read(due);
        let result = self.receive(buffer, room).await;
        self.watch.clear_read();
        result
    }

    /// Like `read`, while nothing is under way: a draining core may end the wait.
    pub async fn read_idle(&mut self, buffer: Vec<u8>, room: usize, due: Due) -> Lent<usize> {
        self.watch.set_idle(due);
        let result = self.receive(buffer, room).await;
        self.watch.clear_read();
        result
    }

    /// Likewise, into an empty buffer, for the first bytes of a next request. `None`: they have not
    /// come for a while; the deadline stands, and the wait may go on without a buffer.
    pub async fn read_first(
        &mut self,
        buffer: Vec<u8>,
        room: usize,
        due: Due,
    ) -> Lent<Option<usize>> {
        let recall = self.watch.set_idle_until_recalled(due);
        let end = room.min(buffer.capacity());
        let receive = self.half.cancelable_read(buffer.slice_mut(..end), recall);
        let (result, slice) = receive.await;
        let result = match result {
            // Interrupted where a thread of the kernel waited for it.
            Err(error)
                if error.raw_os_error() == Some(libc::ECANCELED)
                    || error.kind() == io::ErrorKind::Interrupted =>
            {
                Ok(None)
            }
            result => {
                let result = self.judge(result).map(Some);
                self.watch.clear_read();
                result
            }
        };
        (result, slice.into_inner())
    }

    async fn receive(&mut self, buffer: Vec<u8>, room: usize) -> Lent<usize> {
        let begin = buffer.len();
        let end = begin + room.min(buffer.capacity() - begin);
        debug_assert!(end > begin, "a receive needs room");
        let (result, slice) = self.half.read(buffer.slice_mut(begin..end)).await;
        (self.judge(result), slice.into_inner())
    }

    /// Says of a receive that brought nothing whether its deadline did that.
    fn judge(&self, result: io::Result<usize>) -> Result<usize, StreamError> {
        match result {
            Ok(0) if self.watch.read_expired() => Err(StreamError::TimedOut),
            Ok(received) => Ok(received),
            Err(_) if self.watch.read_expired() => Err(StreamError::TimedOut),
            Err(error) => Err(error.into()),
        }
    }
}

/// The outgoing half of a socket.
#[derive(Debug)]
pub struct SocketWriter {
    watch: Rc<Watch>,
    half: OwnedWriteHalf<TcpStream>,
}

impl SocketWriter {
    /// A share of the socket.
    pub fn share(&self) -> Share {
        Share {
            watch: Rc::clone(&self.watch),
            socket: OwnedReadHalf(Rc::clone(&self.half.0)),
        }
    }

    /// See [`Writer::write_all`].
    pub async fn write_all(
        &mut self,
        buffer: Vec<u8>,
        begin: usize,
        patience: Duration,
    ) -> (Result<(), WriteError>, Vec<u8>) {
        let end = buffer.len();
        self.write_part(buffer, begin..end, patience).await
    }

    /// Likewise, of a part of `buffer`.
    pub async fn write_part(
        &mut self,
        buffer: Vec<u8>,
        part: Range<usize>,
        patience: Duration,
    ) -> (Result<(), WriteError>, Vec<u8>) {
        let Range { start: begin, end } = part;
        let mut sent = begin;
        let mut buffer = buffer;
        let result = loop {
            if sent == end {
                break Ok(());
            }
            self.watch
                .set_write(self.watch.deadlines().due_in(patience));
            let (result, slice) = self.half.write(buffer.slice(sent..end)).await;
            buffer = slice.into_inner();
            let error = match result {
                Ok(taken) if taken > 0 => {
                    sent += taken;
                    continue;
                }
                _ if self.watch.write_expired() => StreamError::TimedOut,
                Ok(_) => StreamError::Io(io::ErrorKind::WriteZero.into()),
                Err(error) => StreamError::Io(error),
            };
            break Err(WriteError {
                error,
                began: sent > begin,
            });
        };
        self.watch.set_write(Due::NEVER);
        (result, buffer)
    }

    /// Says to the peer that nothing more will come.
    pub fn finish(&self) {
        self.watch.shutdown(Side::Write);
    }

    /// Waits until the peer's system has acknowledged all that was sent before the end; not the end
    /// itself, of which there must have been one. A peer that takes next to nothing for longer than `patience`,
    /// or longer than `total` over all of it, is reset: answers whether that was spared. Looks at every
    /// sweep as long as the peer takes something, then twice a second, as far as others that wait leave room
    /// for that; ends as well when a look finds `is_abandoned`.
    pub async fn see_delivered(
        &self,
        patience: Duration,
        total: Duration,
        is_abandoned: impl Fn() -> bool,
    ) -> bool {
        let deadlines = self.watch.deadlines();
        let end = deadlines.due_in(total);
        let mut owed = usize::MAX;
        let mut due = end;
        let mut idle_looks = 0;
        while !is_abandoned() {
            // The end counts as one byte.
            let still_owed = self.watch.unacknowledged().saturating_sub(1);
            if still_owed == 0 {
                break;
            }
            if still_owed + owed.min(limits::DELIVERY_BYTES_FLOOR) <= owed {
                due = deadlines.due_in(patience).min(end);
                owed = still_owed;
                idle_looks = 0;
            }
            if deadlines.is_past(due) {
                self.watch.reset();
                return false;
            }
            idle_looks += 1;
            let sweeps = match idle_looks <= limits::EAGER_LOOKS {
                true => 1,
                false => limits::SWEEPS_AHEAD_MAX / 2,
            };
            deadlines.turns.wait(sweeps).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        io::{Read, Write},
        net::{TcpListener, TcpStream as StdStream},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
        time::Instant,
    };

    use monoio::{IoUringDriver, RuntimeBuilder};

    use super::{super::deadline::TICK, *};

    const PATIENCE: Duration = Duration::from_secs(5);
    const SWEEPS: usize = (PATIENCE.as_millis() / TICK.as_millis()) as usize;

    /// Whether a future asks to be polled.
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Sends as much to a peer that reads nothing as goes, and the end, and sees that delivered, while
    /// the peer does as `act` says before each sweep; answers the peer, how much was sent, by how many
    /// sweeps all was over, and whether without a reset.
    fn deliver(
        total: Duration,
        is_abandoned: impl Fn() -> bool,
        act: impl FnMut(usize, &mut StdStream, &Watch),
    ) -> (StdStream, usize, usize, bool) {
        // So that little of what was sent is taken at a time.
        deliver_into(16_384, total, is_abandoned, act)
    }

    /// Likewise, to a peer whose system receives that little ahead.
    fn deliver_into(
        buffer: usize,
        total: Duration,
        is_abandoned: impl Fn() -> bool,
        mut act: impl FnMut(usize, &mut StdStream, &Watch),
    ) -> (StdStream, usize, usize, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let peer = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        peer.set_recv_buffer_size(buffer).expect("a socket");
        let address = listener.local_addr().expect("bound");
        peer.connect(&address.into()).expect("connect");
        let mut peer = StdStream::from(peer);
        let (mut near, _) = listener.accept().expect("accept");
        near.set_nonblocking(true).expect("a socket");
        let piece = [b'x'; 65_536];
        let sent = std::iter::from_fn(|| near.write(&piece).ok()).sum();
        let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
            .build()
            .expect("a ring");
        let (sweeps, is_spared) = runtime.block_on(async {
            let deadlines = Deadlines::new();
            let socket = TcpStream::from_std(near).expect("a socket");
            let (reader, writer, watch) = split(socket, &deadlines);
            writer.finish();
            let woken = Arc::new(Woken(AtomicBool::new(true)));
            let waker = Waker::from(Arc::clone(&woken));
            let mut context = Context::from_waker(&waker);
            let mut delivered = Box::pin(writer.see_delivered(PATIENCE, total, is_abandoned));
            let (mut sweeps, mut at) = (0, Instant::now());
            loop {
                if woken.0.swap(false, Ordering::Relaxed)
                    && let Poll::Ready(is_spared) = delivered.as_mut().poll(&mut context)
                {
                    drop(delivered);
                    close(reader, writer, watch);
                    return (sweeps, is_spared);
                }
                assert!(sweeps < 100 * SWEEPS, "for ever");
                act(sweeps, &mut peer, &watch);
                sweeps += 1;
                at += TICK;
                deadlines.sweep_at(at);
            }
        });
        (peer, sent, sweeps, is_spared)
    }

    fn rest(mut peer: StdStream) -> (usize, Option<io::ErrorKind>) {
        let mut rest = Vec::new();
        let outcome = peer.read_to_end(&mut rest);
        (rest.len(), outcome.err().map(|error| error.kind()))
    }

    #[test]
    fn a_peer_that_takes_nothing_is_reset_once_patience_is_over() {
        let looks = Cell::new(0);
        let count = || looks.replace(looks.get() + 1) == usize::MAX;
        let (peer, sent, sweeps, is_spared) = deliver(Duration::MAX, count, |_, _, _| {});
        assert!(sweeps >= SWEEPS && !is_spared, "{sweeps}");
        let rare = sweeps.div_ceil(limits::SWEEPS_AHEAD_MAX / 2);
        assert!(looks.get() <= 1 + limits::EAGER_LOOKS + rare);
        let (received, outcome) = rest(peer);
        assert!(received < sent);
        assert_eq!(outcome, Some(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_peer_that_takes_next_to_nothing_is_reset_as_well() {
        let reads = |sweep, peer: &mut StdStream, watch: &Watch| {
            let owed = watch.unacknowledged();
            while sweep == SWEEPS / 2 && watch.unacknowledged() == owed {
                peer.read_exact(&mut [0; 64]).expect("what was sent");
            }
        };
        let (peer, _, sweeps, is_spared) = deliver_into(1, Duration::MAX, || false, reads);
        let late = limits::SWEEPS_AHEAD_MAX / 2;
        assert!((SWEEPS..SWEEPS + late + 5).contains(&sweeps), "{sweeps}");
        assert!(!is_spared && rest(peer).1 == Some(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_peer_that_takes_its_time_gets_everything() {
        let mut received = 0;
        let mut reads_late = |sweep, peer: &mut StdStream, watch: &Watch| {
            let owed = watch.unacknowledged();
            let is_left = || match sweep {
                ..=SWEEPS => sweep % (SWEEPS / 2) == 0 && watch.unacknowledged() == owed,
                _ => watch.unacknowledged() > 1,
            };
            while is_left() {
                received += peer.read(&mut [0; 16_384]).expect("what was sent");
            }
        };
        let (peer, sent, sweeps, is_spared) = deliver(Duration::MAX, || false, &mut reads_late);
        assert!(sweeps > SWEEPS, "{sweeps} sweeps show nothing");
        assert!(is_spared);
        assert_eq!(rest(peer), (sent - received, None));
    }

    #[test]
    fn a_peer_that_takes_its_time_is_reset_where_all_is_limited() {
        // Takes something before every look.
        let reads = |_, peer: &mut StdStream, watch: &Watch| {
            let owed = watch.unacknowledged();
            while watch.unacknowledged() == owed {
                assert!(peer.read(&mut [0; 1_024]).expect("what was sent") > 0);
            }
        };
        let (peer, _, sweeps, is_spared) = deliver(PATIENCE, || false, reads);
        assert!((SWEEPS..SWEEPS + 5).contains(&sweeps), "{sweeps}");
        assert!(!is_spared && rest(peer).1 == Some(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_delivery_that_is_abandoned_is_the_kernels() {
        let looks = Cell::new(0);
        let is_abandoned = || looks.replace(looks.get() + 1) == 3;
        let (peer, sent, sweeps, is_spared) = deliver(Duration::MAX, is_abandoned, |_, _, _| {});
        assert_eq!((sweeps, is_spared), (3, true));
        assert_eq!(rest(peer), (sent, None));
    }

    #[test]
    fn a_peer_that_has_gone_is_not_waited_for() {
        let goes = |sweep, peer: &mut StdStream, watch: &Watch| {
            if sweep == 2 {
                sys::reset(peer.as_raw_fd());
                while sys::is_quiet(watch.fd()) {}
            }
        };
        let (_, _, sweeps, is_spared) = deliver(Duration::MAX, || false, goes);
        assert_eq!((sweeps, is_spared), (3, true));
    }
}
