//! The dirty log whose bits user space clears itself, once it has copied the pages: `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`.

use std::sync::Arc;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::dirty_log::{INITIALLY_SET, MANUAL_PROTECT};
use privet_harness::guest::Guest;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::uapi::{Capability, MEM_LOG_DIRTY_PAGES, USER_MEM_SLOTS};
use privet_harness::units::PageCount;
use privet_protocol::{Pattern, Width};

use super::huge_pages::{huge_memory, no_huge_page};
use super::parts::{Parts, Region, SLOT, bytes};
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;
/// Pages of a slot whose log ends in the middle of its third word.
const PAGES: u64 = 136;
/// All bits of a word.
const ALL: u64 = u64::MAX;
/// The bits of the pages in the third word.
const REST: u64 = (1 << (PAGES % 64)) - 1;

/// A slot with a huge page begins so many pages before it: the first word of its log reaches into both.
const BEFORE: u64 = 32;

const CLEAR: &str = "virt/kvm/kvm_main.c: kvm_clear_dirty_log_protect";
const MASKED: &str = "arch/x86/kvm/mmu/mmu.c: kvm_arch_mmu_enable_log_dirty_pt_masked";
const API: &str = "Documentation/virt/kvm/api.rst 4.117 KVM_CLEAR_DIRTY_LOG";

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let guest_rows = [
        Row::new(
            "slots.dirty_log.by_hand",
            Types::ALL,
            "With manual protection the log says the same however often it is asked, until bits are cleared: those alone, \
             of pages that were dirty or not; a page is told again when it is written again, and one whose bit was not \
             cleared stays dirty.",
            by_hand,
        )
        .basis(&[CLEAR, MASKED, API]),
        Row::new(
            "slots.dirty_log.initially_set",
            Types::ALL,
            "Where all pages are dirty at first, the log of a new slot has all its pages and no more; cleared, it tells what \
             is written from then on.",
            initially_set,
        )
        .basis(&[CLEAR, "virt/kvm/kvm_main.c: kvm_prepare_memory_region: bitmap_set"]),
        Row::new(
            "slots.dirty_log.initially_set.huge_page",
            Types::ALL,
            "A log whose pages are all dirty at first leaves a 2 MiB page as it is: it goes once the bit of one of its pages \
             is cleared (KVM splits it then, not at the next write, unless it is told otherwise), and of the pages that are \
             written then each is told that was cleared, and no other.",
            // The first page of the slot before the huge page, and the first, the second and the last of the huge page in
            // that word.
            |t| huge_page(t, 1 | 1 << BEFORE | 1 << (BEFORE + 1) | 1 << 63, Split::Cleared),
        )
        .basis(&[MASKED, "arch/x86/kvm/x86.c: kvm_mmu_slot_apply_flags"])
        .needs(Need::Parameter("kvm.eager_page_split", "Y")),
        Row::new(
            "slots.dirty_log.initially_set.first_of_a_huge_page",
            Types::ALL,
            "The same where the last bit that is cleared is that of the 2 MiB page's first page.",
            |t| huge_page(t, 1 << BEFORE, Split::Cleared),
        )
        .basis(&[MASKED])
        .needs(Need::Parameter("kvm.eager_page_split", "Y")),
        Row::new(
            "slots.dirty_log.initially_set.before_a_huge_page",
            Types::ALL,
            "Where the last bit that is cleared is that of the page before the 2 MiB page, that stays, whatever is written.",
            |t| huge_page(t, 1 << (BEFORE - 1), Split::Never),
        )
        .basis(&[MASKED])
        .needs(Need::Parameter("kvm.eager_page_split", "Y")),
        Row::new(
            "slots.dirty_log.initially_set.second_huge_page",
            Types::ALL,
            "Of two 2 MiB pages the second goes, and the first stays, where the bit of the second's first page is cleared.",
            second_huge_page,
        )
        .basis(&[MASKED])
        .needs(Need::Parameter("kvm.eager_page_split", "Y")),
        Row::new(
            "slots.dirty_log.initially_set.huge_page.split_late",
            Types::ALL,
            "Where KVM splits no pages ahead, the 2 MiB page stays when bits are cleared, and goes at the next write, by \
             which the log is as exact.",
            |t| huge_page(t, 1 | 1 << BEFORE | 1 << (BEFORE + 1) | 1 << 63, Split::Written),
        )
        .basis(&[MASKED, "arch/x86/kvm/mmu/tdp_mmu.c: write_protect_gfn"])
        .needs(Need::Parameter("kvm.eager_page_split", "N")),
    ];
    let without_guest = [
        Row::new(
            "slots.dirty_log.by_hand.refused",
            Types::ALL,
            "Bits are cleared in whole words of 64, or up to the slot's end, and of a slot that has a log: EINVAL for any \
             other range and for ids that no slot can have, ENOENT where there is no log, EFAULT for bits that cannot be \
             read. No pages at all are fine, at the slot's end, too.",
            refused,
        )
        .basis(&[CLEAR, API]),
        Row::new(
            "slots.dirty_log.unwritable_answer",
            Types::ALL,
            "A dirty log that cannot be written where it was asked for is EFAULT.",
            unwritable_answer,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_get_dirty_log_protect"]),
        Row::new(
            "slots.dirty_log.by_hand.options",
            Types::ALL,
            "Manual protection has two options, of which the second needs the first: EINVAL for it alone and for every other \
             bit.",
            options,
        )
        .basis(&["virt/kvm/kvm_main.c: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"]),
    ];
    let manual = || Need::Capability(Capability::MANUAL_DIRTY_LOG_PROTECT2, (MANUAL_PROTECT | INITIALLY_SET) as i32);
    let guest_rows = guest_rows.into_iter().map(|row| row.needs(Need::GuestCode));
    guest_rows.chain(without_guest).map(|row| row.needs(manual())).collect()
}

