//! The gateway as a process of its own, configured by a file as an operator would write it.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use tempfile::TempDir;

use super::{namespace::Namespace, wait_until};

/// A running gateway.
pub struct Gateway {
    child: Child,
    dir: Arc<TempDir>,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<BufReader<ChildStderr>>>,
    /// Whether its standard error is read no further.
    unheard: Arc<AtomicBool>,
    addresses: Vec<SocketAddr>,
}

/// The beginning of most configurations: one listener, and leave to forward to the loopback range.
pub const PREAMBLE: &str = "domain = \"talk2m.com\"\n\
    listen = [\"127.0.0.1:0\"]\n\
    [upstream]\n\
    allow_networks = [\"127.0.0.0/8\"]\n";

/// The preamble with other listeners, written as the elements of an array.
pub fn listening(listeners: &str) -> String {
    PREAMBLE.replacen("[\"127.0.0.1:0\"]", &format!("[{listeners}]"), 1)
}

/// A listener that believes what `network` says by the PROXY protocol.
pub fn believing(network: &str) -> String {
    format!("{{ address = \"127.0.0.1:0\", proxy_protocol_from = [\"{network}\"] }}")
}

/// An account with one server at `url`, and two devices that no other account has.
pub fn acme(url: &str) -> String {
    account(
        "acme",
        &server("m2u", url),
        &[("press-07", "127.0.0.7"), ("press-08", "127.0.0.8")],
    )
}

/// A server of an account.
pub fn server(slot: &str, url: &str) -> String {
    format!("[[account.server]]\nslot = \"{slot}\"\nurl = \"{url}\"\n")
}

/// An account whose devices have serial numbers made of their names.
pub fn account(reference: &str, servers: &str, devices: &[(&str, &str)]) -> String {
    let mut text = format!("[[account]]\nref = \"{reference}\"\n{servers}");
    for (name, address) in devices {
        text.push_str(&format!(
            "[[account.device]]\nname = \"{name}\"\nserial = \"{name}-serial\"\n\
             address = [\"{address}\"]\n"
        ));
    }
    text
}

impl Gateway {
    /// Starts with this configuration and waits until every core serves.
    pub fn start(config: &str) -> Self {
        Self::start_with(config, &[])
    }

    /// Starts with the usual preamble.
    pub fn with(accounts: &str) -> Self {
        Self::start(&format!("{PREAMBLE}{accounts}"))
    }

    /// Starts with flags after the configuration.
    pub fn start_with(config: &str, flags: &[&str]) -> Self {
        Self::start_by(command(), config, flags)
    }

    /// Likewise, with variables in its environment that name files.
    pub fn start_among(config: &str, flags: &[&str], variables: &[(&str, &Path)]) -> Self {
        let mut command = command();
        command.envs(variables.iter().copied());
        Self::start_by(command, config, flags)
    }

