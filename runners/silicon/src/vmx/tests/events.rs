//! Injection, vectoring information, and which event is taken when.

use privet_cpu::state::Injection;
use privet_cpu::{Exception, vector};

use super::*;
use crate::{Pending, Taken};

const NOTHING: Pending = Pending { init: false, smi: false, nmi: false, interrupt: None };
const NMI: Pending = Pending { nmi: true, ..NOTHING };
const INTERRUPT: Pending = Pending { interrupt: Some(0x41), ..NOTHING };
const INIT: Pending = Pending { init: true, ..NOTHING };

fn take(bench: &mut Bench, pending: Pending) -> Taken {
    bench.vmx.take_event(&mut bench.board, &mut bench.state, pending)
}

/// A guest with interrupts enabled and these bits of the processor-based controls, entered.
fn entered(pin: u32, proc: u32) -> Bench {
    let mut bench = Bench::ready();
    bench.add(field::PIN, pin);
    bench.add(field::PROC, proc);
    bench.set(field::GUEST_RFLAGS, 0x202);
    bench.enter();
    bench
}

#[test]
fn events_are_injected() {
    for (word, error, length, expected, rip) in [
        (0x8000_0041, 0, 0, Injection::Interrupt(0x41), GUEST_RIP),
        (0x8000_0202, 0, 0, Injection::Nmi, GUEST_RIP),
        (0x8000_0b0d, 0x18, 0, Injection::Exception(Exception::gp(0x18)), GUEST_RIP),
        (0x8000_0306, 0, 0, Injection::Exception(Exception::ud()), GUEST_RIP),
        (0x8000_0480, 0, 2, Injection::SoftInterrupt(0x80), GUEST_RIP + 2),
        (0x8000_0603, 0, 1, Injection::SoftException(3), GUEST_RIP + 1),
        (0x8000_0501, 0, 1, Injection::Exception(Exception::db(0)), GUEST_RIP + 1),
    ] {
        let mut bench = Bench::ready();
        bench.set(field::GUEST_RFLAGS, 0x202);
        bench.set(field::ENTRY_EVENT, word);
        bench.set(field::ENTRY_ERROR, error);
        bench.set(field::ENTRY_LENGTH, length);
        bench.enter();
        assert_eq!((bench.state.injection, bench.state.rip), (Some(expected), rip), "{word:#x}");
        bench.state.injection = None;
        bench.instruction(Intercept::Cpuid);
        assert_eq!(bench.get(field::ENTRY_EVENT), word & !0x8000_0000, "it is injected once");
    }
}

#[test]
fn an_exit_during_delivery_tells_what_was_delivered() {
    let mut bench = entered(0, 0);
    bench.state.vectoring = Some(Injection::Exception(Exception::gp(0x18)));
    bench.instruction(Intercept::Cpuid);
    assert_eq!((bench.get(field::VECTORING_EVENT), bench.get(field::VECTORING_ERROR)), (0x8000_0b0d, 0x18));
    let mut bench = entered(0, 0);
    bench.instruction(Intercept::SoftwareInterrupt(0x80));
    bench.state.vectoring = Some(Injection::SoftInterrupt(0x80));
    bench.vmx.vmexit(
        &mut bench.board,
        &mut bench.state,
        super::super::exit::Exit::asynchronous(super::super::exit::Reason::EptViolation),
    );
    assert_eq!((bench.get(field::VECTORING_EVENT), bench.get(field::INSTRUCTION_LENGTH)), (0x8000_0480, 3));
    let mut bench = entered(0, 0);
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.get(field::VECTORING_EVENT), 0);
}

#[test]
fn an_injected_software_event_that_exits_is_where_it_was() {
    let mut bench = Bench::ready();
    bench.set(field::ENTRY_EVENT, 0x8000_0480);
    bench.set(field::ENTRY_LENGTH, 2);
    bench.enter();
    bench.state.vectoring = bench.state.injection;
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.get(field::GUEST_RIP), GUEST_RIP);
    assert_eq!((bench.get(field::VECTORING_EVENT), bench.get(field::INSTRUCTION_LENGTH)), (0x8000_0480, 2));
    // Once it is delivered, the guest is where it is.
    bench.set(field::ENTRY_EVENT, 0x8000_0480);
    assert_eq!(bench.call(VmxCall::Vmresume), VmxAnswer::Switched);
    bench.state.rip = 0x5000;
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.get(field::GUEST_RIP), 0x5000);
}

#[test]
fn a_double_fault_is_no_part_of_the_delivery() {
    let mut bench = Bench::ready();
    bench.set(field::EXCEPTION_BITMAP, 1 << 8);
    bench.enter();
    bench.state.vectoring = Some(Injection::Exception(Exception::gp(0)));
    let double = Exception::with_code(vector::DF, 0);
    bench.vmx.exception(&mut bench.board, &mut bench.state, double);
    assert_eq!((bench.get(field::EXIT_EVENT), bench.get(field::VECTORING_EVENT)), (0x8000_0b08, 0));
}

#[test]
fn an_nmi_that_could_not_be_delivered_blocks_others() {
    let mut bench = entered(0, 0);
    bench.state.vectoring = Some(Injection::Nmi);
    bench.instruction(Intercept::Cpuid);
    assert_eq!((bench.get(field::INTERRUPTIBILITY), bench.get(field::VECTORING_EVENT)), (8, 0x8000_0202));
    assert!(!bench.state.nmi_blocked, "of the host");
}

