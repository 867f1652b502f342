//! How young a status file can be: no younger than the look that found it, whatever its date says.
//!
//! The host's clock, before it was set back, may have dated it later than it was written. Says nothing of
//! how old it is: for that there is its date.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::control::lease::claim::UnixMs;

/// By how many milliseconds two readings of both clocks may differ before one of these counts as set.
const SET_MS: i64 = 5;

/// What was seen of one status file, since it was looked at first.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// When it was looked at last: of one that nobody has looked at, nothing is known.
    last: UnixMs,
    /// How far the system's clock was ahead of the leases' own then, in milliseconds.
    ahead_ms: Option<i64>,
    /// The date that was found last, and what a file of that date is no younger than.
    found: Option<(SystemTime, UnixMs)>,
}

impl Looks {
    /// Takes note of the date that the file has `at` the moment that the system's clock calls `system`.
    pub(super) fn look(&mut self, written: Option<SystemTime>, system: SystemTime, at: UnixMs) {
        let ahead_ms = system
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64)
            - at as i64;
        let before = self.ahead_ms.replace(ahead_ms);
        let was_set_back = before.is_some_and(|before| ahead_ms < before - SET_MS);
        let last = std::mem::replace(&mut self.last, at);
        if let Some(written) = written
            && self.found.is_none_or(|(found, _)| found != written)
        {
            // Written before the clock was set back, it may be as old as the look before, at which it was
            // not there yet.
            let is_certain = written <= system && !was_set_back;
            self.found = Some((written, if is_certain { at } else { last }));
        }
    }

    /// What a file of this date is no younger than: what was written since the last look may be as old as that.
    pub(super) fn no_younger_than(&self, written: SystemTime) -> UnixMs {
        match self.found {
            Some((found, at)) if found == written => at,
            _ => self.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A moment of the system's clock.
    fn second(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_000 + seconds)
    }

    /// The same of the leases' own, with the one set back by `set_back` seconds.
    fn at(seconds: u64, set_back: u64) -> UnixMs {
        (1_000 + seconds + set_back) * 1_000
    }

    #[test]
    fn a_file_is_no_younger_than_the_look_that_found_it() {
        let mut looks = Looks::default();
        assert_eq!(looks.no_younger_than(second(5)), 0);
        looks.look(Some(second(5)), second(9), at(9, 0));
        assert_eq!(looks.no_younger_than(second(5)), at(9, 0));
        // Nor is it for being found again; one that came behind that look may be as young as it.
        looks.look(Some(second(5)), second(20), at(20, 0));
        assert_eq!(looks.no_younger_than(second(5)), at(9, 0));
        assert_eq!(looks.no_younger_than(second(21)), at(20, 0));
        looks.look(None, second(25), at(25, 0));
        looks.look(Some(second(28)), second(30), at(30, 0));
        assert_eq!(looks.no_younger_than(second(28)), at(30, 0));
    }

    #[test]
    fn one_that_is_dated_ahead_may_be_as_old_as_the_look_before() {
        let mut looks = Looks::default();
        looks.look(Some(second(5)), second(9), at(9, 0));
        looks.look(Some(second(21)), second(20), at(20, 0));
        assert_eq!(looks.no_younger_than(second(21)), at(9, 0));
        // That its date has been reached makes it no younger.
        looks.look(Some(second(21)), second(22), at(22, 0));
        assert_eq!(looks.no_younger_than(second(21)), at(9, 0));
    }

    #[test]
    fn of_one_that_is_dated_ahead_at_the_first_look_nothing_is_known() {
        let mut looks = Looks::default();
        looks.look(Some(second(10)), second(9), at(9, 0));
        assert_eq!(looks.no_younger_than(second(10)), 0);
    }

    #[test]
    fn a_clock_that_was_set_back_tells_nothing_of_what_was_written_before() {
        let mut looks = Looks::default();
        looks.look(Some(second(5)), second(9), at(9, 0));
        // Written at 15, then set back by ten: its date has been reached again.
        looks.look(Some(second(15)), second(16), at(16, 10));
        assert_eq!(looks.no_younger_than(second(15)), at(9, 0));
        // What is written from then on has the new clock's date.
        looks.look(Some(second(18)), second(20), at(20, 10));
        assert_eq!(looks.no_younger_than(second(18)), at(20, 10));
        // To be set ahead makes dates older.
        looks.look(Some(second(40)), second(60), at(60, 5));
        assert_eq!(looks.no_younger_than(second(40)), at(60, 5));
    }
}
