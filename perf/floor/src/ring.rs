//! The ring, the sockets on it, and their buffers.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, RawFd},
    ptr,
};

use io_uring::{
    IoUring, opcode,
    squeue::{Entry, Flags},
    types::Fd,
};

const RING_ENTRIES: u32 = 4_096;
const BUFFER_BYTES: usize = 4_096;

/// Tags of completions that are no receive.
const ACCEPTED: u64 = u64::MAX;
/// A send, or a close, that failed: the connection's next receive tells.
const FAILED: u64 = u64::MAX - 1;

/// Where a receive puts what it brings; never freed while the process runs.
pub(crate) struct Buffer(Box<[u8; BUFFER_BYTES]>);

impl Buffer {
    pub(crate) fn new() -> Self {
        Self(Box::new([0; BUFFER_BYTES]))
    }

    /// Puts `new` in the place of the first `old`, which is as long, among the first `length` bytes.
    pub(crate) fn replace<const N: usize>(&mut self, length: u32, old: &[u8; N], new: &[u8; N]) {
        let bytes = &mut self.0[..length as usize];
        if let Some(begin) = bytes.windows(N).position(|window| window == old) {
            bytes[begin..begin + N].copy_from_slice(new);
        }
    }
}

/// What connections do with each other.
pub(crate) trait Relay {
    fn ring(&mut self) -> &mut Ring;

    fn accepted(&mut self, result: i32) -> io::Result<()>;

    /// What the receive of this tag brought: bytes, an end, or an error.
    fn received(&mut self, tag: u64, result: i32) -> io::Result<()>;

    /// Relays until the ring fails.
    fn run(&mut self) -> io::Result<()> {
        self.ring().accept()?;
        let mut completed = Vec::new();
        loop {
            self.ring().wait(&mut completed)?;
            for (tag, result) in completed.drain(..) {
                match tag {
                    ACCEPTED => self.accepted(result)?,
                    FAILED => {}
                    tag => self.received(tag, result)?,
                }
            }
        }
    }
}

pub(crate) struct Ring {
    ring: IoUring,
    listener: TcpListener,
}

impl Ring {
    pub(crate) fn new(listen: SocketAddr) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        Ok(Self {
            ring: builder.build(RING_ENTRIES)?,
            listener: TcpListener::bind(listen)?,
        })
    }

    /// Waits for completions, and takes them: their tags and results.
    fn wait(&mut self, completed: &mut Vec<(u64, i32)>) -> io::Result<()> {
        self.ring.submit_and_wait(1)?;
        completed.extend(self.ring.completion().map(|c| (c.user_data(), c.result())));
        Ok(())
    }

    pub(crate) fn accept(&mut self) -> io::Result<()> {
        let listener = Fd(self.listener.as_raw_fd());
        let accept = opcode::Accept::new(listener, ptr::null_mut(), ptr::null_mut());
        self.push(&accept.build().user_data(ACCEPTED))
    }

    pub(crate) fn receive(&mut self, from: RawFd, into: &mut Buffer, tag: u64) -> io::Result<()> {
        let receive = opcode::Recv::new(Fd(from), into.0.as_mut_ptr(), BUFFER_BYTES as u32);
        self.push(&receive.build().user_data(tag))
    }

    /// Sends the first `length` bytes of a buffer, which the kernel has read when the next receive
    /// into it is posted; `flags` are the entry's.
    pub(crate) fn send(
        &mut self,
        to: RawFd,
        of: &Buffer,
        length: u32,
        flags: Flags,
    ) -> io::Result<()> {
        let send = opcode::Send::new(Fd(to), of.0.as_ptr(), length).build();
        self.push(&send.user_data(FAILED).flags(flags | Flags::SKIP_SUCCESS))
    }

    pub(crate) fn close(&mut self, socket: RawFd) -> io::Result<()> {
        let close = opcode::Close::new(Fd(socket)).build();
        self.push(&close.user_data(FAILED).flags(Flags::SKIP_SUCCESS))
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: buffers are on the heap and are never freed while the process runs; descriptors
        // are checked by the kernel.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }
}

/// What an accept brought.
pub(crate) fn own(result: i32) -> io::Result<TcpStream> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just opened it for this process, and nobody else knows it.
    Ok(unsafe { TcpStream::from_raw_fd(result) })
}

/// A connection to the upstream.
pub(crate) fn connect(upstream: SocketAddr) -> io::Result<TcpStream> {
    let server = TcpStream::connect(upstream)?;
    server.set_nodelay(true)?;
    Ok(server)
}
