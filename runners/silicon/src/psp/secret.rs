//! LAUNCH_SECRET (55766, 6.6): the owner gives a measured guest what only it shall know.

use super::guest::Phase;
use super::packet::{Content, PacketParameters};
use super::{Psp, Status, Surroundings};

impl Psp {
    /// LAUNCH_SECRET. Who has made it has seen the measurement: that is part of what is authenticated.
    pub(super) fn launch_secret(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: PacketParameters = around.parameters(at)?;
        let guest = self.active_guest(parameters.handle, |phase| matches!(phase, Phase::LaunchSecret { .. }))?;
        let Phase::LaunchSecret { measurement } = guest.phase else { return Err(Status::InvalidGuestState) };
        let (keys, key) = (guest.transport.clone(), guest.key);
        self.take_packet(around, &parameters, &keys, key, Content::Secret, &measurement)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;
    use zerocopy::little_endian::U32;

    use crate::psp::packet::tests::secret;
    use crate::psp::test_machine::TestMachine;
    use crate::psp::{Command, Status};
    use crate::{KeyedMemory, PhysicalMemory};

    const GUEST: u64 = 0x5000;

    fn inject(machine: &mut TestMachine, text: &[u8; 16], measurement: &[u8]) -> Status {
        let keys = machine.psp.guest(U32::new(1)).unwrap().transport.clone();
        let (header, bytes) = secret(&keys, text, measurement);
        machine.memory.write(0x3000, header.as_bytes());
        machine.memory.write(0x4000, &bytes);
        machine.execute_words(Command::LaunchSecret, &[1, 0x3000, 52, GUEST, 16, 0x4000, 16])
    }

    #[test]
    fn a_measured_guest_gets_what_its_owner_has_sent() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.launch_start(0);
        assert_eq!(inject(&mut machine, b"sixteen of owner", &[0; 32]), Status::InvalidGuestState, "not measured");
        machine.execute(Command::Activate, &[1, 0, 0, 0, 20, 0, 0, 0]);
        let measured = machine.measure(1);
        assert_eq!(inject(&mut machine, b"sixteen of owner", &[0; 32]), Status::BadMeasurement);
        assert_eq!(inject(&mut machine, b"sixteen of owner", &measured[..32]), Status::Success);
        let key = machine.psp.guest(U32::new(1)).unwrap().key;
        let mut seen = [0; 16];
        machine.memory.read_as(key, GUEST, &mut seen);
        assert_eq!(&seen, b"sixteen of owner");
        for (words, status) in [
            ([1, 0x3000, 52, GUEST + 8, 16, 0x4000, 16], Status::InvalidAddress),
            ([1, 0x3000, 52, GUEST, 24, 0x4000, 24], Status::InvalidLength),
            ([1, 0x3000, 51, GUEST, 16, 0x4000, 16], Status::InvalidLength),
            ([1, 0x3000, 52, GUEST, 16, 0x4000, 32], Status::InvalidLength),
            ([9, 0x3000, 52, GUEST, 16, 0x4000, 16], Status::InvalidGuest),
        ] {
            assert_eq!(machine.execute_words(Command::LaunchSecret, &words), status, "{words:x?}");
        }
    }
}
