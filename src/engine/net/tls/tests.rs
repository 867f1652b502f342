//! Tests of TLS sessions, against rustls' server and without sockets.

use std::io::{Read, Write};

use rustls::{
    CipherSuite, CipherSuiteCommon, ContentType, HandshakeKind, ProtocolVersion, RootCertStore,
    ServerConfig, ServerConnection, SupportedCipherSuite, Tls13CipherSuite,
    crypto::{
        CryptoProvider, aws_lc_rs,
        cipher::{AeadKey, Iv, OutboundChunks, OutboundPlainMessage},
    },
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{super::suites::share_keys, *};
use crate::limits::SEALED_RECORDS_MAX;

mod forged;
mod pieces;

/// A server's certificate, the configurations of both ends, and what they are to do.
struct Setup {
    near: ClientConfig,
    far: ServerConfig,
}

/// AES-128 alone, with keys that rustls renews after `records` of its own.
fn offered(records: u64) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    let tls13 = provider.cipher_suites[0].tls13().expect("a suite");
    let short = Tls13CipherSuite {
        common: CipherSuiteCommon {
            confidentiality_limit: SEALED_RECORDS_MAX + records,
            ..tls13.common
        },
        ..*tls13
    };
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(short)))];
    Arc::new(share_keys(provider))
}

/// AES-128 alone, of the older version.
fn offered_of_tls12() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let only = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
    provider.cipher_suites.retain(|suite| suite.suite() == only);
    Arc::new(share_keys(provider))
}

fn setup(provider: Arc<CryptoProvider>, asks_for_certificate: bool) -> Setup {
    let made = rcgen::generate_simple_self_signed(["server.example".to_owned()]);
    let rcgen::CertifiedKey { cert, signing_key } = made.expect("a certificate");
    let certificate: CertificateDer<'static> = cert.der().clone();
    let key = || PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a root");
    let roots = Arc::new(roots);
    let version = provider.cipher_suites[0].version();
    let near = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(Arc::clone(&roots));
    let near = match asks_for_certificate {
        true => near.with_client_auth_cert(vec![certificate.clone()], key().into()),
        false => Ok(near.with_no_client_auth()),
    };
    let own = Arc::new(aws_lc_rs::default_provider());
    let far = ServerConfig::builder_with_provider(Arc::clone(&own))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let far = match asks_for_certificate {
        true => far.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(roots, own)
                .build()
                .expect("a verifier"),
        ),
        false => far.with_no_client_auth(),
    };
    Setup {
        near: near.expect("a certificate and its key"),
        far: far
            .with_single_cert(vec![certificate], key().into())
            .expect("a certificate and its key"),
    }
}

/// A session and its server, with nothing but memory between them.
struct Pair {
    near: Session,
    far: ServerConnection,
    /// What the server opened.
    arrived: Vec<u8>,
    /// What the session opened.
    answered: Vec<u8>,
}

impl Pair {
    /// Both, after their handshake.
    fn new(near: &Arc<ClientConfig>, far: &Arc<ServerConfig>) -> Self {
        let name = ServerName::try_from("server.example").expect("a name");
        let mut pair = Self {
            near: Session::new(Arc::clone(near), name).expect("a client"),
            far: ServerConnection::new(Arc::clone(far)).expect("a server"),
            arrived: Vec::new(),
            answered: Vec::new(),
        };
        while pair.write(&[]) == Progress::Blocked {
            pair.send();
            pair.receive();
        }
        pair
    }

    fn write(&mut self, text: &[u8]) -> Progress {
        let progress = self.near.advance(&mut Vec::new(), 0, text);
        assert_no_key_is_left();
        self.answered.append(&mut self.near.spill);
        progress.expect("a session")
    }

    /// Has rustls seal `text`, as it does when a key of ours has sealed enough.
    fn say(&mut self, text: &[u8]) {
        let key = self.near.sealing.take();
        self.write(text);
        self.near.sealing = self.near.sealing.take().or(key);
    }

    fn read(&mut self, room: usize) {
        let mut sink = Vec::with_capacity(room + 1);
        self.answered.append(&mut self.near.spill);
        self.near.advance(&mut sink, room, &[]).expect("a session");
        assert_no_key_is_left();
        self.answered.append(&mut sink);
        self.answered.append(&mut self.near.spill);
    }

    /// What waits in the session crosses to the server.
    fn send(&mut self) {
        self.try_send().expect("records that open");
    }

    fn try_send(&mut self) -> Result<(), rustls::Error> {
        let filled = std::mem::take(&mut self.near.sealed);
        let mut wire = &self.near.outgoing[..filled];
        while !wire.is_empty() {
            self.far.read_tls(&mut wire).expect("memory");
            self.far.process_new_packets()?;
            // It ends with "nothing more yet".
            let _ = self.far.reader().read_to_end(&mut self.arrived);
        }
        Ok(())
    }

