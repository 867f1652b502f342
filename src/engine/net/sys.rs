//! The only unsafe code of the crate: system calls on descriptors that the caller owns.
//!
//! Neither reads nor writes memory of ours beyond an address on the stack.
#![allow(unsafe_code)]

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{BorrowedFd, RawFd},
};

use socket2::{SockAddr, SockRef, Socket};

/// Which direction of a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Receives return end of stream; sends go on.
    Read,
    /// Sends are over and the peer sees the end; receives go on.
    Write,
    /// Both.
    Both,
}

/// Ends `side` of a connection, or a listener's pending accept. Errors mean it had ended already.
pub fn shutdown(fd: RawFd, side: Side) {
    let how = match side {
        Side::Read => libc::SHUT_RD,
        Side::Write => libc::SHUT_WR,
        Side::Both => libc::SHUT_RDWR,
    };
    // SAFETY: shutdown(2) takes no pointer; a stale descriptor would be answered by EBADF, and
    // callers hold the stream that owns this one.
    unsafe { libc::shutdown(fd, how) };
}

/// Takes what waits in a listener's queue, at most `count` connections, and never waits for more.
pub fn accept_queued(fd: RawFd, count: usize) -> Vec<(TcpStream, SocketAddr)> {
    // SAFETY: the caller owns the listener for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let listener = SockRef::from(&borrowed);
    if listener.set_nonblocking(true).is_err() {
        return Vec::new();
    }
    let accepted = std::iter::from_fn(|| listener.accept().ok()).take(count);
    let known = |(socket, peer): (Socket, SockAddr)| Some((socket.into(), peer.as_socket()?));
    accepted.filter_map(known).collect()
}

/// Finishes a nonblocking connect: tells its outcome, and makes the socket a blocking one, which
/// is what lets the ring wait for it.
///
/// # Errors
/// Why there is no connection.
pub fn connected(fd: RawFd) -> io::Result<()> {
    // SAFETY: the caller owns the socket for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let socket = SockRef::from(&borrowed);
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.peer_addr()?;
    socket.set_nonblocking(false)
}

/// Resets a connection now, so that the peer can't take what it got for complete.
///
/// A zero `SO_LINGER` would not do: the runtime shuts a socket's sending half down before it closes
/// the socket, and a reset behind an orderly end is not seen. Errors mean it had ended already.
pub fn reset(fd: RawFd) {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: the address lives on our stack for the whole call, and its length is given; a stale
    // descriptor would be answered by EBADF, and callers hold the stream that owns this one.
    unsafe {
        libc::connect(
            fd,
            &raw const nobody,
            size_of::<libc::sockaddr>() as libc::socklen_t,
        )
    };
}
