//! `m2u dns snippet`, loaded by the servers that it is for and asked with dig: m2u's names have
//! their addresses, a missing kind is no missing name, and no other name is touched.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::{
    dig::dig,
    gateway::{PREAMBLE, account, run_to_end, server},
    name_server::NameServer,
    servers::Server,
};

const DNS: &str = "[dns]\nlisten = [\"127.0.0.1:53\"]\naddresses = [\"10.8.0.2\"]\n\
    slots = { m2u2 = [\"10.8.0.3\", \"10.8.0.4\"], m2u3 = [\"10.8.0.5\", \"fd00::5\"], \
    m2u7 = [\"10.8.0.7\"] }\n";

/// Two accounts that use the slots 1, 2, 3 and 5.
fn configuration(dns: &str) -> String {
    let servers = |slots: &[&str]| -> String {
        let servers = slots.iter().map(|slot| server(slot, "http://192.0.2.1"));
        servers.collect()
    };
    let acme = account(
        "acme",
        &servers(&["m2u", "m2u2", "m2u3"]),
        &[("a", "10.8.1.1")],
    );
    let beta = account("beta", &servers(&["m2u2", "m2u5"]), &[("b", "10.8.1.2")]);
    format!("{PREAMBLE}{dns}{acme}{beta}")
}

/// What is printed on standard output; or on standard error, if that is refused.
fn snippet(configuration: &str, arguments: &[&str]) -> Result<String, String> {
    let done = run_to_end(configuration, &[&["dns", "snippet"], arguments].concat());
    let [stdout, stderr] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    match done.status.code() {
        Some(0) => {
            assert_eq!(stderr, "");
            Ok(stdout)
        }
        code => {
            assert_eq!((code, stdout.as_str()), (Some(1), ""));
            Err(stderr)
        }
    }
}

fn printed(format: &str) -> String {
    snippet(&configuration(DNS), &["--format", format]).unwrap()
}

/// What holds of every server that has the snippet, and asks `upstream` for all other names.
fn serves_the_names(server: SocketAddr, upstream: &NameServer) {
    for (name, v4, v6) in [
        ("m2u", &["10.8.0.2"][..], None),
        ("m2u2", &["10.8.0.3", "10.8.0.4"], None),
        ("m2u3", &["10.8.0.5"], Some("fd00::5")),
        ("m2u5", &["10.8.0.2"], None),
    ] {
        for name in [name.to_owned(), format!("{name}.talk2m.com")] {
            for transport in ["+notcp", "+tcp"] {
                let a = dig(server, &format!("{name} A {transport}"));
                assert_eq!(
                    (a.status.as_str(), a.data()),
                    ("NOERROR", v4.to_vec()),
                    "{a:?}"
                );
                assert!(
                    a.answers.iter().all(|line| line.contains(" 60 IN A ")),
                    "{a:?}"
                );
                let aaaa = dig(server, &format!("{name} AAAA {transport}"));
                match v6 {
                    Some(address) => assert_eq!(aaaa.data(), [address]),
                    None => assert!(aaaa.is_no_data(), "{aaaa:?}"),
                }
            }
            for kind in ["TXT", "MX"] {
                let other = dig(server, &format!("{name} {kind}"));
                assert!(other.is_no_data(), "{other:?}");
            }
            let shouted = dig(server, &format!("{} A", name.to_ascii_uppercase()));
            assert_eq!(shouted.data(), v4);
        }
    }
    // Other names of the domain, and beside it: a slot out of use is one of them.
    assert_eq!(upstream.asked(), <[String; 0]>::default());
    for name in [
        "talk2m.com",
        "www.talk2m.com",
        "m2u4.talk2m.com",
        "m2u7.talk2m.com",
        "xm2u.talk2m.com",
        "m2u.talk2m.com.example",
        "www.example.org",
    ] {
        let other = dig(server, &format!("{name} A"));
        assert_eq!(
            (other.status.as_str(), other.data()),
            ("NOERROR", vec!["192.0.2.99"])
        );
        assert!(upstream.asked().contains(&format!("{name}.")), "{name}");
    }
}

fn elsewhere() -> NameServer {
    NameServer::start(&[Ipv4Addr::new(192, 0, 2, 99)])
}

