//! What test memory is filled with.

/// A fill pattern. Every page of a range gets a word of its own, so that a page in the wrong place is as
/// visible as a page with the wrong content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern(pub u64);

impl Pattern {
    /// All zeros, on every page: fresh guest_memfd pages and punched holes.
    pub const ZERO: Self = Self(0);

    /// The word that fills page `index` of a range. Zero only for [`Pattern::ZERO`].
    pub const fn word(self, index: u64) -> u64 {
        if self.0 == 0 {
            return 0;
        }
        // An odd multiplier is a bijection of the indices; the pattern keeps the low 16 bits so that a hex
        // dump shows at once which pattern it is and no page of one pattern equals a page of another.
        (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 16) | (self.0 & 0xffff)
    }
}
