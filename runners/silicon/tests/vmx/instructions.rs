//! Instructions whose operands and results the CPU handles, with what VMX makes of them.

use privet_cpu::state::{cr0, cr4, gpr};

use crate::machine::{CODE, HANDLERS, Machine, field};

const VMCALL: u64 = 18;

#[test]
fn a_guest_reads_and_writes_what_it_owns_of_cr0() {
    // mov rcx, cr0; or rcx, 0x40000; mov cr0, rcx; mov rdx, cr0; vmcall
    let code = [0x0f, 0x20, 0xc1, 0x48, 0x81, 0xc9, 0, 0, 4, 0, 0x0f, 0x22, 0xc1, 0x0f, 0x20, 0xc2, 0x0f, 0x01, 0xc1];
    let mut machine = Machine::new(&code);
    machine.set(field::CR0_MASK, cr0::NE | cr0::TS).set(field::CR0_SHADOW, cr0::TS);
    assert_eq!(machine.run(), VMCALL);
    let seen = *machine.register(gpr::RDX);
    assert_eq!(seen & (cr0::NE | cr0::TS | cr0::AM), cr0::TS | cr0::AM);
    assert_eq!(machine.get(0x6800) & (cr0::NE | cr0::TS | cr0::AM), cr0::NE | cr0::AM);
}

#[test]
fn a_write_that_exits_has_changed_nothing() {
    // clts; nop
    let mut machine = Machine::new(&[0x0f, 0x06, 0x90]);
    machine.set(field::CR0_MASK, cr0::TS).set(field::CR0_SHADOW, cr0::TS);
    assert_eq!(machine.run(), 28);
    let told = [field::QUALIFICATION, field::LENGTH, field::RIP].map(|field| machine.get(field));
    assert_eq!(told, [2 << 4, 2, CODE]);
}

#[test]
fn what_vmx_needs_is_a_fault_of_the_guests() {
    // mov rcx, cr4; and ch, 0xdf; mov cr4, rcx
    let mut machine = Machine::new(&[0x0f, 0x20, 0xe1, 0x80, 0xe5, 0xdf, 0x0f, 0x22, 0xe1]);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.get(field::RIP), HANDLERS + 13 * 0x10);
    assert_eq!(machine.get(0x6804), cr4::PAE | cr4::VMXE);
}

#[test]
fn instructions_of_vmx_in_the_guest_exit_before_their_operands_are_read() {
    // vmptrld [rbx + 0x10], of an address that is not mapped
    let mut machine = Machine::new(&[0x0f, 0xc7, 0x73, 0x10]);
    *machine.register(gpr::RBX) = 1 << 40;
    assert_eq!(machine.run(), 21);
    let information = 3 << 23 | 1 << 22 | 3 << 15 | 2 << 7;
    let told = [field::QUALIFICATION, field::LENGTH, 0x440e].map(|field| machine.get(field));
    assert_eq!(told, [0x10, 4, information]);
}

#[test]
fn string_io_tells_where_its_memory_is() {
    // rep outsb
    let mut machine = Machine::new(&[0xf3, 0x6e]);
    machine.add(field::PROC, 1 << 24);
    (*machine.register(gpr::RSI), *machine.register(gpr::RCX), *machine.register(gpr::RDX)) = (0x9000, 4, 0x3f8);
    assert_eq!(machine.run(), 30);
    let told = [field::QUALIFICATION, field::LINEAR, 0x440e].map(|field| machine.get(field));
    assert_eq!(told, [0x3f8_0030, 0x9000, 2 << 7 | 3 << 15]);
}

#[test]
fn rdtscp_and_invpcid_do_not_exist_unless_they_are_enabled() {
    // rdtscp; vmcall
    let code = [0x0f, 0x01, 0xf9, 0x0f, 0x01, 0xc1];
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.get(field::RIP), HANDLERS + 6 * 0x10);
    let mut machine = Machine::new(&code);
    machine.add(field::PROC2, 1 << 3);
    assert_eq!(machine.run(), VMCALL);
    assert_eq!(machine.get(field::RIP), CODE + 3);
}
