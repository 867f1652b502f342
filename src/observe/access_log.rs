//! The access log: one line an exchange.
//!
//! A core renders lines into a buffer of its own and hands the buffer on once a tick; a thread of
//! the log's own writes it. A core never waits for the file: when the thread can't keep up, lines
//! are lost and counted. Never holds a query, an `Authorization` value or a byte of a body.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use super::{
    log_line::{Clock, Entry},
    say::say,
};
use crate::{
    config::settings::{AccessLog, LogFormat},
    limits,
};

/// How often the thread looks whether the file is to be opened anew, while nothing is logged.
const LOOK: Duration = Duration::from_millis(200);
/// How long the file may take nothing of what is left when every core has ended.
const CLOSING: Duration = Duration::from_secs(5);
/// How often it is looked whether all of that has been written.
const CLOSING_LOOK: Duration = Duration::from_millis(5);
/// How often lost lines are reported.
const LOSS_REPORT: Duration = Duration::from_secs(10);

/// The log as a whole: its thread, and the way to reach it.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    thread: Mutex<Option<Thread>>,
    format: LogFormat,
}

#[derive(Debug)]
struct Thread {
    sender: SyncSender<Vec<u8>>,
    handle: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Buffers that have been written and are empty again.
    spare: Mutex<Vec<Vec<u8>>>,
    lost: AtomicU64,
    reopen: AtomicBool,
}

/// What one core writes to.
#[derive(Debug)]
pub struct CoreLog {
    shared: Arc<Shared>,
    sender: SyncSender<Vec<u8>>,
    format: LogFormat,
    clock: Clock,
    buffer: Vec<u8>,
    lines: u64,
}

impl Log {
    /// Opens the file, to be appended to, and starts the thread.
    ///
    /// # Errors
    /// The file can't be opened, or the thread not be started.
    pub fn open(settings: &AccessLog) -> io::Result<Self> {
        let target = Target::open(&settings.path)?;
        let shared = Arc::new(Shared::default());
        let (sender, buffers) = mpsc::sync_channel(limits::LOG_BUFFERS_MAX);
        let handle = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("m2u-log".to_owned())
                .spawn(move || write_all(target, &buffers, &shared))?
        };
        let thread = Mutex::new(Some(Thread { sender, handle }));
        Ok(Self {
            shared,
            thread,
            format: settings.format,
        })
    }

    /// A core's end; `None` once the log has been closed.
    pub fn core(&self) -> Option<CoreLog> {
        Some(CoreLog {
            shared: Arc::clone(&self.shared),
            sender: lock(&self.thread).as_ref()?.sender.clone(),
            format: self.format,
            clock: Clock::now(),
            buffer: Vec::with_capacity(limits::LOG_BUFFER_BYTES),
            lines: 0,
        })
    }

    /// Opens the file anew before the next line: it may have been moved away.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
    }

    /// Waits until everything that the cores handed on is in the file, or it has taken nothing for a
    /// while, as a pipe does that nobody reads. The cores have ended.
    pub fn close(&self) {
        let Some(Thread { sender, handle }) = lock(&self.thread).take() else {
            return;
        };
        drop(sender);
        // Nobody takes one out any more.
        let written = || lock(&self.shared.spare).len();
        let (mut before, mut by) = (written(), Instant::now() + CLOSING);
        while !handle.is_finished() {
            if before != written() {
                (before, by) = (written(), Instant::now() + CLOSING);
            }
            if Instant::now() > by {
                say(format_args!(
                    "access log: nothing takes its last lines; they are lost"
                ));
                return;
            }
            thread::sleep(CLOSING_LOOK);
        }
        // A thread that panicked has said so.
        let _ = handle.join();
    }
}

impl CoreLog {
    /// Adds a line.
    pub fn write(&mut self, entry: &Entry<'_>) {
        let room = self.buffer.capacity() - self.buffer.len();
        if room < limits::LOG_LINE_BYTES_MAX && !self.hand_on() {
            self.lose();
        }
        match self.format {
            LogFormat::Json => entry.write_json(&mut self.clock, &mut self.buffer),
            LogFormat::Text => entry.write_text(&mut self.clock, &mut self.buffer),
        }
        self.lines += 1;
    }

    /// Reads the clock and hands on what has been written; called once a tick. What the thread has no
    /// place for waits here: a file that stands still must not cost a line while there is room.
    pub fn tick(&mut self) {
        self.clock.read();
        self.hand_on();
    }

    /// Hands what has been written on to the thread; whether it took it.
    fn hand_on(&mut self) -> bool {
        if self.buffer.is_empty() {
            return true;
        }
        match self.sender.try_send(std::mem::take(&mut self.buffer)) {
            Ok(()) => {
                let spare = lock(&self.shared.spare).pop();
                let make = || Vec::with_capacity(limits::LOG_BUFFER_BYTES);
                self.buffer = spare.unwrap_or_else(make);
                self.lines = 0;
                true
            }
            Err(mpsc::TrySendError::Full(buffer) | mpsc::TrySendError::Disconnected(buffer)) => {
                self.buffer = buffer;
                false
            }
        }
    }

