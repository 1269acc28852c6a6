//! What KVM remembers of an MMIO page, when it forgets it, and what that costs.

use std::sync::Arc;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::guest::{Guest, GuestBuilder};
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::RangeSpec;
use privet_harness::uapi::{Capability, MEM_LOG_DIRTY_PAGES};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_protocol::{Op, Width};

use super::cost::{Cost, Meter};
use super::memory::{GAP, open_gap, ram_and_gap};
use super::{caching, gva};
use crate::expect::expect_errno;
use crate::row::Row;
use crate::types::Types;

const CACHE: &str = "arch/x86/kvm/mmu/mmu.c: handle_mmio_page_fault, mark_mmio_spte, check_mmio_spte";
const NO_CACHE: &str = "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault without enable_mmio_caching";
const GENERATION: &str = "virt/kvm/kvm_main.c: kvm_swap_active_memslots";

/// Two pages of MMIO.
const A: Gpa = GAP;
const B: Gpa = Gpa(GAP.0 + 3 * PAGE_SIZE);

/// A place that has nothing to do with anything.
const ELSEWHERE: Gpa = Gpa(0x8_0000_0000);
const ELSEWHERE_SLOT: u32 = 100;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "mmio.second_access_is_cached",
            Types::ALL,
            "The first access to an MMIO page takes a fault and leaves an MMIO SPTE; every later one, load or \
             store, anywhere in the page, is emulated at once.",
            second_access_is_cached,
        )
        .basis(&[CACHE])
        .needs(caching(true)),
        Row::new(
            "mmio.two_pages_stay_cached",
            Types::ALL,
            "Accesses that alternate between two pages evict the vCPU's own one-entry cache and not the SPTEs: \
             two are created in total.",
            two_pages_stay_cached,
        )
        .basis(&[CACHE, "arch/x86/kvm/x86.h: vcpu_cache_mmio_info"])
        .needs(caching(true)),
        Row::new(
            "mmio.slot_changes_end_the_cache",
            Types::VISIBLE_REGISTERS,
            "Adding, flagging, moving and deleting a slot elsewhere makes the next access look again, once each; a \
             refused change does not.",
            slot_changes_end_the_cache,
        )
        .basis(&[CACHE, GENERATION])
        .needs(caching(true)),
        Row::new(
            "mmio.vcpus_share_the_cache",
            Types::ALL,
            "Of four vCPUs the first to touch an MMIO page creates its SPTE, and the others start with it; after \
             a change of the slots it is so again.",
            vcpus_share_the_cache,
        )
        .basis(&[CACHE])
        .needs(caching(true)),
        Row::new(
            "mmio.mapping_ahead_caches",
            Types::ALL,
            "KVM_PRE_FAULT_MEMORY of a page without a slot fails with ENOENT and leaves an MMIO SPTE all the same: \
             the guest's first access finds the page cached.",
            mapping_ahead_caches,
        )
        .basis(&[CACHE, "arch/x86/kvm/mmu/mmu.c: kvm_tdp_page_prefault, RET_PF_EMULATE"])
        .needs(caching(true))
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
        Row::new(
            "mmio.nothing_is_cached",
            Types::VISIBLE_REGISTERS,
            "With caching off every access takes the whole way through the fault handler, and no MMIO SPTE is \
             ever created.",
            nothing_is_cached,
        )
        .basis(&[NO_CACHE])
        .needs(caching(false)),
        Row::new(
            "mmio.attribute_changes_keep_the_cache",
            Types::UPM,
            "Attributes and guest_memfd do not count as changes of the slots: conversions, allocations and holes \
             elsewhere leave MMIO SPTEs valid.",
            attribute_changes_keep_the_cache,
        )
        .basis(&[CACHE, "virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes"])
        .needs(caching(true)),
        Row::new(
            "mmio.generation_wraps",
            Types::PLAIN,
            "An MMIO SPTE keeps 18 bits of the slots' generation. After exactly so many changes that the bits are the \
             same again, the page that has become memory meanwhile is memory: the wrap zaps everything.",
            generation_wraps,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_invalidate_mmio_sptes", "commit e1359e2beb8b", GENERATION])
        .needs(caching(true)),
    ]
}

