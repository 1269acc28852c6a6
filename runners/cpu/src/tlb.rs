//! The software TLB: from linear pages to host pages, direct mapped.
//!
//! Each entry is tagged with the [`Context`] that it was made in, as a small number in the bits below the page's
//! address. A flush of a context takes its number away, so it costs nothing, and a switch of contexts drops nothing.
#![expect(unsafe_code, reason = "a TLB holds host pointers and moves between threads with its CPU")]

use std::collections::HashMap;

use crate::bus::HostPage;
use crate::kick::Flush;
use crate::paging::View;
use crate::state::World;

pub(crate) const ENTRIES: usize = 1024;
const PAGE_MASK: u64 = !0xfff;
/// No context has this number, and so no page this tag.
const INVALID: u64 = u64::MAX;
/// Numbers of contexts are smaller than this, and are not 0.
const NUMBERS: u64 = 0xfff;

/// Of a size that makes an index an offset by a shift: translated code looks entries up, too.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(crate) struct Entry {
    /// Linear page and context for which reads go to `page`, or `INVALID`.
    pub(crate) read: u64,
    /// Linear page and context for which writes go to `page`, or `INVALID`.
    pub(crate) write: u64,
    pub(crate) page: *mut u8,
}

// SAFETY: the pointers are to guest memory, which no thread owns (`HostPage::new`); the TLB itself only
// hands them out, and is used by one thread at a time because its methods take `&mut` or `&` of it.
unsafe impl Send for Entry {}

const EMPTY: Entry = Entry { read: INVALID, write: INVALID, page: std::ptr::null_mut() };

/// Translations for one kind of viewer.
#[derive(Debug)]
struct Tlb {
    entries: Box<[Entry; ENTRIES]>,
}

impl Tlb {
    fn new() -> Tlb {
        Tlb { entries: Box::new([EMPTY; ENTRIES]) }
    }

    #[inline(always)]
    fn read(&self, context: u64, linear: u64, size: usize) -> Option<*mut u8> {
        let entry = &self.entries[index(linear)];
        (entry.read == tag(context, linear) && within_page(linear, size)).then(|| at(entry.page, linear))
    }

    #[inline(always)]
    fn write(&self, context: u64, linear: u64, size: usize) -> Option<*mut u8> {
        let entry = &self.entries[index(linear)];
        (entry.write == tag(context, linear) && within_page(linear, size)).then(|| at(entry.page, linear))
    }

    fn fill(&mut self, context: u64, linear: u64, page: HostPage, write: bool) {
        let tag = tag(context, linear);
        let entry = &mut self.entries[index(linear)];
        let keep_write = entry.write == tag && entry.page == page.start();
        *entry = Entry { read: tag, write: if write || keep_write { tag } else { INVALID }, page: page.start() };
    }

    /// Drops a linear page in every context.
    fn flush_page(&mut self, linear: u64) {
        let entry = &mut self.entries[index(linear)];
        if (entry.read ^ linear) & PAGE_MASK == 0 {
            *entry = EMPTY;
        }
    }

    /// Drops the pages of a naturally aligned range of `size` bytes, in every context.
    fn flush_range(&mut self, linear: u64, size: u64) {
        self.entries
            .iter_mut()
            .filter(|entry| (entry.read ^ linear) & !(size - 1) == 0)
            .for_each(|entry| *entry = EMPTY);
    }

    fn flush_backing(&mut self, page: usize) {
        self.entries.iter_mut().filter(|entry| entry.page.addr() == page).for_each(|entry| *entry = EMPTY);
    }

    fn forbid_writes(&mut self, page: usize) {
        self.entries.iter_mut().filter(|entry| entry.page.addr() == page).for_each(|entry| entry.write = INVALID);
    }
}

