//! Injection, EXITINTINFO, GIF, and which event comes first.

use privet_cpu::state::{Injection, Shadow};
use privet_cpu::{Exception, Reaction, flags};

use super::*;
use crate::{Pending, Taken};

const VALID: u64 = 1 << 31;
const V_IRQ: u64 = 1 << 8;
const IGNORE_TPR: u64 = 1 << 20;
const MASKING: u64 = 1 << 24;
const NMI: Pending = Pending { init: false, smi: false, nmi: true, interrupt: None };
const INTERRUPT: Pending = Pending { init: false, smi: false, nmi: false, interrupt: Some(0x41) };
const NOTHING: Pending = Pending { init: false, smi: false, nmi: false, interrupt: None };

impl Bench {
    fn take(&mut self, pending: Pending) -> Taken {
        self.svm.take_event(&mut self.board, &mut self.state, pending)
    }

    /// EXITINTINFO with its error code.
    fn interrupted(&mut self) -> u64 {
        self.get(0x88)
    }
}

#[test]
fn each_type_of_event_is_injected() {
    for (word, injection) in [
        (VALID | 0x31, Injection::Interrupt(0x31)),
        (VALID | 2 << 8 | 2, Injection::Nmi),
        (VALID | 3 << 8 | 6, Injection::Exception(Exception::ud())),
        (VALID | 3 << 8 | 1 << 11 | 13 | 0x58 << 32, Injection::Exception(Exception::gp(0x58))),
        (VALID | 3 << 8 | 1 << 11 | 14 | 6 << 32, Injection::Exception(Exception::pf(0xc2, 6))),
        (VALID | 3 << 8 | 1, Injection::Exception(Exception::db(0xffff_0ff0))),
        (VALID | 3 << 8 | 3, Injection::SoftException(3)),
        (VALID | 4 << 8 | 0x80, Injection::SoftInterrupt(0x80)),
    ] {
        let mut bench = Bench::new();
        bench.guest(0x240, 0xc2);
        bench.set(0xa8, word);
        bench.enter();
        assert_eq!(bench.state.injection, Some(injection));
        assert_eq!(bench.instruction(Intercept::Cpuid, 2), Intercepted::Native);
    }
    let mut bench = Bench::new();
    bench.set(0xa8, 0x31);
    bench.enter();
    assert_eq!(bench.state.injection, None, "not valid");
}

#[test]
fn an_exit_clears_what_was_injected() {
    let mut bench = Bench::new();
    bench.intercept(Code::HLT);
    bench.set(0xa8, VALID | 0x31 | 5 << 32);
    bench.enter();
    bench.state.injection = None;
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Switched);
    assert_eq!(bench.get(0xa8), 0x31 | 5 << 32);
    assert_eq!(bench.interrupted(), 0);
}

#[test]
fn what_delivery_was_interrupted_is_told() {
    for (event, word) in [
        (Injection::Interrupt(0x31), VALID | 0x31),
        (Injection::Nmi, VALID | 2 << 8 | 2),
        (Injection::Exception(Exception::ud()), VALID | 3 << 8 | 6),
        (Injection::Exception(Exception::gp(0x58)), VALID | 3 << 8 | 1 << 11 | 13 | 0x58 << 32),
        (Injection::SoftException(3), VALID | 3 << 8 | 3),
        (Injection::SoftInterrupt(0x80), VALID | 4 << 8 | 0x80),
    ] {
        let mut bench = Bench::new();
        bench.intercept(Code::exception(14));
        bench.enter();
        bench.state.vectoring = Some(event);
        let fault = Exception::pf(0x5000, 2);
        assert_eq!(bench.svm.exception(&mut bench.board, &mut bench.state, fault), Reaction::Switched);
        assert_eq!(bench.interrupted(), word);
        assert_eq!(bench.state.vectoring, None);
    }
}

#[test]
fn a_software_event_returns_to_next_rip() {
    for word in [VALID | 4 << 8 | 0x80, VALID | 3 << 8 | 3, VALID | 3 << 8 | 4] {
        let mut bench = Bench::new();
        bench.set(0xa8, word);
        bench.set(0xc8, GUEST_RIP + 2);
        bench.enter();
        assert_eq!(bench.state.rip, GUEST_RIP + 2);
    }
    for word in [VALID | 0x80, VALID | 3 << 8 | 6, VALID | 2 << 8 | 2] {
        let mut bench = Bench::new();
        bench.set(0xa8, word);
        bench.set(0xc8, GUEST_RIP + 2);
        bench.enter();
        assert_eq!(bench.state.rip, GUEST_RIP, "no other event does");
    }
    let mut bench = Bench::with(Features { next_rip: false, ..Features::current() });
    bench.set(0xa8, VALID | 4 << 8 | 0x80);
    bench.set(0xc8, GUEST_RIP + 2);
    bench.enter();
    assert_eq!(bench.state.rip, GUEST_RIP, "nor without the feature");
}

