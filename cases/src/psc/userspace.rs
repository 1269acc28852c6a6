//! What userspace has to do with it: it has to ask for these exits, and its answer is the guest's.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::guest_vcpu::Running;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{RangeSpec, TEST_BASE};
use privet_harness::uapi::{Capability, HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED};
use privet_harness::units::PageCount;
use privet_protocol::{Op, Width};

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
            "psc.exit_flags",
            Types::SNP,
            "The flags of the exit are KVM's, as of any hypercall: bits that must be zero are so, whatever userspace had left \
             there.",
            exit_flags,
        )
        .basis(&[MSR, PAGE, "include/uapi/linux/kvm.h: KVM_EXIT_HYPERCALL_MBZ"])
        .open_bug(
            "KVM does not write hypercall.flags when a guest asks for a change of page states: they are those of an earlier \
             exit, or userspace's",
            "flags that must be zero",
        ),
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

fn exit_flags(t: &Case) -> Outcome {
    /// `KVM_EXIT_HYPERCALL_MBZ`.
    const MUST_BE_ZERO: u64 = 0xffff_fffe;
    let g = guest(t, 2)?;
    let left_flags = || g.vcpu(0).kvm().run_page().set_hypercall_flags(MUST_BE_ZERO);
    let expect_flags = |asking: &Running<'_>| match asking.exit()? {
        Exit::Hypercall { flags, .. } => expect_eq("flags that must be zero", &(flags & MUST_BE_ZERO), &0),
        other => Err(Stop::Fail(format!("{other}, expected a hypercall"))),
    };
    left_flags()?;
    let by_msr = g.vcpu(0).start(Op::VmgexitMsr { msr: msr_request(TO_PRIVATE, TEST_BASE) })?;
    expect_flags(&by_msr)?;
    by_msr.resume()?;
    by_msr.done()?;
    left_flags()?;
    let by_page = requests(&g).start(&request(&[small(TO_PRIVATE, TEST_BASE + PageCount(1))]))?;
    expect_flags(&by_page)
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
