//! Group `prefault`: mapping guest memory ahead of its use with `KVM_PRE_FAULT_MEMORY`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use privet_harness::alarm::Alarm;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::mapping::Mapping;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec, TEST_BASE, TestRange};
use privet_harness::uapi::{Capability, KVM_PRE_FAULT_MEMORY, QUIRK_SLOT_ZAP_ALL};
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vcpu::PreFault;
use privet_protocol::{Op, Pattern, Width};

use crate::accept::expect_not_validated;
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_errno, expect_ok, expect_that};
use crate::paging;
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

/// Pages of most test ranges here; too few for a huge page.
const PAGES: u64 = 16;
/// Pages of 4 KiB in 2 MiB.
const LARGE: u64 = 512;
/// A slot id that no test range has.
const SPARE_SLOT: u32 = 60;

const ARCH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_arch_vcpu_pre_fault_memory, kvm_tdp_page_prefault";
const GENERIC: &str = "virt/kvm/kvm_main.c: kvm_vcpu_pre_fault_memory";
const UPSTREAM: &str = "pre_fault_memory_test: __test_pre_fault_memory";

/// What the memory to be mapped is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shared,
    Private,
}

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (suffix, kind, types) in [("shared", Kind::Shared, Types::ALL), ("private", Kind::Private, Types::UPM)] {
        rows.extend([
            Row::new(
                format!("prefault.maps.{suffix}"),
                types,
                "Every page that was mapped ahead is one more of pages_4k, and the guest reads and writes all of \
                 them without a fault; mapping ahead counts as none itself.",
                move |t| maps(t, kind),
            )
            .basis(&[ARCH, "arch/x86/kvm/mmu/mmu.c: kvm_mmu_do_page_fault: prefetches are not counted in pf_taken"])
            .exceeds(UPSTREAM),
            Row::new(
                format!("prefault.left_over.{suffix}"),
                types,
                "A range that reaches over the end of its slot is mapped up to there: the call succeeds and \
                 leaves GPA and size of the rest; asked for the rest alone it fails and changes nothing.",
                move |t| left_over(t, kind),
            )
            .basis(&[GENERIC])
            .upstream(UPSTREAM),
            Row::new(
                format!("prefault.twice.{suffix}"),
                types,
                "Mapping what is mapped succeeds and maps nothing more.",
                move |t| twice(t, kind),
            )
            .basis(&[ARCH, "arch/x86/kvm/mmu/mmu.c: RET_PF_SPURIOUS"]),
        ]);
    }
    rows.extend([
        Row::new(
            "prefault.mixed",
            Types::UPM,
            "One call maps shared pages from the host's memory and private ones from the guest_memfd, page by \
             page as the attributes say.",
            mixed,
        )
        .basis(&[ARCH]),
        Row::new(
            "prefault.is_a_read",
            Types::UPM,
            "Shared memory that nobody has written is mapped as by a read: the guest reads zeros without a \
             fault, and its writes fault and reach the host.",
            is_a_read,
        )
        .basis(&["Documentation/virt/kvm/api.rst 4.143 KVM_PRE_FAULT_MEMORY: no CoW is broken"]),
        Row::new(
            "prefault.conversion_zaps",
            Types::UPM,
            "A change of the attribute unmaps what was mapped ahead; the guest then faults once for each page \
             and finds the other backing.",
            conversion_zaps,
        )
        .basis(&[ARCH, "arch/x86/kvm/mmu/mmu.c: kvm_arch_pre_set_memory_attributes"]),
        Row::new(
            "prefault.racing_slot_deletion.private",
            Types::UPM,
            "A slot is deleted and made again 100 times under calls for its private pages: each call maps some, \
             or fails with EAGAIN (going away) or EFAULT (gone, told as a memory fault), and all of them end.",
            |t| racing_slot_deletion(t, Kind::Private),
        )
        .risky()
        .basis(&["commit 3ccbf6f47098: EAGAIN instead of a dead-lock", GENERIC])
        .upstream("pre_fault_memory_test: pre_fault_memory, delete_slot_worker"),
        Row::new(
            "prefault.racing_slot_deletion.shared",
            Types::ALL,
            "A slot is deleted and made again 100 times under calls for its pages: each call maps some, or fails with \
             EAGAIN (going away) or ENOENT (gone), and all of them end. In a VM without private memory the quirk by \
             which a deletion invalidates all page tables at once is off: racing_fast_zap has that one.",
            |t| racing_slot_deletion(t, Kind::Shared),
        )
        .risky()
        .needs(Need::Capability(Capability::DISABLE_QUIRKS2, QUIRK_SLOT_ZAP_ALL as i32))
        .basis(&["commit 3ccbf6f47098: EAGAIN instead of a dead-lock", GENERIC])
        .upstream("pre_fault_memory_test: pre_fault_memory, delete_slot_worker"),
        Row::new(
            "prefault.racing_fast_zap",
            Types::PLAIN,
            "Another slot comes and goes, which invalidates all page tables, under calls for 512 pages: each call \
             ends by itself or, at the latest, by a signal, and so does the deletion that waits for it. \
             (Linux 7.3.4 needs the signal: it retries for ever with a page table that is no longer valid.)",
            racing_fast_zap,
        )
        .risky()
        .basis(&["commits 20a6cff3b283, 355323a4dc94: obsolete roots while prefaulting", ARCH]),
    ]);
    let mut rows: Vec<Row> = rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect();
    rows.extend([
        Row::new(
            "prefault.bad_arguments",
            Types::WITH_SHARED_CODE,
            "A GPA or a size that is not whole pages, no size at all, a range that wraps and any flag are \
             EINVAL, and nothing is done.",
            bad_arguments,
        )
        .basis(&[GENERIC]),
        Row::new(
            "prefault.no_slot",
            Types::WITH_SHARED_CODE,
            "Where no slot is, shared memory cannot be mapped: ENOENT, and nothing of the range is done.",
            |t| nothing_there(t, &[TEST_BASE], Kind::Shared),
        )
        .basis(&[ARCH, "arch/x86/kvm/mmu/mmu.c: RET_PF_EMULATE"])
        .upstream(UPSTREAM),
        Row::new(
            "prefault.out_of_range",
            Types::WITH_SHARED_CODE,
            "A GPA that no CPU can reach is one without a slot: ENOENT, and no warning in the kernel log.",
            |t| nothing_there(t, &OUT_OF_RANGE, Kind::Shared),
        )
        .basis(&[
            "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault: gfn > kvm_mmu_max_gfn()",
            "warning for a GPA out of range (Fixes: 6e01b7601dfe)",
        ]),
        Row::new(
            "prefault.unreadable_argument",
            Types::ALL_BUT_TDX,
            "An argument that cannot be read is EFAULT, and no memory fault.",
            unreadable_argument,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vcpu_ioctl, KVM_PRE_FAULT_MEMORY"]),
    ]);
    let shadow_paging = Row::new(
        "prefault.shadow_paging",
        Types::PLAIN,
        "Without two-dimensional paging nothing can be mapped ahead: EOPNOTSUPP, for memory and for nothing alike, and \
         nothing of the range is done.",
        shadow_paging,
    )
    .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_tdp_page_prefault restricts itself to kvm_tdp_page_fault"])
    .needs(paging::shadow());
    rows.extend([
        Row::new(
            "prefault.before_the_launch",
            Types::SNP,
            "Before an SNP guest's launch is finished nothing can be mapped ahead: EOPNOTSUPP, for what has a slot as for \
             what has none.",
            before_the_launch,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: snp_launch_finish sets pre_fault_allowed", "commit 5932ca411e53"]),
        Row::new(
            "prefault.maps.private_of_snp",
            Types::SNP,
            "Private pages that were mapped ahead are one more of pages_4k each, and still nobody has validated them: the \
             guest takes #VC, validates them, and uses them without a fault.",
            maps_private_of_snp,
        )
        .basis(&[ARCH, "svm/sev.c: sev_gmem_prepare"])
        .needs(Need::GuestCode),
        Row::new(
            "prefault.no_slot.private",
            Types::UPM,
            "Private memory without a slot is EFAULT, with the memory fault that a guest's access would give.",
            |t| nothing_there(t, &[TEST_BASE], Kind::Private),
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault"]),
        Row::new(
            "prefault.out_of_range.private",
            Types::UPM,
            "A private GPA that no CPU can reach is EFAULT with a memory fault of exactly that page, and no \
             warning in the kernel log.",
            |t| nothing_there(t, &OUT_OF_RANGE, Kind::Private),
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault"]),
        Row::new(
            "prefault.no_guest_memfd",
            Types::UPM,
            "Private memory in a slot without a guest_memfd is EFAULT with a memory fault; once it is shared \
             again, it is mapped.",
            no_guest_memfd,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn_gmem"]),
        Row::new(
            "prefault.closed_guest_memfd",
            Types::UPM,
            "Private memory whose guest_memfd was closed is EFAULT with a memory fault.",
            closed_guest_memfd,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_get_pfn, kvm_gmem_get_file"]),
    ]);
    let rows = rows.into_iter().map(|row| row.needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)));
    rows.chain([shadow_paging]).collect()
}

/// GPAs above the 52 bits that x86 has at most.
const OUT_OF_RANGE: [Gpa; 3] = [Gpa(1 << 52), Gpa(1 << 63), Gpa(0_u64.wrapping_sub(2 * PAGE_SIZE))];

/// A guest with [`PAGES`] pages that it has not touched and that the host filled with A, and one page more,
/// by which the payload has shown KVM its code and stack. Also the pattern that the guest will see.
fn guest(t: &Case, kind: Kind) -> Outcome<(Guest, Pattern)> {
    let g = t.guest().range(RangeSpec::new(PAGES + 1).backing(t.platform().backing())).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..PAGES, A)?;
    v.fill(range.shared_gva(PAGES), 1, A, 0)?;
    v.expect(range.shared_gva(PAGES), 1, A, 0)?;
    if kind == Kind::Shared {
        return Ok((g, A));
    }
    range.set_private(g.vm(), 0..PAGES)?;
    Ok((g, Pattern::ZERO))
}

fn before_the_launch(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let range = TestRange::install(&vm, RangeSpec::new(1), 0)?;
    let vcpu = vm.create_vcpu(0)?;
    for gpa in [range.gpa(0), range.gpa(1)] {
        expect_none(vcpu.pre_fault(gpa, PageCount(1))?, Errno::EOPNOTSUPP, gpa, PAGE_SIZE)?;
    }
    range.set_private(&vm, 0..1)?;
    expect_none(vcpu.pre_fault(range.gpa(0), PageCount(1))?, Errno::EOPNOTSUPP, range.gpa(0), PAGE_SIZE)
}

fn maps_private_of_snp(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(PAGES + 1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    // The same operations beside it, so that nothing but the pages in question is new to KVM.
    g.make_private(0, PAGES..PAGES + 1)?;
    v.fill(range.private_gva(PAGES), 1, A, 0)?;
    v.expect(range.private_gva(PAGES), 1, A, 0)?;
    range.set_private(g.vm(), 0..PAGES)?;
    let (vm_counters, vcpu_counters) = (Counters::of_vm(&g)?, Counters::of_vcpu(&g)?);
    vcpu_counters.expect_growth("pf_taken", 0, || {
        vm_counters.expect_growth("pages_4k", PAGES as i64, || {
            expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(PAGES))?, range.gpa(PAGES))
        })?;
        let read = Op::Read { gva: range.private_gva(0).0, width: Width::B8 };
        expect_not_validated(v.attempt(read)?)?;
        g.make_private(0, 0..PAGES)?;
        v.fill(range.private_gva(0), PAGES, B, 0)?;
        v.expect(range.private_gva(0), PAGES, B, 0)
    })
}

/// Expects that all of a range was mapped.
fn expect_all(done: PreFault, end: Gpa) -> Outcome {
    expect_eq("KVM_PRE_FAULT_MEMORY", &(done.result, done.gpa, done.size), &(Ok(()), end, 0))
}

/// Expects that nothing was mapped: this error number, the range as it was given, and a memory fault of its
/// first page exactly where the error is EFAULT.
fn expect_none(done: PreFault, errno: Errno, gpa: Gpa, size: u64) -> Outcome {
    let memory_fault = (errno == Errno::EFAULT).then(|| Exit::memory_fault(gpa, true));
    let expected = PreFault { result: Err(errno), gpa, size, memory_fault };
    expect_eq("KVM_PRE_FAULT_MEMORY", &done, &expected)
}

/// Expects that some of a range was mapped, from its start on, and that the rest is told.
fn expect_part(done: &PreFault, gpa: Gpa, size: u64) -> Outcome {
    let is_part = done.result.is_ok() && done.gpa > gpa && done.gpa.0 + done.size == gpa.0 + size;
    expect_that(is_part, || format!("KVM_PRE_FAULT_MEMORY of {size:#x} bytes at gpa {gpa} left {done:x?}"))
}

fn maps(t: &Case, kind: Kind) -> Outcome {
    let (g, seen) = guest(t, kind)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let (vm_counters, vcpu_counters) = (Counters::of_vm(&g)?, Counters::of_vcpu(&g)?);
    vcpu_counters.expect_growth("pf_taken", 0, || {
        vm_counters.expect_growth("pages_4k", PAGES as i64, || {
            expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(PAGES))?, range.gpa(PAGES))
        })?;
        v.expect(range.shared_gva(0), PAGES, seen, 0)?;
        v.fill(range.shared_gva(0), PAGES, B, 0)
    })?;
    range.host_expect(0..PAGES, if kind == Kind::Shared { B } else { A })
}

