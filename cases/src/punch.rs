//! Group `punch`: holes in a guest_memfd free pages, and the next use finds zeros.

mod snp;

use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use privet_harness::alarm::Alarm;
use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{RangeSpec, TestRange};
use privet_harness::units::PAGE_SIZE;
use privet_protocol::{Op, Pattern, Width};

use crate::expect::{expect_eq, expect_errno, expect_ok, expect_that};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const PUNCH: &str = "virt/kvm/guest_memfd.c: kvm_gmem_punch_hole";
const FALLOCATE: &str = "virt/kvm/guest_memfd.c: kvm_gmem_fallocate";
const UPSTREAM_PUNCH: &str = "x86/private_mem_conversions_test: guest_test_punch_hole";
const UPSTREAM_FALLOCATE: &str = "guest_memfd_test: test_fallocate, test_invalid_punch_hole";

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut guest_rows = vec![
        Row::new(
            "punch.precise",
            Types::UPM,
            "A hole of exactly the private pages makes exactly them read as zero; they stay private.",
            |t| punch(t, 8..16, 8..16),
        )
        .basis(&[PUNCH])
        .upstream(UPSTREAM_PUNCH),
        Row::new(
            "punch.around",
            Types::UPM,
            "A hole that is larger than the private pages zeroes them and leaves the shared pages around alone.",
            |t| punch(t, 8..16, 0..32),
        )
        .basis(&[PUNCH])
        .upstream(UPSTREAM_PUNCH),
        Row::new("punch.within", Types::UPM, "A hole inside a private range zeroes its pages and no others.", |t| {
            punch(t, 4..28, 9..11)
        })
        .basis(&[PUNCH])
        .exceeds(UPSTREAM_PUNCH),
        Row::new(
            "punch.past_the_end",
            Types::UPM,
            "A hole that begins inside the file and ends past it zeroes what there is.",
            |t| punch(t, 16..32, 24..4096),
        )
        .basis(&[PUNCH])
        .exceeds(UPSTREAM_PUNCH),
        Row::new(
            "punch.across_slots",
            Types::UPM,
            "A hole over the end of one slot into the next zeroes the pages of both.",
            across_slots,
        )
        .basis(&[PUNCH, "virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin"]),
        Row::new(
            "punch.under_a_running_guest",
            Types::UPM,
            "200 holes under a page that a running vCPU keeps incrementing: every value that it can have is \
             small again after the last hole, and the guest never leaves for it.",
            under_a_running_guest,
        )
        .basis(&[PUNCH, "virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin, mmu_invalidate_retry"]),
        Row::new(
            "punch.while_shared",
            Types::UPM,
            "A hole under a page that is shared at the moment loses the private content and not the shared one.",
            while_shared,
        )
        .basis(&[PUNCH]),
        Row::new(
            "punch.allocation_keeps_content",
            Types::UPM,
            "Allocating pages that exist changes nothing.",
            allocation_keeps_content,
        )
        .basis(&[FALLOCATE])
        .upstream(UPSTREAM_FALLOCATE),
    ];
    guest_rows.extend(snp::rows());
    let mut rows: Vec<Row> = guest_rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect();
    rows.extend([
        Row::new(
            "punch.after_the_vm_is_closed",
            Types::UPM,
            "A guest_memfd whose VM and slots are gone can still be allocated and punched.",
            after_the_vm_is_closed,
        )
        .basis(&[PUNCH, "virt/kvm/guest_memfd.c: kvm_gmem_release"])
        .upstream("x86/private_mem_conversions_test: test_mem_conversions"),
        Row::new(
            "punch.fallocate_errors",
            Types::ALL,
            "fallocate answers every bad mode, offset and length with its errno and allows every good one.",
            fallocate_errors,
        )
        .basis(&[FALLOCATE])
        .upstream(UPSTREAM_FALLOCATE),
        Row::new(
            "punch.allocation_is_interrupted",
            Types::UPM,
            "A signal ends an allocation that takes long with EINTR, and the file is as good as before.",
            allocation_is_interrupted,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_allocate: signal_pending"]),
    ]);
    rows.into_iter().map(|row| row.needs(Need::GuestMemfd)).collect()
}

