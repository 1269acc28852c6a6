use privet_cpu::state::Injection;

use super::*;
use crate::encryption::KeyedMemory;
use crate::memory::PhysicalMemory;
use crate::tdx::HostLeaf;
use crate::tdx::test_machine::{GPA, TDR, TestMachine, page, td_params, tdvpr};
use crate::test_board::TestBoard;
use crate::test_memory::TestMemory;

const SHARED: u64 = 1 << 47;
/// The host's RIP at its SEAMCALL, and the TD's after that.
const HOST_RIP: u64 = 0x1000;
/// The root of the tables of shared addresses, of which there are none.
const ROOT: u64 = 0x9000;

/// A processor at TDH.VP.ENTER of a TD with one page at [`GPA`].
struct Fixture {
    machine: TestMachine,
    board: TestBoard,
    state: CpuState,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::of(TestMachine::runnable())
    }

    fn of(mut machine: TestMachine) -> Fixture {
        assert_eq!(machine.call(HostLeaf::VpWr, [tdvpr(0), 0x203C, ROOT, u64::MAX]), 0);
        let memory = std::mem::replace(&mut machine.memory, TestMemory::new(0));
        let board = TestBoard { memory, ..TestBoard::new() };
        let mut state = CpuState::reset();
        state.rip = HOST_RIP;
        state.gpr[RCX] = tdvpr(0);
        (state.star, state.kernel_gs_base, state.tsc_aux) = (7, 8, 9);
        Fixture { machine, board, state }
    }

    /// In the TD.
    fn entered() -> Fixture {
        let mut fixture = Fixture::new();
        fixture.enter();
        fixture
    }

    fn enter(&mut self) {
        self.state.gpr[RCX] = tdvpr(0);
        assert_eq!(self.try_enter(), Intercepted::Switched);
    }

    fn try_enter(&mut self) -> Intercepted {
        self.machine.tdx.vp_enter(&mut self.board, &mut self.state, 0)
    }

    fn intercept(&mut self, what: Intercept) -> Intercepted {
        self.machine.tdx.intercept(&mut self.board, &mut self.state, 0, what, 4)
    }

    fn translate(&mut self, gpa: u64, kind: AccessKind) -> Translation {
        let access = Access {
            linear: 0x7000,
            kind,
            offset: 8,
            size: 4096,
            user: false,
            walk: false,
            private: gpa & SHARED == 0,
            emulated: false,
            next_rip: 0,
        };
        self.machine.tdx.translate(&mut self.board, &mut self.state, 0, gpa & !SHARED, access)
    }

    /// 64-bit mode in ring 0, as TDCALL needs it.
    fn in_long_mode(mut self) -> Fixture {
        self.state.cr0 |= cr0::PG;
        self.state.efer |= efer::LMA;
        self.state.segments[1] = Segment::code64(8);
        self
    }

    fn tdcall(&mut self, leaf: u64, rcx: u64) -> Intercepted {
        (self.state.gpr[RAX], self.state.gpr[RCX]) = (leaf, rcx);
        self.intercept(Intercept::Call(Call::Tdcall))
    }

    /// RAX, RCX, RDX, R8 and R9 of an exit.
    fn told(&self) -> [u64; 5] {
        assert!(!self.machine.tdx.runs(0), "it has left");
        [RAX, RCX, RDX, R8, R8 + 1].map(|register| self.state.gpr[register])
    }
}

#[test]
fn a_vcpu_begins_at_the_reset_vector() {
    let fixture = Fixture::entered();
    let state = &fixture.state;
    assert_eq!((state.rip, state.rflags, state.cr0, state.cr4, state.efer), (0xFFFF_FFF0, 2, 0x31, 0x40, 0x901));
    assert_eq!((state.gpr[RBX], state.gpr[RCX], state.gpr[R8], state.gpr[RSI]), (48, 0x77, 0x77, 0));
    assert_eq!(state.segments[1].limit, u32::MAX);
    assert_eq!(state.encryption, Encryption::SharedBit(47));
    assert!(fixture.machine.tdx.runs(0) && fixture.board.event_raised);
    assert_eq!(fixture.board.flushed, [Flush::World(state.world)]);
}

