//! The dirty ring: each vCPU tells the pages that it makes dirty, in their order, until there is no room.

use std::collections::BTreeSet;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::dirty_ring::{DirtyPage, DirtyRing};
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::memslot::SlotSpec;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::platform::ByType;
use privet_harness::test_range::{Backing, RangeSpec, TEST_SLOT};
use privet_harness::uapi::{Capability, MEM_LOG_DIRTY_PAGES};
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_protocol::{Op, Pattern, Width};

use crate::expect::{expect_eq, expect_errno, expect_ok, expect_that};
use crate::row::Row;
use crate::types::Types;

const RING: &str = "virt/kvm/dirty_ring.c: kvm_dirty_ring_push, kvm_dirty_ring_reset, kvm_dirty_ring_check_request";
const API: &str = "Documentation/virt/kvm/api.rst 8.29 KVM_CAP_DIRTY_LOG_RING";

/// Bytes of a ring: enough beside the entries that are reserved for a processor's own log, 512 on Intel.
const BYTES: u64 = 16 * ENTRIES;
const ENTRIES: u64 = 1024;
/// What the capability tells: `KVM_DIRTY_RING_MAX_ENTRIES` entries.
const MOST_BYTES: i32 = 0x10_0000;
/// `KVM_DIRTY_RING_RSVD_ENTRIES`.
const RESERVED: u64 = 64;

const A: Pattern = Pattern(0xaa);
const B: Pattern = Pattern(0xbb);

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let rows = [
        Row::new(
            "slots.dirty_ring",
            Types::ALL,
            "The ring of a vCPU has the pages that it wrote, each once and in its order, and not those that it only read; what \
             was harvested and reset is told again when it is written again.",
            in_order,
        ),
        Row::new(
            "slots.dirty_ring.each_its_own",
            Types::ALL,
            "What each of two vCPUs wrote is in its own ring.",
            each_its_own,
        ),
        Row::new(
            "slots.dirty_ring.full",
            Types::ALL,
            "A vCPU whose ring has no room but the reserved entries exits with KVM_EXIT_DIRTY_RING_FULL, again and again, until \
             the ring is harvested and reset; then it writes the rest, and no page is missing.",
            full,
        ),
        Row::new(
            "slots.dirty_ring.no_log",
            Types::ALL,
            "With rings there is no dirty log, to be asked for or cleared: ENXIO.",
            no_log,
        ),
    ];
    let without_guest = Row::new(
        "slots.dirty_ring.refused",
        Types::ALL,
        "A ring's size is a power of two, at least a page and more than what is reserved, at most 1 MiB: EINVAL, or E2BIG. \
         It is told once, before there is a vCPU: EINVAL. Where there are no rings none can be reset: EINVAL.",
        refused,
    )
    .basis(&["virt/kvm/kvm_main.c: kvm_vm_ioctl_enable_dirty_log_ring, kvm_vm_ioctl_reset_dirty_pages", API]);
    let rings = || Need::Capability(Capability::DIRTY_LOG_RING_ACQ_REL, MOST_BYTES);
    let rows = rows.into_iter().map(|row| row.basis(&[RING, API]).needs(Need::GuestCode));
    rows.chain([without_guest]).map(|row| row.needs(rings())).collect()
}

/// A guest with rings and `pages` of host memory, of which the host has written all; the guest's accesses to them are
/// logged from its first one on.
fn guest(t: &Case, vcpus: usize, pages: u64) -> Outcome<Guest> {
    let range = RangeSpec::new(pages).backing(Backing::HostOnly);
    let g = t.guest().vcpus(vcpus).dirty_rings(BYTES).range(range).boot()?;
    let range = g.range(0);
    range.host_fill(range.all(), A)?;
    let slot = range.slots()[0].clone();
    g.vm().delete_slot(slot.slot)?;
    g.vm().add_slot(SlotSpec { flags: MEM_LOG_DIRTY_PAGES, ..slot })?;
    Ok(g)
}

fn told_of(pages: impl IntoIterator<Item = u64>) -> Vec<DirtyPage> {
    pages.into_iter().map(|page| DirtyPage { slot: TEST_SLOT, page }).collect()
}

fn reset(g: &Guest, entries: usize) -> Outcome {
    expect_eq("entries that KVM_RESET_DIRTY_RINGS frees", &g.vm().reset_dirty_rings(), &Ok(entries as i32))
}

fn in_order(t: &Case) -> Outcome {
    let g = guest(t, 1, 8)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let mut ring = DirtyRing::of(v.kvm(), BYTES)?;
    // What is mapped for the first time counts as written where it can be.
    v.expect(range.shared_gva(0), 8, A, 0)?;
    let first_touch = ring.harvest()?;
    reset(&g, first_touch.len())?;
    for pages in [&[5, 2, 7][..], &[], &[2, 0]] {
        for &page in pages {
            for pattern in [B, A] {
                v.fill(range.shared_gva(page), 1, pattern, page)?;
            }
        }
        v.read(range.shared_gva(4), Width::B8)?;
        expect_eq("the ring", &ring.harvest()?, &told_of(pages.iter().copied()))?;
        reset(&g, pages.len())?;
    }
    Ok(())
}

