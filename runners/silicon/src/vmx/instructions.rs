//! The instructions of VMX (SDM volume 3, chapter 32), but for VM entries.

use privet_cpu::state::cr0;
use privet_cpu::{CpuState, Exception, Intercepted, Operands, VmxAnswer, VmxCall, VmxInstruction, flags};

use super::capability::{CR0_FIXED_ONES, CR4_FIXED_ONES, LOCKED, VMX_OUTSIDE_SMX};
use super::field::{self, Field};
use super::vmcs;
use super::{Root, Vmx};
use crate::Rule;
use crate::board::Board;

/// What VMREAD of VM_INSTRUCTION_ERROR gives after VMfailValid (32.4, table 32-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum InstructionError {
    VmcallInRoot = 1,
    VmclearAddress = 2,
    VmclearVmxonPointer = 3,
    VmlaunchNotClear = 4,
    VmresumeNotLaunched = 5,
    Controls = 7,
    HostState = 8,
    VmptrldAddress = 9,
    VmptrldVmxonPointer = 10,
    VmptrldRevision = 11,
    UnknownField = 12,
    ReadOnlyField = 13,
    VmxonInRoot = 15,
    BlockedByMovSs = 26,
    InvalidOperand = 28,
}

/// How an instruction of VMX has ended (32.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeed,
    /// With a result to be stored.
    Value(u64),
    FailInvalid,
    /// VMfail: VMfailValid, or without a current VMCS VMfailInvalid.
    Fail(InstructionError),
}

use Outcome::{Fail, FailInvalid, Succeed, Value};

/// The arithmetic flags, in which instructions of VMX tell how they ended.
const FLAGS: u64 = flags::CF | flags::PF | flags::AF | flags::ZF | flags::SF | flags::OF;

impl Vmx {
    /// Whether an instruction of VMX is carried out: the checks of each before it reads its operands. In the guest it
    /// exits.
    pub(super) fn permit(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        (instruction, operands): (VmxInstruction, Operands),
        length: u8,
    ) -> Intercepted {
        if !self.exists(instruction, state) {
            return Intercepted::Reflect(Exception::ud());
        }
        if self.in_guest() {
            self.exit_of_vmx(board, state, (instruction, operands), length);
            return Intercepted::Switched;
        }
        if state.cpl() != 0 {
            return Intercepted::Reflect(Exception::gp(0));
        }
        if self.root.is_none() && !self.may_enter_operation(state) {
            return Intercepted::Reflect(Exception::gp(0));
        }
        Intercepted::Native
    }

    /// Whether it is not #UD: all need protected mode, those in long mode 64-bit mode, and all but VMXON VMX operation.
    fn exists(&self, instruction: VmxInstruction, state: &CpuState) -> bool {
        let mode = state.protected() && state.rflags & flags::VM == 0 && (!state.long_mode() || state.code64());
        let feature = match instruction {
            VmxInstruction::Invept => self.features.ept,
            VmxInstruction::Invvpid => self.features.vpid,
            _ => true,
        };
        mode && feature && (self.root.is_some() || instruction == VmxInstruction::Vmxon)
    }

    /// Section 24.7 and 24.8: firmware has allowed VMX, and the control registers are such as VMX operation needs.
    fn may_enter_operation(&self, state: &CpuState) -> bool {
        let allowed = LOCKED | VMX_OUTSIDE_SMX;
        self.feature_control & allowed == allowed && self.keeps_cr0(state.cr0) && self.keeps_cr4(state.cr4)
    }

    /// Whether VMX operation allows this value of CR0.
    pub(super) fn keeps_cr0(&self, value: u64) -> bool {
        value & CR0_FIXED_ONES == CR0_FIXED_ONES
    }

    /// Whether VMX operation allows this value of CR4.
    pub(super) fn keeps_cr4(&self, value: u64) -> bool {
        value & CR4_FIXED_ONES == CR4_FIXED_ONES && value & !self.features.cr4 == 0
    }

    /// Carries out an instruction that [`Vmx::permit`] has let through, at RIP.
    pub fn vmx(&mut self, board: &mut impl Board, state: &mut CpuState, call: VmxCall) -> VmxAnswer {
        let outcome = match call {
            VmxCall::Vmxon(pointer) => self.vmxon(board, pointer),
            VmxCall::Vmxoff => self.vmxoff(board),
            VmxCall::Vmclear(pointer) => self.vmclear(board, pointer),
            VmxCall::Vmptrld(pointer) => self.vmptrld(board, pointer),
            VmxCall::Vmptrst => Value(self.current().unwrap_or(u64::MAX)),
            VmxCall::Vmread { field } => self.vmread(board, field),
            VmxCall::Vmwrite { field, value } => self.vmwrite(board, field, value),
            VmxCall::Invept { kind, descriptor } => self.invept(board, kind, descriptor),
            VmxCall::Invvpid { kind, descriptor } => self.invvpid(board, state, kind, descriptor),
            VmxCall::Vmlaunch | VmxCall::Vmresume => match self.enter(board, state, call == VmxCall::Vmlaunch) {
                Ok(()) => return VmxAnswer::Switched,
                Err(failed) => failed,
            },
        };
        self.end(board, state, outcome)
    }

