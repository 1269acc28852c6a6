//! The table in memory.

use serde::{Deserialize, Serialize};

use super::entry::{Entry, MAX_ASID, PageSize, PageState};
use crate::{KeyedMemory, Rule, Rules, read_u64, write_u64};

/// Bytes of bookkeeping before the first entry, which are the processors' own.
const BOOKKEEPING: u64 = 0x4000;
const ENTRY_SIZE: u64 = 16;
/// Where in the second word of the first of 512 entries the number of those is that are assigned.
const NEARBY_SHIFT: u32 = 48;

/// The reverse map table: one entry for each page of memory that it covers, in the memory that the MSRs RMP_BASE and
/// RMP_END name (APM volume 2, 15.36.3 and 15.36.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rmp {
    base: u64,
    end: u64,
    /// Which rules about it hold.
    pub(super) rules: Rules,
}

impl Rmp {
    /// The table from `base` up to the byte at `end`, or none where no entry fits.
    #[must_use]
    pub fn new(base: u64, end: u64) -> Option<Rmp> {
        (base & 0x1FFF == 0 && end > base + BOOKKEEPING).then_some(Rmp { base, end, rules: Rules::default() })
    }

    /// The same, where only these rules hold.
    #[must_use]
    pub fn with_rules(self, rules: Rules) -> Rmp {
        Rmp { rules, ..self }
    }

    /// Memory of the table itself: first byte, last byte.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        (self.base, self.end)
    }

    /// Pages that have an entry.
    #[must_use]
    pub fn frames(&self) -> u64 {
        (self.end + 1 - self.base - BOOKKEEPING) / ENTRY_SIZE
    }

    /// Whether the page at `pa` has an entry.
    #[must_use]
    pub fn covers(&self, pa: u64) -> bool {
        pa >> 12 < self.frames()
    }

    /// The entry that speaks for the page at `pa`: that of its 2 MiB if this is one page, else its own. None where
    /// the table does not cover it (page state Default).
    pub fn lookup(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Option<Entry> {
        let large = self.own_entry(memory, pa & !(PageSize::Size2M.bytes() - 1))?;
        match large.size {
            PageSize::Size2M if self.covers(pa) => Some(large),
            _ => self.own_entry(memory, pa),
        }
    }

    /// How many of the 512 pages around `pa` are assigned.
    pub(super) fn assigned_nearby(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> u64 {
        self.address(pa & !(PageSize::Size2M.bytes() - 1)).map_or(0, |at| read_u64(memory, at + 8) >> NEARBY_SHIFT)
    }

    /// The entry of this page alone.
    pub(super) fn own_entry(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64) -> Option<Entry> {
        let at = self.address(pa)?;
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
        if let Some((at, entry)) = self.address(pa).zip(self.own_entry(memory, pa)) {
            write_u64(memory, at, Entry { in_use, ..entry }.encode()[0]);
        }
    }

    /// Makes every page the hypervisor's, as SNP_INIT begins.
    pub(crate) fn clear(&self, memory: &mut (impl KeyedMemory + ?Sized)) {
        for page in (self.base..self.end).step_by(4096) {
            memory.write(page, &[0; 4096]);
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
        if let Some(at) = self.address(pa & !(PageSize::Size2M.bytes() - 1)) {
            let word = read_u64(memory, at + 8).wrapping_add(change);
            write_u64(memory, at + 8, word);
        }
    }

    fn store_one(&self, memory: &mut (impl KeyedMemory + ?Sized), pa: u64, entry: &Entry) {
        if let Some((at, old)) = self.address(pa).zip(self.own_entry(memory, pa)) {
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

    fn address(&self, pa: u64) -> Option<u64> {
        self.covers(pa).then(|| self.base + BOOKKEEPING + (pa >> 12) * ENTRY_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmp::{Owned, Permissions};
    use crate::test_memory::TestMemory;

    #[test]
    fn entries_lie_where_linux_looks_for_them() {
        let rmp = Rmp::new(0x10_0000, 0x10_7FFF).unwrap();
        assert_eq!(rmp.frames(), 0x400);
        assert_eq!(rmp.address(0x5123), Some(0x10_4050));
        assert_eq!(rmp.address(0x40_0000), None);
        let mut memory = TestMemory::new(0x20_0000);
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

    #[test]
    fn a_table_needs_room_and_alignment() {
        assert_eq!(Rmp::new(0, 0), None);
        assert_eq!(Rmp::new(0x1000, 0x10_0000), None);
        assert_eq!(Rmp::new(0x2000, 0x5FFF), None);
    }
}
