//! Single accesses: sizes, completion, splits, and what is no access at all.

use std::fmt::Debug;
use std::thread;
use std::time::Instant;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::MMIO_BASE;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::units::{Gpa, PAGE_SIZE};
use privet_protocol::{Fault, Op, Pattern, Width};

use super::{answer_read, gva, read, read_exit, read_op, take_write, write, write_exit, write_op};
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::row::Row;
use crate::types::Types;

const EMULATOR: &str = "arch/x86/kvm/x86.c: emulator_read_write, emulator_read_write_onepage";
const COMPLETION: &str = "arch/x86/kvm/x86.c: complete_emulated_mmio";

/// Bytes that differ from one another, so that none can stand for another.
const VALUE: u64 = 0x8877_6655_4433_2211;
const LONGEST_INSTRUCTION: u64 = 15;
const UNDEFINED_OPCODE: u64 = 6;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "mmio.write",
            Types::ALL,
            "A store of 1, 2, 4 or 8 bytes at any offset is one exit with its address, its length and the low \
             bytes of the value.",
            writes,
        )
        .basis(&[EMULATOR]),
        Row::new(
            "mmio.read",
            Types::ALL,
            "A load of 1, 2, 4 or 8 bytes at any offset is one exit; as many bytes of userspace's answer as it \
             is long reach the guest, and no more.",
            reads,
        )
        .basis(&[EMULATOR, COMPLETION]),
        Row::new(
            "mmio.write_is_complete_at_its_exit",
            Types::VISIBLE_REGISTERS,
            "When a store exits, its instruction is over: completing what is pending changes no register.",
            write_is_complete,
        )
        .basis(&["Documentation/virt/kvm/api.rst 5 KVM_EXIT_MMIO", COMPLETION]),
        Row::new(
            "mmio.read_completes_without_running_the_guest",
            Types::VISIBLE_REGISTERS,
            "KVM_RUN with immediate_exit finishes a load, RIP and destination included, and the guest does not \
             run; a later answer is too late.",
            read_completes,
        )
        .basis(&["Documentation/virt/kvm/api.rst 5 KVM_EXIT_MMIO", COMPLETION]),
        Row::new(
            "mmio.split_write",
            Types::UNENCRYPTED,
            "A store over the edge between two MMIO pages is two exits, one a page, with exactly their bytes, at \
             every possible split.",
            split_writes,
        )
        .basis(&[EMULATOR, COMPLETION]),
        Row::new(
            "mmio.split_read",
            Types::UNENCRYPTED,
            "A load over the edge between two MMIO pages is two exits, and the guest gets the two answers as one \
             value, at every possible split.",
            split_reads,
        )
        .basis(&[EMULATOR, COMPLETION]),
        Row::new(
            "mmio.split_enter_on_another_thread",
            Types::UNENCRYPTED,
            "ENTER pushes RBP over the edge between two MMIO pages, from a variable on the kernel's stack, and \
             another thread takes the second half: both halves are RBP's.",
            split_enter,
        )
        .basis(&["CVE-2026-31588", EMULATOR]),
        Row::new(
            "mmio.execute",
            Types::UNENCRYPTED,
            "Code cannot be executed from MMIO: KVM_EXIT_INTERNAL_ERROR (emulation) without instruction bytes, and \
             #UD in the guest if userspace goes on.",
            execute,
        )
        .basis(&["arch/x86/kvm/x86.c: handle_emulation_failure, kvm_fetch_guest_virt"]),
        Row::new(
            "mmio.execute.forever",
            Types::SEV,
            "A SEV guest that executes MMIO stays there: no instruction bytes come with the fault, KVM can read none, and \
             lets the guest fault again and again, without an exit, until KVM_RUN is interrupted. (A SEV-ES or SNP guest \
             takes #VC for it, whose handler would have to read the instruction.)",
            execute_forever,
        )
        .basis(&["arch/x86/kvm/svm/svm.c: svm_check_emulate_instruction, resume_guest"]),
        Row::new(
            "mmio.rep_stos",
            Types::ALL_BUT_SEV,
            "A repeated store over a page of MMIO is one exit for each iteration, in order, and none is lost.",
            rep_stos,
        )
        .basis(&[EMULATOR]),
    ]
}

