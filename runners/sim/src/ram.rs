//! The memory of the machine. It is the process's own, private and unreserved: what a guest never touches costs
//! nothing, and a fork of the process shares the rest until it writes.
//!
//! From [`LOW_END`] to 4 GiB there are devices; memory beyond goes on at 4 GiB.
#![expect(unsafe_code, reason = "guest memory is mapped, and reached by pointers while a guest runs")]

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use privet_cpu::{CodePages, HostPage, PAGE_SIZE};

use crate::error::SimError;

/// Memory below 4 GiB ends here.
pub(crate) const LOW_END: u64 = 0xc000_0000;
const HIGH_START: u64 = 1 << 32;

/// The window of a VGA's memory, behind which there is neither a VGA nor memory.
const VGA: std::ops::Range<u64> = 0xa_0000..0xc_0000;

const PROTECTION: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);
const FLAGS: MapFlags = MapFlags::MAP_PRIVATE.union(MapFlags::MAP_NORESERVE);

/// The memory.
#[derive(Debug)]
pub(crate) struct Ram {
    start: NonNull<u8>,
    bytes: u64,
    /// One bit for each page that was ever handed out: the others are zero.
    touched: Vec<u64>,
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
        Ram::mapped(bytes, vec![0; bytes.div_ceil(PAGE_SIZE).div_ceil(64) as usize], map)
    }

    /// Memory that begins as the first bytes of a file. What is written does not reach the file, which must not become
    /// shorter.
    ///
    /// # Errors
    /// If the address space has no room for it.
    pub(crate) fn map(file: &File, bytes: u64, touched: Vec<u64>) -> Result<Ram, SimError> {
        // SAFETY: as in `new`.
        let map = |length| unsafe { mmap(None, length, PROTECTION, FLAGS, file, 0) };
        Ram::mapped(bytes, touched, map)
    }

    /// Begins again as the first bytes of a file, the one that it was mapped from. Code that is there as it was stays
    /// decoded.
    ///
    /// # Errors
    /// If the file cannot be mapped; what memory there is then nobody knows.
    pub(crate) fn map_again(&mut self, file: &File, touched: Vec<u64>) -> Result<(), SimError> {
        let code = self.code.pages();
        let before: Vec<_> = code.iter().map(|page| self.copy(page - self.start.addr().get())).collect();
        let (at, length) = (self.start.addr(), NonZeroUsize::new(self.bytes as usize).expect("a machine has memory"));
        // SAFETY: this replaces the mapping that `mapped` made, all of it and nothing else, by one with the same
        // protection. No reference to guest memory is ever made, and no guest runs meanwhile.
        unsafe { mmap(Some(at), length, PROTECTION, FLAGS | MapFlags::MAP_FIXED, file, 0) }
            .map_err(|errno| SimError::Io { what: "map the machine's memory again".into(), source: errno.into() })?;
        self.touched = touched;
        for (page, before) in code.iter().zip(before) {
            let offset = page - self.start.addr().get();
            if self.copy(offset) != before {
                self.code.wrote(self.start.as_ptr().wrapping_add(offset), PAGE_SIZE as usize);
            }
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
        touched: Vec<u64>,
        map: impl FnOnce(NonZeroUsize) -> nix::Result<NonNull<c_void>>,
    ) -> Result<Ram, SimError> {
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(SimError::Description("a machine needs memory".into()))?;
        let start = map(length).map_err(|errno| SimError::Io {
            what: format!("map {bytes} bytes as the machine's memory"),
            source: errno.into(),
        })?;
        Ok(Ram { start: start.cast(), bytes, touched, code: Arc::default() })
    }

    /// The code that processors find here.
    pub(crate) fn code(&self) -> &Arc<CodePages> {
        &self.code
    }

    /// How many bytes it has.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One bit for each page that was ever handed out.
    pub(crate) fn touched(&self) -> &[u64] {
        &self.touched
    }

    /// The pages that are not zero, by their offset in the mapping.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (u64, [u8; PAGE_SIZE as usize])> {
        let touched = |page: &u64| self.touched[(page / 64) as usize] >> (page % 64) & 1 != 0;
        (0..self.bytes / PAGE_SIZE).filter(touched).filter_map(|page| {
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

    /// The page at a system-physical address, which is page aligned; `None` if there is no memory.
    pub(crate) fn page(&mut self, page: u64) -> Option<HostPage> {
        let offset = self.offset(page)?;
        let index = offset / PAGE_SIZE;
        self.touched[(index / 64) as usize] |= 1 << (index % 64);
        // SAFETY: the offset is in the mapping, and so is the rest of its page, both being page aligned. The mapping
        // is writable and stays until `self` is dropped, which the machine does after its CPUs. No reference to guest
        // memory is ever made: this type copies by pointer.
        Some(unsafe { HostPage::new(self.start.as_ptr().add(offset as usize), true) })
    }

    /// Copies out of memory; where there is none, ones.
    pub(crate) fn read(&mut self, address: u64, bytes: &mut [u8]) {
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
            if let Some(target) = self.page(page) {
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
        let mut ram = Ram::new(LOW_END + PAGE_SIZE).unwrap();
        assert_eq!(ram.ranges().collect::<Vec<_>>(), [0..LOW_END, HIGH_START..HIGH_START + PAGE_SIZE]);
        assert_eq!(ram.page(LOW_END), None);
        assert!(ram.page(HIGH_START).is_some());
        assert_eq!(ram.page(HIGH_START + PAGE_SIZE), None);
    }
}
