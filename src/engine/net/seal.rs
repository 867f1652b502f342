//! Application data sealed straight into the buffer that is sent, in one pass over the bytes: rustls
//! would copy them twice besides.
//!
//! rustls seals what it has to say itself: the handshake, alerts, new keys. Both number their records
//! by one count, so that no two of a key share a nonce (RFC 8446 §5.3, RFC 5288 §3), and each is sealed
//! as the number that it is (RFC 5246 §6.2.3.3). Never opens a record.
//!
//! Read in rustls 0.23.46, to which Cargo.toml is pinned: the sealing key that it makes last is in use
//! once data may be sent, and what it has to say of a new one (ChangeCipherSpec, KeyUpdate) goes out
//! before its own first record with that.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::aead::{self, Aad, TlsProtocolId, TlsRecordSealingKey};
use rustls::{
    ContentType, Error, ProtocolVersion,
    crypto::cipher::{
        AeadKey, Iv, MessageEncrypter, Nonce, OutboundOpaqueMessage, OutboundPlainMessage,
        PrefixedPayload, make_tls12_aad, make_tls13_aad,
    },
};

use super::suites::Layout;
use crate::limits::{SEALED_RECORDS_MAX, TLS_HEADER_BYTES, TLS_RECORD_BYTES};

thread_local! {
    /// The key that rustls made last on this thread: it does not say for which connection.
    static NEWEST: RefCell<Option<Arc<SealingKey>>> = const { RefCell::new(None) };
}

/// The key of one direction of one connection, and how many records it has sealed.
///
/// One core has it to itself; the lock is there because rustls lets its connections change threads.
pub struct SealingKey {
    layout: Layout,
    iv: Iv,
    sealing: Mutex<Sealing>,
}

struct Sealing {
    /// Refuses a nonce that is not above all before: a count gone wrong ends the connection.
    key: TlsRecordSealingKey,
    /// Records so far.
    sealed: u64,
}

impl Sealing {
    /// The next record's number, and its nonce, which no other record of the key gets.
    fn next(&mut self, iv: &Iv) -> (u64, Nonce) {
        let number = self.sealed;
        self.sealed += 1;
        (number, Nonce::new(iv, number))
    }
}

impl SealingKey {
    /// A key of an AEAD that has keys of this length, shared with rustls' half of it.
    pub fn share(
        algorithm: &'static aead::Algorithm,
        layout: Layout,
        key: &AeadKey,
        iv: Iv,
    ) -> Box<dyn MessageEncrypter> {
        // For both versions: nonces are made as 1.3 makes them, by an exclusive or.
        let key = TlsRecordSealingKey::new(algorithm, TlsProtocolId::TLS13, key.as_ref())
            .expect("a key of the length that was asked for");
        let sealing = Mutex::new(Sealing { key, sealed: 0 });
        let key = Arc::new(Self {
            layout,
            iv,
            sealing,
        });
        NEWEST.set(Some(Arc::clone(&key)));
        Box::new(Encrypter(key))
    }

    /// The key that rustls has made on this thread since the last call, if any.
    pub fn take_newest() -> Option<Arc<Self>> {
        NEWEST.take()
    }

    /// Whether the next `bytes` of plaintext may be sealed here. If not, rustls must seal them: it
    /// is the first to use a key, because only with its own first record does it tell the peer that
    /// there is a new one (RFC 8446 §4.6.3), and the last, because it sees to a new one in time (§5.5),
    /// or in TLS 1.2 to the connection's end.
    pub fn may_seal(&self, bytes: usize) -> bool {
        let sealed = self.sealing().sealed;
        let records = bytes.div_ceil(TLS_RECORD_BYTES) as u64;
        sealed > 0 && sealed + records <= SEALED_RECORDS_MAX
    }

