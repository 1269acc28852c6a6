//! The MSRs of AMD's processors only (PPR of family 19h; APM volume 2, appendix A).

use super::Kind::{self, Absent, Fixed, Stored};
use super::{PATCH_LEVEL, SYSCFG};
use crate::ram::LOW_END;

pub(super) fn kind(index: u32) -> Option<Kind> {
    const ANY: u64 = u64::MAX;
    Some(match index {
        // FEATURE_CONTROL (VMX), MKTME partitioning: probed whatever CPUID says.
        0x3a | 0x87 => Absent,
        PATCH_LEVEL => Fixed(0x0a00_11d5),
        // SYSCFG: the MTRRs' DRAM bits as firmware leaves them.
        SYSCFG => Stored(0x74_0000, 0x7c_0000),
        // HWCR: SMM is locked; the TSC counts with the frequency of P0.
        0xc001_0015 => Stored(0x0100_0011, 0x0900_0011),
        // TOP_MEM and TOP_MEM2.
        0xc001_001a => Stored(LOW_END, ANY),
        0xc001_001d => Stored(0, ANY),
        // NB_CFG: firmware leaves extended configuration through ports off.
        0xc001_001f => Stored(0, ANY),
        // MMIO configuration space: none.
        0xc001_0058 => Stored(0, 0),
        // DE_CFG: LFENCE serializes. BP_CFG.
        0xc001_1029 => Stored(2, ANY),
        0xc001_102e => Stored(0, ANY),
        // Performance counters, old and new, and IBS: not in CPUID.
        0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b | 0xc001_1030..=0xc001_103b => Absent,
        _ => return None,
    })
}
