//! Trust, revocation lists and client certificates of servers -> TLS configurations.
//!
//! Two servers with the same roots, lists and client certificate share one configuration; two that
//! differ in any of them never do. Sessions are shared by no two pools. No byte of a key gets into a message.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use rustls::{
    CipherSuite, ClientConfig, RootCertStore,
    client::{Resumption, VerifierBuilderError, WebPkiServerVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::CertificateDer;

use crate::{
    config::settings::{ClientCertificate, RevocationLists, Trust},
    limits,
};

/// The only protocol the gateway speaks to servers (RFC 7301 §6). It is offered so that a server
/// which can do more never picks HTTP/2; a server without ALPN is fine.
const PROTOCOL: &[u8] = b"http/1.1";

/// Number of what one configuration is made of; never given to anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrustId(u32);

/// A TLS configuration. Its `Debug` shows nothing of the certificate and its key.
#[derive(Clone)]
pub struct Trusted {
    /// Which one.
    pub id: TrustId,
    /// It resumes no sessions.
    config: Arc<ClientConfig>,
    /// Lists are looked at: what a session was made with may have been revoked since.
    has_lists: bool,
}

impl Trusted {
    /// The configuration for one set of connections, on all cores. Its sessions are its own: another
    /// account's server of the same name, at an address which that account chose, is shown none of them.
    /// Where lists are looked at there are none: a session is resumed without a look at the certificate.
    pub fn for_one_pool(&self) -> Arc<ClientConfig> {
        if self.has_lists {
            return Arc::clone(&self.config);
        }
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::in_memory_sessions(limits::TLS_SESSIONS_PER_POOL);
        Arc::new(config)
    }
}

impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trusted")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Every TLS configuration in use, by value of what makes it.
#[derive(Debug)]
pub struct TrustStore {
    provider: Arc<CryptoProvider>,
    roots: HashMap<Vec<CertificateDer<'static>>, Roots>,
    /// The system's roots, once some server needed them.
    system: Option<Roots>,
    verifiers: HashMap<Anchors, Arc<WebPkiServerVerifier>>,
    configs: HashMap<Parts, Trusted>,
    roots_next: u32,
    trust_next: u32,
}

/// One set of roots.
#[derive(Debug, Clone)]
struct Roots {
    id: u32,
    store: Arc<RootCertStore>,
}

/// What a server's certificate is held against: roots, and the digest of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Anchors {
    roots: u32,
    revoked: Option<[u8; 32]>,
}

/// What a configuration is made of.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Parts {
    anchors: Anchors,
    client: Option<Shown>,
}

/// A client certificate that is compared by what it holds, not by where it was read.
#[derive(Debug)]
struct Shown(Arc<ClientCertificate>);

impl PartialEq for Shown {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.chain == other.0.chain && self.0.key == other.0.key)
    }
}

impl Eq for Shown {}

impl Hash for Shown {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.chain.hash(state);
    }
}

/// Why there is no TLS configuration.
#[derive(Debug)]
pub enum TrustError {
    /// The system has no root certificates.
    NoSystemRoots {
        /// What went wrong first while they were looked for.
        cause: Option<String>,
    },
    /// rustls refused the lists that the configuration check had let pass.
    RefusedLists {
        /// Their file.
        path: Option<String>,
        /// What rustls says.
        error: VerifierBuilderError,
    },
    /// Likewise, the client certificate.
    Refused {
        /// The client certificate's file.
        certificate: Option<String>,
        /// What rustls says.
        error: rustls::Error,
    },
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSystemRoots { cause } => {
                f.write_str("this system has no root certificates")?;
                if let Some(cause) = cause {
                    write!(f, " ({cause})")?;
                }
                f.write_str(
                    ", and a server without its own ca needs them; install them: apt install \
                     ca-certificates",
                )
            }
            Self::RefusedLists { path, error } => match path {
                Some(path) => write!(f, "the revocation lists in \"{path}\" are unfit: {error}"),
                None => write!(f, "TLS cannot be set up: {error}"),
            },
            Self::Refused { certificate, error } => match certificate {
                Some(path) => write!(f, "the client certificate in \"{path}\" is unfit: {error}"),
                None => write!(f, "TLS cannot be set up: {error}"),
            },
        }
    }
}

