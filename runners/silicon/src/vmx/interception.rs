//! Which instructions and exceptions of a guest exit (SDM volume 3, 26.1 and 26.2).

use privet_cpu::state::gpr;
use privet_cpu::{Call, CpuState, Exception, Intercept, Intercepted, Operands, Reaction, VmxInstruction, vector};

use super::bitmaps::{exits_on_msr, exits_on_port};
use super::controls::{proc, proc2};
use super::exit::{Exit, Reason};
use super::guest::Guest;
use super::instructions::InstructionError;
use super::{Vmx, information};
use crate::board::Board;
use crate::event::{ERROR_VALID, KIND_EXCEPTION, KIND_PRIVILEGED, KIND_SOFT_EXCEPTION, VALID};

/// What becomes of an instruction of a guest.
pub(super) enum Fate {
    Exits(Exit),
    Answered(Intercepted),
}

impl Vmx {
    /// An instruction is about to execute, at RIP and `length` bytes long.
    pub fn intercept(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        what: Intercept,
        length: u8,
    ) -> Intercepted {
        if let Intercept::Vmx { instruction, operands } = what {
            return self.permit(board, state, (instruction, operands), length);
        }
        if self.guest().is_none() {
            return self.intercept_in_host(board, state, what);
        }
        match self.fate(board, state, what, length) {
            Fate::Answered(answer) => answer,
            Fate::Exits(exit) => {
                self.vmexit(board, state, exit);
                Intercepted::Switched
            }
        }
    }

    fn intercept_in_host(&mut self, board: &mut impl Board, state: &mut CpuState, what: Intercept) -> Intercepted {
        match what {
            Intercept::WriteCr { cr, value, .. } if self.root.is_some() => self.permit_cr_write(cr, value),
            // There is no monitor for SMM that it could call.
            Intercept::Call(Call::Vmcall) if self.root.is_some() => {
                self.refuse(board, state, InstructionError::VmcallInRoot)
            }
            _ => Intercepted::Native,
        }
    }

    fn fate(&mut self, board: &mut impl Board, state: &mut CpuState, what: Intercept, length: u8) -> Fate {
        let native = Fate::Answered(Intercepted::Native);
        let Some(guest) = self.guest_mut() else { return native };
        let controls = guest.controls;
        let exit = |reason| Fate::Exits(Exit::instruction(reason, 0, length));
        let exit_if = |control: bool, reason| if control { exit(reason) } else { Fate::Answered(Intercepted::Native) };
        let needs = |control: u32| if controls.proc2(control) { None } else { Some(undefined()) };
        match what {
            Intercept::Cpuid => exit(Reason::Cpuid),
            Intercept::Invd => exit(Reason::Invd),
            Intercept::Xsetbv => exit(Reason::Xsetbv),
            Intercept::Call(Call::Vmcall) => exit(Reason::Vmcall),
            Intercept::Call(Call::Seamcall) => exit(Reason::Seamcall),
            Intercept::Call(Call::Tdcall) => exit(Reason::Tdcall),
            Intercept::Hlt => exit_if(controls.proc(proc::HLT), Reason::Hlt),
            Intercept::Pause => exit_if(controls.proc(proc::PAUSE), Reason::Pause),
            Intercept::Rdtsc => exit_if(controls.proc(proc::RDTSC), Reason::Rdtsc),
            Intercept::Rdpmc => exit_if(controls.proc(proc::RDPMC), Reason::Rdpmc),
            Intercept::Monitor => exit_if(controls.proc(proc::MONITOR), Reason::Monitor),
            Intercept::Mwait => exit_if(controls.proc(proc::MWAIT), Reason::Mwait),
            Intercept::Wbinvd => exit_if(controls.proc2(proc2::WBINVD), Reason::Wbinvd),
            Intercept::Rdtscp => {
                needs(proc2::RDTSCP).unwrap_or_else(|| exit_if(controls.proc(proc::RDTSC), Reason::Rdtscp))
            }
            Intercept::Rdpid => needs(proc2::RDTSCP).unwrap_or(native),
            // XSS is always 0 here, so that no bit of the XSS-exiting bitmap matters.
            Intercept::Xsaves => needs(proc2::XSAVES).unwrap_or(native),
            Intercept::Invlpg { linear } if controls.proc(proc::INVLPG) => {
                Fate::Exits(Exit::instruction(Reason::Invlpg, linear, length))
            }
            Intercept::Invpcid { operands, .. } => needs(proc2::INVPCID).unwrap_or_else(|| {
                let (information, displacement) = information::of_operands(operands);
                let exit = Exit { information, ..Exit::instruction(Reason::Invpcid, displacement, length) };
                if controls.proc(proc::INVLPG) { Fate::Exits(exit) } else { Fate::Answered(Intercepted::Native) }
            }),
            Intercept::ReadDr { dr, register } => fate_of_dr(guest, u64::from(dr) | 1 << 4, register, length),
            Intercept::WriteDr { dr, register, .. } => fate_of_dr(guest, dr.into(), register, length),
            Intercept::PortIo { .. } => fate_of_port(guest, board, what, length),
            Intercept::ReadCr { cr, by } => self.fate_of_cr_read(board, state, (cr, by), length),
            Intercept::WriteCr { cr, value, by } => self.fate_of_cr_write(board, state, (cr, value, by), length),
            Intercept::Rdmsr => self.fate_of_rdmsr(board, state, length),
            Intercept::Wrmsr => self.fate_of_wrmsr(board, state, length),
            Intercept::SoftwareInterrupt(_) => {
                guest.software_length = length;
                native
            }
            Intercept::Icebp => {
                (guest.software_length, guest.icebp) = (length, true);
                native
            }
            Intercept::Invlpg { .. }
            | Intercept::Iret
            | Intercept::Pushf
            | Intercept::Popf
            | Intercept::Table { .. }
            | Intercept::Call(_)
            | Intercept::Vmx { .. } => native,
        }
    }

