//! DBG_DECRYPT and DBG_ENCRYPT of SEV and SEV-ES guests (55766, chapter 7).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Psp, Status, Surroundings};
use crate::Rule;
use crate::encryption::Key;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct DebugParameters {
    handle: U32,
    reserved: U32,
    source: U64,
    destination: U64,
    length: U32,
}

impl Psp {
    /// DBG_DECRYPT (55766, 7.1): the guest's bytes for the host.
    pub(super) fn dbg_decrypt(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters = around.parameters(at)?;
        let key = self.debug_key(&parameters)?;
        self.copy(around, &parameters, key, Key::PLAIN)
    }

    /// DBG_ENCRYPT (55766, 7.2): the host's bytes for the guest.
    pub(super) fn dbg_encrypt(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters = around.parameters(at)?;
        let key = self.debug_key(&parameters)?;
        self.copy(around, &parameters, Key::PLAIN, key)
    }

    fn debug_key(&mut self, parameters: &DebugParameters) -> Result<Key, Status> {
        let guest = self.guest(parameters.handle)?;
        let allowed = !guest.policy.no_debug();
        self.demand(Rule::DebugPolicy, allowed, Status::PolicyFailure)?;
        Ok(self.active_guest(parameters.handle, |_| true)?.key)
    }

    fn copy(
        &mut self,
        around: &mut Surroundings<'_>,
        parameters: &DebugParameters,
        from: Key,
        to: Key,
    ) -> Result<(), Status> {
        let (source, destination) = (parameters.source.get(), parameters.destination.get());
        let length = parameters.length.get();
        if !(source | destination).is_multiple_of(16) {
            return Err(Status::InvalidAddress);
        }
        if length == 0 || !length.is_multiple_of(16) {
            return Err(Status::InvalidLength);
        }
        self.check_output(around, destination, length.into())?;
        let bytes = around.bytes(from, source, length)?;
        around.memory.write_as(to, destination, &bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::PhysicalMemory;
    use crate::psp::test_machine::{TestMachine, region};
    use crate::psp::{Command, Status};

    fn debug(source: u64, destination: u64, length: u32) -> [u8; 28] {
        let mut parameters = [0; 28];
        parameters[0] = 1;
        parameters[8..16].copy_from_slice(&source.to_le_bytes());
        parameters[16..24].copy_from_slice(&destination.to_le_bytes());
        parameters[24..].copy_from_slice(&length.to_le_bytes());
        parameters
    }

    fn launched(policy: u32) -> TestMachine {
        let mut machine = TestMachine::new();
        machine.init_sev();
        machine.launch_start(policy);
        machine.execute(Command::Activate, &[1, 0, 0, 0, 20, 0, 0, 0]);
        machine.memory.write(0x5000, &[7; 64]);
        machine.execute(Command::LaunchUpdateData, &region(1, 0x5000, 64));
        machine
    }

    #[test]
    fn the_host_reads_and_writes_what_the_guest_sees() {
        let mut machine = launched(0);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5010, 0x7000, 32)), Status::Success);
        assert_eq!(machine.output::<32>(0x7000), [7; 32]);
        machine.memory.write(0x7000, &[9; 16]);
        assert_eq!(machine.execute(Command::DbgEncrypt, &debug(0x7000, 0x5010, 16)), Status::Success);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5000, 0x7000, 64)), Status::Success);
        let expected: [u8; 64] = std::array::from_fn(|at| if (16..32).contains(&at) { 9 } else { 7 });
        assert_eq!(machine.output::<64>(0x7000), expected);
    }

    #[test]
    fn the_policy_may_forbid_it() {
        let mut machine = launched(1);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5000, 0x7000, 16)), Status::PolicyFailure);
        assert_eq!(machine.execute(Command::DbgEncrypt, &debug(0x7000, 0x5000, 16)), Status::PolicyFailure);
    }

    #[test]
    fn blocks_of_16_bytes_only() {
        let mut machine = launched(0);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5008, 0x7000, 16)), Status::InvalidAddress);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5000, 0x7001, 16)), Status::InvalidAddress);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5000, 0x7000, 8)), Status::InvalidLength);
        machine.execute(Command::Deactivate, &[1, 0, 0, 0]);
        assert_eq!(machine.execute(Command::DbgDecrypt, &debug(0x5000, 0x7000, 16)), Status::Inactive);
    }
}
