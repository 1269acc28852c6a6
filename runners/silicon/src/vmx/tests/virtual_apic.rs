//! The virtual APIC: accesses to its page and to the MSRs of x2APIC mode, priorities, virtual and posted interrupts.

use privet_cpu::state::{Injection, gpr};
use privet_cpu::{Access, AccessKind, CrAccess, Exception};

use super::*;
use crate::memory::{read_array, read_u64};
use crate::{Pending, Taken, Translation};

const NOTIFICATION: u8 = 0xf2;
const NOTHING: Pending = Pending { init: false, smi: false, nmi: false, interrupt: None };
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const ISR: u64 = 0x100;
const IRR: u64 = 0x200;
const ICR: u64 = 0x300;

/// Which registers are virtualized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The task priority only.
    Shadow,
    Registers,
    /// Registers and interrupts.
    Interrupts,
}

fn bench(kind: Kind, mode: u32) -> Bench {
    let mut bench = Bench::ready();
    bench.add(field::PROC, proc::TPR_SHADOW);
    let more = match kind {
        Kind::Shadow => 0,
        Kind::Registers => proc2::APIC_REGISTERS,
        Kind::Interrupts => proc2::APIC_REGISTERS | proc2::VIRTUAL_INTERRUPTS,
    };
    bench.add(field::PROC2, mode | more);
    if kind == Kind::Interrupts {
        bench.add(field::PIN, pin::POSTED_INTERRUPTS);
        bench.set(field::POSTED_VECTOR, NOTIFICATION.into());
    }
    bench.set(field::GUEST_RFLAGS, 0x202);
    bench
}

fn with_page(kind: Kind) -> Bench {
    let mut bench = bench(kind, proc2::APIC_ACCESSES);
    bench.enter();
    bench
}

fn translate(bench: &mut Bench, kind: AccessKind, offset: u16) -> Translation {
    let access = Access {
        linear: 0xfee0_0000 + u64::from(offset),
        kind,
        offset,
        size: 0x1000,
        user: false,
        walk: false,
        private: false,
        emulated: false,
        next_rip: GUEST_RIP + 6,
    };
    bench.vmx.translate(&mut bench.board, &mut bench.state, APIC_ACCESS, access)
}

fn register(bench: &mut Bench, offset: u64) -> u32 {
    read_u32(&mut bench.board, VIRTUAL_APIC + offset)
}

fn set_register(bench: &mut Bench, offset: u64, value: u32) {
    write_u32(&mut bench.board, VIRTUAL_APIC + offset, value);
}

/// A store to the APIC-access page that is virtualized, and what is taken behind it.
fn store(bench: &mut Bench, offset: u16, value: u32) -> Taken {
    assert_eq!(translate(bench, AccessKind::Write, offset), Translation::Device(APIC_ACCESS), "{offset:#x}");
    assert!(bench.vmx.device_write(&mut bench.board, APIC_ACCESS + u64::from(offset), &value.to_le_bytes()));
    take(bench, NOTHING)
}

fn take(bench: &mut Bench, pending: Pending) -> Taken {
    bench.vmx.take_event(&mut bench.board, &mut bench.state, pending)
}

#[test]
fn which_registers_are_virtualized() {
    let readable = |kind, offset| translate(&mut with_page(kind), AccessKind::Read, offset) != Translation::Switched;
    let writable = |kind, offset| translate(&mut with_page(kind), AccessKind::Write, offset) != Translation::Switched;
    for (offset, [read, write]) in [
        (0x020, [Kind::Registers, Kind::Registers]),
        (0x0f0, [Kind::Registers, Kind::Registers]),
        (0x080, [Kind::Shadow, Kind::Shadow]),
        (0x0b0, [Kind::Registers, Kind::Registers]),
        (0x380, [Kind::Registers, Kind::Registers]),
    ] {
        for kind in [Kind::Shadow, Kind::Registers, Kind::Interrupts] {
            assert_eq!(readable(kind, offset), kind as u8 >= read as u8, "read {offset:#x} {kind:?}");
            assert_eq!(writable(kind, offset), kind as u8 >= write as u8, "write {offset:#x} {kind:?}");
        }
    }
    for offset in [0x000, 0x0a0, 0x0c0, 0x390, 0x3f0, 0x400, 0x084] {
        assert!(!readable(Kind::Interrupts, offset), "{offset:#x}");
    }
    for offset in [0x030, 0x0a0, 0x100, 0x270, 0x082] {
        assert!(!writable(Kind::Interrupts, offset), "{offset:#x}");
    }
    assert!(readable(Kind::Interrupts, 0x270) && readable(Kind::Interrupts, 0x030));
}

