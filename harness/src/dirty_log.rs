//! The dirty log of a slot whose bits user space clears itself (Documentation/virt/kvm/api.rst 4.117
//! `KVM_CLEAR_DIRTY_LOG`, 7.18 `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`), and calls for it that KVM refuses.
#![expect(unsafe_code, reason = "ioctl(2)")]

use std::ffi::c_void;
use std::ptr::without_provenance_mut;

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
};
use nix::errno::Errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use crate::uapi;
use crate::units::PageCount;
use crate::vm::Vm;

/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`: asking for the log clears nothing.
pub const MANUAL_PROTECT: u64 = 1 << 0;
/// `KVM_DIRTY_LOG_INITIALLY_SET`: all pages are dirty once a slot gets its log.
pub const INITIALLY_SET: u64 = 1 << 1;

impl Vm {
    /// `KVM_CLEAR_DIRTY_LOG`: clears the bits of a slot that are set in `bits`, the first of which is for the page `first`
    /// of the slot, and protects their pages anew.
    ///
    /// # Errors
    /// The error number of the ioctl.
    ///
    /// # Panics
    /// If there are not as many bits as pages: an error in the row, not in the kernel.
    pub fn clear_dirty_log(&self, slot: u32, first: u64, pages: PageCount, bits: &[u64]) -> Result<(), Errno> {
        assert!(bits.len() as u64 * 64 >= pages.0, "{} words are no bits of {} pages", bits.len(), pages.0);
        self.clear(slot, first, pages, bits.as_ptr().cast_mut().cast())
    }

    /// The same with its bits at an address where nothing can be mapped.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn clear_dirty_log_at(&self, slot: u32, first: u64, pages: PageCount, address: u16) -> Result<(), Errno> {
        self.clear(slot, first, pages, without_provenance_mut(address.into()))
    }

    fn clear(&self, slot: u32, first_page: u64, pages: PageCount, bits: *mut c_void) -> Result<(), Errno> {
        let dirty_bitmap = kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: bits };
        let num_pages = u32::try_from(pages.0).map_err(|_| Errno::EOVERFLOW)?;
        let mut request = kvm_clear_dirty_log { slot, num_pages, first_page, __bindgen_anon_1: dirty_bitmap };
        // SAFETY: the request's size is that of the struct; KVM only reads the bits.
        Errno::result(unsafe { ioctl_with_mut_ref(self.kvm(), uapi::KVM_CLEAR_DIRTY_LOG, &mut request) }).map(drop)
    }

    /// `KVM_GET_DIRTY_LOG` to an address where nothing can be mapped.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn dirty_log_at(&self, slot: u32, address: u16) -> Result<(), Errno> {
        let dirty_bitmap = kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: without_provenance_mut(address.into()) };
        let request = kvm_dirty_log { slot, __bindgen_anon_1: dirty_bitmap, ..Default::default() };
        // SAFETY: the request's size is that of the struct; below 64 KiB nothing is mapped (vm.mmap_min_addr) that KVM
        // could write to.
        Errno::result(unsafe { ioctl_with_ref(self.kvm(), uapi::KVM_GET_DIRTY_LOG, &request) }).map(drop)
    }
}
