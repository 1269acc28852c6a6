//! Control and debug registers, and XCR0.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::bus::{CrAccess, Intercept, Trap};
use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::fpu::{XCR0_AVX, XCR0_SSE, XCR0_X87};
use crate::intercept::Outcome;
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::segment::Seg;
use crate::state::gpr::RCX;
use crate::state::{cr0, cr4, efer};
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Mov if is_register(instruction, 0, iced_x86::Register::is_cr) => mov_to_cr,
        M::Mov if is_register(instruction, 1, iced_x86::Register::is_cr) => mov_from_cr,
        M::Mov if is_register(instruction, 0, iced_x86::Register::is_dr) => mov_to_dr,
        M::Mov if is_register(instruction, 1, iced_x86::Register::is_dr) => mov_from_dr,
        M::Clts => clts,
        M::Lmsw => lmsw,
        M::Smsw => return by_size!(operand_size(instruction, 0), smsw),
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        _ => return None,
    })
}

fn is_register(instruction: &Instruction, operand: u32, class: fn(iced_x86::Register) -> bool) -> bool {
    instruction.op_kind(operand) == OpKind::Register && class(instruction.op_register(operand))
}

impl Core<'_> {
    /// Sets CR0 as MOV CR0 does, EFER.LMA included.
    fn set_cr0(&mut self, value: u64) -> Result<(), Abort> {
        let value = value | cr0::ET;
        let known =
            cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
        if value >> 32 != 0
            || value & cr0::PG != 0 && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0
        {
            return self.raise(Exception::gp(0));
        }
        let value = value & known;
        let old = (self.s.cr0, self.s.efer);
        let turns_on = value & !self.s.cr0 & cr0::PG != 0;
        let turns_off = self.s.cr0 & !value & cr0::PG != 0;
        if turns_on && self.s.efer & efer::LME != 0 {
            if self.s.cr4 & cr4::PAE == 0 || self.s.segment(Seg::Cs).long {
                return self.raise(Exception::gp(0));
            }
            self.s.efer |= efer::LMA;
        }
        if turns_off {
            if self.bits == 64 {
                return self.raise(Exception::gp(0));
            }
            self.s.efer &= !efer::LMA;
        }
        self.s.cr0 = value;
        self.tlbs.flush_world();
        if let Err(abort) = self.load_root() {
            (self.s.cr0, self.s.efer) = old;
            return Err(abort);
        }
        self.after(Trap::WriteCr(0))
    }

    fn set_cr4(&mut self, value: u64) -> Result<(), Abort> {
        let long = self.s.long_mode();
        let changed = value ^ self.s.cr4;
        if value & !self.config.cr4_allowed != 0
            || long && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || changed & value & cr4::PCIDE != 0 && (!long || self.s.cr3 & 0xfff != 0)
        {
            return self.raise(Exception::gp(0));
        }
        let old = std::mem::replace(&mut self.s.cr4, value);
        self.tlbs.flush_world();
        self.select_context();
        if let Err(abort) = self.load_root() {
            self.s.cr4 = old;
            return Err(abort);
        }
        self.after(Trap::WriteCr(4))
    }

    fn set_cr3(&mut self, value: u64) -> Result<(), Abort> {
        let no_flush = if self.s.cr4 & cr4::PCIDE != 0 { 1 << 63 } else { 0 };
        let allowed = u64::MAX >> (64 - self.s.physical_bits(&self.config)) | self.s.encryption.mask() | no_flush;
        if self.s.long_mode() && value & !allowed != 0 {
            return self.raise(Exception::gp(0));
        }
        let old = std::mem::replace(&mut self.s.cr3, value & !(1 << 63));
        if let Err(abort) = self.load_root() {
            self.s.cr3 = old;
            return Err(abort);
        }
        self.select_context();
        // Bit 63 says to keep the translations of the PCID.
        if self.s.cr4 & cr4::PCIDE == 0 || value >> 63 == 0 {
            self.tlbs.flush_pcid(self.tlbs.context().pcid);
        }
        Ok(())
    }

    fn set_cr8(&mut self, value: u64) -> Result<(), Abort> {
        if value > 15 {
            return self.raise(Exception::gp(0));
        }
        self.s.cr8 = value;
        self.with_bus(|core| core.bus.set_task_priority(core.s, value));
        self.after(Trap::WriteCr(8))
    }
}

/// The number of the general register that an operand names.
fn register(operand: Operand) -> u8 {
    if let Operand::Gpr(register) = operand { register } else { 0 }
}

fn index(operand: Operand) -> u8 {
    match operand {
        Operand::Cr(index) | Operand::Dr(index) => index,
        _ => u8::MAX,
    }
}