    /// What the server has to say waits in the session.
    fn receive(&mut self) {
        while self.far.wants_write() {
            self.far.write_tls(&mut self.near.incoming).expect("memory");
        }
    }

    /// Whether a record of data that is received next is opened beside rustls.
    fn opens(&self) -> bool {
        let may_open = self.near.opening.as_ref().is_some_and(|key| key.may_open());
        may_open && self.near.is_settled && self.near.spill.is_empty()
    }

    /// Whether what is sent next is sealed beside rustls.
    fn seals(&self) -> bool {
        self.near
            .sealing
            .as_ref()
            .is_some_and(|key| key.may_seal(1))
    }
}

fn assert_no_key_is_left() {
    let is_left = SealingKey::take_newest().is_some() || OpeningKey::take_newest().is_some();
    assert!(!is_left, "a key is left behind");
}

/// Numbers that look like chance and are always the same.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn text(&mut self, length_max: u64) -> Vec<u8> {
        let length = 1 + self.below(length_max);
        (0..length)
            .map(|_| self.0 as u8 ^ self.below(256) as u8)
            .collect()
    }
}

#[test]
fn connections_of_a_thread_keep_apart_whatever_happens_in_whatever_order() {
    keep_apart(offered(8), true);
    keep_apart(offered_of_tls12(), false);
}

fn keep_apart(offered: Arc<CryptoProvider>, renews: bool) {
    let setup = setup(offered, false);
    let (near, far) = (Arc::new(setup.near), Arc::new(setup.far));
    let (mut sealed_here, mut opened_here) = (0, 0);
    for seed in 0..32 {
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15 >> seed);
        let mut pairs: Vec<Pair> = (0..3).map(|_| Pair::new(&near, &far)).collect();
        let mut said = vec![(Vec::new(), Vec::new()); pairs.len()];
        for _ in 0..200 {
            let index = chance.below(pairs.len() as u64) as usize;
            let (pair, (asked, answer)) = (&mut pairs[index], &mut said[index]);
            match chance.below(11) {
                0..3 => {
                    let text = chance.text(40_000);
                    sealed_here += u32::from(pair.seals());
                    pair.write(&text);
                    asked.extend(text);
                }
                3 => {
                    let text = chance.text(20_000);
                    pair.say(&text);
                    asked.extend(text);
                }
                // Refused by a server that has yet to hear the end of the handshake.
                4 if pair.far.is_handshaking() || !renews => {}
                4 => {
                    pair.far.refresh_traffic_keys().expect("TLS 1.3");
                    pair.receive();
                }
                5 => {
                    let text = chance.text(15_000);
                    pair.far.writer().write_all(&text).expect("room");
                    pair.receive();
                    answer.extend(text);
                }
                6 | 9 | 10 => {
                    let waits = pair.opens() && !pair.near.incoming.is_empty();
                    opened_here += u32::from(waits);
                    pair.read(16_384);
                }
                7 => pair.read(1),
                _ => {
                    pair.send();
                    pair.receive();
                }
            }
        }
        for (pair, (asked, answer)) in pairs.iter_mut().zip(&said) {
            for _ in 0..4 {
                pair.write(&[]);
                pair.send();
                pair.receive();
            }
            assert!(pair.arrived == *asked && pair.answered == *answer, "{seed}");
        }
    }
    assert!(
        sealed_here > 1_000,
        "only {sealed_here} were not left to rustls"
    );
    assert!(
        opened_here > 100,
        "only {opened_here} were not left to rustls"
    );
}

#[test]
fn a_key_that_rustls_renews_of_itself_is_taken_over() {
    let setup = setup(offered(4), false);
    let mut pair = Pair::new(&Arc::new(setup.near), &Arc::new(setup.far));
    pair.write(b"a");
    let before = pair.near.sealing.clone().expect("a key");
    for text in [b"b", b"c", b"d"] {
        assert!(Arc::ptr_eq(
            &before,
            pair.near.sealing.as_ref().expect("a key")
        ));
        pair.write(b"-");
        pair.say(text);
    }
    assert!(!Arc::ptr_eq(
        &before,
        pair.near.sealing.as_ref().expect("a key")
    ));
    assert!(pair.seals(), "rustls has told the server");
    pair.write(b"e");
    pair.send();
    assert_eq!(pair.arrived, b"a-b-c-de");
}

#[test]
fn a_key_that_another_connection_left_is_not_used() {
    let setup = setup(offered(100), false);
    let mut pair = Pair::new(&Arc::new(setup.near), &Arc::new(setup.far));
    pair.write(b"one ");
    let provider = share_keys(aws_lc_rs::default_provider());
    let is_aes_256 =
        |suite: &&SupportedCipherSuite| suite.suite() == CipherSuite::TLS13_AES_256_GCM_SHA384;
    let suite = provider.cipher_suites.iter().find(is_aes_256);
    let mut strange = suite
        .and_then(SupportedCipherSuite::tls13)
        .expect("a suite")
        .aead_alg
        .encrypter(AeadKey::from([7; 32]), Iv::from([7; 12]));
    let record = OutboundPlainMessage {
        typ: ContentType::ApplicationData,
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(b"used"),
    };
    strange.encrypt(record, 0).expect("a record");
    pair.write(b"two ");
    pair.write(b"three");
    pair.send();
    assert_eq!(pair.arrived, b"one two three");
}

