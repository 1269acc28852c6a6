//! Second-level page faults: what a guest-physical page is to a vCPU's access.
//!
//! Source: `arch/x86/kvm/mmu/mmu.c`: kvm_mmu_page_fault, kvm_mmu_faultin_pfn, kvm_handle_noslot_fault,
//! handle_mmio_page_fault, kvm_arch_vcpu_pre_fault_memory.

use std::sync::Arc;

use nix::errno::Errno;

use crate::defect::Defect;
use crate::host_memory::{PAGE_SHIFT, PAGE_SIZE, populate};
use crate::memory::{MMIO_GENERATION_MASK, Map, Memory, Spte};
use crate::memslot::{READONLY, Slot};
use crate::personality::Personality;
use crate::stats::{self, Stats};
use crate::vm_type::AccessKind;

/// What a vCPU remembers of its last MMIO access (kernel: `vcpu_cache_mmio_info`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct MmioCache {
    gfn: u64,
    generation: u64,
}

/// What a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resolved {
    /// Memory: the host page, and whether it may be written.
    Page(*mut u8, bool),
    /// Emulated.
    Mmio,
}

/// Why an access cannot go on, for `KVM_RUN` and `KVM_PRE_FAULT_MEMORY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// What the ioctl returns.
    pub(crate) errno: Errno,
    /// The exit that goes with it.
    pub(crate) memory_fault: Option<MemoryFault>,
}

/// `KVM_EXIT_MEMORY_FAULT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MemoryFault {
    /// The access.
    pub(crate) gpa: u64,
    /// It was private.
    pub(crate) private: bool,
}

/// A vCPU's way through its VM's memory.
pub(crate) struct Faults<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) stats: &'a Stats,
    pub(crate) mmio_cache: &'a mut Option<MmioCache>,
}

/// A fault on its way.
#[derive(Clone, Copy)]
struct Fault {
    gpa: u64,
    write: bool,
    private: bool,
    /// Of KVM_PRE_FAULT_MEMORY: nothing is counted.
    prefetch: bool,
}

/// What became of a fault.
enum Outcome {
    Fixed(*mut u8, bool),
    Emulate,
    Retry,
}

