//! The incoming half of a server's socket: its next receive is posted while the connection idles.
//!
//! The ring tells by itself when an idle connection was closed or spoken on, so that taking it from
//! the pool costs no system call; and the receive that waited is the one that brings the answer. It
//! tells at its next turn: whoever posts a receive must let the ring turn before the connection may
//! count as quiet, which is why it is posted before the last piece of an answer is sent. Where nothing
//! is sent through the ring at the end, the socket is asked by a call instead.
//! Never dropped with a receive in flight unless its socket has been shut down: what that receive
//! would have brought belongs to nobody, and the ring keeps the buffer until it is done.

use std::{
    cell::Cell,
    convert::Infallible,
    fmt,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use monoio::{
    buf::{IoBufMut, SliceMut},
    io::{AsyncReadRent, OwnedReadHalf},
    net::TcpStream,
};

use super::{
    deadline::{Due, Watch},
    stream::{Lent, Share, StreamError},
};

/// The incoming half of a socket that may idle.
pub struct StandbyReader {
    // Before the half inside the receiver, so that the watch ends before the socket closes.
    share: Share,
    receiver: Pin<Box<dyn Future<Output = Infallible>>>,
    exchange: Rc<Exchange>,
    /// What a caller lent while the buffer of the posted receive came back to it.
    spare: Vec<u8>,
    is_posted: bool,
}

/// Where buffers meet the receiver, which lives as long as the connection: a receive of its own for
/// each answer would have to be allocated.
#[derive(Default)]
struct Exchange {
    lent: Cell<Option<SliceMut<Vec<u8>>>>,
    received: Cell<Option<Received>>,
}

type Received = (io::Result<usize>, SliceMut<Vec<u8>>);

/// Receives into one lent buffer after the other.
async fn receive_all(mut half: OwnedReadHalf<TcpStream>, exchange: Rc<Exchange>) -> Infallible {
    loop {
        let next = |_: &mut Context<'_>| exchange.lent.take().map_or(Poll::Pending, Poll::Ready);
        let lent = poll_fn(next).await;
        exchange.received.set(Some(half.read(lent).await));
    }
}

impl StandbyReader {
    /// Takes over the incoming half of a socket under `watch`.
    pub fn new(watch: Rc<Watch>, half: OwnedReadHalf<TcpStream>) -> Self {
        let exchange = Rc::new(Exchange::default());
        Self {
            share: Share::of_reader(&watch, &half),
            receiver: Box::pin(receive_all(half, Rc::clone(&exchange))),
            exchange,
            spare: Vec::new(),
            is_posted: false,
        }
    }

    /// See [`super::stream::Reader::read`].
    pub async fn read(&mut self, buffer: Vec<u8>, room: usize, due: Due) -> Lent<usize> {
        self.watch().set_read(due);
        let result = self.receive(buffer, room).await;
        self.watch().clear_read();
        result
    }

    /// Like `read`, under whatever deadline is set.
    ///
    /// Where a receive had been posted, its buffer comes back in place of an empty one.
    pub async fn receive(&mut self, buffer: Vec<u8>, room: usize) -> Lent<usize> {
        let waiting = if self.is_posted {
            debug_assert!(buffer.is_empty(), "an answer begins with nothing");
            Some(buffer)
        } else {
            self.lend(buffer, room);
            None
        };
        let Self {
            receiver, exchange, ..
        } = self;
        let (result, slice) = poll_fn(|context| {
            let Poll::Pending = receiver.as_mut().poll(context);
            exchange.received.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        self.is_posted = false;
        let received = slice.into_inner();
        let buffer = match waiting {
            None => received,
            Some(mut buffer) if !buffer.is_empty() => {
                buffer.extend_from_slice(&received);
                self.spare = received;
                buffer
            }
            Some(buffer) => {
                self.spare = buffer;
                received
            }
        };
        let result = match result {
            Ok(0) if self.watch().read_expired() => Err(StreamError::TimedOut),
            Ok(received) => Ok(received),
            Err(_) if self.watch().read_expired() => Err(StreamError::TimedOut),
            Err(error) => Err(error.into()),
        };
        (result, buffer)
    }

    /// Posts the next receive, into the buffer that `receive` kept if it has the size that `make`
    /// would give it.
    pub fn post(&mut self, make: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        if self.is_posted {
            return;
        }
        let mut spare = std::mem::take(&mut self.spare);
        spare.clear();
        self.lend(make(spare), usize::MAX);
        self.is_posted = true;
        self.advance();
    }

    /// Whether a receive has been posted.
    pub fn is_posted(&self) -> bool {
        self.is_posted
    }

    /// Whether nothing has come for the posted receive: no byte, no end, no error.
    pub fn is_quiet(&mut self) -> bool {
        self.advance();
        let received = self.exchange.received.take();
        let is_quiet = self.is_posted && received.is_none();
        self.exchange.received.set(received);
        is_quiet
    }

    /// The socket's deadlines.
    pub fn watch(&self) -> &Rc<Watch> {
        self.share.watch()
    }

    /// A share of the socket.
    pub fn share(&self) -> Share {
        self.share.clone()
    }

    fn lend(&mut self, buffer: Vec<u8>, room: usize) {
        let begin = buffer.len();
        let end = begin + room.min(buffer.capacity() - begin);
        debug_assert!(end > begin, "a receive needs room");
        self.exchange.lent.set(Some(buffer.slice_mut(begin..end)));
    }

    /// Lets the receiver look at what the ring has brought; nobody is to be woken.
    fn advance(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Pending = self.receiver.as_mut().poll(&mut context);
    }
}

impl fmt::Debug for StandbyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandbyReader")
            .field("share", &self.share)
            .field("is_posted", &self.is_posted)
            .finish_non_exhaustive()
    }
}
