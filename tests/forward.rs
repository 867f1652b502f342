//! What a server gets of a device's request: identity, path, login, fields, framing.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::IpAddr;

use common::{
    device,
    gateway::{Gateway, account, acme, believing, listening, server},
    upstream::Upstream,
    wire::Message,
};

const STAMPED: [&str; 3] = [
    "X_Talk2M_Account",
    "X_Talk2M_Device",
    "X_Talk2M_SerialNumber",
];

const ALIASES: [&str; 3] = [
    "X-Talk2M-Account",
    "X-Talk2M-Device",
    "X-Talk2M-SerialNumber",
];

/// The device of most tests.
const PRESS: &str = "127.0.0.7";
const DEVICES: [(&str, &str); 2] = [("press-07", "127.0.0.7"), ("press-08", "127.0.0.8")];

/// What a server gets of `request`, its account written by `accounts` from the server's URL.
fn forwarded(accounts: impl Fn(&str) -> String, request: impl AsRef<[u8]>) -> Message {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&accounts(&upstream.url()));
    let answer = device::ask(PRESS, gateway.address(), request);
    assert_eq!(answer.status(), 200, "{}{}", answer.head, answer.text());
    gateway.stop();
    upstream.request()
}

/// An account like `acme`, with more lines for its server.
fn acme_with(url: &str, lines: &str) -> String {
    let server = format!("{}{lines}\n", server("m2u", url));
    account("acme", &server, &DEVICES)
}

#[test]
fn identity_is_stamped_and_forgeries_never_arrive() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let answer = device::ask(
        "127.0.0.7",
        gateway.address(),
        "GET /a HTTP/1.1\r\nHost: m2u\r\nX-Talk2M-Device: forged\r\nx_talk2m-device: forged\r\n\
         X.Talk2M.Device: forged\r\nX_Talk2M_Device: forged\r\nX~TALK2M~anything: forged\r\n\
         Connection: X_Talk2M_Account, X_Talk2M_Device\r\nX-Own: kept\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    let request = upstream.request();
    assert_eq!(request.identity_like(), STAMPED);
    assert_eq!(request.all("X_Talk2M_Account"), ["acme"]);
    assert_eq!(request.all("X_Talk2M_Device"), ["press-07"]);
    assert_eq!(request.all("X_Talk2M_SerialNumber"), ["press-07-serial"]);
    assert_eq!(request.field("X-Own"), Some("kept"));
    assert!(!request.head.contains("forged"), "{}", request.head);
    gateway.stop();
}

#[test]
fn hyphen_aliases_carry_the_same_values() {
    let request = forwarded(
        |url| acme_with(url, "hyphen_aliases = true"),
        "GET / HTTP/1.1\r\nHost: m2u\r\nX-Talk2M-Account: forged\r\n\r\n",
    );
    assert_eq!(request.identity_like(), [STAMPED, ALIASES].concat());
    let values = ["acme", "press-07", "press-07-serial"];
    for (position, value) in values.into_iter().enumerate() {
        assert_eq!(request.all(STAMPED[position]), [value]);
        assert_eq!(request.all(ALIASES[position]), [value]);
    }
}

#[test]
fn a_concealed_identity_is_three_fields_with_empty_values() {
    for (lines, expected) in [
        ("hyphen_aliases = false", STAMPED.to_vec()),
        ("hyphen_aliases = true", [STAMPED, ALIASES].concat()),
    ] {
        let request = forwarded(
            |url| {
                acme_with(url, lines).replacen(
                    "ref = \"acme\"\n",
                    "ref = \"acme\"\nexpose_identity = false\n",
                    1,
                )
            },
            "GET / HTTP/1.1\r\nHost: m2u\r\nX_Talk2M_Account: forged\r\n\r\n",
        );
        assert_eq!(request.identity_like(), expected);
        for name in expected {
            assert_eq!(request.all(name), [""], "{name}");
            assert!(request.head.contains(&format!("\r\n{name}: \r\n")));
        }
        for secret in ["acme", "press-07", "forged"] {
            assert!(!request.head.contains(secret), "{}", request.head);
        }
    }
}

