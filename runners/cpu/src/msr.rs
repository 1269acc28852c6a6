//! The model-specific registers that the CPU keeps itself.

use crate::config::{Config, Vendor};
use crate::exception::Exception;
use crate::memory::is_canonical;
use crate::segment::Seg;
use crate::state::{CpuState, cr0, efer};

pub(crate) const APIC_BASE: u32 = 0x1b;
const SYSENTER_CS: u32 = 0x174;
const SYSENTER_ESP: u32 = 0x175;
const SYSENTER_EIP: u32 = 0x176;
const PAT: u32 = 0x277;
const XSS: u32 = 0xda0;
pub(crate) const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

impl CpuState {
    /// The value of an MSR that is part of this state; `None` for the bus' MSRs.
    #[must_use]
    pub fn own_msr(&self, index: u32) -> Option<u64> {
        Some(match index {
            APIC_BASE => self.apic_base,
            SYSENTER_CS => self.sysenter_cs,
            SYSENTER_ESP => self.sysenter_esp,
            SYSENTER_EIP => self.sysenter_eip,
            PAT => self.pat,
            XSS => self.xss,
            EFER => self.efer,
            STAR => self.star,
            LSTAR => self.lstar,
            CSTAR => self.cstar,
            SFMASK => self.sfmask,
            FS_BASE => self.segment(Seg::Fs).base,
            GS_BASE => self.segment(Seg::Gs).base,
            KERNEL_GS_BASE => self.kernel_gs_base,
            TSC_AUX => self.tsc_aux,
            _ => return None,
        })
    }

    /// Writes an MSR that is part of this state as WRMSR does; `None` for the bus' MSRs, to which the
    /// APIC base belongs as far as writes go.
    pub fn set_own_msr(&mut self, config: &Config, index: u32, value: u64) -> Option<Result<(), Exception>> {
        let value = match index {
            SYSENTER_ESP | SYSENTER_EIP | TSC_AUX if config.vendor == Vendor::Amd => value & 0xffff_ffff,
            _ => value,
        };
        let canonical = is_canonical(value, self.cr4);
        let (slot, valid) = match index {
            SYSENTER_CS => (&mut self.sysenter_cs, true),
            SYSENTER_ESP => (&mut self.sysenter_esp, canonical),
            SYSENTER_EIP => (&mut self.sysenter_eip, canonical),
            PAT => (&mut self.pat, value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))),
            XSS => (&mut self.xss, value == 0),
            EFER => return Some(self.set_efer(config, value)),
            STAR => (&mut self.star, true),
            LSTAR => (&mut self.lstar, canonical),
            CSTAR => (&mut self.cstar, canonical),
            SFMASK => (&mut self.sfmask, value >> 32 == 0),
            FS_BASE => (&mut self.segments[Seg::Fs as usize].base, canonical),
            GS_BASE => (&mut self.segments[Seg::Gs as usize].base, canonical),
            KERNEL_GS_BASE => (&mut self.kernel_gs_base, canonical),
            TSC_AUX => (&mut self.tsc_aux, value >> 32 == 0),
            _ => return None,
        };
        if !valid {
            return Some(Err(Exception::gp(0)));
        }
        *slot = value;
        Some(Ok(()))
    }

    /// LME cannot change while paging is on; LMA is read only.
    fn set_efer(&mut self, config: &Config, value: u64) -> Result<(), Exception> {
        let changed = value ^ self.efer;
        if value & !config.efer_allowed != 0 || self.cr0 & cr0::PG != 0 && changed & efer::LME != 0 {
            return Err(Exception::gp(0));
        }
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amds_processors_drop_the_upper_half_of_some() {
        for index in [SYSENTER_ESP, SYSENTER_EIP, TSC_AUX] {
            let mut state = CpuState::reset();
            let amd = Config { vendor: Vendor::Amd, ..Config::default() };
            assert_eq!(state.set_own_msr(&amd, index, 0x1234_5678_9abc_def0), Some(Ok(())));
            assert_eq!(state.own_msr(index), Some(0x9abc_def0));
            let refused = Some(Err(Exception::gp(0)));
            assert_eq!(state.set_own_msr(&Config::default(), index, 0x1234_5678_9abc_def0), refused);
        }
    }
}
