//! The devices that the configuration knows, by account and name. Knows no address.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::{
    config::settings::{Account, Device, Fleet},
    snapshot::{identity::Identity, route::AccountId},
};

/// Number of a device in one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId {
    account: u32,
    device: u32,
}

/// Why there is no such device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// No account has the *ref*.
    Account,
    /// The account has no device of the name.
    Device,
}

/// Every device of every account.
#[derive(Debug, Default)]
pub struct Directory {
    accounts: Vec<(AccountId, Box<str>, Fleet)>,
    by_reference: HashMap<Box<str>, u32>,
    by_name: HashTable<DeviceId>,
    hasher: DefaultHashBuilder,
}

impl Directory {
    /// The devices of `accounts`, each with its number.
    pub fn build<'a>(accounts: impl Iterator<Item = (AccountId, &'a Account)>) -> Self {
        let mut directory = Self::default();
        for (id, account) in accounts {
            directory.add(id, account);
        }
        directory
    }

    fn add(&mut self, id: AccountId, account: &Account) {
        let number = self.accounts.len() as u32;
        let reference = account.reference.as_str();
        self.by_reference.insert(reference.into(), number);
        self.accounts
            .push((id, reference.into(), account.devices.clone()));
        let (accounts, hasher) = (&self.accounts, &self.hasher);
        let fleet = &accounts[number as usize].2;
        self.by_name.reserve(fleet.len(), |known| {
            let device = accounts[known.account as usize]
                .2
                .device(known.device as usize);
            hasher.hash_one((known.account, device.name))
        });
        for (index, device) in (0..).zip(fleet.iter()) {
            let hash = hasher.hash_one((number, device.name));
            let known = DeviceId {
                account: number,
                device: index,
            };
            // Room was made for all of them.
            self.by_name.insert_unique(hash, known, |_| hash);
        }
    }

    /// The device of the account with this *ref* that has this name.
    ///
    /// # Errors
    /// [`Absent`], which says which of the two is not known.
    pub fn find(&self, reference: &str, name: &str) -> Result<DeviceId, Absent> {
        let account = *self.by_reference.get(reference).ok_or(Absent::Account)?;
        let hash = self.hasher.hash_one((account, name));
        let is_it = |known: &DeviceId| known.account == account && self.device(*known).name == name;
        self.by_name
            .find(hash, is_it)
            .copied()
            .ok_or(Absent::Device)
    }

    /// Whether every device of `before` has its number here as well, and the same is stamped for it.
    pub fn continues(&self, before: &Self) -> bool {
        let is_same =
            |(old, new): (Device<'_>, Device<'_>)| (old.name, old.serial) == (new.name, new.serial);
        let mut accounts = before.accounts.iter().zip(&self.accounts);
        before.accounts.len() <= self.accounts.len()
            && accounts.all(|((old_id, old_reference, old), (id, reference, new))| {
                (old_id, old_reference) == (id, reference)
                    && old.len() <= new.len()
                    && old.iter().zip(new.iter()).all(is_same)
            })
    }

    /// What is stamped for a device.
    pub fn identity(&self, id: DeviceId) -> Identity<'_> {
        let Device { name, serial, .. } = self.device(id);
        Identity {
            account: self.accounts[id.account as usize].0,
            name,
            serial,
        }
    }

    /// The *ref* of a device's account, and the device's name.
    pub fn names(&self, id: DeviceId) -> (&str, &str) {
        (&self.accounts[id.account as usize].1, self.device(id).name)
    }

    /// The *ref* of the account with this number.
    pub fn reference(&self, account: AccountId) -> Option<&str> {
        let found = self.accounts.iter().find(|(id, ..)| *id == account);
        found.map(|(_, reference, _)| &**reference)
    }

    /// Every device, with the number of its account.
    pub fn devices(&self) -> impl Iterator<Item = (AccountId, Device<'_>)> + Clone {
        let accounts = self.accounts.iter();
        accounts.flat_map(|(id, _, fleet)| fleet.iter().map(|device| (*id, device)))
    }

    fn device(&self, id: DeviceId) -> Device<'_> {
        self.accounts[id.account as usize]
            .2
            .device(id.device as usize)
    }
}