    /// Gives up what has been written.
    fn lose(&mut self) {
        self.shared.lost.fetch_add(self.lines, Ordering::Relaxed);
        self.buffer.clear();
        self.lines = 0;
    }
}

impl Drop for CoreLog {
    fn drop(&mut self) {
        if !self.hand_on() {
            self.lose();
        }
    }
}

impl Shared {
    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        lock(&self.spare).push(buffer);
    }
}

/// Nothing between lock and unlock can leave a value half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where lines go.
struct Target {
    sheet: Sheet<File>,
    /// Where it is opened anew; `None`: it is standard output.
    path: Option<PathBuf>,
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        let (file, path) = match path == Path::new("-") {
            // Past the library's buffer: what was written is known to the byte.
            true => (io::stdout().as_fd().try_clone_to_owned()?.into(), None),
            false => {
                let file = OpenOptions::new().append(true).create(true).open(path)?;
                (file, Some(path.to_owned()))
            }
        };
        let is_cut = ends_within_a_line(&file).unwrap_or(false);
        let sheet = Sheet::new(file, is_cut);
        Ok(Self { sheet, path })
    }

    /// Opens the file anew; keeps the old one if that fails.
    fn reopen(&mut self) -> io::Result<()> {
        if let Some(path) = &self.path {
            *self = Self::open(path)?;
        }
        Ok(())
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), Loss> {
        // Others may have emptied the file to make room, or written to it as well.
        if self.sheet.is_cut {
            self.sheet.is_cut = ends_within_a_line(&self.sheet.sink).unwrap_or(true);
        }
        self.sheet.write(lines)
    }
}

/// Whether a file ends within a line, as a process leaves it that could not write all of one. `None`:
/// it is none on a disk, or can't be read.
fn ends_within_a_line(file: &File) -> Option<bool> {
    let length = file.metadata().ok().filter(Metadata::is_file)?.len();
    let Some(last) = length.checked_sub(1) else {
        return Some(false);
    };
    // Not by its path: another may be there by now, or a pipe, which would be waited for.
    let readable = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    let mut byte = [0];
    readable.read_exact_at(&mut byte, last).ok()?;
    Some(byte != *b"\n")
}

/// Lines below each other, whatever became of those before.
struct Sheet<W> {
    sink: W,
    /// The last line has no end.
    is_cut: bool,
}

/// Lines that were not written, and why.
#[derive(Debug)]
struct Loss {
    count: u64,
    error: io::Error,
}

impl<W: Write> Sheet<W> {
    fn new(sink: W, is_cut: bool) -> Self {
        Self { sink, is_cut }
    }

    /// Writes whole lines. Where that fails within one, the next begins on a line of its own.
    fn write(&mut self, lines: &[u8]) -> Result<(), Loss> {
        let mut rest = lines;
        let outcome = self.end_line().and_then(|()| {
            while !rest.is_empty() {
                let written = self.write_some(rest)?;
                self.is_cut = rest[written - 1] != b'\n';
                rest = &rest[written..];
            }
            Ok(())
        });
        outcome.map_err(|error| {
            // A line that lacks nothing but its end is there; that comes with the next.
            let lost = rest.strip_prefix(b"\n").unwrap_or(rest);
            let count = memchr::memchr_iter(b'\n', lost).count() as u64;
            Loss { count, error }
        })
    }

    fn end_line(&mut self) -> io::Result<()> {
        if self.is_cut {
            self.write_some(b"\n")?;
            self.is_cut = false;
        }
        Ok(())
    }