    fn fate_of_rdmsr(&mut self, board: &mut impl Board, state: &mut CpuState, length: u8) -> Fate {
        let index = state.gpr[gpr::RCX] as u32;
        let Some(guest) = self.guest() else { return Fate::Answered(Intercepted::Native) };
        if exits_msr(guest, board, index, false) {
            return Fate::Exits(Exit::instruction(Reason::Rdmsr, 0, length));
        }
        Fate::Answered(match guest.apic.x2apic_read(board, index) {
            Some(value) => {
                state.gpr[gpr::RAX] = value & 0xffff_ffff;
                state.gpr[gpr::RDX] = value >> 32;
                Intercepted::Done
            }
            None => Intercepted::Native,
        })
    }

    fn fate_of_wrmsr(&mut self, board: &mut impl Board, state: &mut CpuState, length: u8) -> Fate {
        let index = state.gpr[gpr::RCX] as u32;
        let value = state.gpr[gpr::RAX] & 0xffff_ffff | state.gpr[gpr::RDX] << 32;
        let Some(guest) = self.guest_mut() else { return Fate::Answered(Intercepted::Native) };
        if exits_msr(guest, board, index, true) {
            return Fate::Exits(Exit::instruction(Reason::Wrmsr, 0, length));
        }
        match guest.apic.x2apic_write(board, index, value) {
            None => Fate::Answered(Intercepted::Native),
            Some(Err(exception)) => Fate::Answered(Intercepted::Reflect(exception)),
            Some(Ok(())) => self.done(board, state, length),
        }
    }

    /// An instruction has written to the virtual APIC: it may exit behind itself, or an interrupt may be taken.
    pub(super) fn done(&mut self, board: &mut impl Board, state: &mut CpuState, length: u8) -> Fate {
        board.raise_event();
        match self.exit_behind() {
            Some(exit) => {
                state.rip = next_rip(state, length);
                Fate::Exits(exit)
            }
            None => Fate::Answered(Intercepted::Done),
        }
    }

    /// An instruction of VMX in the guest exits (table 28-1; the displacement is the qualification).
    pub(super) fn exit_of_vmx(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        (instruction, operands): (VmxInstruction, Operands),
        length: u8,
    ) {
        let reason = match instruction {
            VmxInstruction::Vmxon => Reason::Vmxon,
            VmxInstruction::Vmxoff => Reason::Vmxoff,
            VmxInstruction::Vmclear => Reason::Vmclear,
            VmxInstruction::Vmptrld => Reason::Vmptrld,
            VmxInstruction::Vmptrst => Reason::Vmptrst,
            VmxInstruction::Vmread => Reason::Vmread,
            VmxInstruction::Vmwrite => Reason::Vmwrite,
            VmxInstruction::Vmlaunch => Reason::Vmlaunch,
            VmxInstruction::Vmresume => Reason::Vmresume,
            VmxInstruction::Invept => Reason::Invept,
            VmxInstruction::Invvpid => Reason::Invvpid,
        };
        let (information, displacement) = information::of_operands(operands);
        self.vmexit(board, state, Exit { information, ..Exit::instruction(reason, displacement, length) });
    }

