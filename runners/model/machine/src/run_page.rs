//! `struct kvm_run`, by offsets: shared with the program, which may write to it at any time.
//!
//! Source: `include/uapi/linux/kvm.h`.
#![expect(unsafe_code, reason = "volatile accesses to memory that the program shares")]

use crate::host_memory::{FileView, PAGE_SIZE};
use crate::user::{Plain, zeroed};

pub(crate) const REQUEST_INTERRUPT_WINDOW: usize = 0;
pub(crate) const IMMEDIATE_EXIT: usize = 1;
pub(crate) const EXIT_REASON: usize = 8;
pub(crate) const READY_FOR_INTERRUPT: usize = 12;
pub(crate) const IF_FLAG: usize = 13;
pub(crate) const FLAGS: usize = 14;
pub(crate) const CR8: usize = 16;
pub(crate) const APIC_BASE: usize = 24;
/// The union of what exits tell.
pub(crate) const EXIT: usize = 32;
pub(crate) const VALID_REGS: usize = 288;
pub(crate) const DIRTY_REGS: usize = 296;
/// `struct kvm_sync_regs`: `kvm_regs`, `kvm_sregs`, `kvm_vcpu_events`.
pub(crate) const SYNC_REGS: usize = 304;
/// Where the data of `in` and `out` is.
pub(crate) const PORT_DATA: usize = PAGE_SIZE as usize;

/// `KVM_EXIT_*`.
pub(crate) mod reason {
    pub(crate) const UNKNOWN: u32 = 0;
    pub(crate) const IO: u32 = 2;
    pub(crate) const HYPERCALL: u32 = 3;
    pub(crate) const DEBUG: u32 = 4;
    pub(crate) const HLT: u32 = 5;
    pub(crate) const MMIO: u32 = 6;
    pub(crate) const IRQ_WINDOW_OPEN: u32 = 7;
    pub(crate) const SHUTDOWN: u32 = 8;
    pub(crate) const INTR: u32 = 10;
    pub(crate) const INTERNAL_ERROR: u32 = 17;
    pub(crate) const MEMORY_FAULT: u32 = 39;
}

/// The pages of a vCPU's descriptor.
pub(crate) struct RunPage(FileView);

impl RunPage {
    /// The pages in `view`, at least two.
    pub(crate) fn new(view: FileView) -> Self {
        assert!(view.len() >= 2 * PAGE_SIZE as usize, "kvm_run and its port data are two pages");
        Self(view)
    }

    fn check<T>(&self, offset: usize, count: usize) {
        let end = offset + size_of::<T>() * count;
        assert!(end <= self.0.len(), "kvm_run has no bytes {offset:#x} to {end:#x}");
    }

    /// The field at `offset`.
    pub(crate) fn get<T: Plain>(&self, offset: usize) -> T {
        self.check::<T>(offset, 1);
        let mut value = zeroed::<T>();
        // SAFETY: in bounds; the program may write meanwhile, so bytes are read once and volatile.
        unsafe { copy_volatile((&raw mut value).cast(), self.0.start().add(offset), size_of::<T>()) };
        value
    }

    /// Sets the field at `offset`.
    pub(crate) fn set<T: Plain>(&self, offset: usize, value: T) {
        self.check::<T>(offset, 1);
        // SAFETY: as above.
        unsafe { copy_volatile(self.0.start().add(offset), (&raw const value).cast(), size_of::<T>()) };
    }

    /// Fills `bytes` from `offset` on.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check::<u8>(offset, bytes.len());
        // SAFETY: as above.
        unsafe { copy_volatile(bytes.as_mut_ptr(), self.0.start().add(offset), bytes.len()) };
    }

    /// Stores `bytes` from `offset` on.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.check::<u8>(offset, bytes.len());
        // SAFETY: as above.
        unsafe { copy_volatile(self.0.start().add(offset), bytes.as_ptr(), bytes.len()) };
    }
}

/// Copies words where it can: a field of `kvm_run` is not torn.
///
/// # Safety
/// Both ranges are mapped and do not overlap; whatever is shared is only accessed through raw pointers.
unsafe fn copy_volatile(to: *mut u8, from: *const u8, bytes: usize) {
    let words = bytes / 8;
    for index in 0..words {
        // SAFETY: within the ranges; unaligned ends of the copy that are private to us.
        unsafe { to.cast::<u64>().add(index).write_unaligned(from.cast::<u64>().add(index).read_unaligned()) };
    }
    for index in words * 8..bytes {
        // SAFETY: within the ranges.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
    }
}
