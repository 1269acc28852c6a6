//! Small programs run to their end.

use crate::machine::{Ram, TestBus, long_mode};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use privet_cpu::state::gpr;
use privet_cpu::{Config, Cpu, CpuExit};

#[test]
fn a_loop_sums_memory() {
    let ram = Ram::new(1 << 20);
    let mut cpu = Cpu::new(Config::default());
    long_mode(&mut cpu, &ram, 0);
    let mut a = CodeAssembler::new(64).expect("64-bit");
    let mut top = a.create_label();
    a.xor(eax, eax).unwrap();
    a.mov(ecx, 512).unwrap();
    a.set_label(&mut top).unwrap();
    a.add(rax, qword_ptr(rbx + rcx * 8 - 8)).unwrap();
    a.dec(rcx).unwrap();
    a.jne(top).unwrap();
    a.hlt().unwrap();
    ram.write(0x8000, &a.assemble(0x8000).unwrap());
    for index in 0..512 {
        ram.write_u64(0x10000 + index * 8, index);
    }
    cpu.state.rip = 0x8000;
    cpu.state.gpr[gpr::RBX] = 0x10000;
    let mut bus = TestBus::new(&ram);
    assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
    assert_eq!(cpu.state.gpr[gpr::RAX], 511 * 512 / 2);
}

/// The program, with RBX at 0x10000 and RDI at `to`.
fn run(assemble: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>, to: u64) -> (Ram, Cpu, CpuExit) {
    let ram = Ram::new(1 << 20);
    let mut cpu = Cpu::new(Config::default());
    long_mode(&mut cpu, &ram, 0);
    let mut a = CodeAssembler::new(64).expect("64-bit");
    assemble(&mut a).unwrap();
    ram.write(0x8000, &a.assemble(0x8000).unwrap());
    for index in 0..8 {
        ram.write_u64(0x10004 + index * 8, index + 1);
    }
    cpu.state.rip = 0x8000;
    (cpu.state.gpr[gpr::RBX], cpu.state.gpr[gpr::RDI]) = (0x10000, to);
    let exit = cpu.run(&mut TestBus::new(&ram));
    (ram, cpu, exit)
}

#[test]
fn movdir64b_moves_64_bytes_to_an_aligned_place() {
    let program = |a: &mut CodeAssembler| {
        a.movdir64b(rdi, zmmword_ptr(rbx + 4))?;
        a.hlt()
    };
    let (ram, _, exit) = run(program, 0x11040);
    assert_eq!(exit, CpuExit::Halt);
    assert_eq!(ram.read(0x11040, 64), ram.read(0x10004, 64));
    assert_eq!(ram.read(0x11040, 1), [1]);
    // There is no handler for #GP.
    let (ram, _, exit) = run(program, 0x11048);
    assert_eq!((exit, ram.read(0x11048, 8)), (CpuExit::Shutdown, vec![0; 8]));
}
