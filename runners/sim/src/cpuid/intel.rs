//! CPUID of Intel's processors (SDM volume 2, CPUID).

use privet_cpu::{CpuState, CpuidResult};

use super::{BASIC, FSRM, HTT, apic, bits, bits_if, name, registers, structured_ebx, structured_ecx, topology};
use crate::clock::TSC_HZ;
use crate::profile::Processors;

const NAME: &[u8; 48] = b"Intel Xeon (privet sim)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const VENDOR: CpuidResult = registers(0, 0x756e_6547, 0x6c65_746e, 0x4965_6e69);
const LAST_LEAF: u32 = 0x1f;
const LAST_EXTENDED_LEAF: u32 = 0x8000_0008;
/// Frequency of the crystal that the TSC is derived from.
const CRYSTAL_HZ: u32 = 25_000_000;
const MHZ: u64 = 1_000_000;
/// Leaf 7 ECX: total memory encryption.
const TME: u32 = 13;

impl Processors {
    pub(super) fn cpuid_of_intel(
        self,
        (id, cpus): (u32, u32),
        state: &CpuState,
        leaf: u32,
        subleaf: u32,
    ) -> CpuidResult {
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: LAST_LEAF, ..VENDOR },
            (1, _) => self.features_of_intel((id, cpus), state),
            // Caches and TLBs are told by leaf 4 (descriptor FFh), and there is nothing to prefetch.
            (2, _) => registers(0x00fe_ff01, 0, 0, 0),
            (4, _) => cache(subleaf, cpus),
            // The APIC timer always runs.
            (6, _) => registers(bits(&[2]), 0, 0, 0),
            (7, 0) => {
                // MOVDIR64B; MD_CLEAR is none of its business, IA32_ARCH_CAPABILITIES says why.
                let ecx = structured_ecx() | bits(&[28]) | bits_if(&[(self.has_tdx(), TME)]);
                registers(0, structured_ebx(), ecx, FSRM | bits(&[29]))
            }
            (0xb | 0x1f, _) => topology((id, cpus), subleaf),
            (0xd, _) => self.extended_state(state, subleaf),
            (0x15, _) => registers(1, (TSC_HZ / u64::from(CRYSTAL_HZ)) as u32, CRYSTAL_HZ, 0),
            (0x16, _) => registers((TSC_HZ / MHZ) as u32, (TSC_HZ / MHZ) as u32, 100, 0),
            (0x8000_0000, _) => registers(LAST_EXTENDED_LEAF, 0, 0, 0),
            // LAHF LZCNT PREFETCHW; SYSCALL NX 1-GIB-PAGES RDTSCP LM.
            (0x8000_0001, _) => registers(0, 0, bits(&[0, 5, 8]), bits(&[11, 20, 26, 27, 29])),
            (0x8000_0002..=0x8000_0004, _) => name(NAME, (leaf - 0x8000_0002) as usize),
            // A cache of 2 MiB on the second level, 16-way, in lines of 64 bytes.
            (0x8000_0006, _) => registers(0, 0, 0x0800_8040, 0),
            // The TSC is invariant.
            (0x8000_0007, _) => registers(0, 0, 0, bits(&[8])),
            (0x8000_0008, _) => registers(u32::from(self.physical_bits()) | 48 << 8, 0, 0, 0),
            _ => CpuidResult::default(),
        }
    }

    fn features_of_intel(self, (id, cpus): (u32, u32), state: &CpuState) -> CpuidResult {
        // Cache lines of 64 bytes.
        let ebx = id << 24 | cpus << 16 | 8 << 8;
        // VMX; self-snooping caches.
        let ecx = self.common_features(state) | bits(&[5]);
        let edx = BASIC | apic(state) | bits(&[27]) | if cpus > 1 { HTT } else { 0 };
        registers(self.signature(), ebx, ecx, edx)
    }
}

/// Leaf 4: two caches of the first level, one of the second, and a shared one.
fn cache(index: u32, cpus: u32) -> CpuidResult {
    const DATA: u32 = 1;
    const CODE: u32 = 2;
    const UNIFIED: u32 = 3;
    const SELF_INITIALIZING: u32 = 1 << 8;
    let (kind, level, sharing, ways, sets) = match index {
        0 => (DATA, 1, 1, 12, 64),
        1 => (CODE, 1, 1, 16, 64),
        2 => (UNIFIED, 2, 1, 16, 2048),
        3 => (UNIFIED, 3, cpus, 16, 8192),
        _ => return CpuidResult::default(),
    };
    let eax = kind | level << 5 | SELF_INITIALIZING | (sharing - 1) << 14 | (cpus.next_power_of_two() - 1) << 26;
    registers(eax, (ways - 1) << 22 | 63, sets - 1, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    fn query(leaf: u32, subleaf: u32) -> CpuidResult {
        Processors::from(Profile::Granite).cpuid(1, 4, &CpuState::reset(), leaf, subleaf)
    }

    #[test]
    fn it_is_a_granite_rapids_with_vmx() {
        let leaf = query(1, 0);
        assert_eq!((leaf.eax, leaf.ecx >> 5 & 1, leaf.ecx >> 31), (0x000a_06d1, 1, 0));
        assert_eq!(query(0, 0).ebx.to_le_bytes(), *b"Genu");
    }

    /// FRED would have Linux enter its kernel in a way that this CPU has not.
    #[test]
    fn there_is_no_fred_and_there_are_no_counters() {
        assert_eq!((query(7, 1), query(0xa, 0)), (CpuidResult::default(), CpuidResult::default()));
    }

    #[test]
    fn the_frequency_of_the_tsc_is_told() {
        let leaf = query(0x15, 0);
        assert_eq!(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax), TSC_HZ);
    }
}
