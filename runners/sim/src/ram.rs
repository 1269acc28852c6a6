//! The memory of the machine. It is the process's own, private and unreserved: what a guest never touches costs
//! nothing, and what it only reads is shared with whoever maps the same file.
//!
//! From [`LOW_END`] to 4 GiB there are devices; memory beyond goes on at 4 GiB.
#![expect(unsafe_code, reason = "guest memory is mapped, and reached by pointers while a guest runs")]

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use privet_cpu::{CodePages, HostPage, PAGE_SIZE};

use crate::error::SimError;
use crate::page_set::PageSet;

/// Memory below 4 GiB ends here.
pub(crate) const LOW_END: u64 = 0xc000_0000;
const HIGH_START: u64 = 1 << 32;

/// The window of a VGA's memory, behind which there is neither a VGA nor memory.
const VGA: std::ops::Range<u64> = 0xa_0000..0xc_0000;

const PROTECTION: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
const FLAGS: MapFlags = MapFlags::MAP_PRIVATE.union(MapFlags::MAP_NORESERVE);

/// A machine that is put back keeps so many pages of its own for what it writes next time, 128 MiB; one that has written
/// more gives all of them back.
const KEPT: u32 = 1 << 15;

/// The memory.
#[derive(Debug)]
pub(crate) struct Ram {
    start: NonNull<u8>,
    bytes: u64,
    /// The pages that may have been something else than zero when this was mapped.
    origin: PageSet,
    /// Those that may have been written since it was as it is in its file.
    written: PageSet,
    /// Those of which the process may have a copy of its own.
    own: PageSet,
    /// What the processors have decoded: writes are told there.
    code: Arc<CodePages>,
}

