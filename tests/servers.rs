//! Real servers: what an application behind nginx, Apache httpd or gunicorn, or in PHP or Node, sees of
//! a request.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{
    certificates::{Authority, Leaf, Validity, quoted},
    device::Device,
    gateway::{Gateway, PREAMBLE},
    servers::Server,
    upstream::Upstream,
    wire::Message,
};

/// Every way to forge a device, beside a field of the device's own.
const FORGED: &str = "X-Talk2M-Device: forged\r\nx_talk2m-device: forged\r\n\
    X.Talk2M.Device: forged\r\nX_Talk2M_Device: forged\r\nX_Talk2M_Account: forged\r\n\
    X-Talk2M-SerialNumber: forged\r\n";

/// An account with the same server in two slots: as it is, and with hyphen aliases.
fn account(url: &str, extra: &str) -> String {
    let server = |slot: &str, aliases: bool| {
        format!(
            "[[account.server]]\nslot = \"{slot}\"\nurl = \"{url}\"\n\
             hyphen_aliases = {aliases}\n{extra}"
        )
    };
    format!(
        "[[account]]\nref = \"acme\"\n{}{}\
         [[account.device]]\nname = \"press-07\"\nserial = \"1932-0069-24\"\n\
         address = [\"127.0.0.7\"]\n",
        server("m2u", false),
        server("m2u2", true),
    )
}

fn ask(gateway: &Gateway, slot: &str, path: &str) -> Message {
    let mut device = Device::connect("127.0.0.7", gateway.address());
    let answer = device.ask(format!(
        "GET {path} HTTP/1.1\r\nHost: {slot}\r\n{FORGED}\r\n"
    ));
    assert_eq!(answer.status(), 200, "{}\n{}", answer.head, answer.text());
    assert!(!answer.text().contains("forged"), "{}", answer.text());
    answer
}

/// Asserts that the application's text has each of these lines.
fn has(answer: &Message, lines: &[&str]) {
    let text = answer.text();
    for line in lines {
        assert!(
            text.lines().any(|shown| shown == *line),
            "{line:?} is not in\n{text}"
        );
    }
}

/// nginx' application: a location that tells the variables it sees.
const NGINX_APP: &str = "location / { default_type text/plain; return 200 \
    \"account=$http_x_talk2m_account\\ndevice=$http_x_talk2m_device\\n\
    serial=$http_x_talk2m_serialnumber\\nclient=$ssl_client_s_dn\\n\
    login=$remote_user\\nuri=$request_uri\\nreused=$ssl_session_reused\\n\"; }";

fn nginx(authority: &Authority, leaf: &Leaf, directives: &str) -> Server {
    Server::nginx(&format!(
        "listen 127.0.0.1:PORT ssl;\nssl_certificate {};\nssl_certificate_key {};\n\
         ssl_client_certificate {};\n{directives}\n{NGINX_APP}",
        leaf.pem.display(),
        leaf.key.display(),
        authority.pem().display(),
    ))
}

#[test]
fn an_application_behind_nginx_sees_the_device_and_the_client_certificate() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["ingest.acme.example"], Validity::Current);
    let (own, gateways) = (
        authority.client("acme.example"),
        authority.client("m2u.talk2m.com"),
    );
    for underscores in [true, false] {
        let switch = if underscores { "on" } else { "off" };
        let server = nginx(
            &authority,
            &leaf,
            &format!("ssl_verify_client on;\nunderscores_in_headers {switch};"),
        );
        let common = format!(
            "address = [\"{}\"]\nca = {}\n",
            server.address,
            quoted(&authority.pem())
        );
        let with_own = format!(
            "{common}client_certificate = {}\nclient_key = {}\n\
             login = {{ username = \"acme\", password = \"secret\" }}\n",
            quoted(&own.pem),
            quoted(&own.key),
        );
        let second = account("https://ingest.acme.example/", &common)
            .replace("\"acme\"", "\"beta\"")
            .replace("127.0.0.7", "127.0.0.8");
        let gateway = Gateway::start(&format!(
            "{PREAMBLE}client_certificate = {}\nclient_key = {}\n{}{second}",
            quoted(&gateways.pem),
            quoted(&gateways.key),
            account("https://ingest.acme.example/base", &with_own),
        ));

        // Underscores: only where nginx lets them through. It folds both spellings into one
        // variable: what that shows where both come is looked at below.
        let plain = ask(&gateway, "m2u", "/a?b=c");
        has(
            &plain,
            &["client=CN=acme.example", "login=acme", "uri=/base/a?b=c"],
        );
        if underscores {
            has(
                &plain,
                &["account=acme", "device=press-07", "serial=1932-0069-24"],
            );
        } else {
            has(&plain, &["account=", "device=", "serial="]);
            let aliased = ask(&gateway, "m2u2", "/");
            has(
                &aliased,
                &["account=acme", "device=press-07", "serial=1932-0069-24"],
            );
        }

        // The other account shows the gateway's own certificate, and no login.
        let mut other = Device::connect("127.0.0.8", gateway.address());
        let answer = other.ask("GET / HTTP/1.1\r\nHost: m2u2\r\n\r\n");
        has(&answer, &["client=CN=m2u.talk2m.com", "login=", "uri=/"]);
        gateway.stop();
    }
}

