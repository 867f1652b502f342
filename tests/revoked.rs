//! Servers whose certificates are held against revocation lists (RFC 5280 §5).

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{
    certificates::{Authority, Leaf, Validity, quoted},
    device,
    gateway::{Gateway, PREAMBLE, account, server},
    upstream::{Upstream, echo},
    wait_until,
    wire::Message,
};

const GET: &str = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
const REVOKED: &str = "A certificate of the server's has been revoked";
const UNKNOWN: &str = "No valid list says whether the server's certificate is revoked";

/// A server with a certificate of `signer`, and a gateway that trusts `root` and has these lists.
struct Scene {
    root: Authority,
    upstream: Upstream,
    gateway: Gateway,
}

impl Scene {
    fn start(root: Authority, leaf: &Leaf, lists: &[String]) -> Self {
        let upstream = Upstream::start_tls(Authority::server_config(leaf, None), echo);
        let path = root.path("lists.pem");
        fs::write(&path, lists.concat()).unwrap();
        let server = format!(
            "{}ca = {}\ncrl = {}\n",
            server("m2u", &format!("https://{}", upstream.address)),
            quoted(&root.pem()),
            quoted(&path),
        );
        let account = account("acme", &server, &[("press-07", "127.0.0.7")]);
        // One core, so that there is one pool.
        let gateway = Gateway::start_with(&format!("{PREAMBLE}{account}"), &["--cores", "0"]);
        Self {
            root,
            upstream,
            gateway,
        }
    }

    fn ask(&self) -> Message {
        device::ask("127.0.0.7", self.gateway.address(), GET)
    }

    /// What the gateway counts a refusal as.
    fn refuses(self, sentence: &str, count: &str) {
        let answer = self.ask();
        assert_eq!(
            (answer.status(), answer.token()),
            (502, Some("tls_certificate_error"))
        );
        assert!(answer.text().starts_with(sentence), "{}", answer.text());
        assert!(self.upstream.requests().is_empty());
        assert_eq!(self.gateway.counts()[&format!("failed.{count}")], 1);
        self.gateway.stop();
    }

    fn accepts(self) {
        assert_eq!(self.ask().status(), 200);
        self.gateway.stop();
    }
}

fn leaf(signer: &Authority) -> Leaf {
    signer.server(&["127.0.0.1"], Validity::Current)
}

#[test]
fn a_certificate_that_its_authority_revoked_is_refused() {
    let root = Authority::new("Root");
    let leaf = leaf(&root);
    let list = root.revoke(&[&leaf.serial], Validity::Current);
    Scene::start(root, &leaf, &[list]).refuses(REVOKED, "certificate_revoked");
}

#[test]
fn a_certificate_that_no_list_names_is_accepted() {
    let root = Authority::new("Root");
    let (fit, revoked) = (leaf(&root), root.server(&["127.0.0.2"], Validity::Current));
    let list = root.revoke(&[&revoked.serial], Validity::Current);
    Scene::start(root, &fit, &[list]).accepts();
}

#[test]
fn without_a_list_of_its_authority_a_certificate_is_refused() {
    let (root, other) = (Authority::new("Root"), Authority::new("Other"));
    let leaf = leaf(&root);
    let list = other.revoke(&[], Validity::Current);
    Scene::start(root, &leaf, &[list]).refuses(UNKNOWN, "revocation_unknown");
}

#[test]
fn a_list_that_only_bears_an_authoritys_name_says_nothing() {
    let (root, forger) = (Authority::new("Root"), Authority::new("Root"));
    let leaf = leaf(&root);
    let list = forger.revoke(&[], Validity::Current);
    Scene::start(root, &leaf, &[list]).refuses(UNKNOWN, "revocation_unknown");
}

#[test]
fn a_list_that_ran_out_is_warned_of_and_costs_its_server_alone() {
    let root = Authority::new("Root");
    let leaf = leaf(&root);
    let list = root.revoke(&[], Validity::Expired);
    let scene = Scene::start(root, &leaf, &[list]);
    let log = scene.gateway.log();
    assert!(log.contains("warning: "), "{log}");
    assert!(log.contains("crl: list 1 of 1 in"), "{log}");
    assert!(log.contains("ran out on Jan  1 "), "{log}");
    scene.refuses(UNKNOWN, "revocation_unknown");
}

#[test]
fn every_authority_of_a_chain_needs_its_list() {
    for (with_root, with_middle, middle_revoked) in [
        (true, true, false),
        (true, false, false),
        (false, true, false),
        (true, true, true),
    ] {
        let root = Authority::new("Root");
        let middle = root.certify("Middle");
        let leaf = leaf(&middle);
        let revoked: &[_] = if middle_revoked {
            &[&middle.serial]
        } else {
            &[]
        };
        let lists = [
            with_root.then(|| root.revoke(revoked, Validity::Current)),
            with_middle.then(|| middle.revoke(&[], Validity::Current)),
        ];
        let lists: Vec<_> = lists.into_iter().flatten().collect();
        let scene = Scene::start(root, &leaf, &lists);
        match (lists.len(), middle_revoked) {
            (2, false) => scene.accepts(),
            (2, true) => scene.refuses(REVOKED, "certificate_revoked"),
            _ => scene.refuses(UNKNOWN, "revocation_unknown"),
        }
    }
}

#[test]
fn a_list_that_a_reload_brings_ends_what_was_accepted_before() {
    let root = Authority::new("Root");
    let leaf = leaf(&root);
    let list = root.revoke(&[], Validity::Current);
    let mut scene = Scene::start(root, &leaf, &[list]);
    assert_eq!(scene.ask().status(), 200);
    assert_eq!(scene.ask().status(), 200);
    assert_eq!(
        (scene.upstream.connections(), scene.upstream.open()),
        (1, 1)
    );
    // The same list again: the connection stays.
    scene.gateway.signal("HUP");
    scene.gateway.wait_for_log("reloaded: ");
    assert_eq!(scene.ask().status(), 200);
    assert_eq!(scene.upstream.connections(), 1);
    let list = scene.root.revoke(&[&leaf.serial], Validity::Current);
    fs::write(scene.root.path("lists.pem"), list).unwrap();
    scene.gateway.signal("HUP");
    wait_until("the second reload", || {
        scene.gateway.log().matches("reloaded: ").count() == 2
    });
    let answer = scene.ask();
    assert!(answer.text().starts_with(REVOKED), "{}", answer.text());
    // What was kept ends as well, and no session of it is resumed.
    wait_until("the end of the kept connection", || {
        scene.upstream.open() == 0
    });
    assert_eq!(scene.upstream.requests().len(), 3);
    scene.gateway.stop();
}
