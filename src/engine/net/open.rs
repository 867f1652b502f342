//! Application data opened straight into the reader's buffer: rustls would copy it twice besides, and
//! allocate a buffer a record.
//!
//! rustls opens all that is not plain data: the handshake, alerts, new keys. Both number the records by
//! one count (RFC 8446 §5.3, RFC 5246 §6.2.3.3). A record is left as it came until it has proved to be
//! the next one and to hold nothing but data; whatever else it is, or is not, rustls finds out by itself
//! and says so to the peer. Never seals a record, never judges one.
//!
//! Read in rustls 0.23.46, to which Cargo.toml is pinned: the opening key that it makes last is in use
//! once data may be sent, or, if it is made later, from the next record on.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, UnboundKey};
use rustls::{
    ContentType, Error, ProtocolVersion,
    crypto::cipher::{
        AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, Nonce,
        make_tls12_aad, make_tls13_aad,
    },
};

use super::suites::{Layout, TAG_BYTES};
use crate::limits::{TLS_HEADER_BYTES, TLS_RECORD_BYTES};

thread_local! {
    /// The key that rustls made last on this thread: it does not say for which connection.
    static NEWEST: RefCell<Option<Arc<OpeningKey>>> = const { RefCell::new(None) };
}

/// The key of one direction of one connection, and how many records it has opened.
pub struct OpeningKey {
    layout: Layout,
    iv: [u8; aead::NONCE_LEN],
    key: LessSafeKey,
    /// Records so far; one core has it to itself.
    opened: AtomicU64,
    /// Whether the last of them was one of data, of which there was some.
    follows_data: AtomicBool,
}

impl OpeningKey {
    /// A key of an AEAD that has keys of this length, shared with the half of it that `opens` makes for
    /// rustls. Of the `iv` of TLS 1.2 only the salt counts.
    pub fn share(
        algorithm: &'static aead::Algorithm,
        layout: Layout,
        key: AeadKey,
        iv: [u8; aead::NONCE_LEN],
        opens: impl FnOnce(AeadKey) -> Box<dyn MessageDecrypter>,
    ) -> Box<dyn MessageDecrypter> {
        let unbound = UnboundKey::new(algorithm, key.as_ref());
        let shared = Arc::new(Self {
            layout,
            iv,
            key: LessSafeKey::new(unbound.expect("a key of the length that was asked for")),
            opened: AtomicU64::new(0),
            follows_data: AtomicBool::new(false),
        });
        NEWEST.set(Some(Arc::clone(&shared)));
        Box::new(Decrypter {
            inner: opens(key),
            shared,
        })
    }

    /// The key that rustls has made on this thread since the last call, if any.
    pub fn take_newest() -> Option<Arc<Self>> {
        NEWEST.take()
    }

    /// Whether records may be opened here: what follows a record that was anything but data, or nothing of
    /// it, is left to rustls. It counts such records, until data comes, and joins pieces of a message where
    /// they came, so that what it has read of them must stay.
    pub fn may_open(&self) -> bool {
        self.follows_data.load(Ordering::Relaxed)
    }

    /// Opens `record`, which is a whole one with its header, behind what `sink` holds, if it is the next
    /// one and holds nothing but data, of which there is some, and that fits `room` and the sink as it is.
    /// Whether it did; if not, the sink is as it was, and the record for rustls to open.
    pub fn open(&self, record: &[u8], sink: &mut Vec<u8>, room: usize) -> bool {
        let begin = sink.len();
        let opened = self.append(record, sink, room).filter(|data| *data > 0);
        sink.truncate(begin + opened.unwrap_or(0));
        if opened.is_some() {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }
        opened.is_some()
    }

