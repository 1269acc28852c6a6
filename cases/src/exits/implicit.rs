//! Implicit conversions of SNP guests: an access of the other kind is an exit, and userspace decides.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest::Guest;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{Backing, RangeSpec, TEST_SLOT};
use privet_protocol::{Fault, Op, Pattern, Sharing, Width};

use crate::counters::Counters;
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const MISMATCH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn compares the access with the attribute";
const C_BIT: &str = "arch/x86/kvm/svm/svm.c: npf_interception, PFERR_GUEST_ENC_MASK";
const VALIDATED: &str = "APM volume 2, 15.36.10: a private access to a page that is not validated is #VC";

const HOST: Pattern = Pattern(0xaa);
const GUEST: Pattern = Pattern(0xbb);

/// #VC, and its error code for a page that is not validated.
const NOT_VALIDATED: (u64, u64) = (29, 0x404);

/// How the guest accesses a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Execute,
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, access) in [("read", Access::Read), ("write", Access::Write)] {
        rows.push(
            Row::new(
                format!("exits.implicit.shared_{name}_of_private"),
                Types::SNP,
                "A shared access to a page whose attribute is private exits as a memory fault of that page without the flag \
                 PRIVATE, once for each run; made shared, the access finishes, on the host's memory.",
                move |t| shared_access(t, access),
            )
            .basis(&[MISMATCH, C_BIT])
            .upstream("priv_memfd_test: PMSAT"),
        );
    }
    for (name, access) in [("read", Access::Read), ("write", Access::Write), ("execute", Access::Execute)] {
        rows.extend([
            Row::new(
                format!("exits.implicit.private_{name}_of_shared"),
                Types::SNP,
                "A private access to a page whose attribute is shared exits as a memory fault of that page with the flag \
                 PRIVATE, once for each run; made private, the guest takes #VC, because nobody has validated the page.",
                move |t| private_access(t, access),
            )
            .basis(&[MISMATCH, C_BIT, VALIDATED])
            .upstream("priv_memfd_test: SMPAT"),
            Row::new(
                format!("accept.{name}_before_validation"),
                Types::SNP,
                "A private access to a page that the guest has not validated is #VC in the guest and no exit; validated, it \
                 works.",
                move |t| before_validation(t, access),
            )
            .basis(&[VALIDATED]),
        ]);
    }
    rows.extend([
        Row::new(
            "exits.implicit.shared_write_of_mapped_private",
            Types::SNP,
            "A shared write to a private page that the guest uses is stopped by the RMP: a memory fault without the flag \
             PRIVATE, and the page keeps its content.",
            shared_write_of_mapped,
        )
        .basis(&[MISMATCH, "APM volume 2, 15.36.10: RMP checks of writes"]),
        Row::new(
            "access.shared_read_of_mapped_private",
            Types::SNP,
            "A shared read of a private page that the guest uses is no exit: the RMP lets reads through, and the guest sees \
             ciphertext.",
            shared_read_of_mapped,
        )
        .basis(&["APM volume 2, 15.36.10: RMP checks of writes and of private reads only"]),
        Row::new(
            "exits.implicit.private_access_without_slot",
            Types::SNP,
            "A private access to a GPA without a slot exits as a memory fault with the flag PRIVATE, whatever its attribute \
             is: it is never MMIO.",
            |t| without_memory(t, true),
        )
        .basis(&[MISMATCH, "arch/x86/kvm/mmu/mmu.c: kvm_handle_noslot_fault"]),
        Row::new(
            "exits.implicit.private_access_without_guest_memfd",
            Types::SNP,
            "A private access to a slot without a guest_memfd exits as a memory fault with the flag PRIVATE, whatever its \
             attribute is.",
            |t| without_memory(t, false),
        )
        .basis(&[MISMATCH, "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn_gmem"]),
        Row::new(
            "exits.implicit.counts_as_a_fault",
            Types::SNP,
            "An access of the wrong kind is one of pf_taken for each run and none of pf_fixed.",
            counts_as_a_fault,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_mmu_do_page_fault"]),
        Row::new(
            "exits.implicit.each_vcpu_has_its_own",
            Types::SNP,
            "Two vCPUs access a page as the wrong kind: each exits, and one conversion lets both go on.",
            each_vcpu,
        )
        .basis(&[MISMATCH]),
        Row::new(
            "exits.implicit.neighbours_are_not_disturbed",
            Types::SNP,
            "Pages of either kind beside one of the other are accessed without an exit, page by page of 16 that alternate.",
            neighbours,
        )
        .basis(&[MISMATCH, "arch/x86/kvm/mmu/mmu.c: hugepage_has_attrs"]),
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
        .basis(&[MISMATCH, "APM volume 3, PVALIDATE"]),
        Row::new(
            "accept.by_another_vcpu",
            Types::SNP,
            "A page that one vCPU has validated is validated for all.",
            by_another_vcpu,
        )
        .basis(&["APM volume 2, 15.36.10: validation is a state of the page"]),
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
    ]);
    rows
}

