//! VM exit (SDM volume 3, chapter 28): from a guest back into the host.

use privet_cpu::CpuState;
use privet_cpu::state::Injection;

use super::capability::TIMER_SHIFT;
use super::controls::{Controls, exit, pin, proc2};
use super::exit::{Exit, Reason};
use super::field;
use super::guest::Guest;
use super::non_register_state::activity;
use super::vmcs::Vmcs;
use super::{Vmx, apic, guest_state, host_state};
use crate::Rule;
use crate::board::{Board, Flush};
use crate::event::{KIND_NMI, KIND_SOFT_EXCEPTION, VALID, encode};
use crate::memory::{PhysicalMemory, read_u64};

impl Vmx {
    /// Leaves the guest with this exit, if one runs.
    pub(super) fn vmexit(&mut self, board: &mut impl Board, state: &mut CpuState, exit: Exit) {
        let Some(current) = self.current() else { return };
        let Some(guest) = self.root.as_mut().and_then(|root| root.guest.take()) else { return };
        if let Some(injected) = guest.injected {
            state.rip = injected.rip;
        }
        let mut vmcs = Vmcs::read(board, current);
        self.tell(&mut vmcs, state, &guest, &exit);
        guest_state::save(&mut vmcs, &guest.controls, state);
        save_others(board, &mut vmcs, state, &guest);
        vmcs.write(board, current);
        let (list, count) = (vmcs.get(field::EXIT_MSR_STORE), vmcs.get(field::EXIT_MSR_STORE_COUNT));
        self.store_msrs(board, state, list, count);
        let by_nmi = exit.reason == Reason::ExceptionOrNmi && exit.event.0 >> 8 & 7 == KIND_NMI;
        let were_blocked = state.nmi_blocked && !guest.controls.pin(pin::NMI);
        self.load_host(board, state, &vmcs, &guest.controls);
        state.nmi_blocked = by_nmi || were_blocked;
        if !guest.controls.proc2(proc2::VPID) {
            board.flush(Flush::All);
        }
        board.raise_event();
    }

    /// Loads the host's state and its list of MSRs.
    pub(super) fn load_host(&self, board: &mut impl Board, state: &mut CpuState, vmcs: &Vmcs, controls: &Controls) {
        host_state::load(vmcs, controls, state);
        state.keyid_bits = self.features.keyid_bits;
        let (list, count) = (vmcs.get(field::EXIT_MSR_LOAD), vmcs.get(field::EXIT_MSR_LOAD_COUNT));
        if self.load_msrs(board, state, list, count).is_err() {
            board.unsimulated("VMX: a VMX abort, as MSRs of the host cannot be loaded");
        }
    }

    /// The fields that tell of the exit (28.2).
    fn tell(&self, vmcs: &mut Vmcs, state: &CpuState, guest: &Guest, exit: &Exit) {
        let vectoring = if is_vectoring(state, exit) { state.vectoring } else { None };
        let (event, error, software) = match (vectoring, guest.injected) {
            (None, _) => (0, 0, None),
            (Some(_), Some(injected)) => (injected.word, 0, Some(injected.length)),
            (Some(event), None) => {
                let (word, error) = encode(event, KIND_SOFT_EXCEPTION);
                let software = matches!(event, Injection::SoftInterrupt(_) | Injection::SoftException(_));
                (word, error, software.then_some(guest.software_length))
            }
        };
        let fields = [
            (field::EXIT_REASON, exit.reason as u64),
            (field::QUALIFICATION, exit.qualification),
            (field::GUEST_LINEAR_ADDRESS, exit.linear),
            (field::GUEST_PHYSICAL_ADDRESS, exit.gpa),
            (field::EXIT_EVENT, exit.event.0.into()),
            (field::EXIT_ERROR, exit.event.1.into()),
            (field::VECTORING_EVENT, event.into()),
            (field::VECTORING_ERROR, error.into()),
            (field::INSTRUCTION_LENGTH, software.unwrap_or(exit.length).into()),
            (field::INSTRUCTION_INFORMATION, exit.information.into()),
        ];
        fields.into_iter().for_each(|(field, value)| vmcs.set(field, value));
        let injected = vmcs.get(field::ENTRY_EVENT);
        if self.holds(Rule::EventInjectedOnce) {
            vmcs.set(field::ENTRY_EVENT, injected & !u64::from(VALID));
        }
    }
}

/// Section 28.2.4: a double fault or a triple fault is no part of the delivery that it came from.
fn is_vectoring(state: &CpuState, exit: &Exit) -> bool {
    let double_fault = exit.reason == Reason::ExceptionOrNmi && exit.event.0 as u8 == privet_cpu::vector::DF;
    state.vectoring.is_some() && !double_fault && exit.reason != Reason::TripleFault
}

/// What the guest leaves that is no register of the CPU's.
fn save_others(memory: &mut impl Board, vmcs: &mut Vmcs, state: &CpuState, guest: &Guest) {
    let controls = &guest.controls;
    vmcs.set(field::ACTIVITY, if guest.halted { activity::HLT } else { activity::ACTIVE });
    if controls.exit(exit::SAVE_TIMER) {
        let left = guest.timer.map_or(0, |deadline| deadline.saturating_sub(memory.tsc()));
        vmcs.set(field::PREEMPTION_TIMER, left >> TIMER_SHIFT);
    }
    if let Some(log) = guest.log {
        vmcs.set(field::PML_INDEX, log.index.into());
    }
    apic::save(&guest.apic, vmcs);
    if guest.ept.is_some() && guest_state::uses_pae(state) {
        for (field, entry) in field::GUEST_PDPTES.into_iter().zip(pdptes(memory, state, guest)) {
            vmcs.set(field, entry);
        }
    }
}

/// The root of PAE paging. The CPU keeps it in memory, and not in registers as real ones do.
fn pdptes(memory: &mut impl PhysicalMemory, state: &CpuState, guest: &Guest) -> [u64; 4] {
    let root = state.cr3 & 0xffff_ffe0;
    let page = guest.ept.and_then(|ept| ept.peek(memory, root));
    [0, 1, 2, 3].map(|number| page.map_or(0, |page| read_u64(memory, page + root % 0x1000 + number * 8)))
}
