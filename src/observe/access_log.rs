//! The access log: one line an exchange.
//!
//! A core renders lines into a buffer of its own and hands the buffer on once a tick; a thread of
//! the log's own writes it. A core never waits for the file: when the thread can't keep up, lines
//! are lost and counted. Never holds a query, an `Authorization` value or a byte of a body.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    config::settings::{AccessLog, LogFormat},
    limits,
};

/// How often the thread looks whether the file is to be opened anew, while nothing is logged.
const LOOK: Duration = Duration::from_millis(200);
/// How often lost lines are reported.
const LOSS_REPORT: Duration = Duration::from_secs(10);

/// One exchange.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// When the request's head was complete.
    pub begun: SystemTime,
    /// From then until the answer was out.
    pub took: Duration,
    /// The device's address.
    pub source: IpAddr,
    /// The account's *ref* and the device's name, if they are known.
    pub sender: Option<(&'a str, &'a str)>,
    /// Method and path without its query, as the device wrote them, if a head was read.
    pub request: Option<(&'a [u8], &'a [u8])>,
    /// Status that the device saw; 0 if its connection was closed without an answer.
    pub status: u16,
    /// Error token, if the gateway answered itself or broke an answer off.
    pub error: Option<&'static str>,
    /// Body bytes from the device.
    pub received: u64,
    /// Body bytes to the device.
    pub sent: u64,
}

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
            buffer: Vec::with_capacity(limits::LOG_BUFFER_BYTES),
            lines: 0,
        })
    }

    /// Opens the file anew before the next line: it may have been moved away.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
    }

    /// Waits until everything that the cores handed on is in the file. The cores have ended.
    pub fn close(&self) {
        let thread = lock(&self.thread).take();
        if let Some(Thread { sender, handle }) = thread {
            drop(sender);
            // A thread that panicked has said so.
            let _ = handle.join();
        }
    }
}

impl CoreLog {
    /// Adds a line.
    pub fn write(&mut self, entry: &Entry<'_>) {
        let room = self.buffer.capacity() - self.buffer.len();
        if room < limits::LOG_LINE_BYTES_MAX {
            self.flush();
        }
        match self.format {
            LogFormat::Json => render_json(&mut self.buffer, entry),
            LogFormat::Text => render_text(&mut self.buffer, entry),
        }
        self.lines += 1;
    }

    /// Hands what has been written on to the thread; called once a tick.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let spare = lock(&self.shared.spare).pop();
        let spare = spare.unwrap_or_else(|| Vec::with_capacity(limits::LOG_BUFFER_BYTES));
        let full = std::mem::replace(&mut self.buffer, spare);
        if let Err(refused) = self.sender.try_send(full) {
            self.shared.lost.fetch_add(self.lines, Ordering::Relaxed);
            let (mpsc::TrySendError::Full(buffer) | mpsc::TrySendError::Disconnected(buffer)) =
                refused;
            self.shared.put(buffer);
        }
        self.lines = 0;
    }
}

impl Drop for CoreLog {
    fn drop(&mut self) {
        self.flush();
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
enum Target {
    Standard(io::Stdout),
    File(File, PathBuf),
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Standard(io::stdout()));
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self::File(file, path.to_owned()))
    }

    /// Opens the file anew; keeps the old one if that fails.
    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File(_, path) = self {
            *self = Self::open(&path.clone())?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Standard(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
            Self::File(file, _) => file.write_all(bytes),
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
                if let Err(error) = target.write(&buffer) {
                    losses.count += memchr::memchr_iter(b'\n', &buffer).count() as u64;
                    losses.error = Some(error);
                }
                shared.put(buffer);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        losses.count += shared.lost.swap(0, Ordering::Relaxed);
        losses.report();
    }
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
        if waited || (self.count == 0 && self.error.is_none()) {
            return;
        }
        match self.error.take() {
            Some(error) => eprintln!("m2u: access log: {error}; {} lines lost", self.count),
            None => eprintln!("m2u: access log: too slow; {} lines lost", self.count),
        }
        self.count = 0;
        self.reported = SystemTime::now();
    }
}

