//! The lists of MSRs that entries load, and that exits store and load (SDM volume 3, 27.4, 28.4 and 28.6).

use privet_cpu::{Config, CpuState, Vendor};

use super::Vmx;
use super::features::Features;
use crate::board::Board;
use crate::memory::{read_u32, read_u64, write_u64};

const ENTRY_BYTES: u64 = 16;
const VALUE: u64 = 8;

const TSC: u32 = 0x10;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const SMM_MONITOR_CTL: u32 = 0x9b;
const SMBASE: u32 = 0x9e;
const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;

impl Vmx {
    /// Loads a list; the number of the first entry that cannot be loaded, from 1 on, if there is one.
    pub(super) fn load_msrs(
        &self,
        board: &mut impl Board,
        state: &mut CpuState,
        list: u64,
        count: u64,
    ) -> Result<(), u64> {
        let config = self.features.config();
        for number in 0..count {
            let at = list + number * ENTRY_BYTES;
            let (index, reserved) = (read_u32(board, at), read_u32(board, at + 4));
            let value = read_u64(board, at + VALUE);
            let refused =
                reserved != 0 || matches!(index, FS_BASE | GS_BASE | SMM_MONITOR_CTL) || X2APIC.contains(&index);
            let loaded = if refused { None } else { state.set_own_msr(&config, index, value) };
            if loaded.is_none() && !refused {
                board.unsimulated("VMX: a list of MSRs with one that is no register of the CPU's");
            }
            if !matches!(loaded, Some(Ok(()))) {
                return Err(number + 1);
            }
        }
        Ok(())
    }

    /// Stores a list; false if an entry cannot be stored.
    pub(super) fn store_msrs(&self, board: &mut impl Board, state: &CpuState, list: u64, count: u64) -> bool {
        for number in 0..count {
            let at = list + number * ENTRY_BYTES;
            let (index, reserved) = (read_u32(board, at), read_u32(board, at + 4));
            let refused = reserved != 0 || index == SMBASE || X2APIC.contains(&index);
            let value = match index {
                TSC => Some(board.tsc()),
                _ => state.own_msr(index),
            };
            match value.filter(|_| !refused) {
                Some(value) => write_u64(board, at + VALUE, value),
                None => {
                    board.unsimulated("VMX: a list of MSRs with one that is no register of the CPU's");
                    return false;
                }
            }
        }
        true
    }
}

impl Features {
    /// What of a CPU's configuration matters to its registers.
    fn config(&self) -> Config {
        Config {
            physical_bits: self.physical_bits,
            cr4_allowed: self.cr4,
            efer_allowed: self.efer,
            vendor: Vendor::Intel,
            ..Config::default()
        }
    }
}
