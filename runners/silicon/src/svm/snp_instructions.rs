//! The instructions of SNP (APM volume 3), around the functions of [`crate::rmp`] that do them.

use privet_cpu::paging::{self, Tables, View, Walk, WalkRegisters};
use privet_cpu::state::{cr0, gpr};
use privet_cpu::{Access, AccessKind, Call, Config, CpuState, Exception, Intercepted, PAGE_SIZE, flags};

use super::Svm;
use super::exit::{self, Exit};
use super::instructions::next_rip;
use crate::board::Board;
use crate::encryption::Key;
use crate::interface::Translation;
use crate::memory::{read_array, read_u64};
use crate::rmp::{self, Adjustment, Caller, Code, Operand, PageSize, Refusal, Rmp, RmpState};

/// Why an instruction comes to no result: what the CPU is to do in its place.
struct Stopped(Intercepted);

impl From<Exception> for Stopped {
    fn from(exception: Exception) -> Stopped {
        Stopped(Intercepted::Reflect(exception))
    }
}

impl Svm {
    /// An instruction of SNP or VMGEXIT, at RIP and `length` bytes long; `None` for one of something else.
    pub(super) fn snp_call(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        call: Call,
        length: u8,
    ) -> Option<Intercepted> {
        let done = match call {
            Call::Vmgexit => self.vmgexit(board, state, length),
            Call::Rmpupdate => self.rmpupdate(board, state),
            Call::Psmash => self.psmash(board, state),
            Call::Pvalidate => self.pvalidate(board, state),
            Call::Rmpadjust => self.rmpadjust(board, state),
            Call::Rmpquery => self.rmpquery(board, state),
            Call::Rmpread => self.rmpread(board, state),
            _ => return None,
        };
        Some(done.unwrap_or_else(|Stopped(intercepted)| intercepted))
    }

    /// VMGEXIT exits from a guest whose registers are encrypted; to any other it is VMMCALL (15.35.6).
    fn vmgexit(&mut self, board: &mut impl Board, state: &mut CpuState, length: u8) -> Result<Intercepted, Stopped> {
        if !self.registers_encrypted() {
            return self.call(board, state, Call::Vmmcall, length).ok_or(Exception::ud().into());
        }
        let exit =
            Exit { code: exit::VMGEXIT, info1: 0, info2: 0, next_rip: next_rip(state, length), with_bytes: false };
        Ok(self.switch(board, state, exit))
    }

    /// The RMP, for an instruction of the hypervisor: 64-bit mode, SNP enabled, CPL 0.
    fn hypervisors(&self, board: &mut impl Board, state: &CpuState) -> Result<Rmp, Stopped> {
        let rmp = board.rmp().filter(|_| state.code64()).ok_or(Exception::ud())?;
        if state.cpl() == 0 { Ok(rmp) } else { Err(Exception::gp(0).into()) }
    }

    /// RMPUPDATE: RAX system-physical address, RCX linear address of the new state. EAX the result.
    fn rmpupdate(&mut self, board: &mut impl Board, state: &mut CpuState) -> Result<Intercepted, Stopped> {
        let rmp = self.hypervisors(board, state)?;
        if self.in_guest() {
            return Ok(answer(state, Code::FailPermission));
        }
        let from = host_page(board, state, &self.features, state.gpr[gpr::RCX], AccessKind::Read)?;
        let new = RmpState::decode(read_array(board, from));
        let code = rmp::rmpupdate(&rmp, board, state.gpr[gpr::RAX], new);
        Ok(answer(state, code))
    }

    /// PSMASH: RAX system-physical address. EAX the result.
    fn psmash(&mut self, board: &mut impl Board, state: &mut CpuState) -> Result<Intercepted, Stopped> {
        let rmp = self.hypervisors(board, state)?;
        if self.in_guest() {
            return Ok(answer(state, Code::FailPermission));
        }
        let code = rmp::psmash(&rmp, board, state.gpr[gpr::RAX]);
        Ok(answer(state, code))
    }

    /// RMPREAD: RAX system-physical address, RCX linear address of where the state goes. EAX the result.
    fn rmpread(&mut self, board: &mut impl Board, state: &mut CpuState) -> Result<Intercepted, Stopped> {
        let has_it = self.features.sev.is_some_and(|sev| sev.rmpread);
        let rmp = self.hypervisors(board, state).and_then(|rmp| has_it.then_some(rmp).ok_or(Exception::ud().into()))?;
        if self.in_guest() {
            return Ok(answer(state, Code::FailPermission));
        }
        let to = host_page(board, state, &self.features, state.gpr[gpr::RCX], AccessKind::Write)?;
        match rmp::rmpread(&rmp, board, state.gpr[gpr::RAX]) {
            Ok(found) => {
                board.write(to, &found.encode());
                Ok(answer(state, Code::Success))
            }
            Err(code) => Ok(answer(state, code)),
        }
    }