    /// The flags that an outcome leaves, and the error's number in the current VMCS.
    fn end(&mut self, board: &mut impl Board, state: &mut CpuState, outcome: Outcome) -> VmxAnswer {
        let (flag, error) = match (outcome, self.current()) {
            (Succeed | Value(_), _) => (0, None),
            (Fail(error), Some(current)) => (flags::ZF, Some((current, error))),
            (FailInvalid | Fail(_), _) => (flags::CF, None),
        };
        state.rflags = state.rflags & !FLAGS | flag;
        if let Some((current, error)) = error {
            vmcs::set(board, current, field::INSTRUCTION_ERROR, error as u64);
        }
        if let Value(value) = outcome { VmxAnswer::Value(value) } else { VmxAnswer::Done }
    }

    /// An instruction that does nothing but fail.
    pub(super) fn refuse(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        error: InstructionError,
    ) -> Intercepted {
        self.end(board, state, Fail(error));
        Intercepted::Done
    }

    /// Physical address of the current VMCS.
    pub(super) fn current(&self) -> Option<u64> {
        self.root.as_ref()?.current
    }

    /// Whether a region may lie there: page aligned, and no wider than addresses are.
    fn is_region(&self, pointer: u64) -> bool {
        pointer & 0xfff == 0 && pointer >> self.features.address_bits() == 0
    }

    fn is_vmxon_region(&self, pointer: u64) -> bool {
        self.root.as_ref().is_some_and(|root| root.region == pointer)
    }

    fn vmxon(&mut self, board: &mut impl Board, pointer: u64) -> Outcome {
        if self.root.is_some() {
            return Fail(InstructionError::VmxonInRoot);
        }
        if !self.is_region(pointer) || vmcs::revision(board, pointer) != vmcs::REVISION {
            return FailInvalid;
        }
        self.root = Some(Root::new(pointer));
        Succeed
    }

    /// INITs are no longer blocked: one that waits is taken.
    fn vmxoff(&mut self, board: &mut impl Board) -> Outcome {
        self.root = None;
        board.raise_event();
        Succeed
    }

    fn vmclear(&mut self, board: &mut impl Board, pointer: u64) -> Outcome {
        if !self.is_region(pointer) {
            return Fail(InstructionError::VmclearAddress);
        }
        if self.is_vmxon_region(pointer) && self.holds(Rule::VmcsNotVmxonRegion) {
            return Fail(InstructionError::VmclearVmxonPointer);
        }
        vmcs::set_launched(board, pointer, false);
        if let Some(root) = self.root.as_mut().filter(|root| root.current == Some(pointer)) {
            root.current = None;
        }
        Succeed
    }

    fn vmptrld(&mut self, board: &mut impl Board, pointer: u64) -> Outcome {
        if !self.is_region(pointer) {
            return Fail(InstructionError::VmptrldAddress);
        }
        if self.is_vmxon_region(pointer) && self.holds(Rule::VmcsNotVmxonRegion) {
            return Fail(InstructionError::VmptrldVmxonPointer);
        }
        // Bit 31 would be a shadow VMCS, which needs a feature that is not there.
        if vmcs::revision(board, pointer) != vmcs::REVISION && self.holds(Rule::VmcsRevision) {
            return Fail(InstructionError::VmptrldRevision);
        }
        if let Some(root) = &mut self.root {
            root.current = Some(pointer);
        }
        Succeed
    }

    fn vmread(&mut self, board: &mut impl Board, encoding: u64) -> Outcome {
        let Some(current) = self.current() else { return FailInvalid };
        match Field::named(encoding, &self.features) {
            Some(field) => Value(vmcs::get_part(board, current, field)),
            None => Fail(InstructionError::UnknownField),
        }
    }

    fn vmwrite(&mut self, board: &mut impl Board, encoding: u64, value: u64) -> Outcome {
        let Some(current) = self.current() else { return FailInvalid };
        match Field::named(encoding, &self.features) {
            None => Fail(InstructionError::UnknownField),
            Some((field, _)) if field.is_read_only() && self.holds(Rule::ReadOnlyFields) => {
                Fail(InstructionError::ReadOnlyField)
            }
            Some(field) => {
                vmcs::set_part(board, current, field, value);
                Succeed
            }
        }
    }

    /// Whether a write of a control register in VMX root operation is one that it allows (24.8).
    pub(super) fn permit_cr_write(&self, cr: u8, value: u64) -> Intercepted {
        let allowed = match cr {
            0 => self.keeps_cr0(value | cr0::ET),
            4 => self.keeps_cr4(value),
            _ => true,
        };
        if allowed || !self.holds(Rule::FixedBits) {
            Intercepted::Native
        } else {
            Intercepted::Reflect(Exception::gp(0))
        }
    }
}
