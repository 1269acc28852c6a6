//! TD_PARAMS: what the host asks for when it makes a TD (TDX module ABI, "TD_PARAMS"; checks of TDH.MNG.INIT).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::status::{Code, Operand, Status};
use super::surroundings::Chip;
use super::{ATTRIBUTES, MAX_VCPUS, XFAM_FIXED1, xfam_fixed0};

/// CONFIG_FLAGS: the shared bit is bit 51 and not 47.
pub(super) const GPAW_52: u64 = 1 << 0;
/// CONFIG_FLAGS: the TD may choose itself what a pending page does.
pub(super) const FLEXIBLE_PENDING_VE: u64 = 1 << 1;
/// CONFIG_FLAGS: RBP is no register of TDG.VP.VMCALL.
pub(super) const NO_RBP_MOD: u64 = 1 << 2;

/// Frequencies in units of 25 MHz: 100 MHz to 10 GHz.
const FREQUENCIES: std::ops::RangeInclusive<u16> = 4..=400;
/// kHz of such a unit.
pub(super) const FREQUENCY_UNIT: u64 = 25_000;

/// The structure.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct TdParams {
    attributes: U64,
    xfam: U64,
    max_vcpus: U16,
    num_l2_vms: u8,
    reserved: [u8; 5],
    eptp_controls: U64,
    config_flags: U64,
    tsc_frequency: U16,
    reserved_2: [u8; 38],
    pub(super) mrconfigid: [u8; 48],
    pub(super) mrowner: [u8; 48],
    pub(super) mrownerconfig: [u8; 48],
    reserved_3: [u8; 32],
    cpuid: [[U32; 4]; 48],
}

/// What of it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checked {
    pub(super) attributes: u64,
    pub(super) xfam: u64,
    pub(super) max_vcpus: u16,
    pub(super) config_flags: u64,
    pub(super) tsc_frequency: u16,
}

impl TdParams {
    /// Values of CPUID, in the order of the configurable leaves.
    pub(super) fn cpuid(&self) -> Vec<[u32; 4]> {
        self.cpuid.iter().map(|leaf| leaf.map(U32::get)).collect()
    }

    /// Holds it against what the module offers.
    pub(super) fn check(&self, chip: &Chip) -> Result<Checked, Status> {
        let invalid = |operand: Operand| Err(Code::OperandInvalid.on(operand));
        let attributes = self.attributes.get();
        if attributes & !ATTRIBUTES != 0 {
            return invalid(Operand::Attributes);
        }
        let xfam = self.xfam.get();
        if xfam & !xfam_fixed0(chip) != 0 || xfam & XFAM_FIXED1 != XFAM_FIXED1 || !consistent(xfam) {
            return invalid(Operand::Xfam);
        }
        let max_vcpus = self.max_vcpus.get();
        if !(1..=MAX_VCPUS).contains(&max_vcpus) {
            return invalid(Operand::MaxVcpus);
        }
        if self.num_l2_vms != 0 {
            return invalid(Operand::NumL2Vms);
        }
        let config_flags = self.config_flags.get();
        if config_flags & !(GPAW_52 | FLEXIBLE_PENDING_VE | NO_RBP_MOD) != 0 {
            return invalid(Operand::ExecControls);
        }
        // Write-back, and a walk of four or five levels (EPTP, SDM volume 3, 26.6.11), which the width demands.
        let five_levels = match self.eptp_controls.get() {
            0x1E => false,
            0x26 if chip.five_levels => true,
            _ => return invalid(Operand::EptpControls),
        };
        if config_flags & GPAW_52 != 0 && !five_levels {
            return invalid(Operand::EptpControls);
        }
        let tsc_frequency = self.tsc_frequency.get();
        if !FREQUENCIES.contains(&tsc_frequency) {
            return invalid(Operand::TscFrequency);
        }
        if self.reserved != [0; 5] || self.reserved_2 != [0; 38] || self.reserved_3 != [0; 32] {
            return invalid(Operand::Rdx);
        }
        Ok(Checked { attributes, xfam, max_vcpus, config_flags, tsc_frequency })
    }
}

/// Whether states that go together are together: AVX-512 and AVX, both of CET, both of AMX.
fn consistent(xfam: u64) -> bool {
    const AVX: u64 = 1 << 2;
    const AVX512: u64 = 7 << 5;
    const CET: u64 = 3 << 11;
    const AMX: u64 = 3 << 17;
    let together = |mask: u64| xfam & mask == 0 || xfam & mask == mask;
    together(AVX512) && together(CET) && together(AMX) && (xfam & AVX512 == 0 || xfam & AVX != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdx::test_machine::{chip, td_params};

    fn refused(offset: usize, value: u64, bytes: usize) -> Status {
        let mut params = td_params();
        params[offset..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        TdParams::read_from_bytes(&params).unwrap().check(&chip()).unwrap_err()
    }

    #[test]
    fn what_linux_writes_is_taken() {
        let checked = TdParams::read_from_bytes(&td_params()).unwrap().check(&chip()).unwrap();
        assert_eq!((checked.attributes, checked.xfam, checked.max_vcpus), (1 << 28, 7, 2));
        assert_eq!((checked.config_flags, checked.tsc_frequency), (NO_RBP_MOD, 40));
    }

    /// The offsets are those of arch/x86/kvm/vmx/tdx_arch.h: struct td_params.
    #[test]
    fn each_field_is_checked_and_named() {
        for (offset, value, bytes, operand) in [
            (0, 1, 8, Operand::Attributes),
            (8, 0x2_0007, 8, Operand::Xfam),
            (8, 1, 8, Operand::Xfam),
            (16, 0, 2, Operand::MaxVcpus),
            (16, 0x1000, 2, Operand::MaxVcpus),
            (18, 1, 1, Operand::NumL2Vms),
            (19, 1, 1, Operand::Rdx),
            (24, 0x18, 8, Operand::EptpControls),
            (24, 0x26, 8, Operand::EptpControls),
            (32, 0x20, 8, Operand::ExecControls),
            (32, GPAW_52, 8, Operand::EptpControls),
            (40, 3, 2, Operand::TscFrequency),
            (40, 401, 2, Operand::TscFrequency),
            (42, 1, 1, Operand::Rdx),
            (224, 1, 1, Operand::Rdx),
        ] {
            assert_eq!(refused(offset, value, bytes), Code::OperandInvalid.on(operand), "{offset} {value:#x}");
        }
    }

    #[test]
    fn states_that_go_together_are_together() {
        for (xfam, sound) in
            [(7, true), (3, true), (0xE7, true), (0xE3, false), (0x27, false), (0x807, false), (0x1807, true)]
        {
            assert_eq!(consistent(xfam), sound, "{xfam:#x}");
        }
    }
}