#[test]
fn an_alert_follows_the_new_key_that_it_is_sealed_with() {
    let setup = setup(offered(100), false);
    let mut pair = Pair::new(&Arc::new(setup.near), &Arc::new(setup.far));
    pair.write(b"one ");
    pair.write(b"two ");
    pair.send();
    pair.far.refresh_traffic_keys().expect("TLS 1.3");
    pair.receive();
    pair.far.refresh_traffic_keys().expect("TLS 1.3");
    pair.receive();
    let garbage = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
    pair.near.incoming.extend(garbage);
    let failure = pair.near.advance(&mut Vec::new(), 0, b"three");
    assert!(matches!(failure, Err(rustls::Error::DecryptError)));
    assert!(pair.near.advance(&mut Vec::new(), 0, b"four").is_err());
    let seen = pair.try_send();
    let alert = rustls::AlertDescription::BadRecordMac;
    assert_eq!(seen, Err(rustls::Error::AlertReceived(alert)));
    assert_eq!(pair.arrived, b"one two ");
}

#[test]
fn every_handshake_leads_to_a_key_that_the_server_knows() {
    for (asks_for_certificate, retries) in [(false, false), (true, false), (true, true)] {
        let mut setup = setup(offered(100), asks_for_certificate);
        if retries {
            let mut provider = aws_lc_rs::default_provider();
            let p384 = rustls::NamedGroup::secp384r1;
            provider.kx_groups.retain(|group| group.name() == p384);
            let kept = setup.far.cert_resolver.clone();
            let verifier = WebPkiClientVerifier::no_client_auth();
            setup.far = ServerConfig::builder_with_provider(Arc::new(provider))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(kept);
        }
        let (near, far) = (Arc::new(setup.near), Arc::new(setup.far));
        for round in 0..2 {
            let mut pair = Pair::new(&near, &far);
            let kind = pair.near.connection.handshake_kind();
            let expected = match (round, retries) {
                (0, false) => HandshakeKind::Full,
                (0, true) => HandshakeKind::FullWithHelloRetryRequest,
                _ => HandshakeKind::Resumed,
            };
            assert_eq!(kind, Some(expected), "{asks_for_certificate} {retries}");
            assert!(!pair.seals(), "rustls comes first");
            pair.write(b"one ");
            assert!(pair.seals());
            pair.write(b"two");
            pair.send();
            pair.receive();
            pair.read(1);
            assert_eq!(pair.arrived, b"one two");
        }
    }
}

#[test]
fn a_goodbye_is_said_where_nothing_else_is_under_way() {
    type Disturb = fn(&mut Pair);
    let cases: [(&str, bool, Disturb); 7] = [
        ("nothing", true, |_| {}),
        ("new keys of the server", true, |pair| {
            // TLS 1.2 has none.
            let _ = pair.far.refresh_traffic_keys();
            pair.receive();
            pair.read(1);
        }),
        ("the server's goodbye", true, |pair| {
            pair.far.send_close_notify();
            pair.receive();
            pair.read(1);
        }),
        ("a record that is being sent", false, |pair| {
            pair.near.is_sending = true;
        }),
        ("a part of a record", false, |pair| {
            pair.near.incoming.extend_from_slice(&[23, 3, 3]);
        }),
        ("a session that failed", false, |pair| {
            // Of ours: rustls knows of none.
            pair.near.failure = Some(rustls::Error::General("too much".into()));
        }),
        ("a handshake", false, |pair| {
            let config = setup(offered(8), false).near;
            let name = ServerName::try_from("server.example").expect("a name");
            pair.near = Session::new(Arc::new(config), name).expect("a client");
        }),
    ];
    for provider in [offered(8), offered_of_tls12()] {
        let setup = setup(provider, false);
        let (near, far) = (Arc::new(setup.near), Arc::new(setup.far));
        for (name, is_said, disturb) in cases {
            let mut pair = Pair::new(&near, &far);
            pair.write(b"asked");
            pair.send();
            pair.far.writer().write_all(b"answer").expect("room");
            pair.receive();
            pair.read(10);
            disturb(&mut pair);
            pair.near.seal_goodbye();
            assert_eq!(pair.near.sealed > 0, is_said, "{name}");
            pair.send();
            let state = pair.far.process_new_packets().expect("records that open");
            assert_eq!(state.peer_has_closed(), is_said, "{name}");
            assert_eq!(
                (&*pair.arrived, &*pair.answered),
                (&b"asked"[..], &b"answer"[..])
            );
        }
    }
}
