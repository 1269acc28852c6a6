//! Implicit conversions of SNP guests: an access of the other kind is an exit, and userspace decides.

use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{Backing, RangeSpec, TEST_SLOT};
use privet_protocol::{Sharing, Width};

use crate::accept::{Access, GUEST, HOST, VALIDATED, expect_not_validated, guest, op};
use crate::counters::Counters;
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

const MISMATCH: &str = "arch/x86/kvm/mmu/mmu.c: kvm_mmu_faultin_pfn compares the access with the attribute";
const C_BIT: &str = "arch/x86/kvm/svm/svm.c: npf_interception, PFERR_GUEST_ENC_MASK";

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
            .upstream("priv_memfd_test: PMSAT")
            .exceeds("private_mem_test: guest_conv_test_fn_implicit"),
        );
    }
    for (name, access) in [("read", Access::Read), ("write", Access::Write), ("execute", Access::Execute)] {
        rows.push(
            Row::new(
                format!("exits.implicit.private_{name}_of_shared"),
                Types::SNP,
                "A private access to a page whose attribute is shared exits as a memory fault of that page with the flag \
                 PRIVATE, once for each run; made private, the guest takes #VC, because nobody has validated the page.",
                move |t| private_access(t, access),
            )
            .basis(&[MISMATCH, C_BIT, VALIDATED])
            .upstream("priv_memfd_test: SMPAT")
            .exceeds("private_mem_test: guest_conv_test_fn_implicit"),
        );
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
    ]);
    rows
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
