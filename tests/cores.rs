//! One worker a core: pinned, with a listening socket of its own, and serving; and the files that it
//! opens for that.

#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeSet, fs, net::SocketAddr};

use common::{
    device,
    gateway::{Gateway, PREAMBLE, acme},
    sockets::{self, LISTEN},
    upstream::Upstream,
};
use m2u::limits;

/// Names of the process' worker threads, with the cores that each may run on.
fn workers(process: u32) -> BTreeSet<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let statuses = tasks.map(|task| {
        let path = task.unwrap().path().join("status");
        fs::read_to_string(path).unwrap()
    });
    let of = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().trim().to_owned()
    };
    statuses
        .map(|status| (of(&status, "Name:"), of(&status, "Cpus_allowed_list:")))
        .filter(|(name, _)| name.starts_with("m2u-core-"))
        .collect()
}

/// Sockets that listen at this address.
fn listeners(address: SocketAddr) -> usize {
    let rows = sockets::all().into_iter();
    rows.filter(|row| row.local == address && row.state == LISTEN)
        .count()
}

#[test]
fn each_core_has_a_pinned_worker_with_a_socket_of_its_own() {
    let upstream = Upstream::echo();
    let usable: Vec<usize> = core_affinity::get_core_ids()
        .unwrap()
        .iter()
        .map(|core| core.id)
        .collect();
    let last = usable.last().unwrap();
    let one = last.to_string();
    for (flags, cores) in [
        (&[][..], &usable[..]),
        (&["--cores", &one], std::slice::from_ref(last)),
    ] {
        let config = format!("{PREAMBLE}{}", acme(&upstream.url()));
        let gateway = Gateway::start_with(&config, flags);
        let expected: BTreeSet<_> = cores
            .iter()
            .map(|core| (format!("m2u-core-{core}"), core.to_string()))
            .collect();
        assert_eq!(workers(gateway.id()), expected);
        assert_eq!(listeners(gateway.address()), cores.len());
        for _ in 0..16 {
            let request = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
            let answer = device::ask("127.0.0.7", gateway.address(), request);
            assert_eq!(answer.status(), 200);
        }
        gateway.stop();
    }
}

/// What the warning about the limit of open files counts on, which nobody sees before it is short.
#[test]
fn each_core_opens_its_ring_its_timer_twice_and_its_listeners() {
    let upstream = Upstream::echo();
    let account = acme(&upstream.url());
    let usable = core_affinity::get_core_ids().unwrap();
    let first = usable[0].id.to_string();
    let opened = |listeners: usize, flags: &[&str]| {
        let listen = vec!["\"127.0.0.1:0\""; listeners].join(", ");
        let preamble = PREAMBLE.replace("\"127.0.0.1:0\"", &listen);
        let gateway = Gateway::start_with(&format!("{preamble}{account}"), flags);
        // The files that were read at the start have been closed by now.
        let descriptors = gateway.descriptors();
        gateway.stop();
        descriptors
    };
    let one = opened(1, &["--cores", &first]);
    let beside = one - (3 + 1);
    assert!(beside <= limits::FILES_OF_PROCESS, "{beside}");
    assert_eq!(opened(5, &["--cores", &first]), beside + (3 + 5));
    assert_eq!(opened(5, &[]), beside + usable.len() * (3 + 5));
}
