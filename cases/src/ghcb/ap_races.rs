//! vCPUs that lose their save area while they run with it.

use std::thread;
use std::time::Instant;

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::measure::SevFeatures;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::RangeSpec;
use privet_harness::units::{Gva, PAGE_SIZE};
use privet_protocol::Op;

use super::ap_creation::{CODE, CREATE, DESTROY, FIRST, LIMIT, answered, expect_no_entry, make_save_area};
use super::{image, ram};
use crate::expect::{expect_eq, expect_that};
use crate::row::Row;
use crate::types::Types;

const DESTRUCTION: &str = "arch/x86/kvm/svm/sev.c: sev_snp_ap_creation, KVM_REQ_UPDATE_PROTECTED_GUEST_STATE waits";
const INVALIDATION: &str = "arch/x86/kvm/svm/sev.c: sev_gmem_invalidate_range, sev_snp_reload_vmsa";

/// `1: lock inc qword [rdi]; jmp 1b`.
const COUNTS: [u8; 6] = [0xf0, 0x48, 0xff, 0x07, 0xeb, 0xfa];
/// The page of range 1 that is counted in.
const COUNTER: u64 = 1;
/// VMPL 1, and no save area.
const ORDINARY: u64 = 1;

const ROUNDS: usize = 8;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "ghcb.ap_race.destroyed",
            Types::SNP,
            "A vCPU that is destroyed while it runs has left the guest when its destroyer is answered: its save area can be \
             made an ordinary page at once, and taken away; time and again.",
            destroyed,
        )
        .basis(&[DESTRUCTION]),
        Row::new(
            "ghcb.ap_race.punched",
            Types::SNP,
            "The host punches out a save area while a vCPU runs with it: the vCPU leaves the guest and does not enter it \
             again, KVM_EXIT_FAIL_ENTRY, until it is created anew; time and again.",
            |t| loses_its_save_area(t, |g| g.range(0).punch(FIRST..FIRST + 1)),
        )
        .basis(&[INVALIDATION, "virt/kvm/guest_memfd.c: kvm_gmem_punch_hole"]),
        Row::new(
            "ghcb.ap_race.slot_deleted",
            Types::SNP,
            "The slot of a save area is deleted while a vCPU runs with it: likewise, and with the slot back the vCPU can be \
             created again, from the page that was never gone.",
            slot_deleted,
        )
        .basis(&[INVALIDATION, "arch/x86/kvm/mmu/mmu.c: kvm_arch_flush_shadow_memslot"]),
        Row::new(
            "ghcb.ap_race.made_shared",
            Types::SNP,
            "Whether the page of a save area is private by its attribute does not matter to the vCPU that runs with it: KVM \
             takes it from the guest_memfd.",
            made_shared,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: __sev_snp_reload_vmsa"]),
    ]
}

/// A guest of two vCPUs with private pages, one of which has the code, a page for requests, and one to count in.
fn guest(t: &Case) -> Outcome<Guest> {
    let g = t.guest().vcpus(2).range(RangeSpec::new(4)).range(ram(2).at(image().gpa)).boot()?;
    g.make_private(0, 0..4)?;
    g.vcpu(0).write_bytes(g.range(0).private_gva(CODE), &COUNTS)?;
    Ok(g)
}

/// A save area that begins with the code.
fn save_area(g: &Guest) -> [u8; PAGE_SIZE as usize] {
    g.save_area(g.range(0).private_gva(CODE), g.range(1).shared_gva(COUNTER).0, SevFeatures::SNP)
}

fn counter(g: &Guest) -> Outcome<u64> {
    g.range(1).host().read_u64(COUNTER * PAGE_SIZE)
}

/// Waits until vCPU 1 counts.
fn expect_counting(g: &Guest) -> Outcome {
    let (before, deadline) = (counter(g)?, Instant::now() + LIMIT);
    while counter(g)? == before {
        if let Some(exit) = g.vcpu(1).kvm().poll()? {
            return Err(Stop::Fail(format!("{exit}, expected the vCPU to run")));
        }
        expect_that(Instant::now() < deadline, || format!("the vCPU did not run within {LIMIT:?}"))?;
        thread::yield_now();
    }
    Ok(())
}

/// Ends the run of vCPU 1, for which there is no other reason to end.
fn interrupted(g: &Guest) -> Outcome {
    let ap = g.vcpu(1).kvm();
    ap.kick()?;
    expect_eq("the exit of the vCPU", &ap.wait(LIMIT)?, &Exit::Interrupted)
}

fn destroyed(t: &Case) -> Outcome {
    let g = guest(t)?;
    let (ap, area) = (g.vcpu(1).kvm(), save_area(&g));
    let gva: Gva = g.range(0).private_gva(FIRST);
    for round in 0..ROUNDS {
        make_save_area(&g, FIRST, &area)?;
        answered(&g, CREATE, FIRST)?;
        if round == 0 {
            ap.start()?;
        }
        expect_counting(&g)?;
        answered(&g, DESTROY, FIRST)?;
        let count = counter(&g)?;
        let adjust = Op::AdjustRmp { gva: gva.0, attributes: ORDINARY };
        expect_eq("EAX of RMPADJUST", &g.vcpu(0).call(adjust)?[0], &0)?;
        expect_eq("how far the vCPU has counted", &counter(&g)?, &count)?;
        g.range(0).punch(FIRST..FIRST + 1)?;
        g.make_private(0, FIRST..FIRST + 1)?;
    }
    interrupted(&g)
}

/// Expects that what is done to the save area ends the run of its vCPU.
fn loses_its_save_area(t: &Case, lose: impl Fn(&Guest) -> Outcome) -> Outcome {
    let g = guest(t)?;
    let (ap, area) = (g.vcpu(1).kvm(), save_area(&g));
    for _ in 0..ROUNDS {
        make_save_area(&g, FIRST, &area)?;
        answered(&g, CREATE, FIRST)?;
        ap.start()?;
        expect_counting(&g)?;
        lose(&g)?;
        expect_no_entry(&ap.wait(LIMIT)?)?;
        g.make_private(0, FIRST..FIRST + 1)?;
    }
    g.vcpu(0).call(Op::Nop).map(drop)
}

fn slot_deleted(t: &Case) -> Outcome {
    let g = guest(t)?;
    let (ap, area) = (g.vcpu(1).kvm(), save_area(&g));
    make_save_area(&g, FIRST, &area)?;
    for _ in 0..ROUNDS {
        answered(&g, CREATE, FIRST)?;
        ap.start()?;
        expect_counting(&g)?;
        for slot in g.range(0).slots() {
            g.vm().delete_slot(slot.slot)?;
        }
        expect_no_entry(&ap.wait(LIMIT)?)?;
        for slot in g.range(0).slots() {
            g.vm().add_slot(slot.clone())?;
        }
    }
    g.vcpu(0).call(Op::Nop).map(drop)
}

fn made_shared(t: &Case) -> Outcome {
    let g = guest(t)?;
    let area = save_area(&g);
    make_save_area(&g, FIRST, &area)?;
    answered(&g, CREATE, FIRST)?;
    g.vcpu(1).kvm().start()?;
    for _ in 0..ROUNDS {
        g.range(0).set_shared(g.vm(), FIRST..FIRST + 1)?;
        expect_counting(&g)?;
        g.range(0).set_private(g.vm(), FIRST..FIRST + 1)?;
        expect_counting(&g)?;
    }
    interrupted(&g)
}
