//! Group `exits`: what KVM_RUN says about memory that it cannot map, and that the guest goes on once
//! userspace has repaired it.

mod awaited;
mod implicit;
mod port;
mod shutdown;

use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest_memfd::GuestMemfd;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec, TestRange};
use privet_harness::uapi::{Capability, MEMORY_EXIT_FLAG_PRIVATE};
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_protocol::{Op, Pattern, Width};

use crate::counters::Counters;
use crate::expect::{expect_eq, expect_no_exit_but, expect_that};
use crate::row::Row;
use crate::types::Types;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

const NO_SLOT: &str = "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault";
const GMEM: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn_gmem";
const EXIT: &str = "Documentation/virt/kvm/api.rst 5, KVM_EXIT_MEMORY_FAULT";
const DELETED: &str = "x86/private_mem_kvm_exits_test: test_private_access_memslot_deleted";
const NOT_PRIVATE: &str = "x86/private_mem_kvm_exits_test: test_private_access_memslot_not_private";

/// How the guest accesses a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Execute,
}

const ACCESSES: [(&str, Access); 3] = [("read", Access::Read), ("write", Access::Write), ("execute", Access::Execute)];

/// Why private memory cannot be mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// The slot was deleted.
    Slot,
    /// The slot never had a guest_memfd.
    GuestMemfd,
    /// The slot's guest_memfd was closed.
    OpenGuestMemfd,
}

