//! What a peer names to show who it is.

use std::fmt;
use std::hash::{Hash, Hasher};

use zeroize::Zeroizing;

use crate::wire::resp::{Args, encode_command};

/// The user of a password that was named alone.
pub const DEFAULT_USER: &[u8] = b"default";

/// A password and maybe a user, as an AUTH named them. They show themselves to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Option<Vec<u8>>,
    password: Zeroizing<Vec<u8>>,
}

impl Credentials {
    /// Of the words of an AUTH: one for a password, two for a user and a password. `None` for anything else.
    pub fn of_auth(args: &Args) -> Option<Self> {
        match args.as_slice() {
            [_, password] => Some(Self { user: None, password: password.to_vec().into() }),
            [_, user, password] => Some(Self { user: Some(user.to_vec()), password: password.to_vec().into() }),
            _ => None,
        }
    }

    /// Of the words of a HELLO, where it names any.
    pub fn of_hello(args: &Args) -> Option<Self> {
        let at = args.iter().skip(2).position(|word| word.eq_ignore_ascii_case(b"AUTH"))? + 2;
        let (user, password) = (args.get(at + 1)?, args.get(at + 2)?);
        Some(Self { user: Some(user.to_vec()), password: password.to_vec().into() })
    }

    /// What psyncd itself was told to name.
    pub fn own(user: Option<&str>, password: &[u8]) -> Self {
        Self { user: user.map(|user| user.as_bytes().to_vec()), password: password.to_vec().into() }
    }

    /// The user it is for.
    pub fn user(&self) -> &[u8] {
        self.user.as_deref().unwrap_or(DEFAULT_USER)
    }

    /// The password.
    pub fn password(&self) -> &[u8] {
        &self.password
    }

    /// Whether `other` means the same, in a time that does not tell where the passwords differ.
    pub fn is_same(&self, other: &Credentials) -> bool {
        self.user() == other.user() && same(&self.password, &other.password)
    }

    /// The AUTH that names the same.
    pub fn auth(&self) -> bytes::Bytes {
        match &self.user {
            Some(user) => encode_command(&[b"AUTH", user.as_slice(), &self.password]),
            None => encode_command(&[b"AUTH", self.password.as_slice()]),
        }
    }
}

impl Hash for Credentials {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.user, &self.password[..]).hash(state);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// Whether two secrets are equal, in a time that does not tell where they differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn of(words: &[&'static str]) -> Option<Credentials> {
        Credentials::of_auth(&words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect())
    }

    #[test]
    fn both_forms_of_auth_are_understood_and_no_other() {
        let old = of(&["AUTH", "pw"]).unwrap();
        assert_eq!((old.user(), old.password()), (&b"default"[..], &b"pw"[..]));
        assert_eq!(old.auth(), "*2\r\n$4\r\nAUTH\r\n$2\r\npw\r\n");
        let new = of(&["AUTH", "app", "pw"]).unwrap();
        assert_eq!((new.user(), new.password()), (&b"app"[..], &b"pw"[..]));
        assert_eq!(new.auth(), "*3\r\n$4\r\nAUTH\r\n$3\r\napp\r\n$2\r\npw\r\n");
        assert!(of(&["AUTH"]).is_none());
        assert!(of(&["AUTH", "a", "b", "c"]).is_none());
    }

    #[test]
    fn nothing_of_them_is_shown() {
        let shown = format!("{:?}", of(&["AUTH", "app", "hunter2"]));
        assert!(!shown.contains("hunter2") && !shown.contains("app"), "{shown}");
    }

    #[test]
    fn secrets_are_the_same_only_when_every_byte_is() {
        assert!(same(b"secret", b"secret"));
        assert!(!same(b"secret", b"secreT"));
        assert!(!same(b"secret", b"secret2"));
        assert!(!same(b"secret", b""));
    }
}
