//! The program's memory behind shared guest pages, and the model's own mappings of guest_memfd files.
#![expect(unsafe_code, reason = "mmap, munmap and madvise")]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::real;

/// Bytes of a page.
pub(crate) const PAGE_SIZE: u64 = 4096;
/// log2 of that.
pub(crate) const PAGE_SHIFT: u32 = 12;
/// Pages of 4 KiB in one of 2 MiB.
pub(crate) const HUGE_PAGES: u64 = 512;

/// Makes a page of the program present, without changing what is in it (kernel: `hva_to_pfn`).
///
/// # Errors
/// EFAULT if it cannot be read, or written where `write` says so; EHWPOISON.
pub(crate) fn populate(address: u64, write: bool) -> Result<(), Errno> {
    let advice = if write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    loop {
        // SAFETY: populating changes no content; the kernel checks the address.
        match Errno::result(unsafe { real::madvise(address as *mut libc::c_void, PAGE_SIZE as usize, advice) }) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(Errno::EHWPOISON) => return Err(Errno::EHWPOISON),
            Err(_) => return Err(Errno::EFAULT),
        }
    }
}

/// What the program has at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProgramPage {
    /// Nothing yet.
    Absent,
    /// A page that is its alone or shared on purpose: the kernel maps it writable for the guest even where that
    /// only reads (`hva_to_pfn_slow`).
    Own,
    /// The zero page, or one that is copied when it is written.
    Borrowed,
}

/// What the program has at an address.
pub(crate) fn program_page(address: u64) -> ProgramPage {
    const EXCLUSIVE: u64 = 1 << 56;
    const OF_FILE: u64 = 1 << 61;
    const PRESENT: u64 = 1 << 63;
    let entry = || {
        let pagemap = File::open("/proc/self/pagemap").ok()?;
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (address >> PAGE_SHIFT) * 8).ok()?;
        Some(u64::from_ne_bytes(entry))
    };
    match entry() {
        Some(entry) if entry & PRESENT == 0 => ProgramPage::Absent,
        Some(entry) if entry & EXCLUSIVE != 0 => ProgramPage::Own,
        Some(entry) if entry & OF_FILE != 0 && is_shared_mapping(address) => ProgramPage::Own,
        _ => ProgramPage::Borrowed,
    }
}

/// `struct pm_scan_arg` of `PAGEMAP_SCAN` (Linux 6.7).
#[repr(C)]
#[derive(Default)]
struct ScanRequest {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Whether an address is in a huge page of the program, as far as the kernel tells.
pub(crate) fn is_in_huge_page(address: u64) -> bool {
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    const IS_HUGE: u64 = 1 << 6;
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return false };
    let page = address & !(PAGE_SIZE - 1);
    let mut region = [0u64; 3];
    let mut request = ScanRequest {
        size: size_of::<ScanRequest>() as u64,
        start: page,
        end: page + PAGE_SIZE,
        regions: &raw mut region as u64,
        region_count: 1,
        category_mask: IS_HUGE,
        return_mask: IS_HUGE,
        ..Default::default()
    };
    // SAFETY: the ioctl fills in the request, whose size it is told, and at most one region.
    unsafe { real::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut request as u64) == 1 }
}

/// `struct procmap_query` of `PROCMAP_QUERY` (Linux 6.11), as far as it is used.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    rest: [u64; 7],
}

/// Whether an address is in a shared mapping, as far as the kernel tells.
fn is_shared_mapping(address: u64) -> bool {
    const PROCMAP_QUERY: u64 = 0xc068_6611;
    const VMA_SHARED: u64 = 1 << 3;
    let Ok(maps) = File::open("/proc/self/maps") else { return false };
    let mut query = ProcmapQuery { size: size_of::<ProcmapQuery>() as u64, query_addr: address, ..Default::default() };
    // SAFETY: the ioctl fills in the structure, whose size it is told.
    let result = unsafe { real::ioctl(maps.as_raw_fd(), PROCMAP_QUERY, &raw mut query as u64) };
    result == 0 && query.vma_flags & VMA_SHARED != 0
}

/// The model's own shared mapping of a part of a file.
#[derive(Debug)]
pub(crate) struct FileView {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; what is in it is only reached through raw pointers.
unsafe impl Send for FileView {}
// SAFETY: as above.
unsafe impl Sync for FileView {}

impl FileView {
    /// Maps `bytes` bytes of `file` from `offset` on, readable and writable.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn new(file: RawFd, offset: u64, bytes: u64) -> Result<Self, Errno> {
        let length = usize::try_from(bytes).map_err(|_| Errno::ENOMEM)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe { real::mmap(std::ptr::null_mut(), length, protection, flags, file, offset as libc::off_t) };
        if start == libc::MAP_FAILED {
            return Err(Errno::ENOMEM);
        }
        Ok(Self { start: start.cast(), bytes: length })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for FileView {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and whoever used it has been told to stop (`Memory` flushes all vCPUs
        // before it lets a view go).
        unsafe { real::munmap(self.start.cast(), self.bytes) };
    }
}