#[test]
fn other_accesses_to_the_page_exit() {
    for (kind, offset, qualification) in
        [(AccessKind::Read, 0x390, 0x390), (AccessKind::Write, 0x0a0, 0x10a0), (AccessKind::Fetch, 0x080, 0x2080)]
    {
        let mut bench = with_page(Kind::Interrupts);
        assert_eq!(translate(&mut bench, kind, offset), Translation::Switched);
        assert_eq!(bench.exit(), [44, qualification, 6]);
        assert_eq!(bench.get(field::GUEST_LINEAR_ADDRESS), 0xfee0_0000 + u64::from(offset));
    }
    let mut bench = with_page(Kind::Interrupts);
    bench.state.vectoring = Some(Injection::Interrupt(0x41));
    assert_eq!(translate(&mut bench, AccessKind::Write, 0x80), Translation::Switched);
    assert_eq!(bench.exit()[1], 0x3080, "while an event is delivered");
}

#[test]
fn reads_come_from_the_virtual_apic_page() {
    let mut bench = with_page(Kind::Registers);
    set_register(&mut bench, 0xd0, 0x1234_5678);
    assert_eq!(translate(&mut bench, AccessKind::Read, 0xd0), Translation::Device(APIC_ACCESS));
    let mut data = [0; 4];
    assert!(bench.vmx.device_read(&mut bench.board, APIC_ACCESS + 0xd0, &mut data));
    assert_eq!(u32::from_le_bytes(data), 0x1234_5678);
    assert!(!bench.vmx.device_read(&mut bench.board, PAGE, &mut data), "the board's own");
    assert!(!bench.vmx.device_write(&mut bench.board, PAGE, &data));
}

#[test]
fn writes_are_told_behind_their_instruction() {
    let mut bench = with_page(Kind::Registers);
    bench.state.rip = GUEST_RIP + 6;
    assert_eq!(store(&mut bench, 0xf0, 0x1ff), Taken::Switched);
    assert_eq!(bench.exit(), [56, 0xf0, 0]);
    assert_eq!((bench.get(field::GUEST_RIP), register(&mut bench, 0xf0)), (GUEST_RIP + 6, 0x1ff));
    let mut bench = with_page(Kind::Registers);
    assert_eq!(store(&mut bench, 0x310, 0xffff_ffff), Taken::Nothing);
    assert_eq!(register(&mut bench, 0x310), 0xff00_0000);
}

#[test]
fn the_task_priority_is_cr8() {
    let mut bench = bench(Kind::Shadow, 0);
    set_register(&mut bench, TPR, 0x20);
    bench.set(field::TPR_THRESHOLD, 2);
    bench.enter();
    let read = Intercept::ReadCr { cr: 8, by: CrAccess::Mov(0) };
    let write = |value| Intercept::WriteCr { cr: 8, value, by: CrAccess::Mov(0) };
    assert_eq!(bench.instruction(read), Intercepted::Value(2));
    assert_eq!(bench.instruction(write(0x10)), Intercepted::Reflect(Exception::gp(0)));
    assert_eq!(bench.instruction(write(5)), Intercepted::Done);
    assert_eq!(register(&mut bench, TPR), 0x50);
    assert_eq!(bench.instruction(write(1)), Intercepted::Switched);
    assert_eq!(bench.exit(), [43, 0, 0]);
    assert_eq!(bench.get(field::GUEST_RIP), GUEST_RIP + 3, "behind the instruction");
}

