//! Intel's Virtual Machine Extensions with extended page tables (SDM volume 3, chapters 24 to 33).
//!
//! A board has one [`Vmx`] a processor and forwards to it what the processor's [`privet_cpu::Bus`] is asked. Host and
//! guest are worlds of the CPU, the guest's found by its VPID and EPT pointer: a switch changes the state under the CPU
//! and flushes nothing, except where there is no VPID.
//!
//! ```text
//! Bus::intercept ── instructions   may VMXON, VMREAD ... be executed?
//! Bus::vmx ──────── instructions   and then: operation, regions, entry (VMLAUNCH, VMRESUME)
//! ```

mod capability;
#[expect(dead_code, reason = "VM entry will use the rest")]
mod controls;
mod features;
#[expect(dead_code, reason = "VM entry will use the rest")]
mod field;
mod instructions;
mod invalidate;
#[expect(dead_code, reason = "VM entry will use the rest")]
mod vmcs;
mod worlds;

#[cfg(test)]
mod tests;

use privet_cpu::state::Shadow;
use privet_cpu::{Access, CpuState, Exception, Intercept, Intercepted, Operands, Reaction, VmxInstruction, flags};
use serde::{Deserialize, Serialize};

pub use features::Features;

use crate::board::Board;
use crate::encryption::Key;
use crate::interface::{Pending, Taken, Translation};
use crate::{Rule, Rules};
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
}

impl Root {
    /// After VMXON of this region.
    fn new(region: u64) -> Root {
        Root { region, current: None }
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

    /// Whether a guest runs.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        false
    }

    /// An instruction is about to execute, at RIP and `length` bytes long.
    pub fn intercept(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        what: Intercept,
        length: u8,
    ) -> Intercepted {
        match what {
            Intercept::Vmx { instruction, operands } => self.permit(board, state, (instruction, operands), length),
            Intercept::WriteCr { cr, value, .. } if self.root.is_some() => self.permit_cr_write(cr, value),
            _ => Intercepted::Native,
        }
    }

    /// See [`crate::Virtualization::exception`].
    pub fn exception(&mut self, _: &mut impl Board, _: &mut CpuState, _: Exception) -> Reaction {
        Reaction::Native
    }

    /// See [`crate::Virtualization::shutdown`].
    pub fn shutdown(&mut self, _: &mut impl Board, _: &mut CpuState) -> Reaction {
        Reaction::Native
    }

    /// See [`crate::Virtualization::tsc`].
    #[must_use]
    pub fn tsc(&self, tsc: u64) -> u64 {
        tsc
    }

    /// See [`crate::Virtualization::deadline`].
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        None
    }

    /// See [`crate::Virtualization::take_event`].
    pub fn take_event(&mut self, _: &mut impl Board, state: &mut CpuState, pending: Pending) -> Taken {
        let interruptible = state.rflags & flags::IF != 0 && state.shadow == Shadow::None;
        if pending.init && self.root.is_none() {
            Taken::Init
        } else if pending.nmi && !state.nmi_blocked {
            Taken::Nmi
        } else if pending.interrupt.is_some() && interruptible {
            Taken::Interrupt
        } else {
            Taken::Nothing
        }
    }

    /// See [`crate::Virtualization::translate`].
    pub fn translate(&mut self, _: &mut impl Board, _: &mut CpuState, gpa: u64, _: Access) -> Translation {
        Translation::Page { page: gpa, key: Key::PLAIN }
    }

    fn enter(&mut self, _: &mut impl Board, _: &mut CpuState, _: bool, _: u8) -> Result<(), instructions::Outcome> {
        Err(instructions::Outcome::Fail(instructions::InstructionError::Controls))
    }

    fn exit_of_vmx(&mut self, _: &mut impl Board, _: &mut CpuState, _: (VmxInstruction, Operands), _: u8) {}

    fn is_ept_pointer(&self, _: u64) -> bool {
        true
    }
}