    /// Appends what the record holds; answers how many bytes of it are data.
    fn append(&self, record: &[u8], sink: &mut Vec<u8>, room: usize) -> Option<usize> {
        let (header, payload) = record.split_at_checked(TLS_HEADER_BYTES)?;
        // The two versions' headers are the same, and name the older one.
        if header != make_tls13_aad(payload.len()) {
            return None;
        }
        let (explicit, sealed) = payload.split_at_checked(self.layout.before())?;
        let (ciphertext, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_BYTES)?)?;
        let (begin, length) = (sink.len(), ciphertext.len());
        let data_max = record.len().checked_sub(self.layout.overhead())?;
        if data_max > room.min(TLS_RECORD_BYTES) || length > sink.capacity() - begin {
            return None;
        }
        sink.resize(begin + length, 0);
        let number = self.opened.load(Ordering::Relaxed);
        let (key, plaintext) = (&self.key, &mut sink[begin..]);
        match self.layout {
            Layout::Tls12 => {
                let mut nonce = self.iv;
                nonce[aead::NONCE_LEN - explicit.len()..].copy_from_slice(explicit);
                let (data, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
                let aad = Aad::from(make_tls12_aad(number, data, version, length));
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                key.open_separate_gather(nonce, aad, ciphertext, tag, plaintext)
                    .ok()?;
                Some(length)
            }
            Layout::Tls13 => {
                let nonce = Nonce::new(&Iv::from(self.iv), number);
                let aad = Aad::from(make_tls13_aad(payload.len()));
                let nonce = aead::Nonce::assume_unique_for_key(nonce.0);
                key.open_separate_gather(nonce, aad, ciphertext, tag, plaintext)
                    .ok()?;
                // Padding, of zeros, is behind the type (RFC 8446 §5.4).
                let kind = plaintext.iter().rposition(|byte| *byte != 0)?;
                let is_data = plaintext[kind] == u8::from(ContentType::ApplicationData);
                is_data.then_some(kind)
            }
        }
    }
}

/// rustls' share of a key.
struct Decrypter {
    inner: Box<dyn MessageDecrypter>,
    shared: Arc<OpeningKey>,
}

impl MessageDecrypter for Decrypter {
    fn decrypt<'a>(
        &mut self,
        message: InboundOpaqueMessage<'a>,
        _number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let OpeningKey {
            opened,
            follows_data,
            ..
        } = &*self.shared;
        let message = self
            .inner
            .decrypt(message, opened.load(Ordering::Relaxed))?;
        opened.fetch_add(1, Ordering::Relaxed);
        let is_data = message.typ == ContentType::ApplicationData && !message.payload.is_empty();
        follows_data.store(is_data, Ordering::Relaxed);
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use rustls::{
        CipherSuite, ClientConfig, ClientConnection, ConnectionTrafficSecrets, RootCertStore,
        ServerConfig, ServerConnection, crypto::aws_lc_rs,
    };
    use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

    use super::{super::suites::share_keys, *};

    const SUITES: [CipherSuite; 4] = [
        CipherSuite::TLS13_AES_128_GCM_SHA256,
        CipherSuite::TLS13_AES_256_GCM_SHA384,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ];

    /// A client that shares its keys, and a server that speaks to it.
    struct Pair {
        near: ClientConnection,
        far: ServerConnection,
        key: Option<Arc<OpeningKey>>,
    }

    impl Pair {
        /// Both, after their handshake and a first word of the server.
        fn new(suite: CipherSuite) -> Self {
            let made = rcgen::generate_simple_self_signed(["server.example".to_owned()]);
            let rcgen::CertifiedKey { cert, signing_key } = made.expect("a certificate");
            let mut provider = share_keys(aws_lc_rs::default_provider());
            let offered = &mut provider.cipher_suites;
            offered.retain(|offered| offered.suite() == suite);
            let version = offered[0].version();
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone()).expect("a root");
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .expect("a version")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
            let mut server =
                ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                    .with_safe_default_protocol_versions()
                    .expect("versions")
                    .with_no_client_auth()
                    .with_single_cert(vec![cert.der().clone()], key.into())
                    .expect("a certificate and its key");
            server.enable_secret_extraction = true;
            let name = ServerName::try_from("server.example").expect("a name");
            let mut pair = Self {
                near: ClientConnection::new(Arc::new(config), name).expect("a client"),
                far: ServerConnection::new(Arc::new(server)).expect("a server"),
                key: None,
            };
            for _ in 0..4 {
                let mut wire = Vec::new();
                pair.near.write_tls(&mut wire).expect("memory");
                pair.far.read_tls(&mut &*wire).expect("memory");
                pair.far.process_new_packets().expect("records that open");
                let wire = pair.said();
                pair.give(&wire);
            }
            let first = pair.say(b"first");
            assert!(pair.give(&first) == b"first" && pair.key().may_open());
            pair
        }

