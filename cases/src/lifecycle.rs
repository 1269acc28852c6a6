//! Group `lifecycle`: what VMs and guest_memfds can be made, what they say of themselves, and who outlives whom.

mod files;

use std::thread;

use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::need::Need;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::test_range::{RangeSpec, TEST_BASE, TestRange};
use privet_harness::uapi::{
    Capability, GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP, HC_MAP_GPA_RANGE, KVM_CREATE_GUEST_MEMFD,
    KVM_PRE_FAULT_MEMORY, KVM_RUN, KVM_SET_MEMORY_ATTRIBUTES, KVM_SET_USER_MEMORY_REGION2, MEMORY_ATTRIBUTE_PRIVATE,
    USER_MEM_SLOTS,
};
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;
use privet_harness::vm_type::VmType;

use crate::expect::{expect_eq, expect_errno, expect_ok, expect_that};
use crate::row::Row;
use crate::types::Types;

/// The rows of this group.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new(
            "lifecycle.vm_types",
            Types::PLAIN,
            "KVM_CREATE_VM takes exactly the types of KVM_CAP_VM_TYPES; every other number is EINVAL.",
            vm_types,
        )
        .basis(&["arch/x86/kvm/x86.c: kvm_is_vm_type_supported, kvm_arch_init_vm"])
        .upstream("vm_types_test: main")
        .needs(Need::SystemCapability(Capability::VM_TYPES, 1)),
        Row::new(
            "lifecycle.many_vms",
            Types::UPM,
            "30 VMs with slots, a guest_memfd and private pages are made and closed by two threads.",
            many_vms,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_destroy_vm", "virt/kvm/guest_memfd.c: kvm_gmem_release"]),
        Row::new(
            "lifecycle.another_process",
            Types::UPM,
            "A process that has the descriptors of VM and vCPU but not their maker's memory gets EIO from every ioctl, \
             before anything else is looked at, and changes nothing.",
            another_process,
        )
        .basis(&["virt/kvm/kvm_main.c: kvm_vm_ioctl, kvm_vcpu_ioctl: kvm->mm != current->mm"])
        .needs(Need::Capability(Capability::PRE_FAULT_MEMORY, 1)),
    ];
    rows.push(
        Row::new(
            "lifecycle.capabilities",
            Types::ALL,
            "What the VM says that it can do is what its type can do, and /dev/kvm speaks for all types.",
            capabilities,
        )
        .basis(&[
            "virt/kvm/kvm_main.c: kvm_vm_ioctl_check_extension_generic",
            "arch/x86/kvm/x86.c: kvm_vm_ioctl_check_extension",
        ])
        .needs(Need::SystemCapability(Capability::GUEST_MEMFD_FLAGS, 3))
        .needs(Need::SystemCapability(Capability::MEMORY_ATTRIBUTES, MEMORY_ATTRIBUTE_PRIVATE as i32)),
    );
    rows.push(
        Row::new(
            "lifecycle.types_without_mmio_caching",
            Types::SEV,
            "Without MMIO caching there are neither SEV-ES nor SNP VMs, whose guests learn of MMIO by a reserved bit in a \
             nested page table; SEV VMs there are, and the host tells the reason.",
            without_mmio_caching,
        )
        .basis(&["arch/x86/kvm/svm/sev.c: sev_hardware_setup"])
        .needs(Need::Parameter("kvm.mmio_caching", "N")),
    );
    rows.extend(files::rows());
    rows
}

fn vm_types(t: &Case) -> Outcome {
    let offered = t.host().vm_types();
    for kvm_type in (0..32).filter(|kvm_type| offered & 1 << kvm_type != 0) {
        expect_ok(&format!("KVM_CREATE_VM of type {kvm_type}, which is offered"), Vm::try_create(t.host(), kvm_type))?;
    }
    let beyond = [1 << 16, 1 << 31, 1 << 32, 1 << 63, 1 << 32 | 1, u64::MAX];
    for kvm_type in (0..=64).filter(|kvm_type| *kvm_type > 31 || offered & 1 << kvm_type == 0).chain(beyond) {
        let refused = Vm::try_create(t.host(), kvm_type);
        expect_errno(&format!("KVM_CREATE_VM of type {kvm_type:#x}, which is not offered"), refused, Errno::EINVAL)?;
    }
    Ok(())
}

/// The types whose guests are told of MMIO by the processor.
const WITH_REFLECTED_MMIO: [VmType; 2] = [VmType::SevEs, VmType::Snp];

