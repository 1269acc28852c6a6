//! By the MSR protocol: one page a request, without a page of the guest's.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::MAP_GPA_RANGE_ENCRYPTED;
use privet_protocol::{Op, Pattern};

use super::{MSR, MSR_ERROR, ROTH, TO_PRIVATE, TO_SHARED, exit, guest, msr_request, vmgexit};
use crate::expect::{expect_eq, expect_no_exit_but};
use crate::row::Row;
use crate::types::Types;

/// The answer without an error.
const MSR_DONE: u64 = 0x015;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "psc.msr",
            Types::SNP,
            "By the MSR protocol a guest asks for one page: one exit with its GPA; granted, the answer has no error and \
             the guest uses the page as private memory, then as shared memory again.",
            msr,
        )
        .basis(&[MSR, ROTH]),
        Row::new(
            "psc.msr.unknown_operation",
            Types::SNP,
            "An operation that is neither to private nor to shared is an error without an exit.",
            |t| {
                let g = guest(t, 1)?;
                let exits = t.trace().exits();
                for operation in [0, 3, 4, 15] {
                    expect_eq("the answer", &vmgexit(&g, msr_request(operation, TEST_BASE))?, &MSR_ERROR)?;
                }
                expect_no_exit_but(t, exits, 4)
            },
        )
        .basis(&[MSR]),
        Row::new(
            "psc.msr.refused",
            Types::SNP,
            "EINVAL and EAGAIN of userspace are the same error for a guest that asks by the MSR protocol.",
            |t| {
                let g = guest(t, 1)?;
                for errno in [Errno::EINVAL, Errno::EAGAIN] {
                    let asking = g.vcpu(0).start(Op::VmgexitMsr { msr: msr_request(TO_PRIVATE, TEST_BASE) })?;
                    asking.expect_exit(&exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED))?;
                    g.vcpu(0).kvm().set_hypercall_ret(errno as u64)?;
                    asking.resume()?;
                    expect_eq("the answer", &asking.done()?[0], &MSR_ERROR)?;
                }
                Ok(())
            },
        )
        .basis(&[MSR]),
        Row::new(
            "psc.msr.invalid_code_fails_the_run",
            Types::SNP,
            "Any other answer of userspace makes KVM_RUN fail with EINVAL.",
            |t| {
                let g = guest(t, 1)?;
                let asking = g.vcpu(0).start(Op::VmgexitMsr { msr: msr_request(TO_PRIVATE, TEST_BASE) })?;
                asking.expect_exit(&exit(TEST_BASE, 1, MAP_GPA_RANGE_ENCRYPTED))?;
                g.vcpu(0).kvm().set_hypercall_ret(77)?;
                asking.resume()?;
                asking.expect_exit(&Exit::Refused { errno: Errno::EINVAL })
            },
        )
        .basis(&["arch/x86/kvm/x86.h: kvm_is_valid_map_gpa_range_ret", MSR]),
    ]
}

fn msr(t: &Case) -> Outcome {
    const SHARED: Pattern = Pattern(0x11);
    const PRIVATE: Pattern = Pattern(0x22);
    let g = guest(t, 1)?;
    let (v, range) = (g.vcpu(0), g.range(0));
    range.host_fill(0..1, SHARED)?;
    let ask = |operation: u64, attributes: u64| {
        let asking = v.start(Op::VmgexitMsr { msr: msr_request(operation, range.gpa(0)) })?;
        asking.expect_exit(&exit(range.gpa(0), 1, attributes))?;
        if operation == TO_PRIVATE {
            range.set_private(g.vm(), 0..1)?
        } else {
            range.set_shared(g.vm(), 0..1)?
        }
        v.kvm().set_hypercall_ret(0)?;
        asking.resume()?;
        expect_eq("the answer", &asking.done()?[0], &MSR_DONE)
    };
    let validate = |validated: bool| {
        let [eax, done, unchanged, ..] = v.call(Op::Validate { gva: range.private_gva(0).0, pages: 1, validated })?;
        expect_eq("PVALIDATE: EAX, pages done, pages unchanged", &(eax, done, unchanged), &(0, 1, 0))
    };
    ask(TO_PRIVATE, MAP_GPA_RANGE_ENCRYPTED)?;
    validate(true)?;
    v.fill(range.private_gva(0), 1, PRIVATE, 0)?;
    v.expect(range.private_gva(0), 1, PRIVATE, 0)?;
    range.host_expect(0..1, SHARED)?;
    validate(false)?;
    ask(TO_SHARED, 0)?;
    v.expect(range.shared_gva(0), 1, SHARED, 0)
}
