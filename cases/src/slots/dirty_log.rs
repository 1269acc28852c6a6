//! Who makes a page dirty: the guest, KVM for it, and whoever lets it be mapped writable; and who does not.

use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::uapi::{Capability, MEM_LOG_DIRTY_PAGES, USER_MEM_SLOTS};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vendor::Vendor;
use privet_protocol::{Op, Pattern, Width};

use super::parts::{Parts, Region, SIZE};
use crate::clocks::{SYSTEM_TIME, WALL_CLOCK};
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_errno, expect_ok, expect_that};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const LOG: &str = "virt/kvm/kvm_main.c: kvm_get_dirty_log_protect";
const SPTE: &str = "arch/x86/kvm/mmu/spte.c: make_spte marks the page of every writable SPTE";
const EMULATOR: &str = "virt/kvm/kvm_main.c: __kvm_write_guest_page, mark_page_dirty_in_slot";

/// Bits of the dirty log.
const PAGE_1: u64 = 1 << 1;
const PAGE_2: u64 = 1 << 2;

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "slots.dirty_log",
            Types::ALL,
            "The dirty log of a slot whose pages the guest had mapped before tells exactly those that it wrote since it was \
             asked last; without the flag there is none: ENOENT.",
            written_since,
        )
        .basis(&[LOG, "Documentation/virt/kvm/api.rst 4.8"])
        .exceeds("x86/tdx_vm_test: verify_log_dirty_pages_flag_on_non_gmemfd_slot"),
        Row::new(
            "slots.dirty_log.first_touch",
            Types::ALL,
            "In a slot that is logged from the start a page that was only read is in the log, too, where the host's page \
             was writable when it was mapped; asked again, only writes are.",
            first_touch,
        )
        .basis(&[LOG, SPTE]),
        Row::new(
            "slots.dirty_log.first_touch_of_nothing",
            Types::ALL,
            "A page that was only read and that the host has never written is mapped read-only, and not in the log.",
            first_touch_of_nothing,
        )
        .basis(&[LOG, SPTE]),
        Row::new(
            "slots.dirty_log.not_the_host",
            Types::ALL,
            "What the host itself writes into its memory is not in the log.",
            not_the_host,
        )
        .basis(&[LOG]),
        Row::new(
            "slots.dirty_log.clocks",
            Types::ALL_BUT_TDX,
            "The clocks that KVM writes for the guest, the wall clock at once and the system time at the next entry, are \
             in the log.",
            clocks,
        )
        .basis(&[EMULATOR, "arch/x86/kvm/x86.c: kvm_write_wall_clock, kvm_setup_guest_pvclock"]),
        Row::new(
            "slots.dirty_log.hyper_v",
            Types::ALL_BUT_TDX,
            "The pages that KVM fills as Hyper-V would, with code for hypercalls at once and the reference time at the next \
             entry, are in the log.",
            hyper_v,
        )
        .basis(&[EMULATOR, "arch/x86/kvm/hyperv.c: patch_hypercall, kvm_hv_setup_tsc_page"])
        .needs(Need::Capability(Capability::HYPERV, 1)),
        Row::new(
            "slots.dirty_log.steal_time",
            Types::ALL_BUT_TDX,
            "The page where KVM tells how long the vCPU had to wait is in the log after an entry.",
            steal_time,
        )
        .basis(&["arch/x86/kvm/x86.c: record_steal_time"])
        .needs(Need::KvmFeature("steal time", 5)),
        Row::new(
            "slots.dirty_log.emulated",
            Types::UNENCRYPTED,
            "What KVM's emulator writes for the guest is in the log: a store, and a locked compare-and-exchange, which \
             goes another way.",
            emulated,
        )
        .basis(&[EMULATOR, "arch/x86/kvm/x86.c: emulator_cmpxchg_emulated"])
        .needs(Need::Parameter("kvm.force_emulation_prefix", "1")),
    ];
    let refused_move = Row::new(
        "slots.dirty_log.refused_move",
        Types::ALL,
        "A logged slot that cannot be moved to where no CPU reaches keeps its log, with what is in it and what comes.",
        refused_move,
    )
    .basis(&["virt/kvm/kvm_main.c: kvm_prepare_memory_region frees no bitmap that it has not allocated"])
    .needs(Need::GuestCode);
    let neighbours = Row::new(
        "slots.dirty_log.and_its_neighbours",
        Types::ALL_BUT_TDX,
        "Where the slot between two others gets a log, and is asked for it, the guest's pages right beside it stay writable: \
         it writes them without a fault.",
        neighbours,
    )
    .basis(&["arch/x86/kvm/mmu/tdp_mmu.c: wrprot_gfn_range, clear_dirty_gfn_range"])
    .needs(Need::GuestCode);
    let without_guest = Row::new(
        "slots.dirty_log.of_no_slot",
        Types::ALL,
        "A slot id that no slot has, or no longer, has no dirty log: ENOENT. An id that no slot can have is EINVAL, whatever \
         there is beside it.",
        of_no_slot,
    )
    .basis(&[LOG]);
    let without_the_lock = Row::new(
        "slots.dirty_log.fixed_without_the_lock",
        Types::UNENCRYPTED,
        "The first store to a page since it was logged takes one fault, which KVM fixes without its lock, and the next store \
         none.",
        fixed_without_the_lock,
    )
    .basis(&["arch/x86/kvm/mmu/mmu.c: fast_page_fault"])
    .needs(Need::GuestCode)
    .needs(Need::Vendor(Vendor::Amd, "a processor of Intel's logs stores by itself, without a fault"));
    let busy = Row::new(
        "slots.dirty_log.begins_under_a_busy_vcpu",
        Types::ALL,
        "A vCPU keeps writing a page while its slot becomes logged, time and again: what it writes from then on is in the log.",
        begins_under_a_busy_vcpu,
    )
    .basis(&["arch/x86/kvm/x86.c: kvm_mmu_slot_apply_flags: kvm_flush_remote_tlbs_memslot"])
    .needs(Need::GuestCode);
    let others = [refused_move, neighbours, without_the_lock, busy, without_guest];
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).chain(others).collect()
}

