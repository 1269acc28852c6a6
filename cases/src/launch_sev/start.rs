//! LAUNCH_START and SNP_LAUNCH_START: handles, keys and policies.

use std::fs;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::need::Need;
use privet_harness::outcome::Outcome;
use privet_harness::platform::Platform;
use privet_harness::sev::{Finish, Firmware, Memory, Session, SevPolicy, SnpPolicy, attributes};
use privet_harness::units::PAGE_SIZE;

use super::vm::{SevVm, bytes_of};
use crate::expect::{
    expect_done, expect_eq, expect_ok, expect_refused_by_firmware, expect_refused_by_kvm, expect_that,
};
use crate::row::Row;
use crate::types::Types;

const START: &str = "arch/x86/kvm/svm/sev.c: sev_launch_start";
const SNP_START: &str = "arch/x86/kvm/svm/sev.c: snp_launch_start";
const SNP_ABI: &str = "SEV-SNP firmware ABI, 4.3 and SNP_LAUNCH_START";
const SEV_API: &str = "SEV API, 2.1 and LAUNCH_START";

/// A firmware that nobody has.
const NEWEST: (u8, u8) = (0xff, 0xff);

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.start.status",
            Types::SEV_AND_ES,
            "After LAUNCH_START the guest has the handle that came back, which is not 0 and no other guest's, the policy \
             that was asked for, and state 1.",
            status,
        )
        .basis(&[START, "arch/x86/kvm/svm/sev.c: sev_guest_status"])
        .upstream("x86/sev_smoke_test: guest_sev_code"),
        Row::new(
            "launch.start.twice",
            Types::SEV_AND_ES,
            "A second LAUNCH_START makes another guest in the firmware, whose ASID is taken: ASID_OWNED; it is given up, \
             and the first guest stays what it was.",
            twice,
        )
        .basis(&[START, "SEV API, ACTIVATE"]),
        Row::new(
            "launch.start.snp_twice",
            Types::SNP,
            "A second SNP_LAUNCH_START is EINVAL, after SNP_LAUNCH_FINISH too.",
            snp_twice,
        )
        .basis(&[SNP_START])
        .exceeds("x86/snp_launch_test: test_snp_launch_start"),
        Row::new(
            "launch.start.newer_firmware",
            Types::SEV_FAMILY,
            "A policy that asks for a newer firmware than there is: POLICY_FAILURE; with one that does not, the same VM \
             is launched.",
            newer_firmware,
        )
        .basis(&[SEV_API, SNP_ABI]),
        Row::new(
            "launch.start.snp_policy_bits",
            Types::SNP,
            "Each bit of a policy that KVM_X86_SNP_POLICY_BITS does not tell is EINVAL, and so is a policy without bit \
             17; the migration agent's bit is not told.",
            snp_policy_bits,
        )
        .basis(&[SNP_START, "arch/x86/kvm/svm/sev.c: KVM_SNP_POLICY_MASK_VALID"])
        .needs(Need::KernelSince((6, 17), "KVM_X86_SNP_POLICY_BITS tells which bits it takes"))
        .exceeds("x86/snp_launch_test: test_snp_launch_start"),
        Row::new(
            "launch.start.snp_smt",
            Types::SNP,
            "Without the bit for SMT in its policy a guest is launched where no core has two threads at work, and is \
             POLICY_FAILURE elsewhere; with the bit it is launched anywhere.",
            snp_smt,
        )
        .basis(&[SNP_ABI]),
        Row::new(
            "launch.start.snp_flags",
            Types::SNP,
            "Every flag of SNP_LAUNCH_START is EINVAL and leaves nothing behind.",
            snp_flags,
        )
        .basis(&[SNP_START])
        .upstream("x86/snp_launch_test: test_snp_launch_start"),
        Row::new(
            "launch.start.blob_lengths",
            Types::SEV_AND_ES,
            "Certificate and session of LAUNCH_START are 1 to 0x4000 bytes long, any other length is EINVAL; what \
             cannot be read is EFAULT.",
            blob_lengths,
        )
        .basis(&[START, "drivers/crypto/ccp/sev-dev.c: psp_copy_user_blob"]),
        Row::new(
            "launch.start.key_of_another",
            Types::SEV_AND_ES,
            "LAUNCH_START with another guest's handle shares its key if both policies allow it: debugging one guest's \
             page with the other's context gives the plaintext. It is POLICY_FAILURE if one of them forbids it, \
             and INVALID_GUEST of a handle that nobody has.",
            key_of_another,
        )
        .basis(&[SEV_API]),
        Row::new(
            "launch.start.keys_differ",
            Types::SEV_AND_ES,
            "Two guests have two keys: one's page, decrypted in the other's context, is not the plaintext.",
            keys_differ,
        )
        .basis(&[SEV_API]),
        Row::new(
            "launch.start.es_policy_for_sev",
            Types::SEV,
            "A policy that asks for SEV-ES needs an ASID of SEV-ES: a SEV VM with it is INVALID_ASID, and can be launched \
             without it.",
            |t| {
                let sev = SevVm::initialized(t)?;
                let result = sev.commands().launch_start(0, SevPolicy::ES, None);
                expect_refused_by_firmware("a policy with ES", result, Firmware::INVALID_ASID)?;
                expect_done("a policy without ES", sev.start())
            },
        )
        .basis(&[START, "SEV API, ACTIVATE"]),
        Row::new(
            "launch.start.sev_policy_for_es",
            Types::SEV_ES,
            "A policy that does not ask for SEV-ES does not fit to an ASID of SEV-ES: INVALID_ASID, and the VM can be \
             launched with it.",
            |t| {
                let sev = SevVm::initialized(t)?;
                let result = sev.commands().launch_start(0, SevPolicy::NONE, None);
                expect_refused_by_firmware("a policy without ES", result, Firmware::INVALID_ASID)?;
                expect_done("a policy with ES", sev.start())
            },
        )
        .basis(&[START, "SEV API, ACTIVATE"])
        .upstream("x86/snp_launch_test: policy_mismatch"),
    ]
}