fn each_its_own(t: &Case) -> Outcome {
    let g = guest(t, 2, 8)?;
    let range = g.range(0);
    let mut rings = [DirtyRing::of(g.vcpu(0).kvm(), BYTES)?, DirtyRing::of(g.vcpu(1).kvm(), BYTES)?];
    for (index, page) in [(0, 3), (1, 6), (0, 1), (1, 0)] {
        g.vcpu(index).fill(range.shared_gva(page), 1, B, page)?;
    }
    for (ring, pages) in rings.iter_mut().zip([[3, 1], [6, 0]]) {
        expect_eq("a vCPU's ring", &ring.harvest()?, &told_of(pages))?;
    }
    reset(&g, 4)
}

fn full(t: &Case) -> Outcome {
    let g = guest(t, 1, ENTRIES)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let mut ring = DirtyRing::of(v.kvm(), BYTES)?;
    let running = v.start(Op::HammerAdd { gva: range.shared_gva(0).0, pages: ENTRIES, limit: 1 })?;
    running.expect_exit(&Exit::DirtyRingFull)?;
    running.resume()?;
    running.expect_exit(&Exit::DirtyRingFull)?;
    let mut pages = ring.harvest()?;
    // The processor's own log has reserved entries, too.
    expect_that(pages.len() as u64 <= ENTRIES - RESERVED, || format!("{} pages before the first exit", pages.len()))?;
    reset(&g, pages.len())?;
    loop {
        running.resume()?;
        let exit = running.exit()?;
        let more = ring.harvest()?;
        reset(&g, more.len())?;
        pages.extend(more);
        if exit != Exit::DirtyRingFull {
            expect_eq("rounds", &running.finish(&exit)?.map(|values| values[0]), &Ok(1))?;
            break;
        }
    }
    // The page of an exit is told twice: it was mapped, and protected anew before the guest came to write it.
    let told: BTreeSet<_> = pages.into_iter().collect();
    let missing: Vec<_> = told_of(0..ENTRIES).into_iter().filter(|page| !told.contains(page)).collect();
    expect_eq("pages that were written and not told", &missing.first(), &None)?;
    expect_eq("pages that were told", &(told.len() as u64), &ENTRIES)
}

fn no_log(t: &Case) -> Outcome {
    let g = guest(t, 1, 4)?;
    g.vcpu(0).fill(g.range(0).shared_gva(0), 1, B, 0)?;
    expect_errno("KVM_GET_DIRTY_LOG", g.vm().dirty_log(TEST_SLOT, PageCount(4)), Errno::ENXIO)?;
    expect_errno("KVM_CLEAR_DIRTY_LOG", g.vm().clear_dirty_log(TEST_SLOT, 0, PageCount(4), &[1]), Errno::ENXIO)
}

fn refused(t: &Case) -> Outcome {
    let most = MOST_BYTES as u64;
    let vm = t.vm()?;
    let rings = |vm: &Vm, bytes| vm.enable_cap(Capability::DIRTY_LOG_RING_ACQ_REL, [bytes, 0, 0, 0]);
    for bytes in [0, 16, 512, PAGE_SIZE / 2, 3 * PAGE_SIZE, PAGE_SIZE + 16, most - PAGE_SIZE] {
        expect_errno(&format!("rings of {bytes} bytes"), rings(&vm, bytes), Errno::EINVAL)?;
    }
    for bytes in [2 * most, 1 << 31] {
        expect_errno(&format!("rings of {bytes} bytes"), rings(&vm, bytes), Errno::E2BIG)?;
    }
    expect_errno("resetting rings that are not there", vm.reset_dirty_rings(), Errno::EINVAL)?;
    expect_ok("rings of the greatest size", rings(&vm, most))?;
    expect_eq("entries of rings without a vCPU", &vm.reset_dirty_rings(), &Ok(0))?;
    for bytes in [most, BYTES] {
        expect_errno("rings once more", rings(&vm, bytes), Errno::EINVAL)?;
    }
    // A TD has vCPUs only once it is initialized.
    if t.by_type(ByType { plain: true, upm: true, sev: true, sev_es: true, snp: true, tdx: false }) {
        let vm = t.vm()?;
        let _vcpu = vm.create_vcpu(0)?;
        expect_errno("rings beside a vCPU", rings(&vm, BYTES), Errno::EINVAL)?;
    }

    // Of the smallest sizes one is refused where processors have a log of their own, whose entries are reserved, too.
    let vm = t.vm()?;
    let least = if has_own_log(t) { 4 * PAGE_SIZE } else { PAGE_SIZE };
    for bytes in [PAGE_SIZE, 2 * PAGE_SIZE].into_iter().filter(|bytes| *bytes < least) {
        expect_errno(&format!("rings of {bytes} bytes"), rings(&vm, bytes), Errno::EINVAL)?;
    }
    expect_ok("rings of the smallest size", rings(&vm, least))
}

/// Whether KVM has processors log what such a VM's guest writes.
fn has_own_log(t: &Case) -> bool {
    let is_on = t.host().modules().parameter("kvm_intel.pml").as_deref() == Some("Y");
    t.by_type(ByType { plain: is_on, upm: is_on, sev: is_on, sev_es: is_on, snp: is_on, tdx: false })
}
