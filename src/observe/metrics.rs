//! Counts of what happens on each core, read by the control plane while the cores go on.
//!
//! A core has a block of its own and alone writes to it: no lock, no allocation, no read-modify-write
//! that another core could have to wait for. Sums over the cores are taken when somebody asks.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

/// Kinds of failure that a core can count.
pub const FAILURES_MAX: usize = 40;

/// A number that one thread changes and any thread may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more. Only the owning core may call it.
    #[inline]
    pub fn add(&self) {
        self.set(self.read() + 1);
    }

    /// From now on it is `value`. Only the owning core may call it.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is now.
    #[inline]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one core counts. Aligned so that no two cores write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CoreMetrics {
    /// Connections accepted.
    pub accepted: Count,
    /// Accepts that failed, for want of descriptors or memory as a rule.
    pub accept_failed: Count,
    /// Requests whose head was complete.
    pub requests: Count,
    /// Connections of devices that are open now, as of the last tick.
    pub open: Count,
    /// Connections among them that sleep, having been idle for a while, as of the last tick.
    pub dormant: Count,
    /// Connections among them that are being refused, as of the last tick.
    pub refusing: Count,
    /// Idle connections to servers, as of the last tick.
    pub pooled: Count,
    ended: [Count; Ending::ALL.len()],
    failed: Failed,
}

/// Counts by kind of failure.
#[derive(Debug)]
struct Failed([Count; FAILURES_MAX]);

impl Default for Failed {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Count::default()))
    }
}

impl CoreMetrics {
    /// Counts a device's connection that has ended; each is counted once.
    pub fn count_end(&self, ending: Ending) {
        self.ended[ending as usize].add();
    }

    /// Counts a failed exchange, by the failure's place in the order that [`Totals::sum`] is given.
    pub fn count_failure(&self, failure: usize) {
        self.failed.0[failure].add();
    }
}

/// Why a device's connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The device closed it between requests, or its last answer closed it as agreed.
    Finished,
    /// After a failure, which is counted by itself.
    Failed,
    /// The device was silent for too long.
    Idle,
    /// The core was draining.
    Drained,
    /// The device reset it between requests.
    Reset,
    /// The device went away within a head.
    HeadAbandoned,
    /// The PROXY protocol header did not come.
    ProxyHeaderMissing,
    /// One too many, while too many others were being told so: closed without an answer.
    RefusedUnanswered,
    /// A fault of the gateway's own.
    Fault,
}

impl Ending {
    /// Every ending, in the order of the counts.
    pub const ALL: [Self; 9] = [
        Self::Finished,
        Self::Failed,
        Self::Idle,
        Self::Drained,
        Self::Reset,
        Self::HeadAbandoned,
        Self::ProxyHeaderMissing,
        Self::RefusedUnanswered,
        Self::Fault,
    ];

    /// Its name in the metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Idle => "idle",
            Self::Drained => "drained",
            Self::Reset => "reset",
            Self::HeadAbandoned => "head_abandoned",
            Self::ProxyHeaderMissing => "proxy_header_missing",
            Self::RefusedUnanswered => "refused_unanswered",
            Self::Fault => "fault",
        }
    }
}

/// Sums over all cores.
#[derive(Debug)]
pub struct Totals {
    counts: Vec<(&'static str, u64)>,
    ended: Vec<(&'static str, u64)>,
    failed: Vec<(&'static str, u64)>,
}

impl Totals {
    /// Adds the cores' counts up; `failures` names the kinds of failure.
    pub fn sum<'c>(
        cores: impl Iterator<Item = &'c CoreMetrics> + Clone,
        failures: &[&'static str],
    ) -> Self {
        let sum = |of: &dyn Fn(&CoreMetrics) -> u64| cores.clone().map(of).sum::<u64>();
        let ended = |ending: &Ending| {
            let index = *ending as usize;
            (ending.name(), sum(&|core| core.ended[index].read()))
        };
        let failed = |(index, name): (usize, &&'static str)| {
            (*name, sum(&|core| core.failed.0[index].read()))
        };
        Self {
            counts: vec![
                ("open", sum(&|core| core.open.read())),
                ("dormant", sum(&|core| core.dormant.read())),
                ("refusing", sum(&|core| core.refusing.read())),
                ("pooled", sum(&|core| core.pooled.read())),
                ("accepted", sum(&|core| core.accepted.read())),
                ("accept_failed", sum(&|core| core.accept_failed.read())),
                ("requests", sum(&|core| core.requests.read())),
            ],
            ended: Ending::ALL.iter().map(ended).collect(),
            failed: failures.iter().enumerate().map(failed).collect(),
        }
    }
}

impl fmt::Display for Totals {
    /// One line of `name=count`; reasons that never were are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts.iter().map(|(name, count)| ("", name, count));
        let reasons = [("ended.", &self.ended), ("failed.", &self.failed)];
        let reasons = reasons.into_iter().flat_map(|(group, counts)| {
            let seen = counts.iter().filter(|(_, count)| *count > 0);
            seen.map(move |(name, count)| (group, name, count))
        });
        for (index, (group, name, count)) in counts.chain(reasons).enumerate() {
            let blank = if index == 0 { "" } else { " " };
            write!(f, "{blank}{group}{name}={count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_added_up_and_what_never_was_is_left_out() {
        let cores = [CoreMetrics::default(), CoreMetrics::default()];
        for core in &cores {
            core.accepted.add();
            core.count_end(Ending::Idle);
        }
        cores[1].count_failure(1);
        cores[0].pooled.set(7);
        assert_eq!(
            Totals::sum(cores.iter(), &["first", "second"]).to_string(),
            "open=0 dormant=0 refusing=0 pooled=7 accepted=2 accept_failed=0 requests=0 ended.idle=2 \
             failed.second=1"
        );
    }

    #[test]
    fn every_ending_has_its_own_count_and_name() {
        for (index, ending) in Ending::ALL.into_iter().enumerate() {
            assert_eq!(ending as usize, index);
            let same = |other: &Ending| other.name() == ending.name();
            assert_eq!(Ending::ALL.iter().filter(|other| same(other)).count(), 1);
        }
    }
}
