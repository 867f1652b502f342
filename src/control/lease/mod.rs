//! Live identity: leases come and go while the gateway runs.
//!
//! A source says whose an address is: that is a [`claim`]. [`claims`] are all of them, and what
//! follows for each network, over the [`directory`] of the configuration's devices; [`table`] is how
//! they change, [`set`] how many do at once, `room` how many there may be, and [`recall`] what it
//! begins with after a restart, by the [`clock`]. [`seen`] has what holds of hubs beside, whose hooks
//! get lost, and `nested` those networks of theirs that lie within one another. [`feed`] is the Unix
//! socket that sources write to, in the words of [`protocol`], whose `names` stand for something here;
//! nobody else can lead elsewhere through the `folders` on the way to it; users share its [`seats`],
//! and [`watch`] bounds what waits for those who only listen. [`openvpn`] has what hubs say of their
//! clients. [`journal`] remembers leases over a restart. [`registry`] puts it together: what takes long
//! it does in `turns`, so that nobody has to wait for it, and `keep` is what it does with the journal.

pub mod claim;
pub mod claims;
pub mod clock;
pub mod directory;
pub mod feed;
mod folders;
pub mod journal;
mod keep;
mod names;
mod nested;
pub mod openvpn;
pub mod protocol;
pub mod recall;
pub mod registry;
mod room;
pub mod seats;
pub mod seen;
pub mod set;
pub mod table;
mod turns;
pub mod watch;
