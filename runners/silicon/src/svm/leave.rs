//! #VMEXIT (APM volume 2, 15.6): from a guest back into the host.

use privet_cpu::state::{Shadow, World};
use privet_cpu::{CpuState, Encryption, Intercepted, flags};

use super::automatic::{Fate, fate};
use super::exit::Exit;
use super::save::Swapped;
use super::vmcb::{SAVE, at, int_ctl};
use super::{Guest, Svm, vmsa};
use crate::Rule;
use crate::board::Board;
use crate::event::{KIND_EXCEPTION, VALID, encode};
use crate::memory::{PhysicalMemory, read_u32, write_u32, write_u64};

impl Svm {
    /// Leaves the guest with this exit, in place of the current instruction. A guest whose registers are encrypted may
    /// have to be asked first (15.35.4).
    pub(super) fn switch(&mut self, board: &mut impl Board, state: &mut CpuState, exit: Exit) -> Intercepted {
        if self.registers_encrypted() {
            match fate(&exit, self.features.rules) {
                Fate::Exits => {}
                Fate::ExitsBehind if self.holds(Rule::RipBehind) => state.rip = exit.next_rip,
                Fate::ExitsBehind => {}
                Fate::Exception(exception) => return Intercepted::Reflect(exception),
            }
        }
        self.vmexit(board, state, exit);
        Intercepted::Switched
    }

    /// Leaves the guest, if one runs.
    pub(super) fn vmexit(&mut self, board: &mut impl Board, state: &mut CpuState, exit: Exit) {
        let encrypted = self.registers_encrypted();
        self.mark_in_use(board, false);
        // What a hypervisor cannot read it cannot emulate either.
        if self.features.decode_assists && !(encrypted && self.holds(Rule::DecodeBytes)) {
            self.store_instruction_bytes(board, state, exit.with_bytes);
        }
        let Some(guest) = self.guest.take() else { return };
        if let Some(rip) = guest.injected_at {
            state.rip = rip;
        }
        self.store_exit(board, state, &guest, exit);
        match guest.protection.and_then(|protection| protection.vmsa()) {
            None => Swapped::of(state).write(board, guest.vmcb + SAVE),
            Some(vmsa) => {
                vmsa.store(board, state);
                if self.holds(Rule::HiddenRegisters) {
                    vmsa::load_host(board, self.hsave_pa + SAVE, state);
                }
            }
        }
        let host = Swapped::read(board, self.hsave_pa + SAVE);
        host.load_host(state, guest.nested.is_some());
        if guest.control.interrupt_masking() {
            state.cr8 = guest.host_cr8;
        }
        state.world = World::HOST;
        state.encryption = Encryption::None;
        state.shadow = Shadow::None;
        state.nmi_blocked = guest.host_nmi_blocked;
        state.injection = None;
        state.vectoring = None;
        self.gif = false;
    }

    /// The fields of the control area that #VMEXIT writes.
    fn store_exit(&self, memory: &mut impl PhysicalMemory, state: &CpuState, guest: &Guest, exit: Exit) {
        let vmcb = guest.vmcb;
        write_u32(memory, vmcb + at::INTERRUPT_CONTROL, interrupt_control(state, guest));
        let shadow = u64::from(state.shadow != Shadow::None);
        let registers = guest.protection.and_then(|protection| protection.registers);
        // RFLAGS.IF, which the hypervisor cannot see otherwise.
        let interrupts = registers.map_or(0, |_| u64::from(state.rflags & flags::IF != 0) << 1);
        write_u64(memory, vmcb + at::INTERRUPT_STATE, shadow | interrupts);
        if let Some(registers) = registers.filter(|_| self.holds(Rule::GhcbRegister)) {
            write_u64(memory, vmcb + at::GHCB, registers.ghcb);
        }
        let (event, error) = state.vectoring.map_or((0, 0), |event| encode(event, KIND_EXCEPTION));
        let mut words = [0; 32];
        words[..8].copy_from_slice(&exit.code.to_le_bytes());
        words[8..16].copy_from_slice(&exit.info1.to_le_bytes());
        words[16..24].copy_from_slice(&exit.info2.to_le_bytes());
        words[24..28].copy_from_slice(&event.to_le_bytes());
        words[28..].copy_from_slice(&error.to_le_bytes());
        memory.write(vmcb + at::EXIT_CODE, &words);
        let injected = read_u32(memory, vmcb + at::EVENT_INJECTION);
        write_u32(memory, vmcb + at::EVENT_INJECTION, injected & !VALID);
        if self.features.next_rip {
            write_u64(memory, vmcb + at::NEXT_RIP, exit.next_rip);
        }
    }
}

/// V_TPR and V_IRQ as the guest has left them.
fn interrupt_control(state: &CpuState, guest: &Guest) -> u32 {
    let mut word = guest.control.interrupt & !int_ctl::V_IRQ;
    if guest.virtual_interrupt {
        word |= int_ctl::V_IRQ;
    }
    if guest.control.interrupt_masking() {
        word = word & !int_ctl::V_TPR | state.cr8 as u32 & int_ctl::V_TPR;
    }
    word
}
