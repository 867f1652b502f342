//! Application data sealed straight into the buffer that is sent, in one pass over the bytes: rustls
//! would copy them twice besides.
//!
//! rustls does all else, and seals what it has to say itself: the handshake, alerts, new keys. Both
//! number their records by one count, so that no two of a key share a nonce (RFC 8446 §5.3). For TLS
//! 1.3 with AES-GCM; everywhere else rustls seals all. Never opens a record.
//!
//! Read in rustls 0.23.46, to which Cargo.toml is pinned: the sealing key that it makes last is in use
//! from then on, and what it has to say of a new one goes out before its own first record with that.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::aead::{self, Aad, TlsProtocolId, TlsRecordSealingKey};
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite, Tls13CipherSuite,
    crypto::{
        CryptoProvider,
        cipher::{
            AeadKey, Iv, MessageDecrypter, MessageEncrypter, Nonce, OutboundOpaqueMessage,
            OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm, UnsupportedOperationError,
            make_tls13_aad,
        },
    },
};

use crate::limits::{SEALED_RECORDS_MAX, TLS_HEADER_BYTES, TLS_RECORD_BYTES};

/// Bytes of the tag that ends a record.
const TAG_BYTES: usize = 16;
/// Bytes that sealing adds to a piece of plaintext: header, inner type, tag.
const OVERHEAD_BYTES: usize = TLS_HEADER_BYTES + 1 + TAG_BYTES;

thread_local! {
    /// The key that rustls took into use last on this thread: it does not say for which connection.
    static NEWEST: RefCell<Option<Arc<RecordKey>>> = const { RefCell::new(None) };
}

/// The key of one direction of one connection, and how many records it has sealed.
///
/// One core has it to itself; the lock is there because rustls lets its connections change threads.
pub struct RecordKey {
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
    /// The next record's nonce, which no other record of the key gets.
    fn next_nonce(&mut self, iv: &Iv) -> aead::Nonce {
        let number = self.sealed;
        self.sealed += 1;
        aead::Nonce::assume_unique_for_key(Nonce::new(iv, number).0)
    }
}

impl RecordKey {
    /// The key that rustls has taken into use on this thread since the last call, if any.
    pub fn take_newest() -> Option<Arc<Self>> {
        NEWEST.take()
    }

    /// Whether the next `bytes` of plaintext may be sealed here. If not, rustls must seal them: it
    /// is the first to use a key, because only with its own first record does it tell the peer that
    /// there is a new one (RFC 8446 §4.6.3), and the last, because it sees to a new one in time (§5.5).
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
                .get_mut(filled..filled + piece.len() + OVERHEAD_BYTES)
                .ok_or(Error::EncryptError)?;
            filled += record.len();
            let (header, sealed) = record.split_at_mut(TLS_HEADER_BYTES);
            let (ciphertext, end) = sealed.split_at_mut(piece.len());
            // What is authenticated beside it is the record's header (RFC 8446 §5.2).
            let aad = make_tls13_aad(piece.len() + end.len());
            header.copy_from_slice(&aad);
            let kind = [ContentType::ApplicationData.into()];
            let nonce = sealing.next_nonce(&self.iv);
            sealing
                .key
                .seal_out_of_place_scatter(nonce, Aad::from(aad), piece, ciphertext, &kind, end)
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
struct Encrypter(Arc<RecordKey>);

impl MessageEncrypter for Encrypter {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        _number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let length = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(length);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&message.typ.to_array());
        let aad = Aad::from(make_tls13_aad(length));
        let mut sealing = self.0.sealing();
        let nonce = sealing.next_nonce(&self.0.iv);
        let tag = sealing
            .key
            .seal_in_place_separate_tag(nonce, aad, payload.as_mut())
            .map_err(|_| Error::EncryptError)?;
        payload.extend_from_slice(tag.as_ref());
        Ok(OutboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            payload,
        ))
    }

    fn encrypted_payload_len(&self, payload_bytes: usize) -> usize {
        payload_bytes + 1 + TAG_BYTES
    }
}

/// An AEAD of rustls whose sealing keys we share.
struct Shared {
    algorithm: &'static aead::Algorithm,
    inner: &'static dyn Tls13AeadAlgorithm,
}

impl Tls13AeadAlgorithm for Shared {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        let key = TlsRecordSealingKey::new(self.algorithm, TlsProtocolId::TLS13, key.as_ref())
            .expect("a key of the length that was asked for");
        let sealing = Mutex::new(Sealing { key, sealed: 0 });
        let key = Arc::new(RecordKey { iv, sealing });
        NEWEST.set(Some(Arc::clone(&key)));
        Box::new(Encrypter(key))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.inner.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.inner.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.inner.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        false
    }
}

