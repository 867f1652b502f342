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
    thread,
};

use tokio::time::Instant;

use super::claim::Place;
use crate::{limits, observe::say::say};
use clerk::{Clerk, Done, Task};
use reading::Reading;
use record::Record;

/// The open file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    pen: Pen,
    /// The file that is to stand in its place.
    new: Option<New>,
    /// Its size when it was written anew last.
    bytes_live: u64,
    /// When the disk is to have what was written; `None`: it has, or was asked to.
    sync_by: Option<Instant>,
    /// It can't be written, and nothing of it shall be left.
    is_given_up: bool,
    clerk: Clerk,
    /// Held as long as this lives, and its clerk, which goes before: another gateway would write over
    /// what this one has said, and this one's clerk over that.
    _lock: File,
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
        if self.is_given_up {
            // First what is on its way: it finds no file any more that it could put in place. What
            // can't be removed is too old to be believed soon.
            for path in [beside(&self.path, ".new"), self.path.clone()] {
                let _ = fs::remove_file(path);
            }
            return;
        }
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
            pen,
            new: None,
            bytes_live: 0,
            sync_by: None,
            is_given_up: false,
            clerk: Clerk::start()?,
            _lock: lock,
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
    ///
    /// Waits for no disk, which may be what is wrong: the files are removed and closed in a thread of
    /// their own, at once, while the clerk may still hang in what it does.
    pub fn give_up(mut self, error: &io::Error) {
        let path = self.path.display();
        say(format_args!(
            "warning: the journal {path} can't be written: {error}; leases will not outlive a restart"
        ));
        self.is_given_up = true;
        self.clerk.dismiss();
        let thread = thread::Builder::new().name("m2u-journal-end".to_owned());
        // Without a thread it ends here and now.
        let _ = thread.spawn(move || drop(self));
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

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        sync::mpsc,
        time::{Duration, Instant},
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn alive(revision: u64) -> Record<'static> {
        Record::Alive { at_ms: 1, revision }
    }

    fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < PATIENCE, "still waiting for {what}");
            thread::yield_now();
        }
    }

    #[test]
    fn a_journal_is_given_up_while_its_disk_hangs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, _) = Journal::open(&path).expect("a journal");
        let (disk, hangs) = mpsc::channel();
        journal.clerk = Clerk::start_behind(hangs).expect("a thread");
        journal.add(&alive(1)).expect("written");
        journal.flush().expect("written");
        let mut seen = File::open(&path).expect("a file");
        // Another is to be put in its place, and a line waits.
        journal.begin_anew([alive(1)].into_iter()).expect("written");
        journal.copy([].into_iter(), None).expect("written");
        journal.add(&alive(2)).expect("written");
        let (told, heard) = mpsc::channel();
        thread::spawn(move || {
            journal.give_up(&io::ErrorKind::StorageFull.into());
            told.send(())
        });
        let is_over = heard.recv_timeout(PATIENCE);
        is_over.expect("it has waited for the disk");
        let new = beside(&path, ".new");
        wait_until("the files to go", || !path.exists() && !new.exists());
        // Nobody else may begin one as long as this one's clerk could do something to it.
        let refused = Journal::open(&path).expect_err("one that nobody uses");
        assert!(refused.to_string().contains("another m2u uses it"));
        // Whatever it finds there by then, that puts nothing in place any more.
        fs::write(&new, "found").expect("a file");
        drop(disk);
        let mut next = None;
        wait_until("the end of the clerk", || {
            next = Journal::open(&path).ok();
            next.is_some()
        });
        let (_journal, mut reading) = next.expect("a journal");
        assert!(reading.next_record().expect("a file").is_none());
        assert_eq!(fs::read(&new).expect("a file"), b"found");
        let mut text = String::new();
        seen.read_to_string(&mut text).expect("text");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