    /// Writes at least one byte.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.sink.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

/// The log's thread: writes buffers as they come, until every core has ended.
fn write_all(mut target: Target, buffers: &Receiver<Vec<u8>>, shared: &Shared) {
    let mut losses = Losses {
        reported: SystemTime::UNIX_EPOCH,
        count: 0,
        error: None,
    };
    loop {
        let received = buffers.recv_timeout(LOOK);
        if shared.reopen.swap(false, Ordering::AcqRel)
            && let Err(error) = target.reopen()
        {
            losses.error = Some(error);
        }
        match received {
            Ok(buffer) => {
                if let Err(Loss { count, error }) = target.write(&buffer) {
                    losses.count += count;
                    losses.error = Some(error);
                }
                shared.put(buffer);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        losses.count += shared.lost.swap(0, Ordering::Relaxed);
        losses.report();
    }
    // There is no later for what waited to be reported.
    losses.count += shared.lost.swap(0, Ordering::Relaxed);
    losses.tell();
}

/// Lines that were not written, reported now and then.
struct Losses {
    reported: SystemTime,
    count: u64,
    error: Option<io::Error>,
}

impl Losses {
    fn report(&mut self) {
        let waited = self
            .reported
            .elapsed()
            .is_ok_and(|waited| waited < LOSS_REPORT);
        if !waited {
            self.tell();
        }
    }

    fn tell(&mut self) {
        match self.error.take() {
            None if self.count == 0 => return,
            Some(error) => say(format_args!(
                "access log: {error}; {} lines lost",
                self.count
            )),
            None => say(format_args!(
                "access log: too slow; {} lines lost",
                self.count
            )),
        }
        self.count = 0;
        self.reported = SystemTime::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            begun: Instant::now(),
            took: Duration::from_micros(12_345),
            source: [10, 8, 0, 7].into(),
            sender: Some(("acme", "press-07")),
            request: Some((b"POST", b"/in")),
            status: 200,
            error: None,
            received: 10,
            sent: 20,
        }
    }

    #[test]
    fn what_the_cores_wrote_is_in_the_file_when_the_log_is_closed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let settings = AccessLog {
            path: path.clone(),
            format: LogFormat::Json,
        };
        let log = Log::open(&settings).expect("open");
        let mut cores: Vec<CoreLog> = (0..2).filter_map(|_| log.core()).collect();
        for core in &mut cores {
            (0..1_000).for_each(|_| core.write(&entry()));
        }
        drop(cores);
        log.close();
        let text = std::fs::read_to_string(path).expect("the file");
        assert_eq!(text.lines().count(), 2_000);
    }

    /// A file on a disk with room for so many bytes more.
    struct Disk {
        text: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match bytes.len().min(self.room) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                written => {
                    self.room -= written;
                    self.text.extend_from_slice(&bytes[..written]);
                    Ok(written)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn wherever_a_disk_is_full_no_other_line_is_spoiled_and_each_that_is_lost_counts() {
        const LINES: [&str; 5] = ["one", "second", "3", "fourth", "five"];
        let [first, then] = [&LINES[..3], &LINES[3..]].map(|lines| lines.join("\n") + "\n");
        for (room, more) in
            (0..=first.len()).flat_map(|r| (0..=then.len() + 1).map(move |m| (r, m)))
        {
            let text = Vec::new();
            let mut sheet = Sheet::new(Disk { text, room }, false);
            let mut lost = 0;
            for (lines, more) in [(&first[..], more), (&then, usize::MAX), ("last\n", 0)] {
                lost += sheet
                    .write(lines.as_bytes())
                    .map_or_else(|loss| loss.count, |()| 0);
                sheet.sink.room = more;
            }
            let written = String::from_utf8(sheet.sink.text).expect("text");
            let mut written: Vec<&str> = written.lines().collect();
            assert_eq!(written.pop(), Some("last"), "{room} {more}");
            // What there is of a line that was cut stands by itself.
            let is_cut = |text: &str| !text.is_empty() && LINES.iter().any(|l| l.starts_with(text));
            let (whole, cut): (Vec<_>, Vec<_>) = written.iter().partition(|l| LINES.contains(l));
            assert!(cut.into_iter().all(is_cut), "{room} {more}: {written:?}");
            let kept = LINES.iter().filter(|line| whole.contains(line));
            assert!(kept.eq(&whole), "{room} {more}: {written:?}");
            assert_eq!(
                whole.len() as u64 + lost,
                LINES.len() as u64,
                "{room} {more}: {written:?}"
            );
        }
    }

    #[test]
    fn a_line_that_an_earlier_process_left_cut_is_ended_unless_that_was_done_meanwhile() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        for (before, meanwhile, after) in [
            ("", None, "new\n"),
            ("whole\n", None, "whole\nnew\n"),
            ("whole\ncu", None, "whole\ncu\nnew\n"),
            ("whole\ncu", Some(""), "new\n"),
            ("whole\ncu", Some("cu\nanother's\n"), "cu\nanother's\nnew\n"),
        ] {
            std::fs::write(&path, before).expect("written");
            let mut target = Target::open(&path).expect("open");
            if let Some(text) = meanwhile {
                std::fs::write(&path, text).expect("written");
            }
            target.write(b"new\n").expect("there is room");
            let text = std::fs::read_to_string(&path).expect("the file");
            assert_eq!(text, after);
        }
    }

    #[test]
    fn a_file_that_stands_still_costs_no_line_while_there_is_room() {
        const TICKS: usize = 2 * limits::LOG_BUFFERS_MAX;
        let (sender, buffers) = mpsc::sync_channel(limits::LOG_BUFFERS_MAX);
        let shared = Arc::new(Shared::default());
        let mut core = CoreLog {
            shared: Arc::clone(&shared),
            sender,
            format: LogFormat::Json,
            clock: Clock::now(),
            buffer: Vec::with_capacity(limits::LOG_BUFFER_BYTES),
            lines: 0,
        };
        for _ in 0..TICKS {
            core.write(&entry());
            core.tick();
        }
        let mut text: Vec<Vec<u8>> = buffers.try_iter().collect();
        drop(core);
        text.extend(buffers.try_iter());
        let count = memchr::memchr_iter(b'\n', &text.concat()).count();
        assert_eq!((count, shared.lost.load(Ordering::Relaxed)), (TICKS, 0));
    }
}
