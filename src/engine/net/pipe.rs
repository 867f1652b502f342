//! Bodies moved inside the kernel: out of one socket into a pipe, and from there into another.
//!
//! Saves both copies of a large plain body. splice(2) is called on the core itself, because the
//! ring would hand it to a thread of the kernel (measured: 31 µs for 1 KB against 12 µs for a
//! receive and a send); it never waits, the ring does that. Where both sockets keep pace nothing is
//! waited for, so the ring is given a turn on purpose: no body holds the core for longer than a few
//! megabytes take. A body's first megabyte goes by pieces that leave as one packet each, as a rule: a longer
//! one leaves a short packet behind, and of several packets at once all but the first wait for a timer where
//! the sink's system paces them. A pipe that is not empty never goes back to the store.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use super::{
    deadline::Due,
    stream::{Share, StreamError, WriteError},
    sys,
};
use crate::limits;

/// One core's spare pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    spare: RefCell<Vec<Pipe>>,
    /// How many of them nothing has needed since the last sweep.
    unused: Cell<usize>,
    /// Bodies that are moved now.
    busy: Rc<Cell<usize>>,
}

/// Counts a body as moved.
#[derive(Debug)]
struct Busy(Rc<Cell<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An empty pipe.
#[derive(Debug)]
struct Pipe {
    end: OwnedFd,
    begin: OwnedFd,
}

impl Pipes {
    /// Counts one more body, or `None` if so many are moved that descriptors could run short.
    fn begin(&self) -> Option<Busy> {
        let busy = self.busy.get();
        (busy < limits::SPLICES_PER_CORE_MAX).then(|| {
            self.busy.set(busy + 1);
            Busy(Rc::clone(&self.busy))
        })
    }

    fn take(&self) -> io::Result<Pipe> {
        let mut spare = self.spare.borrow_mut();
        match spare.pop() {
            Some(pipe) => {
                self.unused.set(self.unused.get().min(spare.len()));
                Ok(pipe)
            }
            None => {
                let (end, begin) = sys::pipe(limits::PIPE_BYTES)?;
                Ok(Pipe { end, begin })
            }
        }
    }

    fn put(&self, pipe: Pipe) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < limits::SPARE_PIPES_MAX {
            spare.push(pipe);
        }
    }

    /// Closes those that nothing needs any more; called every tick.
    pub fn sweep(&self) {
        let mut spare = self.spare.borrow_mut();
        let kept = spare.len() - self.unused.get().div_ceil(16);
        spare.truncate(kept);
        self.unused.set(kept);
    }
}

/// A body on its way through a pipe. Whoever holds it must be the only one to read from the one
/// socket and to write to the other.
#[derive(Debug)]
pub struct Splice {
    pipe: Pipe,
    /// Bytes in the pipe.
    held: usize,
    /// Bytes since the ring had a turn; no piece counts as a very short one.
    turn: usize,
    /// Bytes of a piece that the sink's system sends as one packet.
    packet: usize,
    /// Bytes that still come in such pieces.
    by_packets: usize,
    source: Share,
    sink: Share,
    _busy: Busy,
}

impl Splice {
    /// Begins to move bytes from one socket to another; `None` where descriptors or pipes have run
    /// out, so that the body must be copied.
    pub fn begin(pipes: &Pipes, source: Share, sink: Share) -> Option<Box<Self>> {
        let busy = pipes.begin()?;
        sys::set_nonblocking(source.watch().fd()).ok()?;
        sys::set_nonblocking(sink.watch().fd()).ok()?;
        debug_assert!(!source.watch().waits_for_batch(), "nobody would end that");
        let segment = sys::segment_bytes(sink.watch().fd());
        Some(Box::new(Self {
            pipe: pipes.take().ok()?,
            held: 0,
            turn: 0,
            packet: segment.clamp(limits::SPLICE_PACKET_BYTES, limits::PIPE_BYTES),
            by_packets: limits::BY_PACKETS_BYTES,
            source,
            sink,
            _busy: busy,
        }))
    }