#[test]
fn a_task_priority_below_its_threshold_exits_at_once() {
    let mut bench = bench(Kind::Shadow, proc2::APIC_ACCESSES);
    bench.set(field::TPR_THRESHOLD, 1);
    bench.enter();
    assert_eq!(take(&mut bench, NOTHING), Taken::Switched);
    assert_eq!(bench.exit(), [43, 0, 0]);
}

#[test]
fn a_virtual_interrupt_waits_for_its_priority() {
    let mut bench = bench(Kind::Interrupts, 0);
    set_register(&mut bench, IRR + 0x20, 1 << 1);
    set_register(&mut bench, TPR, 0x40);
    bench.set(field::GUEST_INTERRUPT_STATUS, 0x41);
    bench.enter();
    assert_eq!(register(&mut bench, PPR), 0x40);
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing, "the same class");
    bench.state.gpr[gpr::RAX] = 3;
    assert_eq!(bench.instruction(Intercept::WriteCr { cr: 8, value: 3, by: CrAccess::Mov(0) }), Intercepted::Done);
    bench.state.rflags &= !flags::IF;
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    bench.state.rflags |= flags::IF;
    assert_eq!(take(&mut bench, NOTHING), Taken::Virtual(0x41));
    assert_eq!(
        [register(&mut bench, IRR + 0x20), register(&mut bench, ISR + 0x20), register(&mut bench, PPR)],
        [0, 2, 0x40]
    );
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.get(field::GUEST_INTERRUPT_STATUS), 0x4100);
}

#[test]
fn the_interrupt_window_comes_before_a_virtual_interrupt() {
    let mut bench = bench(Kind::Interrupts, 0);
    bench.add(field::PROC, proc::INTERRUPT_WINDOW);
    bench.set(field::GUEST_INTERRUPT_STATUS, 0x41);
    bench.enter();
    assert_eq!(take(&mut bench, NOTHING), Taken::Switched);
    assert_eq!(bench.exit()[0], 7);
}

#[test]
fn the_end_of_an_interrupt_lets_the_next_one_in() {
    let mut bench = bench(Kind::Interrupts, proc2::APIC_ACCESSES);
    set_register(&mut bench, ISR + 0x20, 2);
    set_register(&mut bench, ISR + 0x10, 1);
    set_register(&mut bench, IRR + 0x10, 1 << 31);
    bench.set(field::GUEST_INTERRUPT_STATUS, 0x413f);
    bench.enter();
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    assert_eq!(store(&mut bench, EOI as u16, 0), Taken::Virtual(0x3f));
    assert_eq!(register(&mut bench, ISR + 0x20), 0);
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.get(field::GUEST_INTERRUPT_STATUS), 0x3f00);
}

#[test]
fn the_end_of_some_interrupts_exits() {
    let mut bench = bench(Kind::Interrupts, proc2::X2APIC);
    set_register(&mut bench, ISR + 0x20, 2);
    bench.set(field::GUEST_INTERRUPT_STATUS, 0x4100);
    bench.set(field::EOI_EXIT_1, 2);
    bench.enter();
    (bench.state.gpr[gpr::RCX], bench.state.gpr[gpr::RAX], bench.state.gpr[gpr::RDX]) = (0x80b, 0, 0);
    assert_eq!(bench.instruction(Intercept::Wrmsr), Intercepted::Switched);
    assert_eq!(bench.exit(), [45, 0x41, 0]);
    assert_eq!((bench.get(field::GUEST_RIP), bench.get(field::GUEST_INTERRUPT_STATUS)), (GUEST_RIP + 3, 0));
}