    /// Seals all of `plaintext` into the beginning of `space`; answers the bytes it takes there.
    ///
    /// # Errors
    /// `EncryptError`: the space is too small, or the plaintext can't be sealed. The connection must
    /// not go on.
    pub fn seal(&self, plaintext: &[u8], space: &mut [u8]) -> Result<usize, Error> {
        let mut sealing = self.sealing();
        let mut filled = 0;
        for piece in plaintext.chunks(TLS_RECORD_BYTES) {
            let record = space
                .get_mut(filled..filled + piece.len() + self.layout.overhead())
                .ok_or(Error::EncryptError)?;
            filled += record.len();
            let (header, sealed) = record.split_at_mut(TLS_HEADER_BYTES);
            // The two versions' headers are the same, and that is what 1.3 authenticates.
            let header_bytes = make_tls13_aad(sealed.len());
            header.copy_from_slice(&header_bytes);
            let (before, sealed) = sealed.split_at_mut(self.layout.before());
            let (ciphertext, end) = sealed.split_at_mut(piece.len());
            let (number, nonce) = sealing.next(&self.iv);
            before.copy_from_slice(explicit(&nonce, self.layout));
            let nonce = aead::Nonce::assume_unique_for_key(nonce.0);
            let (data, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
            let key = &mut sealing.key;
            match self.layout {
                Layout::Tls12 => {
                    let aad = Aad::from(make_tls12_aad(number, data, version, piece.len()));
                    key.seal_out_of_place_scatter(nonce, aad, piece, ciphertext, &[], end)
                }
                Layout::Tls13 => {
                    let (aad, kind) = (Aad::from(header_bytes), [data.into()]);
                    key.seal_out_of_place_scatter(nonce, aad, piece, ciphertext, &kind, end)
                }
            }
            .map_err(|_| Error::EncryptError)?;
        }
        Ok(filled)
    }

    fn sealing(&self) -> MutexGuard<'_, Sealing> {
        // A number that was taken is spent, whatever became of its record.
        self.sealing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// rustls' share of a key.
struct Encrypter(Arc<SealingKey>);

impl MessageEncrypter for Encrypter {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        _number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let SealingKey { layout, iv, .. } = &*self.0;
        let length = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(length);
        let mut sealing = self.0.sealing();
        let (number, nonce) = sealing.next(iv);
        payload.extend_from_slice(explicit(&nonce, *layout));
        payload.extend_from_chunks(&message.payload);
        let nonce = aead::Nonce::assume_unique_for_key(nonce.0);
        let key = &mut sealing.key;
        let (tag, kind, version) = match layout {
            Layout::Tls12 => {
                let (kind, version) = (message.typ, message.version);
                let aad = Aad::from(make_tls12_aad(number, kind, version, message.payload.len()));
                let sealed = &mut payload.as_mut()[layout.before()..];
                (
                    key.seal_in_place_separate_tag(nonce, aad, sealed),
                    kind,
                    version,
                )
            }
            Layout::Tls13 => {
                payload.extend_from_slice(&message.typ.to_array());
                let aad = Aad::from(make_tls13_aad(length));
                let tag = key.seal_in_place_separate_tag(nonce, aad, payload.as_mut());
                (tag, ContentType::ApplicationData, ProtocolVersion::TLSv1_2)
            }
        };
        payload.extend_from_slice(tag.map_err(|_| Error::EncryptError)?.as_ref());
        Ok(OutboundOpaqueMessage::new(kind, version, payload))
    }

    fn encrypted_payload_len(&self, payload_bytes: usize) -> usize {
        self.0.layout.before() + payload_bytes + self.0.layout.behind()
    }
}

/// What a record tells of its nonce.
fn explicit(nonce: &Nonce, layout: Layout) -> &[u8] {
    &nonce.0[nonce.0.len() - layout.before()..]
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::{
        CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
        SupportedCipherSuite, SupportedProtocolVersion,
        crypto::aws_lc_rs,
        version::{TLS12, TLS13},
    };
    use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

    use super::{super::suites::share_keys, *};

    /// A client that shares its keys, and its server; what crosses between them is at hand.
    struct Pair {
        near: ClientConnection,
        far: ServerConnection,
        key: Option<Arc<SealingKey>>,
        /// What the server has opened and nobody has asked for yet.
        opened: Vec<u8>,
    }

    impl Pair {
        /// Both, after their handshake, with one version and the suites that `is_wanted` leaves.
        fn new(
            version: &'static SupportedProtocolVersion,
            is_wanted: impl Fn(CipherSuite) -> bool,
        ) -> Self {
            let made = rcgen::generate_simple_self_signed(["server.example".to_owned()]);
            let rcgen::CertifiedKey { cert, signing_key } = made.expect("a certificate");
            let mut provider = share_keys(aws_lc_rs::default_provider());
            let offered = &mut provider.cipher_suites;
            offered.retain(|suite| is_wanted(suite.suite()));
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone()).expect("a root");
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .expect("a version")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let server = Arc::new(aws_lc_rs::default_provider());
            let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
            let server = ServerConfig::builder_with_provider(server)
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key.into())
                .expect("a certificate and its key");
            let name = ServerName::try_from("server.example").expect("a name");
            SealingKey::take_newest();
            let mut pair = Self {
                near: ClientConnection::new(Arc::new(config), name).expect("a client"),
                far: ServerConnection::new(Arc::new(server)).expect("a server"),
                key: None,
                opened: Vec::new(),
            };
            for _ in 0..4 {
                pair.send();
                pair.receive();
            }
            assert!(!pair.near.is_handshaking() && !pair.far.is_handshaking());
            pair
        }

