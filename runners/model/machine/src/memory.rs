//! A VM's guest-physical memory: slots, attributes, and the second-level page table that ties them to host
//! memory.
//!
//! Locks, outermost first: `changes` (kernel: slots_lock) orders the ioctls that change memory; `map`
//! (kernel: mmu_lock) protects what faults look up. Whatever takes something away from vCPUs holds `map` for
//! writing, has all vCPUs drop their translations, and only then changes it, so that no access of a guest
//! falls between.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use nix::errno::Errno;
use privet_cpu::Kick;

use crate::attributes::Attributes;
use crate::defect::Defect;
use crate::dirty_log::DirtyLog;
use crate::fault::Resolved;
use crate::guest_memfd::GuestMemfd;
use crate::host_memory::{self, FileView, HUGE_PAGES, PAGE_SHIFT, PAGE_SIZE, ProgramPage, populate, program_page};
use crate::memslot::{self, Binding, Change, GUEST_MEMFD, LOG_DIRTY_PAGES, READONLY, Request, Slot, Slots};
use crate::options::Options;
use crate::stats::{self, Stats};
use crate::user::{self, Plain};
use crate::vm_type::VmType;

/// The memslot generation in an MMIO entry has so many bits.
pub(crate) const MMIO_GENERATION_MASK: u64 = (1 << 18) - 1;

/// A leaf entry of the second-level page table (kernel: SPTE).
#[derive(Clone, Copy)]
pub(crate) enum Spte {
    /// Memory.
    Present {
        /// The host page.
        host: usize,
        /// Writes are allowed.
        writable: bool,
    },
    /// No memory, as of this generation (modulo 2^18).
    Mmio {
        /// See [`MMIO_GENERATION_MASK`].
        generation: u64,
    },
}

/// What faults look up.
#[derive(Default)]
pub(crate) struct Map {
    pub(crate) slots: Slots,
    pub(crate) attributes: Attributes,
    /// Of the slots; see [`Memory::next_generation`].
    pub(crate) generation: u64,
    /// Counts changes: a fault that let go of the lock starts again if it finds another number.
    pub(crate) sequence: u64,
    entries: HashMap<u64, Spte>,
    /// Present entries of 2 MiB, by their number.
    huge: HashMap<u64, HugeSpte>,
}

/// A present entry of 2 MiB: the first host page, and whether writes are allowed.
type HugeSpte = (usize, bool);

impl Map {
    /// The entry of a page.
    pub(crate) fn entry(&self, gfn: u64) -> Option<Spte> {
        let part_of_huge = || {
            let &(host, writable) = self.huge.get(&(gfn / HUGE_PAGES))?;
            Some(Spte::Present { host: host + (gfn % HUGE_PAGES * PAGE_SIZE) as usize, writable })
        };
        self.entries.get(&gfn).copied().or_else(part_of_huge)
    }
}

/// The 2 MiB of guest pages around one.
fn huge_range(gfn: u64) -> Range<u64> {
    let first = gfn - gfn % HUGE_PAGES;
    first..first + HUGE_PAGES
}

/// A VM's memory.
pub(crate) struct Memory {
    pub(crate) kind: VmType,
    pub(crate) options: &'static Options,
    stats: Arc<Stats>,
    changes: Mutex<()>,
    map: RwLock<Map>,
    vcpus: Mutex<Vec<Arc<Kick>>>,
}

impl Memory {
    /// Memory without slots.
    pub(crate) fn new(kind: VmType, options: &'static Options, stats: Arc<Stats>) -> Self {
        Self { kind, options, stats, changes: Mutex::default(), map: RwLock::default(), vcpus: Mutex::default() }
    }