/// The same provider, with sealing keys that are shared where that is worth it. Made once a process:
/// rustls wants suites that live for ever.
pub fn share_keys(mut provider: CryptoProvider) -> CryptoProvider {
    for suite in &mut provider.cipher_suites {
        let algorithm = match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => &aead::AES_128_GCM,
            CipherSuite::TLS13_AES_256_GCM_SHA384 => &aead::AES_256_GCM,
            _ => continue,
        };
        let Some(tls13) = suite.tls13() else {
            continue;
        };
        let limit = tls13.common.confidentiality_limit;
        let Some(confidentiality_limit) = limit.checked_sub(SEALED_RECORDS_MAX) else {
            continue;
        };
        let aead_alg = Box::leak(Box::new(Shared {
            algorithm,
            inner: tls13.aead_alg,
        }));
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
            common: CipherSuiteCommon {
                suite: tls13.common.suite,
                hash_provider: tls13.common.hash_provider,
                confidentiality_limit,
            },
            hkdf_provider: tls13.hkdf_provider,
            aead_alg,
            quic: None,
        })));
    }
    provider
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
        SupportedProtocolVersion,
        crypto::aws_lc_rs,
        version::{TLS12, TLS13},
    };
    use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

    use super::*;

    /// A client that shares its keys, and its server; what crosses between them is at hand.
    struct Pair {
        near: ClientConnection,
        far: ServerConnection,
        key: Option<Arc<RecordKey>>,
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
            RecordKey::take_newest();
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
            if let Some(newest) = RecordKey::take_newest() {
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
        Pair::new(&TLS13, |offered| offered == suite)
    }

    const SUITES: [CipherSuite; 2] = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
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
        let mut pair = with(SUITES[0]);
        pair.say(b"first");
        assert_eq!(pair.opened(), b"first");
        for size in [1, 15, 16, 17, 16_383, 16_384, 16_385, 32_768, 65_537] {
            let text: Vec<u8> = (0..size).map(|index| (index * 7 % 251) as u8).collect();
            pair.seal(&text);
            assert!(pair.opened() == text, "{size} bytes came changed");
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
                let tls13 = found.and_then(SupportedCipherSuite::tls13);
                tls13.expect("a suite").common.confidentiality_limit
            };
            let all = of(aws_lc_rs::ALL_CIPHER_SUITES);
            let left = of(&shared.cipher_suites);
            assert!(all <= 1 << 24 && left + SEALED_RECORDS_MAX <= all);
        }
    }

    #[test]
    fn where_there_is_no_room_nothing_is_sealed_that_could_be_sent() {
        let mut pair = with(SUITES[0]);
        pair.say(b"first");
        let key = pair.key.clone().expect("a key");
        for room in 0..5 + OVERHEAD_BYTES {
            let refused = key.seal(b"plain", &mut vec![0; room]);
            assert!(matches!(refused, Err(Error::EncryptError)), "{room}");
        }
        let mut exact = [0; 5 + OVERHEAD_BYTES];
        assert_eq!(key.seal(b"plain", &mut exact).expect("room"), exact.len());
    }

    #[test]
    fn a_number_that_was_used_is_refused() {
        let mut pair = with(SUITES[0]);
        pair.say(b"first");
        pair.seal(b"second");
        let key = pair.key.clone().expect("a key");
        key.sealing().sealed = 1;
        let refused = key.seal(b"third", &mut [0; 5 + OVERHEAD_BYTES]);
        assert!(matches!(refused, Err(Error::EncryptError)));
    }

    #[test]
    fn other_suites_and_versions_share_nothing() {
        let is_chacha = |suite| suite == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
        for mut pair in [Pair::new(&TLS13, is_chacha), Pair::new(&TLS12, |_| true)] {
            pair.say(b"by rustls alone");
            assert_eq!(pair.opened(), b"by rustls alone");
            assert!(pair.key.is_none());
        }
    }

    #[test]
    fn as_much_is_offered_as_before_and_in_the_same_order() {
        let plain = aws_lc_rs::default_provider();
        let names = |provider: &CryptoProvider| -> Vec<_> {
            let suites = provider.cipher_suites.iter();
            suites.map(SupportedCipherSuite::suite).collect()
        };
        let before = names(&plain);
        assert_eq!(names(&share_keys(plain)), before);
    }
}
