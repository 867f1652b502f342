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
        atomic::{AtomicU64, Ordering},
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

    /// Whether records may be opened here: the first of a key is left to rustls, which counts how often
    /// a peer renews its key without saying anything with it.
    pub fn may_open(&self) -> bool {
        self.opened.load(Ordering::Relaxed) > 0
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
        let opened = &self.shared.opened;
        let message = self
            .inner
            .decrypt(message, opened.load(Ordering::Relaxed))?;
        opened.fetch_add(1, Ordering::Relaxed);
        Ok(message)
    }
}
