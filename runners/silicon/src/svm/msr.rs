//! The MSRs of SVM (APM volume 2, 15.30).

use privet_cpu::state::{efer, gpr};
use privet_cpu::{CpuState, Exception};

use super::Svm;
use super::instructions::hypervisor_owns;
use crate::Rule;
use crate::board::Board;

const EFER: u32 = 0xc000_0080;
const TSC_RATIO: u32 = 0xc000_0104;
const GHCB: u32 = 0xc001_0130;
pub(super) const SEV_STATUS: u32 = 0xc001_0131;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;

/// A guest's time runs as fast as the host's.
pub(super) const TSC_RATIO_ONE: u64 = 1 << 32;
/// Bits of TSC_RATIO that are no part of the number.
const TSC_RATIO_RESERVED: u64 = 0xffff_ff00_0000_0000;

/// Bits of VM_CR.
const DPD: u64 = 1 << 0;
const R_INIT: u64 = 1 << 1;
const LOCK: u64 = 1 << 3;
const SVMDIS: u64 = 1 << 4;

impl Svm {
    /// Reads an MSR of SVM; `None` for the MSRs of others.
    #[must_use]
    pub fn rdmsr(&self, index: u32) -> Option<u64> {
        match index {
            TSC_RATIO if self.features.tsc_ratio => Some(self.tsc_ratio),
            VM_CR => Some(self.vm_cr),
            VM_HSAVE_PA => Some(self.hsave_pa),
            SEV_STATUS if self.features.sev.is_some() => {
                Some(self.protection().map_or(0, |protection| protection.sev_status()))
            }
            GHCB => Some(self.protection()?.registers?.ghcb),
            _ => None,
        }
    }

    /// Writes an MSR of SVM; `None` for the MSRs of others. The exception is what the writer gets.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Option<Result<(), Exception>> {
        let (slot, valid) = match index {
            TSC_RATIO if self.features.tsc_ratio => (&mut self.tsc_ratio, value & TSC_RATIO_RESERVED == 0),
            VM_CR => return Some(self.write_vm_cr(value)),
            GHCB => {
                self.guest.as_mut()?.protection.as_mut()?.registers.as_mut()?.ghcb = value;
                return Some(Ok(()));
            }
            VM_HSAVE_PA => {
                let valid = value & 0xfff == 0 && value >> self.features.physical_bits == 0;
                (&mut self.hsave_pa, valid)
            }
            _ => return None,
        };
        if !valid {
            return Some(Err(Exception::gp(0)));
        }
        *slot = value;
        Some(Ok(()))
    }

    /// What is wrong with a value that an MSR could have otherwise: with SNP enabled the host save area has to be the
    /// hypervisor's page (15.30.4).
    ///
    /// # Errors
    /// #GP.
    pub fn check_wrmsr(&self, board: &mut impl Board, index: u32, value: u64) -> Result<(), Exception> {
        let foreign = index == VM_HSAVE_PA && self.holds(Rule::SaveAreaOwned) && !hypervisor_owns(board, value);
        if foreign { Err(Exception::gp(0)) } else { Ok(()) }
    }

    /// Whether a WRMSR would set EFER.SVME although VM_CR.SVMDIS is set (15.30.1).
    pub(super) fn forbids_svme(&self, state: &CpuState) -> bool {
        self.vm_cr & SVMDIS != 0 && state.gpr[gpr::RCX] as u32 == EFER && state.gpr[gpr::RAX] & efer::SVME != 0
    }

    /// Section 15.30.1: LOCK freezes itself and SVMDIS until RESET (there is no key to clear it with).
    fn write_vm_cr(&mut self, value: u64) -> Result<(), Exception> {
        if value & !(DPD | R_INIT | 1 << 2 | LOCK | SVMDIS) != 0 {
            return Err(Exception::gp(0));
        }
        let frozen = if self.vm_cr & LOCK != 0 { LOCK | SVMDIS } else { 0 };
        self.vm_cr = value & !frozen | self.vm_cr & frozen;
        Ok(())
    }
}
