//! Listening sockets: bound once, one a core, and accepted from without giving up.
//!
//! Knows nothing of HTTP; hands each accepted connection to its caller.

use std::{
    cell::{Cell, RefCell},
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    os::fd::{AsRawFd, RawFd},
    rc::Rc,
    time::Duration,
};

use monoio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use super::sys::{self, Side};
use crate::limits;

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
        let listener = StdListener::from(socket);
        bound = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((bound, listeners))
}

/// One listening socket of one core.
pub struct Acceptor {
    listener: TcpListener,
    closing: Rc<Closing>,
}

/// What an acceptor learns of its end.
#[derive(Debug, Default)]
struct Closing {
    closed: Cell<bool>,
    /// Connections that had been made by then; closing the listener would have reset them.
    queued: RefCell<Vec<(StdStream, SocketAddr)>>,
}

/// Ends an [`Acceptor`] from the same core.
#[derive(Debug)]
pub struct AcceptorCloser {
    fd: RawFd,
    closing: Rc<Closing>,
}

impl Acceptor {
    /// Takes over a bound socket, inside the core's runtime.
    ///
    /// # Errors
    /// If the runtime can't take it; nothing was accepted then.
    pub fn new(listener: StdListener) -> io::Result<(Self, AcceptorCloser)> {
        let closing = Rc::new(Closing::default());
        let closer = AcceptorCloser {
            fd: listener.as_raw_fd(),
            closing: Rc::clone(&closing),
        };
        Ok((
            Self {
                listener: TcpListener::from_std(listener)?,
                closing,
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
        let mut pause = Duration::ZERO;
        loop {
            let result = self.listener.accept().await;
            match result {
                Ok((stream, peer)) => {
                    pause = Duration::ZERO;
                    accept(stream, peer);
                }
                Err(_) if self.closing.closed.get() => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    failed(&error);
                    pause =
                        (pause * 2).clamp(limits::ACCEPT_PAUSE_FLOOR, limits::ACCEPT_PAUSE_CEILING);
                    monoio::time::sleep(pause).await;
                    if self.closing.closed.get() {
                        break;
                    }
                }
            }
        }
        for (stream, peer) in self.closing.queued.take() {
            match TcpStream::from_std(stream) {
                Ok(stream) => accept(stream, peer),
                Err(error) => failed(&error),
            }
        }
    }
}

impl AcceptorCloser {
    /// Stops accepting; the pending accept ends by itself.
    pub fn close(&self) {
        if !self.closing.closed.replace(true) {
            let queued = sys::accept_queued(self.fd, limits::ACCEPT_QUEUE_MAX as usize);
            self.closing.queued.replace(queued);
            sys::shutdown(self.fd, Side::Both);
        }
    }

    /// Whether the acceptor has handed over its last connection.
    pub fn has_ended(&self) -> bool {
        Rc::strong_count(&self.closing) == 1
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream as Peer;

    use monoio::{IoUringDriver, RuntimeBuilder};

    use super::*;

    /// Lets an acceptor run to its end, having closed it first; answers whom it handed over.
    fn peers_after_close(listener: StdListener) -> Vec<SocketAddr> {
        let mut runtime = RuntimeBuilder::<IoUringDriver>::new()
            .enable_timer()
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
    fn an_acceptor_to_which_nobody_came_ends_as_well() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (_, mut listeners) = bind(any, 1).expect("loopback");
        assert!(peers_after_close(listeners.remove(0)).is_empty());
    }
}
