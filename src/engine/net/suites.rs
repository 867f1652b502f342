//! The cipher suites that are offered: rustls' own, those of AES-GCM with keys that we share.
//!
//! With a share of its keys we seal and open application data ourselves (`seal.rs`, `open.rs`); rustls does
//! all else, and with every other suite all of it. Whatever the suite, no piece of a handshake is empty.
//! Never offers anything that rustls would not.

use aws_lc_rs::aead;
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, InvalidMessage,
    SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{
        CryptoProvider,
        cipher::{
            AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape,
            MessageDecrypter, MessageEncrypter, Tls12AeadAlgorithm, Tls13AeadAlgorithm,
            UnsupportedOperationError,
        },
    },
};

use super::{open::OpeningKey, seal::SealingKey};
use crate::limits::{SEALED_RECORDS_MAX, TLS_HEADER_BYTES};

/// Bytes of the tag that ends a record.
pub const TAG_BYTES: usize = 16;
/// Bytes of a nonce that a record of TLS 1.2 tells: the other four never change.
const EXPLICIT_NONCE_BYTES: usize = 8;

/// What a version of TLS puts around the ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The nonce's explicit part before it, the tag behind it (RFC 5288 §3).
    Tls12,
    /// The record's type, sealed as well, and the tag behind it (RFC 8446 §5.2).
    Tls13,
}

impl Layout {
    /// Bytes before the ciphertext, header aside.
    pub fn before(self) -> usize {
        match self {
            Self::Tls12 => EXPLICIT_NONCE_BYTES,
            Self::Tls13 => 0,
        }
    }

    /// Bytes behind it.
    pub fn behind(self) -> usize {
        match self {
            Self::Tls12 => TAG_BYTES,
            Self::Tls13 => 1 + TAG_BYTES,
        }
    }

    /// Bytes that a record has beside its plaintext.
    pub fn overhead(self) -> usize {
        TLS_HEADER_BYTES + self.before() + self.behind()
    }
}

/// An AEAD of rustls whose records we look at, and whose keys we share where we know the algorithm.
struct Watched<A: ?Sized + 'static> {
    algorithm: Option<&'static aead::Algorithm>,
    inner: &'static A,
}

impl<A: ?Sized> Watched<A> {
    /// The AEAD of a suite, and what that has in common with others. Keys are shared if they have the length
    /// that the algorithm wants, and the suite's limit leaves room for what we seal.
    fn new(
        inner: &'static A,
        key_bytes: usize,
        common: &CipherSuiteCommon,
    ) -> (&'static Self, CipherSuiteCommon) {
        let limit = common.confidentiality_limit;
        let algorithm = algorithm(common.suite)
            .filter(|algorithm| algorithm.key_len() == key_bytes && limit > SEALED_RECORDS_MAX);
        let taken = algorithm.map_or(0, |_| SEALED_RECORDS_MAX);
        let common = CipherSuiteCommon {
            suite: common.suite,
            hash_provider: common.hash_provider,
            confidentiality_limit: limit - taken,
        };
        (Box::leak(Box::new(Self { algorithm, inner })), common)
    }
}

/// The algorithm of a suite, where we know it.
fn algorithm(suite: CipherSuite) -> Option<&'static aead::Algorithm> {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(&aead::AES_128_GCM),
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(&aead::AES_256_GCM),
        _ => None,
    }
}

/// Opens records, and refuses those that hold an empty piece of a handshake, which nobody may send (RFC 8446
/// §5.1 and §5.4, RFC 5246 §6.2.1): rustls 0.23.46 takes such a record, and loses count of what it has
/// processed. The alert is the one that it has for records that are empty in the clear.
struct Strict(Box<dyn MessageDecrypter>);

impl MessageDecrypter for Strict {
    fn decrypt<'a>(
        &mut self,
        message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let message = self.0.decrypt(message, number)?;
        match message.typ {
            ContentType::Handshake if message.payload.is_empty() => {
                Err(InvalidMessage::InvalidEmptyPayload.into())
            }
            _ => Ok(message),
        }
    }
}

impl Tls12AeadAlgorithm for Watched<dyn Tls12AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, salt: &[u8], first: &[u8]) -> Box<dyn MessageEncrypter> {
        let Some(algorithm) = self.algorithm else {
            return self.inner.encrypter(key, salt, first);
        };
        let mut iv = [0; 12];
        iv[..salt.len()].copy_from_slice(salt);
        iv[salt.len()..].copy_from_slice(first);
        SealingKey::share(algorithm, Layout::Tls12, &key, Iv::new(iv))
    }

    fn decrypter(&self, key: AeadKey, salt: &[u8]) -> Box<dyn MessageDecrypter> {
        let opens = |key| self.inner.decrypter(key, salt);
        let Some(algorithm) = self.algorithm else {
            return Box::new(Strict(opens(key)));
        };
        let mut iv = [0; 12];
        iv[..salt.len()].copy_from_slice(salt);
        let shared = OpeningKey::share(algorithm, Layout::Tls12, key, iv, opens);
        Box::new(Strict(shared))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        self.inner.key_block_shape()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.inner.extract_keys(key, iv, explicit)
    }

    fn fips(&self) -> bool {
        false
    }
}

