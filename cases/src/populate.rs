//! Group `populate`: guest_memfds that the host maps too, and so fills and reads while guests use them.

mod emulated;
mod firmware_pages;
mod launched;

use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::guest_memfd::GuestMemfd;
use privet_harness::mapping::{AccessError, MapOptions, Mapping};
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Lack, LackOf, Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec};
use privet_harness::uapi::{Capability, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP};
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_protocol::{Op, Pattern, Width};

use crate::counters::Counters;
use crate::expect::{expect_eq, expect_errno, expect_no_exit_but, expect_ok, expect_that};
use crate::paging;
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const MMAP: u64 = GUEST_MEMFD_FLAG_MMAP;
const INIT_SHARED: u64 = GUEST_MEMFD_FLAG_INIT_SHARED;

const PAGES: u64 = 8;
const BYTES: u64 = PAGES * PAGE_SIZE;

const USER_FAULT: &str = "virt/kvm/guest_memfd.c: kvm_gmem_fault_user_mapping";
const GMEM_ONLY: &str = "virt/kvm/guest_memfd.c: kvm_gmem_prepare_memory_region sets KVM_MEMSLOT_GMEM_ONLY";
const FAULTIN: &str = "arch/x86/kvm/mmu/mmu.c: __kvm_mmu_faultin_pfn";
const PUNCH: &str = "virt/kvm/guest_memfd.c: kvm_gmem_punch_hole";
const UPSTREAM_GUEST: &str = "guest_memfd_test: test_guest_memfd_guest";
const UPSTREAM_SIGBUS: &str = "guest_memfd_test: test_fault_overflow, test_fault_private";

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let guest_rows = [
        Row::new(
            "populate.one_memory",
            Types::WITHOUT_PRIVATE_MEMORY,
            "Guest and host see each other's writes to a guest_memfd that the host maps, whoever touched a page \
             first.",
            one_memory,
        )
        .basis(&[FAULTIN, USER_FAULT])
        .upstream(UPSTREAM_GUEST),
        Row::new(
            "populate.before_the_slot_exists",
            Types::WITHOUT_PRIVATE_MEMORY,
            "What the host writes into the file before any slot has it is what the guest finds.",
            before_the_slot_exists,
        )
        .basis(&[USER_FAULT, GMEM_ONLY]),
        Row::new(
            "populate.slot_without_a_host_address",
            Types::WITHOUT_PRIVATE_MEMORY,
            "A slot over a mappable guest_memfd serves what the guest itself accesses without any memory at its host \
             address; what KVM accesses for it is another matter (populate.emulated).",
            slot_without_a_host_address,
        )
        .basis(&[GMEM_ONLY, FAULTIN]),
        Row::new(
            "populate.every_mapping_is_the_file",
            Types::WITHOUT_PRIVATE_MEMORY,
            "Two mappings of the file, one of them from an offset on, and the guest see one memory; giving up \
             pages of a mapping (MADV_DONTNEED) loses nothing.",
            every_mapping_is_the_file,
        )
        .basis(&[USER_FAULT]),
        Row::new(
            "populate.hole_zeroes_every_view",
            Types::WITHOUT_PRIVATE_MEMORY,
            "A hole takes its pages out of the guest and out of the host's mapping: both find zeros, and then \
             each other's writes again.",
            hole_zeroes_every_view,
        )
        .basis(&[PUNCH]),
        Row::new(
            "populate.hole_under_a_busy_guest",
            Types::WITHOUT_PRIVATE_MEMORY,
            "100 holes under a page that a vCPU keeps incrementing and that the host has mapped: the guest never \
             exits, and both see the same number in the end.",
            hole_under_a_busy_guest,
        )
        .basis(&[PUNCH, "virt/kvm/guest_memfd.c: kvm_gmem_get_invalidate_filter"]),
        Row::new(
            "populate.prefault",
            Types::WITHOUT_PRIVATE_MEMORY,
            "Pages of a mappable guest_memfd are mapped ahead for the guest, which then reads and writes them \
             without a fault.",
            prefault,
        )
        .basis(&[FAULTIN, "arch/x86/kvm/mmu/mmu.c: kvm_arch_vcpu_pre_fault_memory"])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
        Row::new(
            "populate.file_that_cannot_be_mapped",
            Types::WITHOUT_PRIVATE_MEMORY,
            "A guest_memfd without the flag MMAP is never used in a VM without private memory: the guest's \
             accesses reach the host's memory.",
            |t| host_memory_is_used(t, INIT_SHARED),
        )
        .basis(&[FAULTIN, GMEM_ONLY]),
        Row::new(
            "populate.private_file_serves_the_guest",
            Types::WITHOUT_PRIVATE_MEMORY,
            "A file with MMAP and without INIT_SHARED serves the guest of a plain VM too; the host's mapping of \
             it ends in SIGBUS.",
            private_file_serves_the_guest,
        )
        .basis(&[FAULTIN, USER_FAULT])
        .needs(paging::two_dimensional()),
        Row::new(
            "populate.private_file_serves_the_guest.shadow_paging",
            Types::PLAIN,
            "The same where KVM shadows the guest's page tables: what it maps ahead beside a page that is touched comes \
             from the file, too.",
            private_file_serves_the_guest,
        )
        .basis(&[FAULTIN, USER_FAULT, "arch/x86/kvm/mmu/mmu.c: kvm_mmu_prefetch_sptes"])
        .needs(paging::shadow())
        .open_bug(
            "pages that are mapped ahead come from the host's memory, though the slot has none but its guest_memfd",
            "the guest sees ",
        ),
        Row::new(
            "populate.view_outlives_the_vm",
            Types::WITHOUT_PRIVATE_MEMORY,
            "The host's mapping keeps what the guest wrote when slot, file and VM are closed.",
            view_outlives_the_vm,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_release: memory belongs to the inode"]),
        Row::new(
            "populate.mappable_file_serves_shared_faults",
            Types::UPM,
            "In a slot over a mappable guest_memfd shared accesses are served from the file like private ones: \
             a conversion changes nothing that the guest sees, and the host's memory is never touched.",
            mappable_file_serves_shared_faults,
        )
        .basis(&[GMEM_ONLY, FAULTIN]),
        Row::new(
            "populate.private_pages_are_sigbus",
            Types::UPM,
            "Pages of a private guest_memfd that the guest has written are SIGBUS in the host's mapping, for \
             reads and writes; the guest keeps them.",
            private_pages_are_sigbus,
        )
        .basis(&[USER_FAULT])
        .upstream(UPSTREAM_SIGBUS),
        Row::new(
            "populate.kvm_itself_writes_the_shared_view",
            Types::UPM,
            "What KVM writes on the guest's behalf (the wall clock of MSR 0x4b564d00) reaches the host's memory, \
             also where the page is private: the guest does not see it there.",
            kvm_itself_writes_the_shared_view,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_write_guest", "arch/x86/kvm/msrs.c: kvm_write_wall_clock"]),
        Row::new(
            "populate.kvm_keeps_writing_the_shared_view",
            Types::UPM,
            "The page of the guest's system time (MSR 0x4b564d01), which KVM keeps mapped and writes again and again, is \
             written in the host's memory, through a conversion of the page and back: the guest's private page does not \
             change.",
            kvm_keeps_writing_the_shared_view,
        )
        .basis(&["virt/kvm/pfncache.c: hva_to_pfn_retry", "arch/x86/kvm/x86.c: kvm_setup_guest_pvclock"]),
    ];
    let mut rows: Vec<Row> = guest_rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect();
    rows.extend([
        Row::new(
            "populate.past_the_end_is_sigbus",
            Types::PLAIN,
            "A mapping may be longer than its file: the last page of the file is there, the page after it and \
             all others are SIGBUS at the address that was touched.",
            past_the_end_is_sigbus,
        )
        .basis(&[USER_FAULT])
        .upstream(UPSTREAM_SIGBUS),
        Row::new(
            "populate.fresh_pages_are_zero",
            Types::PLAIN,
            "The host finds zeros in pages of a mappable guest_memfd that nobody has written, and in those that \
             were allocated beforehand.",
            fresh_pages_are_zero,
        )
        .basis(&[USER_FAULT])
        .upstream("guest_memfd_test: test_mmap_supported"),
        Row::new(
            "populate.no_huge_pages",
            Types::PLAIN,
            "The pages of a guest_memfd cannot be made a huge one: MADV_COLLAPSE is EINVAL where it works for \
             ordinary memory, and nothing is lost.",
            no_huge_pages,
        )
        .basis(&["mm/khugepaged.c: madvise_collapse", "virt/kvm/guest_memfd.c: pages of order 0 only"])
        .upstream("guest_memfd_test: test_collapse"),
        Row::new(
            "populate.private_file_is_sigbus",
            Types::ALL,
            "Without INIT_SHARED, which a VM with private memory does not have, a file can be mapped, and every page of \
             it is SIGBUS.",
            private_file_is_sigbus,
        )
        .basis(&[USER_FAULT])
        .upstream(UPSTREAM_SIGBUS),
        Row::new(
            "populate.no_copy_on_write",
            Types::ALL,
            "A guest_memfd with MMAP can be mapped shared only: MAP_PRIVATE is EINVAL, and without the flag both are \
             ENODEV.",
            no_copy_on_write,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_mmap"])
        .upstream("guest_memfd_test: test_mmap_cow, test_mmap_not_supported"),
    ]);
    rows.extend(emulated::rows());
    // A kernel that has the one flag has the other one, too, where there is no private memory.
    let needs =
        |row: Row| row.needs(Need::GuestMemfd).needs(Need::Capability(Capability::GUEST_MEMFD_FLAGS, MMAP as i32));
    rows.into_iter().map(needs).chain(launched::rows()).chain(firmware_pages::rows()).collect()
}

/// A guest whose test range is one guest_memfd that the host maps too.
fn guest(t: &Case) -> Outcome<Guest> {
    t.guest().range(RangeSpec::new(PAGES).backing(Backing::MappedGuestMemfd)).boot()
}

/// All of a file, mapped.
fn map(file: &GuestMemfd, offset: u64, bytes: u64) -> Outcome<Mapping> {
    expect_ok("mmap of a guest_memfd", file.mmap(offset, bytes, MapOptions::new().shared()))
}

/// Expects that reading and writing a byte of `view` is SIGBUS at exactly that address.
fn expect_sigbus(view: &Mapping, offset: u64) -> Outcome {
    let mut byte = [0];
    for (what, access) in [("read", view.try_read(offset, &mut byte)), ("written", view.try_write(offset, &[1]))] {
        match access {
            Err(AccessError::Fault { offset: seen, fault }) if seen == offset && fault.signal == Signal::SIGBUS => {}
            Err(other) => return Err(Stop::Fail(format!("byte {offset:#x} was {what}: expected SIGBUS, saw {other}"))),
            Ok(()) => return Err(Stop::Fail(format!("byte {offset:#x} could be {what}, expected SIGBUS"))),
        }
    }
    Ok(())
}

fn one_memory(t: &Case) -> Outcome {
    let g = guest(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..4, A)?;
    v.fill(range.shared_gva(4), 4, B, 4)?;
    v.expect(range.shared_gva(0), 4, A, 0)?;
    range.host_expect(4..8, B)?;
    v.fill(range.shared_gva(0), 4, B, 0)?;
    range.host_fill(4..8, A)?;
    range.host_expect(0..4, B)?;
    v.expect(range.shared_gva(4), 4, A, 4)?;
    for (at, width) in [(8, Width::B1), (16, Width::B2), (24, Width::B4), (32, Width::B8)] {
        v.write(range.shared_gva(2) + at, width, 0x1122_3344_5566_7788)?;
        let low = width.truncate(0x1122_3344_5566_7788);
        let high = B.word(2) & !width.truncate(u64::MAX);
        expect_eq("the word that the host sees", &range.host().read_u64(2 * PAGE_SIZE + at)?, &(high | low))?;
    }
    Ok(())
}

/// A guest whose test range has no slot, and a slot for it over `file`, with or without memory at its host
/// address.
fn guest_with(t: &Case, flags: u64) -> Outcome<(Guest, Arc<GuestMemfd>, SlotSpec)> {
    let g = t.guest().range(RangeSpec::new(PAGES).backing(Backing::HostOnly)).boot()?;
    let slot = g.range(0).slots()[0].clone();
    g.vm().delete_slot(slot.slot)?;
    let file = g.vm().create_guest_memfd(BYTES, flags)?;
    let slot = slot.with_gmem(&file, 0);
    Ok((g, file, slot))
}

fn before_the_slot_exists(t: &Case) -> Outcome {
    let (g, file, slot) = guest_with(t, MMAP | INIT_SHARED)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let view = map(&file, 0, BYTES)?;
    for page in 0..PAGES {
        view.write_u64(page * PAGE_SIZE, A.word(page))?;
    }
    g.vm().add_slot(slot)?;
    for page in 0..PAGES {
        v.expect_read(range.shared_gva(page), Width::B8, A.word(page))?;
        v.expect_read(range.shared_gva(page) + 8, Width::B8, 0)?;
    }
    Ok(())
}

fn slot_without_a_host_address(t: &Case) -> Outcome {
    let (g, file, slot) = guest_with(t, MMAP | INIT_SHARED)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().add_slot(SlotSpec { mapping: None, ..slot })?;
    let exits = t.trace().exits();
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    v.expect(range.shared_gva(0), PAGES, B, 0)?;
    expect_no_exit_but(t, exits, 2)?;
    let view = map(&file, 0, BYTES)?;
    for page in 0..PAGES {
        expect_eq("the word in the file", &view.read_u64(page * PAGE_SIZE)?, &B.word(page))?;
    }
    Ok(())
}

fn every_mapping_is_the_file(t: &Case) -> Outcome {
    let g = guest(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let tail = map(range.gmem()?, 3 * PAGE_SIZE, BYTES - 3 * PAGE_SIZE)?;
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    expect_eq("the word in the second mapping", &tail.read_u64(0)?, &B.word(3))?;
    tail.write_u64(PAGE_SIZE, 0x5a5a)?;
    v.expect_read(range.shared_gva(4), Width::B8, 0x5a5a)?;
    expect_eq("the word in the first mapping", &range.host().read_u64(4 * PAGE_SIZE)?, &0x5a5a)?;
    tail.discard(0, 2 * PAGE_SIZE)?;
    range.host().discard(0, BYTES)?;
    v.expect_read(range.shared_gva(4), Width::B8, 0x5a5a)?;
    expect_eq("the word in the second mapping", &tail.read_u64(PAGE_SIZE)?, &0x5a5a)?;
    range.host_expect(0..4, B)
}

fn hole_zeroes_every_view(t: &Case) -> Outcome {
    let g = guest(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    range.host_expect(range.all(), B)?;
    Counters::of_vm(&g)?.expect_growth("pages_4k", -3, || range.punch(2..5))?;
    range.host_expect(0..2, B)?;
    range.host_expect(2..4, Pattern::ZERO)?;
    v.expect(range.shared_gva(2), 3, Pattern::ZERO, 2)?;
    v.expect(range.shared_gva(5), 3, B, 5)?;
    range.host_fill(2..3, A)?;
    v.expect(range.shared_gva(2), 1, A, 2)?;
    v.fill(range.shared_gva(4), 1, A, 4)?;
    range.host_expect(4..5, A)
}

fn hole_under_a_busy_guest(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).range(RangeSpec::new(PAGES).backing(Backing::MappedGuestMemfd)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let exits = t.trace().exits();
    let busy = g.vcpu(1).hammer(Op::HammerAdd { gva: range.shared_gva(1).0, pages: 1, limit: 0 })?;
    for _ in 0..100 {
        range.host().write_u64(PAGE_SIZE + 8, 0x5a5a)?;
        range.punch(1..2)?;
        expect_eq("the host's word after the hole", &range.host().read_u64(PAGE_SIZE + 8)?, &0)?;
    }
    g.vcpu(1).stop()?;
    busy.done()?;
    expect_no_exit_but(t, exits, 1)?;
    let counted = range.host().read_u64(PAGE_SIZE)?;
    v.expect_read(range.shared_gva(1), Width::B8, counted)
}

fn prefault(t: &Case) -> Outcome {
    let g = guest(t)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    v.fill(range.shared_gva(0), 1, A, 0)?;
    v.expect(range.shared_gva(0), 1, A, 0)?;
    let faults = Counters::of_vcpu(&g)?;
    faults.expect_growth("pf_taken", 0, || {
        Counters::of_vm(&g)?.expect_growth("pages_4k", PAGES as i64 - 1, || {
            let done = v.kvm().pre_fault(range.gpa(1), PageCount(PAGES - 1))?;
            expect_eq("KVM_PRE_FAULT_MEMORY", &(done.result, done.gpa, done.size), &(Ok(()), range.gpa(PAGES), 0))
        })?;
        v.expect(range.shared_gva(1), PAGES - 1, A, 1)?;
        v.fill(range.shared_gva(1), PAGES - 1, B, 1)
    })?;
    range.host_expect(1..PAGES, B)
}

fn host_memory_is_used(t: &Case, flags: u64) -> Outcome {
    let (g, file, slot) = guest_with(t, flags)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().add_slot(slot)?;
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(0), PAGES, A, 0)?;
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    file.punch(0, BYTES)?;
    v.expect(range.shared_gva(0), PAGES, B, 0)?;
    range.host_expect(range.all(), B)?;
    expect_errno("mmap of the file", file.mmap(0, BYTES, MapOptions::new().shared()), Errno::ENODEV)
}

fn private_file_serves_the_guest(t: &Case) -> Outcome {
    let (g, file, slot) = guest_with(t, MMAP)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().add_slot(slot)?;
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(0), PAGES, Pattern::ZERO, 0)?;
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    let view = map(&file, 0, BYTES)?;
    expect_sigbus(&view, PAGE_SIZE)?;
    v.expect(range.shared_gva(0), PAGES, B, 0)?;
    range.host_expect(range.all(), A)
}

fn view_outlives_the_vm(t: &Case) -> Outcome {
    let g = guest(t)?;
    g.vcpu(0).fill(g.range(0).shared_gva(0), PAGES, B, 0)?;
    let view = map(g.range(0).gmem()?, 0, BYTES)?;
    drop(g);
    for page in 0..PAGES {
        expect_eq("the word in the view", &view.read_u64(page * PAGE_SIZE)?, &B.word(page))?;
        view.write_u64(page * PAGE_SIZE, A.word(page))?;
        expect_eq("the word that was written", &view.read_u64(page * PAGE_SIZE)?, &A.word(page))?;
    }
    Ok(())
}

fn mappable_file_serves_shared_faults(t: &Case) -> Outcome {
    let (g, file, slot) = guest_with(t, MMAP)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().add_slot(slot)?;
    range.host_fill(range.all(), A)?;
    v.expect(range.shared_gva(0), PAGES, Pattern::ZERO, 0)?;
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    range.set_private(g.vm(), 2..6)?;
    v.expect(range.shared_gva(0), PAGES, B, 0)?;
    range.set_shared(g.vm(), range.all())?;
    v.expect(range.shared_gva(0), PAGES, B, 0)?;
    file.punch(0, BYTES)?;
    v.expect(range.shared_gva(0), PAGES, Pattern::ZERO, 0)?;
    range.host_expect(range.all(), A)
}

fn private_pages_are_sigbus(t: &Case) -> Outcome {
    let (g, file, slot) = guest_with(t, MMAP)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().add_slot(slot)?;
    range.set_private(g.vm(), 0..4)?;
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    let view = map(&file, 0, BYTES)?;
    for page in 0..PAGES {
        expect_sigbus(&view, page * PAGE_SIZE + 8)?;
    }
    v.expect(range.shared_gva(0), PAGES, B, 0)
}

/// `MSR_KVM_WALL_CLOCK_NEW`
const MSR_KVM_WALL_CLOCK: u32 = 0x4b56_4d00;

fn kvm_itself_writes_the_shared_view(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 0..1)?;
    for page in 0..2 {
        range.host_fill(page..page + 1, Pattern::ZERO)?;
        v.fill(range.shared_gva(page), 1, if page == 0 { B } else { Pattern::ZERO }, page)?;
        v.call(Op::WriteMsr { msr: MSR_KVM_WALL_CLOCK, value: range.gpa(page).0 })?;
        // Version, seconds, nanoseconds, of 4 bytes each; the version is even once the rest is there.
        let version = range.host().read_u64(page * PAGE_SIZE)? as u32;
        if version == 0 || !version.is_multiple_of(2) {
            return Err(Stop::Fail(format!("the host's view of page {page} has version {version} of the wall clock")));
        }
        expect_eq("the rest of the host's view", &range.host().read_u64(page * PAGE_SIZE + 16)?, &0)?;
    }
    v.expect(range.shared_gva(0), 1, B, 0)?;
    let seen_by_the_guest = v.read(range.shared_gva(1), Width::B8)?;
    expect_eq("the clock in the shared page", &seen_by_the_guest, &range.host().read_u64(PAGE_SIZE)?)
}

/// MSR_KVM_SYSTEM_TIME_NEW; bit 0 of its value switches it on.
const MSR_KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

fn kvm_keeps_writing_the_shared_view(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 0..1)?;
    v.fill(range.shared_gva(0), 1, B, 0)?;
    let written = |when: &str| {
        range.host_fill(0..1, Pattern::ZERO)?;
        v.call(Op::WriteMsr { msr: MSR_KVM_SYSTEM_TIME, value: range.gpa(0).0 | 1 })?;
        v.call(Op::Nop)?;
        // struct pvclock_vcpu_time_info: the version is first, and even once the rest is there.
        let version = range.host().read_u64(0)? as u32;
        let is_there = version != 0 && version.is_multiple_of(2);
        expect_that(is_there, || format!("{when}: the host's view has version {version} of the system time"))
    };
    written("private")?;
    v.expect(range.shared_gva(0), 1, B, 0)?;
    range.set_shared(g.vm(), 0..1)?;
    written("shared")?;
    let seen = v.read(range.shared_gva(0), Width::B4)?;
    expect_eq("the version that the guest sees", &seen, &(range.host().read_u64(0)? & 0xffff_ffff))?;
    range.set_private(g.vm(), 0..1)?;
    written("private again")?;
    v.expect(range.shared_gva(0), 1, B, 0)?;
    v.call(Op::WriteMsr { msr: MSR_KVM_SYSTEM_TIME, value: 0 }).map(drop)
}

