//! Memslots: which host memory stands behind which guest physical addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region2;

use crate::guest_memfd::GuestMemfd;
use crate::mapping::Mapping;
use crate::uapi::MEM_GUEST_MEMFD;
use crate::units::{Gpa, PageCount};

/// A memslot to be made, see [`Vm::add_slot`](crate::vm::Vm::add_slot).
#[derive(Clone, Debug)]
pub struct SlotSpec {
    /// The id; its upper 16 bits are the address space.
    pub slot: u32,
    /// Where the slot starts.
    pub gpa: Gpa,
    /// How long it is.
    pub pages: PageCount,
    /// The shared backing. None gives the address 0, which is only sensible for a slot that is served from
    /// a guest_memfd with the flag MMAP.
    pub mapping: Option<Arc<Mapping>>,
    /// Where in `mapping` the slot starts, in bytes.
    pub mapping_offset: u64,
    /// The private backing and where in it the slot starts, in bytes. The VM keeps no reference: a slot does
    /// not keep its guest_memfd open.
    pub gmem: Option<(Arc<GuestMemfd>, u64)>,
    /// Flags besides GUEST_MEMFD, which follows from `gmem`.
    pub flags: u32,
}

impl SlotSpec {
    /// A slot with shared memory only, from the start of `mapping` on.
    pub fn shared(slot: u32, gpa: Gpa, pages: PageCount, mapping: &Arc<Mapping>) -> SlotSpec {
        let mapping = Some(Arc::clone(mapping));
        SlotSpec { slot, gpa, pages, mapping, mapping_offset: 0, gmem: None, flags: 0 }
    }

    /// The same slot with private memory from `offset` bytes into `gmem` on.
    pub fn with_gmem(self, gmem: &Arc<GuestMemfd>, offset: u64) -> SlotSpec {
        SlotSpec { gmem: Some((Arc::clone(gmem), offset)), ..self }
    }

    /// The argument of `KVM_SET_USER_MEMORY_REGION2`.
    pub fn region(&self) -> kvm_userspace_memory_region2 {
        let (fd, gmem_offset) = self.gmem.as_ref().map_or((0, 0), |(gmem, offset)| (gmem.fd() as u32, *offset));
        kvm_userspace_memory_region2 {
            slot: self.slot,
            flags: self.flags | if self.gmem.is_some() { MEM_GUEST_MEMFD } else { 0 },
            guest_phys_addr: self.gpa.0,
            memory_size: self.pages.bytes(),
            userspace_addr: self.mapping.as_ref().map_or(0, |mapping| mapping.addr() + self.mapping_offset),
            guest_memfd_offset: gmem_offset,
            guest_memfd: fd,
            ..Default::default()
        }
    }
}

/// A slot that exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memslot {
    /// The id.
    pub slot: u32,
    /// Where it starts.
    pub gpa: Gpa,
    /// How long it is.
    pub pages: PageCount,
}

/// Below this host address nothing is mapped: the kernel places mappings from the top of the address space
/// down and programs at 4 MiB or above, unless asked otherwise, which nothing here does.
const NOTHING_BELOW: u64 = 4 << 20;

/// Who keeps the host memory of each live slot mapped.
///
/// A guest writes wherever its slots point, so the one rule that makes this safe is kept here: a VM that
/// has vCPUs has no slot over host memory that the harness does not hold on to.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    /// The mapping of each live slot; None where it is not known or there is none.
    backing: BTreeMap<u32, Option<Arc<Mapping>>>,
    /// Slots over memory of unknown owners.
    unowned: BTreeMap<u32, u64>,
    has_vcpus: bool,
}

impl SlotTable {
    /// Whether a vCPU may be made; if not, the slot and the host address that forbid it.
    pub(crate) fn admit_vcpu(&mut self) -> Result<(), (u32, u64)> {
        match self.unowned.first_key_value() {
            Some((&slot, &addr)) => Err((slot, addr)),
            None => {
                self.has_vcpus = true;
                Ok(())
            }
        }
    }

    /// Whether `region` may be asked for, with `backing` as its shared memory.
    pub(crate) fn admits(&self, region: &kvm_userspace_memory_region2, backing: Option<&Arc<Mapping>>) -> bool {
        !self.has_vcpus || self.owned(region, backing)
    }

    /// Remembers that KVM accepted `region`.
    pub(crate) fn accepted(&mut self, region: &kvm_userspace_memory_region2, backing: Option<&Arc<Mapping>>) {
        if region.memory_size == 0 {
            self.backing.remove(&region.slot);
            self.unowned.remove(&region.slot);
            return;
        }
        if !self.owned(region, backing) {
            self.unowned.insert(region.slot, region.userspace_addr);
        }
        if backing.is_some() || !self.backing.contains_key(&region.slot) {
            self.backing.insert(region.slot, backing.cloned());
        }
    }

    fn owned(&self, region: &kvm_userspace_memory_region2, backing: Option<&Arc<Mapping>>) -> bool {
        let (addr, bytes) = (region.userspace_addr, region.memory_size);
        let known = self.backing.get(&region.slot).and_then(Option::as_ref);
        let nothing_there = addr.checked_add(bytes).is_some_and(|end| end <= NOTHING_BELOW);
        bytes == 0 || nothing_there || backing.or(known).is_some_and(|mapping| mapping.contains(addr, bytes))
    }
}