fn without_mmio_caching(t: &Case) -> Outcome {
    for vm_type in WITH_REFLECTED_MMIO {
        expect_eq("whether it is offered", &(t.host().vm_types() & 1 << vm_type.kvm_type()), &0)?;
        let refused = Vm::try_create(t.host(), vm_type.kvm_type());
        expect_errno(&format!("KVM_CREATE_VM of type {vm_type}"), refused, Errno::EINVAL)?;
        let why = t.host().why_not(vm_type).unwrap_or_default();
        // A processor may not have it at all.
        let is_told = ["kvm.mmio_caching=N", "/proc/cpuinfo lists no"].iter().any(|reason| why.contains(reason));
        expect_that(is_told, || format!("why there is no {vm_type}: {why}"))?;
    }
    Ok(())
}

fn capabilities(t: &Case) -> Outcome {
    let private = t.platform().has_private_memory();
    let vm = t.vm()?;
    let file_flags = (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED) as i32;
    let attributes = MEMORY_ATTRIBUTE_PRIVATE as i32;
    let types = t.host().vm_types() as i32;
    let by_type = |with, without| if private { with } else { without };
    for (capability, of_kvm, of_vm) in [
        (Capability::MEMORY_ATTRIBUTES, attributes, by_type(attributes, 0)),
        (Capability::GUEST_MEMFD, 1, 1),
        (Capability::GUEST_MEMFD_FLAGS, file_flags, by_type(GUEST_MEMFD_FLAG_MMAP as i32, file_flags)),
        (Capability::USER_MEMORY2, 1, 1),
        (Capability::MEMORY_FAULT_INFO, 1, 1),
        (Capability::VM_TYPES, types, types),
        (Capability::EXIT_HYPERCALL, 1 << HC_MAP_GPA_RANGE, 1 << HC_MAP_GPA_RANGE),
        (Capability::READONLY_MEM, 1, i32::from(Types::VISIBLE_REGISTERS.contain(t.platform()))),
        (Capability::NR_MEMSLOTS, USER_MEM_SLOTS as i32, USER_MEM_SLOTS as i32),
        (Capability::BINARY_STATS_FD, 1, 1),
        (Capability::IMMEDIATE_EXIT, 1, 1),
        (Capability::SYSTEM_EVENT_DATA, 1, 1),
    ] {
        expect_eq(&format!("KVM_CAP_{} of /dev/kvm", capability.name), &t.host().check_extension(capability), &of_kvm)?;
        expect_eq(&format!("KVM_CAP_{} of the VM", capability.name), &vm.check_extension(capability), &of_vm)?;
    }
    Ok(())
}

fn many_vms(t: &Case) -> Outcome {
    let fifteen = || {
        (0..15).try_for_each(|round| {
            let vm = t.vm()?;
            let mut range = TestRange::install(&vm, RangeSpec::new(8).slots(2), 0)?;
            range.set_private(&vm, 2..6)?;
            range.allocate(0..4)?;
            let file = range.take_gmem()?;
            // Every second VM is closed before its file.
            if round % 2 == 0 {
                drop(vm);
                file.punch(0, 4 * PAGE_SIZE)
            } else {
                drop(file);
                vm.delete_slot(1)
            }
        })
    };
    thread::scope(|scope| {
        let other = scope.spawn(fifteen);
        fifteen()?;
        other.join().unwrap_or_else(|_| Err(Stop::Error("the other thread panicked".into())))
    })
}

fn another_process(t: &Case) -> Outcome {
    let vm = t.vm()?;
    let elsewhere = vm.set_memory_attributes_elsewhere(TEST_BASE.0, PAGE_SIZE, MEMORY_ATTRIBUTE_PRIVATE)?;
    expect_errno("KVM_SET_MEMORY_ATTRIBUTES in another process", elsewhere, Errno::EIO)?;
    for (name, request) in [
        ("KVM_SET_USER_MEMORY_REGION2", KVM_SET_USER_MEMORY_REGION2),
        ("KVM_SET_MEMORY_ATTRIBUTES", KVM_SET_MEMORY_ATTRIBUTES),
        ("KVM_CREATE_GUEST_MEMFD", KVM_CREATE_GUEST_MEMFD),
    ] {
        let elsewhere = vm.ioctl_raw_elsewhere(request)?;
        expect_errno(&format!("{name} at address 0 in another process"), elsewhere, Errno::EIO)?;
    }
    let vcpu = vm.create_vcpu(0)?;
    for (name, request) in [("KVM_RUN", KVM_RUN), ("KVM_PRE_FAULT_MEMORY at address 0", KVM_PRE_FAULT_MEMORY)] {
        expect_errno(&format!("{name} in another process"), vcpu.ioctl_raw_elsewhere(request)?, Errno::EIO)?;
    }
    let still_shared = vcpu.pre_fault(TEST_BASE, PageCount(1))?.result;
    expect_errno("mapping the page ahead, shared and without a slot", still_shared, Errno::ENOENT)?;
    vm.set_private(TEST_BASE, PageCount(1))?;
    expect_errno("the same, once it is private", vcpu.pre_fault(TEST_BASE, PageCount(1))?.result, Errno::EFAULT)
}