#[test]
fn an_injected_software_event_that_exits_leaves_rip_at_its_instruction() {
    let mut bench = Bench::new();
    bench.intercept(Code::exception(14));
    bench.set(0xa8, VALID | 4 << 8 | 0x80);
    bench.set(0xc8, GUEST_RIP + 2);
    bench.enter();
    bench.state.vectoring = bench.state.injection.take();
    bench.svm.exception(&mut bench.board, &mut bench.state, Exception::pf(0x5000, 2));
    assert_eq!(bench.exit()[0], 0x4e);
    assert_eq!(bench.get(SAVE + 0x178), GUEST_RIP);
}

#[test]
fn an_injected_software_event_that_faults_faults_at_its_instruction() {
    let mut bench = Bench::new();
    bench.set(0xa8, VALID | 4 << 8 | 0x80);
    bench.set(0xc8, GUEST_RIP + 2);
    bench.enter();
    bench.state.vectoring = bench.state.injection.take();
    let fault = Exception::gp(0x402);
    assert_eq!(bench.svm.exception(&mut bench.board, &mut bench.state, fault), Reaction::Native);
    assert_eq!(bench.state.rip, GUEST_RIP);
}

#[test]
fn once_delivered_an_injected_event_is_forgotten() {
    let mut bench = Bench::new();
    bench.intercept(Code::HLT);
    bench.set(0xa8, VALID | 4 << 8 | 0x80);
    bench.set(0xc8, GUEST_RIP + 2);
    bench.enter();
    bench.state.injection = None;
    bench.state.rip = 0x5_0000;
    assert_eq!(bench.take(NOTHING), Taken::Nothing);
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Switched);
    assert_eq!(bench.get(SAVE + 0x178), 0x5_0000);
}

#[test]
fn events_wait_for_the_global_interrupt_flag() {
    let all = Pending { init: true, smi: true, nmi: true, interrupt: Some(0x41) };
    let mut bench = Bench::new();
    bench.state.rflags |= flags::IF;
    bench.call(Call::Clgi, 3);
    assert_eq!(bench.take(all), Taken::Nothing);
    bench.call(Call::Stgi, 3);
    assert_eq!(bench.take(all), Taken::Init);
    assert_eq!(bench.take(Pending { init: false, ..all }), Taken::Smi);
    assert_eq!(bench.take(Pending { init: false, smi: false, ..all }), Taken::Nmi);
    assert_eq!(bench.take(INTERRUPT), Taken::Interrupt);
}

#[test]
fn the_host_has_its_windows() {
    let mut bench = Bench::new();
    assert_eq!(bench.take(INTERRUPT), Taken::Nothing);
    bench.state.rflags |= flags::IF;
    bench.state.shadow = Shadow::Sti;
    assert_eq!(bench.take(INTERRUPT), Taken::Nothing);
    bench.state.nmi_blocked = true;
    assert_eq!(bench.take(NMI), Taken::Nothing);
}

#[test]
fn physical_events_exit_if_intercepted() {
    for (pending, code, taken) in [
        (NMI, Code::NMI, Taken::Nmi),
        (INTERRUPT, Code::INTR, Taken::Interrupt),
        (Pending { init: true, ..NOTHING }, Code::INIT, Taken::Init),
        (Pending { smi: true, ..NOTHING }, Code::SMI, Taken::Smi),
    ] {
        let mut bench = Bench::new();
        bench.guest(0x170, 2 | flags::IF);
        bench.enter();
        assert_eq!(bench.take(pending), taken);
        let mut bench = Bench::new();
        bench.guest(0x170, 2 | flags::IF);
        bench.intercept(code);
        bench.enter();
        assert_eq!(bench.take(pending), Taken::Switched);
        assert_eq!(bench.exit(), [code.number(), 0, 0, 0]);
        assert_eq!(bench.take(pending), Taken::Nothing, "pending until the host sets GIF");
    }
}

