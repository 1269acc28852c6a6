//! What userspace has to do with it: it has to ask for these exits, and its answer is the guest's.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::{RangeSpec, TEST_BASE};
use privet_harness::uapi::{Capability, HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use privet_harness::units::PageCount;
use privet_protocol::Width;

use super::{
    GENERIC, MSR, MSR_ERROR, PAGE, TO_PRIVATE, exit, grant, granted, guest, image, msr_request, request, requests,
    small, vmgexit,
};
use crate::expect::{expect_eq, expect_no_exit_but, expect_ok};
use crate::row::Row;
use crate::types::Types;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "psc.exit_must_be_enabled",
            Types::SNP,
            "Without KVM_CAP_EXIT_HYPERCALL either form of a page state change is an error without an exit; with it, from \
             then on, it arrives.",
            exit_must_be_enabled,
        )
        .basis(&[MSR, PAGE]),
        Row::new(
            "psc.invalid_code_fails_the_run",
            Types::SNP,
            "Any answer of userspace but 0, EINVAL and EAGAIN makes KVM_RUN fail with EINVAL.",
            |t| {
                let g = guest(t, 1)?;
                let asking = requests(&g).start(&request(&[small(TO_PRIVATE, TEST_BASE)]))?;
                asking.expect_exit(&exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED))?;
                g.vcpu(0).kvm().set_hypercall_ret(77)?;
                asking.resume()?;
                asking.expect_exit(&Exit::Refused { errno: Errno::EINVAL })
            },
        )
        .basis(&["arch/x86/kvm/x86.h: kvm_is_valid_map_gpa_range_ret", PAGE]),
    ];
    for (name, errno) in [("einval", Errno::EINVAL), ("eagain", Errno::EAGAIN)] {
        rows.push(
            Row::new(
                format!("psc.refused.{name}"),
                Types::SNP,
                "Userspace refuses the second of three exits: the guest gets the one error that there is, and the header \
                 tells that the first is done.",
                move |t| refused(t, errno),
            )
            .basis(&[PAGE]),
        );
    }
    rows
}

fn exit_must_be_enabled(t: &Case) -> Outcome {
    let g = t.guest().range(RangeSpec::new(1)).range(image()).without_map_gpa_range_exit().boot()?;
    let page = request(&[small(TO_PRIVATE, TEST_BASE)]);
    let exits = t.trace().exits();
    expect_eq("the answer by MSR", &vmgexit(&g, msr_request(TO_PRIVATE, TEST_BASE))?, &MSR_ERROR)?;
    expect_eq("the answer by page", &requests(&g).call(&page)?.answer(), &(0, GENERIC))?;
    expect_no_exit_but(t, exits, 2)?;
    expect_ok("enabling", g.vm().enable_cap(Capability::EXIT_HYPERCALL, [1 << HC_MAP_GPA_RANGE, 0, 0, 0]))?;
    granted(&g, &page, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)]).map(drop)
}

fn refused(t: &Case, errno: Errno) -> Outcome {
    let g = guest(t, 8)?;
    let entries = [0, 2, 4].map(|page| small(TO_PRIVATE, TEST_BASE + PageCount(page)));
    let asking = requests(&g).start(&request(&entries))?;
    grant(&g, &asking, &[exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED)])?;
    asking.expect_exit(&exit(TEST_BASE + PageCount(2), 1, MAP_GPA_RANGE_ENCRYPTED))?;
    g.vcpu(0).kvm().set_hypercall_ret(errno as u64)?;
    asking.resume()?;
    let answer = requests(&g).answer(asking)?;
    expect_eq("the answer", &answer.answer(), &(0, GENERIC))?;
    expect_eq("the header", &answer.buffer(0), &(2 << 16 | 1))?;
    let done = [1, 2, 3].map(|index| answer.buffer(index) & 0xfff);
    expect_eq("how far each entry is done", &done, &[1, 0, 0])?;
    // The guest is whole, and so is its channel.
    g.vcpu(0).write(g.range(0).shared_gva(0), Width::B8, 7)
}