/// A guest with a range of memory beside the logged one, for code and the like.
fn guest(t: &Case, pages: u64) -> Outcome<Guest> {
    let elsewhere = RangeSpec::new(1).backing(Backing::HostOnly).at(Gpa(0x2_0000_0000));
    t.guest().range(RangeSpec::new(pages).backing(Backing::HostOnly)).range(elsewhere).boot()
}

/// Makes the slot of the first range anew, logged from the start.
fn log_from_the_start(g: &Guest) -> Outcome {
    let slot = g.range(0).slots()[0].clone();
    g.vm().delete_slot(slot.slot)?;
    g.vm().add_slot(SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..slot }).map(drop)
}

fn expect_dirty(g: &Guest, pages: u64) -> Outcome {
    let range = g.range(0);
    let log = g.vm().dirty_log(range.slots()[0].slot, PageCount(range.pages()));
    expect_eq("the dirty pages", &expect_ok("KVM_GET_DIRTY_LOG", log)?, &vec![pages])
}

fn written_since(t: &Case) -> Outcome {
    const PAGES: u64 = 8;
    let g = guest(t, PAGES)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = &range.slots()[0];
    let set_flags = |flags| {
        let region = Region { flags, ..slot.region() };
        expect_ok("changing the flags", g.vm().set_user_memory_region2_raw(&region, Some(range.host())))
    };
    let without = || g.vm().dirty_log(slot.slot, PageCount(PAGES));
    expect_errno("the dirty log of a slot without one", without(), Errno::ENOENT)?;
    v.fill(range.shared_gva(0), PAGES, A, 0)?;
    set_flags(MEM_LOG_DIRTY_PAGES)?;
    for pages in [&[1, 3][..], &[], &[0, 1, 7]] {
        for &page in pages {
            v.fill(range.shared_gva(page), 1, B, page)?;
        }
        v.read(range.shared_gva(5), Width::B8)?;
        expect_dirty(&g, pages.iter().fold(0, |bits, page| bits | 1 << page))?;
    }
    set_flags(0)?;
    expect_errno("the dirty log once it was switched off", without(), Errno::ENOENT)
}

fn fixed_without_the_lock(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let slot = range.slots()[0].clone();
    v.fill(range.shared_gva(0), 2, A, 0)?;
    g.vm().add_slot(SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..slot })?;
    let counters = Counters::of_vcpu(&g)?;
    for round in 0..3 {
        for faults in [1, 0] {
            counters.expect_growth("pf_taken", faults, || {
                counters.expect_growth("pf_fast", faults, || v.write(range.shared_gva(1), Width::B8, round))
            })?;
        }
        expect_dirty(&g, PAGE_1)?;
    }
    Ok(())
}

