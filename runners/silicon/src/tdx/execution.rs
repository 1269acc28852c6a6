//! A TD on a processor: TDH.VP.ENTER, what its instructions and accesses do, and TD exits (TDX module base architecture,
//! "TD VCPU", and ABI, TDH.VP.ENTER).
//!
//! The processor's state is the TD's from TDH.VP.ENTER to the exit; the host's waits here. What is not simulated: debugging.

use privet_cpu::state::gpr::{RAX, RBX, RCX, RDI, RDX, RSI};
use privet_cpu::state::{World, cr0, cr4, efer};
use privet_cpu::{
    Access, AccessKind, Call, CpuState, CpuidResult, Encryption, Exception, Intercept, Intercepted, Reaction, Segment,
    fpu, paging, vector,
};
use serde::{Deserialize, Serialize};

use super::guest::{GuestCall, GuestPage};
use super::shared_ept::{self, Shared};
use super::status::Code;
use super::surroundings::{Registers, Surroundings};
use super::vcpu::{Initialised, VeInfo};
use super::virtual_apic::has_msr;
use super::{Tdx, XFAM_FIXED1};
use crate::Rule;
use crate::board::{Board, Flush};
use crate::event;
use crate::interface::{Pending, Taken, Translation};

const R8: usize = 8;

/// Worlds of TDs begin here: VMX numbers its own from 1 on.
const FIRST_WORLD: u32 = 1 << 31;
/// Length of SEAMCALL and TDCALL.
const CALL_LENGTH: u64 = 4;

/// Exit reasons (SDM volume 3, appendix C).
mod reason {
    pub(super) const EXCEPTION_OR_NMI: u32 = 0;
    pub(super) const INTERRUPT: u32 = 1;
    pub(super) const TRIPLE_FAULT: u32 = 2;
    pub(super) const CPUID: u32 = 10;
    pub(super) const HLT: u32 = 12;
    pub(super) const INVD: u32 = 13;
    pub(super) const VMCALL: u32 = 18;
    pub(super) const PORT: u32 = 30;
    pub(super) const RDMSR: u32 = 31;
    pub(super) const WRMSR: u32 = 32;
    pub(super) const MWAIT: u32 = 36;
    pub(super) const MONITOR: u32 = 39;
    pub(super) const EPT_VIOLATION: u32 = 48;
    pub(super) const WBINVD: u32 = 54;
    pub(super) const TDCALL: u32 = 77;
}

/// Extended exit qualification of an EPT violation.
mod extended {
    pub(super) const NONE: u64 = 0;
    pub(super) const ACCEPT: u64 = 1;
    pub(super) const PENDING: u64 = 6;
}

/// A processor that runs a vCPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Running {
    tdvpr: u64,
    /// Behind its SEAMCALL.
    host: Box<CpuState>,
}

/// How a TD is left.
struct Exit {
    /// RAX: bits 63:32 a class of status, bits 31:0 the exit reason.
    status: u64,
    /// RCX, RDX, R8 and R9.
    values: [u64; 4],
}

impl Exit {
    fn of(reason: u32) -> Exit {
        Exit { status: reason.into(), values: [0; 4] }
    }

    /// An EPT violation: qualification, extended qualification, and the page.
    fn violation(qualification: u64, extended: u64, gpa: u64) -> Exit {
        let values = [qualification, extended, gpa & !0xFFF, 0];
        Exit { values, ..Exit::of(reason::EPT_VIOLATION) }
    }

    /// With the event that it is about in R9, as VMX tells it.
    fn event(reason: u32, kind: u32, vector: u8) -> Exit {
        let information = event::VALID | kind << 8 | u32::from(vector);
        Exit { values: [0, 0, 0, information.into()], ..Exit::of(reason) }
    }
}

/// Bits 2:0 of the exit qualification of an EPT violation.
fn access_bits(kind: AccessKind) -> u64 {
    match kind {
        AccessKind::Read => 1,
        AccessKind::Write => 2,
        AccessKind::Fetch => 4,
    }
}

