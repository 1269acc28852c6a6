//! INIT2, and the legacy INIT and ES_INIT.

use std::arch::x86_64::__cpuid;
use std::time::Duration;

use kvm_bindings::kvm_sev_init;
use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::sev::{Command, Commands, Device, Memory, SevPolicy, attributes};
use privet_harness::units::PAGE_SIZE;
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

use super::vm::{BySevType, SevVm};
use crate::expect::{expect_done, expect_eq, expect_errno, expect_ok, expect_refused_by_kvm, expect_that};
use crate::row::Row;
use crate::types::Types;

const INIT: &str = "arch/x86/kvm/svm/sev.c: __sev_guest_init";

/// SEV_FEATURES (AMD APM vol. 2, table B-4).
const SNP_ACTIVE: u64 = 1 << 0;
const SECURE_TSC: u64 = 1 << 9;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.init.once",
            Types::SEV_FAMILY,
            "A second INIT2 is EINVAL, of an SNP guest EPERM as any command that is not SNP's; the first stays good.",
            once,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_guest_init2", INIT])
        .upstream("x86/sev_init2_tests: main"),
        Row::new(
            "launch.init.before_vcpus",
            Types::SEV_FAMILY,
            "INIT2 of a VM that has, or had, a vCPU is EINVAL.",
            before_vcpus,
        )
        .basis(&[INIT]),
        Row::new(
            "launch.init.flags",
            Types::SEV_FAMILY,
            "Every flag of INIT2 is EINVAL and leaves the VM as it was; the padding is not looked at.",
            flags,
        )
        .basis(&[INIT])
        .exceeds("x86/sev_init2_tests: test_flags"),
        Row::new(
            "launch.init.vmsa_features",
            Types::SEV_FAMILY,
            "INIT2 takes those features that KVM_X86_SEV_VMSA_FEATURES tells, none for a SEV guest, no secure TSC for a \
             SEV-ES guest, and SNP_ACTIVE from nobody; each other bit is EINVAL.",
            vmsa_features,
        )
        .basis(&[INIT, "arch/x86/kvm/svm/sev.c: sev_dev_get_attr"])
        .exceeds("x86/sev_init2_tests: test_features"),
        Row::new(
            "launch.init.ghcb_version",
            Types::SEV_FAMILY,
            "The version of the GHCB protocol that INIT2 takes: 0 for SEV, 0 to 2 for SEV-ES, 0 or 2 for SNP; any other \
             is EINVAL.",
            ghcb_version,
        )
        .basis(&[INIT]),
        Row::new(
            "launch.init.of_other_types",
            Types::SEV_FAMILY,
            "INIT2 makes a guest of the VM types that are its own, of plain and UPM VMs it is EINVAL; INIT and ES_INIT \
             of a VM with a type are EINVAL, before and after INIT2.",
            of_other_types,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_guest_init, sev_guest_init2"])
        .exceeds("x86/sev_init2_tests: test_vm_types"),
        Row::new(
            "launch.init.legacy",
            Types::SEV_AND_ES,
            "INIT, or ES_INIT, makes a plain VM a SEV or SEV-ES guest that can be launched to its end; INIT2, INIT and \
             ES_INIT of it are EINVAL from then on.",
            legacy,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_guest_init"]),
        Row::new(
            "launch.init.is_needed_to_run",
            Types::SEV_FAMILY,
            "KVM_RUN of a VM without INIT2 is EINVAL before anything runs, and again so.",
            is_needed_to_run,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_vcpu_needs_initialization"]),
        Row::new(
            "launch.init.asids_come_back",
            Types::SEV_FAMILY,
            "More guests than there are ASIDs, one after the other: each is launched, and KVM flushes and gives the ASIDs \
             of those that are gone to those that come.",
            asids_come_back,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_alloc_asid, __sev_recycle_asids, sev_flush_asids"]),
        Row::new(
            "launch.init.asids_run_out",
            Types::SEV_FAMILY,
            "INIT2 is EBUSY once there are as many guests as ASIDs of their kind. SEV-ES and SNP guests share theirs, SEV \
             guests have their own. Once a guest is gone, the VM that was refused gets its ASID.",
            asids_run_out,
        )
        .alone()
        .basis(&["arch/x86/kvm/svm/sev.c: sev_asid_new"]),
        Row::new(
            "launch.init.attributes",
            Types::SEV_FAMILY,
            "/dev/kvm tells what INIT2 and SNP_LAUNCH_START take; attributes from 3 on are ENXIO, and those of groups that there are \
             not.",
            known_attributes,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_dev_get_attr"]),
    ]
}

fn once(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let errno = BySevType { sev: Errno::EINVAL, sev_es: Errno::EINVAL, snp: Errno::EPERM }.of(t);
    expect_refused_by_kvm("INIT2 again", sev.commands().init2(Default::default()), errno)?;
    expect_done("LAUNCH_START", sev.start())?;
    expect_refused_by_kvm("INIT2 after LAUNCH_START", sev.commands().init2(Default::default()), errno)
}

fn before_vcpus(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    expect_refused_by_kvm("INIT2 with a vCPU", sev.commands().init2(Default::default()), Errno::EINVAL)?;
    drop(vcpu);
    expect_refused_by_kvm("INIT2 after a vCPU", sev.commands().init2(Default::default()), Errno::EINVAL)
}

fn flags(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    for bit in 0..u32::BITS {
        let init = kvm_sev_init { flags: 1 << bit, ..Default::default() };
        expect_refused_by_kvm(&format!("flag {bit}"), sev.commands().init2(init), Errno::EINVAL)?;
    }
    let padded = kvm_sev_init { pad1: 0xffff, pad2: [u32::MAX; 8], ..Default::default() };
    expect_done("INIT2 with ones in the padding", sev.commands().init2(padded))
}

fn vmsa_features(t: &Case) -> Outcome {
    let told = expect_ok("KVM_X86_SEV_VMSA_FEATURES", attributes::vmsa_features(t.host()))?;
    let taken = BySevType { sev: 0, sev_es: told & !SECURE_TSC, snp: told }.of(t);
    expect_that(told & SNP_ACTIVE == 0, || "KVM offers SNP_ACTIVE, which is its own to set".to_owned())?;
    let refused = SevVm::new(t)?;
    for bit in (0..u64::BITS).map(|bit| 1 << bit) {
        let init = kvm_sev_init { vmsa_features: bit, ..Default::default() };
        if taken & bit == 0 {
            let what = format!("feature {bit:#x}");
            expect_refused_by_kvm(&what, refused.commands().init2(init), Errno::EINVAL)?;
        } else {
            expect_done(&format!("feature {bit:#x}"), SevVm::new(t)?.commands().init2(init))?;
        }
    }
    let all = kvm_sev_init { vmsa_features: taken, ..Default::default() };
    expect_done("all features at once", refused.commands().init2(all))
}

fn ghcb_version(t: &Case) -> Outcome {
    let taken = BySevType { sev: vec![0], sev_es: vec![0, 1, 2], snp: vec![0, 2] }.of(t);
    let refused = SevVm::new(t)?;
    for version in [0, 1, 2, 3, 4, 0x8000, 0xffff] {
        let (init, what) = (kvm_sev_init { ghcb_version: version, ..Default::default() }, format!("version {version}"));
        if taken.contains(&version) {
            expect_done(&what, SevVm::new(t)?.commands().init2(init))?;
        } else {
            expect_refused_by_kvm(&what, refused.commands().init2(init), Errno::EINVAL)?;
        }
    }
    expect_done("INIT2 after all refusals", refused.commands().init2(Default::default()))
}

fn of_other_types(t: &Case) -> Outcome {
    let device = Device::open()?;
    for vm_type in [VmType::Plain, VmType::Upm] {
        if t.host().why_not(vm_type).is_none() {
            let vm = Vm::create(t.host(), vm_type)?;
            let result = Commands::new(&vm, &device).init2(Default::default());
            expect_refused_by_kvm(&format!("INIT2 of a {vm_type} VM"), result, Errno::EINVAL)?;
        }
    }
    let sev = SevVm::new(t)?;
    let legacy = |when: &str, errno| {
        expect_refused_by_kvm(&format!("INIT {when}"), sev.commands().init(), errno)?;
        expect_refused_by_kvm(&format!("ES_INIT {when}"), sev.commands().es_init(), errno)
    };
    legacy("before INIT2", Errno::EINVAL)?;
    expect_done("INIT2", sev.commands().init2(Default::default()))?;
    let after = BySevType { sev: Errno::EINVAL, sev_es: Errno::EINVAL, snp: Errno::EPERM }.of(t);
    legacy("after INIT2", after)
}

fn legacy(t: &Case) -> Outcome {
    let vm = Vm::create(t.host(), VmType::Plain)?;
    let device = Device::open()?;
    let commands = Commands::new(&vm, &device);
    let (command, policy) = BySevType {
        sev: (Command::INIT, SevPolicy::NONE),
        sev_es: (Command::ES_INIT, SevPolicy::ES),
        snp: (Command::ES_INIT, SevPolicy::ES),
    }
    .of(t);
    expect_done(&command.to_string(), commands.without_argument(command, 0))?;
    for (what, result) in [
        ("INIT2 after it", commands.init2(Default::default())),
        ("INIT after it", commands.init()),
        ("ES_INIT after it", commands.es_init()),
    ] {
        expect_refused_by_kvm(what, result, Errno::EINVAL)?;
    }
    expect_done("LAUNCH_START", commands.launch_start(0, policy, None))?;
    let memory = Mapping::anonymous(PAGE_SIZE)?;
    let place = Memory::In(&memory, 0);
    expect_done("LAUNCH_UPDATE_DATA", commands.launch_update_data(place, 4096))?;
    expect_done("LAUNCH_MEASURE", commands.launch_measure(place, 48).0)?;
    expect_done("LAUNCH_FINISH", commands.launch_finish())?;
    expect_eq("the state", &expect_done("GUEST_STATUS", commands.guest_status())?.state, &3)
}

fn is_needed_to_run(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    for _ in 0..2 {
        let exit = vcpu.run(Duration::from_secs(20))?;
        expect_eq("KVM_RUN", &exit, &Exit::Refused { errno: Errno::EINVAL })?;
    }
    Ok(())
}

/// How many ASIDs there are for guests of the row's type.
fn asids(t: &Case) -> u32 {
    // CPUID 8000001F (AMD APM vol. 3, E.4.17): the greatest ASID, and the first that is for SEV alone.
    let leaf = __cpuid(0x8000_001f);
    let (greatest, first_of_sev) = (leaf.ecx, leaf.edx);
    BySevType { sev: greatest + 1 - first_of_sev, sev_es: first_of_sev - 1, snp: first_of_sev - 1 }.of(t)
}

fn asids_run_out(t: &Case) -> Outcome {
    let device = Device::open()?;
    let init2 = |vm: &Vm| Commands::new(vm, &device).init2(Default::default());
    let mut guests = Vec::new();
    for guest in 0..asids(t) {
        let vm = t.vm()?;
        expect_done(&format!("INIT2 of guest {guest}"), init2(&vm))?;
        guests.push(vm);
    }
    let late = t.vm()?;
    for _ in 0..2 {
        expect_refused_by_kvm("INIT2 of one guest more", init2(&late), Errno::EBUSY)?;
    }
    for (vm_type, shares) in [
        (VmType::Sev, BySevType { sev: true, sev_es: false, snp: false }),
        (VmType::SevEs, BySevType { sev: false, sev_es: true, snp: true }),
        (VmType::Snp, BySevType { sev: false, sev_es: true, snp: true }),
    ] {
        if t.host().why_not(vm_type).is_none() {
            let (what, result) = (format!("INIT2 of a {vm_type} guest"), init2(&Vm::create(t.host(), vm_type)?));
            if shares.of(t) {
                expect_refused_by_kvm(&what, result, Errno::EBUSY)?;
            } else {
                expect_done(&what, result)?;
            }
        }
    }
    drop(guests.pop());
    expect_done("INIT2 once a guest is gone", init2(&late))?;
    let next = t.vm()?;
    expect_refused_by_kvm("INIT2 of the next guest", init2(&next), Errno::EBUSY)
}

fn asids_come_back(t: &Case) -> Outcome {
    for round in 0..=2 * asids(t) {
        let sev = SevVm::new(t)?;
        expect_done(&format!("INIT2 of guest {round}"), sev.commands().init2(Default::default()))?;
        expect_done(&format!("LAUNCH_START of guest {round}"), sev.start())?;
    }
    Ok(())
}

fn known_attributes(t: &Case) -> Outcome {
    expect_ok("KVM_X86_SEV_VMSA_FEATURES", attributes::vmsa_features(t.host()))?;
    for attribute in [3, 4, 1 << 32, u64::MAX] {
        expect_errno(&format!("attribute {attribute:#x}"), attributes::any(t.host(), attribute), Errno::ENXIO)?;
    }
    for group in [2, 3, u32::MAX] {
        let first = attributes::of_group(t.host(), group, 0);
        expect_errno(&format!("attribute 0 of group {group:#x}"), first, Errno::ENXIO)?;
    }
    Ok(())
}
