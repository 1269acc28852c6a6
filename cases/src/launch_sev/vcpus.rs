//! The state of vCPUs: LAUNCH_UPDATE_VMSA of SEV-ES and SNP_LAUNCH_FINISH encrypt it, and nobody sees it afterwards.

use std::time::Duration;

use kvm_bindings::{kvm_debugregs, kvm_guest_debug, kvm_mp_state};
use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::exit::Exit;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::platform::Platform;
use privet_harness::sev::{Finish, Firmware, Refused};
use privet_harness::uapi::Capability;
use privet_harness::vcpu::Vcpu;

use super::vm::{BySevType, SevVm};
use crate::expect::{
    expect_done, expect_eq, expect_errno, expect_ok, expect_refused, expect_refused_by_firmware, expect_refused_by_kvm,
};
use crate::row::Row;
use crate::types::Types;

const SYNC: &str = "arch/x86/kvm/svm/sev.c: sev_es_sync_vmsa";
const UPDATE: &str = "arch/x86/kvm/svm/sev.c: __sev_launch_update_vmsa, snp_launch_update_vmsa";
const REGISTERS: &str = "arch/x86/kvm/x86.c: guest_state_protected";

const LIMIT: Duration = Duration::from_secs(20);

/// `KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP`.
const DEBUG_ON: u32 = 1 | 1 << 17;
/// Breakpoint 0 is enabled, beside the bit that is always set.
const DR7: u64 = 0x401;
const DR7_RESET: u64 = 0x400;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.vcpus.none",
            Types::ES_AND_SNP,
            "A guest without vCPUs is launched to its end: there is no state to encrypt.",
            |t| expect_done("the encryption of no state", encrypt(&SevVm::started(t)?)),
        )
        .basis(&[UPDATE]),
        Row::new(
            "launch.vcpus.of_sev_are_open",
            Types::SEV,
            "LAUNCH_UPDATE_VMSA of a SEV guest is ENOTTY; its registers can be read and written until the end of the \
             launch and after it.",
            of_sev_are_open,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_launch_update_vmsa", REGISTERS]),
        Row::new(
            "launch.vcpus.before_start",
            Types::SEV_ES,
            "LAUNCH_UPDATE_VMSA before LAUNCH_START is EBADF, as all that needs the firmware, and encrypts nothing.",
            before_start,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_issue_cmd"]),
        Row::new(
            "launch.vcpus.after_measure",
            Types::SEV_ES,
            "LAUNCH_UPDATE_VMSA after LAUNCH_MEASURE is INVALID_GUEST_STATE, and encrypts nothing.",
            after_measure,
        )
        .basis(&["SEV API, LAUNCH_UPDATE_VMSA"]),
        Row::new(
            "launch.vcpus.encrypted_once",
            Types::ES_AND_SNP,
            "The state of a vCPU is encrypted once: LAUNCH_UPDATE_VMSA, or SNP_LAUNCH_FINISH, is EINVAL from then on.",
            encrypted_once,
        )
        .basis(&[SYNC]),
        Row::new(
            "launch.vcpus.debugged",
            Types::ES_AND_SNP,
            "The state of a vCPU that is being debugged, or has a breakpoint in DR7, is not encrypted: EINVAL; without \
             them it is.",
            debugged,
        )
        .basis(&[SYNC, UPDATE]),
        Row::new(
            "launch.vcpus.the_rest_stays_open",
            Types::ES_AND_SNP,
            "Of two vCPUs the second cannot be encrypted: EINVAL, the first one is closed and the second open; nothing \
             finishes the launch any more.",
            the_rest_stays_open,
        )
        .basis(&[UPDATE]),
        Row::new(
            "launch.vcpus.closed",
            Types::ES_AND_SNP,
            "Registers that were encrypted cannot be read or written: each ioctl is EINVAL, GET_XSAVE and GET_FPU of \
             SEV-ES too. What KVM itself keeps (events, run state, CPUID) is still there.",
            closed,
        )
        .basis(&[REGISTERS, "arch/x86/kvm/svm/sev.c: fpstate_set_confidential of SEV-ES alone"]),
        Row::new(
            "launch.vcpus.capabilities",
            Types::SEV_FAMILY,
            "VMs whose registers are encrypted offer neither KVM_CAP_SYNC_REGS nor read-only slots, from KVM_CREATE_VM \
             on; SEV VMs offer both.",
            capabilities,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_vm_ioctl_check_extension", "arch/x86/kvm/x86.c: kvm_sync_valid_fields"]),
        Row::new(
            "launch.vcpus.late",
            Types::ES_AND_SNP,
            "A vCPU that is made after the others were encrypted has no state that its processor takes: KVM_RUN leads to \
             KVM_EXIT_FAIL_ENTRY, VMEXIT_INVALID.",
            late,
        )
        .basis(&["AMD APM vol. 2, 15.35.6: VMRUN of a VMSA that is none"]),
        Row::new(
            "launch.vcpus.run_too_early",
            Types::SEV_FAMILY,
            "KVM_RUN before LAUNCH_START, where the ASID has no key yet: KVM_EXIT_FAIL_ENTRY, VMEXIT_INVALID, and the \
             launch goes on.",
            run_too_early,
        )
        .basis(&["arch/x86/kvm/svm/svm.c: svm_handle_invalid_exit", "AMD APM vol. 2, 15.34.3"]),
    ]
}

/// `LAUNCH_UPDATE_VMSA`, or what takes its place for SNP.
pub(super) fn encrypt(sev: &SevVm) -> Result<(), Refused> {
    match sev.platform() {
        Platform::Snp => sev.commands().snp_launch_finish(Finish::PLAIN),
        _ => sev.commands().launch_update_vmsa(),
    }
}

fn of_kvm(error: kvm_ioctls::Error) -> Errno {
    Errno::from_raw(error.errno())
}

pub(super) fn registers(vcpu: &Vcpu) -> Outcome<Result<(), Errno>> {
    Ok(vcpu.kvm()?.get_regs().map(drop).map_err(of_kvm))
}

fn expect_open(what: &str, vcpu: &Vcpu) -> Outcome {
    expect_ok(&format!("KVM_GET_REGS of {what}"), registers(vcpu)?)
}

pub(super) fn expect_closed(what: &str, vcpu: &Vcpu) -> Outcome {
    expect_errno(&format!("KVM_GET_REGS of {what}"), registers(vcpu)?, Errno::EINVAL)
}

fn of_sev_are_open(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    expect_refused_by_kvm("LAUNCH_UPDATE_VMSA", sev.commands().launch_update_vmsa(), Errno::ENOTTY)?;
    let change = |rax: u64| {
        let kvm = vcpu.kvm()?;
        let mut registers = expect_ok("KVM_GET_REGS", kvm.get_regs().map_err(of_kvm))?;
        registers.rax = rax;
        expect_ok("KVM_SET_REGS", kvm.set_regs(&registers).map_err(of_kvm))?;
        expect_eq("rax", &expect_ok("KVM_GET_REGS", kvm.get_regs().map_err(of_kvm))?.rax, &rax)
    };
    change(0x1234_5678_9abc_def0)?;
    sev.finish()?;
    change(0x0fed_cba9_8765_4321)
}

fn before_start(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    expect_refused_by_kvm("LAUNCH_UPDATE_VMSA", encrypt(&sev), Errno::EBADF)?;
    expect_open("the vCPU", &vcpu)?;
    expect_done("LAUNCH_START", sev.start())?;
    expect_done("LAUNCH_UPDATE_VMSA", encrypt(&sev))?;
    expect_closed("the vCPU", &vcpu)
}

fn after_measure(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    sev.measure()?;
    expect_refused_by_firmware("LAUNCH_UPDATE_VMSA", encrypt(&sev), Firmware::INVALID_GUEST_STATE)?;
    expect_open("the vCPU", &vcpu)
}

fn encrypted_once(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpus = [sev.vm.create_vcpu(0)?, sev.vm.create_vcpu(1)?];
    expect_done("the encryption", encrypt(&sev))?;
    for _ in 0..2 {
        expect_refused_by_kvm("another encryption", encrypt(&sev), Errno::EINVAL)?;
    }
    vcpus.iter().try_for_each(|vcpu| expect_closed("a vCPU", vcpu))
}

fn set_guest_debug(vcpu: &Vcpu, control: u32) -> Outcome<Result<(), Errno>> {
    let debug = kvm_guest_debug { control, ..Default::default() };
    Ok(vcpu.kvm()?.set_guest_debug(&debug).map_err(of_kvm))
}

fn set_dr7(vcpu: &Vcpu, dr7: u64) -> Outcome {
    let kvm = vcpu.kvm()?;
    let registers = expect_ok("KVM_GET_DEBUGREGS", kvm.get_debug_regs().map_err(of_kvm))?;
    let registers = kvm_debugregs { dr7, ..registers };
    expect_ok("KVM_SET_DEBUGREGS", kvm.set_debug_regs(&registers).map_err(of_kvm))
}

fn debugged(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    expect_ok("KVM_SET_GUEST_DEBUG", set_guest_debug(&vcpu, DEBUG_ON)?)?;
    expect_refused_by_kvm("the encryption of a debugged vCPU", encrypt(&sev), Errno::EINVAL)?;
    expect_ok("KVM_SET_GUEST_DEBUG off", set_guest_debug(&vcpu, 0)?)?;
    set_dr7(&vcpu, DR7)?;
    expect_refused_by_kvm("the encryption of a vCPU with a breakpoint", encrypt(&sev), Errno::EINVAL)?;
    expect_open("the vCPU", &vcpu)?;
    set_dr7(&vcpu, DR7_RESET)?;
    expect_done("the encryption without them", encrypt(&sev))?;
    expect_closed("the vCPU", &vcpu)?;
    expect_errno("KVM_SET_GUEST_DEBUG of a closed vCPU", set_guest_debug(&vcpu, DEBUG_ON)?, Errno::EINVAL)
}

fn the_rest_stays_open(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let (first, second) = (sev.vm.create_vcpu(0)?, sev.vm.create_vcpu(1)?);
    set_dr7(&second, DR7)?;
    // The status is what the firmware said of the first one.
    expect_refused("the encryption of both", encrypt(&sev), Errno::EINVAL, Firmware::SUCCESS)?;
    expect_closed("the first vCPU", &first)?;
    expect_open("the second vCPU", &second)?;
    set_dr7(&second, DR7_RESET)?;
    expect_refused_by_kvm("another encryption of both", encrypt(&sev), Errno::EINVAL)?;
    expect_open("the second vCPU", &second)
}

fn closed(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    let kvm = vcpu.kvm()?;
    let cpuid = t.host().supported_cpuid()?;
    expect_ok("KVM_SET_CPUID2", kvm.set_cpuid2(cpuid).map_err(of_kvm))?;
    let get = |what: &str, error| Stop::Fail(format!("{what} before the encryption: {error}"));
    let registers = kvm.get_regs().map_err(|error| get("KVM_GET_REGS", error))?;
    let special = kvm.get_sregs().map_err(|error| get("KVM_GET_SREGS", error))?;
    let debug = kvm.get_debug_regs().map_err(|error| get("KVM_GET_DEBUGREGS", error))?;
    let xcrs = kvm.get_xcrs().map_err(|error| get("KVM_GET_XCRS", error))?;
    let fpu = kvm.get_fpu().map_err(|error| get("KVM_GET_FPU", error))?;
    let events = kvm.get_vcpu_events().map_err(|error| get("KVM_GET_VCPU_EVENTS", error))?;
    expect_done("the encryption", encrypt(&sev))?;

    for (what, result) in [
        ("KVM_GET_REGS", kvm.get_regs().map(drop)),
        ("KVM_SET_REGS", kvm.set_regs(&registers)),
        ("KVM_GET_SREGS", kvm.get_sregs().map(drop)),
        ("KVM_SET_SREGS", kvm.set_sregs(&special)),
        ("KVM_GET_DEBUGREGS", kvm.get_debug_regs().map(drop)),
        ("KVM_SET_DEBUGREGS", kvm.set_debug_regs(&debug)),
        ("KVM_GET_XCRS", kvm.get_xcrs().map(drop)),
        ("KVM_SET_XCRS", kvm.set_xcrs(&xcrs)),
    ] {
        expect_errno(what, result.map_err(of_kvm), Errno::EINVAL)?;
    }
    let floating_point: Result<(), Errno> = BySevType { sev: Ok(()), sev_es: Err(Errno::EINVAL), snp: Ok(()) }.of(t);
    expect_eq("KVM_GET_FPU", &kvm.get_fpu().map(drop).map_err(of_kvm), &floating_point)?;
    expect_eq("KVM_SET_FPU", &kvm.set_fpu(&fpu).map_err(of_kvm), &floating_point)?;
    expect_eq("KVM_GET_XSAVE", &kvm.get_xsave().map(drop).map_err(of_kvm), &floating_point)?;

    let state = expect_ok("KVM_GET_MP_STATE", kvm.get_mp_state().map_err(of_kvm))?;
    expect_eq("the run state", &state, &kvm_mp_state { mp_state: 0 })?;
    expect_ok("KVM_SET_MP_STATE", kvm.set_mp_state(state).map_err(of_kvm))?;
    expect_ok("KVM_GET_VCPU_EVENTS", kvm.get_vcpu_events().map_err(of_kvm))?;
    expect_ok("KVM_SET_VCPU_EVENTS", kvm.set_vcpu_events(&events).map_err(of_kvm))?;
    let seen = expect_ok("KVM_GET_CPUID2", kvm.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).map_err(of_kvm))?;
    expect_eq("how many leaves of CPUID there are", &seen.as_slice().len(), &cpuid.as_slice().len())
}

