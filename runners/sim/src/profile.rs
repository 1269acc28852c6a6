//! Which processor the machine has: its CPUID, as data.

use std::str::FromStr;

use privet_cpu::state::{cr4, efer};
use privet_cpu::{Config, CpuState, CpuidResult, fpu};
use privet_silicon::psp::AsidRange;
use privet_silicon::svm::{Features, SevFeatures};
use serde::{Deserialize, Serialize};

use crate::error::SimError;

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Profile {
    /// An AMD EPYC of family 19h with SVM, without memory encryption.
    #[default]
    Plain,
    /// An AMD EPYC of the fourth generation ("Genoa"), with SEV, SEV-ES and SEV-SNP.
    Genoa,
}

impl Profile {
    /// All profiles.
    pub const ALL: &'static [Profile] = &[Profile::Plain, Profile::Genoa];

    /// Its name on command lines and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Profile::Plain => "plain",
            Profile::Genoa => "genoa",
        }
    }
}

impl FromStr for Profile {
    type Err = SimError;

    fn from_str(name: &str) -> Result<Profile, SimError> {
        Profile::ALL.iter().copied().find(|profile| profile.name() == name).ok_or_else(|| {
            let known: Vec<_> = Profile::ALL.iter().map(|profile| profile.name()).collect();
            SimError::Description(format!("no profile is named \"{name}\": there is {}", known.join(", ")))
        })
    }
}

/// ASIDs of guests whose memory is encrypted, as firmware divides them.
const ENCRYPTED_ASIDS: AsidRange = AsidRange { min_sev: 100, max: 509 };
/// The upper halves of YMM in an image of XSAVE.
const AVX_OFFSET: u32 = 576;
const AVX_BYTES: u32 = 256;
const NAME: &[u8; 48] = b"AMD EPYC (privet sim)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Bits of leaf 1.
mod leaf1 {
    /// SSE3 SSSE3 CMPXCHG16B SSE4.1 MOVBE POPCNT TSC-DEADLINE XSAVE.
    pub(super) const ECX: u32 = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 22 | 1 << 23 | 1 << 24 | 1 << 26;
    pub(super) const OSXSAVE: u32 = 1 << 27;
    pub(super) const AVX: u32 = 1 << 28;
    /// FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
    pub(super) const EDX: u32 = 0x0789_fbff | 1 << 17;
    pub(super) const APIC: u32 = 1 << 9;
    pub(super) const HTT: u32 = 1 << 28;
}

/// The part of leaf 1's EDX that leaf 0x8000_0001 repeats.
const REPEATED: u32 = 0x0183_f3ff;

