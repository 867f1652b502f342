//! OpenVPN as it is, servers and clients, each a process in a namespace of the test's own.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    certificates::{Authority, Leaf},
    namespace::Namespace,
    wait_until,
};

/// An OpenVPN process, ended by its id with the test.
pub struct OpenVpn {
    child: Child,
    log: PathBuf,
}

impl OpenVpn {
    /// Starts OpenVPN in `namespace` with the options in `config`; waits until its log has `ready`.
    pub fn start(namespace: &Namespace, folder: &Path, config: &str, ready: &str) -> Self {
        let openvpn = Self::begin(namespace, folder, config);
        openvpn.wait_for_log(ready);
        openvpn
    }

    /// Likewise, without waiting.
    pub fn begin(namespace: &Namespace, folder: &Path, config: &str) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::SeqCst);
        let path = |ending: &str| folder.join(format!("openvpn-{number}.{ending}"));
        fs::write(path("conf"), config).unwrap();
        let log = path("log");
        let output = File::create(&log).unwrap();
        let version = Command::new("openvpn").arg("--version").output();
        version.expect("openvpn is missing: apt-get install openvpn");
        let child = namespace
            .command("openvpn")
            .arg("--config")
            .arg(path("conf"))
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// What it has said since it started.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until it has said `text`.
    pub fn wait_for_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text));
    }

    /// Sends it a signal by name.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
    }

    /// Ends it by a signal, and waits until it is gone.
    pub fn end_by(mut self, name: &str) {
        self.signal(name);
        let child = &mut self.child;
        wait_until("OpenVPN to end", || child.try_wait().unwrap().is_some());
    }
}

impl Drop for OpenVpn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            eprintln!("{} ends with:\n{}", self.log.display(), last.join("\n"));
        }
    }
}

/// What a hub is made of.
pub struct HubOptions<'o> {
    pub name: &'o str,
    pub port: u16,
    pub authority: &'o Authority,
    pub leaf: &'o Leaf,
    /// Where clients have options of their own, by common name.
    pub clients: &'o Path,
    /// The feed's socket.
    pub feed: &'o Path,
    /// Options of this hub alone.
    pub more: &'o str,
}

/// A hub's configuration, with the hooks of `scripts/openvpn` and timers that are short.
pub fn hub(options: &HubOptions<'_>) -> String {
    let HubOptions {
        name,
        port,
        authority,
        leaf,
        clients,
        feed,
        more,
    } = options;
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/openvpn");
    let mut text = format!(
        "dev tun-{name}\ndev-type tun\ntopology subnet\nproto udp4\nport {port}\n\
         ca {}\ncert {}\nkey {}\ndh none\nclient-config-dir {}\nkeepalive 1 4\nscript-security 2\n\
         status-version 3\nverb 4\n{more}\n",
        authority.pem().display(),
        leaf.pem.display(),
        leaf.key.display(),
        clients.display(),
    );
    for hook in ["client-connect", "client-disconnect", "learn-address"] {
        // A deletion comes without OpenVPN's variables, `setenv` ones included.
        writeln!(
            text,
            "{hook} \"/usr/bin/env M2U={} {}/{hook} {name} {}\"",
            env!("CARGO_BIN_EXE_m2u"),
            scripts.display(),
            feed.display(),
        )
        .unwrap();
    }
    text
}

/// A client's configuration: one that tries again for as long as it takes.
pub fn client(authority: &Authority, leaf: &Leaf, remote: &str, port: u16) -> String {
    format!(
        "client\ndev tun\nproto udp4\nremote {remote} {port}\nnobind\nca {}\ncert {}\nkey {}\n\
         remote-cert-tls server\nauth-retry nointeract\nconnect-retry 1 1\nverb 3\n",
        authority.pem().display(),
        leaf.pem.display(),
        leaf.key.display(),
    )
}
