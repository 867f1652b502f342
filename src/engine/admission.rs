//! How many connections devices may have, counted over all cores.
//!
//! Asked once a connection, never once a request. Counts by address live in many small tables, so
//! that cores that accept at the same moment hardly ever meet at one lock.

use std::{
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use hashbrown::{DefaultHashBuilder, HashMap};

use crate::{config::settings::Limits, limits::ADMISSION_TABLES};

/// The counts of open connections.
#[derive(Debug)]
pub struct Admission {
    open: AtomicUsize,
    open_max: usize,
    per_address_max: usize,
    hasher: DefaultHashBuilder,
    tables: [Mutex<HashMap<IpAddr, usize>>; ADMISSION_TABLES],
}

/// A connection that counts, of nobody yet; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
}

/// A connection that counts as one of an address as well; given back when dropped.
#[derive(Debug)]
pub struct Charged {
    admitted: Admitted,
    address: IpAddr,
}

impl Admission {
    /// Nobody is connected yet.
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            open_max: limits.connections,
            per_address_max: limits.connections_per_address,
            hasher: DefaultHashBuilder::default(),
            tables: std::array::from_fn(|_| Mutex::default()),
        })
    }

    /// Counts one more connection, or `None` if that would be too many: 429.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let admitted = |open| (open < self.open_max).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, admitted)
            .ok()?;
        Some(Admitted {
            admission: Arc::clone(self),
        })
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn table(&self, address: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        let index = self.hasher.hash_one(address) as usize % ADMISSION_TABLES;
        // Nothing between lock and unlock can panic half-way through a change.
        self.tables[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Counts the connection as one of `address`, or `None` if that would be too many: 429.
    pub fn charge(self, address: IpAddr) -> Option<Charged> {
        let mut table = self.admission.table(address);
        let count = table.entry(address).or_insert(0);
        if *count >= self.admission.per_address_max {
            return None;
        }
        *count += 1;
        drop(table);
        let admitted = self;
        Some(Charged { admitted, address })
    }
}

impl Charged {
    /// Whose it is.
    pub fn address(&self) -> IpAddr {
        self.address
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        let mut table = self.admitted.admission.table(self.address);
        if let Some(count) = table.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections: usize, connections_per_address: usize) -> Arc<Admission> {
        Admission::new(&Limits {
            connections,
            connections_per_address,
            ..Limits::default()
        })
    }

    fn admit(admission: &Arc<Admission>, address: IpAddr) -> Option<Charged> {
        admission.admit()?.charge(address)
    }

    #[test]
    fn an_address_gets_its_share_and_no_more() {
        let admission = admission(10, 2);
        let (one, other) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let held = [admit(&admission, one), admit(&admission, one)];
        assert!(held.iter().all(Option::is_some));
        assert!(admit(&admission, one).is_none());
        assert!(admit(&admission, other).is_some());
        drop(held);
        assert!(admit(&admission, one).is_some());
        assert_eq!(admission.open(), 0);
        assert!(
            admission
                .tables
                .iter()
                .all(|table| table.lock().expect("sound").is_empty())
        );
    }

    #[test]
    fn all_addresses_together_are_bounded() {
        let admission = admission(2, 2);
        let held: Vec<_> = (1..=3)
            .map(|n| admit(&admission, [127, 0, 0, n].into()))
            .collect();
        assert_eq!(held.iter().filter(|held| held.is_some()).count(), 2);
    }
}