#[test]
fn interrupts_exit_whatever_the_guest_masks() {
    let mut bench = Bench::ready();
    bench.enter();
    assert_eq!(take(&mut bench, INTERRUPT), Taken::SwitchedByInterrupt);
    assert_eq!((bench.exit(), bench.get(field::EXIT_EVENT)), ([1, 0, 0], 0x8000_0041));
    let mut bench = Bench::ready();
    bench.remove(field::EXIT, exit::ACKNOWLEDGE);
    bench.enter();
    assert_eq!(take(&mut bench, INTERRUPT), Taken::Switched, "the host acknowledges it");
    assert_eq!((bench.exit(), bench.get(field::EXIT_EVENT)), ([1, 0, 0], 0));
}

#[test]
fn interrupts_that_do_not_exit_are_the_guests() {
    let mut bench = Bench::ready();
    bench.remove(field::PIN, pin::EXTERNAL_INTERRUPT);
    bench.enter();
    assert_eq!(take(&mut bench, INTERRUPT), Taken::Nothing, "masked");
    bench.state.rflags |= flags::IF;
    assert_eq!(take(&mut bench, INTERRUPT), Taken::Interrupt);
    bench.state.shadow = Shadow::Sti;
    assert_eq!(take(&mut bench, INTERRUPT), Taken::Nothing);
}

#[test]
fn nmis_exit_and_then_the_host_has_them_blocked() {
    let mut bench = entered(pin::VIRTUAL_NMI, 0);
    bench.state.nmi_blocked = true;
    assert_eq!(take(&mut bench, NMI), Taken::SwitchedByNmi, "what the guest blocks are virtual ones");
    assert_eq!((bench.exit(), bench.get(field::EXIT_EVENT)), ([0, 0, 0], 0x8000_0202));
    assert!(bench.state.nmi_blocked);
    assert_eq!(bench.get(field::INTERRUPTIBILITY), 8);
}

#[test]
fn windows_exit_once_they_are_open() {
    let mut bench = entered(0, proc::INTERRUPT_WINDOW);
    bench.state.shadow = Shadow::Sti;
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    bench.state.shadow = Shadow::None;
    bench.state.rflags &= !flags::IF;
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    bench.state.rflags |= flags::IF;
    assert_eq!(take(&mut bench, NOTHING), Taken::Switched);
    assert_eq!(bench.exit(), [7, 0, 0]);
    let mut bench = entered(pin::VIRTUAL_NMI, proc::NMI_WINDOW);
    bench.state.nmi_blocked = true;
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    bench.state.nmi_blocked = false;
    assert_eq!(take(&mut bench, NOTHING), Taken::Switched);
    assert_eq!(bench.exit(), [8, 0, 0]);
}

#[test]
fn init_is_blocked_in_the_host_and_exits_in_the_guest() {
    let mut bench = Bench::before_vmxon();
    assert_eq!(take(&mut bench, INIT), Taken::Init);
    let mut bench = Bench::ready();
    assert_eq!(take(&mut bench, INIT), Taken::Nothing);
    bench.enter();
    assert_eq!(take(&mut bench, INIT), Taken::Switched);
    assert_eq!(bench.exit(), [3, 0, 0]);
}

#[test]
fn the_preemption_timer_counts_slower_than_the_tsc() {
    let timed = |ticks: u64| {
        let mut bench = Bench::ready();
        bench.add(field::PIN, pin::PREEMPTION_TIMER);
        bench.add(field::EXIT, exit::SAVE_TIMER);
        bench.set(field::PREEMPTION_TIMER, ticks);
        bench.board.tsc = 1000;
        bench.enter();
        bench
    };
    let mut bench = timed(10);
    assert_eq!(bench.vmx.deadline(), Some(1320));
    bench.board.tsc = 1319;
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    bench.board.tsc = 1320;
    assert_eq!(take(&mut bench, INTERRUPT), Taken::Switched, "before the interrupt");
    assert_eq!((bench.exit(), bench.get(field::PREEMPTION_TIMER)), ([52, 0, 0], 0));
    assert_eq!(bench.vmx.deadline(), None);
    let mut bench = timed(10);
    bench.board.tsc = 1100;
    bench.instruction(Intercept::Cpuid);
    assert_eq!(bench.get(field::PREEMPTION_TIMER), 6, "what is left");
    assert_eq!(take(&mut timed(0), NOTHING), Taken::Switched, "before the first instruction");
}

#[test]
fn a_halted_guest_waits_until_it_takes_something() {
    let halted = || {
        let mut bench = Bench::ready();
        bench.set(field::ACTIVITY, 1);
        bench.set(field::GUEST_RFLAGS, 0x202);
        bench.remove(field::PIN, pin::EXTERNAL_INTERRUPT);
        bench.enter();
        bench
    };
    let mut bench = halted();
    assert_eq!(take(&mut bench, NOTHING), Taken::Halted);
    assert_eq!(take(&mut bench, INTERRUPT), Taken::Interrupt);
    assert_eq!(take(&mut bench, NOTHING), Taken::Nothing);
    let mut bench = halted();
    take(&mut bench, NMI);
    assert_eq!(bench.get(field::ACTIVITY), 1, "an exit tells");
    let mut bench = Bench::ready();
    bench.enter();
    bench.vmx.halted();
    assert_eq!(take(&mut bench, NOTHING), Taken::Halted);
}
