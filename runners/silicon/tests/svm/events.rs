//! Events that VMRUN injects, and those that arrive while a guest runs.

use privet_cpu::flags;
use privet_cpu::state::gpr;

use crate::machine::{CODE, HANDLER_BYTES, HANDLERS, Machine, STACK};

const VALID: u64 = 1 << 31;
/// jmp $
const LOOP: [u8; 2] = [0xeb, 0xfe];

/// The guest calls from the handler of `vector`, to which the event went with this return address.
fn handled(machine: &mut Machine, vector: u64, code: Option<u64>, from: u64) {
    assert_eq!(machine.run(), 0x81);
    assert_eq!(machine.saved(0x178), HANDLERS + vector * HANDLER_BYTES);
    let frame = machine.saved(0x1d8);
    match code {
        Some(code) => assert_eq!((frame, machine.peek(frame), machine.peek(frame + 8)), (STACK - 0x30, code, from)),
        None => assert_eq!((frame, machine.peek(frame)), (STACK - 0x28, from)),
    }
    assert_eq!(machine.control(0xa8) & VALID, 0, "EVENTINJ is used up");
    assert_eq!(machine.control(0x88), 0, "EXITINTINFO");
}

#[test]
fn each_type_of_event_reaches_its_handler() {
    for (word, vector, code) in [
        (VALID | 0x31, 0x31, None),
        (VALID | 2 << 8 | 2, 2, None),
        (VALID | 3 << 8 | 6, 6, None),
        (VALID | 3 << 8 | 1 << 11 | 13 | 0x58 << 32, 13, Some(0x58)),
        (VALID | 3 << 8 | 1 << 11 | 14 | 6 << 32, 14, Some(6)),
    ] {
        let mut machine = Machine::new(&LOOP);
        machine.intercept(0x46).intercept(0x4d).intercept(0x4e);
        machine.set_control(0xa8, word);
        handled(&mut machine, vector, code, CODE);
    }
}

#[test]
fn software_events_return_behind_their_instruction() {
    for (word, vector) in [(VALID | 4 << 8 | 0x80, 0x80), (VALID | 3 << 8 | 3, 3)] {
        let mut machine = Machine::new(&LOOP);
        machine.set_control(0xa8, word);
        machine.set_control(0xc8, CODE + 2);
        handled(&mut machine, vector, None, CODE + 2);
    }
}

#[test]
fn an_event_is_delivered_before_interrupts_are_looked_at() {
    let mut machine = Machine::new(&LOOP);
    machine.intercept(0x60);
    machine.set_control(0x60, 1 << 24);
    machine.set_control(0xa8, VALID | 0x31);
    machine.host().rflags |= flags::IF;
    machine.bus.interrupt = Some(0x20);
    assert_eq!(machine.run(), 0x60);
    assert_eq!(machine.saved(0x178), HANDLERS + 0x31 * HANDLER_BYTES, "delivered, not executed");
    assert_eq!(machine.control(0x88), 0);
    assert_eq!(machine.bus.interrupt, Some(0x20), "not acknowledged");
}

#[test]
fn an_event_whose_delivery_meets_a_nested_fault_is_told_and_comes_again() {
    for (word, next) in [
        (VALID | 0x31, 0),
        (VALID | 2 << 8 | 2, 0),
        (VALID | 3 << 8 | 1 << 11 | 13 | 0x58 << 32, 0),
        (VALID | 4 << 8 | 0x80, CODE + 2),
    ] {
        let mut machine = Machine::new(&LOOP);
        machine.set_control(0xa8, word);
        machine.set_control(0xc8, next);
        machine.map(STACK - 8, |entry| entry & !1);
        assert_eq!(machine.run(), 0x400);
        assert_eq!(machine.control(0x80), STACK - 8);
        assert_eq!(machine.control(0x88), word, "EXITINTINFO");
        assert_eq!((machine.saved(0x178), machine.saved(0x1d8)), (CODE, STACK));
        machine.map(STACK - 8, |entry| entry | 1);
        machine.set_control(0xa8, word);
        machine.set_control(0xc8, next);
        let code = (word >> 11 & 1 != 0).then_some(word >> 32);
        handled(&mut machine, word & 0xff, code, if next == 0 { CODE } else { next });
    }
}

#[test]
fn a_guests_own_interrupt_instruction_that_meets_a_nested_fault_starts_again() {
    // int 0x80
    let mut machine = Machine::new(&[0xcd, 0x80]);
    machine.map(STACK - 8, |entry| entry & !1);
    assert_eq!(machine.run(), 0x400);
    assert_eq!(machine.control(0x88), VALID | 4 << 8 | 0x80);
    assert_eq!(machine.saved(0x178), CODE);
}

#[test]
fn an_injected_software_interrupt_that_faults_faults_at_its_instruction() {
    let mut machine = Machine::new(&LOOP);
    machine.set_control(0xa8, VALID | 4 << 8 | 0x80);
    machine.set_control(0xc8, CODE + 2);
    // The gate is not present: #NP with its index.
    let gate = machine.peek(0x3800);
    machine.poke(0x3800, gate & !(1 << 47));
    handled(&mut machine, 11, Some(0x80 * 8 + 2), CODE);
}

