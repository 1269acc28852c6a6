//! Which slot has which range of a guest_memfd.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{RangeSpec, TEST_BASE};
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_protocol::Pattern;

use super::parts::{Parts, Region, SIZE, SLOT};
use crate::expect::expect_ok;
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const BIND: &str = "virt/kvm/guest_memfd.c: kvm_gmem_commit_memory_region";
const MIXED: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_init_memslot_memory_attributes";

/// Rows without guests.
pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "slots.double_bind",
            Types::ALL,
            "A page of a guest_memfd belongs to one slot at most: a second slot over the same pages or some of \
             them is EEXIST; over others, or after the first is deleted, it is fine.",
            double_bind,
        )
        .basis(&[BIND])
        .fixed_since(
            (7, 2),
            "KVM guest_memfd changes for 7.2: the errno of a double binding",
            "the same pages: failed with EINVAL, expected EEXIST",
        )
        .upstream("set_memory_region_test: test_add_overlapping_private_memory_regions"),
        Row::new(
            "slots.failed_creation_binds_nothing",
            Types::ALL,
            "A slot that is refused after its guest_memfd was looked at leaves the file's pages free.",
            failed_creation_binds_nothing,
        )
        .basis(&[BIND, "commits 513333a55460, 83411f32b8ad: bindings visible too early"]),
    ]
}

/// Rows with guests.
pub(super) fn guest_rows() -> Vec<Row> {
    vec![
        Row::new(
            "slots.over_private_gfns",
            Types::UPM,
            "A slot that is made over GPAs that are private already is private from the first access on, page \
             by page.",
            over_private_gfns,
        )
        .basis(&[MIXED, "virt/kvm/kvm_main.c: mem_attr_array"]),
        Row::new(
            "slots.every_page_of_the_file_anywhere",
            Types::UPM,
            "100 times a slot binds another page of the file at another GPA: the guest finds there what it wrote \
             into that page.",
            every_page_of_the_file_anywhere,
        )
        .basis(&[BIND, "virt/kvm/guest_memfd.c: kvm_gmem_get_index, kvm_gmem_unbind"]),
    ]
}

fn double_bind(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let first = Region { guest_memfd_offset: SIZE, ..parts.region() };
    expect_ok("the first slot", parts.set(first))?;
    let second = |guest_memfd_offset, memory_size| Region {
        slot: SLOT + 1,
        guest_phys_addr: TEST_BASE.0 + 4 * SIZE,
        guest_memfd_offset,
        memory_size,
        ..parts.region()
    };
    for (what, offset, size) in [
        ("the same pages", SIZE, SIZE),
        ("the first page", SIZE, PAGE_SIZE),
        ("the last page", 2 * SIZE - PAGE_SIZE, PAGE_SIZE),
        ("pages over the start", SIZE - PAGE_SIZE, 2 * PAGE_SIZE),
        ("pages over the end", 2 * SIZE - PAGE_SIZE, 2 * PAGE_SIZE),
        ("all of the file", 0, 4 * SIZE),
    ] {
        parts.refuses(what, second(offset, size), Errno::EEXIST)?;
    }
    parts.accepts("the pages before", second(0, SIZE))?;
    parts.accepts("the pages after", second(2 * SIZE, SIZE))?;
    expect_ok("deleting the first slot", parts.delete(SLOT))?;
    parts.accepts("the same pages, once they are free", second(SIZE, SIZE))?;
    expect_ok("the first slot again", parts.set(first))
}

fn failed_creation_binds_nothing(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    for _ in 0..10 {
        let unreachable = Region { guest_phys_addr: 1 << 52, ..parts.region() };
        parts.refuses("a slot where no CPU reaches", unreachable, Errno::EINVAL)?;
        parts.accepts("the same pages where CPUs reach", parts.region())?;
    }
    Ok(())
}

fn over_private_gfns(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(8)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = &range.slots()[0];
    range.host_fill(range.all(), A)?;
    g.vm().delete_slot(slot.slot)?;
    range.set_private(g.vm(), 2..5)?;
    range.set_private(g.vm(), 7..8)?;
    g.vm().add_slot(slot.clone())?;
    for page in 0..8 {
        let private = (2..5).contains(&page) || page == 7;
        v.expect(range.private_gva(page), 1, if private { Pattern::ZERO } else { A }, page)?;
    }
    v.fill(range.private_gva(0), 8, B, 0)?;
    for page in 0..8 {
        let private = (2..5).contains(&page) || page == 7;
        range.host_expect(page..page + 1, if private { A } else { B })?;
    }
    Ok(())
}

fn every_page_of_the_file_anywhere(t: &Case) -> Outcome {
    const PAGES: u64 = 16;
    let g = t.guest().range(RangeSpec::new(PAGES)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let whole = &range.slots()[0];
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(0), PAGES, B, 0)?;
    g.vm().delete_slot(whole.slot)?;
    for round in 0..100 {
        // 7 and 5 have no factor with 16 in common: every page comes to every GPA.
        let (file_page, gpa_page) = (round * 7 % PAGES, (round * 5 + round / PAGES) % PAGES);
        g.vm().add_slot(SlotSpec {
            gpa: range.gpa(gpa_page),
            pages: PageCount(1),
            gmem: Some((range.gmem()?.clone(), file_page * PAGE_SIZE)),
            ..whole.clone()
        })?;
        v.expect(range.private_gva(gpa_page), 1, B, file_page)?;
        g.vm().delete_slot(whole.slot)?;
    }
    Ok(())
}
