//! Calls that work: on several vCPUs, in any order, with all that can travel.

use std::thread;

use privet_harness::case::Case;
use privet_harness::guest_vcpu::GuestVcpu;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::units::{Gva, PAGE_SIZE};
use privet_protocol::{Fault, Length, Op, REPLY_SEQ, Width};

use super::{expect_error, mailbox, words};
use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::row::Row;
use crate::types::Types;

const CHANNEL: &str = "payloads/protocol: HostMailbox, GuestMailbox";
const LOST_CALLS: &str = "the GHCB ucall series (Gonda, 2024), in which nobody had made a second call";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "channel.interleaved_calls",
            Types::ALL,
            "Four vCPUs are called at once and harvested in another order, 25 times: each answers its own \
             question, with the next number, by exactly one exit.",
            interleaved_calls,
        )
        .basis(&[CHANNEL, LOST_CALLS]),
        Row::new(
            "channel.concurrent_calls",
            Types::ALL,
            "Four host threads make 100 calls each, on a vCPU each: no answer is lost, mixed up or late.",
            concurrent_calls,
        )
        .basis(&[CHANNEL, LOST_CALLS]),
        Row::new(
            "channel.bytes_travel_both_ways",
            Types::ALL,
            "Up to 2048 bytes of any value travel in each direction; one more is refused.",
            bytes_travel,
        )
        .basis(&[CHANNEL]),
        Row::new(
            "channel.cpuid_and_msrs",
            Types::ALL_BUT_TDX,
            "CPUID and model-specific registers of the guest can be read and written.",
            cpuid_and_msrs,
        )
        .basis(&["Documentation/virt/kvm/x86/cpuid.rst", "arch/x86/kvm/x86.c: kvm_get_msr_common"])
        .needs(Need::Parameter("kvm.ignore_msrs", "N")),
        Row::new(
            "channel.faults_are_results",
            Types::WITH_SHARED_CODE,
            "A fault in an access that the host asked for is a result with vector, error code and CR2, and the guest \
             goes on.",
            faults_are_results,
        )
        .basis(&["Intel SDM vol. 3, 7.15", "payloads/runtime: probe"]),
        Row::new(
            "channel.hammering",
            Types::ALL,
            "A vCPU that hammers a page until it is stopped has begun when the host goes on, and has done exactly \
             the rounds that it reports; one that faults before its first round is told apart.",
            hammering,
        )
        .basis(&[CHANNEL]),
    ]
}

fn ram(pages: u64) -> RangeSpec {
    RangeSpec::new(pages).backing(Backing::HostOnly)
}

fn interleaved_calls(t: &Case) -> Outcome {
    const ROUNDS: u64 = 25;
    let g = t.guest().vcpus(4).range(ram(4)).boot()?;
    let at = |index: usize| g.range(0).shared_gva(index as u64);
    let answered = |v: &GuestVcpu| Ok::<_, Stop>(words(v)?[REPLY_SEQ].load(std::sync::atomic::Ordering::Acquire));
    let before = g.vcpus().iter().map(answered).collect::<Outcome<Vec<_>>>()?;
    let exits = t.trace().exits();
    for round in 0..ROUNDS {
        let question = |index: usize| round * 4 + index as u64 + 1;
        let exchanges = (0..4).map(|index| {
            let op = Op::CompareExchange {
                gva: at(index).0,
                expected: if round == 0 { 0 } else { question(index) - 4 },
                new: question(index),
            };
            g.vcpu(index).start(op)
        });
        let mut running: Vec<_> = exchanges.map(Some).map(Option::transpose).collect::<Outcome<_>>()?;
        for step in 0..4 {
            let index = (step + round as usize) * 3 % 4;
            let Some(call) = running[index].take() else { return Err(Stop::Error("harvested twice".into())) };
            let [found, ..] = call.done()?;
            expect_eq(
                &format!("what vCPU {index} found"),
                &found,
                &(question(index).saturating_sub(4) * u64::from(round > 0)),
            )?;
        }
    }
    let after = g.vcpus().iter().map(answered).collect::<Outcome<Vec<_>>>()?;
    expect_eq("the numbers of the last answers", &after, &before.iter().map(|number| number + ROUNDS).collect())?;
    expect_no_exit_but(t, exits, 4 * ROUNDS)
}

