//! What tests of the lease table alone are made of: places, and accounts with devices.

use std::sync::Arc;

use ipnet::IpNet;
use m2u::{
    config::settings::{Account, Device, Fleet},
    control::lease::{claim::Place, directory::Directory},
    snapshot::{identity::IdentityTable, route::AccountId, scope::Scope},
};

pub fn network(text: &str) -> IpNet {
    m2u::config::network(text).unwrap()
}

pub fn place(scope: u8, address: &str) -> Place {
    Place {
        scope: Scope(scope),
        network: network(address),
    }
}

/// An account whose devices have a name, a serial number and networks of their own.
pub fn account(reference: &str, devices: &[(&str, &str, &[&str])]) -> Account {
    let mut fleet = Fleet::default();
    for (name, serial, networks) in devices {
        let networks = networks.iter().map(|text| network(text));
        fleet.push(Device {
            name,
            serial,
            networks: &networks.collect::<Vec<_>>(),
        });
    }
    Account {
        reference: reference.to_owned(),
        expose_identity: true,
        servers: Vec::new(),
        devices: fleet,
    }
}

/// The devices and the fixed addresses of `accounts`, whose numbers are 0, 1 …
pub fn configuration(accounts: &[Account]) -> (Directory, Arc<IdentityTable>) {
    let directory = Directory::build((0..).map(AccountId).zip(accounts));
    let mut fixed = IdentityTable::default();
    for (account, device) in directory.devices() {
        for network in device.networks {
            let inserted = fixed.insert(*network, account, device.name, device.serial);
            inserted.unwrap();
        }
    }
    (directory, Arc::new(fixed))
}

/// The only account, acme, and its devices, none of which has an address.
pub fn acme(names: &[&str]) -> Directory {
    let devices = names.iter().map(|name| (*name, "1", &[][..]));
    configuration(&[account("acme", &devices.collect::<Vec<_>>())]).0
}
