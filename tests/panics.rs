//! A fault in one connection ends that connection; its core serves the others on.

#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    certificates::{Authority, Validity},
    device::Device,
    engine,
    upstream::{Upstream, echo},
    wait_until,
};
use m2u::{config::settings::Slot, snapshot::route::UpstreamTls};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// Brings a fault into the middle of an exchange.
#[derive(Debug)]
struct Faulty;

impl ServerCertVerifier for Faulty {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        panic!("a fault for the test");
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        panic!("a fault for the test");
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        panic!("a fault for the test");
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[test]
fn a_fault_in_one_connection_leaves_the_others_alone() {
    let authority = Authority::new("Customer CA");
    let leaf = authority.server(&["127.0.0.1"], Validity::Current);
    let sound = Upstream::echo();
    let faulty = Upstream::start_tls(Authority::server_config(&leaf, None), echo);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Faulty))
        .with_no_client_auth();
    let tls = UpstreamTls {
        config: Arc::new(config),
        name: "127.0.0.1".try_into().unwrap(),
    };
    let second = Slot::parse(b"m2u2").unwrap();
    let engine = engine::start([
        engine::route(Slot::FIRST, sound.address, None),
        engine::route(second, faulty.address, Some(tls)),
    ]);
    let address = engine.addresses()[0].0;

    let good = "GET / HTTP/1.1\r\nHost: m2u\r\n\r\n";
    let mut before = Device::connect("127.0.0.1", address);
    assert_eq!(before.ask(good).status(), 200);
    for _ in 0..20 {
        let mut struck = Device::connect("127.0.0.1", address);
        struck.send("GET / HTTP/1.1\r\nHost: m2u2\r\n\r\n");
        // A reset: an orderly end could pass for the end of an answer.
        let error = struck.receive_answer(false).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(before.ask(good).status(), 200);
    }
    assert_eq!(
        Device::connect("127.0.0.1", address).ask(good).status(),
        200
    );
    assert!(!engine.is_broken());
    // Each has ended, as what it was, and counts no longer among those that are open.
    let counted = |name: &str| {
        let totals = engine.totals().to_string();
        let mut words = totals.split(' ').filter_map(|word| word.split_once('='));
        let found = words.find(|(known, _)| *known == name);
        found.map(|(_, count)| count.parse::<usize>().unwrap())
    };
    assert_eq!(counted("ended.fault"), Some(20));
    wait_until("only one to be open", || counted("open") == Some(1));

    drop(before);
    engine.drain(Duration::from_secs(10));
    engine.join().unwrap();
}
