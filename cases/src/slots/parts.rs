//! What rows about slots without a guest work with.

use std::sync::Arc;

use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};
use nix::errno::Errno;
use privet_harness::case::Case;
use privet_harness::guest_memfd::GuestMemfd;
use privet_harness::mapping::Mapping;
use privet_harness::outcome::Outcome;
use privet_harness::test_range::TEST_BASE;
use privet_harness::uapi::MEM_GUEST_MEMFD;
use privet_harness::units::{PAGE_SIZE, PageCount};
use privet_harness::vm::Vm;

use crate::expect::{expect_errno, expect_ok};

/// The argument of `KVM_SET_USER_MEMORY_REGION2`.
pub(super) type Region = kvm_userspace_memory_region2;

/// The slot id of [`Parts::region`].
pub(super) const SLOT: u32 = 5;
/// Its length.
pub(super) const SIZE: u64 = 4 * PAGE_SIZE;
/// The length of the guest_memfd.
pub(super) const FILE_SIZE: u64 = 16 * PAGE_SIZE;

/// A VM without vCPUs, host memory and a guest_memfd.
pub(super) struct Parts {
    pub(super) vm: Vm,
    pub(super) mapping: Arc<Mapping>,
    pub(super) file: Arc<GuestMemfd>,
}

impl Parts {
    pub(super) fn new(t: &Case) -> Outcome<Parts> {
        let vm = t.vm()?;
        let mapping = Arc::new(Mapping::anonymous(FILE_SIZE)?);
        let file = vm.create_guest_memfd(FILE_SIZE, 0)?;
        Ok(Parts { vm, mapping, file })
    }

    /// A slot with both backings that KVM accepts; rows change one thing of it.
    pub(super) fn region(&self) -> Region {
        Region {
            slot: SLOT,
            flags: MEM_GUEST_MEMFD,
            guest_phys_addr: TEST_BASE.0,
            memory_size: SIZE,
            userspace_addr: self.mapping.addr(),
            guest_memfd_offset: 0,
            guest_memfd: self.file.fd() as u32,
            ..Default::default()
        }
    }

    /// The same without a guest_memfd.
    pub(super) fn shared_region(&self) -> Region {
        Region { flags: 0, ..self.region() }
    }

    pub(super) fn set(&self, region: Region) -> Result<(), Errno> {
        self.vm.set_user_memory_region2_raw(&region, Some(&self.mapping))
    }

    /// `KVM_SET_USER_MEMORY_REGION`, the older ioctl, with the fields that it has.
    pub(super) fn set_v1(&self, region: Region) -> Result<(), Errno> {
        let Region { slot, flags, guest_phys_addr, memory_size, userspace_addr, .. } = region;
        let region = kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
        self.vm.set_user_memory_region_raw(&region, Some(&self.mapping))
    }

    pub(super) fn delete(&self, slot: u32) -> Result<(), Errno> {
        self.set(Region { slot, ..Default::default() })
    }

    /// Expects that a slot can be made, and deletes it again.
    pub(super) fn accepts(&self, what: &str, region: Region) -> Outcome {
        expect_ok(what, self.set(region))?;
        expect_ok(&format!("deleting the slot after {what}"), self.delete(region.slot))
    }

    /// Expects that a slot cannot be made, and that there is none afterwards.
    pub(super) fn refuses(&self, what: &str, region: Region, errno: Errno) -> Outcome {
        expect_errno(what, self.set(region), errno)?;
        expect_errno(&format!("deleting the slot after {what}"), self.delete(region.slot), Errno::EINVAL)
    }

    /// Expects that a slot that exists cannot be changed.
    pub(super) fn refuses_change(&self, what: &str, region: Region, errno: Errno) -> Outcome {
        expect_errno(what, self.set(region), errno)
    }
}

/// The last multiple of the page size below `bytes`, or `bytes` itself.
pub(super) const fn aligned_down(bytes: u64) -> u64 {
    bytes & !(PAGE_SIZE - 1)
}

/// `pages` pages in bytes.
pub(super) const fn bytes(pages: u64) -> u64 {
    PageCount(pages).bytes()
}