fn left_over(t: &Case, kind: Kind) -> Outcome {
    let (g, _) = guest(t, kind)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let end = range.gpa(PAGES + 1);
    if kind == Kind::Private {
        // Private beyond the slot's end too: the rest is no MMIO.
        g.vm().set_private(range.gpa(PAGES), PageCount(4))?;
    }
    let done = v.kvm().pre_fault(range.gpa(PAGES - 2), PageCount(6))?;
    expect_eq("KVM_PRE_FAULT_MEMORY", &(done.result, done.gpa, done.size), &(Ok(()), end, 3 * PAGE_SIZE))?;
    let errno = if kind == Kind::Shared { Errno::ENOENT } else { Errno::EFAULT };
    expect_none(v.kvm().pre_fault(end, PageCount(3))?, errno, end, 3 * PAGE_SIZE)
}

fn twice(t: &Case, kind: Kind) -> Outcome {
    let (g, seen) = guest(t, kind)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let all = || expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(PAGES))?, range.gpa(PAGES));
    all()?;
    Counters::of_vm(&g)?.expect_growth("pages_4k", 0, all)?;
    v.expect(range.shared_gva(0), PAGES, seen, 0)
}

fn mixed(t: &Case) -> Outcome {
    let (g, _) = guest(t, Kind::Shared)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    for page in (0..PAGES).step_by(2) {
        range.set_private(g.vm(), page..page + 1)?;
    }
    Counters::of_vcpu(&g)?.expect_growth("pf_taken", 0, || {
        expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(PAGES))?, range.gpa(PAGES))?;
        for page in 0..PAGES {
            v.expect(range.shared_gva(page), 1, if page % 2 == 0 { Pattern::ZERO } else { A }, page)?;
        }
        v.fill(range.shared_gva(0), PAGES, B, 0)
    })?;
    for page in 0..PAGES {
        range.host_expect(page..page + 1, if page % 2 == 0 { A } else { B })?;
    }
    Ok(())
}

