//! Interrupts, windows, the timer and the virtual APIC between the guest's instructions.

use privet_cpu::CpuExit;
use privet_cpu::state::gpr;

use crate::machine::{APIC, CODE, HANDLERS, Machine, STACK, field};

const VMCALL: u64 = 18;
const TPR_SHADOW: u64 = 1 << 21;
const INTERRUPTS_ENABLED: u64 = 0x202;

#[test]
fn an_injected_event_comes_before_one_that_waits() {
    let mut machine = Machine::new(&[0x90]);
    machine.set(field::RFLAGS, INTERRUPTS_ENABLED).set(field::ENTRY_EVENT, 0x8000_0041);
    machine.bus.interrupt = Some(0x55);
    assert_eq!(machine.run(), 1);
    assert_eq!(machine.get(field::EVENT), 0x8000_0055);
    assert_eq!(machine.get(field::RIP), HANDLERS + 0x41 * 0x10, "before the handler's first instruction");
    assert_eq!(machine.peek(STACK - 40), CODE);
}

#[test]
fn the_interrupt_window_opens_behind_the_shadow_of_sti() {
    // sti; nop; nop
    let mut machine = Machine::new(&[0xfb, 0x90, 0x90]);
    machine.add(field::PROC, 1 << 2);
    assert_eq!(machine.run(), 7);
    assert_eq!((machine.get(field::RIP), machine.get(field::INTERRUPTIBILITY)), (CODE + 2, 0));
}

#[test]
fn an_nmi_is_blocked_until_iret_and_then_its_window_opens() {
    let mut machine = Machine::new(&[0x90]);
    // iretq
    machine.poke(HANDLERS + 2 * 0x10, 0xcf48);
    machine.add(field::PIN, 1 << 5).add(field::PROC, 1 << 22).set(field::ENTRY_EVENT, 0x8000_0202);
    assert_eq!(machine.run(), 8);
    assert_eq!((machine.get(field::RIP), machine.get(field::INTERRUPTIBILITY)), (CODE, 0));
}

#[test]
fn the_timer_ends_a_guest_that_loops_and_one_that_waits() {
    // jmp $
    let mut machine = Machine::new(&[0xeb, 0xfe]);
    machine.add(field::PIN, 1 << 6).set(field::TIMER, 0);
    assert_eq!(machine.run(), 52);
    // hlt
    let mut machine = Machine::new(&[0xf4]);
    machine.add(field::PIN, 1 << 6).set(field::TIMER, 4);
    assert_eq!(machine.enter(), CpuExit::Halt);
    assert_eq!(machine.go_on(), CpuExit::Halt, "its time has not come");
    machine.at(4 << 5);
    assert_eq!(machine.go_on(), CpuExit::Halt);
    assert_eq!((machine.get(field::REASON), machine.get(field::RIP)), (52, CODE + 1));
}

/// Sets the guest's APIC up, with its registers and interrupts virtualized, and this requested.
fn with_apic(code: &[u8], requested: u8) -> Machine {
    let mut machine = Machine::new(code);
    machine.add(field::PROC, TPR_SHADOW).add(field::PROC2, 1 | 1 << 8 | 1 << 9);
    machine.set(field::RFLAGS, INTERRUPTS_ENABLED).set(field::INTERRUPT_STATUS, requested.into());
    machine.set_apic(0x200 + u64::from(requested >> 5) * 0x10, 1 << (requested & 31));
    *machine.register(gpr::RBX) = APIC;
    machine
}

#[test]
fn a_virtual_interrupt_is_delivered_when_its_priority_is_there() {
    // mov dword [rbx + 0x80], 0; nop; nop
    let mut machine = with_apic(&[0xc7, 0x83, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x90, 0x90], 0x61);
    machine.set_apic(0x80, 0x70);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.get(field::RIP), HANDLERS + 0x61 * 0x10);
    assert_eq!(machine.peek(STACK - 40), CODE + 10, "behind the store");
    assert_eq!(machine.get(field::INTERRUPT_STATUS), 0x6100);
}

#[test]
fn a_write_to_the_apic_exits_behind_its_instruction() {
    // mov dword [rbx + 0xf0], 0x1ff; nop
    let mut machine = with_apic(&[0xc7, 0x83, 0xf0, 0, 0, 0, 0xff, 1, 0, 0, 0x90], 0);
    assert_eq!(machine.run(), 56);
    assert_eq!((machine.get(field::QUALIFICATION), machine.get(field::RIP)), (0xf0, CODE + 10));
}

#[test]
fn an_access_to_the_apic_that_is_not_virtualized_exits_with_its_length() {
    // mov eax, [rbx + 0x390]
    let mut machine = with_apic(&[0x8b, 0x83, 0x90, 3, 0, 0], 0);
    assert_eq!(machine.run(), 44);
    let told = [field::QUALIFICATION, field::LENGTH, field::RIP].map(|field| machine.get(field));
    assert_eq!(told, [0x390, 6, CODE]);
}
