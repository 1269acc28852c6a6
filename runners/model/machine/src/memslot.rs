//! Memslots: which guest pages there are, and what is behind them.
//!
//! Source of the checks and their order: `virt/kvm/kvm_main.c:kvm_set_memory_region`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use crate::defect::Defect;
use crate::dirty_log::DirtyLog;
use crate::guest_memfd::{GuestMemfd, WeakFile};
use crate::host_memory::{FileView, PAGE_SHIFT, PAGE_SIZE};
use crate::options::Options;
use crate::user;
use crate::vm_type::VmType;

/// Writes are logged.
pub(crate) const LOG_DIRTY_PAGES: u32 = 1;
/// Writes are MMIO.
pub(crate) const READONLY: u32 = 2;
/// Private pages come from a guest_memfd.
pub(crate) const GUEST_MEMFD: u32 = 4;

/// Slots that a program may have in an address space; the last three of the 16-bit ids are KVM's own.
pub(crate) const USER_SLOTS: u32 = 32764;
/// Pages that a slot may have.
const PAGES_MAX: u64 = (1 << 31) - 1;

/// What `KVM_SET_USER_MEMORY_REGION2` asks for; the older ioctl leaves out the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) slot: u32,
    pub(crate) flags: u32,
    pub(crate) guest_address: u64,
    pub(crate) bytes: u64,
    pub(crate) host_address: u64,
    pub(crate) file_offset: u64,
}

/// A memslot.
#[derive(Clone)]
pub(crate) struct Slot {
    /// Id in the low half, address space in the high half.
    pub(crate) id: u32,
    pub(crate) first: u64,
    pub(crate) pages: u64,
    pub(crate) flags: u32,
    pub(crate) host_address: u64,
    pub(crate) file: Option<Binding>,
    pub(crate) dirty: Option<Arc<DirtyLog>>,
}

/// The range of a guest_memfd that a slot has bound.
#[derive(Clone)]
pub(crate) struct Binding {
    pub(crate) file: WeakFile,
    pub(crate) first: u64,
    pub(crate) view: Arc<FileView>,
    /// Shared accesses are served from the file too.
    pub(crate) serves_all_faults: bool,
}

impl Slot {
    /// The guest pages.
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first + self.pages
    }

    /// The address in the program of a page.
    pub(crate) fn host_address(&self, gfn: u64) -> u64 {
        self.host_address + ((gfn - self.first) << PAGE_SHIFT)
    }

    /// The address in the model's view of the file of a page.
    pub(crate) fn file_address(&self, binding: &Binding, gfn: u64) -> Option<*mut u8> {
        let offset = ((gfn - self.first) << PAGE_SHIFT) as usize;
        (offset < binding.view.len()).then(|| binding.view.start().wrapping_add(offset))
    }

    /// The guest pages that a range of the file's pages is behind.
    pub(crate) fn guest_pages_of(&self, binding: &Binding, file_pages: &Range<u64>) -> Range<u64> {
        let start = file_pages.start.max(binding.first).min(binding.first + self.pages);
        let end = file_pages.end.clamp(start, binding.first + self.pages);
        self.first + (start - binding.first)..self.first + (end - binding.first)
    }
}

/// What a request does to the slots.
pub(crate) enum Change {
    /// A new slot; its file, if it shall have one, is still to be bound.
    Create(Slot),
    /// The slot goes.
    Delete(Arc<Slot>),
    /// The slot gets another guest address.
    Move(Arc<Slot>, Slot),
    /// The slot gets other flags.
    Flags(Slot),
    /// It is so already.
    Nothing,
}

/// The slots of a VM.
#[derive(Default)]
pub(crate) struct Slots {
    by_id: BTreeMap<u32, Arc<Slot>>,
    /// By address space and first page.
    by_address: BTreeMap<(u32, u64), Arc<Slot>>,
}

impl Slots {
    /// The slot of this id.
    pub(crate) fn get(&self, id: u32) -> Option<&Arc<Slot>> {
        self.by_id.get(&id)
    }

    /// The slot that a page is in.
    pub(crate) fn at(&self, gfn: u64) -> Option<&Arc<Slot>> {
        let (_, slot) = self.by_address.range((0, 0)..=(0, gfn)).next_back()?;
        (gfn < slot.first + slot.pages).then_some(slot)
    }