    /// Who executes an instruction of SNP guests: 64-bit mode, SNP active, CPL 0.
    fn caller(&self, state: &CpuState) -> Result<Caller, Stopped> {
        let snp = self.protection().and_then(|protection| Some((protection.asid, protection.vmpl()?)));
        let (asid, vmpl) = snp.filter(|_| state.code64()).ok_or(Exception::ud())?;
        if state.cpl() == 0 { Ok(Caller { asid, vmpl }) } else { Err(Exception::gp(0).into()) }
    }

    /// PVALIDATE: RAX linear address, ECX size, bit 0 of EDX whether to validate. EAX the result, CF whether nothing
    /// changed. The other bits of EDX mean nothing: Linux leaves there what there was (arch/x86/include/asm/sev.h:
    /// pvalidate, whose `bool` compilers put into DL).
    fn pvalidate(&mut self, board: &mut impl Board, state: &mut CpuState) -> Result<Intercepted, Stopped> {
        let caller = self.caller(state)?;
        let (size, validate) = (state.gpr[gpr::RCX] as u32, state.gpr[gpr::RDX] & 1 != 0);
        if size > 1 {
            return Ok(answer(state, Code::FailInput));
        }
        let operand = self.operand(board, state, PageSize::of_bit(size == 1))?;
        let rmp = board.rmp().ok_or(Exception::ud())?;
        match rmp::pvalidate(&rmp, board, caller, &operand, validate) {
            Ok(done) => {
                answer(state, done.code);
                state.rflags |= if done.unchanged { flags::CF } else { 0 };
                Ok(Intercepted::Done)
            }
            Err(refusal) => Err(self.refuse_operand(board, state, &operand, refusal)),
        }
    }

    /// RMPADJUST: RAX linear address, RCX size, RDX target, rights and attributes. EAX the result.
    fn rmpadjust(&mut self, board: &mut impl Board, state: &mut CpuState) -> Result<Intercepted, Stopped> {
        let caller = self.caller(state)?;
        let size = state.gpr[gpr::RCX];
        if size > 1 {
            return Ok(answer(state, Code::FailInput));
        }
        let operand = self.operand(board, state, PageSize::of_bit(size == 1))?;
        let rmp = board.rmp().ok_or(Exception::ud())?;
        let adjustment = Adjustment::decode(state.gpr[gpr::RDX]);
        match rmp::rmpadjust(&rmp, board, caller, &operand, adjustment) {
            Ok(code) => Ok(answer(state, code)),
            Err(refusal) => Err(self.refuse_operand(board, state, &operand, refusal)),
        }
    }

    /// RMPQUERY: RAX linear address, RDX target. EAX the result, RDX rights and attributes, RCX size.
    fn rmpquery(&mut self, board: &mut impl Board, state: &mut CpuState) -> Result<Intercepted, Stopped> {
        let caller = self.caller(state)?;
        let operand = self.operand(board, state, PageSize::Size4K)?;
        let rmp = board.rmp().ok_or(Exception::ud())?;
        let target = state.gpr[gpr::RDX] as u8;
        match rmp::rmpquery(&rmp, board, caller, &operand, target) {
            Ok(Ok(queried)) => {
                let vmsa = u64::from(queried.vmsa) << 16;
                state.gpr[gpr::RDX] = u64::from(target) | u64::from(queried.permissions.bits()) << 8 | vmsa;
                state.gpr[gpr::RCX] = u64::from(queried.size == PageSize::Size2M);
                Ok(answer(state, Code::Success))
            }
            Ok(Err(code)) => Ok(answer(state, code)),
            Err(refusal) => Err(self.refuse_operand(board, state, &operand, refusal)),
        }
    }

    /// The page that RAX names, by the guest's and the nested page tables, with the faults that they give.
    fn operand(&mut self, board: &mut impl Board, state: &mut CpuState, size: PageSize) -> Result<Operand, Stopped> {
        let linear = state.gpr[gpr::RAX] & !(PAGE_SIZE - 1);
        let registers = walk_registers(state, self.features.physical_bits);
        let mut tables = GuestTables { svm: self, board, state, linear };
        let gpa = match paging::walk(&mut tables, &registers, linear, AccessKind::Read, View::Supervisor, true)? {
            Walk::Page { gpa, .. } => gpa,
            Walk::Fault(code) => return Err(Exception::pf(linear, code).into()),
        };
        let access = Access {
            linear,
            kind: AccessKind::Read,
            offset: 0,
            size: PAGE_SIZE,
            user: false,
            walk: false,
            private: true,
            emulated: false,
            next_rip: 0,
        };
        match self.nested_page(board, gpa, access) {
            Ok((pa, mapping)) => Ok(Operand { pa, gpa, mapping, size }),
            Err(error) => Err(self.stop(board, state, Exit::nested_page_fault(error, gpa, 0))),
        }
    }

    fn refuse_operand(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        operand: &Operand,
        refusal: Refusal,
    ) -> Stopped {
        match refusal {
            Refusal::NotValidated => not_validated().into(),
            Refusal::Nested(bits) => {
                let access = Access {
                    linear: state.gpr[gpr::RAX],
                    kind: AccessKind::Read,
                    offset: 0,
                    size: PAGE_SIZE,
                    user: false,
                    walk: false,
                    private: true,
                    emulated: false,
                    next_rip: 0,
                };
                self.stop(board, state, rmp_fault(operand.gpa, access, bits))
            }
        }
    }

