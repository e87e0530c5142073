//! What somebody goes by who asks a running psyncd: a few of the settings, from wherever they are given, whether the rest
//! of them make sense or not.

use std::path::PathBuf;

use super::secrets::admin_token;
use super::sources::{Flags, Surroundings, Values};
use super::{Config, Error, Secret, Socket, tls};
use crate::net::tls::Options;

/// What is shown to an admin port, and what it has to show. Files are not opened but for the token's.
#[derive(Debug)]
pub struct Caller {
    /// The token, where one is given.
    pub token: Option<Secret>,
    /// For a port that speaks TLS.
    pub tls: Option<Options>,
    /// Worth a line.
    pub warnings: Vec<String>,
}

/// How the admin port is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// In clear.
    Http,
    /// In TLS.
    Https,
}

impl Config {
    /// Where the control socket of a psyncd with these settings is.
    pub fn socket(flags: &Flags, around: &Surroundings<'_>) -> Result<Socket, Error> {
        Values::gather(flags, around)?.0.socket()
    }

    /// The directory of a psyncd with these settings.
    pub fn dir(flags: &Flags, around: &Surroundings<'_>) -> Result<Option<PathBuf>, Error> {
        Values::gather(flags, around)?.0.path("dir")
    }

    /// What an admin port is called with.
    pub fn caller(flags: &Flags, around: &Surroundings<'_>, scheme: Scheme) -> Result<Caller, Error> {
        let (values, _) = Values::gather(flags, around)?;
        let mut warnings = Vec::new();
        let token = admin_token(&values, around, &mut warnings)?;
        let tls = match scheme {
            Scheme::Http => None,
            Scheme::Https => Some(tls::of_caller(&values)?),
        };
        Ok(Caller { token, tls, warnings })
    }
}
