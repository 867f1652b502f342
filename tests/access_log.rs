//! The access log of a running gateway: one line an exchange, whatever became of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs, io,
    process::Command,
    sync::{Mutex, mpsc},
    time::Duration,
};

use common::{
    PATIENCE,
    device::{self, Device},
    gateway::{Gateway, PREAMBLE, account, acme},
    sockets,
    upstream::Upstream,
    wait_until,
};
use serde_json::Value;
use socket2::SockRef;

fn gateway(accounts: &str, format: &str) -> (Gateway, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap().keep();
    let path = folder.join("access.log");
    let log = format!("[access_log]\npath = {path:?}\nformat = \"{format}\"\n");
    (Gateway::start(&format!("{PREAMBLE}{log}{accounts}")), path)
}

fn lines(path: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_exchange_has_a_line_and_no_line_has_a_secret() {
    let upstream = Upstream::echo();
    let (gateway, path) = gateway(&acme(&upstream.url()), "json");
    let address = gateway.address();
    let mut device = Device::connect("127.0.0.7", address);
    let answer = device.ask(
        "POST /in?key=geheim HTTP/1.1\r\nHost: m2u\r\nAuthorization: Bearer geheim\r\n\
         Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    device.ask("GET / HTTP/1.1\r\nHost: m2u9\r\n\r\n");
    device::ask(
        "127.0.0.99",
        address,
        "GET /lost HTTP/1.1\r\nHost: m2u\r\n\r\n",
    );
    device::ask("127.0.0.8", address, "GET / HTTP/1.1\r\n\r\n");
    gateway.stop();

    let lines = lines(&path);
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(!lines.concat().contains("geheim"));
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |status: u16| lines.iter().find(|line| line["status"] == status).unwrap();
    let delivered = of(200);
    assert_eq!(delivered["source"], "127.0.0.7");
    assert_eq!(
        (&delivered["account"], &delivered["device"]),
        (&"acme".into(), &"press-07".into())
    );
    assert_eq!(
        (&delivered["method"], &delivered["path"]),
        (&"POST".into(), &"/in".into())
    );
    assert_eq!(delivered["received"], 3);
    assert_eq!(delivered["sent"], answer.body.len());
    assert!(delivered["ms"].as_f64().unwrap() > 0.0);
    assert!(delivered.get("error").is_none());
    assert!(delivered.get("cause").is_none());
    let missing = of(404);
    assert_eq!(
        (&missing["error"], &missing["cause"]),
        (&"destination_not_found".into(), &"no_such_slot".into())
    );
    assert_eq!(
        (&of(403)["error"], &of(403)["path"]),
        (&"http_request_denied".into(), &"/lost".into())
    );
    assert!(of(403).get("account").is_none());
    assert_eq!(of(400)["error"], "http_request_error");
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn a_refused_request_is_its_sender_s_however_early_it_is_refused() {
    let upstream = Upstream::echo();
    let (gateway, path) = gateway(&acme(&upstream.url()), "json");
    let long = "a".repeat(20_000);
    let refusals = [
        (&*format!("GET /{long} HTTP/1.1\r\nHost: m2u\r\n\r\n"), 414),
        (
            &*format!("GET / HTTP/1.1\r\nHost: m2u\r\nX: {long}\r\n\r\n"),
            431,
        ),
        ("TRACE / HTTP/1.1\r\nHost: m2u\r\n\r\n", 405),
        ("GET /bad HTTP/1.1\r\nHost : m2u\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: m2u9\r\n\r\n", 404),
        ("GET /../x HTTP/1.1\r\nHost: m2u\r\n\r\n", 400),
    ];
    for (request, status) in refusals {
        let answer = device::ask("127.0.0.7", gateway.address(), request);
        assert_eq!(answer.status(), status, "{request:?}");
    }
    gateway.stop();
    let lines = lines(&path);
    assert_eq!(lines.len(), refusals.len(), "{lines:#?}");
    for line in lines {
        let line: Value = serde_json::from_str(&line).unwrap();
        let sender = (&line["account"], &line["device"]);
        assert_eq!(sender, (&"acme".into(), &"press-07".into()), "{line}");
    }
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn a_device_whose_account_has_no_server_is_named() {
    let upstream = Upstream::echo();
    let bolt = account("bolt", "", &[("saw-01", "127.0.0.9")]);
    let (gateway, path) = gateway(&format!("{}{bolt}", acme(&upstream.url())), "json");
    let request = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
    let answer = device::ask("127.0.0.9", gateway.address(), request);
    assert_eq!(answer.status(), 404);
    gateway.stop();
    let line: Value = serde_json::from_str(&lines(&path)[0]).unwrap();
    let (account, device) = (&line["account"], &line["device"]);
    assert_eq!((account, device), (&"bolt".into(), &"saw-01".into()));
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn an_answer_that_the_device_did_not_get_is_not_logged() {
    let upstream = Upstream::start(|conversation| {
        conversation.request()?;
        if conversation.number > 1 {
            return conversation.cut();
        }
        conversation.answer("first")?;
        conversation.request()?;
        conversation.write(
            "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 5\r\n\r\ntired",
        )?;
        conversation.cut()
    });
    let (gateway, path) = gateway(&acme(&upstream.url()), "json");
    let mut device = Device::connect("127.0.0.7", gateway.address());
    for status in [200, 502] {
        let answer = device.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(answer.status(), status);
    }
    gateway.stop();
    let lines = lines(&path);
    let second: Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(second["error"], "connection_terminated");
    assert_eq!(
        (&second["status"], &second["sent"]),
        (&502.into(), &0.into())
    );
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn a_device_that_goes_away_before_its_answer_is_logged_with_an_error() {
    let (arrived, told) = mpsc::channel();
    let (go, wanted) = mpsc::channel::<()>();
    let (arrived, wanted) = (Mutex::new(arrived), Mutex::new(wanted));
    let upstream = Upstream::start(move |conversation| {
        conversation.request()?;
        arrived.lock().unwrap().send(()).map_err(io::Error::other)?;
        wanted.lock().unwrap().recv().map_err(io::Error::other)?;
        // There is nobody left to whom it could be relayed.
        conversation.write("HTTP/1.1 103 Early Hints\r\n\r\n")?;
        conversation.read_rest().map(|_| ())
    });
    let (gateway, path) = gateway(&acme(&upstream.url()), "json");
    let mut device = Device::connect("127.0.0.7", gateway.address());
    device.send("GET /lost HTTP/1.1\r\nHost: m2u\r\n\r\n");
    told.recv_timeout(PATIENCE).unwrap();
    let remote = device.stream().local_addr().unwrap();
    let socket = SockRef::from(device.stream());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    drop(device);
    wait_until("the gateway's end to be reset", || {
        let rows = sockets::all();
        !rows
            .iter()
            .any(|row| (row.local, row.remote) == (gateway.address(), remote))
    });
    go.send(()).unwrap();
    wait_until("the exchange to end", || upstream.open() == 0);
    gateway.stop();
    let lines = lines(&path);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    let line: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["path"], "/lost");
    assert_eq!(line["error"], "http_request_error", "{line}");
    assert_eq!(line["sent"], 0);
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn a_line_that_did_not_fit_spoils_none_behind_it() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = format!("[access_log]\npath = {path:?}\nformat = \"json\"\n");
    let config = format!("{PREAMBLE}{log}{}", acme(&upstream.url()));
    let mut gateway = Gateway::start_under_size_limit(&config, 1);
    let ask = |gateway: &Gateway, path: &str| {
        let request = format!("GET /{path} HTTP/1.1\r\nHost: m2u\r\n\r\n");
        let answer = device::ask("127.0.0.7", gateway.address(), &request);
        assert_eq!(answer.status(), 200);
    };
    // Longer than a block, however long that is.
    ask(&gateway, &"long".repeat(255));
    gateway.wait_for_log("File too large (os error 27); 1 lines lost");
    gateway.lift_size_limit();
    ask(&gateway, "short");
    gateway.stop();
    let lines = lines(&path);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(lines[0].contains("longlong"), "{lines:#?}");
    let line: Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(line["path"], "/short");
}

#[test]
fn lines_that_are_lost_before_the_end_are_told_at_the_end() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let log = format!("[access_log]\npath = {path:?}\n");
    let config = format!("{PREAMBLE}{log}{}", acme(&upstream.url()));
    let mut gateway = Gateway::start_under_size_limit(&config, 0);
    let ask = |gateway: &Gateway| {
        let request = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
        let answer = device::ask("127.0.0.7", gateway.address(), request);
        assert_eq!(answer.status(), 200);
    };
    ask(&gateway);
    gateway.wait_for_log("; 1 lines lost");
    // The next report is not due yet.
    ask(&gateway);
    ask(&gateway);
    let said = gateway.stop();
    let counts = said.lines().filter_map(|line| {
        let line = line.strip_suffix(" lines lost")?;
        line.rsplit(' ').next()?.parse::<usize>().ok()
    });
    assert_eq!(counts.sum::<usize>(), 3, "{said}");
}

#[test]
fn a_pipe_that_nobody_reads_does_not_hold_up_the_end() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success(), "{made}");
    // Opened both ways, so that nobody waits for the other end.
    let mut both_ways = fs::OpenOptions::new();
    let pipe = both_ways.read(true).write(true).open(&path).unwrap();
    let log = format!("[access_log]\npath = {path:?}\n");
    let gateway = Gateway::start(&format!("{PREAMBLE}{log}{}", acme(&upstream.url())));
    let mut device = Device::connect("127.0.0.7", gateway.address());
    // A pipe holds 64 KiB.
    for _ in 0..100 {
        let long = "long".repeat(250);
        let answer = device.ask(format!("GET /{long} HTTP/1.1\r\nHost: m2u\r\n\r\n"));
        assert_eq!(answer.status(), 200);
    }
    drop(device);
    let said = gateway.stop();
    assert!(said.contains("nothing takes its last lines"), "{said}");
    drop(pipe);
}

#[test]
fn a_moved_log_is_opened_anew_on_sighup() {
    let upstream = Upstream::echo();
    let (mut gateway, path) = gateway(&acme(&upstream.url()), "text");
    let ask = || {
        device::ask(
            "127.0.0.7",
            gateway.address(),
            "GET /a HTTP/1.1\r\nHost: m2u\r\n\r\n",
        )
    };
    ask();
    wait_until("the first line", || lines(&path).len() == 1);
    let moved = path.with_extension("1");
    fs::rename(&path, &moved).unwrap();
    gateway.signal("HUP");
    gateway.wait_for_log("m2u: reloaded");
    wait_until("the new file", || path.exists());
    device::ask(
        "127.0.0.7",
        gateway.address(),
        "GET /b HTTP/1.1\r\nHost: m2u\r\n\r\n",
    );
    gateway.stop();
    assert!(lines(&moved)[0].contains(" \"acme\" \"press-07\" GET /a 200 - in=0 out="));
    assert_eq!(lines(&path).len(), 1);
    assert!(lines(&path)[0].contains(" GET /b 200 - "));
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
