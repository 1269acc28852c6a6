//! A set of interrupt vectors, as the 256-bit registers of a local APIC keep them.

use serde::{Deserialize, Serialize};

/// IRR, ISR or TMR.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vectors([u32; 8]);

impl Vectors {
    pub(crate) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector / 32)] |= 1 << (vector % 32);
    }

    pub(crate) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector / 32)] &= !(1 << (vector % 32));
    }

    pub(crate) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 32)] >> (vector % 32) & 1 != 0
    }

    /// The highest vector, which is the one of the highest priority.
    pub(crate) fn highest(&self) -> Option<u8> {
        (0..8u8).rev().find_map(|index| {
            let bits = self.0[usize::from(index)];
            (bits != 0).then(|| index * 32 + (31 - bits.leading_zeros() as u8))
        })
    }

    /// One of the eight registers that hold the set.
    pub(crate) fn word(&self, index: usize) -> u32 {
        self.0[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_comes_first() {
        let mut vectors = Vectors::default();
        assert_eq!(vectors.highest(), None);
        for vector in [0x31, 0xff, 0x20] {
            vectors.insert(vector);
        }
        assert_eq!(vectors.highest(), Some(0xff));
        vectors.remove(0xff);
        assert_eq!(vectors.highest(), Some(0x31));
        assert!(vectors.contains(0x20) && !vectors.contains(0x21));
        assert_eq!(vectors.word(1), 1 << 17 | 1);
    }
}