fn render_json(out: &mut Vec<u8>, entry: &Entry<'_>) {
    put(out, "{\"time\":\"");
    put_time(out, entry.begun);
    put(out, "\",\"source\":\"");
    // Writing to a vector can't fail.
    let _ = write!(out, "{}\"", entry.source);
    if let Some((account, device)) = entry.sender {
        put(out, ",\"account\":");
        put_quoted(out, account.as_bytes());
        put(out, ",\"device\":");
        put_quoted(out, device.as_bytes());
    }
    if let Some((method, path)) = entry.request {
        put(out, ",\"method\":");
        put_quoted(out, shown(method));
        put(out, ",\"path\":");
        put_quoted(out, shown(path));
    }
    let _ = write!(out, ",\"status\":{}", entry.status);
    if let Some(error) = entry.error {
        let _ = write!(out, ",\"error\":\"{error}\"");
    }
    let millis = entry.took.as_secs_f64() * 1_000.0;
    let Entry { received, sent, .. } = entry;
    let _ = writeln!(
        out,
        ",\"received\":{received},\"sent\":{sent},\"ms\":{millis:.3}}}"
    );
}

fn render_text(out: &mut Vec<u8>, entry: &Entry<'_>) {
    put_time(out, entry.begun);
    // Writing to a vector can't fail.
    let _ = write!(out, " {} ", entry.source);
    match entry.sender {
        Some((account, device)) => {
            put_quoted(out, account.as_bytes());
            put(out, " ");
            put_quoted(out, device.as_bytes());
        }
        None => put(out, "- -"),
    }
    put(out, " ");
    match entry.request {
        Some((method, path)) => {
            put_plain(out, shown(method));
            put(out, " ");
            put_plain(out, shown(path));
        }
        None => put(out, "- -"),
    }
    let Entry {
        status,
        received,
        sent,
        ..
    } = entry;
    let millis = entry.took.as_secs_f64() * 1_000.0;
    let error = entry.error.unwrap_or("-");
    let _ = writeln!(
        out,
        " {status} {error} in={received} out={sent} {millis:.3}ms"
    );
}

/// As much of what a device wrote as a line has room for.
fn shown(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(limits::LOG_VALUE_BYTES_MAX)]
}

fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// RFC 3339, in UTC.
fn put_time(out: &mut Vec<u8>, time: SystemTime) {
    // Fails beyond the year 9999 only.
    let _ = OffsetDateTime::from(time).format_into(out, &Rfc3339);
}

/// As a JSON string (RFC 8259 §7). What is not UTF-8 is shown as if it were Latin-1.
fn put_quoted(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .chars()
            .for_each(|character| put_escaped(out, character)),
        Err(_) => bytes
            .iter()
            .for_each(|byte| put_escaped(out, char::from(*byte))),
    }
    out.push(b'"');
}

fn put_escaped(out: &mut Vec<u8>, character: char) {
    match character {
        '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => {
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        }
        character => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// As it is, but for what a terminal would act on.
fn put_plain(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'!'..=b'~' => out.push(*byte),
            _ => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        Entry {
            begun: SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_000_000_250),
            took: Duration::from_micros(12_345),
            source: [10, 8, 0, 7].into(),
            sender: Some(("acme", "press \"07\"")),
            request: Some((b"POST", b"/in\x1b\xff")),
            status: 502,
            error: Some("dns_error"),
            received: 10,
            sent: 20,
        }
    }

    #[test]
    fn a_json_line_is_one_object() {
        let mut out = Vec::new();
        render_json(&mut out, &entry());
        assert!(out.ends_with(b"}\n"));
        let line: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(line["time"], "2025-11-24T16:00:00.25Z");
        assert_eq!(
            (&line["account"], &line["device"]),
            (&"acme".into(), &"press \"07\"".into())
        );
        assert_eq!(line["path"], "/in\u{1b}\u{ff}");
        assert_eq!(
            (&line["status"], &line["error"]),
            (&502.into(), &"dns_error".into())
        );
        assert_eq!((&line["received"], &line["sent"]), (&10.into(), &20.into()));
        assert_eq!(line["ms"], 12.345);
    }

    #[test]
    fn a_text_line_holds_nothing_that_a_terminal_acts_on() {
        let mut out = Vec::new();
        render_text(&mut out, &entry());
        let line = String::from_utf8(out).expect("UTF-8");
        let expected = "2025-11-24T16:00:00.25Z 10.8.0.7 \"acme\" \"press \\\"07\\\"\" POST \
                        /in\\x1b\\xff 502 dns_error in=10 out=20 12.345ms\n";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_longest_line_has_a_bound() {
        let long = [0x01; 70_000];
        let name = "\u{1}".repeat(limits::IDENTITY_VALUE_BYTES_MAX);
        let entry = Entry {
            sender: Some((&name, &name)),
            request: Some((&long, &long)),
            ..entry()
        };
        let mut out = Vec::new();
        render_json(&mut out, &entry);
        assert!(out.len() <= limits::LOG_LINE_BYTES_MAX, "{}", out.len());
        assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
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
}
