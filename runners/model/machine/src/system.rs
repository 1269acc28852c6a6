//! Ioctls of `/dev/kvm`.
//!
//! Source: `virt/kvm/kvm_main.c:kvm_dev_ioctl`, `arch/x86/kvm/x86.c:kvm_arch_dev_ioctl`.

use std::sync::Arc;

use kvm_bindings::{KVM_API_VERSION, kvm_cpuid_entry2, kvm_device_attr, kvm_msr_entry};
use nix::errno::Errno;

use crate::calls;
use crate::capability;
use crate::cpuid::{self, XCR0_SUPPORTED};
use crate::descriptors::{Object, hand_out};
use crate::dispatch::{Argument, IoctlResult, Row};
use crate::msr;
use crate::options::Options;
use crate::user::{self, ListHeader, zeroed};
use crate::vcpu::RUN_BYTES;
use crate::vm::Vm;
use crate::vm_type::VmType;

/// `/dev/kvm`.
pub(crate) struct System {
    pub(crate) options: &'static Options,
}

/// The ioctls.
pub(crate) const IOCTLS: &[Row<System>] = &[
    (0xae00, "GET_API_VERSION", |_, argument| no_argument(argument, KVM_API_VERSION as i32)),
    (0xae01, "CREATE_VM", create_vm),
    (0xae03, "CHECK_EXTENSION", |system, Argument(number)| Ok(capability::check(number, system.options, None))),
    (0xae04, "GET_VCPU_MMAP_SIZE", |_, argument| no_argument(argument, RUN_BYTES as i32)),
    (0xc008_ae05, "GET_SUPPORTED_CPUID", |system, argument| give_cpuid(argument, &cpuid::supported(system.options))),
    (0xc008_ae09, "GET_EMULATED_CPUID", |_, argument| give_cpuid(argument, &[zeroed()])),
    (0xc004_ae02, "GET_MSR_INDEX_LIST", |_, argument| give_list(argument, &msr::saved())),
    (0xc004_ae0a, "GET_MSR_FEATURE_INDEX_LIST", |_, argument| give_list(argument, msr::FEATURES)),
    (0xc008_ae88, "GET_MSRS", get_feature_msrs),
    (0x8008_ae9d, "X86_GET_MCE_CAP_SUPPORTED", |_, argument| argument.write(&msr::MCE_CAPABILITY)),
    (0x4018_aee2, "GET_DEVICE_ATTR", get_attribute),
    (0x4018_aee3, "HAS_DEVICE_ATTR", |_, argument| find_attribute(&argument.read()?).map(|_| 0)),
];

fn no_argument(argument: Argument, result: i32) -> IoctlResult {
    if argument.0 == 0 { Ok(result) } else { Err(Errno::EINVAL) }
}

fn create_vm(system: &System, Argument(kind): Argument) -> IoctlResult {
    let kind = VmType::offered(kind, system.options).ok_or(Errno::EINVAL)?;
    let vm = Arc::new(Vm::new(kind, system.options));
    calls::watch_mappings(&vm);
    hand_out(c"anon_inode:kvm-vm", 0, libc::MFD_CLOEXEC, Object::Vm(vm))
}

/// A `struct kvm_cpuid2` filled in (kernel: `kvm_dev_ioctl_get_cpuid`).
///
/// # Errors
/// EFAULT, E2BIG.
fn give_cpuid(argument: Argument, entries: &[kvm_cpuid_entry2]) -> IoctlResult {
    let [room, padding]: ListHeader = argument.read()?;
    if room < entries.len() as u32 {
        return Err(Errno::E2BIG);
    }
    user::write_slice(argument.after(size_of::<ListHeader>()), entries)?;
    argument.write(&[entries.len() as u32, padding])
}

/// A list with its length in front; the length is told even if the list does not fit.
///
/// # Errors
/// EFAULT, E2BIG.
fn give_list(argument: Argument, list: &[u32]) -> IoctlResult {
    let room: u32 = argument.read()?;
    argument.write(&(list.len() as u32))?;
    if (room as usize) < list.len() {
        return Err(Errno::E2BIG);
    }
    user::write_slice(argument.after(size_of::<u32>()), list).map(|()| 0)
}

fn get_feature_msrs(system: &System, argument: Argument) -> IoctlResult {
    msr::get_list(argument, |index| msr::feature(index, system.options))
}

/// The value behind an attribute of `/dev/kvm`: group 0, attribute 0 is `KVM_X86_XCOMP_GUEST_SUPP`.
///
/// # Errors
/// ENXIO.
fn find_attribute(attribute: &kvm_device_attr) -> Result<u64, Errno> {
    match (attribute.group, attribute.attr) {
        (0, 0) => Ok(XCR0_SUPPORTED),
        _ => Err(Errno::ENXIO),
    }
}

fn get_attribute(_: &System, argument: Argument) -> IoctlResult {
    let attribute: kvm_device_attr = argument.read()?;
    user::write(attribute.addr, &find_attribute(&attribute)?).map(|()| 0)
}

/// The header and the entries of a `struct kvm_msrs`.
///
/// # Errors
/// EFAULT; E2BIG for 256 entries or more (`MAX_IO_MSRS`).
pub(crate) fn read_msrs(argument: Argument) -> Result<Vec<kvm_msr_entry>, Errno> {
    const MAX_IO_MSRS: u32 = 256;
    let [count, _]: ListHeader = argument.read()?;
    if count >= MAX_IO_MSRS {
        return Err(Errno::E2BIG);
    }
    user::read_slice(argument.after(size_of::<ListHeader>()), count as usize)
}