/// Offsets at which an access of this width stays in its page: all around both of its ends.
fn offsets(width: Width) -> impl Iterator<Item = u64> {
    (0..16).chain(PAGE_SIZE - 16..=PAGE_SIZE - width.bytes())
}

fn writes(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    for width in Width::ALL {
        for offset in offsets(width) {
            write(g.vcpu(0), MMIO_BASE + offset, width, VALUE.rotate_left(offset as u32))?;
        }
    }
    Ok(())
}

fn reads(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    for width in Width::ALL {
        for offset in offsets(width) {
            let answer = VALUE.rotate_left(offset as u32);
            let seen = read(g.vcpu(0), MMIO_BASE + offset, width, answer)?;
            expect_eq("what the guest read", &seen, &width.truncate(answer))?;
        }
    }
    Ok(())
}

/// All general registers, RIP and RFLAGS.
fn registers(v: &GuestVcpu) -> Outcome<impl PartialEq + Debug> {
    v.kvm().kvm()?.get_regs().map_err(|error| Stop::Error(format!("KVM_GET_REGS: {error}")))
}

fn rip(v: &GuestVcpu) -> Outcome<u64> {
    v.kvm().kvm()?.get_regs().map(|regs| regs.rip).map_err(|error| Stop::Error(format!("KVM_GET_REGS: {error}")))
}

fn write_is_complete(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    let running = v.start(write_op(MMIO_BASE, Width::B8, VALUE))?;
    running.expect_exit(&write_exit(MMIO_BASE, 8, VALUE))?;
    let at_exit = registers(v)?;
    v.kvm().complete_pending(t.limit())?;
    expect_eq("the registers after completion", &registers(v)?, &at_exit)?;
    running.resume()?;
    running.done().map(drop)
}

fn read_completes(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    let running = v.start(read_op(MMIO_BASE, Width::B8))?;
    running.expect_exit(&read_exit(MMIO_BASE, 8))?;
    let before = rip(v)?;
    v.kvm().set_mmio_data(VALUE)?;
    v.kvm().complete_pending(t.limit())?;
    let after = rip(v)?;
    expect_that((1..=LONGEST_INSTRUCTION).contains(&after.wrapping_sub(before)), || {
        format!("RIP went from {before:#x} to {after:#x}, expected one instruction further")
    })?;
    v.kvm().set_mmio_data(!VALUE)?;
    running.resume()?;
    let [value, ..] = running.done()?;
    expect_eq("what the guest read", &value, &VALUE)
}

/// The edge between two pages of the MMIO window.
const EDGE: Gpa = Gpa(MMIO_BASE.0 + 5 * PAGE_SIZE);

/// The start of an access that has `before` bytes below the edge.
fn below_the_edge(before: u64) -> Gpa {
    Gpa(EDGE.0 - before)
}

/// The low `bytes` bytes of `value`.
fn low(value: u64, bytes: u64) -> u64 {
    value & (u64::MAX >> (64 - 8 * bytes))
}

fn split_writes(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    for width in [Width::B2, Width::B4, Width::B8] {
        for before in 1..width.bytes() {
            let after = width.bytes() - before;
            let running = v.start(write_op(below_the_edge(before), width, VALUE))?;
            take_write(&running, below_the_edge(before), before, low(VALUE, before))?;
            take_write(&running, EDGE, after, low(VALUE >> (8 * before), after))?;
            running.done()?;
        }
    }
    Ok(())
}

fn split_reads(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    for width in [Width::B2, Width::B4, Width::B8] {
        for before in 1..width.bytes() {
            let after = width.bytes() - before;
            let running = v.start(read_op(below_the_edge(before), width))?;
            answer_read(&running, v, below_the_edge(before), before, VALUE)?;
            answer_read(&running, v, EDGE, after, !VALUE)?;
            let [value, ..] = running.done()?;
            let expected = low(VALUE, before) | low(!VALUE, after) << (8 * before);
            expect_eq("what the guest assembled", &value, &expected)?;
        }
    }
    Ok(())
}