#[test]
fn an_entry_that_is_refused_changes_rax_alone() {
    let mut fixture = Fixture::new();
    fixture.state.gpr[RCX] = TDR;
    let before = fixture.state.clone();
    assert_eq!(fixture.try_enter(), Intercepted::Done);
    let status = Code::PageMetadataIncorrect.on(super::super::Operand::Rcx).bits();
    assert_eq!(fixture.state.gpr[RAX], status);
    fixture.state.gpr[RAX] = before.gpr[RAX];
    assert_eq!(fixture.state, before);
}

#[test]
fn an_interrupt_leaves_the_td_with_its_vector() {
    let mut fixture = Fixture::entered();
    fixture.state.rip = 0x1234;
    let pending = Pending { interrupt: Some(0xEC), ..Pending::default() };
    let taken = fixture.machine.tdx.take_event(&mut fixture.board, &mut fixture.state, 0, pending);
    assert_eq!(taken, Taken::SwitchedByInterrupt);
    assert_eq!(fixture.told(), [1, 0, 0, 0, 0x8000_00EC]);
    assert_eq!(fixture.state.rip, HOST_RIP + CALL_LENGTH);
    fixture.enter();
    assert_eq!(fixture.state.rip, 0x1234, "it goes on where it was");
}

/// Where the host posts interrupts, and the vector that tells of it.
const DESCRIPTOR: u64 = 0x8000;
const NOTIFICATION: u8 = 0xF2;
const NOTHING: Pending = Pending { init: false, smi: false, nmi: false, interrupt: None };

impl Fixture {
    /// In a TD that processes posted interrupts.
    fn with_posted_interrupts() -> Fixture {
        let mut machine = TestMachine::runnable();
        for (field, value, mask) in
            [(0x2016, DESCRIPTOR, u64::MAX), (0x0002, NOTIFICATION.into(), 0xFFFF), (0x4000, 1 << 7, 1 << 7)]
        {
            assert_eq!(machine.call(HostLeaf::VpWr, [tdvpr(0), field, value, mask]), 0);
        }
        let mut fixture = Fixture::of(machine);
        fixture.enter();
        fixture
    }

    /// The host posts an interrupt and notifies the processor.
    fn post(&mut self, vector: u8) {
        self.board.write(DESCRIPTOR + u64::from(vector / 8), &[1 << (vector % 8)]);
        self.board.write(DESCRIPTOR + 32, &[1]);
        let pending = Pending { interrupt: Some(NOTIFICATION), ..NOTHING };
        assert_eq!(self.take(pending), Taken::Notified);
    }

    fn take(&mut self, pending: Pending) -> Taken {
        self.machine.tdx.take_event(&mut self.board, &mut self.state, 0, pending)
    }

    fn open_interrupts(&mut self) {
        self.state.rflags |= privet_cpu::flags::IF;
    }

    fn msr(&mut self, what: Intercept, index: u64, value: u64) -> Intercepted {
        (self.state.gpr[RCX], self.state.gpr[RAX], self.state.gpr[RDX]) = (index, value, 0);
        self.intercept(what)
    }

    /// VMXIP, as the host asks for it by TDH.VP.RD.
    fn tells_of_an_interrupt(&mut self) -> bool {
        let mut registers = Registers { rcx: tdvpr(0), rdx: 0x9100_0000_0000_0100, ..Registers::default() };
        let nothing = |_: u32, _: u32| CpuidResult::default();
        let mut around = Surroundings { memory: &mut self.board, processor: 0, tsc: 0, cpuid: &nothing };
        assert_eq!(self.machine.tdx.seamcall(&mut around, HostLeaf::VpRd as u64, &mut registers), 0);
        registers.r8 == 1
    }
}

#[test]
fn a_posted_interrupt_is_taken_when_interrupts_are_open() {
    let mut fixture = Fixture::with_posted_interrupts();
    fixture.post(0x31);
    let mut outstanding = [1];
    fixture.board.read(DESCRIPTOR + 32, &mut outstanding);
    assert_eq!(outstanding, [0]);
    assert_eq!(fixture.take(NOTHING), Taken::Nothing);
    assert!(fixture.tells_of_an_interrupt());
    fixture.open_interrupts();
    assert_eq!(fixture.take(NOTHING), Taken::Virtual(0x31));
    assert!(!fixture.tells_of_an_interrupt());
    assert_eq!(fixture.take(NOTHING), Taken::Nothing, "once");
}