const fn registers(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

const VENDOR: CpuidResult = registers(0, 0x6874_7541, 0x444d_4163, 0x6974_6e65);

fn name(part: usize) -> CpuidResult {
    let word = |index: usize| {
        let at = part * 16 + index * 4;
        u32::from_le_bytes([NAME[at], NAME[at + 1], NAME[at + 2], NAME[at + 3]])
    };
    registers(word(0), word(1), word(2), word(3))
}

impl Profile {
    /// Whether x2APIC mode exists.
    pub(crate) fn has_x2apic(self) -> bool {
        match self {
            Profile::Plain | Profile::Genoa => false,
        }
    }

    /// Family 19h: model and stepping.
    fn signature(self) -> u32 {
        match self {
            Profile::Plain => 0x00a0_0f11,
            Profile::Genoa => 0x00a1_0f11,
        }
    }

    /// What it encrypts.
    pub(crate) fn sev(self) -> Option<SevFeatures> {
        match self {
            Profile::Plain => None,
            Profile::Genoa => {
                let asids = ENCRYPTED_ASIDS;
                Some(SevFeatures { c_bit: 51, reduced_bits: 6, asids, encrypted_state: true, snp: true })
            }
        }
    }

    /// The width of physical addresses that CPUID tells.
    fn physical_bits(self) -> u8 {
        match self {
            Profile::Plain => 48,
            Profile::Genoa => 52,
        }
    }

    /// The width that is left with memory encryption: the bits above are reserved in page tables.
    pub(crate) fn usable_physical_bits(self) -> u8 {
        self.physical_bits() - self.sev().map_or(0, |sev| sev.reduced_bits)
    }

    /// Components that XCR0 may have.
    fn xcr0(self) -> u64 {
        match self {
            Profile::Plain => fpu::XCR0_X87 | fpu::XCR0_SSE,
            Profile::Genoa => fpu::XCR0_X87 | fpu::XCR0_SSE | fpu::XCR0_AVX,
        }
    }

    fn has_avx(self) -> bool {
        self.xcr0() & fpu::XCR0_AVX != 0
    }

    /// What the interpreter needs to know.
    pub(crate) fn config(self) -> Config {
        Config {
            physical_bits: self.usable_physical_bits(),
            cr4_allowed: cr4::BASELINE | cr4::UMIP | cr4::FSGSBASE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP,
            efer_allowed: efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::SVME,
            xcr0_allowed: self.xcr0(),
            ..Config::default()
        }
    }

    /// What its SVM can do.
    pub(crate) fn svm(self) -> Features {
        let Config { cr4_allowed, efer_allowed, physical_bits, .. } = self.config();
        let sev = self.sev();
        Features { cr4: cr4_allowed, efer: efer_allowed, physical_bits, sev, ..Features::current() }
    }

    /// CPUID of one processor of several (AMD APM volume 3, appendix E).
    pub(crate) fn cpuid(self, cpu: usize, cpus: usize, state: &CpuState, leaf: u32, subleaf: u32) -> CpuidResult {
        let (id, cpus) = (cpu as u32, cpus as u32);
        let several = cpus > 1;
        match (leaf, subleaf) {
            (0, _) => CpuidResult { eax: 0x10, ..VENDOR },
            (1, _) => {
                let osxsave = if state.cr4 & cr4::OSXSAVE != 0 { leaf1::OSXSAVE } else { 0 };
                let apic = if state.apic_base & 1 << 11 != 0 { leaf1::APIC } else { 0 };
                let htt = if several { leaf1::HTT } else { 0 };
                let avx = if self.has_avx() { leaf1::AVX } else { 0 };
                // Cache lines of 64 bytes.
                let ebx = id << 24 | cpus << 16 | 8 << 8;
                registers(self.signature(), ebx, leaf1::ECX | avx | osxsave, leaf1::EDX & !leaf1::APIC | apic | htt)
            }
            // The APIC timer always runs.
            (6, _) => registers(1 << 2, 0, 0, 0),
            // FSGSBASE BMI1 SMEP BMI2 ERMS SMAP CLFLUSHOPT CLWB; UMIP; FSRM.
            (7, 0) => registers(0, 1 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 20 | 1 << 23 | 1 << 24, 1 << 2, 1 << 4),
            (0xb, 0) => registers(0, 1, 1 << 8, id),
            (0xb, 1) => registers(3, cpus, 2 << 8 | 1, id),
            (0xb, _) => registers(0, 0, subleaf & 0xff, id),
            // What XCR0 may have, and the size of the image with what it has.
            (0xd, 0) => {
                let size = |xcr0: u64| if xcr0 & fpu::XCR0_AVX != 0 { AVX_OFFSET + AVX_BYTES } else { AVX_OFFSET };
                registers(self.xcr0() as u32, size(state.xcr0), size(self.xcr0()), 0)
            }
            (0xd, 2) if self.has_avx() => registers(AVX_BYTES, AVX_OFFSET, 0, 0),
            // XSAVEOPT and XGETBV with ECX = 1.
            (0xd, 1) => registers(1 << 0 | 1 << 2, 0, 0, 0),
            (0x8000_0000, _) => CpuidResult { eax: 0x8000_0021, ..VENDOR },
            (0x8000_0001, _) => {
                // LAHF, CMP_LEGACY, SVM, ABM, PREFETCHW.
                let ecx = 1 | u32::from(several) << 1 | 1 << 2 | 1 << 5 | 1 << 8;
                // SYSCALL NX 1-GIB-PAGES RDTSCP LM.
                let edx = leaf1::EDX & REPEATED | 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
                registers(self.signature(), 0x4000_0000, ecx, edx)
            }
            (0x8000_0002..=0x8000_0004, _) => name((leaf - 0x8000_0002) as usize),
            // Caches and TLBs of Zen 3.
            (0x8000_0005, _) => registers(0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140),
            (0x8000_0006, _) => registers(0x4800_6400, 0x6800_6400, 0x0200_6140, 0x0100_9140),
            // The TSC is invariant.
            (0x8000_0007, _) => registers(0, 0, 0, 1 << 8),
            (0x8000_0008, _) => {
                let sizes = u32::from(self.physical_bits()) | 48 << 8;
                registers(sizes, 1 << 2, if several { 3 << 12 | (cpus - 1) } else { 0 }, 0)
            }
            (0x8000_000a, _) => self.svm().cpuid(),
            (0x8000_001f, _) => self.sev().map_or(CpuidResult::default(), |sev| sev.cpuid()),
            // LFENCE serializes, and null selectors clear their bases.
            (0x8000_0021, _) => registers(1 << 2 | 1 << 6, 0, 0, 0),
            _ => CpuidResult::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_found_by_name() {
        assert_eq!("plain".parse::<Profile>().unwrap(), Profile::Plain);
        assert!("nothing".parse::<Profile>().unwrap_err().to_string().contains("plain"));
    }

    #[test]
    fn no_hypervisor_shows() {
        let state = CpuState::reset();
        let leaf = Profile::Plain.cpuid(0, 2, &state, 1, 0);
        assert_eq!(leaf.ecx >> 31, 0);
        assert_eq!(Profile::Plain.cpuid(0, 2, &state, 0x4000_0000, 0), CpuidResult::default());
    }

    #[test]
    fn each_processor_tells_its_own_apic_id() {
        let state = CpuState::reset();
        for cpu in 0..4 {
            assert_eq!(Profile::Plain.cpuid(cpu, 4, &state, 1, 0).ebx >> 24, cpu as u32);
            assert_eq!(Profile::Plain.cpuid(cpu, 4, &state, 0xb, 0).edx, cpu as u32);
        }
    }
}
