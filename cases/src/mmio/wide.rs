//! Accesses that are longer than an exit can tell: one exit for each 8 bytes of a page.

use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::uapi::Capability;
use privet_harness::units::{Gpa, PAGE_SIZE};
use privet_protocol::{Op, Width};

use super::cost::Meter;
use super::memory::{GAP, open_gap, ram, ram_and_gap};
use super::{answer_read, gva, take_write};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const FRAGMENTS: &str = "arch/x86/kvm/x86.c: emulator_read_write_onepage, complete_emulated_mmio: vcpu->mmio_fragments";

pub(super) const LOW: u64 = 0x8877_6655_4433_2211;
pub(super) const HIGH: u64 = 0x1f2e_3d4c_5b6a_7988;

pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "mmio.wide_write",
            Types::UNENCRYPTED,
            "A store of 16 bytes is two exits of 8 bytes; over the edge between two pages each page's part is \
             split so. It counts as one exit of an instruction.",
            wide_writes,
        ),
        Row::new(
            "mmio.wide_read",
            Types::UNENCRYPTED,
            "A load of 16 bytes is two exits of 8 bytes; over the edge between two pages each page's part is \
             split so, and the guest gets all answers as one value.",
            wide_reads,
        ),
        Row::new(
            "mmio.wide_read.of_the_io_apic",
            Types::UNENCRYPTED,
            "A load of 16 bytes from KVM's own I/O APIC is no exit, and two reads of 8 bytes each: which register is \
             selected, and nothing; one of 4 bytes has the register, too.",
            wide_read_of_the_io_apic,
        )
        .basis(&["arch/x86/kvm/x86.c: vcpu_mmio_read", "arch/x86/kvm/ioapic.c: ioapic_mmio_read"])
        .needs(Need::Capability(Capability::IOAPIC_POLARITY_IGNORED, 1)),
    ];
    rows.into_iter().map(|row| row.basis(&[FRAGMENTS])).collect()
}

/// `mov rax, LOW; movq xmm0, rax; mov rax, HIGH; movq xmm1, rax; punpcklqdq xmm0, xmm1; movups [rdi], xmm0; ret`
pub(super) fn store_function() -> Vec<u8> {
    let mut code = vec![0x48, 0xb8];
    code.extend(LOW.to_le_bytes());
    code.extend([0x66, 0x48, 0x0f, 0x6e, 0xc0, 0x48, 0xb8]);
    code.extend(HIGH.to_le_bytes());
    code.extend([0x66, 0x48, 0x0f, 0x6e, 0xc8, 0x66, 0x0f, 0x6c, 0xc1, 0x0f, 0x11, 0x07, 0xc3]);
    code
}

/// `movups xmm0, [rdi]; movq rax, xmm0; psrldq xmm0, 8; movq rcx, xmm0; rol rcx, 1; xor rax, rcx; ret`
const LOAD_FUNCTION: [u8; 25] = [
    0x0f, 0x10, 0x07, 0x66, 0x48, 0x0f, 0x7e, 0xc0, 0x66, 0x0f, 0x73, 0xd8, 0x08, 0x66, 0x48, 0x0f, 0x7e, 0xc1, 0x48,
    0xd1, 0xc1, 0x48, 0x31, 0xc8, 0xc3,
];

/// What [`LOAD_FUNCTION`] makes of 16 bytes.
fn folded(bytes: u128) -> u64 {
    bytes as u64 ^ ((bytes >> 64) as u64).rotate_left(1)
}

/// The edge between two pages of the gap.
const EDGE: Gpa = Gpa(GAP.0 + 2 * PAGE_SIZE);

/// An access of 16 bytes that has `before` of them below the edge, as the exits that it is: GPA, first byte of
/// the 16, number of bytes.
fn exits(before: u64) -> Vec<(Gpa, u64, u64)> {
    let mut exits = Vec::new();
    for (mut from, to) in [(0, before), (before, 16)] {
        while from < to {
            let len = (to - from).min(8);
            exits.push((Gpa(EDGE.0 - before + from), from, len));
            from += len;
        }
    }
    exits
}

/// `len` bytes of `bytes` from the byte `first` on.
fn part(bytes: u128, first: u64, len: u64) -> u64 {
    (bytes >> (8 * first)) as u64 & (u64::MAX >> (64 - 8 * len))
}

fn wide_writes(t: &Case) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let (v, code) = (g.vcpu(0), g.range(0).private_gva(1));
    v.write_bytes(code, &store_function())?;
    let all = u128::from(HIGH) << 64 | u128::from(LOW);
    let store = |before: u64| {
        let running = v.start(Op::Execute { gva: code.0, argument: gva(EDGE).0 - before })?;
        for (gpa, first, len) in exits(before) {
            take_write(&running, gpa, len, part(all, first, len))?;
        }
        running.done().map(drop)
    };
    (0..=16).try_for_each(store)?;
    let meter = Meter::new(&g, 0)?;
    for (what, before) in [("two parts", 0), ("three parts", 3)] {
        let cost = meter.cost(|| store(before))?;
        expect_eq(&format!("mmio_exits of a store of {what}"), &cost.mmio_exits, &1)?;
    }
    Ok(())
}

fn wide_read_of_the_io_apic(t: &Case) -> Outcome {
    const IO_APIC: Gpa = Gpa(0xfec0_0000);
    const REGISTER: u64 = 0x17;
    let g = t.guest().irqchip().range(ram_and_gap()).range(ram(1).at(IO_APIC)).boot()?;
    // The guest maps it like memory, and no slot is there.
    g.vm().delete_slot(g.range(1).slots()[0].slot)?;
    let (v, code, at) = (g.vcpu(0), g.range(0).private_gva(1), g.range(1).shared_gva(0));
    v.write_bytes(code, &LOAD_FUNCTION)?;
    let exits = t.trace().exits();
    v.write(at, Width::B4, REGISTER)?;
    let [value, ..] = v.call(Op::Execute { gva: code.0, argument: at.0 })?;
    expect_eq("what the guest made of the load", &value, &folded(REGISTER.into()))?;
    v.expect_read(at, Width::B4, REGISTER)?;
    expect_no_exit_but(t, exits, 3)
}

fn wide_reads(t: &Case) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let (v, code) = (g.vcpu(0), g.range(0).private_gva(1));
    v.write_bytes(code, &LOAD_FUNCTION)?;
    for before in 0..=16 {
        let running = v.start(Op::Execute { gva: code.0, argument: gva(EDGE).0 - before })?;
        let mut expected = 0;
        for (index, (gpa, first, len)) in exits(before).into_iter().enumerate() {
            let answer = LOW.rotate_left(8 * index as u32 + before as u32);
            answer_read(&running, v, gpa, len, answer)?;
            expected |= u128::from(part(answer.into(), 0, len)) << (8 * first);
        }
        let [value, ..] = running.done()?;
        expect_eq(&format!("what the guest made of a load with {before} bytes below"), &value, &folded(expected))?;
    }
    Ok(())
}