fn punch(t: &Case, private: std::ops::Range<u64>, hole: std::ops::Range<u64>) -> Outcome {
    let g = t.guest().range(RangeSpec::new(32)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.shared_gva(0), 32, A, 0)?;
    range.set_private(g.vm(), private.clone())?;
    v.fill(range.private_gva(private.start), private.end - private.start, B, private.start)?;
    range.punch(hole.clone())?;
    let exits = t.trace().exits();
    for page in 0..32 {
        let pattern = match (private.contains(&page), hole.contains(&page)) {
            (false, _) => A,
            (true, false) => B,
            (true, true) => Pattern::ZERO,
        };
        v.expect(range.private_gva(page), 1, pattern, page)?;
    }
    range.host_expect(range.all(), A)?;
    // The attribute is as it was: the guest's next write is private, and no exit asked for anything.
    v.fill(range.private_gva(private.start), private.end - private.start, B, private.start)?;
    range.host_expect(range.all(), A)?;
    crate::expect::expect_no_exit_but(t, exits, 32 + 1)
}

fn across_slots(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(32).slots(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(0), 32, B, 0)?;
    range.punch(12..20)?;
    v.expect(range.private_gva(0), 12, B, 0)?;
    v.expect(range.private_gva(12), 8, Pattern::ZERO, 12)?;
    v.expect(range.private_gva(20), 12, B, 20)
}

fn under_a_running_guest(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).range(RangeSpec::new(3)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(0), 3, B, 0)?;
    let counter = range.private_gva(1);
    range.punch(1..2)?;
    let exits = t.trace().exits();
    let busy = g.vcpu(1).hammer(Op::HammerAdd { gva: counter.0, pages: 1, limit: 0 })?;
    for _ in 0..200 {
        range.punch(1..2)?;
        // The page may have been incremented since, but what was before the hole is gone: the rest of it is zero.
        v.expect_read(counter + 8, Width::B8, 0)?;
        v.write(counter + 8, Width::B8, 0x5a5a)?;
    }
    range.punch(1..2)?;
    g.vcpu(1).stop()?;
    let [rounds, ..] = busy.done()?;
    let left = v.read(counter, Width::B8)?;
    expect_that(left < rounds, || {
        format!("{left} increments survived {rounds} rounds although the last hole came after them")
    })?;
    v.expect_read(counter + 8, Width::B8, 0)?;
    v.expect(range.private_gva(0), 1, B, 0)?;
    v.expect(range.private_gva(2), 1, B, 2)?;
    crate::expect::expect_no_exit_but(t, exits, 400 + 1 + 4)
}

fn while_shared(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.shared_gva(0), 2, A, 0)?;
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(0), 2, B, 0)?;
    range.set_shared(g.vm(), range.all())?;
    range.punch(0..1)?;
    v.expect(range.shared_gva(0), 2, A, 0)?;
    range.set_private(g.vm(), range.all())?;
    v.expect(range.private_gva(0), 1, Pattern::ZERO, 0)?;
    v.expect(range.private_gva(1), 1, B, 1)
}

fn allocation_keeps_content(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(4)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), range.all())?;
    v.fill(range.private_gva(1), 2, B, 1)?;
    range.allocate(range.all())?;
    range.allocate(range.all())?;
    v.expect(range.private_gva(0), 1, Pattern::ZERO, 0)?;
    v.expect(range.private_gva(1), 2, B, 1)?;
    v.expect(range.private_gva(3), 1, Pattern::ZERO, 3)
}

