//! The devices: their connections, one event loop over all of them, and when each speaks.
//!
//! One thread. In an open loop a request is timed from when it was due, also while it waits for a
//! connection, so that a slow gateway can't slow the load down and look fast.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    num::NonZeroU64,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    answer::{Answer, Expected, Fault, Progress},
    options::{Kind, Options},
    request,
};

/// Bytes of the buffer that all connections receive into.
const RECEIVE_BYTES: usize = 262_144;
/// Events taken at once.
const EVENTS_MAX: usize = 512;
/// How often connections are searched for answers that do not come.
const SEARCH: Duration = Duration::from_millis(500);
/// Wrong answers after which a load is given up.
const FAULTS_MAX: u64 = 200;
/// The longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// What a phase of load counted.
#[derive(Debug)]
pub(crate) struct Counts {
    /// Requests that were started.
    pub(crate) started: u64,
    /// Right answers.
    pub(crate) right: u64,
    /// Answers that name another device.
    pub(crate) mixups: u64,
    /// Everything else that went wrong.
    pub(crate) errors: u64,
    /// Connections opened.
    pub(crate) opened: u64,
    /// Kept-alive connections that the gateway closed.
    pub(crate) dropped: u64,
    /// Bytes written to connections.
    pub(crate) sent_bytes: u64,
    /// Bytes read from connections.
    pub(crate) received_bytes: u64,
    /// What went wrong first.
    pub(crate) first_fault: Option<String>,
    /// Nanoseconds from when a request was due to the end of its answer.
    pub(crate) latency: Histogram<u64>,
}

impl Counts {
    fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            started: 0,
            right: 0,
            mixups: 0,
            errors: 0,
            opened: 0,
            dropped: 0,
            sent_bytes: 0,
            received_bytes: 0,
            first_fault: None,
            latency: Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?,
        })
    }

    fn add(&mut self, fault: Fault) {
        let text = match fault {
            Fault::MixedUp(text) => {
                self.mixups += 1;
                text
            }
            Fault::Wrong(text) => {
                self.errors += 1;
                text
            }
        };
        self.first_fault.get_or_insert(text);
    }

    fn hopeless(&self) -> bool {
        self.mixups + self.errors >= FAULTS_MAX
    }
}

/// When a phase ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// Requests.
    pub(crate) requests: u64,
    /// No request begins later than this after the first.
    pub(crate) time: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// May send a request.
    Resting,
    /// A request is under way.
    Asking,
    /// Its answer is complete; the gateway has to close.
    Ending,
}

/// One connection's place; connections come and go in it.
struct Slot {
    stream: Option<TcpStream>,
    /// Tells events of this connection from those of the one before.
    generation: u32,
    name: Vec<u8>,
    state: State,
    due: Instant,
    begun: Instant,
    sent: usize,
    answer: Answer,
}

/// All devices.
pub(crate) struct Fleet {
    options: Options,
    expected: Expected,
    wire: Vec<u8>,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    resting: VecDeque<usize>,
    /// Requests under way.
    active: usize,
    /// Whose turn it is, before the remainder is taken.
    turn: u64,
    buffer: Vec<u8>,
    counts: Counts,
}

impl Fleet {
    /// Devices that have not said anything yet.
    ///
    /// # Errors
    /// The system refuses an epoll instance.
    pub(crate) fn new(options: &Options) -> Result<Self, Box<dyn std::error::Error>> {
        // Sends are due to the microsecond; the usual slack is fifty of them.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let now = Instant::now();
        let slots = (0..options.connections).map(|_| Slot {
            stream: None,
            generation: 0,
            name: Vec::new(),
            state: State::Resting,
            due: now,
            begun: now,
            sent: 0,
            answer: Answer::new(),
        });
        let body_bytes = match options.kind {
            Kind::Get => Some(options.size as u64),
            Kind::Post | Kind::Chunked => None,
        };
        Ok(Self {
            expected: Expected {
                echo: options.echo,
                body_bytes,
            },
            wire: request::render(options),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: slots.collect(),
            resting: (0..options.connections).collect(),
            active: 0,
            turn: 0,
            buffer: vec![0; RECEIVE_BYTES],
            counts: Counts::new()?,
            options: options.clone(),
        })
    }