fn begins_under_a_busy_vcpu(t: &Case) -> Outcome {
    const ROUNDS: usize = 10;
    let elsewhere = RangeSpec::new(1).backing(Backing::HostOnly).at(Gpa(0x2_0000_0000));
    let g = t.guest().vcpus(2).range(RangeSpec::new(2).backing(Backing::HostOnly)).range(elsewhere).boot()?;
    let range = g.range(0);
    let slot = range.slots()[0].clone();
    let with = |flags| g.vm().add_slot(SlotSpec { flags, ..slot.clone() }).map(drop);
    let counted = || range.host().read_u64(PAGE_SIZE);
    let deadline = Instant::now() + t.limit();
    let waits_for_a_store = || -> Outcome {
        let before = counted()?;
        while counted()? == before {
            expect_that(Instant::now() < deadline, || "the vCPU does not write its page".to_owned())?;
            thread::yield_now();
        }
        Ok(())
    };
    let busy = g.vcpu(1).hammer(Op::HammerAdd { gva: range.shared_gva(1).0, pages: 1, limit: 0 })?;
    for _ in 0..ROUNDS {
        waits_for_a_store()?;
        with(MEM_LOG_DIRTY_PAGES)?;
        // The first may have been on its way.
        waits_for_a_store()?;
        waits_for_a_store()?;
        expect_dirty(&g, PAGE_1)?;
        with(0)?;
    }
    g.vcpu(1).stop()?;
    busy.done().map(drop)
}

fn of_no_slot(t: &Case) -> Outcome {
    const LAST: u32 = USER_MEM_SLOTS - 1;
    let parts = Parts::new(t)?;
    let log = |slot| parts.vm.dirty_log(slot, PageCount(SIZE / PAGE_SIZE));
    let none =
        |what: &str, slot, errno| expect_errno(&format!("the dirty log of slot {slot:#x}, {what}"), log(slot), errno);
    none("which never was", LAST, Errno::ENOENT)?;
    let logged = Region { slot: LAST, flags: MEM_LOG_DIRTY_PAGES, ..parts.shared_region() };
    expect_ok("making a logged slot", parts.set(logged))?;
    expect_eq("its dirty pages", &expect_ok("its dirty log", log(LAST))?, &vec![0])?;
    none("beside it", LAST - 1, Errno::ENOENT)?;
    for slot in [USER_MEM_SLOTS, USER_MEM_SLOTS + 1, 0xffff] {
        none("an id of KVM's own or of nobody", slot, Errno::EINVAL)?;
    }
    for space in [2, 0xffff] {
        none("in an address space that no VM has", space << 16 | LAST, Errno::EINVAL)?;
    }
    expect_ok("deleting the slot", parts.delete(LAST))?;
    none("which is deleted", LAST, Errno::ENOENT)
}

fn neighbours(t: &Case) -> Outcome {
    const EACH: u64 = 4;
    let elsewhere = RangeSpec::new(1).backing(Backing::HostOnly).at(Gpa(0x2_0000_0000));
    let three = RangeSpec::new(3 * EACH).slots(3).backing(Backing::HostOnly);
    let g = t.guest().range(three).range(elsewhere).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let between = range.slots()[1].clone();
    let faults = Counters::of_vcpu(&g)?;
    let beside = |pattern| {
        faults.expect_growth("pf_taken", 0, || {
            v.fill(range.shared_gva(EACH - 1), 1, pattern, EACH - 1)?;
            v.fill(range.shared_gva(2 * EACH), 1, pattern, 2 * EACH)
        })
    };
    v.fill(range.shared_gva(0), 3 * EACH, A, 0)?;
    beside(B)?;
    let logged = Region { flags: MEM_LOG_DIRTY_PAGES, ..between.region() };
    expect_ok("logging the slot", g.vm().set_user_memory_region2_raw(&logged, Some(range.host())))?;
    beside(A)?;
    let expect_log = |pages: u64| {
        let log = g.vm().dirty_log(between.slot, PageCount(EACH));
        expect_eq("the dirty pages", &expect_ok("KVM_GET_DIRTY_LOG", log)?, &vec![pages])
    };
    v.fill(range.shared_gva(EACH), EACH, B, EACH)?;
    expect_log(0xf)?;
    beside(B)?;
    expect_log(0)
}

fn refused_move(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    let logged = Region { flags: MEM_LOG_DIRTY_PAGES, ..range.slots()[0].region() };
    v.fill(range.shared_gva(1), 1, A, 1)?;
    for _ in 0..4 {
        let away = Region { guest_phys_addr: 1 << 52, ..logged };
        let moved = g.vm().set_user_memory_region2_raw(&away, Some(range.host()));
        expect_errno("moving the slot to where no CPU reaches", moved, Errno::EINVAL)?;
    }
    v.fill(range.shared_gva(2), 1, A, 2)?;
    expect_dirty(&g, PAGE_1 | PAGE_2)?;
    v.fill(range.shared_gva(2), 1, B, 2)?;
    expect_dirty(&g, PAGE_2)
}

