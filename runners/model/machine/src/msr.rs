//! Model-specific registers that the CPU itself does not keep.
//!
//! Source: `arch/x86/kvm/msrs.c`.

use std::collections::BTreeMap;

use kvm_bindings::kvm_msr_entry;
use nix::errno::Errno;
use privet_cpu::CpuState;

use crate::dispatch::{Argument, IoctlResult};
use crate::options::Options;
use crate::personality::Personality;
use crate::system::read_msrs;
use crate::user::{self, ListHeader};

/// IA32_TIME_STAMP_COUNTER.
pub(crate) const TSC: u32 = 0x10;
/// IA32_TSC_ADJUST.
pub(crate) const TSC_ADJUST: u32 = 0x3b;
/// IA32_APIC_BASE.
pub(crate) const APIC_BASE: u32 = 0x1b;
/// MSR_KVM_WALL_CLOCK and its successor.
pub(crate) const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
pub(crate) const SYSTEM_TIMES: [u32; 2] = [0x12, 0x4b56_4d01];
const MICROCODE: u32 = 0x8b;
/// MSR_PLATFORM_INFO.
pub(crate) const PLATFORM_INFO: u32 = 0xce;
const ARCH_CAPABILITIES: u32 = 0x10a;
const MTRR_CAPABILITY: u32 = 0xfe;
const MACHINE_CHECK_CAPABILITY: u32 = 0x179;
const DE_CFG: u32 = 0xc001_1029;
/// MSR_K7_HWCR.
const HARDWARE_CONFIGURATION: u32 = 0xc001_0015;
const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;

/// `KVM_X86_GET_MCE_CAP_SUPPORTED`: 32 banks, MCG_CTL and software error recovery.
pub(crate) const MCE_CAPABILITY: u64 = 1 << 8 | 1 << 24 | 32;

/// `KVM_GET_MSR_FEATURE_INDEX_LIST`.
pub(crate) const FEATURES: &[u32] = &[MICROCODE, PLATFORM_INFO, ARCH_CAPABILITIES, DE_CFG];

/// The value of a feature MSR on this machine; none for another.
pub(crate) fn feature(index: u32, options: &Options) -> Option<u64> {
    let amd = options.personality != Personality::Intel;
    match index {
        MICROCODE => Some(if amd { 0x0100_0065 } else { 1 << 32 }),
        PLATFORM_INFO => Some(1 << 31),
        ARCH_CAPABILITIES => Some(0),
        // LFENCE is serializing.
        DE_CFG => Some(if amd { 2 } else { 0 }),
        _ => None,
    }
}

/// Registers without an effect in the model: any value that is written is read again.
const KEPT: &[(u32, u64)] = &[
    (0x3a, 1), // IA32_FEATURE_CONTROL: locked
    (TSC_ADJUST, 0),
    (0x17a, 0),        // IA32_MCG_STATUS
    (0x17b, u64::MAX), // IA32_MCG_CTL
    (0x198, 0),        // IA32_PERF_STATUS
    (0x1a0, 1),        // IA32_MISC_ENABLE
    (0x1d9, 0),        // IA32_DEBUGCTL
    (0x2ff, 0),        // IA32_MTRR_DEF_TYPE
    (0x11, 0),         // MSR_KVM_WALL_CLOCK
    (0x12, 0),         // MSR_KVM_SYSTEM_TIME
    (0x4b56_4d00, 0),  // MSR_KVM_WALL_CLOCK_NEW
    (0x4b56_4d01, 0),  // MSR_KVM_SYSTEM_TIME_NEW
    (0xc001_0010, 0),  // SYSCFG
    (HARDWARE_CONFIGURATION, 0),
    (0xc001_001f, 0), // NB_CFG
    (DE_CFG, 0),
];

/// MTRRs: variable ranges and the fixed ones.
fn is_mtrr(index: u32) -> bool {
    matches!(index, 0x200..=0x20f | 0x250 | 0x258 | 0x259 | 0x268..=0x26f)
}

