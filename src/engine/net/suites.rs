//! The cipher suites that are offered: rustls' own, those of AES-GCM with keys that we share.
//!
//! With a share of its keys we seal and open application data ourselves (`seal.rs`, `open.rs`); rustls does
//! all else, and with every other suite all of it. Never offers anything that rustls would not.

use aws_lc_rs::aead;
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, SupportedCipherSuite,
    Tls12CipherSuite, Tls13CipherSuite,
    crypto::{
        CryptoProvider,
        cipher::{
            AeadKey, Iv, KeyBlockShape, MessageDecrypter, MessageEncrypter, Tls12AeadAlgorithm,
            Tls13AeadAlgorithm, UnsupportedOperationError,
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

/// An AEAD of rustls whose keys we share.
struct Shared<A: ?Sized + 'static> {
    algorithm: &'static aead::Algorithm,
    inner: &'static A,
}

impl<A: ?Sized> Shared<A> {
    /// `None` if the AEAD has keys of another length than `algorithm`.
    fn new(
        algorithm: &'static aead::Algorithm,
        inner: &'static A,
        key_bytes: usize,
    ) -> Option<&'static Self> {
        (algorithm.key_len() == key_bytes).then(|| &*Box::leak(Box::new(Self { algorithm, inner })))
    }
}

impl Tls12AeadAlgorithm for Shared<dyn Tls12AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, salt: &[u8], first: &[u8]) -> Box<dyn MessageEncrypter> {
        let mut iv = [0; 12];
        iv[..salt.len()].copy_from_slice(salt);
        iv[salt.len()..].copy_from_slice(first);
        SealingKey::share(self.algorithm, Layout::Tls12, &key, Iv::new(iv))
    }

    fn decrypter(&self, key: AeadKey, salt: &[u8]) -> Box<dyn MessageDecrypter> {
        let mut iv = [0; 12];
        iv[..salt.len()].copy_from_slice(salt);
        let opens = |key| self.inner.decrypter(key, salt);
        OpeningKey::share(self.algorithm, Layout::Tls12, key, iv, opens)
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

impl Tls13AeadAlgorithm for Shared<dyn Tls13AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        SealingKey::share(self.algorithm, Layout::Tls13, &key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        let mut own = [0; 12];
        own.copy_from_slice(iv.as_ref());
        let opens = |key| self.inner.decrypter(key, iv);
        OpeningKey::share(self.algorithm, Layout::Tls13, key, own, opens)
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

/// The same provider, with keys that are shared where that is worth it. Made once a process:
/// rustls wants suites that live for ever.
pub fn share_keys(mut provider: CryptoProvider) -> CryptoProvider {
    for suite in &mut provider.cipher_suites {
        let algorithm = match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => &aead::AES_128_GCM,
            CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => &aead::AES_256_GCM,
            _ => continue,
        };
        *suite = match suite {
            SupportedCipherSuite::Tls12(tls12) => {
                let Some(common) = with_room(&tls12.common) else {
                    continue;
                };
                let inner = tls12.aead_alg;
                let key_bytes = inner.key_block_shape().enc_key_len;
                let Some(aead_alg) = Shared::new(algorithm, inner, key_bytes) else {
                    continue;
                };
                SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                    common,
                    prf_provider: tls12.prf_provider,
                    kx: tls12.kx,
                    sign: tls12.sign,
                    aead_alg,
                })))
            }
            SupportedCipherSuite::Tls13(tls13) => {
                let Some(common) = with_room(&tls13.common) else {
                    continue;
                };
                let inner = tls13.aead_alg;
                let Some(aead_alg) = Shared::new(algorithm, inner, inner.key_len()) else {
                    continue;
                };
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

/// The same, with a limit that leaves room for what we seal; `None` if nothing would be left.
fn with_room(common: &CipherSuiteCommon) -> Option<CipherSuiteCommon> {
    let left = common.confidentiality_limit.checked_sub(SEALED_RECORDS_MAX);
    Some(CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: left.filter(|left| *left > 0)?,
    })
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;

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