#[test]
fn an_interrupt_waits_until_one_of_its_class_has_ended() {
    let mut fixture = Fixture::with_posted_interrupts();
    fixture.open_interrupts();
    fixture.post(0x41);
    assert_eq!(fixture.take(NOTHING), Taken::Virtual(0x41));
    fixture.post(0x42);
    assert_eq!(fixture.take(NOTHING), Taken::Nothing);
    fixture.board.event_raised = false;
    assert_eq!(fixture.msr(Intercept::Wrmsr, 0x80B, 0), Intercepted::Done);
    assert!(fixture.board.event_raised);
    assert_eq!(fixture.take(NOTHING), Taken::Virtual(0x42));
}

#[test]
fn what_waits_in_the_virtual_apic_survives_an_exit() {
    let mut fixture = Fixture::with_posted_interrupts();
    fixture.post(0x31);
    assert_eq!(fixture.take(Pending { interrupt: Some(0xEC), ..NOTHING }), Taken::SwitchedByInterrupt);
    fixture.enter();
    fixture.open_interrupts();
    assert_eq!(fixture.take(NOTHING), Taken::Virtual(0x31));
}

#[test]
fn the_task_priority_is_cr8_and_an_msr() {
    use privet_cpu::CrAccess::Mov;

    let mut fixture = Fixture::with_posted_interrupts();
    fixture.open_interrupts();
    assert_eq!(fixture.intercept(Intercept::WriteCr { cr: 8, value: 3, by: Mov(0) }), Intercepted::Done);
    fixture.post(0x31);
    assert_eq!(fixture.take(NOTHING), Taken::Nothing);
    assert_eq!(fixture.msr(Intercept::Rdmsr, 0x808, 0), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX], 0x30);
    assert_eq!(fixture.msr(Intercept::Wrmsr, 0x808, 0x20), Intercepted::Done);
    assert_eq!(fixture.intercept(Intercept::ReadCr { cr: 8, by: Mov(0) }), Intercepted::Value(2));
    assert_eq!(fixture.take(NOTHING), Taken::Virtual(0x31));
    let refused = Intercepted::Reflect(Exception::gp(0));
    assert_eq!(fixture.intercept(Intercept::WriteCr { cr: 8, value: 16, by: Mov(0) }), refused);
}

#[test]
fn registers_of_the_apic_are_virtual_the_hosts_or_not_there() {
    let mut fixture = Fixture::with_posted_interrupts();
    fixture.post(0x31);
    assert_eq!(fixture.msr(Intercept::Rdmsr, 0x821, 0), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX], 1 << 0x11, "the request");
    assert_eq!(fixture.msr(Intercept::Wrmsr, 0x83F, 0x55), Intercepted::Done);
    fixture.open_interrupts();
    assert_eq!(fixture.take(NOTHING), Taken::Virtual(0x55), "to itself");
    let refused = Intercepted::Reflect(Exception::gp(0));
    for (what, index) in [(Intercept::Rdmsr, 0x80B), (Intercept::Rdmsr, 0x809), (Intercept::Wrmsr, 0x80A)] {
        assert_eq!(fixture.msr(what, index, 0), refused, "{index:#x}");
    }
    let command = fixture.msr(Intercept::Wrmsr, 0x830, 0);
    assert_eq!(command, Intercepted::Reflect(Exception::plain(vector::VE)), "the host sends interrupts to others");
}

#[test]
fn the_host_sees_nothing_of_the_virtual_apic() {
    let mut fixture = Fixture::with_posted_interrupts();
    fixture.post(0x31);
    let page = crate::tdx::test_machine::vcpu_page(0, super::super::virtual_apic::VIRTUAL_APIC as u64);
    let requested = page + crate::virtual_apic::register::REQUESTED + 0x10;
    let key = fixture.machine.tdx.tds[&TDR].key;
    let mut seen = [0; 4];
    fixture.board.read_as(key, requested, &mut seen);
    assert_eq!(u32::from_le_bytes(seen), 1 << 0x11);
    assert_ne!(crate::read_u32(&mut fixture.board, requested), 1 << 0x11);
}

#[test]
fn an_nmi_of_the_hosts_waits_for_the_end_of_a_ve() {
    let mut fixture = Fixture::entered();
    assert_eq!(fixture.intercept(Intercept::Hlt), Intercepted::Reflect(Exception::plain(vector::VE)));
    let pending = Pending { interrupt: Some(0xEC), ..NOTHING };
    assert_eq!(fixture.take(pending), Taken::SwitchedByInterrupt);
    let inject = [tdvpr(0), 0x2000_0000_0000_000B, 1, 0xFF];
    assert_eq!(fixture.machine.call(HostLeaf::VpWr, inject), 0);
    fixture.enter();
    assert_eq!(fixture.take(NOTHING), Taken::Nothing);
    let mut fixture = fixture.in_long_mode();
    fixture.board.event_raised = false;
    assert_eq!(fixture.tdcall(3, 0), Intercepted::Done);
    assert!(fixture.board.event_raised);
    assert_eq!(fixture.take(NOTHING), Taken::Nmi);
    assert_eq!(fixture.take(NOTHING), Taken::Nothing, "once");
}

