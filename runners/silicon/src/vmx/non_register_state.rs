//! The guest's activity and interruptibility states (SDM volume 3, 25.4.2), by their numbers and bits.

/// Activity states that there are here: active, and HLT.
pub(super) mod activity {
    pub(crate) const ACTIVE: u64 = 0;
    pub(crate) const HLT: u64 = 1;
}

/// Bits of the interruptibility state.
pub(super) mod blocking {
    pub(crate) const STI: u64 = 1 << 0;
    pub(crate) const MOV_SS: u64 = 1 << 1;
    pub(crate) const SMI: u64 = 1 << 2;
    pub(crate) const NMI: u64 = 1 << 3;
    pub(crate) const KNOWN: u64 = STI | MOV_SS | SMI | NMI;
}
