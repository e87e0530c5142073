//! A certificate authority of the test's own, and certificates of every kind, good and bad, in a directory of theirs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// Signs whatever it is asked to.
pub struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Issued {
    pub cert: String,
    pub key: String,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub enum Validity {
    Now,
    Past,
    Future,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names are wrong names");
        // Two of the same name are told apart only by a wrong signature.
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("psyncd test authority {}", NEXT.fetch_add(1, Ordering::Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority can be made");
        let dir = TempDir::with_prefix("psyncd-ca-").expect("a temporary directory can be made");
        let authority = Authority { dir, issuer };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    /// Where its own certificate is.
    pub fn ca(&self) -> String {
        self.path("ca.pem").display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a file among the others, and gives its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("the directory takes it");
        self.path(name).display().to_string()
    }

    /// A good certificate, in files of that name, for those hosts.
    pub fn issue(&self, file: &str, hosts: &[&str]) -> Issued {
        self.issue_valid(file, hosts, Validity::Now)
    }

    /// A good certificate that is not valid to the end of that year.
    pub fn issue_until(&self, file: &str, hosts: &[&str], year: i32) -> Issued {
        self.sign(file, hosts, (2020, year))
    }

    /// One of X.509 v1, which this authority did not sign: Redis's own script made such ones for years.
    pub fn v1(&self, file: &str) -> Issued {
        let both = include_str!("v1.pem");
        let (cert, key) = both.split_at(both.find("-----BEGIN PRIVATE KEY").expect("the key comes second"));
        Issued { cert: self.write(&format!("{file}.pem"), cert), key: self.write(&format!("{file}.key"), key) }
    }

    /// A certificate for these hosts, with `file` as its common name.
    pub fn issue_valid(&self, file: &str, hosts: &[&str], validity: Validity) -> Issued {
        let years = match validity {
            Validity::Now => (2020, 2120),
            Validity::Past => (2020, 2021),
            Validity::Future => (2119, 2120),
        };
        self.sign(file, hosts, years)
    }

    /// Valid from the beginning of one year to that of another.
    fn sign(&self, file: &str, hosts: &[&str], (from, to): (i32, i32)) -> Issued {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("the names are good");
        params.distinguished_name.push(DnType::CommonName, file);
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate can be made");
        Issued {
            cert: self.write(&format!("{file}.pem"), &certificate.pem()),
            key: self.write(&format!("{file}.key"), &key.serialize_pem()),
        }
    }
}
