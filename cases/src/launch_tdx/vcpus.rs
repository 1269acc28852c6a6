//! vCPUs of a TD, and its end of building.

use kvm_bindings::kvm_regs;
use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::tdx::{Command, HwError};
use privet_harness::uapi::KVM_RUN;

use super::td::{MEMORY, Td, expect_done, expect_refused, expect_refused_by_kvm, region};
use crate::expect::{expect_eq, expect_errno, expect_that};
use crate::row::Row;
use crate::types::Types;

const CREATE: &str = "arch/x86/kvm/vmx/tdx.c: tdx_vcpu_create";
const INIT: &str = "arch/x86/kvm/vmx/tdx.c: tdx_vcpu_init";
const FINALIZE: &str = "arch/x86/kvm/vmx/tdx.c: tdx_td_finalize";
const GET_CPUID: &str = "arch/x86/kvm/vmx/tdx.c: tdx_vcpu_get_cpuid";

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.vcpus.creation",
            Types::TDX,
            "KVM_CREATE_VCPU is EIO before INIT_VM, and EINVAL after it where the local APICs are not KVM's.",
            creation,
        )
        .basis(&[CREATE]),
        Row::new(
            "launch.vcpus.initialization",
            Types::TDX,
            "INIT_VCPU with a flag, twice, after FINALIZE_VM, or of a vCPU whose CPUID has no x2APIC, is EINVAL.",
            initialization,
        )
        .basis(&[INIT]),
        Row::new(
            "launch.vcpus.run_too_early",
            Types::TDX,
            "KVM_RUN is EINVAL before INIT_VCPU, and before FINALIZE_VM.",
            run_too_early,
        )
        .basis(&["arch/x86/kvm/vmx/tdx.c: tdx_vcpu_needs_initialization"]),
        Row::new(
            "launch.vcpus.hidden_registers",
            Types::TDX,
            "The host neither gets nor sets a TD's registers: KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_GET_XCRS and \
             KVM_GET_DEBUGREGS are EINVAL from the vCPU's creation on.",
            hidden_registers,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_vcpu_ioctl: guest_state_protected"]),
        Row::new(
            "launch.vcpus.cpuid",
            Types::TDX,
            "GET_CPUID tells what the module will answer: its first leaf, that it is a TD's, and the width of addresses; \
             with too little room it is E2BIG and tells how much it takes; after FINALIZE_VM it is EINVAL.",
            cpuid,
        )
        .basis(&[GET_CPUID]),
        Row::new(
            "launch.finalize.refused",
            Types::TDX,
            "FINALIZE_VM before INIT_VM, and a second one, is EINVAL; what belongs to the building is EINVAL after it.",
            finalize_refused,
        )
        .basis(&[FINALIZE]),
        Row::new(
            "launch.finalize.prefault",
            Types::TDX,
            "KVM_PRE_FAULT_MEMORY is EOPNOTSUPP before FINALIZE_VM, and gives the TD a private page after it.",
            prefault,
        )
        .basis(&["arch/x86/kvm/mmu/mmu.c: kvm_arch_vcpu_pre_fault_memory", FINALIZE]),
    ]
}

fn creation(t: &Case) -> Outcome {
    let td = Td::new(t)?;
    let create = |id| td.vm.kvm().create_vcpu(id).map(drop).map_err(|error| Errno::from_raw(error.errno()));
    expect_errno("before INIT_VM", create(0), Errno::EIO)?;
    expect_done("INIT_VM", td.commands().init_vm(&td.init, 0))?;
    expect_errno("without local APICs", create(0), Errno::EINVAL)
}

fn initialization(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let bare = td.vm.create_vcpu(0)?;
    expect_refused_by_kvm("without x2APIC", td.commands().init_vcpu(&bare, 0)?, Errno::EINVAL)?;
    drop(bare);
    let td = Td::initialized(t)?;
    let vcpu = td.created_vcpu(t, 0)?;
    let with_flag = td.commands().vcpu_without_argument(&vcpu, Command::INIT_VCPU, 1, 0)?;
    expect_refused_by_kvm("with a flag", with_flag, Errno::EINVAL)?;
    expect_done("INIT_VCPU", td.commands().init_vcpu(&vcpu, 0)?)?;
    expect_refused_by_kvm("twice", td.commands().init_vcpu(&vcpu, 0)?, Errno::EINVAL)?;
    expect_done("FINALIZE_VM", td.commands().finalize())?;
    expect_refused_by_kvm("after FINALIZE_VM", td.commands().init_vcpu(&vcpu, 0)?, Errno::EINVAL)
}

