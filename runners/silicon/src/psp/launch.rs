//! Launch of SEV and SEV-ES guests (55766, chapter 6).

use serde::{Deserialize, Serialize};
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest, Sha256};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::certificate::{CERTIFICATE_LENGTH, Certificate, Usage};
use super::guest::{Guest, Phase};
use super::policy::SevPolicy;
use super::session::{SESSION_LENGTH, Session, TransportKeys};
use super::{API_MAJOR, API_MINOR, BUILD, Psp, Status, Surroundings};
use crate::Rule;
use crate::encryption::Key;

/// SHA-256 over all that LAUNCH_UPDATE_DATA and LAUNCH_UPDATE_VMSA have encrypted, in order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(into = "Vec<u8>", try_from = "Vec<u8>")]
pub(super) struct LaunchDigest(Sha256);

impl PartialEq for LaunchDigest {
    fn eq(&self, other: &LaunchDigest) -> bool {
        self.0.serialize() == other.0.serialize()
    }
}

impl From<LaunchDigest> for Vec<u8> {
    fn from(digest: LaunchDigest) -> Vec<u8> {
        digest.0.serialize().to_vec()
    }
}

impl TryFrom<Vec<u8>> for LaunchDigest {
    type Error = &'static str;

    fn try_from(state: Vec<u8>) -> Result<LaunchDigest, &'static str> {
        let state = state.as_slice().try_into().map_err(|_| "not a digest's state")?;
        Sha256::deserialize(&state).map(LaunchDigest).map_err(|_| "not a digest's state")
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LaunchStartParameters {
    handle: U32,
    policy: U32,
    certificate_address: U64,
    certificate_length: U32,
    reserved: U32,
    session_address: U64,
    session_length: U32,
}

/// Of LAUNCH_UPDATE_DATA, LAUNCH_UPDATE_VMSA and LAUNCH_MEASURE.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RegionParameters {
    handle: U32,
    reserved: U32,
    address: U64,
    length: U32,
}

/// HMAC and nonce.
const MEASUREMENT_LENGTH: u32 = 48;
/// First byte of what is authenticated, so that a measurement can be taken for nothing else.
const MEASUREMENT_CONTEXT: u8 = 4;
const VMSA_LENGTH: u32 = 4096;

impl Psp {
    /// LAUNCH_START (55766, 6.2): a new guest, or one that shares the key of the one whose handle is given.
    pub(super) fn launch_start(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: LaunchStartParameters = around.parameters(at)?;
        let policy = SevPolicy(parameters.policy.get());
        self.check_policy(policy)?;
        self.check_output(around, at, size_of::<LaunchStartParameters>() as u64)?;
        let certificate = (parameters.certificate_address.get(), parameters.certificate_length.get());
        let session = (parameters.session_address.get(), parameters.session_length.get());
        let transport = match (certificate, session) {
            // Nobody but the firmware knows the keys of the channel then: no measurement can be checked and no secret
            // injected.
            ((0, _), (0, _)) => TransportKeys::fresh(&mut self.entropy),
            _ => self.accept_session(around, certificate, session, policy)?,
        };
        let key = self.launch_key(parameters.handle, policy)?;
        let phase = Phase::LaunchUpdate(LaunchDigest::default());
        let handle = self.sev()?.add(Guest { policy, key, asid: None, phase, transport, digest: [0; 32] });
        parameters.handle = U32::new(handle);
        around.store(at, &parameters);
        Ok(())
    }

    /// Whether guests of this policy can be here at all.
    pub(super) fn check_policy(&mut self, policy: SevPolicy) -> Result<(), Status> {
        if policy.encrypted_state() && !self.sev()?.encrypted_state {
            return Err(Status::Unsupported);
        }
        self.sev()?;
        self.demand(Rule::FirmwareVersion, policy.version_is_here(), Status::PolicyFailure)
    }

