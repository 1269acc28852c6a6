//! What this processor's VMX can do: the one source of the capability MSRs and of what VM entry accepts.

use privet_cpu::state::{cr4, efer};
use serde::{Deserialize, Serialize};

use super::controls::{entry, exit, pin, proc, proc2};
use crate::Rules;

/// Features of VMX and the limits of the processor that it is checked against.
///
/// Absent from all processors here, so that software finds them neither in the capability MSRs nor working: SMM's dual
/// monitor, descriptor-table exiting, the monitor trap flag, PAUSE-loop exiting, VM functions, VMCS shadowing, ENCLS
/// exiting, RDRAND and RDSEED exiting, #VE, mode-based execution, sub-page permissions, processor trace, 5-level EPT,
/// tertiary controls, and the activity states shutdown and wait-for-SIPI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Virtual NMIs.
    pub virtual_nmis: bool,
    /// The VMX-preemption timer.
    pub preemption_timer: bool,
    /// The TPR shadow, without which there is no other virtualization of the APIC.
    pub tpr_shadow: bool,
    /// Virtualization of accesses to the APIC page.
    pub apic_accesses: bool,
    /// Virtualization of x2APIC mode.
    pub x2apic: bool,
    /// Virtualization of the APIC's registers.
    pub apic_registers: bool,
    /// Virtual-interrupt delivery.
    pub virtual_interrupts: bool,
    /// Posted interrupts.
    pub posted_interrupts: bool,
    /// Extended page tables.
    pub ept: bool,
    /// Accessed and dirty bits of them.
    pub ept_accessed_dirty: bool,
    /// Pages of 1 GiB in them.
    pub ept_1g: bool,
    /// Pages in them that can be executed and not read.
    pub ept_execute_only: bool,
    /// Virtual-processor identifiers.
    pub vpid: bool,
    /// Guests without protection or without paging.
    pub unrestricted: bool,
    /// Page-modification logging.
    pub pml: bool,
    /// A multiplier of the time stamp counter.
    pub tsc_scaling: bool,
    /// XSAVES and XRSTORS in guests.
    pub xsaves: bool,
    /// INVPCID in guests.
    pub invpcid: bool,
    /// Width of addresses, bits, KeyIDs included.
    pub physical_bits: u8,
    /// How many of them, the upper ones, are a KeyID: no address of a VMCS or of the EPT has them.
    pub keyid_bits: u8,
    /// Bits of CR4 that can be set.
    pub cr4: u64,
    /// Bits of EFER that can be set.
    pub efer: u64,
    /// Which rules hold.
    pub rules: Rules,
}

impl Features {
    /// A current server processor.
    #[must_use]
    pub fn current() -> Features {
        Features {
            virtual_nmis: true,
            preemption_timer: true,
            tpr_shadow: true,
            apic_accesses: true,
            x2apic: true,
            apic_registers: true,
            virtual_interrupts: true,
            posted_interrupts: true,
            ept: true,
            ept_accessed_dirty: true,
            ept_1g: true,
            ept_execute_only: true,
            vpid: true,
            unrestricted: true,
            pml: true,
            tsc_scaling: true,
            xsaves: true,
            invpcid: true,
            physical_bits: 46,
            keyid_bits: 0,
            cr4: cr4::BASELINE | cr4::UMIP | cr4::FSGSBASE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP | cr4::VMXE,
            efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
            rules: Rules::default(),
        }
    }

    /// [`Features::apic_accesses`], with what it needs.
    pub(crate) fn apic_accesses(&self) -> bool {
        self.apic_accesses && self.tpr_shadow
    }

    /// [`Features::x2apic`], with what it needs.
    pub(crate) fn x2apic(&self) -> bool {
        self.x2apic && self.tpr_shadow
    }

    /// [`Features::apic_registers`], with what it needs.
    pub(crate) fn apic_registers(&self) -> bool {
        self.apic_registers && self.tpr_shadow
    }

    /// [`Features::virtual_interrupts`], with what it needs.
    pub(crate) fn virtual_interrupts(&self) -> bool {
        self.virtual_interrupts && self.tpr_shadow
    }

    /// [`Features::posted_interrupts`], with what it needs.
    pub(crate) fn posted_interrupts(&self) -> bool {
        self.posted_interrupts && self.virtual_interrupts()
    }

    /// [`Features::unrestricted`], with what it needs.
    pub(crate) fn unrestricted(&self) -> bool {
        self.unrestricted && self.ept
    }

    /// [`Features::pml`], with what it needs.
    pub(crate) fn pml(&self) -> bool {
        self.pml && self.ept && self.ept_accessed_dirty
    }

    /// Width of physical addresses without a KeyID.
    pub(crate) fn address_bits(&self) -> u8 {
        self.physical_bits.saturating_sub(self.keyid_bits)
    }

    /// The controls that exist: those that can be 1, the ones that have to be not included.
    pub(crate) fn controls(&self) -> Available {
        Available {
            pin: pin::EXTERNAL_INTERRUPT
                | pin::NMI
                | bits(&[
                    (self.virtual_nmis, pin::VIRTUAL_NMI),
                    (self.preemption_timer, pin::PREEMPTION_TIMER),
                    (self.posted_interrupts(), pin::POSTED_INTERRUPTS),
                ]),
            proc: proc::INTERRUPT_WINDOW
                | proc::TSC_OFFSET
                | proc::HLT
                | proc::INVLPG
                | proc::MWAIT
                | proc::RDPMC
                | proc::RDTSC
                | proc::CR3_LOAD
                | proc::CR3_STORE
                | proc::CR8_LOAD
                | proc::CR8_STORE
                | proc::MOV_DR
                | proc::UNCONDITIONAL_IO
                | proc::IO_BITMAPS
                | proc::MSR_BITMAPS
                | proc::MONITOR
                | proc::PAUSE
                | proc::SECONDARY
                | bits(&[(self.tpr_shadow, proc::TPR_SHADOW), (self.virtual_nmis, proc::NMI_WINDOW)]),
            proc2: proc2::WBINVD
                | proc2::RDTSCP
                | bits(&[
                    (self.apic_accesses(), proc2::APIC_ACCESSES),
                    (self.ept, proc2::EPT),
                    (self.x2apic(), proc2::X2APIC),
                    (self.vpid, proc2::VPID),
                    (self.unrestricted(), proc2::UNRESTRICTED),
                    (self.apic_registers(), proc2::APIC_REGISTERS),
                    (self.virtual_interrupts(), proc2::VIRTUAL_INTERRUPTS),
                    (self.invpcid, proc2::INVPCID),
                    (self.pml(), proc2::PML),
                    (self.xsaves, proc2::XSAVES),
                    (self.tsc_scaling, proc2::TSC_SCALING),
                ]),
            exit: exit::SAVE_DEBUG
                | exit::HOST_64
                | exit::ACKNOWLEDGE
                | exit::SAVE_PAT
                | exit::LOAD_PAT
                | exit::SAVE_EFER
                | exit::LOAD_EFER
                | bits(&[(self.preemption_timer, exit::SAVE_TIMER)]),
            entry: entry::LOAD_DEBUG | entry::IA32E | entry::LOAD_PAT | entry::LOAD_EFER,
        }
    }
}

/// Controls that can be 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Available {
    pub(crate) pin: u32,
    pub(crate) proc: u32,
    pub(crate) proc2: u32,
    pub(crate) exit: u32,
    pub(crate) entry: u32,
}

/// The bits that come with a true.
fn bits(list: &[(bool, u32)]) -> u32 {
    list.iter().filter(|(on, _)| *on).fold(0, |word, (_, bits)| word | bits)
}