fn after_the_vm_is_closed(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mut range = TestRange::install(&vm, RangeSpec::new(16), 0)?;
    range.set_private(&vm, range.all())?;
    range.allocate(0..8)?;
    let file = range.take_gmem()?;
    drop(range);
    drop(vm);
    expect_ok("punching all of it", file.fallocate_raw(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, 16 * PAGE_SIZE))?;
    expect_ok("allocating all of it", file.fallocate_raw(FALLOC_FL_KEEP_SIZE, 0, 16 * PAGE_SIZE))?;
    expect_ok(
        "punching one page",
        file.fallocate_raw(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, PAGE_SIZE, PAGE_SIZE),
    )?;
    let stat = expect_ok("fstat", file.fstat())?;
    expect_eq("the size of the file", &(stat.st_size as u64), &(16 * PAGE_SIZE))
}

fn allocation_is_interrupted(t: &Case) -> Outcome {
    /// Enough to take a while, and little enough for any machine.
    const SIZE: u64 = 64 << 20;
    let file = t.vm()?.create_guest_memfd(SIZE, 0)?;
    let allocate = || file.fallocate_raw(FALLOC_FL_KEEP_SIZE, 0, SIZE);
    let punch = || file.fallocate_raw(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, SIZE);
    // It rings every few milliseconds, which may be between two calls.
    let alarm = Alarm::after(Duration::from_millis(1))?;
    let mut interrupted = None;
    for _ in 0..100 {
        interrupted = allocate().err();
        if interrupted.is_some() {
            break;
        }
        expect_ok("punching all of it", punch())?;
    }
    drop(alarm);
    expect_eq("what ended one of 100 allocations under an alarm", &interrupted, &Some(Errno::EINTR))?;
    expect_ok("allocating all of it", allocate())?;
    expect_ok("punching all of it", punch())
}

fn fallocate_errors(t: &Case) -> Outcome {
    const KEEP: i32 = FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
    let vm = t.vm()?;
    let size = 4 * PAGE_SIZE;
    let file = vm.create_guest_memfd(size, 0)?;
    let refused = [
        ("a mode without KEEP_SIZE", 0, 0, size, Errno::EOPNOTSUPP),
        ("PUNCH_HOLE without KEEP_SIZE", FALLOC_FL_PUNCH_HOLE, 0, size, Errno::EOPNOTSUPP),
        ("ZERO_RANGE", KEEP | FALLOC_FL_ZERO_RANGE, 0, size, Errno::EOPNOTSUPP),
        ("COLLAPSE_RANGE", FALLOC_FL_COLLAPSE_RANGE, 0, size, Errno::EOPNOTSUPP),
        ("allocating from an unaligned offset", KEEP, PAGE_SIZE / 2, PAGE_SIZE, Errno::EINVAL),
        ("allocating an unaligned length", KEEP, 0, PAGE_SIZE / 2, Errno::EINVAL),
        ("allocating past the end", KEEP, size, PAGE_SIZE, Errno::EINVAL),
        ("allocating over the end", KEEP, size - PAGE_SIZE, 2 * PAGE_SIZE, Errno::EINVAL),
        ("punching from an unaligned offset", PUNCH, 1, PAGE_SIZE, Errno::EINVAL),
        ("punching an unaligned length", PUNCH, 0, PAGE_SIZE - 1, Errno::EINVAL),
    ];
    for (what, mode, offset, len, errno) in refused {
        expect_errno(what, file.fallocate_raw(mode, offset, len), errno)?;
    }
    let granted = [
        ("allocating all of it", KEEP, 0, size),
        ("allocating the last page", KEEP, size - PAGE_SIZE, PAGE_SIZE),
        ("punching all of it", PUNCH, 0, size),
        ("punching past the end", PUNCH, size, PAGE_SIZE),
        ("punching over the end", PUNCH, size - PAGE_SIZE, 2 * PAGE_SIZE),
    ];
    for (what, mode, offset, len) in granted {
        expect_ok(what, file.fallocate_raw(mode, offset, len))?;
    }
    Ok(())
}