#[test]
fn a_central_login_replaces_the_devices_own() {
    for connection in ["", "Connection: Authorization\r\n"] {
        let request = forwarded(
            |url| {
                acme_with(
                    url,
                    "login = { username = \"acme\", password = \"secret\" }",
                )
            },
            format!(
                "GET / HTTP/1.1\r\nHost: m2u\r\nAuthorization: Bearer own\r\n\
                 aUTHORIZATION: Basic b3du\r\n{connection}\r\n"
            ),
        );
        assert_eq!(
            request.field("Authorization"),
            Some("Basic YWNtZTpzZWNyZXQ=")
        );
    }
}

#[test]
fn without_a_central_login_the_devices_own_passes() {
    let request = forwarded(
        acme,
        "GET / HTTP/1.1\r\nHost: m2u\r\nAuthorization: Bearer own\r\n\r\n",
    );
    assert_eq!(request.all("Authorization"), ["Bearer own"]);
}

#[test]
fn host_becomes_the_servers_authority() {
    let upstream = Upstream::echo();
    let port = upstream.address.port();
    let address = format!("address = [\"{}\"]", upstream.address);
    for (url, authority) in [
        (
            format!("http://127.0.0.1:{port}"),
            format!("127.0.0.1:{port}"),
        ),
        (
            "http://ingest.acme.example".into(),
            "ingest.acme.example".into(),
        ),
        (
            "http://Ingest.acme.example:80/x".into(),
            "ingest.acme.example".into(),
        ),
        (
            "http://ingest.acme.example:81".into(),
            "ingest.acme.example:81".into(),
        ),
    ] {
        let before = upstream.requests().len();
        let gateway = Gateway::with(&acme_with(&url, &address));
        let answer = device::ask(
            PRESS,
            gateway.address(),
            "GET / HTTP/1.1\r\nhost: m2u\r\n\r\n",
        );
        assert_eq!(answer.status(), 200);
        let request = upstream.requests().remove(before);
        assert_eq!(request.field("Host"), Some(&*authority), "{url}");
        gateway.stop();
    }
}

#[test]
fn path_and_query_pass_byte_for_byte_behind_the_base_path() {
    let upstream = Upstream::echo();
    let bases = [("", ""), ("/", ""), ("/base", "/base"), ("/a/b/", "/a/b")];
    for (base, prefix) in bases {
        let gateway = Gateway::with(&acme(&format!("{}{base}", upstream.url())));
        for (target, path) in [
            ("/", "/"),
            ("/x?y", "/x?y"),
            ("/a//b/%2e?x=%zz&y=/../../..", "/a//b/%2e?x=%zz&y=/../../.."),
            ("//x", "//x"),
            ("/%41%2F%00+~'()*!$&,;=:@", "/%41%2F%00+~'()*!$&,;=:@"),
            ("/a/../b", "/a/../b"),
            ("/?", "/?"),
            ("/{a}|\\^`\"<>", "/{a}|\\^`\"<>"),
            ("/\u{e9}", "/\u{e9}"),
            ("http://m2u/x//y?z", "/x//y?z"),
            ("http://m2u", "/"),
            ("http://m2u?q", "/?q"),
        ] {
            let before = upstream.requests().len();
            let ask = format!("GET {target} HTTP/1.1\r\nHost: m2u\r\n\r\n");
            let answer = device::ask(PRESS, gateway.address(), ask);
            assert_eq!(answer.status(), 200, "{target}");
            let request = upstream.requests().remove(before);
            let line = format!("GET {prefix}{path} HTTP/1.1");
            assert_eq!(request.first_line(), line, "{base} {target}");
        }
        gateway.stop();
    }
}

