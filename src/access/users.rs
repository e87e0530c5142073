//! Users of our own, for replicas that come while nobody else can judge them.

use std::fmt;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::credentials::{Credentials, same};

/// Most of them.
pub const USERS_MAX: usize = 256;

/// Somebody the operator named in the configuration.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// What it calls itself in its AUTH.
    pub name: String,
    /// What its password is known by.
    pub password: Known,
    /// Whether it may have the data.
    pub may_replicate: bool,
}

/// What a password is known by.
#[derive(Clone, PartialEq, Eq)]
pub enum Known {
    /// Itself.
    Plain(Zeroizing<Vec<u8>>),
    /// Its SHA-256, which is what Redis keeps of a user's password. Whoever has it can try passwords as fast as he can
    /// hash, so it is good for long random ones only.
    Sha256([u8; 32]),
}

impl User {
    /// Whether these are its credentials, in a time that does not tell where the passwords differ.
    pub fn is(&self, named: &Credentials) -> bool {
        if self.name.as_bytes() != named.user() {
            return false;
        }
        match &self.password {
            Known::Plain(password) => same(password, named.password()),
            Known::Sha256(digest) => same(digest, &Sha256::digest(named.password())),
        }
    }
}

impl Known {
    /// Of 64 hexadecimal digits, with or without the `#` of an ACL in front.
    pub fn of_sha256(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('#').unwrap_or(text);
        let mut digest = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
        }
        Some(Self::Sha256(digest))
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(password: Known) -> User {
        User { name: "replica".to_owned(), password, may_replicate: true }
    }

    #[test]
    fn a_user_is_known_by_name_and_password_in_either_form() {
        // printf right | sha256sum
        let digest = "#27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9";
        for user in [user(Known::Plain(b"right".to_vec().into())), user(Known::of_sha256(digest).unwrap())] {
            assert!(user.is(&Credentials::own(Some("replica"), b"right")), "{user:?}");
            for (name, password) in [(Some("replica"), "wrong"), (Some("other"), "right"), (None, "right"), (None, "")]
            {
                assert!(!user.is(&Credentials::own(name, password.as_bytes())), "{name:?} {password}");
            }
        }
    }

    #[test]
    fn a_digest_is_64_hexadecimal_digits_and_nothing_else() {
        for bad in ["", "#", "27042f4e", &"g".repeat(64), &"+1".repeat(32), &"a".repeat(65)] {
            assert!(Known::of_sha256(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nothing_of_a_password_is_shown() {
        assert!(!format!("{:?}", user(Known::Plain(b"hunter2".to_vec().into()))).contains("hunter2"));
    }
}
