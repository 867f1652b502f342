//! Real servers, as users have them: nginx, Apache httpd, gunicorn, PHP, Node, dnsmasq, unbound.
//!
//! Each runs in the foreground on a loopback port of its own, out of a folder of its own, and is
//! ended by its process id. A missing program fails the test; it never skips it.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    PATIENCE, pace,
    sockets::{self, Row},
};

/// A running server.
pub struct Server {
    pub address: SocketAddr,
    child: Child,
    dir: TempDir,
}

/// Where programs that Debian keeps for root are.
const FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// The path of a program; fails the test if it is missing.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    let found = folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing; run scripts/setup"))
}

impl Server {
    /// nginx with these directives inside its `server` block; `PORT` and `DIR` are filled in.
    ///
    /// Its application is a `location` that answers with the variables it sees.
    pub fn nginx(server: &str) -> Self {
        Self::start(|dir, port| {
            let directives = server.replace("DIR", dir.to_str().unwrap());
            let config = format!(
                "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log error.log;\n\
                 events {{}}\n\
                 http {{\naccess_log off;\nclient_max_body_size 100m;\n\
                 client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
                 uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
                 server {{\n{}\n}}\n}}\n",
                directives.replace("PORT", &port.to_string()),
            );
            fs::write(dir.join("nginx.conf"), config).unwrap();
            let mut command = Command::new(program("nginx"));
            command
                .arg("-p")
                .arg(dir)
                .args(["-c", "nginx.conf", "-e", "error.log"]);
            command
        })
    }

    /// Apache httpd with this CGI script at `/cgi/app`, written in sh. Its one process serves one
    /// connection at a time, so none is kept.
    pub fn apache(script: &str) -> Self {
        let modules = "/usr/lib/apache2/modules";
        Self::start(|dir, port| {
            let app = dir.join("cgi").join("app");
            fs::create_dir(dir.join("cgi")).unwrap();
            fs::write(&app, script).unwrap();
            make_executable(&app);
            let shown = dir.to_str().unwrap();
            let load = ["mpm_prefork", "authz_core", "alias", "cgi"]
                .map(|name| format!("LoadModule {name}_module {modules}/mod_{name}.so\n"))
                .concat();
            let config = format!(
                "{load}ServerRoot {shown}\nServerName localhost\nListen 127.0.0.1:{port}\n\
                 PidFile {shown}/httpd.pid\nErrorLog {shown}/error.log\nDefaultRuntimeDir {shown}\n\
                 Mutex pthread\nUser nobody\nGroup nogroup\n\
                 KeepAlive Off\n\
                 ScriptAlias /cgi/ {shown}/cgi/\n\
                 <Directory {shown}/cgi>\nRequire all granted\nCGIPassAuth On\n</Directory>\n"
            );
            fs::write(dir.join("httpd.conf"), config).unwrap();
            open_to_all(dir);
            let mut command = Command::new(program("apache2"));
            command
                .args(["-X", "-d"])
                .arg(dir)
                .arg("-f")
                .arg(dir.join("httpd.conf"));
            command
        })
    }

    /// gunicorn, as the set-up installed it, with this WSGI application.
    pub fn gunicorn(app: &str) -> Self {
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/gunicorn");
        assert!(
            installed.is_file(),
            "gunicorn is missing; run scripts/setup"
        );
        Self::start(|dir, port| {
            fs::write(dir.join("app.py"), app).unwrap();
            let mut command = Command::new(&installed);
            command
                .arg("--chdir")
                .arg(dir)
                .args(["--bind", &format!("127.0.0.1:{port}")])
                .args([
                    "--workers",
                    "1",
                    "--threads",
                    "4",
                    "--graceful-timeout",
                    "5",
                ])
                .arg("--worker-tmp-dir")
                .arg(dir)
                .arg("app:application");
            command
        })
    }

    /// PHP's own server with this script for every path.
    pub fn php(script: &str) -> Self {
        Self::start(|dir, port| {
            fs::write(dir.join("app.php"), script).unwrap();
            let mut command = Command::new(program("php"));
            command
                .args(["-n", "-S", &format!("127.0.0.1:{port}")])
                .arg(dir.join("app.php"));
            command
        })
    }

    /// Node with this script, which listens at `PORT`.
    pub fn node(script: &str) -> Self {
        Self::start(|dir, port| {
            let script = script.replace("PORT", &port.to_string());
            fs::write(dir.join("app.js"), script).unwrap();
            let mut command = Command::new(program("node"));
            command.arg(dir.join("app.js"));
            command
        })
    }

    /// dnsmasq with this file in its folder of configurations; asks `upstream` for other names.
    pub fn dnsmasq(snippet: &str, upstream: SocketAddr) -> Self {
        Self::start(|dir, port| {
            let shown = dir.to_str().unwrap();
            let folder = dir.join("dnsmasq.d");
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("m2u.conf"), snippet).unwrap();
            let config = format!(
                "port={port}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\n\
                 server={}#{}\nconf-dir={shown}/dnsmasq.d/,*.conf\n",
                upstream.ip(),
                upstream.port()
            );
            fs::write(dir.join("dnsmasq.conf"), config).unwrap();
            open_to_all(dir);
            let mut command = Command::new(program("dnsmasq"));
            command
                .args(["--keep-in-foreground", "--log-facility=-"])
                .arg(format!("--pid-file={shown}/dnsmasq.pid"))
                .arg(format!("--conf-file={shown}/dnsmasq.conf"));
            command
        })
    }

    /// unbound with this file among those that it includes; asks `upstream` for other names.
    pub fn unbound(snippet: &str, upstream: SocketAddr) -> Self {
        Self::start(|dir, port| {
            let shown = dir.to_str().unwrap();
            let folder = dir.join("unbound.conf.d");
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("m2u.conf"), snippet).unwrap();
            let config = format!(
                "server:\n    interface: 127.0.0.1\n    port: {port}\n    do-daemonize: no\n    \
                 username: \"\"\n    chroot: \"\"\n    directory: \"{shown}\"\n    pidfile: \"\"\n    \
                 use-syslog: no\n    do-not-query-localhost: no\n    module-config: \"iterator\"\n\
                 include-toplevel: \"{shown}/unbound.conf.d/*.conf\"\n\
                 forward-zone:\n    name: \".\"\n    forward-addr: {}@{}\n\
                 remote-control:\n    control-enable: no\n",
                upstream.ip(),
                upstream.port()
            );
            let path = dir.join("unbound.conf");
            fs::write(&path, config).unwrap();
            let mut command = Command::new(program("unbound"));
            command.arg("-d").arg("-c").arg(path);
            command
        })
    }

    /// Starts a server on a free port. Another process may take the port first; then the server
    /// ends, and another port is tried.
    fn start(prepare: impl Fn(&Path, u16) -> Command) -> Self {
        let mut said = String::new();
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let address = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap();
            let log = fs::File::create(dir.path().join("output.log")).unwrap();
            let mut child = prepare(dir.path(), address.port())
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            if serves(&mut child, address) {
                return Self {
                    address,
                    child,
                    dir,
                };
            }
            let _ = child.kill();
            let _ = child.wait();
            for log in ["output.log", "error.log"] {
                said += &fs::read_to_string(dir.path().join(log)).unwrap_or_default();
            }
        }
        panic!("the server does not start:\n{said}");
    }

    /// The folder it runs in.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Waits until the server accepts connections; `false` if it ends instead, or if the port is another's: a
/// server of another test may have been given the same, and this one may wait for it to be free.
fn serves(child: &mut Child, address: SocketAddr) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        let listens = |row: &Row| row.local == address && row.state == sockets::LISTEN;
        if let Some(row) = sockets::all().into_iter().find(listens) {
            return row.is_of(child.id()) != Some(false) && TcpStream::connect(address).is_ok();
        }
        pace(Duration::from_millis(5));
    }
    false
}

impl Drop for Server {
    fn drop(&mut self) {
        // An orderly end lets it end its own children.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-s", "TERM", &id]).status();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            pace(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("error.log")).unwrap_or_default();
            eprintln!("the server said:\n{log}");
        }
    }
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Lets a server that gives up root's rights read its folder.
fn open_to_all(dir: &Path) {
    make_executable(dir);
}
