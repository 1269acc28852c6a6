//! SNP_PAGE_RECLAIM (56860, 8.24).

use zerocopy::little_endian::U64;

use crate::Rule;
use crate::psp::{Psp, Status, Surroundings};
use crate::rmp::{Entry, PageSize, PageState};

impl Psp {
    /// SNP_PAGE_RECLAIM: gives the hypervisor a page back that only the firmware may change. Bit 0 of the address
    /// is the page's size.
    pub(in crate::psp) fn snp_page_reclaim(&mut self, around: &mut Surroundings<'_>, at: u64) -> Result<(), Status> {
        let operand = around.parameters::<U64>(at)?.get();
        let (size, pa) = (PageSize::of_bit(operand & 1 != 0), operand & !1);
        self.snp()?;
        if !size.aligned(pa) {
            return Err(Status::InvalidParameter);
        }
        let entry = around.entry(pa).ok_or(Status::InvalidAddress)?;
        if entry.size != size {
            return Err(Status::InvalidPageSize);
        }
        let state = match entry.state {
            PageState::Metadata { .. } | PageState::Firmware if self.needs(around, pa) => {
                return Err(Status::InvalidPageState);
            }
            PageState::Metadata { .. } | PageState::Firmware => PageState::Reclaim,
            PageState::PreGuest(owned) => PageState::GuestInvalid(owned),
            PageState::PreSwap(owned) => PageState::GuestValid(owned),
            PageState::Context if !self.rules.hold(Rule::ReclaimState) => PageState::Reclaim,
            PageState::HvFixed | PageState::Context => return Err(Status::InvalidPageState),
            // What is not immutable the hypervisor can take by itself.
            PageState::Hypervisor | PageState::Reclaim | PageState::GuestInvalid(_) | PageState::GuestValid(_) => {
                return Ok(());
            }
        };
        around.set_entry(pa, &Entry { state, ..entry });
        Ok(())
    }

    /// Whether the firmware needs the page: it is part of the RMP.
    fn needs(&self, around: &mut Surroundings<'_>, pa: u64) -> bool {
        let parts = around.setup.rmp.map(|rmp| rmp.parts(around.memory)).unwrap_or_default();
        self.rules.hold(Rule::ReclaimState) && parts.iter().any(|(first, last)| (first..=last).contains(&&pa))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::psp::Command;
    use crate::psp::test_machine::TestMachine;
    use crate::rmp::{Owned, Permissions};

    const PAGE: u64 = 0x5000;

    fn reclaimed(state: PageState) -> (Status, PageState) {
        let mut machine = TestMachine::with_snp();
        machine.set_state(PAGE, state);
        let status = machine.execute_words(Command::SnpPageReclaim, &[PAGE]);
        (status, machine.entry(PAGE).unwrap().state)
    }

    #[test]
    fn every_state_goes_where_the_table_says() {
        use PageState::*;
        let owned = Owned { asid: 5, gpa: 0x8000, vmsa: false, permissions: Permissions::INITIAL };
        for (from, to) in [
            (Firmware, Reclaim),
            (Metadata { gpa: 0x1000 }, Reclaim),
            (PreGuest(owned), GuestInvalid(owned)),
            (PreSwap(owned), GuestValid(owned)),
            (Hypervisor, Hypervisor),
            (Reclaim, Reclaim),
            (GuestValid(owned), GuestValid(owned)),
        ] {
            assert_eq!(reclaimed(from), (Status::Success, to));
        }
        for state in [Context, HvFixed] {
            assert_eq!(reclaimed(state), (Status::InvalidPageState, state));
        }
    }

    #[test]
    fn the_rmp_is_not_given_back() {
        let mut machine = TestMachine::with_snp();
        assert_eq!(machine.execute_words(Command::SnpPageReclaim, &[0x60_0000]), Status::InvalidPageState);
    }

    #[test]
    fn address_and_size_are_checked() {
        let mut machine = TestMachine::with_snp();
        assert_eq!(machine.execute_words(Command::SnpPageReclaim, &[PAGE | 2]), Status::InvalidParameter);
        assert_eq!(machine.execute_words(Command::SnpPageReclaim, &[0x20_0001]), Status::InvalidPageSize);
        assert_eq!(machine.execute_words(Command::SnpPageReclaim, &[1 << 40]), Status::InvalidAddress);
        let mut machine = TestMachine::new();
        assert_eq!(machine.execute_words(Command::SnpPageReclaim, &[PAGE]), Status::InvalidPlatformState);
    }
}