fn first_touch(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(1), 1, A, 1)?;
    v.fill(range.shared_gva(2), 1, B, 2)?;
    expect_dirty(&g, PAGE_1 | PAGE_2)?;
    v.expect(range.shared_gva(1), 1, A, 1)?;
    v.fill(range.shared_gva(2), 1, A, 2)?;
    expect_dirty(&g, PAGE_2)
}

fn first_touch_of_nothing(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    v.expect(range.shared_gva(1), 1, Pattern::ZERO, 1)?;
    expect_dirty(&g, 0)?;
    v.fill(range.shared_gva(1), 1, B, 1)?;
    expect_dirty(&g, PAGE_1)
}

fn not_the_host(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    v.fill(range.shared_gva(0), 4, A, 0)?;
    expect_dirty(&g, 0xf)?;
    range.host_fill(range.all(), B)?;
    v.expect(range.shared_gva(0), 4, B, 0)?;
    expect_dirty(&g, 0)
}

fn clocks(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    v.call(Op::WriteMsr { msr: WALL_CLOCK, value: range.gpa(1).0 })?;
    expect_dirty(&g, PAGE_1)?;
    v.call(Op::WriteMsr { msr: SYSTEM_TIME, value: range.gpa(2).0 | 1 })?;
    v.call(Op::Nop)?;
    v.call(Op::WriteMsr { msr: SYSTEM_TIME, value: 0 })?;
    expect_dirty(&g, PAGE_2)
}

/// HV_X64_MSR_GUEST_OS_ID: there are no hypercalls without one.
const HV_GUEST_OS_ID: u32 = 0x4000_0000;
/// HV_X64_MSR_HYPERCALL; bit 0 of its value switches it on, as in the next.
const HV_HYPERCALL: u32 = 0x4000_0001;
/// HV_X64_MSR_REFERENCE_TSC.
const HV_REFERENCE_TSC: u32 = 0x4000_0021;

fn hyper_v(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    // User space may set them for a guest that does not know of Hyper-V.
    v.kvm().set_msr(HV_GUEST_OS_ID, 1)?;
    v.kvm().set_msr(HV_HYPERCALL, range.gpa(1).0 | 1)?;
    expect_dirty(&g, PAGE_1)?;
    v.kvm().set_msr(HV_REFERENCE_TSC, range.gpa(2).0 | 1)?;
    v.call(Op::Nop)?;
    expect_dirty(&g, PAGE_2)
}

/// MSR_KVM_STEAL_TIME; bit 0 of its value switches it on.
const STEAL_TIME: u32 = 0x4b56_4d03;

fn steal_time(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    log_from_the_start(&g)?;
    v.call(Op::WriteMsr { msr: STEAL_TIME, value: range.gpa(1).0 | 1 })?;
    v.call(Op::Nop)?;
    v.call(Op::WriteMsr { msr: STEAL_TIME, value: 0 })?;
    expect_dirty(&g, PAGE_1)
}

/// With `kvm.force_emulation_prefix` KVM emulates what follows (arch/x86/kvm/x86.c: handle_ud).
const PREFIX: [u8; 5] = [0x0f, 0x0b, b'k', b'v', b'm'];

fn emulated(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range, code) = (g.vcpu(0), g.range(0), g.range(1).private_gva(0));
    log_from_the_start(&g)?;
    range.host_fill(range.all(), Pattern::ZERO)?;
    // xor eax, eax; mov ecx, 7
    let mut function = vec![0x31, 0xc0, 0xb9, 7, 0, 0, 0];
    function.extend(PREFIX);
    // lock cmpxchg [rdi], rcx
    function.extend([0xf0, 0x48, 0x0f, 0xb1, 0x0f]);
    function.extend(PREFIX);
    // mov [rdi + 4096], rcx; ret
    function.extend([0x48, 0x89, 0x8f, 0x00, 0x10, 0x00, 0x00, 0xc3]);
    v.write_bytes(code, &function)?;
    v.call(Op::Execute { gva: code.0, argument: range.shared_gva(1).0 })?;
    expect_dirty(&g, PAGE_1 | PAGE_2)?;
    for page in [1, 2] {
        expect_eq("the word in the host's view", &range.host().read_u64(page * PageCount(1).bytes())?, &7)?;
    }
    Ok(())
}
