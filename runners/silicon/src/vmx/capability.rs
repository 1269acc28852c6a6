//! The MSRs that tell what VMX can do (SDM volume 3, appendix A), and IA32_FEATURE_CONTROL (24.7).

use privet_cpu::Exception;
use privet_cpu::state::{cr0, cr4};

use super::Vmx;
use super::features::Features;
use super::vmcs::{REGION_BYTES, REVISION};

/// IA32_FEATURE_CONTROL.
const FEATURE_CONTROL: u32 = 0x3a;
pub(super) const LOCKED: u64 = 1 << 0;
pub(super) const VMX_OUTSIDE_SMX: u64 = 1 << 2;
/// Bits that can be set: the lock and VMX in and outside of SMX.
const FEATURE_CONTROL_BITS: u64 = 7;

const BASIC: u32 = 0x480;
const PIN: u32 = 0x481;
const PROC: u32 = 0x482;
const EXIT: u32 = 0x483;
const ENTRY: u32 = 0x484;
const MISC: u32 = 0x485;
const CR0_FIXED0: u32 = 0x486;
const CR0_FIXED1: u32 = 0x487;
const CR4_FIXED0: u32 = 0x488;
const CR4_FIXED1: u32 = 0x489;
const VMCS_ENUM: u32 = 0x48a;
const PROC2: u32 = 0x48b;
const EPT_VPID_CAP: u32 = 0x48c;
const TRUE_PIN: u32 = 0x48d;
const TRUE_PROC: u32 = 0x48e;
const TRUE_EXIT: u32 = 0x48f;
const TRUE_ENTRY: u32 = 0x490;

/// Controls that have to be 1 by the MSRs that came first ("default1", appendix A.2), and of those the ones that by
/// the TRUE MSRs need not be: CR3-load and CR3-store exiting, and loading and saving debug controls.
pub(super) const PIN_DEFAULT1: u32 = 0x16;
const PROC_DEFAULT1: u32 = 0x0401_e172;
pub(super) const PROC_FIXED: u32 = PROC_DEFAULT1 & !(1 << 15 | 1 << 16);
const EXIT_DEFAULT1: u32 = 0x3_6dff;
pub(super) const EXIT_FIXED: u32 = EXIT_DEFAULT1 & !(1 << 2);
const ENTRY_DEFAULT1: u32 = 0x11ff;
pub(super) const ENTRY_FIXED: u32 = ENTRY_DEFAULT1 & !(1 << 2);

/// A tick of the preemption timer is so many bits above one of the TSC.
pub(super) const TIMER_SHIFT: u32 = 5;
/// How many values CR3 may get without an exit.
pub(super) const CR3_TARGETS: u64 = 4;
/// Bits of CR0 and CR4 that VMX operation does not let go (23.8).
pub(super) const CR0_FIXED_ONES: u64 = cr0::PG | cr0::NE | cr0::PE;
pub(super) const CR4_FIXED_ONES: u64 = cr4::VMXE;

impl Features {
    /// Reads a capability MSR; `None` for those that are not there.
    fn capability(&self, index: u32) -> Option<u64> {
        let can = self.controls();
        let pair = |must: u32, can: u32| u64::from(must) | u64::from(must | can) << 32;
        Some(match index {
            BASIC => self.basic(),
            PIN | TRUE_PIN => pair(PIN_DEFAULT1, can.pin),
            PROC => pair(PROC_DEFAULT1, can.proc),
            TRUE_PROC => pair(PROC_FIXED, can.proc),
            EXIT => pair(EXIT_DEFAULT1, can.exit),
            TRUE_EXIT => pair(EXIT_FIXED, can.exit),
            ENTRY => pair(ENTRY_DEFAULT1, can.entry),
            TRUE_ENTRY => pair(ENTRY_FIXED, can.entry),
            MISC => self.misc(),
            CR0_FIXED0 => CR0_FIXED_ONES,
            CR0_FIXED1 => 0xffff_ffff,
            CR4_FIXED0 => CR4_FIXED_ONES,
            CR4_FIXED1 => self.cr4,
            // The highest index of a field, twice.
            VMCS_ENUM => 0x32,
            PROC2 => pair(0, can.proc2),
            EPT_VPID_CAP if self.ept || self.vpid => self.ept_vpid(),
            _ => return None,
        })
    }

    /// Write-back VMCSs, information about INS and OUTS, TRUE controls, and a SEAMRET that leaves the current VMCS alone.
    fn basic(&self) -> u64 {
        const WRITE_BACK: u64 = 6 << 50;
        const INS_OUTS: u64 = 1 << 54;
        const TRUE_CONTROLS: u64 = 1 << 55;
        const SEAMRET_KEEPS_VMCS: u64 = 1 << 60;
        let region = u64::from(REGION_BYTES) << 32;
        u64::from(REVISION) | region | WRITE_BACK | INS_OUTS | TRUE_CONTROLS | SEAMRET_KEEPS_VMCS
    }

