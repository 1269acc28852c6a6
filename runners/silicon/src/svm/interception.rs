//! What an intercept bit makes of an instruction or an exception (APM volume 2, 15.7 to 15.14, appendix C).

use privet_cpu::state::{Injection, cr0, gpr};
use privet_cpu::{CpuState, CrAccess, Exception, Intercept, Intercepted, Reaction, TableRegister, Trap, vector};

use super::Svm;
use super::automatic::{Fate, fate};
use super::exit::Exit;
use super::instructions::next_rip;
use super::intercepts::Code;
use super::msr::SEV_STATUS;
use super::permission_maps::{intercepts_msr, intercepts_port};
use crate::Rule;
use crate::board::Board;

/// Bit 63 of EXITINFO1: the register of a MOV to or from a control register is in bits 3:0 (15.8.1).
const MOV_CR: u64 = 1 << 63;

impl Svm {
    /// Whether a guest runs that intercepts this.
    #[inline]
    pub(super) fn intercepts(&self, code: Code) -> bool {
        self.guest.as_ref().is_some_and(|guest| guest.control.intercepts.has(code))
    }

    /// An instruction is about to execute, at RIP and `length` bytes long.
    pub fn intercept(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        what: Intercept,
        length: u8,
    ) -> Intercepted {
        if let Intercept::Call(call) = what
            && let Some(intercepted) = self.call(board, state, call, length)
        {
            return intercepted;
        }
        match self.exit_of(board, state, what, length) {
            Some(exit) => self.switch(board, state, exit),
            None if what == Intercept::Wrmsr && self.forbids_svme(state) => Intercepted::Reflect(Exception::gp(0)),
            None => Intercepted::Native,
        }
    }

    /// The exit that an instruction of the guest ends in, if any.
    fn exit_of(&mut self, board: &mut impl Board, state: &CpuState, what: Intercept, length: u8) -> Option<Exit> {
        self.guest.as_ref()?;
        let next = next_rip(state, length);
        let plain = |svm: &Svm, code: Code| svm.intercepts(code).then(|| Exit::instruction(code, 0, 0, next));
        match what {
            // In an SNP guest CPUID and ports are taken for intercepted whatever the VMCB says (15.36.8).
            Intercept::Cpuid if self.snp_intercepts() => Some(Exit::instruction(Code::CPUID, 0, 0, next)),
            Intercept::Cpuid => plain(self, Code::CPUID),
            Intercept::Hlt => plain(self, Code::HLT),
            Intercept::Iret => plain(self, Code::IRET),
            Intercept::Pushf => plain(self, Code::PUSHF),
            Intercept::Popf => plain(self, Code::POPF),
            Intercept::Icebp => plain(self, Code::ICEBP),
            Intercept::Rdtsc => plain(self, Code::RDTSC),
            Intercept::Rdtscp => plain(self, Code::RDTSCP),
            Intercept::Rdpmc => plain(self, Code::RDPMC),
            Intercept::Wbinvd => plain(self, Code::WBINVD),
            Intercept::Invd => plain(self, Code::INVD),
            Intercept::Monitor => plain(self, Code::MONITOR),
            Intercept::Mwait => plain(self, Code::MWAIT),
            Intercept::Xsetbv => plain(self, Code::XSETBV),
            Intercept::Table { register, write } => plain(self, table_code(register, write)),
            Intercept::Pause => self.exit_of_pause(state).then(|| Exit::instruction(Code::PAUSE, 0, 0, next)),
            Intercept::Rdmsr => self.exit_of_msr(board, state, false, next),
            Intercept::Wrmsr => self.exit_of_msr(board, state, true, next),
            Intercept::PortIo { .. } => self.exit_of_port(board, what, next),
            Intercept::ReadCr { cr, by } => {
                let code = Code::read_cr(cr);
                self.intercepts(code).then(|| Exit::instruction(code, self.cr_operand(by), 0, next))
            }
            Intercept::WriteCr { cr, value, by } => self.exit_of_cr_write(state, cr, value, by, next),
            Intercept::ReadDr { dr, register } => self.assisted(Code::read_dr(dr), u64::from(register), 0, next),
            Intercept::WriteDr { dr, register, .. } => self.assisted(Code::write_dr(dr), u64::from(register), 0, next),
            Intercept::SoftwareInterrupt(vector) => self.assisted(Code::INT_N, u64::from(vector), 0, next),
            Intercept::Invlpg { linear } => self.assisted(Code::INVLPG, linear, 0, next),
            Intercept::Invpcid { kind, descriptor, .. } => self.assisted(Code::INVPCID, descriptor, kind, next),
            // Of Intel's processors, or without an intercept.
            Intercept::Call(_) | Intercept::Vmx { .. } | Intercept::Rdpid | Intercept::Xsaves => None,
        }
    }

    /// An exit whose information is a decode assist (15.8 and appendix C): zero without that feature.
    fn assisted(&self, code: Code, info1: u64, info2: u64, next: u64) -> Option<Exit> {
        let (info1, info2) = if self.features.decode_assists { (info1, info2) } else { (0, 0) };
        self.intercepts(code).then(|| Exit::instruction(code, info1, info2, next))
    }

    /// EXITINFO1 of an access to a control register: the register of a MOV, zero for CLTS, LMSW and SMSW.
    fn cr_operand(&self, by: CrAccess) -> u64 {
        match by {
            CrAccess::Mov(register) if self.features.decode_assists => MOV_CR | u64::from(register),
            _ => 0,
        }
    }

