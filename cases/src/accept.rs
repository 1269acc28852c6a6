//! Group `accept`: pages that an SNP guest validates, or does not.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::RangeSpec;
use privet_protocol::{Fault, Op, Pattern, Sharing, Values, Width};

use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

pub(crate) const VALIDATED: &str = "APM volume 2, 15.36.10: a private access to a page that is not validated is #VC";
const PRIVATE_ACCESS: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn compares the access with the attribute";

/// What the host writes into its view.
pub(crate) const HOST: Pattern = Pattern(0xaa);
/// What the guest writes into private memory.
pub(crate) const GUEST: Pattern = Pattern(0xbb);

/// #VC, and its error code for a page that is not validated.
pub(crate) const NOT_VALIDATED: (u64, u64) = (29, 0x404);

/// How the guest accesses a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "accept.twice",
            Types::SNP,
            "PVALIDATE of a page that is in the wanted state says that it has changed nothing (CF), and nothing changes.",
            twice,
        )
        .basis(&["APM volume 3, PVALIDATE: CF"]),
        Row::new(
            "accept.content_survives",
            Types::SNP,
            "A page that is rescinded is #VC, and validated again it has its content.",
            content_survives,
        )
        .basis(&[VALIDATED]),
        Row::new(
            "accept.of_a_shared_page",
            Types::SNP,
            "PVALIDATE of a page whose attribute is shared is a private access: a memory fault with the flag PRIVATE; made \
             private, the instruction finishes and has validated the page.",
            of_a_shared_page,
        )
        .basis(&[PRIVATE_ACCESS, "APM volume 3, PVALIDATE"]),
        Row::new(
            "accept.by_another_vcpu",
            Types::SNP,
            "A page that one vCPU has validated is validated for all.",
            by_another_vcpu,
        )
        .basis(&["APM volume 2, 15.36.10: validation is a state of the page"]),
    ];
    rows.push(
        Row::new(
            "accept.large_page",
            Types::SNP,
            "PVALIDATE of 2 MiB over pages that KVM has assigned one by one, as it does with all of a guest_memfd's, is a \
             size mismatch (EAX 6) and validates none of them; then they are validated by 4 KiB.",
            large_page,
        )
        .basis(&["APM volume 3, PVALIDATE: FAIL_SIZEMISMATCH", "arch/x86/kvm/svm/sev.c: sev_gmem_prepare"]),
    );
    rows.push(
        Row::new(
            "accept.rights",
            Types::SNP,
            "RMPADJUST gives rights to VMPL 1 and not to VMPL 0, which has asked: no permission (EAX 2); of a page that is \
             not validated it is #VC.",
            rights,
        )
        .basis(&["APM volume 3, RMPADJUST: FAIL_PERMISSION and #VC"]),
    );
    for (name, access) in [("read", Access::Read), ("write", Access::Write), ("execute", Access::Execute)] {
        rows.push(
            Row::new(
                format!("accept.{name}_before_validation"),
                Types::SNP,
                "A private access to a page that the guest has not validated is #VC in the guest and no exit; validated, it \
                 works.",
                move |t| before_validation(t, access),
            )
            .basis(&[VALIDATED]),
        );
    }
    rows.into_iter().map(|row| row.needs(Need::GuestCode)).collect()
}

/// `lea rax, [rdi + 1]; ret`
const ADD_ONE: [u8; 5] = [0x48, 0x8d, 0x47, 1, 0xc3];

/// The operation that accesses page `page` of test range 0 through the alias of this kind.
pub(crate) fn op(g: &Guest, access: Access, kind: Sharing, page: u64) -> Op {
    let gva = g.range(0).gva(kind, page).0;
    match access {
        Access::Read => Op::Read { gva: gva + 8, width: Width::B8 },
        Access::Write => Op::Write { gva: gva + 8, width: Width::B8, value: 0x5a5a },
        Access::Execute => Op::Execute { gva, argument: 41 },
    }
}

/// A guest of two vCPUs with so many pages, all shared and full of [`HOST`].
pub(crate) fn guest(t: &Case, pages: u64) -> Outcome<Guest> {
    let g = t.guest().vcpus(2).range(RangeSpec::new(pages)).boot()?;
    g.range(0).host_fill(g.range(0).all(), HOST)?;
    Ok(g)
}

/// Expects an operation to end with #VC of a page that is not validated.
pub(crate) fn expect_not_validated(seen: Result<Values, Fault>) -> Outcome {
    match seen {
        Err(Fault { vector, error_code, .. }) => {
            expect_eq("vector and error code", &(vector, error_code), &NOT_VALIDATED)
        }
        Ok(values) => {
            Err(Stop::Fail(format!("the access ended with {values:x?}, expected #VC of a page not validated")))
        }
    }
}