fn capabilities(t: &Case) -> Outcome {
    let sev = SevVm::new(t)?;
    let open = BySevType { sev: true, sev_es: false, snp: false }.of(t);
    expect_eq("read-only slots", &(sev.vm.check_extension(Capability::READONLY_MEM) != 0), &open)?;
    expect_eq("KVM_CAP_SYNC_REGS", &(sev.vm.check_extension(Capability::SYNC_REGS) != 0), &open)
}

/// What VMRUN says when it does not like what it is given (VMEXIT_INVALID).
const INVALID: u64 = u64::MAX;

pub(super) fn expect_no_entry(what: &str, vcpu: &Vcpu) -> Outcome {
    match vcpu.run(LIMIT)? {
        Exit::FailEntry { hardware_reason: INVALID, .. } => Ok(()),
        other => Err(Stop::Fail(format!("{what}: {other}, expected FAIL_ENTRY with VMEXIT_INVALID"))),
    }
}

fn late(t: &Case) -> Outcome {
    let sev = SevVm::started(t)?;
    let first = sev.vm.create_vcpu(0)?;
    expect_done("the encryption", encrypt(&sev))?;
    if sev.platform() == Platform::SevEs {
        sev.finish()?;
    }
    let late = sev.vm.create_vcpu(1)?;
    expect_closed("the first vCPU", &first)?;
    expect_open("the late vCPU", &late)?;
    expect_ok("KVM_SET_MP_STATE", late.kvm()?.set_mp_state(kvm_mp_state { mp_state: 0 }).map_err(of_kvm))?;
    expect_no_entry("KVM_RUN of the late vCPU", &late)
}

fn run_too_early(t: &Case) -> Outcome {
    let sev = SevVm::initialized(t)?;
    let vcpu = sev.vm.create_vcpu(0)?;
    expect_no_entry("KVM_RUN before LAUNCH_START", &vcpu)?;
    expect_done("LAUNCH_START", sev.start())
}
