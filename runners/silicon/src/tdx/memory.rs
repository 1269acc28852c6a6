//! Memory of a TD, as the host gives and takes it: TDH.MEM.* and TDH.MR.EXTEND (TDX module ABI).
//!
//! Checks come in the order of the ABI: the TD and its state, the GPA, the walk, the state of the entry, new pages.

use super::Tdx;
use super::measurement::CHUNK;
use super::pamt::{PAGE, PageType};
use super::sept::{Place, SeptEntry};
use super::status::{Code, Operand, Status};
use super::surroundings::{Registers, Surroundings};
use super::td::Control;
use crate::Rule;

/// Levels whose entries map memory. The ABI has 2 MiB, too; nobody here asks for them.
const LEAVES: std::ops::RangeInclusive<u8> = 0..=0;
/// Levels whose entries name tables.
const TABLES: std::ops::RangeInclusive<u8> = 1..=4;
const ANY: std::ops::RangeInclusive<u8> = 0..=4;

/// Walks to a place. Where the walk stops early, the registers tell where.
fn walk(control: &Control, place: Place, registers: &mut Registers) -> Result<Option<SeptEntry>, Status> {
    let found = control.sept.walk(place);
    [registers.rcx, registers.rdx] = found.told();
    match found.place == place {
        true => Ok(found.entry),
        false => Err(Code::EptWalkFailed.on(Operand::Rcx)),
    }
}

/// An entry that something is to be put into.
fn expect_free(entry: Option<SeptEntry>) -> Result<(), Status> {
    match entry {
        None => Ok(()),
        Some(_) => Err(Code::EptEntryStateIncorrect.on(Operand::Rcx)),
    }
}

impl Tdx {
    /// TDH.MEM.SEPT.ADD.
    pub(super) fn mem_sept_add(
        &mut self,
        around: &mut Surroundings<'_>,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, r8: page, .. } = *registers;
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        let place = control.sept.place(rcx, TABLES)?;
        expect_free(walk(control, place, registers)?)?;
        self.take_page(around, page, PageType::SecureEpt, tdr, Operand::R8)?;
        self.td(tdr, Operand::Rdx)?.control()?.sept.set(place, Some(SeptEntry::Table(page)));
        Ok(())
    }

    /// TDH.MEM.PAGE.ADD.
    pub(super) fn mem_page_add(
        &mut self,
        around: &mut Surroundings<'_>,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, r8: page, r9: source, .. } = *registers;
        let in_order = self.holds(Rule::BuiltThenRun);
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        if in_order {
            control.require_building()?;
        }
        let place = control.sept.place(rcx, LEAVES)?;
        expect_free(walk(control, place, registers)?)?;
        self.check_new_page(page, Operand::R8)?;
        self.chip.check_page(source, PAGE, Operand::R9)?;
        let content: [u8; PAGE as usize] = crate::read_array(around.memory, source);
        self.take_page(around, page, PageType::Regular, tdr, Operand::R8)?;
        let is_measured = self.holds(Rule::MeasuredPages);
        let td = self.td(tdr, Operand::Rdx)?;
        around.memory.write_as(td.key, page, &content);
        let control = td.control()?;
        control.sept.set(place, Some(SeptEntry::Mapped(page)));
        if is_measured { control.mrtd.page_added(place.gpa) } else { Ok(()) }
    }

    /// TDH.MR.EXTEND.
    pub(super) fn mr_extend(&mut self, around: &mut Surroundings<'_>, registers: &mut Registers) -> Result<(), Status> {
        let Registers { rcx: gpa, rdx: tdr, .. } = *registers;
        let is_measured = self.holds(Rule::MeasuredContent);
        let td = self.td(tdr, Operand::Rdx)?;
        let key = td.key;
        let control = td.control()?;
        control.require_building()?;
        if !gpa.is_multiple_of(CHUNK) {
            return Err(Code::OperandInvalid.on(Operand::Rcx));
        }
        let place = control.sept.place(gpa & !(PAGE - 1), LEAVES)?;
        match walk(control, place, registers)? {
            Some(SeptEntry::Mapped(page)) => {
                let mut chunk = [0; CHUNK as usize];
                if is_measured {
                    around.memory.read_as(key, page + gpa % PAGE, &mut chunk);
                }
                control.mrtd.extended(gpa, &chunk)
            }
            _ => Err(Code::EptEntryStateIncorrect.on(Operand::Rcx)),
        }
    }

