//! Ways to cut bytes into pieces, chosen by the bytes themselves: so an input is nothing but what a peer sent.

/// The ways.
pub(crate) struct Cuts<'a> {
    data: &'a [u8],
    seed: u64,
}

impl<'a> Cuts<'a> {
    pub(crate) fn of(data: &'a [u8]) -> Self {
        let seed = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { data, seed: seed | 1 }
    }

    /// Byte by byte (where there are few), in pieces of one to seven, and of one to a hundred.
    pub(crate) fn pieces(&self) -> Vec<Vec<&'a [u8]>> {
        let mut ways = vec![self.chopped(7), self.chopped(100)];
        if self.data.len() <= 2048 {
            ways.push(self.data.chunks(1).collect());
        }
        ways
    }

    /// Some lengths of a front of the data, both ends included.
    pub(crate) fn places(&self) -> Vec<usize> {
        let mut places = vec![0, self.data.len()];
        let mut at = 0;
        for piece in self.chopped(1 + self.data.len() / 8) {
            at += piece.len();
            places.extend([at, at.saturating_sub(1)]);
        }
        places
    }

    fn chopped(&self, most: usize) -> Vec<&'a [u8]> {
        let (mut rest, mut chance, mut pieces) = (self.data, self.seed, Vec::new());
        while !rest.is_empty() {
            // xorshift64
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            let take = (1 + chance as usize % most).min(rest.len());
            let (piece, more) = rest.split_at(take);
            pieces.push(piece);
            rest = more;
        }
        pieces
    }
}
