//! The guest's 4-level page tables, built by the host before the guest first runs (Intel SDM vol. 3, 4.5).

use crate::units::{Gpa, Gva, PAGE_SIZE, PageCount};

/// The entry is valid.
pub const PRESENT: u64 = 1 << 0;
/// Writes are allowed.
pub const WRITABLE: u64 = 1 << 1;
/// Accesses from ring 3 are allowed.
pub(crate) const USER: u64 = 1 << 2;
/// Accessed: set beforehand, so that the CPU does not write to tables that a row wants to compare.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty, likewise.
pub const DIRTY: u64 = 1 << 6;
/// The entry of level 2 maps 2 MiB.
pub const LARGE: u64 = 1 << 7;

const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED;
const LEAF: u64 = PRESENT | WRITABLE | ACCESSED | DIRTY;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bytes that an entry of level 2 maps.
pub(crate) const LARGE_PAGE_SIZE: u64 = 2 << 20;

type Table = [u64; 512];

/// Page tables under construction. Table `i` will lie at `base + i` pages; the root is table 0.
pub struct PageTables {
    base: Gpa,
    /// What entries that lead to other tables have set beside flags and address.
    bits: u64,
    tables: Vec<Table>,
}

impl PageTables {
    /// Empty tables that will be loaded at `base`, which must be page-aligned.
    pub fn new(base: Gpa) -> Self {
        Self { base, bits: 0, tables: vec![[0; 512]] }
    }

    /// The same, empty as they are, with this bit (a C-bit) in every entry that leads to another table.
    pub fn with_bits(self, bits: u64) -> Self {
        Self { bits, ..self }
    }

    /// The value for CR3.
    pub fn root(&self) -> Gpa {
        self.base
    }

    /// The pages that the tables occupy from [`Self::root`] on.
    pub fn pages(&self) -> PageCount {
        PageCount(self.tables.len() as u64)
    }

    /// Maps `pages` 4 KiB pages, writable and executable in ring 0, with 4 KiB entries.
    pub fn map(&mut self, gva: Gva, gpa: Gpa, pages: PageCount) {
        for page in 0..pages.0 {
            let bytes = page * PAGE_SIZE;
            *self.entry(gva + bytes, 1) = (gpa + bytes).0 | LEAF;
        }
    }

    /// Maps `count` pages of 2 MiB, writable and executable in ring 0. Both addresses must be 2 MiB-aligned.
    pub fn map_large(&mut self, gva: Gva, gpa: Gpa, count: u64) {
        for page in 0..count {
            let bytes = page * LARGE_PAGE_SIZE;
            *self.entry(gva + bytes, 2) = (gpa + bytes).0 | LEAF | LARGE;
        }
    }

    /// The GPA of the 4 KiB entry that maps `gva`, for rows that look at it.
    pub(crate) fn entry_gpa(&self, gva: Gva) -> Option<Gpa> {
        self.entry_of_level(gva, 1)
    }

    /// The GPA of the page-directory entry (level 2) for `gva`, whatever it holds.
    pub(crate) fn directory_entry_gpa(&self, gva: Gva) -> Option<Gpa> {
        self.entry_of_level(gva, 2)
    }

    fn entry_of_level(&self, gva: Gva, wanted: u32) -> Option<Gpa> {
        let mut table = 0;
        for level in (wanted + 1..=4).rev() {
            let entry = self.tables[table][index(gva, level)];
            if entry & PRESENT == 0 || entry & LARGE != 0 {
                return None;
            }
            table = self.table_of(entry);
        }
        Some(self.base + PageCount(table as u64) + index(gva, wanted) as u64 * 8)
    }

    /// The tables as bytes, in the order of their pages.
    pub fn bytes(&self) -> Vec<u8> {
        self.tables.iter().flatten().map(|entry| entry.to_le_bytes()).collect::<Vec<_>>().into_flattened()
    }

    fn table_of(&self, entry: u64) -> usize {
        (((entry & ADDRESS & !self.bits) - self.base.0) / PAGE_SIZE) as usize
    }

