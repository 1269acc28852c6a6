//! INVEPT and INVVPID (SDM volume 3, 30.4.3.1 and chapter 32).

use privet_cpu::CpuState;
use privet_cpu::state::cr4;

use super::Vmx;
use super::instructions::{InstructionError, Outcome};
use crate::Rule;
use crate::board::{Board, Flush};

/// Types of INVEPT.
mod ept {
    pub(super) const SINGLE: u64 = 1;
    pub(super) const ALL: u64 = 2;
}

/// Types of INVVPID.
mod vpid {
    pub(super) const ADDRESS: u64 = 0;
    pub(super) const SINGLE: u64 = 1;
    pub(super) const ALL: u64 = 2;
    pub(super) const SINGLE_KEEPING_GLOBALS: u64 = 3;
}

const REFUSED: Outcome = Outcome::Fail(InstructionError::InvalidOperand);

impl Vmx {
    pub(super) fn invept(&mut self, board: &mut impl Board, kind: u64, descriptor: u128) -> Outcome {
        let pointer = descriptor as u64;
        match kind {
            ept::SINGLE if self.is_ept_pointer(pointer) => self.worlds.flush_ept(board, Some(pointer)),
            ept::ALL => self.worlds.flush_ept(board, None),
            _ => return REFUSED,
        }
        Outcome::Succeed
    }

    pub(super) fn invvpid(&mut self, board: &mut impl Board, state: &CpuState, kind: u64, descriptor: u128) -> Outcome {
        let (vpid, linear) = (descriptor as u16, (descriptor >> 64) as u64);
        let named = vpid != 0 || !self.holds(Rule::VpidNotZero);
        if descriptor >> 16 & 0xffff_ffff_ffff != 0 {
            return REFUSED;
        }
        match kind {
            vpid::ADDRESS if named && is_canonical(linear, state.cr4) => {
                self.worlds.of_vpid(vpid).for_each(|world| board.flush(Flush::Page(world, linear)));
            }
            vpid::SINGLE | vpid::SINGLE_KEEPING_GLOBALS if named => self.worlds.flush_vpid(board, Some(vpid)),
            vpid::ALL => self.worlds.flush_vpid(board, None),
            _ => return REFUSED,
        }
        Outcome::Succeed
    }
}

/// Whether a linear address is one, by this CR4.
pub(super) fn is_canonical(linear: u64, cr4: u64) -> bool {
    let unused = if cr4 & cr4::LA57 != 0 { 7 } else { 16 };
    ((linear << unused) as i64 >> unused) as u64 == linear
}
