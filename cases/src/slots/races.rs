//! Slots and files that come and go at the same time. A kernel that gets it wrong says so in its log, or
//! leaves something behind; the number of rounds is fixed.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::guest_memfd::GuestMemfd;
use privet_harness::memslot::SlotSpec;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::TEST_BASE;
use privet_harness::units::{Gpa, PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;

use super::parts::{Parts, Region, SIZE, SLOT};
use crate::expect::{expect_errno, expect_ok};
use crate::row::Row;
use crate::types::Types;

const UNBIND: &str = "virt/kvm/guest_memfd.c: kvm_gmem_unbind, kvm_gmem_release";

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let rows = vec![
        Row::new(
            "slots.close_races_delete",
            Types::UPM,
            "100 times the last descriptor of a guest_memfd is closed while its slot is deleted: the slot is gone \
             each time, and the next one can be made.",
            |t| close_races_delete(t, false),
        )
        .basis(&["commit ae431059e75d: use after free of a binding (Fixes: a7800aa80ea4)", UNBIND]),
        Row::new(
            "slots.punch_and_close_race_delete",
            Types::UPM,
            "As before, with a hole punched into the file first: the zap of the hole and the one of the close \
             meet the deletion.",
            |t| close_races_delete(t, true),
        )
        .basis(&["commit 1f3359c873db: unbind of a dying file", UNBIND]),
        Row::new(
            "slots.punch_races_bind",
            Types::UPM,
            "100 slots are made over a file and deleted again while holes are punched into it: every call \
             succeeds, and the file can be bound afterwards.",
            punch_races_bind,
        )
        .basis(&["commits 513333a55460, 83411f32b8ad: bindings visible too early", UNBIND]),
        Row::new(
            "slots.punch_races_refused_bind",
            Types::UPM,
            "100 slots that KVM refuses are asked for over a file while holes are punched into it: each is \
             EINVAL, and the file can be bound afterwards.",
            punch_races_refused_bind,
        )
        .basis(&["commits 513333a55460, 83411f32b8ad: bindings visible too early", UNBIND]),
        Row::new(
            "slots.binders_race",
            Types::UPM,
            "Two threads bind the same pages of a file at different GPAs, 100 times: exactly one of them gets \
             them, the other one EEXIST.",
            binders_race,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_commit_memory_region"]),
    ];
    rows.into_iter().map(Row::risky).collect()
}

/// The result of a thread of a row.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> Outcome<T> {
    thread.join().map_err(|_| Stop::Error("a thread of the row panicked".into()))
}

fn close_races_delete(t: &Case, punch: bool) -> Outcome {
    let vm = t.vm()?;
    for _ in 0..100 {
        let file = vm.create_guest_memfd(SIZE, 0)?;
        let spec = SlotSpec {
            slot: SLOT,
            gpa: TEST_BASE,
            pages: PageCount::of_bytes(SIZE),
            mapping: None,
            mapping_offset: 0,
            gmem: Some((file.clone(), 0)),
            flags: 0,
        };
        vm.add_slot(spec)?;
        let start = Barrier::new(2);
        thread::scope(|scope| {
            let closing = scope.spawn(|| {
                start.wait();
                let punched = if punch { file.punch(0, SIZE) } else { Ok(()) };
                drop(file);
                punched
            });
            start.wait();
            vm.delete_slot(SLOT)?;
            joined(closing)?
        })?;
        expect_errno("deleting the slot again", delete(&vm), Errno::EINVAL)?;
    }
    Ok(())
}

fn delete(vm: &Vm) -> Result<(), Errno> {
    vm.set_user_memory_region2_raw(&Region { slot: SLOT, ..Default::default() }, None)
}

/// Punches holes as long as `binding` goes on.
fn while_punching(file: &GuestMemfd, binding: impl FnOnce() -> Outcome) -> Outcome {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let punching = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                file.punch(PAGE_SIZE, 2 * PAGE_SIZE)?;
                file.allocate(0, SIZE)?;
            }
            Ok::<_, Stop>(())
        });
        let bound = binding();
        over.store(true, Ordering::Release);
        joined(punching)??;
        bound
    })
}

fn punch_races_bind(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    while_punching(&parts.file, || {
        (0..100).try_for_each(|round| {
            let guest_memfd_offset = round % 4 * PAGE_SIZE;
            parts.accepts("a slot over the file", Region { guest_memfd_offset, ..parts.region() })
        })
    })?;
    parts.accepts("a slot over all of the file", Region { memory_size: 4 * SIZE, ..parts.region() })
}

fn punch_races_refused_bind(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    while_punching(&parts.file, || {
        (0..100).try_for_each(|_| {
            let unreachable = Region { guest_phys_addr: 1 << 52, ..parts.region() };
            parts.refuses("a slot where no CPU reaches", unreachable, Errno::EINVAL)
        })
    })?;
    parts.accepts("a slot over all of the file", Region { memory_size: 4 * SIZE, ..parts.region() })
}

fn binders_race(t: &Case) -> Outcome {
    let parts = Parts::new(t)?;
    let bind = |slot: u32, gpa: Gpa| parts.set(Region { slot, guest_phys_addr: gpa.0, ..parts.region() });
    for _ in 0..100 {
        let start = Barrier::new(2);
        let (other, own) = thread::scope(|scope| {
            let other = scope.spawn(|| {
                start.wait();
                bind(SLOT + 1, TEST_BASE + 2 * SIZE)
            });
            start.wait();
            let own = bind(SLOT, TEST_BASE);
            Ok::<_, Stop>((joined(other)?, own))
        })?;
        let (winner, loser, refusal) = if own.is_ok() { (SLOT, SLOT + 1, other) } else { (SLOT + 1, SLOT, own) };
        expect_errno("the binding that came second", refusal, Errno::EEXIST)?;
        expect_errno("deleting the slot of the binding that came second", parts.delete(loser), Errno::EINVAL)?;
        expect_ok("deleting the slot of the binding that came first", parts.delete(winner))?;
    }
    Ok(())
}
