//! Which processors the machine has.

use std::ops::Range;
use std::str::FromStr;

use privet_cpu::state::{cr4, efer};
use privet_cpu::{Config, Extensions, Vendor, fpu};
use privet_silicon::Virtualization;
use privet_silicon::psp::{AsidRange, TcbLayout};
use privet_silicon::svm::{Features, SevFeatures, Svm};
use privet_silicon::tdx;
use privet_silicon::vmx::{self, Vmx};
use serde::{Deserialize, Serialize};

use crate::clock::TSC_HZ;
use crate::error::SimError;
use crate::feature::{Feature, Without};
use crate::msrs::intel::ARCH_CAPABILITIES;

/// A kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Profile {
    /// An AMD EPYC of family 19h with SVM, without memory encryption.
    Plain,
    /// An AMD EPYC of the third generation ("Milan"), with SEV, SEV-ES and SEV-SNP, and narrower addresses.
    Milan,
    /// An AMD EPYC of the fourth generation ("Genoa"), with SEV, SEV-ES and SEV-SNP.
    #[default]
    Genoa,
    /// An AMD EPYC of the fifth generation ("Turin"): the same with RMPREAD and an RMP in segments.
    Turin,
    /// An Intel Xeon of the sixth generation ("Granite Rapids") with VMX and TDX.
    Granite,
}

impl Profile {
    /// The profile that is meant where only a vendor is named.
    #[must_use]
    pub fn default_for(vendor: Vendor) -> Profile {
        match vendor {
            Vendor::Amd => Profile::default(),
            Vendor::Intel => Profile::Granite,
        }
    }

    /// All profiles.
    pub const ALL: &'static [Profile] =
        &[Profile::Plain, Profile::Milan, Profile::Genoa, Profile::Turin, Profile::Granite];

