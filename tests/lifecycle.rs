//! A gateway's life: start, readiness, signals, reload, drain, and every way to refuse.
//!
//! Traffic is on loopback; processes are ended by their id; tests wait for lines and answers,
//! never for a time.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::Instant,
};

use common::{PATIENCE, wait_until};
use tempfile::TempDir;

/// A gateway under test, with the folder of its configuration.
struct Gateway {
    child: Child,
    dir: TempDir,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Gateway {
    fn start(configuration: &str, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m2u"));
        Self::spawn(configuration, command.arg("run").args(flags))
    }

    fn spawn(configuration: &str, command: &mut Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("m2u.toml"), configuration).unwrap();
        let mut child = command
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines() {
                // A test that has seen enough no longer listens.
                if line.map(|line| sender.send(line)).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            dir,
            lines,
            seen: Vec::new(),
        }
    }

    /// A gateway that accepts, and the address of its first listener.
    fn ready(configuration: &str) -> (Self, SocketAddr) {
        let mut gateway = Self::start(configuration, &[]);
        let listening = gateway.line("m2u: listening on ");
        gateway.line("m2u: ready: ");
        let address = listening.trim_start_matches("m2u: listening on ");
        let address = address.split(' ').next().unwrap().parse().unwrap();
        (gateway, address)
    }

    fn configure(&self, configuration: &str) {
        fs::write(self.dir.path().join("m2u.toml"), configuration).unwrap();
    }

