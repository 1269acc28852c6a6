//! Receiving a guest from another platform (55766, chapter 6: RECEIVE_START to RECEIVE_FINISH).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::guest::{Guest, Phase};
use super::packet::{Content, PacketParameters};
use super::policy::SevPolicy;
use super::{Psp, Status, Surroundings};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct StartParameters {
    handle: U32,
    policy: U32,
    pdh_address: U64,
    pdh_length: U32,
    reserved: U32,
    session_address: U64,
    session_length: U32,
}

impl Psp {
    /// RECEIVE_START: a new guest, for which another platform has offered this session.
    pub(super) fn receive_start(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: StartParameters = around.parameters(at)?;
        let policy = SevPolicy(parameters.policy.get());
        self.check_policy(policy)?;
        self.check_output(around, at, size_of::<StartParameters>() as u64)?;
        let certificate = (parameters.pdh_address.get(), parameters.pdh_length.get());
        let session = (parameters.session_address.get(), parameters.session_length.get());
        let transport = self.accept_session(around, certificate, session, policy)?;
        let key = self.launch_key(parameters.handle, policy)?;
        let phase = Phase::Receiving;
        let handle = self.sev()?.add(Guest { policy, key, asid: None, phase, transport, digest: [0; 32] });
        parameters.handle = U32::new(handle);
        around.store(at, &parameters);
        Ok(())
    }

    /// RECEIVE_UPDATE_DATA: memory of the guest from the channel.
    pub(super) fn receive_update_data(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: PacketParameters = around.parameters(at)?;
        let guest = self.active_guest(parameters.handle, |phase| *phase == Phase::Receiving)?;
        let (keys, key) = (guest.transport.clone(), guest.key);
        self.take_packet(around, &parameters, &keys, key, Content::Data, &[])
    }