        fn key(&self) -> &OpeningKey {
            self.key.as_ref().expect("a key")
        }

        /// What the server has to say.
        fn said(&mut self) -> Vec<u8> {
            let mut wire = Vec::new();
            while self.far.wants_write() {
                self.far.write_tls(&mut wire).expect("memory");
            }
            wire
        }

        /// The records that hold `text`.
        fn say(&mut self, text: &[u8]) -> Vec<u8> {
            self.far.writer().write_all(text).expect("room");
            self.said()
        }

        /// Has rustls open what is on the wire.
        fn give(&mut self, mut wire: &[u8]) -> Vec<u8> {
            let mut opened = Vec::new();
            while !wire.is_empty() {
                self.near.read_tls(&mut wire).expect("memory");
                self.near.process_new_packets().expect("records that open");
                // It ends with "nothing more yet".
                let _ = self.near.reader().read_to_end(&mut opened);
            }
            if let Some(newest) = OpeningKey::take_newest() {
                self.key = Some(newest);
            }
            opened
        }

        /// Opens one record beside rustls, if that may be.
        fn open(&self, record: &[u8]) -> Option<Vec<u8>> {
            let mut sink = Vec::with_capacity(TLS_RECORD_BYTES + 8);
            sink.extend_from_slice(b"before");
            let opened = self.key().open(record, &mut sink, TLS_RECORD_BYTES);
            let data = sink.strip_prefix(b"before").expect("what was there");
            assert!(opened || data.is_empty(), "something is left behind");
            opened.then(|| data.to_vec())
        }
    }

    #[test]
    fn both_open_with_one_key_in_turn_and_nothing_is_lost() {
        for suite in SUITES {
            let mut pair = Pair::new(suite);
            for round in 0..4 {
                for size in [1, 15, 16, 17, 16_383, 16_384] {
                    let text: Vec<u8> = (0..size).map(|index| (index * 7 % 251) as u8).collect();
                    let (mine, theirs) = (pair.say(&text), pair.say(&text));
                    assert!(pair.open(&mine) == Some(text.clone()), "{suite:?}: {size}");
                    assert!(pair.give(&theirs) == text, "{suite:?}: {size} {round}");
                }
            }
        }
    }

    #[test]
    fn only_the_next_record_opens_and_only_if_it_is_as_it_was_sent() {
        for suite in SUITES {
            let mut pair = Pair::new(suite);
            let (next, later) = (pair.say(b"next"), pair.say(b"later"));
            assert_eq!(pair.open(&later), None);
            for place in 0..next.len() {
                let mut other = next.clone();
                other[place] ^= 1;
                assert_eq!(pair.open(&other), None, "{suite:?}: {place}");
                assert_eq!(pair.open(&next[..place]), None, "{suite:?}: {place}");
            }
            assert_eq!(pair.open(&[&next[..], b"x"].concat()), None);
            assert_eq!(pair.open(&next).as_deref(), Some(&b"next"[..]));
            assert_eq!(pair.open(&next), None, "{suite:?}: twice");
            assert_eq!(pair.give(&later), b"later");
        }
    }

    #[test]
    fn what_is_no_data_is_left_to_rustls_as_it_came() {
        for suite in SUITES {
            let mut pair = Pair::new(suite);
            if SUITES[..2].contains(&suite) {
                let before = pair.key.clone();
                pair.far.refresh_traffic_keys().expect("TLS 1.3");
                let renewal = pair.said();
                assert_eq!(pair.open(&renewal), None);
                pair.give(&renewal);
                assert!(!Arc::ptr_eq(
                    pair.key.as_ref().expect("a key"),
                    before.as_ref().expect("a key")
                ));
                assert!(!pair.key().may_open(), "rustls comes first");
                let first = pair.say(b"by a new key");
                assert_eq!(pair.give(&first), b"by a new key");
                assert!(pair.key().may_open());
            }
            let data = pair.say(b"data");
            pair.far.send_close_notify();
            let end = pair.said();
            assert_eq!(pair.open(&data).as_deref(), Some(&b"data"[..]));
            assert_eq!(pair.open(&end), None);
            assert_eq!(pair.give(&end), b"");
            let mut rest = [0; 1];
            assert_eq!(
                pair.near.reader().read(&mut rest).ok(),
                Some(0),
                "{suite:?}"
            );
        }
    }

    #[test]
    fn without_room_for_all_of_it_nothing_is_opened_and_no_buffer_grows() {
        for suite in SUITES {
            let mut pair = Pair::new(suite);
            let record = pair.say(b"12345678");
            let mut sink = Vec::with_capacity(8);
            assert!(!pair.key().open(&record, &mut sink, 7));
            sink.push(b'0');
            assert!(!pair.key().open(&record, &mut sink, 8));
            assert!(sink == b"0" && sink.capacity() == 8);
            let mut sink = Vec::with_capacity(16);
            assert!(pair.key().open(&record, &mut sink, 8), "{suite:?}");
            assert_eq!(sink, b"12345678");
        }
    }

    /// What no rustls would send: records sealed by hand (RFC 8446 §5.2 and §5.4).
    #[test]
    fn padding_is_taken_off_and_what_is_nothing_but_padding_is_not_data() {
        let pair = Pair::new(SUITES[0]);
        let key = Arc::clone(pair.key.as_ref().expect("a key"));
        let secrets = pair.far.dangerous_extract_secrets().expect("allowed");
        let (number, ConnectionTrafficSecrets::Aes128Gcm { key: secret, iv }) = secrets.tx else {
            panic!("another suite");
        };
        assert_eq!(number, key.opened.load(Ordering::Relaxed));
        let unbound = UnboundKey::new(&aead::AES_128_GCM, secret.as_ref());
        let sealing = LessSafeKey::new(unbound.expect("a key"));
        let open = |inner: &[u8]| {
            let header = make_tls13_aad(inner.len() + TAG_BYTES);
            let number = key.opened.load(Ordering::Relaxed);
            let nonce = Nonce::new(&Iv::copy(iv.as_ref()), number);
            let nonce = aead::Nonce::assume_unique_for_key(nonce.0);
            let mut sealed = inner.to_vec();
            sealing
                .seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed)
                .expect("sealed");
            let mut sink = Vec::with_capacity(2 * TLS_RECORD_BYTES);
            let record = [&header[..], &sealed].concat();
            let opened = key.open(&record, &mut sink, 2 * TLS_RECORD_BYTES);
            assert!(opened || sink.is_empty());
            opened.then_some(sink)
        };
        let padded =
            |data: &[u8], kind: u8, zeros: usize| open(&[data, &[kind], &vec![0; zeros]].concat());
        assert_eq!(padded(b"data", 23, 0).as_deref(), Some(&b"data"[..]));
        assert_eq!(padded(b"data", 23, 1).as_deref(), Some(&b"data"[..]));
        let fits = TLS_RECORD_BYTES - 4;
        assert_eq!(padded(b"d\0t\0", 23, fits).as_deref(), Some(&b"d\0t\0"[..]));
        assert_eq!(
            padded(b"data", 23, fits + 1),
            None,
            "longer than any record"
        );
        assert_eq!(padded(b"", 23, 0), None, "rustls counts those");
        assert_eq!(padded(b"", 23, 9), None);
        assert_eq!(padded(b"", 0, 9), None, "no type at all");
        assert_eq!(padded(b"", 0, 0), None);
        assert_eq!(open(b""), None);
        for kind in [20, 21, 22, 24] {
            assert_eq!(padded(b"data", kind, 3), None, "{kind}");
        }
        assert_eq!(padded(b"more", 23, 0).as_deref(), Some(&b"more"[..]));
    }
}
