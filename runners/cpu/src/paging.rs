//! The page walk (SDM volume 3, 5.3 to 5.5; APM volume 2, 5.2 and 5.3): of 32-bit paging, of PAE paging, and with 4 or
//! 5 levels; the guest's and, for whoever builds one, that of nested paging.
//!
//! The four entries at the root of PAE paging are checked when CR3 is loaded and read from memory in each walk, as AMD
//! does under nested paging, and are no registers.

use crate::bus::{AccessKind, Encryption};
use crate::config::Config;
use crate::state::{CpuState, cr0, cr4, efer};

/// The entry leads somewhere.
pub const PTE_PRESENT: u64 = 1 << 0;
/// Writes are allowed.
pub const PTE_WRITABLE: u64 = 1 << 1;
/// User accesses are allowed.
pub const PTE_USER: u64 = 1 << 2;
/// A walk has used the entry.
pub const PTE_ACCESSED: u64 = 1 << 5;
/// The page was written.
pub const PTE_DIRTY: u64 = 1 << 6;
/// The entry of a directory maps a page.
pub const PTE_LARGE: u64 = 1 << 7;
/// Fetches are not allowed.
pub const PTE_NX: u64 = 1 << 63;
/// Address bits of a PTE.
pub const PTE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Error code of a page fault: the translation is there and does not allow the access.
pub const PF_PRESENT: u32 = 1 << 0;
/// Error code: a write.
pub const PF_WRITE: u32 = 1 << 1;
/// Error code: a user access.
pub const PF_USER: u32 = 1 << 2;
/// Error code: an entry has a reserved bit set.
pub const PF_RESERVED: u32 = 1 << 3;
/// Error code: a fetch.
pub const PF_FETCH: u32 = 1 << 4;

/// Who accesses memory, as far as page tables care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum View {
    /// CPL 0 to 2, or the processor itself.
    Supervisor = 0,
    /// CPL 3.
    User = 1,
    /// CPL 0 to 2 with EFLAGS.AC: SMAP does not apply.
    SupervisorAc = 2,
}

/// The registers that a walk depends on.
#[derive(Debug, Clone, Copy)]
pub struct WalkRegisters {
    /// Guest-physical address of the root.
    pub root: u64,
    /// 2 for 32-bit paging, 3 for PAE paging, 4 or 5.
    pub levels: u32,
    /// CR4.PSE: 32-bit paging has pages of 4 MiB.
    pub page_size_extensions: bool,
    /// CR0.WP.
    pub write_protect: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// EFER.NXE.
    pub no_execute: bool,
    /// See [`Config`].
    pub physical_bits: u8,
    /// See [`Config`].
    pub gigabyte_pages: bool,
    /// Which bit of an entry is no part of the address.
    pub encryption: Encryption,
}

impl WalkRegisters {
    /// The registers of a processor.
    #[must_use]
    pub fn of(state: &CpuState, config: &Config) -> WalkRegisters {
        let levels = match (state.long_mode(), state.cr4 & cr4::PAE != 0, state.cr4 & cr4::LA57 != 0) {
            (false, false, _) => 2,
            (false, true, _) => 3,
            (true, _, five) => 4 + u32::from(five),
        };
        WalkRegisters {
            root: match levels {
                2 => state.cr3 & 0xffff_f000,
                3 => state.cr3 & 0xffff_ffe0,
                _ => state.cr3 & PTE_ADDRESS & !state.encryption.mask(),
            },
            levels,
            page_size_extensions: state.cr4 & cr4::PSE != 0,
            write_protect: state.cr0 & cr0::WP != 0,
            smep: state.cr4 & cr4::SMEP != 0,
            smap: state.cr4 & cr4::SMAP != 0,
            no_execute: state.efer & efer::NXE != 0 && levels != 2,
            physical_bits: state.physical_bits(config),
            gigabyte_pages: config.gigabyte_pages,
            encryption: state.encryption,
        }
    }

    /// Bytes that an entry of this level maps.
    #[must_use]
    pub fn page_size(&self, level: u32) -> u64 {
        if self.levels == 2 { 4096 << (10 * (level - 1)) } else { 4096 << (9 * (level - 1)) }
    }

    /// Where the entry for a linear address is, from the beginning of its table.
    fn offset(&self, linear: u64, level: u32) -> u64 {
        let page = linear / self.page_size(level);
        match (self.levels, level) {
            (2, _) => (page & 0x3ff) * 4,
            (3, 3) => (page & 3) * 8,
            _ => (page & 0x1ff) * 8,
        }
    }

