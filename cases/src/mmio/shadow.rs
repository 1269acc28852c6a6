//! Shadow paging, where KVM builds the SPTEs from the guest's own page tables, which userspace can change too.

use privet_harness::case::Case;
use privet_harness::guest::MMIO_BASE;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::uapi::MEM_LOG_DIRTY_PAGES;
use privet_harness::units::PAGE_SIZE;
use privet_protocol::{Op, Width};

use super::memory::ram;
use super::take_write;
use crate::expect::expect_eq;
use crate::paging;
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "mmio.remapped_under_shadow_paging",
            Types::PLAIN,
            "Userspace turns a guest page-table entry from memory to MMIO while its SPTE is present and write-protected: \
             the guest's store is an MMIO exit, the memory is untouched, and the way back works.",
            remapped,
        )
        .basis(&["CVE-2026-23401, commit aad885e77496", "arch/x86/kvm/mmu/mmu.c: mmu_set_spte"])
        .needs(paging::shadow()),
    ]
}

fn remapped(t: &Case) -> Outcome {
    let g = t.guest().range(ram(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let gva = range.private_gva(0);
    v.write(gva, Width::B8, 1)?;
    // Takes the right to write from the SPTE, which stays present.
    g.vm().add_slot(SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..range.slots()[0].clone() })?;
    let entry = v.read_entry(gva)?;
    g.set_entry_behind_the_guest(gva, (entry % PAGE_SIZE) | MMIO_BASE.0)?;
    for value in [2, 3] {
        let running = v.start(Op::Write { gva: gva.0, width: Width::B8, value })?;
        take_write(&running, MMIO_BASE, 8, value)?;
        running.done()?;
    }
    expect_eq("the memory", &range.host().read_u64(0)?, &1)?;
    g.set_entry_behind_the_guest(gva, entry)?;
    // The guest changes nothing in the entry, and flushes its TLB.
    v.call(Op::SetPresent { gva: gva.0, pages: 1, present: true })?;
    v.write(gva, Width::B8, 4)?;
    expect_eq("the memory", &range.host().read_u64(0)?, &4)
}