#[test]
fn an_interrupt_to_itself_needs_no_exit() {
    for (command, expected) in [
        (0x4_0051, Taken::Virtual(0x51)),
        (0x4_000f, Taken::Switched),
        (0x4_8051, Taken::Switched),
        (0x4_0451, Taken::Switched),
        (0x8_0051, Taken::Switched),
    ] {
        let mut bench = with_page(Kind::Interrupts);
        assert_eq!(store(&mut bench, ICR as u16, command), expected, "{command:#x}");
    }
    let mut bench = bench(Kind::Interrupts, proc2::X2APIC);
    bench.enter();
    (bench.state.gpr[gpr::RCX], bench.state.gpr[gpr::RAX], bench.state.gpr[gpr::RDX]) = (0x83f, 0x51, 0);
    assert_eq!(bench.instruction(Intercept::Wrmsr), Intercepted::Done);
    assert_eq!(take(&mut bench, NOTHING), Taken::Virtual(0x51));
}

#[test]
fn msrs_of_x2apic_mode() {
    let rdmsr = |bench: &mut Bench, index: u64| {
        bench.state.gpr[gpr::RCX] = index;
        let done = bench.instruction(Intercept::Rdmsr) == Intercepted::Done;
        done.then(|| bench.state.gpr[gpr::RAX] | bench.state.gpr[gpr::RDX] << 32)
    };
    let mut full = bench(Kind::Registers, proc2::X2APIC);
    write_u64(&mut full.board, VIRTUAL_APIC + ICR, 0x11_0000_0041);
    set_register(&mut full, TPR, 0x20);
    full.enter();
    assert_eq!((rdmsr(&mut full, 0x830), rdmsr(&mut full, 0x808)), (Some(0x11_0000_0041), Some(0x20)));
    let mut shadow = bench(Kind::Shadow, proc2::X2APIC);
    shadow.enter();
    assert_eq!((rdmsr(&mut shadow, 0x830), rdmsr(&mut shadow, 0x808)), (None, Some(0)));
    let mut none = bench(Kind::Registers, 0);
    none.enter();
    assert_eq!(rdmsr(&mut none, 0x808), None);
    for (index, value, expected) in [
        (0x808, 0x100, Intercepted::Reflect(Exception::gp(0))),
        (0x808, 0x30, Intercepted::Done),
        (0x80b, 0, Intercepted::Native),
    ] {
        (full.state.gpr[gpr::RCX], full.state.gpr[gpr::RAX], full.state.gpr[gpr::RDX]) = (index, value, 0);
        assert_eq!(full.instruction(Intercept::Wrmsr), expected, "{index:#x}");
    }
    let mut interrupts = bench(Kind::Interrupts, proc2::X2APIC);
    interrupts.enter();
    (interrupts.state.gpr[gpr::RCX], interrupts.state.gpr[gpr::RAX]) = (0x80b, 1);
    assert_eq!(interrupts.instruction(Intercept::Wrmsr), Intercepted::Reflect(Exception::gp(0)));
}

#[test]
fn posted_interrupts_are_taken_without_an_exit() {
    let mut bench = bench(Kind::Interrupts, 0);
    bench.board.write(DESCRIPTOR + 0x41 / 8, &[2]);
    bench.board.write(DESCRIPTOR + 0x62 / 8, &[4]);
    bench.board.write(DESCRIPTOR + 32, &[1, 0, NOTIFICATION]);
    bench.enter();
    let notified = Pending { interrupt: Some(NOTIFICATION), ..NOTHING };
    assert_eq!(take(&mut bench, notified), Taken::Notified);
    assert_eq!(read_array::<32>(&mut bench.board, DESCRIPTOR), [0; 32]);
    assert_eq!(read_u64(&mut bench.board, DESCRIPTOR + 32) & 1, 0, "nothing is outstanding");
    assert_eq!(take(&mut bench, NOTHING), Taken::Virtual(0x62));
    assert_eq!(register(&mut bench, IRR + 0x20), 2, "the other one waits");
    let other = Pending { interrupt: Some(NOTIFICATION - 1), ..NOTHING };
    assert_eq!(take(&mut bench, other), Taken::SwitchedByInterrupt);
}