/// Target VMPL of RMPADJUST, and all rights for it.
const OWN_VMPL: u64 = 0xf00;
const NEXT_VMPL: u64 = 0xf01;

fn rights(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let v = g.vcpu(0);
    let adjust = |page: u64, attributes: u64| Op::AdjustRmp { gva: g.range(0).private_gva(page).0, attributes };
    g.make_private(0, 0..1)?;
    expect_eq("EAX for VMPL 0", &v.call(adjust(0, OWN_VMPL))?[0], &2)?;
    expect_eq("EAX for VMPL 1", &v.call(adjust(0, NEXT_VMPL))?[0], &0)?;
    g.range(0).set_private(g.vm(), 1..2)?;
    let exits = t.trace().exits();
    expect_not_validated(v.attempt(adjust(1, NEXT_VMPL))?)?;
    expect_no_exit_but(t, exits, 1)?;
    g.make_private(0, 1..2)?;
    expect_eq("EAX for VMPL 1 of the page that is validated", &v.call(adjust(1, NEXT_VMPL))?[0], &0)
}

fn before_validation(t: &Case, access: Access) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 0..1)?;
    let exits = t.trace().exits();
    for _ in 0..2 {
        expect_not_validated(v.attempt(op(&g, access, Sharing::Private, 0))?)?;
    }
    expect_no_exit_but(t, exits, 2)?;
    g.make_private(0, 0..1)?;
    v.write_bytes(range.private_gva(0), &ADD_ONE)?;
    v.call(op(&g, access, Sharing::Private, 0)).map(drop)
}

/// PVALIDATE of page 0: pages done, and those of them that were in that state before.
fn validate(g: &Guest, vcpu: usize, validated: bool) -> Outcome<(u64, u64)> {
    let op = Op::Validate { gva: g.range(0).private_gva(0).0, pages: 1, validated };
    let [eax, done, unchanged, ..] = g.vcpu(vcpu).call(op)?;
    expect_eq("EAX of PVALIDATE", &eax, &0)?;
    Ok((done, unchanged))
}

fn large_page(t: &Case) -> Outcome {
    const PAGES: u64 = 512;
    const SIZE_MISMATCH: u64 = 6;
    let g = guest(t, PAGES)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.set_private(g.vm(), 0..PAGES)?;
    let gva = range.private_gva(0).0;
    for validated in [true, false] {
        let [eax, ..] = v.call(Op::ValidateLarge { gva, validated })?;
        expect_eq("EAX of PVALIDATE of 2 MiB", &eax, &SIZE_MISMATCH)?;
    }
    for page in [0, 1, PAGES - 1] {
        expect_not_validated(v.attempt(op(&g, Access::Read, Sharing::Private, page))?)?;
    }
    let [eax, done, unchanged, ..] = v.call(Op::Validate { gva, pages: PAGES, validated: true })?;
    expect_eq("PVALIDATE by 4 KiB: EAX, pages done, pages unchanged", &(eax, done, unchanged), &(0, PAGES, 0))?;
    v.fill(range.private_gva(0), PAGES, GUEST, 0)?;
    v.expect(range.private_gva(0), PAGES, GUEST, 0)
}

fn twice(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, GUEST, 0)?;
    expect_eq("validated again", &validate(&g, 0, true)?, &(1, 1))?;
    v.expect(range.private_gva(0), 1, GUEST, 0)?;
    expect_eq("rescinded", &validate(&g, 0, false)?, &(1, 0))?;
    expect_eq("rescinded again", &validate(&g, 0, false)?, &(1, 1))
}

fn content_survives(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, GUEST, 0)?;
    expect_eq("rescinded", &validate(&g, 0, false)?, &(1, 0))?;
    expect_not_validated(v.attempt(op(&g, Access::Read, Sharing::Private, 0))?)?;
    expect_eq("validated", &validate(&g, 0, true)?, &(1, 0))?;
    v.expect(range.private_gva(0), 1, GUEST, 0)
}

fn of_a_shared_page(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let accepting = v.start(Op::Validate { gva: range.private_gva(0).0, pages: 1, validated: true })?;
    accepting.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
    range.set_private(g.vm(), 0..1)?;
    accepting.resume()?;
    let [eax, done, unchanged, ..] = accepting.done()?;
    expect_eq("EAX, pages done, pages unchanged", &(eax, done, unchanged), &(0, 1, 0))?;
    v.fill(range.private_gva(0), 1, GUEST, 0)?;
    v.expect(range.private_gva(0), 1, GUEST, 0)
}

fn by_another_vcpu(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let range = g.range(0);
    g.make_private(1, 0..1)?;
    g.vcpu(0).fill(range.private_gva(0), 1, GUEST, 0)?;
    g.vcpu(1).expect(range.private_gva(0), 1, GUEST, 0)?;
    expect_eq("validated again", &validate(&g, 0, true)?, &(1, 1))
}
