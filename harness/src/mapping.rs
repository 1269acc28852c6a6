//! Host memory that can back a guest: mapped on creation, unmapped on drop, accessed with checked offsets.
//!
//! A guest may change the memory at any time, and a page may not be accessible at all (the far end of a
//! guest_memfd, PROT_NONE). So nothing here hands out `&[u8]`: bytes are copied in and out by
//! [`fault_catch`](crate::fault_catch), and a fault is an error.
#![expect(unsafe_code, reason = "mmap and accesses through raw pointers")]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, mprotect, munmap};
use nix::unistd::ftruncate;

use crate::cpu_flags::kernel_lists;
use crate::fault_catch::{self, Fault, Sought};
use crate::outcome::{Outcome, Stop};
use crate::units::PAGE_SIZE;

/// How a [`Mapping`] is made; [`MapOptions::new`] is what an ordinary memslot wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapOptions {
    shared: bool,
    populate: bool,
    huge_pages: Option<bool>,
    alignment: u64,
}

impl MapOptions {
    /// Private to this process, populated on demand, transparent huge pages as the system has them.
    pub fn new() -> Self {
        Self::default()
    }

    /// `MAP_SHARED` instead of `MAP_PRIVATE`.
    pub fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    /// `MAP_POPULATE`.
    pub fn populate(self) -> Self {
        Self { populate: true, ..self }
    }

    /// Advises for or against transparent huge pages.
    pub fn huge_pages(self, wanted: bool) -> Self {
        Self { huge_pages: Some(wanted), ..self }
    }

    /// The address becomes a multiple of `bytes`, a power of two: huge pages need addresses and GPAs that
    /// agree below the huge page's size. Anonymous memory only.
    pub fn aligned(self, bytes: u64) -> Self {
        Self { alignment: bytes, ..self }
    }

    fn flags(self) -> MapFlags {
        let mut flags = if self.shared { MapFlags::MAP_SHARED } else { MapFlags::MAP_PRIVATE };
        flags.set(MapFlags::MAP_POPULATE, self.populate);
        flags
    }
}

/// What can be done with memory of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Nothing.
    None,
    /// It can be read.
    Reading,
    /// It can be read and written.
    All,
}

/// Why bytes of a mapping were not accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AccessError {
    /// The CPU's access ended in a signal.
    #[error("host access to byte {offset:#x} of the mapping ended in {signal}", signal = .fault.signal)]
    Fault {
        /// The byte of the mapping that faulted.
        offset: u64,
        /// The signal and the host address.
        fault: Fault,
    },
    /// The bytes asked for are not all in the mapping, or a word is not aligned.
    #[error("bytes {offset:#x} + {bytes:#x} are not within, or not aligned in, a mapping of {len:#x} bytes")]
    Range {
        /// The first byte asked for.
        offset: u64,
        /// How many.
        bytes: u64,
        /// The length of the mapping.
        len: u64,
    },
}

impl AccessError {
    /// The signal, if it was one.
    pub fn fault(self) -> Option<Fault> {
        match self {
            AccessError::Fault { fault, .. } => Some(fault),
            AccessError::Range { .. } => None,
        }
    }
}

impl From<AccessError> for Stop {
    fn from(error: AccessError) -> Stop {
        Stop::Error(error.to_string())
    }
}

/// Mapped host memory.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    len: usize,
    /// What to unmap: more than the above where an alignment was asked for.
    reserved: (NonNull<u8>, usize),
}

// SAFETY: the memory belongs to the mapping, not to a thread. It is accessed by assembly, which tears at
// worst, and through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Where the addresses that a program can have end: a page below the end of their half of the address space (kernel:
/// arch/x86/include/asm/page_64.h: `task_size_max`).
pub fn end_of_addresses() -> u64 {
    let bits = if kernel_lists("la57") { 56 } else { 47 };
    (1 << bits) - PAGE_SIZE
}

impl Mapping {
    /// `bytes` (whole pages) of anonymous memory, private and zero.
    ///
    /// # Errors
    /// `Stop::Error` with the error number of mmap(2).
    pub fn anonymous(bytes: u64) -> Outcome<Mapping> {
        Self::anonymous_with(bytes, MapOptions::new())
    }

    /// Anonymous memory with options.
    ///
    /// # Errors
    /// `Stop::Error` with the error number of mmap(2).
    pub fn anonymous_with(bytes: u64, options: MapOptions) -> Outcome<Mapping> {
        let spare = if options.alignment > PAGE_SIZE { options.alignment } else { 0 };
        let mapping = Self::map(
            bytes,
            spare,
            |len, flags| {
                // SAFETY: without MAP_FIXED a mapping lands where nothing is.
                unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
            },
            options,
        );
        mapping.map_err(|errno| stop("anonymous memory", bytes, errno))
    }