    /// Starts where no more than so many files may be open.
    pub fn start_under_file_limit(config: &str, files: u64) -> Self {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &files.to_string()])
            .arg(env!("CARGO_BIN_EXE_m2u"));
        Self::start_by(shell, config, &[])
    }

    /// Starts where no file may become longer than so many blocks of 512 or 1,024 bytes; whoever writes
    /// more is told so, as where the disk is full.
    pub fn start_under_size_limit(config: &str, blocks: u64) -> Self {
        let mut shell = Command::new("sh");
        let limit = "trap '' XFSZ && ulimit -S -f \"$0\" && exec \"$@\"";
        shell
            .args(["-c", limit, &blocks.to_string()])
            .arg(env!("CARGO_BIN_EXE_m2u"));
        Self::start_by(shell, config, &[])
    }

    /// Lets its files become as long as they may, as where a disk has room again.
    pub fn lift_size_limit(&self) {
        let id = self.id().try_into().unwrap();
        let (mut soft, mut hard) = (0, 0);
        rlimit::prlimit(
            id,
            rlimit::Resource::FSIZE,
            None,
            Some((&mut soft, &mut hard)),
        )
        .unwrap();
        rlimit::prlimit(id, rlimit::Resource::FSIZE, Some((hard, hard)), None).unwrap();
    }

    /// Starts in a network namespace.
    pub fn start_inside(namespace: &Namespace, config: &str) -> Self {
        let command = namespace.command(env!("CARGO_BIN_EXE_m2u"));
        Self::start_by(command, config, &[])
    }

    fn start_by(command: Command, config: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("m2u.toml"), config).unwrap();
        Self::start_in(Arc::new(dir), command, flags)
    }

    fn start_in(dir: Arc<TempDir>, mut command: Command, flags: &[&str]) -> Self {
        let mut child = command
            .arg("run")
            .arg("--config")
            .arg(dir.path().join("m2u.toml"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let unheard = Arc::new(AtomicBool::new(false));
        let reader = {
            let (log, unheard) = (Arc::clone(&log), Arc::clone(&unheard));
            let mut stderr = BufReader::new(child.stderr.take().unwrap());
            thread::spawn(move || {
                for line in stderr.by_ref().lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap();
                    log.push_str(&line);
                    log.push('\n');
                    if unheard.load(Ordering::Acquire) {
                        break;
                    }
                }
                stderr
            })
        };
        let mut gateway = Self {
            child,
            dir,
            log,
            reader: Some(reader),
            unheard,
            addresses: Vec::new(),
        };
        gateway.wait_for_log("m2u: ready");
        gateway.addresses = gateway
            .log()
            .lines()
            .filter_map(|line| line.strip_prefix("m2u: listening on "))
            .filter_map(|rest| rest.split(' ').next()?.parse().ok())
            .collect();
        gateway
    }

    /// The first listener.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All listeners, in the file's order.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        // A test that failed while it held the log still wants to show it.
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until it has said `text`.
    pub fn wait_for_log(&mut self, text: &str) {
        let (child, log) = (&mut self.child, &self.log);
        wait_until(text, || {
            if log.lock().unwrap().contains(text) {
                return true;
            }
            let ended = child.try_wait().unwrap();
            let said = log.lock().unwrap().clone();
            assert!(ended.is_none(), "m2u ended with {ended:?}:\n{said}");
            false
        });
    }

    /// Closes the end of its standard error that is read: nobody hears what it says from now on.
    pub fn stop_listening(&mut self) {
        drop(self.take_stderr());
    }

    /// Its standard error, of which nobody reads any more.
    pub fn take_stderr(&mut self) -> BufReader<ChildStderr> {
        self.unheard.store(true, Ordering::Release);
        // The reader looks up with the next line.
        self.signal("USR1");
        self.reader.take().unwrap().join().unwrap()
    }

    /// How often its threads whose names begin so have called `write`, whatever came of it; those that
    /// have ended don't count.
    pub fn writes(&self, threads: &str) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        let paths = tasks.map(|task| task.unwrap().path());
        let named = |path: &PathBuf| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with(threads))
        };
        let counts = paths
            .filter(named)
            .filter_map(|path| fs::read_to_string(path.join("io")).ok());
        let of_one = |text: String| -> Option<usize> {
            let line = text.lines().find(|line| line.starts_with("syscw:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        counts.filter_map(of_one).sum()
    }

    /// The folder of the configuration.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Descriptors that it has open.
    pub fn descriptors(&self) -> usize {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap();
        entries.count()
    }

    /// Bytes of memory that it holds (resident set).
    pub fn resident_bytes(&self) -> usize {
        self.status("VmRSS").parse::<usize>().unwrap() * 1_024
    }

    /// The first word that the system says of the process under `name` (proc(5), `status`).
    pub fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let (_, words) = lines.find(|(found, _)| *found == name).unwrap();
        words.split_whitespace().next().unwrap().to_owned()
    }

    /// What it has counted so far, by name; what never was is missing.
    pub fn counts(&self) -> HashMap<String, usize> {
        const MARK: &str = "m2u: counts: ";
        let lines = || self.log().matches(MARK).count();
        let before = lines();
        self.signal("USR1");
        wait_until("the counts", || lines() > before);
        let log = self.log();
        let line = log.lines().rfind(|line| line.starts_with(MARK)).unwrap();
        line[MARK.len()..]
            .split(' ')
            .map(|pair| {
                let (name, count) = pair.split_once('=').expect(line);
                (name.to_owned(), count.parse().expect(line))
            })
            .collect()
    }

    /// The names of its threads, in order; those that the kernel lends a ring come and go.
    pub fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        // A task may end between the two looks.
        let mut names: Vec<String> = tasks
            .filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .map(|name| name.trim_end().to_owned())
            .filter(|name| !name.starts_with("iou-"))
            .collect();
        names.sort();
        names
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        wait_until("m2u to end", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status.unwrap()
    }

    /// Ends it as a crash does, and starts it again in the same folder, which may be changed
    /// `meanwhile`.
    pub fn crash_and_restart(mut self, meanwhile: impl FnOnce(&Path)) -> Self {
        self.signal("KILL");
        self.wait();
        let dir = Arc::clone(&self.dir);
        meanwhile(dir.path());
        Self::start_in(dir, command(), &[])
    }

    /// Ends it as an operator would; it must agree, and must not have met a fault of its own.
    pub fn stop(mut self) -> String {
        self.signal("TERM");
        let status = self.wait();
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        log
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("m2u said:\n{}", self.log());
        }
    }
}

/// The program, without arguments.
pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_m2u"))
}

/// Runs a subcommand over a configuration to its end.
pub fn run_to_end(config: &str, arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m2u.toml");
    fs::write(&path, config).unwrap();
    command()
        .args(arguments)
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap()
}