impl Faults<'_> {
    /// An access of the guest.
    ///
    /// # Errors
    /// What ends `KVM_RUN`.
    pub(crate) fn resolve(&mut self, gpa: u64, write: bool) -> Result<Resolved, Failure> {
        let gfn = gpa >> PAGE_SHIFT;
        loop {
            let map = self.memory.read();
            let mut private = self.access_is_private(&map, gfn);
            let mut tells_writes = true;
            match map.entry(gfn) {
                Some(Spte::Present { host, writable }) if writable || !write => {
                    return Ok(Resolved::Page(host as *mut u8, writable));
                }
                Some(Spte::Present { .. }) => {}
                Some(Spte::Mmio { generation }) => {
                    if self.cached_mmio(&map, gfn, generation) {
                        self.stats.count(stats::EXITS);
                        return Ok(Resolved::Mmio);
                    }
                    // The reserved bit of the entry keeps KVM from looking at the attribute.
                    private = false;
                    // An EPT misconfiguration does not say what the access is (kernel: `handle_ept_misconfig`).
                    tells_writes = self.memory.options.personality != Personality::Intel;
                }
                None => {}
            }
            drop(map);
            self.stats.count(stats::EXITS);
            self.stats.count(stats::PF_TAKEN);
            match self.handle(Fault { gpa, write: write && tells_writes, private, prefetch: false })? {
                Outcome::Fixed(host, writable) => {
                    self.stats.count(stats::PF_FIXED);
                    if writable || !write {
                        return Ok(Resolved::Page(host, writable));
                    }
                }
                Outcome::Emulate => {
                    self.stats.count(stats::PF_EMULATE);
                    return Ok(Resolved::Mmio);
                }
                Outcome::Retry => {}
            }
        }
    }

    /// Maps a page as if the guest had read it, for `KVM_PRE_FAULT_MEMORY`.
    ///
    /// # Errors
    /// ENOENT for MMIO, and what ends `KVM_RUN`.
    pub(crate) fn prefault(&mut self, gpa: u64) -> Result<(), Failure> {
        let options = self.memory.options;
        if options.has(Defect::PrefaultMapsNothing) {
            return Ok(());
        }
        loop {
            let map = self.memory.read();
            if matches!(map.entry(gpa >> PAGE_SHIFT), Some(Spte::Present { .. })) {
                return Ok(());
            }
            let private = map.attributes.is_private(gpa >> PAGE_SHIFT) && self.memory.kind.has_private_mem();
            drop(map);
            match self.handle(Fault { gpa, write: false, private, prefetch: true })? {
                Outcome::Fixed(..) => return Ok(()),
                Outcome::Emulate if options.has(Defect::PrefaultHoleSucceeds) => return Ok(()),
                Outcome::Emulate => return Err(Failure { errno: Errno::ENOENT, memory_fault: None }),
                Outcome::Retry => {}
            }
        }
    }

    fn access_is_private(&self, map: &Map, gfn: u64) -> bool {
        match self.memory.kind.access_kind() {
            AccessKind::AlwaysShared => false,
            AccessKind::ByAttribute => map.attributes.is_private(gfn),
        }
    }

    /// A page as KVM's emulator finds it: what the vCPU remembers as MMIO is MMIO.
    pub(crate) fn emulated(&self, gpa: u64, write: bool) -> Resolved {
        let gfn = gpa >> PAGE_SHIFT;
        if self.remembers_mmio(&self.memory.read(), gfn) {
            return Resolved::Mmio;
        }
        self.memory.emulator_page(gfn, write)
    }

    fn remembers_mmio(&self, map: &Map, gfn: u64) -> bool {
        gfn != 0 && self.mmio_cache.is_some_and(|cache| cache.gfn == gfn && cache.generation == map.generation)
    }

    /// Whether an MMIO entry is still good.
    fn cached_mmio(&mut self, map: &Map, gfn: u64, entry_generation: u64) -> bool {
        if self.remembers_mmio(map, gfn) {
            return true;
        }
        let fresh = entry_generation == map.generation & MMIO_GENERATION_MASK
            || self.memory.options.has(Defect::MmioCachedOverNewSlot);
        if fresh {
            *self.mmio_cache = Some(MmioCache { gfn, generation: map.generation });
        }
        fresh
    }

    fn handle(&mut self, fault: Fault) -> Result<Outcome, Failure> {
        let Fault { gpa, write, private, .. } = fault;
        let gfn = gpa >> PAGE_SHIFT;
        let options = self.memory.options;
        let map = self.memory.read();
        let sequence = map.sequence;
        let attribute = map.attributes.is_private(gfn) && self.memory.kind.has_private_mem();
        let wrong_kind = fault.prefetch && options.has(Defect::PrefaultWrongKind);
        let failure = |errno| Failure { errno, memory_fault: Some(MemoryFault { gpa, private }) };
        if private != attribute {
            return Err(failure(Errno::EFAULT));
        }
        let Some(slot) = map.slots.at(gfn).map(Arc::clone) else {
            if private && !options.has(Defect::MmioPrivateAccess) {
                return Err(failure(Errno::EFAULT));
            }
            let generation = map.generation;
            drop(map);
            self.install_mmio(gfn, generation);
            return Ok(Outcome::Emulate);
        };
        drop(map);
        let ignored = wrong_kind || options.has(Defect::AttributeIgnoredByFaults);
        let from_file = private && !ignored || slot.file.as_ref().is_some_and(|file| file.serves_all_faults);
        if from_file {
            let host = file_page(&slot, gfn).map_err(failure)?;
            return Ok(self.install(fault, &slot, sequence, host, true, false));
        }
        if write && slot.flags & READONLY != 0 && !options.has(Defect::ReadOnlySlotWritable) {
            return Ok(Outcome::Emulate);
        }
        let writable = self.memory.populate(&slot, gfn, write).map_err(|errno| {
            match options.has(Defect::HostFaultIsMemoryFault) {
                true => failure(errno),
                false => Failure { errno, memory_fault: None },
            }
        })?;
        let writable = write || writable && slot.flags & READONLY == 0;
        let huge = self.memory.is_huge(&slot, gfn);
        Ok(self.install(fault, &slot, sequence, slot.host_address(gfn) as *mut u8, writable, huge))
    }

    /// Installs a mapping, of 2 MiB if they can be `huge`, if nothing has changed since `sequence`.
    fn install(&self, fault: Fault, slot: &Slot, sequence: u64, host: *mut u8, writable: bool, huge: bool) -> Outcome {
        let gfn = fault.gpa >> PAGE_SHIFT;
        let mut map = self.memory.write();
        if map.sequence != sequence {
            return Outcome::Retry;
        }
        if let (true, Some(log)) = (writable, &slot.dirty) {
            // Whatever may be written counts as written (kernel: `make_spte`).
            log.mark(gfn - slot.first);
            if fault.write && !fault.prefetch && matches!(map.entry(gfn), Some(Spte::Present { .. })) {
                self.stats.count(stats::PF_FAST);
            }
        }
        if !(huge && self.memory.install_huge(&mut map, gfn, host as usize, writable)) {
            self.memory.install(&mut map, gfn, Spte::Present { host: host as usize, writable });
        }
        Outcome::Fixed(host, writable)
    }

    fn install_mmio(&mut self, gfn: u64, generation: u64) {
        *self.mmio_cache = Some(MmioCache { gfn, generation });
        let options = self.memory.options;
        let caching = match options.defect {
            Some(Defect::MmioNeverCached) => false,
            Some(Defect::MmioCachedWhenOff) => true,
            _ => options.mmio_caching,
        };
        if !caching || gfn >> (options.personality.physical_address_bits() - PAGE_SHIFT) != 0 {
            return;
        }
        let mut map = self.memory.write();
        if map.slots.at(gfn).is_none() {
            self.memory.install(&mut map, gfn, Spte::Mmio { generation: generation & MMIO_GENERATION_MASK });
            self.stats.count(stats::PF_MMIO_SPTE_CREATED);
        }
    }
}

/// The page of the slot's file (kernel: `kvm_gmem_get_pfn`).
///
/// # Errors
/// EFAULT without a file or with one that is closed; what the allocation says.
fn file_page(slot: &Slot, gfn: u64) -> Result<*mut u8, Errno> {
    let binding = slot.file.as_ref().ok_or(Errno::EFAULT)?;
    let host = slot.file_address(binding, gfn).ok_or(Errno::EFAULT)?;
    if binding.file.strong_count() == 0 {
        return Err(Errno::EFAULT);
    }
    debug_assert!((host as u64).is_multiple_of(PAGE_SIZE));
    populate(host as u64, true)?;
    Ok(host)
}
