//! ATTESTATION_REPORT (55766, 6.8) of SEV and SEV-ES guests: what was launched, signed by the platform.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::certificate::Usage;
use super::ecdsa::Hash;
use super::guest::Phase;
use super::{Psp, Status, Surroundings};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ReportParameters {
    handle: U32,
    reserved: U32,
    address: U64,
    nonce: [u8; 16],
    length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Report {
    nonce: [u8; 16],
    launch_digest: [u8; 32],
    policy: U32,
    signature_usage: U32,
    signature_algorithm: U32,
    reserved: U32,
    signature: [u8; 144],
}

const REPORT_LENGTH: u32 = size_of::<Report>() as u32;
/// Bytes that are signed.
const SIGNED: usize = 0x34;
const ECDSA_SHA256: u32 = 0x2;

impl Psp {
    /// ATTESTATION_REPORT. Without room for the report it tells how long one is.
    pub(super) fn attestation_report(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: ReportParameters = around.parameters(at)?;
        let guest = self.guest(parameters.handle)?;
        let (digest, policy) = (guest.digest, guest.policy);
        if !matches!(guest.phase, Phase::LaunchSecret { .. } | Phase::Running | Phase::Sending) {
            return Err(Status::InvalidGuestState);
        }
        self.check_output(around, at, size_of::<ReportParameters>() as u64)?;
        let given = parameters.length.get();
        parameters.length = U32::new(REPORT_LENGTH);
        if given < REPORT_LENGTH {
            around.store(at, &parameters);
            return Err(Status::InvalidLength);
        }
        let to = parameters.address.get();
        self.check_output(around, to, REPORT_LENGTH.into())?;
        let mut report = Report {
            nonce: parameters.nonce,
            launch_digest: digest,
            policy: U32::new(policy.0),
            signature_usage: U32::new(Usage::Pek as u32),
            signature_algorithm: U32::new(ECDSA_SHA256),
            reserved: U32::ZERO,
            signature: [0; 144],
        };
        report.signature = self.pek().sign(&report.as_bytes()[..SIGNED], Hash::Sha256).numbers();
        around.store(to, &report);
        around.store(at, &parameters);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::PhysicalMemory;
    use crate::psp::Command;
    use crate::psp::ecdsa::SignatureBlock;
    use crate::psp::test_machine::{BUFFER, TestMachine, region};

    const TO: u64 = 0x3000;

    fn parameters(length: u8) -> [u8; 36] {
        let mut parameters = [0; 36];
        parameters[0] = 1;
        parameters[8..16].copy_from_slice(&TO.to_le_bytes());
        parameters[16..32].fill(0x77);
        parameters[32] = length;
        parameters
    }

    #[test]
    fn the_platform_signs_what_was_launched() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.launch_start(0);
        machine.execute(Command::Activate, &[1, 0, 0, 0, 20, 0, 0, 0]);
        machine.memory.write(0x5000, &[0xF4; 16]);
        machine.execute(Command::LaunchUpdateData, &region(1, 0x5000, 16));
        assert_eq!(machine.execute(Command::AttestationReport, &parameters(208)), Status::InvalidGuestState);
        machine.measure(1);
        assert_eq!(machine.execute(Command::AttestationReport, &parameters(0)), Status::InvalidLength);
        assert_eq!(machine.output::<36>(BUFFER)[32..], [208, 0, 0, 0]);
        assert_eq!(machine.execute(Command::AttestationReport, &parameters(208)), Status::Success);
        let report = machine.output::<208>(TO);
        assert_eq!((&report[..16], &report[16..48]), (&[0x77; 16][..], &Sha256::digest([0xF4; 16])[..]));
        let mut block = [0; 512];
        block[..144].copy_from_slice(&report[64..]);
        let signature = SignatureBlock::read_from_bytes(&block).unwrap();
        assert!(machine.psp.pek().public().verifies(&report[..SIGNED], Hash::Sha256, &signature));
    }
}
