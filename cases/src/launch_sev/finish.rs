//! SNP_LAUNCH_FINISH, and what may come only before or after it.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Finish, Firmware, Memory, attributes};
use privet_harness::test_range::{RangeSpec, TEST_SLOT, TestRange};
use privet_harness::units::{PAGE_SIZE, PageCount};

use super::vm::SevVm;
use crate::expect::{expect_done, expect_eq, expect_ok, expect_refused_by_firmware, expect_refused_by_kvm};
use crate::row::Row;
use crate::types::Types;

const FINISH: &str = "arch/x86/kvm/svm/sev.c: snp_launch_finish";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.finish.before_start",
            Types::SNP,
            "SNP_LAUNCH_FINISH before SNP_LAUNCH_START is EINVAL.",
            |t| {
                let sev = SevVm::initialized(t)?;
                let early = sev.commands().snp_launch_finish(Finish::PLAIN);
                expect_refused_by_kvm("SNP_LAUNCH_FINISH", early, Errno::EINVAL)?;
                expect_done("SNP_LAUNCH_START", sev.start())?;
                expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))
            },
        )
        .basis(&[FINISH])
        .upstream("x86/snp_launch_test: test_snp_launch_finish"),
        Row::new(
            "launch.finish.flags",
            Types::SNP,
            "Every flag of SNP_LAUNCH_FINISH is EINVAL before any state is encrypted: without them the launch ends.",
            flags,
        )
        .basis(&[FINISH])
        .exceeds("x86/snp_launch_test: test_snp_launch_finish"),
        Row::new(
            "launch.finish.once",
            Types::SNP,
            "SNP_LAUNCH_FINISH of a guest that has finished, without a vCPU that KVM could object to, is \
             INVALID_GUEST_STATE.",
            |t| {
                let sev = SevVm::started(t)?;
                expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))?;
                let again = sev.commands().snp_launch_finish(Finish::PLAIN);
                expect_refused_by_firmware("SNP_LAUNCH_FINISH again", again, Firmware::INVALID_GUEST_STATE)
            },
        )
        .basis(&[FINISH, "SEV-SNP firmware ABI, SNP_LAUNCH_FINISH"]),
        Row::new(
            "launch.finish.unreadable_id",
            Types::SNP,
            "An identity block, or its authentication, at no address is EINVAL, one that cannot be read is EFAULT; the \
             firmware is not asked, and a guest without vCPUs can be finished then.",
            unreadable_id,
        )
        .basis(&[FINISH, "drivers/crypto/ccp/sev-dev.c: psp_copy_user_blob"]),
        Row::new(
            "launch.finish.host_data",
            Types::SNP,
            "Any host data, and the request not to use the chip's key, are taken; an author's key without an identity \
             block is not looked at.",
            host_data,
        )
        .basis(&[FINISH]),
        Row::new(
            "launch.finish.pre_fault",
            Types::SNP,
            "KVM_PRE_FAULT_MEMORY is EOPNOTSUPP until SNP_LAUNCH_FINISH has succeeded, of shared memory and of private; \
             afterwards both are mapped.",
            pre_fault,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_arch_vcpu_pre_fault_memory", FINISH])
        .upstream(
            "x86/coco_pre_fault_memory_test: prefault_shared_before_finalizing, prefault_private_before_finalizing, \
             prefault_private_shared_after_finalizing",
        ),
        Row::new(
            "launch.finish.certificates",
            Types::SNP,
            "SNP_ENABLE_REQ_CERTS, of which /dev/kvm tells, is taken at any time until there is a vCPU, and is EINVAL from \
             then on.",
            |t| {
                let told = expect_ok("KVM_X86_SEV_SNP_REQ_CERTS", attributes::snp_req_certs(t.host()))?;
                expect_eq("KVM_X86_SEV_SNP_REQ_CERTS", &told, &1)?;
                let sev = SevVm::initialized(t)?;
                expect_done("SNP_ENABLE_REQ_CERTS", sev.commands().snp_enable_req_certs())?;
                expect_done("SNP_LAUNCH_START", sev.start())?;
                expect_done("SNP_ENABLE_REQ_CERTS", sev.commands().snp_enable_req_certs())?;
                let _vcpu = sev.vm.create_vcpu(0)?;
                let late = sev.commands().snp_enable_req_certs();
                expect_refused_by_kvm("SNP_ENABLE_REQ_CERTS with a vCPU", late, Errno::EINVAL)
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: snp_enable_certs"])
        .needs(privet_harness::need::Need::KernelSince((6, 19), "SNP_ENABLE_REQ_CERTS is new")),
    ]
}

fn flags(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    for bit in 0..u16::BITS {
        let result = sev.commands().snp_launch_finish(Finish { flags: 1 << bit, ..Finish::PLAIN });
        expect_refused_by_kvm(&format!("flag {bit}"), result, Errno::EINVAL)?;
    }
    expect_eq("whether the vCPU's registers are open", &vcpu.kvm()?.get_regs().is_ok(), &true)?;
    expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))?;
    expect_eq("whether the vCPU's registers are open", &vcpu.kvm()?.get_regs().is_ok(), &false)
}

fn unreadable_id(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let good = Mapping::anonymous(2 * PAGE_SIZE)?;
    let (good, nowhere) = (Memory::In(&good, 0), Memory::Nowhere(0x1000));
    for (what, block, authentication, errno) in [
        ("no address of the block", Memory::NONE, good, Errno::EINVAL),
        ("no address of the authentication", good, Memory::NONE, Errno::EINVAL),
        ("a block nowhere", nowhere, good, Errno::EFAULT),
        ("an authentication nowhere", good, nowhere, Errno::EFAULT),
    ] {
        let finish = Finish { id: Some((block, authentication)), ..Finish::PLAIN };
        expect_refused_by_kvm(what, sev.commands().snp_launch_finish(finish), errno)?;
    }
    expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))
}

fn host_data(t: &Case) -> Outcome {
    for finish in [
        Finish { host_data: [0xff; 32], ..Finish::PLAIN },
        Finish { vcek_disabled: true, ..Finish::PLAIN },
        Finish { author_key: true, ..Finish::PLAIN },
    ] {
        let sev = SevVm::started(t)?;
        expect_done(&format!("{finish:?}"), sev.commands().snp_launch_finish(finish))?;
    }
    Ok(())
}

fn pre_fault(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let range = TestRange::install(&sev.vm, RangeSpec::new(4), TEST_SLOT)?;
    range.set_private(&sev.vm, 0..2)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    let all = || vcpu.pre_fault(range.gpa(0), PageCount(4));
    let half = |page| vcpu.pre_fault(range.gpa(page), PageCount(2));
    for (what, done) in [("private memory", half(0)?), ("shared memory", half(2)?)] {
        expect_eq(&format!("{what} before the end"), &done.result, &Err(Errno::EOPNOTSUPP))?;
    }
    expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))?;
    let done = all()?;
    expect_eq("all of it after the end", &(done.result, done.size), &(Ok(()), 0))
}
