//! What the window cost: CPU time of processes, idle time of the machine, the origin's connections.
//!
//! Reads `/proc` and one HTTP page; changes nothing.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddrV4, TcpStream},
    time::{Duration, Instant},
};

/// Nanoseconds of one tick of `/proc/stat`.
const TICK_NS: u64 = 10_000_000;

/// All counters at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// When it was taken.
    pub(crate) at: Instant,
    /// CPU nanoseconds of each process asked for, all threads.
    pub(crate) cpu_ns: Vec<u64>,
    /// CPU nanoseconds of this process.
    pub(crate) own_ns: u64,
    /// Nanoseconds that all cores together were idle.
    pub(crate) idle_ns: u64,
    /// Cores.
    pub(crate) cores: u64,
    /// Connections that the origin has accepted.
    pub(crate) accepted: Option<u64>,
}

/// Takes readings.
#[derive(Debug)]
pub(crate) struct Meter {
    pids: Vec<u32>,
    origin: Option<BufReader<TcpStream>>,
}

impl Meter {
    /// A meter for these processes and this origin.
    ///
    /// # Errors
    /// The origin does not answer.
    pub(crate) fn new(pids: &[u32], origin: Option<SocketAddrV4>) -> io::Result<Self> {
        let origin = match origin {
            Some(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                stream.set_nodelay(true)?;
                Some(BufReader::new(stream))
            }
            None => None,
        };
        Ok(Self {
            pids: pids.to_vec(),
            origin,
        })
    }

    /// All counters, now.
    ///
    /// # Errors
    /// A process has ended, or the origin does not answer.
    pub(crate) fn read(&mut self) -> io::Result<Reading> {
        let accepted = match &mut self.origin {
            Some(origin) => Some(read_accepted(origin)?),
            None => None,
        };
        let mut cpu_ns = Vec::with_capacity(self.pids.len());
        for pid in &self.pids {
            cpu_ns.push(process_ns(&pid.to_string())?);
        }
        let (idle_ns, cores) = idle()?;
        Ok(Reading {
            at: Instant::now(),
            cpu_ns,
            own_ns: process_ns("self")?,
            idle_ns,
            cores,
            accepted,
        })
    }
}

/// Run time of every thread of a process.
fn process_ns(pid: &str) -> io::Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and here.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
            continue;
        };
        let run = text.split(' ').next().and_then(|text| text.parse().ok());
        sum += run.unwrap_or(0_u64);
    }
    Ok(sum)
}

/// Idle time of all cores, and how many there are.
fn idle() -> io::Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let mut lines = stat.lines();
    let total = lines.next().unwrap_or_default();
    // After the word "cpu": user, nice, system, idle, iowait.
    let ticks = total.split_whitespace().skip(4).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let cores = lines.take_while(|line| line.starts_with("cpu")).count();
    Ok((ticks * TICK_NS, cores as u64))
}

/// The first number of nginx's third line: connections accepted since it started.
fn read_accepted(origin: &mut BufReader<TcpStream>) -> io::Result<u64> {
    origin
        .get_mut()
        .write_all(b"GET /status HTTP/1.1\r\nHost: status\r\n\r\n")?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        origin.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(digits) = line.strip_prefix("content-length:") {
            length = digits.trim().parse().unwrap_or(0);
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    origin.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let numbers = body.lines().nth(2).unwrap_or_default();
    let accepted = numbers.split_whitespace().next();
    accepted
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no stub_status: {body:?}")))
}
