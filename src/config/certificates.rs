//! Certificates, keys and revocation lists that the configuration names, checked as far as can be
//! without a server.
//!
//! A file that several servers name is read once and shared. No byte of a key gets into a message.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use ::aws_lc_rs::digest;
use hashbrown::HashMap;
use rustls::{
    Error as TlsError, InconsistentKeys, RootCertStore, crypto::aws_lc_rs, sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject,
};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::{parse_x509_certificate, parse_x509_crl, time::ASN1Time};

use super::{
    entry::Entry,
    files::{self, Folder},
    problem::Report,
    settings::{ClientCertificate, RevocationLists, Trust},
};
use crate::limits;

/// What makes PEM of a binary certificate, or of PKCS#12.
const PEM_OF_CERTIFICATE: &str = "openssl x509 -inform der -in FILE -out FILE.pem, or for PKCS#12: \
                                  openssl pkcs12 -in FILE -nodes -out FILE.pem";
/// Likewise of a binary revocation list.
const PEM_OF_LIST: &str = "openssl crl -inform der -in FILE -out FILE.pem";

/// The certificate files read so far. A file that failed is kept as `None`, reported once.
pub(super) struct Certificates<'f> {
    folder: &'f Folder,
    clients: HashMap<(PathBuf, PathBuf), Option<Arc<ClientCertificate>>>,
    trusts: HashMap<PathBuf, Option<Arc<Trust>>>,
    revocations: HashMap<PathBuf, Option<Arc<RevocationLists>>>,
}

impl<'f> Certificates<'f> {
    /// Nothing read yet; names are relative to `folder`.
    pub(super) fn new(folder: &'f Folder) -> Self {
        Self {
            folder,
            clients: HashMap::new(),
            trusts: HashMap::new(),
            revocations: HashMap::new(),
        }
    }

    /// The certificate and key that two entries name.
    pub(super) fn client(
        &mut self,
        certificate: &Entry<'_>,
        key: &Entry<'_>,
        report: &mut Report,
    ) -> Option<Arc<ClientCertificate>> {
        // Both names are looked at before either is given up, so that both are reported.
        let chain_path = certificate.parse(|name| self.path(name), report);
        let key_path = key.parse(|name| self.path(name), report);
        let paths = (chain_path?, key_path?);
        if let Some(known) = self.clients.get(&paths) {
            return known.clone();
        }
        let read = read_client(&paths.0, &paths.1, certificate, key, report).map(Arc::new);
        self.clients.insert(paths, read.clone());
        read
    }

    /// The roots that an entry names.
    pub(super) fn trust(&mut self, ca: &Entry<'_>, report: &mut Report) -> Option<Arc<Trust>> {
        let path = ca.parse(|name| self.path(name), report)?;
        if let Some(known) = self.trusts.get(&path) {
            return known.clone();
        }
        let read = read_roots(&path)
            .map_err(|message| report.add(&ca.place, message))
            .ok()
            .map(|roots| {
                Arc::new(Trust {
                    path: path.clone(),
                    roots,
                })
            });
        self.trusts.insert(path, read.clone());
        read
    }

    /// The revocation lists that an entry names.
    pub(super) fn revocations(
        &mut self,
        crl: &Entry<'_>,
        report: &mut Report,
    ) -> Option<Arc<RevocationLists>> {
        let path = crl.parse(|name| self.path(name), report)?;
        if let Some(known) = self.revocations.get(&path) {
            return known.clone();
        }
        let read = read_lists(&path)
            .map_err(|message| report.add(&crl.place, message))
            .ok()
            .map(Arc::new);
        for message in read.iter().flat_map(|revoked| overdue(revoked)) {
            // What one authority forgot must not keep a gateway from starting.
            report.add_doubt(&crl.place, message);
        }
        self.revocations.insert(path, read.clone());
        read
    }

    fn path(&self, name: &str) -> Result<PathBuf, String> {
        match name {
            "" => Err("is empty; write the name of a PEM file".to_owned()),
            _ => Ok(self.folder.join(name)),
        }
    }
}