fn status(t: &Case) -> Outcome {
    let (sev, other) = (SevVm::initialized(t)?, SevVm::started(t)?);
    let policy = sev.policy() | SevPolicy::NO_SEND;
    let handle = expect_done("LAUNCH_START", sev.commands().launch_start(0, policy, None))?;
    let seen = expect_done("GUEST_STATUS", sev.commands().guest_status())?;
    expect_eq("handle, policy and state", &(seen.handle, seen.policy, seen.state), &(handle, policy.0, 1))?;
    let others = expect_done("GUEST_STATUS of another guest", other.commands().guest_status())?.handle;
    expect_that(handle != 0 && handle != others, || format!("handles {handle:#x} and {others:#x}"))
}

fn twice(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let before = expect_done("GUEST_STATUS", sev.commands().guest_status())?;
    for _ in 0..3 {
        let again = sev.commands().launch_start(0, sev.policy() | SevPolicy::NO_SEND, None);
        expect_refused_by_firmware("LAUNCH_START again", again, Firmware::ASID_OWNED)?;
        let after = expect_done("GUEST_STATUS", sev.commands().guest_status())?;
        expect_eq("what the firmware says of the guest", &after, &before)?;
    }
    sev.finish()?;
    let after_all = sev.commands().launch_start(0, sev.policy(), None);
    expect_refused_by_firmware("LAUNCH_START after LAUNCH_FINISH", after_all, Firmware::ASID_OWNED)
}

fn snp_twice(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    expect_refused_by_kvm("SNP_LAUNCH_START again", sev.start(), Errno::EINVAL)?;
    expect_done("SNP_LAUNCH_FINISH", sev.commands().snp_launch_finish(Finish::PLAIN))?;
    expect_refused_by_kvm("SNP_LAUNCH_START after SNP_LAUNCH_FINISH", sev.start(), Errno::EINVAL)
}

fn newer_firmware(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let (major, minor) = NEWEST;
    let result = match t.platform() {
        Platform::Snp => sev.commands().snp_launch_start(SnpPolicy::DEFAULT | SnpPolicy::firmware(major, minor), 0),
        _ => sev.commands().launch_start(0, sev.policy() | SevPolicy::firmware(major, minor), None).map(drop),
    };
    expect_refused_by_firmware("a policy for newer firmware", result, Firmware::POLICY_FAILURE)?;
    expect_done("LAUNCH_START", sev.start())
}

fn snp_policy_bits(t: &Case) -> Outcome {
    let told = expect_ok("KVM_X86_SNP_POLICY_BITS", attributes::snp_policy_bits(t.host()))?;
    expect_eq(
        "whether the bits of the default policy are told",
        &(told & SnpPolicy::DEFAULT.0),
        &SnpPolicy::DEFAULT.0,
    )?;
    expect_eq("whether the migration agent's bit is told", &(told & SnpPolicy::MIGRATE_MA.0), &0)?;
    let sev = SevVm::initialized(t)?;
    for bit in (0..u64::BITS).map(|bit| 1 << bit).filter(|bit| told & bit == 0) {
        let result = sev.commands().snp_launch_start(SnpPolicy::DEFAULT | SnpPolicy(bit), 0);
        expect_refused_by_kvm(&format!("policy bit {bit:#x}"), result, Errno::EINVAL)?;
    }
    let without = sev.commands().snp_launch_start(SnpPolicy(told & !SnpPolicy::RESERVED_ONE.0), 0);
    expect_refused_by_kvm("a policy without bit 17", without, Errno::EINVAL)?;
    expect_done("the default policy", sev.start())
}

