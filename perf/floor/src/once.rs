//! One request for each connection, over connections to the upstream that are kept.
//!
//! The last operation on a device's connection is its close, linked to the send of the answer. That a
//! device wants its connection closed is kept from the server; it is all that is known of HTTP.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, IntoRawFd, RawFd},
};

use io_uring::squeue::Flags;

use crate::ring::{self, Buffer, Relay, Ring};

/// Marks the tags of receives from servers; the rest of a tag is an index.
const SERVER: u64 = 1 << 32;

struct Device {
    socket: RawFd,
    buffer: Buffer,
}

struct Server {
    socket: TcpStream,
    buffer: Buffer,
    /// The device that waits for its answer, and another's place afterwards.
    device: Option<usize>,
}

struct Once {
    ring: Ring,
    upstream: SocketAddr,
    /// As many as there ever were at the same time.
    devices: Vec<Device>,
    /// Those of them that are free.
    vacant: Vec<usize>,
    servers: Vec<Server>,
    idle: Vec<usize>,
}

/// Relays until the ring fails.
pub(crate) fn run(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let mut relay = Once {
        ring: Ring::new(listen)?,
        upstream,
        devices: Vec::new(),
        vacant: Vec::new(),
        servers: Vec::new(),
        idle: Vec::new(),
    };
    relay.run()
}

impl Relay for Once {
    fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    fn accepted(&mut self, result: i32) -> io::Result<()> {
        let socket = ring::own(result)?;
        socket.set_nodelay(true)?;
        let socket = socket.into_raw_fd();
        let index = match self.vacant.pop() {
            Some(index) => {
                self.devices[index].socket = socket;
                index
            }
            None => {
                let buffer = Buffer::new();
                self.devices.push(Device { socket, buffer });
                self.devices.len() - 1
            }
        };
        let buffer = &mut self.devices[index].buffer;
        self.ring.receive(socket, buffer, index as u64)?;
        self.ring.accept()
    }

    fn received(&mut self, tag: u64, result: i32) -> io::Result<()> {
        match tag & SERVER {
            0 => self.asked(tag as usize, result),
            _ => self.answered((tag - SERVER) as usize, result),
        }
    }
}

impl Once {
    fn asked(&mut self, index: usize, result: i32) -> io::Result<()> {
        let length = match u32::try_from(result) {
            Ok(length) if length > 0 => length,
            _ => {
                self.vacant.push(index);
                return self.ring.close(self.devices[index].socket);
            }
        };
        let server = match self.idle.pop() {
            Some(server) => server,
            None => {
                let socket = ring::connect(self.upstream)?;
                let buffer = Buffer::new();
                let device = None;
                self.servers.push(Server {
                    socket,
                    buffer,
                    device,
                });
                self.receive(self.servers.len() - 1)?;
                self.servers.len() - 1
            }
        };
        self.servers[server].device = Some(index);
        let to = self.servers[server].socket.as_raw_fd();
        let buffer = &mut self.devices[index].buffer;
        // The server's connection stays.
        buffer.replace(length, b"Connection: close", b"Conversion: close");
        self.ring.send(to, buffer, length, Flags::empty())
    }

    fn answered(&mut self, index: usize, result: i32) -> io::Result<()> {
        let length = match u32::try_from(result) {
            Ok(length) if length > 0 => length,
            _ => return Err(io::Error::other("the upstream closed a connection")),
        };
        if let Some(device) = self.servers[index].device.take() {
            let to = self.devices[device].socket;
            let buffer = &self.servers[index].buffer;
            self.ring.send(to, buffer, length, Flags::IO_LINK)?;
            self.ring.close(to)?;
            self.vacant.push(device);
            self.idle.push(index);
        }
        self.receive(index)
    }

    fn receive(&mut self, index: usize) -> io::Result<()> {
        let Server { socket, buffer, .. } = &mut self.servers[index];
        self.ring
            .receive(socket.as_raw_fd(), buffer, SERVER | index as u64)
    }
}
