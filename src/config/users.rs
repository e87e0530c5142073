//! `[[user]]`: the one thing in the file that is no setting, because there can be any number of them.
//!
//! ```toml
//! [[user]]
//! name = "replica"
//! password-file = "/etc/psyncd/replica"   # or password-hash, 64 hexadecimal digits of SHA-256
//! replicate = "yes"                       # which is the default
//! ```

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::secrets::read_secret;
use super::sources::{Entry, Origin};
use super::{Error, Surroundings};
use crate::access::users::{Known, USERS_MAX, User};

/// What stands in one of them.
pub(super) const KEYS: &[&str] = &["name", "password-file", "password-hash", "replicate"];

/// Reads them all.
pub(super) fn of(entries: &[Entry], around: &Surroundings<'_>, warnings: &mut Vec<String>) -> Result<Vec<User>, Error> {
    let mut users: BTreeMap<String, User> = BTreeMap::new();
    for Entry { values, origin } in entries {
        let wrong = |why: &str| Err(Error::Contradiction(format!("[[user]] ({origin}) {why}")));
        let Some(name) = values.get("name").filter(|name| !name.is_empty()) else { return wrong("has no name") };
        let password = match (values.get("password-file"), values.get("password-hash")) {
            (Some(path), None) => {
                let secret = read_secret(path.as_ref(), around, warnings);
                match secret {
                    Ok(bytes) => Known::Plain(Zeroizing::new(bytes)),
                    Err(why) => return wrong(&format!("password-file {why}")),
                }
            }
            (None, Some(hash)) => match Known::of_sha256(hash) {
                Some(known) => known,
                None => return wrong("password-hash is not 64 hexadecimal digits, the SHA-256 of a password"),
            },
            (None, None) => return wrong("has neither password-file nor password-hash"),
            (Some(_), Some(_)) => return wrong("has both password-file and password-hash: give one of them"),
        };
        let may_replicate = match values.get("replicate").map(String::as_str) {
            None => true,
            Some("yes") => true,
            Some("no") => false,
            Some(_) => return wrong("replicate is neither yes nor no"),
        };
        let user = User { name: name.clone(), password, may_replicate };
        if users.insert(name.clone(), user).is_some() {
            return wrong(&format!("is the second one called {name:?}"));
        }
    }
    if users.len() > USERS_MAX {
        return Err(Error::Contradiction(format!("there are {} [[user]], and at most {USERS_MAX}", users.len())));
    }
    Ok(users.into_values().collect())
}

/// As they would stand in a file, without what their passwords are known by.
pub(super) fn print(entries: &[Entry]) -> String {
    let mut text = String::new();
    for Entry { values, origin } in entries {
        text.push_str(&format!("\n[[user]]  # {origin}\n"));
        for (key, value) in values {
            let value = if *key == "password-hash" { "***" } else { value };
            text.push_str(&format!("{key} = {}\n", serde_json::json!(value)));
        }
    }
    text
}

/// Whether `key` of the file is theirs.
pub(super) fn is_ours(key: &str) -> bool {
    key == "user"
}

/// What is wrong with a key in one of them.
pub(super) fn unknown(key: &str, origin: Origin) -> Error {
    Error::Key { key: key.to_owned(), hint: format!("a [[user]] has {}", KEYS.join(", ")), origin }
}
