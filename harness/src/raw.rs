//! The few ioctls that kvm-ioctls does not offer, or whose error number it loses.
#![expect(unsafe_code, reason = "ioctl(2)")]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};

use kvm_bindings::{kvm_device_attr, kvm_pre_fault_memory};
use kvm_ioctls::{Kvm, VcpuFd};
use nix::errno::Errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_val};

use crate::mapping::{MapOptions, Mapping};
use crate::uapi;

/// `KVM_RUN` on a vCPU, with the argument 0 that KVM asks for.
pub(crate) fn run(vcpu: RawFd) -> Result<(), Errno> {
    // SAFETY: with argument 0 KVM_RUN reads and writes no memory of ours but the kvm_run page, which KVM
    // owns and which the harness only accesses volatilely. What guests may write, the VM keeps mapped
    // (see memslot.rs). On any other descriptor the request is refused with ENOTTY.
    Errno::result(unsafe { ioctl_with_val(&vcpu, uapi::KVM_RUN, 0) }).map(drop)
}

/// The kvm_run page of a vCPU and what KVM maps after it, `bytes` in all (`KVM_GET_VCPU_MMAP_SIZE`).
pub(crate) fn map_run_page(vcpu: &VcpuFd, bytes: u64) -> Result<Mapping, Errno> {
    // SAFETY: the descriptor is open as long as `vcpu` is borrowed, which is longer than the call.
    let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    Mapping::of_file(fd, 0, bytes, MapOptions::new().shared())
}

/// `KVM_PRE_FAULT_MEMORY`: on return, also on an error, `range` is what is left to be done.
pub(crate) fn pre_fault(vcpu: RawFd, range: &mut kvm_pre_fault_memory) -> Result<(), Errno> {
    // SAFETY: the request's size is that of the struct, which lives until the call returns.
    Errno::result(unsafe { ioctl_with_mut_ref(&vcpu, uapi::KVM_PRE_FAULT_MEMORY, range) }).map(drop)
}

/// `KVM_GET_STATS_FD` of a VM or a vCPU.
pub(crate) fn stats_fd(fd: RawFd) -> Result<File, Errno> {
    // SAFETY: the request has no argument.
    let stats = Errno::result(unsafe { ioctl_with_val(&fd, uapi::KVM_GET_STATS_FD, 0) })?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(stats) })
}

/// `KVM_GET_DEVICE_ATTR` of `/dev/kvm`: an attribute of 8 bytes.
pub(crate) fn system_attribute(kvm: &Kvm, group: u32, attr: u64) -> Result<u64, Errno> {
    let mut value = 0_u64;
    let addr = std::ptr::from_mut(&mut value).expose_provenance() as u64;
    let mut request = kvm_device_attr { flags: 0, group, attr, addr };
    // SAFETY: the request's size is that of the struct; KVM writes the 8 bytes of `value` (x86.c: kvm_x86_dev_get_attr),
    // which lives until the call returns.
    Errno::result(unsafe { ioctl_with_mut_ref(kvm, uapi::KVM_GET_DEVICE_ATTR, &mut request) })?;
    Ok(value)
}

/// Any request with a number, or an address that cannot be accessed, as its argument.
pub(crate) fn with_small_argument(fd: &impl AsRawFd, request: u64, argument: u16) -> Result<i32, Errno> {
    // SAFETY: a request that takes a pointer finds nothing mapped below 64 KiB (vm.mmap_min_addr) and
    // ends in EFAULT; a number is only a number.
    Errno::result(unsafe { ioctl_with_val(fd, request, argument.into()) })
}
