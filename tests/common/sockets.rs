//! The kernel's table of TCP sockets over IPv4: what a test may know of connections that are not its own.
//!
//! Connections are told apart by whole addresses: devices of different addresses may have the same port,
//! and what was closed stands in the table for a minute.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const CLOSE_WAIT: u8 = 8;
pub const LISTEN: u8 = 10;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: u8,
    /// Bytes that the peer has not acknowledged.
    pub to_send: usize,
    /// Bytes that nobody has read.
    pub to_read: usize,
    /// Its number, by which it stands among a process's descriptors.
    pub inode: u64,
}

impl Row {
    /// Whether it is among the descriptors of a process; `None` where these are not for everybody to see.
    pub fn is_of(&self, process: u32) -> Option<bool> {
        let name = format!("socket:[{}]", self.inode);
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
        let mut targets = descriptors
            .flatten()
            .map(|entry| fs::read_link(entry.path()));
        Some(targets.any(|target| target.is_ok_and(|target| target.as_os_str() == name.as_str())))
    }
}

/// All sockets, of all processes.
pub fn all() -> Vec<Row> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(row);
    rows.map(|row| row.expect("the kernel's table")).collect()
}

fn row(line: &str) -> Option<Row> {
    let mut columns = line.split_whitespace().skip(1);
    let local = address(columns.next()?)?;
    let remote = address(columns.next()?)?;
    let state = u8::from_str_radix(columns.next()?, 16).ok()?;
    let (to_send, to_read) = columns.next()?.split_once(':')?;
    Some(Row {
        local,
        remote,
        state,
        to_send: usize::from_str_radix(to_send, 16).ok()?,
        to_read: usize::from_str_radix(to_read, 16).ok()?,
        // Behind the timer, the retransmissions, the user and the probes.
        inode: columns.nth(4)?.parse().ok()?,
    })
}

/// The address as it lies in memory, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.split_once(':')?;
    let host = u32::from_str_radix(host, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((Ipv4Addr::from(host.to_ne_bytes()), port).into())
}
