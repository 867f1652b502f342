//! What has to wait for the disk: a thread of its own, which does one thing after the other.
//!
//! Names of the journal's files change here, in the order in which it was asked for, and in no other
//! thread as long as the journal lives.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What there is to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Has the disk hold what was written.
    Sync(Arc<File>),
    /// Likewise; then puts it in the place of another, so that a crash leaves one of them whole.
    Replace {
        file: Arc<File>,
        from: PathBuf,
        to: PathBuf,
    },
    /// Lets go of a file: freeing a large one takes a while.
    Close(Arc<File>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    /// The disk has what was written before it was asked.
    Synced(io::Result<()>),
    /// The new file stands in the place of the old one.
    Replaced(io::Result<()>),
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(super) struct Clerk {
    tasks: Option<mpsc::Sender<Task>>,
    done: UnboundedReceiver<Done>,
    thread: Option<JoinHandle<()>>,
    /// Whether it shall do nothing more.
    is_dismissed: Arc<AtomicBool>,
}

impl Drop for Clerk {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // Whatever it met has been told.
            let _ = thread.join();
        }
    }
}

impl Clerk {
    /// Begins.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(super) fn start() -> io::Result<Self> {
        Self::start_by(work)
    }

    fn start_by(
        work: impl FnOnce(&mpsc::Receiver<Task>, &UnboundedSender<Done>, &AtomicBool) + Send + 'static,
    ) -> io::Result<Self> {
        let (tasks, waiting) = mpsc::channel();
        let (sender, done) = unbounded_channel();
        let is_dismissed = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_dismissed);
        let thread = thread::Builder::new().name("m2u-journal".to_owned());
        let thread = thread.spawn(move || work(&waiting, &sender, &told))?;
        Ok(Self {
            tasks: Some(tasks),
            done,
            thread: Some(thread),
            is_dismissed,
        })
    }

    /// Begins once `disk` is told to go on, or is gone.
    #[cfg(test)]
    pub(super) fn start_behind(disk: mpsc::Receiver<()>) -> io::Result<Self> {
        Self::start_by(move |tasks, told, is_dismissed| {
            let _ = disk.recv();
            work(tasks, told, is_dismissed);
        })
    }

    /// Has it do nothing more of what it was asked for but what it is about to end, and waits for
    /// nothing. Whoever drops it then still waits for that.
    pub(super) fn dismiss(&self) {
        self.is_dismissed.store(true, Ordering::Release);
    }

    /// Has something done, after all that was asked for before.
    pub(super) fn ask(&self, task: Task) {
        if let Some(tasks) = &self.tasks {
            // The thread ends after this only.
            let _ = tasks.send(task);
        }
    }

    /// Waits for something to be done. May be dropped; nothing is lost.
    pub(super) async fn done(&mut self) -> Done {
        match self.done.recv().await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }
}

fn work(tasks: &mpsc::Receiver<Task>, told: &UnboundedSender<Done>, is_dismissed: &AtomicBool) {
    for task in tasks {
        if is_dismissed.load(Ordering::Acquire) {
            return;
        }
        let done = match task {
            Task::Sync(file) => Done::Synced(file.sync_data()),
            Task::Replace { file, from, to } => {
                let is_wanted = || !is_dismissed.load(Ordering::Acquire);
                Done::Replaced(replace(&file, &from, &to, is_wanted))
            }
            Task::Close(file) => {
                drop(file);
                continue;
            }
        };
        // At the end nobody listens any more.
        let _ = told.send(done);
    }
}

/// Puts a file that the disk has in the place of another, if that is still wanted by then.
fn replace(
    file: &File,
    from: &Path,
    to: &Path,
    is_wanted: impl FnOnce() -> bool,
) -> io::Result<()> {
    file.sync_data()?;
    if !is_wanted() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    fs::rename(from, to)?;
    let folder = match to.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clerk_that_is_dismissed_does_nothing_more() {
        let (disk, hangs) = mpsc::channel();
        let mut clerk = Clerk::start_behind(hangs).expect("a thread");
        let file = tempfile::tempfile().expect("a file");
        clerk.ask(Task::Sync(Arc::new(file)));
        clerk.dismiss();
        drop(disk);
        // It ends nevertheless, having told nothing.
        assert!(clerk.done.blocking_recv().is_none());
    }

    #[test]
    fn whoever_is_dismissed_puts_no_file_in_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old"), "old").expect("a file");
        fs::write(path("new"), "new").expect("a file");
        let file = File::open(path("new")).expect("a file");
        let task = Task::Replace {
            file: Arc::new(file),
            from: path("new"),
            to: path("old"),
        };
        // Before it began, and while the disk was at it.
        let (tasks, waiting) = mpsc::channel();
        tasks.send(task).expect("the other end");
        drop(tasks);
        let (told, mut heard) = unbounded_channel();
        work(&waiting, &told, &AtomicBool::new(true));
        assert!(heard.try_recv().is_err(), "it has begun");
        let file = File::open(path("new")).expect("a file");
        let replaced = replace(&file, &path("new"), &path("old"), || false);
        assert!(replaced.is_err());
        assert_eq!(fs::read(path("old")).expect("a file"), b"old");
        assert!(path("new").exists());
    }
}