/// The state in which a vCPU begins (TDX module base architecture, "Initial State of a TD VCPU"): at the reset vector in
/// 32-bit protected mode with flat segments.
fn initial(vcpu: &Initialised, gpaw: u8, signature: u32) -> CpuState {
    let mut state = CpuState::reset();
    let data = Segment { selector: 0, ..Segment::data(0) };
    state.segments = [data; 6];
    state.segments[1] = Segment { selector: 0, ..Segment::code32(0) };
    state.rip = 0xFFFF_FFF0;
    // CR4.MCE is fixed to 1; that CR4.VMXE is, too, the TD does not see.
    (state.cr0, state.cr4) = (cr0::PE | cr0::ET | cr0::NE, cr4::MCE);
    state.efer = efer::SCE | efer::LME | efer::NXE;
    (state.idtr.base, state.idtr.limit) = (0, 0);
    state.sfmask = 0x20200;
    state.apic_base = 0xFEE0_0000 | 1 << 11 | 1 << 10 | if vcpu.index == 0 { 1 << 8 } else { 0 };
    state.gpr = [0; 16];
    state.gpr[RBX] = gpaw.into();
    (state.gpr[RCX], state.gpr[R8]) = (vcpu.first_argument, vcpu.first_argument);
    state.gpr[RDX] = signature.into();
    state.gpr[RSI] = vcpu.index.into();
    state.encryption = Encryption::SharedBit(gpaw - 1);
    state
}

/// Registers of TDG.VP.VMCALL that a mask names.
fn selected(mask: u64) -> impl Iterator<Item = usize> {
    (0..16).filter(move |register| mask >> register & 1 != 0)
}

impl Tdx {
    /// Whether the processor runs a TD.
    #[must_use]
    pub fn runs(&self, processor: usize) -> bool {
        self.running.contains_key(&processor)
    }

    fn running_tdvpr(&self, processor: usize) -> u64 {
        self.running.get(&processor).map_or(0, |running| running.tdvpr)
    }

    /// TDH.VP.ENTER by a host at its SEAMCALL: the state becomes the TD's, or RAX tells why not.
    pub fn vp_enter(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize) -> Intercepted {
        let tdvpr = state.gpr[RCX];
        let entered = match self.enter(processor, tdvpr) {
            Ok(entered) => entered,
            Err(status) => {
                state.gpr[RAX] = status.bits();
                return Intercepted::Done;
            }
        };
        self.enter_apic(board, tdvpr);
        let worlds = self.worlds;
        let Ok((vcpu, control)) = self.running_vcpu(tdvpr) else { return Intercepted::Done };
        let gpaw = control.gpaw();
        let signature = control.cpuid.answer(1, 0).map_or(0, |bits| bits.0[0]);
        let is_new = vcpu.guest.is_none();
        let mut guest = vcpu.guest.take().unwrap_or_else(|| {
            let mut state = initial(vcpu, gpaw, signature);
            state.world = World(FIRST_WORLD + worlds);
            Box::new(state)
        });
        if let Some(mask) = vcpu.vmcall.take() {
            selected(mask).for_each(|register| guest.gpr[register] = state.gpr[register]);
            guest.gpr[RAX] = 0;
        }
        (guest.instructions, guest.turn_ends) = (state.instructions, state.turn_ends);
        if entered.flush {
            board.flush(Flush::World(guest.world));
        }
        if is_new {
            self.worlds += 1;
        }
        let mut host = Box::new(std::mem::replace(state, *guest));
        host.rip += CALL_LENGTH;
        self.running.insert(processor, Running { tdvpr, host });
        board.raise_event();
        Intercepted::Switched
    }

