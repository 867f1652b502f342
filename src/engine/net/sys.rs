//! The only unsafe code of the crate: system calls on descriptors that the caller owns, and a word
//! to the allocator.
//!
//! Neither reads nor writes memory of ours beyond a few words on the stack.
#![allow(unsafe_code)]

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use monoio::{io::OwnedReadHalf, net::TcpStream as MonoioStream};
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

/// Has the last bytes that do not fill a segment wait for what is said next, which is the end: both
/// leave as one (`TCP_CORK`, tcp(7)). Where it fails they leave by themselves.
pub fn hold_last_segment(fd: RawFd) {
    // SAFETY: the caller owns the socket for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let _ = SockRef::from(&borrowed).set_tcp_cork(true);
}

/// Acknowledges what has come (`TCP_QUICKACK`, tcp(7)), and leaves what comes next to the kernel, which an odd
/// number would have acknowledge at once from then on, as it does where nothing is owed. Where it fails the
/// kernel acknowledges when it likes, within 40 ms as a rule.
pub fn acknowledge(fd: RawFd) {
    let once: libc::c_int = 2;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_QUICKACK);
    // SAFETY: the number lives on our stack for the whole call, and its length is given.
    unsafe { libc::setsockopt(fd, level, option, (&raw const once).cast(), length) };
}

/// Bytes of a connection's longest segment (`TCP_MAXSEG`, tcp(7)); 0 if that is not known.
pub fn segment_bytes(fd: RawFd) -> usize {
    // SAFETY: the caller owns the socket for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    SockRef::from(&borrowed)
        .tcp_mss()
        .map_or(0, |bytes| bytes as usize)
}

/// Takes what waits in a listener's queue, at most `count` connections, and never waits for more.
pub fn accept_queued(fd: RawFd, count: usize) -> Vec<(TcpStream, SocketAddr)> {
    // SAFETY: the caller owns the listener for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let listener = SockRef::from(&borrowed);
    if listener.set_nonblocking(true).is_err() {
        return Vec::new();
    }
    let next = || {
        loop {
            match listener.accept() {
                // Gone before its turn came; others may wait behind it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                outcome => return outcome.ok(),
            }
        }
    };
    let accepted = std::iter::from_fn(next).take(count);
    let known = |(socket, peer): (Socket, SockAddr)| Some((socket.into(), peer.as_socket()?));
    accepted.filter_map(known).collect()
}

/// Takes over a descriptor that its owner has given up by `into_raw_fd`.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass what `into_raw_fd` answered, once: nobody else closes it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether nothing has arrived on a connection: no byte, no end of stream, no error.
pub fn is_quiet(fd: RawFd) -> bool {
    let mut byte = 0_u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is one byte of our stack, alive for the whole call, and its length is 1.
    let received = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, flags) };
    received < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Whether bytes wait on a connection. An error that waits is left for the receive that meets it.
pub fn has_bytes(fd: RawFd) -> bool {
    waiting(fd) > 0
}

/// Bytes that wait on a connection.
pub fn waiting(fd: RawFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: the number lives on our stack for the whole call, and has the type that it fills.
    let answer = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut count) };
    if answer == 0 {
        count.max(0) as usize
    } else {
        0
    }
}

/// Sends as much of `bytes` as the socket takes without waiting; answers how many bytes that is, 0 if it
/// is no connection any more.
pub fn send_at_once(fd: RawFd, bytes: &[u8]) -> usize {
    // SAFETY: the caller owns the socket for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    SockRef::from(&borrowed)
        .send_with_flags(bytes, flags)
        .unwrap_or(0)
}

/// Bytes of a connection that its peer has not acknowledged, sent or not (`SIOCOUTQ`, linux/sockios.h);
/// its end counts as one more from when it was said. 0 if it is no connection any more: the kernel keeps
/// nothing of it.
pub fn unacknowledged(fd: RawFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: the number lives on our stack for the whole call, and has the type that it fills.
    let answer = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut count) };
    let count = if answer == 0 { count } else { 0 };
    // SAFETY: the caller owns the socket for the whole call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    // A connection that was reset goes on to say what it held when that happened.
    match usize::try_from(count) {
        Ok(count) if count > 0 && SockRef::from(&borrowed).peer_addr().is_ok() => count,
        _ => 0,
    }
}

