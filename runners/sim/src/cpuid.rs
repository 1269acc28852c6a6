//! What CPUID says (AMD APM volume 3, appendix E): only what CPU, silicon and board really do.

use privet_cpu::state::cr4;
use privet_cpu::{CpuState, CpuidResult, Extensions, fpu};

use crate::profile::Processors;

const NAME: &[u8; 48] = b"AMD EPYC (privet sim)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const VENDOR: CpuidResult = registers(0, 0x6874_7541, 0x444d_4163, 0x6974_6e65);

/// Bits of Fn0000_0001 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
const BASIC: u32 = 0x078b_f9ff;
const APIC: u32 = 1 << 9;
/// With 512 of them, all of memory is covered.
const RMP_SEGMENT_MAX: u32 = 43;
const HTT: u32 = 1 << 28;
/// The part of it that Fn8000_0001 repeats.
const REPEATED: u32 = 0x0183_f3ff;

const fn registers(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

/// A word with these bits set.
fn bits(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |word, number| word | 1 << number)
}

/// A word with the bits set that come with a true.
fn bits_if(list: &[(bool, u32)]) -> u32 {
    list.iter().fold(0, |word, (on, number)| word | u32::from(*on) << number)
}

fn name(part: usize) -> CpuidResult {
    let word = |index: usize| {
        let at = part * 16 + index * 4;
        u32::from_le_bytes([NAME[at], NAME[at + 1], NAME[at + 2], NAME[at + 3]])
    };
    registers(word(0), word(1), word(2), word(3))
}

impl Processors {
    /// CPUID of one processor of several, in this state.
    pub(crate) fn cpuid(self, cpu: usize, cpus: usize, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        let (id, cpus) = (cpu as u32, cpus as u32);
        let several = cpus > 1;
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: 0x10, ..VENDOR },
            (1, _) => self.features(id, cpus, state),
            // The APIC timer always runs.
            (6, _) => registers(bits(&[2]), 0, 0, 0),
            (7, 0) => structured_features(),
            (0xb, 0) => registers(0, 1, 1 << 8, id),
            (0xb, 1) => registers(3, cpus, 2 << 8 | 1, id),
            (0xb, _) => registers(0, 0, subleaf & 0xff, id),
            (0xd, _) => self.extended_state(state, subleaf),
            (0x8000_0000, _) => CpuidResult { eax: self.last_extended_leaf(), ..VENDOR },
            (0x8000_0001, _) => {
                // LAHF SVM ABM PREFETCHW, and CMP_LEGACY.
                let ecx = bits(&[0, 2, 5, 8]) | bits_if(&[(several, 1)]);
                // SYSCALL NX 1-GIB-PAGES RDTSCP LM.
                let edx = (BASIC | apic(state)) & REPEATED | bits(&[11, 20, 26, 27, 29]);
                registers(self.signature(), 0x4000_0000, ecx, edx)
            }
            (0x8000_0002..=0x8000_0004, _) => name((leaf - 0x8000_0002) as usize),
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
            // Segments of the RMP: the smallest and the largest number of bits of address.
            (0x8000_0025, _) => self
                .rmp_segment()
                .map_or(CpuidResult::default(), |shift| registers(u32::from(shift) | RMP_SEGMENT_MAX << 6, 0, 0, 0)),
            _ => CpuidResult::default(),
        }
    }

    fn last_extended_leaf(self) -> u32 {
        if self.rmp_segment().is_some() { 0x8000_0025 } else { 0x8000_0021 }
    }

    fn features(self, id: u32, cpus: u32, state: &CpuState) -> CpuidResult {
        let has = Extensions::of_host();
        // SSE3 SSSE3 CMPXCHG16B PCID SSE4.1 SSE4.2 MOVBE POPCNT TSC-DEADLINE XSAVE RDRAND.
        let ecx = bits(&[0, 9, 13, 17, 19, 20, 22, 23, 24, 26, 30])
            | bits_if(&[
                (has.pclmulqdq, 1),
                (has.fma, 12),
                (self.has_x2apic(), 21),
                (has.aes, 25),
                (state.cr4 & cr4::OSXSAVE != 0, 27),
                (has.avx, 28),
                (has.f16c, 29),
            ]);
        // Cache lines of 64 bytes.
        let ebx = id << 24 | cpus << 16 | 8 << 8;
        registers(self.signature(), ebx, ecx, BASIC | apic(state) | if cpus > 1 { HTT } else { 0 })
    }

    fn extended_state(self, state: &CpuState, subleaf: u32) -> CpuidResult {
        let all = self.xcr0();
        match subleaf {
            0 => registers(all as u32, fpu::standard_size(state.xcr0) as u32, fpu::standard_size(all) as u32, 0),
            // XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES.
            1 => registers(bits(&[0, 1, 2, 3]), fpu::compacted_size(state.xcr0 | state.xss) as u32, 0, 0),
            2 if all & fpu::XCR0_AVX != 0 => registers(256, fpu::XSAVE_AVX as u32, 0, 0),
            _ => CpuidResult::default(),
        }
    }
}

/// The APIC's bit follows its base register.
fn apic(state: &CpuState) -> u32 {
    if state.apic_base & 1 << 11 != 0 { APIC } else { 0 }
}

fn structured_features() -> CpuidResult {
    let has = Extensions::of_host();
    // FSGSBASE BMI1 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB.
    let ebx = bits(&[0, 3, 7, 8, 9, 10, 18, 19, 20, 23, 24]) | bits_if(&[(has.avx2, 5), (has.sha, 29)]);
    // UMIP RDPID.
    let ecx = bits(&[2, 22]) | bits_if(&[(has.vaes, 9), (has.vpclmulqdq, 10)]);
    // FSRM.
    registers(0, ebx, ecx, bits(&[4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    fn query(cpu: usize, leaf: u32) -> CpuidResult {
        Processors::from(Profile::Plain).cpuid(cpu, 4, &CpuState::reset(), leaf, 0)
    }

    #[test]
    fn no_hypervisor_shows() {
        assert_eq!(query(0, 1).ecx >> 31, 0);
        assert_eq!(query(0, 0x4000_0000), CpuidResult::default());
    }

    #[test]
    fn each_processor_tells_its_own_apic_id() {
        for cpu in 0..4 {
            assert_eq!((query(cpu, 1).ebx >> 24, query(cpu, 0xb).edx), (cpu as u32, cpu as u32));
        }
    }

    #[test]
    fn osxsave_and_the_size_of_the_state_follow_the_processor() {
        let mut state = CpuState::reset();
        let ask = |state: &CpuState, leaf| Processors::from(Profile::Plain).cpuid(0, 1, state, leaf, 0);
        assert_eq!((ask(&state, 1).ecx >> 27 & 1, ask(&state, 0xd).ebx), (0, 576));
        state.cr4 |= cr4::OSXSAVE;
        state.xcr0 = 7;
        assert_eq!((ask(&state, 1).ecx >> 27 & 1, ask(&state, 0xd).ebx), (1, 832));
    }
}