    /// The intercept of all writes comes before the selective one, which only sees CR0 and changes other than to TS
    /// and MP (15.9).
    fn exit_of_cr_write(&self, state: &CpuState, cr: u8, value: u64, by: CrAccess, next: u64) -> Option<Exit> {
        let code = if self.intercepts(Code::write_cr(cr)) {
            Code::write_cr(cr)
        } else if cr == 0 && (value ^ state.cr0) & !(cr0::TS | cr0::MP) != 0 && self.intercepts(Code::CR0_SELECTIVE) {
            Code::CR0_SELECTIVE
        } else {
            return None;
        };
        Some(Exit::instruction(code, self.cr_operand(by), 0, next))
    }

    fn exit_of_msr(&self, board: &mut impl Board, state: &CpuState, write: bool, next: u64) -> Option<Exit> {
        let index = state.gpr[gpr::RCX] as u32;
        // An encrypted guest learns what it is from its processor alone (15.34.10).
        if index == SEV_STATUS && !write && self.protection().is_some() && self.holds(Rule::StatusRegister) {
            return None;
        }
        let guest = self.guest.as_ref().filter(|guest| guest.control.intercepts.has(Code::MSR))?;
        intercepts_msr(board, guest.control.msrpm, index, write)
            .then(|| Exit::instruction(Code::MSR, u64::from(write), 0, next))
    }

    /// EXITINFO1 as in figure 15-2, EXITINFO2 the next instruction.
    fn exit_of_port(&self, board: &mut impl Board, what: Intercept, next: u64) -> Option<Exit> {
        let Intercept::PortIo { port, size, input, string, rep, address_size, segment, .. } = what else { return None };
        let guest =
            self.guest.as_ref().filter(|guest| self.snp_intercepts() || guest.control.intercepts.has(Code::IOIO))?;
        let info = u64::from(input)
            | u64::from(string) << 2
            | u64::from(rep) << 3
            | u64::from(size & 7) << 4
            | u64::from(address_size >> 1 & 7) << 7
            | if string { (segment as u64) << 10 } else { 0 }
            | u64::from(port) << 16;
        (self.snp_intercepts() || intercepts_port(board, guest.control.iopm, port, size))
            .then(|| Exit::instruction(Code::IOIO, info, next, next))
    }

    fn exit_of_pause(&mut self, state: &CpuState) -> bool {
        self.guest
            .as_mut()
            .is_some_and(|guest| guest.control.intercepts.has(Code::PAUSE) && guest.pause.pause(state.instructions))
    }

    /// An exception was raised, and nothing of it is delivered yet. One that is being injected is none (15.20).
    pub fn exception(&mut self, board: &mut impl Board, state: &mut CpuState, exception: Exception) -> Reaction {
        if let Some(rip) = self.guest.as_mut().and_then(|guest| guest.injected_at.take()) {
            // A software event of EVENTINJ that cannot be delivered faults at the instruction.
            state.rip = rip;
        }
        let code = Code::exception(exception.vector);
        if !self.intercepts(code) {
            return Reaction::Native;
        }
        let error = u64::from(exception.error_code.unwrap_or(0));
        let mut exit = Exit::instruction(code, error, 0, 0);
        match exception.vector {
            vector::PF => exit = Exit::page_fault(error, exception.payload),
            // DR6 has its new value (15.12.2).
            vector::DB => state.dr6 = state.dr6 & !0xf | exception.payload,
            // INT3 and INTO are one byte long.
            vector::BP | vector::OF => exit.next_rip = next_rip(state, 1),
            _ => {}
        }
        match fate(&exit, self.features.rules) {
            // The guest's handler takes its place: #VC, before anything of the exception is delivered.
            Fate::Exception(exception) if self.registers_encrypted() => {
                state.injection = Some(Injection::Exception(exception));
            }
            _ => self.vmexit(board, state, exit),
        }
        Reaction::Switched
    }

    /// An instruction has written a control register or EFER: a guest whose registers are encrypted exits behind it
    /// (15.35.9).
    pub fn after(&mut self, board: &mut impl Board, state: &mut CpuState, what: Trap) -> Reaction {
        let (code, value) = match what {
            Trap::WriteEfer => (Code::EFER_WRITE_TRAP, state.efer),
            Trap::WriteCr(0) => (Code::cr_write_trap(0), state.cr0),
            Trap::WriteCr(4) => (Code::cr_write_trap(4), state.cr4),
            Trap::WriteCr(number) => (Code::cr_write_trap(number), state.cr8),
        };
        if !self.registers_encrypted() || !self.intercepts(code) || !self.holds(Rule::WriteTraps) {
            return Reaction::Native;
        }
        self.vmexit(board, state, Exit::instruction(code, value, 0, 0));
        Reaction::Switched
    }

    /// CPUID and ports exit whatever the VMCB says.
    fn snp_intercepts(&self) -> bool {
        let active = self.protection().is_some_and(|protection| protection.vmpl().is_some());
        active && self.holds(Rule::SnpIntercepts)
    }

    /// A triple fault (15.14.3).
    pub fn shutdown(&mut self, board: &mut impl Board, state: &mut CpuState) -> Reaction {
        if !self.intercepts(Code::SHUTDOWN) {
            return Reaction::Native;
        }
        self.vmexit(board, state, Exit::asynchronous(Code::SHUTDOWN));
        Reaction::Switched
    }
}

fn table_code(register: TableRegister, write: bool) -> Code {
    match (register, write) {
        (TableRegister::Idtr, false) => Code::SIDT,
        (TableRegister::Gdtr, false) => Code::SGDT,
        (TableRegister::Ldtr, false) => Code::SLDT,
        (TableRegister::Tr, false) => Code::STR,
        (TableRegister::Idtr, true) => Code::LIDT,
        (TableRegister::Gdtr, true) => Code::LGDT,
        (TableRegister::Ldtr, true) => Code::LLDT,
        (TableRegister::Tr, true) => Code::LTR,
    }
}