    /// The keys of a session that comes with the PDH certificate of whoever offers it; address and length of both.
    pub(super) fn accept_session(
        &self,
        around: &mut Surroundings<'_>,
        certificate: (u64, u32),
        session: (u64, u32),
        policy: SevPolicy,
    ) -> Result<TransportKeys, Status> {
        if certificate.1 != CERTIFICATE_LENGTH || session.1 != SESSION_LENGTH {
            return Err(Status::InvalidLength);
        }
        let certificate: Certificate = around.load(certificate.0)?;
        let session: Session = around.load(session.0)?;
        let key = certificate.key(Usage::Pdh).ok_or(Status::InvalidCertificate)?;
        session.accept(&self.pdh(), key, policy, self.rules)
    }

    /// A key of the guest's own, or that of the guest that it shares it with: both policies have to allow it.
    pub(super) fn launch_key(&mut self, handle: U32, policy: SevPolicy) -> Result<Key, Status> {
        if handle.get() == 0 {
            return Ok(self.new_key());
        }
        let other = self.guest(handle)?;
        let (allowed, key) = (!policy.no_key_sharing() && !other.policy.no_key_sharing(), other.key);
        self.demand(Rule::KeySharing, allowed, Status::PolicyFailure)?;
        Ok(key)
    }

    /// LAUNCH_UPDATE_DATA (55766, 6.3).
    pub(super) fn launch_update_data(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: RegionParameters = around.parameters(at)?;
        self.active_guest(parameters.handle, |phase| matches!(phase, Phase::LaunchUpdate(_)))?;
        if !parameters.address.get().is_multiple_of(16) {
            return Err(Status::InvalidAddress);
        }
        if parameters.length.get() == 0 || !parameters.length.get().is_multiple_of(16) {
            return Err(Status::InvalidLength);
        }
        self.encrypt_and_measure(around, &parameters)
    }

    /// LAUNCH_UPDATE_VMSA (55766, 6.3).
    pub(super) fn launch_update_vmsa(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: RegionParameters = around.parameters(at)?;
        let guest = self.active_guest(parameters.handle, |phase| matches!(phase, Phase::LaunchUpdate(_)))?;
        if !guest.policy.encrypted_state() {
            return Err(Status::InvalidGuestState);
        }
        if !parameters.address.get().is_multiple_of(4096) {
            return Err(Status::InvalidAddress);
        }
        if parameters.length.get() != VMSA_LENGTH {
            return Err(Status::InvalidLength);
        }
        self.encrypt_and_measure(around, &parameters)
    }

    /// Encrypts memory where it is: what the host wrote is what the guest will read.
    fn encrypt_and_measure(
        &mut self,
        around: &mut Surroundings<'_>,
        parameters: &RegionParameters,
    ) -> Result<(), Status> {
        let (address, length) = (parameters.address.get(), parameters.length.get());
        self.check_output(around, address, length.into())?;
        let plain = around.bytes(Key::PLAIN, address, length)?;
        let measured = self.rules.hold(Rule::MeasuredData);
        let guest = self.guest(parameters.handle)?;
        if let Phase::LaunchUpdate(digest) = &mut guest.phase
            && measured
        {
            digest.0.update(&plain);
        }
        around.memory.write_as(guest.key, address, &plain);
        Ok(())
    }

    /// LAUNCH_MEASURE (55766, 6.5): tells the guest's owner what was launched.
    pub(super) fn launch_measure(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: RegionParameters = around.parameters(at)?;
        let guest = self.guest(parameters.handle)?.clone();
        let Phase::LaunchUpdate(digest) = &guest.phase else { return Err(Status::InvalidGuestState) };
        self.check_output(around, at, size_of::<RegionParameters>() as u64)?;
        let given = parameters.length.get();
        parameters.length = U32::new(MEASUREMENT_LENGTH);
        if given < MEASUREMENT_LENGTH {
            around.store(at, &parameters);
            return Err(Status::InvalidLength);
        }
        let address = parameters.address.get();
        self.check_output(around, address, MEASUREMENT_LENGTH.into())?;
        let nonce: [u8; 16] = self.entropy.bytes();
        let digest: [u8; 32] = digest.0.clone().finalize().into();
        let measurement = measurement(&guest, &digest, &nonce);
        around.store(address, &measurement);
        around.store(address + 32, &nonce);
        around.store(at, &parameters);
        let guest = self.guest(parameters.handle)?;
        guest.digest = digest;
        guest.phase = Phase::LaunchSecret { measurement };
        Ok(())
    }

