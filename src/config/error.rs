//! Why a configuration does not hold.

use std::path::PathBuf;

use super::sources::Origin;

/// What is wrong with the configuration, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key of the file that is none of ours.
    #[error("unknown key {key:?} ({origin}): {hint}")]
    Key {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// What was probably meant.
        hint: String,
    },
    /// A variable with our prefix that is none of ours.
    #[error("unknown environment variable {name}: {hint}")]
    Variable {
        /// As written.
        name: String,
        /// What was probably meant.
        hint: String,
    },
    /// A value that is no text at all.
    #[error("{name} ({origin}) {why}")]
    Type {
        /// The setting.
        name: &'static str,
        /// Where.
        origin: Origin,
        /// What it is instead.
        why: String,
    },
    /// A value that is not allowed.
    #[error("{name} = {shown} ({origin}) {why}; allowed: {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// The value, or what stands for a secret.
        shown: String,
        /// Where.
        origin: Origin,
        /// What is wrong with it.
        why: String,
        /// What would be right.
        allowed: String,
    },
    /// A setting without a default that nobody set.
    #[error("{name} is not set: give --{name} {placeholder}, {env}, or {name} = \"{placeholder}\" in {}", file.display())]
    Missing {
        /// The setting.
        name: &'static str,
        /// What its value looks like.
        placeholder: &'static str,
        /// Its variable.
        env: String,
        /// The file that was looked for.
        file: PathBuf,
    },
    /// A file that cannot be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Values that are right alone and wrong together.
    #[error("{0}")]
    Contradiction(String),
}
