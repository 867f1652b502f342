//! Real clients that behave like devices: curl, BusyBox wget, GNU wget, Python and Java.
//!
//! Each is judged twice: by what it makes of the answer, and by what the server got of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use common::{
    gateway::{Gateway, account, server},
    servers::program,
    upstream::{Conversation, Step, Upstream},
    wire::Message,
};

/// Answers with the length of the body, and with a field of its own.
fn count(conversation: &mut Conversation) -> Step {
    while let Some(mut request) = conversation.head()? {
        if request.field("Expect").is_some() {
            conversation.write("HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        conversation.body(&mut request)?;
        conversation.answer(format!("got {}", request.body.len()))?;
    }
    Ok(())
}

/// A gateway for two devices: one behind an address of its own, one behind 127.0.0.1 for clients
/// that can't choose theirs.
fn gateway(upstream: &Upstream) -> Gateway {
    let url = upstream.url();
    let servers = format!(
        "{}{}",
        server("m2u", &url),
        server("m2u2", &format!("{url}/second"))
    );
    Gateway::with(&account(
        "acme",
        &servers,
        &[("press-07", "127.0.0.7"), ("local", "127.0.0.1")],
    ))
}

/// Runs a client to its end, which must be a good one; answers what it printed.
fn run(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{said}");
    String::from_utf8(stdout).unwrap()
}

/// curl from the device's address, by the names of the gateway.
fn curl(gateway: &Gateway) -> Command {
    let mut command = Command::new(program("curl"));
    command
        .env_clear()
        .args(["--silent", "--show-error", "--fail", "--max-time", "60"])
        .args(["--interface", "127.0.0.7"])
        .args(["--connect-to", &format!("::{}", gateway.address())]);
    command
}

fn assert_stamped(request: &Message, device: &str) {
    assert_eq!(request.all("X_Talk2M_Account"), ["acme"]);
    assert_eq!(request.all("X_Talk2M_Device"), [device]);
    assert_eq!(
        request.all("X_Talk2M_SerialNumber"),
        [format!("{device}-serial")]
    );
    assert_eq!(request.identity_like().len(), 3, "{}", request.head);
}

#[test]
fn curl_sends_and_receives_in_every_way_it_knows() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.csv");
    fs::write(&file, "x;1\r\n".repeat(60_000)).unwrap();
    let data = format!("@{}", file.display());
    let url = "http://m2u.talk2m.com/in";
    let chunked = ["--header", "Transfer-Encoding: chunked"];
    for (arguments, expected) in [
        (vec![url], "got 0"),
        (vec!["--http1.0", url], "got 0"),
        (vec!["--data", "hello", url], "got 5"),
        (vec!["--http1.0", "--data", "hello", url], "got 5"),
        (
            [&chunked[..], &["--data-binary", &data, url]].concat(),
            "got 300000",
        ),
        (
            vec![
                "--header",
                "Expect: 100-continue",
                "--data-binary",
                &data,
                url,
            ],
            "got 300000",
        ),
        (
            vec![
                "--request",
                "PUT",
                "--upload-file",
                file.to_str().unwrap(),
                url,
            ],
            "got 300000",
        ),
        (
            vec!["--header", "Connection: close", "--data", "x", url],
            "got 1",
        ),
    ] {
        assert_eq!(
            run(curl(&gateway).args(&arguments)),
            expected,
            "{arguments:?}"
        );
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 8);
    // Asked for, and passed on; curl asks by itself where it finds the body long.
    assert_eq!(requests[5].field("Expect"), Some("100-continue"));
    assert_eq!(requests[2].field("Expect"), None);
    for request in &requests {
        assert_stamped(request, "press-07");
        assert!(
            request.first_line().ends_with(" /in HTTP/1.1"),
            "{}",
            request.first_line()
        );
        assert_eq!(
            request.field("Host"),
            Some(upstream.address.to_string().as_str())
        );
    }
    gateway.stop();
}

#[test]
fn curl_keeps_its_connection_and_meets_its_answers_in_order() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let printed = run(curl(&gateway).args([
        "--write-out",
        " %{num_connects}\n",
        "--data",
        "hello",
        "http://m2u/a",
        "http://m2u/b",
        "http://m2u/c",
    ]));
    assert_eq!(printed, "got 5 1\ngot 5 0\ngot 5 0\n");
    let targets: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.target().to_owned())
        .collect();
    assert_eq!(targets, ["/a", "/b", "/c"]);
    gateway.stop();
}

#[test]
fn curl_through_a_proxy_sends_whole_urls() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let proxy = format!("http://{}", gateway.address());
    let mut command = Command::new(program("curl"));
    command
        .env_clear()
        .args(["--silent", "--show-error", "--fail", "--max-time", "60"]);
    command.args([
        "--interface",
        "127.0.0.7",
        "--proxy",
        &proxy,
        "--data",
        "hello",
    ]);
    assert_eq!(run(command.arg("http://m2u2.talk2m.com/in?x=1")), "got 5");
    let request = upstream.request();
    assert_eq!(request.first_line(), "POST /second/in?x=1 HTTP/1.1");
    assert_stamped(&request, "press-07");
    assert_eq!(request.field("Proxy-Connection"), None);
    gateway.stop();
}