    /// `bytes` of a new memfd, shared.
    ///
    /// # Errors
    /// `Stop::Error` with the error number of the call that failed.
    pub fn memfd(bytes: u64) -> Outcome<Mapping> {
        let file = memfd_create("privet", MFdFlags::MFD_CLOEXEC)
            .and_then(|file| ftruncate(&file, bytes as i64).map(|()| file));
        file.and_then(|file| Self::of_file(file.as_fd(), 0, bytes, MapOptions::new().shared()))
            .map_err(|errno| stop("a memfd", bytes, errno))
    }

    /// `bytes` of a file from `offset` on, read-write. `MAP_PRIVATE` without [`MapOptions::shared`].
    ///
    /// # Errors
    /// The error number of mmap(2).
    pub fn of_file(file: BorrowedFd<'_>, offset: u64, bytes: u64, options: MapOptions) -> Result<Mapping, Errno> {
        Self::map(
            bytes,
            0,
            |len, flags| {
                // SAFETY: without MAP_FIXED a mapping lands where nothing is. That others may write to the
                // file is why no reference to its bytes is ever made.
                unsafe { mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, file, offset as i64) }
            },
            options,
        )
    }

    fn map(
        bytes: u64,
        spare: u64,
        call: impl FnOnce(NonZeroUsize, MapFlags) -> Result<NonNull<std::ffi::c_void>, Errno>,
        options: MapOptions,
    ) -> Result<Mapping, Errno> {
        let total = bytes.checked_add(spare).ok_or(Errno::ENOMEM)? as usize;
        let base = call(NonZeroUsize::new(total).ok_or(Errno::EINVAL)?, options.flags())?.cast::<u8>();
        let skip = match spare as usize {
            0 => 0,
            alignment => base.addr().get().next_multiple_of(alignment) - base.addr().get(),
        };
        // SAFETY: `skip` is less than the alignment, by which the mapping is longer than `bytes`.
        let address = unsafe { base.add(skip) };
        let mapping = Mapping { address, len: bytes as usize, reserved: (base, total) };
        if let Some(wanted) = options.huge_pages {
            mapping.advise(if wanted { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE })?;
        }
        Ok(mapping)
    }

    /// The host virtual address, as memslots want it.
    pub fn addr(&self) -> u64 {
        self.address.addr().get() as u64
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never: a mapping of nothing cannot be made.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `bytes` bytes from host address `addr` on are all in this mapping.
    pub fn contains(&self, addr: u64, bytes: u64) -> bool {
        addr.checked_sub(self.addr()).is_some_and(|offset| self.at(offset, bytes).is_ok())
    }

    /// Copies bytes from `offset` on out of the mapping. Aligned words of 8 bytes are read in order.
    ///
    /// # Errors
    /// A range that is not in the mapping, or a signal.
    pub fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), AccessError> {
        let from = self.at(offset, buffer.len() as u64)?;
        // SAFETY: `from` is in the mapping, which holds no Rust objects; `buffer` is ours.
        self.caught(unsafe { fault_catch::copy(buffer.as_mut_ptr(), from, buffer.len()) })
    }

    /// Copies bytes into the mapping from `offset` on.
    ///
    /// # Errors
    /// A range that is not in the mapping, or a signal.
    pub fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), AccessError> {
        let to = self.at(offset, bytes.len() as u64)?;
        // SAFETY: `to` is in the mapping, which holds no Rust objects; `bytes` is only read.
        self.caught(unsafe { fault_catch::copy(to, bytes.as_ptr(), bytes.len()) })
    }

    /// As [`try_read`](Self::try_read), where a fault is nothing that the row expects.
    ///
    /// # Errors
    /// `Stop::Error` with the offset and the signal.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        Ok(self.try_read(offset, buffer)?)
    }

    /// As [`try_write`](Self::try_write), where a fault is nothing that the row expects.
    ///
    /// # Errors
    /// `Stop::Error` with the offset and the signal.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Outcome {
        Ok(self.try_write(offset, bytes)?)
    }

    /// Reads the aligned word at `offset` in one access.
    ///
    /// # Errors
    /// `Stop::Error`: not aligned, not in the mapping, or a signal.
    pub fn read_u64(&self, offset: u64) -> Outcome<u64> {
        let mut word = 0;
        let from = self.word_at(offset)?;
        // SAFETY: `from` is in the mapping, which holds no Rust objects; `word` is ours.
        self.caught(unsafe { fault_catch::copy_word(&raw mut word, from) })?;
        Ok(word)
    }

    /// Writes the aligned word at `offset` in one access.
    ///
    /// # Errors
    /// `Stop::Error`: not aligned, not in the mapping, or a signal.
    pub fn write_u64(&self, offset: u64, word: u64) -> Outcome {
        let to = self.word_at(offset)?;
        // SAFETY: `to` is in the mapping, which holds no Rust objects; `word` is ours.
        Ok(self.caught(unsafe { fault_catch::copy_word(to, &raw const word) })?)
    }

    /// Sets `bytes` bytes from `offset` on to `byte`.
    ///
    /// # Errors
    /// `Stop::Error`: not in the mapping, or a signal.
    pub fn fill(&self, offset: u64, bytes: u64, byte: u8) -> Outcome {
        let to = self.at(offset, bytes)?;
        // SAFETY: `to` is in the mapping, which holds no Rust objects.
        Ok(self.caught(unsafe { fault_catch::fill(to, u64::from_ne_bytes([byte; 8]), bytes as usize) })?)
    }

    /// The first of `bytes` bytes from `offset` on that is not `byte`: its offset and its value.
    ///
    /// # Errors
    /// `Stop::Error`: not in the mapping, or a signal.
    pub fn first_other_than(&self, offset: u64, bytes: u64, byte: u8) -> Outcome<Option<(u64, u8)>> {
        self.at(offset, bytes)?;
        let (mut page, expected) = ([0; PAGE_SIZE as usize], [byte; PAGE_SIZE as usize]);
        for start in (offset..offset + bytes).step_by(page.len()) {
            let chunk = &mut page[..(PAGE_SIZE.min(offset + bytes - start)) as usize];
            self.read(start, chunk)?;
            // As a whole first: in a rig each instruction counts.
            if *chunk != expected[..chunk.len()]
                && let Some(index) = chunk.iter().position(|&found| found != byte)
            {
                return Ok(Some((start + index as u64, chunk[index])));
            }
        }
        Ok(None)
    }

    /// Sets each word of 8 bytes in `bytes` bytes from `offset` on to `word`.
    ///
    /// # Errors
    /// `Stop::Error`: not whole words, not in the mapping, or a signal.
    pub fn fill_words(&self, offset: u64, bytes: u64, word: u64) -> Outcome {
        let (to, words) = self.words_at(offset, bytes)?;
        // SAFETY: `to` is in the mapping, which holds no Rust objects.
        Ok(self.caught(unsafe { fault_catch::fill(to.cast(), word, words * 8) })?)
    }

    /// The first word of 8 bytes in `bytes` bytes from `offset` on that is not `word`: its offset and its value.
    ///
    /// # Errors
    /// As [`fill_words`](Self::fill_words).
    pub fn first_word_other_than(&self, offset: u64, bytes: u64, word: u64) -> Outcome<Option<(u64, u64)>> {
        let Some(at) = self.first_word(Sought::Other(word), offset, bytes)? else { return Ok(None) };
        Ok(Some((at, self.read_u64(at)?)))
    }

    /// The offset of the first word of 8 bytes in `bytes` bytes from `offset` on that is `word`.
    ///
    /// # Errors
    /// As [`fill_words`](Self::fill_words).
    pub fn first_word_equal_to(&self, offset: u64, bytes: u64, word: u64) -> Outcome<Option<u64>> {
        self.first_word(Sought::Equal(word), offset, bytes)
    }

    fn first_word(&self, sought: Sought, offset: u64, bytes: u64) -> Outcome<Option<u64>> {
        let (from, words) = self.words_at(offset, bytes)?;
        // SAFETY: `from` is in the mapping, which holds no Rust objects.
        let found = self.caught(unsafe { fault_catch::first(sought, from, words) })?;
        Ok(found.map(|index| offset + index as u64 * 8))
    }

    /// The page at `offset` as words, for a mailbox that a guest writes to meanwhile. Use it on memory that
    /// is accessible: a fault here ends the process.
    ///
    /// # Errors
    /// `Stop::Error`: not page-aligned or not in the mapping.
    pub fn words(&self, offset: u64) -> Outcome<&[AtomicU64; 512]> {
        let page = self.at(offset, PAGE_SIZE)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            Err(self.out_of_range(offset, PAGE_SIZE))?;
        }
        // SAFETY: a page in the mapping, which lives as long as the reference and starts page-aligned.
        // Everybody else writes to it from outside of the program or by assembly.
        Ok(unsafe { &*page.cast::<[AtomicU64; 512]>() })
    }

    /// Takes all access away (`PROT_NONE`) or gives it back.
    ///
    /// # Errors
    /// `Stop::Error` with the error number of mprotect(2).
    pub fn protect(&self, accessible: bool) -> Outcome {
        self.set_access(0, self.len(), if accessible { Access::All } else { Access::None })
    }

    /// Says what can be done with a part of it.
    ///
    /// # Errors
    /// `Stop::Error`: not in the mapping, or the error number of mprotect(2).
    pub fn set_access(&self, offset: u64, bytes: u64, access: Access) -> Outcome {
        let start = self.at(offset, bytes)?;
        let start = NonNull::new(start).unwrap_or(self.address);
        let protection = match access {
            Access::None => ProtFlags::PROT_NONE,
            Access::Reading => ProtFlags::PROT_READ,
            Access::All => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: the range is ours; accesses of ours to it are caught.
        unsafe { mprotect(start.cast(), bytes as usize, protection) }
            .map_err(|errno| Stop::Error(format!("mprotect of {bytes:#x} bytes at offset {offset:#x}: {errno:?}")))
    }

    /// Makes KVM forget how guests map this range, without a change of content: the next access asks slot and
    /// attribute again. To change the protection calls KVM's MMU notifier (mm/mprotect.c: change_protection,
    /// virt/kvm/kvm_main.c: kvm_mmu_notifier_invalidate_range_start); guests that run meanwhile notice nothing.
    ///
    /// # Errors
    /// `Stop::Error`: not in the mapping, or the error number of mprotect(2).
    pub fn zap_guest_mappings(&self, offset: u64, bytes: u64) -> Outcome {
        let start = self.at(offset, bytes)?;
        let start = NonNull::new(start).unwrap_or(self.address);
        let accessible = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        for protection in [accessible | ProtFlags::PROT_EXEC, accessible] {
            // SAFETY: the range is ours, and everything that can access it still can.
            unsafe { mprotect(start.cast(), bytes as usize, protection) }.map_err(|errno| {
                Stop::Error(format!("mprotect of {bytes:#x} bytes at offset {offset:#x}: {errno:?}"))
            })?;
        }
        Ok(())
    }

    /// `MADV_DONTNEED`: private anonymous memory reads as zero afterwards.
    ///
    /// # Errors
    /// `Stop::Error`: not in the mapping, or the error number of madvise(2).
    pub fn discard(&self, offset: u64, bytes: u64) -> Outcome {
        let start = self.at(offset, bytes)?;
        let start = NonNull::new(start).unwrap_or(self.address);
        // SAFETY: the range is ours and holds no Rust objects.
        unsafe { madvise(start.cast(), bytes as usize, MmapAdvise::MADV_DONTNEED) }.map_err(|errno| {
            Stop::Error(format!("madvise(MADV_DONTNEED) of {bytes:#x} bytes at offset {offset:#x}: {errno:?}"))
        })
    }

    /// `MADV_COLLAPSE`: makes huge pages of it all.
    ///
    /// # Errors
    /// The error number of madvise(2).
    pub fn collapse(&self) -> Result<(), Errno> {
        // SAFETY: other pages with the same contents, on which nothing of ours depends.
        Errno::result(unsafe { libc::madvise(self.address.as_ptr().cast(), self.len, libc::MADV_COLLAPSE) }).map(drop)
    }

    fn advise(&self, advice: MmapAdvise) -> Result<(), Errno> {
        // SAFETY: advice about huge pages changes no contents.
        match unsafe { madvise(self.address.cast(), self.len, advice) } {
            // A kernel without transparent huge pages; the advice is about nothing there.
            Err(Errno::EINVAL) => Ok(()),
            other => other,
        }
    }

    fn at(&self, offset: u64, bytes: u64) -> Result<*mut u8, AccessError> {
        match offset.checked_add(bytes) {
            // SAFETY: `offset` is at most the length, so the pointer stays in the mapping or one past it.
            Some(end) if end <= self.len() => Ok(unsafe { self.address.add(offset as usize) }.as_ptr()),
            _ => Err(self.out_of_range(offset, bytes)),
        }
    }

    fn word_at(&self, offset: u64) -> Result<*mut u64, AccessError> {
        match self.at(offset, 8)?.cast::<u64>() {
            word if word.is_aligned() => Ok(word),
            _ => Err(self.out_of_range(offset, 8)),
        }
    }

    fn words_at(&self, offset: u64, bytes: u64) -> Result<(*mut u64, usize), AccessError> {
        match self.at(offset, bytes)?.cast::<u64>() {
            first if first.is_aligned() && bytes.is_multiple_of(8) => Ok((first, bytes as usize / 8)),
            _ => Err(self.out_of_range(offset, bytes)),
        }
    }

    fn out_of_range(&self, offset: u64, bytes: u64) -> AccessError {
        AccessError::Range { offset, bytes, len: self.len() }
    }

    fn caught<T>(&self, access: Result<T, Fault>) -> Result<T, AccessError> {
        access.map_err(|fault| AccessError::Fault { offset: (fault.address as u64).wrapping_sub(self.addr()), fault })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (base, len) = self.reserved;
        // SAFETY: the mapping is ours and nobody borrows it any more; slots of VMs hold an Arc of it.
        let _ = unsafe { munmap(base.cast(), len) };
    }
}

fn stop(what: &str, bytes: u64, errno: Errno) -> Stop {
    Stop::Error(format!("cannot map {bytes:#x} bytes of {what}: {errno:?}"))
}
