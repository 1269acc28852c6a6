//! Commands about the platform of SEV and SEV-ES (55766, chapter 5).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha512};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::guest::{Guest, Handle};
use super::{API_MAJOR, API_MINOR, BUILD, Psp, Status, Surroundings};

/// The initialised platform. It is in state INIT without guests and in WORKING with some.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Sev {
    /// SEV-ES guests may be launched.
    pub(super) encrypted_state: bool,
    pub(super) guests: BTreeMap<Handle, Guest>,
    handles: u32,
}

impl Sev {
    /// Takes in a guest under a handle that is nobody else's.
    pub(super) fn add(&mut self, guest: Guest) -> Handle {
        self.handles += 1;
        self.guests.insert(self.handles, guest);
        self.handles
    }

    fn state(&self) -> u8 {
        if self.guests.is_empty() { 1 } else { 2 }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct InitParameters {
    flags: U32,
    reserved: U32,
    tmr_address: U64,
    tmr_length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct InitExParameters {
    length: U32,
    flags: U32,
    tmr_address: U64,
    tmr_length: U32,
    reserved: U32,
    nv_address: U64,
    nv_length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct PlatformStatus {
    api_major: u8,
    api_minor: u8,
    state: u8,
    /// Bit 0: somebody else owns the platform. Bit 8: SEV-ES is configured.
    flags: U32,
    build: u8,
    guest_count: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct GetIdParameters {
    address: U64,
    length: U32,
}

const FLAG_ENCRYPTED_STATE: u32 = 1 << 0;
const STATUS_OWNED: u32 = 1 << 0;
const STATUS_ENCRYPTED_STATE: u32 = 1 << 8;
/// Storage that INIT_EX gets in memory, bytes, and how it looks before its first use.
const NV_LENGTH: u32 = 0x8000;
const NV_FRESH: u8 = 0xFF;
const ID_LENGTH: u32 = 64;

impl Psp {
    /// The platform, which has to be initialised.
    pub(super) fn sev(&mut self) -> Result<&mut Sev, Status> {
        self.sev.as_mut().ok_or(Status::InvalidPlatformState)
    }

    /// INIT (55766, 5.1).
    pub(super) fn init(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: InitParameters = around.parameters(at)?;
        self.check_init(around)?;
        let encrypted_state = parameters.flags.get() & FLAG_ENCRYPTED_STATE != 0;
        self.initialise(around, encrypted_state, parameters.tmr_address.get(), parameters.tmr_length.get())
    }

    /// INIT_EX (55766, 5.1.6): INIT with storage in the host's hands.
    pub(super) fn init_ex(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: InitExParameters = around.parameters(at)?;
        self.check_init(around)?;
        if parameters.length.get() < size_of::<InitExParameters>() as u32 || parameters.nv_length.get() != NV_LENGTH {
            return Err(Status::InvalidLength);
        }
        let nv = parameters.nv_address.get();
        self.check_output(around, nv, NV_LENGTH.into())?;
        self.check_storage(around, nv)?;
        let encrypted_state = parameters.flags.get() & FLAG_ENCRYPTED_STATE != 0;
        self.initialise(around, encrypted_state, parameters.tmr_address.get(), parameters.tmr_length.get())
    }

    fn check_init(&self, around: &Surroundings<'_>) -> Result<(), Status> {
        match self.sev {
            Some(_) => Err(Status::InvalidPlatformState),
            None if !around.setup.memory_encryption => Err(Status::HardwarePlatform),
            // SNP is on in the processors, but SNP_INIT has not built the RMP: nothing could be written.
            None if around.setup.snp_enabled && self.snp.is_none() => Err(Status::InvalidPlatformState),
            None => Ok(()),
        }
    }

    /// What lies in the storage is this chip's, or nothing yet.
    fn check_storage(&self, around: &mut Surroundings<'_>, nv: u64) -> Result<(), Status> {
        let mark: [u8; 64] = self.chip_id();
        let found: [u8; 64] = around.load(nv)?;
        if found != mark && found != [NV_FRESH; 64] {
            return Err(Status::SecureDataInvalid);
        }
        around.store(nv, &mark);
        Ok(())
    }

    fn initialise(
        &mut self,
        around: &mut Surroundings<'_>,
        encrypted_state: bool,
        tmr: u64,
        tmr_length: u32,
    ) -> Result<(), Status> {
        if encrypted_state {
            let needed = if self.snp.is_some() { 2 << 20 } else { 1 << 20 };
            if tmr_length < needed {
                return Err(Status::InvalidLength);
            }
            if !tmr.is_multiple_of(u64::from(needed)) {
                return Err(Status::InvalidAddress);
            }
            self.check_output(around, tmr, tmr_length.into())?;
        }
        self.sev = Some(Sev { encrypted_state, guests: BTreeMap::new(), handles: 0 });
        Ok(())
    }

    /// SHUTDOWN (55766, 5.2): the firmware forgets all guests.
    pub(super) fn shutdown(&mut self) -> Result<(), Status> {
        for asid in self.sev.take().into_iter().flat_map(|sev| sev.guests.into_values()).filter_map(|guest| guest.asid)
        {
            self.asids.deactivate(asid);
        }
        Ok(())
    }

    /// PLATFORM_STATUS (55766, 5.6).
    pub(super) fn platform_status(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        self.check_output(around, at, size_of::<PlatformStatus>() as u64)?;
        let encrypted_state = self.sev.as_ref().is_some_and(|sev| sev.encrypted_state);
        let flags = [(self.is_externally_owned(), STATUS_OWNED), (encrypted_state, STATUS_ENCRYPTED_STATE)];
        let status = PlatformStatus {
            api_major: API_MAJOR,
            api_minor: API_MINOR,
            state: self.sev.as_ref().map_or(0, Sev::state),
            flags: U32::new(flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum()),
            build: BUILD,
            guest_count: U32::new(self.sev.as_ref().map_or(0, |sev| sev.guests.len() as u32)),
        };
        around.store(at, &status);
        Ok(())
    }

    /// GET_ID (55766, 5.11): tells a too short buffer how long it has to be.
    pub(super) fn get_id(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut parameters: GetIdParameters = around.parameters(at)?;
        self.check_output(around, at, size_of::<GetIdParameters>() as u64)?;
        let given = parameters.length.get();
        parameters.length = U32::new(ID_LENGTH);
        if given >= ID_LENGTH {
            self.check_output(around, parameters.address.get(), ID_LENGTH.into())?;
            around.store(parameters.address.get(), &self.chip_id());
        }
        around.store(at, &parameters);
        if given < ID_LENGTH { Err(Status::InvalidLength) } else { Ok(()) }
    }

    /// What tells this chip from others.
    pub(super) fn chip_id(&self) -> [u8; 64] {
        Sha512::new().chain_update("chip id").chain_update(self.seed).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psp::Command;
    use crate::psp::test_machine::{BUFFER, TMR, TestMachine};
    use crate::rmp::PageState;

    #[test]
    fn init_shutdown_and_the_states_between() {
        let mut machine = TestMachine::new();
        let state = |machine: &mut TestMachine| {
            assert_eq!(machine.execute(Command::PlatformStatus, &[0; 12]), Status::Success);
            machine.output::<12>(BUFFER)
        };
        assert_eq!(state(&mut machine), [1, 55, 0, 0, 0, 0, 0, 25, 0, 0, 0, 0]);
        assert_eq!(machine.init_sev(), Status::Success);
        assert_eq!(state(&mut machine), [1, 55, 1, 0, 1, 0, 0, 25, 0, 0, 0, 0]);
        assert_eq!(machine.init_sev(), Status::InvalidPlatformState);
        assert_eq!(machine.execute(Command::Shutdown, &[]), Status::Success);
        assert_eq!(state(&mut machine)[2], 0);
    }

    #[test]
    fn init_wants_memory_for_sev_es() {
        let mut machine = TestMachine::new();
        let mut init = |tmr: u64, length: u32| {
            let mut parameters = [0; 20];
            parameters[0] = 1;
            parameters[8..16].copy_from_slice(&tmr.to_le_bytes());
            parameters[16..].copy_from_slice(&length.to_le_bytes());
            machine.execute(Command::Init, &parameters)
        };
        assert_eq!(init(TMR, 0xF_FFFF), Status::InvalidLength);
        assert_eq!(init(TMR + 0x1000, 0x10_0000), Status::InvalidAddress);
        assert_eq!(init(1 << 40, 0x10_0000), Status::InvalidAddress);
    }

    #[test]
    fn with_snp_the_firmware_writes_its_own_pages_only() {
        let mut machine = TestMachine::with_snp();
        assert_eq!(machine.execute(Command::PlatformStatus, &[0; 12]), Status::Success);
        machine.set_state(BUFFER, PageState::Hypervisor);
        assert_eq!(machine.execute(Command::PlatformStatus, &[0; 12]), Status::InvalidPageState);
    }

    #[test]
    fn init_minds_the_processors_setup() {
        let mut machine = TestMachine::new();
        machine.setup.memory_encryption = false;
        assert_eq!(machine.init_sev(), Status::HardwarePlatform);
        machine.setup.memory_encryption = true;
        machine.setup.snp_enabled = true;
        assert_eq!(machine.init_sev(), Status::InvalidPlatformState);
    }

    #[test]
    fn get_id_says_how_long_an_id_is() {
        let mut machine = TestMachine::new();
        let mut parameters = [0; 12];
        parameters[..8].copy_from_slice(&0x3000_u64.to_le_bytes());
        assert_eq!(machine.execute(Command::GetId, &parameters), Status::InvalidLength);
        assert_eq!(machine.output::<12>(BUFFER)[8..], [64, 0, 0, 0]);
        parameters[8] = 64;
        assert_eq!(machine.execute(Command::GetId, &parameters), Status::Success);
        assert_ne!(machine.output::<64>(0x3000), [0; 64]);
    }
}