fn is_a_read(t: &Case) -> Outcome {
    let (g, _) = guest(t, Kind::Shared)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host().discard(0, PAGES * PAGE_SIZE)?;
    let faults = Counters::of_vcpu(&g)?;
    faults.expect_growth("pf_taken", 0, || {
        expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(PAGES))?, range.gpa(PAGES))?;
        v.expect(range.shared_gva(0), PAGES, Pattern::ZERO, 0)
    })?;
    let before = faults.get("pf_taken")?;
    v.fill(range.shared_gva(0), PAGES, B, 0)?;
    let taken = faults.get("pf_taken")? - before;
    expect_that(taken >= PAGES, || format!("the guest's writes to {PAGES} fresh pages took {taken} faults"))?;
    range.host_expect(0..PAGES, B)
}

fn conversion_zaps(t: &Case) -> Outcome {
    let (g, _) = guest(t, Kind::Private)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(PAGES))?, range.gpa(PAGES))?;
    Counters::of_vm(&g)?.expect_growth("pages_4k", -(PAGES as i64), || range.set_shared(g.vm(), 0..PAGES))?;
    Counters::of_vcpu(&g)?.expect_growth("pf_taken", PAGES as i64, || v.expect(range.shared_gva(0), PAGES, A, 0))
}

fn racing_slot_deletion(t: &Case, kind: Kind) -> Outcome {
    let (g, seen) = guest(t, kind)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let gone = if kind == Kind::Shared { Errno::ENOENT } else { Errno::EFAULT };
    let (gpa, all) = (range.gpa(0), PageCount(PAGES));
    if !t.platform().has_private_memory() {
        expect_ok(
            "switching the quirk off",
            g.vm().enable_cap(Capability::DISABLE_QUIRKS2, [QUIRK_SLOT_ZAP_ALL, 0, 0, 0]),
        )?;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let deletions = scope.spawn(|| {
            let deleted = (0..100).try_for_each(|_| {
                g.vm().delete_slot(range.slots()[0].slot)?;
                g.vm().add_slot(range.slots()[0].clone()).map(drop)
            });
            over.store(true, Ordering::Release);
            deleted
        });
        while !over.load(Ordering::Acquire) {
            let done = v.kvm().pre_fault(gpa, all)?;
            match done.result {
                Ok(()) => expect_part(&done, gpa, all.bytes())?,
                Err(Errno::EAGAIN) => expect_none(done, Errno::EAGAIN, gpa, all.bytes())?,
                Err(_) => expect_none(done, gone, gpa, all.bytes())?,
            }
        }
        deletions.join().unwrap_or_else(|_| Err(Stop::Error("the thread that deletes panicked".into())))
    })?;
    expect_all(v.kvm().pre_fault(gpa, all)?, range.gpa(PAGES))?;
    v.expect(range.shared_gva(0), PAGES, seen, 0)
}

