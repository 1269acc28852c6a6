//! Nested page faults and intercepted exceptions, as the processor meets them.

use privet_cpu::state::gpr;
use privet_silicon::{PhysicalMemory, read_array};

use crate::machine::{CODE, GUEST_MEMORY, Machine, STACK, VMCB};

const DATA: u64 = 0x10_0000;
const FINAL: u64 = 1 << 32;
const TABLE: u64 = 1 << 33;

/// mov [rbx], rcx; vmmcall
const STORE: [u8; 6] = [0x48, 0x89, 0x0b, 0x0f, 0x01, 0xd9];
/// mov rcx, [rbx]; vmmcall
const LOAD: [u8; 6] = [0x48, 0x8b, 0x0b, 0x0f, 0x01, 0xd9];

fn accessing(code: &[u8]) -> Machine {
    let mut machine = Machine::new(code);
    *machine.register(gpr::RBX) = DATA + 8;
    *machine.register(gpr::RCX) = 0x1122;
    machine
}

/// An exit for the data of the instruction before `next_rip`; 0 if it is not for an instruction's data.
fn nested_fault(machine: &mut Machine, error: u64, gpa: u64, next_rip: u64) {
    assert_eq!(machine.run(), 0x400);
    assert_eq!((machine.control(0x78), machine.control(0x80)), (error, gpa));
    assert_eq!(machine.control(0xc8), next_rip, "NEXT_RIP");
}

#[test]
fn a_store_to_a_page_that_is_not_there_runs_again_once_it_is() {
    let mut machine = accessing(&STORE);
    machine.map(DATA, |entry| entry & !1);
    nested_fault(&mut machine, FINAL | 6, DATA + 8, CODE + 3);
    assert_eq!(machine.saved(0x178), CODE);
    let bytes: [u8; 7] = read_array(&mut machine.bus.board, VMCB + 0xd0);
    assert_eq!(bytes, [15, 0x48, 0x89, 0x0b, 0x0f, 0x01, 0xd9], "the instruction");
    machine.map(DATA, |entry| entry | 1);
    assert_eq!(machine.run(), 0x81);
    assert_eq!(machine.peek(DATA + 8), 0x1122);
}

#[test]
fn a_load_then_a_store_to_a_page_that_is_write_protected() {
    let mut machine = accessing(&[LOAD[0], LOAD[1], LOAD[2], STORE[0], STORE[1], STORE[2]]);
    machine.poke(DATA + 8, 0x77);
    machine.map(DATA, |entry| entry & !2);
    nested_fault(&mut machine, FINAL | 7, DATA + 8, CODE + 6);
    assert_eq!(machine.saved(0x178), CODE + 3);
    assert_eq!(*machine.register(gpr::RCX), 0x77);
}

#[test]
fn a_fetch_from_a_page_that_is_not_executable() {
    // jmp rbx
    let mut machine = accessing(&[0xff, 0xe3]);
    machine.map(DATA, |entry| entry | 1 << 63);
    nested_fault(&mut machine, FINAL | 0x15, DATA + 8, 0);
    assert_eq!(machine.saved(0x178), DATA + 8);
    assert_eq!(read_array(&mut machine.bus.board, VMCB + 0xd0), [0], "no bytes");
}

#[test]
fn reserved_bits_of_a_nested_entry() {
    let mut machine = accessing(&LOAD);
    machine.map(DATA, |entry| entry | 1 << 51);
    nested_fault(&mut machine, FINAL | 0xd, DATA + 8, CODE + 3);
}

#[test]
fn the_guests_own_tables_are_faulted_on_as_such() {
    let mut machine = accessing(&LOAD);
    machine.map(0x2000, |entry| entry & !1);
    nested_fault(&mut machine, TABLE | 6, 0x2000, 0);
    machine.map(0x2000, |entry| entry | 1);
    machine.map(0x1000, |entry| entry & !2);
    nested_fault(&mut machine, TABLE | 7, 0x1000, 0);
}

#[test]
fn an_address_outside_of_the_nested_tables() {
    let mut machine = accessing(&LOAD);
    *machine.register(gpr::RBX) = 0x3000_0000;
    nested_fault(&mut machine, FINAL | 4, 0x3000_0000, CODE + 3);
}

#[test]
fn a_page_fault_of_the_guest_is_the_guests() {
    let mut machine = accessing(&LOAD);
    *machine.register(gpr::RBX) = 0x1_4000_0000;
    assert_eq!(machine.run(), 0x81, "its handler calls");
    assert_eq!(machine.saved(0x240), 0x1_4000_0000, "CR2");
    assert_eq!(machine.peek(STACK - 0x30), 0, "error code");
    assert_eq!(machine.peek(STACK - 0x28), CODE, "return address");
}

#[test]
fn a_page_fault_that_is_intercepted_leaves_cr2_alone() {
    let mut machine = accessing(&STORE);
    machine.intercept(0x4e);
    *machine.register(gpr::RBX) = 0x1_4000_0000;
    assert_eq!(machine.run(), 0x4e);
    assert_eq!((machine.control(0x78), machine.control(0x80)), (2, 0x1_4000_0000));
    assert_eq!(machine.saved(0x240), 0);
    assert_eq!(machine.saved(0x178), CODE);
}

#[test]
fn a_double_fault_is_asked_about_as_well() {
    // ud2, with an IDT of no length: #GP, then #GP while #GP is delivered
    let mut machine = Machine::new(&[0x0f, 0x0b]);
    machine.set_saved(0x84, 0);
    machine.intercept(0x48);
    assert_eq!(machine.run(), 0x48);
    assert_eq!(machine.control(0x88) & 0xffff_ffff, 1 << 31 | 3 << 8 | 1 << 11 | 13);
}

#[test]
fn a_triple_fault_is_a_shutdown() {
    // ud2, with an IDT of no length
    let mut machine = Machine::new(&[0x0f, 0x0b]);
    machine.set_saved(0x84, 0);
    assert_eq!(machine.run(), 0x7f);
}

#[test]
fn an_exception_while_another_is_delivered_names_the_first() {
    // ud2, with an IDT of no length: #GP while #UD is delivered
    let mut machine = Machine::new(&[0x0f, 0x0b]);
    machine.set_saved(0x84, 0);
    machine.intercept(0x4d);
    assert_eq!(machine.run(), 0x4d);
    assert_eq!(machine.control(0x78), 6 * 8 + 2, "index in the IDT; an exception is no external event");
    assert_eq!(machine.control(0x88) & 0xffff_ffff, 1 << 31 | 3 << 8 | 6);
    assert_eq!(machine.saved(0x178), CODE);
}

#[test]
fn worlds_do_not_share_translations() {
    let mut machine = accessing(&LOAD);
    machine.poke(DATA + 8, 0x6e57);
    let at = GUEST_MEMORY + DATA + 0x8;
    machine.bus.board.write(DATA + 8, &[0x05, 0x70, 0, 0]);
    for _ in 0..3 {
        machine.set_saved(0x178, CODE);
        assert_eq!(machine.run(), 0x81);
        assert_eq!(*machine.register(gpr::RCX), 0x6e57);
    }
    assert_eq!(read_array(&mut machine.bus.board, at), [0x57, 0x6e]);
}
