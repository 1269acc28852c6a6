//! What this processor encrypts: the one source of CPUID Fn8000_001F and of what VMRUN makes of the SEV bits.

use privet_cpu::CpuidResult;
use serde::{Deserialize, Serialize};

use crate::psp::AsidRange;

/// Memory encryption of a processor.
///
/// Absent from all processors here: SME, secure TSC, debug register virtualization, restricted and alternate
/// injection, virtual TOM, secure AVIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SevFeatures {
    /// The bit of a page table entry that makes a page private.
    pub c_bit: u8,
    /// By how many bits encryption narrows physical addresses.
    pub reduced_bits: u8,
    /// ASIDs with which guests may be encrypted.
    pub asids: AsidRange,
    /// Guests' registers may be encrypted, too: SEV-ES.
    pub encrypted_state: bool,
    /// The RMP, and what belongs to it.
    pub snp: bool,
    /// The hypervisor reads the RMP by RMPREAD, and it may be in segments.
    pub rmpread: bool,
}

/// Virtual machine privilege levels.
const VMPLS: u32 = 4;

impl SevFeatures {
    /// CPUID Fn8000_001F (APM volume 3, E.4.17).
    #[must_use]
    pub fn cpuid(&self) -> CpuidResult {
        let bits = [
            (true, 1),
            (self.encrypted_state, 3),
            (self.snp, 4),
            (self.snp, 5),
            (self.snp, 6),
            // Caches are coherent across keys: nobody has to flush when a page changes hands.
            (true, 10),
            (self.snp && self.rmpread, 21),
            (self.snp && self.rmpread, 23),
        ];
        // Bit 31: a page that changes its state leaves no lines in caches that the guest had to evict.
        let vmpls = if self.snp { VMPLS << 12 | 1 << 31 } else { 0 };
        CpuidResult {
            eax: bits.into_iter().map(|(has, bit)| u32::from(has) << bit).sum(),
            ebx: u32::from(self.c_bit) | u32::from(self.reduced_bits) << 6 | vmpls,
            ecx: self.asids.max.into(),
            edx: self.asids.min_sev.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// arch/x86/kernel/cpu/amd.c: early_detect_mem_encrypt; arch/x86/kvm/svm/sev.c: sev_hardware_setup.
    #[test]
    fn linux_finds_its_way() {
        let asids = AsidRange { min_sev: 100, max: 509 };
        let all = SevFeatures { c_bit: 51, reduced_bits: 6, asids, encrypted_state: true, snp: true, rmpread: false };
        let leaf = all.cpuid();
        assert_eq!((leaf.eax, leaf.ecx, leaf.edx), (0x47a, 509, 100));
        assert_eq!((leaf.ebx & 0x3f, leaf.ebx >> 6 & 0x3f, leaf.ebx >> 12 & 0xf, leaf.ebx >> 31), (51, 6, 4, 1));
        assert_eq!(SevFeatures { encrypted_state: false, snp: false, ..all }.cpuid().eax, 0x402);
        assert_eq!(SevFeatures { rmpread: true, ..all }.cpuid().eax, 0xa0_047a);
    }
}
