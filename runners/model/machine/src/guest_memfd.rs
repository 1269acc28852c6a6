//! guest_memfd files: private memory, and shared memory of VMs without private memory.
//!
//! The descriptor that the program holds is a memfd, so that mappings and their SIGBUS beyond the end are the
//! kernel's own. What differs from a memfd is here. Source: `virt/kvm/guest_memfd.c`.
#![expect(unsafe_code, reason = "mmap on behalf of the program")]

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};

use crate::defect::Defect;
use crate::descriptors::new_memfd;
use crate::host_memory::{PAGE_SHIFT, PAGE_SIZE};
use crate::real;
use crate::vm::Vm;

/// The file can be mapped.
pub(crate) const FLAG_MMAP: u64 = 1;
/// Its pages are shared with user space from the start.
pub(crate) const FLAG_INIT_SHARED: u64 = 2;

/// A guest_memfd file.
pub(crate) struct GuestMemfd {
    vm: Arc<Vm>,
    size: u64,
    flags: u64,
    /// Ranges of pages that slots have bound: first page to (end, slot).
    bindings: Mutex<BTreeMap<u64, (u64, u32)>>,
}

impl GuestMemfd {
    /// A file of `size` bytes and its descriptor.
    ///
    /// # Errors
    /// As `KVM_CREATE_GUEST_MEMFD`.
    pub(crate) fn create(vm: &Arc<Vm>, size: u64, flags: u64) -> Result<(RawFd, Arc<Self>), Errno> {
        let (any_flags, any_size) =
            (vm.options.has(Defect::FileFlagsUnchecked), vm.options.has(Defect::FileSizeUnchecked));
        if flags & !vm.guest_memfd_flags() != 0 && !any_flags
            || size > i64::MAX as u64
            || (size == 0 || !size.is_multiple_of(PAGE_SIZE)) && !any_size
        {
            return Err(Errno::EINVAL);
        }
        let size = size.max(1).next_multiple_of(PAGE_SIZE);
        let fd = new_memfd(c"[kvm-gmem]", size, 0)?;
        Ok((fd, Arc::new(Self { vm: Arc::clone(vm), size, flags, bindings: Mutex::default() })))
    }

    /// The VM that it belongs to.
    pub(crate) fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// All faults of slots that bind it are served from it, shared ones too.
    pub(crate) fn serves_all_faults(&self) -> bool {
        self.flags & FLAG_MMAP != 0
    }

