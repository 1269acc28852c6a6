//! VMLAUNCH and VMRESUME (SDM volume 3, chapter 27): from the host into a guest.

use privet_cpu::CpuState;
use privet_cpu::state::{Shadow, World};

use super::controls::{Controls, proc, proc2};
use super::exit::{ENTRY_FAILURE, Reason};
use super::field;
use super::guest::{Guest, Injected};
use super::injection::{injection, is_software};
use super::instructions::{InstructionError, Outcome};
use super::non_register_state::activity;
use super::vmcs::{self, Vmcs};
use super::{Vmx, check_controls, check_guest, check_host, ept, guest_state};
use crate::Rule;
use crate::board::{Board, Flush};
use crate::memory::read_array;

impl Vmx {
    /// Enters the guest of the current VMCS, or leaves it at once because of what the VMCS says of it.
    ///
    /// # Errors
    /// Nothing was entered: the instruction fails.
    pub(super) fn enter(&mut self, board: &mut impl Board, state: &mut CpuState, launch: bool) -> Result<(), Outcome> {
        let current = self.current().ok_or(Outcome::FailInvalid)?;
        if state.shadow == Shadow::MovSs && self.holds(Rule::EntryAfterMovSs) {
            return Err(Outcome::Fail(InstructionError::BlockedByMovSs));
        }
        let launched = vmcs::is_launched(board, current);
        if launched == launch && self.holds(Rule::LaunchState) {
            let error = if launch { InstructionError::VmlaunchNotClear } else { InstructionError::VmresumeNotLaunched };
            return Err(Outcome::Fail(error));
        }
        let vmcs = Vmcs::read(board, current);
        let controls = Controls::of(&vmcs);
        self.check(board, state, &vmcs, &controls)?;
        let checked = check_guest::Checked { vmcs: &vmcs, controls: &controls, features: &self.features };
        if let Some((_, qualification)) = check_guest::violated(&checked) {
            self.fail_entry(board, state, &vmcs, Reason::GuestState, qualification);
            return Ok(());
        }
        let mut guest = Guest::of(&vmcs, controls, &self.features, board.tsc());
        guest_state::load(&vmcs, &controls, state);
        let (list, count) = (vmcs.get(field::ENTRY_MSR_LOAD), vmcs.get(field::ENTRY_MSR_LOAD_COUNT));
        if let Err(number) = self.load_msrs(board, state, list, count) {
            self.fail_entry(board, state, &vmcs, Reason::MsrLoading, number);
            return Ok(());
        }
        state.world = self.world(board, &vmcs, &guest);
        if guest.ept.is_some() {
            state.keyid_bits = 0;
        }
        state.injection = injection(&vmcs, state);
        if is_software(&vmcs) {
            let (word, length) = (vmcs.get32(field::ENTRY_EVENT), vmcs.get(field::ENTRY_LENGTH) as u8);
            guest.injected = Some(Injected { word, length, rip: state.rip });
            state.rip = state.rip.wrapping_add(length.into());
        }
        guest.halted = vmcs.get(field::ACTIVITY) == activity::HLT && state.injection.is_none();
        guest.apic.enter(board);
        vmcs::set_launched(board, current, true);
        if let Some(root) = &mut self.root {
            root.guest = Some(Box::new(guest));
        }
        board.raise_event();
        Ok(())
    }

    /// The checks whose failure leaves the processor where it is.
    fn check(&self, board: &mut impl Board, host: &CpuState, vmcs: &Vmcs, controls: &Controls) -> Result<(), Outcome> {
        let features = &self.features;
        let [task_priority] = if controls.proc(proc::TPR_SHADOW) {
            read_array(board, vmcs.get(field::VIRTUAL_APIC).wrapping_add(0x80))
        } else {
            [0]
        };
        let checked = check_controls::Checked { vmcs, controls, features, task_priority };
        if check_controls::violated(&checked).is_some() && self.holds(Rule::EntryControls) {
            return Err(Outcome::Fail(InstructionError::Controls));
        }
        let checked = check_host::Checked { vmcs, controls, features, host };
        if check_host::violated(&checked).is_some() && self.holds(Rule::HostState) {
            return Err(Outcome::Fail(InstructionError::HostState));
        }
        Ok(())
    }

    /// An entry that fails late (27.8): nothing is told but why, and the host goes on as after an exit.
    fn fail_entry(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        vmcs: &Vmcs,
        reason: Reason,
        qualification: u64,
    ) {
        if let Some(current) = self.current() {
            vmcs::set(board, current, field::EXIT_REASON, ENTRY_FAILURE | reason as u64);
            vmcs::set(board, current, field::QUALIFICATION, qualification);
        }
        self.load_host(board, state, vmcs, &Controls::of(vmcs));
        board.raise_event();
    }

    /// The world whose translations the guest uses. Without a VPID none survives an entry or an exit.
    fn world(&mut self, board: &mut impl Board, vmcs: &Vmcs, guest: &Guest) -> World {
        let pointer = guest.ept.map(|ept| ept.pointer());
        if guest.controls.proc2(proc2::VPID) {
            return self.worlds.of(vmcs.get(field::VPID) as u16, pointer);
        }
        let world = self.worlds.of(0, pointer);
        board.flush(Flush::World(world));
        world
    }

    /// Whether an EPT pointer could be used.
    pub(super) fn is_ept_pointer(&self, pointer: u64) -> bool {
        ept::is_pointer(pointer, &self.features)
    }
}
