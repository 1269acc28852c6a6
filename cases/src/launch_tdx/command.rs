//! The envelope of commands, and `CAPABILITIES`.

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::outcome::Outcome;
use privet_harness::tdx::{Command, HwError, SEPT_VE_DISABLE};
use privet_harness::uapi::{Capability, KVM_MEMORY_ENCRYPT_OP};

use super::td::{Td, expect_done, expect_refused, expect_refused_by_kvm};
use crate::expect::{expect_eq, expect_errno, expect_that};
use crate::row::Row;
use crate::types::Types;

const COMMAND: &str = "arch/x86/kvm/vmx/tdx.c: tdx_get_cmd, tdx_vm_ioctl, tdx_vcpu_ioctl";
const CAPABILITIES: &str = "arch/x86/kvm/vmx/tdx.c: tdx_get_capabilities, init_kvm_tdx_caps";

/// EAX bits 23:16 of this leaf are the width of addresses.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// HLE and RTM in EBX of leaf 7; WAITPKG in ECX.
const TSX: u32 = 1 << 4 | 1 << 11;
const WAITPKG: u32 = 1 << 5;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row::new(
            "launch.command.refused",
            Types::TDX,
            "An envelope that cannot be read is EFAULT; one whose hw_error is not 0 is EINVAL, whatever the command; an \
             unknown command, and one of vCPUs at the VM, is EINVAL, of a VM and of a vCPU.",
            refused,
        )
        .basis(&[COMMAND]),
        Row::new(
            "launch.command.of_another_type",
            Types::TDX,
            "Commands of the VM at a VM that is no TD are ENOTTY.",
            of_another_type,
        )
        .basis(&["arch/x86/kvm/vmx/main.c: vt_mem_enc_ioctl"]),
        Row::new(
            "launch.capabilities.offered",
            Types::TDX,
            "CAPABILITIES tells of no attribute but SEPT_VE_DISABLE, of x87 and SSE states, of no TSX and no WAITPKG, \
             and that the width of addresses can be chosen; user space may forward SetupEventNotifyInterrupt.",
            offered,
        )
        .basis(&[CAPABILITIES]),
        Row::new(
            "launch.capabilities.refused",
            Types::TDX,
            "CAPABILITIES with a flag is EINVAL; with no memory EFAULT; with room for fewer leaves than there are E2BIG, \
             with room for exactly as many, or more, it tells all. It can be asked at any time.",
            capabilities_refused,
        )
        .basis(&[CAPABILITIES]),
        Row::new(
            "launch.capabilities.vcpus",
            Types::TDX,
            "KVM_CAP_MAX_VCPUS of a TD is not more than there are processors; of interrupt controllers it takes split ones \
             once.",
            vcpus,
        )
        .basis(&["arch/x86/kvm/vmx/tdx.c: tdx_vm_init", "arch/x86/kvm/x86.c: kvm_vm_ioctl_enable_cap"]),
    ]
}

fn refused(t: &Case) -> Outcome {
    let td = Td::initialized(t)?;
    let vcpu = td.created_vcpu(t, 0)?;
    expect_errno("no envelope", td.vm.ioctl_raw(KVM_MEMORY_ENCRYPT_OP, 0), Errno::EFAULT)?;
    for &command in Command::ALL {
        let what = format!("{command} with an hw_error");
        let error = HwError(7);
        expect_refused(&what, td.commands().with_hw_error(command, 7), Errno::EINVAL, error)?;
    }
    for command in [Command::INIT_VCPU, Command::INIT_MEM_REGION, Command::GET_CPUID, Command(6), Command(u32::MAX)] {
        expect_refused_by_kvm(&command.to_string(), td.commands().without_argument(command, 0), Errno::EINVAL)?;
    }
    for command in [Command::CAPABILITIES, Command::INIT_VM, Command::FINALIZE_VM, Command(6)] {
        let what = format!("{command} of a vCPU");
        let result = td.commands().vcpu_without_argument(&vcpu, command, 0, 0)?;
        expect_refused_by_kvm(&what, result, Errno::EINVAL)?;
    }
    Ok(())
}

fn of_another_type(t: &Case) -> Outcome {
    let plain = privet_harness::vm::Vm::create(t.host(), privet_harness::vm_type::VmType::Plain)?;
    let commands = privet_harness::tdx::Commands::new(&plain);
    expect_refused_by_kvm("CAPABILITIES", commands.capabilities(64), Errno::ENOTTY)?;
    expect_refused_by_kvm("FINALIZE_VM", commands.finalize(), Errno::ENOTTY)
}

fn offered(t: &Case) -> Outcome {
    let offered = Td::new(t)?.offered;
    expect_eq("attributes", &offered.attributes, &SEPT_VE_DISABLE)?;
    expect_eq("x87 and SSE", &(offered.xfam & 3), &3)?;
    expect_eq("R11 of KVM's own", &offered.kernel_vmcalls, &0)?;
    expect_eq("R11 of user space", &offered.user_vmcalls, &2)?;
    let of = |function| offered.cpuid.iter().filter(move |entry| entry.function == function);
    expect_eq("the width", &of(ADDRESS_SIZES).map(|entry| entry.eax >> 16 & 0xff).collect::<Vec<_>>(), &vec![0xff])?;
    let hidden = of(7).filter(|entry| entry.index == 0).any(|entry| (entry.ebx & TSX, entry.ecx & WAITPKG) != (0, 0));
    expect_that(!hidden, || "TSX or WAITPKG can be configured".to_owned())
}

fn capabilities_refused(t: &Case) -> Outcome {
    let td = Td::with_apics(t)?;
    let (commands, count) = (td.commands(), td.offered.cpuid.len() as u32);
    let with_flag = commands.without_argument(Command::CAPABILITIES, 1);
    expect_refused_by_kvm("with a flag", with_flag, Errno::EINVAL)?;
    let without = commands.without_argument(Command::CAPABILITIES, 0);
    expect_refused_by_kvm("without memory", without, Errno::EFAULT)?;
    for room in [0, count - 1] {
        expect_refused_by_kvm(&format!("room for {room}"), commands.capabilities(room), Errno::E2BIG)?;
    }
    expect_done("INIT_VM", commands.init_vm(&td.init, 0))?;
    for room in [count, count + 9] {
        let told = expect_done(&format!("room for {room}"), commands.capabilities(room))?;
        expect_eq("leaves", &told.cpuid, &td.offered.cpuid)?;
    }
    Ok(())
}

fn vcpus(t: &Case) -> Outcome {
    let td = Td::with_apics(t)?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as i32;
    let most = td.vm.check_extension(Capability::MAX_VCPUS);
    expect_that((1..=processors.max(1)).contains(&most), || format!("{most} vCPUs on {processors} processors"))?;
    expect_errno("a second time", td.vm.enable_cap(Capability::SPLIT_IRQCHIP, [24, 0, 0, 0]), Errno::EEXIST)
}
