//! The only source of chance in the simulation: everything random is a pure function of one seed.

/// splitmix64. Forks by label, so that one actor's draws never shift another's.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// An independent source for the actor called `label`; the same label gives the same source.
    pub fn fork(&self, label: &str) -> Self {
        let mut child = Self(self.0 ^ 0x5851_f42d_4c95_7f2d);
        for byte in label.bytes() {
            child.0 ^= u64::from(byte);
            child.draw();
        }
        Self(child.draw())
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `n - 1`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n.max(1)
    }

    /// From `low` to `high`, both inclusive.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `n` times out of `of`.
    pub fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    pub fn millis(&mut self, low: u64, high: u64) -> std::time::Duration {
        std::time::Duration::from_millis(self.between(low, high))
    }

    /// How much of `whole` to move at once: often all of it, often a byte or two, otherwise anything.
    pub fn chunk(&mut self, whole: usize) -> usize {
        match self.below(8) {
            0 => 1.min(whole),
            1 => (self.between(1, 9) as usize).min(whole),
            2..=4 => self.between(1, whole.max(1) as u64) as usize,
            _ => whole,
        }
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.draw().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }

    /// A replication id.
    pub fn replid(&mut self) -> psyncd::repl::ReplId {
        let text = format!("{:016x}{:016x}{:08x}", self.draw(), self.draw(), self.draw() as u32);
        psyncd::repl::ReplId::from_ascii(text.as_bytes()).expect("forty hexadecimal digits")
    }
}
