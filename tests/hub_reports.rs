//! What a hub's management interface says, poll after poll: what of it cannot be served is told once,
//! and again when it has come back.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{
    gateway::{Gateway, PREAMBLE, believing, listening},
    leases::{connect, fleet, whose},
    upstream::Upstream,
    wait_until,
};

/// A hub that is asked for its status, and routes what it is told to.
struct Hub {
    routes: Arc<Mutex<&'static [(&'static str, &'static str)]>>,
    asked: Arc<AtomicUsize>,
    /// When it was.
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Hub {
    fn listen(listener: UnixListener) -> Self {
        Self::listen_and_refuse(listener, 0)
    }

    /// Says nothing that could be believed the first `refusals` times.
    fn listen_and_refuse(listener: UnixListener, refusals: usize) -> Self {
        let hub = Self {
            routes: Arc::default(),
            asked: Arc::default(),
            times: Arc::default(),
        };
        let (routes, asked) = (Arc::clone(&hub.routes), Arc::clone(&hub.asked));
        let times = Arc::clone(&hub.times);
        // Ends with the process; who still asks is answered.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut question = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                reader.read_line(&mut question).unwrap();
                assert_eq!(question, "status 3\n");
                times.lock().unwrap().push(Instant::now());
                let text = match asked.load(Ordering::SeqCst) < refusals {
                    true => "ERROR: not now\r\n".to_owned(),
                    false => status(*routes.lock().unwrap()),
                };
                // A gateway that ends does not listen any more.
                let _ = stream.write_all(text.as_bytes());
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
        hub
    }

    /// Routes these networks to these clients, until m2u has heard of it two more times.
    fn route(&self, routes: &'static [(&'static str, &'static str)]) {
        *self.routes.lock().unwrap() = routes;
        let before = self.asked.load(Ordering::SeqCst);
        // The first may have been answered before; what the last said is still under way.
        wait_until("polls", || self.asked.load(Ordering::SeqCst) >= before + 3);
    }

    /// How often it was asked; never twice within a second, but for what its own work takes.
    fn times_asked(&self) -> usize {
        let times = self.times.lock().unwrap();
        for pair in times.windows(2) {
            let pause = pair[1] - pair[0];
            assert!(pause > Duration::from_millis(900), "{pause:?}");
        }
        times.len()
    }
}

/// As OpenVPN writes it.
fn status(routes: &[(&str, &str)]) -> String {
    let mut text = "TITLE\tx\r\nTIME\tx\t1795705838\r\n\
        HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tConnected Since (time_t)\r\n"
        .to_owned();
    for name in ["acme.press-07", "acme.press-08"] {
        text.push_str(&format!(
            "CLIENT_LIST\t{name}\t{name}:1\t10.8.0.2\t1795705817\r\n"
        ));
    }
    text.push_str("HEADER\tROUTING_TABLE\tVirtual Address\tCommon Name\tReal Address\r\n");
    for (network, name) in routes {
        text.push_str(&format!("ROUTING_TABLE\t{network}\t{name}\t{name}:1\r\n"));
    }
    text.push_str("END\r\n");
    text
}

#[test]
fn what_a_hub_says_when_it_is_asked_is_believed_at_once() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("north.sock");
    let hub = Hub::listen(UnixListener::bind(&socket).unwrap());
    *hub.routes.lock().unwrap() = &[
        ("127.0.0.7", "acme.press-07"),
        ("127.8.0.0/16", "acme.press-08"),
    ];
    let devices = fleet("acme", &upstream.url(), &["press-07", "press-08"]);
    // Once an hour: what it says at the start has to do.
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}[leases]\n[[openvpn]]\nhub = \"north\"\nmanagement = \"{}\"\npoll = \"60m\"\n\
         pattern = \"{{account}}.{{device}}\"\n{devices}",
        socket.display(),
    ));
    for (address, device) in [("127.0.0.7", "press-07"), ("127.8.0.1", "press-08")] {
        let known = Ok(device.to_owned());
        wait_until("the report", || whose(address, gateway.address()) == known);
    }
    assert_eq!(hub.asked.load(Ordering::SeqCst), 1);
    gateway.stop();
}

