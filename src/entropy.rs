//! Where chance comes from: marks and jitter. A trait, so that a simulation's seed decides them.

use std::time::Duration;

/// A source of random bytes.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with random ones.
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Entropy {
    /// Forty lower-case hexadecimal characters, as ids and payload marks are made of.
    pub fn hex40(&self) -> [u8; 40] {
        let mut raw = [0; 20];
        self.fill(&mut raw);
        let mut text = [0; 40];
        for (pair, byte) in text.chunks_exact_mut(2).zip(raw) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 15)];
        }
        text
    }

    /// A number below `bound`, or 0 when that is 0. The bias of the remainder does not matter for jitter.
    pub fn below(&self, bound: u64) -> u64 {
        let mut raw = [0; 8];
        self.fill(&mut raw);
        u64::from_le_bytes(raw).checked_rem(bound).unwrap_or(0)
    }

    /// A duration from zero up to `most`.
    pub fn jitter(&self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros.saturating_add(1)))
    }
}

/// The operating system's entropy.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the kernel always has entropy once it runs user programs");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forty_hexadecimal_characters_make_an_id() {
        let entropy: &dyn Entropy = &SystemEntropy;
        let mark = entropy.hex40();
        assert!(crate::repl::ReplId::from_ascii(&mark).is_some());
        assert_ne!(mark, entropy.hex40());
        assert_eq!(entropy.below(0), 0);
        assert!(entropy.below(10) < 10);
        assert!(entropy.jitter(Duration::from_millis(5)) <= Duration::from_millis(5));
    }
}
