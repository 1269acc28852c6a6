//! TDMR_INFO: which memory the host gives to the module (TDX module ABI, "TDMR_INFO"; the checks of TDH.SYS.CONFIG).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::pamt::PAGE;
use super::status::{Code, Status};
use crate::PhysicalMemory;

/// TDMRs that there may be.
pub(super) const MAX_TDMRS: u64 = 64;
/// Reserved areas that each may have.
pub(super) const MAX_RESERVED: u64 = 16;
/// Bytes of a PAMT entry, of each size of page.
pub(super) const PAMT_ENTRY: u64 = 16;
/// The sizes of pages that have entries, in the order of the structure.
const SIZES: [u64; 3] = [1 << 30, 1 << 21, 1 << 12];
const GIB: u64 = 1 << 30;

/// One TDMR, all addresses in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TdmrInfo {
    pub(super) base: u64,
    pub(super) size: u64,
    /// Memory for the entries of pages of 1 GiB, 2 MiB and 4 KiB.
    pub(super) pamt: [Range<u64>; 3],
    /// What in it the module leaves alone.
    pub(super) reserved: Vec<Range<u64>>,
}

impl TdmrInfo {
    /// Reads the structure at `pa`. What cannot be is checked by [`check`].
    pub(super) fn read(memory: &mut (impl PhysicalMemory + ?Sized), pa: u64) -> Result<TdmrInfo, Status> {
        let mut word = |index: u64| crate::read_u64(memory, pa + index * 8);
        let (base, size) = (word(0), word(1));
        if !base.is_multiple_of(GIB) || size == 0 || !size.is_multiple_of(GIB) || base.checked_add(size).is_none() {
            return Err(Code::InvalidTdmr.into());
        }
        let mut pamt = [0..0, 0..0, 0..0];
        for (index, region) in pamt.iter_mut().enumerate() {
            let (start, bytes) = (word(2 + 2 * index as u64), word(3 + 2 * index as u64));
            let needed = (size / SIZES[index] * PAMT_ENTRY).next_multiple_of(PAGE);
            let end = start.checked_add(bytes).ok_or(Code::InvalidPamt)?;
            if !start.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) || bytes < needed {
                return Err(Code::InvalidPamt.into());
            }
            *region = start..end;
        }
        let mut reserved = Vec::new();
        for index in 0..MAX_RESERVED {
            let (offset, bytes) = (word(8 + 2 * index), word(9 + 2 * index));
            if bytes == 0 {
                break;
            }
            let end = offset.checked_add(bytes).ok_or(Code::InvalidReservedInTdmr)?;
            if !offset.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) || end > size {
                return Err(Code::InvalidReservedInTdmr.into());
            }
            if reserved.last().is_some_and(|last: &Range<u64>| last.end > base + offset) {
                return Err(Code::NonOrderedReservedInTdmr.into());
            }
            reserved.push(base + offset..base + end);
        }
        Ok(TdmrInfo { base, size, pamt, reserved })
    }

    /// Whether the address is in a reserved area.
    pub(super) fn reserves(&self, pa: u64) -> bool {
        self.reserved.iter().any(|area| area.contains(&pa))
    }

    /// Where the entries of a part of it are.
    pub(super) fn entries_of(&self, part: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let offset = part.start - self.base..part.end - self.base;
        self.pamt.iter().zip(SIZES).map(move |(region, size)| {
            region.start + offset.start / size * PAMT_ENTRY..region.start + offset.end.div_ceil(size) * PAMT_ENTRY
        })
    }

    /// What of it may become a TD's.
    fn usable(&self) -> Vec<Range<u64>> {
        let mut usable = Vec::new();
        let mut start = self.base;
        for area in &self.reserved {
            usable.push(start..area.start);
            start = area.end;
        }
        usable.push(start..self.base + self.size);
        usable.retain(|range| !range.is_empty());
        usable
    }
}