    /// TDH.MEM.PAGE.AUG.
    pub(super) fn mem_page_aug(&mut self, registers: &mut Registers) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, r8: page, .. } = *registers;
        let in_order = self.holds(Rule::BuiltThenRun);
        let is_pending = self.holds(Rule::AcceptFirst);
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        if in_order {
            control.require_runnable()?;
        }
        let place = control.sept.place(rcx, LEAVES)?;
        expect_free(walk(control, place, registers)?)?;
        self.check_new_page(page, Operand::R8)?;
        // Its content stays whatever it is: the TD cannot read it before it accepts, and that clears it.
        self.pamt.take(page, PageType::Regular, tdr);
        let td = self.td(tdr, Operand::Rdx)?;
        td.children += 1;
        let entry = if is_pending { SeptEntry::Pending(page) } else { SeptEntry::Mapped(page) };
        td.control()?.sept.set(place, Some(entry));
        Ok(())
    }

    /// TDH.MEM.RANGE.BLOCK.
    pub(super) fn mem_range_block(&mut self, registers: &mut Registers) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, .. } = *registers;
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        let place = control.sept.place(rcx, ANY)?;
        let entry = walk(control, place, registers)?.ok_or(Code::EptEntryFree.on(Operand::Rcx))?;
        let blocked = entry.blocked()?;
        control.sept.set(place, Some(blocked));
        let epoch = control.epochs.current();
        if let Some(page) = self.pamt.entry_mut(entry.page()) {
            page.blocked = epoch;
        }
        Ok(())
    }

    /// Whether no vCPU can remember a range that is blocked. `page` is what it maps.
    fn check_tracked(&mut self, tdr: u64, page: u64) -> Result<(), Status> {
        let blocked = self.pamt.entry(page).map_or(0, |entry| entry.blocked);
        let counts = self.holds(Rule::TlbTracking);
        match self.td(tdr, Operand::Rdx)?.control()?.epochs.tracked(blocked) {
            tracked if tracked || !counts => Ok(()),
            _ => Err(Code::TlbTrackingNotDone.on(Operand::Rcx)),
        }
    }

    /// TDH.MEM.RANGE.UNBLOCK.
    pub(super) fn mem_range_unblock(&mut self, registers: &mut Registers) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, .. } = *registers;
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        let place = control.sept.place(rcx, ANY)?;
        let entry = walk(control, place, registers)?.ok_or(Code::EptEntryFree.on(Operand::Rcx))?;
        let unblocked = entry.unblocked()?;
        self.check_tracked(tdr, entry.page())?;
        self.td(tdr, Operand::Rdx)?.control()?.sept.set(place, Some(unblocked));
        Ok(())
    }

    /// TDH.MEM.TRACK.
    pub(super) fn mem_track(&mut self, registers: &Registers) -> Result<(), Status> {
        let counts = self.holds(Rule::TlbEpochs);
        let control = self.td(registers.rcx, Operand::Rcx)?.control()?;
        control.require_runnable()?;
        if counts { control.epochs.advance() } else { control.epochs.force() }
    }

    /// TDH.MEM.PAGE.REMOVE.
    pub(super) fn mem_page_remove(
        &mut self,
        around: &mut Surroundings<'_>,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, .. } = *registers;
        let only_blocked = self.holds(Rule::BlockedFirst);
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        let place = control.sept.place(rcx, LEAVES)?;
        let entry = walk(control, place, registers)?.ok_or(Code::EptEntryFree.on(Operand::Rcx))?;
        let runs = control.is_runnable();
        match entry {
            SeptEntry::Blocked(page) | SeptEntry::PendingBlocked(page) if runs => self.check_tracked(tdr, page)?,
            _ if runs && only_blocked => return Err(Code::GpaRangeNotBlocked.on(Operand::Rcx)),
            // Nobody has run it: no processor remembers anything.
            _ => {}
        }
        self.td(tdr, Operand::Rdx)?.control()?.sept.set(place, None);
        self.release_page(around, entry.page(), tdr);
        registers.rcx = entry.page();
        Ok(())
    }

    /// TDH.MEM.SEPT.REMOVE.
    pub(super) fn mem_sept_remove(
        &mut self,
        around: &mut Surroundings<'_>,
        registers: &mut Registers,
    ) -> Result<(), Status> {
        let Registers { rcx, rdx: tdr, .. } = *registers;
        let only_empty = self.holds(Rule::EmptyTables);
        let control = self.td(tdr, Operand::Rdx)?.control()?;
        let place = control.sept.place(rcx, TABLES)?;
        let entry = walk(control, place, registers)?.ok_or(Code::EptEntryFree.on(Operand::Rcx))?;
        let SeptEntry::TableBlocked(page) = entry else {
            return Err(Code::GpaRangeNotBlocked.on(Operand::Rcx));
        };
        if !control.sept.is_empty_table(place) && only_empty {
            return Err(Code::EptEntryNotFree.on(Operand::Rcx));
        }
        self.check_tracked(tdr, page)?;
        self.td(tdr, Operand::Rdx)?.control()?.sept.set(place, None);
        self.release_page(around, page, tdr);
        registers.rcx = page;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::KeyedMemory;
    use crate::tdx::HostLeaf;
    use crate::tdx::test_machine::{GPA, TDR, TestMachine, page};

    const PAGE_0: u64 = 100;
    const PRESENT: u64 = 4 << 8;

    fn add(machine: &mut TestMachine, gpa: u64, index: u64) -> u64 {
        machine.call(HostLeaf::MemPageAdd, [gpa, TDR, page(PAGE_0 + index), 0x4000])
    }

    #[test]
    fn a_page_that_is_added_is_the_tds_and_measured() {
        let mut machine = TestMachine::with_tables();
        machine.memory_write(0x4000, &[0xF4; 4096]);
        assert_eq!(add(&mut machine, GPA, 0), 0);
        let mut seen = [0; 16];
        let key = machine.tdx.tds[&TDR].key;
        machine.memory.read_as(key, page(PAGE_0), &mut seen);
        assert_eq!(seen, [0xF4; 16]);
        assert_ne!(
            crate::read_array::<16>(&mut machine.memory, page(PAGE_0)),
            [0xF4; 16],
            "the host reads no plaintext"
        );
        assert_eq!(crate::read_array::<16>(&mut machine.memory, 0x4000), [0xF4; 16], "the source stays");
        for chunk in (0..4096).step_by(256) {
            assert_eq!(machine.call(HostLeaf::MrExtend, [GPA + chunk, TDR, 0, 0]), 0);
        }
        machine.refuses(HostLeaf::MrExtend, [GPA + 1, TDR, 0, 0], Code::OperandInvalid.on(Operand::Rcx));
        machine.refuses(HostLeaf::MrExtend, [GPA + 4096, TDR, 0, 0], Code::EptEntryStateIncorrect.on(Operand::Rcx));
        assert_eq!(add(&mut machine, GPA, 1), Code::EptEntryStateIncorrect.on(Operand::Rcx).bits());
        assert_eq!(machine.registers.rdx, PRESENT, "level 0, present");
    }

    #[test]
    fn operands_of_a_page_are_checked() {
        let mut machine = TestMachine::with_tables();
        let new = page(PAGE_0);
        for (operands, status) in [
            ([GPA | 1, TDR, new, 0x4000], Code::OperandInvalid.on(Operand::Rcx)),
            ([GPA | 1 << 47, TDR, new, 0x4000], Code::OperandInvalid.on(Operand::Rcx)),
            ([GPA, TDR + 1, new, 0x4000], Code::OperandInvalid.on(Operand::Rdx)),
            ([GPA, new, new, 0x4000], Code::PageMetadataIncorrect.on(Operand::Rdx)),
            ([GPA, TDR, TDR, 0x4000], Code::PageMetadataIncorrect.on(Operand::R8)),
            ([GPA, TDR, new | 33 << 46, 0x4000], Code::OperandInvalid.on(Operand::R8)),
            ([GPA, TDR, new, 0x4001], Code::OperandInvalid.on(Operand::R9)),
            ([1 << 40, TDR, new, 0x4000], Code::EptWalkFailed.on(Operand::Rcx)),
        ] {
            machine.refuses(HostLeaf::MemPageAdd, operands, status);
        }
        assert_eq!(machine.registers.rdx, 3, "the walk stopped at a free entry of level 3");
    }

    #[test]
    fn tables_come_from_the_top_down() {
        let mut machine = TestMachine::with_td();
        let sept = |level: u64, index: u64| [level, TDR, page(PAGE_0 + index), 0];
        machine.refuses(HostLeaf::MemSeptAdd, sept(2, 0), Code::EptWalkFailed.on(Operand::Rcx));
        for level in [3, 2, 1] {
            assert_eq!(machine.call(HostLeaf::MemSeptAdd, sept(level, level)), 0);
            machine.refuses(HostLeaf::MemSeptAdd, sept(level, 9), Code::EptEntryStateIncorrect.on(Operand::Rcx));
        }
        machine.refuses(HostLeaf::MemSeptAdd, sept(4, 0), Code::OperandInvalid.on(Operand::Rcx));
        machine.refuses(HostLeaf::MemSeptAdd, sept(0, 0), Code::OperandInvalid.on(Operand::Rcx));
    }

    #[test]
    fn pages_are_added_before_and_augmented_after_the_end_of_building() {
        let mut machine = TestMachine::with_tables();
        let aug = [GPA, TDR, page(PAGE_0), 0];
        machine.refuses(HostLeaf::MemPageAug, aug, Code::OpStateIncorrect.on(Operand::OpState));
        machine.refuses(HostLeaf::MemTrack, [TDR, 0, 0, 0], Code::OpStateIncorrect.on(Operand::OpState));
        machine.finalize();
        assert_eq!(add(&mut machine, GPA, 0), Code::OpStateIncorrect.on(Operand::OpState).bits());
        assert_eq!(machine.call(HostLeaf::MemPageAug, aug), 0);
        machine.refuses(HostLeaf::MemPageAug, aug, Code::EptEntryStateIncorrect.on(Operand::Rcx));
        assert_eq!(machine.registers.rdx, 2 << 8, "pending");
    }

    #[test]
    fn a_page_is_removed_when_it_is_blocked_and_tracked() {
        let mut machine = TestMachine::runnable();
        let (gpa, remove) = ([GPA, TDR, 0, 0], HostLeaf::MemPageRemove);
        machine.refuses(remove, gpa, Code::GpaRangeNotBlocked.on(Operand::Rcx));
        assert_eq!(machine.call(HostLeaf::MemRangeBlock, gpa), 0);
        machine.refuses(HostLeaf::MemRangeBlock, gpa, Code::GpaRangeAlreadyBlocked.on(Operand::Rcx));
        machine.refuses(remove, gpa, Code::TlbTrackingNotDone.on(Operand::Rcx));
        assert_eq!(machine.call(HostLeaf::MemTrack, [TDR, 0, 0, 0]), 0);
        assert_eq!(machine.call(remove, gpa), 0);
        assert_eq!(machine.registers.rcx, page(PAGE_0));
        machine.refuses(remove, gpa, Code::EptEntryFree.on(Operand::Rcx));
        assert_eq!(crate::read_array::<64>(&mut machine.memory, page(PAGE_0)), [0; 64], "nothing of it is left");
        assert_eq!(machine.call(HostLeaf::MemPageAug, [GPA, TDR, page(PAGE_0), 0]), 0, "it is free again");
    }

    #[test]
    fn the_host_finds_nothing_of_a_page_that_is_removed() {
        let mut machine = TestMachine::with_tables();
        machine.memory_write(0x4000, &[0xF4; 4096]);
        add(&mut machine, GPA, 0);
        assert_eq!(machine.call(HostLeaf::MemPageRemove, [GPA, TDR, 0, 0]), 0);
        assert_eq!(crate::read_array::<64>(&mut machine.memory, page(PAGE_0)), [0; 64]);
    }

    #[test]
    fn mrtd_covers_where_a_page_is_and_what_is_in_it() {
        let mut machine = TestMachine::with_tables();
        machine.memory_write(0x4000, &[0xF4; 4096]);
        add(&mut machine, GPA, 0);
        assert_eq!(machine.call(HostLeaf::MrExtend, [GPA + CHUNK, TDR, 0, 0]), 0);
        let mut expected = crate::tdx::measurement::Mrtd::new();
        expected.page_added(GPA).unwrap();
        expected.extended(GPA + CHUNK, &[0xF4; CHUNK as usize]).unwrap();
        assert_eq!(machine.tdx.tds[&TDR].control.as_ref().unwrap().mrtd, expected);
    }

    #[test]
    fn a_range_is_unblocked_when_it_is_tracked() {
        let mut machine = TestMachine::runnable();
        let (gpa, unblock) = ([GPA, TDR, 0, 0], HostLeaf::MemRangeUnblock);
        machine.refuses(unblock, gpa, Code::GpaRangeNotBlocked.on(Operand::Rcx));
        machine.call(HostLeaf::MemRangeBlock, gpa);
        machine.refuses(unblock, gpa, Code::TlbTrackingNotDone.on(Operand::Rcx));
        machine.call(HostLeaf::MemTrack, [TDR, 0, 0, 0]);
        assert_eq!(machine.call(unblock, gpa), 0);
    }

    #[test]
    fn before_the_td_runs_nothing_has_to_be_tracked() {
        let mut machine = TestMachine::with_tables();
        add(&mut machine, GPA, 0);
        assert_eq!(machine.call(HostLeaf::MemRangeBlock, [GPA, TDR, 0, 0]), 0);
        assert_eq!(machine.call(HostLeaf::MemPageRemove, [GPA, TDR, 0, 0]), 0);
    }

    #[test]
    fn a_table_is_removed_when_it_is_blocked_tracked_and_empty() {
        let mut machine = TestMachine::runnable();
        let table = [1, TDR, 0, 0];
        machine.refuses(HostLeaf::MemSeptRemove, table, Code::GpaRangeNotBlocked.on(Operand::Rcx));
        machine.call(HostLeaf::MemRangeBlock, [GPA, TDR, 0, 0]);
        machine.call(HostLeaf::MemRangeBlock, table);
        machine.refuses(HostLeaf::MemSeptRemove, table, Code::EptEntryNotFree.on(Operand::Rcx));
        machine.call(HostLeaf::MemTrack, [TDR, 0, 0, 0]);
        machine.refuses(HostLeaf::MemPageRemove, [GPA, TDR, 0, 0], Code::EptWalkFailed.on(Operand::Rcx));
        assert_eq!(machine.call(HostLeaf::MemRangeUnblock, table), 0);
        assert_eq!(machine.call(HostLeaf::MemPageRemove, [GPA, TDR, 0, 0]), 0);
        machine.call(HostLeaf::MemRangeBlock, table);
        machine.refuses(HostLeaf::MemSeptRemove, table, Code::TlbTrackingNotDone.on(Operand::Rcx));
        machine.call(HostLeaf::MemTrack, [TDR, 0, 0, 0]);
        assert_eq!(machine.call(HostLeaf::MemSeptRemove, table), 0);
    }
}