    /// Receives at most `room` bytes; 0 is the end of the stream. What was received before must
    /// have been sent. `None` if something has come that can't be moved, but must be copied: splice(2)
    /// stops before an urgent byte.
    ///
    /// # Errors
    /// `TimedOut` at `due`, else what the kernel said.
    pub async fn receive(&mut self, room: u64, due: Due) -> Result<Option<usize>, StreamError> {
        debug_assert_eq!(self.held, 0, "a piece at a time");
        let watch = self.source.watch();
        let most = match self.by_packets {
            0 => limits::PIPE_BYTES,
            _ => self.packet,
        };
        let room = usize::try_from(room).map_or(most, |room| room.min(most));
        watch.set_read(due);
        let mut has_waited = false;
        let result = loop {
            // Then it is the others' turn. A mere yield would not do: the ring brings in what has
            // come for them only when nobody runs. So it is asked for what is needed next here.
            let is_turn_over = self.turn >= limits::SPLICE_TURN_BYTES;
            if !is_turn_over {
                match sys::fill_pipe(&self.pipe.begin, watch.fd(), room) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock && !has_waited => {}
                    result => break result,
                }
            }
            if let Err(error) = self.source.readable().await {
                break Err(error);
            }
            has_waited = !is_turn_over;
            self.turn = 0;
        };
        watch.clear_read();
        match result {
            Ok(received) if received > 0 => {
                self.held = received;
                self.by_packets = self.by_packets.saturating_sub(received);
                self.turn += received.max(limits::SPLICE_PIECE_BYTES_FLOOR);
                Ok(Some(received))
            }
            _ if watch.read_expired() => Err(StreamError::TimedOut),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => Ok(Some(result?)),
        }
    }

    /// Sends what was received; the peer may take any time over it, as long as it never takes
    /// nothing for longer than `patience`.
    ///
    /// # Errors
    /// [`WriteError`], which says whether any byte had left.
    pub async fn send_all(&mut self, patience: Duration) -> Result<(), WriteError> {
        let received = self.held;
        let watch = self.sink.watch();
        watch.set_write(watch.deadlines().due_in(patience));
        let mut has_just_moved = false;
        let result = loop {
            if self.held == 0 {
                break Ok(());
            }
            let error = match sys::drain_pipe(&self.pipe.end, watch.fd(), self.held) {
                Ok(sent) if sent > 0 => {
                    self.held -= sent;
                    has_just_moved = true;
                    watch.set_write(watch.deadlines().due_in(patience));
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let outcome = self.sink.writable().await;
                    self.turn = 0;
                    has_just_moved = false;
                    match outcome {
                        Ok(()) if !watch.write_expired() => continue,
                        outcome => outcome.err().unwrap_or(error),
                    }
                }
                Ok(_) => io::ErrorKind::WriteZero.into(),
                Err(error) => error,
            };
            let began = self.held < received;
            let error = match error.kind() {
                _ if watch.write_expired() => StreamError::TimedOut,
                // One splice(2) is several sends inside. A reset that the second meets is not told, as the
                // first has moved something, and the next call meets a mere end. Elsewhere that is one in order,
                // but for one that comes with a reset behind it between two calls.
                io::ErrorKind::BrokenPipe if has_just_moved => {
                    io::Error::from(io::ErrorKind::ConnectionReset).into()
                }
                _ => error.into(),
            };
            break Err(WriteError { error, began });
        };
        watch.set_write(Due::NEVER);
        result
    }

    /// Gives the pipe back.
    pub fn end(self, pipes: &Pipes) {
        if self.held == 0 {
            pipes.put(self.pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        future::{Future, poll_fn},
        io::{Read, Write},
        net,
        os::fd::AsRawFd,
        pin::pin,
        task::Poll,
        thread,
    };

    use monoio::net::TcpStream;
    use socket2::{Domain, SockRef, Socket, Type};

    use super::{
        super::{
            deadline::Deadlines,
            stream::{self, SocketReader, SocketWriter},
        },
        *,
    };
    use crate::{config::settings::Tuning, engine::worker};

    const LONG: Duration = Duration::from_secs(60);

    /// A socket on this core, for which a few packets may wait, and its peer.
    fn socket(deadlines: &Rc<Deadlines>) -> (SocketReader, SocketWriter, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let near = net::TcpStream::connect(listener.local_addr().expect("bound"));
        let near = near.expect("connect");
        let room = SockRef::from(&near).set_recv_buffer_size(4 * limits::PIPE_BYTES);
        room.expect("a socket");
        let near = TcpStream::from_std(near).expect("the ring takes it");
        let (reader, writer, _) = stream::split(near, deadlines);
        (reader, writer, listener.accept().expect("accept").0)
    }

    /// On a ring as each core has one.
    fn on_a_ring<F: Future>(run: F) -> F::Output {
        let runtime = worker::build_runtime(&Tuning::default());
        runtime.expect("a ring").block_on(run)
    }

    /// Every byte is there before it is asked for, and nothing ever stands in its way.
    #[test]
    fn sockets_that_keep_pace_do_not_hold_the_core() {
        const TURN: usize = limits::SPLICE_TURN_BYTES / limits::SPLICE_PIECE_BYTES_FLOOR;
        const PIECES: usize = 10 * TURN;
        on_a_ring(async {
            let deadlines = Deadlines::new();
            let (source, _source, mut server) = socket(&deadlines);
            let (sink, _sink, mut device) = socket(&deadlines);
            let (mut other, _other, mut peer) = socket(&deadlines);
            server.write_all(&[b'x'; PIECES]).expect("sent");
            let device = thread::spawn(move || device.read_exact(&mut [0; PIECES]));
            peer.write_all(b"y").expect("sent");
            let moved = Rc::new(Cell::new(0));
            let served = monoio::spawn({
                let (moved, due) = (Rc::clone(&moved), deadlines.due_in(LONG));
                async move {
                    let (received, _) = other.read(Vec::with_capacity(1), 1, due).await;
                    assert_eq!(received.ok(), Some(1));
                    moved.get()
                }
            });
            let pipes = Pipes::default();
            let splice = Splice::begin(&pipes, source.share(), sink.share());
            let mut splice = splice.expect("descriptors are left");
            for _ in 0..PIECES {
                let received = splice.receive(1, deadlines.due_in(LONG)).await;
                assert_eq!(received.ok(), Some(Some(1)));
                splice.send_all(LONG).await.expect("sent");
                moved.set(moved.get() + 1);
            }
            // One turn to be begun, and one to be over.
            let waited = served.await;
            assert!(waited <= 2 * TURN, "{waited} pieces");
            splice.end(&pipes);
            device.join().expect("it ended").expect("all of it");
        });
    }

    /// The server's host answers the first segment with a reset, which the second of one call's sends meets.
    #[test]
    fn a_reset_amid_a_call_is_no_orderly_end() {
        on_a_ring(async {
            let deadlines = Deadlines::new();
            let (source, _source, _device) = socket(&deadlines);
            let listener = net::TcpListener::bind("127.0.0.1:0").expect("loopback");
            sys::defer_accept(listener.as_raw_fd());
            let sink = net::TcpStream::connect(listener.local_addr().expect("bound"));
            let sink = TcpStream::from_std(sink.expect("connect")).expect("the ring takes it");
            let (_sink, sink, _) = stream::split(sink, &deadlines);
            drop(listener);
            let splice = Splice::begin(&Pipes::default(), source.share(), sink.share());
            let mut splice = splice.expect("descriptors are left");
            let mut begin =
                File::from(splice.pipe.begin.try_clone().expect("descriptors are left"));
            let piece = vec![b'x'; limits::PIPE_BYTES];
            begin.write_all(&piece).expect("the pipe has room");
            splice.held = piece.len();
            let failed = splice.send_all(LONG).await.expect_err("nobody is there");
            assert!(failed.began, "{failed:?}");
            assert!(
                matches!(&failed.error, StreamError::Io(error)
                    if error.kind() == io::ErrorKind::ConnectionReset),
                "{failed:?}"
            );
        });
    }

    #[test]
    fn a_packet_is_many_segments_where_these_are_short() {
        on_a_ring(async {
            let deadlines = Deadlines::new();
            let (source, _source, _server) = socket(&deadlines);
            let listener = net::TcpListener::bind("127.0.0.1:0").expect("loopback");
            let sink = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            // As on Ethernet.
            sink.set_tcp_mss(1_460).expect("a socket");
            let address = listener.local_addr().expect("bound");
            sink.connect(&address.into()).expect("connect");
            let sink = TcpStream::from_std(sink.into()).expect("the ring takes it");
            let (_sink, sink, _) = stream::split(sink, &deadlines);
            let splice = Splice::begin(&Pipes::default(), source.share(), sink.share());
            let packet = splice.expect("descriptors are left").packet;
            assert_eq!(packet, limits::SPLICE_PACKET_BYTES);
        });
    }

    #[test]
    fn a_body_goes_by_the_packet_until_it_is_a_long_one() {
        on_a_ring(async {
            let deadlines = Deadlines::new();
            let (source, _source, mut server) = socket(&deadlines);
            let (sink, _sink, mut device) = socket(&deadlines);
            let pipes = Pipes::default();
            let splice = Splice::begin(&pipes, source.share(), sink.share());
            let mut splice = splice.expect("descriptors are left");
            let packet = splice.packet;
            let short = limits::BY_PACKETS_BYTES.next_multiple_of(packet);
            let body = short + 2 * packet;
            let server = thread::spawn(move || server.write_all(&vec![b'x'; body]));
            let device = thread::spawn(move || device.read_exact(&mut vec![0; body]));
            let mut moved = 0;
            while moved < body {
                // More than a packet, so that a piece could be one.
                let more = (packet + 1).min(body - moved);
                while moved <= short && sys::waiting(splice.source.watch().fd()) < more {
                    thread::yield_now();
                }
                let left = (body - moved) as u64;
                let received = splice.receive(left, deadlines.due_in(LONG)).await;
                let received = received.expect("received").expect("no urgent byte");
                match moved {
                    at if at < short => assert_eq!(received, packet, "at {at}"),
                    at if at == short => assert!(received > packet, "{received}"),
                    _ => {}
                }
                splice.send_all(LONG).await.expect("sent");
                moved += received;
            }
            splice.end(&pipes);
            server.join().expect("it ended").expect("all of it");
            device.join().expect("it ended").expect("all of it");
        });
    }

    /// What lets a socket stay nonblocking once it has been one: the ring never looks at that.
    #[test]
    fn the_ring_waits_for_sockets_that_a_splice_was_begun_on() {
        on_a_ring(async {
            let deadlines = Deadlines::new();
            let (mut reader, mut writer, mut far) = socket(&deadlines);
            let (other, sink, _peer) = socket(&deadlines);
            let pipes = Pipes::default();
            for (source, sink) in [
                (reader.share(), sink.share()),
                (other.share(), writer.share()),
            ] {
                let splice = Splice::begin(&pipes, source, sink);
                splice.expect("descriptors are left").end(&pipes);
            }
            let peer = thread::spawn(move || {
                far.read_exact(&mut [0; 5]).expect("received");
                far.write_all(b"late").expect("sent");
                let mut rest = Vec::new();
                far.read_to_end(&mut rest).expect("received");
                rest.len()
            });
            let due = deadlines.due_in(LONG);
            let mut receive = pin!(reader.read(Vec::with_capacity(64), 64, due));
            let first = poll_fn(|context| Poll::Ready(receive.as_mut().poll(context)));
            assert!(first.await.is_pending());
            // The ring has begun the receive before the peer sees this, and sends anything.
            let (sent, _) = writer.write_all(b"begun".to_vec(), 0, LONG).await;
            assert!(sent.is_ok(), "{sent:?}");
            let (received, buffer) = receive.await;
            assert_eq!((received.ok(), &buffer[..]), (Some(4), &b"late"[..]));
            // More than fits.
            let (sent, _) = writer.write_all(vec![0; 50_000_000], 0, LONG).await;
            assert!(sent.is_ok(), "{sent:?}");
            writer.finish();
            assert_eq!(peer.join().expect("it ended"), 50_000_000);
        });
    }
}
