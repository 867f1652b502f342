//! Certificates made for one test: an authority, and what it signs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CrlDistributionPoint, CrlIssuingDistributionPoint, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize,
    SerialNumber, date_time_ymd,
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
    /// Of the authority's own certificate.
    pub serial: SerialNumber,
    /// What a server shows behind a certificate of this one's: itself and those above, but for the root.
    above: Vec<CertificateDer<'static>>,
    make_key: fn() -> KeyPair,
}

/// A certificate and its key, as files and as bytes.
pub struct Leaf {
    pub pem: PathBuf,
    pub key: PathBuf,
    pub serial: SerialNumber,
    /// The certificate first, then what leads to its root.
    chain: Vec<CertificateDer<'static>>,
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

    /// One that this one certifies.
    pub fn certify(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), (self.make_key)());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut below = Self::of(params, key, &certificate, self.make_key);
        below.above = [&[below.der.clone()], self.above.as_slice()].concat();
        below
    }

    fn with_keys(name: &str, make_key: fn() -> KeyPair) -> Self {
        let (params, key) = (Self::params(name), make_key());
        let certificate = params.self_signed(&key).unwrap();
        Self::of(params, key, &certificate, make_key)
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(new_serial());
        params
    }

    fn of(
        params: CertificateParams,
        key: KeyPair,
        certificate: &Certificate,
        make_key: fn() -> KeyPair,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Self {
            dir,
            serial: params.serial_number.clone().unwrap(),
            issuer: Issuer::new(params, key),
            der: certificate.der().clone(),
            above: Vec::new(),
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

    /// A list of those among the certificates it signed that hold no longer, as PEM.
    pub fn revoke(&self, revoked: &[&SerialNumber], validity: Validity) -> String {
        self.list(revoked, validity, None)
    }

    /// Likewise, for those alone that name `part` as where their list is.
    pub fn revoke_part(&self, part: &str) -> String {
        let part = CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec![part.to_owned()],
            },
            scope: None,
        };
        self.list(&[], Validity::Current, Some(part))
    }

    fn list(
        &self,
        revoked: &[&SerialNumber],
        validity: Validity,
        part: Option<CrlIssuingDistributionPoint>,
    ) -> String {
        let end = match validity {
            Validity::Current => 4096,
            Validity::Expired => 2021,
        };
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).clone(),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(end, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: part,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
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
        let serial = new_serial();
        params.serial_number = Some(serial.clone());
        let key = (self.make_key)();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = common_name.replace(['.', ':', '*'], "_");
        let leaf = Leaf {
            pem: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
            serial,
            chain: [&[certificate.der().clone()], self.above.as_slice()].concat(),
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
                .with_single_cert(leaf.chain.clone(), leaf.private_key())
                .unwrap(),
        )
    }

    /// Likewise, and every server name that a client sends is noted, or that it sends none.
    pub fn server_config_that_notes_names(leaf: &Leaf) -> (Arc<ServerConfig>, SeenNames) {
        let seen = SeenNames::default();
        let mut config = Arc::unwrap_or_clone(Self::server_config(leaf, None));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&leaf.private_key()).unwrap();
        config.cert_resolver = Arc::new(NotingResolver {
            key: Arc::new(CertifiedKey::new(leaf.chain.clone(), key)),
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

/// A number that no other certificate of this process has.
fn new_serial() -> SerialNumber {
    static LAST: AtomicU64 = AtomicU64::new(0);
    SerialNumber::from(LAST.fetch_add(1, Ordering::Relaxed) + 1)
}

/// A path as a TOML string.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_str().unwrap())
}
