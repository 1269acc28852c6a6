//! How large the mappings of a slot may be, and what changes that: private pages, edges of slots, addresses that do not
//! agree, dirty logs.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::mapping::{MapOptions, Mapping};
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Lack, LackOf, Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::uapi::{Capability, MEM_LOG_DIRTY_PAGES};
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_protocol::{Op, Pattern, Width};

use crate::counters::Counters;
use crate::expect::{expect_eq, expect_that};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;

const MIXED: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_init_memslot_memory_attributes";
const LPAGE_INFO: &str = "arch/x86/kvm/x86.c: kvm_alloc_memslot_metadata: disallow_lpage";
const RECOVER: &str = "arch/x86/kvm/mmu/tdp_mmu.c: kvm_tdp_mmu_recover_huge_pages";

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let rows = [
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
            "slots.huge_page.setters_race",
            Types::UPM,
            "While one thread makes 64 MiB shared, another one makes a single page in it private, early, in the middle and \
             late: the page stays what it is then, also when the guest reads its neighbours, which the host has as a huge \
             page.",
            setters_race,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_set_mem_attributes: slots_lock", MIXED]),
        Row::new(
            "slots.huge_page.of_two_slots",
            Types::ALL,
            "Two slots meet in the middle of a huge page of the host's: neither is mapped by a 2 MiB page, not even when \
             both were logged and are no more, and all content stays.",
            of_two_slots,
        )
        .basis(&[LPAGE_INFO, RECOVER]),
        Row::new(
            "slots.huge_page.at_another_offset",
            Types::ALL,
            "Where GPA and host address are not the same within 2 MiB, no 2 MiB page maps the slot.",
            at_another_offset,
        )
        .basis(&[LPAGE_INFO]),
        Row::new(
            "slots.huge_page.and_the_dirty_log",
            Types::ALL,
            "A 2 MiB page goes when its slot is logged, what the guest writes meanwhile is mapped by 4 KiB pages, and with \
             the log it is over: the next access finds the 2 MiB page again.",
            and_the_dirty_log,
        )
        .basis(&[RECOVER, "arch/x86/kvm/x86.c: kvm_mmu_slot_apply_flags"]),
        Row::new(
            "slots.huge_page.beside_a_logged_slot",
            Types::ALL,
            "The 2 MiB page of a slot stays when the slot before it, which has one, too, is logged, and when that is over.",
            beside_a_logged_slot,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_slot_try_split_huge_pages", RECOVER]),
        Row::new(
            "slots.huge_page.recovered_in_place",
            Types::ALL,
            "When the log of a slot is over, its 2 MiB pages are there before anybody accesses them, wherever one page of \
             theirs was mapped; not where none is any more: there the guest finds what the host has written since.",
            recovered_in_place,
        )
        .basis(&[RECOVER, "arch/x86/kvm/mmu/tdp_mmu.c: tdp_mmu_make_huge_spte"])
        .needs(Need::KernelSince((6, 13), "it takes the small pages away, and makes the huge one at the next access"))
        .needs(Need::Parameter("kvm.eager_page_split", "Y")),
        Row::new(
            "slots.huge_page.split_by_the_log",
            Types::UNENCRYPTED,
            "Where KVM splits pages ahead, a slot's 2 MiB page goes when the slot is logged, before anybody accesses it, and \
             the guest finds all of it without a fault.",
            split_by_the_log,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_slot_try_split_huge_pages"])
        .needs(Need::Parameter("kvm.eager_page_split", "Y")),
        Row::new(
            "slots.huge_page.recovered_for_code",
            Types::UNENCRYPTED,
            "The guest executes code from a 2 MiB page that has come back when a log was over, without a fault.",
            recovered_for_code,
        )
        .basis(&[RECOVER, "arch/x86/kvm/mmu/spte.c: make_huge_spte"])
        .needs(Need::KernelSince((6, 13), "it takes the small pages away, and makes the huge one at the next access")),
        Row::new(
            "slots.huge_page.mapped_ahead_in_the_middle",
            Types::UNENCRYPTED,
            "Three pages in the middle of a 2 MiB page are mapped ahead by that page: the call has done the three, and no \
             more, though all of it is mapped.",
            mapped_ahead_in_the_middle,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_arch_vcpu_pre_fault_memory: min(range->size, end - range->gpa)"])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
    ];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

/// So many pages of host memory that begin with a huge page, which is there if the host gives any.
pub(super) fn huge_memory(pages: u64) -> Outcome<Arc<Mapping>> {
    let (bytes, huge) = (PageCount(pages).bytes(), PageCount(LARGE).bytes());
    let memory = Arc::new(Mapping::anonymous_with(bytes, MapOptions::new().huge_pages(true).aligned(huge))?);
    memory.fill(0, bytes, 0)?;
    Ok(memory)
}

/// What a row does on a host that gave none.
pub(super) fn no_huge_page() -> Stop {
    let reason = "this host did not give a huge page; free memory, or enable transparent huge pages".into();
    Stop::Skip(Lack { of: LackOf::Resource, reason })
}

/// A guest whose 2 MiB of test range have host memory that can be mapped by one huge page, and no slot yet.
fn huge(t: &Case) -> Outcome<(Guest, SlotSpec)> {
    let g = t.guest().range(RangeSpec::new(LARGE)).boot()?;
    let range = g.range(0);
    let memory = huge_memory(LARGE)?;
    // Everything that the guest needs to get there, its page tables included, is mapped from here on.
    g.vcpu(0).read(range.shared_gva(0), Width::B8)?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    let slot = SlotSpec { mapping: Some(memory), ..range.slots()[0].clone() };
    Ok((g, slot))
}

fn huge_page_beside_a_private_page(t: &Case) -> Outcome {
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let counters = Counters::of_vm(&g)?;
    let read = |page| v.read(range.shared_gva(page), Width::B8).map(drop);
    g.vm().add_slot(slot)?;

    let before = counters.get("pages_2m")?;
    read(0)?;
    if counters.get("pages_2m")? == before {
        return Err(no_huge_page());
    }
    counters.expect_growth("pages_2m", -1, || range.set_private(g.vm(), 3..4))?;
    counters.expect_growth("pages_2m", 0, || {
        counters.expect_growth("pages_4k", 4, || (0..4).chain(0..4).try_for_each(read))
    })?;
    range.set_shared(g.vm(), 3..4)?;
    counters.expect_growth("pages_2m", 1, || (0..4).chain([511]).try_for_each(read))
}

fn setters_race(t: &Case) -> Outcome {
    const PAGE: u64 = 3;
    const PRIVATE_BEFORE: u64 = 100;
    /// So many that the call takes a while, most of them without a slot.
    const MANY: PageCount = PageCount(1 << 14);
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let host = slot.mapping.clone();
    g.vm().add_slot(slot)?;
    range.set_private(g.vm(), PAGE..PAGE + 1)?;
    v.fill(range.private_gva(PAGE), 1, B, 0)?;
    host.iter().try_for_each(|host| host.fill_words(PAGE * PAGE_SIZE, PAGE_SIZE, A.word(0)))?;
    let make_all_shared = || -> Outcome<Duration> {
        range.set_private(g.vm(), PRIVATE_BEFORE..PRIVATE_BEFORE + 1)?;
        let start = Instant::now();
        g.vm().set_shared(range.gpa(0), MANY)?;
        Ok(start.elapsed())
    };
    let whole = make_all_shared()?;
    for eighth in [1, 4, 7, 8] {
        let start = Barrier::new(2);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                start.wait();
                thread::sleep(whole * eighth / 8);
                range.set_private(g.vm(), PAGE..PAGE + 1)
            });
            start.wait();
            make_all_shared()?;
            other.join().unwrap_or_else(|_| Err(Stop::Error("the other thread panicked".into())))
        })?;
        let read = |page| v.read(range.shared_gva(page), Width::B8);
        let first = read(PAGE)?;
        expect_that([A, B].map(|pattern| pattern.word(0)).contains(&first), || format!("the page holds {first:#x}"))?;
        read(0)?;
        expect_eq("the page, once its neighbour was read", &read(PAGE)?, &first)?;
    }
    Ok(())
}

