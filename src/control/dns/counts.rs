//! What came of the questions, for the line that SIGUSR1 prints. Written by the responder's thread
//! alone, read by the control thread.

use super::answer::Outcome;
use crate::observe::metrics::Count;

/// What a responder has counted since its start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    outcomes: [Count; Outcome::ALL.len()],
    /// Answers that the kernel did not take.
    pub(super) unsent: Count,
    /// TCP connections accepted.
    pub(super) connections: Count,
    /// TCP connections among them that were one too many.
    pub(super) connections_refused: Count,
    /// TCP connections among them that were silent, or slow, for too long.
    pub(super) connections_idle: Count,
    /// Receives and accepts that failed, for want of memory or descriptors as a rule.
    pub(super) failed: Count,
    /// Faults of the responder's own.
    pub(super) faults: Count,
}

impl Counts {
    /// Counts a message; each is counted once.
    pub(super) fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].add();
    }

    /// `dns.name=count` of everything that ever was, as words of one line.
    pub(super) fn words(&self) -> String {
        let outcomes = Outcome::ALL.into_iter().zip(&self.outcomes);
        let outcomes = outcomes.map(|(outcome, count)| (outcome.name(), count));
        let others = [
            ("unsent", &self.unsent),
            ("connections", &self.connections),
            ("connections_refused", &self.connections_refused),
            ("connections_idle", &self.connections_idle),
            ("failed", &self.failed),
            ("faults", &self.faults),
        ];
        let counts = outcomes
            .chain(others)
            .map(|(name, count)| (name, count.read()));
        let seen = counts.filter(|(_, count)| *count > 0);
        let words = seen.map(|(name, count)| format!("dns.{name}={count}"));
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_count_and_name() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
            let same = |other: &Outcome| other.name() == outcome.name();
            assert_eq!(Outcome::ALL.iter().filter(|other| same(other)).count(), 1);
        }
    }

    #[test]
    fn what_never_was_is_left_out() {
        let counts = Counts::default();
        assert_eq!(counts.words(), "");
        counts.count(Outcome::Refused);
        counts.unsent.add();
        assert_eq!(counts.words(), "dns.refused=1 dns.unsent=1");
    }
}