#[test]
fn an_interrupt_ends_a_guest_that_loops() {
    let mut machine = Machine::new(&LOOP);
    machine.intercept(0x60);
    machine.set_saved(0x170, 2 | flags::IF);
    machine.bus.interrupt = Some(0x20);
    assert_eq!(machine.run(), 0x60);
    assert_eq!(machine.saved(0x178), CODE);
    assert_eq!(machine.control(0xc8), 0);
}

#[test]
fn an_nmi_ends_a_guest_that_loops() {
    let mut machine = Machine::new(&LOOP);
    machine.intercept(0x61);
    machine.bus.nmi = true;
    assert_eq!(machine.run(), 0x61);
    assert!(machine.bus.nmi, "pending until the host sets GIF");
}

#[test]
fn an_interrupt_that_is_not_intercepted_is_the_guests() {
    let mut machine = Machine::new(&LOOP);
    machine.set_saved(0x170, 2 | flags::IF);
    machine.bus.interrupt = Some(0x20);
    handled(&mut machine, 0x20, None, CODE);
    assert_eq!(machine.bus.interrupt, None);
}

#[test]
fn a_virtual_interrupt_waits_for_sti_and_its_shadow() {
    // nop; sti; inc rbx; inc rbx
    let mut machine = Machine::new(&[0x90, 0xfb, 0x48, 0xff, 0xc3, 0x48, 0xff, 0xc3]);
    machine.set_control(0x60, 1 << 24 | 0xf << 16 | 1 << 8 | 0x42 << 32);
    handled(&mut machine, 0x42, None, CODE + 5);
    assert_eq!(*machine.register(gpr::RBX), 1);
    assert_eq!(machine.control(0x60) >> 8 & 1, 0, "V_IRQ");
}

#[test]
fn an_interrupt_window_opens_at_sti() {
    // sti; nop; nop
    let mut machine = Machine::new(&[0xfb, 0x90, 0x90]);
    machine.intercept(0x64);
    machine.set_control(0x60, 1 << 24 | 0xf << 16 | 1 << 8);
    assert_eq!(machine.run(), 0x64);
    assert_eq!(machine.saved(0x178), CODE + 2);
    assert_eq!(machine.saved(0x170) & flags::IF, flags::IF);
}

#[test]
fn a_virtual_interrupt_waits_for_the_task_priority() {
    // sti; nop; mov cr8, rdx; nop
    let mut machine = Machine::new(&[0xfb, 0x90, 0x44, 0x0f, 0x22, 0xc2, 0x90]);
    *machine.register(gpr::RDX) = 3;
    machine.set_control(0x60, 1 << 24 | 4 << 16 | 1 << 8 | 8 | 0x42 << 32);
    handled(&mut machine, 0x42, None, CODE + 6);
    assert_eq!(machine.control(0x60) & 0xf, 3, "V_TPR");
}

#[test]
fn the_shadow_of_sti_is_stored_and_loaded() {
    // sti; cpuid; nop
    let mut machine = Machine::new(&[0xfb, 0x0f, 0xa2, 0x90]);
    machine.intercept(0x72);
    machine.set_control(0x60, 1 << 24 | 0xf << 16 | 1 << 8 | 0x42 << 32);
    assert_eq!(machine.run(), 0x72);
    assert_eq!(machine.control(0x68), 1);
    machine.set_saved(0x178, CODE + 3);
    handled(&mut machine, 0x42, None, CODE + 4);
}

#[test]
fn the_nmi_window_is_the_iret() {
    let mut machine = Machine::new(&LOOP);
    machine.set_control(0xa8, VALID | 2 << 8 | 2);
    // iretq
    machine.poke(HANDLERS + 2 * HANDLER_BYTES, 0xcf48);
    machine.intercept(0x74);
    assert_eq!(machine.run(), 0x74);
    assert_eq!(machine.saved(0x178), HANDLERS + 2 * HANDLER_BYTES, "before it executes");
}

#[test]
fn a_single_step_is_a_debug_exception_with_its_cause() {
    // nop; nop
    let mut machine = Machine::new(&[0x90, 0x90]);
    machine.intercept(0x41);
    machine.set_saved(0x170, 2 | flags::TF);
    assert_eq!(machine.run(), 0x41);
    assert_eq!(machine.saved(0x178), CODE + 1);
    assert_eq!(machine.saved(0x168), 0xffff_4ff0, "DR6.BS");
}

#[test]
fn an_instruction_breakpoint_that_exits_recurs() {
    // nop; nop
    let mut machine = Machine::new(&[0x90, 0x90]);
    machine.intercept(0x41);
    machine.host().dr[2] = CODE + 1;
    machine.set_saved(0x160, 0x400 | 1 << 4);
    for _ in 0..2 {
        assert_eq!(machine.run(), 0x41);
        assert_eq!(machine.saved(0x178), CODE + 1);
        assert_eq!(machine.saved(0x168), 0xffff_0ff4, "DR6.B2");
        assert_eq!(machine.saved(0x170) & flags::RF, 0, "RF is the frame's");
        machine.set_saved(0x168, 0xffff_0ff0);
    }
}