impl Ram {
    /// Zeroed memory of so many bytes, a multiple of the page size.
    ///
    /// # Errors
    /// If the address space has no room for it.
    pub(crate) fn new(bytes: u64) -> Result<Ram, SimError> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
        let map = |length| unsafe { mmap_anonymous(None, length, PROTECTION, FLAGS) };
        Ram::mapped(bytes, PageSet::new(bytes / PAGE_SIZE), map)
    }

    /// Memory that begins as the first bytes of a file, of which only these pages are something else than zero. What is
    /// written does not reach the file, which must not become shorter.
    ///
    /// # Errors
    /// If the address space has no room for it.
    pub(crate) fn map(file: &File, bytes: u64, origin: PageSet) -> Result<Ram, SimError> {
        // SAFETY: as in `new`.
        let map = |length| unsafe { mmap(None, length, PROTECTION, FLAGS, file, 0) };
        Ram::mapped(bytes, origin, map)
    }

    /// Becomes again what the first bytes of a file are, the one that it was mapped from. Code that is there as it was
    /// stays decoded.
    ///
    /// # Errors
    /// If the file cannot be read or mapped; what memory there is then nobody knows.
    pub(crate) fn put_back(&mut self, file: &File) -> Result<(), SimError> {
        let failed = |source| SimError::Io { what: "put the machine's memory back".into(), source };
        self.own.add(&self.written);
        let gives_back = self.own.len() > KEPT;
        for page in std::mem::replace(&mut self.written, PageSet::new(self.bytes / PAGE_SIZE)).iter() {
            let offset = page * PAGE_SIZE;
            let mut before = [0; PAGE_SIZE as usize];
            if self.origin.has(page) {
                file.read_exact_at(&mut before, offset).map_err(failed)?;
            }
            let at = self.start.as_ptr().wrapping_add(offset as usize);
            if self.code.is_code(at) && self.copy(offset as usize) != before {
                self.code.wrote(at, PAGE_SIZE as usize);
            }
            if !gives_back {
                // SAFETY: the page is in the mapping, which is writable, and no guest runs meanwhile; `before` is no
                // guest memory.
                unsafe { std::ptr::copy_nonoverlapping(before.as_ptr(), at, before.len()) };
            }
        }
        if gives_back {
            let (at, length) = (self.start.addr(), NonZeroUsize::new(self.bytes as usize).expect("it has memory"));
            // SAFETY: this replaces the mapping that `mapped` made, all of it and nothing else, by one with the same
            // protection. No reference to guest memory is ever made, and no guest runs meanwhile.
            unsafe { mmap(Some(at), length, PROTECTION, FLAGS | MapFlags::MAP_FIXED, file, 0) }
                .map_err(|errno| failed(errno.into()))?;
            self.own = PageSet::new(self.bytes / PAGE_SIZE);
        }
        Ok(())
    }

    /// What is in the page at this offset in the mapping.
    fn copy(&self, offset: usize) -> [u8; PAGE_SIZE as usize] {
        assert!(offset as u64 <= self.bytes - PAGE_SIZE, "a page of this memory");
        let mut bytes = [0; PAGE_SIZE as usize];
        // SAFETY: the page is in the mapping, no guest runs meanwhile, and `bytes` is no guest memory.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    fn mapped(
        bytes: u64,
        origin: PageSet,
        map: impl FnOnce(NonZeroUsize) -> nix::Result<NonNull<c_void>>,
    ) -> Result<Ram, SimError> {
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(SimError::Description("a machine needs memory".into()))?;
        let start = map(length).map_err(|errno| SimError::Io {
            what: format!("map {bytes} bytes as the machine's memory"),
            source: errno.into(),
        })?;
        let none = PageSet::new(bytes / PAGE_SIZE);
        Ok(Ram { start: start.cast(), bytes, origin, written: none.clone(), own: none, code: Arc::default() })
    }

    /// The code that processors find here.
    pub(crate) fn code(&self) -> &Arc<CodePages> {
        &self.code
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The pages that may be something else than zero.
    pub(crate) fn touched(&self) -> PageSet {
        let mut touched = self.origin.clone();
        touched.add(&self.written);
        touched
    }

    /// The pages that are not zero, by their offset in the mapping.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (u64, [u8; PAGE_SIZE as usize])> {
        let touched: Vec<u64> = self.touched().iter().collect();
        touched.into_iter().filter_map(|page| {
            let offset = page * PAGE_SIZE;
            let bytes = self.copy(offset as usize);
            bytes.iter().any(|byte| *byte != 0).then_some((offset, bytes))
        })
    }

    /// The address behind the last byte of memory.
    pub(crate) fn top(&self) -> u64 {
        self.ranges().map(|range| range.end).max().unwrap_or(0)
    }

    /// The ranges of system-physical addresses that are memory, the VGA's window included.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = std::ops::Range<u64>> {
        let low = 0..self.bytes.min(LOW_END);
        let high = HIGH_START..HIGH_START + self.bytes.saturating_sub(LOW_END);
        [low, high].into_iter().filter(|range| !range.is_empty())
    }

    /// The offset of a page in the mapping; `None` if there is no memory.
    fn offset(&self, page: u64) -> Option<u64> {
        let offset = match page {
            _ if VGA.contains(&page) => return None,
            ..LOW_END => page,
            LOW_END..HIGH_START => return None,
            HIGH_START.. => page - HIGH_START + LOW_END,
        };
        (offset < self.bytes).then_some(offset)
    }

    /// The page at a system-physical address, which is page aligned, for reading; `None` if there is no memory.
    pub(crate) fn page(&self, page: u64) -> Option<HostPage> {
        self.host_page(self.offset(page)?, false)
    }

    /// The same for writing: it counts as written.
    pub(crate) fn page_to_write(&mut self, page: u64) -> Option<HostPage> {
        let offset = self.offset(page)?;
        self.written.insert(offset / PAGE_SIZE);
        self.host_page(offset, true)
    }

    fn host_page(&self, offset: u64, writable: bool) -> Option<HostPage> {
        // SAFETY: the offset is in the mapping, and so is the rest of its page, both being page aligned. The mapping
        // is writable and stays until `self` is dropped, which the machine does after its CPUs. No reference to guest
        // memory is ever made: this type copies by pointer.
        Some(unsafe { HostPage::new(self.start.as_ptr().add(offset as usize), writable) })
    }

    /// Copies out of memory; where there is none, ones.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (page, offset, length) = piece(address.wrapping_add(done as u64), bytes.len() - done);
            let target = &mut bytes[done..done + length];
            match self.page(page) {
                // SAFETY: the page is 4096 readable bytes and the piece does not leave it; `target` is no guest memory.
                Some(source) => unsafe {
                    std::ptr::copy_nonoverlapping(source.start().add(offset), target.as_mut_ptr(), length);
                },
                None => target.fill(0xff),
            }
            done += length;
        }
    }

    /// Copies into memory; where there is none, nothing happens.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (page, offset, length) = piece(address.wrapping_add(done as u64), bytes.len() - done);
            if let Some(target) = self.page_to_write(page) {
                // SAFETY: the page is 4096 writable bytes and the piece does not leave it; `bytes` is no guest memory.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes[done..].as_ptr(), target.start().add(offset), length);
                }
                self.code.wrote(target.start().wrapping_add(offset), length);
            }
            done += length;
        }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: this mapping was made by `mapped`, and nobody keeps a page of it beyond the machine. Nothing can be
        // done about an error.
        let _ = unsafe { munmap(self.start.cast(), self.bytes as usize) };
    }
}

/// The part of an access that is in its first page: page, offset and length.
fn piece(address: u64, left: usize) -> (u64, usize, usize) {
    let offset = (address % PAGE_SIZE) as usize;
    (address - offset as u64, offset, left.min(PAGE_SIZE as usize - offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_cross_pages_and_holes_read_as_ones() {
        let mut ram = Ram::new(2 << 20).unwrap();
        ram.write(0xffe, &[1, 2, 3, 4]);
        let mut bytes = [0; 6];
        ram.read(0xffd, &mut bytes);
        assert_eq!(bytes, [0, 1, 2, 3, 4, 0]);
        ram.write((2 << 20) - 1, &[5, 6]);
        ram.read((2 << 20) - 1, &mut bytes[..2]);
        assert_eq!(bytes[..2], [5, 0xff]);
        assert_eq!(ram.page(VGA.start), None);
    }

    #[test]
    fn memory_beyond_the_devices_goes_on_at_4_gib() {
        let ram = Ram::new(LOW_END + PAGE_SIZE).unwrap();
        assert_eq!(ram.ranges().collect::<Vec<_>>(), [0..LOW_END, HIGH_START..HIGH_START + PAGE_SIZE]);
        assert_eq!(ram.page(LOW_END), None);
        assert!(ram.page(HIGH_START).is_some());
        assert_eq!(ram.page(HIGH_START + PAGE_SIZE), None);
    }
}
