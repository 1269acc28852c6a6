//! The virtualization of a processor, whoever made it: SVM and VMX behind one interface.

use privet_cpu::{CpuState, Exception, Intercept, Intercepted, Reaction, Trap, VmxAnswer, VmxCall};
use serde::{Deserialize, Serialize};

use crate::Rules;
use crate::board::Board;
use crate::interface::{Pending, Taken, Translation};
use crate::svm::Svm;
use crate::vmx::Vmx;

/// What of a processor runs guests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Virtualization {
    /// AMD's.
    Svm(Box<Svm>),
    /// Intel's.
    Vmx(Box<Vmx>),
}

macro_rules! either {
    ($this:ident, $inner:ident => $call:expr) => {
        match $this {
            Virtualization::Svm($inner) => $call,
            Virtualization::Vmx($inner) => $call,
        }
    };
}

impl Virtualization {
    /// After INIT.
    pub fn init(&mut self) {
        either!(self, it => it.init());
    }

    /// From here on only these rules hold.
    pub fn set_rules(&mut self, rules: Rules) {
        either!(self, it => it.set_rules(rules));
    }

    /// Whether a guest runs.
    #[must_use]
    pub fn in_guest(&self) -> bool {
        either!(self, it => it.in_guest())
    }

    /// Whether the processor is in VMX operation.
    #[must_use]
    pub fn in_vmx_operation(&self) -> bool {
        match self {
            Virtualization::Svm(_) => false,
            Virtualization::Vmx(vmx) => vmx.in_operation(),
        }
    }

    /// The time stamp counter as software reads it now, when the processor's is `tsc`.
    #[must_use]
    pub fn tsc(&self, tsc: u64) -> u64 {
        either!(self, it => it.tsc(tsc))
    }

    /// When it wants to be asked again ([`Virtualization::take_event`]), by the processor's time stamp counter.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        match self {
            Virtualization::Svm(_) => None,
            Virtualization::Vmx(vmx) => vmx.deadline(),
        }
    }

    /// Reads an MSR of virtualization; `None` for the MSRs of others.
    #[must_use]
    pub fn rdmsr(&self, index: u32) -> Option<u64> {
        either!(self, it => it.rdmsr(index))
    }

    /// Writes an MSR of virtualization; `None` for the MSRs of others. The exception is what the writer gets.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Option<Result<(), Exception>> {
        either!(self, it => it.wrmsr(index, value))
    }

    /// What is wrong with a value that an MSR could have otherwise.
    ///
    /// # Errors
    /// #GP.
    pub fn check_wrmsr(&self, board: &mut impl Board, index: u32, value: u64) -> Result<(), Exception> {
        match self {
            Virtualization::Svm(svm) => svm.check_wrmsr(board, index, value),
            Virtualization::Vmx(_) => Ok(()),
        }
    }

    /// See [`privet_cpu::Bus::intercept`].
    pub fn intercept(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        what: Intercept,
        length: u8,
    ) -> Intercepted {
        either!(self, it => it.intercept(board, state, what, length))
    }

    /// See [`privet_cpu::Bus::vmx`].
    pub fn vmx(&mut self, board: &mut impl Board, state: &mut CpuState, call: VmxCall) -> VmxAnswer {
        match self {
            Virtualization::Svm(_) => VmxAnswer::Reflect(Exception::ud()),
            Virtualization::Vmx(vmx) => vmx.vmx(board, state, call),
        }
    }

    /// See [`privet_cpu::Bus::exception`].
    pub fn exception(&mut self, board: &mut impl Board, state: &mut CpuState, exception: Exception) -> Reaction {
        either!(self, it => it.exception(board, state, exception))
    }

    /// See [`privet_cpu::Bus::after`].
    pub fn after(&mut self, board: &mut impl Board, state: &mut CpuState, what: Trap) -> Reaction {
        match self {
            Virtualization::Svm(svm) => svm.after(board, state, what),
            Virtualization::Vmx(_) => Reaction::Native,
        }
    }

    /// See [`privet_cpu::Bus::shutdown`].
    pub fn shutdown(&mut self, board: &mut impl Board, state: &mut CpuState) -> Reaction {
        either!(self, it => it.shutdown(board, state))
    }

    /// Decides between two instructions, after the delivery of [`CpuState::injection`].
    pub fn take_event(&mut self, board: &mut impl Board, state: &mut CpuState, pending: Pending) -> Taken {
        either!(self, it => it.take_event(board, state, pending))
    }

    /// Where the page at `gpa` (page aligned) is, which is a system-physical address in the host.
    pub fn translate(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        gpa: u64,
        access: privet_cpu::Access,
    ) -> Translation {
        either!(self, it => it.translate(board, state, gpa, access))
    }

    /// Reads registers that [`Translation::Device`] has named; false if they are the board's own.
    pub fn device_read(&mut self, board: &mut impl Board, address: u64, data: &mut [u8]) -> bool {
        match self {
            Virtualization::Svm(_) => false,
            Virtualization::Vmx(vmx) => vmx.device_read(board, address, data),
        }
    }

    /// Writes such registers; false if they are the board's own.
    pub fn device_write(&mut self, board: &mut impl Board, address: u64, data: &[u8]) -> bool {
        match self {
            Virtualization::Svm(_) => false,
            Virtualization::Vmx(vmx) => vmx.device_write(board, address, data),
        }
    }

    /// The processor waits after HLT.
    pub fn halted(&mut self) {
        if let Virtualization::Vmx(vmx) = self {
            vmx.halted();
        }
    }

    /// Whether CR8 is the guest's own, and no business of the local APIC's.
    #[must_use]
    pub fn virtual_task_priority(&self) -> bool {
        match self {
            Virtualization::Svm(svm) => svm.virtual_task_priority(),
            Virtualization::Vmx(_) => false,
        }
    }

    /// CR8 was written: a virtual interrupt may have a chance now.
    pub fn task_priority_written(&self, board: &mut impl Board) {
        if let Virtualization::Svm(svm) = self {
            svm.task_priority_written(board);
        }
    }
}
