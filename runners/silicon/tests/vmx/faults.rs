//! EPT violations and intercepted exceptions, as the processor meets them.

use privet_cpu::state::gpr;

use crate::machine::{CODE, HANDLERS, Machine, STACK, field};

const DATA: u64 = 0x10_0000;
const VMCALL: u64 = 18;
const VIOLATION: u64 = 48;
const MISCONFIGURATION: u64 = 49;
/// The linear address is valid, and the access is the final one.
const FINAL: u64 = 0x180;

/// mov [rbx], rcx; vmcall
const STORE: [u8; 6] = [0x48, 0x89, 0x0b, 0x0f, 0x01, 0xc1];
/// mov rcx, [rbx]; vmcall
const LOAD: [u8; 6] = [0x48, 0x8b, 0x0b, 0x0f, 0x01, 0xc1];

fn accessing(code: &[u8]) -> Machine {
    let mut machine = Machine::new(code);
    *machine.register(gpr::RBX) = DATA + 8;
    *machine.register(gpr::RCX) = 0x1122;
    machine
}

fn faults(machine: &mut Machine, reason: u64, qualification: u64, gpa: u64, length: u64) {
    assert_eq!(machine.run(), reason);
    let told = [field::QUALIFICATION, field::GPA, field::LENGTH].map(|field| machine.get(field));
    assert_eq!(told, [qualification, gpa, length]);
}

#[test]
fn a_store_to_a_page_that_is_not_there_runs_again_once_it_is() {
    let mut machine = accessing(&STORE);
    machine.map(DATA, |entry| entry & !7);
    faults(&mut machine, VIOLATION, FINAL | 2, DATA + 8, 3);
    assert_eq!((machine.get(field::RIP), machine.get(field::LINEAR)), (CODE, DATA + 8));
    machine.map(DATA, |entry| entry | 7);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.peek(DATA + 8), 0x1122);
}

/// What the guest has been given for a read is not given for a write.
#[test]
fn a_load_then_a_store_to_a_page_that_is_write_protected() {
    let mut machine = accessing(&[LOAD[0], LOAD[1], LOAD[2], STORE[0], STORE[1], STORE[2]]);
    machine.poke(DATA + 8, 0x77);
    machine.map(DATA, |entry| entry & !2);
    faults(&mut machine, VIOLATION, FINAL | 2 | 5 << 3, DATA + 8, 3);
    assert_eq!((machine.get(field::RIP), *machine.register(gpr::RCX)), (CODE + 3, 0x77));
}

#[test]
fn a_fetch_from_a_page_that_is_not_executable() {
    // jmp rbx
    let mut machine = accessing(&[0xff, 0xe3]);
    machine.map(DATA, |entry| entry & !4);
    faults(&mut machine, VIOLATION, FINAL | 4 | 3 << 3, DATA + 8, 0);
    assert_eq!(machine.get(field::RIP), DATA + 8);
}

#[test]
fn a_store_to_a_device_is_as_long_as_its_instruction() {
    let mut machine = accessing(&STORE);
    machine.map(DATA, |_| 6);
    faults(&mut machine, MISCONFIGURATION, 0, DATA + 8, 3);
}

#[test]
fn the_walk_of_the_guests_tables_is_told() {
    let mut machine = accessing(&LOAD);
    // Of the guest's first table.
    machine.map(0x1000, |entry| entry & !7);
    faults(&mut machine, VIOLATION, 0x81, 0x1000, 0);
    assert_eq!(machine.get(field::LINEAR), CODE);
}

/// Without a VPID each exit drops the translations, in the middle of the access that it ends.
#[test]
fn a_guest_without_a_vpid_faults_and_goes_on() {
    let mut machine = accessing(&STORE);
    machine.set(field::PROC2, 1 << 1);
    machine.map(DATA, |entry| entry & !7);
    faults(&mut machine, VIOLATION, FINAL | 2, DATA + 8, 3);
    machine.map(DATA, |entry| entry | 7);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.peek(DATA + 8), 0x1122);
}

#[test]
fn a_handler_whose_stack_is_not_there_is_delivered_again() {
    // ud2
    let mut machine = Machine::new(&[0x0f, 0x0b]);
    machine.map(STACK - 0x1000, |entry| entry & !7);
    faults(&mut machine, VIOLATION, FINAL | 2, STACK - 8, 0);
    assert_eq!((machine.get(field::VECTORING), machine.get(field::RIP)), (0x8000_0306, CODE));
    machine.map(STACK - 0x1000, |entry| entry | 7);
    machine.set(field::ENTRY_EVENT, 0x8000_0306);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.get(field::RIP), HANDLERS + 6 * 0x10);
    assert_eq!(machine.peek(STACK - 40), CODE, "where it came from");
}

#[test]
fn an_interrupt_instruction_whose_stack_is_not_there_tells_its_length() {
    // int 0x80
    let mut machine = Machine::new(&[0xcd, 0x80]);
    machine.map(STACK - 0x1000, |entry| entry & !7);
    faults(&mut machine, VIOLATION, FINAL | 2, STACK - 8, 2);
    assert_eq!((machine.get(field::VECTORING), machine.get(field::RIP)), (0x8000_0480, CODE));
    machine.map(STACK - 0x1000, |entry| entry | 7);
    machine.set(field::ENTRY_EVENT, 0x8000_0480).set(field::ENTRY_LENGTH, 2);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!((machine.get(field::RIP), machine.peek(STACK - 40)), (HANDLERS + 0x80 * 0x10, CODE + 2));
}

#[test]
fn a_page_fault_exits_before_cr2_changes() {
    let mut machine = accessing(&LOAD);
    machine.set(field::EXCEPTIONS, 1 << 14);
    // The guest maps its first GiB only.
    *machine.register(gpr::RBX) = 0x4000_0000;
    machine.state().cr2 = 0x99;
    assert_eq!(machine.run(), 0);
    assert_eq!((machine.get(field::EVENT), machine.get(field::QUALIFICATION)), (0x8000_0b0e, 0x4000_0000));
    assert_eq!(machine.state().cr2, 0x99);
}