#[test]
fn an_nmi_leaves_the_td() {
    let mut fixture = Fixture::entered();
    let pending = Pending { nmi: true, interrupt: Some(0x30), ..Pending::default() };
    let taken = fixture.machine.tdx.take_event(&mut fixture.board, &mut fixture.state, 0, pending);
    assert_eq!((taken, fixture.told()), (Taken::SwitchedByNmi, [0, 0, 0, 0, 0x8000_0202]));
}

/// arch/x86/kvm/vmx/tdx.c: tdx_uret_msrs.
#[test]
fn the_host_does_not_get_back_what_the_td_may_have_used() {
    let mut fixture = Fixture::entered();
    fixture.state.gpr = [5; 16];
    fixture.machine.tdx.shutdown(&mut fixture.board, &mut fixture.state, 0);
    let state = &fixture.state;
    assert_eq!((state.sfmask, state.star, state.lstar, state.tsc_aux, state.kernel_gs_base), (0x20200, 0, 0, 0, 0));
    assert_eq!(state.xcr0, 7);
    assert_eq!([RBX, RSI, RDI, 10, 15].map(|register| state.gpr[register]), [0; 5]);
}

#[test]
fn a_triple_fault_disables_the_vcpu() {
    let mut fixture = Fixture::entered();
    assert_eq!(fixture.machine.tdx.shutdown(&mut fixture.board, &mut fixture.state, 0), Reaction::Switched);
    assert_eq!(fixture.told()[0], 0x4000_0001_0000_0002);
    fixture.state.gpr[RCX] = tdvpr(0);
    assert_eq!(fixture.try_enter(), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX], u64::from(Code::VcpuStateIncorrect as u32) << 32);
}

#[test]
fn private_memory_is_reached_with_the_tds_key() {
    let mut fixture = Fixture::entered();
    let key = fixture.machine.tdx.tds[&TDR].key;
    assert_eq!(fixture.translate(GPA, AccessKind::Write), Translation::Page { page: page(100), key });
    assert_eq!(fixture.translate(0x5000, AccessKind::Write), Translation::Switched);
    assert_eq!(fixture.told(), [48, 2, 0, 0x5000, 0], "no offset in the page, no linear address");
}

#[test]
fn a_page_that_is_not_accepted_is_an_exit_of_its_own_type() {
    let mut machine = TestMachine::runnable();
    assert_eq!(machine.call(HostLeaf::MemPageAug, [0x5000, TDR, page(101), 0]), 0);
    let mut fixture = Fixture::of(machine);
    fixture.enter();
    assert_eq!(fixture.translate(0x5000, AccessKind::Read), Translation::Switched);
    assert_eq!(fixture.told(), [48, 1, 6, 0x5000, 0]);
}

#[test]
fn without_sept_ve_disable_it_is_a_ve_and_a_second_one_a_double_fault() {
    let mut params = td_params();
    params[..8].fill(0);
    let mut machine = TestMachine::runnable_with(&params);
    assert_eq!(machine.call(HostLeaf::MemPageAug, [0x5000, TDR, page(101), 0]), 0);
    let mut fixture = Fixture::of(machine);
    fixture.enter();
    assert_eq!(fixture.translate(0x5000, AccessKind::Read), Translation::Reflect(Exception::plain(vector::VE)));
    let second = Translation::Reflect(Exception::with_code(vector::DF, 0));
    assert_eq!(fixture.translate(0x5000, AccessKind::Read), second);
    let mut fixture = fixture.in_long_mode();
    assert_eq!(fixture.tdcall(3, 0), Intercepted::Done);
    let [_, reason, _, gla, gpa] = [RAX, RCX, RDX, R8, R8 + 1].map(|register| fixture.state.gpr[register]);
    assert_eq!((reason, gla, gpa), (48, 0x7000, 0x5008));
}

