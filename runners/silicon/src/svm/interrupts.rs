//! Which event a processor takes between two instructions (APM volume 2, 15.13, 15.17, 15.21).

use privet_cpu::CpuState;

use super::exit::Exit;
use super::intercepts::Code;
use super::vmcb::int_ctl;
use super::{Guest, Svm};
use crate::board::Board;
use crate::interface::{Pending, Taken, interruptible};

impl Svm {
    /// Decides between two instructions, after the delivery of [`CpuState::injection`].
    pub fn take_event(&mut self, board: &mut impl Board, state: &mut CpuState, pending: Pending) -> Taken {
        if let Some(guest) = &mut self.guest {
            guest.injected_at = None;
        }
        if !self.gif {
            return Taken::Nothing;
        }
        let physical = self.guest.as_ref().map_or_else(|| interruptible(state), |guest| guest.takes_physical(state));
        let in_order = [
            (pending.init, Code::INIT, Taken::Init),
            (pending.smi, Code::SMI, Taken::Smi),
            (pending.nmi && (!state.nmi_blocked || self.intercepts(Code::NMI)), Code::NMI, Taken::Nmi),
            (pending.interrupt.is_some() && physical, Code::INTR, Taken::Interrupt),
        ];
        if let Some((_, code, taken)) = in_order.into_iter().find(|(waits, ..)| *waits) {
            if !self.intercepts(code) {
                return taken;
            }
            self.vmexit(board, state, Exit::asynchronous(code));
            return Taken::Switched;
        }
        self.take_virtual(board, state)
    }

    /// A virtual interrupt: its intercept comes before its delivery (15.21.4).
    fn take_virtual(&mut self, board: &mut impl Board, state: &mut CpuState) -> Taken {
        let intercepted = self.intercepts(Code::VINTR);
        let Some(guest) = self.guest.as_mut().filter(|guest| guest.takes_virtual(state)) else {
            return Taken::Nothing;
        };
        if intercepted {
            self.vmexit(board, state, Exit::asynchronous(Code::VINTR));
            return Taken::Switched;
        }
        guest.virtual_interrupt = false;
        Taken::Virtual(guest.control.interrupt_vector)
    }
}

impl Guest {
    /// Whether physical interrupts are open. With V_INTR_MASKING that is the host's RFLAGS.IF to say, and the guest's
    /// interrupt shadow is about its virtual ones (15.21.1).
    fn takes_physical(&self, state: &CpuState) -> bool {
        if self.control.interrupt_masking() { self.host_interrupts } else { interruptible(state) }
    }

    fn takes_virtual(&self, state: &CpuState) -> bool {
        let priority = u64::from(self.control.interrupt >> int_ctl::V_INTR_PRIO_SHIFT & 0xf);
        self.virtual_interrupt
            && interruptible(state)
            && (self.control.interrupt & int_ctl::V_IGN_TPR != 0 || priority > state.cr8)
    }
}