fn past_the_end_is_sigbus(t: &Case) -> Outcome {
    let file = t.vm()?.create_guest_memfd(BYTES, MMAP | INIT_SHARED)?;
    let view = map(&file, 0, 2 * BYTES)?;
    view.write_u64(BYTES - 8, 0x5a5a)?;
    for offset in [BYTES, BYTES + 1, BYTES + PAGE_SIZE, 2 * BYTES - 1] {
        expect_sigbus(&view, offset)?;
    }
    let beyond = map(&file, BYTES, PAGE_SIZE)?;
    expect_sigbus(&beyond, 0)?;
    expect_eq("the last word of the file", &view.read_u64(BYTES - 8)?, &0x5a5a)
}

fn fresh_pages_are_zero(t: &Case) -> Outcome {
    let file = t.vm()?.create_guest_memfd(BYTES, MMAP | INIT_SHARED)?;
    file.allocate(0, BYTES / 2)?;
    let view = map(&file, 0, BYTES)?;
    expect_eq("the first byte that is not zero", &view.first_other_than(0, BYTES, 0)?, &None)?;
    view.fill(0, BYTES, 0xaa)?;
    file.punch(PAGE_SIZE, PAGE_SIZE)?;
    expect_eq("the first page", &view.first_other_than(0, PAGE_SIZE, 0xaa)?, &None)?;
    expect_eq("the hole", &view.first_other_than(PAGE_SIZE, PAGE_SIZE, 0)?, &None)?;
    expect_eq("the rest", &view.first_other_than(2 * PAGE_SIZE, BYTES - 2 * PAGE_SIZE, 0xaa)?, &None)
}