/// A guest with a range of host memory, whose slot is gone.
fn guest(t: &Case, pages: u64, options: u64) -> Outcome<Guest> {
    let g = t.guest().range(RangeSpec::new(pages).backing(Backing::HostOnly)).boot()?;
    let range = g.range(0);
    // Everything that the guest needs to get there, its page tables included, is mapped from here on.
    g.vcpu(0).read(range.shared_gva(0), Width::B8)?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    let enabled = g.vm().enable_cap(Capability::MANUAL_DIRTY_LOG_PROTECT2, [options, 0, 0, 0]);
    expect_ok("KVM_ENABLE_CAP(MANUAL_DIRTY_LOG_PROTECT2)", enabled)?;
    Ok(g)
}

fn logged(g: &Guest) -> Outcome {
    let slot = g.range(0).slots()[0].clone();
    g.vm().add_slot(SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..slot }).map(drop)
}

fn expect_log(g: &Guest, when: &str, words: &[u64]) -> Outcome {
    let range = g.range(0);
    let log = g.vm().dirty_log(range.slots()[0].slot, PageCount(range.pages()));
    expect_eq(&format!("the dirty pages {when}"), &expect_ok("KVM_GET_DIRTY_LOG", log)?, &words.to_vec())
}

fn clear(g: &Guest, first: u64, pages: u64, bits: &[u64]) -> Outcome {
    let slot = g.range(0).slots()[0].slot;
    let cleared = g.vm().clear_dirty_log(slot, first, PageCount(pages), bits);
    expect_ok(&format!("KVM_CLEAR_DIRTY_LOG of {pages} pages from {first} on"), cleared)
}

fn write(g: &Guest, pages: &[u64], pattern: Pattern) -> Outcome {
    pages.iter().try_for_each(|&page| g.vcpu(0).fill(g.range(0).shared_gva(page), 1, pattern, page))
}

fn by_hand(t: &Case) -> Outcome {
    let g = guest(t, PAGES, MANUAL_PROTECT)?;
    logged(&g)?;
    let bit = |page: u64| 1_u64 << (page % 64);
    write(&g, &[1, 2, 64, 65, 127, 128, 135], A)?;
    let dirty = [bit(1) | bit(2), bit(64) | bit(65) | bit(127), bit(128) | bit(135)];
    expect_log(&g, "after the first writes", &dirty)?;
    expect_log(&g, "asked again", &dirty)?;

    // One word in the middle; page 66 is not dirty.
    clear(&g, 64, 64, &[bit(64) | bit(66)])?;
    expect_log(&g, "without page 64", &[dirty[0], bit(65) | bit(127), dirty[2]])?;
    // The end, with bits of pages that the slot does not have.
    clear(&g, 128, PAGES - 128, &[ALL])?;
    expect_log(&g, "without the last ones", &[dirty[0], bit(65) | bit(127), 0])?;
    write(&g, &[1, 64, 135], B)?;
    expect_log(&g, "once three were written again", &[dirty[0], dirty[1], bit(135)])?;

    clear(&g, 0, PAGES, &[bit(2), ALL, 0])?;
    expect_log(&g, "with a word of each kind", &[bit(1), 0, bit(135)])?;
    write(&g, &[2, 63, 127], B)?;
    expect_log(&g, "once three more were written", &[bit(1) | bit(2) | bit(63), bit(127), bit(135)])?;
    clear(&g, 0, PAGES, &[ALL; 3])?;
    expect_log(&g, "when all was cleared", &[0; 3])?;
    g.vcpu(0).fill(g.range(0).shared_gva(0), PAGES, A, 0)?;
    expect_log(&g, "when all was written", &[ALL, ALL, REST])
}