/// A guest with memory, and with pages of MMIO beside it.
fn guest(builder: GuestBuilder<'_>) -> Outcome<Guest> {
    open_gap(builder.range(ram_and_gap()).boot()?)
}

fn elsewhere() -> Outcome<SlotSpec> {
    Ok(SlotSpec::shared(ELSEWHERE_SLOT, ELSEWHERE, PageCount(1), &Arc::new(Mapping::anonymous(PAGE_SIZE)?)))
}

/// Adds a slot that has nothing to do with anything.
pub(super) fn add_elsewhere(g: &Guest) -> Outcome {
    g.vm().add_slot(elsewhere()?).map(drop)
}

fn second_access_is_cached(t: &Case) -> Outcome {
    let g = guest(t.guest())?;
    let meter = Meter::new(&g, 0)?;
    meter.expect_read("the first load", A, Cost::FIRST)?;
    for offset in [0, 8, 0x7fc, PAGE_SIZE - 8] {
        meter.expect_read("a later load", A + offset, Cost::CACHED)?;
        meter.expect_write("a later store", A + offset, Cost::CACHED)?;
    }
    meter.expect_write("the first store to another page", B, Cost::FIRST)?;
    meter.expect_read("a load after a store", B, Cost::CACHED)?;
    meter.expect_write("a second store", B, Cost::CACHED)
}

fn two_pages_stay_cached(t: &Case) -> Outcome {
    let g = guest(t.guest())?;
    let meter = Meter::new(&g, 0)?;
    for expected in [Cost::FIRST, Cost::CACHED, Cost::CACHED, Cost::CACHED] {
        meter.expect_read("page A", A, expected)?;
        meter.expect_read("page B", B, expected)?;
    }
    Ok(())
}

fn slot_changes_end_the_cache(t: &Case) -> Outcome {
    let g = guest(t.guest())?;
    let meter = Meter::new(&g, 0)?;
    let slot = elsewhere()?;
    let flagged = SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..slot.clone() };
    let moved = SlotSpec { gpa: ELSEWHERE + PageCount(1), ..slot.clone() };
    let looks_again = |change: &str| {
        meter.expect_read(&format!("the first load after {change}"), A, Cost::FIRST)?;
        meter.expect_read(&format!("the second load after {change}"), A, Cost::CACHED)
    };
    looks_again("nothing")?;
    for (change, spec) in [("adding a slot", &slot), ("logging its writes", &flagged), ("moving it", &moved)] {
        let spec =
            SlotSpec { flags: if change == "moving it" { MEM_LOG_DIRTY_PAGES } else { spec.flags }, ..spec.clone() };
        g.vm().add_slot(spec)?;
        looks_again(change)?;
    }
    let overlapping = SlotSpec { slot: ELSEWHERE_SLOT + 1, ..moved.clone() };
    let refused = g.vm().set_user_memory_region2_raw(&overlapping.region(), overlapping.mapping.as_ref());
    expect_errno("adding a slot over another", refused, Errno::EEXIST)?;
    meter.expect_read("a load after a refused change", A, Cost::CACHED)?;
    g.vm().delete_slot(ELSEWHERE_SLOT)?;
    looks_again("deleting it")
}

fn vcpus_share_the_cache(t: &Case) -> Outcome {
    let g = guest(t.guest().vcpus(4))?;
    let meters = (0..4).map(|index| Meter::new(&g, index)).collect::<Outcome<Vec<_>>>()?;
    let first_pays = |first: usize| {
        for index in (first..4).chain(0..first) {
            let expected = if index == first { Cost::FIRST } else { Cost::CACHED };
            meters[index].expect_write(&format!("the first store of vCPU {index}"), A, expected)?;
        }
        Ok(())
    };
    first_pays(0)?;
    if !Types::VISIBLE_REGISTERS.contain(t.platform()) {
        // What they have cached they never look up again.
        return Ok(());
    }
    add_elsewhere(&g)?;
    first_pays(2)
}

