//! The lock-free swap between the control plane and the cores.
//!
//! A core pays one pointer comparison to learn that nothing changed, and never waits for a writer.
//! Nor does it clear up: what was published before is freed on the writer's side.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, Cache};
use ipnet::IpNet;

use super::{Snapshot, moved::Moved, scope::Scope};
use crate::limits;

/// The writing end, held by the control plane.
#[derive(Debug, Clone)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    /// Published before, and perhaps still in use.
    retired: Arc<Mutex<Vec<Arc<Snapshot>>>>,
    /// What each core has still to be told.
    inboxes: Arc<Mutex<Vec<Arc<Inbox>>>>,
}

/// What changed since one core looked.
#[derive(Debug, Default)]
struct Inbox {
    is_filled: AtomicBool,
    moved: Mutex<Moved>,
}

impl Publisher {
    /// Begins with `snapshot`.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
            retired: Arc::default(),
            inboxes: Arc::default(),
        }
    }

    /// Makes `snapshot` what every core sees from its next request on.
    pub fn publish(&self, snapshot: Snapshot) {
        let before = self.current.swap(Arc::new(snapshot));
        let retired = self.retired.lock();
        retired.unwrap_or_else(PoisonError::into_inner).push(before);
        self.clear_up();
    }

    /// Likewise; and the cores close the idle connections of the networks in `moved`, each at its
    /// next tick. Whoever speaks before that is judged by `snapshot`.
    pub fn publish_moved(&self, snapshot: Snapshot, moved: &[(Scope, IpNet)]) {
        self.publish(snapshot);
        if moved.is_empty() {
            return;
        }
        let inboxes = self.inboxes.lock();
        for inbox in &*inboxes.unwrap_or_else(PoisonError::into_inner) {
            let waiting = inbox.moved.lock();
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            if moved.len() > limits::MOVED_NETWORKS_MAX {
                waiting.add_all();
            }
            for (scope, network) in moved.iter().take(limits::MOVED_NETWORKS_MAX) {
                waiting.add(*scope, *network);
            }
            inbox.is_filled.store(true, Ordering::Release);
        }
    }

    /// Frees what was published before and nobody uses any more; says whether nothing is left.
    ///
    /// A core lets go of a snapshot at its next request, or when an exchange that it serves ends:
    /// whoever publishes has to come back.
    pub fn clear_up(&self) -> bool {
        let retired = self.retired.lock();
        let mut retired = retired.unwrap_or_else(PoisonError::into_inner);
        retired.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        retired.is_empty()
    }

    /// What is published now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A reading end for one core.
    pub fn subscribe(&self) -> Subscriber {
        let inbox = Arc::new(Inbox::default());
        let inboxes = self.inboxes.lock();
        let mut inboxes = inboxes.unwrap_or_else(PoisonError::into_inner);
        inboxes.push(Arc::clone(&inbox));
        Subscriber {
            cache: Cache::new(Arc::clone(&self.current)),
            inbox,
        }
    }
}

/// The reading end, one a core.
#[derive(Debug)]
pub struct Subscriber {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    inbox: Arc<Inbox>,
}

impl Subscriber {
    /// The newest snapshot; take it once per request and keep it for that exchange.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.cache.load()
    }

    /// The networks whose device changed since this was asked last, if there are any. Never waits:
    /// while the writer adds to them, there are none yet.
    pub fn take_moved(&self) -> Option<Moved> {
        if !self.inbox.is_filled.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = self.inbox.moved.try_lock().ok()?;
        self.inbox.is_filled.store(false, Ordering::Relaxed);
        Some(mem::take(&mut *waiting))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Barrier,
        thread,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::snapshot::{
        identity::{Change, IdentityTable},
        route::AccountId,
    };

    fn snapshot(identities: IdentityTable) -> Snapshot {
        Snapshot {
            identities: identities.into(),
            routes: Arc::default(),
            domain: "".into(),
            allow_networks: Arc::default(),
        }
    }

    fn assign(name: &str) -> Change<'_> {
        Change::Assign {
            network: "10.8.0.7/32".parse().expect("a network"),
            account: AccountId(1),
            name,
            serial: "s",
        }
    }

    #[test]
    fn a_change_is_seen_on_every_core_as_soon_as_it_is_published() {
        const CORES: usize = 8;
        const CHANGES: usize = 1_000;
        let publisher = Publisher::new(snapshot(IdentityTable::default()));
        let turn = Barrier::new(CORES + 1);
        let core = |mut subscriber: Subscriber| {
            for number in 0..CHANGES {
                turn.wait();
                let seen = subscriber
                    .load()
                    .identities
                    .resolve(Scope::NONE, [10, 8, 0, 7].into());
                let name = seen.map(|identity| identity.name.to_owned());
                assert_eq!(name, Ok(number.to_string()));
                turn.wait();
            }
        };
        let mut longest = Duration::ZERO;
        thread::scope(|scope| {
            for _ in 0..CORES {
                let subscriber = publisher.subscribe();
                scope.spawn(move || core(subscriber));
            }
            for number in 0..CHANGES {
                let current = publisher.current();
                let begun = Instant::now();
                let name = number.to_string();
                let table = current
                    .identities
                    .table(Scope::NONE)
                    .expect("the common one");
                let changed = table.with_changes([assign(&name)]);
                publisher.publish(snapshot(changed));
                longest = longest.max(begun.elapsed());
                turn.wait();
                turn.wait();
            }
        });
        println!("changed and published within {longest:?} at worst");
    }

    #[test]
    fn the_publisher_frees_what_cores_let_go_of() {
        let publisher = Publisher::new(snapshot(IdentityTable::default()));
        let mut subscriber = publisher.subscribe();
        let first = Arc::downgrade(subscriber.load());
        publisher.publish(snapshot(IdentityTable::default()));
        assert!(!publisher.clear_up() && first.strong_count() == 2);
        let exchange = Arc::clone(subscriber.load());
        assert_eq!(
            first.strong_count(),
            1,
            "the core's own is gone, ours is not"
        );
        assert!(publisher.clear_up() && first.strong_count() == 0);
        drop(exchange);
    }

    #[test]
    fn every_core_hears_once_of_what_moved() {
        let publisher = Publisher::new(snapshot(IdentityTable::default()));
        let cores = [publisher.subscribe(), publisher.subscribe()];
        publisher.publish(snapshot(IdentityTable::default()));
        assert!(cores.iter().all(|core| core.take_moved().is_none()));
        let network = "10.8.0.7/32".parse().expect("a network");
        publisher.publish_moved(snapshot(IdentityTable::default()), &[(Scope(1), network)]);
        for core in &cores {
            let moved = core.take_moved().expect("told");
            assert!(moved.concerns(Scope(1), [10, 8, 0, 7].into()));
            assert!(core.take_moved().is_none());
        }
    }
}