fn mov_to_cr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    let cr = index(op.a);
    let value = core.get::<u64>(op, op.b)?;
    let value = if core.bits == 64 { value } else { value & 0xffff_ffff };
    let outcome = core.intercept(op, Intercept::WriteCr { cr, value, by: CrAccess::Mov(register(op.b)) })?;
    let Some(value) = outcome.value(value) else { return Ok(()) };
    match cr {
        0 => core.set_cr0(value),
        2 => {
            core.s.cr2 = value;
            Ok(())
        }
        3 => core.set_cr3(value),
        4 => core.set_cr4(value),
        8 => core.set_cr8(value),
        _ => core.raise(Exception::ud()),
    }
}

fn mov_from_cr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    let cr = index(op.b);
    let outcome = core.intercept(op, Intercept::ReadCr { cr, by: CrAccess::Mov(register(op.a)) })?;
    let value = match cr {
        0 => core.s.cr0,
        2 => core.s.cr2,
        3 => core.s.cr3,
        4 => core.s.cr4,
        8 => core.s.cr8,
        _ => return core.raise(Exception::ud()),
    };
    let Some(value) = outcome.value(value) else { return Ok(()) };
    let value = if core.bits == 64 { value } else { value & 0xffff_ffff };
    core.set_register::<u64>(op.a, value);
    Ok(())
}

/// Checks an access to a debug register; DR4 and DR5 are aliases of DR6 and DR7.
fn debug_register(core: &mut Core<'_>, operand: Operand) -> Result<u8, Abort> {
    let index = match index(operand) {
        4 | 5 if core.s.cr4 & cr4::DE != 0 => return core.raise(Exception::ud()),
        4 => 6,
        5 => 7,
        index @ 0..8 => index,
        _ => return core.raise(Exception::ud()),
    };
    core.require_cpl0()?;
    if core.s.dr7 >> 13 & 1 != 0 {
        return core.raise(Exception::db(1 << 13));
    }
    Ok(index)
}

fn mov_to_dr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let index = debug_register(core, op.a)?;
    let value = core.get::<u64>(op, op.b)?;
    if core.intercept(op, Intercept::WriteDr { dr: index, register: register(op.b), value })? == Outcome::Done {
        return Ok(());
    }
    match index {
        0..4 => core.s.dr[usize::from(index)] = value,
        _ if value >> 32 != 0 => return core.raise(Exception::gp(0)),
        6 => core.s.dr6 = value & 0x1_e00f | 0xfffe_0ff0,
        _ => core.s.dr7 = value & 0xffff_2fff | 0x400,
    }
    Ok(())
}

fn mov_from_dr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let index = debug_register(core, op.b)?;
    if core.intercept(op, Intercept::ReadDr { dr: index, register: register(op.a) })? == Outcome::Done {
        return Ok(());
    }
    let value = match index {
        0..4 => core.s.dr[usize::from(index)],
        6 => core.s.dr6,
        _ => core.s.dr7,
    };
    core.set_register::<u64>(op.a, value);
    Ok(())
}

fn clts(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    let value = core.s.cr0 & !cr0::TS;
    let outcome = core.intercept(op, Intercept::WriteCr { cr: 0, value, by: CrAccess::Clts })?;
    let Some(value) = outcome.value(value) else { return Ok(()) };
    core.s.cr0 = value;
    core.after(Trap::WriteCr(0))
}

fn lmsw(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    let value = core.get::<u16>(op, op.a)? & 0xf;
    // LMSW sets PE but never clears it.
    let new = core.s.cr0 & !0xe | value;
    let outcome = core.intercept(op, Intercept::WriteCr { cr: 0, value: new, by: CrAccess::Lmsw })?;
    match outcome.value(new) {
        Some(new) => core.set_cr0(new),
        None => Ok(()),
    }
}

fn smsw<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_no_umip()?;
    let outcome = core.intercept(op, Intercept::ReadCr { cr: 0, by: CrAccess::Smsw })?;
    match outcome.value(core.s.cr0) {
        Some(value) => core.store_selector::<T>(op, value),
        None => Ok(()),
    }
}

fn xgetbv(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    if core.s.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(Exception::ud());
    }
    match core.s.gpr[RCX] as u32 {
        0 => core.set_edx_eax(core.s.xcr0),
        1 => core.set_edx_eax(core.s.xcr0 & core.s.fpu.in_use()),
        _ => return core.raise(Exception::gp(0)),
    }
    Ok(())
}

fn xsetbv(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.s.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(Exception::ud());
    }
    core.require_cpl0()?;
    if core.intercept(op, Intercept::Xsetbv)? == Outcome::Done {
        return Ok(());
    }
    let value = core.edx_eax();
    let avx_without_sse = value & XCR0_AVX != 0 && value & XCR0_SSE == 0;
    if core.s.gpr[RCX] as u32 != 0 || value & XCR0_X87 == 0 || value & !core.config.xcr0_allowed != 0 || avx_without_sse
    {
        return core.raise(Exception::gp(0));
    }
    core.s.xcr0 = value;
    Ok(())
}
