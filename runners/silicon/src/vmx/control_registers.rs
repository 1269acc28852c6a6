//! Accesses of a guest to control registers (SDM volume 3, 26.1.3 and 26.3), of which it may see only a part.

use privet_cpu::state::cr0;
use privet_cpu::{CpuState, CrAccess, Exception, Intercepted};

use super::Vmx;
use super::capability::{CR0_FIXED_ONES, CR4_FIXED_ONES};
use super::controls::{proc, proc2};
use super::exit::{Exit, Reason};
use super::interception::Fate;
use crate::Rule;
use crate::board::Board;

/// Kinds of an access in the qualification (table 28-3).
mod kind {
    pub(super) const TO: u64 = 0 << 4;
    pub(super) const FROM: u64 = 1 << 4;
    pub(super) const CLTS: u64 = 2 << 4;
    pub(super) const LMSW: u64 = 3 << 4;
}

/// Bits of CR0 that LMSW writes.
const LMSW_BITS: u64 = 0xf;

fn exit(qualification: u64, length: u8) -> Fate {
    Fate::Exits(Exit::instruction(Reason::CrAccess, qualification, length))
}

fn answer(intercepted: Intercepted) -> Fate {
    Fate::Answered(intercepted)
}

impl Vmx {
    pub(super) fn fate_of_cr_read(
        &mut self,
        board: &mut impl Board,
        state: &CpuState,
        (cr, by): (u8, CrAccess),
        length: u8,
    ) -> Fate {
        let Some(guest) = self.guest() else { return answer(Intercepted::Native) };
        let register = if let CrAccess::Mov(register) = by { register } else { 0 };
        let exits = cr == 3 && guest.controls.proc(proc::CR3_STORE) || cr == 8 && guest.controls.proc(proc::CR8_STORE);
        if exits {
            return exit(u64::from(cr) | kind::FROM | u64::from(register) << 8, length);
        }
        answer(match cr {
            0 => Intercepted::Value(guest.cr0.seen(state.cr0)),
            4 => Intercepted::Value(guest.cr4.seen(state.cr4)),
            8 if guest.apic.page.is_some() => Intercepted::Value(guest.apic.task_priority(board)),
            _ => Intercepted::Native,
        })
    }

    pub(super) fn fate_of_cr_write(
        &mut self,
        board: &mut impl Board,
        state: &mut CpuState,
        (cr, value, by): (u8, u64, CrAccess),
        length: u8,
    ) -> Fate {
        let register = if let CrAccess::Mov(register) = by { register } else { 0 };
        let moved = u64::from(cr) | kind::TO | u64::from(register) << 8;
        let Some(guest) = self.guest_mut() else { return answer(Intercepted::Native) };
        match (cr, by) {
            (0, CrAccess::Clts) => self.fate_of_clts(length),
            (0, CrAccess::Lmsw) => self.fate_of_lmsw(state, value, length),
            (0, _) if guest.cr0.exits(value) => exit(moved, length),
            (0, _) => {
                let value = guest.cr0.written(state.cr0, value);
                self.permit_guest_cr0(value)
            }
            (3, _) if guest.controls.proc(proc::CR3_LOAD) && !guest.cr3_targets.contains(&value) => exit(moved, length),
            (4, _) if guest.cr4.exits(value) => exit(moved, length),
            (4, _) => {
                let value = guest.cr4.written(state.cr4, value);
                let keeps = value & CR4_FIXED_ONES == CR4_FIXED_ONES || !self.holds(Rule::FixedBits);
                answer(if keeps { Intercepted::Value(value) } else { Intercepted::Reflect(Exception::gp(0)) })
            }
            (8, _) if guest.controls.proc(proc::CR8_LOAD) => exit(moved, length),
            (8, _) if guest.apic.page.is_some() => {
                if value > 0xf {
                    return answer(Intercepted::Reflect(Exception::gp(0)));
                }
                guest.apic.set_task_priority(board, (value as u8) << 4);
                self.done(board, state, length)
            }
            _ => answer(Intercepted::Native),
        }
    }

    /// CLTS does nothing where TS is the host's and the guest reads it as clear.
    fn fate_of_clts(&self, length: u8) -> Fate {
        let Some(guest) = self.guest() else { return answer(Intercepted::Native) };
        match (guest.cr0.mask & cr0::TS != 0, guest.cr0.shadow & cr0::TS != 0) {
            (false, _) => answer(Intercepted::Native),
            (true, true) => exit(kind::CLTS, length),
            (true, false) => answer(Intercepted::Done),
        }
    }

    /// LMSW sets PE and never clears it, so that only setting it counts.
    fn fate_of_lmsw(&self, state: &CpuState, value: u64, length: u8) -> Fate {
        let Some(guest) = self.guest() else { return answer(Intercepted::Native) };
        let sets_pe = value & !guest.cr0.shadow & guest.cr0.mask & cr0::PE != 0;
        let changes = (value ^ guest.cr0.shadow) & guest.cr0.mask & (LMSW_BITS & !cr0::PE) != 0;
        if sets_pe || changes {
            return exit(kind::LMSW | (value & LMSW_BITS) << 16, length);
        }
        self.permit_guest_cr0(guest.cr0.written(state.cr0, value))
    }

    /// What VMX operation needs of CR0 the guest cannot have otherwise either (26.8 and 24.8): #GP.
    fn permit_guest_cr0(&self, value: u64) -> Fate {
        let unrestricted = self.guest().is_some_and(|guest| guest.controls.proc2(proc2::UNRESTRICTED));
        let needed = CR0_FIXED_ONES & if unrestricted { !(cr0::PE | cr0::PG) } else { u64::MAX };
        let keeps = value & needed == needed || !self.holds(Rule::FixedBits);
        answer(if keeps { Intercepted::Value(value) } else { Intercepted::Reflect(Exception::gp(0)) })
    }
}