    /// The rate of the timer, EFER.LMA stored into "IA-32e mode guest", the activity state HLT, and injection of
    /// software events of no length.
    fn misc(&self) -> u64 {
        const STORES_LMA: u64 = 1 << 5;
        const HLT: u64 = 1 << 6;
        const ZERO_LENGTH: u64 = 1 << 30;
        u64::from(TIMER_SHIFT) | STORES_LMA | HLT | CR3_TARGETS << 16 | ZERO_LENGTH
    }

    fn ept_vpid(&self) -> u64 {
        const FOUR_LEVELS: u64 = 1 << 6;
        const WRITE_BACK: u64 = 1 << 14;
        const PAGES_2M: u64 = 1 << 16;
        const INVEPT: u64 = 1 << 20 | 1 << 25 | 1 << 26;
        const INVVPID: u64 = 1 << 32 | 0xf << 40;
        let ept = FOUR_LEVELS
            | WRITE_BACK
            | PAGES_2M
            | INVEPT
            | u64::from(self.ept_execute_only)
            | u64::from(self.ept_1g) << 17
            | u64::from(self.ept_accessed_dirty) << 21;
        (if self.ept { ept } else { 0 }) | if self.vpid { INVVPID } else { 0 }
    }
}

impl Vmx {
    /// Reads an MSR of VMX; `None` for the MSRs of others.
    #[must_use]
    pub fn rdmsr(&self, index: u32) -> Option<u64> {
        if index == FEATURE_CONTROL { Some(self.feature_control) } else { self.features.capability(index) }
    }

    /// Writes an MSR of VMX; `None` for the MSRs of others. The exception is what the writer gets.
    pub fn wrmsr(&mut self, index: u32, value: u64) -> Option<Result<(), Exception>> {
        if index != FEATURE_CONTROL {
            return self.features.capability(index).map(|_| Err(Exception::gp(0)));
        }
        if self.feature_control & LOCKED != 0 || value & !FEATURE_CONTROL_BITS != 0 {
            return Some(Err(Exception::gp(0)));
        }
        self.feature_control = value;
        Some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(index: u32) -> u64 {
        Features::current().capability(index).expect("there")
    }

    /// What Linux requires of a processor for TDX, and gets.
    #[test]
    fn values_are_those_of_a_current_processor() {
        assert_eq!(value(BASIC), 0x10d8_1000_0000_0012);
        assert_eq!(value(PIN), 0x0000_00ff_0000_0016);
        assert_eq!(value(MISC), 0x4004_0065);
        assert_eq!(value(EPT_VPID_CAP), 0x0f01_0633_4041);
        assert_eq!(
            (value(TRUE_PROC) as u32, value(TRUE_EXIT) as u32, value(TRUE_ENTRY) as u32),
            (0x0400_6172, 0x3_6dfb, 0x11fb)
        );
        assert_eq!((value(CR0_FIXED0), value(CR4_FIXED0)), (0x8000_0021, 0x2000));
    }

    /// Appendix A.2.2: what may be 0 has to be allowed, and what has to be 1 can be.
    #[test]
    fn what_has_to_be_one_can_be() {
        for index in [PIN, PROC, EXIT, ENTRY, TRUE_PIN, TRUE_PROC, TRUE_EXIT, TRUE_ENTRY] {
            let value = value(index);
            assert_eq!(value as u32 & !(value >> 32) as u32, 0, "{index:#x}");
        }
    }

    #[test]
    fn a_locked_feature_control_stays() {
        let mut vmx = Vmx::new(Features::current());
        assert_eq!(vmx.rdmsr(FEATURE_CONTROL), Some(LOCKED | VMX_OUTSIDE_SMX));
        assert_eq!(vmx.wrmsr(FEATURE_CONTROL, 0), Some(Err(Exception::gp(0))));
        vmx.feature_control = 0;
        assert_eq!(vmx.wrmsr(FEATURE_CONTROL, 1 << 8), Some(Err(Exception::gp(0))));
        assert_eq!(vmx.wrmsr(FEATURE_CONTROL, LOCKED), Some(Ok(())));
        assert_eq!(vmx.wrmsr(FEATURE_CONTROL, LOCKED | VMX_OUTSIDE_SMX), Some(Err(Exception::gp(0))));
    }

    #[test]
    fn capabilities_are_read_only() {
        let mut vmx = Vmx::new(Features::current());
        assert_eq!(vmx.wrmsr(BASIC, 0), Some(Err(Exception::gp(0))));
        assert_eq!((vmx.wrmsr(0x491, 0), vmx.rdmsr(0x491), vmx.rdmsr(0x10)), (None, None, None));
        let vmx = Vmx::new(Features { ept: false, vpid: false, ..Features::current() });
        assert_eq!(vmx.rdmsr(EPT_VPID_CAP), None);
    }
}
