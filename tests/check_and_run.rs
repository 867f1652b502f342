//! `check` accepts exactly what `run` accepts, and both say the same of what they refuse.

#![allow(clippy::unwrap_used)]

mod common;

use common::folder::*;

/// The example with ports that are free, and no more connections than a test may have.
fn example() -> String {
    EXAMPLE
        .replace("127.0.0.1:8080", "127.0.0.1:0")
        .replace("127.0.0.2:80", "127.0.0.2:0")
        .replace("connections = 100000", "connections = 100")
}

/// Runs both; both must agree, and answer whether they accept.
fn agree(folder: &Folder, configuration: &str, flags: &[&str], case: &str) -> bool {
    let checked = folder.check(configuration, flags);
    let ran = folder.run(configuration, flags);
    assert_eq!(
        checked.code, ran.code,
        "{case}\ncheck: {}\nrun: {}",
        checked.stderr, ran.stderr
    );
    match checked.code {
        Some(0) => assert_eq!(checked.stderr, "", "{case}"),
        _ => assert_eq!(checked.stderr, ran.stderr, "{case}"),
    }
    checked.code == Some(0)
}

#[test]
fn what_one_accepts_the_other_does() {
    let folder = Folder::new();
    let text = example();
    assert!(agree(&folder, &text, &[], "the example"));
    for (from, to, accepted) in [
        ("domain = \"talk2m.com\"\n", "", true),
        ("domain = \"talk2m.com\"", "domain = \"\"", false),
        ("domain = \"talk2m.com\"", "domain = \"Talk2M.com.\"", true),
        ("devices = \"devices.csv\"\n", "", true),
        ("\"devices.csv\"", "\"password\"", false),
        ("head = \"10s\"", "head = \"0s\"", false),
        ("head = \"10s\"", "head = \"1ms\"", true),
        ("drain = \"2m\"", "drain = \"0s\"", false),
        ("head_bytes = 16384", "head_bytes = 1023", false),
        ("head_bytes = 16384", "head_bytes = 1024", true),
        ("pool_per_server = 32", "pool_per_server = 0", true),
        ("pool_per_server = 32", "pool_per_server = 4097", false),
        ("path = \"access.log\"", "path = \"new.log\"", true),
        ("path = \"access.log\"", "path = \"none/access.log\"", false),
        ("path = \"access.log\"", "path = \".\"", false),
        ("path = \"access.log\"", "path = \"password/log\"", false),
        ("path = \"access.log\"", "path = \"\"", false),
        ("path = \"access.log\"", "path = \"-\"", true),
        ("format = \"json\"", "format = \"text\"", true),
        ("format = \"json\"", "format = 1", false),
        ("[\"127.0.0.0/8\"]", "[]", true),
        ("[\"127.0.0.0/8\"]", "[\"::/0\", \"0.0.0.0/0\"]", true),
        ("[\"127.0.0.0/8\"]", "[\"127.0.0.0/33\"]", false),
        ("\"gateway.pem\"", "\"acme.pem\"", false),
        ("ref = \"beta\"", "ref = \"acme\"", false),
        ("ref = \"beta\"", "ref = \"gamma\"", false),
        ("slot = \"m2u3\"", "slot = \"m2u999\"", true),
        ("slot = \"m2u3\"", "slot = \"m2u1000\"", false),
        ("slot = \"m2u3\"", "slot = \"m2u\"", false),
        ("https://ingest.acme.example/base", "https://[::1]/", true),
        ("https://ingest.acme.example/base", "ftp://a.example", false),
        ("https://ingest.acme.example/base", "https://a/b?c", false),
        ("ca = \"acme-ca.pem\"\nhyphen", "hyphen", true),
        (
            "ca = \"acme-ca.pem\"\nhyphen",
            "ca = \"none\"\nhyphen",
            false,
        ),
        ("\"password\" }\n", "\"none\" }\n", false),
        ("[\"10.8.0.7\", ", "[", true),
        ("[\"10.8.0.7\", ", "[\"10.8.1.2\", ", false),
        ("[\"10.9.0.0/24\"]", "[\"10.8.0.0/24\"]", false),
        ("[\"10.9.0.0/24\"]", "[\"10.8.0.7\"]", true),
        ("serial = ", "serail = ", false),
        ("[access_log]", "[acess_log]", false),
    ] {
        let case = format!("{from:?} -> {to:?}");
        assert_eq!(text.matches(from).count(), 1, "{case} is not unique");
        let changed = text.replace(from, to);
        assert_eq!(agree(&folder, &changed, &[], &case), accepted, "{case}");
    }
    for (flags, accepted) in [
        (&["--cores", "0"][..], true),
        (&["--cores", "8000"], false),
        (&["--listen", "127.0.0.1:0"], true),
        (&["--listen", "127.0.0.1:1,127.0.0.1:1"], false),
        (&["--domain", "other.example"], true),
    ] {
        let case = format!("{flags:?}");
        assert_eq!(agree(&folder, &text, flags, &case), accepted, "{case}");
    }
}

#[test]
fn without_roots_of_the_system_both_refuse_what_needs_them() {
    let folder = Folder::new();
    let needs_them = example().replace("ca = \"acme-ca.pem\"\nhyphen", "hyphen");
    for (configuration, code) in [(&example(), 0), (&needs_them, 1)] {
        for subcommand in ["check", "run"] {
            let outcome = folder.without_roots(subcommand, configuration);
            assert_eq!(outcome.code, Some(code), "{subcommand}: {}", outcome.stderr);
            if code == 1 {
                let words = "root";
                assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
            }
        }
    }
}