    /// Whether a present entry maps a page.
    fn is_leaf(&self, entry: u64, level: u32) -> bool {
        let large = entry & PTE_LARGE != 0;
        match (self.levels, level) {
            (_, 1) => true,
            (2, _) => large && self.page_size_extensions,
            (_, 2) => large,
            (4 | 5, 3) => large,
            _ => false,
        }
    }

    /// The address in an entry.
    fn address(&self, entry: u64, level: u32, leaf: bool) -> u64 {
        match self.levels {
            // PSE-36: bits 39 to 32 of the address are bits 20 to 13 of the entry.
            2 if leaf && level == 2 => entry & 0xffc0_0000 | (entry & 0x1f_e000) << 19,
            2 => entry & 0xffff_f000,
            _ => entry & PTE_ADDRESS & !self.encryption.mask(),
        }
    }

    /// Whether an access through a leaf entry is private.
    fn is_private(&self, entry: u64, kind: AccessKind) -> bool {
        // An entry of 32 bits has no room for the bit.
        if self.levels == 2 { self.encryption.walks_are_private() } else { self.encryption.is_private(entry, kind) }
    }

    /// Bits that must be zero in a present entry.
    fn reserved(&self, level: u32, large: bool) -> u64 {
        if self.levels == 2 {
            return if large { 1 << 21 } else { 0 };
        }
        if self.levels == 3 {
            let beyond = !(u64::MAX >> (64 - self.physical_bits)) & !PTE_NX & !self.encryption.mask();
            // A root entry has no rights, and no size.
            let here = if level == 3 { 0x1e6 | PTE_NX } else { 0 };
            return beyond | here | self.reserved_in_any(level, large);
        }
        self.reserved_in_any(level, large)
    }

    fn reserved_in_any(&self, level: u32, large: bool) -> u64 {
        let mut reserved = PTE_ADDRESS & !(u64::MAX >> (64 - self.physical_bits)) & !self.encryption.mask();
        if !self.no_execute {
            reserved |= PTE_NX;
        }
        if level >= 4 || level == 3 && (!self.gigabyte_pages || self.levels == 3) {
            reserved |= PTE_LARGE;
        }
        if large {
            // Bit 12 is PAT; the address bits below the page size are reserved.
            reserved |= (self.page_size(level) - 1) & !0x1fff;
            reserved &= !self.encryption.mask();
        }
        reserved
    }
}

/// How a walk reads and updates paging structures. Entries of 32 bits are dealt with in pairs.
pub trait Tables {
    /// Why an entry cannot be accessed.
    type Error;
    /// The 8 bytes at a guest-physical address, which is a multiple of 8.
    fn read(&mut self, gpa: u64) -> Result<u64, Self::Error>;
    /// Replaces what is at `gpa` if it still is `old`; says whether it was.
    fn update(&mut self, gpa: u64, old: u64, new: u64) -> Result<bool, Self::Error>;
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// To a page.
    Page {
        /// Guest-physical address of the 4 KiB page, without the encryption bit.
        gpa: u64,
        /// Private by the leaf entry.
        private: bool,
        /// Of the leaf entry: 1 for a page of 4 KiB, 2 for 2 MiB (4 MiB in 32-bit paging), 3 for 1 GiB.
        level: u32,
    },
    /// #PF with this error code.
    Fault(u32),
}