/// How userspace repairs it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repair {
    /// It gives the page a slot with a fresh guest_memfd.
    Slot,
    /// It makes the page shared.
    Attribute,
}

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, access) in ACCESSES {
        rows.extend([
            Row::new(
                format!("exits.deleted_slot.{name}"),
                Types::UPM,
                "A private access to a page whose slot was deleted exits with EFAULT and a memory fault: that \
                 page, 4096 bytes, the flag PRIVATE and no other. With a new slot the access finishes.",
                move |t| missing(t, access, Missing::Slot, Repair::Slot),
            )
            .basis(&[NO_SLOT, EXIT])
            .exceeds(DELETED),
            Row::new(
                format!("exits.slot_without_guest_memfd.{name}"),
                Types::UPM,
                "A private access to a slot without a guest_memfd exits with EFAULT and a memory fault: that \
                 page, 4096 bytes, the flag PRIVATE and no other. Made shared, the access finishes.",
                move |t| missing(t, access, Missing::GuestMemfd, Repair::Attribute),
            )
            .basis(&[GMEM, EXIT])
            .exceeds(NOT_PRIVATE),
            Row::new(
                format!("exits.closed_guest_memfd.{name}"),
                Types::UPM,
                "A private access to a slot whose guest_memfd was closed exits with EFAULT and a memory fault: \
                 that page, 4096 bytes, the flag PRIVATE and no other. Made shared, the access finishes.",
                move |t| missing(t, access, Missing::OpenGuestMemfd, Repair::Attribute),
            )
            .basis(&[GMEM, "virt/kvm/guest_memfd.c: kvm_gmem_release, kvm_gmem_get_file", EXIT]),
        ]);
    }
    rows.extend([
        Row::new(
            "exits.new_slot_replaces_one_without_guest_memfd",
            Types::UPM,
            "A slot without a guest_memfd makes way for one that has it, and the private access finishes.",
            |t| missing(t, Access::Write, Missing::GuestMemfd, Repair::Slot),
        )
        .basis(&[GMEM]),
        Row::new(
            "exits.new_slot_replaces_a_closed_guest_memfd",
            Types::UPM,
            "A slot whose guest_memfd was closed makes way for one with a new file, whose pages are zero.",
            |t| missing(t, Access::Read, Missing::OpenGuestMemfd, Repair::Slot),
        )
        .basis(&[GMEM, "virt/kvm/guest_memfd.c: kvm_gmem_unbind of a file that is gone"]),
        Row::new(
            "exits.closing_zaps",
            Types::UPM,
            "Closing the guest_memfd unmaps the private pages that are mapped already: the next access exits.",
            closing_zaps,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_release"]),
        Row::new(
            "exits.again_until_repaired",
            Types::UPM,
            "Entering the guest without a repair gives the same exit again, as often as one likes.",
            again_until_repaired,
        )
        .basis(&[NO_SLOT, "arch/x86/kvm/x86.c: vcpu_run"]),
        Row::new(
            "exits.gpa_of_the_page",
            Types::UPM,
            "The exit tells the page of the access, not its bytes; an access over the end of a private page \
             without memory into another one exits for each of them in turn.",
            gpa_of_the_page,
        )
        .basis(&["arch/x86/kvm/mmu/mmu_internal.h: kvm_mmu_prepare_memory_fault_exit"]),
        Row::new(
            "exits.counts_as_a_fault",
            Types::UPM,
            "An access that ends in a memory fault is one of pf_taken and none of pf_fixed.",
            counts_as_a_fault,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_page_fault"]),
        Row::new(
            "exits.only_the_vcpu_that_touches",
            Types::UPM,
            "The memory fault of one vCPU does not disturb another one on pages that are there.",
            only_the_vcpu_that_touches,
        )
        .basis(&[NO_SLOT]),
        Row::new(
            "exits.flips_under_a_busy_vcpu",
            Types::UPM,
            "A page whose attribute flips 200 times under a busy vCPU makes it exit only as a memory fault of that \
             page, when a flip comes between KVM's two looks at the attribute; to run again is enough, and no \
             access is lost.",
            flips_under_a_busy_vcpu,
        )
        .basis(&[
            "arch/x86/kvm/mmu/mmu.c: kvm_mmu_page_fault sets PFERR_PRIVATE_ACCESS from the attribute",
            "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn compares with the attribute again",
        ]),
        Row::new(
            "exits.slot_deleted_under_a_busy_td",
            Types::TDX,
            "The slot of private pages is deleted 30 times while a TD accepts them one after the other: the slot goes, the vCPU \
             leaves with a memory fault of the next page, and accepts that and all others when the slot is back.",
            slot_deleted_under_a_busy_td,
        )
        .risky()
        .basis(&[NO_SLOT, "arch/x86/kvm/vmx/tdx.c: tdx_handle_ept_violation: KVM_MEMSLOT_INVALID"]),
        Row::new(
            "exits.racing_slot_deletion",
            Types::UPM,
            "The slot of a private page that a vCPU keeps incrementing is deleted 50 times: each time exactly \
             one exit, a memory fault of that page; each time the slot is back the guest goes on.",
            racing_slot_deletion,
        )
        .risky()
        .basis(&[NO_SLOT, "virt/kvm/kvm_main.c: kvm_invalidate_memslot"])
        .exceeds(DELETED),
        Row::new(
            "exits.racing_close",
            Types::UPM,
            "The guest_memfd of a private page that a vCPU keeps incrementing is closed 20 times: each time \
             exactly one exit, a memory fault of that page; with a new file the guest goes on.",
            racing_close,
        )
        .risky()
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_release, get_file_active"]),
        Row::new(
            "exits.inaccessible_host_memory",
            Types::ALL,
            "A shared access to a slot whose host memory is PROT_NONE fails with EFAULT and exit reason 0: no \
             memory fault. Accessible again, the access finishes.",
            inaccessible_host_memory,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_handle_error_pfn returns EFAULT and fills in nothing"]),
        Row::new(
            "exits.no_host_memory",
            Types::ALL,
            "A shared access to a slot whose host address has no memory fails with EFAULT and exit reason 0: \
             no memory fault. With another slot in its place the access finishes.",
            no_host_memory,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_handle_error_pfn returns EFAULT and fills in nothing"]),
    ]);
    rows.extend(awaited::rows());
    rows.extend(implicit::rows());
    rows.extend(port::rows());
    rows.extend(shutdown::rows());
    rows.into_iter().map(|row| row.needs(Need::GuestCode).needs(memory_fault())).collect()
}

fn memory_fault() -> Need {
    Need::Capability(Capability::MEMORY_FAULT_INFO, 1)
}

/// `lea rax, [rdi + 1]; ret`
const INCREMENT: [u8; 5] = [0x48, 0x8d, 0x47, 0x01, 0xc3];

/// The second page of three is private and has nothing behind it.
fn missing(t: &Case, access: Access, missing: Missing, repair: Repair) -> Outcome {
    let backing = if missing == Missing::GuestMemfd { Backing::HostOnly } else { Backing::HostAndGuestMemfd };
    let mut g = t.guest().vcpus(2).range(RangeSpec::new(3).backing(backing)).boot()?;
    g.range(0).host_fill(0..3, A)?;
    g.range(0).host().write(PAGE_SIZE, &INCREMENT)?;
    g.range(0).set_private(g.vm(), 1..2)?;
    match missing {
        Missing::Slot => g.vm().delete_slot(g.range(0).slots()[0].slot)?,
        Missing::OpenGuestMemfd => drop(g.range_mut(0).take_gmem()?),
        Missing::GuestMemfd => {}
    }

    let (v, range) = (g.vcpu(0), g.range(0));
    let page = range.private_gva(1);
    let op = match access {
        Access::Read => Op::Read { gva: (page + 8).0, width: Width::B8 },
        Access::Write => Op::Write { gva: (page + 8).0, width: Width::B8, value: 0x5a5a },
        Access::Execute => Op::Execute { gva: page.0, argument: 41 },
    };
    let exits = t.trace().exits();
    let touching = v.start(op)?;
    touching.expect_exit(&Exit::memory_fault(range.gpa(1), true))?;
    expect_no_exit_but(t, exits, 1)?;

    let _file = match repair {
        Repair::Attribute => {
            range.set_shared(g.vm(), 1..2)?;
            None
        }
        Repair::Slot => {
            if missing != Missing::Slot {
                g.vm().delete_slot(range.slots()[0].slot)?;
            }
            let file = add_slot(g.vm(), range)?;
            if access == Access::Execute {
                g.vcpu(1).write_bytes(page, &INCREMENT)?;
            }
            Some(file)
        }
    };
    let exits = t.trace().exits();
    touching.resume()?;
    let [value, ..] = touching.done()?;
    expect_no_exit_but(t, exits, 1)?;

    let host_sees = |word| expect_eq("the word in the host's view", &range.host().read_u64(PAGE_SIZE + 8)?, &word);
    match (access, repair) {
        (Access::Read, Repair::Attribute) => expect_eq("the word that was read", &value, &A.word(1)),
        (Access::Read, Repair::Slot) => expect_eq("the word that was read", &value, &0),
        (Access::Write, Repair::Attribute) => host_sees(0x5a5a),
        (Access::Write, Repair::Slot) => {
            v.expect_read(page + 8, Width::B8, 0x5a5a)?;
            host_sees(A.word(1))
        }
        (Access::Execute, _) => expect_eq("what the code returned", &value, &42),
    }
}

/// Puts a slot over all of `range`, with its host memory and a fresh guest_memfd.
fn add_slot(vm: &Vm, range: &TestRange) -> Outcome<Arc<GuestMemfd>> {
    let file = vm.create_guest_memfd(PageCount(range.pages()).bytes(), 0)?;
    vm.add_slot(
        SlotSpec::shared(range.slots()[0].slot, range.gpa(0), PageCount(range.pages()), range.host())
            .with_gmem(&file, 0),
    )?;
    Ok(file)
}

fn closing_zaps(t: &Case) -> Outcome {
    let mut g = t.guest().range(RangeSpec::new(4)).boot()?;
    g.range(0).set_private(g.vm(), 0..4)?;
    g.vcpu(0).fill(g.range(0).private_gva(0), 4, B, 0)?;
    let file = g.range_mut(0).take_gmem()?;
    Counters::of_vm(&g)?.expect_growth("pages_4k", -4, || {
        drop(file);
        Ok(())
    })?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let touching = v.start(Op::Read { gva: range.private_gva(3).0, width: Width::B8 })?;
    touching.expect_exit(&Exit::memory_fault(range.gpa(3), true))
}

fn again_until_repaired(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 0..1)?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    let touching = v.start(Op::Write { gva: range.private_gva(0).0, width: Width::B8, value: 0x5a5a })?;
    for _ in 0..10 {
        touching.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
        touching.resume()?;
    }
    touching.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
    g.vm().add_slot(range.slots()[0].clone())?;
    touching.resume()?;
    touching.done()?;
    v.expect_read(range.private_gva(0), Width::B8, 0x5a5a)
}

fn gpa_of_the_page(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(4)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), range.all())?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    let fault = |page| Exit::memory_fault(range.gpa(page), true);
    let one_page = |page: u64| {
        let (slot, vm) = (range.slots()[0].clone(), g.vm());
        let offset = page * PAGE_SIZE;
        let gmem = slot.gmem.map(|(file, _)| (file, offset));
        let gpa = range.gpa(page);
        vm.add_slot(SlotSpec {
            slot: slot.slot + page as u32,
            gpa,
            pages: PageCount(1),
            mapping_offset: offset,
            gmem,
            ..slot
        })
    };
    let touching =
        v.start(Op::Write { gva: range.private_gva(1).0 + 0xffd, width: Width::B8, value: 0x1122_3344_5566_7788 })?;
    // Which of the two pages comes first is the CPU's affair.
    let (first, second) = match touching.exit()? {
        exit if exit == fault(1) => (1, 2),
        exit if exit == fault(2) => (2, 1),
        exit => return Err(Stop::Fail(format!("expected {} or that of the next page, saw {exit}", fault(1)))),
    };
    one_page(first)?;
    touching.resume()?;
    touching.expect_exit(&fault(second))?;
    one_page(second)?;
    touching.resume()?;
    touching.done()?;
    v.expect_read(range.private_gva(1) + 0xffd, Width::B8, 0x1122_3344_5566_7788)
}

