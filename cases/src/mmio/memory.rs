//! MMIO beside memory, over memory, and before memory.

use std::sync::Arc;

use privet_harness::case::Case;
use privet_harness::guest::{Guest, MMIO_BASE};
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec, TEST_BASE, TEST_SLOT};
use privet_harness::uapi::{Capability, MEM_READONLY};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vendor::Vendor;
use privet_protocol::{Op, Pattern, Width};

use super::cost::{Cost, Meter};
use super::{answer_read, caching, gva, read, read_op, take_write, write, write_op};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const FAULT: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn, handle_mmio_page_fault";
const EMULATOR: &str = "arch/x86/kvm/x86.c: emulator_read_write, emulator_read_write_onepage";
const READ_ONLY: &str = "Documentation/virt/kvm/api.rst 4.35 KVM_MEM_READONLY";

const VALUE: u64 = 0x8877_6655_4433_2211;
const ANSWER: u64 = 0x1f2e_3d4c_5b6a_7988;
const A: Pattern = Pattern(0xaa);

/// Slots over the pages of this group's own making.
const SLOT: u32 = 100;

/// Memory that any VM has.
pub(super) fn ram(pages: u64) -> RangeSpec {
    RangeSpec::new(pages).backing(Backing::HostOnly)
}

/// Pages of memory that a guest with a gap has, one for each vCPU.
const BEFORE_THE_GAP: u64 = 4;

/// The range of a guest with a gap: as much memory as gap, in a slot each.
pub(super) fn ram_and_gap() -> RangeSpec {
    ram(2 * BEFORE_THE_GAP).slots(2)
}

/// Makes the gap. The guest maps memory and gap by one page table, so that an access to the one brings into the
/// nested page tables all that an access to the other needs beside its own page.
pub(super) fn open_gap(g: Guest) -> Outcome<Guest> {
    g.vm().delete_slot(TEST_SLOT + 1)?;
    Ok(g)
}

/// Where the gap starts.
pub(super) const GAP: Gpa = Gpa(TEST_BASE.0 + BEFORE_THE_GAP * PAGE_SIZE);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "mmio.slot_appears_and_goes",
            Types::VISIBLE_REGISTERS,
            "A GPA that was MMIO is memory as soon as a slot covers it, without an exit, and MMIO again when the \
             slot is deleted; the memory keeps its content meanwhile. Three times.",
            slot_appears_and_goes,
        )
        .basis(&[FAULT])
        .upstream("set_memory_region_test: test_move_memory_region"),
        Row::new(
            "mmio.slot_appears.cost",
            Types::VISIBLE_REGISTERS,
            "The first access to memory that has appeared over a cached MMIO page takes one fault, which maps it; \
             nothing is emulated.",
            |t| slot_appears_cost(t, true, Cost::MAPPED),
        )
        .basis(&[FAULT])
        .needs(caching(true)),
        Row::new(
            "mmio.slot_appears.cost_of_fresh_memory.npt",
            Types::VISIBLE_REGISTERS,
            "The first store to memory that nobody has touched, and that has appeared over a cached MMIO page, \
             takes one fault: a nested page fault with a reserved bit says that it is a store.",
            |t| slot_appears_cost(t, false, Cost::MAPPED),
        )
        .basis(&[FAULT, "arch/x86/kvm/svm/svm.c: npf_interception"])
        .needs(caching(true))
        .needs(Need::Vendor(Vendor::Amd, "an EPT misconfiguration does not tell stores from loads")),
        Row::new(
            "mmio.slot_appears.cost_of_fresh_memory.ept",
            Types::VISIBLE_REGISTERS,
            "The first store to memory that nobody has touched, and that has appeared over a cached MMIO page, \
             takes three faults: an EPT misconfiguration does not say that it is a store, so the page of zeros is \
             mapped, read-only; the next one replaces that page in the host, which makes KVM retry; the last \
             maps the new page.",
            |t| slot_appears_cost(t, false, Cost { pf_taken: 3, pf_fixed: 2, ..Cost::NONE }),
        )
        .basis(&[FAULT, "arch/x86/kvm/vmx/vmx.c: handle_ept_misconfig", "arch/x86/kvm/mmu/mmu.c: is_page_fault_stale"])
        .needs(caching(true))
        .needs(Need::Vendor(Vendor::Intel, "a nested page fault tells stores from loads")),
        Row::new(
            "mmio.straddle_ram_then_mmio",
            Types::UNENCRYPTED,
            "An access over the end of memory into MMIO is one exit, for the part in MMIO; the part in memory is \
             read or written there. At every possible split.",
            |t| straddle(t, 0),
        )
        .basis(&[EMULATOR]),
        Row::new(
            "mmio.straddle_mmio_then_ram",
            Types::UNENCRYPTED,
            "An access over the end of MMIO into memory is one exit, for the part in MMIO; the part in memory is \
             read or written there. At every possible split.",
            |t| straddle(t, 1),
        )
        .basis(&[EMULATOR]),
        Row::new(
            "mmio.read_only_slot",
            Types::UNENCRYPTED,
            "A store to a read-only slot is an MMIO exit and changes nothing; loads and code from there are none. \
             The fault is looked into each time: only pages without a slot are cached.",
            read_only_slot,
        )
        .basis(&[READ_ONLY, "virt/kvm/kvm_main.c: __gfn_to_hva_many", "arch/x86/kvm/mmu/mmu.c: kvm_handle_error_pfn"])
        .needs(Need::Capability(Capability::READONLY_MEM, 1)),
        Row::new(
            "mmio.vcpus_at_once",
            Types::ALL,
            "Four vCPUs store to one MMIO address at once: each exits with its own value, and completing one \
             completes no other.",
            vcpus_at_once,
        )
        .basis(&[EMULATOR]),
    ]
}

