//! What a reload keeps, what it makes anew, and what it refuses.

use std::fs;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::{
    config::{self, flags::Overrides},
    snapshot::scope::Scope,
};

/// A folder with two authorities and a client certificate.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["ca", "other-ca", "client"] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![format!("{name}.example")]);
        let certificate = params.expect("a name").self_signed(&key).expect("signed");
        let write = |kind, pem| fs::write(dir.path().join(format!("{name}.{kind}")), pem);
        write("pem", certificate.pem()).expect("a file");
        write("key", key.serialize_pem()).expect("a file");
    }
    dir
}

/// Settings with one account `acme`, whose servers have these keys.
fn settings(dir: &TempDir, servers: &[&str]) -> Settings {
    let mut text = "listen = [\"127.0.0.1:0\"]\n[[account]]\nref = \"acme\"\n".to_owned();
    for (index, keys) in servers.iter().enumerate() {
        let slot = match index {
            0 => "m2u".to_owned(),
            index => format!("m2u{}", index + 1),
        };
        text.push_str(&format!("[[account.server]]\nslot = \"{slot}\"\n{keys}\n"));
    }
    load(dir, &text)
}

fn load(dir: &TempDir, text: &str) -> Settings {
    let path = dir.path().join("m2u.toml");
    fs::write(&path, text).expect("a file");
    config::load(&path, &Overrides::default()).expect(text)
}

fn route(snapshot: &Snapshot, slot: &str) -> Arc<Route> {
    let slot = Slot::parse(slot.as_bytes()).expect("a slot");
    let mut routes = snapshot.routes.iter();
    Arc::clone(routes.find(|route| route.slot == slot).expect("a route"))
}

/// The pools of the servers `m2u`, `m2u2` … in turn.
fn pools(assembly: &mut Assembly, settings: &Settings) -> Vec<PoolId> {
    assembly.adopt(settings).expect("fine settings");
    let snapshot = assembly.first_snapshot(&Resolver::new(None));
    let servers = settings.accounts.iter().flat_map(|a| &a.servers);
    servers
        .map(|server| *route(&snapshot, &server.slot.to_string()).upstream.pool)
        .collect()
}

#[test]
fn whatever_makes_connections_different_makes_another_pool() {
    let dir = folder();
    let settings = settings(
        &dir,
        &[
            "url = \"https://h.example/a\"\nca = \"ca.pem\"",
            "url = \"https://other.example/a\"\nca = \"ca.pem\"",
            "url = \"https://h.example:8443/a\"\nca = \"ca.pem\"",
            "url = \"https://h.example/a\"\nca = \"other-ca.pem\"",
            "url = \"https://h.example/a\"\nca = \"ca.pem\"\naddress = [\"192.0.2.1:443\"]",
            "url = \"https://h.example/a\"\nca = \"ca.pem\"\nclient_certificate = \
             \"client.pem\"\nclient_key = \"client.key\"",
            "url = \"http://h.example:443/a\"",
        ],
    );
    let pools = pools(&mut Assembly::default(), &settings);
    let distinct: HashSet<PoolId> = pools.iter().copied().collect();
    assert_eq!(distinct.len(), 7, "{pools:?}");
}

#[test]
fn what_the_wire_cannot_tell_apart_shares_a_pool() {
    let dir = folder();
    let settings = settings(
        &dir,
        &[
            "url = \"https://h.example/a\"\nca = \"ca.pem\"",
            "url = \"https://H.example:443/b\"\nca = \"ca.pem\"\nhyphen_aliases = true\nlogin \
             = { username = \"u\", password = \"p\" }",
        ],
    );
    let mut assembly = Assembly::default();
    let pools = pools(&mut assembly, &settings);
    assert_eq!(pools[0], pools[1]);
    let snapshot = assembly.first_snapshot(&Resolver::new(None));
    let (one, two) = (route(&snapshot, "m2u"), route(&snapshot, "m2u2"));
    assert!(Arc::ptr_eq(&one.upstream, &two.upstream));
}

