//! Configuration: the file as written, and the settings as used.
//!
//! In reading order: [`flags`] are the command line's share, `load` turns file and flags into
//! [`settings`], and every [`problem`] of a file is found in one pass. `document` and `entry` walk
//! the TOML; `value` and `server_url` read single strings; `certificates`, `devices`, `device_list`
//! and `files` read what the file names, `fleet` keeps devices small; `openvpn` reads the hubs, and
//! `common_names` says whose device a client is; `gateway`, `account`, `dns` and `leases` put it
//! together.

mod account;
mod certificates;
mod common_names;
mod device_list;
mod devices;
mod dns;
mod document;
mod entry;
mod files;
pub mod flags;
mod fleet;
mod gateway;
mod leases;
mod openvpn;
pub mod problem;
mod server_url;
pub mod settings;
mod value;

pub use certificates::read_key;
pub use device_list::record_line;
pub use devices::overlaps_believed;
pub use gateway::load;
pub use leases::feed_socket;
pub use value::{duration, identity_value, network, resolved_address, slot};
