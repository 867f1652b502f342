//! Hosts where io_uring is missing, forbidden or old, or a core's timer is: m2u says which and what
//! to do, or makes do.
//!
//! strace answers the system call in the kernel's place.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use common::{
    device,
    gateway::{PREAMBLE, acme},
    servers::program,
    upstream::Upstream,
};

/// A process and the one below it; both are ended however the test ends.
struct Traced(Child);

impl Traced {
    /// The id of m2u.
    fn inner(&self) -> String {
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        children.unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let inner = self.inner();
        if !inner.is_empty() {
            let _ = Command::new("kill").args(["-s", "KILL", &inner]).status();
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// m2u under strace, with a system call failing as `inject` says.
fn injected(inject: &str, folder: &std::path::Path, config: &str) -> Command {
    let path = folder.join("m2u.toml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(program("strace"));
    command
        .args(["--quiet=all", "--follow-forks", "--output", "/dev/null"])
        .arg(format!("--inject={inject}"))
        .arg(env!("CARGO_BIN_EXE_m2u"))
        .args(["run", "--config"])
        .arg(path)
        .stdin(Stdio::null());
    command
}

#[test]
fn without_io_uring_the_start_is_refused_with_the_remedy() {
    let config = format!("{PREAMBLE}{}", acme("http://127.0.0.1:1"));
    for (error, remedy) in [
        ("ENOSYS", "m2u needs Linux 5.6"),
        ("EPERM", "kernel.io_uring_disabled"),
        ("ENOMEM", "LimitMEMLOCK"),
        ("EMFILE", "LimitNOFILE"),
    ] {
        let said = refused(&format!("io_uring_setup:error={error}"), &config);
        assert!(said.contains("io_uring can't be used"), "{error}: {said}");
        assert!(said.contains(remedy), "{error}: {said}");
    }
}

#[test]
fn a_timer_that_cannot_be_made_is_told_as_that() {
    let config = format!("{PREAMBLE}{}", acme("http://127.0.0.1:1"));
    for (inject, remedy) in [
        ("timerfd_create:error=EMFILE", "LimitNOFILE"),
        ("timerfd_create:error=ENOMEM", "memory"),
        ("timerfd_create:error=EPERM", "allows timerfd_create"),
        ("timerfd_settime:error=ENOSYS", "timerfd_settime"),
    ] {
        let said = refused(inject, &config);
        assert!(said.contains("timer can't be made"), "{inject}: {said}");
        assert!(said.contains(remedy), "{inject}: {said}");
        assert!(!said.contains("io_uring"), "{inject}: {said}");
    }
}

/// What m2u says when it does not start.
fn refused(inject: &str, config: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let done = injected(inject, folder.path(), config).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{inject}: {said}");
    assert!(!said.contains("ready"), "{inject}: {said}");
    said
}

#[test]
fn an_older_kernel_is_asked_for_less() {
    let upstream = Upstream::echo();
    let config = format!("{PREAMBLE}{}", acme(&upstream.url()));
    // The flags of 6.1 are not known, then those of 5.19 are not either.
    for refusals in ["when=1", "when=1..2"] {
        let folder = tempfile::tempdir().unwrap();
        let inject = format!("io_uring_setup:error=EINVAL:{refusals}");
        // One core: strace counts calls for each thread by itself, and for the process at times.
        let child = injected(&inject, folder.path(), &config)
            .args(["--cores", &first_core().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut traced = Traced(child);
        let mut lines = BufReader::new(traced.0.stderr.take().unwrap()).lines();
        let mut address = None;
        loop {
            let line = lines.next().expect("m2u ended").unwrap();
            if let Some(rest) = line.strip_prefix("m2u: listening on ") {
                address = rest.split(' ').next().unwrap().parse().ok();
            }
            if line.starts_with("m2u: ready") {
                break;
            }
        }
        let request = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
        assert_eq!(
            device::ask("127.0.0.7", address.unwrap(), request).status(),
            200
        );
        // strace ends as its child does, and with its code.
        let kill = Command::new("kill")
            .args(["-s", "TERM", &traced.inner()])
            .status()
            .unwrap();
        assert!(kill.success());
        lines.for_each(drop);
        assert_eq!(traced.0.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn each_core_has_a_ring_of_the_cheapest_kind_that_is_not_switched_off() {
    let upstream = Upstream::echo();
    let config = format!("{PREAMBLE}{}", acme(&upstream.url()));
    let cores = core_affinity::get_core_ids().unwrap().len();
    for (flags, deferred) in [(&[][..], true), (&["--defer-taskrun", "off"], false)] {
        let folder = tempfile::tempdir().unwrap();
        let (path, calls) = (folder.path().join("m2u.toml"), folder.path().join("calls"));
        fs::write(&path, &config).unwrap();
        let child = Command::new(program("strace"))
            .args(["--quiet=all", "--follow-forks"])
            .args(["--trace=io_uring_setup", "--const-print-style=raw"])
            .arg("--output")
            .arg(&calls)
            .arg(env!("CARGO_BIN_EXE_m2u"))
            .args(["run", "--config"])
            .arg(&path)
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut traced = Traced(child);
        let mut lines = BufReader::new(traced.0.stderr.take().unwrap()).lines();
        let is_ready = |line: io::Result<String>| line.unwrap().starts_with("m2u: ready");
        assert!(lines.any(is_ready), "m2u ended");
        let kill = Command::new("kill")
            .args(["-s", "TERM", &traced.inner()])
            .status()
            .unwrap();
        assert!(kill.success());
        lines.for_each(drop);
        assert_eq!(traced.0.wait().unwrap().code(), Some(0));
        let calls = fs::read_to_string(calls).unwrap();
        let rings: Vec<_> = calls
            .lines()
            .filter(|line| line.contains("io_uring_setup(") && !line.contains(" = -1 "))
            .collect();
        assert_eq!(rings.len(), cores, "{calls}");
        for ring in rings {
            // strace of Debian 12 does not know them by name.
            let digits = ring.split("{flags=").nth(1).unwrap();
            let digits = digits.split(',').next().unwrap().trim_start_matches("0x");
            let set = u32::from_str_radix(digits, 16).unwrap();
            for flag in [SINGLE_ISSUER, DEFER_TASKRUN] {
                assert_eq!(set & flag != 0, deferred, "{flag:#x}: {ring}");
            }
        }
    }
}

/// Of `linux/io_uring.h`.
const SINGLE_ISSUER: u32 = 1 << 12;
const DEFER_TASKRUN: u32 = 1 << 13;

fn first_core() -> usize {
    core_affinity::get_core_ids().unwrap()[0].id
}