    /// The TD is left: the state is the host's again, but for what the TD has used.
    fn exit(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize, exit: Exit) {
        let Some(Running { tdvpr, host }) = self.running.remove(&processor) else { return };
        let mut guest = Box::new(std::mem::replace(state, *host));
        (state.instructions, state.turn_ends) = (guest.instructions, guest.turn_ends);
        // TDH.VP.ENTER, "Output Operands": what is not the host's any more.
        let (hides, shown) = (self.holds(Rule::HostRegisters), guest.gpr);
        let mut xcr0 = XFAM_FIXED1;
        if let Ok((vcpu, control)) = self.running_vcpu(tdvpr) {
            xcr0 = control.xfam & fpu::XCR0_KNOWN;
            guest.injection = guest.vectoring.take().or(guest.injection);
            vcpu.guest = Some(guest);
        }
        (state.sfmask, state.star, state.lstar, state.tsc_aux) = (0x20200, 0, 0, 0);
        state.kernel_gs_base = 0;
        (state.dr, state.dr6) = ([0; 4], 0xFFFF_0FF0);
        (state.xcr0, state.xss, state.fpu) = (xcr0, 0, Default::default());
        state.gpr[RAX] = exit.status;
        let [rcx, rdx, r8, r9] = exit.values;
        (state.gpr[RCX], state.gpr[RDX], state.gpr[R8], state.gpr[R8 + 1]) = (rcx, rdx, r8, r9);
        for register in [RBX, RSI, RDI, 10, 11, 12, 13, 14, 15] {
            state.gpr[register] = if hides { 0 } else { shown[register] };
        }
        self.leave(tdvpr);
        board.raise_event();
    }

    /// A TDG.VP.VMCALL with this mask leaves the TD, behind the instruction.
    fn exit_by_vmcall(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize, mask: u64) {
        let tdvpr = self.running_tdvpr(processor);
        state.rip += CALL_LENGTH;
        let shown = state.gpr;
        if let Ok((vcpu, _)) = self.running_vcpu(tdvpr) {
            vcpu.vmcall = Some(mask);
        }
        self.exit(board, state, processor, Exit::of(reason::TDCALL));
        let visible = if self.holds(Rule::VmcallRegisters) { mask } else { 0xFFC8 };
        for register in selected(visible) {
            state.gpr[register] = shown[register];
        }
        state.gpr[RCX] = mask;
    }

    /// The #VE that the TD gets; #DF if it has not asked for the one before.
    fn ve(&mut self, processor: usize, info: VeInfo) -> Exception {
        let tdvpr = self.running_tdvpr(processor);
        match self.raise_ve(tdvpr, info) {
            true => Exception::plain(vector::VE),
            false => Exception::with_code(vector::DF, 0),
        }
    }

    fn ve_of_instruction(&mut self, processor: usize, reason: u32, qualification: u64, length: u8) -> Intercepted {
        let info = VeInfo { reason, qualification, gla: 0, gpa: 0, length: length.into(), information: 0 };
        Intercepted::Reflect(self.ve(processor, info))
    }

    /// See [`privet_cpu::Bus::intercept`], in a TD.
    pub fn intercept(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        processor: usize,
        what: Intercept,
        length: u8,
    ) -> Intercepted {
        let tdvpr = self.running_tdvpr(processor);
        let ve = |tdx: &mut Tdx, reason| tdx.ve_of_instruction(processor, reason, 0, length);
        match what {
            Intercept::Call(Call::Tdcall) => self.tdcall_of(board, state, processor),
            Intercept::Call(Call::Vmcall) => ve(self, reason::VMCALL),
            Intercept::Call(_) | Intercept::Vmx { .. } => Intercepted::Reflect(Exception::ud()),
            Intercept::Cpuid => self.cpuid_of(state, processor, length),
            Intercept::Rdmsr => self.rdmsr_of(board, state, processor, length),
            Intercept::Wrmsr => match state.gpr[RCX] as u32 {
                index if writes_directly(index) => Intercepted::Native,
                index if has_msr(index) => self.write_apic_msr(board, state, tdvpr),
                XSS => self.write_xss(state, tdvpr),
                _ => ve(self, reason::WRMSR),
            },
            Intercept::PortIo { .. } => {
                let qualification = port_qualification(what);
                self.ve_of_instruction(processor, reason::PORT, qualification, length)
            }
            Intercept::Hlt => ve(self, reason::HLT),
            Intercept::Wbinvd => ve(self, reason::WBINVD),
            Intercept::Invd => ve(self, reason::INVD),
            Intercept::Monitor => ve(self, reason::MONITOR),
            Intercept::Mwait => ve(self, reason::MWAIT),
            Intercept::Rdpmc => Intercepted::Reflect(Exception::gp(0)),
            Intercept::ReadCr { cr: 8, .. } => Intercepted::Value(self.task_priority(board, tdvpr)),
            Intercept::WriteCr { cr: 8, value, .. } => self.set_task_priority(board, tdvpr, value),
            Intercept::WriteCr { cr, value, .. } if !keeps_fixed_bits(cr, value) && self.holds(Rule::FixedControl) => {
                Intercepted::Reflect(Exception::gp(0))
            }
            Intercept::Xsetbv if !self.has_states(processor, state) => Intercepted::Reflect(Exception::gp(0)),
            _ => Intercepted::Native,
        }
    }

