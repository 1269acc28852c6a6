//! The machine around the module, as a leaf finds it.

use privet_cpu::state::gpr::{RCX, RDX};
use privet_cpu::{CpuState, CpuidResult};

use super::status::{Code, Operand, Status};
use crate::KeyedMemory;

/// What differs from machine to machine.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Chip {
    /// All keys and random numbers follow from it.
    pub seed: [u8; 32],
    /// The package of each processor.
    pub packages: Vec<usize>,
    /// The first KeyID of the module's, behind those of the host's MKTME (MSR 87h).
    pub first_hkid: u16,
    /// How many KeyIDs the module has.
    pub hkids: u16,
    /// Width of addresses without KeyIDs: a KeyID begins at this bit.
    pub address_bits: u8,
    /// Ranges of memory that firmware found convertible, bytes, ascending.
    pub convertible: Vec<std::ops::Range<u64>>,
    /// Frequency of the processors' TSC in kHz.
    pub tsc_khz: u64,
    /// XCR0 and XSS bits that the processors have.
    pub xfam: u64,
    /// IA32_ARCH_CAPABILITIES of the processors.
    pub arch_capabilities: u64,
    /// EPT of five levels.
    pub five_levels: bool,
}

impl Chip {
    /// How many packages there are.
    pub(super) fn package_count(&self) -> usize {
        self.packages.iter().copied().collect::<std::collections::BTreeSet<_>>().len()
    }

    /// A page of the host's that an operand names: aligned, without a KeyID.
    pub(super) fn check_page(&self, pa: u64, alignment: u64, operand: Operand) -> Result<(), Status> {
        match pa.is_multiple_of(alignment) && pa >> self.address_bits == 0 {
            true => Ok(()),
            false => Err(Code::OperandInvalid.on(operand)),
        }
    }
}

/// What a leaf can reach.
pub struct Surroundings<'a> {
    /// Memory.
    pub memory: &'a mut dyn KeyedMemory,
    /// The processor that calls.
    pub processor: usize,
    /// Its TSC.
    pub tsc: u64,
    /// CPUID of the processors: leaf and subleaf.
    pub cpuid: &'a dyn Fn(u32, u32) -> CpuidResult,
}

/// The registers in which a leaf takes operands and gives results. Those that it does not name stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "registers")]
pub struct Registers {
    pub rcx: u64,
    pub rdx: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
}

impl Registers {
    const R8: usize = 8;

    /// Those of a processor at SEAMCALL or TDCALL.
    #[must_use]
    pub fn of(state: &CpuState) -> Registers {
        let [r8, r9, r10, r11] = std::array::from_fn(|index| state.gpr[Self::R8 + index]);
        Registers { rcx: state.gpr[RCX], rdx: state.gpr[RDX], r8, r9, r10, r11 }
    }

    /// Gives the processor what the leaf has left in them.
    pub fn store(self, state: &mut CpuState) {
        let Registers { rcx, rdx, r8, r9, r10, r11 } = self;
        (state.gpr[RCX], state.gpr[RDX]) = (rcx, rdx);
        state.gpr[Self::R8..Self::R8 + 4].copy_from_slice(&[r8, r9, r10, r11]);
    }
}