fn bad_arguments(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mapping = Arc::new(Mapping::anonymous(2 * PAGE_SIZE)?);
    vm.add_slot(SlotSpec::shared(0, TEST_BASE, PageCount(2), &mapping))?;
    let vcpu = vm.create_vcpu(0)?;
    let base = TEST_BASE.0;
    for (gpa, size, flags) in [
        (base + 1, PAGE_SIZE, 0),
        (base + PAGE_SIZE / 2, PAGE_SIZE, 0),
        (base, PAGE_SIZE + 8, 0),
        (base, PAGE_SIZE - 1, 0),
        (base, 0, 0),
        (base, 0_u64.wrapping_sub(base), 0),
        (0_u64.wrapping_sub(PAGE_SIZE), 2 * PAGE_SIZE, 0),
        (base, PAGE_SIZE, 1),
        (base, PAGE_SIZE, 1 << 63),
    ] {
        expect_none(vcpu.pre_fault_raw(gpa, size, flags)?, Errno::EINVAL, Gpa(gpa), size)?;
    }
    expect_all(vcpu.pre_fault(TEST_BASE, PageCount(1))?, TEST_BASE + PageCount(1))
}

fn shadow_paging(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mapping = Arc::new(Mapping::anonymous(2 * PAGE_SIZE)?);
    vm.add_slot(SlotSpec::shared(0, TEST_BASE, PageCount(2), &mapping))?;
    let vcpu = vm.create_vcpu(0)?;
    expect_eq("KVM_CAP_PRE_FAULT_MEMORY", &vm.check_extension(Capability::PRE_FAULT_MEMORY), &0)?;
    for gpa in [TEST_BASE, TEST_BASE + PageCount(2)] {
        expect_none(vcpu.pre_fault(gpa, PageCount(2))?, Errno::EOPNOTSUPP, gpa, 2 * PAGE_SIZE)?;
    }
    Ok(())
}

