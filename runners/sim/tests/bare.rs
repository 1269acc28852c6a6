//! The machine without Linux: a few instructions in the place of a kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, ax, dword_ptr, dx, eax, ecx, edx, rbx};
use privet_sim::{Description, Limits, Machine, Outcome, Unknown};
use proptest::prelude::*;

const LOAD_ADDRESS: u64 = 0x10_0000;
const ENTRY: u64 = LOAD_ADDRESS + 0x200;
/// Where a start-up message sends a processor.
const START_UP_PAGE: u8 = 0x8;

type Code = CodeAssembler;

/// A bzImage whose decompressor, which runs as its payload is in no known format, is this program.
fn kernel(program: impl FnOnce(&mut Code) -> Result<(), IcedError>) -> Arc<[u8]> {
    let mut code = CodeAssembler::new(64).unwrap();
    program(&mut code).unwrap();
    let mut image = vec![0; 1024 + 0x200];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x201, b"\x66HdrS\x0f\x02");
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &[1]);
    put(0x258, &LOAD_ADDRESS.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    image.extend(code.assemble(ENTRY).unwrap());
    image.into()
}

fn machine(program: impl FnOnce(&mut Code) -> Result<(), IcedError>) -> Machine {
    let mut description = Description::new(kernel(program), Arc::default(), String::new());
    description.memory_mib = 64;
    Machine::new(&description).unwrap()
}

fn out(code: &mut Code, port: u32, value: u32) -> Result<(), IcedError> {
    code.mov(edx, port)?;
    code.mov(eax, value)?;
    code.out(dx, al)
}

fn unknown(machine: &mut Machine) -> Vec<Unknown> {
    machine.take_findings().into_iter().map(|finding| finding.what).collect()
}

#[test]
fn what_is_sent_over_the_port_arrives_and_the_machine_switches_off() {
    let mut machine = machine(|code| {
        out(code, 0x3f8, b'c'.into())?;
        out(code, 0x2f8, b'p'.into())?;
        code.mov(edx, 0x604)?;
        code.mov(eax, 0x3400)?;
        code.out(dx, ax)?;
        code.hlt()
    });
    assert_eq!(machine.run(&Limits::default()), Outcome::Port);
    assert_eq!((machine.take_port(), machine.take_console()), (b"p".to_vec(), b"c".to_vec()));
    assert_eq!(machine.run(&Limits::default()), Outcome::PoweredOff);
    assert_eq!(machine.run(&Limits::default()), Outcome::PoweredOff, "for good");
    assert_eq!(unknown(&mut machine), []);
}

#[test]
fn a_reset_is_not_a_triple_fault() {
    let mut reset = machine(|code| {
        out(code, 0xcf9, 6)?;
        code.hlt()
    });
    assert_eq!(reset.run(&Limits::default()), Outcome::Reset);
    let mut fault = machine(Code::ud2);
    assert_eq!(fault.run(&Limits::default()), Outcome::TripleFault { cpu: 0 });
}

#[test]
fn what_the_machine_has_not_is_named() {
    let mut machine = machine(|code| {
        code.mov(edx, 0x1234)?;
        code.in_(al, dx)?;
        code.mov(rbx, 0xd000_0010_u64)?;
        code.mov(eax, dword_ptr(rbx))?;
        code.mov(ecx, 0x4321)?;
        code.rdmsr()
    });
    assert_eq!(machine.run(&Limits::default()), Outcome::TripleFault { cpu: 0 }, "no handler for #GP");
    let expected =
        [Unknown::PortRead { port: 0x1234 }, Unknown::MmioRead { page: 0xd000_0000 }, Unknown::MsrRead(0x4321)];
    assert_eq!(unknown(&mut machine), expected);
    assert_eq!(unknown(&mut machine), [], "once");
}

#[test]
fn an_instruction_that_is_unknown_is_named_with_its_bytes() {
    // XTEST, of TSX.
    let mut machine = machine(|code| code.db(&[0x0f, 0x01, 0xd6]));
    assert_eq!(machine.run(&Limits::default()), Outcome::TripleFault { cpu: 0 }, "no handler for #UD");
    let told = unknown(&mut machine);
    assert!(
        matches!(&told[..], [Unknown::Instruction { bytes }] if bytes.starts_with(&[0x0f, 0x01, 0xd6])),
        "{told:?}"
    );
}

#[test]
fn who_waits_for_nothing_is_idle() {
    let mut machine = machine(Code::hlt);
    assert_eq!(machine.run(&Limits::default()), Outcome::Idle);
}

#[test]
fn a_loop_ends_at_each_limit() {
    let mut machine = machine(|code| {
        let mut again = code.create_label();
        code.set_label(&mut again)?;
        code.nop()?;
        code.jmp(again)
    });
    let limits = Limits { instructions: Some(100_000), ..Limits::default() };
    assert_eq!(machine.run(&limits), Outcome::InstructionLimit);
    assert!((100_000..100_100).contains(&machine.instructions()));
    let until = machine.now() + Duration::from_millis(3);
    assert_eq!(machine.run(&Limits { until: Some(until), ..Limits::default() }), Outcome::TimeLimit);
    assert!(machine.now() >= until && machine.now() < until + Duration::from_micros(10));
    let stop = Arc::new(AtomicBool::new(false));
    stop.store(true, Ordering::Relaxed);
    assert_eq!(machine.run(&Limits { stop: Some(stop), ..Limits::default() }), Outcome::Stopped);
}

#[test]
fn a_start_up_message_wakes_the_second_processor_in_real_mode() {
    /// mov dx, 0x2f8; mov al, 'A'; out dx, al; hlt
    const REAL_MODE: u64 = u64::from_le_bytes([0xba, 0xf8, 0x02, 0xb0, b'A', 0xee, 0xf4, 0x90]);
    let mut machine = machine(|code| {
        code.mov(rbx, u64::from(START_UP_PAGE) << 12)?;
        for (at, half) in [(0, REAL_MODE as u32), (4, (REAL_MODE >> 32) as u32)] {
            code.mov(dword_ptr(rbx + at), half)?;
        }
        code.mov(rbx, 0xfee0_0000_u64)?;
        let (to_second, init, start_up) = (1 << 24, 0x4500, 0x4600 | u32::from(START_UP_PAGE));
        for command in [init, start_up] {
            code.mov(dword_ptr(rbx + 0x310), to_second)?;
            code.mov(dword_ptr(rbx + 0x300), command)?;
        }
        code.hlt()
    });
    assert_eq!(machine.run(&Limits::default()), Outcome::Port);
    assert_eq!(machine.take_port(), b"A");
    assert_eq!(machine.run(&Limits::default()), Outcome::Idle);
    assert_eq!(unknown(&mut machine), []);
}

proptest! {
    #[test]
    fn no_stream_of_instructions_panics_the_machine(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        let mut machine = machine(|code| code.db(&bytes));
        machine.run(&Limits { instructions: Some(20_000), ..Limits::default() });
        machine.take_findings();
    }
}
