//! Passwords, tokens and what else nobody is shown: each given itself or in a file.

use std::fmt;
use std::path::Path;

use zeroize::Zeroizing;

use super::reading::parse_yes;
use super::sources::{Surroundings, Values};
use super::{Error, sources};

/// A password. Shows itself to nobody who does not ask for it by name, and is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Keeps `bytes`.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// A copy that is wiped like the original.
    pub fn to_zeroizing(&self) -> Zeroizing<Vec<u8>> {
        self.0.clone()
    }

    /// The password itself: never for a log, a label, a status document or an error.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret that can be given itself or as the name of a file, from whichever has the higher precedence.
pub(super) fn secret(
    values: &Values,
    around: &Surroundings<'_>,
    [name, in_file]: [&'static str; 2],
    warnings: &mut Vec<String>,
) -> Result<Option<Secret>, Error> {
    let direct = values.text(name)?;
    let path = values.path(in_file)?;
    let (Some(path), Some(file)) = (path, values.get(in_file)) else {
        return Ok(direct.map(Secret::new));
    };
    if let (Some(direct), Some(given)) = (direct, values.get(name)) {
        if given.origin.ranks_with(&file.origin) {
            return Err(Error::Contradiction(format!(
                "{name} ({}) and {in_file} ({}) are both set: give one of them",
                given.origin, file.origin
            )));
        }
        if given.origin.wins_over(&file.origin) {
            return Ok(Some(Secret::new(direct)));
        }
    }
    let bad = |why: String| Error::Type { name: in_file, origin: file.origin.clone(), why };
    read_secret(&path, around, warnings).map(|bytes| Some(Secret::new(bytes))).map_err(bad)
}

/// What a file holds, less one line end; or what is wrong with it.
pub(super) fn read_secret(
    path: &Path,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<u8>, String> {
    let read = (around.read_file)(path).map_err(|error| format!("cannot be read from {}: {error}", path.display()))?;
    if read.is_too_open() {
        warnings.push(sources::too_open(path, read.mode));
    }
    let bytes = read.bytes.strip_suffix(b"\n").unwrap_or(&read.bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if bytes.is_empty() { Err(format!("names {}, which is empty", path.display())) } else { Ok(bytes.to_vec()) }
}

/// The token of the admin port. A short one would be guessed, as nothing counts the tries.
pub(super) fn admin_token(
    values: &Values,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Secret>, Error> {
    let token = secret(values, around, ["admin-token", "admin-token-file"], warnings)?;
    match &token {
        Some(short) if short.reveal().len() < 16 => {
            Err(Error::Contradiction("admin-token is too short: 16 bytes at least, from a random source".to_owned()))
        }
        Some(_) | None => Ok(token),
    }
}

/// What is proven to other psyncds, if planned failovers are assisted.
pub(super) fn assist(
    values: &Values,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<Option<Secret>, Error> {
    let secret = secret(values, around, ["assist-secret", "assist-secret-file"], warnings)?;
    match (values.required("assist-failover", parse_yes)?, secret) {
        (true, None) => Err(Error::Contradiction(
            "assist-failover needs assist-secret or assist-secret-file: whoever knows it can stop the writes of the master"
                .to_owned(),
        )),
        (true, secret) => Ok(secret),
        (false, Some(_)) => {
            warnings.push("assist-secret has no effect without assist-failover".to_owned());
            Ok(None)
        }
        (false, None) => Ok(None),
    }
}