fn read_client(
    chain_path: &Path,
    key_path: &Path,
    certificate: &Entry<'_>,
    key: &Entry<'_>,
    report: &mut Report,
) -> Option<ClientCertificate> {
    let chain = read_chain(chain_path)
        .map_err(|message| report.add(&certificate.place, message))
        .ok();
    let private = read_key(key_path)
        .map_err(|message| report.add(&key.place, message))
        .ok();
    if let Some(leaf) = chain.as_ref().and_then(|chain| chain.first())
        && let Err(message) = check_validity(chain_path, leaf, ASN1Time::now())
    {
        // One account's certificate that ran out must not keep a gateway from starting.
        report.add_doubt(&certificate.place, message);
    }
    let (chain, private) = (chain?, private?);
    check_pair(chain_path, key_path, &chain, &private)
        .map_err(|fault| match fault {
            PairFault::Certificate(message) => report.add(&certificate.place, message),
            PairFault::Key(message) => report.add(&key.place, message),
        })
        .ok()?;
    Some(ClientCertificate {
        path: chain_path.to_owned(),
        key_path: key_path.to_owned(),
        chain,
        key: private,
    })
}

fn read_pem(path: &Path, bytes_max: u64, conversion: &str) -> Result<Vec<u8>, String> {
    let bytes = files::read(path, bytes_max)
        .map_err(|fault| format!("{fault}; write the name of a PEM file"))?;
    if memchr::memmem::find(&bytes, b"-----BEGIN ").is_some() {
        return Ok(bytes);
    }
    let path = path.display();
    Err(match bytes.first() {
        // DER and PKCS#12 both begin with a SEQUENCE.
        Some(0x30) => format!("the file \"{path}\" is binary, not PEM; convert it: {conversion}"),
        _ => format!("the file \"{path}\" is not PEM; it holds no \"-----BEGIN\" line"),
    })
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_pem(path, limits::PEM_BYTES_MAX, PEM_OF_CERTIFICATE)?;
    let path = path.display();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| format!("the file \"{path}\" is damaged PEM; copy it again"))?;
    if chain.is_empty() {
        return Err(format!(
            "the file \"{path}\" holds no certificate; it needs a \"-----BEGIN CERTIFICATE-----\" \
             section"
        ));
    }
    for (index, certificate) in chain.iter().enumerate() {
        if parse_x509_certificate(certificate).is_err() {
            return Err(format!(
                "certificate {} of {} in \"{path}\" cannot be parsed; copy it again",
                index + 1,
                chain.len()
            ));
        }
    }
    Ok(chain)
}

fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let roots = read_chain(path)?;
    let mut store = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        if store.add(root.clone()).is_err() {
            return Err(format!(
                "certificate {} of {} in \"{}\" cannot serve as a root; leave it out",
                index + 1,
                roots.len(),
                path.display()
            ));
        }
    }
    Ok(roots)
}

fn read_lists(path: &Path) -> Result<RevocationLists, String> {
    let pem = read_pem(path, limits::CRL_BYTES_MAX, PEM_OF_LIST)?;
    let shown = path.display();
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| format!("the file \"{shown}\" is damaged PEM; copy it again"))?;
    if lists.is_empty() {
        return Err(format!(
            "the file \"{shown}\" holds no revocation list; it needs a \"-----BEGIN X509 CRL-----\" \
             section"
        ));
    }
    let mut scopes: Vec<(Vec<u8>, Option<Vec<u8>>)> = Vec::with_capacity(lists.len());
    let mut digest = digest::Context::new(&digest::SHA256);
    for (index, list) in lists.iter().enumerate() {
        let which = format!("list {} of {} in \"{shown}\"", index + 1, lists.len());
        let parsed = OwnedCertRevocationList::from_der(list).map_err(|error| {
            // As openssl makes it unless its configuration has crl_extensions.
            let is_old = parse_x509_crl(list).is_ok_and(|(_, list)| list.version().is_none());
            match is_old {
                true => {
                    format!("{which} is of version 1; have it made with extensions (version 2)")
                }
                false => format!(
                    "{which} cannot be used ({error}); ask its authority for a complete list"
                ),
            }
        })?;
        // A verifier looks at the first that fits, however old.
        let parsed = CertRevocationList::from(parsed);
        let part = parsed.issuing_distribution_point().map(<[u8]>::to_vec);
        let overlaps = scopes.iter().position(|(issuer, other)| {
            issuer == parsed.issuer() && (*other == part || other.is_none() || part.is_none())
        });
        if let Some(first) = overlaps {
            return Err(format!(
                "{which} is of the same authority as list {}, for the same certificates, and would not \
                 be looked at; keep the newer of the two",
                first + 1
            ));
        }
        scopes.push((parsed.issuer().to_vec(), part));
        digest.update(list);
    }
    let mut revoked = RevocationLists {
        path: path.to_owned(),
        lists,
        digest: [0; digest::SHA256_OUTPUT_LEN],
    };
    revoked.digest.copy_from_slice(digest.finish().as_ref());
    Ok(revoked)
}

