//! One nested translation of 2 MiB, of which the hypervisor gives a page away (APM volume 2, 15.36.10).

use privet_cpu::state::gpr;
use privet_silicon::rmp::{PageSize, RmpState};

use crate::machine::{CODE, Machine};

const DATA: u64 = 0x10_0000;
const NEIGHBOUR: u64 = 0x12_3000;
/// mov [rbx], rcx; vmmcall
const STORE: [u8; 6] = [0x48, 0x89, 0x0b, 0x0f, 0x01, 0xd9];
/// EXITINFO1: the final translation of a write, which is there and is the RMP's to refuse.
const REFUSED: u64 = 1 << 32 | 1 << 31 | 7;

const HYPERVISORS: RmpState = RmpState { gpa: 0, assigned: false, size: PageSize::Size4K, immutable: false, asid: 0 };
const ANOTHERS: RmpState = RmpState { assigned: true, asid: 5, gpa: 0x4000, ..HYPERVISORS };

/// Has the guest store a value; the exit code.
fn store(machine: &mut Machine, value: u64) -> u64 {
    *machine.register(gpr::RBX) = DATA;
    *machine.register(gpr::RCX) = value;
    machine.set_saved(0x178, CODE);
    machine.run()
}

#[test]
fn a_guest_writes_by_a_large_translation_while_all_of_it_is_the_hypervisors() {
    let mut machine = Machine::with_snp(&STORE);
    for round in 1..3 {
        // The second time the processor remembers where the page is.
        assert_eq!(store(&mut machine, round), 0x81);
        assert_eq!(store(&mut machine, round + 0x10), 0x81);
        machine.rmpupdate(NEIGHBOUR, ANOTHERS);
        assert_eq!(store(&mut machine, 0x99), 0x400);
        assert_eq!((machine.control(0x78), machine.control(0x80)), (REFUSED, DATA));
        assert_eq!(machine.peek(DATA), round + 0x10);
        machine.rmpupdate(NEIGHBOUR, HYPERVISORS);
    }
}