#[test]
fn masking_has_the_hosts_flag_decide_about_physical_interrupts() {
    for (control, host, guest, taken) in [
        (0, flags::IF, 0, Taken::Nothing),
        (0, 0, flags::IF, Taken::Switched),
        (MASKING, flags::IF, 0, Taken::Switched),
        (MASKING, 0, flags::IF, Taken::Nothing),
    ] {
        let mut bench = Bench::new();
        bench.intercept(Code::INTR);
        bench.set(0x60, control);
        bench.state.rflags = 2 | host;
        bench.guest(0x170, 2 | guest);
        bench.enter();
        assert_eq!(bench.take(INTERRUPT), taken, "{control:#x} {host:#x} {guest:#x}");
    }
}

/// V_IRQ with vector 0x42 and this control word.
fn virtual_interrupt(control: u64) -> Bench {
    let mut bench = Bench::new();
    bench.set(0x60, V_IRQ | control | 0x42 << 32);
    bench.guest(0x170, 2 | flags::IF);
    bench
}

#[test]
fn a_virtual_interrupt_is_delivered_once() {
    let mut bench = virtual_interrupt(MASKING | 1 << 16);
    bench.intercept(Code::HLT);
    bench.enter();
    assert!(bench.board.event_raised, "the processor asks after VMRUN");
    assert_eq!(bench.take(NOTHING), Taken::Virtual(0x42));
    assert_eq!(bench.take(NOTHING), Taken::Nothing);
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Switched);
    assert_eq!(bench.get(0x60) & V_IRQ, 0);
}

#[test]
fn a_virtual_interrupt_that_was_not_taken_stays() {
    let mut bench = virtual_interrupt(MASKING | 1 << 16);
    bench.intercept(Code::HLT);
    bench.enter();
    bench.state.rflags &= !flags::IF;
    assert_eq!(bench.take(NOTHING), Taken::Nothing);
    assert_eq!(bench.instruction(Intercept::Hlt, 1), Intercepted::Switched);
    assert_eq!(bench.get(0x60) & V_IRQ, V_IRQ);
}

#[test]
fn a_virtual_interrupt_waits_for_shadow_and_priority() {
    let mut bench = virtual_interrupt(MASKING | 3 << 16 | 3);
    bench.enter();
    assert_eq!(bench.take(NOTHING), Taken::Nothing, "priority 3 is not above task priority 3");
    bench.state.cr8 = 2;
    bench.board.event_raised = false;
    bench.svm.task_priority_written(&mut bench.board);
    assert!(bench.board.event_raised);
    bench.state.shadow = Shadow::MovSs;
    assert_eq!(bench.take(NOTHING), Taken::Nothing);
    bench.state.shadow = Shadow::None;
    assert_eq!(bench.take(NOTHING), Taken::Virtual(0x42));
    let mut bench = virtual_interrupt(MASKING | IGNORE_TPR | 15);
    bench.enter();
    assert_eq!(bench.take(NOTHING), Taken::Virtual(0x42));
}

#[test]
fn the_virtual_interrupts_intercept_comes_before_its_delivery() {
    let mut bench = virtual_interrupt(MASKING | 0xf << 16);
    bench.intercept(Code::VINTR);
    bench.enter();
    assert_eq!(bench.take(NOTHING), Taken::Switched);
    assert_eq!(bench.exit(), [0x64, 0, 0, 0]);
    assert_eq!(bench.get(0x60) & V_IRQ, V_IRQ);
}

#[test]
fn physical_events_come_before_virtual_ones() {
    let mut bench = virtual_interrupt(1 << 16);
    bench.enter();
    assert_eq!(bench.take(NMI), Taken::Nmi);
    assert_eq!(bench.take(INTERRUPT), Taken::Interrupt);
    assert_eq!(bench.take(NOTHING), Taken::Virtual(0x42));
}

#[test]
fn an_intercepted_nmi_exits_while_the_guest_handles_one() {
    let mut bench = Bench::new();
    bench.intercept(Code::NMI);
    bench.enter();
    bench.state.nmi_blocked = true;
    assert_eq!(bench.take(NMI), Taken::Switched);
    assert!(!bench.state.nmi_blocked, "the host's are open");
}

#[test]
fn init_ends_the_guest() {
    let mut bench = Bench::new();
    bench.enter();
    bench.svm.init();
    assert!(!bench.svm.in_guest());
    assert!(bench.svm.gif());
}