#[test]
fn what_cannot_be_served_is_told_once_and_again_when_it_comes_back() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("north.sock");
    let hub = Hub::listen(UnixListener::bind(&socket).unwrap());
    hub.routes.lock().unwrap().clone_from(&(&[] as _));
    let devices = fleet("acme", &upstream.url(), &["press-07", "press-08"]);
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}[leases]\n[[openvpn]]\nhub = \"north\"\nmanagement = \"{}\"\npoll = \"1s\"\n\
         pattern = \"{{account}}.{{device}}\"\n{devices}address = [\"127.0.0.8\"]\n",
        socket.display(),
    ));
    const NESTED: &[(&str, &str)] = &[
        ("127.0.0.0/16", "acme.press-07"),
        ("127.0.0.8", "acme.press-07"),
        ("127.0.7.0/24", "acme.press-08"),
    ];
    const APART: &[(&str, &str)] = &[("127.0.0.0/16", "acme.press-07")];
    let taken =
        "m2u: openvpn:north: 127.0.0.8/32 is the device \"press-08\"'s of \"acme\", says config";
    let nested =
        "m2u: openvpn:north: 127.0.7.0/24 lies in 127.0.0.0/16, which is the device \"press-07\"'s";
    let told = |line| gateway.log().matches(line).count();
    for times in [1, 2] {
        hub.route(NESTED);
        assert_eq!(
            (told(taken), told(nested)),
            (times, times),
            "{}",
            gateway.log()
        );
        assert_eq!(whose("127.0.7.1", gateway.address()), Err(403));
        assert_eq!(whose("127.0.0.8", gateway.address()), Err(403));
        assert_eq!(
            whose("127.0.0.9", gateway.address()),
            Ok("press-07".to_owned())
        );
        hub.route(APART);
        assert_eq!(
            whose("127.0.7.1", gateway.address()),
            Ok("press-07".to_owned())
        );
        assert_eq!(
            whose("127.0.0.8", gateway.address()),
            Ok("press-08".to_owned())
        );
    }
    gateway.stop();
}

#[test]
fn a_client_that_could_speak_as_any_other_is_told_of_and_not_served() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("north.sock");
    let hub = Hub::listen(UnixListener::bind(&socket).unwrap());
    let devices = fleet("acme", &upstream.url(), &["press-07", "press-08"]);
    let listeners = format!("\"127.0.0.1:0\", {}", believing("127.0.9.0/24"));
    let gateway = Gateway::start(&format!(
        "{}[leases]\n[[openvpn]]\nhub = \"north\"\nmanagement = \"{}\"\npoll = \"1s\"\n\
         pattern = \"{{account}}.{{device}}\"\n{devices}",
        listening(&listeners),
        socket.display(),
    ));
    let whose = |address| whose(address, gateway.address());
    hub.route(&[
        ("127.0.8.7", "acme.press-07"),
        ("127.0.9.7", "acme.press-07"),
        ("127.0.9.0/28", "acme.press-08"),
    ]);
    assert_eq!(whose("127.0.8.7"), Ok("press-07".to_owned()));
    for address in ["127.0.9.7", "127.0.9.1"] {
        assert_eq!(whose(address), Err(403), "{address}");
    }
    for network in ["127.0.9.7/32", "127.0.9.0/28"] {
        let line =
            format!("m2u: openvpn:north: {network} overlaps 127.0.9.0/24 of proxy_protocol_from: ");
        assert_eq!(gateway.log().matches(&line).count(), 1, "{}", gateway.log());
    }
    // Who has the network around it may be where it is, and so is nobody.
    hub.route(&[
        ("127.0.0.0/16", "acme.press-08"),
        ("127.0.8.7", "acme.press-07"),
    ]);
    for address in ["127.0.8.7", "127.0.8.8", "127.0.9.7"] {
        assert_eq!(whose(address), Err(403), "{address}");
    }
    gateway.stop();
}