fn run_too_early(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.created_vcpu(t, 0)?;
    expect_errno("before INIT_VCPU", vcpu.ioctl_raw(KVM_RUN, 0)?, Errno::EINVAL)?;
    expect_done("INIT_VCPU", td.commands().init_vcpu(&vcpu, 0)?)?;
    expect_errno("before FINALIZE_VM", vcpu.ioctl_raw(KVM_RUN, 0)?, Errno::EINVAL)
}

fn hidden_registers(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.created_vcpu(t, 0)?;
    let kvm = vcpu.kvm()?;
    let refused = |what: &str, result: Result<(), kvm_ioctls::Error>| {
        expect_errno(what, result.map_err(|error| Errno::from_raw(error.errno())), Errno::EINVAL)
    };
    refused("KVM_GET_REGS", kvm.get_regs().map(drop))?;
    refused("KVM_SET_REGS", kvm.set_regs(&kvm_regs::default()))?;
    refused("KVM_GET_SREGS", kvm.get_sregs().map(drop))?;
    refused("KVM_GET_XCRS", kvm.get_xcrs().map(drop))?;
    refused("KVM_GET_DEBUGREGS", kvm.get_debug_regs().map(drop))
}

fn cpuid(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let (small, needed) = td.commands().cpuid(&vcpu, 1)?;
    expect_refused_by_kvm("room for one", small, Errno::E2BIG)?;
    expect_that(needed > 1, || format!("{needed} leaves are needed"))?;
    let (told, _) = td.commands().cpuid(&vcpu, needed)?;
    let told = expect_done("room for all", told)?;
    let leaf = |function: u32| {
        let found = told.iter().find(|entry| (entry.function, entry.index) == (function, 0));
        found.copied().ok_or_else(|| Stop::Fail(format!("leaf {function:#x} is not told")))
    };
    expect_that(leaf(0)?.eax >= 0x21, || "the first leaf does not tell of leaf 0x21".to_owned())?;
    let signature = leaf(0x21)?;
    let name: Vec<u8> = [signature.ebx, signature.edx, signature.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    expect_eq("leaf 0x21", &String::from_utf8_lossy(&name).as_ref(), &"IntelTDX    ")?;
    expect_eq("the width", &(leaf(0x8000_0008)?.eax >> 16 & 0xff), &48)?;
    expect_done("FINALIZE_VM", td.commands().finalize())?;
    expect_refused_by_kvm("after FINALIZE_VM", td.commands().cpuid(&vcpu, needed)?.0, Errno::EINVAL)
}

fn finalize_refused(t: &Case) -> Outcome {
    let td = Td::with_apics(t)?;
    expect_refused_by_kvm("before INIT_VM", td.commands().finalize(), Errno::EINVAL)?;
    expect_done("INIT_VM", td.commands().init_vm(&td.init, 0))?;
    let vcpu = td.vcpu(t, 0)?;
    let view = td.memory(1)?;
    expect_done("FINALIZE_VM", td.commands().finalize())?;
    expect_refused("again", td.commands().finalize(), Errno::EINVAL, HwError::SUCCESS)?;
    let result = td.commands().init_mem_region(&vcpu, &mut region(&view, 1))?;
    expect_refused_by_kvm("INIT_MEM_REGION", result, Errno::EINVAL)?;
    expect_refused_by_kvm("INIT_VM", td.commands().init_vm(&td.init, 0), Errno::EINVAL)
}

fn prefault(t: &Case) -> Outcome {
    use privet_harness::units::PageCount;

    let td = Td::initialized(t)?;
    let vcpu = td.vcpu(t, 0)?;
    let _view = td.memory(1)?;
    let early = vcpu.pre_fault(MEMORY, PageCount(1))?;
    expect_errno("before FINALIZE_VM", early.result, Errno::EOPNOTSUPP)?;
    expect_done("FINALIZE_VM", td.commands().finalize())?;
    let done = vcpu.pre_fault(MEMORY, PageCount(1))?;
    expect_eq("after it", &(done.result, done.size), &(Ok(()), 0))
}