/// `lea rax, [rdi + 1]; ret`
const ADD_ONE: [u8; 5] = [0x48, 0x8d, 0x47, 1, 0xc3];

fn op(g: &Guest, access: Access, kind: Sharing, page: u64) -> Op {
    let gva = g.range(0).gva(kind, page).0;
    match access {
        Access::Read => Op::Read { gva: gva + 8, width: Width::B8 },
        Access::Write => Op::Write { gva: gva + 8, width: Width::B8, value: 0x5a5a },
        Access::Execute => Op::Execute { gva, argument: 41 },
    }
}

fn guest(t: &Case, pages: u64) -> Outcome<Guest> {
    let g = t.guest().vcpus(2).range(RangeSpec::new(pages)).boot()?;
    g.range(0).host_fill(g.range(0).all(), HOST)?;
    Ok(g)
}

/// Expects an operation to end with #VC of a page that is not validated.
fn expect_not_validated(seen: Result<privet_protocol::Values, Fault>) -> Outcome {
    match seen {
        Err(Fault { vector, error_code, .. }) => {
            expect_eq("vector and error code", &(vector, error_code), &NOT_VALIDATED)
        }
        Ok(values) => {
            Err(Stop::Fail(format!("the access ended with {values:x?}, expected #VC of a page not validated")))
        }
    }
}

fn shared_access(t: &Case, access: Access) -> Outcome {
    let g = guest(t, 3)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    // Nobody has touched it as private: once it is mapped, the CPU lets shared reads through (and shows ciphertext).
    range.set_private(g.vm(), 1..2)?;
    let touching = v.start(op(&g, access, Sharing::Shared, 1))?;
    let fault = Exit::memory_fault(range.gpa(1), false);
    touching.expect_exit(&fault)?;
    // As often as one likes.
    touching.resume()?;
    touching.expect_exit(&fault)?;
    range.set_shared(g.vm(), 1..2)?;
    touching.resume()?;
    let [value, ..] = touching.done()?;
    let host = range.host().read_u64(0x1008)?;
    match access {
        Access::Write => expect_eq("the word in the host's view", &host, &0x5a5a),
        _ => expect_eq("the word that was read", &value, &HOST.word(1)),
    }
}

fn shared_write_of_mapped(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, GUEST, 0)?;
    let touching = v.start(op(&g, Access::Write, Sharing::Shared, 0))?;
    touching.expect_exit(&Exit::memory_fault(range.gpa(0), false))?;
    g.vcpu(1).expect(range.private_gva(0), 1, GUEST, 0)?;
    range.set_shared(g.vm(), 0..1)?;
    touching.resume()?;
    touching.done()?;
    expect_eq("the word in the host's view", &range.host().read_u64(8)?, &0x5a5a)
}

fn shared_read_of_mapped(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    g.make_private(0, 0..1)?;
    v.fill(range.private_gva(0), 1, GUEST, 0)?;
    let exits = t.trace().exits();
    v.expect_not(range.shared_gva(0), 1, GUEST, 0)?;
    v.expect_not(range.shared_gva(0), 1, HOST, 0)?;
    v.expect(range.private_gva(0), 1, GUEST, 0)?;
    expect_no_exit_but(t, exits, 3)
}

