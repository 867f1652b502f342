//! The journal: what the feed's sources have said, kept in a file for the next start.
//!
//! A line of JSON for each claim that came or went ([`record`]), appended before the sender has its
//! reply: from then on it outlives this process. The disk has it a moment later
//! (`limits::JOURNAL_SYNC`), for what waits for a disk is done by a thread of its own (`clerk`). What a
//! start reads ([`reading`]) is a memory, not news: its head says in which run of the host it was
//! written, its last line how old it is. It is written anew at every start, and once most of it is
//! history, in turns: changes that come meanwhile go to both files.

mod clerk;
pub mod reading;
pub mod record;

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::time::Instant;

use super::claim::Place;
use crate::limits;
use clerk::{Clerk, Done, Task};
use reading::Reading;
use record::Record;

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Held as long as this lives: another gateway would write over what this one has said.
    _lock: File,
    pen: Pen,
    /// The file that is to stand in its place.
    new: Option<New>,
    /// Its size when it was written anew last.
    bytes_live: u64,
    /// When the disk is to have what was written; `None`: it has, or was asked to.
    sync_by: Option<Instant>,
    clerk: Clerk,
}

/// A journal on its way.
#[derive(Debug)]
struct New {
    pen: Pen,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The leases up to this place are in it.
    Copied(Option<Place>),
    /// All are, and the disk is asked to hold it.
    Whole,
}

/// A file that lines are appended to.
#[derive(Debug)]
struct Pen {
    file: Arc<File>,
    /// Whole lines only.
    waiting: Vec<u8>,
    bytes: u64,
}

impl Pen {
    fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
            waiting: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, record: &Record<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.waiting, record)?;
        self.waiting.push(b'\n');
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.file).write_all(&self.waiting)?;
        self.bytes += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Whoever could not write has given up before.
        let _ = self.flush();
        self.clerk.ask(Task::Sync(Arc::clone(&self.pen.file)));
    }
}

impl Journal {
    /// Opens what is there, to be read before anything is [added](Self::resume); it is made if there
    /// is none.
    ///
    /// # Errors
    /// The file cannot be read or written, or another gateway uses it.
    pub fn open(path: &Path) -> io::Result<(Self, Reading)> {
        let lock = append(&beside(path, ".lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other("another m2u uses it; end that first"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let pen = Pen::new(append(path)?);
        let reading = Reading::of(File::open(path)?);
        let journal = Self {
            path: path.to_owned(),
            _lock: lock,
            pen,
            new: None,
            bytes_live: 0,
            sync_by: None,
            clerk: Clerk::start()?,
        };
        Ok((journal, reading))
    }

    /// Goes on behind the lines that were read whole.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn resume(&mut self, bytes: u64) -> io::Result<()> {
        self.pen.bytes = bytes;
        self.pen.file.set_len(bytes)
    }

    /// Adds a line; [`flush`](Self::flush) hands it to the system.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, record: &Record<'_>) -> io::Result<()> {
        let begin = self.pen.waiting.len();
        self.pen.add(record)?;
        if let Some(new) = &mut self.new {
            new.pen.waiting.extend(&self.pen.waiting[begin..]);
        }
        Ok(())
    }

    /// Hands everything to the system: it outlives this process from then on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.pen.waiting.is_empty() {
            self.pen.flush()?;
            let by = Instant::now() + limits::JOURNAL_SYNC;
            self.sync_by.get_or_insert(by);
        }
        match &mut self.new {
            Some(new) => new.pen.flush(),
            None => Ok(()),
        }
    }

    /// When [`sync`](Self::sync) is due.
    pub fn sync_by(&self) -> Option<Instant> {
        self.sync_by
    }

    /// Asks the disk to hold what was written.
    pub fn sync(&mut self) {
        self.sync_by = None;
        self.clerk.ask(Task::Sync(Arc::clone(&self.pen.file)));
    }

    /// Says that it can't be written, and removes it: a memory with gaps is worse than none.
    pub fn give_up(self, error: &io::Error) {
        let path = self.path.display();
        eprintln!(
            "m2u: warning: the journal {path} can't be written: {error}; leases will not outlive a \
             restart"
        );
        // If that fails as well, what it has is too old to be believed soon.
        let paths = vec![beside(&self.path, ".new"), self.path.clone()];
        self.clerk.ask(Task::Remove(paths));
    }

    /// Whether most of it is history, and no other is on its way.
    pub fn is_long(&self) -> bool {
        let bytes_max = limits::JOURNAL_BYTES_FLOOR.max(4 * self.bytes_live);
        self.new.is_none() && self.pen.bytes > bytes_max
    }

    /// Begins a new file, which is to have `head` and then each lease once. Whatever is added from now
    /// on is in both.
    ///
    /// # Errors
    /// It cannot be written; the old one stays.
    pub fn begin_anew<'r>(&mut self, head: impl Iterator<Item = Record<'r>>) -> io::Result<()> {
        let beside = beside(&self.path, ".new");
        // What a crash left behind.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut pen = Pen::new(append(&beside)?);
        for record in head {
            pen.add(&record)?;
        }
        pen.flush()?;
        let stage = Stage::Copied(None);
        self.new = Some(New { pen, stage });
        Ok(())
    }

    /// Behind which place the new file misses leases; `None`: none is missing.
    pub fn missing_behind(&self) -> Option<Option<Place>> {
        match self.new.as_ref()?.stage {
            Stage::Copied(cursor) => Some(cursor),
            Stage::Whole => None,
        }
    }

    /// Adds to the new file what it misses, up to `place`; `None`: that is all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn copy<'r>(
        &mut self,
        missing: impl Iterator<Item = Record<'r>>,
        place: Option<Place>,
    ) -> io::Result<()> {
        let Some(new) = &mut self.new else {
            return Ok(());
        };
        for record in missing {
            new.pen.add(&record)?;
        }
        new.pen.flush()?;
        new.stage = match place {
            Some(place) => Stage::Copied(Some(place)),
            None => {
                self.clerk.ask(Task::Replace {
                    file: Arc::clone(&new.pen.file),
                    from: beside(&self.path, ".new"),
                    to: self.path.clone(),
                });
                Stage::Whole
            }
        };
        Ok(())
    }

    /// Waits for news of the disk. May be dropped; nothing is lost.
    ///
    /// # Errors
    /// It holds less than it was asked to.
    pub async fn settled(&mut self) -> io::Result<()> {
        match self.clerk.done().await {
            Done::Synced(done) => done,
            Done::Replaced(done) => {
                done?;
                if let Some(New { pen, .. }) = self.new.take() {
                    let old = std::mem::replace(&mut self.pen, pen);
                    self.bytes_live = self.pen.bytes;
                    self.clerk.ask(Task::Close(old.file));
                    // What went to both files since: the disk was asked for the old one's only.
                    let by = Instant::now() + limits::JOURNAL_SYNC;
                    self.sync_by.get_or_insert(by);
                }
                Ok(())
            }
        }
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