fn counts_as_a_fault(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    // The same operation beside it, so that nothing but the page in question is new to KVM.
    v.read(range.private_gva(0), Width::B8)?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    range.set_private(g.vm(), range.all())?;
    let counters = Counters::of_vcpu(&g)?;
    counters.expect_growth("pf_fixed", 1, || {
        counters.expect_growth("pf_taken", 2, || {
            let touching = v.start(Op::Read { gva: range.private_gva(1).0, width: Width::B8 })?;
            touching.expect_exit(&Exit::memory_fault(range.gpa(1), true))?;
            g.vm().add_slot(range.slots()[0].clone())?;
            touching.resume()?;
            touching.done().map(drop)
        })
    })
}

fn only_the_vcpu_that_touches(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).range(RangeSpec::new(2).slots(2)).boot()?;
    let range = g.range(0);
    range.set_private(g.vm(), range.all())?;
    let busy = g.vcpu(1).hammer(Op::HammerAdd { gva: range.private_gva(1).0, pages: 1, limit: 0 })?;
    g.vm().delete_slot(range.slots()[0].slot)?;
    let exits = t.trace().exits();
    let touching = g.vcpu(0).start(Op::Read { gva: range.private_gva(0).0, width: Width::B8 })?;
    touching.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
    g.vm().add_slot(range.slots()[0].clone())?;
    touching.resume()?;
    touching.done()?;
    expect_no_exit_but(t, exits, 2)?;
    g.vcpu(1).stop()?;
    let [rounds, ..] = busy.done()?;
    g.vcpu(0).expect_read(range.private_gva(1), Width::B8, rounds)
}