fn slot_appears_and_goes(t: &Case) -> Outcome {
    let g = t.guest().boot()?;
    let (v, at) = (g.vcpu(0), gva(MMIO_BASE));
    let memory = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    write(v, MMIO_BASE, Width::B8, VALUE)?;
    for round in 1..=3 {
        expect_eq("what the guest read", &read(v, MMIO_BASE, Width::B8, ANSWER)?, &ANSWER)?;
        g.vm().add_slot(SlotSpec::shared(SLOT, MMIO_BASE, PageCount(1), &memory))?;
        let exits = t.trace().exits();
        v.expect_read(at, Width::B8, round - 1)?;
        v.write(at, Width::B8, round)?;
        v.expect_read(at, Width::B8, round)?;
        expect_no_exit_but(t, exits, 3)?;
        expect_eq("the host's view", &memory.read_u64(0)?, &round)?;
        g.vm().delete_slot(SLOT)?;
        write(v, MMIO_BASE, Width::B8, VALUE)?;
        expect_eq("the host's view", &memory.read_u64(0)?, &round)?;
    }
    Ok(())
}

/// `is_touched`: the host has written to the memory before. `first_store` is the cost of the guest's first store.
fn slot_appears_cost(t: &Case, is_touched: bool, first_store: Cost) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let (v, meter) = (g.vcpu(0), Meter::new(&g, 0)?);
    let memory = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    if is_touched {
        memory.write_u64(0, VALUE)?;
    }
    meter.expect_read("the first load from MMIO", GAP, Cost::FIRST)?;
    meter.expect_read("the second load from MMIO", GAP, Cost::CACHED)?;
    g.vm().add_slot(SlotSpec::shared(SLOT, GAP, PageCount(1), &memory))?;
    let store = || v.write(gva(GAP), Width::B8, VALUE);
    meter.expect("the first store to memory", first_store, store)?;
    meter.expect("the second store to memory", Cost::NONE, store)?;
    g.vm().delete_slot(SLOT)?;
    meter.expect_read("the first load from MMIO again", GAP, Cost::FIRST)?;
    meter.expect_read("the second load from MMIO again", GAP, Cost::CACHED)
}

/// Two pages, of which page `memory` has a slot.
fn half_without_slot(t: &Case, memory: u64) -> Outcome<Guest> {
    let g = t.guest().range(ram(2).slots(2)).boot()?;
    g.vm().delete_slot(TEST_SLOT + 1 - memory as u32)?;
    Ok(g)
}