fn initially_set(t: &Case) -> Outcome {
    let g = guest(t, PAGES, MANUAL_PROTECT | INITIALLY_SET)?;
    logged(&g)?;
    expect_log(&g, "of a new slot", &[ALL, ALL, REST])?;
    g.vcpu(0).fill(g.range(0).shared_gva(0), PAGES, A, 0)?;
    clear(&g, 0, 128, &[ALL, ALL])?;
    expect_log(&g, "of which the first 128 were cleared", &[0, 0, REST])?;
    write(&g, &[0, 63, 64, 130], B)?;
    expect_log(&g, "of which four were written", &[1 | 1 << 63, 1, REST])
}

/// When a huge page is split up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Split {
    /// When the bit of one of its pages is cleared.
    Cleared,
    /// When one of its pages is written after that.
    Written,
    /// Not at all.
    Never,
}

/// Clears these bits of the first word of a log.
fn huge_page(t: &Case, bits: u64, split: Split) -> Outcome {
    let g = guest(t, 2 * LARGE, MANUAL_PROTECT | INITIALLY_SET)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let memory = huge_memory(2 * LARGE)?;
    let whole = range.slots()[0].clone();
    let first = LARGE - BEFORE;
    let slot = SlotSpec {
        mapping: Some(memory),
        mapping_offset: bytes(first),
        gpa: range.gpa(first),
        pages: PageCount(2 * LARGE - first),
        ..whole
    };
    let with = |flags| g.vm().add_slot(SlotSpec { flags, ..slot.clone() }).map(drop);
    let counters = Counters::of_vm(&g)?;
    with(0)?;
    let before = counters.get("pages_2m")?;
    v.write(range.shared_gva(LARGE), Width::B8, 1)?;
    if counters.get("pages_2m")? == before {
        return Err(no_huge_page());
    }
    counters.expect_growth("pages_2m", 0, || {
        with(MEM_LOG_DIRTY_PAGES)?;
        v.write(range.shared_gva(LARGE + 1), Width::B8, 2)
    })?;
    let log = || expect_ok("KVM_GET_DIRTY_LOG", g.vm().dirty_log(slot.slot, slot.pages));
    let all = log()?;
    expect_eq("the log of a slot of 544 pages", &all, &[[ALL; 8].as_slice(), &[u32::MAX.into()]].concat())?;
    let goes = |when| if split == when { -1 } else { 0 };
    counters.expect_growth("pages_2m", goes(Split::Cleared), || {
        expect_ok("KVM_CLEAR_DIRTY_LOG", g.vm().clear_dirty_log(slot.slot, 0, PageCount(64), &[bits]))
    })?;
    expect_eq("the first word once bits were cleared", &log()?[0], &(ALL & !bits))?;
    let page = |index: u64| range.shared_gva(first + index);
    let written = [0, BEFORE, 63];
    counters.expect_growth("pages_2m", goes(Split::Written), || {
        written.into_iter().try_for_each(|index| v.write(page(index), Width::B8, 3))
    })?;
    let told = written.into_iter().fold(ALL & !bits, |told, index| told | 1 << index);
    expect_eq("the first word once pages were written", &log()?[0], &told)?;
    expect_eq("all other words", &log()?[1..].to_vec(), &all[1..].to_vec())
}

fn second_huge_page(t: &Case) -> Outcome {
    let g = guest(t, 2 * LARGE, MANUAL_PROTECT | INITIALLY_SET)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = SlotSpec { mapping: Some(huge_memory(2 * LARGE)?), ..range.slots()[0].clone() };
    g.vm().add_slot(slot.clone())?;
    let counters = Counters::of_vm(&g)?;
    let before = counters.get("pages_2m")?;
    [0, LARGE].into_iter().try_for_each(|page| v.write(range.shared_gva(page), Width::B8, 1))?;
    if counters.get("pages_2m")? != before + 2 {
        return Err(no_huge_page());
    }
    g.vm().add_slot(SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..slot.clone() })?;
    counters.expect_growth("pages_2m", -1, || clear(&g, LARGE, 64, &[1]))
}

