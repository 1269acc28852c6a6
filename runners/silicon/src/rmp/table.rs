//! The table in memory.

use serde::{Deserialize, Serialize};

use super::entry::{Entry, MAX_ASID, PageSize, PageState};
use crate::{KeyedMemory, Rule, Rules, read_u64, write_u64};

/// Bytes of bookkeeping before the first entry, which are the processors' own.
const BOOKKEEPING: u64 = 0x4000;
const ENTRY_SIZE: u64 = 16;
const GIB_SHIFT: u32 = 30;
/// Where in the second word of the first of 512 entries the number of those is that are assigned.
const NEARBY_SHIFT: u32 = 48;

/// Entries of the table of segments, which lies behind the bookkeeping of a segmented RMP.
const SEGMENTS: u64 = 512;
/// Bytes of that.
const SEGMENT_TABLE: u64 = SEGMENTS * 8;

/// How the entries lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Layout {
    /// One after the other behind the bookkeeping, up to this byte.
    Contiguous(u64),
    /// In segments, each for memory of so many bits of address.
    Segmented(u8),
}

/// The reverse map table: one entry for each page of memory that it covers, in the memory that the MSRs RMP_BASE and
/// RMP_END name, or in segments that a table at RMP_BASE names, if RMP_CFG says so (APM volume 2, 15.36.3 and 15.36.4;
/// arch/x86/virt/svm/sev.c: setup_segmented_rmptable).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rmp {
    base: u64,
    layout: Layout,
    /// Which rules about it hold.
    pub(super) rules: Rules,
}

impl Rmp {
    /// The table from `base` up to the byte at `end`, or none where no entry fits.
    #[must_use]
    pub fn new(base: u64, end: u64) -> Option<Rmp> {
        let layout = Layout::Contiguous(end);
        (base & 0x1FFF == 0 && end > base + BOOKKEEPING).then_some(Rmp { base, layout, rules: Rules::default() })
    }

    /// The table in segments for `1 << shift` bytes of memory each, whose own table is behind the bookkeeping at `base`.
    #[must_use]
    pub fn segmented(base: u64, shift: u8) -> Option<Rmp> {
        let layout = Layout::Segmented(shift);
        (base & 0x1FFF == 0 && base != 0).then_some(Rmp { base, layout, rules: Rules::default() })
    }

    /// The table of segments that firmware writes: each of them is for `1 << shift` bytes, whose entries are at these
    /// addresses.
    #[must_use]
    pub fn segment_table(shift: u8, segments: &[u64]) -> (u64, Vec<u8>) {
        let gib = (1_u64 << shift) >> GIB_SHIFT;
        (BOOKKEEPING, segments.iter().flat_map(|at| (at | gib).to_le_bytes()).collect())
    }

    /// Bytes of memory that a table of segments takes, with the bookkeeping, and that a segment's entries take.
    #[must_use]
    pub const fn segment_bytes(shift: u8) -> (u64, u64) {
        (BOOKKEEPING + SEGMENT_TABLE, (1 << shift >> 12) * ENTRY_SIZE)
    }

    /// The same, where only these rules hold.
    #[must_use]
    pub fn with_rules(self, rules: Rules) -> Rmp {
        Rmp { rules, ..self }
    }

    /// Memory of the table itself: first byte and last byte of each of its parts.
    pub fn parts(&self, memory: &mut (impl KeyedMemory + ?Sized)) -> Vec<(u64, u64)> {
        match self.layout {
            Layout::Contiguous(end) => vec![(self.base, end)],
            Layout::Segmented(shift) => {
                let own = (self.base, self.base + BOOKKEEPING + SEGMENT_TABLE - 1);
                let segments = (0..SEGMENTS).filter_map(|index| self.segment(memory, index, shift));
                std::iter::once(own)
                    .chain(segments.map(|(at, bytes)| (at, at + (bytes >> 12) * ENTRY_SIZE - 1)))
                    .collect()
            }
        }
    }

    /// Whether it lies as SNP_INIT wants it: each part begins with a MiB, and all but the bookkeeping of a segmented one
    /// end with one.
    pub fn is_placed(&self, memory: &mut (impl KeyedMemory + ?Sized)) -> bool {
        const MIB: u64 = 1 << 20;
        let is_own = |first: u64| first == self.base && matches!(self.layout, Layout::Segmented(_));
        let mut parts = self.parts(memory).into_iter();
        parts.all(|(first, last)| first % MIB == 0 && (is_own(first) || (last + 1) % MIB == 0))
    }