fn huge_page_not_over_private_gfns(t: &Case) -> Outcome {
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let counters = Counters::of_vm(&g)?;
    range.set_private(g.vm(), 511..512)?;
    g.vm().add_slot(slot)?;
    counters.expect_growth("pages_2m", 0, || {
        counters.expect_growth("pages_4k", 3, || {
            [0, 1, 511].into_iter().try_for_each(|page| v.read(range.shared_gva(page), Width::B8).map(drop))
        })
    })
}

/// A guest without slots over its test range, everything that it needs to get there being mapped.
fn guest_without_slots(t: &Case) -> Outcome<Guest> {
    let g = t.guest().range(RangeSpec::new(LARGE).slots(2).backing(Backing::HostOnly)).boot()?;
    let range = g.range(0);
    g.vcpu(0).read(range.shared_gva(0), Width::B8)?;
    range.slots().iter().try_for_each(|slot| g.vm().delete_slot(slot.slot))?;
    Ok(g)
}

fn of_two_slots(t: &Case) -> Outcome {
    let g = guest_without_slots(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let memory = huge_memory(LARGE)?;
    let slots = || range.slots().iter().map(|slot| SlotSpec { mapping: Some(memory.clone()), ..slot.clone() });
    let all_with = |flags| slots().try_for_each(|slot| g.vm().add_slot(SlotSpec { flags, ..slot }).map(drop));
    let touch = || {
        v.fill(range.shared_gva(0), LARGE, A, 0)?;
        v.expect(range.shared_gva(0), LARGE, A, 0)
    };
    Counters::of_vm(&g)?.expect_growth("pages_2m", 0, || {
        all_with(0)?;
        touch()?;
        all_with(MEM_LOG_DIRTY_PAGES)?;
        touch()?;
        all_with(0)?;
        touch()
    })?;
    for page in 0..LARGE {
        expect_eq("a word of the memory", &memory.read_u64(page * PAGE_SIZE)?, &A.word(page))?;
    }
    Ok(())
}

fn at_another_offset(t: &Case) -> Outcome {
    let g = guest_without_slots(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = SlotSpec {
        mapping: Some(huge_memory(2 * LARGE)?),
        mapping_offset: PAGE_SIZE,
        pages: PageCount(LARGE),
        ..range.slots()[0].clone()
    };
    Counters::of_vm(&g)?.expect_growth("pages_2m", 0, || {
        g.vm().add_slot(slot)?;
        v.fill(range.shared_gva(0), LARGE, A, 0)?;
        v.expect(range.shared_gva(0), LARGE, A, 0)
    })
}

fn beside_a_logged_slot(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2 * LARGE).slots(2).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let memory = huge_memory(2 * LARGE)?;
    v.read(range.shared_gva(0), Width::B8)?;
    range.slots().iter().try_for_each(|slot| g.vm().delete_slot(slot.slot))?;
    let slots: Vec<SlotSpec> =
        range.slots().iter().map(|slot| SlotSpec { mapping: Some(memory.clone()), ..slot.clone() }).collect();
    let with = |flags, slot: &SlotSpec| g.vm().add_slot(SlotSpec { flags, ..slot.clone() }).map(drop);
    let counters = Counters::of_vm(&g)?;
    slots.iter().try_for_each(|slot| with(0, slot))?;
    let touch = || [0, LARGE].into_iter().try_for_each(|page| v.write(range.shared_gva(page), Width::B8, page));
    let before = counters.get("pages_2m")?;
    touch()?;
    if counters.get("pages_2m")? != before + 2 {
        return Err(no_huge_page());
    }
    counters.expect_growth("pages_2m", -1, || {
        with(MEM_LOG_DIRTY_PAGES, &slots[0])?;
        touch()
    })?;
    counters.expect_growth("pages_2m", 1, || {
        with(0, &slots[0])?;
        touch()
    })
}

fn recovered_in_place(t: &Case) -> Outcome {
    const AGAIN: u8 = 0x33;
    // Of the 2 MiB pages the first is mapped at its beginning alone, the second at its end, and the last not at all.
    const MAPPED: [u64; 2] = [0, 2 * LARGE - 1];
    const LOST: u64 = 2 * LARGE;
    let g = t.guest().range(RangeSpec::new(3 * LARGE).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let memory = huge_memory(3 * LARGE)?;
    v.read(range.shared_gva(0), Width::B8)?;
    let slot = SlotSpec { mapping: Some(memory.clone()), ..range.slots()[0].clone() };
    let with = |flags| g.vm().add_slot(SlotSpec { flags, ..slot.clone() }).map(drop);
    let touch = |page| v.fill(range.shared_gva(page), 1, A, page);
    let counters = Counters::of_vm(&g)?;
    g.vm().delete_slot(slot.slot)?;
    with(0)?;
    let before = counters.get("pages_2m")?;
    [0, LARGE, LOST].into_iter().try_for_each(touch)?;
    if counters.get("pages_2m")? != before + 3 {
        return Err(no_huge_page());
    }
    g.vm().delete_slot(slot.slot)?;
    with(MEM_LOG_DIRTY_PAGES)?;
    MAPPED.into_iter().chain([LOST]).try_for_each(touch)?;
    // The table stays, and nothing is in it.
    let (lost, bytes) = (LOST * PAGE_SIZE, PageCount(LARGE).bytes());
    memory.discard(lost, bytes)?;
    memory.fill(lost, bytes, AGAIN)?;
    counters.expect_growth("pages_2m", 2, || with(0))?;
    MAPPED.into_iter().try_for_each(|page| v.expect(range.shared_gva(page), 1, A, page))?;
    v.expect_read(range.shared_gva(LOST), Width::B8, u64::from_le_bytes([AGAIN; 8]))?;
    v.expect_read(range.shared_gva(1), Width::B8, 0)
}

fn split_by_the_log(t: &Case) -> Outcome {
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let with = |flags| g.vm().add_slot(SlotSpec { flags, ..without_guest_memfd(&slot) }).map(drop);
    let counters = Counters::of_vm(&g)?;
    with(0)?;
    let before = counters.get("pages_2m")?;
    v.read(range.shared_gva(0), Width::B8)?;
    if counters.get("pages_2m")? == before {
        return Err(no_huge_page());
    }
    counters.expect_growth("pages_2m", -1, || with(MEM_LOG_DIRTY_PAGES))?;
    Counters::of_vcpu(&g)?.expect_growth("pf_taken", 0, || {
        (0..LARGE).try_for_each(|page| v.read(range.shared_gva(page), Width::B8).map(drop))
    })
}

fn recovered_for_code(t: &Case) -> Outcome {
    /// `lea rax, [rdi + 1]; ret`
    const ADD_ONE: [u8; 5] = [0x48, 0x8d, 0x47, 1, 0xc3];
    let (g, slot) = huge(t)?;
    let (v, code) = (g.vcpu(0), g.range(0).shared_gva(0));
    let with = |flags| g.vm().add_slot(SlotSpec { flags, ..without_guest_memfd(&slot) }).map(drop);
    let counters = Counters::of_vm(&g)?;
    with(MEM_LOG_DIRTY_PAGES)?;
    v.write_bytes(code, &ADD_ONE)?;
    let before = counters.get("pages_2m")?;
    with(0)?;
    if counters.get("pages_2m")? != before + 1 {
        return Err(no_huge_page());
    }
    Counters::of_vcpu(&g)?.expect_growth("pf_taken", 0, || {
        let [sum, ..] = v.call(Op::Execute { gva: code.0, argument: 41 })?;
        expect_eq("what the code returned", &sum, &42)
    })
}

fn mapped_ahead_in_the_middle(t: &Case) -> Outcome {
    let (g, slot) = huge(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().add_slot(without_guest_memfd(&slot))?;
    let counters = Counters::of_vm(&g)?;
    let before = counters.get("pages_2m")?;
    let done = v.kvm().pre_fault(range.gpa(5), PageCount(3))?;
    if counters.get("pages_2m")? == before {
        return Err(no_huge_page());
    }
    expect_eq("KVM_PRE_FAULT_MEMORY", &(done.result, done.gpa, done.size), &(Ok(()), range.gpa(8), 0))?;
    expect_eq("how many huge pages are mapped", &(counters.get("pages_2m")? - before), &1)?;
    // The guest's own pages may have gone with the slot that was deleted.
    v.write(range.shared_gva(5), Width::B8, 5)?;
    Counters::of_vcpu(&g)?.expect_growth("pf_taken", 0, || {
        [0, LARGE - 1].into_iter().try_for_each(|page| v.write(range.shared_gva(page), Width::B8, page))
    })
}

/// A slot of host memory alone, which can be logged.
fn without_guest_memfd(slot: &SlotSpec) -> SlotSpec {
    SlotSpec { gmem: None, ..slot.clone() }
}

fn and_the_dirty_log(t: &Case) -> Outcome {
    let g = guest_without_slots(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = SlotSpec { mapping: Some(huge_memory(LARGE)?), pages: PageCount(LARGE), ..range.slots()[0].clone() };
    let counters = Counters::of_vm(&g)?;
    let with = |flags| g.vm().add_slot(SlotSpec { flags, ..slot.clone() }).map(drop);
    with(0)?;
    let before = counters.get("pages_2m")?;
    v.write(range.shared_gva(0), Width::B8, 1)?;
    if counters.get("pages_2m")? == before {
        return Err(no_huge_page());
    }
    counters.expect_growth("pages_2m", -1, || {
        with(MEM_LOG_DIRTY_PAGES)?;
        v.fill(range.shared_gva(0), 4, A, 0)
    })?;
    counters.expect_growth("pages_2m", 1, || {
        with(0)?;
        v.expect(range.shared_gva(0), 4, A, 0)?;
        v.write(range.shared_gva(LARGE - 1), Width::B8, 2)
    })
}