    /// From now on this vCPU's translations are invalidated with the others'.
    pub(crate) fn add_vcpu(&self, kick: Arc<Kick>) {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).push(kick);
    }

    /// Everything as it is.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the entry of a page says that it is MMIO, or once was.
    pub(crate) fn is_mmio_entry(&self, gfn: u64) -> bool {
        matches!(self.read().entry(gfn), Some(Spte::Mmio { .. }))
    }

    /// Everything, to add entries to.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs an entry.
    pub(crate) fn install(&self, map: &mut Map, gfn: u64, entry: Spte) {
        self.remove_huge(map, gfn..gfn + 1);
        let was_present = matches!(map.entries.insert(gfn, entry), Some(Spte::Present { .. }));
        match (was_present, matches!(entry, Spte::Present { .. })) {
            (false, true) => self.stats.count(stats::PAGES_4K),
            (true, false) => self.stats.add(stats::PAGES_4K, u64::MAX),
            _ => {}
        }
    }

    /// Installs an entry of 2 MiB around a page at `host`, in place of what is there, if all of its pages are
    /// shared (kernel: `kvm_mmu_max_mapping_level`). Returns whether they are.
    pub(crate) fn install_huge(&self, map: &mut Map, gfn: u64, host: usize, writable: bool) -> bool {
        let range = huge_range(gfn);
        if !map.attributes.are_all(&range, false) && !self.options.has(Defect::HugePageOverMixed) {
            return false;
        }
        let first = host - ((gfn - range.start) * PAGE_SIZE) as usize;
        self.zap(map, range.clone());
        // MMIO entries go, too.
        map.entries.retain(|gfn, _| !range.contains(gfn));
        map.huge.insert(gfn / HUGE_PAGES, (first, writable));
        self.stats.count(stats::PAGES_2M);
        true
    }

    /// Whether the program's memory can be mapped for the guest by 2 MiB around a page: if they are in the slot,
    /// nobody logs them, and the program has a huge page there (kernel: `kvm_alloc_memslot_metadata`,
    /// `host_pfn_mapping_level`).
    pub(crate) fn is_huge(&self, slot: &Slot, gfn: u64) -> bool {
        let (range, address) = (huge_range(gfn), slot.host_address(gfn));
        slot.dirty.is_none()
            && slot.first <= range.start
            && range.end <= slot.first + slot.pages
            && (address >> PAGE_SHIFT) % HUGE_PAGES == gfn % HUGE_PAGES
            && host_memory::is_in_huge_page(address)
    }

    /// Removes the entries of 2 MiB that a range touches.
    fn remove_huge(&self, map: &mut Map, range: Range<u64>) {
        let before = map.huge.len();
        if before > 0 {
            map.huge.retain(|number, _| {
                let pages = huge_range(number * HUGE_PAGES);
                pages.end <= range.start || range.end <= pages.start
            });
            self.stats.add(stats::PAGES_2M, (map.huge.len() as u64).wrapping_sub(before as u64));
        }
    }

    /// Removes the present entries of a range; MMIO entries stay (kernel: `tdp_mmu_zap_leafs`).
    fn zap(&self, map: &mut Map, range: Range<u64>) {
        self.remove_huge(map, range.clone());
        let covers = |entry: &Spte, gfn: u64| matches!(entry, Spte::Present { .. }) && range.contains(&gfn);
        let before = map.entries.len();
        if range.end.saturating_sub(range.start) < before as u64 {
            for gfn in range.clone() {
                if map.entries.get(&gfn).is_some_and(|entry| covers(entry, gfn)) {
                    map.entries.remove(&gfn);
                }
            }
        } else {
            map.entries.retain(|&gfn, entry| !covers(entry, gfn));
        }
        self.stats.add(stats::PAGES_4K, (map.entries.len() as u64).wrapping_sub(before as u64));
    }

    /// Removes all entries (kernel: `kvm_mmu_zap_all_fast`).
    fn zap_all(&self, map: &mut Map) {
        map.entries.clear();
        map.huge.clear();
        self.stats.set(stats::PAGES_4K, 0);
        self.stats.set(stats::PAGES_2M, 0);
    }

    /// Has all vCPUs drop their translations, and returns when none is in use any more. The caller holds the
    /// map for writing, so no vCPU gets a new one.
    fn flush(&self) {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.flush_those(&vcpus);
    }

    fn flush_those(&self, vcpus: &[Arc<Kick>]) {
        self.stats.count(stats::REMOTE_TLB_FLUSH_REQUESTS);
        self.stats.count(stats::REMOTE_TLB_FLUSH);
        vcpus.iter().for_each(|vcpu| vcpu.request_flush());
        vcpus.iter().for_each(|vcpu| vcpu.flush_and_wait());
    }

    /// `KVM_SET_USER_MEMORY_REGION` and its successor. `file` finds the guest_memfd where one is wanted.
    ///
    /// # Errors
    /// As the ioctls.
    pub(crate) fn set_slot(
        &self,
        request: &Request,
        zap_all_on_delete: bool,
        initially_dirty: bool,
        file: impl FnOnce() -> Result<(Arc<GuestMemfd>, RawFd), Errno>,
    ) -> Result<(), Errno> {
        let _changes = self.changes();
        let change = self.read().slots.plan(request, self.kind, self.options)?;
        match change {
            Change::Nothing => {}
            Change::Create(mut slot) => {
                let bound = if request.flags & GUEST_MEMFD != 0 { Some(file()?) } else { None };
                self.check_reach(&slot)?;
                if let Some((file, fd)) = &bound {
                    slot.file = Some(self.bind(file, *fd, request, &slot)?);
                }
                slot.dirty =
                    (slot.flags & LOG_DIRTY_PAGES != 0).then(|| Arc::new(DirtyLog::new(slot.pages, initially_dirty)));
                let mut map = self.write();
                map.slots.insert(slot);
                self.next_generation(&mut map);
            }
            Change::Delete(slot) => {
                let mut map = self.write();
                // Twice: the kernel first shows an invalid slot, then none.
                self.next_generation(&mut map);
                self.drop_mappings(&mut map, &slot, zap_all_on_delete);
                map.slots.remove(slot.id);
                self.next_generation(&mut map);
                if self.options.has(Defect::AttributeFollowsSlot) {
                    map.attributes.set(slot.range(), false);
                }
                // The file may be on its way out, which takes the map.
                drop(map);
                unbind(&slot);
            }
            Change::Move(old, new) => {
                self.check_reach(&new)?;
                let mut map = self.write();
                self.next_generation(&mut map);
                self.drop_mappings(&mut map, &old, zap_all_on_delete);
                map.slots.insert(new);
                self.next_generation(&mut map);
            }
            Change::Flags(mut slot) => {
                if slot.flags & LOG_DIRTY_PAGES == 0 {
                    slot.dirty = None;
                } else if slot.dirty.is_none() {
                    slot.dirty = Some(Arc::new(DirtyLog::new(slot.pages, initially_dirty)));
                }
                let mut map = self.write();
                self.flush();
                map.sequence += 1;
                if slot.dirty.is_some() {
                    // What is mapped stays so, by small pages and protected against writing.
                    self.remove_huge(&mut map, slot.range());
                    let all = vec![u64::MAX; slot.pages.div_ceil(64) as usize];
                    self.protect(&mut map, slot.range(), 0, &all);
                } else {
                    self.zap(&mut map, slot.range());
                }
                map.slots.insert(slot);
                self.next_generation(&mut map);
            }
        }
        Ok(())
    }

    /// Whether the CPU reaches a slot (kernel: `kvm_arch_prepare_memory_region`).
    fn check_reach(&self, slot: &Slot) -> Result<(), Errno> {
        let end = 1 << (self.options.personality.physical_address_bits() - PAGE_SHIFT);
        let reaches = slot.first + slot.pages <= end || self.options.has(Defect::SlotAboveReachAccepted);
        if !reaches { Err(Errno::EINVAL) } else { Ok(()) }
    }

    fn drop_mappings(&self, map: &mut Map, slot: &Slot, all: bool) {
        map.sequence += 1;
        if self.options.has(Defect::SlotDeleteKeepsMapping) {
            // What is still mapped must stay there.
            std::mem::forget(slot.file.as_ref().map(|binding| Arc::clone(&binding.view)));
            return;
        }
        self.flush();
        if all { self.zap_all(map) } else { self.zap(map, slot.range()) }
    }

    fn bind(&self, file: &Arc<GuestMemfd>, fd: RawFd, request: &Request, slot: &Slot) -> Result<Binding, Errno> {
        memslot::check_file_range(file, request.file_offset, request.bytes, self.options)?;
        let first = request.file_offset >> PAGE_SHIFT;
        // A range that should have been refused has no pages to look at.
        let offset = request.file_offset.min(file.size().saturating_sub(request.bytes));
        let view = FileView::new(fd, offset, request.bytes)?;
        file.bind(first, slot.pages, slot.id)?;
        Ok(Binding {
            file: Arc::downgrade(file),
            first,
            view: Arc::new(view),
            serves_all_faults: file.serves_all_faults() && !self.options.has(Defect::FileServesPrivateOnly),
        })
    }

    /// The generation after the next change: address spaces have generations of their own, interleaved
    /// (`kvm_main.c:kvm_swap_active_memslots`). Entries of 2^18 generations ago would look fresh, so all go
    /// when the number wraps (`mmu.c:kvm_mmu_invalidate_mmio_sptes`).
    fn next_generation(&self, map: &mut Map) {
        let step = u64::from(self.kind.address_spaces());
        map.generation += step;
        map.sequence += 1;
        if map.generation & MMIO_GENERATION_MASK & !(step - 1) == 0 && !self.options.has(Defect::MmioGenerationWrap) {
            self.flush();
            self.zap_all(map);
        }
    }

    /// Makes guest pages private or shared, if they are not all so.
    pub(crate) fn set_private(&self, mut range: Range<u64>, private: bool) {
        let _changes = self.changes();
        if self.read().attributes.are_all(&range, private) {
            return;
        }
        if self.options.has(Defect::AttributeOnePageTooMany) {
            range.end += 1;
        }
        if self.options.has(Defect::AttributeOnePageTooEarly) {
            range.start = range.start.saturating_sub(1);
        }
        if self.options.has(Defect::AttributeOnePageTooFew) && range.end - range.start > 1 {
            range.end -= 1;
        }
        let mut map = self.write();
        map.sequence += 1;
        match self.options.defect {
            Some(Defect::StaleMappingAfterConversion) => {}
            Some(Defect::StaleMappingInOneVcpu) => {
                let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).clone();
                self.flush_those(&vcpus[..vcpus.len().min(1)]);
                self.zap(&mut map, range.clone());
            }
            _ => {
                self.flush();
                self.zap(&mut map, range.clone());
            }
        }
        self.content_defects(&map, &range, private);
        map.attributes.set(range, private);
        if self.options.has(Defect::AttributeMovesGeneration) {
            self.next_generation(&mut map);
        }
    }

    /// The defects in which a conversion touches content.
    fn content_defects(&self, map: &Map, range: &Range<u64>, private: bool) {
        let (to_shared, to_private, drop) = (
            self.options.has(Defect::PrivateLeaksToShared) && !private,
            self.options.has(Defect::SharedLeaksToPrivate) && private,
            self.options.has(Defect::ConversionDropsPrivate) && !private,
        );
        if !(to_shared || to_private || drop) {
            return;
        }
        for slot in map.slots.iter() {
            let Some(binding) = &slot.file else { continue };
            let mut page = [0; PAGE_SIZE as usize];
            for gfn in range.start.max(slot.first)..range.end.min(slot.first + slot.pages) {
                let Some(file) = slot.file_address(binding, gfn) else { continue };
                let shared = slot.host_address(gfn);
                let (from, to) = if to_private { (shared, file as u64) } else { (file as u64, shared) };
                // Pages that cannot be copied are left alone, as a kernel with the bug would.
                let _ = match drop {
                    true => user::copy_out(file as u64, &page),
                    false => user::copy_in(from, &mut page).and_then(|()| user::copy_out(to, &page)),
                };
            }
        }
    }

    /// Takes the guest pages behind pages of a file away, and does `change` before anyone can have them back.
    ///
    /// # Errors
    /// Those of `change`.
    pub(crate) fn invalidate_file(
        &self,
        file: &Weak<GuestMemfd>,
        file_pages: Range<u64>,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut map = self.write();
        map.sequence += 1;
        self.flush();
        let slots: Vec<Arc<Slot>> = map.slots.iter().map(Arc::clone).collect();
        for slot in slots {
            let Some(binding) = slot.file.as_ref().filter(|binding| binding.file.ptr_eq(file)) else { continue };
            let pages = slot.guest_pages_of(binding, &file_pages);
            self.zap(&mut map, pages.clone());
            if self.options.has(Defect::HoleClearsAttribute) {
                map.attributes.set(pages, false);
            }
        }
        change()
    }

    /// Takes the private pages of slots away whose file is closed.
    pub(crate) fn zap_closed_files(&self) {
        let mut map = self.write();
        map.sequence += 1;
        self.flush();
        let slots: Vec<Arc<Slot>> = map.slots.iter().map(Arc::clone).collect();
        for slot in slots.iter().filter(|slot| slot.file.as_ref().is_some_and(|file| file.file.strong_count() == 0)) {
            // Shared pages of the slot fault in again.
            self.zap(&mut map, slot.range());
        }
    }

    /// The program is about to change its mappings in this range (kernel: the MMU notifier). Nobody uses the
    /// old ones until `change` has returned.
    pub(crate) fn host_range_changes(&self, range: Range<u64>) -> Option<RwLockWriteGuard<'_, Map>> {
        let overlaps = |slot: &Slot| {
            slot.host_address < range.end && range.start - slot.host_address.min(range.start) < slot.pages << PAGE_SHIFT
        };
        // With this defect mappings are in use that no slot tells of.
        let untold = self.options.has(Defect::SlotDeleteKeepsMapping);
        if !untold && !self.read().slots.iter().any(|slot| overlaps(slot)) {
            return None;
        }
        let mut map = self.write();
        map.sequence += 1;
        self.flush();
        if untold {
            self.zap_all(&mut map);
        }
        let slots: Vec<Arc<Slot>> = map.slots.iter().filter(|slot| overlaps(slot)).map(Arc::clone).collect();
        for slot in slots {
            let start = range.start.saturating_sub(slot.host_address) >> PAGE_SHIFT;
            let end = (range.end - slot.host_address).div_ceil(PAGE_SIZE).min(slot.pages);
            self.zap(&mut map, slot.first + start..slot.first + end);
        }
        Some(map)
    }

    /// The bitmap of a slot, for `KVM_GET_DIRTY_LOG`; emptied unless the program clears it itself.
    ///
    /// # Errors
    /// ENOENT if the slot is not there or not logged.
    pub(crate) fn dirty_log(&self, id: u32, cleared_by_hand: bool) -> Result<Vec<u64>, Errno> {
        let _changes = self.changes();
        let (log, range) = self.logged_slot(id)?;
        if cleared_by_hand {
            return Ok(log.read());
        }
        let mut map = self.write();
        if self.options.has(Defect::DirtyLogMissesWrites) {
            return Ok(log.take());
        }
        self.flush();
        let bitmap = log.take();
        map.sequence += 1;
        self.protect(&mut map, range, 0, &bitmap);
        Ok(bitmap)
    }

    /// Clears bits of a slot's bitmap, for `KVM_CLEAR_DIRTY_LOG`. `mask` reads the program's bits, given how
    /// many pages they are for.
    ///
    /// # Errors
    /// As the ioctl, after its checks of the slot number.
    pub(crate) fn clear_dirty_log(
        &self,
        id: u32,
        first: u64,
        pages: u64,
        mask: impl FnOnce() -> Result<Vec<u64>, Errno>,
    ) -> Result<(), Errno> {
        let _changes = self.changes();
        let (log, range) = self.logged_slot(id)?;
        let rest = log.pages().checked_sub(first).ok_or(Errno::EINVAL)?;
        if pages > rest || pages < rest && !pages.is_multiple_of(64) {
            return Err(Errno::EINVAL);
        }
        let mask = mask()?;
        let mut map = self.write();
        self.flush();
        map.sequence += 1;
        log.clear(first, &mask);
        self.protect(&mut map, range, first, &mask);
        Ok(())
    }

    fn logged_slot(&self, id: u32) -> Result<(Arc<DirtyLog>, Range<u64>), Errno> {
        let map = self.read();
        let slot = map.slots.get(id).ok_or(Errno::ENOENT)?;
        let log = slot.dirty.as_ref().ok_or(Errno::ENOENT)?;
        Ok((Arc::clone(log), slot.range()))
    }

    /// Protects the pages of set bits against writing; the next write faults and is logged.
    fn protect(&self, map: &mut Map, range: Range<u64>, first: u64, bits: &[u64]) {
        for (gfn, entry) in &mut map.entries {
            let Spte::Present { writable, .. } = entry else { continue };
            let Some(bit) = gfn.checked_sub(range.start + first).filter(|_| *gfn < range.end) else { continue };
            if bits.get((bit / 64) as usize).is_some_and(|word| word & 1 << (bit % 64) != 0) {
                *writable = false;
            }
        }
    }

    /// KVM's own access to guest memory: to the program's memory, whatever the attribute says (kernel:
    /// `kvm_read_guest`).
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn read_guest<T: Plain>(&self, gpa: u64) -> Result<T, Errno> {
        user::read(self.own_access(gpa, size_of::<T>(), false)?)
    }

    /// Likewise a write, which is logged.
    ///
    /// # Errors
    /// EFAULT.
    pub(crate) fn write_guest<T: Plain>(&self, gpa: u64, value: &T) -> Result<(), Errno> {
        user::write(self.own_access(gpa, size_of::<T>(), true)?, value)
    }

    /// A page as KVM's emulator finds it: in the program's memory, whatever the attribute says (kernel:
    /// `emulator_read_write_onepage`). What cannot be had there is MMIO. Writes are logged.
    pub(crate) fn emulator_page(&self, gfn: u64, write: bool) -> Resolved {
        loop {
            let map = self.read();
            let Some(slot) = map.slots.at(gfn).map(Arc::clone) else { return Resolved::Mmio };
            let sequence = map.sequence;
            drop(map);
            if write && slot.flags & READONLY != 0 || self.populate(&slot, gfn, write).is_err() {
                return Resolved::Mmio;
            }
            let map = self.read();
            if map.sequence == sequence {
                if let (true, Some(log)) = (write, &slot.dirty) {
                    log.mark(gfn - slot.first);
                }
                return Resolved::Page(slot.host_address(gfn) as *mut u8, write);
            }
        }
    }

    fn own_access(&self, gpa: u64, bytes: usize, write: bool) -> Result<u64, Errno> {
        let map = self.read();
        let (gfn, offset) = (gpa >> PAGE_SHIFT, gpa % PAGE_SIZE);
        let slot = map.slots.at(gfn).ok_or(Errno::EFAULT)?;
        if offset + bytes as u64 > PAGE_SIZE || write && slot.flags & READONLY != 0 {
            return Err(Errno::EFAULT);
        }
        if let (true, Some(log)) = (write, &slot.dirty) {
            log.mark(gfn - slot.first);
        }
        Ok(slot.host_address(gfn) + offset)
    }

    /// Makes a page of the program present while no lock is held: it may take as long as it likes. Returns
    /// whether the page may be written as it is.
    ///
    /// A borrowed page that is written is replaced, which changes the program's mappings as if the program had
    /// done it: the map's sequence moves on, and the fault that asked for it starts again.
    ///
    /// # Errors
    /// EFAULT, EHWPOISON.
    pub(crate) fn populate(&self, slot: &Slot, gfn: u64, write: bool) -> Result<bool, Errno> {
        let address = slot.host_address(gfn);
        let replaces = write && program_page(address) == ProgramPage::Borrowed;
        populate(address, write)?;
        if replaces {
            drop(self.host_range_changes(address..address + PAGE_SIZE));
        }
        Ok(write || program_page(address) == ProgramPage::Own && populate(address, true).is_ok())
    }
}

/// Gives the file range of a deleted slot back.
fn unbind(slot: &Slot) {
    if let Some(file) = slot.file.as_ref().and_then(|binding| binding.file.upgrade()) {
        file.unbind(slot.id);
    }
}
