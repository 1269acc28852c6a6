//! What a processor remembers of the guest that runs, between VM entry and VM exit.

use serde::{Deserialize, Serialize};

use super::capability::TIMER_SHIFT;
use super::controls::{Controls, pin, proc, proc2};
use super::ept::Ept;
use super::features::Features;
use super::field;
use super::vmcs::Vmcs;
use super::{Vmx, apic};
use crate::virtual_apic::VirtualApic;

/// Controls and other fields as VM entry found them: software may not change them while the guest runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Guest {
    pub(super) controls: Controls,
    pub(super) exceptions: u32,
    /// The mask and the match of page faults' error codes.
    pub(super) page_faults: (u32, u32),
    pub(super) cr0: Shadowed,
    pub(super) cr4: Shadowed,
    /// Values of CR3 that need no exit.
    pub(super) cr3_targets: Vec<u64>,
    pub(super) io_bitmaps: [u64; 2],
    pub(super) msr_bitmap: u64,
    tsc_offset: u64,
    /// Fixed point, 16.48 bits.
    tsc_multiplier: u64,
    /// `None` without EPT: guest-physical addresses are physical ones.
    pub(super) ept: Option<Ept>,
    pub(super) log: Option<ModificationLog>,
    pub(super) apic: VirtualApic,
    /// When the preemption timer expires, by the processor's TSC.
    pub(super) timer: Option<u64>,
    /// After HLT.
    pub(super) halted: bool,
    /// Bytes of the last instruction that was an event: INT n, INT1, INT3, INTO.
    pub(super) software_length: u8,
    /// INT1 is about to raise its #DB.
    pub(super) icebp: bool,
    /// While an injected software event is being delivered.
    pub(super) injected: Option<Injected>,
}

/// A control register of which the guest sees and changes only a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shadowed {
    /// The bits that are the host's.
    pub(super) mask: u64,
    /// What the guest reads in them.
    pub(super) shadow: u64,
}

impl Shadowed {
    /// The register as the guest reads it.
    pub(super) fn seen(self, real: u64) -> u64 {
        real & !self.mask | self.shadow & self.mask
    }

    /// Whether the guest changes what it sees of the host's bits.
    pub(super) fn exits(self, value: u64) -> bool {
        (value ^ self.shadow) & self.mask != 0
    }

    /// The register after a write that does not exit.
    pub(super) fn written(self, real: u64, value: u64) -> u64 {
        value & !self.mask | real & self.mask
    }
}

/// The log of pages that the guest has modified (SDM volume 3, 30.3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ModificationLog {
    pub(super) address: u64,
    /// Of the entry that is written next; it counts down, and is no index any more when the log is full.
    pub(super) index: u16,
}

/// A software event of the VM-entry interruption information, with RIP moved behind its instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Injected {
    /// The interruption information.
    pub(super) word: u32,
    pub(super) length: u8,
    /// RIP of the VMCS, which an exit stores again.
    pub(super) rip: u64,
}

impl Guest {
    /// The guest of a VMCS whose controls are valid; `now` is the processor's TSC.
    pub(super) fn of(vmcs: &Vmcs, controls: Controls, features: &Features, now: u64) -> Guest {
        let target_count = vmcs.get(field::CR3_TARGETS) as usize;
        let timer = || now.saturating_add(vmcs.get(field::PREEMPTION_TIMER) << TIMER_SHIFT);
        Guest {
            controls,
            exceptions: vmcs.get32(field::EXCEPTION_BITMAP),
            page_faults: (vmcs.get32(field::PF_MASK), vmcs.get32(field::PF_MATCH)),
            cr0: Shadowed { mask: vmcs.get(field::CR0_MASK), shadow: vmcs.get(field::CR0_SHADOW) },
            cr4: Shadowed { mask: vmcs.get(field::CR4_MASK), shadow: vmcs.get(field::CR4_SHADOW) },
            cr3_targets: field::CR3_TARGET_VALUES.into_iter().take(target_count).map(|it| vmcs.get(it)).collect(),
            io_bitmaps: [vmcs.get(field::IO_BITMAP_A), vmcs.get(field::IO_BITMAP_B)],
            msr_bitmap: vmcs.get(field::MSR_BITMAP),
            tsc_offset: vmcs.get(field::TSC_OFFSET),
            tsc_multiplier: vmcs.get(field::TSC_MULTIPLIER),
            ept: controls.proc2(proc2::EPT).then(|| Ept::new(vmcs.get(field::EPTP), features)),
            log: controls.proc2(proc2::PML).then(|| ModificationLog {
                address: vmcs.get(field::PML_ADDRESS),
                index: vmcs.get(field::PML_INDEX) as u16,
            }),
            apic: apic::of(vmcs, &controls),
            timer: controls.pin(pin::PREEMPTION_TIMER).then(timer),
            halted: false,
            software_length: 0,
            icebp: false,
            injected: None,
        }
    }

    /// The time stamp counter as the guest reads it (26.3).
    fn tsc(&self, tsc: u64) -> u64 {
        if !self.controls.proc(proc::TSC_OFFSET) {
            return tsc;
        }
        let scaled = if self.controls.proc2(proc2::TSC_SCALING) {
            ((u128::from(tsc) * u128::from(self.tsc_multiplier)) >> 48) as u64
        } else {
            tsc
        };
        scaled.wrapping_add(self.tsc_offset)
    }
}

impl Vmx {
    /// The guest that runs.
    pub(super) fn guest(&self) -> Option<&Guest> {
        self.root.as_ref()?.guest.as_deref()
    }

    pub(super) fn guest_mut(&mut self) -> Option<&mut Guest> {
        self.root.as_mut()?.guest.as_deref_mut()
    }

    /// Whether a guest runs.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        self.guest().is_some()
    }

    /// See [`crate::Virtualization::tsc`].
    #[must_use]
    pub fn tsc(&self, tsc: u64) -> u64 {
        self.guest().map_or(tsc, |guest| guest.tsc(tsc))
    }

    /// See [`crate::Virtualization::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.guest()?.timer
    }

    /// The guest has executed HLT, or was entered in that state: it waits for an event.
    pub fn halted(&mut self) {
        if let Some(guest) = self.guest_mut() {
            guest.halted = true;
        }
    }
}