impl std::error::Error for TrustError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoSystemRoots { .. } => None,
            Self::RefusedLists { error, .. } => Some(error),
            Self::Refused { error, .. } => Some(error),
        }
    }
}

/// What the gateway offers: everything rustls deems safe, AES-128 first. It is cheaper a byte
/// than AES-256, which a server that prefers it still gets.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|offered| {
        !matches!(
            offered.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

impl Default for TrustStore {
    fn default() -> Self {
        Self::offering(provider())
    }
}

impl TrustStore {
    /// No configurations yet; all will offer what `provider` has.
    pub fn offering(provider: CryptoProvider) -> Self {
        Self {
            provider: Arc::new(provider),
            roots: HashMap::new(),
            system: None,
            verifiers: HashMap::new(),
            configs: HashMap::new(),
            roots_next: 0,
            trust_next: 0,
        }
    }

    /// The configuration of these three; `None` trusts the system's roots, looks at no lists, or shows no
    /// certificate. Where there are lists, every certificate of a server's chain but its root must be one
    /// that a list of its authority, not older than its next one is due, leaves alone (RFC 5280 §6.3).
    ///
    /// # Errors
    /// There are no system roots although they are needed, or rustls refuses one of the three.
    pub fn config(
        &mut self,
        trust: Option<&Trust>,
        revoked: Option<&RevocationLists>,
        client: Option<&Arc<ClientCertificate>>,
    ) -> Result<Trusted, TrustError> {
        let roots = match trust {
            Some(trust) => self.own_roots(trust),
            None => self.system_roots()?,
        };
        let parts = Parts {
            anchors: Anchors {
                roots: roots.id,
                revoked: revoked.map(|revoked| revoked.digest),
            },
            client: client.map(|certificate| Shown(Arc::clone(certificate))),
        };
        if let Some(known) = self.configs.get(&parts) {
            return Ok(known.clone());
        }
        let verifier = self.verifier(roots.store, revoked, parts.anchors)?;
        let config = self.build(verifier, client)?;
        let trusted = Trusted {
            id: TrustId(self.trust_next),
            config: Arc::new(config),
            has_lists: revoked.is_some(),
        };
        self.trust_next += 1;
        self.configs.insert(parts, trusted.clone());
        Ok(trusted)
    }

    /// Has the system's roots read again when they are needed next. Unchanged roots keep their
    /// configurations.
    pub fn forget_system_roots(&mut self) {
        self.system = None;
    }

    /// Drops every configuration that is not among `used`.
    pub fn retain(&mut self, used: &HashSet<TrustId>) {
        self.configs.retain(|_, trusted| used.contains(&trusted.id));
        let anchors: HashSet<Anchors> = self.configs.keys().map(|parts| parts.anchors).collect();
        self.verifiers.retain(|known, _| anchors.contains(known));
        let needed: HashSet<u32> = anchors.iter().map(|anchors| anchors.roots).collect();
        self.roots.retain(|_, roots| needed.contains(&roots.id));
        // Its number is gone from the table, so the next use must enter it there again.
        self.system = self
            .system
            .take()
            .filter(|roots| needed.contains(&roots.id));
    }

    fn verifier(
        &mut self,
        roots: Arc<RootCertStore>,
        revoked: Option<&RevocationLists>,
        anchors: Anchors,
    ) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
        if let Some(known) = self.verifiers.get(&anchors) {
            return Ok(Arc::clone(known));
        }
        let provider = Arc::clone(&self.provider);
        let mut builder = WebPkiServerVerifier::builder_with_provider(roots, provider);
        if let Some(revoked) = revoked {
            builder = builder
                .with_crls(revoked.lists.iter().cloned())
                .enforce_revocation_expiration();
        }
        let verifier = builder.build().map_err(|error| TrustError::RefusedLists {
            path: revoked.map(|revoked| revoked.path.display().to_string()),
            error,
        })?;
        self.verifiers.insert(anchors, Arc::clone(&verifier));
        Ok(verifier)
    }

    fn build(
        &self,
        verifier: Arc<WebPkiServerVerifier>,
        client: Option<&Arc<ClientCertificate>>,
    ) -> Result<ClientConfig, TrustError> {
        let refused = |error| TrustError::Refused {
            certificate: client.map(|client| client.path.display().to_string()),
            error,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(refused)?
            .with_webpki_verifier(verifier);
        let mut config = match client {
            Some(client) => builder
                .with_client_auth_cert(client.chain.clone(), client.key.clone_key())
                .map_err(refused)?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        config.max_fragment_size = Some(limits::TLS_RECORD_BYTES + limits::TLS_HEADER_BYTES);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(config)
    }

    fn own_roots(&mut self, trust: &Trust) -> Roots {
        self.intern(trust.roots.clone())
    }

    fn system_roots(&mut self) -> Result<Roots, TrustError> {
        if let Some(roots) = &self.system {
            return Ok(roots.clone());
        }
        let found = rustls_native_certs::load_native_certs();
        let roots = self.intern(found.certs);
        if roots.store.is_empty() {
            let cause = found.errors.first().map(ToString::to_string);
            return Err(TrustError::NoSystemRoots { cause });
        }
        self.system = Some(roots.clone());
        Ok(roots)
    }

    fn intern(&mut self, mut certificates: Vec<CertificateDer<'static>>) -> Roots {
        certificates.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        certificates.dedup();
        if let Some(known) = self.roots.get(&certificates) {
            return known.clone();
        }
        let mut store = RootCertStore::empty();
        // A system's bundle may hold roots that webpki cannot read; a server's own were checked.
        store.add_parsable_certificates(certificates.iter().cloned());
        let roots = Roots {
            id: self.roots_next,
            store: Arc::new(store),
        };
        self.roots_next += 1;
        self.roots.insert(certificates, roots.clone());
        roots
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{
        CertificateParams, CertificateRevocationListParams, DnType, Issuer, KeyIdMethod, KeyPair,
        SerialNumber, date_time_ymd,
    };
    use rustls::{
        ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
        server::WebPkiClientVerifier,
    };
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
    use sha2::{Digest, Sha256};

    use super::*;

    /// A certificate that signs itself, with its key.
    fn pair(name: &str) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate");
        (certificate.der().clone(), key.serialize_der().into())
    }

    fn trust(roots: &[CertificateDer<'static>]) -> Trust {
        Trust {
            path: PathBuf::from("ca.pem"),
            roots: roots.to_vec(),
        }
    }

    fn client(
        (certificate, key): &(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>),
    ) -> Arc<ClientCertificate> {
        Arc::new(ClientCertificate {
            path: PathBuf::from("client.pem"),
            key_path: PathBuf::from("client.key"),
            chain: vec![certificate.clone()],
            key: PrivateKeyDer::Pkcs8(key.clone_key()),
        })
    }

    #[test]
    fn equal_pairs_share_a_configuration_however_often_they_were_read() {
        let (one, two) = (pair("one.example"), pair("two.example"));
        let mut store = TrustStore::default();
        let roots = [one.0.clone(), two.0.clone()];
        let turned = [two.0.clone(), one.0.clone(), one.0.clone()];
        let first = store
            .config(Some(&trust(&roots)), None, Some(&client(&one)))
            .expect("a configuration");
        let again = store
            .config(Some(&trust(&turned)), None, Some(&client(&one)))
            .expect("a configuration");
        assert_eq!(first.id, again.id);
        assert!(Arc::ptr_eq(&first.config, &again.config));
    }

    fn revoked(lists: &[&[u8]]) -> RevocationLists {
        RevocationLists {
            path: PathBuf::from("crl.pem"),
            lists: lists.iter().map(|list| list.to_vec().into()).collect(),
            digest: Sha256::digest(lists.concat()).into(),
        }
    }

    /// A list that revokes nothing, as an authority of this name makes it.
    fn list(name: &str) -> Vec<u8> {
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.distinguished_name.push(DnType::CommonName, name);
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4096, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = Issuer::new(authority, KeyPair::generate().expect("a key"));
        params.signed_by(&issuer).expect("a list").der().to_vec()
    }

    #[test]
    fn lists_tell_configurations_apart_and_are_read_once() {
        let roots = trust(&[pair("one.example").0]);
        let (one, two) = (list("one"), list("two"));
        let mut store = TrustStore::default();
        let mut ids = HashSet::new();
        for lists in [
            None,
            Some(&[&one[..]][..]),
            Some(&[&two]),
            Some(&[&one, &two]),
        ] {
            for shown in [None, Some(client(&pair("client.example")))] {
                // As two files have it that are read one after the other.
                let mut config = || {
                    let lists = lists.map(revoked);
                    let made = store.config(Some(&roots), lists.as_ref(), shown.as_ref());
                    made.expect("a configuration").id
                };
                let id = config();
                assert_eq!(id, config());
                assert!(ids.insert(id));
            }
        }
        assert_eq!((ids.len(), store.verifiers.len()), (8, 4));
        store.retain(&HashSet::new());
        assert!(store.verifiers.is_empty());
    }

    #[test]
    fn a_list_that_cannot_be_read_is_named() {
        let roots = trust(&[pair("one.example").0]);
        let refused = TrustStore::default().config(Some(&roots), Some(&revoked(&[b"x"])), None);
        let error = refused.expect_err("no list").to_string();
        assert!(
            error.contains("the revocation lists in \"crl.pem\" are unfit: "),
            "{error}"
        );
    }

    #[test]
    fn pairs_that_differ_in_roots_or_certificate_share_nothing() {
        let (one, two) = (pair("one.example"), pair("two.example"));
        let mut store = TrustStore::default();
        let mut ids = HashSet::new();
        for roots in [&one, &two] {
            let roots = trust(std::slice::from_ref(&roots.0));
            for shown in [None, Some(client(&one)), Some(client(&two))] {
                let trusted = store.config(Some(&roots), None, shown.as_ref());
                let trusted = trusted.expect("a configuration");
                assert!(ids.insert(trusted.id));
                assert_eq!(
                    trusted.config.client_auth_cert_resolver.has_certs(),
                    shown.is_some()
                );
            }
        }
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn a_configuration_speaks_http_1_1_in_full_records() {
        let one = pair("one.example");
        let trusted = TrustStore::default()
            .config(Some(&trust(&[one.0])), None, None)
            .expect("a configuration");
        assert_eq!(trusted.config.alpn_protocols, [b"http/1.1".to_vec()]);
        assert_eq!(
            trusted.config.max_fragment_size,
            Some(limits::TLS_RECORD_BYTES + limits::TLS_HEADER_BYTES)
        );
        assert!(trusted.config.enable_sni);
    }

    #[test]
    fn all_that_is_safe_is_offered_and_aes_128_first() {
        let (ours, all) = (provider(), aws_lc_rs::default_provider());
        assert_eq!(ours.cipher_suites.len(), all.cipher_suites.len());
        let names = ours.cipher_suites.iter();
        let names: Vec<_> = names
            .map(|offered| format!("{:?}", offered.suite()))
            .collect();
        let (first, rest) = names.split_at(3);
        assert!(first.iter().all(|name| name.contains("AES_128_GCM")));
        assert!(!rest.iter().any(|name| name.contains("AES_128_GCM")));
    }

    /// A server's certificate and key for `name`, signed by itself.
    fn server(name: &str, client_ca: Option<&CertificateDer<'static>>) -> (Trust, ServerConfig) {
        let (certificate, key) = pair(name);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone()).expect("a root");
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let mut config = builder
            .with_single_cert(vec![certificate.clone()], key.into())
            .expect("a certificate and its key");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        (trust(&[certificate]), config)
    }

    fn shake_hands(
        trusted: &Trusted,
        name: &str,
        server: &Arc<ServerConfig>,
    ) -> Result<ClientConnection, rustls::Error> {
        shake_hands_with(&trusted.config, name, server)
    }

    /// Lets both ends talk until both are content, or one refuses.
    fn shake_hands_with(
        config: &Arc<ClientConfig>,
        name: &str,
        server: &Arc<ServerConfig>,
    ) -> Result<ClientConnection, rustls::Error> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut near = ClientConnection::new(Arc::clone(config), name)?;
        let mut far = ServerConnection::new(Arc::clone(server))?;
        // The last round carries the session tickets.
        for _ in 0..4 {
            let mut wire = Vec::new();
            near.write_tls(&mut wire).expect("memory");
            far.read_tls(&mut wire.as_slice()).expect("memory");
            far.process_new_packets()?;
            wire.clear();
            far.write_tls(&mut wire).expect("memory");
            near.read_tls(&mut wire.as_slice()).expect("memory");
            near.process_new_packets()?;
        }
        assert!(!near.is_handshaking() && !far.is_handshaking());
        Ok(near)
    }

    #[test]
    fn names_addresses_and_roots_are_checked() {
        let mut store = TrustStore::default();
        for name in ["h.example", "192.0.2.1", "2001:db8::1"] {
            let (roots, far) = server(name, None);
            let far = Arc::new(far);
            let trusted = store
                .config(Some(&roots), None, None)
                .expect("a configuration");
            let near = shake_hands(&trusted, name, &far).expect("trusted");
            // The server would rather speak HTTP/2.
            assert_eq!(near.alpn_protocol(), Some(&b"http/1.1"[..]));
            for other in ["other.example", "192.0.2.2"] {
                assert!(shake_hands(&trusted, other, &far).is_err(), "{other}");
            }
            let (strangers, _) = server(name, None);
            let strange = store.config(Some(&strangers), None, None).expect("one");
            assert!(shake_hands(&strange, name, &far).is_err());
        }
    }

    #[test]
    fn the_client_certificate_is_shown_and_both_versions_are_spoken() {
        let (mine, other) = (pair("gateway.example"), pair("other.example"));
        let mut store = TrustStore::default();
        let (roots, far) = server("h.example", Some(&mine.0));
        let same_certificate = Arc::clone(&far.cert_resolver);
        let far = Arc::new(far);
        let shown = store.config(Some(&roots), None, Some(&client(&mine)));
        let shown = shown.expect("a configuration");
        let near = shake_hands(&shown, "h.example", &far).expect("accepted");
        assert_eq!(near.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        for unfit in [None, Some(client(&other))] {
            let unfit = store
                .config(Some(&roots), None, unfit.as_ref())
                .expect("one");
            assert!(shake_hands(&unfit, "h.example", &far).is_err());
        }
        let older = ServerConfig::builder_with_provider(Arc::clone(&store.provider))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(same_certificate);
        let near = shake_hands(&shown, "h.example", &Arc::new(older)).expect("accepted");
        assert_eq!(near.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    }

    #[test]
    fn sessions_are_resumed_within_a_pool_and_never_across() {
        let mut store = TrustStore::default();
        let (roots, far) = server("h.example", None);
        let far = Arc::new(far);
        let trusted = store.config(Some(&roots), None, None).expect("one");
        let (one, two) = (trusted.for_one_pool(), trusted.for_one_pool());
        let kind = |config: &Arc<ClientConfig>| {
            let near = shake_hands_with(config, "h.example", &far).expect("trusted");
            near.handshake_kind()
        };
        assert_eq!(kind(&one), Some(HandshakeKind::Full));
        assert_eq!(kind(&one), Some(HandshakeKind::Resumed));
        assert_eq!(kind(&two), Some(HandshakeKind::Full));
    }

    #[test]
    fn a_pair_that_is_not_used_is_forgotten_and_its_number_is_not_given_again() {
        let (one, two) = (pair("one.example"), pair("two.example"));
        let mut store = TrustStore::default();
        let mut id = |certificate: &CertificateDer<'static>, used: bool| {
            let trust = trust(std::slice::from_ref(certificate));
            let id = store.config(Some(&trust), None, None).expect("one").id;
            if !used {
                store.retain(&HashSet::new());
                assert!(store.configs.is_empty() && store.roots.is_empty());
            }
            id
        };
        let first = id(&one.0, false);
        let second = id(&two.0, false);
        let third = id(&one.0, true);
        let fourth = id(&one.0, true);
        assert!(first != second && second != third && first != third);
        assert_eq!(third, fourth);
    }

    #[test]
    fn missing_system_roots_are_named_with_the_remedy() {
        let error = TrustError::NoSystemRoots { cause: None };
        assert!(error.to_string().contains("apt install ca-certificates"));
    }
}