        /// What rustls has to say crosses to the server.
        fn send(&mut self) {
            let mut wire = Vec::new();
            self.near.write_tls(&mut wire).expect("memory");
            self.deliver(&wire);
        }

        fn deliver(&mut self, mut wire: &[u8]) {
            while !wire.is_empty() {
                self.far.read_tls(&mut wire).expect("memory");
                self.far.process_new_packets().expect("records that open");
                // It ends with "nothing more yet".
                let _ = self.far.reader().read_to_end(&mut self.opened);
            }
        }

        /// What the server has to say crosses to the client.
        fn receive(&mut self) {
            let mut wire = Vec::new();
            self.far.write_tls(&mut wire).expect("memory");
            self.near.read_tls(&mut &*wire).expect("memory");
            self.near.process_new_packets().expect("records that open");
            if let Some(newest) = SealingKey::take_newest() {
                self.key = Some(newest);
            }
        }

        /// Has rustls seal `text`.
        fn say(&mut self, text: &[u8]) {
            self.near.writer().write_all(text).expect("room");
            self.send();
        }

        /// Seals `text` beside rustls.
        fn seal(&mut self, text: &[u8]) {
            let key = self.key.as_ref().expect("a key");
            assert!(key.may_seal(text.len()));
            let mut wire = vec![0; text.len() + (text.len() / TLS_RECORD_BYTES + 1) * 64];
            let sealed = key.seal(text, &mut wire).expect("room");
            self.deliver(&wire[..sealed]);
        }

