//! Holes in the guest_memfd of an SNP guest, whose pages have to be validated.

use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_protocol::{Op, Sharing};

use crate::accept::{Access, GUEST, HOST, VALIDATED, expect_not_validated, guest, op};
use crate::expect::expect_no_exit_but;
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "punch.under_a_validated_page",
            Types::SNP,
            "The host punches a page out that the guest has validated: the next access finds a fresh page, which is #VC \
             until the guest validates it, and holds nothing of what was there.",
            punch_under_a_validated_page,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_free_folio, svm/sev.c: sev_gmem_make_shared", VALIDATED]),
        Row::new(
            "punch.under_a_busy_snp_guest",
            Types::SNP,
            "The host punches a page out under a vCPU that keeps incrementing it: the vCPU takes #VC, and no exit but its \
             answer.",
            punch_under_a_busy_guest,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_punch_hole, kvm_gmem_invalidate_begin", VALIDATED]),
        Row::new(
            "punch.before_use.snp",
            Types::SNP,
            "A hole in pages that the guest has not touched, and an allocation of them before, make no difference to it.",
            punch_before_use,
        )
        .basis(&["virt/kvm/guest_memfd.c: kvm_gmem_punch_hole, kvm_gmem_allocate"]),
    ]
}

fn punch_under_a_validated_page(t: &Case) -> Outcome {
    let g = guest(t, 3)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, range.all())?;
    v.fill(range.private_gva(0), 3, GUEST, 0)?;
    range.punch(1..2)?;
    let exits = t.trace().exits();
    expect_not_validated(v.attempt(op(&g, Access::Read, Sharing::Private, 1))?)?;
    expect_no_exit_but(t, exits, 1)?;
    g.make_private(0, 1..2)?;
    v.expect_not(range.private_gva(1), 1, GUEST, 1)?;
    for page in [0, 2] {
        v.expect(range.private_gva(page), 1, GUEST, page)?;
    }
    range.host_expect(range.all(), HOST)
}

fn punch_under_a_busy_guest(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    let busy = v.hammer(Op::HammerAdd { gva: range.private_gva(0).0, pages: 1, limit: 0 })?;
    let exits = t.trace().exits();
    range.punch(0..1)?;
    expect_not_validated(busy.result()?)?;
    expect_no_exit_but(t, exits, 1)?;
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, GUEST, 0)
}

fn punch_before_use(t: &Case) -> Outcome {
    let g = guest(t, 4)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.allocate(0..2)?;
    range.punch(1..3)?;
    g.make_private(0, range.all())?;
    v.fill(range.private_gva(0), 4, GUEST, 0)?;
    v.expect(range.private_gva(0), 4, GUEST, 0)?;
    range.host_expect(range.all(), HOST)
}