/// Whether the four entries that CR3 leads to can be loaded for PAE paging.
///
/// # Errors
/// What the tables have said.
pub fn root_is_valid<T: Tables>(tables: &mut T, registers: &WalkRegisters) -> Result<bool, T::Error> {
    for index in 0..4 {
        let entry = tables.read(registers.root + index * 8)?;
        if entry & PTE_PRESENT != 0 && entry & registers.reserved(3, false) != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Walks the page tables for one access. Accessed and dirty bits are set as the processor does, unless
/// `update` is false.
///
/// # Errors
/// What the tables have said.
pub fn walk<T: Tables>(
    tables: &mut T,
    registers: &WalkRegisters,
    linear: u64,
    kind: AccessKind,
    view: View,
    update: bool,
) -> Result<Walk, T::Error> {
    'restart: loop {
        let mut table = registers.root;
        let mut level = registers.levels;
        let mut rights = PTE_WRITABLE | PTE_USER;
        let mut no_execute = false;
        loop {
            let at = table + registers.offset(linear, level);
            let (pair, shift) = (tables.read(at & !7)?, (at & 7) * 8);
            let entry = if registers.levels == 2 { pair >> shift & 0xffff_ffff } else { pair };
            if entry & PTE_PRESENT == 0 {
                return Ok(Walk::Fault(error_code(registers, kind, view)));
            }
            let leaf = registers.is_leaf(entry, level);
            if entry & registers.reserved(level, leaf && level > 1) != 0 {
                return Ok(Walk::Fault(error_code(registers, kind, view) | PF_PRESENT | PF_RESERVED));
            }
            let root_of_pae = registers.levels == 3 && level == 3;
            let mut wanted = entry;
            if !root_of_pae {
                rights &= entry;
                no_execute |= entry & PTE_NX != 0;
                wanted |= PTE_ACCESSED;
            }
            if leaf {
                if !allowed(registers, rights, no_execute, kind, view) {
                    return Ok(Walk::Fault(error_code(registers, kind, view) | PF_PRESENT));
                }
                if kind == AccessKind::Write {
                    wanted |= PTE_DIRTY;
                }
            }
            // Somebody changed the entry under the walk: what was read of it is worth nothing.
            if update && wanted != entry && !tables.update(at & !7, pair, pair | wanted << shift)? {
                continue 'restart;
            }
            let address = registers.address(entry, level, leaf);
            if leaf {
                let offset_mask = registers.page_size(level) - 1;
                return Ok(Walk::Page {
                    gpa: (address & !offset_mask | linear & offset_mask) & !0xfff,
                    private: registers.is_private(entry, kind),
                    level,
                });
            }
            table = address;
            level -= 1;
        }
    }
}

fn error_code(registers: &WalkRegisters, kind: AccessKind, view: View) -> u32 {
    let user = if view == View::User { PF_USER } else { 0 };
    user | match kind {
        AccessKind::Read => 0,
        AccessKind::Write => PF_WRITE,
        AccessKind::Fetch if registers.no_execute || registers.smep => PF_FETCH,
        AccessKind::Fetch => 0,
    }
}

fn allowed(registers: &WalkRegisters, rights: u64, no_execute: bool, kind: AccessKind, view: View) -> bool {
    let user_page = rights & PTE_USER != 0;
    let writable = rights & PTE_WRITABLE != 0;
    if view == View::User && !user_page {
        return false;
    }
    let supervisor_on_user_page = view != View::User && user_page;
    match kind {
        AccessKind::Fetch => !(no_execute || supervisor_on_user_page && registers.smep),
        AccessKind::Read | AccessKind::Write => {
            !(supervisor_on_user_page && registers.smap && view != View::SupervisorAc)
                && (kind == AccessKind::Read || writable || view != View::User && !registers.write_protect)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Page tables by address; what is not there is zero.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Sparse(HashMap<u64, u64>);

    impl Tables for Sparse {
        type Error = Infallible;

        fn read(&mut self, gpa: u64) -> Result<u64, Infallible> {
            Ok(self.0.get(&gpa).copied().unwrap_or(0))
        }

        fn update(&mut self, gpa: u64, old: u64, new: u64) -> Result<bool, Infallible> {
            assert_eq!(self.read(gpa)?, old);
            self.0.insert(gpa, new);
            Ok(true)
        }
    }

    /// The manual's tables word for word, slowly: walk first, then rights, then the error code.
    fn naive(tables: &Sparse, r: &WalkRegisters, linear: u64, kind: AccessKind, view: View) -> Walk {
        let mut entries = Vec::new();
        let mut present = true;
        let mut reserved = false;
        let mut table = r.root;
        let mut page = None;
        for level in (1..=r.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let entry = tables.0.get(&(table + 8 * (linear >> shift & 511))).copied().unwrap_or(0);
            if entry & 1 == 0 {
                present = false;
                break;
            }
            entries.push(entry);
            let large = entry & 0x80 != 0 && level > 1;
            let encryption = r.encryption.mask();
            let mut must_be_zero = vec![];
            must_be_zero.extend((u32::from(r.physical_bits)..52).filter(|bit| encryption >> bit & 1 == 0));
            if !r.no_execute {
                must_be_zero.push(63);
            }
            if large && (level > 3 || level == 3 && !r.gigabyte_pages) {
                must_be_zero.push(7);
            } else if large {
                must_be_zero.extend((13..shift).filter(|bit| encryption >> bit & 1 == 0));
            }
            if must_be_zero.iter().any(|bit| entry >> bit & 1 != 0) {
                reserved = true;
                break;
            }
            let frame = entry & 0x000f_ffff_ffff_f000 & !encryption;
            if large || level == 1 {
                let offset = linear & ((1 << shift) - 1);
                page = Some(((frame >> shift << shift | offset) & !0xfff, level));
                break;
            }
            table = frame;
        }
        let all = |bit: u64| entries.iter().all(|entry| entry & bit != 0);
        let any = |bit: u64| entries.iter().any(|entry| entry & bit != 0);
        let (user, writable, nx) = (all(4), all(2), any(1 << 63));
        let user_access = view == View::User;
        let mut code = 0;
        if kind == AccessKind::Write {
            code |= 2;
        }
        if user_access {
            code |= 4;
        }
        if kind == AccessKind::Fetch && (r.no_execute || r.smep) {
            code |= 16;
        }
        if !present {
            return Walk::Fault(code);
        }
        if reserved {
            return Walk::Fault(code | 9);
        }
        let denied = match (user_access, kind) {
            (true, _) if !user => true,
            (true, AccessKind::Read) => false,
            (true, AccessKind::Write) => !writable,
            (_, AccessKind::Fetch) => nx || !user_access && user && r.smep,
            (false, _) if user && r.smap && view != View::SupervisorAc => true,
            (false, AccessKind::Read) => false,
            (false, AccessKind::Write) => r.write_protect && !writable,
        };
        if denied {
            return Walk::Fault(code | 1);
        }
        let leaf = *entries.last().expect("a page has a leaf");
        let private = match r.encryption {
            Encryption::None => false,
            Encryption::CBit(bit) => kind == AccessKind::Fetch || leaf >> bit & 1 == 1,
            Encryption::SharedBit(bit) => leaf >> bit & 1 == 0,
        };
        let (gpa, level) = page.expect("present and not reserved");
        Walk::Page { gpa, private, level }
    }

    fn entry_bits() -> impl Strategy<Value = u64> {
        // Mostly valid entries, so that walks get somewhere.
        let flag = |bit: u32, weight| prop::bool::weighted(weight).prop_map(move |set| u64::from(set) << bit);
        (
            (flag(0, 0.95), flag(1, 0.8), flag(2, 0.8), flag(5, 0.5), flag(6, 0.5), flag(7, 0.3), flag(63, 0.15)),
            (flag(51, 0.03), flag(46, 0.03), flag(47, 0.3), flag(13, 0.1), flag(20, 0.1), flag(21, 0.1)),
        )
            .prop_map(|(a, b)| a.0 | a.1 | a.2 | a.3 | a.4 | a.5 | a.6 | b.0 | b.1 | b.2 | b.3 | b.4 | b.5)
    }

    /// A walk of `linear` for a user's write, in 32-bit or PAE paging with its root at 0x1000.
    fn short_walk(levels: u32, entries: &[(u64, u64)], linear: u64) -> (Walk, Sparse) {
        let registers = WalkRegisters {
            root: 0x1000,
            levels,
            page_size_extensions: true,
            write_protect: true,
            smep: false,
            smap: false,
            no_execute: levels == 3,
            gigabyte_pages: true,
            physical_bits: 46,
            encryption: Encryption::None,
        };
        let mut tables = Sparse(entries.iter().copied().collect());
        let walk = walk(&mut tables, &registers, linear, AccessKind::Write, View::User, true);
        (walk.expect("infallible"), tables)
    }

    fn page(gpa: u64, level: u32) -> Walk {
        Walk::Page { gpa, private: false, level }
    }

    #[test]
    fn paging_of_32_bits() {
        // Entries 1 and 0x3ff of the directory, then 2 of the table: the odd one of a pair, and the even one.
        let tables = [(0x1000, 0x2007 << 32), (0x2008, 0x0dea_d007)];
        let (walked, after) = short_walk(2, &tables, 0x40_2345);
        assert_eq!(walked, page(0x0dea_d000, 1));
        assert_eq!(after.0, [(0x1000, 0x2027 << 32), (0x2008, 0x0dea_d067)].into(), "A, and D in the leaf");
        // A page of 4 MiB above 4 GiB.
        let (walked, _) = short_walk(2, &[(0x1ff8, (0xffc0_0087 | 0x5a << 13) << 32)], 0xffff_f123);
        assert_eq!(walked, page(0x5a_ffff_f000, 2));
        let (walked, _) = short_walk(2, &[(0x1ff8, (0xffe0_0087) << 32)], 0xffff_f123);
        assert_eq!(walked, Walk::Fault(PF_PRESENT | PF_RESERVED | PF_WRITE | PF_USER));
        assert_eq!(short_walk(2, &[], 0).0, Walk::Fault(PF_WRITE | PF_USER));
        assert_eq!(short_walk(2, &[(0x1000, 0x2003), (0x2000, 7)], 0).0, Walk::Fault(PF_PRESENT | PF_WRITE | PF_USER));
    }

    #[test]
    fn paging_with_pae() {
        let root = (0x1018, 0x2001);
        let (walked, after) = short_walk(3, &[root, (0x2ff8, 0x3007), (0x3008, 0xa_bcde_f007)], 0xffe0_1234);
        assert_eq!(walked, page(0xa_bcde_f000, 1));
        assert_eq!(after.0, [root, (0x2ff8, 0x3027), (0x3008, 0xa_bcde_f067)].into(), "nothing is set in the root");
        let (walked, _) = short_walk(3, &[root, (0x2ff8, 0x4000_0087)], 0xffff_f000);
        assert_eq!(walked, page(0x401f_f000, 2));
        for (bits, entry) in [(0x1e6, 3), (PTE_NX, 3), (1 << 52, 3), (1 << 46, 3), (1 << 52, 2), (1 << 62, 2)] {
            for bit in (0..64).map(|bit| 1 << bit).filter(|bit| bits & bit != 0) {
                let of = |level, value| if level == entry { value | bit } else { value };
                let tables = [(0x1018, of(3, 0x2001)), (0x2ff8, of(2, 0x4000_0087))];
                let walked = short_walk(3, &tables, 0xffff_f000).0;
                assert_eq!(
                    walked,
                    Walk::Fault(PF_PRESENT | PF_RESERVED | PF_WRITE | PF_USER),
                    "{bit:#x} of level {entry}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_walk(
            bits in prop::collection::vec(entry_bits(), 5),
            linear in any::<u64>(),
            switches in any::<[bool; 6]>(),
            five in any::<bool>(),
            encryption in prop::sample::select(vec![Encryption::None, Encryption::CBit(47), Encryption::SharedBit(47)]),
            kind in prop::sample::select(vec![AccessKind::Read, AccessKind::Write, AccessKind::Fetch]),
            view in prop::sample::select(vec![View::Supervisor, View::User, View::SupervisorAc]),
        ) {
            let registers = WalkRegisters {
                root: 0x1000,
                levels: if five { 5 } else { 4 },
                page_size_extensions: false,
                write_protect: switches[0],
                smep: switches[1],
                smap: switches[2],
                no_execute: switches[3],
                gigabyte_pages: switches[4],
                physical_bits: if switches[5] { 46 } else { 48 },
                encryption,
            };
            let mut tables = Sparse::default();
            // Each level's table follows the one above; address bits below 13 are the tables' own.
            for level in 1..=registers.levels {
                let depth = u64::from(registers.levels - level);
                let at = 0x1000 * (depth + 1) + (linear >> (12 + 9 * (level - 1)) & 511) * 8;
                let next = 0x1000 * (depth + 2);
                let keep = if level > 1 && bits[depth as usize] & 0x80 == 0 { !0x30_2000 } else { u64::MAX };
                tables.0.insert(at, bits[depth as usize] & keep | next);
            }
            let before = tables.clone();
            let expected = naive(&before, &registers, linear, kind, view);
            prop_assert_eq!(walk(&mut tables, &registers, linear, kind, view, false).expect("infallible"), expected);
            prop_assert_eq!(&tables, &before, "without update nothing changes");
            prop_assert_eq!(walk(&mut tables, &registers, linear, kind, view, true).expect("infallible"), expected);
            for (gpa, entry) in &tables.0 {
                let was = before.0[gpa];
                prop_assert_eq!(entry & !0x60, was & !0x60, "only A and D change");
                prop_assert_eq!(entry & was & 0x60, was & 0x60, "and are never cleared");
            }
            if matches!(expected, Walk::Page { .. }) {
                let wanted = if kind == AccessKind::Write { 0x60 } else { 0x20 };
                let changed = tables.0.values().filter(|entry| *entry & wanted == wanted).count();
                prop_assert!(changed >= 1, "the leaf has its bits");
                prop_assert_eq!(walk(&mut tables.clone(), &registers, linear, kind, view, true).expect("infallible"), expected);
            }
        }
    }
}