/// A VM with a logged slot, and how its log is cleared.
fn refused(t: &Case) -> Outcome {
    const WHOLE: u32 = SLOT + 1;
    let parts = Parts::new(t)?;
    let vm = &parts.vm;
    let mapping = Arc::new(Mapping::anonymous(bytes(PAGES))?);
    let region = Region { flags: MEM_LOG_DIRTY_PAGES, userspace_addr: mapping.addr(), ..parts.shared_region() };
    let add = |slot, at, pages| {
        let region =
            Region { slot, guest_phys_addr: region.guest_phys_addr + bytes(at), memory_size: bytes(pages), ..region };
        expect_ok("making a logged slot", vm.set_user_memory_region2_raw(&region, Some(&mapping)))
    };
    add(SLOT, 0, PAGES)?;
    // One of whole words.
    add(WHOLE, PAGES, 128)?;
    let enabled = vm.enable_cap(Capability::MANUAL_DIRTY_LOG_PROTECT2, [MANUAL_PROTECT, 0, 0, 0]);
    expect_ok("KVM_ENABLE_CAP(MANUAL_DIRTY_LOG_PROTECT2)", enabled)?;

    let clear = |slot, first, pages| vm.clear_dirty_log(slot, first, PageCount(pages), &[0; 4]);
    for (what, first, pages) in [
        ("from the middle of a word on", 8, PAGES - 8),
        ("from the last page of a word on", 63, 64),
        ("behind the slot", 192, 0),
        ("that ends in the middle of a word", 0, 63),
        ("that ends one page before the slot", 0, PAGES - 1),
        ("that ends one page behind the slot", 0, PAGES + 1),
        ("that begins in the last word and ends behind the slot", 128, PAGES - 128 + 1),
        ("of whole words that ends behind the slot", 128, 64),
    ] {
        expect_errno(&format!("a range {what}"), clear(SLOT, first, pages), Errno::EINVAL)?;
    }
    expect_errno("one page behind the end of a slot of whole words", clear(WHOLE, 128, 1), Errno::EINVAL)?;
    for (what, slot, first, pages) in [
        ("the whole slot", SLOT, 0, PAGES),
        ("a word of it", SLOT, 64, 64),
        ("its rest", SLOT, 128, PAGES - 128),
        ("no pages", SLOT, 64, 0),
        ("no pages at the end", WHOLE, 128, 0),
        ("the last word of a slot of whole words", WHOLE, 64, 64),
    ] {
        expect_ok(what, clear(slot, first, pages))?;
    }

    for slot in [USER_MEM_SLOTS, 0xffff, 2 << 16 | SLOT, 0xffff << 16 | SLOT] {
        expect_errno(&format!("slot {slot:#x}, an id that no slot can have"), clear(slot, 0, 64), Errno::EINVAL)?;
    }
    expect_errno("a slot that is not there", clear(USER_MEM_SLOTS - 1, 0, 64), Errno::ENOENT)?;
    let unlogged =
        Region { slot: SLOT + 2, guest_phys_addr: region.guest_phys_addr + bytes(2 * LARGE), ..parts.shared_region() };
    expect_ok("making a slot without a log", parts.set(unlogged))?;
    expect_errno("a slot without a log", clear(unlogged.slot, 0, 64), Errno::ENOENT)?;

    let unreadable = vm.clear_dirty_log_at(SLOT, 0, PageCount(PAGES), 8);
    expect_errno("bits that cannot be read", unreadable, Errno::EFAULT)
}

fn unwritable_answer(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let logged = Region { flags: MEM_LOG_DIRTY_PAGES, ..parts.shared_region() };
    expect_ok("making a logged slot", parts.set(logged))?;
    expect_errno("KVM_GET_DIRTY_LOG to address 8", parts.vm.dirty_log_at(SLOT, 8), Errno::EFAULT)?;
    let options = [MANUAL_PROTECT, 0, 0, 0];
    expect_ok("manual protection", parts.vm.enable_cap(Capability::MANUAL_DIRTY_LOG_PROTECT2, options))?;
    expect_errno("the same with manual protection", parts.vm.dirty_log_at(SLOT, 8), Errno::EFAULT)
}

fn options(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let enable = |options| vm.enable_cap(Capability::MANUAL_DIRTY_LOG_PROTECT2, [options, 0, 0, 0]);
    for bit in (0..64).map(|bit| 1_u64 << bit).filter(|bit| *bit != MANUAL_PROTECT) {
        expect_errno(&format!("option {bit:#x} alone"), enable(bit), Errno::EINVAL)?;
    }
    for bit in (2..64).map(|bit| 1_u64 << bit) {
        expect_errno(&format!("option {bit:#x}"), enable(MANUAL_PROTECT | bit), Errno::EINVAL)?;
    }
    [MANUAL_PROTECT, MANUAL_PROTECT | INITIALLY_SET, 0]
        .into_iter()
        .try_for_each(|all| expect_ok("options", enable(all)))
}
