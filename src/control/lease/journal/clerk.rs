//! What has to wait for the disk: a thread of its own, which does one thing after the other.
//!
//! Every name of the journal's files changes here, in the order in which it was asked for.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
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
    /// Removes files that are there.
    Remove(Vec<PathBuf>),
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
        let (tasks, waiting) = mpsc::channel();
        let (sender, done) = unbounded_channel();
        let thread = thread::Builder::new().name("m2u-journal".to_owned());
        let thread = thread.spawn(move || work(&waiting, &sender))?;
        Ok(Self {
            tasks: Some(tasks),
            done,
            thread: Some(thread),
        })
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

fn work(tasks: &mpsc::Receiver<Task>, told: &UnboundedSender<Done>) {
    for task in tasks {
        let done = match task {
            Task::Sync(file) => Done::Synced(file.sync_data()),
            Task::Replace { file, from, to } => Done::Replaced(replace(&file, &from, &to)),
            Task::Close(file) => {
                drop(file);
                continue;
            }
            Task::Remove(paths) => {
                for path in paths {
                    // What was never made is gone as well.
                    let _ = fs::remove_file(path);
                }
                continue;
            }
        };
        // At the end nobody listens any more.
        let _ = told.send(done);
    }
}

fn replace(file: &File, from: &Path, to: &Path) -> io::Result<()> {
    file.sync_data()?;
    fs::rename(from, to)?;
    let folder = match to.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}
