//! What the deletion of one slot does to the mappings of the others.

use privet_harness::case::Case;
use privet_harness::guest::Guest;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{Backing, RangeSpec, TEST_SLOT};
use privet_harness::uapi::{Capability, QUIRK_SLOT_ZAP_ALL};
use privet_protocol::Pattern;

use crate::counters::Counters;
use crate::expect::{expect_eq, expect_ok};
use crate::row::Row;
use crate::types::Types;

const FLUSH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_arch_flush_shadow_memslot";
const QUIRK: &str = "Documentation/virt/kvm/api.rst 7.32: KVM_X86_QUIRK_SLOT_ZAP_ALL";

/// Pages of each of the two slots.
const PAGES: u64 = 8;
const A: Pattern = Pattern(0xaa);

/// Rows with guests.
pub(super) fn guest_rows() -> Vec<Row> {
    let quirk = Need::Capability(Capability::DISABLE_QUIRKS2, QUIRK_SLOT_ZAP_ALL as i32);
    vec![
        Row::new(
            "slots.deletion_zaps_everything",
            Types::PLAIN,
            "In a plain VM the deletion of any slot takes away every mapping that there is: nothing stays mapped, and \
             the guest finds its other slots again, by faults.",
            zaps_everything,
        )
        .basis(&[FLUSH, QUIRK])
        .needs(quirk.clone()),
        Row::new(
            "slots.deletion_zaps_its_own_pages",
            Types::WITH_SHARED_CODE,
            "The deletion of a slot takes away the mappings of its own pages, shared and private, and no others: the \
             guest goes on in its other slots without a fault. A VM without private memory needs the quirk off for it.",
            zaps_its_own_pages,
        )
        .basis(&[FLUSH, QUIRK])
        .needs(quirk),
    ]
}

/// A guest that has written to all pages of two slots.
fn two_slots(t: &Case, backing: Backing) -> Outcome<Guest> {
    let g = t.guest().range(RangeSpec::new(2 * PAGES).slots(2).backing(backing)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    v.fill(range.shared_gva(0), 2 * PAGES, A, 0)?;
    v.expect(range.shared_gva(0), 2 * PAGES, A, 0)?;
    Ok(g)
}

fn zaps_everything(t: &Case) -> Outcome {
    let g = two_slots(t, Backing::HostOnly)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.vm().delete_slot(TEST_SLOT + 1)?;
    expect_eq("pages_4k after the deletion", &Counters::of_vm(&g)?.get("pages_4k")?, &0)?;
    v.expect(range.shared_gva(0), PAGES, A, 0)
}

fn zaps_its_own_pages(t: &Case) -> Outcome {
    let g = two_slots(t, t.platform().backing())?;
    let (v, range) = (g.vcpu(0), g.range(0));
    if t.platform().has_private_memory() {
        // Half of each slot.
        range.set_private(g.vm(), PAGES / 2..PAGES + PAGES / 2)?;
        v.fill(range.shared_gva(0), 2 * PAGES, A, 0)?;
    } else {
        let off = g.vm().enable_cap(Capability::DISABLE_QUIRKS2, [QUIRK_SLOT_ZAP_ALL, 0, 0, 0]);
        expect_ok("KVM_ENABLE_CAP(DISABLE_QUIRKS2, SLOT_ZAP_ALL)", off)?;
    }
    Counters::of_vm(&g)?.expect_growth("pages_4k", -(PAGES as i64), || g.vm().delete_slot(TEST_SLOT + 1))?;
    Counters::of_vcpu(&g)?.expect_growth("pf_taken", 0, || {
        v.expect(range.shared_gva(0), PAGES, A, 0)?;
        v.fill(range.shared_gva(0), PAGES, A, 0)
    })
}
