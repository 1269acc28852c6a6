//! Memory that the host has given to the module, and what each page of it is (TDMRs and the PAMT; TDX module base
//! architecture, "Physical Memory Management").
//!
//! The entries are here and not in the memory that the host allots for them; that memory is the module's all the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::{Code, Operand, Status};
use super::surroundings::Chip;
use super::tdmr::TdmrInfo;
use crate::KeyedMemory;
use crate::encryption::Key;

/// Bytes that one TDH.SYS.TDMR.INIT initialises.
const STEP: u64 = 1 << 30;

pub(super) const PAGE: u64 = 4096;

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum PageType {
    /// Nobody's: the host uses it, or may give it to a TD (NDA).
    Free = 0,
    /// In a reserved area of its TDMR: never the module's.
    Reserved = 1,
    /// A TD's memory.
    Regular = 3,
    /// The root of a TD.
    Tdr = 4,
    /// A control page of a TD or of a vCPU.
    Tdcx = 5,
    /// The root of a vCPU.
    Tdvpr = 6,
    /// A page of an S-EPT.
    SecureEpt = 8,
}

/// A page that is somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) kind: PageType,
    /// The TDR of its TD, of a TDR 0.
    pub(super) owner: u64,
    /// The epoch in which the mapping of the page was blocked.
    pub(super) blocked: u64,
}

/// A TDMR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tdmr {
    info: TdmrInfo,
    /// The first address that is not initialised.
    next: u64,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Pamt {
    tdmrs: Vec<Tdmr>,
    entries: BTreeMap<u64, Entry>,
}

impl Pamt {
    /// For these TDMRs, of which nothing is initialised.
    pub(super) fn new(infos: Vec<TdmrInfo>) -> Pamt {
        let tdmrs = infos.into_iter().map(|info| Tdmr { next: info.base, info }).collect();
        Pamt { tdmrs, entries: BTreeMap::new() }
    }

    /// TDH.SYS.TDMR.INIT: the entries of the next part of a TDMR. The first address behind it.
    pub(super) fn initialise(&mut self, memory: &mut dyn KeyedMemory, key: Key, base: u64) -> Result<u64, Status> {
        let found = self.tdmrs.iter_mut().find(|tdmr| tdmr.info.base == base);
        let tdmr = found.ok_or(Code::OperandInvalid.on(Operand::Rcx))?;
        let end = tdmr.info.base + tdmr.info.size;
        if tdmr.next == end {
            return Err(Code::TdmrAlreadyInitialized.into());
        }
        let step = STEP.min(end - tdmr.next);
        for part in tdmr.info.entries_of(tdmr.next..tdmr.next + step) {
            for pa in part.clone().step_by(PAGE as usize) {
                memory.write_as(key, pa, &[0; PAGE as usize][..PAGE.min(part.end - pa) as usize]);
            }
        }
        tdmr.next += step;
        Ok(tdmr.next)
    }

    /// What the page is; none if it lies in no TDMR or is not initialised.
    pub(super) fn kind(&self, pa: u64) -> Option<PageType> {
        let tdmr = self.tdmrs.iter().find(|tdmr| (tdmr.info.base..tdmr.next).contains(&pa))?;
        if tdmr.info.reserves(pa) {
            return Some(PageType::Reserved);
        }
        Some(self.entries.get(&pa).map_or(PageType::Free, |entry| entry.kind))
    }

    /// The entry of a page that is somebody's.
    pub(super) fn entry(&self, pa: u64) -> Option<&Entry> {
        self.entries.get(&pa)
    }

    pub(super) fn entry_mut(&mut self, pa: u64) -> Option<&mut Entry> {
        self.entries.get_mut(&pa)
    }

    /// How many pages of a kind there are.
    pub(super) fn count(&self, kind: PageType) -> usize {
        self.entries.values().filter(|entry| entry.kind == kind).count()
    }