#[test]
fn no_forged_name_reaches_an_application_that_nginx_passes_everything_to() {
    // Sees every field that nginx passes on, and none that nginx chose to show.
    let app = Upstream::echo();
    for underscores in [true, false] {
        let switch = if underscores { "on" } else { "off" };
        let server = Server::nginx(&format!(
            "listen 127.0.0.1:PORT;\nunderscores_in_headers {switch};\n\
             location / {{ proxy_pass http://{}; proxy_set_header X-Device \
             $http_x_talk2m_device; }}",
            app.address,
        ));
        let url = format!("http://{}", server.address);
        let concealed = account(&url, "")
            .replace("ref = \"acme\"", "ref = \"beta\"\nexpose_identity = false")
            .replace("127.0.0.7", "127.0.0.8");
        let gateway = Gateway::with(&format!("{}{concealed}", account(&url, "")));
        for (source, [reference, name, serial]) in [
            ("127.0.0.7", ["acme", "press-07", "1932-0069-24"]),
            ("127.0.0.8", [""; 3]),
        ] {
            for (slot, aliases) in [("m2u", false), ("m2u2", true)] {
                let mut device = Device::connect(source, gateway.address());
                let answer = device.ask(format!(
                    "GET / HTTP/1.1\r\nHost: {slot}\r\nX-Own: 1\r\n{FORGED}\r\n"
                ));
                assert_eq!(answer.status(), 200);
                assert!(!answer.text().contains("forged"), "{}", answer.text());
                let seen = app.requests().pop().unwrap();
                assert_eq!(seen.all("X-Own"), ["1"]);
                let underscored = [
                    ("X_Talk2M_Account", reference),
                    ("X_Talk2M_Device", name),
                    ("X_Talk2M_SerialNumber", serial),
                ];
                let hyphened = [
                    ("X-Talk2M-Account", reference),
                    ("X-Talk2M-Device", name),
                    ("X-Talk2M-SerialNumber", serial),
                ];
                // nginx passes fields with empty values on.
                for (fields, passed) in [(underscored, underscores), (hyphened, aliases)] {
                    for (field, value) in fields {
                        let values: &[&str] = if passed { &[value] } else { &[] };
                        assert_eq!(seen.all(field), values, "{}", seen.head);
                    }
                }
                let count = 3 * (usize::from(underscores) + usize::from(aliases));
                assert_eq!(seen.identity_like().len(), count, "{}", seen.head);
                // A configuration knows both spellings by one name. Given both, nginx shows the
                // first of them before 1.23, and both as a list since then.
                let shown = seen.all("X-Device").concat();
                let expected = match (underscores, aliases) {
                    (true, true) => vec![name.to_owned(), format!("{name}, {name}")],
                    (false, false) => vec![String::new()],
                    _ => vec![name.to_owned()],
                };
                assert!(expected.contains(&shown), "{}", seen.head);
            }
        }
        gateway.stop();
    }
}

#[test]
fn tls_sessions_are_resumed_on_every_core() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    for protocol in ["TLSv1.2", "TLSv1.3"] {
        // One request a connection: each further one must resume.
        let directives = format!(
            "ssl_protocols {protocol};\nkeepalive_timeout 0;\n\
             ssl_session_cache builtin:100 shared:tls:1m;"
        );
        let server = nginx(&authority, &leaf, &directives);
        let extra = format!("ca = {}\n", quoted(&authority.pem()));
        let url = format!("https://{}", server.address);
        let gateway = Gateway::with(&account(&url, &extra));
        has(&ask(&gateway, "m2u", "/"), &["reused=."]);
        // Connections of devices spread over the cores.
        for _ in 0..16 {
            has(&ask(&gateway, "m2u", "/"), &["reused=r"]);
        }
        gateway.stop();
    }
}