fn flips_under_a_busy_vcpu(t: &Case) -> Outcome {
    let g = t.guest().vcpus(2).range(RangeSpec::new(3)).boot()?;
    let range = g.range(0);
    let busy = g.vcpu(1).hammer(Op::HammerAdd { gva: range.private_gva(0).0, pages: 3, limit: 0 })?;
    let between_two_looks = [true, false].map(|private| Exit::memory_fault(range.gpa(1), private));
    let rounds = thread::scope(|scope| {
        let increments = scope.spawn(move || {
            loop {
                let exit = busy.exit()?;
                if !between_two_looks.contains(&exit) {
                    return busy.finish(&exit)?.map_err(|fault| Stop::Fail(format!("vCPU 1 ended with {fault:x?}")));
                }
                busy.resume()?;
            }
        });
        let flipped = (0..100).try_for_each(|_| {
            range.set_private(g.vm(), 1..2)?;
            range.set_shared(g.vm(), 1..2)
        });
        g.vcpu(1).stop()?;
        let increments =
            increments.join().unwrap_or_else(|_| Err(Stop::Error("the thread of vCPU 1 panicked".into())))?;
        flipped.map(|()| increments[0])
    })?;
    // What went to the two backings of the page in the middle adds up, and its neighbours lost nothing.
    let shared = g.vcpu(0).read(range.private_gva(1), Width::B8)?;
    range.set_private(g.vm(), 1..2)?;
    let private = g.vcpu(0).read(range.private_gva(1), Width::B8)?;
    expect_eq("the increments of the page that flipped", &(shared + private), &rounds)?;
    g.vcpu(0).expect_read(range.private_gva(0), Width::B8, rounds)?;
    g.vcpu(0).expect_read(range.private_gva(2), Width::B8, rounds)
}