    /// TDCALL: #UD outside of 64-bit mode, #GP outside of ring 0.
    fn tdcall_of(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize) -> Intercepted {
        if !state.code64() {
            return Intercepted::Reflect(Exception::ud());
        }
        if state.cpl() != 0 {
            return Intercepted::Reflect(Exception::gp(0));
        }
        let tdvpr = self.running_tdvpr(processor);
        let mut registers = Registers::of(state);
        let tsc = board.tsc();
        let nothing = |_: u32, _: u32| CpuidResult::default();
        let mut around = Surroundings { memory: board, processor, tsc, cpuid: &nothing };
        match self.tdcall(&mut around, tdvpr, state.gpr[RAX], &mut registers) {
            GuestCall::Done(status) => {
                state.gpr[RAX] = status.bits();
                registers.store(state);
                // An NMI may have waited for the TD to ask for its #VE.
                board.raise_event();
                Intercepted::Done
            }
            GuestCall::Vmcall(mask) => {
                self.exit_by_vmcall(board, state, processor, mask);
                Intercepted::Switched
            }
            GuestCall::Violation { gpa, accept } => {
                let (bits, kind) =
                    if accept { (access_bits(AccessKind::Write), extended::ACCEPT) } else { (1, extended::NONE) };
                self.exit(board, state, processor, Exit::violation(bits, kind, gpa));
                Intercepted::Switched
            }
        }
    }

    fn cpuid_of(&mut self, state: &mut CpuState, processor: usize, length: u8) -> Intercepted {
        let tdvpr = self.running_tdvpr(processor);
        let (leaf, subleaf) = (state.gpr[RAX] as u32, state.gpr[RCX] as u32);
        let Some(mut answer) = self.guest_cpuid(tdvpr, leaf, subleaf) else {
            return self.ve_of_instruction(processor, reason::CPUID, 0, length);
        };
        if leaf == 1 {
            // What follows the vCPU's own state: its number, and OSXSAVE.
            let id = self.running_vcpu(tdvpr).map_or(0, |(vcpu, _)| vcpu.x2apic_id);
            answer[1] = answer[1] & 0x00FF_FFFF | id << 24;
            let osxsave = if state.cr4 & cr4::OSXSAVE != 0 { 1 << 27 } else { 0 };
            answer[2] = answer[2] & !(1 << 27) | osxsave;
        }
        for (register, value) in [RAX, RBX, RCX, RDX].into_iter().zip(answer) {
            state.gpr[register] = value.into();
        }
        Intercepted::Done
    }

    fn rdmsr_of(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize, length: u8) -> Intercepted {
        const TSC: u32 = 0x10;
        const XAPIC_DISABLE_STATUS: u32 = 0xBD;
        const ARCH_CAPABILITIES: u32 = 0x10A;
        /// IA32_ARCH_CAPABILITIES has XAPIC_DISABLE_STATUS, in which bit 0 says that the APIC stays in x2APIC mode.
        const XAPIC_DISABLE: u64 = 1 << 21;
        let index = state.gpr[RCX] as u32;
        let mut done = |value: u64| {
            (state.gpr[RAX], state.gpr[RDX]) = (value & 0xFFFF_FFFF, value >> 32);
            Intercepted::Done
        };
        match index {
            TSC => done(self.tsc(processor, board.tsc())),
            ARCH_CAPABILITIES => done(self.chip.arch_capabilities | XAPIC_DISABLE),
            XAPIC_DISABLE_STATUS => done(1),
            index if reads_directly(index) => Intercepted::Native,
            index if has_msr(index) => self.read_apic_msr(board, state, self.running_tdvpr(processor)),
            _ => self.ve_of_instruction(processor, reason::RDMSR, 0, length),
        }
    }