fn unreadable_argument(t: &Case) -> Outcome {
    let vcpu = t.vm()?.create_vcpu(0)?;
    expect_errno("KVM_PRE_FAULT_MEMORY of nothing", vcpu.ioctl_raw(KVM_PRE_FAULT_MEMORY, 0)?, Errno::EFAULT)
}

fn nothing_there(t: &Case, gpas: &[Gpa], kind: Kind) -> Outcome {
    let vm = t.vm()?;
    let vcpu = vm.create_vcpu(0)?;
    for &gpa in gpas {
        let errno = match kind {
            Kind::Shared => Errno::ENOENT,
            Kind::Private => {
                vm.set_private(gpa, PageCount(1))?;
                Errno::EFAULT
            }
        };
        expect_none(vcpu.pre_fault(gpa, PageCount(1))?, errno, gpa, PAGE_SIZE)?;
    }
    Ok(())
}

fn no_guest_memfd(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mapping = Arc::new(Mapping::anonymous(2 * PAGE_SIZE)?);
    vm.add_slot(SlotSpec::shared(0, TEST_BASE, PageCount(2), &mapping))?;
    vm.set_private(TEST_BASE, PageCount(2))?;
    let vcpu = vm.create_vcpu(0)?;
    expect_none(vcpu.pre_fault(TEST_BASE, PageCount(2))?, Errno::EFAULT, TEST_BASE, 2 * PAGE_SIZE)?;
    vm.set_shared(TEST_BASE, PageCount(2))?;
    expect_all(vcpu.pre_fault(TEST_BASE, PageCount(2))?, TEST_BASE + PageCount(2))
}