/// `mov rax, rsp; mov rcx, rbp; mov rbp, rsi_value; mov rsp, rdi; enter 0, 0; mov rsp, rax; mov rbp, rcx; ret`:
/// pushes `rbp` onto a stack whose top is the argument. Interrupts are off and exceptions have stacks of their
/// own.
fn enter_function(rbp: u64) -> Vec<u8> {
    let mut code = vec![0x48, 0x89, 0xe0, 0x48, 0x89, 0xe9, 0x48, 0xbd];
    code.extend(rbp.to_le_bytes());
    code.extend([0x48, 0x89, 0xfc, 0xc8, 0, 0, 0, 0x48, 0x89, 0xc4, 0x48, 0x89, 0xcd, 0xc3]);
    code
}

fn split_enter(t: &Case) -> Outcome {
    let g = t.guest().range(super::memory::ram(1)).boot()?;
    let (v, code) = (g.vcpu(0), g.range(0).private_gva(0));
    for before in 1..8 {
        let value = VALUE.rotate_left(before as u32);
        v.write_bytes(code, &enter_function(value))?;
        let top = below_the_edge(before) + 8;
        let running = v.start(Op::Execute { gva: code.0, argument: gva(top).0 })?;
        running.expect_exit(&write_exit(below_the_edge(before), before, low(value, before)))?;
        v.kvm().change_thread()?;
        running.resume()?;
        take_write(&running, EDGE, 8 - before, low(value >> (8 * before), 8 - before))?;
        running.done()?;
    }
    Ok(())
}

fn execute(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let running = g.vcpu(0).start(Op::Execute { gva: gva(MMIO_BASE).0, argument: 0 })?;
    let seen = running.exit()?;
    let Exit::InternalError { suberror: 1, data } = &seen else {
        return Err(Stop::Fail(format!("expected INTERNAL_ERROR 1 (emulation), saw {seen}")));
    };
    // Flags, of which the only one would announce instruction bytes, and the hardware's five words.
    expect_eq("the number of words and the flags", &(data.len(), data[0]), &(6, 0))?;
    running.resume()?;
    let Err(Fault { vector, error_code, rip, .. }) = running.result()? else {
        return Err(Stop::Fail("the guest executed something in MMIO".into()));
    };
    expect_eq("vector, error code and RIP", &(vector, error_code, rip), &(UNDEFINED_OPCODE, 0, MMIO_BASE.0))
}

fn execute_forever(t: &Case) -> Outcome {
    /// More exits of the processor than anything else would bring about meanwhile.
    const MANY: u64 = 10_000;
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    let exits = Counters::of_vcpu(&g)?;
    let before = exits.get("exits")?;
    let running = v.start(Op::Execute { gva: gva(MMIO_BASE).0, argument: 0 })?;
    let deadline = Instant::now() + v.limit();
    while exits.get("exits")? < before + MANY {
        if Instant::now() > deadline {
            return Err(Stop::Fail(format!("the guest does not fault again and again within {:?}", v.limit())));
        }
        thread::yield_now();
    }
    v.kvm().kick()?;
    running.expect_exit(&Exit::Interrupted)
}

fn rep_stos(t: &Case) -> Outcome {
    const PATTERN: Pattern = Pattern(0xa5);
    let g = t.guest().boot()?;
    let exits = t.trace().exits();
    let running = g.vcpu(0).start(Op::Fill { gva: gva(MMIO_BASE).0, pages: 1, pattern: PATTERN, first: 3 })?;
    for offset in (0..PAGE_SIZE).step_by(8) {
        take_write(&running, MMIO_BASE + offset, 8, PATTERN.word(3))?;
    }
    running.done()?;
    expect_no_exit_but(t, exits, PAGE_SIZE / 8 + 1)
}