#[test]
fn the_host_names_the_slot_in_every_spelling() {
    let (first, second) = (Upstream::echo(), Upstream::echo());
    let servers = server("m2u", &first.url()) + &server("m2u2", &second.url());
    let gateway = Gateway::with(&account("acme", &servers, &DEVICES));
    for (request, slot) in [
        ("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: M2U.talk2m.com\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: m2u.talk2m.com:8080\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: m2u2\r\n\r\n", 2),
        ("GET / HTTP/1.1\r\nHost: m2u2.\r\n\r\n", 2),
        ("GET / HTTP/1.1\r\nHost:M2U2.TALK2M.COM.:80\r\n\r\n", 2),
        ("GET / HTTP/1.0\r\nHost: m2u2\r\n\r\n", 2),
        // The target's authority wins.
        ("GET http://m2u2/ HTTP/1.1\r\nHost: m2u\r\n\r\n", 2),
        (
            "GET HTTP://m2u.talk2m.com:80/ HTTP/1.1\r\nHost: m2u2\r\n\r\n",
            1,
        ),
        (
            "GET http://m2u2/ HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n",
            2,
        ),
        ("GET http://m2u2.talk2m.com HTTP/1.0\r\n\r\n", 2),
        // Nobody is named: the listener's slot.
        ("GET / HTTP/1.0\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 1),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", 1),
        ("GET http://10.8.0.2/ HTTP/1.1\r\nHost: m2u2\r\n\r\n", 1),
    ] {
        let before = [first.requests().len(), second.requests().len()];
        assert_eq!(
            device::ask(PRESS, gateway.address(), request).status(),
            200,
            "{request}"
        );
        let after = [first.requests().len(), second.requests().len()];
        let expected = match slot {
            1 => [before[0] + 1, before[1]],
            _ => [before[0], before[1] + 1],
        };
        assert_eq!(after, expected, "{request}");
    }
    gateway.stop();
}

#[test]
fn a_listener_may_have_a_slot_for_requests_that_name_none() {
    let (first, second) = (Upstream::echo(), Upstream::echo());
    let servers = server("m2u", &first.url()) + &server("m2u2", &second.url());
    let preamble = listening("\"127.0.0.1:0\", { address = \"127.0.0.2:0\", slot = \"m2u2\" }");
    let gateway = Gateway::start(&format!(
        "{preamble}{}",
        account("acme", &servers, &DEVICES)
    ));
    for (listener, request, slot) in [
        (0, "GET /a HTTP/1.0\r\n\r\n", 1),
        (1, "GET /b HTTP/1.0\r\n\r\n", 2),
        (1, "GET /c HTTP/1.1\r\nHost: 127.0.0.2\r\n\r\n", 2),
        (1, "GET /d HTTP/1.1\r\nHost: m2u\r\n\r\n", 1),
    ] {
        let before = [first.requests().len(), second.requests().len()];
        let answer = device::ask(PRESS, gateway.addresses()[listener], request);
        assert_eq!(answer.status(), 200, "{request}");
        let after = [first.requests().len(), second.requests().len()];
        let changed = [after[0] - before[0], after[1] - before[1]];
        let expected = if slot == 1 { [1, 0] } else { [0, 1] };
        assert_eq!(changed, expected, "{request}");
    }
    gateway.stop();
}

#[test]
fn hop_by_hop_fields_and_forwarding_claims_go_and_all_others_stay_as_they_are() {
    let request = forwarded(
        acme,
        "GET / HTTP/1.1\r\nHost: m2u\r\naPPKey: KEY\r\nX-Forwarded-For: 1.2.3.4\r\n\
         x_forwarded_proto: https\r\nX-Forwarded: x\r\nForwarded: for=1.2.3.4\r\n\
         X-Real-IP: 1.2.3.4\r\nX_Real_IP: 1.2.3.4\r\nAccept: a\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\n\
         Trailer: X-Sum\r\nUpgrade: websocket\r\nHTTP2-Settings: AAMAAABk\r\n\
         Connection: close, Upgrade, X-Listed\r\nConnection: x-listed-too\r\nX-Listed: 1\r\n\
         X-LISTED-TOO: 2\r\nAccept: b\r\nX-Blank:   in  between \t \r\nX-Empty:\r\n\
         content-type: text/plain; charset=\"x\"\r\nCookie: a=b; c=d\r\nVia: 1.0 old\r\n\
         X_Under_Score: yes\r\nX-Latin: \u{e9}\r\n\r\n",
    );
    let fields = request.fields();
    let own: Vec<_> = fields
        .iter()
        .copied()
        .filter(|(name, _)| !STAMPED.contains(name) && !["X-Request-Id", "Host"].contains(name))
        .collect();
    assert_eq!(
        own,
        [
            ("aPPKey", "KEY"),
            ("Accept", "a"),
            ("Accept", "b"),
            ("X-Blank", "in  between"),
            ("X-Empty", ""),
            ("content-type", "text/plain; charset=\"x\""),
            ("Cookie", "a=b; c=d"),
            ("Via", "1.0 old"),
            ("X_Under_Score", "yes"),
            ("X-Latin", "\u{e9}"),
            ("Via", "1.1 m2u"),
        ]
    );
    assert_eq!(fields[0].0, "Host");
}

