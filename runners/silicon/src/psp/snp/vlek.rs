//! SNP_VLEK_LOAD (56860): a key for reports that AMD's key server has made and wrapped for this chip.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::encryption::Key;
use crate::psp::{Psp, Status, Surroundings};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Parameters {
    length: U32,
    wrapped_version: u8,
    reserved: [u8; 3],
    wrapped_address: U64,
}

/// Bytes of a wrapped key (include/uapi/linux/psp-sev.h: struct sev_user_data_snp_wrapped_vlek_hashstick).
const WRAPPED_LENGTH: u32 = 432;

impl Psp {
    /// SNP_VLEK_LOAD. What the server wraps with is a secret between it and the chips, so nothing that a host can have is
    /// authentic here.
    ///
    /// A wrapped key is sealed with AES-256-GCM (56860, 8.30). What the firmware says of one whose tag is wrong is in no
    /// text that was at hand; Linux passes on whatever it is. BAD_MEASUREMENT is what the other commands say of sealed
    /// data that does not fit its tag or its MAC, so this says it, too. A row must not hold a host to it.
    pub(in crate::psp) fn snp_vlek_load(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: Parameters = around.parameters(at)?;
        self.snp()?;
        if parameters.length.get() < size_of::<Parameters>() as u32 {
            return Err(Status::InvalidLength);
        }
        if parameters.wrapped_version != 0 || parameters.reserved != [0; 3] {
            return Err(Status::InvalidParameter);
        }
        around.bytes(Key::PLAIN, parameters.wrapped_address.get(), WRAPPED_LENGTH)?;
        Err(Status::BadMeasurement)
    }
}

#[cfg(test)]
mod tests {
    use crate::psp::Command;
    use crate::psp::Status;
    use crate::psp::test_machine::TestMachine;

    const WRAPPED: u64 = 0x4000;

    fn load(machine: &mut TestMachine, length: u64, version: u64, address: u64) -> Status {
        machine.execute_words(Command::SnpVlekLoad, &[length | version << 32, address])
    }

    #[test]
    fn a_key_that_amd_has_not_wrapped_is_none() {
        let mut machine = TestMachine::with_snp();
        assert_eq!(load(&mut machine, 16, 0, WRAPPED), Status::BadMeasurement);
        assert_eq!(load(&mut machine, 15, 0, WRAPPED), Status::InvalidLength);
        assert_eq!(load(&mut machine, 16, 1, WRAPPED), Status::InvalidParameter);
        assert_eq!(load(&mut machine, 16, 1 << 8, WRAPPED), Status::InvalidParameter);
        assert_eq!(load(&mut machine, 16, 0, u64::MAX), Status::InvalidAddress);
    }

    #[test]
    fn there_is_a_platform_first() {
        let mut machine = TestMachine::new();
        assert_eq!(load(&mut machine, 16, 0, WRAPPED), Status::InvalidPlatformState);
    }
}