        /// All that the server has opened since it was asked last.
        fn opened(&mut self) -> Vec<u8> {
            std::mem::take(&mut self.opened)
        }
    }

    fn with(suite: CipherSuite) -> Pair {
        let is_older = suite != SUITES[0] && suite != SUITES[1];
        let version = if is_older { &TLS12 } else { &TLS13 };
        Pair::new(version, |offered| offered == suite)
    }

    const SUITES: [CipherSuite; 4] = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ];

    #[test]
    fn both_seal_with_one_key_in_turn_and_the_server_opens_all_in_order() {
        for suite in SUITES {
            let mut pair = with(suite);
            pair.say(b"one ");
            pair.seal(b"two ");
            pair.seal(b"three ");
            pair.say(b"four ");
            pair.seal(b"five");
            assert_eq!(pair.opened(), b"one two three four five", "{suite:?}");
        }
    }

    #[test]
    fn pieces_of_any_size_arrive_as_they_are() {
        for suite in SUITES {
            let mut pair = with(suite);
            pair.say(b"first");
            assert_eq!(pair.opened(), b"first");
            for size in [1, 15, 16, 17, 16_383, 16_384, 16_385, 32_768, 65_537] {
                let text: Vec<u8> = (0..size).map(|index| (index * 7 % 251) as u8).collect();
                pair.seal(&text);
                assert!(
                    pair.opened() == text,
                    "{suite:?}: {size} bytes came changed"
                );
            }
        }
    }

    #[test]
    fn a_new_key_is_first_used_by_rustls_and_then_by_both() {
        let mut pair = with(SUITES[0]);
        pair.say(b"old ");
        pair.seal(b"old ");
        let mut before = pair.key.clone().expect("a key");
        for _ in 0..3 {
            pair.far.refresh_traffic_keys().expect("TLS 1.3");
            pair.receive();
            let key = pair.key.clone().expect("a key");
            assert!(
                !Arc::ptr_eq(&key, &before),
                "the server asked for a new one"
            );
            assert!(!key.may_seal(1), "the server has not heard of it yet");
            pair.say(b"new ");
            pair.seal(b"new ");
            before = key;
        }
        assert_eq!(pair.opened(), b"old old new new new new new new ");
    }

    #[test]
    fn a_key_is_left_to_rustls_before_it_has_sealed_too_much() {
        let mut pair = with(SUITES[0]);
        pair.say(b"first");
        let key = pair.key.clone().expect("a key");
        key.sealing().sealed = SEALED_RECORDS_MAX - 2;
        assert!(key.may_seal(2 * TLS_RECORD_BYTES));
        assert!(!key.may_seal(2 * TLS_RECORD_BYTES + 1));
        let shared = share_keys(aws_lc_rs::default_provider());
        for suite in SUITES {
            let of = |offered: &[SupportedCipherSuite]| {
                let found = offered.iter().find(|offered| offered.suite() == suite);
                match found.expect("a suite") {
                    SupportedCipherSuite::Tls12(tls12) => tls12.common.confidentiality_limit,
                    SupportedCipherSuite::Tls13(tls13) => tls13.common.confidentiality_limit,
                }
            };
            let all = of(aws_lc_rs::ALL_CIPHER_SUITES);
            let left = of(&shared.cipher_suites);
            assert!(all <= 1 << 24 && left + SEALED_RECORDS_MAX <= all);
        }
    }

    #[test]
    fn where_there_is_no_room_nothing_is_sealed_that_could_be_sent() {
        for suite in SUITES {
            let mut pair = with(suite);
            pair.say(b"first");
            let key = pair.key.clone().expect("a key");
            let exact = 5 + key.layout.overhead();
            for room in 0..exact {
                let refused = key.seal(b"plain", &mut vec![0; room]);
                assert!(matches!(refused, Err(Error::EncryptError)), "{room}");
            }
            let sealed = key.seal(b"plain", &mut vec![0; exact]);
            assert_eq!(sealed.expect("room"), exact);
        }
    }

    #[test]
    fn a_number_that_was_used_is_refused() {
        for suite in SUITES {
            let mut pair = with(suite);
            pair.say(b"first");
            pair.seal(b"second");
            let key = pair.key.clone().expect("a key");
            key.sealing().sealed = 1;
            let refused = key.seal(b"third", &mut [0; 64]);
            assert!(matches!(refused, Err(Error::EncryptError)), "{suite:?}");
        }
    }

    #[test]
    fn other_suites_share_nothing() {
        let chacha = [
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
        for version in [&TLS13, &TLS12] {
            let mut pair = Pair::new(version, |suite| chacha.contains(&suite));
            pair.say(b"by rustls alone");
            assert_eq!(pair.opened(), b"by rustls alone");
            assert!(pair.key.is_none());
        }
    }
}
