//! A journal as a start finds it: line by line, the damaged ones counted, never repaired.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
};

use ipnet::IpNet;

use super::record::Record;

/// What precedes the address in a line of a lease, and in that of its end.
const ADDRESS: &str = "\"address\":\"";

/// A journal that is being read.
#[derive(Debug)]
pub struct Reading {
    reader: BufReader<File>,
    line: Vec<u8>,
    /// Bytes of the lines that are whole.
    bytes: u64,
    lines: usize,
    damage: Option<Damage>,
    torn: Option<Torn>,
}

/// Lines that are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// Number of the first.
    pub line: usize,
    /// How many there are.
    pub count: usize,
}

/// A last line that was not written to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// It was about no lease.
    Sign,
    /// It said something of this address or prefix: that it was leased, or moved, or no longer.
    Network(IpNet),
    /// It may have been about anything.
    Anything,
}

impl Reading {
    /// Reads `file` from its beginning.
    pub fn of(file: File) -> Self {
        Self {
            reader: BufReader::with_capacity(1 << 20, file),
            line: Vec::new(),
            bytes: 0,
            lines: 0,
            damage: None,
            torn: None,
        }
    }

    /// The next line that can be understood; `None`: there are no more.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_record(&mut self) -> io::Result<Option<Record<'static>>> {
        loop {
            self.line.clear();
            if self.reader.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            let Some(whole) = self.line.strip_suffix(b"\n") else {
                self.torn = torn(&self.line);
                return Ok(None);
            };
            self.bytes += self.line.len() as u64;
            self.lines += 1;
            match serde_json::from_slice(whole) {
                Ok(record) => return Ok(Some(record)),
                Err(_) => self.count_damage(),
            }
        }
    }

    /// Counts the line that was read last as damaged.
    pub fn count_damage(&mut self) {
        let line = self.lines;
        let damage = self.damage.get_or_insert(Damage { line, count: 0 });
        damage.count += 1;
    }

    /// The damaged lines so far.
    pub fn damage(&self) -> Option<Damage> {
        self.damage
    }

    /// What the last line was about if it was cut short.
    pub fn torn(&self) -> Option<Torn> {
        self.torn
    }

    /// Bytes of the lines that are whole, once all have been read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What can be told of a line without an end; `None`: nothing of it was written.
///
/// A crash of the host may leave zeros where something was to be written.
fn torn(line: &[u8]) -> Option<Torn> {
    let written = line.split(|byte| *byte == 0).next().unwrap_or_default();
    if written.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(written);
    if text.starts_with("{\"alive\"") {
        return Some(Torn::Sign);
    }
    let address = text
        .split_once(ADDRESS)
        .and_then(|(_, rest)| rest.split_once('"'));
    let network = address.and_then(|(address, _)| crate::config::network(address).ok());
    Some(network.map_or(Torn::Anything, Torn::Network))
}
