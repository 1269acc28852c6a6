//! The descriptor of `/dev/sev` that commands come with.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Commands, Device, Finish, Firmware, Memory, PageType, Update};
use privet_harness::test_range::{RangeSpec, TEST_SLOT, TestRange};
use privet_harness::units::PAGE_SIZE;

use super::vm::{BySevType, SevVm};
use crate::expect::{expect_done, expect_eq, expect_refused, expect_refused_by_kvm};
use crate::row::Row;
use crate::types::Types;

const ISSUE: &str = "arch/x86/kvm/svm/sev.c: __sev_issue_cmd";
const OWNER: &str = "drivers/crypto/ccp/sev-dev.c: sev_issue_cmd_external_user";

/// No descriptor has this number.
const NONE: i32 = -1;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.descriptor.init_needs_none",
            Types::SEV_FAMILY,
            "INIT2 does not look at the descriptor of /dev/sev.",
            |t| {
                let sev = SevVm::new(t)?;
                let commands = Commands::with_descriptor(&sev.vm, NONE);
                expect_done("INIT2", commands.init2(Default::default()))?;
                expect_done("LAUNCH_START", sev.start())
            },
        )
        .basis(&["arch/x86/kvm/svm/sev.c: __sev_guest_init"]),
        Row::new(
            "launch.descriptor.start_needs_it",
            Types::SEV_FAMILY,
            "LAUNCH_START with a number that is no descriptor, or that of another file, is refused without a word from \
             the firmware: EBADF, ENOTTY of SNP, where the context could not be made. With the right one it then works.",
            start_needs_it,
        )
        .basis(&[ISSUE, OWNER, "arch/x86/kvm/svm/sev.c: snp_context_create"]),
        Row::new(
            "launch.descriptor.is_remembered",
            Types::SEV_AND_ES,
            "After LAUNCH_START the commands go to the descriptor that came with it, whatever they come with; once it is \
             closed they are EBADF.",
            is_remembered,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_issue_cmd"]),
        Row::new(
            "launch.descriptor.pages_need_it",
            Types::SNP,
            "SNP_LAUNCH_UPDATE looks at the descriptor that it comes with: without one it is EIO with status 0, and the \
             page is free for another try. SNP_LAUNCH_FINISH without vCPUs goes to the one that was remembered.",
            pages_need_it,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_gmem_post_populate, snp_launch_finish"]),
    ]
}

fn start_needs_it(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let errno = BySevType { sev: Errno::EBADF, sev_es: Errno::EBADF, snp: Errno::ENOTTY }.of(t);
    let of_the_vm = sev.vm.kvm().as_raw_fd();
    for (what, number) in [("no descriptor", NONE), ("a free number", 9999), ("the VM's", of_the_vm)] {
        let result = sev.start_through(Commands::with_descriptor(&sev.vm, number));
        expect_refused_by_kvm(what, result, errno)?;
    }
    expect_done("LAUNCH_START after all", sev.start())
}

fn is_remembered(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let other = Device::open()?;
    expect_done("LAUNCH_START", sev.start_through(Commands::new(&sev.vm, &other)))?;
    let commands = Commands::with_descriptor(&sev.vm, NONE);
    let memory = Mapping::anonymous(PAGE_SIZE)?;
    expect_done("LAUNCH_UPDATE_DATA", commands.launch_update_data(Memory::In(&memory, 0), PAGE_SIZE as u32))?;
    expect_eq("the state", &expect_done("GUEST_STATUS", commands.guest_status())?.state, &1)?;
    drop(other);
    for commands in [commands, sev.commands()] {
        expect_refused_by_kvm("GUEST_STATUS", commands.guest_status(), Errno::EBADF)?;
        let blob = Memory::In(&memory, 0);
        expect_refused_by_kvm("LAUNCH_MEASURE", commands.launch_measure(blob, 48).0, Errno::EBADF)?;
        expect_refused_by_kvm("LAUNCH_FINISH", commands.launch_finish(), Errno::EBADF)?;
    }
    Ok(())
}

fn pages_need_it(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let range = TestRange::install(&sev.vm, RangeSpec::new(1), TEST_SLOT)?;
    range.set_private(&sev.vm, 0..1)?;
    let without = Commands::with_descriptor(&sev.vm, NONE);
    let fresh = || Update {
        gfn: range.gpa(0).gfn(),
        source: Memory::In(range.host(), 0),
        len: PAGE_SIZE,
        page_type: PageType::Normal.number(),
        flags: 0,
    };
    expect_refused("a page", without.snp_launch_update(&mut fresh()), Errno::EIO, Firmware::SUCCESS)?;
    expect_done("the page, with the right one", sev.commands().snp_launch_update(&mut fresh()))?;
    expect_done("SNP_LAUNCH_FINISH", without.snp_launch_finish(Finish::PLAIN))
}