#[test]
fn a_tls_session_is_not_resumed_where_its_certificate_may_be_revoked() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let lists = authority.path("lists.pem");
    fs::write(&lists, authority.revoke(&[], Validity::Current)).unwrap();
    let directives = "keepalive_timeout 0;\nssl_session_cache builtin:100 shared:tls:1m;";
    let server = nginx(&authority, &leaf, directives);
    let extra = format!(
        "ca = {}\ncrl = {}\n",
        quoted(&authority.pem()),
        quoted(&lists)
    );
    let url = format!("https://{}", server.address);
    let gateway = Gateway::with(&account(&url, &extra));
    for _ in 0..8 {
        has(&ask(&gateway, "m2u", "/"), &["reused=."]);
    }
    gateway.stop();
}

#[test]
fn a_certificate_that_nginx_misses_is_its_own_to_complain_of() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let server = nginx(&authority, &leaf, "ssl_verify_client on;");
    let extra = format!("ca = {}\n", quoted(&authority.pem()));
    let gateway = Gateway::with(&account(&format!("https://{}", server.address), &extra));
    let mut device = Device::connect("127.0.0.7", gateway.address());
    let answer = device.ask("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
    assert_eq!((answer.status(), answer.token()), (400, None));
    assert!(
        answer
            .text()
            .contains("No required SSL certificate was sent"),
        "{}",
        answer.text()
    );
    gateway.stop();
}

/// Prints what a CGI script gets, and of the body its length and hash.
const CGI_APP: &str = "#!/bin/sh\n\
    printf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
    env | grep -i -e '^HTTP_X_TALK2M' -e '^HTTP_AUTHORIZATION' -e '^REQUEST_URI'\n\
    echo end\n";

#[test]
fn a_cgi_script_behind_apache_sees_the_device_by_the_aliases() {
    let server = Server::apache(CGI_APP);
    let exposed = account(
        &format!("http://{}/cgi/app", server.address),
        "login = { username = \"acme\", password = \"secret\" }\n",
    );
    let concealed = exposed
        .replace("ref = \"acme\"", "ref = \"beta\"\nexpose_identity = false")
        .replace("127.0.0.7", "127.0.0.8");
    let gateway = Gateway::with(&format!("{exposed}{concealed}"));
    let mut concealed = Device::connect("127.0.0.8", gateway.address());
    let answer = concealed.ask(format!("GET / HTTP/1.1\r\nHost: m2u2\r\n{FORGED}\r\n"));
    assert!(!answer.text().contains("forged"), "{}", answer.text());
    has(
        &answer,
        &[
            "HTTP_X_TALK2M_ACCOUNT=",
            "HTTP_X_TALK2M_DEVICE=",
            "HTTP_X_TALK2M_SERIALNUMBER=",
        ],
    );
    // Apache hides names with underscores from scripts: nothing is seen, and no forgery either.
    let plain = ask(&gateway, "m2u", "/x?y");
    has(
        &plain,
        &[
            "HTTP_AUTHORIZATION=Basic YWNtZTpzZWNyZXQ=",
            "REQUEST_URI=/cgi/app/x?y",
            "end",
        ],
    );
    assert!(!plain.text().contains("X_TALK2M"), "{}", plain.text());
    has(
        &ask(&gateway, "m2u2", "/"),
        &[
            "HTTP_X_TALK2M_ACCOUNT=acme",
            "HTTP_X_TALK2M_DEVICE=press-07",
            "HTTP_X_TALK2M_SERIALNUMBER=1932-0069-24",
        ],
    );
    gateway.stop();
}

/// Tells what a WSGI application gets, and of the body its length and hash.
const WSGI_APP: &str = r#"
import hashlib

def application(environ, start_response):
    digest, length = hashlib.sha256(), 0
    while piece := environ["wsgi.input"].read(65536):
        digest.update(piece)
        length += len(piece)
    names = [n for n in sorted(environ) if "TALK2M" in n.upper() or n == "HTTP_AUTHORIZATION"]
    lines = [f"{name}={environ[name]}" for name in names]
    lines += [f"length={length}", f"sha256={digest.hexdigest()}", ""]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return ["\n".join(lines).encode()]
"#;

#[test]
fn a_wsgi_application_behind_gunicorn_sees_the_device_by_the_aliases() {
    let server = Server::gunicorn(WSGI_APP);
    let url = format!("http://{}", server.address);
    let concealed = account(&url, "")
        .replace("ref = \"acme\"", "ref = \"beta\"\nexpose_identity = false")
        .replace("127.0.0.7", "127.0.0.8");
    let gateway = Gateway::with(&format!("{}{concealed}", account(&url, "")));
    let plain = ask(&gateway, "m2u", "/");
    assert!(
        !plain.text().to_uppercase().contains("TALK2M"),
        "{}",
        plain.text()
    );
    let exposed = [
        "HTTP_X_TALK2M_ACCOUNT=acme",
        "HTTP_X_TALK2M_DEVICE=press-07",
        "HTTP_X_TALK2M_SERIALNUMBER=1932-0069-24",
    ];
    has(&ask(&gateway, "m2u2", "/"), &exposed);

    // Not exposed: the fields are there, and empty.
    let mut device = Device::connect("127.0.0.8", gateway.address());
    let answer = device.ask(format!("GET / HTTP/1.1\r\nHost: m2u2\r\n{FORGED}\r\n"));
    has(
        &answer,
        &[
            "HTTP_X_TALK2M_ACCOUNT=",
            "HTTP_X_TALK2M_DEVICE=",
            "HTTP_X_TALK2M_SERIALNUMBER=",
        ],
    );
    gateway.stop();
}