    /// Whether the page at `pa` has an entry.
    pub fn covers(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> bool {
        self.address(memory, pa).is_some()
    }

    /// Where the entries of a segment are, and for how many bytes of memory they are; none where there is no such
    /// segment.
    fn segment(&self, memory: &mut (impl KeyedMemory + ?Sized), index: u64, shift: u8) -> Option<(u64, u64)> {
        const ADDRESS: u64 = 0x000F_FFFF_FFF0_0000;
        const MAPPED_GIB: u64 = 0xF_FFFF;
        let entry = read_u64(memory, self.base + BOOKKEEPING + index * 8);
        let bytes = ((entry & MAPPED_GIB) << GIB_SHIFT).min(1 << shift);
        (bytes != 0).then_some((entry & ADDRESS, bytes))
    }

    /// The entry that speaks for the page at `pa`: that of its 2 MiB if this is one page, else its own. None where
    /// the table does not cover it (page state Default).
    pub fn lookup(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Option<Entry> {
        let large = self.own_entry(memory, pa & !(PageSize::Size2M.bytes() - 1))?;
        match large.size {
            PageSize::Size2M if self.covers(memory, pa) => Some(large),
            _ => self.own_entry(memory, pa),
        }
    }

    /// How many of the 512 pages around `pa` are assigned.
    pub(super) fn assigned_nearby(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> u64 {
        let first = self.address(memory, pa & !(PageSize::Size2M.bytes() - 1));
        first.map_or(0, |at| read_u64(memory, at + 8) >> NEARBY_SHIFT)
    }

    /// The entry of this page alone.
    pub(super) fn own_entry(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Option<Entry> {
        let at = self.address(memory, pa)?;
        Some(Entry::decode([read_u64(memory, at), read_u64(memory, at + 8)]))
    }

    /// Makes `entry` that of the page at `pa`. One of 2 MiB fills the 511 behind it with what they are when it is
    /// smashed, so that they say that they are assigned, too. Every processor forgets the pages.
    pub fn store(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, entry: &Entry) {
        self.store_one(memory, pa, entry);
        for frame in 1..entry.size.frames() {
            let offset = frame << 12;
            self.store_one(memory, pa + offset, &Entry::of(entry.state.advanced(offset)));
        }
    }

    /// Makes all of the `size` at `pa` pages of 4 KiB in this state, the same for each.
    pub(crate) fn fill(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, size: PageSize, state: PageState) {
        for frame in 0..size.frames() {
            self.store_one(memory, pa + (frame << 12), &Entry::of(state));
        }
    }

    /// Says that a processor runs with the page, or no longer does. That changes nobody's rights.
    pub(crate) fn set_in_use(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, in_use: bool) {
        if let Some((at, entry)) = self.address(memory, pa).zip(self.own_entry(memory, pa)) {
            write_u64(memory, at, Entry { in_use, ..entry }.encode()[0]);
        }
    }

    /// Makes every page the hypervisor's, as SNP_INIT begins.
    pub(crate) fn clear(&self, memory: &mut (impl KeyedMemory + ?Sized)) {
        for (first, last) in self.parts(memory) {
            let end = match self.layout {
                // The table of segments stays.
                Layout::Segmented(_) if first == self.base => first + BOOKKEEPING,
                _ => last,
            };
            (first..end).step_by(4096).for_each(|page| memory.write(page, &[0; 4096]));
        }
    }

    /// How many pages of 4 KiB belong to this ASID.
    pub(crate) fn assigned_pages(&self, memory: &mut (impl KeyedMemory + ?Sized), asid: u16) -> u64 {
        read_u64(memory, self.counter(asid))
    }

    /// Where the bookkeeping counts the pages of an ASID.
    fn counter(&self, asid: u16) -> u64 {
        self.base + 8 * u64::from(asid.min(MAX_ASID))
    }

    fn count(&self, memory: &mut (impl KeyedMemory + ?Sized), old: &Entry, new: &Entry) {
        let [old, new] = [old, new].map(|entry| entry.state.owned().map(|owned| owned.asid));
        if old != new {
            for (asid, change) in [(old, u64::MAX), (new, 1)] {
                if let Some(at) = asid.map(|asid| self.counter(asid)) {
                    let pages = read_u64(memory, at).wrapping_add(change);
                    write_u64(memory, at, pages);
                }
            }
        }
    }

    /// The first of 512 entries knows how many of them are assigned (15.36.3: the sub-page count).
    fn count_nearby(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, old: &Entry, new: &Entry) {
        let change = match (old.state.hypervisor_owned(), new.state.hypervisor_owned()) {
            (true, false) => 1 << NEARBY_SHIFT,
            (false, true) => u64::MAX << NEARBY_SHIFT,
            _ => return,
        };
        if let Some(at) = self.address(memory, pa & !(PageSize::Size2M.bytes() - 1)) {
            let word = read_u64(memory, at + 8);
            write_u64(memory, at + 8, word.wrapping_add(change));
            // Whatever the host or a guest writes to these 2 MiB by one shared translation of them all is refused from
            // now on, also where it was allowed before: that translation goes, and with it all that the CPU has made of
            // it (15.36.10).
            if word >> NEARBY_SHIFT == 0 && self.rules.hold(Rule::StaleTranslations) {
                memory.flush_large_page(pa);
            }
        }
    }

    fn store_one(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, entry: &Entry) {
        if let Some((at, old)) = self.address(memory, pa).zip(self.own_entry(memory, pa)) {
            self.count(memory, &old, entry);
            let nearby = read_u64(memory, at + 8) >> NEARBY_SHIFT << NEARBY_SHIFT;
            let [low, high] = entry.encode();
            write_u64(memory, at, low);
            write_u64(memory, at + 8, high | nearby);
            self.count_nearby(memory, pa, &old, entry);
            if self.rules.hold(Rule::StaleTranslations) {
                memory.flush_page(pa & !0xFFF);
            }
        }
    }

    /// Where the entry of the page at `pa` is.
    fn address(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Option<u64> {
        let entry = |first: u64, pa: u64| first + (pa >> 12) * ENTRY_SIZE;
        match self.layout {
            Layout::Contiguous(end) => {
                let frames = (end + 1 - self.base - BOOKKEEPING) / ENTRY_SIZE;
                (pa >> 12 < frames).then(|| entry(self.base + BOOKKEEPING, pa))
            }
            Layout::Segmented(shift) => {
                let index = Some(pa >> shift).filter(|index| *index < SEGMENTS)?;
                let (first, bytes) = self.segment(memory, index, shift)?;
                let inside = pa & ((1 << shift) - 1);
                (inside < bytes).then(|| entry(first, inside))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalMemory;
    use crate::rmp::{Owned, Permissions};
    use crate::test_memory::TestMemory;

    #[test]
    fn entries_lie_where_linux_looks_for_them() {
        let rmp = Rmp::new(0x10_0000, 0x10_7FFF).unwrap();
        let mut memory = TestMemory::new(0x20_0000);
        assert_eq!(rmp.address(&mut memory, 0x5123), Some(0x10_4050));
        assert_eq!(rmp.address(&mut memory, 0x3F_F000), Some(0x10_7FF0));
        assert_eq!(rmp.address(&mut memory, 0x40_0000), None);
        rmp.store(&mut memory, 0x5000, &Entry::of(PageState::Firmware));
        assert_eq!(read_u64(&mut memory, 0x10_4050), 5);
        assert_eq!(memory.flushed, [0x5000]);
    }

    #[test]
    fn a_large_entry_speaks_for_its_512_pages() {
        let rmp = Rmp::new(0x10_0000, 0x10_8FFF).unwrap();
        let mut memory = TestMemory::new(0x20_0000);
        let owned = Owned { asid: 3, gpa: 0x4000_0000, vmsa: false, permissions: Permissions::INITIAL };
        let entry = Entry { size: PageSize::Size2M, ..Entry::of(PageState::GuestInvalid(owned)) };
        rmp.store(&mut memory, 0x20_0000, &entry);
        assert_eq!(rmp.lookup(&mut memory, 0x3F_F000), Some(entry));
        let own = rmp.own_entry(&mut memory, 0x20_3000).unwrap();
        assert_eq!(own, Entry::of(PageState::GuestInvalid(Owned { gpa: 0x4000_3000, ..owned })));
        assert_eq!(rmp.lookup(&mut memory, 0x40_0000), Some(Entry::HYPERVISOR));
        assert_eq!(memory.flushed.len(), 512);
    }

    #[test]
    fn assigned_pages_are_counted_in_each_2_mib() {
        let rmp = Rmp::new(0x10_0000, 0x10_8FFF).unwrap();
        let mut memory = TestMemory::new(0x20_0000);
        for (pa, state, count) in [
            (0x20_0000, PageState::Firmware, 1),
            (0x20_5000, PageState::Firmware, 2),
            (0x20_5000, PageState::Reclaim, 2),
            (0x20_0000, PageState::Hypervisor, 1),
            (0x20_5000, PageState::HvFixed, 0),
        ] {
            rmp.store(&mut memory, pa, &Entry::of(state));
            assert_eq!(rmp.assigned_nearby(&mut memory, 0x3F_F000), count, "{pa:#x} {state:?}");
            assert_eq!(rmp.assigned_nearby(&mut memory, 0x1000), 0);
        }
    }

    /// A write by a translation of 2 MiB was good while all of them were the hypervisor's.
    #[test]
    fn the_first_page_that_is_assigned_drops_translations_of_all_its_neighbours() {
        let rmp = Rmp::new(0x10_0000, 0x10_8FFF).unwrap();
        let mut memory = TestMemory::new(0x20_0000);
        for (pa, state, flushed) in [
            (0x20_0000, PageState::Firmware, Some(0x20_0000)),
            (0x20_5000, PageState::Firmware, None),
            (0x20_0000, PageState::Hypervisor, None),
            (0x20_5000, PageState::Hypervisor, None),
            (0x20_5000, PageState::Firmware, Some(0x20_5000)),
        ] {
            rmp.store(&mut memory, pa, &Entry::of(state));
            assert_eq!(memory.flushed_large.pop(), flushed, "{pa:#x} {state:?}");
        }
    }

    #[test]
    fn the_pages_of_an_asid_are_counted() {
        let rmp = Rmp::new(0x10_0000, 0x10_8FFF).unwrap();
        let mut memory = TestMemory::new(0x20_0000);
        let owned = Owned { asid: 3, gpa: 0x4000_0000, vmsa: false, permissions: Permissions::INITIAL };
        rmp.store(&mut memory, 0x1000, &Entry::of(PageState::GuestInvalid(owned)));
        rmp.store(&mut memory, 0x1000, &Entry::of(PageState::GuestValid(owned)));
        assert_eq!(rmp.assigned_pages(&mut memory, 3), 1);
        let large = Entry { size: PageSize::Size2M, ..Entry::of(PageState::GuestInvalid(owned)) };
        rmp.store(&mut memory, 0x20_0000, &large);
        assert_eq!(rmp.assigned_pages(&mut memory, 3), 513);
        rmp.fill(&mut memory, 0x20_0000, PageSize::Size2M, PageState::Hypervisor);
        rmp.store(&mut memory, 0x1000, &Entry::of(PageState::GuestValid(Owned { asid: 4, ..owned })));
        assert_eq!([3, 4].map(|asid| rmp.assigned_pages(&mut memory, asid)), [0, 1]);
        rmp.clear(&mut memory);
        assert_eq!(rmp.assigned_pages(&mut memory, 4), 0);
    }

    /// arch/x86/virt/svm/sev.c: setup_segmented_rmptable. The second of three segments is missing.
    #[test]
    fn segments_lie_where_their_table_says() {
        let (base, shift) = (0x10_0000, 30);
        let mut memory = TestMemory::new(0xC0_0000);
        let (offset, table) = Rmp::segment_table(shift, &[0x40_0000]);
        memory.write(base + offset, &table);
        memory.write(base + offset + 16, &Rmp::segment_table(shift, &[0x80_0000]).1);
        let rmp = Rmp::segmented(base, shift).unwrap();
        assert_eq!(Rmp::segment_bytes(shift), (0x5000, 0x40_0000));
        assert_eq!(rmp.parts(&mut memory), [(base, 0x10_4FFF), (0x40_0000, 0x7F_FFFF), (0x80_0000, 0xBF_FFFF)]);
        for (pa, at) in [
            (0x5123, Some(0x40_0050)),
            (0x3FFF_F000, Some(0x7F_FFF0)),
            (0x4000_0000, None),
            (0x8000_1000, Some(0x80_0010)),
            (0xC000_0000, None),
            (1 << 39, None),
        ] {
            assert_eq!(rmp.address(&mut memory, pa), at, "{pa:#x}");
        }
        rmp.store(&mut memory, 0x8000_1000, &Entry::of(PageState::Firmware));
        assert_eq!(read_u64(&mut memory, 0x80_0010), 5);
        rmp.clear(&mut memory);
        assert_eq!(rmp.lookup(&mut memory, 0x8000_1000), Some(Entry::HYPERVISOR), "and the segments are still there");
        assert_eq!(Rmp::segmented(0x1000, shift), None);
    }

    #[test]
    fn a_table_needs_room_and_alignment() {
        assert_eq!(Rmp::new(0, 0), None);
        assert_eq!(Rmp::new(0x1000, 0x10_0000), None);
        assert_eq!(Rmp::new(0x2000, 0x5FFF), None);
    }
}
