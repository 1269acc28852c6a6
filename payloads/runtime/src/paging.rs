//! The guest's own page tables: 4 levels, in identity-mapped memory (Intel SDM vol. 3, 4.5).
#![expect(unsafe_code, reason = "page tables are found by their addresses")]

use core::arch::asm;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::SeqCst;

use privet_protocol::{AliasBits, Refusal};

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
/// Ignored by the CPU: marks an entry from which [`hide`] took PRESENT.
const HIDDEN: u64 = 1 << 9;

/// An entry that cannot be had, and the address that it was wanted for.
pub type Refused = (Refusal, u64);

/// What a leaf entry says of an address.
pub struct Translation {
    /// The GPA of the address's page of 4 KiB.
    pub gpa: u64,
    /// The entry.
    pub bits: u64,
}

/// Where `gva` leads in the page tables that the CPU uses, as its page walk finds it: 4 KiB and 2 MiB pages.
pub fn translate(aliases: AliasBits, gva: u64) -> Option<Translation> {
    let mask = aliases.address_mask();
    let mut table = root(mask);
    for shift in [39, 30, 21, 12] {
        let entry = slot(table, gva, shift).load(SeqCst);
        if entry & PRESENT == 0 {
            return None;
        }
        table = entry & mask;
        if entry & LARGE != 0 && shift == 21 {
            return Some(Translation { gpa: (table & !0x1f_ffff) + (gva & 0x1f_f000), bits: entry });
        }
        if shift == 12 {
            return Some(Translation { gpa: table, bits: entry });
        }
    }
    None
}

/// The root of the page tables that the CPU uses.
fn root(address_mask: u64) -> u64 {
    let cr3: u64;
    // SAFETY: only reads a register, in ring 0.
    unsafe { asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack, preserves_flags)) };
    cr3 & address_mask
}

/// A range of pages that are all mapped by 4 KiB entries, present or not.
#[derive(Clone, Copy)]
pub struct Range {
    address_mask: u64,
    root: u64,
    gva: u64,
    pages: u64,
}

impl Range {
    /// The range in the page tables that the CPU uses. All of it is checked before anything is changed.
    ///
    /// # Errors
    /// [`Refusal::Unaligned`], [`Refusal::LargePage`], or [`Refusal::NotMapped`] if an entry is missing or was
    /// never filled, or the range is not one of canonical addresses.
    pub fn current(aliases: AliasBits, gva: u64, pages: u64) -> Result<Self, Refused> {
        let mask = aliases.address_mask();
        // SAFETY: the host maps the tables of a payload identically, and for good.
        unsafe { Self::new(mask, root(mask), gva, pages) }
    }

    /// The range in the tables under `root`, in whose entries `address_mask` are the bits of an address.
    ///
    /// # Safety
    /// The tables lie at their physical addresses, for good, and are only accessed as atomics.
    unsafe fn new(address_mask: u64, root: u64, gva: u64, pages: u64) -> Result<Self, Refused> {
        if !gva.is_multiple_of(PAGE_SIZE) {
            return Err((Refusal::Unaligned, gva));
        }
        let last = pages.checked_mul(PAGE_SIZE).and_then(|bytes| gva.checked_add(bytes)).map(|end| end.wrapping_sub(1));
        let canonical = |address: u64| (address as i64) << 16 >> 16 == address as i64;
        // Tables are walked page by page, so a gap between two canonical halves is found there.
        if !canonical(gva) || !last.is_some_and(canonical) {
            return Err((Refusal::NotMapped, gva));
        }
        let range = Self { address_mask, root, gva, pages };
        for page in 0..pages {
            range.entry(page)?;
        }
        Ok(range)
    }

    /// The 4 KiB entry of page `index` of the range.
    fn entry(&self, index: u64) -> Result<&'static AtomicU64, Refused> {
        let gva = self.gva + index * PAGE_SIZE;
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let entry = slot(table, gva, shift).load(SeqCst);
            if entry & PRESENT == 0 {
                return Err((Refusal::NotMapped, gva));
            }
            if entry & LARGE != 0 {
                return Err((Refusal::LargePage, gva));
            }
            table = entry & self.address_mask;
        }
        match slot(table, gva, 12) {
            empty if empty.load(SeqCst) == 0 => Err((Refusal::NotMapped, gva)),
            entry => Ok(entry),
        }
    }

    fn entries(&self) -> impl Iterator<Item = &'static AtomicU64> {
        // `new` found every one of them, and tables do not go away.
        (0..self.pages).filter_map(|page| self.entry(page).ok())
    }

    /// Sets or clears PRESENT everywhere. The TLB is the caller's business.
    pub fn set_present(&self, present: bool) {
        for entry in self.entries() {
            if present {
                entry.fetch_or(PRESENT, SeqCst);
            } else {
                entry.fetch_and(!PRESENT, SeqCst);
            }
        }
    }

    /// Clears PRESENT where it is set, so that [`Self::restore`] can set it again. The TLB is the caller's
    /// business.
    pub fn hide(&self) {
        for entry in self.entries() {
            if entry.load(SeqCst) & PRESENT != 0 {
                // One store: entries never are half of each.
                entry.fetch_xor(PRESENT | HIDDEN, SeqCst);
            }
        }
    }

    /// Undoes [`Self::hide`]. What was not present before still is not.
    pub fn restore(&self) {
        for entry in self.entries() {
            if entry.load(SeqCst) & HIDDEN != 0 {
                entry.fetch_xor(PRESENT | HIDDEN, SeqCst);
            }
        }
    }

    /// The entry of the first page.
    pub fn first(&self) -> u64 {
        self.entries().next().map_or(0, |entry| entry.load(SeqCst))
    }

    /// Writes the entry of the first page. The TLB is the caller's business.
    pub fn set_first(&self, value: u64) {
        if let Some(entry) = self.entries().next() {
            entry.store(value, SeqCst);
        }
    }

    /// How many pages are present.
    pub fn present(&self) -> u64 {
        self.entries().filter(|entry| entry.load(SeqCst) & PRESENT != 0).count() as u64
    }
}

