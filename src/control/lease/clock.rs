//! What time it is for leases: the system's clock as it was at the start, and what has passed since.
//!
//! Setting that clock makes no lease longer and no report older, while the gateway runs or between
//! two of its runs: what has passed is told by a clock that counts from the host's start, also while
//! the host sleeps.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::claim::UnixMs;

/// One moment by both clocks: what ties the times of a run to those of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// The host's run; empty: not known, and the same as no other.
    pub boot: String,
    /// Milliseconds since the host's start.
    pub boot_ms: u64,
    /// The same moment in the run's own time.
    pub at_ms: UnixMs,
}

impl Anchor {
    /// This moment.
    pub fn now() -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self {
            boot: boot.unwrap_or_default().trim().to_owned(),
            boot_ms: boot_ms(),
            at_ms: now(),
        }
    }

    /// A run's last sign of life, and what to add to its times, both in this run's time. The run began
    /// at `earlier`. No sign of life: it can't be told how long ago that was.
    ///
    /// After a start of the host the system's clock has the word, as far as it makes sense.
    pub fn since(&self, earlier: Option<&Self>, alive: UnixMs) -> (i64, Option<UnixMs>) {
        let shift = earlier.and_then(|earlier| self.shift_from(earlier));
        let alive = alive.saturating_add_signed(shift.unwrap_or_default());
        let alive = Some(alive).filter(|alive| *alive <= self.at_ms);
        (shift.unwrap_or_default(), alive)
    }

    /// How much later a time of `earlier`'s run is called in this one's; `None`: nobody can tell, as
    /// the host has been started in between.
    fn shift_from(&self, earlier: &Self) -> Option<i64> {
        let is_same_boot = !self.boot.is_empty() && self.boot == earlier.boot;
        let elapsed = self.boot_ms.checked_sub(earlier.boot_ms)?;
        let then = self.at_ms.checked_sub(elapsed)?;
        is_same_boot.then(|| then.wrapping_sub(earlier.at_ms) as i64)
    }
}

/// The time.
pub fn now() -> UnixMs {
    static BEGUN: LazyLock<(UnixMs, u64)> = LazyLock::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let begun = since.unwrap_or_default().as_millis() as UnixMs;
        (begun, boot_ms())
    });
    let (begun, at) = *BEGUN;
    begun + (boot_ms() - at)
}

/// A moment of the system's clock in that time.
pub fn unix_ms(time: SystemTime) -> UnixMs {
    // In this order: whoever is held up in between makes it older, not younger.
    let now = now();
    let age = SystemTime::now().duration_since(time).unwrap_or_default();
    now.saturating_sub(age.as_millis() as UnixMs)
}

/// This moment by the system's clock and in that time, to a millisecond.
pub fn by_both() -> (SystemTime, UnixMs) {
    loop {
        let before = now();
        let system = SystemTime::now();
        let after = now();
        // Held up in between, it was two moments.
        if after - before <= 1 {
            return (system, after);
        }
    }
}

/// When a timer for that time fires.
pub fn instant_of(at: UnixMs) -> Instant {
    // A millisecond later: timers must not fire before the time has come.
    Instant::now() + Duration::from_millis(at.saturating_sub(now()) + 1)
}

fn boot_ms() -> u64 {
    let since = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it");
    Duration::from(since).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(boot: &str, boot_ms: u64, at_ms: UnixMs) -> Anchor {
        Anchor {
            boot: boot.to_owned(),
            boot_ms,
            at_ms,
        }
    }

    #[test]
    fn a_clock_that_was_set_between_two_runs_shifts_their_times() {
        let earlier = anchor("b", 1_000, 500_000);
        for (at_ms, shift) in [(502_000, 0), (102_000, -400_000), (902_000, 400_000)] {
            assert_eq!(anchor("b", 3_000, at_ms).shift_from(&earlier), Some(shift));
        }
    }

    #[test]
    fn nobody_can_tell_what_has_passed_since_another_run_of_the_host() {
        let earlier = anchor("b", 1_000, 500_000);
        assert_eq!(anchor("c", 3_000, 502_000).shift_from(&earlier), None);
        assert_eq!(anchor("b", 900, 502_000).shift_from(&earlier), None);
        assert_eq!(anchor("b", 3_000, 1_000).shift_from(&earlier), None);
        let unknown = anchor("", 1_000, 500_000);
        assert_eq!(anchor("", 3_000, 502_000).shift_from(&unknown), None);
    }

    #[test]
    fn time_passes() {
        let (before, boot) = (now(), Anchor::now());
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(20) {}
        assert!(now() >= before + 20);
        assert_eq!(
            Anchor::now()
                .shift_from(&boot)
                .map(i64::abs)
                .map(|ms| ms <= 1),
            Some(true)
        );
    }
}