/// A pipe that holds `bytes` if the kernel lets it: its end, to be read from, and its beginning.
///
/// # Errors
/// No descriptors, or no memory for pipes, are left.
pub fn pipe(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array lives on our stack for the whole call and has the two elements it fills.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both were just made, and nobody else knows them.
    let (end, begin) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
    // SAFETY: fcntl(2) takes no pointer here. A smaller pipe, which the kernel's limits may force,
    // only moves smaller pieces.
    unsafe { libc::fcntl(begin.as_raw_fd(), libc::F_SETPIPE_SZ, bytes as libc::c_int) };
    Ok((end, begin))
}

/// The socket of which `half` is a share, to wait for it.
pub fn socket(half: &OwnedReadHalf<MonoioStream>) -> &MonoioStream {
    // SAFETY: the share keeps it alive. Halves borrow it mutably only while they begin an operation,
    // on this core, as this one does: no borrow is used beyond that.
    unsafe { &*half.0.get() }
}

/// Moves at most `length` bytes from a socket to a pipe's beginning; 0 is the end of the stream.
///
/// # Errors
/// `WouldBlock` if nothing has come, else what the kernel said.
pub fn fill_pipe(pipe: &OwnedFd, socket: RawFd, length: usize) -> io::Result<usize> {
    splice(socket, pipe.as_raw_fd(), length)
}

/// Moves at most `length` bytes from a pipe's end to a socket.
///
/// # Errors
/// `WouldBlock` if the socket takes none now, else what the kernel said.
pub fn drain_pipe(pipe: &OwnedFd, socket: RawFd, length: usize) -> io::Result<usize> {
    splice(pipe.as_raw_fd(), socket, length)
}

/// splice(2) that waits neither for the pipe nor for the socket, which must not be a blocking one.
fn splice(from: RawFd, to: RawFd, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: no offsets are given; the caller owns both descriptors for the whole call.
    let moved = unsafe { libc::splice(from, ptr::null_mut(), to, ptr::null_mut(), length, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Makes a socket one that no call waits for. The ring waits for it as before: its receives and
/// sends ask for that themselves, and never look at this.
///
/// # Errors
/// What the kernel said: the socket may be a blocking one.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    let value: libc::c_int = 1;
    // SAFETY: the number lives on our stack for the whole call, and has the type that it reads.
    match unsafe { libc::ioctl(fd, libc::FIONBIO, &raw const value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says how many bytes must have come before a socket counts as readable (`SO_RCVLOWAT`, socket(7)); a
/// stream that has ended always does. A wait that is under way goes by the new number at once. Where it
/// fails, the socket is one that has ended.
pub fn set_low_water(fd: RawFd, bytes: usize) {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_RCVLOWAT);
    // SAFETY: the number lives on our stack for the whole call, and its length is given.
    unsafe { libc::setsockopt(fd, level, option, (&raw const bytes).cast(), length) };
}

/// Has a listener's system take a connection up only when its first bytes come (`TCP_DEFER_ACCEPT`,
/// tcp(7)): where the listener is gone by then, it answers them with a reset.
#[cfg(test)]
pub fn defer_accept(fd: RawFd) {
    let seconds: libc::c_int = 60;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    // SAFETY: the number lives on our stack for the whole call, and its length is given.
    let outcome =
        unsafe { libc::setsockopt(fd, level, option, (&raw const seconds).cast(), length) };
    assert_eq!(outcome, 0);
}

/// Finishes a nonblocking connect: tells its outcome, and makes the socket a blocking one, as those
/// are that were accepted.
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

/// Gives the system back what this thread has freed and the allocator has kept for later.
///
/// Takes milliseconds for a hundred megabytes; does nothing where mimalloc is not the allocator.
pub fn give_memory_back() {
    // SAFETY: takes no pointer, and touches nothing that is in use.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
