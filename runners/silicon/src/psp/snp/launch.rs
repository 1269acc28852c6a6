//! Launch of SNP guests (56860, 8.16 to 8.18).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::context::{Context, Finished, Launched};
use super::cpuid;
use super::digest::{PageType, SnpDigest};
use super::id_block::{IdAuthentication, IdBlock, Identity};
use super::secrets::secrets_page;
use crate::Rule;
use crate::encryption::Key;
use crate::psp::policy::SnpPolicy;
use crate::psp::{Psp, Status, Surroundings};
use crate::rmp::{Entry, Owned, PageSize, PageState, Permissions};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LaunchStartParameters {
    context: U64,
    policy: U64,
    agent_context: U64,
    flags: U32,
    desired_tsc_khz: U32,
    workarounds: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LaunchUpdateParameters {
    context: U64,
    /// Bit 0 size, bits 1 to 3 type, bit 4 IMI.
    page: U32,
    reserved: U32,
    address: U64,
    reserved_2: u8,
    /// Of VMPL 1, 2 and 3.
    lower_rights: [u8; 3],
    reserved_3: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct LaunchFinishParameters {
    context: U64,
    id_block: U64,
    id_authentication: U64,
    /// Bit 0 ID block, bit 1 author key, bit 2 no chip key.
    flags: u8,
    reserved: [u8; 7],
    host_data: [u8; 32],
}

const ID_BLOCK: u8 = 1 << 0;
const AUTHOR_KEY: u8 = 1 << 1;
const NO_CHIP_KEY: u8 = 1 << 2;

impl Psp {
    /// SNP_LAUNCH_START (56860, 8.16).
    pub(in crate::psp) fn snp_launch_start(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: LaunchStartParameters = around.parameters(at)?;
        let fresh = *self.context(around, parameters.context)? == Context::Created;
        self.demand(Rule::LaunchOrder, fresh, Status::InvalidGuestState)?;
        // Migration agents and images that they start are not offered; nor is a TSC of the guest's own.
        if parameters.flags.get() != 0 || parameters.agent_context.get() != 0 {
            return Err(Status::InvalidParameter);
        }
        let policy = SnpPolicy(parameters.policy.get());
        self.demand(Rule::FirmwareVersion, policy.version_is_here(), Status::PolicyFailure)?;
        self.demand(Rule::SnpPolicy, policy.can_be_granted(around.setup.smt), Status::PolicyFailure)?;
        let launched = Launched {
            policy,
            key: self.new_key(),
            asid: None,
            digest: SnpDigest::EMPTY,
            message_keys: std::array::from_fn(|_| self.entropy.bytes()),
            message_counts: [0; 4],
            report_id: self.entropy.bytes(),
            workarounds: parameters.workarounds,
        };
        *self.context(around, parameters.context)? = Context::Launching(launched);
        Ok(())
    }

    /// The guest of this context, which has to be in LAUNCH, and its ASID.
    fn launching(&mut self, around: &mut Surroundings<'_>, context: U64) -> Result<(&mut Launched, u16), Status> {
        let Context::Launching(launched) = self.context(around, context)? else {
            return Err(Status::InvalidGuestState);
        };
        let asid = launched.asid.ok_or(Status::Inactive)?;
        Ok((launched, asid))
    }

    /// SNP_LAUNCH_UPDATE (56860, 8.17): one page becomes the guest's, encrypted, measured and validated.
    pub(in crate::psp) fn snp_launch_update(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: LaunchUpdateParameters = around.parameters(at)?;
        let page = parameters.page.get();
        let reserved = page >> 5 != 0 || parameters.reserved_2 != 0;
        if reserved || parameters.reserved.get() != 0 || parameters.reserved_3.get() != 0 {
            return Err(Status::InvalidParameter);
        }
        let kind = PageType::numbered(page >> 1 & 7).ok_or(Status::InvalidParameter)?;
        let size = PageSize::of_bit(page & 1 != 0);
        let (launched, asid) = self.launching(around, parameters.context)?;
        let launched = launched.clone();
        let pa = parameters.address.get();
        let owned = pre_guest_page(around, pa, size, asid, self.rules.hold(Rule::PreGuest))?;
        if size == PageSize::Size2M && !matches!(kind, PageType::Normal | PageType::Zero | PageType::Unmeasured) {
            return Err(Status::InvalidPageSize);
        }
        let mut digest = launched.digest.clone();
        for frame in 0..size.frames() {
            let offset = frame << 12;
            let content = page_content(around, &launched, kind, pa + offset, self.rules.hold(Rule::CpuidPage))?;
            let gpa = owned.gpa + offset;
            if self.rules.hold(Rule::MeasuredData) {
                digest.update(kind, &content, gpa, page & 1 << 4 != 0, parameters.lower_rights);
            }
            around.memory.write_as(launched.key, pa + offset, &content);
        }
        let [vmpl1, vmpl2, vmpl3] = parameters.lower_rights.map(Permissions::of_bits);
        let owned =
            Owned { vmsa: kind == PageType::Vmsa, permissions: [Permissions::ALL, vmpl1, vmpl2, vmpl3], ..owned };
        let state = match self.rules.hold(Rule::LaunchedValidated) {
            true => PageState::GuestValid(owned),
            false => PageState::GuestInvalid(owned),
        };
        around.set_entry(pa, &Entry { state, size, in_use: false });
        self.launching(around, parameters.context)?.0.digest = digest;
        Ok(())
    }

    /// SNP_LAUNCH_FINISH (56860, 8.18).
    pub(in crate::psp) fn snp_launch_finish(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let parameters: LaunchFinishParameters = around.parameters(at)?;
        let (launched, asid) = self.launching(around, parameters.context)?;
        let launched = launched.clone();
        let known = parameters.flags & !(ID_BLOCK | AUTHOR_KEY | NO_CHIP_KEY) == 0 && parameters.reserved == [0; 7];
        let author_key = parameters.flags & AUTHOR_KEY != 0;
        let with_block = parameters.flags & ID_BLOCK != 0;
        if !known || author_key && !with_block {
            return Err(Status::InvalidParameter);
        }
        let identity = match with_block {
            true => {
                let block: IdBlock = around.load(parameters.id_block.get())?;
                let authentication: IdAuthentication = around.load(parameters.id_authentication.get())?;
                Some(Identity::check(&block, &authentication, author_key, &launched, self.rules)?)
            }
            false => None,
        };
        let no_chip_key = parameters.flags & NO_CHIP_KEY != 0;
        let finished = Finished { host_data: parameters.host_data, identity, no_chip_key };
        *self.context(around, parameters.context)? = Context::Running(launched, finished);
        self.asids.make_runnable(asid);
        Ok(())
    }
}

/// The page at `pa`, which has to be one of this guest's to launch.
fn pre_guest_page(
    around: &mut Surroundings<'_>,
    pa: u64,
    size: PageSize,
    asid: u16,
    careful: bool,
) -> Result<Owned, Status> {
    if !size.aligned(pa) {
        return Err(Status::InvalidAddress);
    }
    around.check_range(pa, size.bytes())?;
    match around.entry(pa) {
        Some(Entry { state: PageState::PreGuest(_), size: other, .. }) if other != size => Err(Status::InvalidPageSize),
        Some(Entry { state: PageState::PreGuest(owned), .. }) if owned.asid == asid => Ok(owned),
        Some(Entry { state, .. }) if !careful => state.owned().copied().ok_or(Status::InvalidPageState),
        Some(Entry { state: PageState::PreGuest(_), .. }) => Err(Status::InvalidPageOwner),
        _ => Err(Status::InvalidPageState),
    }
}

/// What the guest will find in a page of 4 KiB.
fn page_content(
    around: &mut Surroundings<'_>,
    launched: &Launched,
    kind: PageType,
    pa: u64,
    filtered: bool,
) -> Result<Vec<u8>, Status> {
    match kind {
        PageType::Zero => Ok(vec![0; 4096]),
        PageType::Secrets => Ok(secrets_page(launched, (around.cpuid)(1, 0).eax)),
        PageType::Normal | PageType::Vmsa | PageType::Unmeasured => around.bytes(Key::PLAIN, pa, 4096),
        PageType::Cpuid => {
            let given = around.bytes(Key::PLAIN, pa, 4096)?;
            let Some(corrected) = cpuid::corrected(&given, around.cpuid).filter(|_| filtered) else { return Ok(given) };
            // The host gets to see what the firmware would have taken.
            around.memory.write(pa, &corrected);
            Err(Status::InvalidParameter)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psp::Command;
    use crate::psp::test_machine::TestMachine;
    use crate::{KeyedMemory, PhysicalMemory};

    const CONTEXT: u64 = 0x3000;
    const PAGE: u64 = 0x5000;

    fn owned(gpa: u64) -> Owned {
        Owned { asid: 5, gpa, vmsa: false, permissions: Permissions::INITIAL }
    }

    /// A guest in LAUNCH with ASID 5, and a page for it that holds 7s.
    fn launching() -> TestMachine {
        let mut machine = TestMachine::with_snp();
        machine.set_state(CONTEXT, PageState::Firmware);
        machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]);
        machine.snp_launch_start(CONTEXT, 0x2_0000);
        assert_eq!(machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]), Status::Success);
        machine.memory.write(PAGE, &[7; 4096]);
        machine.set_state(PAGE, PageState::PreGuest(owned(0x8000)));
        machine
    }

    fn update(machine: &mut TestMachine, kind: u64, pa: u64) -> Status {
        machine.execute_words(Command::SnpLaunchUpdate, &[CONTEXT, kind << 1, pa, 0x0301_0300])
    }

    fn finish(machine: &mut TestMachine) -> Status {
        let mut parameters = [0; 64];
        parameters[..8].copy_from_slice(&CONTEXT.to_le_bytes());
        machine.execute(Command::SnpLaunchFinish, &parameters)
    }

    fn guest_sees(machine: &mut TestMachine, pa: u64) -> [u8; 4096] {
        let key = machine.psp.asids.key(5).unwrap();
        let mut seen = [0; 4096];
        machine.memory.read_as(key, pa, &mut seen);
        seen
    }

    #[test]
    fn a_launched_page_is_the_guests_validated_and_encrypted() {
        let mut machine = launching();
        assert_eq!(update(&mut machine, 1, PAGE), Status::Success);
        let expected = Owned {
            permissions: [Permissions::ALL, Permissions::of_bits(3), Permissions::of_bits(1), Permissions::of_bits(3)],
            ..owned(0x8000)
        };
        assert_eq!(machine.entry(PAGE), Some(Entry::of(PageState::GuestValid(expected))));
        assert_ne!(machine.output::<16>(PAGE), [7; 16]);
        assert_eq!(guest_sees(&mut machine, PAGE), [7; 4096]);
        assert_eq!(update(&mut machine, 1, PAGE), Status::InvalidPageState, "a second time");
    }

    /// include/linux/psp-sev.h: struct sev_data_snp_launch_finish.
    #[test]
    fn the_layout_is_the_one_that_linux_fills() {
        assert_eq!(size_of::<LaunchFinishParameters>(), 64);
        assert_eq!(std::mem::offset_of!(LaunchFinishParameters, host_data), 32);
    }

    #[test]
    fn a_policy_that_the_host_cannot_grant_launches_nothing() {
        let mut machine = TestMachine::with_snp();
        machine.set_state(CONTEXT, PageState::Firmware);
        machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]);
        for policy in [0x1_0000, 0x2_0138] {
            let start = [CONTEXT, policy, 0, 0, 0, 0];
            assert_eq!(machine.execute_words(Command::SnpLaunchStart, &start), Status::PolicyFailure, "{policy:#x}");
        }
    }

    #[test]
    fn only_a_vmsa_may_be_run() {
        let mut machine = launching();
        assert_eq!(update(&mut machine, 2, PAGE), Status::Success);
        assert!(machine.entry(PAGE).unwrap().state.owned().unwrap().vmsa);
    }

    #[test]
    fn zero_and_secrets_pages_are_the_firmwares_to_fill() {
        let mut machine = launching();
        assert_eq!(update(&mut machine, 3, PAGE), Status::Success);
        assert_eq!(guest_sees(&mut machine, PAGE), [0; 4096]);
        machine.set_state(PAGE, PageState::PreGuest(owned(0x8000)));
        assert_eq!(update(&mut machine, 5, PAGE), Status::Success);
        let secrets = guest_sees(&mut machine, PAGE);
        assert_eq!(secrets[0], 3, "version");
        assert_ne!(secrets[0x20..0x40], [0; 32], "VMPCK0");
    }

    #[test]
    fn updates_mind_page_and_state() {
        let mut machine = launching();
        assert_eq!(update(&mut machine, 7, PAGE), Status::InvalidParameter);
        assert_eq!(update(&mut machine, 1, PAGE + 1), Status::InvalidAddress);
        assert_eq!(update(&mut machine, 1, 0x6000), Status::InvalidPageState);
        machine.set_state(0x6000, PageState::PreGuest(Owned { asid: 6, ..owned(0) }));
        assert_eq!(update(&mut machine, 1, 0x6000), Status::InvalidPageOwner);
        let large = machine.execute_words(Command::SnpLaunchUpdate, &[CONTEXT, 1 << 1 | 1, 0x20_0000, 0]);
        assert_eq!(large, Status::InvalidPageState);
        assert_eq!(machine.execute_words(Command::SnpLaunchUpdate, &[0x4000, 2, PAGE, 0]), Status::InvalidGuest);
        assert_eq!(machine.entry(PAGE).unwrap().state, PageState::PreGuest(owned(0x8000)), "untouched");
        assert_eq!(finish(&mut machine), Status::Success);
        assert_eq!(update(&mut machine, 1, PAGE), Status::InvalidGuestState);
        assert_eq!(finish(&mut machine), Status::InvalidGuestState);
    }

    #[test]
    fn a_large_page_is_launched_as_one() {
        let mut machine = launching();
        let state = PageState::PreGuest(owned(0x4000_0000));
        machine.parts().1.set_entry(0x20_0000, &Entry { size: PageSize::Size2M, ..Entry::of(state) });
        assert_eq!(update(&mut machine, 1, 0x20_0000), Status::InvalidPageSize);
        let large = machine.execute_words(Command::SnpLaunchUpdate, &[CONTEXT, 3 << 1 | 1, 0x20_0000, 0]);
        assert_eq!(large, Status::Success);
        let entry = machine.entry(0x3F_F000).unwrap();
        assert_eq!(entry.size, PageSize::Size2M);
        assert!(matches!(entry.state, PageState::GuestValid(_)));
    }

    #[test]
    fn a_wrong_cpuid_page_comes_back_corrected() {
        let mut machine = launching();
        let mut page = [0; 4096];
        page[0] = 1;
        // Leaf 1 with a bit in ECX that no processor of the test has.
        page[16] = 1;
        page[16 + 0x20 + 3] = 0x10;
        machine.memory.write(PAGE, &page);
        assert_eq!(update(&mut machine, 6, PAGE), Status::InvalidParameter);
        assert_eq!(machine.entry(PAGE).unwrap().state, PageState::PreGuest(owned(0x8000)));
        let corrected: [u8; 4096] = machine.output(PAGE);
        assert_eq!(corrected[16 + 0x20 + 3], 0);
        assert_eq!(update(&mut machine, 6, PAGE), Status::Success, "as it was told");
    }

    #[test]
    fn the_guest_may_run_when_the_launch_is_finished() {
        let mut machine = launching();
        assert_eq!(machine.psp.runnable_key(5), None);
        assert_eq!(finish(&mut machine), Status::Success);
        assert!(machine.psp.runnable_key(5).is_some());
    }
}
