//! The context of an SNP guest, and its binding to an ASID (56860, chapter 8: SNP_GCTX_CREATE to SNP_GUEST_STATUS).

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::digest::SnpDigest;
use super::id_block::Identity;
use crate::Rule;
use crate::encryption::Key;
use crate::psp::policy::SnpPolicy;
use crate::psp::{Psp, Status, Surroundings};
use crate::rmp::PageState;

/// How far a guest is (56860, "Guest State Machine").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Context {
    /// INIT: a context page, and no more.
    Created,
    /// LAUNCH.
    Launching(Launched),
    /// RUNNING.
    Running(Launched, Finished),
}

/// What a guest has since SNP_LAUNCH_START.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Launched {
    pub(super) policy: SnpPolicy,
    /// VEK.
    pub(super) key: Key,
    pub(super) asid: Option<u16>,
    pub(super) digest: SnpDigest,
    /// Keys of the channels to each VMPL.
    pub(super) message_keys: [[u8; 32]; 4],
    /// Messages that went over each, requests and responses.
    pub(super) message_counts: [u64; 4],
    pub(super) report_id: [u8; 32],
    /// Workarounds that the host tells the guest of.
    pub(super) workarounds: [u8; 16],
}

/// What a guest has since SNP_LAUNCH_FINISH.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) host_data: [u8; 32],
    pub(super) identity: Option<Identity>,
    /// Reports are not to be signed with the chip's key.
    pub(super) no_chip_key: bool,
}

impl Context {
    pub(super) fn launched(&self) -> Option<&Launched> {
        match self {
            Context::Created => None,
            Context::Launching(launched) | Context::Running(launched, _) => Some(launched),
        }
    }

    fn launched_mut(&mut self) -> Option<&mut Launched> {
        match self {
            Context::Created => None,
            Context::Launching(launched) | Context::Running(launched, _) => Some(launched),
        }
    }

    pub(super) fn asid(&self) -> Option<u16> {
        self.launched().and_then(|launched| launched.asid)
    }