#[inline(always)]
pub(crate) fn index(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

#[inline(always)]
fn tag(context: u64, linear: u64) -> u64 {
    linear & PAGE_MASK | context
}

#[inline(always)]
pub(crate) fn within_page(linear: u64, size: usize) -> bool {
    (linear & 0xfff) as usize <= 4096 - size
}

#[inline(always)]
fn at(page: *mut u8, linear: u64) -> *mut u8 {
    page.wrapping_add((linear & 0xfff) as usize)
}

/// Whose translations: what a switch of worlds, of address spaces, or to the emulator, changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Context {
    pub(crate) world: World,
    /// CR3's low 12 bits with CR4.PCIDE, else 0.
    pub(crate) pcid: u16,
    /// Translations of the emulator, see [`crate::Access::emulated`].
    pub(crate) emulated: bool,
}

impl Context {
    const FIRST: Context = Context { world: World::HOST, pcid: 0, emulated: false };
}

/// What addresses a number is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Space {
    Linear(Context),
    /// Guest-physical addresses of paging structures, in a world, for the emulator or not.
    Physical(World, bool),
}

impl Space {
    fn world(self) -> World {
        match self {
            Space::Linear(context) => context.world,
            Space::Physical(world, _) => world,
        }
    }
}

/// Which regions may have entries that are parts of a large page; some that have none are marked, too.
#[derive(Debug, Default)]
struct Marks([u64; 8]);

impl Marks {
    fn set(&mut self, region: u64) {
        self.0[(region / 64 % 8) as usize] |= 1 << (region % 64);
    }

    fn has(&self, region: u64) -> bool {
        self.0[(region / 64 % 8) as usize] >> (region % 64) & 1 != 0
    }
}

const MEGABYTES2: u64 = 2 << 20;
const MEGABYTES4: u64 = 4 << 20;
const GIGABYTE: u64 = 1 << 30;

/// The translations of each [`View`], of fetches, and of guest-physical pages that hold page tables.
#[derive(Debug)]
pub(crate) struct Tlbs {
    data: [Tlb; 3],
    /// Fetches, by supervisor and user; SMAP does not apply to them.
    fetch: [Tlb; 2],
    /// Paging structures; "linear" is guest-physical here.
    tables: Tlb,
    numbers: HashMap<Space, u64>,
    next_number: u64,
    context: Context,
    /// The numbers of `context`, and of its guest-physical addresses.
    pub(crate) number: u64,
    physical_number: u64,
    /// By 4 MiB and by 1 GiB.
    large: [Marks; 2],
    /// Counts flushes: a host address is good as long as this does not change.
    pub(crate) generation: u64,
}

impl Tlbs {
    pub(crate) fn new() -> Tlbs {
        let mut tlbs = Tlbs {
            data: [Tlb::new(), Tlb::new(), Tlb::new()],
            fetch: [Tlb::new(), Tlb::new()],
            tables: Tlb::new(),
            numbers: HashMap::new(),
            next_number: 1,
            context: Context::FIRST,
            number: 0,
            physical_number: 0,
            large: Default::default(),
            generation: 0,
        };
        tlbs.select(Context::FIRST);
        tlbs
    }

    /// Host address for a read of `size` bytes that do not leave the page.
    #[inline(always)]
    pub(crate) fn read(&self, view: View, linear: u64, size: usize) -> Option<*mut u8> {
        self.data[view as usize].read(self.number, linear, size)
    }

    /// Host address for a write of `size` bytes that do not leave the page.
    #[inline(always)]
    pub(crate) fn write(&self, view: View, linear: u64, size: usize) -> Option<*mut u8> {
        self.data[view as usize].write(self.number, linear, size)
    }

    /// The entries for the accesses of a view, and for its fetches; of each [`ENTRIES`].
    #[inline(always)]
    pub(crate) fn entries(&self, view: View) -> [*const Entry; 2] {
        [self.data[view as usize].entries.as_ptr(), self.fetch[usize::from(view == View::User)].entries.as_ptr()]
    }

    /// Host address for a fetch.
    #[inline(always)]
    pub(crate) fn fetch(&self, view: View, linear: u64) -> Option<*mut u8> {
        self.fetch[usize::from(view == View::User)].read(self.number, linear, 1)
    }

