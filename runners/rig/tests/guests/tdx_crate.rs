//! The client crate `tdx` (virtee) as its users call it: it launches a TD that leaves its only page, as its own test does (its
//! tests/launch.rs).
#![expect(unsafe_code, reason = "memslots hand memory of this process to a guest")]

use std::error::Error;
use std::os::fd::{AsRawFd, RawFd};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE,
    kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_userspace_memory_region2,
};
use kvm_ioctls::{Kvm, VcpuExit};
use privet_harness::mapping::Mapping;
use tdx::launch::{KVM_X86_TDX_VM, Launcher, MemRegion};

const PAGE: u64 = 0x1000;
/// The page with the reset vector, and where that is in it.
const CODE: u64 = 0xffff_f000;
const VECTOR: u64 = 0xff0;
/// `mov eax, 0x1000; jmp eax`: to where there is nothing.
const LEAVE: [u8; 7] = [0xb8, 0x00, 0x10, 0x00, 0x00, 0xff, 0xe0];
const NOWHERE: u64 = 0x1000;
/// What firmware would be told of memory by, of which there is none.
const HAND_OFF_BLOCK: u64 = 0x80_9000;
/// Pages are measured.
const MEASURED: u32 = 1;

/// What is printed when the TD has run.
pub(crate) const LEFT: &str = "the TD has left its page";

/// Launches the TD and lets it run.
///
/// # Errors
/// What the crate or KVM say, and if it leaves otherwise than for memory that is not there.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm_with_type(KVM_X86_TDX_VM)?;
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [24, 0, 0, 0], ..Default::default() })?;
    let said = |error: tdx::launch::Error| error.to_string();

    let mut launcher = Launcher::new(vm.as_raw_fd());
    let capabilities = launcher.get_capabilities().map_err(said)?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    launcher.init_vm(&capabilities, cpuid.clone()).map_err(said)?;
    let mut vcpu = vm.create_vcpu(0)?;
    launcher.add_vcpu_fd(vcpu.as_raw_fd());
    vcpu.set_cpuid2(&cpuid)?;
    launcher.init_vcpus(HAND_OFF_BLOCK).map_err(said)?;

    let source = Mapping::anonymous(PAGE)?;
    source.write(VECTOR, &LEAVE)?;
    let gmem: RawFd = vm.create_guest_memfd(kvm_create_guest_memfd { size: PAGE, flags: 0, reserved: [0; 6] })?;
    let region = kvm_userspace_memory_region2 {
        slot: 0,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: CODE,
        memory_size: PAGE,
        userspace_addr: source.addr(),
        guest_memfd_offset: 0,
        guest_memfd: gmem as u32,
        pad1: 0,
        pad2: [0; 14],
    };
    // SAFETY: `source` stays mapped until after the VM is gone.
    unsafe { vm.set_user_memory_region2(region)? };
    let attributes = u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE);
    vm.set_memory_attributes(kvm_memory_attributes { address: CODE, size: PAGE, attributes, flags: 0 })?;
    launcher.init_mem_region(MemRegion::new(CODE, 1, MEASURED, source.addr())).map_err(said)?;
    launcher.finalize().map_err(said)?;

    match vcpu.run()? {
        VcpuExit::MemoryFault { flags, gpa: NOWHERE, size: PAGE } if flags == attributes => println!("{LEFT}"),
        exit => return Err(format!("the TD has left with {exit:?}").into()),
    }
    drop((vcpu, vm, source));
    Ok(())
}
