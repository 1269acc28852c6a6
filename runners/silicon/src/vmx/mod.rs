//! Intel's Virtual Machine Extensions with extended page tables (SDM volume 3, chapters 24 to 33).
//!
//! A board has one [`Vmx`] a processor and forwards to it what the processor's [`privet_cpu::Bus`] is asked. Host and
//! guest are worlds of the CPU, the guest's found by its VPID and EPT pointer: a switch changes the state under the CPU
//! and flushes nothing, except where there is no VPID.
//!
//! ```text
//! Bus::intercept ── interception   which exit, by bitmaps, control_registers, information
//!        │      └── instructions   may VMXON, VMREAD ... be executed?
//! Bus::vmx ──────── instructions   and then; VM entry: entry, check_*, guest_state, injection
//! Bus::exception ── interception   VM exit: leave, guest_state, host_state, msr_lists
//! Bus::take_event ─ interrupts     NMI, interrupts, windows, timer; crate::virtual_apic
//! Bus::resolve ──── translation    ept, the APIC-access page, the log of modified pages
//! ```

mod apic;
mod bitmaps;
mod capability;
mod check_controls;
mod check_guest;
mod check_host;
mod control_registers;
mod controls;
mod entry;
mod ept;
mod exit;
mod features;
mod field;
mod guest;
mod guest_state;
mod host_state;
mod information;
mod injection;
mod instructions;
mod interception;
mod interrupts;
mod invalidate;
mod leave;
mod msr_lists;
mod non_register_state;
mod segments;
mod translation;
mod vmcs;
mod worlds;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use features::Features;

use crate::{Rule, Rules};
use guest::Guest;
use worlds::Worlds;

/// The VMX part of one processor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vmx {
    features: Features,
    /// IA32_FEATURE_CONTROL, as firmware leaves it.
    feature_control: u64,
    /// VMX operation, if the processor is in it.
    root: Option<Root>,
    /// Of the guests whose translations the processor may remember.
    worlds: Worlds,
}

/// What a processor remembers in VMX operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Root {
    /// Physical address of the VMXON region.
    region: u64,
    /// Physical address of the current VMCS.
    current: Option<u64>,
    /// The guest that runs.
    guest: Option<Box<Guest>>,
}

impl Root {
    /// After VMXON of this region.
    fn new(region: u64) -> Root {
        Root { region, current: None, guest: None }
    }
}

impl Vmx {
    /// The VMX of a processor whose firmware has allowed it.
    #[must_use]
    pub fn new(features: Features) -> Vmx {
        Vmx {
            features,
            feature_control: capability::LOCKED | capability::VMX_OUTSIDE_SMX,
            root: None,
            worlds: Worlds::default(),
        }
    }

    /// After INIT outside of VMX operation, in which it is blocked.
    pub fn init(&mut self) {
        self.root = None;
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

    /// Whether the processor is in VMX operation.
    #[must_use]
    pub fn in_operation(&self) -> bool {
        self.root.is_some()
    }
}