    /// A page that an operand names and that is of this kind.
    pub(super) fn check(&self, chip: &Chip, pa: u64, kind: PageType, operand: Operand) -> Result<(), Status> {
        chip.check_page(pa, PAGE, operand)?;
        match self.kind(pa) {
            None => Err(Code::OperandAddrRangeError.on(operand)),
            Some(found) if found == kind => Ok(()),
            Some(_) => Err(Code::PageMetadataIncorrect.on(operand)),
        }
    }

    /// A page that is free becomes `owner`'s. The caller has checked it.
    pub(super) fn take(&mut self, pa: u64, kind: PageType, owner: u64) {
        self.entries.insert(pa, Entry { kind, owner, blocked: 0 });
    }

    /// It is nobody's any more.
    pub(super) fn release(&mut self, pa: u64) {
        self.entries.remove(&pa);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::TestMemory;

    const GIB: u64 = 1 << 30;

    fn pamt() -> Pamt {
        let info = TdmrInfo {
            base: 0,
            size: 2 * GIB,
            pamt: [0x1000..0x2000, 0x2000..0x4000, 0x4000..0x80_4000],
            reserved: std::iter::once(0..0x80_4000).collect(),
        };
        Pamt::new(vec![info])
    }

    #[test]
    fn a_tdmr_is_initialised_step_by_step() {
        let (mut pamt, mut memory) = (pamt(), TestMemory::new(0x80_5000));
        assert_eq!(pamt.kind(0x90_0000), None);
        let key = Key::numbered(1);
        assert_eq!(pamt.initialise(&mut memory, key, 0), Ok(GIB));
        assert_eq!(pamt.kind(0x90_0000), Some(PageType::Free));
        assert_eq!(pamt.kind(GIB), None);
        assert_eq!(pamt.initialise(&mut memory, key, 0), Ok(2 * GIB));
        assert_eq!(pamt.kind(GIB), Some(PageType::Free));
        assert_eq!(pamt.initialise(&mut memory, key, 0), Err(Code::TdmrAlreadyInitialized.into()));
        assert_eq!(pamt.initialise(&mut memory, key, GIB), Err(Code::OperandInvalid.on(Operand::Rcx)));
    }

    #[test]
    fn the_host_cannot_read_the_memory_of_the_entries() {
        let (mut pamt, mut memory) = (pamt(), TestMemory::new(0x80_5000));
        pamt.initialise(&mut memory, Key::numbered(1), 0).unwrap();
        for (pa, hidden) in [(0x1000, true), (0x2000, true), (0x4000, true), (0x40_3000, true), (0x80_4000, false)] {
            assert_eq!(crate::read_u64(&mut memory, pa) != 0, hidden, "{pa:#x}");
        }
    }

    #[test]
    fn a_page_is_checked_in_the_order_of_the_specification() {
        let (mut pamt, mut memory) = (pamt(), TestMemory::new(0x80_5000));
        let chip = crate::tdx::test_machine::chip();
        pamt.initialise(&mut memory, Key::numbered(1), 0).unwrap();
        let check = |pamt: &Pamt, pa| pamt.check(&chip, pa, PageType::Free, Operand::R8);
        assert_eq!(check(&pamt, 0x90_0000), Ok(()));
        assert_eq!(check(&pamt, 0x90_0001), Err(Code::OperandInvalid.on(Operand::R8)));
        assert_eq!(check(&pamt, 0x90_0000 | 33 << 46), Err(Code::OperandInvalid.on(Operand::R8)));
        assert_eq!(check(&pamt, GIB), Err(Code::OperandAddrRangeError.on(Operand::R8)));
        assert_eq!(check(&pamt, 0x1000), Err(Code::PageMetadataIncorrect.on(Operand::R8)), "reserved");
        pamt.take(0x90_0000, PageType::Tdr, 0);
        assert_eq!(check(&pamt, 0x90_0000), Err(Code::PageMetadataIncorrect.on(Operand::R8)));
        assert_eq!(pamt.count(PageType::Tdr), 1);
        pamt.release(0x90_0000);
        assert_eq!(check(&pamt, 0x90_0000), Ok(()));
    }
}
