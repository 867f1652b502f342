//! Certificates made for one test: an authority, and what it signs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tempfile::TempDir;

/// A certification authority with a folder for what it signs.
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    make_key: fn() -> KeyPair,
}

/// A certificate and its key, as files and as bytes.
pub struct Leaf {
    pub pem: PathBuf,
    pub key: PathBuf,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

/// How long a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Current,
    Expired,
}

impl Authority {
    /// One that signs with ECDSA, as do those that it certifies.
    pub fn new(name: &str) -> Self {
        Self::with_keys(name, || KeyPair::generate().unwrap())
    }

    /// One that signs with RSA, as do those that it certifies.
    pub fn with_rsa_keys(name: &str) -> Self {
        Self::with_keys(name, || {
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
        })
    }

    fn with_keys(name: &str, make_key: fn() -> KeyPair) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = make_key();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        let der = certificate.der().clone();
        Self {
            dir,
            issuer: Issuer::new(params, key),
            der,
            make_key,
        }
    }

    /// The authority's own certificate.
    pub fn pem(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate for a server of these names or addresses.
    pub fn server(&self, names: &[&str], validity: Validity) -> Leaf {
        self.sign(names.first().unwrap(), names, validity)
    }

    /// A certificate that a client shows.
    pub fn client(&self, common_name: &str) -> Leaf {
        self.sign(common_name, &[], Validity::Current)
    }

    /// A certificate for an OpenVPN server, which its clients ask for by its purpose.
    pub fn vpn_server(&self, common_name: &str) -> Leaf {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign_params(common_name, params)
    }

    fn sign(&self, common_name: &str, names: &[&str], validity: Validity) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        if validity == Validity::Expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        self.sign_params(common_name, params)
    }

    fn sign_params(&self, common_name: &str, mut params: CertificateParams) -> Leaf {
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let key = (self.make_key)();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = common_name.replace(['.', ':', '*'], "_");
        let leaf = Leaf {
            pem: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        };
        fs::write(&leaf.pem, certificate.pem()).unwrap();
        fs::write(&leaf.key, key.serialize_pem()).unwrap();
        leaf
    }

    /// What a server that shows `leaf` speaks TLS with; one that demands certificates trusts those
    /// of `clients`.
    pub fn server_config(leaf: &Leaf, clients: Option<&Authority>) -> Arc<ServerConfig> {
        Self::server_config_of(leaf, clients, rustls::ALL_VERSIONS)
    }

    /// Likewise, for these versions of TLS alone.
    pub fn server_config_of(
        leaf: &Leaf,
        clients: Option<&Authority>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.der.clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        Arc::new(
            builder
                .with_single_cert(vec![leaf.der.clone()], leaf.private_key())
                .unwrap(),
        )
    }

    /// Likewise, and every server name that a client sends is noted, or that it sends none.
    pub fn server_config_that_notes_names(leaf: &Leaf) -> (Arc<ServerConfig>, SeenNames) {
        let seen = SeenNames::default();
        let mut config = Arc::unwrap_or_clone(Self::server_config(leaf, None));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&leaf.private_key()).unwrap();
        config.cert_resolver = Arc::new(NotingResolver {
            key: Arc::new(CertifiedKey::new(vec![leaf.der.clone()], key)),
            seen: Arc::clone(&seen),
        });
        (Arc::new(config), seen)
    }
}

/// Server names in the order in which clients sent them.
pub type SeenNames = Arc<Mutex<Vec<Option<String>>>>;

#[derive(Debug)]
struct NotingResolver {
    key: Arc<CertifiedKey>,
    seen: SeenNames,
}

impl ResolvesServerCert for NotingResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.seen
            .lock()
            .unwrap()
            .push(hello.server_name().map(str::to_owned));
        Some(Arc::clone(&self.key))
    }
}

impl Leaf {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()))
    }
}

/// A path as a TOML string.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().unwrap())
}
