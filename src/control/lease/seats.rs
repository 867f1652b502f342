//! The connections that a feed has at a time, shared among the users that may speak.
//!
//! Nobody is kept out by others' idle connections: one of those ends where there is no room, the
//! one that has waited longest. Does no I/O and reads no clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::limits;

/// All connections of a feed.
#[derive(Debug, Clone)]
pub struct Seats(Arc<Mutex<Taken>>);

#[derive(Debug)]
struct Taken {
    /// Users for whom some seats are kept.
    owners: Vec<u32>,
    sitting: Vec<Sitting>,
    /// Numbers seats, and moments.
    clock: u64,
}

#[derive(Debug)]
struct Sitting {
    number: u64,
    user: u32,
    /// Since when it waits for its peer; `None`: it is at work.
    idle_since: Option<u64>,
    watches: bool,
    leave: Arc<Notify>,
}

/// The seat of one connection, which is free when this is dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Seats,
    number: u64,
    leave: Arc<Notify>,
}

impl Seats {
    /// All free; some of them are kept for `owners`.
    pub fn new(owners: Vec<u32>) -> Self {
        Self(Arc::new(Mutex::new(Taken {
            owners,
            sitting: Vec::new(),
            clock: 0,
        })))
    }

    /// A seat for a connection of `user`, if need be that of an idle one, which is told to leave;
    /// `None` if all whose place it could have are at work.
    pub fn take(&self, user: u32) -> Option<Seat> {
        let mut taken = self.taken();
        taken.make_room(user)?;
        let number = taken.moment();
        let leave = Arc::new(Notify::new());
        taken.sitting.push(Sitting {
            number,
            user,
            idle_since: Some(number),
            watches: false,
            leave: Arc::clone(&leave),
        });
        Some(Seat {
            seats: self.clone(),
            number,
            leave,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing in it is ever half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn moment(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Sees to it that each bound has room for one more of `user`.
    fn make_room(&mut self, user: u32) -> Option<()> {
        const OTHERS_MAX: usize =
            limits::FEED_CONNECTIONS_MAX - limits::FEED_CONNECTIONS_KEPT_FOR_OWNERS;
        self.make_room_among(limits::FEED_CONNECTIONS_PER_USER_MAX, |_, sitting| {
            sitting.user == user
        })?;
        if !self.owners.contains(&user) {
            self.make_room_among(OTHERS_MAX, |owners, sitting| {
                !owners.contains(&sitting.user)
            })?;
        }
        self.make_room_among(limits::FEED_CONNECTIONS_MAX, |_, _| true)
    }

    /// Sees to it that fewer than `max` of those that count have a seat.
    fn make_room_among(
        &mut self,
        max: usize,
        counts: impl Fn(&[u32], &Sitting) -> bool,
    ) -> Option<()> {
        let those = || {
            let sitting = self.sitting.iter().enumerate();
            sitting.filter(|(_, sitting)| counts(&self.owners, sitting))
        };
        if those().count() < max {
            return Some(());
        }
        let idle = those().filter(|(_, sitting)| !sitting.watches);
        let idle = idle.filter_map(|(position, sitting)| Some((sitting.idle_since?, position)));
        let (_, longest) = idle.min()?;
        self.sitting.swap_remove(longest).leave.notify_one();
        Some(())
    }
}

impl Seat {
    /// It waits for its peer from now on.
    pub fn rest(&self) {
        let mut taken = self.seats.taken();
        let now = taken.moment();
        self.change(&mut taken, |sitting| sitting.idle_since = Some(now));
    }

    /// It is at work from now on.
    pub fn work(&self) {
        let mut taken = self.seats.taken();
        self.change(&mut taken, |sitting| sitting.idle_since = None);
    }

    /// It watches from now on, and keeps its seat; `false` if as many do as may.
    pub fn watch(&self) -> bool {
        let mut taken = self.seats.taken();
        let user = taken.sitting.iter().find(|s| s.number == self.number);
        let Some(user) = user.map(|sitting| sitting.user) else {
            return false;
        };
        let watching = || taken.sitting.iter().filter(|sitting| sitting.watches);
        let own = watching().filter(|sitting| sitting.user == user).count();
        if own >= limits::FEED_WATCHES_PER_USER_MAX
            || watching().count() >= limits::FEED_WATCHES_MAX
        {
            return false;
        }
        self.change(&mut taken, |sitting| sitting.watches = true);
        true
    }

    /// Waits until another needs the seat.
    pub async fn lost(&self) {
        self.leave.notified().await;
    }

    /// Changes what is known of this seat, if it has not been lost.
    fn change(&self, taken: &mut Taken, change: impl FnOnce(&mut Sitting)) {
        let mut sitting = taken.sitting.iter_mut();
        if let Some(own) = sitting.find(|sitting| sitting.number == self.number) {
            change(own);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        taken
            .sitting
            .retain(|sitting| sitting.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const PER_USER: usize = limits::FEED_CONNECTIONS_PER_USER_MAX;
    const KEPT: usize = limits::FEED_CONNECTIONS_KEPT_FOR_OWNERS;

    fn seats() -> Seats {
        Seats::new(vec![ROOT, 7])
    }

    /// So many of one user, all at work.
    fn busy(seats: &Seats, user: u32, count: usize) -> Vec<Seat> {
        let taken = (0..count).map(|_| {
            let seat = seats.take(user).expect("a seat");
            seat.work();
            seat
        });
        taken.collect()
    }

    fn is_lost(seat: &Seat) -> bool {
        let taken = seat.seats.taken();
        taken
            .sitting
            .iter()
            .all(|other| other.number != seat.number)
    }

    #[test]
    fn one_user_has_half_of_them_at_most() {
        let seats = seats();
        let mut own = busy(&seats, 1_000, PER_USER);
        assert!(seats.take(1_000).is_none());
        assert_eq!(busy(&seats, 1_001, 1).len(), 1, "another one has room");
        own.pop();
        assert!(seats.take(1_000).is_some());
    }

    #[test]
    fn root_and_the_gateways_own_user_always_have_some() {
        let seats = seats();
        let others = limits::FEED_CONNECTIONS_MAX - KEPT;
        let first = busy(&seats, 1_000, PER_USER);
        let second = busy(&seats, 1_001, others - PER_USER);
        assert!(seats.take(1_001).is_none());
        assert!(seats.take(1_002).is_none());
        let owners = [busy(&seats, ROOT, KEPT - 1), busy(&seats, 7, 1)];
        assert!(seats.take(ROOT).is_none(), "all are taken");
        drop((first, second, owners));
        assert_eq!(busy(&seats, ROOT, PER_USER).len(), PER_USER);
    }

    #[test]
    fn whoever_has_been_idle_longest_gives_way_to_the_next() {
        let seats = seats();
        let own: Vec<Seat> = (0..PER_USER)
            .map(|_| seats.take(1).expect("a seat"))
            .collect();
        let other = seats.take(2).expect("a seat");
        own[0].rest();
        own[1].work();
        assert!(own[2].watch());
        let one_more = seats.take(1).expect("that of the fourth");
        let lost: Vec<_> = (0..PER_USER).filter(|at| is_lost(&own[*at])).collect();
        assert_eq!(lost, [3]);
        assert!(!is_lost(&other) && !is_lost(&one_more));
        // It has been told, and what it does from now on counts for nothing.
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(own[3].lost());
        own[3].rest();
        assert!(!own[3].watch());
        drop(own);
        assert_eq!(seats.taken().sitting.len(), 2);
    }

    #[test]
    fn a_bound_of_several_users_takes_from_those_alone() {
        let seats = seats();
        let root = seats.take(ROOT).expect("a seat");
        let others = limits::FEED_CONNECTIONS_MAX - KEPT;
        let own: Vec<Seat> = (0..PER_USER)
            .map(|_| seats.take(1).expect("a seat"))
            .collect();
        let more = busy(&seats, 2, others - PER_USER);
        let third = seats.take(3).expect("one of the first's");
        assert!(is_lost(&own[0]) && !is_lost(&root) && !is_lost(&third));
        drop(more);
        assert!(!is_lost(&own[1]));
    }

    #[test]
    fn some_seats_are_never_watchers() {
        let seats = seats();
        let mut watching = 0;
        for user in 1..4 {
            let seats: Vec<Seat> = (0..PER_USER)
                .map_while(|_| seats.take(user))
                .take_while(Seat::watch)
                .collect();
            assert!(seats.len() <= limits::FEED_WATCHES_PER_USER_MAX);
            watching += seats.len();
            std::mem::forget(seats);
        }
        assert_eq!(watching, limits::FEED_WATCHES_MAX);
        // Each user goes on to be served.
        for user in [ROOT, 1, 2, 3] {
            assert!((0..PER_USER * 2).all(|_| seats.take(user).is_some()));
        }
    }
}
