//! The lock-free swap between the control plane and the cores.
//!
//! A core pays one pointer comparison to learn that nothing changed, and never waits for a writer.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use super::Snapshot;

/// The writing end, held by the control plane.
#[derive(Debug, Clone)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
}

impl Publisher {
    /// Begins with `snapshot`.
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
        }
    }

    /// Makes `snapshot` what every core sees from its next request on.
    pub fn publish(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }

    /// What is published now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// A reading end for one core.
    pub fn subscribe(&self) -> Subscriber {
        Subscriber {
            cache: Cache::new(Arc::clone(&self.current)),
        }
    }
}

/// The reading end, one a core.
#[derive(Debug)]
pub struct Subscriber {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
}

impl Subscriber {
    /// The newest snapshot; take it once per request and keep it for that exchange.
    pub fn load(&mut self) -> &Arc<Snapshot> {
        self.cache.load()
    }
}
