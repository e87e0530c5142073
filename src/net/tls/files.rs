//! PEM files: certificates, keys, authorities, and what is wrong with them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{CertificateError, Error, InconsistentKeys, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

/// No PEM file is larger than this.
pub const LIMIT_PEM_BYTES: u64 = 1 << 20;
/// Before a certificate expires, its end is worth a line at start.
const SOON: Duration = Duration::from_secs(7 * 86_400);

/// A certificate with those that lead to its authority, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The PEM file of the certificate.
    pub certificate: PathBuf,
    /// The PEM file of its private key.
    pub key: PathBuf,
}

/// A file that cannot be used, and why, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct Unusable {
    path: PathBuf,
    why: String,
}

impl Unusable {
    pub(super) fn new(path: &Path, why: impl Into<String>) -> Self {
        Self { path: path.to_owned(), why: why.into() }
    }
}

/// A certificate of our own, as others will see it.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) role: &'static str,
    pub(super) path: PathBuf,
    /// Seconds since 1970.
    pub(super) not_after: i64,
    /// What others may not like about it, one line each.
    pub(super) doubts: Vec<String>,
    /// Whether nobody can like it now: it has expired, or is not valid yet.
    pub(super) void: bool,
}

fn read(path: &Path) -> Result<Vec<u8>, Unusable> {
    let bad = |why: std::io::Error| Unusable::new(path, format!("cannot be read: {why}"));
    let mut bytes = Vec::new();
    File::open(path).map_err(bad)?.take(LIMIT_PEM_BYTES + 1).read_to_end(&mut bytes).map_err(bad)?;
    if bytes.len() as u64 > LIMIT_PEM_BYTES {
        return Err(Unusable::new(path, "is too large for a PEM file"));
    }
    Ok(bytes)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Unusable::new(path, "has no certificate in it (PEM is what is read)")),
        Ok(found) => Ok(found),
        Err(error) => Err(Unusable::new(path, format!("is no PEM file: {error}"))),
    }
}

/// The authorities of a file.
pub(super) fn authority(path: &Path) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| Unusable::new(path, format!("holds no authority: {error}")))?;
    }
    Ok(roots)
}

/// A certificate and its key, which fit each other.
pub(super) fn own(pair: &Pair, provider: &CryptoProvider) -> Result<CertifiedKey, Unusable> {
    let chain = certificates(&pair.certificate)?;
    let key = key(&pair.key)?;
    if parsed(&chain[0]).is_some_and(|parsed| parsed.version() == X509Version::V1) {
        return Err(Unusable::new(
            &pair.certificate,
            "is an X.509 v1 certificate: issue it again as v3, with a subject alternative name",
        ));
    }
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            Unusable::new(&pair.key, format!("is not the key of the certificate in {}", pair.certificate.display()))
        }
        Error::InvalidCertificate(why) => Unusable::new(&pair.certificate, format!("is no good certificate: {why}")),
        other => Unusable::new(&pair.key, format!("is no key that can be used: {other}")),
    })
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    let bytes = read(path)?;
    let has = |mark: &[u8]| memchr::memmem::find(&bytes, mark).is_some();
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(Unusable::new(
            path,
            "is encrypted, and there is nobody to ask for the password: decrypt it (openssl pkey -in KEY -out NEW) and \
             let only psyncd's user read it",
        ));
    }
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_| Unusable::new(path, "has no private key in it (PEM is what is read)"))
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(certificate).ok().map(|(_, parsed)| parsed)
}

/// What others may not like about a certificate of ours.
pub(super) fn judge(pair: &Pair, own: &CertifiedKey, role: &'static str, roots: Option<&RootCertStore>) -> Shown {
    let path = pair.certificate.clone();
    let now = UnixTime::now();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let mut shown = Shown { role, path, not_after: 0, doubts: Vec::new(), void: false };
    let Some(parsed) = own.cert.first().and_then(parsed) else { return shown };
    let say = |shown: &mut Shown, what: &str| {
        let line = format!("{}: {what}", shown.path.display());
        shown.doubts.push(line);
    };
    let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    shown.not_after = to;
    if seconds > to {
        shown.void = true;
        say(&mut shown, "has expired: issue a new one");
    } else if seconds < from {
        shown.void = true;
        say(&mut shown, "is not valid yet: look at the clock of this host");
    } else if to - seconds < SOON.as_secs() as i64 {
        say(&mut shown, "expires within a week");
    }
    if !matches!(parsed.subject_alternative_name(), Ok(Some(_))) {
        say(&mut shown, "has no subject alternative name (SAN): peers that check names will refuse it");
    }
    if let (Some(roots), false) = (roots, shown.void)
        && is_foreign(own, roots, now)
    {
        say(
            &mut shown,
            "is not signed by an authority in tls-ca-cert-file: peers that trust only that one will refuse it",
        );
    }
    shown
}

/// Whether our own authority would not have it.
fn is_foreign(own: &CertifiedKey, roots: &RootCertStore, now: UnixTime) -> bool {
    let Some((first, rest)) = own.cert.split_first() else { return false };
    let Ok(certificate) = ParsedCertificate::try_from(first) else { return false };
    let algorithms = tokio_rustls::rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let verify = tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
    matches!(
        verify(&certificate, roots, rest, now, algorithms.all),
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature))
    )
}

/// What a certificate calls its owner: the DNS names among its alternative names, then its common name.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Some(parsed) = parsed(certificate) else { return Vec::new() };
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
        for name in &alternative.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push((*name).to_owned());
            }
        }
    }
    names.extend(parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned));
    names
}