    /// Its name on command lines and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Profile::Plain => "plain",
            Profile::Milan => "milan",
            Profile::Genoa => "genoa",
            Profile::Turin => "turin",
            Profile::Granite => "granite",
        }
    }

    /// Who makes it.
    #[must_use]
    pub fn vendor(self) -> Vendor {
        match self {
            Profile::Plain | Profile::Milan | Profile::Genoa | Profile::Turin => Vendor::Amd,
            Profile::Granite => Vendor::Intel,
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

/// Bits of an address that are a KeyID (IA32_TME_ACTIVATE), and how firmware has divided KeyIDs: those that are not 0 and
/// the host's, and those that are TDX's (IA32_MKTME_KEYID_PARTITIONING).
pub(crate) const KEYID_BITS: u8 = 6;
pub(crate) const HOST_KEYIDS: u16 = 31;
pub(crate) const TDX_KEYIDS: u16 = 32;
/// Memory below is never given to TDs.
const LEGACY_MEMORY: u64 = 1 << 20;

/// The processors of a machine: those of a profile, less some features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Processors {
    pub(crate) profile: Profile,
    pub(crate) without: Without,
}

impl From<Profile> for Processors {
    /// With all features.
    fn from(profile: Profile) -> Processors {
        Processors { profile, without: Without::default() }
    }
}

impl Processors {
    /// Whether x2APIC mode exists.
    pub(crate) fn has_x2apic(self) -> bool {
        match self.profile {
            Profile::Plain | Profile::Milan | Profile::Genoa | Profile::Turin => false,
            Profile::Granite => true,
        }
    }

    /// Family, model and stepping: family 19h, and 1Ah; family 6.
    pub(crate) fn signature(self) -> u32 {
        match self.profile {
            Profile::Plain | Profile::Milan => 0x00a0_0f11,
            Profile::Genoa => 0x00a1_0f11,
            Profile::Turin => 0x00b0_0f21,
            Profile::Granite => 0x000a_06d1,
        }
    }

    /// What it encrypts.
    pub(crate) fn sev(self) -> Option<SevFeatures> {
        match self.profile {
            Profile::Plain | Profile::Granite => None,
            _ if self.without.lacks(Feature::Sev) => None,
            Profile::Milan | Profile::Genoa | Profile::Turin => {
                let asids = ENCRYPTED_ASIDS;
                let reduced_bits = if self.profile == Profile::Milan { 5 } else { 6 };
                let encrypted_state = !self.without.lacks(Feature::SevEs);
                let snp = encrypted_state && !self.without.lacks(Feature::SevSnp);
                let rmpread = self.profile == Profile::Turin;
                Some(SevFeatures { c_bit: 51, reduced_bits, asids, encrypted_state, snp, rmpread })
            }
        }
    }

    /// Whether the firmware of the secure processor knows SNP.
    pub(crate) fn has_snp_firmware(self) -> bool {
        self.sev().is_some_and(|sev| sev.snp) && !self.without.lacks(Feature::SnpFirmware)
    }

    /// How the firmware of the secure processor tells its versions.
    pub(crate) fn tcb(self) -> TcbLayout {
        if self.profile == Profile::Turin { TcbLayout::Turin } else { TcbLayout::Milan }
    }

    /// Bits of address that a segment of the RMP is for, if it is segmented. Small ones, so that a machine has several.
    pub(crate) fn rmp_segment(self) -> Option<u8> {
        const GIB: u8 = 30;
        self.sev().filter(|sev| sev.rmpread).map(|_| GIB)
    }

    /// Whether firmware has set memory aside for the RMP.
    pub(crate) fn has_rmp_memory(self) -> bool {
        self.sev().is_some_and(|sev| sev.snp) && !self.without.lacks(Feature::RmpMemory)
    }

    /// The width of physical addresses that CPUID tells.
    pub(crate) fn physical_bits(self) -> u8 {
        match self.profile {
            Profile::Plain | Profile::Milan => 48,
            Profile::Genoa | Profile::Turin | Profile::Granite => 52,
        }
    }

    /// The width that is left with memory encryption: the bits above are reserved in page tables.
    pub(crate) fn usable_physical_bits(self) -> u8 {
        self.physical_bits() - self.sev().map_or(0, |sev| sev.reduced_bits) - self.keyid_bits()
    }

    /// Upper bits of an address that are a KeyID.
    pub(crate) fn keyid_bits(self) -> u8 {
        if self.has_tdx() { KEYID_BITS } else { 0 }
    }

    /// Whether firmware has divided KeyIDs between host and TDX, and loaded the module.
    pub(crate) fn has_tdx(self) -> bool {
        self.profile == Profile::Granite && !self.without.lacks(Feature::Tdx)
    }

    /// The machine as the TDX module finds it, with so many processors in one package, and these ranges of memory.
    pub(crate) fn tdx(self, cpus: usize, memory: impl Iterator<Item = Range<u64>>) -> Option<tdx::Chip> {
        self.has_tdx().then(|| tdx::Chip {
            // The same machine has the same keys: a run can be repeated.
            seed: *b"the tdx module of this simulator",
            packages: vec![0; cpus],
            first_hkid: HOST_KEYIDS + 1,
            hkids: TDX_KEYIDS,
            address_bits: self.usable_physical_bits(),
            convertible: memory.map(|range| range.start.max(LEGACY_MEMORY)..range.end).collect(),
            tsc_khz: TSC_HZ / 1000,
            xfam: self.xcr0(),
            arch_capabilities: ARCH_CAPABILITIES,
            five_levels: false,
        })
    }

    /// Components that XCR0 may have: AVX where the host has it, whose instructions do the work.
    pub(crate) fn xcr0(self) -> u64 {
        fpu::XCR0_X87 | fpu::XCR0_SSE | if Extensions::of_host().avx { fpu::XCR0_AVX } else { 0 }
    }

    /// What the interpreter needs to know.
    pub(crate) fn config(self) -> Config {
        let vendor = self.profile.vendor();
        let (vmxe, svme) = match vendor {
            Vendor::Amd => (0, efer::SVME),
            Vendor::Intel => (cr4::VMXE, 0),
        };
        let cr4 = cr4::BASELINE | cr4::UMIP | cr4::FSGSBASE | cr4::PCIDE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP;
        Config {
            // In a guest with EPT no bit is a KeyID.
            physical_bits: self.usable_physical_bits() + self.keyid_bits(),
            cr4_allowed: cr4 | vmxe,
            efer_allowed: efer::SCE | efer::LME | efer::LMA | efer::NXE | svme,
            xcr0_allowed: self.xcr0(),
            vendor,
            ..Config::default()
        }
    }

    /// What its processors run guests with.
    pub(crate) fn virtualization(self) -> Virtualization {
        match self.profile.vendor() {
            Vendor::Amd => Virtualization::Svm(Svm::new(self.svm()).into()),
            Vendor::Intel => Virtualization::Vmx(Vmx::new(self.vmx()).into()),
        }
    }

    /// What its VMX can do.
    pub(crate) fn vmx(self) -> vmx::Features {
        let Config { cr4_allowed, efer_allowed, physical_bits, .. } = self.config();
        let has = |feature| !self.without.lacks(feature);
        vmx::Features {
            virtual_nmis: has(Feature::VirtualNmis),
            preemption_timer: has(Feature::PreemptionTimer),
            tpr_shadow: has(Feature::TprShadow),
            apic_accesses: has(Feature::ApicAccesses),
            x2apic: has(Feature::VirtualX2apic),
            apic_registers: has(Feature::ApicRegisters),
            virtual_interrupts: has(Feature::VirtualInterrupts),
            posted_interrupts: has(Feature::PostedInterrupts),
            ept: has(Feature::Ept),
            ept_accessed_dirty: has(Feature::EptAccessedDirty),
            ept_1g: has(Feature::Ept1g),
            ept_execute_only: has(Feature::EptExecuteOnly),
            vpid: has(Feature::Vpid),
            unrestricted: has(Feature::UnrestrictedGuest),
            pml: has(Feature::Pml),
            tsc_scaling: has(Feature::TscScaling),
            cr4: cr4_allowed,
            efer: efer_allowed,
            physical_bits,
            keyid_bits: self.keyid_bits(),
            ..vmx::Features::current()
        }
    }

    /// What its SVM can do.
    pub(crate) fn svm(self) -> Features {
        let Config { cr4_allowed, efer_allowed, physical_bits, .. } = self.config();
        let has = |feature| !self.without.lacks(feature);
        Features {
            nested_paging: has(Feature::NestedPaging),
            next_rip: has(Feature::NextRip),
            tsc_ratio: has(Feature::TscRatio),
            vmcb_clean: has(Feature::VmcbClean),
            flush_by_asid: has(Feature::FlushByAsid),
            decode_assists: has(Feature::DecodeAssists),
            pause_filter: has(Feature::PauseFilter),
            pause_filter_threshold: has(Feature::PauseFilterThreshold),
            cr4: cr4_allowed,
            efer: efer_allowed,
            physical_bits,
            sev: self.sev(),
            ..Features::current()
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
    fn what_is_left_out_is_not_there() {
        let processors = |without: &str| Processors { profile: Profile::Genoa, without: without.parse().unwrap() };
        let svm = processors("nrips,flushbyasid").svm();
        assert_eq!((svm.next_rip, svm.flush_by_asid, svm.decode_assists), (false, false, true));
        assert_eq!(svm.cpuid().edx & (1 << 3 | 1 << 6 | 1 << 7), 1 << 7);
        assert_eq!(processors("sev").sev(), None);
        // SNP guests have encrypted registers.
        let sev = processors("sev_es").sev().unwrap();
        assert_eq!((sev.encrypted_state, sev.snp), (false, false));
    }
}