fn mapping_ahead_caches(t: &Case) -> Outcome {
    let g = guest(t.guest())?;
    let (vcpu, meter) = (g.vcpu(0).kvm(), Meter::new(&g, 0)?);
    meter.expect("mapping nothing ahead", Cost { pf_mmio_spte_created: 1, ..Cost::NONE }, || {
        // The meter takes the cost of an operation off, so there has to be one.
        g.vcpu(0).call(Op::Nop)?;
        expect_errno("KVM_PRE_FAULT_MEMORY without a slot", vcpu.pre_fault(A, PageCount(1))?.result, Errno::ENOENT)
    })?;
    meter.expect_read("the first load", A, Cost::CACHED)?;
    meter.expect_write("the first store to the next page", A + PageCount(1), Cost::FIRST)
}

fn nothing_is_cached(t: &Case) -> Outcome {
    let g = guest(t.guest())?;
    let meter = Meter::new(&g, 0)?;
    for _ in 0..3 {
        meter.expect_read("a load", A, Cost::UNCACHED)?;
        meter.expect_write("a store", A, Cost::UNCACHED)?;
        meter.expect_read("a load from another page", B, Cost::UNCACHED)?;
    }
    add_elsewhere(&g)?;
    meter.expect_read("a load after a slot was added", A, Cost::UNCACHED)
}

fn attribute_changes_keep_the_cache(t: &Case) -> Outcome {
    let g = open_gap(t.guest().range(ram_and_gap()).range(RangeSpec::new(2).at(ELSEWHERE)).boot()?)?;
    let (meter, range) = (Meter::new(&g, 0)?, g.range(1));
    meter.expect_read("the first load", A, Cost::FIRST)?;
    let cached = |what: &str| meter.expect_read(&format!("a load after {what}"), A, Cost::CACHED);
    range.set_private(g.vm(), 0..1)?;
    cached("a conversion to private")?;
    range.allocate(0..2)?;
    cached("an allocation")?;
    range.punch(0..2)?;
    cached("a hole")?;
    range.set_shared(g.vm(), 0..1)?;
    cached("a conversion to shared")?;
    g.vm().set_private(A + PageCount(1), PageCount(1))?;
    cached("a conversion of the next page, which has no slot either")
}

/// By how much one change of a slot advances the generation of a plain VM: it has two sets of slots, one for
/// system management mode, whose generations must differ.
const STEP: u64 = 2;
/// What an MMIO SPTE holds of the generation.
const GENERATION_BITS: u32 = 18;

fn generation_wraps(t: &Case) -> Outcome {
    let g = guest(t.guest())?;
    let (v, meter) = (g.vcpu(0), Meter::new(&g, 0)?);
    let (slot, memory) = (elsewhere()?, Arc::new(Mapping::anonymous(PAGE_SIZE)?));
    memory.write_u64(0, 0x5a5a)?;
    let all = (1 << GENERATION_BITS) / STEP;
    g.vm().add_slot(slot.clone())?;
    meter.expect_read("the first load", A, Cost::FIRST)?;
    meter.expect_read("the second load", A, Cost::CACHED)?;
    // The flag is the one change that leaves every SPTE alone: what removes the stale one is the wrap.
    for change in 1..all {
        let flags = if change % 2 == 1 { MEM_LOG_DIRTY_PAGES } else { 0 };
        g.vm().add_slot(SlotSpec { flags, ..slot.clone() })?;
    }
    // The last change: the generation is the SPTE's.
    g.vm().add_slot(SlotSpec::shared(ELSEWHERE_SLOT + 1, A, PageCount(1), &memory))?;
    v.expect_read(gva(A), Width::B8, 0x5a5a)
}
