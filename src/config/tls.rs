//! The settings of TLS, which mean something only together.

use std::str::FromStr;

use super::reading::{parse_host, parse_yes};
use super::{Error, Values};
use crate::net::Address;
use crate::net::tls::files::Pair;
use crate::net::tls::{Callers, Options, Verify};

/// Handshakes at once are bounded like connections, by `maxclients`.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Where those who speak it are listened for, if anywhere; never 0.
    pub port: Option<u16>,
    /// Whether only these are listened for.
    pub only: bool,
    /// Whether the upstream is spoken to in it.
    pub upstream: bool,
    /// Whether replicas and other psyncds are, at the addresses they announced.
    pub peers: bool,
    /// Whether Sentinels are.
    pub sentinels: bool,
    /// Whether the admin server speaks it.
    pub admin: bool,
    /// The names of which a replica's certificate must have one; none lets every replica in.
    pub allowed_replicas: Option<Vec<String>>,
    /// Files and rules; none where nobody speaks it.
    pub options: Option<Options>,
}

/// Whether others are spoken to in TLS: in the same network they mostly are if the upstream is.
pub(super) enum LikeUpstream {
    Upstream,
    Yes,
    No,
}

impl LikeUpstream {
    pub(super) const WORDS: &'static [&'static str] = &["upstream", "yes", "no"];

    fn holds(&self, upstream: bool) -> bool {
        match self {
            LikeUpstream::Upstream => upstream,
            LikeUpstream::Yes => true,
            LikeUpstream::No => false,
        }
    }
}

impl FromStr for LikeUpstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "upstream" => Ok(LikeUpstream::Upstream),
            "yes" => Ok(LikeUpstream::Yes),
            "no" => Ok(LikeUpstream::No),
            _ => Err("is none of these words".to_owned()),
        }
    }
}

/// What keys of redis.conf have no counterpart here, and why.
pub(super) fn unsupported(key: &str) -> Option<&'static str> {
    Some(match key.to_ascii_lowercase().replace('_', "-").as_str() {
        "tls-dh-params-file" => {
            "DH parameters are not supported: key exchange is always by elliptic curves; leave it out"
        }
        "tls-key-file-pass" | "tls-client-key-file-pass" => {
            "encrypted private keys are not supported: decrypt it (openssl pkey -in KEY -out NEW) and let only psyncd's \
             user read it"
        }
        "tls-protocols" => "TLS 1.2 and 1.3 are always both allowed, older versions are not supported; leave it out",
        "tls-ciphers" | "tls-ciphersuites" | "tls-prefer-server-ciphers" => {
            "cipher lists are not supported: only ciphers that are safe are built in; leave it out"
        }
        "tls-ca-cert-dir" => {
            "directories of authorities are not supported: put them into one file, for tls-ca-cert-file"
        }
        "tls-session-caching" | "tls-session-cache-size" | "tls-session-cache-timeout" => {
            "the session cache needs no setting; leave it out"
        }
        _ => return None,
    })
}