/// Hubs of these names and scopes, each with a management socket in `folder` that is asked once an hour.
fn hourly(folder: &Path, names: &[&str]) -> String {
    let hubs = names.iter().map(|name| {
        let socket = folder.join(format!("{name}.sock"));
        format!(
            "[[openvpn]]\nhub = \"{name}\"\nscope = \"{name}\"\nmanagement = \"{}\"\npoll = \"60m\"\n\
             pattern = \"{{account}}.{{device}}\"\n",
            socket.display()
        )
    });
    let listen = names
        .iter()
        .map(|name| format!("{{ address = \"127.0.0.1:0\", scope = \"{name}\" }}"));
    let preamble = listening(&listen.collect::<Vec<_>>().join(", "));
    let hubs: String = hubs.collect();
    format!("{preamble}[leases]\nsocket = \"feed.sock\"\n{hubs}")
}

#[test]
fn a_hub_is_asked_soon_when_somebody_waits_for_its_report() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::listen(UnixListener::bind(folder.path().join("north.sock")).unwrap());
    let route = |routes| *hub.routes.lock().unwrap() = routes;
    route(&[("127.0.0.7", "acme.press-07")]);
    let devices = fleet("acme", &upstream.url(), &["press-07", "press-08"]);
    let gateway = Gateway::start(&(hourly(folder.path(), &["north"]) + &devices));
    let mut feed = connect(&gateway);
    let mut add = |address: &str, device: &str| {
        feed.done(&format!(
            "{{\"op\":\"add\",\"source\":\"openvpn:north\",\"epoch\":5,\"address\":\"{address}\",\
             \"common_name\":\"acme.{device}\",\"session\":\"acme.{device}@1795705817\",\"replace\":true}}"
        ));
    };
    let waits_for = |address: &str, device: &str| {
        let known = Ok(device.to_owned());
        wait_until("the report", || whose(address, gateway.address()) == known);
    };
    waits_for("127.0.0.7", "press-07");
    // What is known so far may be of another run of the hub than this hook.
    route(&[
        ("127.0.0.7", "acme.press-07"),
        ("127.0.0.8", "acme.press-08"),
    ]);
    add("127.0.0.8", "press-08");
    waits_for("127.0.0.7", "press-07");
    // Who takes an address over may have given up before anybody heard of it.
    route(&[("127.0.0.8", "acme.press-07")]);
    add("127.0.0.8", "press-07");
    waits_for("127.0.0.8", "press-07");
    // What nobody doubts is no reason to ask.
    add("127.0.0.9", "press-07");
    waits_for("127.0.0.9", "press-07");
    assert_eq!(hub.times_asked(), 3);
    gateway.stop();
}

#[test]
fn a_hub_that_says_nothing_at_first_is_asked_again_soon_and_no_other() {
    let upstream = Upstream::echo();
    let folder = tempfile::tempdir().unwrap();
    let socket = |name| UnixListener::bind(folder.path().join(name)).unwrap();
    let north = Hub::listen(socket("north.sock"));
    let south = Hub::listen_and_refuse(socket("south.sock"), 2);
    for hub in [&north, &south] {
        *hub.routes.lock().unwrap() = &[("127.0.0.7", "acme.press-07")];
    }
    let devices = fleet("acme", &upstream.url(), &["press-07", "press-08"]);
    let gateway = Gateway::start(&(hourly(folder.path(), &["north", "south"]) + &devices));
    for listener in gateway.addresses() {
        let known = Ok("press-07".to_owned());
        wait_until("the report", || whose("127.0.0.7", *listener) == known);
    }
    assert_eq!((north.times_asked(), south.times_asked()), (1, 3));
    let told = "m2u: openvpn:south: the management socket ";
    assert_eq!(gateway.log().matches(told).count(), 1, "{}", gateway.log());
    gateway.stop();
}