    /// WRMSR to XSS: states that the TD has.
    fn write_xss(&mut self, state: &mut CpuState, tdvpr: u64) -> Intercepted {
        let value = state.gpr[RAX] & 0xFFFF_FFFF | state.gpr[RDX] << 32;
        let has = self.running_vcpu(tdvpr).map_or(0, |(_, control)| control.xfam & !fpu::XCR0_KNOWN);
        if value & !has != 0 {
            return Intercepted::Reflect(Exception::gp(0));
        }
        state.xss = value;
        Intercepted::Done
    }

    /// Whether XSETBV asks for states that the TD has.
    fn has_states(&mut self, processor: usize, state: &CpuState) -> bool {
        let tdvpr = self.running_tdvpr(processor);
        let wanted = state.gpr[RAX] & 0xFFFF_FFFF | state.gpr[RDX] << 32;
        self.running_vcpu(tdvpr).is_ok_and(|(_, control)| wanted & !control.xfam == 0)
    }

    /// The TSC of the TD that a processor runs, when the processor's is `now`.
    #[must_use]
    pub fn tsc(&mut self, processor: usize, now: u64) -> u64 {
        self.guest_tsc(self.running_tdvpr(processor), now)
    }

    /// See [`privet_cpu::Bus::resolve`], in a TD: where the page at `gpa` is.
    pub fn translate(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        processor: usize,
        gpa: u64,
        access: Access,
    ) -> Translation {
        let tdvpr = self.running_tdvpr(processor);
        let shared_bit = self.running_vcpu(tdvpr).map_or(0, |(_, control)| 1 << (control.gpaw() - 1));
        match access.private {
            true => self.translate_private(board, state, processor, gpa, access),
            false => self.translate_shared(board, state, processor, gpa | shared_bit, access),
        }
    }

    fn translate_private(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        processor: usize,
        gpa: u64,
        access: Access,
    ) -> Translation {
        match self.guest_page(self.running_tdvpr(processor), gpa) {
            GuestPage::Private { page, key } => Translation::Page { page, key },
            GuestPage::Exception => self.ve_of_access(processor, gpa, access, 0),
            GuestPage::Violation { pending } => {
                let kind = if pending { extended::PENDING } else { extended::NONE };
                self.exit(board, state, processor, Exit::violation(access_bits(access.kind), kind, gpa));
                Translation::Switched
            }
            // The shared bit is no part of the address.
            GuestPage::Shared => Translation::Reflect(Exception::pf(access.linear, paging::PF_RESERVED)),
        }
    }

    fn translate_shared(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        processor: usize,
        gpa: u64,
        access: Access,
    ) -> Translation {
        if access.kind == AccessKind::Fetch && self.holds(Rule::SharedFetches) {
            // Nobody has said what a processor does; KVM takes an exit with a fetch for broken hardware.
            let code = paging::PF_PRESENT | paging::PF_FETCH;
            return Translation::Reflect(Exception::pf(access.linear, code));
        }
        let root = self.host_controls(self.running_tdvpr(processor)).shared_eptp;
        match shared_ept::walk(board, root, gpa, access) {
            Shared::Page(page) => Translation::Page { page, key: crate::encryption::Key::PLAIN },
            Shared::Violation { permissions, .. } if !self.holds(Rule::SuppressedVe) => {
                self.ve_of_access(processor, gpa, access, permissions)
            }
            Shared::Violation { exception: true, permissions } => {
                self.ve_of_access(processor, gpa, access, permissions)
            }
            Shared::Violation { exception: false, permissions } => {
                let qualification = access_bits(access.kind) | permissions << 3;
                self.exit(board, state, processor, Exit::violation(qualification, extended::NONE, gpa));
                Translation::Switched
            }
        }
    }