fn closed_guest_memfd(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let mut range = TestRange::install(&vm, RangeSpec::new(2), 0)?;
    range.set_private(&vm, 0..2)?;
    let vcpu = vm.create_vcpu(0)?;
    expect_all(vcpu.pre_fault(range.gpa(0), PageCount(1))?, range.gpa(1))?;
    drop(range.take_gmem()?);
    expect_none(vcpu.pre_fault(range.gpa(0), PageCount(2))?, Errno::EFAULT, range.gpa(0), 2 * PAGE_SIZE)
}

fn racing_fast_zap(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(LARGE).backing(Backing::HostOnly)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let spare = Arc::new(Mapping::anonymous(PAGE_SIZE)?);
    let other = SlotSpec::shared(SPARE_SLOT, Gpa(0x2_0000_0000), PageCount(1), &spare);
    let (bytes, over) = (LARGE * PAGE_SIZE, AtomicBool::new(false));
    thread::scope(|scope| {
        let deletions = scope.spawn(|| {
            let mut left = 50;
            while left > 0 && !over.load(Ordering::Acquire) {
                g.vm().add_slot(other.clone())?;
                g.vm().delete_slot(other.slot)?;
                left -= 1;
            }
            over.store(true, Ordering::Release);
            Ok(())
        });
        let alarm = Alarm::after(Duration::from_secs(1))?;
        while !over.load(Ordering::Acquire) {
            let done = v.kvm().pre_fault(range.gpa(0), PageCount(LARGE))?;
            if alarm.rang() {
                over.store(true, Ordering::Release);
            }
            match done.result {
                Err(Errno::EINTR) if alarm.rang() => expect_none(done, Errno::EINTR, range.gpa(0), bytes)?,
                _ if alarm.rang() => expect_part(&done, range.gpa(0), bytes)?,
                _ => expect_all(done, range.gpa(LARGE))?,
            }
        }
        drop(alarm);
        deletions.join().unwrap_or_else(|_| Err(Stop::Error("the thread that deletes panicked".into())))
    })?;
    range.host_fill(range.all(), A)?;
    expect_all(v.kvm().pre_fault(range.gpa(0), PageCount(LARGE))?, range.gpa(LARGE))?;
    v.expect(range.shared_gva(0), LARGE, A, 0)
}