#[test]
fn shared_memory_is_the_hosts() {
    let mut fixture = Fixture::entered();
    let suppressed = 1 << 63;
    crate::write_u64(&mut fixture.board, ROOT + (SHARED >> 39 & 0x1FF) * 8, suppressed);
    assert_eq!(fixture.translate(SHARED | 0x5000, AccessKind::Write), Translation::Switched);
    assert_eq!(fixture.told(), [48, 2, 0, SHARED | 0x5000, 0]);
    let mut fixture = Fixture::entered();
    assert_eq!(
        fixture.translate(SHARED | 0x5000, AccessKind::Read),
        Translation::Reflect(Exception::plain(vector::VE))
    );
    let fetch = fixture.translate(SHARED | 0x5000, AccessKind::Fetch);
    assert!(matches!(fetch, Translation::Reflect(Exception { vector: vector::PF, .. })), "{fetch:?}");
}

#[test]
fn a_vmcall_shows_the_registers_of_its_mask_and_takes_them_back() {
    let mut fixture = Fixture::entered().in_long_mode();
    for register in 0..16 {
        fixture.state.gpr[register] = 0x100 + register as u64;
    }
    let mask = 1 << 10 | 1 << 11 | 1 << RBX;
    assert_eq!(fixture.tdcall(0, mask), Intercepted::Switched);
    assert_eq!(fixture.told(), [77, mask, 0, 0, 0]);
    assert_eq!([RBX, RSI, 10, 11, 12].map(|register| fixture.state.gpr[register]), [0x103, 0, 0x10A, 0x10B, 0]);
    for register in [RBX, RSI, 10, 11, 12] {
        fixture.state.gpr[register] = 0x200 + register as u64;
    }
    fixture.enter();
    assert_eq!(fixture.state.gpr[RAX], 0);
    let seen = [RBX, RSI, 10, 11, 12].map(|register| fixture.state.gpr[register]);
    assert_eq!(seen, [0x203, 0x106, 0x20A, 0x20B, 0x10C]);
    assert_eq!(fixture.state.rip, 0xFFFF_FFF0 + CALL_LENGTH, "behind the instruction");
}

#[test]
fn accepting_what_is_not_there_is_executed_again() {
    let mut fixture = Fixture::entered().in_long_mode();
    let rip = fixture.state.rip;
    assert_eq!(fixture.tdcall(6, 0x5000), Intercepted::Switched);
    assert_eq!(fixture.told(), [48, 2, 1, 0x5000, 0]);
    fixture.enter();
    assert_eq!(fixture.state.rip, rip);
}

#[test]
fn tdcall_is_for_ring_0_of_64_bit_mode() {
    let mut fixture = Fixture::entered();
    assert_eq!(fixture.tdcall(1, 0), Intercepted::Reflect(Exception::ud()));
    let mut fixture = fixture.in_long_mode();
    fixture.state.segments[2].dpl = 3;
    fixture.state.segments[1].dpl = 3;
    assert_eq!(fixture.tdcall(1, 0), Intercepted::Reflect(Exception::gp(0)));
}

#[test]
fn what_only_the_host_can_do_is_a_ve() {
    for (what, reason, length) in [
        (Intercept::Hlt, 12, 4),
        (Intercept::Wbinvd, 54, 4),
        (Intercept::Call(Call::Vmcall), 18, 4),
        (Intercept::Wrmsr, 32, 4),
        (Intercept::Rdmsr, 31, 4),
    ] {
        let mut fixture = Fixture::entered();
        fixture.state.gpr[RCX] = 0x1B;
        assert_eq!(fixture.intercept(what), Intercepted::Reflect(Exception::plain(vector::VE)), "{what:?}");
        let mut fixture = fixture.in_long_mode();
        fixture.tdcall(3, 0);
        assert_eq!((fixture.state.gpr[RCX], fixture.state.gpr[R8 + 2]), (reason, length), "{what:?}");
    }
}

#[test]
fn a_td_keeps_what_is_fixed() {
    use privet_cpu::CrAccess;

    let mut fixture = Fixture::entered();
    let mut write = |cr, value| fixture.intercept(Intercept::WriteCr { cr, value, by: CrAccess::Mov(0) });
    let refused = Intercepted::Reflect(Exception::gp(0));
    assert_eq!(write(0, cr0::PE | cr0::NE | cr0::PG), Intercepted::Native);
    assert_eq!(write(0, cr0::PE | cr0::PG), refused, "NE");
    assert_eq!(write(0, cr0::PE | cr0::NE | cr0::CD), refused);
    assert_eq!(write(4, cr4::MCE | cr4::PAE), Intercepted::Native);
    assert_eq!(write(4, cr4::PAE), refused, "MCE");
    assert_eq!(write(4, cr4::MCE | cr4::VMXE), refused);
    assert_eq!(fixture.intercept(Intercept::Rdpmc), refused);
    assert_eq!(fixture.intercept(Intercept::Call(Call::Seamcall)), Intercepted::Reflect(Exception::ud()));
}

