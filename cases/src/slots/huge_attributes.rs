//! Huge pages and attributes: which 2 MiB pages a change of attributes takes away, and which come back.

use std::ops::Range;

use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::RangeSpec;
use privet_harness::units::PageCount;
use privet_protocol::Width;

use super::huge_pages::{huge_memory, no_huge_page};
use super::parts::bytes;
use crate::counters::Counters;
use crate::row::Row;
use crate::types::Types;

/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;
/// Pages of the test range: four huge pages.
const PAGES: u64 = 4 * LARGE;

/// Ranges of pages that meet huge pages in each way: at one of their ends, over the end of one, and all of one or several.
const RANGES: [Range<u64>; 12] = [
    0..1,
    LARGE - 1..LARGE,
    LARGE..LARGE + 1,
    LARGE + 100..LARGE + 200,
    2 * LARGE - 1..2 * LARGE + 1,
    LARGE..2 * LARGE,
    LARGE..2 * LARGE + 1,
    LARGE - 1..2 * LARGE,
    LARGE - 1..3 * LARGE + 1,
    LARGE + 1..3 * LARGE - 1,
    PAGES - 1..PAGES,
    0..PAGES,
];

const PRE: &str = "arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes";
const POST: &str = "arch/x86/kvm/mmu/mmu.c: kvm_arch_post_set_memory_attributes, hugepage_has_attrs";
const INIT: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_init_memslot_memory_attributes";

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "slots.huge_page.attributes",
            Types::UPM,
            "A change of attributes takes away exactly the 2 MiB pages that it touches, wherever it begins and ends, and the \
             change back those alone comes back by which all of their pages are shared again.",
            |t| attributes(t, 0..PAGES),
        )
        .basis(&[PRE, POST]),
        Row::new(
            "slots.huge_page.attributes.across_the_slot",
            Types::UPM,
            "The same where the range begins before the slot and ends behind it, and the slot itself begins and ends in the \
             middle of a huge page, which it cannot have.",
            |t| attributes(t, LARGE / 2..PAGES - LARGE / 2),
        )
        .basis(&[PRE, POST]),
        Row::new(
            "slots.huge_page.attributes.piece_by_piece",
            Types::UPM,
            "A 2 MiB page of which two pages are private is back only when both are shared, one after the other.",
            piece_by_piece,
        )
        .basis(&[POST]),
        Row::new(
            "slots.huge_page.attributes.before_the_slot",
            Types::UPM,
            "A slot that is made over shared and private pages has 2 MiB pages where all is shared, and nowhere else.",
            |t| before_the_first_touch(t, 0..PAGES, Order::AttributesFirst),
        )
        .basis(&[INIT]),
        Row::new(
            "slots.huge_page.attributes.before_a_part",
            Types::UPM,
            "The same for a slot that begins and ends in the middle of huge pages.",
            |t| before_the_first_touch(t, LARGE / 2..PAGES - LARGE / 2, Order::AttributesFirst),
        )
        .basis(&[INIT]),
        Row::new(
            "slots.huge_page.attributes.before_the_first_touch",
            Types::UPM,
            "A slot some of whose pages become private before anything is mapped gets 2 MiB pages where all is shared, right \
             beside the private ones, too, and nowhere else.",
            |t| before_the_first_touch(t, 0..PAGES, Order::SlotFirst),
        )
        .basis(&[POST]),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

/// A guest without a slot over its test range, and the slot for some of its pages.
fn huge(t: &Case, pages: &Range<u64>) -> Outcome<(Guest, SlotSpec)> {
    let g = t.guest().range(RangeSpec::new(PAGES)).boot()?;
    let range = g.range(0);
    // Everything that the guest needs to get there, its page tables included, is mapped from here on.
    g.vcpu(0).read(range.shared_gva(0), Width::B8)?;
    let whole = range.slots()[0].clone();
    g.vm().delete_slot(whole.slot)?;
    let slot = SlotSpec {
        gpa: range.gpa(pages.start),
        pages: PageCount(pages.end - pages.start),
        mapping: Some(huge_memory(PAGES)?),
        mapping_offset: bytes(pages.start),
        gmem: whole.gmem.clone().map(|(file, offset)| (file, offset + bytes(pages.start))),
        ..whole
    };
    Ok((g, slot))
}

