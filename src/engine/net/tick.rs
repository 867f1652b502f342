//! What wakes a core that nobody speaks to: one timer of the kernel, read through the ring.
//!
//! The runtime's own timers would set one and take it back at every wait, which a core that sleeps
//! between requests pays for twice a request. There is no other timer on a core.

use std::{io, os::fd::AsFd, time::Duration};

use monoio::net::UnixStream;
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

/// Ticks at a steady pace.
#[derive(Debug)]
pub struct Ticker {
    timer: TimerFd,
    // For its readiness alone.
    readable: UnixStream,
}

impl Ticker {
    /// The first tick comes after one `period`.
    ///
    /// # Errors
    /// No descriptors are left, or no memory.
    pub fn every(period: Duration) -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let period = Expiration::Interval(TimeSpec::from_duration(period));
        timer.set(period, TimerSetTimeFlags::empty())?;
        let twin = timer.as_fd().try_clone_to_owned()?;
        let readable = UnixStream::from_std(twin.into())?;
        Ok(Self { timer, readable })
    }

    /// Waits for the next tick. Ticks that were missed count as one: what was idle for one was not
    /// idle for ten.
    pub async fn tick(&self) {
        let _ = self.readable.readable(false).await;
        // Where the ring could not wait, this does: the core stands still for a tick, and goes on.
        let _ = self.timer.wait();
    }
}
