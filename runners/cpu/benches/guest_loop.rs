//! Guest instructions a second: a compiled loop over memory, the shape of most payload code, beside the same loop
//! on the processor underneath; and code as a kernel has it, with code compared and with writers that tell. Nothing
//! here passes or fails.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::code_asm::*;
use machine::{Ram, TestBus, long_mode};
use privet_cpu::state::gpr;
use privet_cpu::{CodePages, Config, Cpu, CpuExit};

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

/// The same for the processor underneath.
fn native(words: &mut [u64]) {
    let mut sum = 0_u64;
    for index in 0..words.len() {
        sum = sum.wrapping_add(words[index] ^ index as u64);
        words[index] = sum;
        black_box((words[index / 8] >> (index % 8 * 8)) as u8);
    }
}

fn guest_loop(criterion: &mut Criterion) {
    let ram = Ram::new(1 << 20);
    ram.write(CODE, &program());
    let mut cpu = Cpu::new(Config::default());
    long_mode(&mut cpu, &ram, 0);
    let mut bus = TestBus::new(&ram);
    let mut words = vec![0; WORDS as usize];
    let (mut in_guest, mut outside) = (Duration::MAX, Duration::MAX);

    let mut group = criterion.benchmark_group("guest_loop");
    group.throughput(Throughput::Elements(WORDS * PER_WORD));
    group.bench_function("sum and store", |bencher| {
        measure(bencher, &mut in_guest, || {
            cpu.state.rip = CODE;
            cpu.state.gpr[gpr::RDI] = DATA;
            cpu.state.gpr[gpr::RSI] = WORDS;
            assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
            black_box(ram.read_u64(DATA + (WORDS - 1) * 8));
        });
    });
    group.bench_function("sum and store, natively", |bencher| {
        measure(bencher, &mut outside, || native(black_box(&mut words)));
    });
    group.finish();

    let rate = |time: Duration| (WORDS * PER_WORD) as f64 / time.as_secs_f64() / 1e6;
    println!(
        "guest_loop: {:.0} million guest instructions a second, 1/{:.0} of the same loop outside ({:.0}); goal 50",
        rate(in_guest),
        in_guest.as_secs_f64() / outside.as_secs_f64(),
        rate(outside)
    );
}

/// Short blocks: calls, branches that go both ways, the stack, loads and stores, a short copy.
fn kernel_program() -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit");
    let (mut top, mut odd, mut join, mut lookup) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    let assembled = (|| {
        a.set_label(&mut top)?;
        a.mov(rdi, rbx)?;
        a.call(lookup)?;
        a.test(al, 1)?;
        a.jne(odd)?;
        a.mov(qword_ptr(rbp + rbx * 8), rax)?;
        a.jmp(join)?;
        a.set_label(&mut odd)?;
        a.mov(rsi, rbp)?;
        a.lea(rdi, qword_ptr(rbp + 0x800))?;
        a.mov(ecx, 64)?;
        a.rep().movsb()?;
        a.set_label(&mut join)?;
        a.inc(ebx)?;
        a.and(ebx, 0x7f)?;
        a.dec(r12)?;
        a.jne(top)?;
        a.hlt()?;
        a.set_label(&mut lookup)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.push(rbx)?;
        a.mov(rax, qword_ptr(r13 + rdi * 8))?;
        a.test(rax, rax)?;
        let mut found = a.create_label();
        a.je(found)?;
        a.add(rax, rdi)?;
        a.set_label(&mut found)?;
        a.xor(eax, edi)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()?;
        a.assemble(CODE)
    })();
    assembled.expect("the program assembles")
}

fn kernel_code(criterion: &mut Criterion) {
    let ram = Ram::new(1 << 20);
    ram.write(CODE, &kernel_program());
    let mut group = criterion.benchmark_group("kernel_code");
    let rates = [("code compared", None), ("writers tell", Some(Arc::new(CodePages::new())))].map(|(name, code)| {
        let mut cpu = code.map_or_else(|| Cpu::new(Config::default()), |code| Cpu::sharing(Config::default(), code));
        long_mode(&mut cpu, &ram, 0);
        let mut bus = TestBus::new(&ram);
        let (mut fastest, mut instructions) = (Duration::MAX, 0);
        group.bench_function(name, |bencher| {
            measure(bencher, &mut fastest, || {
                let before = cpu.state.instructions;
                cpu.state.rip = CODE;
                for (register, value) in [(gpr::RBX, 0), (gpr::RBP, DATA), (gpr::RSP, 0x7000), (12, 10_000), (13, DATA)]
                {
                    cpu.state.gpr[register] = value;
                }
                assert_eq!(cpu.run(&mut bus), CpuExit::Halt);
                instructions = cpu.state.instructions - before;
            });
        });
        instructions as f64 / fastest.as_secs_f64() / 1e6
    });
    group.finish();
    println!(
        "kernel_code: {:.0} million guest instructions a second, {:.2} times those of a CPU that compares; goal 100",
        rates[1],
        rates[1] / rates[0]
    );
}

/// Has criterion measure `once`, and keeps the time of the fastest sample, on which others had the least influence.
fn measure(bencher: &mut Bencher<'_>, fastest: &mut Duration, mut once: impl FnMut()) {
    bencher.iter_custom(|iterations| {
        let start = Instant::now();
        (0..iterations).for_each(|_| once());
        let elapsed = start.elapsed();
        *fastest = (*fastest).min(elapsed.div_f64(iterations as f64));
        elapsed
    });
}

criterion_group!(benches, guest_loop, kernel_code);
criterion_main!(benches);