#[test]
fn pools_and_accounts_keep_their_numbers_and_give_them_to_nobody_else() {
    let dir = folder();
    let one = "url = \"https://one.example\"\nca = \"ca.pem\"";
    let two = "url = \"https://two.example\"\nca = \"ca.pem\"";
    let three = "url = \"https://three.example\"\nca = \"ca.pem\"";
    let mut assembly = Assembly::default();
    let first = pools(&mut assembly, &settings(&dir, &[one, two]));
    // The same files read again, in another order, beside a newcomer.
    let second = pools(&mut assembly, &settings(&dir, &[three, two, one]));
    assert_eq!([second[2], second[1]], [first[0], first[1]]);
    assert!(!first.contains(&second[0]));
    let third = pools(&mut assembly, &settings(&dir, &[one]));
    assert_eq!(third[0], first[0]);
    // Another CA under the same file name is another trust.
    fs::copy(dir.path().join("other-ca.pem"), dir.path().join("ca.pem")).expect("copied");
    let fourth = pools(&mut assembly, &settings(&dir, &[one, two, three]));
    for pool in fourth {
        assert!(!first.contains(&pool) && !second.contains(&pool));
    }

    let account = |assembly: &mut Assembly, refs: &[&str]| -> Vec<AccountId> {
        let mut text = "listen = [\"127.0.0.1:0\"]\n".to_owned();
        for reference in refs {
            text.push_str(&format!("[[account]]\nref = \"{reference}\"\n"));
        }
        assembly.adopt(&load(&dir, &text)).expect("fine settings");
        refs.iter().map(|name| assembly.accounts[*name]).collect()
    };
    let first = account(&mut assembly, &["acme", "beta"]);
    let second = account(&mut assembly, &["gamma"]);
    let third = account(&mut assembly, &["beta", "acme"]);
    assert_eq!(third, [first[1], first[0]]);
    assert!(!first.contains(&second[0]));
    assert_eq!(assembly.account_ref(second[0]), Some("gamma"));
}

#[test]
fn sessions_are_a_pools_own_and_stay_over_a_reload() {
    let dir = folder();
    let one = "url = \"https://h.example\"\nca = \"ca.pem\"";
    let elsewhere = format!("{one}\naddress = [\"192.0.2.1:443\"]");
    let settings = settings(&dir, &[one, &elsewhere]);
    let mut assembly = Assembly::default();
    let mut configs = || {
        assembly.adopt(&settings).expect("fine settings");
        let snapshot = assembly.first_snapshot(&Resolver::new(None));
        ["m2u", "m2u2"].map(|slot| {
            let tls = route(&snapshot, slot).upstream.tls.clone();
            tls.expect("TLS").config
        })
    };
    let (before, after) = (configs(), configs());
    assert!(!Arc::ptr_eq(&before[0], &before[1]));
    for (before, after) in before.iter().zip(&after) {
        assert!(Arc::ptr_eq(before, after));
    }
}