    /// The next line that holds `words`.
    fn line(&mut self, words: &str) -> String {
        let by = Instant::now() + PATIENCE;
        loop {
            let left = by.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                    panic!("no line with {words:?} after {:#?}", self.seen)
                }
            };
            self.seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", name, &pid])
            .status();
        assert!(sent.unwrap().success(), "kill -s {name} {pid}");
    }

    /// The exit status, and every line that was printed.
    fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        wait_until("m2u to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        while let Ok(line) = self.lines.recv() {
            self.seen.push(line);
        }
        (status, self.seen.join("\n"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that answers each request once `answers` says what.
struct Upstream {
    address: SocketAddr,
    /// A request's head has arrived.
    arrived: Receiver<String>,
    answers: Sender<&'static str>,
}

impl Upstream {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (arriving, arrived) = mpsc::channel();
        let (answers, wanted) = mpsc::channel::<&str>();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(head) = head(&mut stream) else {
                    continue;
                };
                if arriving.send(head).is_err() {
                    return;
                }
                let Ok(text) = wanted.recv() else { return };
                let length = text.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
                );
                // The gateway may have been killed meanwhile.
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Self {
            address,
            arrived,
            answers,
        }
    }

    /// A server that answers every request at once.
    fn prompt(text: &'static str) -> Self {
        let upstream = Self::start();
        for _ in 0..100 {
            upstream.answers.send(text).unwrap();
        }
        upstream
    }

    fn arrived(&self) -> String {
        self.arrived.recv_timeout(PATIENCE).unwrap()
    }
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Sends a request as the device at 127.0.0.1 and leaves the answer to be read.
fn send(gateway: SocketAddr, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ask(gateway: SocketAddr, host: &str) -> String {
    answer(send(gateway, host))
}

/// A configuration whose device is 127.0.0.1, with a server for each address in turn.
fn configuration(listen: &str, upstreams: &[SocketAddr]) -> String {
    let mut text = format!(
        "listen = [\"{listen}\"]\n[limits]\nconnections = 100\n[timeouts]\ndrain = \"2m\"\n\
         [upstream]\nallow_networks = [\"127.0.0.0/8\"]\n[[account]]\nref = \"acme\"\n\
         [[account.device]]\nname = \"press-07\"\nserial = \"1932-0069-24\"\naddress = \
         [\"127.0.0.1\"]\n"
    );
    for (index, upstream) in upstreams.iter().enumerate() {
        let slot = match index {
            0 => "m2u".to_owned(),
            index => format!("m2u{}", index + 1),
        };
        text.push_str(&format!(
            "[[account.server]]\nslot = \"{slot}\"\nurl = \"http://{upstream}\"\n"
        ));
    }
    text
}

const LISTEN: &str = "127.0.0.1:0";

#[test]
fn a_start_tells_where_it_listens_and_what_it_serves() {
    let upstream = Upstream::prompt("ok");
    let mut gateway = Gateway::start(
        &configuration(LISTEN, &[upstream.address]),
        &["--cores", "0"],
    );
    let listening = gateway.line("m2u: listening on 127.0.0.1:");
    assert!(listening.ends_with(" (m2u)"), "{listening}");
    assert!(!listening.contains(":0 "), "{listening}");
    let ready = gateway.line("m2u: ready: ");
    assert_eq!(ready, "m2u: ready: 1 core, 1 account, 1 server, 1 device");
}

#[test]
fn sigterm_and_sigint_end_an_idle_gateway_in_order() {
    for signal in ["TERM", "INT"] {
        let upstream = Upstream::prompt("ok");
        let (gateway, address) = Gateway::ready(&configuration(LISTEN, &[upstream.address]));
        assert!(ask(address, "m2u").starts_with("HTTP/1.1 200 "));
        gateway.signal(signal);
        let (status, lines) = gateway.end();
        assert_eq!(status.code(), Some(0), "{lines}");
        assert!(lines.ends_with("m2u: stopped"), "{lines}");
        assert!(TcpStream::connect(address).is_err());
    }
}

#[test]
fn what_is_under_way_is_finished_before_the_end() {
    let upstream = Upstream::start();
    let (mut gateway, address) = Gateway::ready(&configuration(LISTEN, &[upstream.address]));
    let device = send(address, "m2u");
    upstream.arrived();
    gateway.signal("TERM");
    gateway.line("m2u: draining");
    upstream.answers.send("late but whole").unwrap();
    let answer = answer(device);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nlate but whole"), "{answer}");
    let (status, lines) = gateway.end();
    assert_eq!(status.code(), Some(0), "{lines}");
}

#[test]
fn a_drain_ends_at_its_limit() {
    let upstream = Upstream::start();
    let short = configuration(LISTEN, &[upstream.address]).replace("\"2m\"", "\"100ms\"");
    let (gateway, address) = Gateway::ready(&short);
    let device = send(address, "m2u");
    upstream.arrived();
    gateway.signal("TERM");
    let (status, lines) = gateway.end();
    assert_eq!(status.code(), Some(0), "{lines}");
    drop(device);
}

#[test]
fn a_second_signal_ends_at_once() {
    let upstream = Upstream::start();
    let (mut gateway, address) = Gateway::ready(&configuration(LISTEN, &[upstream.address]));
    let device = send(address, "m2u");
    upstream.arrived();
    gateway.signal("TERM");
    gateway.line("m2u: draining");
    gateway.signal("INT");
    let (status, lines) = gateway.end();
    assert_eq!(status.code(), Some(1), "{lines}");
    assert!(lines.contains("second signal"), "{lines}");
    drop(device);
}

#[test]
fn a_reload_that_is_refused_changes_nothing_and_names_every_problem() {
    let upstream = Upstream::prompt("ok");
    let fine = configuration(LISTEN, &[upstream.address]);
    let (mut gateway, address) = Gateway::ready(&fine);
    gateway.configure("listn = []\n[[account]]\nref = \"\"\n");
    gateway.signal("HUP");
    gateway.line("m2u: reload refused; the configuration in force stays");
    gateway.line("m2u.toml:1: ");
    gateway.line("m2u.toml:3: ");
    gateway.line(" problems");
    assert!(ask(address, "m2u").ends_with("\r\n\r\nok"));
    // And it is not stuck there.
    gateway.configure(&fine);
    gateway.signal("HUP");
    gateway.line("m2u: reloaded: 1 account, 1 server, 1 device");
    assert!(ask(address, "m2u").ends_with("\r\n\r\nok"));
}

#[test]
fn a_reload_brings_new_servers_and_takes_old_devices_away() {
    let (first, second) = (Upstream::prompt("first"), Upstream::prompt("second"));
    let (mut gateway, address) = Gateway::ready(&configuration(LISTEN, &[first.address]));
    assert!(ask(address, "m2u").ends_with("\r\n\r\nfirst"));
    assert!(ask(address, "m2u2").starts_with("HTTP/1.1 404 "));
    let both = configuration(LISTEN, &[first.address, second.address]);
    gateway.configure(&both);
    gateway.signal("HUP");
    gateway.line("m2u: reloaded: 1 account, 2 servers, 1 device");
    assert!(ask(address, "m2u").ends_with("\r\n\r\nfirst"));
    assert!(ask(address, "m2u2").ends_with("\r\n\r\nsecond"));
    gateway.configure(&both.replace("[\"127.0.0.1\"]", "[\"127.0.0.2\"]"));
    gateway.signal("HUP");
    gateway.line("m2u: reloaded: ");
    assert!(ask(address, "m2u").starts_with("HTTP/1.1 403 "));
}

#[test]
fn a_reload_tells_what_needs_a_restart_and_applies_the_rest() {
    let (first, second) = (Upstream::prompt("first"), Upstream::prompt("second"));
    let (mut gateway, address) = Gateway::ready(&configuration(LISTEN, &[first.address]));
    let changed = configuration("127.0.0.2:0", &[second.address])
        .replace(
            "connections = 100",
            "connections = 101\npool_per_server = 1",
        )
        .replace("drain =", "body = \"29s\"\ndrain =");
    gateway.configure(&changed);
    gateway.signal("HUP");
    let line = gateway.line("needs a restart");
    let body = "timeouts.body for m2u's own answers";
    let all = format!(": listen, {body}, limits.connections");
    assert!(line.ends_with(&all), "{line}");
    gateway.line("m2u: reloaded: ");
    assert!(ask(address, "m2u").ends_with("\r\n\r\nsecond"));
}

#[test]
fn a_port_in_use_is_refused_by_name() {
    let taken = TcpListener::bind(LISTEN).unwrap();
    let address = taken.local_addr().unwrap();
    let configuration = configuration(&address.to_string(), &[address]);
    let (status, lines) = Gateway::start(&configuration, &[]).end();
    assert_eq!(status.code(), Some(1), "{lines}");
    assert!(lines.contains(&address.to_string()), "{lines}");
    assert!(!lines.contains("m2u: ready"), "{lines}");
}

#[test]
fn a_configuration_with_problems_does_not_start() {
    let (status, lines) = Gateway::start("listn = []\n", &[]).end();
    assert_eq!(status.code(), Some(1), "{lines}");
    assert!(lines.contains("m2u.toml:1: "), "{lines}");
    assert!(!lines.contains("m2u: "), "{lines}");
}

#[test]
fn a_name_that_does_not_resolve_delays_nothing_for_long_and_is_told() {
    let upstream = Upstream::prompt("ok");
    let mut text = configuration(LISTEN, &[upstream.address]);
    text.push_str("[[account.server]]\nslot = \"m2u2\"\nurl = \"http://nowhere.invalid\"\n");
    let mut gateway = Gateway::start(&text, &["--nameserver", "127.0.0.1:9"]);
    let warning = gateway.line("nowhere.invalid cannot be resolved");
    assert!(warning.contains("devices get 502"), "{warning}");
    gateway.line("m2u: ready: ");
}

#[test]
fn the_limit_of_open_files_is_raised_and_a_low_one_is_told() {
    let upstream = Upstream::prompt("ok");
    let text = configuration(LISTEN, &[upstream.address]);
    let limited = "ulimit -Sn 256 && ulimit -Hn 512 && exec \"$0\" run";
    let mut gateway = Gateway::spawn(
        &text,
        Command::new("sh").args(["-c", limited, env!("CARGO_BIN_EXE_m2u")]),
    );
    let warning = gateway.line("m2u: warning: ");
    assert!(warning.contains("may open 512 files"), "{warning}");
    assert!(
        warning.contains("limits.connections = 100 on "),
        "{warning}"
    );
    gateway.line("m2u: ready: ");
    let limits = fs::read_to_string(format!("/proc/{}/limits", gateway.child.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[3..5], ["512", "512"]);

    // A reload tells it only where more may be needed than before.
    for (bound, is_told) in [(32, false), (4_096, true), (8, false)] {
        let limits = format!("limits = {{ pool_per_server = {bound} }}\n");
        gateway.configure(&format!("{text}{limits}"));
        gateway.signal("HUP");
        let line = gateway.line("m2u: ");
        assert_eq!(line.contains("may open 512 files"), is_told, "{line}");
        if is_told {
            gateway.line("m2u: reloaded: ");
        }
    }
}