    /// An exception was raised, and nothing of it is delivered yet. One that is being injected is none.
    pub fn exception(&mut self, board: &mut impl Board, state: &mut CpuState, exception: Exception) -> Reaction {
        let Some(guest) = self.guest_mut() else { return Reaction::Native };
        if let Some(injected) = guest.injected {
            // A software event that cannot be delivered faults at its instruction.
            state.rip = injected.rip;
        }
        let icebp = std::mem::take(&mut guest.icebp);
        let (kind, length) = match exception.vector {
            vector::DB if icebp => (KIND_PRIVILEGED, guest.software_length),
            // INT3 and INTO are one byte long.
            vector::BP | vector::OF => (KIND_SOFT_EXCEPTION, 1),
            _ => (KIND_EXCEPTION, 0),
        };
        if kind == KIND_SOFT_EXCEPTION {
            guest.software_length = 1;
        }
        if !guest.exits_on(exception) {
            return Reaction::Native;
        }
        let (error_valid, error) = exception.error_code.map_or((0, 0), |code| (ERROR_VALID, code));
        let qualification = if matches!(exception.vector, vector::PF | vector::DB) { exception.payload } else { 0 };
        let exit = Exit {
            event: (VALID | kind << 8 | u32::from(exception.vector) | error_valid, error),
            linear: if exception.vector == vector::PF { exception.payload } else { 0 },
            ..Exit::instruction(Reason::ExceptionOrNmi, qualification, length)
        };
        self.vmexit(board, state, exit);
        Reaction::Switched
    }

    /// A triple fault.
    pub fn shutdown(&mut self, board: &mut impl Board, state: &mut CpuState) -> Reaction {
        if self.guest().is_none() {
            return Reaction::Native;
        }
        self.vmexit(board, state, Exit::asynchronous(Reason::TripleFault));
        Reaction::Switched
    }
}

impl Guest {
    /// Section 26.2: the exception bitmap, and for page faults whether the error code is one that turns it around.
    fn exits_on(&self, exception: Exception) -> bool {
        let set = self.exceptions >> (exception.vector & 31) & 1 != 0;
        let (mask, wanted) = self.page_faults;
        let other = exception.vector == vector::PF && exception.error_code.unwrap_or(0) & mask != wanted;
        set != other
    }
}

fn undefined() -> Fate {
    Fate::Answered(Intercepted::Reflect(Exception::ud()))
}

/// The address of the instruction behind the one at RIP.
fn next_rip(state: &CpuState, length: u8) -> u64 {
    let next = state.rip.wrapping_add(u64::from(length));
    if state.code64() { next } else { next & 0xffff_ffff }
}

fn exits_msr(guest: &Guest, board: &mut impl Board, index: u32, write: bool) -> bool {
    !guest.controls.proc(proc::MSR_BITMAPS) || exits_on_msr(board, guest.msr_bitmap, index, write)
}

/// Table 28-4.
fn fate_of_dr(guest: &Guest, access: u64, register: u8, length: u8) -> Fate {
    if !guest.controls.proc(proc::MOV_DR) {
        return Fate::Answered(Intercepted::Native);
    }
    Fate::Exits(Exit::instruction(Reason::MovDr, access | u64::from(register) << 8, length))
}

/// Table 28-5.
fn fate_of_port(guest: &Guest, board: &mut impl Board, what: Intercept, length: u8) -> Fate {
    let native = Fate::Answered(Intercepted::Native);
    let Intercept::PortIo { port, size, input, string, rep, address_size, segment, immediate, linear } = what else {
        return native;
    };
    let exits = if guest.controls.proc(proc::IO_BITMAPS) {
        exits_on_port(board, guest.io_bitmaps, port, size)
    } else {
        guest.controls.proc(proc::UNCONDITIONAL_IO)
    };
    if !exits {
        return native;
    }
    let qualification = u64::from(size - 1)
        | u64::from(input) << 3
        | u64::from(string) << 4
        | u64::from(rep) << 5
        | u64::from(immediate) << 6
        | u64::from(port) << 16;
    let information = if string { information::of_string(address_size, segment) } else { 0 };
    Fate::Exits(Exit { information, linear, ..Exit::instruction(Reason::Io, qualification, length) })
}