    /// Host address of an entry of a paging structure.
    pub(crate) fn table(&self, gpa: u64, write: bool) -> Option<*mut u8> {
        if write {
            self.tables.write(self.physical_number, gpa, 8)
        } else {
            self.tables.read(self.physical_number, gpa, 8)
        }
    }

    /// Remembers where a linear page is for reads, and for writes if `write`; `size` is that of the page that the
    /// guest has mapped.
    pub(crate) fn fill(&mut self, view: View, linear: u64, size: u64, page: HostPage, write: bool) {
        self.data[view as usize].fill(self.number, linear, page, write);
        self.mark(linear, size);
    }

    /// Likewise for fetches.
    pub(crate) fn fill_fetch(&mut self, view: View, linear: u64, size: u64, page: HostPage) {
        self.fetch[usize::from(view == View::User)].fill(self.number, linear, page, false);
        self.mark(linear, size);
    }

    /// Likewise for a page of paging structures.
    pub(crate) fn fill_table(&mut self, gpa: u64, page: HostPage, write: bool) {
        self.tables.fill(self.physical_number, gpa, page, write);
    }

    fn mark(&mut self, linear: u64, size: u64) {
        match size {
            MEGABYTES2 | MEGABYTES4 => self.large[0].set(linear / MEGABYTES4),
            GIGABYTE => self.large[1].set(linear / GIGABYTE),
            _ => {}
        }
    }

    /// From here on the translations of another context are used.
    pub(crate) fn select(&mut self, context: Context) {
        self.context = context;
        // Both numbers have to be of the same era.
        if self.next_number + 2 > NUMBERS {
            self.wipe();
        }
        self.number = self.number_of(Space::Linear(context));
        self.physical_number = self.number_of(Space::Physical(context.world, context.emulated));
        self.generation += 1;
    }

    pub(crate) fn context(&self) -> Context {
        self.context
    }

    fn number_of(&mut self, space: Space) -> u64 {
        *self.numbers.entry(space).or_insert_with(|| {
            self.next_number += 1;
            self.next_number - 1
        })
    }

    fn wipe(&mut self) {
        self.numbers.clear();
        self.next_number = 1;
        self.large = Default::default();
        self.each().for_each(|tlb| tlb.entries.fill(EMPTY));
    }

    fn each(&mut self) -> impl Iterator<Item = &mut Tlb> {
        self.data.iter_mut().chain(&mut self.fetch).chain(std::iter::once(&mut self.tables))
    }

    /// Drops all translations.
    pub(crate) fn flush(&mut self) {
        self.numbers.clear();
        self.large = Default::default();
        self.select(self.context);
    }

    /// Drops the translations of the current world.
    pub(crate) fn flush_world(&mut self) {
        self.flush_part(Flush::World(self.context.world));
    }

    /// Drops the translations of one PCID of the current world.
    pub(crate) fn flush_pcid(&mut self, pcid: u16) {
        for emulated in [false, true] {
            self.numbers.remove(&Space::Linear(Context { pcid, emulated, ..self.context }));
        }
        self.select(self.context);
    }