fn no_huge_pages(t: &Case) -> Outcome {
    const HUGE: u64 = 2 << 20;
    let options = MapOptions::new().aligned(HUGE);
    let ordinary = Mapping::anonymous_with(HUGE, options)?;
    ordinary.fill(0, HUGE, 0xaa)?;
    if let Err(errno) = ordinary.collapse() {
        let missing = "enable transparent huge pages, or free memory";
        let reason = format!("ordinary memory cannot be made a huge page here either ({errno:?}): {missing}");
        return Err(Stop::Skip(Lack { of: LackOf::Resource, reason }));
    }
    let file = t.vm()?.create_guest_memfd(2 * HUGE, MMAP | INIT_SHARED)?;
    let view = map(&file, 0, 2 * HUGE)?;
    view.fill(0, 2 * HUGE, 0xaa)?;
    expect_errno("MADV_COLLAPSE", view.collapse(), Errno::EINVAL)?;
    expect_eq("the first byte that has changed", &view.first_other_than(0, 2 * HUGE, 0xaa)?, &None)
}

fn private_file_is_sigbus(t: &Case) -> Outcome {
    let file = t.vm()?.create_guest_memfd(BYTES, MMAP)?;
    file.allocate(0, PAGE_SIZE)?;
    let view = map(&file, 0, 2 * BYTES)?;
    for offset in [0, 8, PAGE_SIZE, BYTES - 1, BYTES] {
        expect_sigbus(&view, offset)?;
    }
    Ok(())
}

fn no_copy_on_write(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let file = vm.create_guest_memfd(BYTES, MMAP)?;
    expect_errno("mmap with MAP_PRIVATE", file.mmap(0, BYTES, MapOptions::new()), Errno::EINVAL)?;
    expect_ok("mmap with MAP_SHARED", file.mmap(0, BYTES, MapOptions::new().shared()))?;
    let without_the_flag = vm.create_guest_memfd(BYTES, 0)?;
    for options in [MapOptions::new(), MapOptions::new().shared()] {
        expect_errno("mmap without the flag", without_the_flag.mmap(0, BYTES, options), Errno::ENODEV)?;
    }
    Ok(())
}
