//! VMRUN (APM volume 2, 15.5): from the host into a guest.

use privet_cpu::state::{Shadow, World, cr0};
use privet_cpu::{CpuState, Encryption, flags};

use super::checks::{self, Entry};
use super::control::Control;
use super::exit;
use super::injection::{injection, is_software};
use super::nested_paging::NestedTables;
use super::pause::PauseFilter;
use super::protection::{Protection, Refused};
use super::save::Swapped;
use super::vmcb::{SAVE, at, int_ctl, misc, misc2};
use super::{Guest, Svm};
use crate::Rule;
use crate::board::{Board, Flush};
use crate::memory::write_u64;

/// TLB_CONTROL (15.16.1).
const FLUSH_NOTHING: u8 = 0;
const FLUSH_ALL: u8 = 1;
const FLUSH_ASID: u8 = 3;
const FLUSH_ASID_LOCAL: u8 = 7;

impl Svm {
    /// Enters the guest of the VMCB at physical address `vmcb`; the host goes on at `next_rip` one day.
    pub(super) fn vmrun(&mut self, board: &mut impl Board, state: &mut CpuState, vmcb: u64, next_rip: u64) {
        let host = Swapped { rip: next_rip, rflags: state.rflags & !flags::RF, ..Swapped::of(state) };
        host.write(board, self.hsave_pa + SAVE);
        let control = Control::read(board, vmcb);
        let protection = match self.features.sev {
            Some(sev) => Protection::of(board, &control, &sev, self.features.rules),
            None => Ok(None),
        };
        let protection = match protection {
            Ok(protection) => protection,
            Err(Refused::Invalid) => return self.refuse(board, state, vmcb, &host, exit::INVALID),
            Err(Refused::Busy) => return self.refuse(board, state, vmcb, &host, exit::BUSY),
        };
        let vmsa = protection.and_then(|protection| protection.vmsa());
        let guest = match vmsa {
            Some(vmsa) => vmsa.swapped(board),
            None => Swapped::read(board, vmcb + SAVE),
        };
        let entry =
            Entry { control: &control, guest: &guest, host_paging: state.cr0 & cr0::PG != 0, features: &self.features };
        if checks::violated(&entry).is_some() {
            return self.refuse(board, state, vmcb, &host, exit::INVALID);
        }
        self.tell_unsimulated(board, &control);
        self.flush(board, &control);
        self.enter(state, vmcb, control, &guest, protection);
        if let Some(vmsa) = vmsa {
            vmsa.load_rest(board, state);
        }
        self.mark_in_use(board, true);
        board.raise_event();
    }

    /// Says in the RMP that VMCB and VMSA are in use, or that they no longer are: nobody may change their entries
    /// meanwhile (15.36.12).
    pub(super) fn mark_in_use(&self, board: &mut impl Board, in_use: bool) {
        let (Some(rmp), Some(guest)) = (board.rmp(), &self.guest) else { return };
        if !self.holds(Rule::InUse) {
            return;
        }
        let vmsa = guest.protection.and_then(|protection| protection.vmsa()).map(|vmsa| vmsa.pa);
        for page in [Some(guest.vmcb), vmsa].into_iter().flatten() {
            rmp.set_in_use(board, page, in_use);
        }
    }

    /// VMEXIT_INVALID and its like: of the guest nothing was loaded, and nothing is stored but the exit code. As any exit it leaves
    /// the global interrupt flag clear.
    fn refuse(&mut self, board: &mut impl Board, state: &mut CpuState, vmcb: u64, host: &Swapped, code: u64) {
        write_u64(board, vmcb + at::EXIT_CODE, code);
        host.load_host(state, true);
        state.shadow = Shadow::None;
        self.gif = false;
    }

    fn enter(
        &mut self,
        state: &mut CpuState,
        vmcb: u64,
        control: Control,
        guest: &Swapped,
        protection: Option<Protection>,
    ) {
        let nested = (self.features.nested_paging && control.nested_paging())
            .then(|| NestedTables::new(control.nested_cr3, state, &self.features));
        let mut running = Guest {
            vmcb,
            nested,
            protection,
            pause: PauseFilter::new(&control, &self.features),
            virtual_interrupt: control.interrupt & int_ctl::V_IRQ != 0,
            host_interrupts: state.rflags & flags::IF != 0,
            host_cr8: state.cr8,
            host_nmi_blocked: state.nmi_blocked,
            injected_at: None,
            control,
        };
        guest.load_guest(state, nested.is_some());
        if running.control.interrupt_masking() {
            state.cr8 = u64::from(running.control.interrupt & int_ctl::V_TPR);
        }
        state.world = World(running.control.asid);
        state.encryption = match (protection, self.features.sev) {
            (Some(_), Some(sev)) => Encryption::CBit(sev.c_bit),
            _ => Encryption::None,
        };
        state.shadow = if running.control.interrupt_shadow { Shadow::Sti } else { Shadow::None };
        state.nmi_blocked = false;
        state.injection = injection(&running.control, state);
        if self.features.next_rip && state.injection.is_some_and(is_software) {
            running.injected_at = Some(state.rip);
            state.rip = running.control.next_rip;
        }
        self.gif = true;
        self.guest = Some(running);
    }

    /// TLB_CONTROL. Reserved values, and those of a feature that this processor has not, flush everything: software
    /// that asks for them may not rely on less.
    fn flush(&self, board: &mut impl Board, control: &Control) {
        let world = World(control.asid);
        match control.tlb_control & 7 {
            FLUSH_NOTHING => {}
            FLUSH_ALL => board.flush(Flush::All),
            FLUSH_ASID | FLUSH_ASID_LOCAL if self.features.flush_by_asid => board.flush(Flush::World(world)),
            _ => {
                board.unsimulated("SVM: a reserved value of TLB_CONTROL");
                board.flush(Flush::All);
            }
        }
    }

    /// Controls of features that no processor here has: software that heeds CPUID does not set them, and hardware
    /// without them ignores them.
    fn tell_unsimulated(&self, board: &mut impl Board, control: &Control) {
        let absent = [
            (control.misc2 & misc2::LBR != 0 && self.features.sev.is_none(), "SVM: LBR virtualization"),
            (control.misc2 & misc2::VIRTUAL_VMLOAD != 0, "SVM: virtual VMLOAD and VMSAVE"),
            (control.misc & misc::GMET != 0, "SVM: guest mode execute trap"),
            (control.misc & (misc::SEV | misc::SEV_ES) != 0 && self.features.sev.is_none(), "SVM: SEV"),
            (control.interrupt & (int_ctl::AVIC | int_ctl::X2AVIC) != 0, "SVM: AVIC"),
            (control.interrupt & int_ctl::V_GIF_ENABLE != 0, "SVM: virtual GIF"),
            (control.interrupt & int_ctl::V_NMI_ENABLE != 0, "SVM: virtual NMI"),
        ];
        for (_, name) in absent.into_iter().filter(|(asked, _)| *asked) {
            board.unsimulated(name);
        }
    }
}
