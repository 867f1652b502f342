//! Listening sockets: bound once, one a core, and accepted from without giving up.
//!
//! Knows nothing of HTTP; hands each accepted connection to its caller.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener as StdListener},
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
    closed: Rc<Cell<bool>>,
}

/// Ends an [`Acceptor`] from the same core.
#[derive(Debug)]
pub struct AcceptorCloser {
    fd: RawFd,
    closed: Rc<Cell<bool>>,
}

impl Acceptor {
    /// Takes over a bound socket, inside the core's runtime.
    ///
    /// # Errors
    /// If the runtime can't take it; nothing was accepted then.
    pub fn new(listener: StdListener) -> io::Result<(Self, AcceptorCloser)> {
        let closed = Rc::new(Cell::new(false));
        let closer = AcceptorCloser {
            fd: listener.as_raw_fd(),
            closed: Rc::clone(&closed),
        };
        Ok((
            Self {
                listener: TcpListener::from_std(listener)?,
                closed,
            },
            closer,
        ))
    }

    /// Hands every connection to `accept` until the closer is used.
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
                Err(_) if self.closed.get() => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    failed(&error);
                    pause =
                        (pause * 2).clamp(limits::ACCEPT_PAUSE_FLOOR, limits::ACCEPT_PAUSE_CEILING);
                    monoio::time::sleep(pause).await;
                    if self.closed.get() {
                        return;
                    }
                }
            }
        }
    }
}

impl AcceptorCloser {
    /// Stops accepting; the pending accept ends by itself.
    pub fn close(&self) {
        if !self.closed.replace(true) {
            sys::shutdown(self.fd, Side::Both);
        }
    }
}