#[test]
fn the_address_that_speaks_is_told_where_the_server_asks_for_it() {
    let upstream = Upstream::echo();
    let preamble = listening(&believing("127.0.9.1/32"));
    let told = server("m2u", &upstream.url()) + "forwarded = true\n";
    let servers = told + &server("m2u2", &upstream.url());
    let devices = [("press-07", PRESS), ("press-08", "fd00::8")];
    let accounts = account("acme", &servers, &devices).replace(
        "ref = \"acme\"\n",
        "ref = \"acme\"\nexpose_identity = false\n",
    );
    let gateway = Gateway::start(&format!("{preamble}{accounts}"));
    let request = "GET / HTTP/1.1\r\nHost: m2u\r\nforwarded: for=forged\r\n\
                   Connection: Forwarded\r\n\r\n";
    let proxied = "PROXY TCP6 fd00::8 fd00::1 12345 80\r\n".to_owned() + request;
    let elsewhere = request.replace("m2u", "m2u2");
    for (source, request) in [
        (PRESS, request),
        ("127.0.9.1", &*proxied),
        (PRESS, &*elsewhere),
    ] {
        assert_eq!(
            device::ask(source, gateway.address(), request).status(),
            200
        );
    }
    let told = upstream.requests().into_iter();
    let told = told.inspect(|request| assert_eq!(request.all(STAMPED[1]), [""]));
    let told: Vec<_> = told
        .map(|request| request.field("Forwarded").map(str::to_owned))
        .collect();
    // RFC 7239 §6: an IPv6 address stands in brackets and quotes.
    let expected = [Some("for=127.0.0.7"), Some("for=\"[fd00::8]\""), None];
    assert_eq!(told, expected.map(|value| value.map(str::to_owned)));
    gateway.stop();
}

#[test]
fn via_says_which_version_the_device_spoke() {
    for (request, via) in [
        ("GET / HTTP/1.0\r\n\r\n", "1.0 m2u"),
        ("GET / HTTP/1.1\r\nHost: m2u\r\n\r\n", "1.1 m2u"),
    ] {
        let request = forwarded(acme, request);
        assert_eq!(request.first_line(), "GET / HTTP/1.1");
        assert_eq!(request.field("Via"), Some(via));
    }
}

#[test]
fn a_request_id_is_made_where_there_is_none() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    let mut press = device::Device::connect(PRESS, gateway.address());
    for fields in [
        "",
        "",
        "X-Request-Id: own\r\n",
        "x-request-ID: own\r\nConnection: X-Request-Id\r\n",
    ] {
        press.ask(format!("GET / HTTP/1.1\r\nHost: m2u\r\n{fields}\r\n"));
    }
    let requests = upstream.requests();
    let ids: Vec<_> = requests
        .iter()
        .map(|request| request.field("X-Request-Id").unwrap())
        .collect();
    assert_eq!(ids[2], "own");
    let made = [ids[0], ids[1], ids[3]];
    for id in made {
        assert_eq!(id.len(), 32, "{id}");
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
    }
    assert!(made[0] != made[1] && made[1] != made[2]);
    gateway.stop();
}

