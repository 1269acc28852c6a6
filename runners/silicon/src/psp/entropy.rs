//! Where keys and nonces come from.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Random bytes of the secure processor. They follow from a seed, so that a machine runs the same way again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entropy {
    seed: [u8; 32],
    drawn: u64,
}

impl Entropy {
    pub(super) fn new(seed: [u8; 32]) -> Entropy {
        Entropy { seed, drawn: 0 }
    }

    /// The next `N` bytes, which nobody else gets.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(32) {
            let block = Sha256::new().chain_update(self.seed).chain_update(self.drawn.to_le_bytes()).finalize();
            self.drawn += 1;
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_again_and_none_twice() {
        let (mut one, mut two) = (Entropy::new([1; 32]), Entropy::new([1; 32]));
        let first: [u8; 48] = one.bytes();
        assert_eq!(first, two.bytes());
        assert_ne!(first, one.bytes());
        assert_ne!(first[..16], first[32..]);
    }
}
