//! Configuration: the file as written, and the settings as used.

pub mod settings;