fn racing_slot_deletion(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), range.all())?;
    let exits = t.trace().exits();
    let busy = v.hammer(Op::HammerAdd { gva: range.private_gva(0).0, pages: 1, limit: 0 })?;
    for _ in 0..50 {
        g.vm().delete_slot(range.slots()[0].slot)?;
        busy.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
        g.vm().add_slot(range.slots()[0].clone())?;
        busy.resume()?;
    }
    v.stop()?;
    let [rounds, ..] = busy.done()?;
    expect_no_exit_but(t, exits, 50 + 1)?;
    v.expect_read(range.private_gva(0), Width::B8, rounds)
}

fn slot_deleted_under_a_busy_td(t: &Case) -> Outcome {
    const PAGES: u64 = 4096;
    let g = t.guest().range(RangeSpec::new(PAGES)).boot()?;
    let range = g.range(0);
    range.set_private(g.vm(), range.all())?;
    let accepting = g.vcpu(0).start(Op::Validate { gva: range.private_gva(0).0, pages: PAGES, validated: true })?;
    for _ in 0..30 {
        g.vm().delete_slot(range.slots()[0].slot)?;
        match accepting.exit()? {
            Exit::MemoryFault { errno: Errno::EFAULT, flags: MEMORY_EXIT_FLAG_PRIVATE, gpa, size: PAGE_SIZE }
                if (range.gpa(0).0..range.gpa(PAGES).0).contains(&gpa.0) => {}
            other => return Err(Stop::Fail(format!("{other}, expected a memory fault of one of the pages"))),
        }
        g.vm().add_slot(range.slots()[0].clone())?;
        accepting.resume()?;
    }
    expect_eq("pages that were accepted", &accepting.done()?[1], &PAGES)
}

fn racing_close(t: &Case) -> Outcome {
    let mut g = t.guest().range(RangeSpec::new(1)).boot()?;
    g.range(0).set_private(g.vm(), 0..1)?;
    let mut file = Some(Arc::new(g.range_mut(0).take_gmem()?));
    let (v, range) = (g.vcpu(0), g.range(0));
    let exits = t.trace().exits();
    let busy = v.hammer(Op::HammerAdd { gva: range.private_gva(0).0, pages: 1, limit: 0 })?;
    for _ in 0..20 {
        drop(file.take());
        busy.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
        g.vm().delete_slot(range.slots()[0].slot)?;
        file = Some(add_slot(g.vm(), range)?);
        busy.resume()?;
    }
    v.stop()?;
    let [rounds, ..] = busy.done()?;
    expect_no_exit_but(t, exits, 20 + 1)?;
    // The increments before the last close are gone with the older files.
    let left = v.read(range.private_gva(0), Width::B8)?;
    expect_that(left <= rounds, || format!("{left:#x} increments are in the last file after {rounds:#x} rounds"))
}

/// What KVM_RUN says about host memory that cannot be had.
const UNEXPLAINED: Exit = Exit::Failed { errno: Errno::EFAULT, reason: 0 };

fn inaccessible_host_memory(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(2).backing(t.platform().backing())).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    for op in [
        Op::Read { gva: range.shared_gva(1).0, width: Width::B8 },
        Op::Write { gva: range.shared_gva(1).0, width: Width::B8, value: 0x5a5a },
    ] {
        range.host().protect(false)?;
        let touching = v.start(op)?;
        touching.expect_exit(&UNEXPLAINED)?;
        touching.resume()?;
        touching.expect_exit(&UNEXPLAINED)?;
        range.host().protect(true)?;
        touching.resume()?;
        touching.done()?;
    }
    expect_eq("the word in the host's view", &range.host().read_u64(PAGE_SIZE)?, &0x5a5a)
}

fn no_host_memory(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1).backing(t.platform().backing())).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(range.all(), A)?;
    let slot = range.slots()[0].clone();
    g.vm().delete_slot(slot.slot)?;
    g.vm().add_slot(SlotSpec { mapping: None, ..slot.clone() })?;
    let touching = v.start(Op::Read { gva: range.shared_gva(0).0, width: Width::B8 })?;
    touching.expect_exit(&UNEXPLAINED)?;
    g.vm().delete_slot(slot.slot)?;
    g.vm().add_slot(slot)?;
    touching.resume()?;
    expect_eq("the word that was read", &touching.done()?[0], &A.word(0))
}