fn private_access(t: &Case, access: Access) -> Outcome {
    let g = guest(t, 3)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    let touching = v.start(op(&g, access, Sharing::Private, 1))?;
    let fault = Exit::memory_fault(range.gpa(1), true);
    touching.expect_exit(&fault)?;
    touching.resume()?;
    touching.expect_exit(&fault)?;
    range.set_private(g.vm(), 1..2)?;
    touching.resume()?;
    expect_not_validated(touching.result()?)?;
    range.host_expect(range.all(), HOST)
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

fn without_memory(t: &Case, without_slot: bool) -> Outcome {
    let backing = if without_slot { Backing::HostAndGuestMemfd } else { Backing::HostOnly };
    let g = t.guest().range(RangeSpec::new(1).backing(backing)).boot()?;
    let (v, range) = (g.vcpu(0), g.range(0));
    if without_slot {
        g.vm().delete_slot(TEST_SLOT)?;
    }
    let touching = v.start(op(&g, Access::Read, Sharing::Private, 0))?;
    touching.expect_exit(&Exit::memory_fault(range.gpa(0), true))?;
    range.set_private(g.vm(), 0..1)?;
    touching.resume()?;
    touching.expect_exit(&Exit::memory_fault(range.gpa(0), true))
}

fn counts_as_a_fault(t: &Case) -> Outcome {
    let g = guest(t, 2)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    // The same operation beside it, so that nothing but the page in question is new to KVM.
    v.read(range.shared_gva(0), Width::B8)?;
    range.set_private(g.vm(), 1..2)?;
    let counters = Counters::of_vcpu(&g)?;
    counters.expect_growth("pf_fixed", 0, || {
        counters.expect_growth("pf_taken", 2, || {
            let touching = v.start(op(&g, Access::Read, Sharing::Shared, 1))?;
            touching.expect_exit(&Exit::memory_fault(range.gpa(1), false))?;
            touching.resume()?;
            touching.expect_exit(&Exit::memory_fault(range.gpa(1), false))
        })
    })
}

fn each_vcpu(t: &Case) -> Outcome {
    let g = guest(t, 1)?;
    let range = g.range(0);
    range.set_private(g.vm(), 0..1)?;
    let touching = [0, 1].map(|index| g.vcpu(index).start(op(&g, Access::Read, Sharing::Shared, 0)));
    let [one, other] = touching;
    let (one, other) = (one?, other?);
    for touching in [&one, &other] {
        touching.expect_exit(&Exit::memory_fault(range.gpa(0), false))?;
    }
    range.set_shared(g.vm(), 0..1)?;
    for touching in [one, other] {
        touching.resume()?;
        expect_eq("the word that was read", &touching.done()?[0], &HOST.word(0))?;
    }
    Ok(())
}

fn neighbours(t: &Case) -> Outcome {
    let g = guest(t, 16)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    for page in (0..16).step_by(2) {
        g.make_private(0, page..page + 1)?;
        v.fill(range.private_gva(page), 1, GUEST, page)?;
    }
    let exits = t.trace().exits();
    for page in 0..16 {
        let (kind, pattern) = if page % 2 == 0 { (Sharing::Private, GUEST) } else { (Sharing::Shared, HOST) };
        v.expect(range.gva(kind, page), 1, pattern, page)?;
    }
    expect_no_exit_but(t, exits, 16)?;
    range.host_expect(range.all(), HOST)
}

/// PVALIDATE of page 0: pages done, and those of them that were in that state before.
fn validate(g: &Guest, vcpu: usize, validated: bool) -> Outcome<(u64, u64)> {
    let op = Op::Validate { gva: g.range(0).private_gva(0).0, pages: 1, validated };
    let [eax, done, unchanged, ..] = g.vcpu(vcpu).call(op)?;
    expect_eq("EAX of PVALIDATE", &eax, &0)?;
    Ok((done, unchanged))
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