#[test]
fn a_route_is_rendered_ahead() {
    let dir = folder();
    let text = r#"
        listen = ["127.0.0.1:0"]
        domain = "talk2m.com"
        upstream = { allow_networks = ["127.0.0.0/8"] }
        [[account]]
        ref = "acme"
        [[account.server]]
        url = "https://h.example:8443/base/"
        ca = "ca.pem"
        login = { username = "Aladdin", password = "open sesame" }
        limits = { body_bytes = 7, pool_per_server = 2 }
        on_failure = "close"
        [[account]]
        ref = "beta"
        expose_identity = false
        [[account.server]]
        slot = "m2u2"
        url = "https://[2001:db8::1]"
        ca = "ca.pem"
    "#;
    let mut assembly = Assembly::default();
    assembly.adopt(&load(&dir, text)).expect("fine settings");
    let snapshot = assembly.first_snapshot(&Resolver::new(None));
    assert_eq!(&*snapshot.domain, "talk2m.com");
    assert_eq!(snapshot.allow_networks.len(), 1);
    let named = route(&snapshot, "m2u");
    assert_eq!(&*named.host_field, b"Host: h.example:8443\r\n");
    assert_eq!(&*named.base_path, b"/base");
    assert_eq!(&*named.account_ref, "acme");
    assert_eq!(
        named.authorization.as_ref().map(Secret::expose),
        // The example of RFC 7617 §2.
        Some(&b"Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"[..])
    );
    let account_field = b"X_Talk2M_Account: acme\r\n"[..].into();
    assert_eq!(named.stamp, Stamp::Exposed { account_field });
    assert_eq!(
        (named.limits.body_bytes, named.limits.pool_per_server),
        (7, 2)
    );
    assert_eq!(named.on_failure, OnFailure::Close);
    assert!(named.upstream.addresses.is_empty());
    assert!(named.upstream.unresolved.is_some());
    let literal = route(&snapshot, "m2u2");
    assert_eq!(literal.stamp, Stamp::Concealed);
    assert_eq!(&*literal.host_field, b"Host: [2001:db8::1]\r\n");
    assert!(literal.authorization.is_none());
    let address: SocketAddr = "[2001:db8::1]:443".parse().expect("an address");
    assert_eq!(*literal.upstream.addresses, [address]);
    assert_eq!(literal.upstream.unresolved, None);
    let tls = |route: &Route| route.upstream.tls.clone().expect("TLS").name;
    assert!(matches!(tls(&literal), ServerName::IpAddress(_)));
    assert!(matches!(tls(&named), ServerName::DnsName(_)));
    let names: Vec<_> = assembly.names().collect();
    assert_eq!(names, ["h.example"]);
}

#[test]
fn new_addresses_make_a_snapshot_that_shares_the_rest() {
    let dir = folder();
    let servers = [
        "url = \"http://one.example:81\"",
        "url = \"http://two.example\"",
    ];
    let mut assembly = Assembly::default();
    assembly.adopt(&settings(&dir, &servers)).expect("fine");
    let mut resolver = Resolver::new(None);
    resolver.follow(assembly.names());
    let hosts = ["one.example", "two.example", "other.example"];
    let before = assembly.snapshot(&resolver, []).expect("the first");
    assert!(assembly.snapshot(&resolver, hosts).is_none());
    let address: IpAddr = "192.0.2.1".parse().expect("an address");
    resolver.pretend("one.example", &[address]);
    assert!(assembly.snapshot(&resolver, ["two.example"]).is_none());
    let after = assembly.snapshot(&resolver, hosts).expect("a new one");
    assert!(assembly.snapshot(&resolver, hosts).is_none());
    let table = |snapshot: &Snapshot| {
        let table = snapshot.identities.table(Scope::NONE);
        Arc::clone(table.expect("the common one"))
    };
    assert!(Arc::ptr_eq(&table(&before), &table(&after)));
    let two = route(&before, "m2u2");
    assert!(Arc::ptr_eq(&two, &route(&after, "m2u2")));
    let (old, new) = (route(&before, "m2u"), route(&after, "m2u"));
    assert_eq!(old.upstream.pool, new.upstream.pool);
    assert!(old.upstream.addresses.is_empty());
    assert_eq!(*new.upstream.addresses, [SocketAddr::new(address, 81)]);
    assert_eq!(new.upstream.unresolved, None);
}

#[test]
fn settings_that_cannot_be_used_leave_those_before_in_force() {
    let dir = folder();
    let one = "url = \"https://one.example\"\nca = \"ca.pem\"";
    let fine = settings(&dir, &[one]);
    let mut assembly = Assembly::default();
    let pool = pools(&mut assembly, &fine)[0];
    let new = "url = \"https://two.example\"\nca = \"other-ca.pem\"";
    let mut bad = settings(&dir, &[new, one]);
    bad.accounts[0].servers[1].url.host = "not a name".to_owned();
    assert!(matches!(assembly.adopt(&bad), Err(ReloadError::Host(_))));
    assert_eq!(assembly.pools.len(), 1, "nothing is kept of the others");
    let resolver = Resolver::new(None);
    assert!(assembly.snapshot(&resolver, ["one.example"]).is_none());
    assert_eq!(assembly.names().collect::<Vec<_>>(), ["one.example"]);
    let still = assembly.first_snapshot(&resolver);
    assert_eq!(*route(&still, "m2u").upstream.pool, pool);
}
