//! AMD's Secure Virtual Machine with nested paging (APM volume 2, chapter 15).
//!
//! A board has one [`Svm`] a processor and forwards to it what the processor's [`privet_cpu::Bus`] is asked. Host and
//! guest are worlds of the CPU, the guest's named by its ASID: a switch changes the state under the CPU and flushes
//! only what TLB_CONTROL asks for.
//!
//! ```text
//! Bus::intercept ── instructions   VMRUN, VMLOAD, STGI ...      entry   checks, control, save: VMRUN
//!        │      └── interception   an intercept bit, its exit   leave   #VMEXIT: exit, save, bytes
//! Bus::exception ── interception
//! Bus::take_event ─ interrupts     GIF, INTR, NMI, V_IRQ
//! Bus::resolve ──── translation, nested_paging
//! ```

mod automatic;
mod bytes;
mod checks;
mod control;
mod entry;
mod exit;
mod features;
mod injection;
mod instructions;
mod interception;
mod intercepts;
mod interrupts;
mod leave;
mod msr;
mod nested_paging;
mod pause;
mod permission_maps;
mod protection;
mod save;
mod sev_features;
mod snp_instructions;
mod translation;
mod vmcb;
mod vmsa;

#[cfg(test)]
mod tests;

use privet_cpu::CpuState;
use privet_cpu::state::efer;
use serde::{Deserialize, Serialize};

pub use features::Features;
pub use sev_features::SevFeatures;

use crate::board::Board;
use crate::{Rule, Rules};
use control::Control;
use nested_paging::NestedTables;
use pause::PauseFilter;
use protection::Protection;

/// The SVM part of one processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Svm {
    features: Features,
    /// The global interrupt flag (15.17).
    gif: bool,
    vm_cr: u64,
    /// Physical address of the host save area.
    hsave_pa: u64,
    /// Fixed point, 8.32 bits.
    tsc_ratio: u64,
    /// The guest that runs.
    guest: Option<Guest>,
}

/// What a processor remembers between VMRUN and #VMEXIT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Guest {
    /// Physical address of the VMCB.
    vmcb: u64,
    control: Control,
    /// `None` without nested paging: guest-physical addresses are system-physical ones.
    nested: Option<NestedTables>,
    /// `None` unless the guest is encrypted.
    protection: Option<Protection>,
    pause: PauseFilter,
    /// A virtual interrupt is pending (V_IRQ).
    virtual_interrupt: bool,
    /// RFLAGS.IF of the host at VMRUN: with V_INTR_MASKING it masks physical interrupts.
    host_interrupts: bool,
    /// CR8 of the host, while the guest's is V_TPR.
    host_cr8: u64,
    /// Whether the host's NMIs are blocked.
    host_nmi_blocked: bool,
    /// While a software event of EVENTINJ is being delivered: RIP of the VMCB, which an exit then stores again. The
    /// CPU's RIP is NEXT_RIP meanwhile.
    injected_at: Option<u64>,
}

impl Svm {
    /// The SVM of a processor after RESET.
    #[must_use]
    pub fn new(features: Features) -> Svm {
        Svm { features, gif: true, vm_cr: 0, hsave_pa: 0, tsc_ratio: msr::TSC_RATIO_ONE, guest: None }
    }

    /// After INIT: the global interrupt flag is set, no guest runs (15.17, 14.1.3).
    pub fn init(&mut self) {
        self.gif = true;
        self.guest = None;
    }

    /// From here on only these rules hold.
    pub fn set_rules(&mut self, rules: Rules) {
        self.features.rules = rules;
    }

    /// Whether this rule holds.
    fn holds(&self, rule: Rule) -> bool {
        self.features.rules.hold(rule)
    }

    /// What this processor can do.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Whether a guest runs.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        self.guest.is_some()
    }

    /// The global interrupt flag.
    #[must_use]
    pub fn gif(&self) -> bool {
        self.gif
    }

    /// The time stamp counter as software reads it now, when the processor's is `tsc` (15.30.5): scaled and moved for
    /// a guest.
    #[must_use]
    pub fn tsc(&self, tsc: u64) -> u64 {
        match &self.guest {
            None => tsc,
            Some(guest) => {
                let scaled = (u128::from(tsc) * u128::from(self.tsc_ratio)) >> 32;
                (scaled as u64).wrapping_add(guest.control.tsc_offset)
            }
        }
    }

    /// Whether a guest runs whose registers are encrypted.
    fn registers_encrypted(&self) -> bool {
        self.protection().is_some_and(|protection| protection.registers.is_some())
    }

    /// How the guest that runs is encrypted, if it is.
    fn protection(&self) -> Option<Protection> {
        self.guest.as_ref().and_then(|guest| guest.protection)
    }

    /// Whether CR8 is V_TPR, and no business of the local APIC's.
    #[must_use]
    pub fn virtual_task_priority(&self) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.control.interrupt_masking())
    }

    /// CR8 was written: a virtual interrupt may have a chance now.
    pub fn task_priority_written(&self, board: &mut impl Board) {
        if self.guest.as_ref().is_some_and(|guest| guest.virtual_interrupt) {
            board.raise_event();
        }
    }

    /// Whether SVM is enabled, which its instructions need.
    fn enabled(state: &CpuState) -> bool {
        state.efer & efer::SVME != 0
    }
}
