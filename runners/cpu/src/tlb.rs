//! The software TLB: from linear pages to host pages, direct mapped.
#![expect(unsafe_code, reason = "a TLB holds host pointers and moves between threads with its CPU")]

use crate::bus::HostPage;
use crate::paging::View;

const ENTRIES: usize = 512;
/// No page has this address.
const INVALID: u64 = u64::MAX;
const PAGE_MASK: u64 = !0xfff;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The linear page for which reads go to `page`, or `INVALID`.
    read: u64,
    /// The linear page for which writes go to `page`, or `INVALID`.
    write: u64,
    page: *mut u8,
}

// SAFETY: the pointers are to guest memory, which no thread owns (`HostPage::new`); the TLB itself only
// hands them out, and is used by one thread at a time because its methods take `&mut` or `&` of it.
unsafe impl Send for Entry {}

const EMPTY: Entry = Entry { read: INVALID, write: INVALID, page: std::ptr::null_mut() };

/// Translations for one kind of viewer.
#[derive(Debug)]
pub(crate) struct Tlb {
    entries: Box<[Entry; ENTRIES]>,
    dirty: bool,
}

impl Tlb {
    pub(crate) fn new() -> Tlb {
        Tlb { entries: Box::new([EMPTY; ENTRIES]), dirty: false }
    }

    pub(crate) fn flush(&mut self) {
        if self.dirty {
            self.entries.fill(EMPTY);
            self.dirty = false;
        }
    }

    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.entries[index(linear)] = EMPTY;
    }

    /// Host address for a read of `size` bytes that do not leave the page.
    #[inline(always)]
    pub(crate) fn read(&self, linear: u64, size: usize) -> Option<*mut u8> {
        let entry = &self.entries[index(linear)];
        (entry.read == linear & PAGE_MASK && within_page(linear, size)).then(|| at(entry.page, linear))
    }

    /// Host address for a write of `size` bytes that do not leave the page.
    #[inline(always)]
    pub(crate) fn write(&self, linear: u64, size: usize) -> Option<*mut u8> {
        let entry = &self.entries[index(linear)];
        (entry.write == linear & PAGE_MASK && within_page(linear, size)).then(|| at(entry.page, linear))
    }

    /// Remembers where a linear page is for reads, and for writes if `write`.
    pub(crate) fn fill(&mut self, linear: u64, page: HostPage, write: bool) {
        let linear = linear & PAGE_MASK;
        let entry = &mut self.entries[index(linear)];
        let keep_write = entry.write == linear && entry.page == page.start();
        *entry = Entry { read: linear, write: if write || keep_write { linear } else { INVALID }, page: page.start() };
        self.dirty = true;
    }
}

#[inline(always)]
fn index(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

#[inline(always)]
pub(crate) fn within_page(linear: u64, size: usize) -> bool {
    (linear & 0xfff) as usize <= 4096 - size
}

#[inline(always)]
fn at(page: *mut u8, linear: u64) -> *mut u8 {
    page.wrapping_add((linear & 0xfff) as usize)
}

/// The translations of each [`View`], of fetches, and of guest-physical pages that hold page tables.
#[derive(Debug)]
pub(crate) struct Tlbs {
    data: [Tlb; 3],
    /// `data` and `tables` of the emulator, or of the processor while the emulator is at work.
    others: ([Tlb; 3], Tlb),
    /// Fetches, by supervisor and user; SMAP does not apply to them.
    fetch: [Tlb; 2],
    /// Paging structures; "linear" is guest-physical here.
    pub(crate) tables: Tlb,
    /// Counts flushes: a host address is good as long as this does not change.
    pub(crate) generation: u64,
}

impl Tlbs {
    pub(crate) fn new() -> Tlbs {
        Tlbs {
            data: [Tlb::new(), Tlb::new(), Tlb::new()],
            others: ([Tlb::new(), Tlb::new(), Tlb::new()], Tlb::new()),
            fetch: [Tlb::new(), Tlb::new()],
            tables: Tlb::new(),
            generation: 0,
        }
    }

    #[inline(always)]
    pub(crate) fn data(&mut self, view: View) -> &mut Tlb {
        &mut self.data[view as usize]
    }

    #[inline(always)]
    pub(crate) fn fetch(&mut self, view: View) -> &mut Tlb {
        &mut self.fetch[usize::from(view == View::User)]
    }

    /// The processor's translations make room for the emulator's, or the other way round.
    pub(crate) fn change_hands(&mut self) {
        std::mem::swap(&mut self.data, &mut self.others.0);
        std::mem::swap(&mut self.tables, &mut self.others.1);
        self.generation += 1;
    }

    /// Drops all translations.
    pub(crate) fn flush(&mut self) {
        self.data.iter_mut().chain(&mut self.others.0).chain(&mut self.fetch).for_each(Tlb::flush);
        self.tables.flush();
        self.others.1.flush();
        self.generation += 1;
    }

    /// Drops the translations of one linear page.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.data.iter_mut().chain(&mut self.others.0).chain(&mut self.fetch).for_each(|tlb| tlb.flush_page(linear));
        self.generation += 1;
    }
}