fn concurrent_calls(t: &Case) -> Outcome {
    const CALLS: u64 = 100;
    let g = t.guest().vcpus(4).range(ram(4)).boot()?;
    let exits = t.trace().exits();
    let caller = |index: usize| {
        let (v, at) = (g.vcpu(index), g.range(0).shared_gva(index as u64));
        for call in 0..CALLS / 2 {
            let value = call << 8 | index as u64;
            v.write(at + 8 * call, Width::B8, value)?;
            v.expect_read(at + 8 * call, Width::B8, value)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|index| scope.spawn(move || caller(index))).collect();
        callers.into_iter().try_for_each(|caller| {
            caller.join().unwrap_or_else(|_| Err(Stop::Error("a calling thread panicked".into())))
        })
    })?;
    expect_no_exit_but(t, exits, 4 * CALLS)
}

fn bytes_travel(t: &Case) -> Outcome {
    let g = t.guest().range(ram(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    for len in [0, 1, 7, 8, 9, 255, Length::MAX.0 as usize - 1, Length::MAX.0 as usize] {
        let bytes: Vec<u8> = (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 7) as u8 ^ len as u8).collect();
        // Over the edge of a page, and with a neighbour that must stay.
        let start = PAGE_SIZE - len as u64 / 2;
        range.host().write(start, &vec![0xee; len + 1])?;
        v.write_bytes(range.shared_gva(0) + start, &bytes)?;
        let mut host = vec![0; len + 1];
        range.host().read(start, &mut host)?;
        expect_eq("the byte after them", &host.pop(), &Some(0xee))?;
        expect_eq("the bytes that the guest wrote", &host, &bytes)?;
        expect_eq("the bytes that the guest read", &v.read_bytes(range.shared_gva(0) + start, len)?, &bytes)?;
    }
    let too_many = Op::ReadBytes { gva: range.shared_gva(0).0, len: Length(Length::MAX.0 + 1) };
    expect_error("one byte too many", v.attempt(too_many), &["BadRequest", "0x801"])
}

/// The first leaf of KVM's own.
const KVM_SIGNATURE: u32 = 0x4000_0000;
const FEATURES: u32 = 1;
const HYPERVISOR_PRESENT: u64 = 1 << 31;

const EFER: u32 = 0xc000_0080;
/// SCE is off, LME, LMA and NXE are on.
const EFER_IN_64_BIT_MODE: u64 = 1 << 8 | 1 << 10 | 1 << 11;
/// Set in every encrypted save area, whose EFER the guest reads without an intercept (svm/sev.c: sev_es_sync_vmsa).
const EFER_SVME: u64 = 1 << 12;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const NO_SUCH_MSR: u32 = 0x4b4d_ffff;

const GENERAL_PROTECTION: u64 = 13;
const UNDEFINED_OPCODE: u64 = 6;
const PAGE_FAULT: u64 = 14;

fn cpuid_and_msrs(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let v = g.vcpu(0);
    let [_, ebx, ecx, edx, ..] = v.call(Op::Cpuid { leaf: KVM_SIGNATURE, subleaf: 0 })?;
    let signature: Vec<u8> = [ebx, ecx, edx].iter().flat_map(|word| (*word as u32).to_le_bytes()).collect();
    expect_eq("KVM's signature", &String::from_utf8_lossy(&signature).as_ref(), &"KVMKVMKVM\0\0\0")?;
    let [_, _, ecx, ..] = v.call(Op::Cpuid { leaf: FEATURES, subleaf: 0 })?;
    expect_eq("the hypervisor bit", &(ecx & HYPERVISOR_PRESENT), &HYPERVISOR_PRESENT)?;

    let [efer, ..] = v.call(Op::ReadMsr { msr: EFER })?;
    let svme = if Types::ES_AND_SNP.contain(t.platform()) { EFER_SVME } else { 0 };
    expect_eq("EFER", &efer, &(EFER_IN_64_BIT_MODE | svme))?;
    for value in [0xffff_8000_1234_5678, 0x7fff_ffff_f000] {
        v.call(Op::WriteMsr { msr: KERNEL_GS_BASE, value })?;
        let [seen, ..] = v.call(Op::ReadMsr { msr: KERNEL_GS_BASE })?;
        expect_eq("KERNEL_GS_BASE", &seen, &value)?;
    }
    expect_fault(v, Op::ReadMsr { msr: NO_SUCH_MSR }, GENERAL_PROTECTION, 0, None)?;
    expect_fault(v, Op::WriteMsr { msr: NO_SUCH_MSR, value: 0 }, GENERAL_PROTECTION, 0, None)
}

/// Nothing is mapped here.
const UNMAPPED: Gva = Gva(0x20_1234_5678);
/// Bit 47 is set, the bits above are not.
const NOT_CANONICAL: Gva = Gva(0x0000_8000_0000_0000);

/// Expects this operation to fault in exactly this way; `cr2` where the vector has one.
fn expect_fault(v: &GuestVcpu, op: Op, vector: u64, error_code: u64, cr2: Option<u64>) -> Outcome {
    let Err(fault) = v.attempt(op)? else {
        return Err(Stop::Fail(format!("{op:x?} did not fault, expected vector {vector}")));
    };
    let seen = (fault.vector, fault.error_code, cr2.map(|_| fault.cr2));
    expect_eq(&format!("vector, error code and CR2 of {op:x?}"), &seen, &(vector, error_code, cr2))
}

fn faults_are_results(t: &Case) -> Outcome {
    const WRITE: u64 = 1 << 1;
    const FETCH: u64 = 1 << 4;
    const UD2: [u8; 2] = [0x0f, 0x0b];
    let g = t.guest().range(ram(1)).boot()?;
    let (v, code) = (g.vcpu(0), g.range(0).private_gva(0));
    for width in Width::ALL {
        let read = |gva: Gva| Op::Read { gva: gva.0, width };
        let write = |gva: Gva| Op::Write { gva: gva.0, width, value: 0 };
        expect_fault(v, read(UNMAPPED), PAGE_FAULT, 0, Some(UNMAPPED.0))?;
        expect_fault(v, write(UNMAPPED), PAGE_FAULT, WRITE, Some(UNMAPPED.0))?;
        expect_fault(v, read(NOT_CANONICAL), GENERAL_PROTECTION, 0, None)?;
        expect_fault(v, write(NOT_CANONICAL), GENERAL_PROTECTION, 0, None)?;
    }
    expect_fault(v, Op::Execute { gva: UNMAPPED.0, argument: 0 }, PAGE_FAULT, FETCH, Some(UNMAPPED.0))?;
    v.write_bytes(code, &UD2)?;
    match v.attempt(Op::Execute { gva: code.0, argument: 0 })? {
        Err(Fault { vector: UNDEFINED_OPCODE, error_code: 0, rip, .. }) => expect_eq("RIP of #UD", &rip, &code.0)?,
        other => return Err(Stop::Fail(format!("ud2 ended with {other:x?}, expected #UD"))),
    }
    // The guest is whole: calls nest nowhere and stacks are where they were.
    v.expect_read(code, Width::B2, 0x0b0f)
}

fn hammering(t: &Case) -> Outcome {
    let g = t.guest().range(ram(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let mut counted = 0;
    for _ in 0..20 {
        let running = v.hammer(Op::HammerAdd { gva: range.shared_gva(0).0, pages: 1, limit: 0 })?;
        let begun = range.host().read_u64(0)?;
        expect_that(begun > counted, || format!("the counter is still {begun} when the host goes on"))?;
        v.stop()?;
        let [rounds, ..] = running.done()?;
        counted += rounds;
        expect_eq("the counter", &range.host().read_u64(0)?, &counted)?;
        expect_eq("the rounds in the mailbox", &mailbox(v)?.rounds(), &rounds)?;
    }
    match v.hammer(Op::HammerAdd { gva: UNMAPPED.0, pages: 1, limit: 0 }) {
        Err(Stop::Fail(line)) if line.contains("before the first round") => Ok(()),
        Err(stop) => Err(Stop::Fail(format!("hammering unmapped memory: {stop:?}"))),
        Ok(_) => Err(Stop::Fail("hammering unmapped memory has begun".into())),
    }
}
