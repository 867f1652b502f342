//! A gateway whose devices get their addresses from a feed: its configuration, who its devices are,
//! and `m2u lease`.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use super::{
    device::Device,
    feed::Feed,
    gateway::{Gateway, PREAMBLE, command, server},
    upstream::Upstream,
};

/// An account whose devices have no address, with one server at `url`.
pub fn fleet(reference: &str, url: &str, devices: &[&str]) -> String {
    let mut text = format!("[[account]]\nref = \"{reference}\"\n{}", server("m2u", url));
    for name in devices {
        text.push_str(&format!(
            "[[account.device]]\nname = \"{name}\"\nserial = \"{name}-serial\"\n"
        ));
    }
    text
}

/// A configuration with a feed, a journal and these lines in `[leases]`: `acme` has press-07, press-08
/// and press-09, `beta` a mill-1.
pub fn configuration(url: &str, leases: &str) -> String {
    format!(
        "{PREAMBLE}[leases]\nsocket = \"feed.sock\"\njournal = \"journal\"\n{leases}\n{}{}",
        fleet("acme", url, &["press-07", "press-08", "press-09"]),
        fleet("beta", url, &["mill-1"]),
    )
}

/// A running gateway with that configuration.
pub fn gateway(url: &str, leases: &str) -> Gateway {
    Gateway::start(&configuration(url, leases))
}

/// A line that gives 127.0.0.7 to press-07.
pub const PRESS: &str =
    r#"{"op":"add","source":"vpn","address":"127.0.0.7","account":"acme","device":"press-07"}"#;

/// A line that adds an address for a device of `acme`.
pub fn add(address: &str, device: &str, more: &str) -> String {
    format!(
        r#"{{"op":"add","source":"vpn","address":"{address}","account":"acme","device":"{device}"{more}}}"#
    )
}

/// A line of a set.
pub fn line(address: &str, device: &str) -> String {
    format!(r#"{{"address":"{address}","account":"acme","device":"{device}"}}"#)
}

/// A set of so many leases of one source, all of one device.
pub fn whole_set(source: &str, network: u8, device: &str, leases: usize) -> String {
    let mut set = format!("{{\"op\":\"sync\",\"source\":\"{source}\"}}\n");
    for number in 0..leases {
        let (high, low) = (number / 256, number % 256);
        let address = format!("127.{network}.{high}.{low}");
        set.push_str(&format!("{}\n", line(&address, device)));
    }
    set + "{\"op\":\"commit\"}\n"
}

/// A gateway where press-07 has 127.0.0.7, and a connection to its feed.
pub fn gateway_of_press(upstream: &Upstream) -> (Gateway, Feed) {
    let gateway = gateway(&upstream.url(), "");
    let mut feed = connect(&gateway);
    feed.done(PRESS);
    (gateway, feed)
}

/// The device that is stamped on a request from `source`, or the status that it is answered with.
pub fn whose(source: &str, listener: SocketAddr) -> Result<String, u16> {
    identity(&mut Device::connect(source, listener))
}

/// Likewise, on a connection that is open.
pub fn identity(device: &mut Device) -> Result<String, u16> {
    let answer = device.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
    if answer.status() != 200 {
        return Err(answer.status());
    }
    // The server echoes the head that it got.
    let echo = answer.text();
    let field = |name: &str| {
        let lines = echo.lines();
        let values: Vec<&str> = lines.filter_map(|line| line.strip_prefix(name)).collect();
        assert_eq!(values.len(), 1, "{name} in {echo}");
        values[0].to_owned()
    };
    let name = field("X_Talk2M_Device: ");
    assert_eq!(field("X_Talk2M_SerialNumber: "), format!("{name}-serial"));
    Ok(name)
}

/// Connects to the gateway's feed.
pub fn connect(gateway: &Gateway) -> Feed {
    Feed::connect(&gateway.path("feed.sock"))
}

/// What came of a command.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(child: Child) -> Self {
        let done = child.wait_with_output().unwrap();
        Self {
            code: done.status.code(),
            stdout: String::from_utf8(done.stdout).unwrap(),
            stderr: String::from_utf8(done.stderr).unwrap(),
        }
    }

    /// It was done, and nothing is wrong.
    #[track_caller]
    pub fn done(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""));
        self.stdout
    }

    /// It was refused with one sentence, which holds `words`.
    #[track_caller]
    pub fn refused(self, words: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{words}");
        assert!(self.stderr.contains(words), "{words}: {}", self.stderr);
        assert!(self.stderr.starts_with("m2u lease: "), "{}", self.stderr);
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
    }
}

/// Runs `m2u lease` with arguments as a shell would split them.
pub fn lease(gateway: &Gateway, arguments: &str) -> Outcome {
    lease_with(gateway, arguments, "")
}

/// Likewise, with this text on standard input.
pub fn lease_with(gateway: &Gateway, arguments: &str, input: &str) -> Outcome {
    let mut child = lease_command(gateway, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses at once reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Outcome::of(child)
}

/// The command itself, in the folder of the configuration.
pub fn lease_command(gateway: &Gateway, arguments: &str) -> Command {
    let mut lease = command();
    lease
        .arg("lease")
        .args(arguments.split_whitespace())
        .current_dir(gateway.path(""));
    lease
}
