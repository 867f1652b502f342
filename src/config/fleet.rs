//! The devices of an account, kept small: there may be millions.
//!
//! One text for all names and serials, one list for all networks. Checks nothing.

use ipnet::IpNet;

/// Devices in the order they were written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    text: String,
    ends: Vec<End>,
    networks: Vec<IpNet>,
}

/// One eWON and the VPN addresses that speak for it. Borrowed from its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device<'a> {
    /// Unique in its account.
    pub name: &'a str,
    /// Changes when the hardware is replaced.
    pub serial: &'a str,
    /// Addresses and prefixes, host bits zero, IPv4-mapped ones as IPv4.
    pub networks: &'a [IpNet],
}

/// Where a device ends in text and networks; it begins where the one before it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct End {
    text: u32,
    networks: u32,
    serial_bytes: u8,
}

impl Fleet {
    /// How many devices there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The devices in order.
    pub fn iter(&self) -> impl Iterator<Item = Device<'_>> + Clone {
        (0..self.len()).map(|index| self.device(index))
    }

    /// The device at `index`, which is less than `len`.
    pub fn device(&self, index: usize) -> Device<'_> {
        let end = self.ends[index];
        let begin = match index.checked_sub(1) {
            Some(before) => self.ends[before],
            None => End::default(),
        };
        let text = &self.text[begin.text as usize..end.text as usize];
        let (name, serial) = text.split_at(text.len() - usize::from(end.serial_bytes));
        Device {
            name,
            serial,
            networks: &self.networks[begin.networks as usize..end.networks as usize],
        }
    }

    /// Makes room for so many more devices, with so many bytes of names and serials.
    pub(super) fn reserve(&mut self, devices: usize, text_bytes: usize) {
        self.ends.reserve_exact(devices);
        self.networks.reserve_exact(devices);
        self.text.reserve_exact(text_bytes);
    }

    /// Adds a device, whose values have been checked.
    pub fn push(&mut self, device: Device<'_>) {
        const BOUND: &str = "files are far smaller than 4 GiB";
        self.text.push_str(device.name);
        self.text.push_str(device.serial);
        self.networks.extend_from_slice(device.networks);
        self.ends.push(End {
            text: u32::try_from(self.text.len()).expect(BOUND),
            networks: u32::try_from(self.networks.len()).expect(BOUND),
            serial_bytes: device.serial.len() as u8,
        });
    }

    /// Makes one device of each in `joins`, (the first of them, another behind it): it has the
    /// networks of all.
    pub(super) fn join(&mut self, joins: &[(u32, u32)]) {
        let mut heads: Vec<u32> = (0..self.len() as u32).collect();
        for (first, another) in joins {
            heads[*another as usize] = *first;
        }
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.sort_by_key(|index| heads[*index as usize]);
        let mut joined = Self::default();
        let mut networks = Vec::new();
        for same in order.chunk_by(|a, b| heads[*a as usize] == heads[*b as usize]) {
            networks.clear();
            for index in same {
                networks.extend_from_slice(self.device(*index as usize).networks);
            }
            joined.push(Device {
                networks: &networks,
                ..self.device(same[0] as usize)
            });
        }
        *self = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_out_as_they_went_in_and_joined_ones_at_the_first() {
        let networks: Vec<IpNet> = (0..5_u8)
            .map(|n| IpNet::from(std::net::IpAddr::from([10, 8, 0, n])))
            .collect();
        let mut fleet = Fleet::default();
        for (name, range) in [("a", 0..1), ("b", 1..3), ("a", 3..4), ("c", 4..5)] {
            fleet.push(Device {
                name,
                serial: "1932",
                networks: &networks[range],
            });
        }
        let shown = |fleet: &Fleet| -> Vec<(String, Vec<IpNet>)> {
            let devices = fleet.iter();
            devices
                .map(|device| {
                    (
                        device.name.to_owned() + device.serial,
                        device.networks.to_vec(),
                    )
                })
                .collect()
        };
        assert_eq!(shown(&fleet)[2], ("a1932".to_owned(), vec![networks[3]]));
        fleet.join(&[(0, 2)]);
        assert_eq!(
            shown(&fleet),
            [
                ("a1932".to_owned(), vec![networks[0], networks[3]]),
                ("b1932".to_owned(), networks[1..3].to_vec()),
                ("c1932".to_owned(), vec![networks[4]]),
            ]
        );
    }
}
