//! `m2u-floor LISTEN UPSTREAM`: a relay that knows no HTTP, on a bare ring without a runtime.
//!
//! Two receives and two sends for a request and its answer, as few as anybody can do with; the next
//! receive goes to the kernel together with the send before it, and a send that succeeds wakes
//! nobody. What it costs is what no gateway on a ring can go below. A yardstick, nothing more: every
//! connection has one of its own to the upstream, and nothing is checked, limited or repeated.

use std::{
    env, io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd},
    process::ExitCode,
    ptr,
};

use io_uring::{
    IoUring, opcode,
    squeue::{Entry, Flags},
    types::Fd,
};

const RING_ENTRIES: u32 = 4_096;
const BUFFER_BYTES: usize = 4_096;
/// Tags of completions that are no receive; receives have the direction's index.
const ACCEPTED: u64 = u64::MAX;
const SEND_FAILED: u64 = u64::MAX - 1;

/// One way of a connection: what is received here is sent there.
struct Direction {
    from: Fd,
    to: Fd,
    buffer: Box<[u8; BUFFER_BYTES]>,
}

struct Relay {
    ring: IoUring,
    listener: TcpListener,
    upstream: SocketAddr,
    /// A device's way to the server, then the way back, for each connection that there ever was.
    directions: Vec<Direction>,
    /// Both sockets of each connection; `None` once it has ended.
    sockets: Vec<Option<[TcpStream; 2]>>,
}

impl Relay {
    fn new(listen: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        Ok(Self {
            ring: builder.build(RING_ENTRIES)?,
            listener: TcpListener::bind(listen)?,
            upstream,
            directions: Vec::new(),
            sockets: Vec::new(),
        })
    }

    fn run(mut self) -> io::Result<()> {
        self.post_accept()?;
        let mut completed = Vec::new();
        loop {
            self.ring.submit_and_wait(1)?;
            completed.extend(self.ring.completion().map(|c| (c.user_data(), c.result())));
            for (tag, result) in completed.drain(..) {
                match tag {
                    ACCEPTED => self.accepted(result)?,
                    // Its connection's next receive tells.
                    SEND_FAILED => {}
                    direction => self.received(direction as usize, result)?,
                }
            }
        }
    }

    fn accepted(&mut self, result: i32) -> io::Result<()> {
        let device = own(result)?;
        let server = TcpStream::connect(self.upstream)?;
        let [near, far] = [&device, &server].map(|socket| Fd(socket.as_raw_fd()));
        for socket in [&device, &server] {
            socket.set_nodelay(true)?;
        }
        for (from, to) in [(near, far), (far, near)] {
            self.directions.push(Direction {
                from,
                to,
                buffer: Box::new([0; BUFFER_BYTES]),
            });
            self.post_receive(self.directions.len() - 1)?;
        }
        self.sockets.push(Some([device, server]));
        self.post_accept()
    }

    fn received(&mut self, index: usize, result: i32) -> io::Result<()> {
        let length = match u32::try_from(result) {
            Ok(length) if length > 0 => length,
            _ => return self.end(index / 2),
        };
        if self.sockets[index / 2].is_none() {
            return Ok(());
        }
        let direction = &self.directions[index];
        let send = opcode::Send::new(direction.to, direction.buffer.as_ptr(), length);
        let send = send.build().user_data(SEND_FAILED);
        self.push(&send.flags(Flags::SKIP_SUCCESS))?;
        // A device asks again after its answer, and a server answers after the request: the buffer
        // was read by then.
        self.post_receive(index)
    }

    /// Ends both sockets: what waits on the other one returns.
    fn end(&mut self, connection: usize) -> io::Result<()> {
        for socket in self.sockets[connection].iter().flatten() {
            // It may have ended by itself.
            socket.shutdown(std::net::Shutdown::Both).ok();
        }
        self.sockets[connection] = None;
        Ok(())
    }

    fn post_accept(&mut self) -> io::Result<()> {
        let listener = Fd(self.listener.as_raw_fd());
        let accept = opcode::Accept::new(listener, ptr::null_mut(), ptr::null_mut());
        self.push(&accept.build().user_data(ACCEPTED))
    }

    fn post_receive(&mut self, index: usize) -> io::Result<()> {
        let direction = &mut self.directions[index];
        let buffer = direction.buffer.as_mut_ptr();
        let receive = opcode::Recv::new(direction.from, buffer, BUFFER_BYTES as u32);
        self.push(&receive.build().user_data(index as u64))
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
fn own(result: i32) -> io::Result<TcpStream> {
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just opened it for this process, and nobody else knows it.
    Ok(unsafe { TcpStream::from_raw_fd(result) })
}

fn main() -> ExitCode {
    let addresses: Vec<_> = env::args().skip(1).map(|text| text.parse()).collect();
    let [Ok(listen), Ok(upstream)] = addresses[..] else {
        eprintln!("usage: m2u-floor LISTEN UPSTREAM, such as 127.0.0.1:8080 127.0.0.1:8000");
        return ExitCode::from(2);
    };
    match Relay::new(listen, upstream).and_then(Relay::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("m2u-floor: {error}");
            ExitCode::FAILURE
        }
    }
}
