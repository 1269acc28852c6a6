//! What CPUID says: only what CPU, silicon and board really do. What is common is here, the rest by vendor.

mod amd;
mod intel;

use privet_cpu::state::cr4;
use privet_cpu::{CpuState, CpuidResult, Extensions, Vendor, fpu};

use crate::profile::Processors;

/// Bits of leaf 1 EDX: FPU VME DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
const BASIC: u32 = 0x078b_f9ff;
const APIC: u32 = 1 << 9;
const HTT: u32 = 1 << 28;

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

/// A third of the name of a processor.
fn name(name: &[u8; 48], part: usize) -> CpuidResult {
    let word = |index: usize| {
        let at = part * 16 + index * 4;
        u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]])
    };
    registers(word(0), word(1), word(2), word(3))
}

impl Processors {
    /// CPUID of one processor of several, in this state.
    pub(crate) fn cpuid(self, cpu: usize, cpus: usize, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        let (id, cpus) = (cpu as u32, cpus as u32);
        match self.profile.vendor() {
            Vendor::Amd => self.cpuid_of_amd((id, cpus), state, leaf, subleaf),
            Vendor::Intel => self.cpuid_of_intel((id, cpus), state, leaf, subleaf),
        }
    }

    /// Bits of leaf 1 ECX that both vendors have: SSE3 SSSE3 CMPXCHG16B PCID SSE4.1 SSE4.2 MOVBE POPCNT TSC-DEADLINE
    /// XSAVE RDRAND, and what the host has.
    fn common_features(self, state: &CpuState) -> u32 {
        let has = Extensions::of_host();
        bits(&[0, 9, 13, 17, 19, 20, 22, 23, 24, 26, 30])
            | bits_if(&[
                (has.pclmulqdq, 1),
                (has.fma, 12),
                (self.has_x2apic(), 21),
                (has.aes, 25),
                (state.cr4 & cr4::OSXSAVE != 0, 27),
                (has.avx, 28),
                (has.f16c, 29),
            ])
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

/// Leaf 7 EBX: FSGSBASE BMI1 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB, and what the host has.
fn structured_ebx() -> u32 {
    let has = Extensions::of_host();
    bits(&[0, 3, 7, 8, 9, 10, 18, 19, 20, 23, 24]) | bits_if(&[(has.avx2, 5), (has.sha, 29)])
}

/// Leaf 7 ECX: UMIP RDPID, and what the host has.
fn structured_ecx() -> u32 {
    let has = Extensions::of_host();
    bits(&[2, 22]) | bits_if(&[(has.vaes, 9), (has.vpclmulqdq, 10)])
}

/// Leaf 7 EDX: FSRM.
const FSRM: u32 = 1 << 4;

/// Leaf 0Bh: threads, of which a core has one, and cores.
fn topology((id, cpus): (u32, u32), subleaf: u32) -> CpuidResult {
    match subleaf {
        0 => registers(0, 1, 1 << 8, id),
        1 => registers(3, cpus, 2 << 8 | 1, id),
        _ => registers(0, 0, subleaf & 0xff, id),
    }
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