/// Reads them all and says what does not fit.
pub(super) fn of(values: &Values) -> Result<Tls, Error> {
    let port: u16 = values.narrow("tls-port")?;
    let port = (port > 0).then_some(port);
    let only = values.required("tls-only", parse_yes)?;
    let upstream = values.required("upstream-tls", parse_yes)?;
    let like = |name| values.required(name, |_, text| text.parse::<LikeUpstream>());
    let (peers, sentinels) = (like("peer-tls")?.holds(upstream), like("sentinel-tls")?.holds(upstream));
    let admin = values.required("admin-tls", parse_yes)?;
    let server = pair(values, "tls-cert-file", "tls-key-file")?;
    let client = pair(values, "tls-client-cert-file", "tls-client-key-file")?;
    let authority = values.path("tls-ca-cert-file")?;
    let callers = values.required("tls-auth-clients", |_, text| match text {
        "yes" => Ok(Callers::Certified),
        "no" => Ok(Callers::Anyone),
        "optional" => Ok(Callers::MaybeCertified),
        _ => Err("is none of these words".to_owned()),
    })?;
    let verify = verify(values)?;
    let name = values.parsed("tls-server-name", |_, text| parse_host(text))?;
    let allowed_replicas = values.parsed("tls-allow-replicas", |_, text| {
        let names: Vec<String> = text.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if names.is_empty() { Err("names nobody".to_owned()) } else { Ok(names) }
    })?;
    let wrong = |what: String| Err(Error::Contradiction(what));
    for (wanted, what) in [(port.is_some(), "tls-port"), (admin, "admin-tls")] {
        if wanted && server.is_none() {
            return wrong(format!("{what} needs a certificate to show: give tls-cert-file and tls-key-file"));
        }
        if wanted && callers != Callers::Anyone && authority.is_none() {
            return wrong(format!(
                "{what} asks for certificates (tls-auth-clients) and cannot check them: give tls-ca-cert-file, or \
                 tls-auth-clients no"
            ));
        }
    }
    if only && port.is_none() {
        return wrong("tls-only leaves no port to listen on: give tls-port".to_owned());
    }
    if port.is_some() && !only && port == Some(values.narrow("port")?) {
        return wrong("tls-port and port are the same".to_owned());
    }
    for (wanted, what) in [(upstream, "upstream-tls"), (peers, "peer-tls"), (sentinels, "sentinel-tls")] {
        if wanted && verify != Verify::Nothing && authority.is_none() {
            return wrong(format!(
                "{what} cannot check certificates (tls-verify): give tls-ca-cert-file, or tls-verify none"
            ));
        }
    }
    if allowed_replicas.is_some() && (port.is_none() || callers == Callers::Anyone) {
        return wrong(
            "tls-allow-replicas needs the certificates of replicas: give tls-port, and tls-auth-clients yes or optional"
                .to_owned(),
        );
    }
    let address = values.address("upstream")?;
    if let (Some(Address::Unix(_)), true) = (&address, upstream) {
        return wrong("upstream-tls has no meaning for an upstream on a unix socket".to_owned());
    }
    let options = (port.is_some() || upstream || peers || sentinels || admin).then_some(Options {
        client: client.or_else(|| server.clone()),
        server: server.filter(|_| port.is_some() || admin),
        authority,
        callers,
        verify,
        upstream: address,
        server_name: name,
        handshake_timeout: values.time("handshake-timeout")?,
        dial_timeout: values.time("connect-timeout")? * 4 / 5,
        max_handshakes: values.narrow("maxclients")?,
    });
    Ok(Tls { port, only, upstream, peers, sentinels, admin, allowed_replicas, options })
}

/// What somebody goes by who calls the admin port of a psyncd: its authority and what is shown to it.
pub(super) fn of_caller(values: &Values) -> Result<Options, Error> {
    let (authority, verify) = (values.path("tls-ca-cert-file")?, verify(values)?);
    if verify != Verify::Nothing && authority.is_none() {
        return Err(Error::Contradiction(
            "the certificate of an https:// admin port cannot be checked (tls-verify): give tls-ca-cert-file, or \
             tls-verify none"
                .to_owned(),
        ));
    }
    let server = pair(values, "tls-cert-file", "tls-key-file")?;
    let patience = values.time("connect-timeout")?;
    Ok(Options {
        client: pair(values, "tls-client-cert-file", "tls-client-key-file")?.or(server),
        server: None,
        authority,
        callers: Callers::Anyone,
        verify,
        upstream: None,
        server_name: None,
        handshake_timeout: patience,
        dial_timeout: patience,
        max_handshakes: 1,
    })
}

fn verify(values: &Values) -> Result<Verify, Error> {
    values.required("tls-verify", |_, text| match text {
        "full" => Ok(Verify::Full),
        "ca" => Ok(Verify::Chain),
        "none" => Ok(Verify::Nothing),
        _ => Err("is none of these words".to_owned()),
    })
}

/// Two files that are nothing alone.
fn pair(values: &Values, certificate: &'static str, key: &'static str) -> Result<Option<Pair>, Error> {
    match (values.path(certificate)?, values.path(key)?) {
        (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(Error::Contradiction(format!("{certificate} is set without {key}"))),
        (None, Some(_)) => Err(Error::Contradiction(format!("{key} is set without {certificate}"))),
    }
}
