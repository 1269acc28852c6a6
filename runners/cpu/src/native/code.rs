//! Pages of machine code, each written once and never changed afterwards.
#![expect(unsafe_code, reason = "machine code is called through its address")]

use memmap2::{Mmap, MmapMut};

/// Room for one instruction and RET.
const SLOT: usize = 16;
const RET: u8 = 0xc3;

/// One instruction with each value of its immediate byte, as functions without a calling convention:
/// they do what the instruction does to the registers and return.
#[derive(Debug)]
pub(super) struct Code {
    page: Mmap,
    slots: usize,
}

impl Code {
    /// Maps `slots` instructions, encoded by `encode`; `None` if one does not fit or the host maps no
    /// executable memory.
    pub(super) fn map(slots: usize, mut encode: impl FnMut(u8) -> Option<Vec<u8>>) -> Option<Code> {
        let mut page = MmapMut::map_anon(slots * SLOT).ok()?;
        for index in 0..slots {
            let instruction = encode(index as u8)?;
            let slot = &mut page[index * SLOT..(index + 1) * SLOT];
            slot.get_mut(..instruction.len())?.copy_from_slice(&instruction);
            *slot.get_mut(instruction.len())? = RET;
        }
        Some(Code { page: page.make_exec().ok()?, slots })
    }

    /// The address of the instruction with this immediate.
    pub(super) fn entry(&self, immediate: u8) -> *const u8 {
        let slot = usize::from(immediate) % self.slots;
        // SAFETY: `slot` is below the number of slots that the page was made for.
        unsafe { self.page.as_ptr().add(slot * SLOT) }
    }
}