    /// Number of the state in SNP_GUEST_STATUS.
    fn number(&self) -> u8 {
        match self {
            Context::Created => 0,
            Context::Launching(_) => 1,
            Context::Running(..) => 2,
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct ActivateParameters {
    context: U64,
    asid: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct GuestStatus {
    policy: U64,
    asid: U32,
    state: u8,
    reserved: [u8; 19],
}

impl Psp {
    /// The guest of this context page, which has to be one.
    pub(super) fn context(&mut self, around: &mut Surroundings<'_>, page: U64) -> Result<&mut Context, Status> {
        let is_context = around.entry(page.get()).is_some_and(|entry| entry.state == PageState::Context);
        self.snp()?.guests.get_mut(&page.get()).filter(|_| is_context).ok_or(Status::InvalidGuest)
    }

    /// SNP_GCTX_CREATE (56860, 8.14).
    pub(in crate::psp) fn snp_gctx_create(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let page = around.parameters::<U64>(at)?.get();
        self.snp()?;
        around.check_firmware_page(page)?;
        around.memory.write(page, &[0; 4096]);
        around.set_state(page, PageState::Context);
        self.snp()?.guests.insert(page, Context::Created);
        Ok(())
    }

    /// SNP_ACTIVATE (56860, 8.16): binds a guest's key to an ASID that no page belongs to.
    pub(in crate::psp) fn snp_activate(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let ActivateParameters { context, asid } = around.parameters(at)?;
        let guest = self.context(around, context)?;
        let running = matches!(guest, Context::Running(..));
        let launched = guest.launched().ok_or(Status::InvalidGuestState)?;
        let (idle, key) = (launched.asid.is_none(), launched.key);
        self.demand(Rule::OneActivation, idle, Status::Active)?;
        let pages = u16::try_from(asid.get())
            .ok()
            .and_then(|asid| around.setup.rmp.map(|rmp| rmp.assigned_pages(around.memory, asid)));
        self.demand(Rule::AsidPages, pages.is_none_or(|pages| pages == 0), Status::InvalidConfig)?;
        let asid = self.asids.activate(asid.get(), key, true, running)?;
        if let Some(launched) = self.context(around, context)?.launched_mut() {
            launched.asid = Some(asid);
        }
        around.memory.flush_asid(asid);
        Ok(())
    }

    /// SNP_DECOMMISSION (56860, 8.15): forgets a guest and gives its context page back to the firmware's pages.
    pub(in crate::psp) fn snp_decommission(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let page: U64 = around.parameters(at)?;
        if let Some(asid) = self.context(around, page)?.asid() {
            self.asids.deactivate(asid);
            around.memory.flush_asid(asid);
        }
        self.snp()?.guests.remove(&page.get());
        around.set_state(page.get(), PageState::Firmware);
        Ok(())
    }

    /// SNP_GUEST_STATUS (56860, 8.20).
    pub(in crate::psp) fn snp_guest_status(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let [context, to]: [U64; 2] = around.parameters(at)?;
        let guest = self.context(around, context)?;
        let status = GuestStatus {
            policy: U64::new(guest.launched().map_or(0, |launched| launched.policy.0)),
            asid: U32::new(guest.asid().unwrap_or(0).into()),
            state: guest.number(),
            reserved: [0; 19],
        };
        around.check_firmware_page(to.get())?;
        around.store(to.get(), &status);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::psp::test_machine::TestMachine;
    use crate::psp::{Command, Status};
    use crate::rmp::{Owned, PageState, Permissions};

    const CONTEXT: u64 = 0x3000;

    fn created() -> TestMachine {
        let mut machine = TestMachine::with_snp();
        machine.set_state(CONTEXT, PageState::Firmware);
        assert_eq!(machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]), Status::Success);
        machine
    }

    #[test]
    fn a_context_page_is_the_firmwares() {
        let mut machine = TestMachine::with_snp();
        assert_eq!(machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]), Status::InvalidPageState);
        assert_eq!(machine.execute_words(Command::SnpGctxCreate, &[CONTEXT + 1]), Status::InvalidAddress);
        let mut machine = created();
        assert_eq!(machine.entry(CONTEXT).unwrap().state, PageState::Context);
        assert_eq!(machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]), Status::InvalidPageState);
        assert_eq!(machine.execute_words(Command::SnpDecommission, &[0x4000]), Status::InvalidGuest);
        assert_eq!(machine.execute_words(Command::SnpDecommission, &[CONTEXT]), Status::Success);
        assert_eq!(machine.entry(CONTEXT).unwrap().state, PageState::Firmware);
        assert_eq!(machine.execute_words(Command::SnpDecommission, &[CONTEXT]), Status::InvalidGuest);
    }

    #[test]
    fn an_asid_is_given_from_launch_on() {
        let mut machine = created();
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]), Status::InvalidGuestState);
        machine.snp_launch_start(CONTEXT, 0x2_0000);
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 16]), Status::InvalidAsid);
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]), Status::Success);
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]), Status::Active);
        machine.set_state(0x4000, PageState::Firmware);
        assert_eq!(machine.execute_words(Command::SnpGuestStatus, &[CONTEXT, 0x4000]), Status::Success);
        assert_eq!(machine.output::<13>(0x4000), [0, 0, 2, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1]);
    }

    #[test]
    fn an_asid_that_owns_pages_is_not_given() {
        let mut machine = created();
        machine.snp_launch_start(CONTEXT, 0x2_0000);
        let owned = Owned { asid: 5, gpa: 0, vmsa: false, permissions: Permissions::INITIAL };
        machine.set_state(0x5000, PageState::GuestInvalid(owned));
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]), Status::InvalidConfig);
        machine.set_state(0x5000, PageState::Hypervisor);
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]), Status::Success);
    }
}
