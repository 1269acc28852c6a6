//! Which event a processor takes between two instructions (SDM volume 3, 26.2, 26.5, 31.2 and table 7-2).

use privet_cpu::CpuState;
use privet_cpu::state::Shadow;

use super::Vmx;
use super::controls::{exit, pin, proc};
use super::exit::{Exit, Reason};
use crate::Rule;
use crate::board::Board;
use crate::event::{KIND_INTERRUPT, KIND_NMI, VALID};
use crate::interface::{Pending, Taken, interruptible};
use crate::virtual_apic::Trap;

impl Vmx {
    /// Decides between two instructions, after the delivery of [`CpuState::injection`].
    pub fn take_event(&mut self, board: &mut impl Board, state: &mut CpuState, pending: Pending) -> Taken {
        if self.guest().is_none() {
            return self.take_in_host(state, pending);
        }
        if let Some(guest) = self.guest_mut() {
            guest.injected = None;
        }
        let exit = self
            .exit_behind()
            .or_else(|| pending.init.then(|| Exit::asynchronous(Reason::Init)))
            .or_else(|| self.exit_by_timer(board));
        if let Some(exit) = exit {
            self.vmexit(board, state, exit);
            return Taken::Switched;
        }
        if let Some(taken) = self.take_nmi(board, state, pending) {
            return taken;
        }
        if let Some(taken) = pending.interrupt.and_then(|vector| self.take_interrupt(board, state, vector)) {
            return taken;
        }
        self.take_virtual(board, state)
    }

    /// INIT is blocked in VMX root operation (24.8).
    fn take_in_host(&self, state: &CpuState, pending: Pending) -> Taken {
        let init = self.root.is_none() || !self.holds(Rule::InitBlocked);
        if pending.init && init {
            Taken::Init
        } else if pending.nmi && !state.nmi_blocked && state.shadow != Shadow::MovSs {
            Taken::Nmi
        } else if pending.interrupt.is_some() && interruptible(state) {
            Taken::Interrupt
        } else {
            Taken::Nothing
        }
    }

    /// What the last instruction has to be told about (31.4.3.3, 31.1.4, 31.1.2).
    pub(super) fn exit_behind(&mut self) -> Option<Exit> {
        let trap = self.guest_mut()?.apic.trap.take()?;
        let (reason, qualification) = match trap {
            Trap::TprThreshold => (Reason::TprThreshold, 0),
            Trap::Eoi(vector) => (Reason::VirtualizedEoi, vector.into()),
            Trap::Write(offset) => (Reason::ApicWrite, offset.into()),
        };
        Some(Exit { qualification, ..Exit::asynchronous(reason) })
    }

    fn exit_by_timer(&self, board: &impl Board) -> Option<Exit> {
        let deadline = self.guest()?.timer?;
        (deadline <= board.tsc()).then(|| Exit::asynchronous(Reason::PreemptionTimer))
    }

    /// NMIs exit whatever the guest blocks; then comes the NMI window, and NMIs that are the guest's.
    fn take_nmi(&mut self, board: &mut impl Board, state: &mut CpuState, pending: Pending) -> Option<Taken> {
        let controls = self.guest()?.controls;
        let open = !state.nmi_blocked && state.shadow == Shadow::None;
        if pending.nmi && controls.pin(pin::NMI) {
            let event = (VALID | KIND_NMI << 8 | u32::from(privet_cpu::vector::NMI), 0);
            self.vmexit(board, state, Exit { event, ..Exit::asynchronous(Reason::ExceptionOrNmi) });
            return Some(Taken::SwitchedByNmi);
        }
        if open && controls.proc(proc::NMI_WINDOW) {
            self.vmexit(board, state, Exit::asynchronous(Reason::NmiWindow));
            return Some(Taken::Switched);
        }
        (pending.nmi && open).then(|| self.wake(Taken::Nmi))
    }

    /// An external interrupt exits, unless it is the notification of posted ones, or interrupts are the guest's.
    fn take_interrupt(&mut self, board: &mut impl Board, state: &mut CpuState, vector: u8) -> Option<Taken> {
        let controls = self.guest()?.controls;
        if !controls.pin(pin::EXTERNAL_INTERRUPT) {
            return interruptible(state).then(|| self.wake(Taken::Interrupt));
        }
        let guest = self.guest_mut()?;
        if guest.apic.posted.is_some_and(|(notification, _)| notification == vector) {
            guest.apic.take_posted(board);
            return Some(Taken::Notified);
        }
        let acknowledges = controls.exit(exit::ACKNOWLEDGE);
        let event = if acknowledges { (VALID | KIND_INTERRUPT << 8 | u32::from(vector), 0) } else { (0, 0) };
        self.vmexit(board, state, Exit { event, ..Exit::asynchronous(Reason::ExternalInterrupt) });
        Some(if acknowledges { Taken::SwitchedByInterrupt } else { Taken::Switched })
    }

    /// The interrupt window, and virtual interrupts.
    fn take_virtual(&mut self, board: &mut impl Board, state: &mut CpuState) -> Taken {
        let Some(guest) = self.guest_mut() else { return Taken::Nothing };
        if interruptible(state) {
            if guest.controls.proc(proc::INTERRUPT_WINDOW) {
                self.vmexit(board, state, Exit::asynchronous(Reason::InterruptWindow));
                return Taken::Switched;
            }
            if let Some(vector) = guest.apic.recognized(board) {
                guest.apic.take(board);
                return self.wake(Taken::Virtual(vector));
            }
        }
        if guest.halted { Taken::Halted } else { Taken::Nothing }
    }

    /// The guest takes something, and so waits no longer.
    fn wake(&mut self, taken: Taken) -> Taken {
        if let Some(guest) = self.guest_mut() {
            guest.halted = false;
        }
        taken
    }
}