/// Holds the TDMRs against each other and against what is convertible (checks of TDH.SYS.CONFIG).
pub(super) fn check(tdmrs: &[TdmrInfo], convertible: &[Range<u64>]) -> Result<(), Status> {
    if tdmrs.windows(2).any(|pair| pair[0].base + pair[0].size > pair[1].base) {
        return Err(Code::NonOrderedTdmr.into());
    }
    let inside = |range: &Range<u64>| convertible.iter().any(|cmr| cmr.start <= range.start && range.end <= cmr.end);
    let usable: Vec<Range<u64>> = tdmrs.iter().flat_map(TdmrInfo::usable).collect();
    if !usable.iter().all(inside) {
        return Err(Code::TdmrOutsideCmrs.into());
    }
    let regions: Vec<&Range<u64>> = tdmrs.iter().flat_map(|tdmr| &tdmr.pamt).collect();
    if !regions.iter().all(|region| inside(region)) {
        return Err(Code::PamtOutsideCmrs.into());
    }
    let overlap = |one: &Range<u64>, other: &Range<u64>| one.start < other.end && other.start < one.end;
    for (index, region) in regions.iter().enumerate() {
        let others = regions[..index].iter().copied().chain(&usable);
        if others.into_iter().any(|other| overlap(region, other)) {
            return Err(Code::PamtOverlap.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::TestMemory;

    fn words() -> [u64; 12] {
        // One GiB from 0 on, the entries and the first MiB reserved.
        [0, GIB, 0x10_0000, 0x1000, 0x10_1000, 0x2000, 0x10_3000, 0x40_0000, 0, 0x50_3000, 0, 0]
    }

    fn read(words: &[u64]) -> Result<TdmrInfo, Status> {
        let mut memory = TestMemory::new(0x2000);
        for (index, &word) in words.iter().enumerate() {
            crate::write_u64(&mut memory, 0x200 + index as u64 * 8, word);
        }
        TdmrInfo::read(&mut memory, 0x200)
    }

    fn changed(index: usize, word: u64) -> Result<TdmrInfo, Status> {
        let mut words = words();
        words[index] = word;
        read(&words)
    }

    const CONVERTIBLE: Range<u64> = 0x10_0000..2 * GIB;

    #[test]
    fn a_sound_one_is_taken() {
        let info = read(&words()).unwrap();
        assert_eq!(check(std::slice::from_ref(&info), &[CONVERTIBLE]), Ok(()));
        assert!(info.reserves(0x50_2FFF) && !info.reserves(0x50_3000));
        let parts: Vec<_> = info.entries_of(0..GIB).collect();
        assert_eq!(parts, [0x10_0000..0x10_0010, 0x10_1000..0x10_3000, 0x10_3000..0x50_3000]);
    }

    #[test]
    fn base_and_size_are_whole_gib() {
        for (index, word) in [(0, 0x1000), (1, 0), (1, GIB + 4096), (0, !(GIB - 1))] {
            assert_eq!(changed(index, word), Err(Code::InvalidTdmr.into()), "{index} {word:#x}");
        }
    }

    #[test]
    fn a_pamt_region_is_aligned_and_large_enough() {
        for (index, word) in [(2, 0x10_0800), (3, 0), (5, 0x1000), (7, 0x3F_F000), (7, !0xFFF)] {
            assert_eq!(changed(index, word), Err(Code::InvalidPamt.into()), "{index} {word:#x}");
        }
    }

    #[test]
    fn reserved_areas_ascend_inside() {
        assert_eq!(changed(9, 0x123), Err(Code::InvalidReservedInTdmr.into()));
        assert_eq!(changed(9, GIB + 0x1000), Err(Code::InvalidReservedInTdmr.into()));
        let mut words = words();
        words[10..].copy_from_slice(&[0x1000, 0x1000]);
        assert_eq!(read(&words), Err(Code::NonOrderedReservedInTdmr.into()));
    }

    #[test]
    fn all_that_is_not_reserved_is_convertible() {
        let info = changed(9, 0).unwrap();
        assert_eq!(check(&[info], &[CONVERTIBLE]), Err(Code::TdmrOutsideCmrs.into()));
        let info = changed(2, 0).unwrap();
        assert_eq!(check(&[info], &[CONVERTIBLE]), Err(Code::PamtOutsideCmrs.into()));
    }

    #[test]
    fn entries_lie_across_nothing() {
        let usable = changed(6, 0x60_0000).unwrap();
        assert_eq!(check(&[usable], &[CONVERTIBLE]), Err(Code::PamtOverlap.into()), "what is not reserved");
        let each_other = changed(4, 0x10_0000).unwrap();
        assert_eq!(check(&[each_other], &[CONVERTIBLE]), Err(Code::PamtOverlap.into()));
    }

    #[test]
    fn tdmrs_ascend() {
        let info = read(&words()).unwrap();
        assert_eq!(check(&[info.clone(), info], &[CONVERTIBLE]), Err(Code::NonOrderedTdmr.into()));
    }
}