    /// The entry of `level` (1: 4 KiB, 2: 2 MiB) on the way to `gva`; tables above it are made as needed.
    fn entry(&mut self, gva: Gva, leaf: u32) -> &mut u64 {
        let mut table = 0;
        for level in (leaf + 1..=4).rev() {
            let slot = index(gva, level);
            if self.tables[table][slot] & PRESENT == 0 {
                self.tables[table][slot] = (self.base + self.pages()).0 | TABLE | self.bits;
                self.tables.push([0; 512]);
            }
            table = self.table_of(self.tables[table][slot]);
        }
        &mut self.tables[table][index(gva, leaf)]
    }
}

const fn index(gva: Gva, level: u32) -> usize {
    (gva.0 >> (12 + 9 * (level - 1)) & 0x1ff) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The GPA that `gva` is mapped to.
    fn translate(tables: &PageTables, gva: Gva) -> Option<Gpa> {
        let mut table = 0;
        for level in (1..=4).rev() {
            let entry = tables.tables[table][index(gva, level)];
            if entry & PRESENT == 0 {
                return None;
            }
            let span = PAGE_SIZE << (9 * (level - 1));
            if level == 1 || entry & LARGE != 0 {
                return Some(Gpa((entry & ADDRESS & !(span - 1)) + (gva.0 & (span - 1))));
            }
            table = tables.table_of(entry);
        }
        unreachable!("level 1 is always a leaf")
    }

    #[test]
    fn two_aliases_of_a_range_lead_to_the_same_pages() {
        let mut tables = PageTables::new(Gpa(0x30_0000));
        let gpa = Gpa(0x1_0000_0000);
        for alias in [0, 1 << 39] {
            tables.map(Gva(gpa.0 | alias), gpa, PageCount(513));
        }
        assert_eq!(translate(&tables, Gva(0x1_0020_0123)), Some(Gpa(0x1_0020_0123)));
        assert_eq!(translate(&tables, Gva(0x80_0000_0000 | 0x1_0000_0fff)), Some(Gpa(0x1_0000_0fff)));
        assert_eq!(translate(&tables, Gva(0x1_0020_1000)), None);
        // Root; for each alias a level 3, a level 2 and two tables of level 1.
        assert_eq!(tables.pages(), PageCount(1 + 2 * 4));
    }

    #[test]
    fn large_pages_keep_the_offset() {
        let mut tables = PageTables::new(Gpa(0x30_0000));
        tables.map_large(Gva(0), Gpa(0), 2);
        assert_eq!(translate(&tables, Gva(0x3f_1234)), Some(Gpa(0x3f_1234)));
        assert_eq!(translate(&tables, Gva(0x40_0000)), None);
        assert_eq!(tables.entry_gpa(Gva(0x1000)), None, "a 2 MiB page has no 4 KiB entry");
    }

    proptest! {
        /// A walk over the finished bytes, as the CPU does it, finds what was mapped.
        #[test]
        fn the_bytes_say_what_was_mapped(pages in prop::collection::btree_map(0u64..1 << 36, 0u64..1 << 40, 1..40)) {
            let base = Gpa(0x40_0000);
            let mut tables = PageTables::new(base);
            for (gva, gpa) in &pages {
                tables.map(Gva(gva << 12), Gpa(gpa << 12), PageCount(1));
            }
            let bytes = tables.bytes();
            prop_assert_eq!(bytes.len() as u64, tables.pages().bytes());
            let word = |gpa: u64| {
                let at = (gpa - base.0) as usize;
                u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
            };
            for (gva, gpa) in &pages {
                let mut table = base.0;
                for shift in [39, 30, 21, 12] {
                    let entry = word(table + ((gva << 12) >> shift & 0x1ff) * 8);
                    prop_assert_eq!(entry & 3, 3);
                    table = entry & 0x000f_ffff_ffff_f000;
                }
                prop_assert_eq!(table, gpa << 12);
                let entry = tables.entry_gpa(Gva(gva << 12)).unwrap();
                prop_assert_eq!(word(entry.0) & 0x000f_ffff_ffff_f000, gpa << 12);
            }
        }
    }
}
