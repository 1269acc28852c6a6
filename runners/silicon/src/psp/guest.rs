//! SEV and SEV-ES guests: what the firmware knows of one, and its binding to an ASID (55766, chapter 6).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::launch::LaunchDigest;
use super::policy::SevPolicy;
use super::session::TransportKeys;
use super::{Psp, Status, Surroundings};
use crate::Rule;
use crate::encryption::Key;

/// Names a guest to the firmware; 0 names none.
pub(super) type Handle = u32;

/// How far a guest is (55766, "Guest State Machine").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// LUPDATE: its memory is being encrypted and measured.
    LaunchUpdate(LaunchDigest),
    /// LSECRET: measured; its owner may send a secret.
    LaunchSecret {
        /// MAC that LAUNCH_MEASURE gave out.
        measurement: [u8; 32],
    },
    /// RUNNING.
    Running,
    /// SUPDATE: it runs, and its memory goes to another platform.
    Sending,
    /// RUPDATE: its memory comes from another platform.
    Receiving,
    /// SENT: it runs on another platform.
    Sent,
}

impl Phase {
    /// Number of the state in GUEST_STATUS.
    fn number(&self) -> u8 {
        match self {
            Phase::LaunchUpdate(_) => 1,
            Phase::LaunchSecret { .. } => 2,
            Phase::Running => 3,
            Phase::Sending => 4,
            Phase::Receiving => 5,
            Phase::Sent => 6,
        }
    }
}

