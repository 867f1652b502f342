//! Turns: who waits for one of a core's next sweeps.
//!
//! A sweep wakes those whose turn it is, and never more than it has time for as long as others of the
//! next second have room. It polls nobody itself.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    task::{Poll, Waker},
};

use crate::limits::{self, SWEEPS_AHEAD_MAX};

/// Those that wait, by the sweep at which they are woken.
#[derive(Debug, Default)]
pub struct Turns {
    waiting: RefCell<[Vec<Waker>; SWEEPS_AHEAD_MAX]>,
    turn: Cell<usize>,
}

impl Turns {
    /// Waits for so many sweeps, from one to [`SWEEPS_AHEAD_MAX`]; for more of them if those have
    /// enough to wake, and for fewer if all are woken.
    pub fn wait(&self, sweeps: usize) -> impl Future<Output = ()> {
        debug_assert!((1..=SWEEPS_AHEAD_MAX).contains(&sweeps));
        let mut is_waiting = false;
        poll_fn(move |context| {
            if std::mem::replace(&mut is_waiting, true) {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            // The first that is not full, or not fuller than the others.
            let place = (sweeps..=SWEEPS_AHEAD_MAX)
                .map(|sweeps| (self.turn.get() + sweeps) % SWEEPS_AHEAD_MAX)
                .min_by_key(|place| waiting[*place].len() / limits::WOKEN_PER_SWEEP)
                .expect("no more sweeps than there are");
            waiting[place].push(context.waker().clone());
            Poll::Pending
        })
    }

    /// Wakes those whose turn it is now.
    pub fn next(&self) {
        let turn = (self.turn.get() + 1) % SWEEPS_AHEAD_MAX;
        self.turn.set(turn);
        let woken = std::mem::take(&mut self.waiting.borrow_mut()[turn]);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Wakes all.
    pub fn wake_all(&self) {
        for waiting in self.waiting.take() {
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{Arc, mpsc},
        task::{Context, Wake},
    };

    use super::*;

    /// Says by its name that it was woken.
    struct Noting(mpsc::Sender<usize>, usize);

    impl Wake for Noting {
        fn wake(self: Arc<Self>) {
            self.0.send(self.1).expect("a test");
        }
    }

    /// Turns, and the names of those that were woken.
    struct Scene {
        turns: Turns,
        woken: mpsc::Sender<usize>,
        names: mpsc::Receiver<usize>,
    }

    impl Scene {
        fn new() -> Self {
            let (woken, names) = mpsc::channel();
            Self {
                turns: Turns::default(),
                woken,
                names,
            }
        }

        /// Somebody waits who has the name of what they wait for.
        fn wait(&self, sweeps: usize) {
            let waker = Waker::from(Arc::new(Noting(self.woken.clone(), sweeps)));
            let mut wait = pin!(self.turns.wait(sweeps));
            let mut context = Context::from_waker(&waker);
            assert!(wait.as_mut().poll(&mut context).is_pending());
            assert!(wait.as_mut().poll(&mut context).is_ready());
        }

        /// Those that each of the next sweeps wakes.
        fn woken(&self) -> [Vec<usize>; SWEEPS_AHEAD_MAX] {
            std::array::from_fn(|_| {
                self.turns.next();
                self.names.try_iter().collect()
            })
        }
    }

    #[test]
    fn each_is_woken_at_the_sweep_that_it_waits_for() {
        let scene = Scene::new();
        // Wherever the turn is.
        for _ in 0..SWEEPS_AHEAD_MAX {
            scene.turns.next();
            [2, SWEEPS_AHEAD_MAX, 1, 1]
                .into_iter()
                .for_each(|sweeps| scene.wait(sweeps));
            let woken = scene.woken();
            assert_eq!(woken[..2], [vec![1, 1], vec![2]]);
            assert_eq!(woken[SWEEPS_AHEAD_MAX - 1], [SWEEPS_AHEAD_MAX]);
            assert_eq!(woken.concat().len(), 4);
        }
    }

    #[test]
    fn whoever_finds_a_sweep_full_waits_for_a_later_one_and_is_not_forgotten() {
        let scene = Scene::new();
        let full = limits::WOKEN_PER_SWEEP;
        let room = SWEEPS_AHEAD_MAX * full;
        (0..room).for_each(|_| scene.wait(1));
        let last = [SWEEPS_AHEAD_MAX - 1, SWEEPS_AHEAD_MAX];
        last.into_iter().for_each(|sweeps| scene.wait(sweeps));
        let woken = scene.woken();
        for (sweep, woken) in woken.iter().enumerate() {
            let more = usize::from(last.contains(&(sweep + 1)));
            assert_eq!(woken.len(), full + more, "{sweep}");
        }
        assert!(scene.woken().concat().is_empty());
    }

    #[test]
    fn all_can_be_woken_at_once() {
        let scene = Scene::new();
        [SWEEPS_AHEAD_MAX, 1]
            .into_iter()
            .for_each(|sweeps| scene.wait(sweeps));
        scene.turns.wake_all();
        assert_eq!(scene.names.try_iter().count(), 2);
        assert!(scene.woken().concat().is_empty());
    }
}
