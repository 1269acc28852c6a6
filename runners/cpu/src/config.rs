//! What kind of CPU this is, as far as it matters to execution; CPUID itself is the bus'.

use crate::native::Extensions;
use crate::state::{cr4, efer};

/// Who makes a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// What goes wrong while an exception is delivered sets bit 0 (EXT) of its error code.
    Intel,
    /// Only interrupts and NMIs set EXT; SYSENTER_ESP, SYSENTER_EIP and TSC_AUX have 32 bits, others are dropped.
    Amd,
}

/// Fixed properties of a CPU. They follow from what CPUID tells the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Width of guest-physical addresses, 36 to 52: address bits of a PTE from here on are reserved
    /// (except the encryption bit, see [`crate::CpuState::encryption`]).
    pub physical_bits: u8,
    /// Bits of CR4 that may be set.
    pub cr4_allowed: u64,
    /// Bits of EFER that may be set.
    pub efer_allowed: u64,
    /// Bits of XCR0 that may be set, of [`crate::fpu::XCR0_KNOWN`].
    pub xcr0_allowed: u64,
    /// Pages of 1 GiB exist.
    pub gigabyte_pages: bool,
    /// Whose processor it is, where the architecture leaves it to the vendor.
    pub vendor: Vendor,
    /// How often code executes before it is translated for the host's processor; never with `u32::MAX`. What it does
    /// does not depend on it.
    pub translate_after: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            physical_bits: 48,
            cr4_allowed: cr4::BASELINE | cr4::UMIP | cr4::LA57 | cr4::FSGSBASE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP,
            efer_allowed: efer::SCE | efer::LME | efer::LMA | efer::NXE,
            xcr0_allowed: Extensions::of_host().xcr0(),
            gigabyte_pages: true,
            vendor: Vendor::Intel,
            // A translation takes about as long as so many executions by handlers.
            translate_after: 32,
        }
    }
}

/// Debugging of the guest by the host (KVM_SET_GUEST_DEBUG). All off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DebugControl {
    /// After each instruction, [`crate::CpuExit::Debug`] with DR6.BS.
    pub single_step: bool,
    /// INT3 ends in [`crate::CpuExit::Debug`] in place of #BP.
    pub software_breakpoints: bool,
    /// These DR0 to DR3 and DR7 count in place of the guest's, and hits are
    /// [`crate::CpuExit::Debug`].
    pub hardware_breakpoints: Option<([u64; 4], u64)>,
    /// The bus is told what is executed: [`crate::Bus::entered`] and [`crate::Bus::cut_short`].
    pub records: bool,
    /// The bus is told of locked instructions: [`crate::Bus::locked`].
    pub tells_locked: bool,
}