    /// LAUNCH_FINISH (55766, 6.7).
    pub(super) fn launch_finish(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let guest = self.guest(around.parameters(at)?)?;
        let Phase::LaunchSecret { .. } = guest.phase else { return Err(Status::InvalidGuestState) };
        guest.phase = Phase::Running;
        if let Some(asid) = guest.asid {
            self.asids.make_runnable(asid);
        }
        Ok(())
    }
}

/// HMAC of the launch (55766, 6.5.1).
fn measurement(guest: &Guest, digest: &[u8; 32], nonce: &[u8; 16]) -> [u8; 32] {
    let version = [MEASUREMENT_CONTEXT, API_MAJOR, API_MINOR, BUILD];
    guest.transport.mac(&[&version, &guest.policy.0.to_le_bytes(), digest, nonce])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalMemory;
    use crate::psp::Command;
    use crate::psp::test_machine::{BUFFER, TestMachine, region};

    /// A machine with an SEV-ES guest of handle 1 and ASID 5.
    fn launching() -> TestMachine {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.launch_start(4);
        machine.execute(Command::Activate, &[1, 0, 0, 0, 5, 0, 0, 0]);
        machine
    }

    #[test]
    fn launched_memory_is_the_guests_and_nobody_elses() {
        let mut machine = launching();
        machine.memory.write(0x5000, b"what the host wrote for the guest, 48 bytes long");
        assert_eq!(machine.execute(Command::LaunchUpdateData, &region(1, 0x5000, 48)), Status::Success);
        assert_ne!(machine.output::<48>(0x5000), *b"what the host wrote for the guest, 48 bytes long");
        let key = machine.psp.guest(U32::new(1)).unwrap().key;
        let mut seen = [0; 48];
        crate::KeyedMemory::read_as(&mut machine.memory, key, 0x5000, &mut seen);
        assert_eq!(&seen, b"what the host wrote for the guest, 48 bytes long");
    }

    #[test]
    fn updates_mind_state_address_and_length() {
        let mut machine = launching();
        let mut update =
            |handle, address, length| machine.execute(Command::LaunchUpdateData, &region(handle, address, length));
        assert_eq!(update(2, 0x5000, 16), Status::InvalidGuest);
        assert_eq!(update(1, 0x5008, 16), Status::InvalidAddress);
        assert_eq!(update(1, 1 << 40, 16), Status::InvalidAddress);
        assert_eq!(update(1, 0x5000, 24), Status::InvalidLength);
        assert_eq!(update(1, 0x5000, 0), Status::InvalidLength);
        assert_eq!(machine.execute(Command::LaunchUpdateVmsa, &region(1, 0x5000, 16)), Status::InvalidLength);
        assert_eq!(machine.execute(Command::LaunchUpdateVmsa, &region(1, 0x5010, 4096)), Status::InvalidAddress);
        assert_eq!(machine.execute(Command::LaunchFinish, &[1, 0, 0, 0]), Status::InvalidGuestState);
        machine.measure(1);
        assert_eq!(machine.execute(Command::LaunchUpdateData, &region(1, 0x5000, 16)), Status::InvalidGuestState);
        assert_eq!(machine.launch_start(0), 2);
        assert_eq!(machine.execute(Command::LaunchUpdateData, &region(2, 0x5000, 16)), Status::Inactive);
        machine.execute(Command::Activate, &[2, 0, 0, 0, 20, 0, 0, 0]);
        assert_eq!(machine.execute(Command::LaunchUpdateVmsa, &region(2, 0x5000, 4096)), Status::InvalidGuestState);
    }

    /// 55766, 6.5.1: HMAC-SHA-256(TIK; 04, API, build, policy, digest, nonce).
    #[test]
    fn the_measurement_covers_what_was_launched() {
        let mut machine = launching();
        machine.memory.write(0x5000, &[0xF4; 4096]);
        machine.memory.write(0x6000, &[0; 4096]);
        machine.execute(Command::LaunchUpdateData, &region(1, 0x5000, 4096));
        machine.execute(Command::LaunchUpdateVmsa, &region(1, 0x6000, 4096));
        let transport = machine.psp.guest(U32::new(1)).unwrap().transport.clone();
        let blob = machine.measure(1);
        let digest = Sha256::new().chain_update([0xF4; 4096]).chain_update([0; 4096]).finalize();
        let expected = transport.mac(&[&[4, 1, 55, 25, 4, 0, 0, 0], &digest, &blob[32..]]);
        assert_eq!(blob[..32], expected);
    }

    #[test]
    fn measure_says_how_long_a_measurement_is() {
        let mut machine = launching();
        assert_eq!(machine.execute(Command::LaunchMeasure, &region(1, 0, 0)), Status::InvalidLength);
        assert_eq!(machine.output::<20>(BUFFER)[16..], [48, 0, 0, 0]);
    }

    #[test]
    fn keys_are_shared_only_if_both_policies_allow_it() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.launch_start(0);
        machine.launch_start(2);
        let mut parameters = [0; 36];
        parameters[0] = 2;
        assert_eq!(machine.execute(Command::LaunchStart, &parameters), Status::PolicyFailure);
        parameters[0] = 1;
        parameters[4] = 2;
        assert_eq!(machine.execute(Command::LaunchStart, &parameters), Status::PolicyFailure);
        parameters[4] = 0;
        assert_eq!(machine.execute(Command::LaunchStart, &parameters), Status::Success);
        let key = |machine: &mut TestMachine, handle| machine.psp.guest(U32::new(handle)).unwrap().key;
        assert_eq!(key(&mut machine, 1), key(&mut machine, 3));
        assert_ne!(key(&mut machine, 1), key(&mut machine, 2));
    }

    #[test]
    fn an_owner_agrees_on_the_keys_of_the_channel() {
        use crate::psp::ecdsa::PrivateKey;
        let mut machine = TestMachine::new();
        machine.init_sev();
        let owner = PrivateKey::derived(&[9; 32], b"owner");
        let mut entropy = crate::psp::entropy::Entropy::new([5; 32]);
        let keys = TransportKeys::fresh(&mut entropy);
        let platform = machine.psp.pdh().public();
        let session = Session::offer(&owner, &platform, SevPolicy(1), &keys, &mut entropy).unwrap();
        let certificate = Certificate::new(Usage::Pdh, owner.public());
        machine.memory.write(0x3000, certificate.as_bytes());
        machine.memory.write(0x4000, session.as_bytes());
        let mut start = |policy: u64, certificate: u64, length| {
            machine.execute_words(Command::LaunchStart, &[policy << 32, certificate, length, 0x4000, 128])
        };
        assert_eq!(start(1, 0x3000, 2083), Status::InvalidLength);
        assert_eq!(start(1, 0x5000, 2084), Status::InvalidCertificate);
        assert_eq!(start(0, 0x3000, 2084), Status::BadMeasurement, "of another policy");
        assert_eq!(start(1, 0x3000, 2084), Status::Success);
        assert_eq!(machine.psp.guest(U32::new(1)).unwrap().transport, keys);
    }

    #[test]
    fn a_policy_that_demands_newer_firmware_launches_nothing() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        let newer = 0x3801_0000_u64 << 32;
        assert_eq!(machine.execute_words(Command::LaunchStart, &[newer, 0, 0, 0, 0]), Status::PolicyFailure);
    }

    #[test]
    fn a_policy_with_es_needs_the_platform_to_have_it() {
        let mut machine = TestMachine::new();
        machine.execute(Command::Init, &[0; 20]);
        let mut parameters = [0; 36];
        parameters[4] = 4;
        assert_eq!(machine.execute(Command::LaunchStart, &parameters), Status::Unsupported);
    }

    #[test]
    fn a_digest_in_the_making_survives_a_snapshot() {
        let mut digest = LaunchDigest::default();
        digest.0.update(b"some");
        let state: Vec<u8> = digest.clone().into();
        let copy = LaunchDigest::try_from(state).unwrap();
        assert_eq!(copy.0.finalize(), digest.0.finalize());
        assert!(LaunchDigest::try_from(vec![1]).is_err());
    }
}
