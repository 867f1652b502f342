//! Connections that are kept alive, each with one of its own to the upstream.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsRawFd, RawFd},
};

use io_uring::squeue::Flags;

use crate::ring::{self, Buffer, Relay, Ring};

/// One way of a connection: what is received here is sent there.
struct Direction {
    from: RawFd,
    to: RawFd,
    buffer: Buffer,
}

struct Kept {
    ring: Ring,
    upstream: SocketAddr,
    /// A device's way to the server, then the way back, for each connection that there ever was.
    directions: Vec<Direction>,
    /// Both sockets of each connection; `None` once it has ended.
    sockets: Vec<Option<[TcpStream; 2]>>,
}

/// Relays until the ring fails.
pub(crate) fn run(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let mut relay = Kept {
        ring: Ring::new(listen)?,
        upstream,
        directions: Vec::new(),
        sockets: Vec::new(),
    };
    relay.run()
}

impl Relay for Kept {
    fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    fn accepted(&mut self, result: i32) -> io::Result<()> {
        let device = ring::own(result)?;
        device.set_nodelay(true)?;
        let server = ring::connect(self.upstream)?;
        let (near, far) = (device.as_raw_fd(), server.as_raw_fd());
        for (from, to) in [(near, far), (far, near)] {
            let buffer = Buffer::new();
            self.directions.push(Direction { from, to, buffer });
            self.receive(self.directions.len() - 1)?;
        }
        self.sockets.push(Some([device, server]));
        self.ring.accept()
    }

    fn received(&mut self, tag: u64, result: i32) -> io::Result<()> {
        let index = tag as usize;
        let length = match u32::try_from(result) {
            Ok(length) if length > 0 => length,
            _ => {
                self.end(index / 2);
                return Ok(());
            }
        };
        if self.sockets[index / 2].is_none() {
            return Ok(());
        }
        let Direction { to, buffer, .. } = &self.directions[index];
        self.ring.send(*to, buffer, length, Flags::empty())?;
        // A device asks again after its answer, and a server answers after the request: the buffer
        // was read by then.
        self.receive(index)
    }
}

impl Kept {
    fn receive(&mut self, index: usize) -> io::Result<()> {
        let Direction { from, buffer, .. } = &mut self.directions[index];
        self.ring.receive(*from, buffer, index as u64)
    }

    /// Ends both sockets: what waits on the other one returns.
    fn end(&mut self, connection: usize) {
        for socket in self.sockets[connection].iter().flatten() {
            // It may have ended by itself.
            socket.shutdown(Shutdown::Both).ok();
        }
        self.sockets[connection] = None;
    }
}
