//! SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT (56860, 8.27 and 8.28): a whole page each.

use zerocopy::little_endian::U64;

use crate::Rule;
use crate::encryption::Key;
use crate::psp::{Psp, Status, Surroundings};
use crate::rmp::{Entry, PageSize};

impl Psp {
    /// SNP_DBG_DECRYPT: a page of the guest's to one of the firmware's.
    pub(in crate::psp) fn snp_dbg_decrypt(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let [context, source, destination]: [U64; 3] = around.parameters(at)?;
        let key = self.debug_page(around, context, source.get())?;
        around.check_firmware_page(destination.get())?;
        let page = around.bytes(key, source.get(), 4096)?;
        around.memory.write(destination.get(), &page);
        Ok(())
    }

    /// SNP_DBG_ENCRYPT: any page to one of the guest's.
    pub(in crate::psp) fn snp_dbg_encrypt(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let [context, source, destination]: [U64; 3] = around.parameters(at)?;
        let key = self.debug_page(around, context, destination.get())?;
        let page = around.bytes(Key::PLAIN, source.get(), 4096)?;
        around.memory.write_as(key, destination.get(), &page);
        Ok(())
    }

    /// The key of the guest, whose policy has to allow it and whose page `pa` has to be.
    fn debug_page(&mut self, around: &mut Surroundings<'_>, context: U64, pa: u64) -> Result<Key, Status> {
        let launched = self.context(around, context)?.launched().ok_or(Status::InvalidGuestState)?;
        let (policy, key, asid) = (launched.policy, launched.key, launched.asid);
        self.demand(Rule::DebugPolicy, policy.debug(), Status::PolicyFailure)?;
        let asid = asid.ok_or(Status::Inactive)?;
        if !PageSize::Size4K.aligned(pa) {
            return Err(Status::InvalidAddress);
        }
        match around.entry(pa) {
            Some(Entry { state, .. }) if state.owned().is_some_and(|owned| owned.asid == asid) => Ok(key),
            _ => Err(Status::InvalidPageOwner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalMemory;
    use crate::psp::Command;
    use crate::psp::test_machine::TestMachine;
    use crate::rmp::{Owned, PageState, Permissions};

    const CONTEXT: u64 = 0x3000;

    fn launched(policy: u64) -> TestMachine {
        let mut machine = TestMachine::with_snp();
        machine.set_state(CONTEXT, PageState::Firmware);
        machine.execute_words(Command::SnpGctxCreate, &[CONTEXT]);
        machine.snp_launch_start(CONTEXT, policy);
        machine.execute_words(Command::SnpActivate, &[CONTEXT, 5]);
        machine.memory.write(0x5000, &[7; 4096]);
        let owned = Owned { asid: 5, gpa: 0x8000, vmsa: false, permissions: Permissions::INITIAL };
        machine.set_state(0x5000, PageState::PreGuest(owned));
        let updated = machine.execute_words(Command::SnpLaunchUpdate, &[CONTEXT, 1 << 1, 0x5000, 0]);
        assert_eq!(updated, Status::Success);
        machine
    }

    #[test]
    fn the_host_reads_and_writes_whole_pages() {
        let mut machine = launched(0xA_0000);
        machine.set_state(0x6000, PageState::Firmware);
        assert_eq!(machine.execute_words(Command::SnpDbgDecrypt, &[CONTEXT, 0x5000, 0x6000]), Status::Success);
        assert_eq!(machine.output::<4096>(0x6000), [7; 4096]);
        machine.memory.write(0x6000, &[9; 4096]);
        assert_eq!(machine.execute_words(Command::SnpDbgEncrypt, &[CONTEXT, 0x6000, 0x5000]), Status::Success);
        machine.memory.write(0x6000, &[0; 4096]);
        machine.execute_words(Command::SnpDbgDecrypt, &[CONTEXT, 0x5000, 0x6000]);
        assert_eq!(machine.output::<4096>(0x6000), [9; 4096]);
    }

    #[test]
    fn policy_owner_and_state_are_checked() {
        let mut machine = launched(0x2_0000);
        let decrypt = |machine: &mut TestMachine, source, to| {
            machine.execute_words(Command::SnpDbgDecrypt, &[CONTEXT, source, to])
        };
        assert_eq!(decrypt(&mut machine, 0x5000, 0x6000), Status::PolicyFailure);
        let mut machine = launched(0xA_0000);
        assert_eq!(decrypt(&mut machine, 0x5000, 0x6000), Status::InvalidPageState);
        assert_eq!(decrypt(&mut machine, 0x7000, 0x6000), Status::InvalidPageOwner);
        assert_eq!(decrypt(&mut machine, 0x5001, 0x6000), Status::InvalidAddress);
    }
}
