//! CPUID: what the CPU of the model has, and what a vCPU shows of it.
//!
//! Source: `arch/x86/kvm/cpuid.c`.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use nix::errno::Errno;
use privet_cpu::state::{cr4, efer};
use privet_cpu::{Config, CpuState, CpuidResult};

use crate::options::Options;
use crate::personality::Personality;
use crate::user::zeroed;

/// Entries that `KVM_SET_CPUID2` takes at most (`KVM_MAX_CPUID_ENTRIES`).
pub(crate) const ENTRIES_MAX: u32 = 256;

/// Bits of leaf 1.
mod leaf1 {
    // ECX: SSE3, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, POPCNT, XSAVE, hypervisor.
    pub(super) const ECX: u32 = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 23 | XSAVE | 1 << 31;
    pub(super) const XSAVE: u32 = 1 << 26;
    pub(super) const X2APIC: u32 = 1 << 21;
    pub(super) const OSXSAVE: u32 = 1 << 27;
    // EDX: FPU, VME, DE, PSE, TSC, MSR, PAE, MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH, MMX,
    // FXSR, SSE, SSE2.
    pub(super) const EDX: u32 = 0x078b_fbff;
    pub(super) const APIC: u32 = 1 << 9;
}

/// Bits of leaf 7.
mod leaf7 {
    pub(super) const FSGSBASE: u32 = 1 << 0;
    pub(super) const SMEP: u32 = 1 << 7;
    pub(super) const SMAP: u32 = 1 << 20;
    pub(super) const UMIP: u32 = 1 << 2;
    pub(super) const LA57: u32 = 1 << 16;
}

/// Bits of leaf 0x80000001.
mod extended {
    // EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
    pub(super) const EDX: u32 = 1 << 11 | NX | 1 << 26 | 1 << 27 | LM;
    pub(super) const NX: u32 = 1 << 20;
    pub(super) const LM: u32 = 1 << 29;
    pub(super) const GIGABYTE_PAGES: u32 = 1 << 26;
    // ECX: LAHF.
    pub(super) const ECX: u32 = 1 << 0;
}

/// x87 and SSE.
pub(crate) const XCR0_SUPPORTED: u64 = 3;
/// The size of their XSAVE image.
const XSAVE_SIZE: u32 = 576;

/// `KVM_GET_SUPPORTED_CPUID`.
pub(crate) fn supported(options: &Options) -> Vec<kvm_cpuid_entry2> {
    let vendor = options.personality.cpu_vendor();
    let word = |at: usize| u32::from_le_bytes([vendor[at], vendor[at + 1], vendor[at + 2], vendor[at + 3]]);
    let vendor_leaf = |function, max| entry(function, [max, word(0), word(8), word(4)]);
    // Zen 3 "Milan" and Sapphire Rapids.
    let (signature, extended_max) = match options.personality {
        Personality::Amd | Personality::Plain => (0x00a0_0f11, 0x8000_001f),
        Personality::Intel => (0x0008_06f8, 0x8000_0008),
    };
    let la57 = if options.la57 { leaf7::LA57 } else { 0 };
    let linear_bits = if options.la57 { 57 } else { 48 };
    let clflush_8_quadwords = 8 << 8;
    let hypervisor = *b"KVMKVMKVM\0\0\0";
    let part =
        |at: usize| u32::from_le_bytes([hypervisor[at], hypervisor[at + 1], hypervisor[at + 2], hypervisor[at + 3]]);
    // NOP_IO_DELAY, HC_MAP_GPA_RANGE.
    let paravirtual_features = 1 << 1 | 1 << 16;
    let mut entries = vec![
        vendor_leaf(0, 0xd),
        entry(1, [signature, clflush_8_quadwords, leaf1::ECX, leaf1::EDX]),
        indexed(7, 0, [0, leaf7::FSGSBASE | leaf7::SMEP | leaf7::SMAP, leaf7::UMIP | la57, 0]),
        indexed(0xb, 0, [0; 4]),
        indexed(0xd, 0, [XCR0_SUPPORTED as u32, XSAVE_SIZE, XSAVE_SIZE, 0]),
        indexed(0xd, 1, [0; 4]),
        entry(0x4000_0000, [0x4000_0001, part(0), part(4), part(8)]),
        entry(0x4000_0001, [paravirtual_features, 0, 0, 0]),
        vendor_leaf(0x8000_0000, extended_max),
        entry(0x8000_0001, [signature, 0, extended::ECX, extended::EDX]),
    ];
    let brand = b"privet model\0";
    entries.extend((0..3).map(|index| {
        let byte = |at: usize| u32::from(*brand.get(index * 16 + at).unwrap_or(&0));
        let word = |at: usize| byte(at) | byte(at + 1) << 8 | byte(at + 2) << 16 | byte(at + 3) << 24;
        entry(0x8000_0002 + index as u32, [word(0), word(4), word(8), word(12)])
    }));
    let invariant_tsc = 1 << 8;
    entries.push(entry(0x8000_0007, [0, 0, 0, invariant_tsc]));
    entries.push(entry(0x8000_0008, [options.personality.physical_address_bits() | linear_bits << 8, 0, 0, 0]));
    entries
}

fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..zeroed() }
}

fn indexed(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { index, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..entry(function, registers) }
}

/// The CPUID of a vCPU, as user space has set it.
#[derive(Clone, Default)]
pub(crate) struct GuestCpuid {
    entries: Vec<kvm_cpuid_entry2>,
}

impl GuestCpuid {
    /// CPUID from user space.
    ///
    /// # Errors
    /// EINVAL for linear addresses of an impossible width (kernel: `kvm_check_cpuid`).
    pub(crate) fn new(entries: Vec<kvm_cpuid_entry2>) -> Result<Self, Errno> {
        let cpuid = Self { entries };
        match cpuid.find(0x8000_0008, 0).map_or(0, |entry| entry.eax >> 8 & 0xff) {
            0 | 48 | 57 => Ok(cpuid),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether it says the same as another to a vCPU in this state.
    pub(crate) fn same_as(&self, other: &Self, state: &CpuState) -> bool {
        self.entries(state) == other.entries(state)
    }

    /// The entries, with the bits that follow the vCPU's state (kernel: `kvm_update_cpuid_runtime`).
    pub(crate) fn entries(&self, state: &CpuState) -> Vec<kvm_cpuid_entry2> {
        self.entries.iter().map(|entry| at_run_time(entry, state)).collect()
    }

    fn find(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.iter().find(|entry| {
            entry.function == function && (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == index)
        })
    }

    /// What the guest reads (kernel: `kvm_cpuid`). Beyond the highest leaf of a class an Intel CPU shows its
    /// highest basic leaf, an AMD CPU zeros.
    pub(crate) fn query(&self, state: &CpuState, options: &Options, leaf: u32, subleaf: u32) -> CpuidResult {
        let mut found = self.find(leaf, subleaf);
        if found.is_none() && options.personality == Personality::Intel {
            let class = self.find(leaf & 0x8000_0000, 0);
            let beyond = class.is_none_or(|class| leaf > class.eax);
            found = beyond.then(|| self.find(self.find(0, 0)?.eax, subleaf)).flatten();
        }
        let Some(entry) = found else { return CpuidResult::default() };
        let entry = at_run_time(entry, state);
        CpuidResult { eax: entry.eax, ebx: entry.ebx, ecx: entry.ecx, edx: entry.edx }
    }

    fn has(&self, function: u32, register: fn(&kvm_cpuid_entry2) -> u32, bit: u32) -> bool {
        self.find(function, 0).is_some_and(|entry| register(entry) & bit != 0)
    }

    /// x2APIC mode exists.
    pub(crate) fn has_x2apic(&self) -> bool {
        self.has(1, |entry| entry.ecx, leaf1::X2APIC)
    }

    /// Bits of a guest-physical address; 36 if CPUID does not say.
    pub(crate) fn physical_bits(&self) -> u32 {
        self.find(0x8000_0008, 0).map_or(36, |entry| entry.eax & 0xff).clamp(1, 52)
    }

    /// The CPU that this CPUID describes.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        let ebx: fn(&kvm_cpuid_entry2) -> u32 = |entry| entry.ebx;
        let ecx: fn(&kvm_cpuid_entry2) -> u32 = |entry| entry.ecx;
        let edx: fn(&kvm_cpuid_entry2) -> u32 = |entry| entry.edx;
        let optional = [
            (1, ecx, leaf1::XSAVE, cr4::OSXSAVE),
            (7, ebx, leaf7::FSGSBASE, cr4::FSGSBASE),
            (7, ebx, leaf7::SMEP, cr4::SMEP),
            (7, ebx, leaf7::SMAP, cr4::SMAP),
            (7, ecx, leaf7::UMIP, cr4::UMIP),
            (7, ecx, leaf7::LA57, cr4::LA57),
        ];
        let allowed = optional.into_iter().filter(|(leaf, register, bit, _)| self.has(*leaf, *register, *bit));
        config.cr4_allowed &= allowed.fold(cr4::BASELINE, |mask, (.., bit)| mask | bit);
        let mut efer_allowed = efer::SCE;
        if self.has(0x8000_0001, edx, extended::LM) {
            efer_allowed |= efer::LME | efer::LMA;
        }
        if self.has(0x8000_0001, edx, extended::NX) {
            efer_allowed |= efer::NXE;
        }
        config.efer_allowed &= efer_allowed;
        config.physical_bits = self.physical_bits().max(36) as u8;
        config.xcr0_allowed = XCR0_SUPPORTED;
        config.gigabyte_pages = self.has(0x8000_0001, edx, extended::GIGABYTE_PAGES);
        config
    }
}

fn at_run_time(entry: &kvm_cpuid_entry2, state: &CpuState) -> kvm_cpuid_entry2 {
    let mut entry = *entry;
    let set = |word: &mut u32, bit: u32, on: bool| *word = if on { *word | bit } else { *word & !bit };
    let apic_enabled = 1 << 11;
    match entry.function {
        1 => {
            if entry.ecx & leaf1::XSAVE != 0 {
                set(&mut entry.ecx, leaf1::OSXSAVE, state.cr4 & cr4::OSXSAVE != 0);
            }
            set(&mut entry.edx, leaf1::APIC, state.apic_base & apic_enabled != 0);
        }
        7 if entry.index == 0 => {
            let ospke = 1 << 4;
            set(&mut entry.ecx, ospke, state.cr4 & cr4::PKE != 0);
        }
        0xd if entry.index == 0 => entry.ebx = XSAVE_SIZE,
        _ => {}
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_personality_is_a_64_bit_cpu_with_its_vendor() {
        for personality in Personality::ALL {
            let options = Options { personality, ..Options::default() };
            let cpuid = GuestCpuid::new(supported(&options)).unwrap();
            let state = CpuState::reset();
            let vendor = cpuid.query(&state, &options, 0, 0);
            let text: Vec<u8> =
                [vendor.ebx, vendor.edx, vendor.ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
            assert_eq!(text, personality.cpu_vendor());
            assert_eq!(cpuid.physical_bits(), personality.physical_address_bits());
            assert_ne!(cpuid.config().efer_allowed & efer::LME, 0);
        }
    }

    #[test]
    fn osxsave_follows_cr4_and_nothing_is_allowed_without_cpuid() {
        let options = Options::default();
        let cpuid = GuestCpuid::new(supported(&options)).unwrap();
        let mut state = CpuState::reset();
        assert_eq!(cpuid.query(&state, &options, 1, 0).ecx & leaf1::OSXSAVE, 0);
        state.cr4 |= cr4::OSXSAVE;
        assert_ne!(cpuid.query(&state, &options, 1, 0).ecx & leaf1::OSXSAVE, 0);
        let none = GuestCpuid::default().config();
        assert_eq!((none.cr4_allowed & cr4::SMEP, none.efer_allowed), (0, efer::SCE));
    }

    #[test]
    fn an_impossible_linear_width_is_refused() {
        assert_eq!(GuestCpuid::new(vec![entry(0x8000_0008, [48 | 49 << 8, 0, 0, 0])]).err(), Some(Errno::EINVAL));
    }
}
