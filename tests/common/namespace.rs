//! Network namespaces made for one test, as an operator would make them, and what runs inside.
//!
//! Each has a name of its own, and is gone with the test, also with one that failed.

use std::{
    fs::{self, File},
    path::Path,
    process::{self, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps them.
const FOLDER: &str = "/run/netns";
const INSTALL: &str = "ip is missing: apt-get install iproute2";

/// A network namespace.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A namespace for this purpose, with its loopback up.
    pub fn new(purpose: &str) -> Self {
        let name = format!("m2u-{}-{purpose}", process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.ip(&["link", "set", "dev", "lo", "up"]);
        namespace
    }

    /// Whether this process may make namespaces and tunnels; if not, what is in the way.
    pub fn permitted() -> Result<(), String> {
        sweep();
        let probe = format!("m2u-{}-probe", process::id());
        let made = Command::new("ip").args(["netns", "add", &probe]).output();
        let made = made.expect(INSTALL);
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(format!("`ip netns add` is not permitted: {}", said.trim()));
        }
        let probe = Self { name: probe };
        let tunnel = ["-n", &probe.name, "tuntap", "add", "probe", "mode", "tun"];
        let tunnel = Command::new("ip").args(tunnel).output();
        let tunnel = tunnel.expect(INSTALL);
        match tunnel.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&tunnel.stderr).into_owned();
                Err(format!("TUN is not permitted: {}", said.trim()))
            }
        }
    }

    /// Runs `ip` on it.
    pub fn ip(&self, arguments: &[&str]) {
        run(Command::new("ip").args(["-n", &self.name]).args(arguments));
    }

    /// A command that runs inside, under the id of the program itself.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]);
        command.arg(program.as_ref()).stdin(Stdio::null());
        command
    }

    /// Makes a cable to `other`, where its end is called `purpose`; both ends have an address of
    /// 172.31.NUMBER.0/24, the other one the first.
    pub fn connect(&self, other: &Namespace, purpose: &str, number: u8) {
        let near = ["link", "add", "name", "cable", "type", "veth"];
        let far = ["peer", "name", purpose, "netns", &other.name];
        self.ip(&[near.as_slice(), &far].concat());
        for (end, name, host) in [(other, purpose, 1), (self, "cable", 2)] {
            let address = format!("172.31.{number}.{host}/24");
            end.ip(&["address", "add", &address, "dev", name]);
            end.ip(&["link", "set", "dev", name, "up"]);
        }
    }

    /// Does `work` inside, in a thread of its own. Sockets made there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let done = scope.spawn(|| {
                self.enter();
                work()
            });
            done.join().unwrap()
        })
    }

    /// Takes the calling thread inside, for good.
    pub fn enter(&self) {
        let file = File::open(Path::new(FOLDER).join(&self.name)).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// The same namespace for a thread that may outlive the borrow; it does not remove it.
    pub fn file(&self) -> File {
        File::open(Path::new(FOLDER).join(&self.name)).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

/// Removes namespaces of tests that were killed.
fn sweep() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("m2u-")
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            drop(Namespace { name });
        }
    }
}

fn run(command: &mut Command) {
    let done = command.output().expect(INSTALL);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
}
