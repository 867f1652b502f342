//! A standard error that nobody reads any more, as where a log collector has ended or hangs: what m2u has
//! to say is lost, and nothing else.
//!
//! Whoever says something is waited for to have tried it, and must go on with its work.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs::{self, OpenOptions},
    io::BufRead,
    os::fd::AsFd,
    thread,
};

use common::{
    device::{self, Device},
    flood::{self, Flood},
    gateway::{self, Gateway, PREAMBLE, acme},
    upstream::Upstream,
    wait_until,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const PRESS: &str = "127.0.0.7";
const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";

#[test]
fn a_core_that_can_t_accept_serves_on() {
    const FILES: u64 = 300;
    const FLOOD: usize = 500;
    flood::raise_file_limit(2 * FLOOD as u64);
    let ours = Upstream::echo();
    let theirs = gateway::server("m2u", "http://127.0.0.1:1");
    let theirs = gateway::account("flood", &theirs, &[("many", "127.16.0.0/16")]);
    let config = format!("{PREAMBLE}{theirs}{}", acme(&ours.url()));
    let mut gateway = Gateway::start_under_file_limit(&config, FILES);
    let address = gateway.address();
    let mut press = Device::connect(PRESS, address);
    assert_eq!(press.ask(GET).status(), 200);
    gateway.stop_listening();
    let before = gateway.writes("m2u-core-");
    let flood = Flood::connect(FLOOD, 16, 50, address);
    wait_until("a core to say that it can't accept", || {
        assert_eq!(press.ask(GET).status(), 200);
        gateway.writes("m2u-core-") > before
    });
    assert_eq!(press.ask(GET).status(), 200);
    drop(flood);
    assert_eq!(device::ask(PRESS, address, GET).status(), 200);
    gateway.stop();
}

/// That it serves its devices and no other, and another one of `upstream` as well once a reload says so.
fn assert_reloads(gateway: &Gateway, upstream: &Upstream) {
    let address = gateway.address();
    let status = |source| device::ask(source, address, GET).status();
    assert_eq!((status(PRESS), status("127.0.0.9")), (200, 403));
    let newcomer = gateway::server("m2u", &upstream.url());
    let newcomer = gateway::account("new", &newcomer, &[("press-09", "127.0.0.9")]);
    let config = format!("{PREAMBLE}{}{newcomer}", acme(&upstream.url()));
    fs::write(gateway.path("m2u.toml"), config).unwrap();
    gateway.signal("HUP");
    wait_until("the reload", || status("127.0.0.9") == 200);
    assert_eq!(status(PRESS), 200);
}

#[test]
fn reloads_are_refused_and_made_as_ever() {
    let ours = Upstream::echo();
    let config = format!("{PREAMBLE}{}", acme(&ours.url()));
    let mut gateway = Gateway::start(&config);
    let path = gateway.path("m2u.toml");
    gateway.stop_listening();
    let before = gateway.writes("m2u");
    fs::write(&path, "nonsense").unwrap();
    gateway.signal("HUP");
    wait_until("the reload to be refused", || {
        gateway.writes("m2u") > before
    });
    assert_reloads(&gateway, &ours);
    gateway.stop();
}

#[test]
fn an_access_log_that_can_t_be_written_is_written_again_later() {
    let ours = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let log = format!("[access_log]\npath = {path:?}\n");
    let mut gateway = Gateway::start(&format!("{PREAMBLE}{log}{}", acme(&ours.url())));
    let address = gateway.address();
    gateway.stop_listening();
    assert_eq!(device::ask(PRESS, address, GET).status(), 200);
    // The line, and that it is lost.
    wait_until("the log to say that it can't be written", || {
        gateway.writes("m2u-log") >= 2
    });
    fs::remove_file(&path).unwrap();
    gateway.signal("HUP");
    wait_until("the new file", || path.exists());
    assert_eq!(device::ask(PRESS, address, GET).status(), 200);
    wait_until("its line", || {
        fs::read_to_string(&path).unwrap().lines().count() == 1
    });
    gateway.stop();
}

#[test]
fn who_reads_nothing_halts_nobody() {
    let ours = Upstream::echo();
    let config = format!("{PREAMBLE}{}", acme(&ours.url()));
    let mut gateway = Gateway::start(&config);
    let stderr = gateway.take_stderr();
    let pipe = format!("/proc/{}/fd/2", gateway.id());
    let pipe = OpenOptions::new().write(true).open(pipe).unwrap();
    wait_until("its standard error to be full", || {
        gateway.signal("USR1");
        let mut room = [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)];
        poll(&mut room, PollTimeout::ZERO).unwrap() == 0
    });
    assert_reloads(&gateway, &ours);
    // Whoever reads on is told what is missing.
    let reader = thread::spawn(move || {
        let mut lines = stderr.lines().map_while(Result::ok);
        lines.any(|line| line.starts_with("m2u: warning: ") && line.contains("lines were lost"))
    });
    wait_until("a word of what was lost", || {
        gateway.signal("USR1");
        reader.is_finished()
    });
    assert!(reader.join().unwrap());
    gateway.stop();
}