/// A guest's context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Guest {
    pub(super) policy: SevPolicy,
    /// VEK.
    pub(super) key: Key,
    pub(super) asid: Option<u16>,
    pub(super) phase: Phase,
    /// The channel to its owner, or to the platform that it goes to or comes from.
    pub(super) transport: TransportKeys,
    /// Of all that was launched, once that is measured.
    pub(super) digest: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ActivateParameters {
    handle: U32,
    asid: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct GuestStatusParameters {
    handle: U32,
    policy: U32,
    asid: U32,
    state: u8,
}

impl Psp {
    /// The guest of this handle.
    pub(super) fn guest(&mut self, handle: U32) -> Result<&mut Guest, Status> {
        self.sev()?.guests.get_mut(&handle.get()).ok_or(Status::InvalidGuest)
    }

    /// The guest of this handle, in a phase that a command takes, with the ASID that its memory is reached with.
    pub(super) fn active_guest(&mut self, handle: U32, in_order: fn(&Phase) -> bool) -> Result<&mut Guest, Status> {
        let guest = self.guest(handle)?;
        let (in_order, active) = (in_order(&guest.phase), guest.asid.is_some());
        self.demand(Rule::LaunchOrder, in_order, Status::InvalidGuestState)?;
        self.demand(Rule::ActiveGuest, active, Status::Inactive)?;
        self.guest(handle)
    }

    /// ACTIVATE (55766, 6.4): binds a guest's key to an ASID.
    pub(super) fn activate(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let ActivateParameters { handle, asid } = around.parameters(at)?;
        let guest = self.guest(handle)?;
        let idle = guest.asid.is_none();
        let running = matches!(guest.phase, Phase::Running | Phase::Sending);
        let (key, encrypted_state) = (guest.key, guest.policy.encrypted_state());
        self.demand(Rule::OneActivation, idle, Status::Active)?;
        let asid = self.asids.activate(asid.get(), key, encrypted_state, running)?;
        self.guest(handle)?.asid = Some(asid);
        around.memory.flush_asid(asid);
        Ok(())
    }

    /// DEACTIVATE (55766, 6.5): takes the ASID back.
    pub(super) fn deactivate(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let asid = self.guest(around.parameters(at)?)?.asid.take().ok_or(Status::Inactive)?;
        self.asids.deactivate(asid);
        around.memory.flush_asid(asid);
        Ok(())
    }

    /// DECOMMISSION (55766, 6.7): forgets a guest that has no ASID.
    pub(super) fn decommission(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let handle: U32 = around.parameters(at)?;
        let idle = self.guest(handle)?.asid.is_none();
        self.demand(Rule::DecommissionIdle, idle, Status::Active)?;
        self.sev()?.guests.remove(&handle.get());
        Ok(())
    }

    /// GUEST_STATUS (55766, 6.9). A handle of nobody is in state UNINIT.
    pub(super) fn guest_status(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let mut status: GuestStatusParameters = around.parameters(at)?;
        self.check_output(around, at, size_of::<GuestStatusParameters>() as u64)?;
        let guest = self.sev()?.guests.get(&status.handle.get());
        status.policy = U32::new(guest.map_or(0, |guest| guest.policy.0));
        status.asid = U32::new(guest.and_then(|guest| guest.asid).unwrap_or(0).into());
        status.state = guest.map_or(0, |guest| guest.phase.number());
        around.store(at, &status);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::psp::test_machine::{BUFFER, TestMachine};
    use crate::psp::{Command, Status};

    fn with_asid(handle: u8, asid: u8) -> [u8; 8] {
        [handle, 0, 0, 0, asid, 0, 0, 0]
    }

    #[test]
    fn a_guest_is_bound_released_and_forgotten() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        assert_eq!(machine.launch_start(0), 1);
        assert_eq!(machine.execute(Command::Decommission, &[2, 0, 0, 0]), Status::InvalidGuest);
        assert_eq!(machine.execute(Command::Deactivate, &[1, 0, 0, 0]), Status::Inactive);
        assert_eq!(machine.execute(Command::Activate, &with_asid(1, 1)), Status::InvalidAsid);
        assert_eq!(machine.execute(Command::Activate, &with_asid(1, 20)), Status::Success);
        assert_eq!(machine.execute(Command::Activate, &with_asid(1, 21)), Status::Active);
        assert_eq!(machine.launch_start(0), 2);
        assert_eq!(machine.execute(Command::Activate, &with_asid(2, 20)), Status::AsidOwned);
        assert_eq!(machine.execute(Command::Decommission, &[1, 0, 0, 0]), Status::Active);
        assert_eq!(machine.execute(Command::Deactivate, &[1, 0, 0, 0]), Status::Success);
        assert_eq!(machine.execute(Command::Activate, &with_asid(2, 20)), Status::DfFlushRequired);
        assert_eq!(machine.execute(Command::Decommission, &[1, 0, 0, 0]), Status::Success);
    }

    #[test]
    fn guest_status_follows_the_launch() {
        let mut machine = TestMachine::new();
        machine.init_sev();
        let state = |machine: &mut TestMachine, handle: u8| {
            let mut parameters = [0; 13];
            parameters[0] = handle;
            assert_eq!(machine.execute(Command::GuestStatus, &parameters), Status::Success);
            machine.output::<13>(BUFFER)
        };
        assert_eq!(state(&mut machine, 1)[12], 0, "of nobody");
        machine.launch_start(4);
        machine.execute(Command::Activate, &with_asid(1, 5));
        assert_eq!(state(&mut machine, 1), [1, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 1]);
        machine.measure(1);
        assert_eq!(state(&mut machine, 1)[12], 2);
        assert_eq!(machine.psp.runnable_key(5), None);
        assert_eq!(machine.execute(Command::LaunchFinish, &[1, 0, 0, 0]), Status::Success);
        assert_eq!(state(&mut machine, 1)[12], 3);
        assert!(machine.psp.runnable_key(5).is_some());
    }

    #[test]
    fn guest_commands_need_the_platform() {
        let mut machine = TestMachine::new();
        assert_eq!(machine.execute(Command::Activate, &with_asid(1, 20)), Status::InvalidPlatformState);
        assert_eq!(machine.execute(Command::GuestStatus, &[0; 13]), Status::InvalidPlatformState);
    }
}