    fn bindings(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, u32)>> {
        self.bindings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds pages to a slot.
    ///
    /// # Errors
    /// EEXIST if one of them is bound.
    pub(crate) fn bind(&self, first: u64, pages: u64, slot: u32) -> Result<(), Errno> {
        let mut bindings = self.bindings();
        let end = first + pages;
        let taken = bindings.range(..end).next_back().is_some_and(|(_, &(other_end, _))| other_end > first);
        if taken && !self.vm.options.has(Defect::DoubleBindAccepted) {
            return Err(Errno::EEXIST);
        }
        bindings.insert(first, (end, slot));
        Ok(())
    }

    /// Unbinds a slot.
    pub(crate) fn unbind(&self, slot: u32) {
        self.bindings().retain(|_, (_, bound)| *bound != slot);
    }

    /// `mmap(2)` of the file.
    ///
    /// # Errors
    /// ENODEV without the flag, EINVAL for a private mapping, and what mmap itself says.
    pub(crate) fn map(
        &self,
        fd: RawFd,
        (at, len): (*mut c_void, usize),
        protection: c_int,
        flags: c_int,
        offset: i64,
    ) -> Result<*mut c_void, Errno> {
        let has = |defect| self.vm.options.has(defect);
        if self.flags & FLAG_MMAP == 0 && !has(Defect::FileMapsWithoutFlag) {
            return Err(Errno::ENODEV);
        }
        let is_shared = matches!(flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE);
        if !is_shared && !has(Defect::FileCopyMapped) {
            return Err(Errno::EINVAL);
        }
        let touchable = self.flags & FLAG_INIT_SHARED != 0 || has(Defect::MmapPrivateTouchable);
        // Of an empty file every page is beyond the end: whoever touches one gets SIGBUS.
        let empty = if touchable { None } else { Some(new_memfd(c"[kvm-gmem]", 0, libc::MFD_CLOEXEC)?) };
        // SAFETY: the program's own request, and its own addresses.
        let mapped = unsafe { real::mmap(at, len, protection, flags, empty.unwrap_or(fd), offset) };
        let errno = Errno::last();
        if let Some(empty) = empty {
            // SAFETY: made above, and known to nobody else.
            unsafe { real::close(empty) };
        }
        if mapped == libc::MAP_FAILED { Err(errno) } else { Ok(mapped) }
    }

    /// `fallocate(2)` on the file.
    ///
    /// # Errors
    /// EOPNOTSUPP for modes that the file does not have, EINVAL for unaligned ranges and those beyond the
    /// end, and what the allocation itself says.
    pub(crate) fn fallocate(self: &Arc<Self>, fd: RawFd, mode: c_int, offset: i64, len: i64) -> Result<(), Errno> {
        // The file system's own checks come first (kernel: vfs_fallocate).
        if offset < 0 || len <= 0 {
            return Err(Errno::EINVAL);
        }
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0
            || mode & !(libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE) != 0
        {
            return Err(Errno::EOPNOTSUPP);
        }
        let Some(end) = offset.checked_add(len) else { return Err(Errno::EFBIG) };
        let (offset, end) = (offset as u64, end as u64);
        let is_hole = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        if is_hole && self.vm.options.has(Defect::HoleUnalignedAccepted) {
            return self.punch(fd, offset & !(PAGE_SIZE - 1), end.next_multiple_of(PAGE_SIZE));
        }
        if !offset.is_multiple_of(PAGE_SIZE) || !end.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if is_hole {
            return self.punch(fd, offset, end);
        }
        if end > self.size {
            return Err(Errno::EINVAL);
        }
        if self.vm.options.has(Defect::AllocationZeroes) {
            self.punch(fd, offset, end)?;
        }
        allocate_until_signalled(fd, offset, end)
    }

    /// Frees pages: whoever maps them loses them first.
    fn punch(self: &Arc<Self>, fd: RawFd, offset: u64, mut end: u64) -> Result<(), Errno> {
        if self.vm.options.has(Defect::HoleOnePageTooMany) {
            end += PAGE_SIZE;
        }
        let end = end.min(self.size);
        if offset >= end {
            return Ok(());
        }
        let pages = offset >> PAGE_SHIFT..end >> PAGE_SHIFT;
        self.vm.memory.invalidate_file(&Arc::downgrade(self), pages, || {
            if self.vm.options.has(Defect::HoleNotZeroed) {
                return Ok(());
            }
            allocate(fd, libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE, offset, end)
        })
    }
}

/// Allocates pages until a signal waits for the thread, as `kvm_gmem_allocate` does. The file below would go on
/// (mm/shmem.c asks for fatal signals only), so it is asked piece by piece, with all signals held back.
fn allocate_until_signalled(fd: RawFd, offset: u64, end: u64) -> Result<(), Errno> {
    const PIECE: u64 = 1 << 20;
    let blocked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let allocated = (offset..end).step_by(PIECE as usize).try_for_each(|start| match is_signalled(&blocked) {
        true => Err(Errno::EINTR),
        false => allocate(fd, libc::FALLOC_FL_KEEP_SIZE, start, end.min(start + PIECE)),
    });
    blocked.thread_set_mask()?;
    allocated
}

/// Whether a signal is pending that `blocked` would let through.
fn is_signalled(blocked: &SigSet) -> bool {
    let mut pending = *SigSet::empty().as_ref();
    // SAFETY: fills in the set.
    unsafe { libc::sigpending(&raw mut pending) };
    // SAFETY: both are sets, and the numbers are those of signals. nix has no names for real-time signals.
    (1..=libc::SIGRTMAX()).any(|signal| unsafe {
        libc::sigismember(&raw const pending, signal) == 1 && libc::sigismember(blocked.as_ref(), signal) != 1
    })
}

fn allocate(fd: RawFd, mode: c_int, offset: u64, end: u64) -> Result<(), Errno> {
    // SAFETY: changes the file of the model behind `fd`, whose mappings are only used through raw pointers.
    Errno::result(unsafe { real::fallocate(fd.as_raw_fd(), mode, offset as i64, (end - offset) as i64) }).map(drop)
}

impl Drop for GuestMemfd {
    /// The last descriptor is closed: slots that bind it lose their private pages.
    fn drop(&mut self) {
        if !self.vm.is_foreign() && !self.vm.options.has(Defect::FileCloseKeepsMapping) {
            self.vm.memory.zap_closed_files();
        }
    }
}

/// A slot's hold on a file: not enough to keep it open.
pub(crate) type WeakFile = Weak<GuestMemfd>;