fn snp_smt(t: &Case) -> Outcome {
    let smt = fs::read_to_string("/sys/devices/system/cpu/smt/active").is_ok_and(|active| active.trim_end() == "1");
    let sev = SevVm::initialized(t)?;
    let without = sev.commands().snp_launch_start(SnpPolicy::RESERVED_ONE, 0);
    if smt {
        expect_refused_by_firmware("a policy without SMT where there is SMT", without, Firmware::POLICY_FAILURE)?;
        return expect_done("a policy with SMT", sev.start());
    }
    expect_done("a policy without SMT where there is none", without)?;
    expect_done("a policy with SMT", SevVm::initialized(t)?.start())
}

fn snp_flags(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    for bit in 0..u16::BITS {
        let result = sev.commands().snp_launch_start(SnpPolicy::DEFAULT, 1 << bit);
        expect_refused_by_kvm(&format!("flag {bit}"), result, Errno::EINVAL)?;
    }
    expect_done("SNP_LAUNCH_START", sev.start())
}

fn blob_lengths(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let blob = Mapping::anonymous(8 * PAGE_SIZE)?;
    let (good, nowhere) = ((Memory::In(&blob, 0), 16), (Memory::Nowhere(0x1000), 16));
    let bad = |len| (Memory::In(&blob, 0), len);
    let none = (Memory::NONE, 0);
    for (what, dh_certificate, keys, errno) in [
        ("no bytes of certificate", bad(0), none, Errno::EINVAL),
        ("too many bytes of certificate", bad(0x4001), none, Errno::EINVAL),
        ("no bytes of session", none, bad(0), Errno::EINVAL),
        ("too many bytes of session", none, bad(0x4001), Errno::EINVAL),
        ("too many bytes of session, with a certificate", good, bad(0x4001), Errno::EINVAL),
        ("an unreadable certificate", nowhere, none, Errno::EFAULT),
        ("an unreadable session", good, nowhere, Errno::EFAULT),
    ] {
        let result = sev.commands().launch_start(0, sev.policy(), Some(Session { dh_certificate, keys }));
        expect_refused_by_kvm(what, result, errno)?;
    }
    expect_done("LAUNCH_START", sev.start())
}

/// A page of the guest `owner`, decrypted in the context of `reader`.
fn read_through(owner: &SevVm, reader: &SevVm) -> Outcome<(Vec<u8>, Vec<u8>)> {
    let (page, plain) = (Mapping::anonymous(PAGE_SIZE)?, Mapping::anonymous(PAGE_SIZE)?);
    let content: Vec<u8> = (0..PAGE_SIZE).map(|at| (at * 7) as u8).collect();
    page.write(0, &content)?;
    let (from, to) = (Memory::In(&page, 0), Memory::In(&plain, 0));
    expect_done("LAUNCH_UPDATE_DATA", owner.commands().launch_update_data(from, PAGE_SIZE as u32))?;
    expect_done("DBG_DECRYPT", reader.commands().dbg_decrypt(from, to, PAGE_SIZE as u32))?;
    Ok((content, bytes_of(&plain, 0, PAGE_SIZE as usize)?))
}

fn key_of_another(t: &Case) -> Outcome {
    let (first, second, third) = (SevVm::started(t)?, SevVm::initialized(t)?, SevVm::initialized(t)?);
    let handle = expect_done("GUEST_STATUS", first.commands().guest_status())?.handle;
    let alone = first.policy() | SevPolicy::NO_KEY_SHARING;
    let result = second.commands().launch_start(handle, alone, None);
    expect_refused_by_firmware("a guest that shares no key", result, Firmware::POLICY_FAILURE)?;
    let result = second.commands().launch_start(0x7fff_0000, first.policy(), None);
    expect_refused_by_firmware("a handle that nobody has", result, Firmware::INVALID_GUEST)?;
    expect_done("LAUNCH_START with the key of another", second.commands().launch_start(handle, first.policy(), None))?;
    let (content, seen) = read_through(&first, &second)?;
    expect_eq("whether the page is seen in the other's context", &(seen == content), &true)?;

    let alone = expect_done("LAUNCH_START", third.commands().launch_start(0, alone, None))?;
    let fourth = SevVm::initialized(t)?;
    let result = fourth.commands().launch_start(alone, first.policy(), None);
    expect_refused_by_firmware("the key of a guest that shares none", result, Firmware::POLICY_FAILURE)
}

fn keys_differ(t: &Case) -> Outcome {
    let (first, second) = (SevVm::started(t)?, SevVm::started(t)?);
    let (content, seen) = read_through(&first, &second)?;
    let same = content.iter().zip(&seen).filter(|(ours, theirs)| ours == theirs).count();
    // By chance one byte in 256 is the same.
    expect_that(same < content.len() / 8, || format!("{same} of {} bytes are the plaintext's", content.len()))?;
    let (content, seen) = read_through(&first, &first)?;
    expect_eq("whether the page is seen in its own context", &(seen == content), &true)
}
