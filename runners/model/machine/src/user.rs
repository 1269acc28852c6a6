//! Memory of the program, by pointers that it passed: nothing is believed about them.
//!
//! Copies go through `process_vm_readv(2)` on the process itself, which answers a bad pointer with EFAULT as
//! the kernel's `copy_from_user` does.
#![expect(unsafe_code, reason = "process_vm_readv and process_vm_writev, and structures as bytes")]

use std::mem::MaybeUninit;

use kvm_bindings::*;
use nix::errno::Errno;

/// Types of the ioctl ABI: no byte pattern is invalid, and there is no padding that matters.
///
/// # Safety
/// Every sequence of `size_of::<Self>()` bytes must be a valid value, and so must be reading every byte of
/// one, padding included, that was read by [`read`] or made by [`zeroed`].
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => {
        $(
            // SAFETY: C structures of integers, arrays of integers, and unions of those.
            unsafe impl Plain for $type {}
        )*
    };
}

plain!(
    u8,
    u16,
    u32,
    u64,
    kvm_clear_dirty_log,
    kvm_clock_data,
    kvm_coalesced_mmio_zone,
    kvm_cpuid_entry2,
    kvm_create_device,
    kvm_create_guest_memfd,
    kvm_debugregs,
    kvm_device_attr,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_enc_region,
    kvm_fpu,
    kvm_guest_debug,
    kvm_interrupt,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irqchip,
    kvm_irqfd,
    kvm_lapic_state,
    kvm_memory_attributes,
    kvm_mp_state,
    kvm_msi,
    kvm_msr_entry,
    kvm_one_reg,
    kvm_pit_config,
    kvm_pit_state2,
    kvm_pre_fault_memory,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_sync_regs,
    kvm_translation,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
    kvm_vcpu_events,
    kvm_xcrs,
);

// SAFETY: an array is its elements without anything between them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// What is in front of a list: `kvm_cpuid2`, `kvm_msrs`, `kvm_irq_routing` are two words, the first of which
/// is the length.
pub(crate) type ListHeader = [u32; 2];

/// A value of zero bytes.
pub(crate) fn zeroed<T: Plain>() -> T {
    // SAFETY: any bytes are a valid value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// The value at `address`.
///
/// # Errors
/// EFAULT if not all of it can be read.
pub(crate) fn read<T: Plain>(address: u64) -> Result<T, Errno> {
    let mut value = zeroed::<T>();
    let bytes = &raw mut value;
    // SAFETY: the bytes of `value`, which any pattern is valid for.
    copy_in(address, unsafe { std::slice::from_raw_parts_mut(bytes.cast::<u8>(), size_of::<T>()) })?;
    Ok(value)
}

/// `count` values from `address` on.
///
/// # Errors
/// As [`read`]; ENOMEM if there are more than memory can hold.
pub(crate) fn read_slice<T: Plain>(address: u64, count: usize) -> Result<Vec<T>, Errno> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
    values.resize(count, zeroed::<T>());
    // SAFETY: the bytes of the values, which any pattern is valid for.
    copy_in(address, unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of::<T>() * count) })?;
    Ok(values)
}

/// Stores a value at `address`.
///
/// # Errors
/// EFAULT if not all of it can be written.
pub(crate) fn write<T: Plain>(address: u64, value: &T) -> Result<(), Errno> {
    write_slice(address, std::slice::from_ref(value))
}

/// Stores values from `address` on.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_slice<T: Plain>(address: u64, values: &[T]) -> Result<(), Errno> {
    // SAFETY: the bytes of the values, all of them readable, see `Plain`.
    copy_out(address, unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) })
}

/// Fills `bytes` from `address`.
///
/// # Errors
/// EFAULT if not all can be read.
pub(crate) fn copy_in(address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: writes only to `bytes`; the kernel checks the remote address.
    whole(unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) }, bytes.len())
}

/// Stores `bytes` at `address`.
///
/// # Errors
/// EFAULT if not all can be written.
pub(crate) fn copy_out(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: reads only `bytes`; the program asked for the remote address to be written, and the kernel
    // checks it.
    whole(unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) }, bytes.len())
}

fn whole(copied: isize, wanted: usize) -> Result<(), Errno> {
    if wanted == 0 || usize::try_from(copied) == Ok(wanted) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// Whether a range lies in the half of the address space that programs have (kernel: `access_ok`).
pub(crate) fn is_user_range(address: u64, size: u64) -> bool {
    const TASK_SIZE_MAX: u64 = (1 << 47) - 4096;
    address.checked_add(size).is_some_and(|end| end <= TASK_SIZE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_bad_pointers_are_errors() {
        let region = kvm_userspace_memory_region { slot: 3, memory_size: 4096, ..Default::default() };
        let mut copy = kvm_userspace_memory_region::default();
        write(&raw mut copy as u64, &region).unwrap();
        assert_eq!(copy, region);
        assert_eq!(read::<kvm_userspace_memory_region>(&raw const copy as u64), Ok(region));
        for address in [0, 8, u64::MAX, 1 << 63, (1 << 47) - 4] {
            assert_eq!(read::<u64>(address), Err(Errno::EFAULT), "{address:#x}");
            assert_eq!(write(address, &0u64), Err(Errno::EFAULT), "{address:#x}");
        }
    }

    #[test]
    fn user_ranges_end_below_the_kernel() {
        assert!(is_user_range(0, 0) && is_user_range(0x7000_0000_0000, 4096));
        assert!(!is_user_range(0x7fff_ffff_f000, 1) && !is_user_range(u64::MAX, 1) && !is_user_range(4096, u64::MAX));
    }
}
