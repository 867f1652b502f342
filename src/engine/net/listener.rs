//! Listening sockets: bound once, one a core, and accepted from without giving up.
//!
//! Knows nothing of HTTP; hands each accepted connection to its caller.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use monoio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    deadline::TICK,
    sys::{self, Side},
};
use crate::limits;

/// Ticks of the longest pause after a failed accept; the first is one, and it doubles each time.
const PAUSE_TICKS_MAX: u32 = (limits::ACCEPT_PAUSE_CEILING.as_millis() / TICK.as_millis()) as u32;

/// Binds `address` once for each of `cores` workers (`SO_REUSEPORT`).
///
/// Port 0 is chosen by the kernel once and shared. Returns the address as bound.
///
/// # Errors
/// What bind(2) or listen(2) said: in use, not an address of this host, not permitted.
pub fn bind(address: SocketAddr, cores: usize) -> io::Result<(SocketAddr, Vec<StdListener>)> {
    let mut bound = address;
    let mut listeners = Vec::with_capacity(cores);
    for _ in 0..cores {
        let socket = Socket::new(
            Domain::for_address(bound),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit it: an answer must not wait for a delayed acknowledgement.
        socket.set_tcp_nodelay(true)?;
        socket.bind(&bound.into())?;
        socket.listen(limits::ACCEPT_QUEUE_MAX)?;
        // Inherited likewise, but only from a socket that listens: a first request is acknowledged by what
        // answers it, as later ones are, or within 40 ms. Whoever awaits more of a message acknowledges it.
        socket.set_tcp_quickack(false)?;
        let listener = StdListener::from(socket);
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((bound, listeners))
}

/// One listening socket of one core.
pub struct Acceptor {
    listener: TcpListener,
    orders: Rc<Orders>,
}

/// What an acceptor learns of its pauses and its end.
#[derive(Debug, Default)]
struct Orders {
    closed: Cell<bool>,
    /// Ticks for which it still pauses, and what is woken then.
    pause: Cell<u32>,
    paused: RefCell<Option<Waker>>,
    /// Connections that had been made by then; closing the listener would have reset them.
    queued: RefCell<Vec<(StdStream, SocketAddr)>>,
}

/// Ends an [`Acceptor`] from the same core, and its pauses.
#[derive(Debug)]
pub struct AcceptorCloser {
    fd: RawFd,
    orders: Rc<Orders>,
}

impl Acceptor {
    /// Takes over a bound socket, inside the core's runtime.
    ///
    /// # Errors
    /// If the runtime can't take it; nothing was accepted then.
    pub fn new(listener: StdListener) -> io::Result<(Self, AcceptorCloser)> {
        let orders = Rc::new(Orders::default());
        let closer = AcceptorCloser {
            fd: listener.as_raw_fd(),
            orders: Rc::clone(&orders),
        };
        Ok((
            Self {
                listener: TcpListener::from_std(listener)?,
                orders,
            },
            closer,
        ))
    }

    /// Hands every connection to `accept` until the closer is used, those that wait by then too.
    ///
    /// A failed accept (descriptors or memory used up) is reported to `failed` and tried again
    /// after a growing pause; connections wait in the kernel's queue meanwhile.
    pub async fn run(
        self,
        mut accept: impl FnMut(TcpStream, SocketAddr),
        mut failed: impl FnMut(&io::Error),
    ) {
        let mut pause = 0;
        loop {
            let result = self.listener.accept().await;
            match result {
                Ok((stream, peer)) => {
                    pause = 0;
                    accept(stream, peer);
                }
                Err(_) if self.orders.closed.get() => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    failed(&error);
                    pause = (pause * 2).clamp(1, PAUSE_TICKS_MAX);
                    self.pause(pause).await;
                    if self.orders.closed.get() {
                        break;
                    }
                }
            }
        }
        for (stream, peer) in self.orders.queued.take() {
            match TcpStream::from_std(stream) {
                Ok(stream) => accept(stream, peer),
                Err(error) => failed(&error),
            }
        }
    }

    /// Waits until the closer has told of so many ticks.
    pub async fn pause(&self, ticks: u32) {
        let Orders { pause, paused, .. } = &*self.orders;
        pause.set(ticks);
        let over = |context: &mut Context<'_>| match pause.get() {
            0 => Poll::Ready(()),
            _ => {
                paused.replace(Some(context.waker().clone()));
                Poll::Pending
            }
        };
        poll_fn(over).await;
    }
}

impl AcceptorCloser {
    /// Says that a tick has passed.
    pub fn tick(&self) {
        let Orders { pause, paused, .. } = &*self.orders;
        let left = pause.get();
        pause.set(left.saturating_sub(1));
        if left == 1
            && let Some(paused) = paused.take()
        {
            paused.wake();
        }
    }

    /// Stops accepting; the pending accept ends by itself.
    pub fn close(&self) {
        if !self.orders.closed.replace(true) {
            let queued = sys::accept_queued(self.fd, limits::ACCEPT_QUEUE_MAX as usize);
            self.orders.queued.replace(queued);
            sys::shutdown(self.fd, Side::Both);
        }
    }

    /// Whether the acceptor has handed over its last connection.
    pub fn has_ended(&self) -> bool {
        Rc::strong_count(&self.orders) == 1
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpStream as Peer};

    use monoio::{IoUringDriver, RuntimeBuilder};
    use socket2::SockRef;

    use super::*;

    /// Lets an acceptor run to its end, having closed it first; answers whom it handed over.
    fn peers_after_close(listener: StdListener) -> Vec<SocketAddr> {
        let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
            .build()
            .expect("a ring");
        runtime.block_on(async {
            let (acceptor, closer) = Acceptor::new(listener).expect("a listener");
            closer.close();
            assert!(!closer.has_ended(), "nothing has been handed over yet");
            let mut peers = Vec::new();
            let failed = |error: &io::Error| panic!("{error}");
            acceptor.run(|_, peer| peers.push(peer), failed).await;
            assert!(closer.has_ended());
            peers
        })
    }

    #[test]
    fn connections_made_before_the_end_are_handed_over() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (address, mut listeners) = bind(any, 1).expect("loopback");
        let devices: Vec<Peer> = (0..5)
            .map(|_| Peer::connect(address).expect("a connection"))
            .collect();
        let mut made: Vec<_> = devices
            .iter()
            .map(|device| device.local_addr().expect("an address"))
            .collect();
        let mut peers = peers_after_close(listeners.remove(0));
        made.sort();
        peers.sort();
        assert_eq!(peers, made);
        let error = Peer::connect(address).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn what_comes_first_is_acknowledged_by_its_answer() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (address, listeners) = bind(any, 1).expect("loopback");
        let is_left_to_answers = || {
            let mut device = Peer::connect(address).expect("a connection");
            let (near, _) = listeners[0].accept().expect("it was made");
            let is_quick = || SockRef::from(&near).tcp_quickack().expect("a socket");
            assert!(!is_quick());
            device.write_all(b"x").expect("sent");
            near.peek(&mut [0]).expect("received");
            // Once only: what comes next is left to answers again.
            sys::acknowledge(near.as_raw_fd());
            !is_quick()
        };
        // The kernel itself has acknowledged where this is late by 40 ms, and then changes its mind.
        assert!((0..50).any(|_| is_left_to_answers()));
    }

    #[test]
    fn an_acceptor_to_which_nobody_came_ends_as_well() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (_, mut listeners) = bind(any, 1).expect("loopback");
        assert!(peers_after_close(listeners.remove(0)).is_empty());
    }
}
