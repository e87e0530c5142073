//! What went wrong, in one line that says what to do about it.

use std::io;

use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::Handshake;

/// Which side of a handshake we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Somebody called us.
    Server,
    /// We called.
    Client,
}

/// A stream that TLS ended, or did not let begin.
#[derive(Debug, thiserror::Error)]
#[error("tls: {why}")]
pub struct Failed {
    /// In a word.
    pub how: Handshake,
    why: String,
}

impl Failed {
    pub(super) fn new(how: Handshake, why: impl Into<String>) -> Self {
        Self { how, why: why.into() }
    }

    /// The kind of I/O error it is.
    pub(super) fn kind(&self) -> io::ErrorKind {
        match self.how {
            Handshake::Timeout => io::ErrorKind::TimedOut,
            Handshake::Lost => io::ErrorKind::ConnectionReset,
            _ => io::ErrorKind::InvalidData,
        }
    }

    /// Whether that is what is behind `error`.
    pub fn is_behind(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Failed>())
    }
}

/// Puts `error` of a TLS stream in words.
pub(super) fn explain(error: &io::Error, side: Side) -> Failed {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => of_tls(error, side),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Failed::new(Handshake::Lost, "closed by the peer in the middle of the handshake: is this a TLS port?")
        }
        None => Failed::new(Handshake::Lost, error.to_string()),
    }
}

fn of_tls(error: &Error, side: Side) -> Failed {
    match error {
        Error::InvalidCertificate(why) => Failed::new(Handshake::Certificate, certificate(why, side)),
        Error::NoCertificatesPresented => Failed::new(
            Handshake::NoCertificate,
            "the peer shows no certificate: give it one (Redis: tls-cert-file and tls-key-file; redis-cli: --cert and \
             --key), or set tls-auth-clients optional or no",
        ),
        Error::AlertReceived(alert) => Failed::new(Handshake::Refused, refused(*alert, side)),
        Error::PeerIncompatible(why) => Failed::new(Handshake::Protocol, incompatible(why)),
        Error::InvalidMessage(_) => {
            Failed::new(Handshake::Protocol, "the peer does not speak TLS: one side has a plain port or a plain client")
        }
        other => Failed::new(Handshake::Protocol, other.to_string()),
    }
}

fn certificate(why: &CertificateError, side: Side) -> String {
    use CertificateError as E;
    match why {
        E::Expired | E::ExpiredContext { .. } => "the peer's certificate has expired: issue a new one".to_owned(),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the peer's certificate is not valid yet: compare the clocks of both sides".to_owned()
        }
        E::UnknownIssuer => "the peer's certificate is not signed by an authority in tls-ca-cert-file".to_owned(),
        E::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "the peer's certificate has no subject alternative name (SAN), {expected:?} was expected: issue it with \
             one, or set tls-verify ca, which checks no name, as Redis does",
            expected = expected.to_str()
        ),
        E::NotValidForNameContext { expected, presented } => format!(
            "the peer's certificate is for {presented}, not for {expected:?}: set tls-server-name, or tls-verify ca, \
             which checks no name, as Redis does",
            presented = presented.join(", "),
            expected = expected.to_str()
        ),
        E::NotValidForName => {
            "the peer's certificate is for another name: set tls-server-name, or tls-verify ca".to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            let wanted = match side {
                Side::Server => "clientAuth",
                Side::Client => "serverAuth",
            };
            format!("the peer's certificate is not for this use: issue it with the extended key usage {wanted}")
        }
        E::BadSignature => {
            "the peer's certificate is not signed by the authority in tls-ca-cert-file, but by another one of the same name".to_owned()
        }
        other => {
            // The library has no variant of its own for this one.
            let text = format!("{other:?}");
            if text.contains("UnsupportedCertVersion") {
                "the peer's certificate is X.509 v1: issue it again as v3, with a subject alternative name".to_owned()
            } else if text.contains("CaUsedAsEndEntity") {
                "the peer's certificate is an authority's own: issue one that is not (CA:FALSE)".to_owned()
            } else {
                format!("the peer's certificate is not good: {other}")
            }
        }
    }
}

fn refused(alert: AlertDescription, side: Side) -> String {
    use AlertDescription as A;
    match (alert, side) {
        (A::CertificateRequired, _) | (A::HandshakeFailure, Side::Client) => {
            "the peer wants a certificate of us, or has no cipher in common: set tls-client-cert-file and \
             tls-client-key-file, or tls-cert-file and tls-key-file"
                .to_owned()
        }
        (A::UnknownCA, _) => "the peer does not know the authority that signed our certificate".to_owned(),
        (A::BadCertificate | A::UnsupportedCertificate | A::CertificateUnknown, _) => {
            format!("the peer does not accept our certificate ({alert:?}): its log says why")
        }
        (A::CertificateExpired, _) => "the peer says that our certificate has expired, or is not valid yet".to_owned(),
        (A::ProtocolVersion, _) => "the peer speaks no TLS newer than 1.1, which is not supported".to_owned(),
        (alert, _) => format!("refused by the peer: {alert:?}"),
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    use PeerIncompatible as P;
    match why {
        P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::SupportedVersionsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled => {
            "the peer speaks no TLS newer than 1.1, which is not supported: allow TLSv1.2 or TLSv1.3 there".to_owned()
        }
        P::NoCipherSuitesInCommon | P::NoKxGroupsInCommon | P::NamedGroupsExtensionRequired => {
            "no cipher in common: ECDHE with AES-GCM or ChaCha20 is supported; DH parameters, CBC and RSA key exchange \
             are not"
                .to_owned()
        }
        other => format!("the peer's TLS does not fit ours: {other:?}"),
    }
}
