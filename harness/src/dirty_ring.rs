//! The ring in which a vCPU tells the pages that it made dirty (Documentation/virt/kvm/api.rst 8.29,
//! `virt/kvm/dirty_ring.c`).
#![expect(unsafe_code, reason = "ioctl(2)")]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use vmm_sys_util::ioctl::ioctl_with_val;

use crate::mapping::{MapOptions, Mapping};
use crate::outcome::{Outcome, Stop};
use crate::uapi;
use crate::units::PAGE_SIZE;
use crate::vcpu::Vcpu;
use crate::vm::Vm;

/// `KVM_DIRTY_LOG_PAGE_OFFSET`: at which page of a vCPU's descriptor its ring is.
const RING_PAGE: u64 = 64;
/// Bytes of `struct kvm_dirty_gfn`.
const ENTRY: u64 = 16;
/// `KVM_DIRTY_GFN_F_DIRTY`: KVM has filled the entry.
const DIRTY: u32 = 1 << 0;
/// `KVM_DIRTY_GFN_F_RESET`: user space has read it.
const HARVESTED: u32 = 1 << 1;

/// A page that a vCPU made dirty.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirtyPage {
    /// The slot's number, with its address space in the upper half.
    pub slot: u32,
    /// Which page of the slot.
    pub page: u64,
}

/// The ring of a vCPU.
#[derive(Debug)]
pub struct DirtyRing {
    entries: Mapping,
    next: u64,
}

impl DirtyRing {
    /// Maps the ring of `vcpu`, whose VM got rings of `bytes` before its first vCPU.
    ///
    /// # Errors
    /// [`Stop::Fail`] if it cannot be mapped.
    pub fn of(vcpu: &Vcpu, bytes: u64) -> Outcome<DirtyRing> {
        let fd = vcpu.kvm()?.as_raw_fd();
        // SAFETY: the vCPU keeps its descriptor open, and it is borrowed until after the call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let entries = Mapping::of_file(fd, RING_PAGE * PAGE_SIZE, bytes, MapOptions::new().shared())
            .map_err(|errno| Stop::Fail(format!("mapping the dirty ring of vCPU {}: {errno:?}", vcpu.id())))?;
        Ok(DirtyRing { entries, next: 0 })
    }

    /// Takes what is in the ring, the oldest first. The entries stay occupied until [`Vm::reset_dirty_rings`].
    ///
    /// # Errors
    /// [`Stop::Error`] if the ring cannot be accessed.
    pub fn harvest(&mut self) -> Outcome<Vec<DirtyPage>> {
        let mut pages = Vec::new();
        let capacity = self.entries.len() / ENTRY;
        while (pages.len() as u64) < capacity {
            let at = self.next % capacity * ENTRY;
            let head = self.entries.read_u64(at)?;
            if head as u32 != DIRTY {
                break;
            }
            pages.push(DirtyPage { slot: (head >> 32) as u32, page: self.entries.read_u64(at + 8)? });
            self.entries.write(at, &HARVESTED.to_le_bytes())?;
            self.next += 1;
        }
        Ok(pages)
    }
}

impl Vm {
    /// `KVM_RESET_DIRTY_RINGS`: frees harvested entries and protects their pages anew. Returns how many there were.
    ///
    /// # Errors
    /// The error number of the ioctl.
    pub fn reset_dirty_rings(&self) -> Result<i32, Errno> {
        // SAFETY: the request has no argument.
        Errno::result(unsafe { ioctl_with_val(self.kvm(), uapi::KVM_RESET_DIRTY_RINGS, 0) })
    }
}