#[test]
fn dnsmasq_serves_the_names_and_forwards_the_rest() {
    let upstream = elsewhere();
    let dnsmasq = Server::dnsmasq(&printed("dnsmasq"), upstream.address);
    serves_the_names(dnsmasq.address, &upstream);
}

#[test]
fn unbound_serves_the_names_and_forwards_the_rest() {
    let upstream = elsewhere();
    let unbound = Server::unbound(&printed("unbound"), upstream.address);
    serves_the_names(unbound.address, &upstream);
}

#[test]
fn addresses_come_from_flags_where_there_is_no_section() {
    let configuration = configuration("");
    for (format, line) in [
        ("dnsmasq", "host-record=m2u.talk2m.com,m2u,10.8.0.2,60\n"),
        (
            "unbound",
            "local-data: \"m2u.talk2m.com. 60 IN A 10.8.0.2\"\n",
        ),
        ("coredns", "10.8.0.2 m2u.talk2m.com m2u\n"),
    ] {
        let refused = snippet(&configuration, &["--format", format]).unwrap_err();
        assert!(
            refused.ends_with(
                "m2u.toml: there is no [dns] that says what the names resolve to; say it with \
                 --address, such as --address 127.0.0.1, or write the section\n"
            ),
            "{refused}"
        );
        let flags = [
            "--format",
            format,
            "--address",
            "10.8.0.2",
            "--address",
            "m2u2=fd00::2",
        ];
        let text = snippet(&configuration, &flags).unwrap();
        assert!(text.contains(line), "{text}");
        assert!(
            text.contains("fd00::2") && !text.contains("10.8.0.3"),
            "{text}"
        );
    }
}

#[test]
fn flags_replace_what_the_section_says() {
    let flags = [
        "--format",
        "dnsmasq",
        "--address",
        "10.9.0.1",
        "--address",
        "m2u3=10.9.0.3",
    ];
    let text = snippet(&configuration(DNS), &flags).unwrap();
    for line in [
        "host-record=m2u.talk2m.com,m2u,10.9.0.1,60\n",
        "host-record=m2u2.talk2m.com,m2u2,10.8.0.3,60\n",
        "host-record=m2u3.talk2m.com,m2u3,10.9.0.3,60\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert!(
        !text.contains("10.8.0.2") && !text.contains("fd00::5"),
        "{text}"
    );
    let domain = [&flags[..], &["--domain", "other.example"]].concat();
    let text = snippet(&configuration(DNS), &domain).unwrap();
    assert!(
        text.contains("m2u.other.example,m2u,") && !text.contains("talk2m"),
        "{text}"
    );
}

#[test]
fn openvpn_is_told_a_server_that_devices_can_ask() {
    let text = printed("openvpn");
    let (_, pushes) = text.split_once("both.\n").unwrap();
    let domain = "push \"dhcp-option DOMAIN talk2m.com\"\n";
    assert_eq!(
        pushes,
        format!("push \"dhcp-option DNS 127.0.0.1\"\n{domain}")
    );
    let refused = snippet(&configuration(""), &["--format", "openvpn"]).unwrap_err();
    assert!(refused.contains("--server 10.8.0.1"), "{refused}");
    let flags = ["--format", "openvpn", "--server", "10.8.0.1"];
    let text = snippet(&configuration(""), &flags).unwrap();
    assert!(
        text.ends_with(&format!("DNS 10.8.0.1\"\n{domain}")),
        "{text}"
    );
    let elsewhere = configuration(&DNS.replace(":53", ":5353"));
    let refused = snippet(&elsewhere, &flags[..2]).unwrap_err();
    assert!(
        refused.contains("127.0.0.1:5353, and devices ask on port 53 only"),
        "{refused}"
    );
}

#[test]
fn wrong_words_are_told() {
    for (arguments, words) in [
        (
            &["--format", "bind"][..],
            "dnsmasq, unbound, coredns, openvpn",
        ),
        (&[], "--format"),
        (
            &["--format", "unbound", "--address", "10.8.0.2:80"],
            "write \"10.8.0.2\"",
        ),
        (
            &["--format", "unbound", "--address", "m2u1=10.8.0.2"],
            "the first one is \"m2u\"",
        ),
    ] {
        let arguments = [&["dns", "snippet"], arguments].concat();
        let done = run_to_end(&configuration(DNS), &arguments);
        let said = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}