/// Tells what a PHP script gets.
const PHP_APP: &str = r#"<?php
header("Content-Type: text/plain");
foreach ($_SERVER as $name => $value) {
    if (stripos($name, "TALK2M") !== false) echo "$name=$value\n";
}
echo "length=", strlen(file_get_contents("php://input")), "\n";
"#;

#[test]
fn a_php_script_sees_the_device_by_either_spelling() {
    let server = Server::php(PHP_APP);
    let gateway = Gateway::with(&account(&format!("http://{}", server.address), ""));
    // The aliases have the same names there.
    for slot in ["m2u", "m2u2"] {
        has(
            &ask(&gateway, slot, "/"),
            &[
                "HTTP_X_TALK2M_ACCOUNT=acme",
                "HTTP_X_TALK2M_DEVICE=press-07",
                "HTTP_X_TALK2M_SERIALNUMBER=1932-0069-24",
                "length=0",
            ],
        );
    }
    gateway.stop();
}

/// Tells what a Node application gets.
const NODE_APP: &str = r#"
require("http").createServer((request, response) => {
    let length = 0;
    request.on("data", (piece) => { length += piece.length; });
    request.on("end", () => {
        const names = Object.keys(request.headers).filter((name) => name.includes("talk2m"));
        const lines = names.sort().map((name) => `${name}=${request.headers[name]}`);
        response.end([...lines, `length=${length}`, ""].join("\n"));
    });
}).listen(PORT, "127.0.0.1");
"#;

#[test]
fn a_node_application_sees_the_device_by_both_spellings() {
    let server = Server::node(NODE_APP);
    let gateway = Gateway::with(&account(&format!("http://{}", server.address), ""));
    let plain = ask(&gateway, "m2u", "/").text();
    assert_eq!(
        plain,
        "x_talk2m_account=acme\nx_talk2m_device=press-07\nx_talk2m_serialnumber=1932-0069-24\n\
         length=0\n"
    );
    let aliases = ask(&gateway, "m2u2", "/");
    has(
        &aliases,
        &["x_talk2m_device=press-07", "x-talk2m-device=press-07"],
    );
    let mut device = Device::connect("127.0.0.7", gateway.address());
    let answer = device.ask(
        "POST / HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    );
    has(&answer, &["length=5"]);
    gateway.stop();
}

/// Bytes that no compression and no accident makes again.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[test]
fn a_log_export_of_40_mb_arrives_whole() {
    let server = Server::gunicorn(WSGI_APP);
    let gateway = Gateway::with(&account(&format!("http://{}", server.address), ""));
    let body = noise(40_000_000);
    let mut device = Device::connect("127.0.0.7", gateway.address());
    device.send("POST /export HTTP/1.1\r\nHost: m2u\r\nTransfer-Encoding: chunked\r\n\r\n");
    // Sizes that fall on no boundary of anybody's buffers.
    for chunk in body.chunks(77_777) {
        device.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    }
    let answer = device.ask("0\r\n\r\n");
    has(
        &answer,
        &["length=40000000", &format!("sha256={}", sha256(&body))],
    );
    gateway.stop();
}

#[test]
fn a_download_of_40_mb_arrives_whole_over_tls() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let body = noise(40_000_000);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("firmware.bin"), &body).unwrap();
    let server = nginx(
        &authority,
        &leaf,
        &format!("location /files/ {{ alias {}/; }}", folder.path().display()),
    );
    let extra = format!("ca = {}\n", quoted(&authority.pem()));
    let gateway = Gateway::with(&account(&format!("https://{}", server.address), &extra));
    let mut device = Device::connect("127.0.0.7", gateway.address());
    let answer = device.ask("GET /files/firmware.bin HTTP/1.1\r\nHost: m2u\r\n\r\n");
    assert_eq!((answer.status(), answer.body.len()), (200, body.len()));
    assert_eq!(sha256(&answer.body), sha256(&body));
    gateway.stop();
}