impl Tls13AeadAlgorithm for Watched<dyn Tls13AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        match self.algorithm {
            Some(algorithm) => SealingKey::share(algorithm, Layout::Tls13, &key, iv),
            None => self.inner.encrypter(key, iv),
        }
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        let mut own = [0; 12];
        own.copy_from_slice(iv.as_ref());
        let opens = |key| self.inner.decrypter(key, iv);
        Box::new(Strict(match self.algorithm {
            Some(algorithm) => OpeningKey::share(algorithm, Layout::Tls13, key, own, opens),
            None => opens(key),
        }))
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

/// The same provider, with keys that are shared where that is worth it, and records that are looked at. Made
/// once a process: rustls wants suites that live for ever.
pub fn share_keys(mut provider: CryptoProvider) -> CryptoProvider {
    for suite in &mut provider.cipher_suites {
        *suite = match suite {
            SupportedCipherSuite::Tls12(tls12) => {
                let inner = tls12.aead_alg;
                let key_bytes = inner.key_block_shape().enc_key_len;
                let (aead_alg, common) = Watched::new(inner, key_bytes, &tls12.common);
                SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                    common,
                    prf_provider: tls12.prf_provider,
                    kx: tls12.kx,
                    sign: tls12.sign,
                    aead_alg,
                })))
            }
            SupportedCipherSuite::Tls13(tls13) => {
                let inner = tls13.aead_alg;
                let (aead_alg, common) = Watched::new(inner, inner.key_len(), &tls13.common);
                SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                    common,
                    hkdf_provider: tls13.hkdf_provider,
                    aead_alg,
                    quic: None,
                })))
            }
        };
    }
    provider
}

#[cfg(test)]
mod tests {
    use rustls::{
        ProtocolVersion,
        crypto::{
            aws_lc_rs,
            cipher::{OutboundChunks, OutboundPlainMessage},
        },
    };

    use super::*;

    /// RSA's among them, with which no test has a certificate.
    #[test]
    fn the_keys_of_all_suites_with_aes_gcm_are_shared() {
        let plain = aws_lc_rs::default_provider();
        let shared = share_keys(plain.clone());
        let limit = |suite: &SupportedCipherSuite| match suite {
            SupportedCipherSuite::Tls12(tls12) => tls12.common.confidentiality_limit,
            SupportedCipherSuite::Tls13(tls13) => tls13.common.confidentiality_limit,
        };
        let (before, after) = (plain.cipher_suites.iter(), shared.cipher_suites.iter());
        for (before, after) in before.zip(after) {
            let is_gcm = format!("{:?}", before.suite()).contains("_GCM_");
            let taken = if is_gcm { SEALED_RECORDS_MAX } else { 0 };
            assert_eq!(limit(after) + taken, limit(before), "{:?}", before.suite());
        }
    }

    /// Those whose keys can be made here: the ones of 32 bytes, AES-256 and ChaCha20.
    #[test]
    fn no_suite_takes_an_empty_piece_of_a_handshake() {
        let shared = share_keys(aws_lc_rs::default_provider());
        let key = || AeadKey::from([7; 32]);
        let mut versions = Vec::new();
        for suite in shared.cipher_suites {
            let (mut sealing, mut opening) = match suite {
                SupportedCipherSuite::Tls12(Tls12CipherSuite { aead_alg, .. }) => {
                    let shape = aead_alg.key_block_shape();
                    if shape.enc_key_len != 32 {
                        continue;
                    }
                    let salt = &[7; 12][..shape.fixed_iv_len];
                    let first = &[7; 12][..shape.explicit_nonce_len];
                    (
                        aead_alg.encrypter(key(), salt, first),
                        aead_alg.decrypter(key(), salt),
                    )
                }
                SupportedCipherSuite::Tls13(Tls13CipherSuite { aead_alg, .. }) => {
                    if aead_alg.key_len() != 32 {
                        continue;
                    }
                    let iv = || Iv::new([7; 12]);
                    (
                        aead_alg.encrypter(key(), iv()),
                        aead_alg.decrypter(key(), iv()),
                    )
                }
            };
            for (number, payload) in [&b"\x04"[..], b""].into_iter().enumerate() {
                let plain = OutboundPlainMessage {
                    typ: ContentType::Handshake,
                    version: ProtocolVersion::TLSv1_2,
                    payload: OutboundChunks::Single(payload),
                };
                let sealed = sealing.encrypt(plain, number as u64).expect("a key");
                let mut record = sealed.encode();
                let kind = record[0].into();
                let opaque = InboundOpaqueMessage::new(
                    kind,
                    ProtocolVersion::TLSv1_2,
                    &mut record[TLS_HEADER_BYTES..],
                );
                let opened = opening.decrypt(opaque, number as u64);
                assert_eq!(opened.is_ok(), !payload.is_empty(), "{suite:?}");
            }
            versions.push(suite.version().version);
        }
        versions.dedup();
        let both = [ProtocolVersion::TLSv1_3, ProtocolVersion::TLSv1_2];
        assert_eq!(versions, both);
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
