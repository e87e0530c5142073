//! Lines that only who knows a secret can write, and that cannot be used twice.
//!
//! A sealed line is its text, a space, and 64 hexadecimal digits: HMAC-SHA256 with the secret over
//!
//! ```text
//!   "psyncd-assist-1"  asker's nonce (40)  fencer's nonce (40)  "A" or "F": who says it  number (8, big-endian)  text
//! ```
//!
//! Both nonces are of this one conversation and each side counts what it says, so a line that was heard elsewhere or
//! before proves nothing.

use std::fmt::Write;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// What every seal begins with.
const DOMAIN: &[u8] = b"psyncd-assist-1";
/// Digits of a seal.
const DIGITS: usize = 64;

/// Who says a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who asks for a fence.
    Asker = b'A' as isize,
    /// Who builds it.
    Fencer = b'F' as isize,
}

/// One side of a conversation. Its `Debug` form shows no secret.
#[derive(Clone)]
pub struct Seal {
    keyed: Hmac<Sha256>,
    ours: Side,
    said: u64,
    heard: u64,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal").field("ours", &self.ours).finish_non_exhaustive()
    }
}

impl Seal {
    /// For the side `ours` of the conversation with these nonces.
    pub fn new(secret: &[u8], asker: &[u8; 40], fencer: &[u8; 40], ours: Side) -> Self {
        let mut keyed = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
        for part in [DOMAIN, asker, fencer] {
            keyed.update(part);
        }
        Self { keyed, ours, said: 0, heard: 0 }
    }

    /// `text` with its seal.
    pub fn seal(&mut self, text: &str) -> String {
        let digest = self.digest(self.ours, self.said, text).finalize().into_bytes();
        self.said += 1;
        let mut sealed = format!("{text} ");
        for byte in digest {
            write!(sealed, "{byte:02x}").expect("a String takes everything");
        }
        sealed
    }

    /// The text of what the other side sealed; `None` when it did not. The comparison takes the same time wherever they
    /// differ.
    pub fn open<'a>(&mut self, sealed: &'a str) -> Option<&'a str> {
        let (text, digits) = sealed.rsplit_once(' ')?;
        let theirs = match self.ours {
            Side::Asker => Side::Fencer,
            Side::Fencer => Side::Asker,
        };
        self.digest(theirs, self.heard, text).verify_slice(&bytes(digits)?).ok()?;
        self.heard += 1;
        Some(text)
    }

    fn digest(&self, side: Side, number: u64, text: &str) -> Hmac<Sha256> {
        let mut digest = self.keyed.clone();
        digest.update(&[side as u8]);
        digest.update(&number.to_be_bytes());
        digest.update(text.as_bytes());
        digest
    }
}

fn bytes(digits: &str) -> Option<[u8; DIGITS / 2]> {
    let digits: &[u8; DIGITS] = digits.as_bytes().try_into().ok()?;
    let mut bytes = [0; DIGITS / 2];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(value(pair[0])? * 16 + value(pair[1])?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(theirs: &[u8]) -> (Seal, Seal) {
        let (asker, fencer) = ([b'1'; 40], [b'2'; 40]);
        (Seal::new(b"secret", &asker, &fencer, Side::Asker), Seal::new(theirs, &asker, &fencer, Side::Fencer))
    }

    #[test]
    fn what_one_side_seals_the_other_opens_once_and_in_order() {
        let (mut asker, mut fencer) = pair(b"secret");
        let (first, second) = (asker.seal("FENCE x"), asker.seal("DEMOTE"));
        assert_eq!(fencer.open(&second), None, "not its turn");
        assert_eq!(fencer.open(&first), Some("FENCE x"));
        assert_eq!(fencer.open(&first), None, "not twice");
        assert_eq!(fencer.open(&second), Some("DEMOTE"));
        let answer = fencer.seal("GO");
        assert_eq!(fencer.clone().open(&answer), None, "not back to whoever said it");
        assert_eq!(asker.open(&answer), Some("GO"));
    }

    #[test]
    fn without_the_secret_or_with_a_changed_word_nothing_is_opened() {
        let (mut asker, mut stranger) = pair(b"another");
        let sealed = asker.seal("READY 42");
        assert_eq!(stranger.open(&sealed), None);
        let (_, fencer) = pair(b"secret");
        assert_eq!(fencer.clone().open(&sealed), Some("READY 42"));
        for bad in [&sealed.replace("42", "43"), &sealed[..sealed.len() - 1], "READY", "", " ", &format!("{sealed}0")] {
            assert_eq!(fencer.clone().open(bad), None, "{bad:?}");
        }
        let elsewhere = Seal::new(b"secret", &[b'1'; 40], &[b'3'; 40], Side::Fencer);
        assert_eq!(elsewhere.clone().open(&sealed), None, "of another conversation");
    }
}