    /// Drops the translations of one linear page, whatever its size, in every context.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let [large, huge] = [self.large[0].has(linear / MEGABYTES4), self.large[1].has(linear / GIGABYTE)];
        for tlb in self.data.iter_mut().chain(&mut self.fetch) {
            match (large, huge) {
                (false, false) => tlb.flush_page(linear),
                (true, false) => tlb.flush_range(linear, MEGABYTES4),
                (_, true) => tlb.flush_range(linear, GIGABYTE),
            }
        }
        self.generation += 1;
    }

    /// Drops what somebody asks for.
    pub(crate) fn flush_part(&mut self, flush: Flush) {
        match flush {
            Flush::World(world) => {
                self.numbers.retain(|space, _| space.world() != world);
                self.select(self.context);
            }
            Flush::Page(linear) => self.flush_page(linear),
            Flush::Backing(page) => {
                self.each().for_each(|tlb| tlb.flush_backing(page));
                self.generation += 1;
            }
        }
    }

    /// From here on each write to a page of host memory asks where it is.
    pub(crate) fn forbid_writes(&mut self, page: usize) {
        self.each().for_each(|tlb| tlb.forbid_writes(page));
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(address: usize) -> HostPage {
        // SAFETY: nothing in these tests goes where the page says.
        unsafe { HostPage::new(std::ptr::without_provenance_mut(address), true) }
    }

    fn found(tlbs: &Tlbs, linear: u64) -> Option<usize> {
        tlbs.read(View::Supervisor, linear, 1).map(|at| at.addr())
    }

    const GUEST: Context = Context { world: World(7), ..Context::FIRST };

    #[test]
    fn a_switch_of_worlds_drops_nothing_and_shows_nothing() {
        let mut tlbs = Tlbs::new();
        tlbs.fill(View::Supervisor, 0x5000, 4096, page(0x10000), true);
        tlbs.select(GUEST);
        assert_eq!(found(&tlbs, 0x5000), None);
        tlbs.fill(View::Supervisor, 0x6000, 4096, page(0x20000), true);
        tlbs.select(Context::FIRST);
        assert_eq!((found(&tlbs, 0x5123), found(&tlbs, 0x6000)), (Some(0x10123), None));
        tlbs.flush_part(Flush::World(World(7)));
        assert_eq!(found(&tlbs, 0x5000), Some(0x10000), "the other world's flush is not this one's");
        tlbs.select(GUEST);
        assert_eq!(found(&tlbs, 0x6000), None);
    }

    #[test]
    fn an_address_space_is_flushed_alone() {
        let mut tlbs = Tlbs::new();
        for pcid in [1, 2] {
            tlbs.select(Context { pcid, ..Context::FIRST });
            tlbs.fill(View::Supervisor, 0x5000 + u64::from(pcid) * 4096, 4096, page(0x10000), true);
        }
        tlbs.flush_pcid(1);
        assert_eq!(found(&tlbs, 0x7000), Some(0x10000));
        tlbs.select(Context { pcid: 1, ..Context::FIRST });
        assert_eq!(found(&tlbs, 0x6000), None);
    }

    #[test]
    fn a_large_page_goes_as_a_whole() {
        for (size, inside, outside) in
            [(MEGABYTES2, 0x40_0000 + 0x1f_f000, 0x80_0000), (GIGABYTE, 0x3fff_f000, GIGABYTE)]
        {
            let mut tlbs = Tlbs::new();
            tlbs.fill(View::Supervisor, inside, size, page(0x10000), true);
            tlbs.fill(View::Supervisor, outside, 4096, page(0x20000), true);
            tlbs.flush_page(0x40_0000);
            assert_eq!((found(&tlbs, inside), found(&tlbs, outside)), (None, Some(0x20000)), "{size:#x}");
        }
    }

    #[test]
    fn all_that_leads_to_a_page_goes() {
        let mut tlbs = Tlbs::new();
        tlbs.fill(View::User, 0x5000, 4096, page(0x10000), true);
        tlbs.fill_table(0x7000, page(0x10000), false);
        tlbs.fill(View::User, 0x8000, 4096, page(0x20000), true);
        tlbs.flush_part(Flush::Backing(0x10000));
        assert!(tlbs.read(View::User, 0x5000, 1).is_none() && tlbs.table(0x7000, false).is_none());
        assert!(tlbs.write(View::User, 0x8000, 1).is_some());
        tlbs.forbid_writes(0x20000);
        assert!(tlbs.write(View::User, 0x8000, 1).is_none() && tlbs.read(View::User, 0x8000, 1).is_some());
    }

    #[test]
    fn numbers_that_run_out_are_not_mixed_up() {
        let mut tlbs = Tlbs::new();
        tlbs.fill(View::Supervisor, 0x5000, 4096, page(0x10000), true);
        for world in 1..10_000 {
            tlbs.select(Context { world: World(world), ..Context::FIRST });
            assert_eq!(found(&tlbs, 0x5000), None, "{world}");
        }
        tlbs.select(Context::FIRST);
        tlbs.fill(View::Supervisor, 0x5000, 4096, page(0x10000), true);
        assert_eq!(found(&tlbs, 0x5000), Some(0x10000));
    }
}