/// What is to be said of lists whose next one is due: what they do not revoke is not known to be good.
fn overdue(revoked: &RevocationLists) -> impl Iterator<Item = String> {
    let now = ASN1Time::now();
    let numbered = revoked.lists.iter().enumerate();
    numbered.filter_map(move |(index, list)| {
        let (_, parsed) = parse_x509_crl(list).ok()?;
        let next = parsed.next_update().filter(|next| *next < now)?;
        Some(format!(
            "list {} of {} in \"{}\" ran out on {next}; put its authority's newest in its place and \
             reload: until then no certificate of that authority is accepted",
            index + 1,
            revoked.lists.len(),
            revoked.path.display()
        ))
    })
}

/// The private key in a PEM file.
///
/// # Errors
/// What is wrong with the file, and what to do: nobody could enter a passphrase, for one.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read_pem(path, limits::PEM_BYTES_MAX, PEM_OF_CERTIFICATE)?;
    let shown = path.display();
    let holds = |needle: &str| memchr::memmem::find(&pem, needle.as_bytes()).is_some();
    // Looked for first: the body of a legacy encrypted key is no valid base64 of a key.
    if holds("-----BEGIN ENCRYPTED PRIVATE KEY-----") || holds("Proc-Type: 4,ENCRYPTED") {
        return Err(format!(
            "the key in \"{shown}\" is protected by a passphrase, which nobody could enter at \
             start; remove it: openssl pkey -in \"{shown}\" -out plain.key"
        ));
    }
    if holds("-----BEGIN OPENSSH PRIVATE KEY-----") {
        return Err(format!(
            "the key in \"{shown}\" is an OpenSSH key; convert it: ssh-keygen -p -m PKCS8 -f \
             \"{shown}\""
        ));
    }
    PrivateKeyDer::pem_slice_iter(&pem)
        .next()
        .ok_or_else(|| {
            format!(
                "the file \"{shown}\" holds no private key; it needs a \"-----BEGIN PRIVATE \
                 KEY-----\" section"
            )
        })?
        .map_err(|_| format!("the file \"{shown}\" is damaged PEM; copy it again"))
}

fn check_validity(path: &Path, leaf: &CertificateDer<'_>, now: ASN1Time) -> Result<(), String> {
    let Ok((_, certificate)) = parse_x509_certificate(leaf) else {
        return Ok(()); // `read_chain` refused it already.
    };
    let validity = certificate.validity();
    let path = path.display();
    if now > validity.not_after {
        return Err(format!(
            "the certificate in \"{path}\" expired on {}; ask its issuer for a new one",
            validity.not_after
        ));
    }
    if now < validity.not_before {
        return Err(format!(
            "the certificate in \"{path}\" is not valid before {}; wait, or set this machine's \
             clock",
            validity.not_before
        ));
    }
    Ok(())
}

/// Which half of a pair is at fault.
enum PairFault {
    Certificate(String),
    Key(String),
}

fn check_pair(
    chain_path: &Path,
    key_path: &Path,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<(), PairFault> {
    let (chain_path, key_path) = (chain_path.display(), key_path.display());
    let signing = aws_lc_rs::sign::any_supported_type(key).map_err(|_| {
        PairFault::Key(format!(
            "the key in \"{key_path}\" is of a kind that TLS cannot use; make an ECDSA P-256 or an \
             RSA key of 2048 to 8192 bits"
        ))
    })?;
    match CertifiedKey::new(chain.to_vec(), signing).keys_match() {
        Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        Err(TlsError::InconsistentKeys(_)) => Err(PairFault::Key(format!(
            "the key in \"{key_path}\" does not belong to the first certificate in \
             \"{chain_path}\"; name the key that the certificate was made for, and put the \
             server's own certificate first"
        ))),
        Err(_) => Err(PairFault::Certificate(format!(
            "the certificate in \"{chain_path}\" is of a kind that TLS cannot use; ask for an \
             X.509 version 3 certificate"
        ))),
    }
}