    /// Sends requests until the bound is reached and every one has been answered.
    ///
    /// # Errors
    /// The event loop itself failed; what connections meet is counted.
    pub(crate) fn run(&mut self, bound: Bound) -> Result<Counts, Box<dyn std::error::Error>> {
        self.counts = Counts::new()?;
        let begun = Instant::now();
        let mut searched = begun;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            let next = self.start_what_is_due(begun, bound);
            if self.active == 0 && next.is_none() {
                return Ok(std::mem::replace(&mut self.counts, Counts::new()?));
            }
            let now = Instant::now();
            let wait = next.map_or(SEARCH, |due| due.saturating_duration_since(now));
            let wait = Timespec::try_from(wait.min(SEARCH))?;
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                self.take_event(event.data.u64(), event.flags);
                self.start_what_is_due(begun, bound);
            }
            let now = Instant::now();
            if now - searched >= SEARCH {
                searched = now;
                self.give_up_overdue(now);
            }
        }
    }

    /// Starts all that may start; answers when the next is due that only time holds back, or which
    /// a free connection may begin at once.
    fn start_what_is_due(&mut self, begun: Instant, bound: Bound) -> Option<Instant> {
        loop {
            if self.counts.started >= bound.requests || self.counts.hopeless() {
                return None;
            }
            let due = match self.options.rate {
                // Far beyond the exactness of f64 only after centuries of nanoseconds.
                Some(rate) => {
                    let offset = self.counts.started as f64 / rate;
                    begun + Duration::from_secs_f64(offset)
                }
                None => Instant::now(),
            };
            if due - begun >= bound.time {
                return None;
            }
            let free = self.active < self.options.active && !self.resting.is_empty();
            if !free {
                // Whoever ends wakes the loop; the search wakes it for those that never do.
                return Some(Instant::now() + SEARCH);
            }
            if due > Instant::now() {
                return Some(due);
            }
            if let Some(index) = self.resting.pop_front() {
                self.counts.started += 1;
                self.start(index, due);
            }
        }
    }

    fn start(&mut self, index: usize, due: Instant) {
        self.active += 1;
        let slot = &mut self.slots[index];
        slot.state = State::Asking;
        slot.due = due;
        slot.begun = Instant::now();
        slot.sent = 0;
        slot.answer.reset();
        let opened = match slot.stream {
            Some(_) => Ok(()),
            None => self.open(index),
        };
        match opened {
            Ok(()) => self.send(index),
            Err(error) => self.fail(index, Fault::Wrong(format!("connect: {error}"))),
        }
    }

    /// Opens a connection for the device whose turn it is.
    fn open(&mut self, index: usize) -> io::Result<()> {
        let device =
            u32::try_from(self.turn % u64::from(self.options.devices)).map_err(io::Error::other)?;
        self.turn += u64::from(self.options.stride);
        self.counts.opened += 1;
        let address = Ipv4Addr::from(u32::from(self.options.first_address) + device);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::V4(SocketAddrV4::new(address, 0)).into())?;
        match socket.connect(&SocketAddr::V4(self.options.target).into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.name = format!("{}{device:07}", self.options.device_prefix).into_bytes();
        let token = u64::from(slot.generation) << 32 | index as u64;
        epoll::add(
            &self.epoll,
            &socket,
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET,
        )?;
        slot.stream = Some(socket.into());
        Ok(())
    }

    fn take_event(&mut self, token: u64, flags: epoll::EventFlags) {
        let index = (token & 0xffff_ffff) as usize;
        let slot = &self.slots[index];
        if u64::from(slot.generation) != token >> 32 || slot.stream.is_none() {
            return;
        }
        if slot.state == State::Asking
            && slot.sent < self.wire.len()
            && flags.contains(epoll::EventFlags::OUT)
        {
            self.send(index);
        }
        let ended = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        if flags.intersects(epoll::EventFlags::IN | ended) {
            self.receive(index, flags.intersects(ended));
        }
    }

    fn send(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        while let Some(stream) = &mut slot.stream {
            let rest = &self.wire[slot.sent..];
            if rest.is_empty() {
                return;
            }
            match stream.write(rest) {
                Ok(bytes) => {
                    slot.sent += bytes;
                    self.counts.sent_bytes += bytes as u64;
                    // A short write means a full buffer: the kernel says when there is room again.
                    if bytes < rest.len() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return self.fail(index, Fault::Wrong(format!("send: {error}")));
                }
            }
        }
    }

    /// Reads what is there; `to_the_end` if the end may already stand behind it.
    fn receive(&mut self, index: usize, to_the_end: bool) {
        loop {
            let slot = &mut self.slots[index];
            let Some(stream) = &mut slot.stream else {
                return;
            };
            match stream.read(&mut self.buffer) {
                Ok(0) => return self.take_end(index),
                Ok(bytes) => {
                    self.counts.received_bytes += bytes as u64;
                    if slot.state != State::Asking {
                        let fault = Fault::Wrong("bytes that nobody asked for".to_owned());
                        return self.fail(index, fault);
                    }
                    let received = &self.buffer[..bytes];
                    let progress = slot.answer.take(received, &self.expected, &slot.name);
                    self.take_progress(index, progress);
                    if bytes < self.buffer.len() && !to_the_end {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if slot.state == State::Resting => return self.take_end(index),
                Err(error) => {
                    return self.fail(index, Fault::Wrong(format!("receive: {error}")));
                }
            }
        }
    }

    /// The gateway has closed.
    fn take_end(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        match slot.state {
            State::Asking => {
                let progress = slot.answer.end(&self.expected, &slot.name);
                self.take_progress(index, progress);
                self.slots[index].stream = None;
                if self.slots[index].state == State::Ending {
                    self.rest(index);
                }
            }
            State::Ending => {
                slot.stream = None;
                self.rest(index);
            }
            State::Resting => {
                slot.stream = None;
                self.counts.dropped += 1;
            }
        }
    }

    fn take_progress(&mut self, index: usize, progress: Result<Progress, Fault>) {
        let slot = &mut self.slots[index];
        let keep = match progress {
            Ok(Progress::Incomplete) => return,
            Ok(Progress::Complete { .. }) if slot.sent < self.wire.len() => {
                let fault = "answered before the whole request was sent";
                return self.fail(index, Fault::Wrong(fault.to_owned()));
            }
            Ok(Progress::Complete { keep }) => keep,
            Err(fault) => return self.fail(index, fault),
        };
        let took = slot.due.elapsed().as_nanos();
        let took = u64::try_from(took).unwrap_or(u64::MAX);
        self.counts.latency.saturating_record(took);
        self.counts.right += 1;
        if keep && !self.options.close {
            self.rest(index);
        } else {
            slot.state = State::Ending;
        }
    }

    /// Something is wrong with what this connection did; it is given up.
    fn fail(&mut self, index: usize, fault: Fault) {
        self.counts.add(fault);
        let slot = &mut self.slots[index];
        slot.stream = None;
        if slot.state != State::Resting {
            self.rest(index);
        }
    }

    /// The place is free for the next request.
    fn rest(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.state = State::Resting;
        self.active -= 1;
        self.resting.push_back(index);
    }

    fn give_up_overdue(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.state != State::Resting && now - slot.begun >= self.options.patience {
                let fault = match slot.state {
                    State::Ending => "the gateway did not close in time",
                    _ if slot.answer.has_started() => "the answer stalled",
                    _ => "no answer in time",
                };
                self.fail(index, Fault::Wrong(fault.to_owned()));
            }
        }
    }
}
