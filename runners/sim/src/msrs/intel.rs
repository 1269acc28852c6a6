//! The MSRs of Intel's processors only (SDM volume 4, chapter 2).

use super::Kind::{self, Absent, Fixed, Ignoring, Stored};
use super::PATCH_LEVEL;

/// IA32_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO,
/// PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO: what Linux would mitigate otherwise. There is no speculation.
pub(crate) const ARCH_CAPABILITIES: u64 =
    1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62;
/// IA32_MISC_ENABLE: fast strings; no branch trace storage, no PEBS.
const MISC_ENABLE: u64 = 1 << 0 | 1 << 11 | 1 << 12;

pub(super) fn kind(index: u32) -> Option<Kind> {
    Some(match index {
        // PLATFORM_ID.
        0x17 => Fixed(0),
        // SMI_COUNT, TSX_FORCE_ABORT and their like: probed whatever CPUID says.
        0x34 | 0x4e | 0x140 | 0x64e => Absent,
        // MKTME partitioning: no memory encryption.
        0x87 => Absent,
        // The revision of the microcode, in its upper half. WRMSR of 0 asks CPUID to tell it.
        PATCH_LEVEL => Ignoring(0x0a00_0133 << 32),
        // PLATFORM_INFO: the ratio of the base frequency, 20 times 100 MHz.
        0xce => Fixed(20 << 8),
        0x10a => Fixed(ARCH_CAPABILITIES),
        0x1a0 => Stored(MISC_ENABLE, 1 << 0 | 1 << 18 | 1 << 34),
        // ENERGY_PERF_BIAS and thermal monitoring: not in CPUID.
        0x1b0 | 0x19b | 0x19c | 0x1b1 | 0x1b2 => Absent,
        // VMFUNC, tertiary controls, and the second word of exit controls.
        0x491..=0x493 => Absent,
        // AMD's, probed by KVM.
        0xc001_0117 | 0xc001_0015 | 0xc001_1029 | 0xc001_0010 | 0xc001_001f => Absent,
        _ => return None,
    })
}