    fn stop(&mut self, board: &mut impl Board, state: &mut CpuState, exit: Exit) -> Stopped {
        Stopped(self.switch(board, state, exit))
    }
}

/// #VC for a page that the guest has not validated.
pub(super) fn not_validated() -> Exception {
    Exception::with_code(privet_cpu::vector::VC, rmp::PAGE_NOT_VALIDATED)
}

/// The exit for an access that the nested tables allow and the RMP does not.
pub(super) fn rmp_fault(gpa: u64, access: Access, bits: u64) -> Exit {
    let present = u64::from(paging::PF_PRESENT | paging::PF_USER);
    let kind = match access.kind {
        AccessKind::Read if access.walk => u64::from(paging::PF_WRITE),
        AccessKind::Read => 0,
        AccessKind::Write => u64::from(paging::PF_WRITE),
        AccessKind::Fetch => u64::from(paging::PF_FETCH),
    };
    let private = if access.private { rmp::error_code::ENC } else { 0 };
    let error = present | kind | private | bits | super::nested_paging::place(access);
    Exit::nested_page_fault(error, gpa | u64::from(access.offset), access.next_rip)
}

/// EAX and the flags that follow from it.
fn answer(state: &mut CpuState, code: Code) -> Intercepted {
    state.gpr[gpr::RAX] = code as u64;
    state.rflags &= !(flags::CF | flags::ZF | flags::SF | flags::OF | flags::AF | flags::PF);
    state.rflags |= if code == Code::Success { flags::ZF | flags::PF } else { 0 };
    Intercepted::Done
}

fn walk_registers(state: &CpuState, physical_bits: u8) -> WalkRegisters {
    WalkRegisters::of(state, &Config { physical_bits, ..Config::default() })
}

/// The system-physical address of the 16 bytes that an instruction of the host accesses at `linear`. They do not cross a
/// page: Linux keeps them aligned, and the manual does not say what else would happen.
fn host_page(
    board: &mut impl Board,
    state: &CpuState,
    features: &super::Features,
    linear: u64,
    kind: AccessKind,
) -> Result<u64, Stopped> {
    if state.cr0 & cr0::PG == 0 || linear % PAGE_SIZE > PAGE_SIZE - 16 {
        return Err(Exception::gp(0).into());
    }
    let registers = walk_registers(state, features.physical_bits);
    let walked = paging::walk(&mut HostTables(board), &registers, linear, kind, View::Supervisor, true);
    match walked {
        Ok(Walk::Page { gpa, .. }) => Ok(gpa + linear % PAGE_SIZE),
        Ok(Walk::Fault(code)) => Err(Exception::pf(linear, code).into()),
        Err(never) => match never {},
    }
}

/// The host's page tables.
struct HostTables<'a, B>(&'a mut B);

impl<B: Board> Tables for HostTables<'_, B> {
    type Error = std::convert::Infallible;

    fn read(&mut self, pa: u64) -> Result<u64, Self::Error> {
        Ok(read_u64(self.0, pa))
    }

    fn update(&mut self, pa: u64, _old: u64, new: u64) -> Result<bool, Self::Error> {
        self.0.write(pa, &new.to_le_bytes());
        Ok(true)
    }
}

/// The guest's page tables, which an instruction walks as the processor does: private, and by the nested tables.
struct GuestTables<'a, B> {
    svm: &'a mut Svm,
    board: &'a mut B,
    state: &'a mut CpuState,
    linear: u64,
}

impl<B: Board> GuestTables<'_, B> {
    fn place(&mut self, gpa: u64, kind: AccessKind) -> Result<(u64, crate::encryption::Key), Stopped> {
        let access = Access {
            linear: self.linear,
            kind,
            offset: (gpa % PAGE_SIZE) as u16,
            size: PAGE_SIZE,
            user: false,
            walk: true,
            private: true,
            emulated: false,
            next_rip: 0,
        };
        match self.svm.translate(self.board, self.state, gpa & !(PAGE_SIZE - 1), access) {
            Translation::Page { page, key } => Ok((page + gpa % PAGE_SIZE, key)),
            Translation::Device(address) => Ok((address + gpa % PAGE_SIZE, Key::PLAIN)),
            Translation::Reflect(exception) => Err(exception.into()),
            Translation::Switched => Err(Stopped(Intercepted::Switched)),
        }
    }
}

impl<B: Board> Tables for GuestTables<'_, B> {
    type Error = Stopped;

    fn read(&mut self, gpa: u64) -> Result<u64, Stopped> {
        let (pa, key) = self.place(gpa, AccessKind::Read)?;
        let mut bytes = [0; 8];
        self.board.read_as(key, pa, &mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn update(&mut self, gpa: u64, _old: u64, new: u64) -> Result<bool, Stopped> {
        let (pa, key) = self.place(gpa, AccessKind::Write)?;
        self.board.write_as(key, pa, &new.to_le_bytes());
        Ok(true)
    }
}
