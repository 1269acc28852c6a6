//! Shadow paging, where KVM keeps a shadow page for each of the guest's page tables, by its GFN and its role.

use privet_harness::case::Case;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::page_tables::{ACCESSED, DIRTY, LARGE, PRESENT, WRITABLE};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::units::{Gva, PAGE_SIZE};
use privet_protocol::{Op, Pattern, Width};

use crate::paging;
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);

const LEAF: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "access.shadow_paging.directory_entry_changes_its_role",
            Types::PLAIN,
            "An entry of a page directory leads to a page table, then it is a 2 MiB page with that table's own GFN, then \
             the table again, read-only, and so on, while all of it is shadowed: the guest finds what its entries say each \
             time, and the kernel has nothing to warn of.",
            changes_its_role,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_get_child_sp, validate_direct_spte", "CVE-2026-23401"])
        .needs(paging::shadow()),
    ]
}

fn changes_its_role(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(512).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    // The first page of the range, whose GFN a 2 MiB page can have, becomes a page table that maps the others.
    for page in 1..512 {
        range.host().write_u64(page * 8, range.gpa(page).0 | LEAF)?;
    }
    range.host().write_u64(0, range.gpa(1).0 | LEAF)?;
    // Nothing is mapped here, and its directory is the range's.
    let window = Gva(range.private_gva(0).0 + (16 << 20));
    let entry = g.directory_entry(window).ok_or_else(|| Stop::Error("the window has no page directory".into()))?;
    let set = |value: u64| {
        // Page tables are mapped at their GPAs. The host could not do it: KVM sees what it writes into a page table, but
        // not what it writes into a directory.
        v.write(Gva(entry.0), Width::B8, value)?;
        // Flushes the TLB and changes nothing.
        v.call(Op::SetPresent { gva: range.private_gva(0).0, pages: 1, present: true }).map(drop)
    };
    let (table, read_only) = (range.gpa(0).0 | PRESENT | WRITABLE | ACCESSED, range.gpa(0).0 | PRESENT | ACCESSED);
    let large = range.gpa(0).0 | LEAF | LARGE;
    for _ in 0..3 {
        for (value, first) in [(table, A.word(1)), (large, range.gpa(1).0 | LEAF), (read_only, A.word(1))] {
            set(value)?;
            v.expect_read(window, Width::B8, first)?;
            v.expect(window + PAGE_SIZE, 3, A, 1)?;
        }
        set(large)?;
        v.write(window + 5 * PAGE_SIZE, Width::B8, 0x5a5a)?;
        set(table)?;
        v.expect_read(window + 5 * PAGE_SIZE, Width::B8, 0x5a5a)?;
        v.write(window + 5 * PAGE_SIZE, Width::B8, A.word(5))?;
    }
    set(0)?;
    range.host_expect(1..512, A)
}