    fn ve_of_access(&mut self, processor: usize, gpa: u64, access: Access, permissions: u64) -> Translation {
        let info = VeInfo {
            reason: reason::EPT_VIOLATION,
            qualification: access_bits(access.kind) | permissions << 3,
            gla: access.linear,
            gpa: gpa | u64::from(access.offset),
            length: 0,
            information: 0,
        };
        Translation::Reflect(self.ve(processor, info))
    }

    /// The TD has met a line that somebody else has written (#MC): none of its vCPUs ever runs again.
    pub fn machine_check(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize) {
        const MACHINE_CHECK: u8 = 18;
        self.make_fatal(self.running_tdvpr(processor));
        let exit = Exit::event(reason::EXCEPTION_OR_NMI, event::KIND_EXCEPTION, MACHINE_CHECK);
        let status = Code::NonRecoverableTdNonAccessible.with(reason::EXCEPTION_OR_NMI).bits();
        self.exit(board, state, processor, Exit { status, ..exit });
    }

    /// See [`privet_cpu::Bus::shutdown`], in a TD.
    pub fn shutdown(&mut self, board: &mut impl Board, state: &mut CpuState, processor: usize) -> Reaction {
        self.disable(self.running_tdvpr(processor));
        let status = Code::NonRecoverableVcpu.with(reason::TRIPLE_FAULT).bits();
        self.exit(board, state, processor, Exit { status, values: [0; 4] });
        Reaction::Switched
    }

    /// See [`crate::Virtualization::take_event`], in a TD: what waits outside is the host's, but for the notification of
    /// interrupts that the TD has been posted.
    pub fn take_event(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        processor: usize,
        pending: Pending,
    ) -> Taken {
        let tdvpr = self.running_tdvpr(processor);
        if pending.nmi {
            let exit = Exit::event(reason::EXCEPTION_OR_NMI, event::KIND_NMI, vector::NMI);
            self.exit(board, state, processor, exit);
            return Taken::SwitchedByNmi;
        }
        match pending.interrupt {
            Some(vector) if self.take_notification(board, tdvpr, vector) => Taken::Notified,
            Some(vector) => {
                let exit = Exit::event(reason::INTERRUPT, event::KIND_INTERRUPT, vector);
                self.exit(board, state, processor, exit);
                Taken::SwitchedByInterrupt
            }
            None => self.take_virtual(board, tdvpr, state),
        }
    }
}

/// IA32_XSS.
const XSS: u32 = 0xDA0;

/// Whether RDMSR is the processor's own business (ABI, "MSR Virtualization").
fn reads_directly(index: u32) -> bool {
    const EFER: u32 = 0xC000_0080;
    const MISC_ENABLE: u32 = 0x1A0;
    writes_directly(index) || matches!(index, EFER | XSS | MISC_ENABLE)
}

/// Whether WRMSR is: SYSENTER, PAT, STAR, LSTAR, CSTAR, SFMASK, the bases, TSC_AUX.
fn writes_directly(index: u32) -> bool {
    matches!(index, 0x174..=0x176 | 0x277 | 0xC000_0081..=0xC000_0084 | 0xC000_0100..=0xC000_0103)
}

/// Whether a control register keeps the bits that are fixed for a TD.
fn keeps_fixed_bits(cr: u8, value: u64) -> bool {
    match cr {
        0 => value & (cr0::PE | cr0::NE) == cr0::PE | cr0::NE && value & (cr0::CD | cr0::NW) == 0,
        4 => value & cr4::MCE != 0 && value & (cr4::VMXE | cr4::SMXE) == 0,
        _ => true,
    }
}

/// Exit qualification of IN and OUT (SDM volume 3, table 29-5).
fn port_qualification(what: Intercept) -> u64 {
    let Intercept::PortIo { port, size, input, string, rep, immediate, .. } = what else { return 0 };
    let bit = |set: bool, number: u32| u64::from(set) << number;
    u64::from(size - 1) | bit(input, 3) | bit(string, 4) | bit(rep, 5) | bit(immediate, 6) | u64::from(port) << 16
}

#[cfg(test)]
mod tests;