#[test]
fn an_expectation_means_nothing_in_http_1_0() {
    let body = "Content-Length: 2\r\nExpect: 100-continue\r\n\r\nhi";
    let request = forwarded(acme, format!("PUT / HTTP/1.0\r\nHost: m2u\r\n{body}"));
    assert_eq!(request.field("Expect"), None);
    assert_eq!(request.body, b"hi");
    let request = forwarded(acme, format!("PUT / HTTP/1.1\r\nHost: m2u\r\n{body}"));
    assert_eq!(request.field("Expect"), Some("100-continue"));
    assert_eq!(request.body, b"hi");
}

#[test]
fn every_method_passes_with_its_name() {
    let upstream = Upstream::echo();
    let gateway = Gateway::with(&acme(&upstream.url()));
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "M-SEARCH",
    ] {
        let before = upstream.requests().len();
        let ask = format!("{method} /x HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(
            device::ask(PRESS, gateway.address(), ask).status(),
            200,
            "{method}"
        );
        let request = upstream.requests().remove(before);
        assert_eq!(request.first_line(), format!("{method} /x HTTP/1.1"));
    }
    let ask = "OPTIONS * HTTP/1.1\r\nHost: m2u\r\n\r\n";
    assert_eq!(device::ask(PRESS, gateway.address(), ask).status(), 200);
    let last = upstream.requests().pop().unwrap();
    assert_eq!(last.first_line(), "OPTIONS * HTTP/1.1");
    gateway.stop();
}

#[test]
fn a_v4_device_is_known_on_a_v6_listener() {
    let upstream = Upstream::echo();
    let preamble = listening("\"[::]:0\"");
    let devices = [("press-07", "127.0.0.7"), ("press-v6", "::1")];
    let accounts = account("acme", &server("m2u", &upstream.url()), &devices);
    let gateway = Gateway::start(&format!("{preamble}{accounts}"));
    let port = gateway.address().port();
    for (source, listener, name) in [
        ("127.0.0.7", "127.0.0.1", "press-07"),
        ("::1", "::1", "press-v6"),
    ] {
        let listener = (listener.parse::<IpAddr>().unwrap(), port).into();
        let answer = device::ask(source, listener, "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(answer.status(), 200, "{}", answer.head);
        let request = upstream.requests().pop().unwrap();
        assert_eq!(request.field("X_Talk2M_Device"), Some(name));
    }
    gateway.stop();
}

#[test]
fn an_exact_address_wins_over_the_longest_prefix() {
    let upstream = Upstream::echo();
    let devices = [
        ("plant", "127.1.0.0/16"),
        ("hall", "127.1.7.0/24"),
        ("press", "127.1.7.5"),
    ];
    let accounts = account("acme", &server("m2u", &upstream.url()), &devices);
    let gateway = Gateway::with(&accounts);
    for (source, name) in [
        ("127.1.7.5", Some("press")),
        ("127.1.7.6", Some("hall")),
        ("127.1.8.5", Some("plant")),
        ("127.2.7.5", None),
    ] {
        let answer = device::ask(source, gateway.address(), "GET / HTTP/1.0\r\n\r\n");
        match name {
            None => assert_eq!(answer.status(), 403),
            Some(name) => {
                assert_eq!(answer.status(), 200);
                let request = upstream.requests().pop().unwrap();
                assert_eq!(request.all("X_Talk2M_Device"), [name]);
            }
        }
    }
    gateway.stop();
}

#[test]
fn a_whole_url_without_a_path_asks_about_the_server_as_a_whole() {
    for (target, path) in [
        ("http://m2u", "*"),
        ("*", "*"),
        ("http://m2u/", "/"),
        ("http://m2u?x", "/?x"),
    ] {
        let upstream = Upstream::echo();
        let gateway = Gateway::with(&acme(&upstream.url()));
        let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: m2u\r\n\r\n");
        assert_eq!(
            device::ask("127.0.0.7", gateway.address(), request).status(),
            200
        );
        assert_eq!(upstream.request().target(), path, "{target}");
        gateway.stop();
    }
}