fn straddle(t: &Case, memory: u64) -> Outcome {
    let g = half_without_slot(t, memory)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    for width in [Width::B2, Width::B4, Width::B8] {
        for below in 1..width.bytes() {
            let (start, above) = (PAGE_SIZE - below, width.bytes() - below);
            let at = range.gpa(0) + start;
            // KVM remembers the last page that was MMIO: before each, another one is.
            let elsewhere = || read(v, MMIO_BASE, Width::B8, ANSWER).map(drop);
            // Of the access: the part in MMIO and the part in memory, as (first byte, number of bytes).
            let ((mmio, mmio_len), (ram, ram_len)) =
                if memory == 0 { ((below, above), (0, below)) } else { ((0, below), (below, above)) };
            let part = |value: u64, first: u64, len: u64| value >> (8 * first) & (u64::MAX >> (64 - 8 * len));
            let in_memory = || {
                let mut bytes = [0; 8];
                range.host().read(start + ram, &mut bytes[..ram_len as usize])?;
                Ok::<_, Stop>(u64::from_le_bytes(bytes))
            };

            range.host_fill(range.all(), A)?;
            elsewhere()?;
            let running = v.start(write_op(at, width, VALUE))?;
            take_write(&running, at + mmio, mmio_len, part(VALUE, mmio, mmio_len))?;
            running.done()?;
            expect_eq("the part in memory", &in_memory()?, &part(VALUE, ram, ram_len))?;
            expect_untouched(&g, start + ram..start + ram + ram_len)?;

            elsewhere()?;
            let running = v.start(read_op(at, width))?;
            answer_read(&running, v, at + mmio, mmio_len, ANSWER)?;
            let [value, ..] = running.done()?;
            let expected = part(ANSWER, 0, mmio_len) << (8 * mmio) | part(VALUE, ram, ram_len) << (8 * ram);
            expect_eq("what the guest assembled", &value, &expected)?;
        }
    }
    Ok(())
}

/// Expects the host's view of both pages to hold the pattern everywhere but in `written`.
fn expect_untouched(g: &Guest, written: std::ops::Range<u64>) -> Outcome {
    let range = g.range(0);
    let mut bytes = vec![0; 2 * PAGE_SIZE as usize];
    range.host().read(0, &mut bytes)?;
    let differing = (0..2 * PAGE_SIZE)
        .filter(|at| !written.contains(at))
        .find(|at| bytes[*at as usize] != A.word(at / PAGE_SIZE).to_le_bytes()[(at % 8) as usize]);
    expect_eq("the first byte beside the access that has changed", &differing, &None)
}

/// `lea rax, [rdi + 1]; ret`
const ADD_ONE: [u8; 5] = [0x48, 0x8d, 0x47, 1, 0xc3];

fn read_only_slot(t: &Case) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).boot()?)?;
    let (v, meter) = (g.vcpu(0), Meter::new(&g, 0)?);
    let memory = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    memory.write(0, &ADD_ONE)?;
    memory.write_u64(8, ANSWER)?;
    let spec = SlotSpec::shared(SLOT, GAP, PageCount(1), &memory);
    g.vm().add_slot(SlotSpec { flags: MEM_READONLY, ..spec })?;
    let load = || v.expect_read(gva(GAP) + 8, Width::B8, ANSWER);
    meter.expect("the first load", Cost::MAPPED, load)?;
    for _ in 0..3 {
        meter.expect_write("a store", GAP + 8, Cost::UNCACHED)?;
        meter.expect("a load", Cost::NONE, load)?;
    }
    let exits = t.trace().exits();
    let [sum, ..] = v.call(Op::Execute { gva: gva(GAP).0, argument: 41 })?;
    expect_eq("what the code in the slot returned", &sum, &42)?;
    expect_no_exit_but(t, exits, 1)?;
    expect_eq("the host's view", &memory.read_u64(8)?, &ANSWER)
}

fn vcpus_at_once(t: &Case) -> Outcome {
    let g = t.guest().vcpus(4).boot()?;
    let at = Gpa(MMIO_BASE.0 + 0x40);
    for round in 0..20 {
        let value = |index: usize| VALUE.rotate_left(8 * index as u32) ^ round;
        let stores = g.vcpus().iter().enumerate();
        let running =
            stores.map(|(index, v)| v.start(write_op(at, Width::B8, value(index)))).collect::<Outcome<Vec<_>>>()?;
        for (index, running) in running.into_iter().enumerate().rev() {
            take_write(&running, at, 8, value(index))?;
            running.done()?;
        }
    }
    Ok(())
}
