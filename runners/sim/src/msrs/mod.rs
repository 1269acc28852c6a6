//! The model-specific registers that neither the CPU keeps ([`CpuState::own_msr`]) nor the silicon of a hypervisor.

mod amd;
pub(crate) mod intel;

use std::collections::BTreeMap;

use privet_cpu::{CpuState, Exception, Vendor};
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::devices::lapic::Effect;
use crate::encryption::syscfg;
use crate::log::Unknown;
use crate::profile::{HOST_KEYIDS, KEYID_BITS, TDX_KEYIDS};
use crate::ram::LOW_END;

const TSC: u32 = 0x10;
const APIC_BASE: u32 = 0x1b;
const PATCH_LEVEL: u32 = 0x8b;
const SYSCFG: u32 = 0xc001_0010;
const RMP_BASE: u32 = 0xc001_0132;
const RMP_END: u32 = 0xc001_0133;
const RMP_CFG: u32 = 0xc001_0136;
const KEYID_PARTITIONING: u32 = 0x87;
const TME_ACTIVATE: u32 = 0x982;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC: u32 = 0x800;
const X2APIC_END: u32 = 0x8ff;
const X2APIC_COMMAND: u32 = 0x830;

mod apic_base {
    pub(super) const X2APIC: u64 = 1 << 10;
    pub(super) const ENABLE: u64 = 1 << 11;
    /// Where the registers of xAPIC mode are: they do not move on this board.
    pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// What an MSR is.
enum Kind {
    /// Storage of each processor, with this value after RESET, of which these bits can be set.
    Stored(u64, u64),
    /// Always this value; writes are refused.
    Fixed(u64),
    /// Always this value; writes have no effect.
    Ignoring(u64),
    /// Known not to be there: probed by every Linux, refused as hardware does.
    Absent,
}

use Kind::{Absent, Fixed, Ignoring, Stored};

/// The MSRs that processors of both vendors have.
fn common(index: u32) -> Option<Kind> {
    const ANY: u64 = u64::MAX;
    Some(match index {
        // SPEC_CTRL, PRED_CMD: probed whatever CPUID says.
        0x48 | 0x49 => Absent,
        // MPERF, APERF: no effective frequency in CPUID.
        0xe7 | 0xe8 => Absent,
        // MTRRcap: 8 variable ranges, fixed ranges, write combining.
        0xfe => Fixed(0x508),
        // MCG_CAP: no banks. MCG_STATUS. MCG_CTL is not there.
        0x179 => Fixed(0),
        0x17a => Stored(0, 7),
        0x17b => Absent,
        // What KVM probes to learn what it can offer to guests: UMWAIT, TSX, XFD, processor trace, CET, MPX.
        0xe1 | 0x122 | 0x1c4 | 0x1c5 | 0x560..=0x587 | 0x6a0..=0x6a8 | 0xd90 => Absent,
        // DEBUGCTL, and the last branch and exception, which are never recorded.
        0x1d9 => Stored(0, 0),
        0x1db..=0x1de => Fixed(0),
        // MTRRs. Memory is write-back but for the window of the devices below 4 GiB.
        0x200 => Stored(LOW_END, ANY),
        0x201 => Stored(0x0000_ffff_c000_0800, ANY),
        0x202..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f => Stored(0, ANY),
        0x2ff => Stored(0x806, 0xcff),
        _ => return None,
    })
}

/// The storage of one processor, as far as it differs from RESET.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Msrs(BTreeMap<u32, u64>);

impl Board {
    /// RDMSR.
    ///
    /// # Errors
    /// #GP(0) for what is not there.
    pub(crate) fn msr_read(&mut self, cpu: usize, state: &CpuState, index: u32) -> Result<u64, Exception> {
        let now = self.now(state);
        match index {
            TSC => Ok(self.tsc(cpu, state)),
            TSC_DEADLINE => Ok(self.lapics[cpu].timer.tsc_deadline()),
            X2APIC..=X2APIC_END => self.x2apic_read(cpu, state, index, now),
            _ if let Some(value) = self.virtualization[cpu].rdmsr(index) => Ok(value),
            _ => match self.kind(index) {
                Some(Stored(reset, _)) => Ok(self.msrs[cpu].0.get(&index).copied().unwrap_or(reset)),
                Some(Fixed(value) | Ignoring(value)) => Ok(value),
                Some(Absent) => Err(Exception::gp(0)),
                None => {
                    self.log.unknown(Unknown::MsrRead(index));
                    Err(Exception::gp(0))
                }
            },
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// #GP(0) for what is not there, and for values that it cannot have.
    pub(crate) fn msr_write(
        &mut self,
        cpu: usize,
        state: &mut CpuState,
        index: u32,
        value: u64,
    ) -> Result<(), Exception> {
        let now = self.now(state);
        match index {
            APIC_BASE => self.set_apic_base(cpu, state, value),
            TSC_DEADLINE => {
                self.lapics[cpu].timer.set_tsc_deadline(value);
                Ok(())
            }
            X2APIC..=X2APIC_END => self.x2apic_write(cpu, state, index, value, now),
            _ if let Some(written) = self.virtualization[cpu].wrmsr(index, value) => written,
            _ => match self.kind(index) {
                Some(Stored(reset, writable)) => {
                    let old = self.msrs[cpu].0.get(&index).copied().unwrap_or(reset);
                    // Nothing turns SNP off again (AMD APM volume 2, 15.36.2).
                    if index == SYSCFG && old & syscfg::SNP_EN != 0 {
                        return Ok(());
                    }
                    if (old ^ value) & !writable != 0 {
                        return Err(Exception::gp(0));
                    }
                    self.msrs[cpu].0.insert(index, value);
                    if let Some(encryption) = self.encryption.as_mut().filter(|_| index == SYSCFG) {
                        encryption.set_syscfg(cpu, value);
                    }
                    Ok(())
                }
                Some(Ignoring(_)) => Ok(()),
                Some(Fixed(_) | Absent) => Err(Exception::gp(0)),
                None => {
                    self.log.unknown(Unknown::MsrWrite(index));
                    Err(Exception::gp(0))
                }
            },
        }
    }

    /// What an MSR is, by vendor, and what memory encryption adds: SYSCFG as firmware sets it, and the memory of the RMP.
    fn kind(&self, index: u32) -> Option<Kind> {
        let rmp = self.encryption.as_ref().map(|encryption| encryption.rmp);
        let segment = self.processors.rmp_segment();
        match (index, rmp) {
            // Without the revision of early Turins Linux takes their RDSEED for broken.
            (PATCH_LEVEL, Some(_)) if segment.is_some() => Some(Fixed(0x0b00_215a)),
            (SYSCFG, Some(_)) => {
                let writable = 0x7c_0000 | syscfg::MEM_ENCRYPT | syscfg::SNP_EN | syscfg::VMPL_EN;
                Some(Stored(0x74_0000 | syscfg::MEM_ENCRYPT, writable))
            }
            (RMP_BASE, Some((first, _))) => Some(Fixed(first)),
            // Segments are found by their own table.
            (RMP_END, Some((_, last))) => Some(Fixed(if segment.is_some() { 0 } else { last })),
            (RMP_CFG, Some(_)) => segment.map(|shift| Fixed(u64::from(shift) << 8 | 1)),
            // Memory is encrypted, and 6 bits of address are KeyIDs; locked.
            (TME_ACTIVATE, _) if self.tdx.is_some() => Some(Fixed(u64::from(KEYID_BITS) << 32 | 3)),
            (KEYID_PARTITIONING, _) if self.tdx.is_some() => {
                Some(Fixed(u64::from(TDX_KEYIDS) << 32 | u64::from(HOST_KEYIDS)))
            }
            _ => common(index).or_else(|| match self.processors.profile.vendor() {
                Vendor::Amd => amd::kind(index),
                Vendor::Intel => intel::kind(index),
            }),
        }
    }

    /// SYSCFG of a processor.
    pub(crate) fn syscfg(&self, cpu: usize) -> u64 {
        match (self.msrs[cpu].0.get(&SYSCFG), self.kind(SYSCFG)) {
            (Some(value), _) => *value,
            (None, Some(Stored(reset, _))) => reset,
            (None, _) => 0,
        }
    }

    /// Modes change only along the arrows of SDM volume 3, figure 12-27.
    fn set_apic_base(&mut self, cpu: usize, state: &mut CpuState, value: u64) -> Result<(), Exception> {
        use apic_base::{ADDRESS, ENABLE, X2APIC};
        let has_x2apic = self.processors.has_x2apic();
        let (old, new) = (state.apic_base & (ENABLE | X2APIC), value & (ENABLE | X2APIC));
        let illegal = new == X2APIC
            || new & X2APIC != 0 && !has_x2apic
            || old & X2APIC != 0 && new == ENABLE
            || old == 0 && new & X2APIC != 0;
        if illegal {
            return Err(Exception::gp(0));
        }
        if new & ENABLE == 0 || (state.apic_base ^ value) & ADDRESS != 0 {
            self.log.unknown(Unknown::Function(format!("local APIC with a base register of {value:#x}")));
        }
        state.apic_base = value;
        self.lapics[cpu].set_x2apic(new & X2APIC != 0);
        Ok(())
    }

    fn x2apic_read(&mut self, cpu: usize, state: &CpuState, index: u32, now: u64) -> Result<u64, Exception> {
        if state.apic_base & apic_base::X2APIC == 0 {
            return Err(Exception::gp(0));
        }
        if index == X2APIC_COMMAND {
            return Ok(self.lapics[cpu].x2apic_command());
        }
        self.lapics[cpu].read(index - X2APIC, now).map(u64::from).ok_or(Exception::gp(0))
    }

    fn x2apic_write(
        &mut self,
        cpu: usize,
        state: &CpuState,
        index: u32,
        value: u64,
        now: u64,
    ) -> Result<(), Exception> {
        if state.apic_base & apic_base::X2APIC == 0 || index != X2APIC_COMMAND && value >> 32 != 0 {
            return Err(Exception::gp(0));
        }
        let effect: Option<Effect> = if index == X2APIC_COMMAND {
            Some(self.lapics[cpu].set_x2apic_command(value))
        } else {
            self.lapics[cpu].write(index - X2APIC, value as u32, now)
        };
        self.apply(cpu, effect.ok_or(Exception::gp(0))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Processors, Profile};
    use privet_silicon::tdx::Tdx;
    use proptest::prelude::*;

    fn gp<T>() -> Result<T, Exception> {
        Err(Exception::gp(0))
    }

    #[test]
    fn storage_is_a_processors_own_and_keeps_its_fixed_bits() {
        let (mut board, mut state) = (Board::new(Profile::Plain.into(), 2, None), CpuState::reset());
        board.msr_write(0, &mut state, 0x202, 6).unwrap();
        assert_eq!(board.msr_read(0, &state, 0x202), Ok(6));
        assert_eq!(board.msr_read(1, &state, 0x202), Ok(0));
        assert_eq!(board.msr_write(0, &mut state, 0xc001_0015, 0), Ok(()));
        assert_eq!(board.msr_write(0, &mut state, 0xc001_0015, 1 << 40), gp());
        assert_eq!(board.msr_write(0, &mut state, 0xfe, 0), gp());
        assert_eq!(board.log.take(), []);
    }

    /// arch/x86/kernel/cpu/intel.c: detect_tme_early(), arch/x86/virt/vmx/tdx/tdx.c: record_keyid_partitioning().
    #[test]
    fn keyids_are_divided_where_there_is_a_tdx_module() {
        let processors: Processors = Profile::Granite.into();
        let (mut board, state) = (Board::new(processors, 1, None), CpuState::reset());
        assert_eq!(board.msr_read(0, &state, KEYID_PARTITIONING), gp());
        board.tdx = processors.tdx(1, std::iter::empty()).map(Tdx::new);
        assert_eq!(board.msr_read(0, &state, KEYID_PARTITIONING), Ok(32 << 32 | 31));
        assert_eq!(board.msr_read(0, &state, TME_ACTIVATE), Ok(6 << 32 | 3));
        assert_eq!(processors.cpuid(0, 1, &state, 7, 0).ecx >> 13 & 1, 1);
        assert_eq!(processors.usable_physical_bits(), 46);
        let without = Processors { without: "tdx".parse().unwrap(), ..processors };
        assert_eq!((without.cpuid(0, 1, &state, 7, 0).ecx >> 13 & 1, without.usable_physical_bits()), (0, 52));
    }

    #[test]
    fn an_absent_msr_is_refused_and_an_unknown_one_is_told_too() {
        let (mut board, state) = (Board::new(Profile::Plain.into(), 1, None), CpuState::reset());
        assert_eq!(board.msr_read(0, &state, 0xe7), gp());
        assert_eq!(board.log.take(), []);
        assert_eq!(board.msr_read(0, &state, 0x1234), gp());
        assert_eq!(board.log.take()[0].what, Unknown::MsrRead(0x1234));
    }

    #[test]
    fn x2apic_mode_has_to_be_in_cpuid() {
        let (mut board, mut state) = (Board::new(Profile::Plain.into(), 1, None), CpuState::reset());
        let base = state.apic_base;
        assert_eq!(board.msr_write(0, &mut state, APIC_BASE, base | apic_base::X2APIC), gp());
        assert_eq!(board.msr_read(0, &state, 0x802), gp());
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_panics(
            accesses in prop::collection::vec((any::<u32>(), any::<Option<u64>>()), 1..200)
        ) {
            let (mut board, mut state) = (Board::new(Profile::Plain.into(), 2, None), CpuState::reset());
            for (index, write) in accesses {
                let index = match index % 4 {
                    0 => index,
                    1 => 0x6e0,
                    2 => 0x800 + (index >> 8) % 0x100,
                    _ => 0xc001_0000 + (index >> 8) % 0x200,
                };
                let _ = match write {
                    Some(value) => board.msr_write(1, &mut state, index, value),
                    None => board.msr_read(1, &state, index).map(|_| ()),
                };
                board.tick(board.now(&state));
            }
        }
    }
}