#[test]
fn busybox_wget_gets_and_posts() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let url = format!("http://{}/in", gateway.address());
    let wget = || {
        let mut command = Command::new(program("busybox"));
        command.env_clear().args(["wget", "-q", "-O", "-"]);
        command
    };
    assert_eq!(run(wget().arg(&url)), "got 0");
    assert_eq!(run(wget().args(["--post-data", "hello", &url])), "got 5");
    for request in upstream.requests() {
        assert_stamped(&request, "local");
    }
    gateway.stop();
}

#[test]
fn gnu_wget_gets_and_posts_a_file() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("export.csv");
    fs::write(&file, "0123456789".repeat(10_000)).unwrap();
    let url = format!("http://{}/in", gateway.address());
    let wget = || {
        let mut command = Command::new(program("wget"));
        command
            .env_clear()
            .args(["--quiet", "--tries=1", "--timeout=60"]);
        command.args(["--no-config", "--no-hsts", "--bind-address=127.0.0.7"]);
        command.arg("--output-document=-");
        command
    };
    assert_eq!(run(wget().arg(&url)), "got 0");
    let posted = wget()
        .arg(format!("--post-file={}", file.display()))
        .arg(&url)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&posted.stdout), "got 100000");
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    for request in &requests {
        assert_stamped(request, "press-07");
    }
    gateway.stop();
}

/// Speaks HTTP/1.1 with chunks, then HTTP/1.0 without a host.
const PYTHON: &str = r#"
import http.client, sys

host, port = sys.argv[1].split(":")

def connect():
    return http.client.HTTPConnection(host, int(port), timeout=60, source_address=("127.0.0.7", 0))

modern = connect()
for _ in range(2):
    modern.request("POST", "/modern", body=iter([b"hel", b"lo"]), headers={"Host": "m2u"},
                   encode_chunked=True)
    answer = modern.getresponse()
    print(answer.status, answer.version, answer.read().decode())

old = connect()
old._http_vsn, old._http_vsn_str = 10, "HTTP/1.0"
old.putrequest("POST", "/old", skip_host=True, skip_accept_encoding=True)
old.putheader("Content-Length", "5")
old.endheaders(b"hello")
answer = old.getresponse()
print(answer.status, answer.read().decode(), answer.will_close)
"#;

#[test]
fn python_speaks_both_versions() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let address = gateway.address().to_string();
    let printed = run(Command::new(program("python3")).args(["-c", PYTHON, &address]));
    assert_eq!(printed, "200 11 got 5\n200 11 got 5\n200 got 5 True\n");
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_stamped(request, "press-07");
    }
    assert_eq!(requests[0].field("Transfer-Encoding"), Some("chunked"));
    assert_eq!(requests[2].first_line(), "POST /old HTTP/1.1");
    assert_eq!(requests[2].all("Via"), ["1.0 m2u"]);
    gateway.stop();
}

/// A connector: two posts over whatever connections Java keeps, one of them in chunks.
const JAVA: &str = r#"
import java.io.*;
import java.net.*;
import java.nio.charset.StandardCharsets;

public class Post {
    public static void main(String[] arguments) throws IOException {
        byte[] body = "{\"Tags\":{}}".getBytes(StandardCharsets.UTF_8);
        for (int turn = 0; turn < 3; turn++) {
            URL url = new URL("http://" + arguments[0] + "/in?turn=" + turn);
            HttpURLConnection connection = (HttpURLConnection) url.openConnection();
            connection.setRequestMethod("POST");
            connection.setDoOutput(true);
            connection.setReadTimeout(60000);
            connection.setRequestProperty("Content-type", "application/json");
            if (turn == 2) connection.setChunkedStreamingMode(4);
            try (OutputStream out = connection.getOutputStream()) { out.write(body); }
            try (InputStream in = connection.getInputStream()) {
                System.out.println(connection.getResponseCode() + " "
                    + new String(in.readAllBytes(), StandardCharsets.UTF_8));
            }
        }
    }
}
"#;

#[test]
fn java_posts_as_connectors_do() {
    let upstream = Upstream::start(count);
    let gateway = gateway(&upstream);
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("Post.java");
    fs::write(&source, JAVA).unwrap();
    let printed = run(java(&source).arg(gateway.address().to_string()));
    assert_eq!(printed, "200 got 11\n".repeat(3));
    let requests = upstream.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_stamped(request, "local");
        assert_eq!(request.all("Content-type"), ["application/json"]);
        assert_eq!(request.text(), "{\"Tags\":{}}");
    }
    assert_eq!(requests[2].field("Transfer-Encoding"), Some("chunked"));
    gateway.stop();
}

fn java(source: &Path) -> Command {
    let mut command = Command::new(program("java"));
    // Small and quick to begin; nothing here runs long enough to be worth compiling.
    command
        .args(["-Xint", "-Xshare:auto", "-XX:+UseSerialGC", "-Xmx128m"])
        .arg(source);
    command
}