#[test]
fn cpuid_is_the_modules_or_the_hosts() {
    let mut fixture = Fixture::entered();
    (fixture.state.gpr[RAX], fixture.state.gpr[RCX]) = (0x21, 0);
    assert_eq!(fixture.intercept(Intercept::Cpuid), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RBX] as u32, u32::from_le_bytes(*b"Inte"));
    fixture.state.gpr[RAX] = 0x4000_0000;
    assert_eq!(fixture.intercept(Intercept::Cpuid), Intercepted::Reflect(Exception::plain(vector::VE)));
}

/// arch/x86/kernel/apic/apic.c: x2apic_hw_locked().
#[test]
fn its_apic_stays_in_x2apic_mode() {
    let mut fixture = Fixture::entered();
    assert_eq!(fixture.msr(Intercept::Rdmsr, 0x10A, 0), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX], 1 << 21 | 1 << 8, "and what the processors have");
    assert_eq!(fixture.msr(Intercept::Rdmsr, 0xBD, 0), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX], 1);
}

/// arch/x86/kernel/verify_cpu.S reads IA32_MISC_ENABLE when nobody takes #VE yet.
#[test]
fn what_the_first_instructions_of_a_kernel_read_is_no_ve() {
    let mut fixture = Fixture::entered();
    for index in [0x1A0, 0xC000_0080] {
        assert_eq!(fixture.msr(Intercept::Rdmsr, index, 0), Intercepted::Native, "{index:#x}");
    }
    assert_eq!(fixture.msr(Intercept::Wrmsr, 0xDA0, 0), Intercepted::Done);
    let refused = Intercepted::Reflect(Exception::gp(0));
    assert_eq!(fixture.msr(Intercept::Wrmsr, 0xDA0, 1 << 8), refused, "a state that the TD has not");
}

#[test]
fn its_time_began_with_it() {
    let mut fixture = Fixture::entered();
    fixture.board.tsc = 5000;
    fixture.state.gpr[RCX] = 0x10;
    assert_eq!(fixture.intercept(Intercept::Rdmsr), Intercepted::Done);
    // TDH.MNG.INIT was at 1000.
    assert_eq!((fixture.state.gpr[RAX], fixture.machine.tdx.tsc(0, 5000)), (4000, 4000));
}

#[test]
fn spoiled_memory_ends_the_td() {
    let mut fixture = Fixture::entered();
    fixture.machine.tdx.machine_check(&mut fixture.board, &mut fixture.state, 0);
    assert_eq!(fixture.told(), [0x6000_0005_0000_0000, 0, 0, 0, 0x8000_0312]);
    fixture.state.gpr[RCX] = tdvpr(0);
    assert_eq!(fixture.try_enter(), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX] >> 32, u64::from(Code::TdFatal as u32));
}

#[test]
fn an_event_whose_delivery_left_the_td_is_delivered_again() {
    let mut fixture = Fixture::entered();
    fixture.state.vectoring = Some(Injection::Exception(Exception::ud()));
    assert_eq!(fixture.translate(0x5000, AccessKind::Read), Translation::Switched);
    fixture.enter();
    assert_eq!(fixture.state.injection, Some(Injection::Exception(Exception::ud())));
    assert_eq!(fixture.state.vectoring, None);
}

#[test]
fn a_report_is_of_the_td_that_asks() {
    let mut fixture = Fixture::entered().in_long_mode();
    fixture.state.gpr[RDX] = GPA;
    fixture.state.gpr[R8] = 0;
    assert_eq!(fixture.tdcall(4, GPA + 0x400), Intercepted::Done);
    assert_eq!(fixture.state.gpr[RAX], 0);
    let (mut seen, key) = ([0; 1], fixture.machine.tdx.tds[&TDR].key);
    fixture.board.read_as(key, page(100) + 0x400, &mut seen);
    assert_eq!(seen, [0x81]);
}
