//! What this processor's SVM can do: the one source of CPUID Fn8000_000A and of what VMRUN accepts.

use privet_cpu::CpuidResult;
use privet_cpu::state::{cr4, efer};
use serde::{Deserialize, Serialize};

use super::sev_features::SevFeatures;
use crate::Rules;

/// Features of SVM and the limits of the processor that it is checked against.
///
/// Absent from all processors here, so that software finds them neither in CPUID nor working: LBR virtualization (but
/// for its bit, without which KVM launches no SEV-ES guest), AVIC, virtual GIF, virtual NMI, virtual VMLOAD and VMSAVE,
/// SVM locking by key, SKINIT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Number of address space identifiers, 0 (the host's) included.
    pub asids: u32,
    /// Nested paging.
    pub nested_paging: bool,
    /// #VMEXIT stores the next instruction's address, and VMRUN takes it for software events.
    pub next_rip: bool,
    /// MSR TSC_RATIO.
    pub tsc_ratio: bool,
    /// Clean bits of the VMCB.
    pub vmcb_clean: bool,
    /// TLB_CONTROL 3 and 7.
    pub flush_by_asid: bool,
    /// #VMEXIT stores instruction bytes and operands.
    pub decode_assists: bool,
    /// The PAUSE intercept counts down first.
    pub pause_filter: bool,
    /// The PAUSE intercept's count starts again after a while.
    pub pause_filter_threshold: bool,
    /// Width of system-physical addresses, bits.
    pub physical_bits: u8,
    /// Bits of CR4 that a guest may have.
    pub cr4: u64,
    /// Bits of EFER that a guest may have.
    pub efer: u64,
    /// Encryption of guests.
    pub sev: Option<SevFeatures>,
    /// Which rules hold.
    pub rules: Rules,
}

impl Features {
    /// A current server processor.
    #[must_use]
    pub fn current() -> Features {
        Features {
            asids: 0x8000,
            nested_paging: true,
            next_rip: true,
            tsc_ratio: true,
            vmcb_clean: true,
            flush_by_asid: true,
            decode_assists: true,
            pause_filter: true,
            pause_filter_threshold: true,
            physical_bits: 48,
            cr4: cr4::BASELINE | cr4::UMIP | cr4::LA57 | cr4::FSGSBASE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP,
            efer: efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::SVME,
            sev: None,
            rules: Rules::default(),
        }
    }

    /// CPUID Fn8000_000A (APM volume 3, E.4.9).
    #[must_use]
    pub fn cpuid(&self) -> CpuidResult {
        let bits = [
            (self.nested_paging, 0),
            // LBR virtualization, which SEV-ES guests need: there is no record of branches that it could swap.
            (self.sev.is_some(), 1),
            (self.next_rip, 3),
            (self.tsc_ratio, 4),
            (self.vmcb_clean, 5),
            (self.flush_by_asid, 6),
            (self.decode_assists, 7),
            (self.pause_filter, 10),
            (self.pause_filter_threshold, 12),
            // VMRUN, VMLOAD and VMSAVE check the width of the address in RAX before intercepts are looked at.
            (true, 28),
        ];
        CpuidResult {
            eax: REVISION,
            ebx: self.asids,
            ecx: 0,
            edx: bits.into_iter().map(|(has, bit)| u32::from(has) << bit).sum(),
        }
    }
}

const REVISION: u32 = 1;
