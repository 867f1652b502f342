//! VPN address -> device: exact address first, else the longest matching prefix.
//!
//! Immutable; a change makes a new table that shares everything it did not touch.

use std::net::IpAddr;

use ipnet::IpNet;

use super::route::AccountId;

/// The devices by address.
#[derive(Debug, Default, Clone)]
pub struct IdentityTable {}

/// What is known of the device behind an address. Borrowed from the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Whose device it is.
    pub account: AccountId,
    /// The device's name.
    pub name: &'a str,
    /// The device's serial number.
    pub serial: &'a str,
    /// `X_Talk2M_Device: name\r\nX_Talk2M_SerialNumber: serial\r\n`.
    pub fields: &'a [u8],
}

impl IdentityTable {
    /// The device that speaks from `address`; IPv4-mapped IPv6 counts as IPv4.
    pub fn resolve(&self, address: IpAddr) -> Option<Identity<'_>> {
        let _ = address.to_canonical();
        None
    }

    /// Adds `network` for a device while the table is being built.
    ///
    /// # Errors
    /// `Occupied` if this very network already has a device; the table is unchanged.
    pub fn insert(
        &mut self,
        network: IpNet,
        account: AccountId,
        name: &str,
        serial: &str,
    ) -> Result<(), Occupied> {
        let _ = (network, account, name, serial);
        Ok(())
    }
}

/// The network already belongs to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupied;