    /// All slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Slot>> {
        self.by_id.values()
    }

    /// Puts a slot in, in place of the one of its id.
    pub(crate) fn insert(&mut self, slot: Slot) {
        self.remove(slot.id);
        let slot = Arc::new(slot);
        self.by_address.insert((slot.id >> 16, slot.first), Arc::clone(&slot));
        self.by_id.insert(slot.id, slot);
    }

    /// Takes a slot out.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Arc<Slot>> {
        let slot = self.by_id.remove(&id)?;
        self.by_address.remove(&(id >> 16, slot.first));
        Some(slot)
    }

    fn overlaps(&self, id: u32, range: &Range<u64>, options: &Options) -> bool {
        let space = id >> 16;
        let lax = u64::from(options.has(Defect::OverlapAccepted));
        let before = self.by_address.range((space, 0)..(space, range.start)).next_back();
        let within = self.by_address.range((space, range.start)..(space, range.end));
        before.into_iter().chain(within).any(|(_, slot)| slot.id != id && slot.first + slot.pages > range.start + lax)
    }

    /// What a request means, if it is allowed.
    ///
    /// # Errors
    /// EINVAL, EEXIST; the file is not looked at.
    pub(crate) fn plan(&self, request: &Request, kind: VmType, options: &Options) -> Result<Change, Errno> {
        check_flags(request.flags, kind, options)?;
        let lax = options.has(Defect::SlotUnalignedAccepted);
        let aligned = |value: u64| value.is_multiple_of(PAGE_SIZE) || lax;
        let &Request { guest_address, bytes, host_address, file_offset, .. } = request;
        if !aligned(bytes)
            || !aligned(guest_address)
            || !aligned(host_address)
            || !user::is_user_range(host_address, bytes) && !options.has(Defect::SlotHostAddressUnchecked)
            || request.flags & GUEST_MEMFD != 0 && (!aligned(file_offset) || file_offset.checked_add(bytes).is_none())
            || request.slot >> 16 >= kind.address_spaces() && !options.has(Defect::SlotIdUnchecked)
            || guest_address.checked_add(bytes).is_none()
            || bytes >> PAGE_SHIFT > PAGES_MAX
        {
            return Err(Errno::EINVAL);
        }
        let old = self.get(request.slot);
        if bytes == 0 {
            return match old {
                Some(slot) => Ok(Change::Delete(Arc::clone(slot))),
                None if options.has(Defect::SlotDeletedTwice) => Ok(Change::Nothing),
                None => Err(Errno::EINVAL),
            };
        }
        let new = Slot {
            id: request.slot,
            first: guest_address >> PAGE_SHIFT,
            pages: bytes >> PAGE_SHIFT,
            flags: request.flags,
            host_address: host_address & !(PAGE_SIZE - 1),
            file: None,
            dirty: None,
        };
        let Some(old) = old else {
            return if self.overlaps(new.id, &new.range(), options) {
                Err(Errno::EEXIST)
            } else {
                Ok(Change::Create(new))
            };
        };
        let mut fixed = READONLY | GUEST_MEMFD;
        if options.has(Defect::FileFlagCanBeCleared) {
            fixed &= !GUEST_MEMFD;
        }
        if request.flags & GUEST_MEMFD != 0
            || host_address != old.host_address
            || new.pages != old.pages
            || (request.flags ^ old.flags) & fixed != 0
        {
            return Err(Errno::EINVAL);
        }
        if new.first != old.first {
            if self.overlaps(new.id, &new.range(), options) {
                return Err(Errno::EEXIST);
            }
            return Ok(Change::Move(Arc::clone(old), Slot { dirty: old.dirty.clone(), ..new }));
        }
        Ok(if request.flags == old.flags {
            Change::Nothing
        } else {
            Change::Flags(Slot { dirty: old.dirty.clone(), ..new })
        })
    }
}

/// Kernel: `check_memory_region_flags`.
fn check_flags(flags: u32, kind: VmType, options: &Options) -> Result<(), Errno> {
    if options.has(Defect::SlotFlagsUnchecked) {
        return Ok(());
    }
    let mut valid = LOG_DIRTY_PAGES | GUEST_MEMFD;
    let with_file = flags & GUEST_MEMFD != 0;
    if with_file && !options.has(Defect::DirtyLogOfFileSlotAccepted) {
        valid &= !LOG_DIRTY_PAGES;
    }
    if !kind.has_protected_state() && (!with_file || options.has(Defect::ReadOnlyFileSlotAccepted)) {
        valid |= READONLY;
    }
    if flags & !valid == 0 { Ok(()) } else { Err(Errno::EINVAL) }
}

/// Whether a slot may have this part of a file (kernel: `kvm_gmem_prepare_memory_region`).
///
/// # Errors
/// EINVAL beyond its end.
pub(crate) fn check_file_range(file: &GuestMemfd, offset: u64, bytes: u64, options: &Options) -> Result<(), Errno> {
    let fits = if options.has(Defect::BindOffsetSigned) {
        (offset as i64).wrapping_add(bytes as i64) <= file.size() as i64
    } else {
        offset.checked_add(bytes).is_some_and(|end| end <= file.size())
    };
    if fits { Ok(()) } else { Err(Errno::EINVAL) }
}
