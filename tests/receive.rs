//! `m2u receive` behind the gateway: what an administrator sees while commissioning a server.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    thread,
};

use common::{
    certificates::{Authority, Validity, quoted},
    device,
    folder::{Folder, SECRET},
    gateway::{Gateway, PREAMBLE, command},
    wait_until,
};

/// A running receiver.
struct Receiver {
    child: Child,
    address: SocketAddr,
    output: BufReader<ChildStdout>,
}

impl Receiver {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command()
            .args(["receive", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("m2u receive: listening on ");
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        // Whatever else it says must find a reader.
        thread::spawn(move || log.lines().for_each(drop));
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            address,
            output,
        }
    }

    /// The next line of its output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    /// The next request's block, up to and without the empty line.
    fn block(&mut self) -> String {
        let mut block = String::new();
        loop {
            let line = self.line();
            if line.trim().is_empty() {
                return block;
            }
            block.push_str(&line);
        }
    }

    fn stop(mut self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let mut status = None;
        wait_until("the receiver to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().code(), Some(0));
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const POST: &str = "POST /in?x=1 HTTP/1.1\r\nHost: m2u\r\nAuthorization: Bearer geheim-1\r\n\
    Content-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";

#[test]
fn it_shows_who_sent_what_with_which_certificate() {
    let authority = Authority::new("Customer CA");
    let server = authority.server(&["127.0.0.1"], Validity::Current);
    let client = authority.client("m2u.talk2m.com");
    let (cert, key, ca) = (server.pem, server.key, authority.pem());
    let paths = [&cert, &key, &ca].map(|path| path.to_str().unwrap());
    let mut receiver = Receiver::start(&[
        "--cert",
        paths[0],
        "--key",
        paths[1],
        "--client-ca",
        paths[2],
    ]);
    let gateway = Gateway::start(&format!(
        "{PREAMBLE}client_certificate = {}\nclient_key = {}\n\
         [[account]]\nref = \"acme\"\n\
         [[account.server]]\nurl = \"https://{}/base\"\nca = {}\n\
         login = {{ username = \"acme\", password = \"geheim-2\" }}\nhyphen_aliases = true\nforwarded = true\n\
         [[account.device]]\nname = \"press 07\"\nserial = \"1932-0069-24\"\n\
         address = [\"127.0.0.7\"]\n",
        quoted(&client.pem),
        quoted(&client.key),
        receiver.address,
        quoted(&ca),
    ));
    let answer = device::ask("127.0.0.7", gateway.address(), POST);
    assert_eq!(
        (answer.status(), answer.text()),
        (200, "received 5 bytes from press 07\n".into())
    );
    let block = receiver.block();
    for line in [
        "POST /base/in?x=1 HTTP/1.1",
        "x_talk2m_account: acme",
        "x_talk2m_device: press 07",
        "x_talk2m_serialnumber: 1932-0069-24",
        "x-talk2m-device: press 07",
        "login: Basic, user acme, with a password",
        "client certificate: CN=m2u.talk2m.com",
        "content-type: text/csv",
        "forwarded: for=127.0.0.7",
        "via: 1.1 m2u",
        "body: 5 bytes",
    ] {
        assert!(
            block.lines().any(|shown| shown.trim() == line),
            "{line} is not in\n{block}"
        );
    }
    assert!(!block.contains("geheim"), "{block}");
    gateway.stop();
    receiver.stop("TERM");
}

#[test]
fn it_prints_one_json_object_a_line() {
    let mut receiver = Receiver::start(&["--json"]);
    device::ask("127.0.0.1", receiver.address, POST);
    let line: serde_json::Value = serde_json::from_str(&receiver.line()).unwrap();
    assert_eq!(line["method"], "POST");
    assert_eq!(line["target"], "/in?x=1");
    assert_eq!(line["size"], 5);
    assert_eq!(line["identity"], serde_json::json!([]));
    assert_eq!(line["login"], "Bearer (not shown)");
    assert_eq!(line["certificate"], serde_json::Value::Null);
    assert!(!line.to_string().contains("geheim"));
    receiver.stop("INT");
}

#[test]
fn a_key_with_a_passphrase_is_refused_with_the_remedy() {
    let folder = Folder::new();
    folder.openssl(&[
        "pkcs8",
        "-topk8",
        "-in",
        "acme.key",
        "-out",
        "locked.key",
        "-passout",
        &format!("pass:{SECRET}"),
    ]);
    let (cert, key) = (folder.path("acme.pem"), folder.path("locked.key"));
    let done = command()
        .args(["receive", "--listen", "127.0.0.1:0", "--cert"])
        .arg(&cert)
        .arg("--key")
        .arg(&key)
        .output()
        .unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(1), "{said}");
    let remedy = format!("remove it: openssl pkey -in \"{}\"", key.display());
    assert!(said.contains("is protected by a passphrase"), "{said}");
    assert!(said.contains(&remedy), "{said}");
}

#[test]
fn it_refuses_to_begin_without_what_it_needs() {
    for (arguments, code, message) in [
        (
            &["--listen", "192.0.2.1:1"][..],
            1,
            "can't listen on 192.0.2.1:1",
        ),
        (&["--cert", "none.pem", "--key", "none.key"], 1, "none.pem"),
        (&["--client-ca", "ca.pem"], 2, "--cert"),
        (&["--cert", "a.pem"], 2, "--key"),
    ] {
        let done = command().arg("receive").args(arguments).output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(code), "{said}");
        assert!(said.contains(message), "{said}");
    }
}