fn slot(table: u64, gva: u64, shift: u32) -> &'static AtomicU64 {
    let index = gva >> shift & 0x1ff;
    // SAFETY: `Range::new` was promised that tables lie at their addresses; the index stays within a table.
    unsafe { &*((table + index * 8) as *const AtomicU64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As of a guest whose entries say what is private; so do those of the tables below.
    const ALIASES: AliasBits = AliasBits { private: 1 << 51, shared: 0 };

    #[repr(align(4096))]
    struct Table([AtomicU64; 512]);

    /// Three pages of 4 KiB from 0x20_0000 on (the third not present), a fourth that was never filled, and a
    /// page of 2 MiB from 0x40_0000 on. In the host's memory, whose addresses stand for physical ones.
    fn tables() -> &'static [Table; 4] {
        let tables: &'static [Table; 4] = Box::leak(Box::new([const { Table([const { AtomicU64::new(0) }; 512]) }; 4]));
        let address = |level: usize| tables[level].0.as_ptr() as u64;
        tables[0].0[0].store(address(1) | ALIASES.private | PRESENT, SeqCst);
        tables[1].0[0].store(address(2) | PRESENT, SeqCst);
        tables[2].0[1].store(address(3) | ALIASES.private | PRESENT, SeqCst);
        tables[2].0[2].store(0x40_0000 | LARGE | PRESENT, SeqCst);
        tables[3].0[0].store(0x20_0000 | PRESENT, SeqCst);
        tables[3].0[1].store(0x20_1000 | PRESENT, SeqCst);
        tables[3].0[2].store(0x20_2000, SeqCst);
        tables
    }

    fn range(tables: &'static [Table; 4], gva: u64, pages: u64) -> Result<Range, Refused> {
        // SAFETY: the tables are leaked and hold host addresses of each other.
        unsafe { Range::new(ALIASES.address_mask(), tables[0].0.as_ptr() as u64, gva, pages) }
    }

    fn entries(tables: &'static [Table; 4]) -> [u64; 3] {
        [0, 1, 2].map(|i| tables[3].0[i].load(SeqCst))
    }

    #[test]
    fn hiding_and_restoring_leaves_every_entry_as_it_was() {
        let tables = tables();
        let before = entries(tables);
        let range = range(tables, 0x20_0000, 3).unwrap();
        assert_eq!(range.present(), 2);
        range.hide();
        assert_eq!(range.present(), 0);
        range.restore();
        assert_eq!(entries(tables), before);
    }

    #[test]
    fn presence_can_be_set_page_by_page() {
        let tables = tables();
        range(tables, 0x20_1000, 2).unwrap().set_present(true);
        assert_eq!(range(tables, 0x20_0000, 3).unwrap().present(), 3);
        range(tables, 0x20_1000, 1).unwrap().set_present(false);
        assert_eq!(entries(tables), [0x20_0001, 0x20_1000, 0x20_2001]);
    }

    #[test]
    fn one_entry_can_be_read_and_written() {
        let tables = tables();
        let range = range(tables, 0x20_1000, 1).unwrap();
        assert_eq!(range.first(), 0x20_1001);
        range.set_first(0x7000 | PRESENT);
        assert_eq!(entries(tables), [0x20_0001, 0x7001, 0x20_2000]);
    }

    #[test]
    fn what_has_no_small_entry_is_refused_with_its_address() {
        let tables = tables();
        let refusal = |gva, pages| range(tables, gva, pages).err();
        assert_eq!(refusal(0x20_0008, 1), Some((Refusal::Unaligned, 0x20_0008)));
        assert_eq!(refusal(0x20_0000, 4), Some((Refusal::NotMapped, 0x20_3000)));
        assert_eq!(refusal(0x40_0000, 1), Some((Refusal::LargePage, 0x40_0000)));
        assert_eq!(refusal(0x60_0000, 1), Some((Refusal::NotMapped, 0x60_0000)));
        assert_eq!(refusal(1 << 47, 1), Some((Refusal::NotMapped, 1 << 47)));
        assert_eq!(refusal(0x20_0000, u64::MAX), Some((Refusal::NotMapped, 0x20_0000)));
        assert_eq!(entries(tables), [0x20_0001, 0x20_1001, 0x20_2000], "a refusal changes nothing");
    }
}
