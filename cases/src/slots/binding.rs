//! Which slot has which range of a guest_memfd.

use std::sync::Arc;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::mapping::{MapOptions, Mapping};
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec, TEST_BASE};
use privet_harness::uapi::MEM_LOG_DIRTY_PAGES;
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_protocol::{Pattern, Width};

use super::parts::{Parts, Region, SIZE, SLOT};
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;

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
        Row::new(
            "slots.huge_page_beside_a_private_page",
            Types::UPM,
            "Shared memory is mapped by a 2 MiB page only while all of it is shared: one private page takes it \
             away and its neighbours are mapped by 4 KiB pages; all shared again, the huge page is back.",
            huge_page_beside_a_private_page,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: hugepage_set_mixed, kvm_arch_post_set_memory_attributes", MIXED]),
        Row::new(
            "slots.huge_page_not_over_private_gfns",
            Types::UPM,
            "A slot that is made over a 2 MiB range with one private page in it is not mapped by a huge page.",
            huge_page_not_over_private_gfns,
        )
        .basis(&[MIXED]),
        Row::new(
            "slots.dirty_log",
            Types::ALL,
            "The dirty log of a slot without a guest_memfd tells exactly the pages that the guest wrote since \
             it was asked last; without the flag there is none: ENOENT.",
            dirty_log,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_get_dirty_log_protect", "Documentation/virt/kvm/api.rst 4.8"]),
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

/// A guest whose 2 MiB of test range have host memory that can be mapped by one huge page, and no slot yet.
fn huge(t: &Case) -> Outcome<(Guest, SlotSpec)> {
    let g = t.guest().range(RangeSpec::new(LARGE)).boot()?;
    let range = g.range(0);
    let bytes = PageCount(LARGE).bytes();
    let memory = Arc::new(Mapping::anonymous_with(bytes, MapOptions::new().huge_pages(true).aligned(bytes))?);
    memory.fill(0, bytes, 0)?;
    // Everything that the guest needs to get there, its page tables included, is mapped from here on.
    g.vcpu(0).read(range.private_gva(0), Width::B8)?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    let slot = SlotSpec { mapping: Some(memory), ..range.slots()[0].clone() };
    Ok((g, slot))
}

fn huge_page_beside_a_private_page(t: &Case) -> Outcome {
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let counters = Counters::of_vm(&g)?;
    let read = |page| v.read(range.private_gva(page), Width::B8).map(drop);
    g.vm().add_slot(slot)?;

    let before = counters.get("pages_2m")?;
    read(0)?;
    if counters.get("pages_2m")? == before {
        return Err(Stop::Skip(
            "this host did not give a huge page; free memory, or enable transparent huge pages".into(),
        ));
    }
    counters.expect_growth("pages_2m", -1, || range.set_private(g.vm(), 3..4))?;
    counters.expect_growth("pages_2m", 0, || {
        counters.expect_growth("pages_4k", 4, || (0..4).chain(0..4).try_for_each(read))
    })?;
    range.set_shared(g.vm(), 3..4)?;
    counters.expect_growth("pages_2m", 1, || (0..4).chain([511]).try_for_each(read))
}

fn huge_page_not_over_private_gfns(t: &Case) -> Outcome {
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let counters = Counters::of_vm(&g)?;
    range.set_private(g.vm(), 511..512)?;
    g.vm().add_slot(slot)?;
    counters.expect_growth("pages_2m", 0, || {
        counters.expect_growth("pages_4k", 3, || {
            [0, 1, 511].into_iter().try_for_each(|page| v.read(range.private_gva(page), Width::B8).map(drop))
        })
    })
}

fn dirty_log(t: &Case) -> Outcome {
    const PAGES: u64 = 8;
    let g = t.guest().range(RangeSpec::new(PAGES).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = &range.slots()[0];
    let log = || g.vm().dirty_log(slot.slot, PageCount(PAGES));
    let set_flags = |flags| {
        let region = Region { flags, ..slot.region() };
        expect_ok("changing the flags", g.vm().set_user_memory_region2_raw(&region, Some(range.host())))
    };
    expect_errno("the dirty log of a slot without one", log(), Errno::ENOENT)?;
    v.fill(range.shared_gva(0), PAGES, A, 0)?;
    set_flags(MEM_LOG_DIRTY_PAGES)?;
    for pages in [&[1, 3][..], &[], &[0, 1, 7]] {
        for &page in pages {
            v.fill(range.shared_gva(page), 1, B, page)?;
        }
        v.read(range.shared_gva(5), Width::B8)?;
        let written = pages.iter().fold(0, |bits, page| bits | 1 << page);
        expect_eq("the dirty pages", &expect_ok("KVM_GET_DIRTY_LOG", log())?, &vec![written])?;
    }
    set_flags(0)?;
    expect_errno("the dirty log once it was switched off", log(), Errno::ENOENT)
}