    /// RECEIVE_FINISH: the guest is here now.
    pub(super) fn receive_finish(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let guest = self.guest(around.parameters(at)?)?;
        if guest.phase != Phase::Receiving {
            return Err(Status::InvalidGuestState);
        }
        guest.phase = Phase::Running;
        if let Some(asid) = guest.asid {
            self.asids.make_runnable(asid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psp::Command;
    use crate::psp::certificate::CERTIFICATE_LENGTH;
    use crate::psp::identity::CHAIN_LENGTH;
    use crate::psp::test_machine::{BUFFER, TestMachine};
    use crate::{KeyedMemory, PhysicalMemory};

    const PDH: u64 = 0x3000;
    const CHAIN: u64 = 0x4000;
    const SESSION: u64 = 0x6000;
    const HEADER: u64 = 0x7000;
    const PACKET: u64 = 0x8000;
    const FROM: u64 = 0xA000;
    const TO: u64 = 0xB000;

    /// A machine whose guest 1 runs, with "moving" in its memory, and has the platform's own certificates at hand.
    fn running(policy: u32) -> TestMachine {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.launch_start(policy);
        machine.execute(Command::Activate, &[1, 0, 0, 0, 20, 0, 0, 0]);
        machine.measure(1);
        assert_eq!(machine.execute(Command::LaunchFinish, &[1, 0, 0, 0]), Status::Success);
        let key = machine.psp.guest(U32::new(1)).unwrap().key;
        machine.memory.write_as(key, FROM, b"moving, 16 bytes");
        let words = [PDH, CERTIFICATE_LENGTH.into(), CHAIN, CHAIN_LENGTH.into()];
        assert_eq!(machine.execute_words(Command::PdhCertExport, &words), Status::Success);
        machine
    }

    fn send_start(machine: &mut TestMachine, session_length: u64) -> Status {
        let (pdh, chain) = (CERTIFICATE_LENGTH.into(), CHAIN_LENGTH.into());
        let words = [1, PDH, pdh, CHAIN, chain, 0, 0, SESSION, session_length];
        machine.execute_words(Command::SendStart, &words)
    }

    fn send(machine: &mut TestMachine) -> Status {
        machine.execute_words(Command::SendUpdateData, &[1, HEADER, 52, FROM, 16, PACKET, 16])
    }

    fn receive_start(machine: &mut TestMachine, policy: u64) -> Status {
        // The sender's PDH is the platform's own: it sends to itself.
        let words = [policy << 32, PDH, CERTIFICATE_LENGTH.into(), SESSION, 128];
        machine.execute_words(Command::ReceiveStart, &words)
    }

    #[test]
    fn a_guest_moves_to_another_guest_of_the_same_platform() {
        let mut machine = running(0);
        assert_eq!(send(&mut machine), Status::InvalidGuestState);
        assert_eq!(send_start(&mut machine, 128), Status::Success);
        assert_eq!(send(&mut machine), Status::Success);
        assert_ne!(machine.output::<16>(PACKET), *b"moving, 16 bytes");
        assert_eq!(receive_start(&mut machine, 0), Status::Success);
        assert_eq!(machine.output::<4>(BUFFER), [2, 0, 0, 0]);
        machine.execute(Command::Activate, &[2, 0, 0, 0, 21, 0, 0, 0]);
        // With the C-bit, as Linux says it.
        let receive = [2, HEADER, 52, TO | 1 << 51, 16, PACKET, 16];
        assert_eq!(machine.execute_words(Command::ReceiveUpdateData, &receive), Status::Success);
        assert_eq!(machine.psp.runnable_key(21), None);
        assert_eq!(machine.execute(Command::ReceiveFinish, &[2, 0, 0, 0]), Status::Success);
        let key = machine.psp.runnable_key(21).unwrap();
        let mut seen = [0; 16];
        machine.memory.read_as(key, TO, &mut seen);
        assert_eq!(&seen, b"moving, 16 bytes");
        assert_eq!(machine.execute(Command::SendFinish, &[1, 0, 0, 0]), Status::Success);
        assert_eq!(machine.execute(Command::SendCancel, &[1, 0, 0, 0]), Status::InvalidGuestState);
        assert_eq!(machine.execute(Command::ReceiveFinish, &[2, 0, 0, 0]), Status::InvalidGuestState);
    }

    #[test]
    fn what_was_changed_on_the_way_is_not_taken() {
        let mut machine = running(0);
        send_start(&mut machine, 128);
        send(&mut machine);
        assert_eq!(receive_start(&mut machine, 2), Status::BadMeasurement, "of another policy");
        receive_start(&mut machine, 0);
        machine.memory.write(PACKET, &[0]);
        let receive = [2, HEADER, 52, TO, 16, PACKET, 16];
        assert_eq!(machine.execute_words(Command::ReceiveUpdateData, &receive), Status::Inactive);
        machine.execute(Command::Activate, &[2, 0, 0, 0, 21, 0, 0, 0]);
        assert_eq!(machine.execute_words(Command::ReceiveUpdateData, &receive), Status::BadMeasurement);
    }

    #[test]
    fn a_sender_minds_policy_certificates_and_room() {
        let mut machine = running(0);
        assert_eq!(send_start(&mut machine, 0), Status::InvalidLength);
        assert_eq!(machine.output::<68>(BUFFER)[64..], [128, 0, 0, 0]);
        // Within the signature by the PEK.
        machine.memory.write(PDH + 0x420, &[0; 8]);
        assert_eq!(send_start(&mut machine, 128), Status::InvalidCertificate);
        assert_eq!(send_start(&mut running(8), 128), Status::PolicyFailure, "NOSEND");
        assert_eq!(send_start(&mut running(0x20), 128), Status::Unsupported, "SEV");
        assert_eq!(send_start(&mut running(0x10), 128), Status::Success, "DOMAIN, and it is its own");
        let mut machine = running(0);
        send_start(&mut machine, 128);
        let query = [1, HEADER, 0, FROM, 16, PACKET, 16];
        assert_eq!(machine.execute_words(Command::SendUpdateData, &query), Status::InvalidLength);
        assert_eq!(machine.output::<20>(BUFFER)[16..], [52, 0, 0, 0]);
        assert_eq!(machine.execute(Command::SendCancel, &[1, 0, 0, 0]), Status::Success);
        assert_eq!(send_start(&mut machine, 128), Status::Success, "again");
    }
}