/// The huge pages that lie in a slot with these pages.
fn whole(pages: &Range<u64>) -> Vec<Range<u64>> {
    let huge = (0..PAGES / LARGE).map(|number| number * LARGE..(number + 1) * LARGE);
    huge.filter(|huge| pages.start <= huge.start && huge.end <= pages.end).collect()
}

fn meet(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Reads one page of each huge page, of those that `changed` and of those that did not.
fn touch(g: &Guest, slot: &Range<u64>, changed: &Range<u64>) -> Outcome {
    let read = |page| g.vcpu(0).read(g.range(0).shared_gva(page), Width::B8).map(drop);
    for huge in whole(slot) {
        read(huge.start.max(changed.start).min(huge.end - 1))?;
        [huge.start, huge.end - 1].into_iter().try_for_each(read)?;
    }
    Ok(())
}

fn attributes(t: &Case, slot_pages: Range<u64>) -> Outcome {
    let (g, slot) = huge(t, &slot_pages)?;
    let (vm, range) = (g.vm(), g.range(0));
    let counters = Counters::of_vm(&g)?;
    let before = counters.get("pages_2m")?;
    vm.add_slot(slot)?;
    let all = whole(&slot_pages);
    touch(&g, &slot_pages, &(0..0))?;
    if counters.get("pages_2m")? != before + all.len() as u64 {
        return Err(no_huge_page());
    }
    for changed in RANGES {
        let met = all.iter().filter(|huge| meet(huge, &changed)).count() as i64;
        counters.expect_growth("pages_2m", -met, || {
            range.set_private(vm, changed.clone())?;
            touch(&g, &slot_pages, &changed)
        })?;
        counters.expect_growth("pages_2m", 0, || range.set_shared(vm, changed.clone()))?;
        counters.expect_growth("pages_2m", met, || touch(&g, &slot_pages, &changed))?;
    }
    Ok(())
}

fn piece_by_piece(t: &Case) -> Outcome {
    let slot_pages = 0..PAGES;
    let (g, slot) = huge(t, &slot_pages)?;
    let (vm, range) = (g.vm(), g.range(0));
    let counters = Counters::of_vm(&g)?;
    vm.add_slot(slot)?;
    let before = counters.get("pages_2m")?;
    touch(&g, &slot_pages, &(0..0))?;
    if counters.get("pages_2m")? == before {
        return Err(no_huge_page());
    }
    let [one, other] = [LARGE..LARGE + 1, 2 * LARGE - 1..2 * LARGE];
    counters.expect_growth("pages_2m", -1, || {
        range.set_private(vm, one.clone())?;
        range.set_private(vm, other.clone())?;
        touch(&g, &slot_pages, &one)
    })?;
    counters.expect_growth("pages_2m", 0, || {
        range.set_shared(vm, one.clone())?;
        touch(&g, &slot_pages, &one)
    })?;
    counters.expect_growth("pages_2m", 1, || {
        range.set_shared(vm, other.clone())?;
        touch(&g, &slot_pages, &other)
    })
}

/// What is there first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AttributesFirst,
    SlotFirst,
}

fn before_the_first_touch(t: &Case, slot_pages: Range<u64>, order: Order) -> Outcome {
    let (g, slot) = huge(t, &slot_pages)?;
    let (vm, range) = (g.vm(), g.range(0));
    let counters = Counters::of_vm(&g)?;
    let all = whole(&slot_pages);
    let before = counters.get("pages_2m")?;
    vm.add_slot(slot.clone())?;
    touch(&g, &slot_pages, &(0..0))?;
    if counters.get("pages_2m")? != before + all.len() as u64 {
        return Err(no_huge_page());
    }
    vm.delete_slot(slot.slot)?;
    for changed in RANGES {
        let left = all.iter().filter(|huge| !meet(huge, &changed)).count() as i64;
        counters.expect_growth("pages_2m", left, || {
            if order == Order::AttributesFirst {
                range.set_private(vm, changed.clone())?;
            }
            vm.add_slot(slot.clone())?;
            if order == Order::SlotFirst {
                range.set_private(vm, changed.clone())?;
            }
            touch(&g, &slot_pages, &changed)
        })?;
        vm.delete_slot(slot.slot)?;
        range.set_shared(vm, changed)?;
    }
    Ok(())
}
