//! Guest instructions a second: a compiled loop over memory, the shape of most payload code.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use machine::{Ram, TestBus, long_mode};
use privet_cpu::state::gpr;
use privet_cpu::{Config, Cpu, CpuExit};

#[path = "../tests/cpu/machine.rs"]
mod machine;

const CODE: u64 = 0x8000;
const DATA: u64 = 0x10000;
/// Eight-byte words that one run of the loop goes over.
const WORDS: u64 = 4096;
/// Instructions for each word.
const PER_WORD: u64 = 8;

/// What gcc -O2 makes of `for (i = 0; i < n; i++) { sum += p[i] ^ i; p[i] = sum; }`, about.
fn program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit");
    let mut top = a.create_label();
    let assembled = (|| {
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.set_label(&mut top)?;
        a.mov(rcx, qword_ptr(rdi + rdx * 8))?;
        a.xor(rcx, rdx)?;
        a.add(rax, rcx)?;
        a.mov(qword_ptr(rdi + rdx * 8), rax)?;
        a.movzx(r8d, byte_ptr(rdi + rdx))?;
        a.inc(rdx)?;
        a.cmp(rdx, rsi)?;
        a.jne(top)?;
        a.hlt()?;
        a.assemble(CODE)
    })();
    assembled.expect("the loop assembles")
}

fn guest_loop(criterion: &mut Criterion) {
    let ram = Ram::new(1 << 20);
    ram.write(CODE, &program());
    let mut cpu = Cpu::new(Config::default());
    long_mode(&mut cpu, &ram, 0);
    let mut bus = TestBus::new(&ram);
    let mut group = criterion.benchmark_group("guest_loop");
    group.throughput(Throughput::Elements(WORDS * PER_WORD));
    group.bench_function("sum and store", |bencher| {
        bencher.iter(|| {
            cpu.state.rip = CODE;
            cpu.state.gpr[gpr::RDI] = DATA;
            cpu.state.gpr[gpr::RSI] = WORDS;
            assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
            black_box(ram.read_u64(DATA + (WORDS - 1) * 8))
        });
    });
    group.finish();
}

criterion_group!(benches, guest_loop);
criterion_main!(benches);
