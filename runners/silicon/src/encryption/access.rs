//! Which of a guest's accesses use the guest's key.

use privet_cpu::AccessKind;

/// What of a guest's state decides about its key, besides the C-bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestMode {
    /// Page tables whose entries have a C-bit: long mode or PAE.
    CBit,
    /// Paging off, or page tables of 32 bits, which have none.
    NoCBit,
}

/// Whether an access of an encrypted guest is private, that is, uses the guest's key (APM volume 2, 15.34.5 and
/// table 15-31). `c_bit` is that of the guest's own leaf entry.
#[must_use]
pub fn guest_access_is_private(mode: GuestMode, kind: AccessKind, walk: bool, c_bit: bool) -> bool {
    walk || kind == AccessKind::Fetch || mode == GuestMode::NoCBit || c_bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_behind_a_c_bit_that_is_clear_is_shared() {
        use AccessKind::{Fetch, Read, Write};
        use GuestMode::{CBit, NoCBit};
        assert!(!guest_access_is_private(CBit, Read, false, false));
        assert!(!guest_access_is_private(CBit, Write, false, false));
        assert!(guest_access_is_private(CBit, Read, false, true));
        assert!(guest_access_is_private(CBit, Fetch, false, false), "fetches are always private");
        assert!(guest_access_is_private(CBit, Read, true, false), "page walks are always private");
        assert!(guest_access_is_private(NoCBit, Write, false, false), "so is all without a C-bit");
    }
}
