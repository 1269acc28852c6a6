//! CPUID of AMD's processors (APM volume 3, appendix E).

use privet_cpu::{CpuState, CpuidResult};

use super::{BASIC, FSRM, HTT, apic, bits, bits_if, name, registers, structured_ebx, structured_ecx, topology};
use crate::profile::Processors;

const NAME: &[u8; 48] = b"AMD EPYC (privet sim)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const VENDOR: CpuidResult = registers(0, 0x6874_7541, 0x444d_4163, 0x6974_6e65);
/// With 512 of them, all of memory is covered.
const RMP_SEGMENT_MAX: u32 = 43;
/// The part of [`BASIC`] that Fn8000_0001 repeats.
const REPEATED: u32 = 0x0183_f3ff;

impl Processors {
    pub(super) fn cpuid_of_amd(self, (id, cpus): (u32, u32), state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        let several = cpus > 1;
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: 0x10, ..VENDOR },
            (1, _) => self.features_of_amd((id, cpus), state),
            // The APIC timer always runs.
            (6, _) => registers(bits(&[2]), 0, 0, 0),
            (7, 0) => registers(0, structured_ebx(), structured_ecx(), FSRM),
            (0xb, _) => topology((id, cpus), subleaf),
            (0xd, _) => self.extended_state(state, subleaf),
            (0x8000_0000, _) => CpuidResult { eax: self.last_extended_leaf(), ..VENDOR },
            (0x8000_0001, _) => {
                // LAHF SVM ABM PREFETCHW, and CMP_LEGACY.
                let ecx = bits(&[0, 2, 5, 8]) | bits_if(&[(several, 1)]);
                // SYSCALL NX 1-GIB-PAGES RDTSCP LM.
                let edx = (BASIC | apic(state)) & REPEATED | bits(&[11, 20, 26, 27, 29]);
                registers(self.signature(), 0x4000_0000, ecx, edx)
            }
            (0x8000_0002..=0x8000_0004, _) => name(NAME, (leaf - 0x8000_0002) as usize),
            // Caches and TLBs of Zen 3.
            (0x8000_0005, _) => registers(0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140),
            (0x8000_0006, _) => registers(0x4800_6400, 0x6800_6400, 0x0200_6140, 0x0100_9140),
            // The TSC is invariant.
            (0x8000_0007, _) => registers(0, 0, 0, bits(&[8])),
            (0x8000_0008, _) => {
                let sizes = u32::from(self.physical_bits()) | 48 << 8;
                // Error pointers of x87 are restored.
                registers(sizes, bits(&[2]), if several { 3 << 12 | (cpus - 1) } else { 0 }, 0)
            }
            (0x8000_000a, _) => self.svm().cpuid(),
            (0x8000_001f, _) => self.sev().map_or(CpuidResult::default(), |sev| sev.cpuid()),
            // LFENCE serializes, and null selectors clear their bases.
            (0x8000_0021, _) => registers(bits(&[2, 6]), 0, 0, 0),
            // Segments of the RMP: the smallest and the largest number of bits of address in EAX, in EBX how many the
            // processor keeps at hand, which is no limit (Documentation/arch/x86/amd-memory-encryption.rst, Segmented RMP).
            (0x8000_0025, _) => self
                .rmp_segment()
                .map_or(CpuidResult::default(), |shift| registers(u32::from(shift) | RMP_SEGMENT_MAX << 6, 0, 0, 0)),
            _ => CpuidResult::default(),
        }
    }

    fn last_extended_leaf(self) -> u32 {
        if self.rmp_segment().is_some() { 0x8000_0025 } else { 0x8000_0021 }
    }

    fn features_of_amd(self, (id, cpus): (u32, u32), state: &CpuState) -> CpuidResult {
        // Cache lines of 64 bytes.
        let ebx = id << 24 | cpus << 16 | 8 << 8;
        let edx = BASIC | apic(state) | if cpus > 1 { HTT } else { 0 };
        registers(self.signature(), ebx, self.common_features(state), edx)
    }
}
