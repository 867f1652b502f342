//! The journal: what the feed's sources have said, kept in a file for the next start.
//!
//! A line of JSON for each claim that came or went, appended before the sender has its reply. What
//! a start reads from it is a memory, not news: how old it is, its last line says. Written anew
//! once most of it is history.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::{claim::UnixMs, protocol::Shown};
use crate::limits;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record<'a> {
    /// A source says so.
    Lease(Shown<'a>),
    /// It says so no longer.
    End {
        /// Address or prefix.
        address: String,
        /// The listeners' scope; absent: everywhere.
        #[serde(skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// Whose claim it was.
        source: String,
    },
    /// The newest run of a source.
    Epoch {
        /// Its name.
        source: String,
        /// The run.
        epoch: u64,
    },
    /// The gateway was at work then.
    Alive {
        /// When.
        at_ms: UnixMs,
        /// Number of the newest change.
        revision: u64,
    },
}

/// What a journal held.
#[derive(Debug, Default)]
pub struct Memory {
    /// Lines of leases, by address, scope and source.
    pub leases: HashMap<(String, Option<String>, String), String>,
    /// The newest run of each source.
    pub epochs: HashMap<String, u64>,
    /// When the gateway was last at work; 0: never.
    pub alive_ms: UnixMs,
    /// Number of the newest change.
    pub revision: u64,
    /// Lines that were not understood: torn by a crash, or not ours.
    pub unread: usize,
}

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Held as long as this lives: another gateway would write over what this one has said.
    _lock: File,
    file: BufWriter<File>,
    bytes: u64,
    /// Its size when it was written anew last.
    bytes_live: u64,
}

impl Journal {
    /// Reads what is there, and opens it to be [written anew](Self::rewrite); it is made if there is
    /// none.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path) -> io::Result<(Self, Memory)> {
        let lock = append(&beside(path, ".lock"))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(io::Error::other("another m2u uses it; end that first"));
        }
        let memory = match File::open(path) {
            Ok(file) => read(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Memory::default(),
            Err(error) => return Err(error),
        };
        let journal = Self {
            path: path.to_owned(),
            _lock: lock,
            file: BufWriter::new(append(path)?),
            bytes: 0,
            bytes_live: 0,
        };
        Ok((journal, memory))
    }

    /// Adds a line; [`flush`](Self::flush) hands it to the system.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, record: &Record<'_>) -> io::Result<()> {
        let line = serde_json::to_string(record)?;
        self.bytes += line.len() as u64 + 1;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
    }

    /// Hands everything to the system: it outlives this process from then on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Says that it can't be written, and removes it: a memory with gaps is worse than none.
    pub fn give_up(self, error: &io::Error) {
        let path = self.path.display();
        eprintln!(
            "m2u: warning: the journal {path} can't be written: {error}; leases will not outlive a \
             restart"
        );
        // If that fails as well, what it has is too old to be believed soon.
        let _ = fs::remove_file(&self.path);
    }

    /// Whether most of it is history.
    pub fn is_long(&self) -> bool {
        self.bytes > limits::JOURNAL_BYTES_FLOOR.max(4 * self.bytes_live)
    }

    /// Puts a file with `lines` alone in its place.
    ///
    /// # Errors
    /// It cannot be written; the old one stays.
    pub fn rewrite(&mut self, lines: impl Iterator<Item = io::Result<String>>) -> io::Result<()> {
        let beside = beside(&self.path, ".new");
        // What a crash left behind.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = BufWriter::new(append(&beside)?);
        let mut bytes = 0;
        for line in lines {
            let line = line?;
            bytes += line.len() as u64 + 1;
            file.write_all(line.as_bytes())?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
        fs::rename(&beside, &self.path)?;
        self.file = file;
        (self.bytes, self.bytes_live) = (bytes, bytes);
        Ok(())
    }
}

/// The file of a name that begins as that of `path` does.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(ending);
    PathBuf::from(name)
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn read(file: File) -> io::Result<Memory> {
    let mut memory = Memory::default();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(memory);
        }
        // A crash may have torn the last line; a whole one ends.
        let whole = line.strip_suffix(b"\n");
        let record = whole.and_then(|line| serde_json::from_slice(line).ok());
        match record {
            None => memory.unread += 1,
            Some(Record::Alive { at_ms, revision }) => {
                memory.alive_ms = at_ms;
                memory.revision = revision;
            }
            Some(Record::Epoch { source, epoch }) => {
                memory.epochs.insert(source, epoch);
            }
            Some(Record::End {
                address,
                scope,
                source,
            }) => {
                memory.leases.remove(&(address, scope, source));
            }
            Some(Record::Lease(lease)) => {
                let key = (
                    lease.address.clone().into_owned(),
                    lease.scope.clone().map(|scope| scope.into_owned()),
                    lease.source.clone().into_owned(),
                );
                let text = serde_json::to_string(&Record::Lease(lease))?;
                memory.leases.insert(key, text);
            }
        }
    }
}