/// The MSRs that a CPU of the model keeps, and where.
fn field(state: &mut CpuState, index: u32) -> Option<&mut u64> {
    Some(match index {
        0x174 => &mut state.sysenter_cs,
        0x175 => &mut state.sysenter_esp,
        0x176 => &mut state.sysenter_eip,
        0x277 => &mut state.pat,
        EFER => &mut state.efer,
        0xc000_0081 => &mut state.star,
        0xc000_0082 => &mut state.lstar,
        0xc000_0083 => &mut state.cstar,
        0xc000_0084 => &mut state.sfmask,
        FS_BASE => &mut state.segments[privet_cpu::Seg::Fs as usize].base,
        GS_BASE => &mut state.segments[privet_cpu::Seg::Gs as usize].base,
        0xc000_0102 => &mut state.kernel_gs_base,
        0xc000_0103 => &mut state.tsc_aux,
        APIC_BASE => &mut state.apic_base,
        _ => return None,
    })
}

/// `KVM_GET_MSR_INDEX_LIST`: what a program saves and restores.
pub(crate) fn saved() -> Vec<u32> {
    let kept = KEPT.iter().map(|(index, _)| *index).filter(|index| !FEATURES.contains(index));
    let in_cpu =
        [0x174, 0x175, 0x176, 0x277, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102, 0xc000_0103];
    in_cpu.into_iter().chain([TSC]).chain(kept).collect()
}

/// What a vCPU has written.
#[derive(Default)]
pub(crate) struct Msrs {
    written: BTreeMap<u32, u64>,
}

impl Msrs {
    /// Those of a fresh vCPU, with feature MSRs as the machine has them or, without that quirk, 0 (kernel:
    /// `kvm_arch_vcpu_create`, `kvm_vcpu_reset`).
    pub(crate) fn new(stuffed: bool) -> Self {
        let of_machine = [MICROCODE, PLATFORM_INFO, ARCH_CAPABILITIES];
        let zeroed = if stuffed { &[][..] } else { &of_machine };
        Self { written: zeroed.iter().map(|index| (*index, 0)).collect() }
    }

    /// Reads an MSR of either kind; none if it does not exist.
    pub(crate) fn get(&self, state: &mut CpuState, index: u32, options: &Options) -> Option<u64> {
        if let Some(field) = field(state, index) {
            return Some(*field);
        }
        if let Some(value) = self.written.get(&index) {
            return Some(*value);
        }
        match index {
            MTRR_CAPABILITY => Some(0x508),
            MACHINE_CHECK_CAPABILITY => Some(0),
            PLATFORM_INFO | ARCH_CAPABILITIES | MICROCODE => feature(index, options),
            _ if is_mtrr(index) => Some(0),
            _ => KEPT.iter().find(|(known, _)| *known == index).map(|(_, value)| *value),
        }
    }

    /// Writes an MSR of either kind for user space, whose values are checked by what uses them; false if it
    /// does not exist.
    pub(crate) fn set(&mut self, state: &mut CpuState, index: u32, mut value: u64, options: &Options) -> bool {
        if index == HARDWARE_CONFIGURATION {
            // Three bits are ignored, two are kept, others there are not (kernel: `kvm_set_msr_common`).
            let (ignored, kept) = (1 << 3 | 1 << 6 | 1 << 8, 1 << 18 | 1 << 24);
            value &= !ignored;
            if value & !kept != 0 {
                return false;
            }
        }
        if let Some(field) = field(state, index) {
            *field = value;
            return true;
        }
        let exists = self.get(state, index, options).is_some();
        if exists {
            self.written.insert(index, value);
        }
        exists
    }
}

/// A `struct kvm_msrs` filled in as far as `value` knows them; returns how far that was.
///
/// # Errors
/// As `KVM_GET_MSRS`.
pub(crate) fn get_list(argument: Argument, mut value: impl FnMut(u32) -> Option<u64>) -> IoctlResult {
    let mut entries = read_msrs(argument)?;
    let known = entries.iter_mut().map_while(|entry| value(entry.index).map(|value| entry.data = value)).count();
    user::write_slice(argument.after(size_of::<ListHeader>()), &entries)?;
    Ok(known as i32)
}

/// The entries of a `struct kvm_msrs` set as far as `set` accepts them; returns how far that was.
///
/// # Errors
/// As `KVM_SET_MSRS`.
pub(crate) fn set_list(argument: Argument, mut set: impl FnMut(&kvm_msr_entry) -> bool) -> Result<i32, Errno> {
    let entries = read_msrs(argument)?;
    Ok(entries.iter().take_while(|entry| set(entry)).count() as i32)
}
