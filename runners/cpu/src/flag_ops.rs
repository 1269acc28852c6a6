//! Instructions that work on RFLAGS.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Intercept;
use crate::core::{Abort, Core};
use crate::decode;
use crate::exception::Exception;
use crate::flags::{AC, AF, ALL, CF, DF, IF, IOPL, PF, RESERVED_ONE, RF, SF, VIF, VIP, VM, ZF};
use crate::intercept::Outcome;
use crate::op::{Handler, Op, Operand};
use crate::state::gpr::RAX;
use crate::state::{Shadow, cr0, cr4};
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Clc => |core, _| flag(core, CF, false),
        Mnemonic::Stc => |core, _| flag(core, CF, true),
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => |core, _| flag(core, DF, false),
        Mnemonic::Std => |core, _| flag(core, DF, true),
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Clac => |core, _| supervisor_access(core, false),
        Mnemonic::Stac => |core, _| supervisor_access(core, true),
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Pushf => pushf::<u16>,
        Mnemonic::Pushfd => pushf::<u32>,
        Mnemonic::Pushfq => pushf::<u64>,
        Mnemonic::Popf => popf::<u16>,
        Mnemonic::Popfd => popf::<u32>,
        Mnemonic::Popfq => popf::<u64>,
        _ => return None,
    })
}

fn flag(core: &mut Core<'_>, flag: u64, value: bool) -> Result<(), Abort> {
    core.set_flags(flag, if value { flag } else { 0 });
    Ok(())
}

fn cmc(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    core.s.rflags ^= CF;
    Ok(())
}

impl Core<'_> {
    fn iopl(&self) -> u8 {
        ((self.s.rflags & IOPL) >> IOPL.trailing_zeros()) as u8
    }

    /// Loads flags from an image of `T`'s width as POPF and IRET do at this CPL.
    pub(crate) fn load_flags<T: Word>(&mut self, image: u64, cpl: u8) {
        let mut mask = ALL & !(VM | VIF | VIP) & T::MASK;
        if cpl != 0 {
            mask &= !IOPL;
        }
        if cpl > self.iopl() {
            mask &= !IF;
        }
        self.s.rflags = self.s.rflags & !mask | image & mask | RESERVED_ONE;
    }
}

fn cli(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    interrupt_flag(core, op, false)
}

fn sti(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let closed = !core.flag(IF);
    interrupt_flag(core, op, true)?;
    if closed {
        core.cast_shadow(Shadow::Sti);
    }
    Ok(())
}

fn interrupt_flag(core: &mut Core<'_>, _: &Op, value: bool) -> Result<(), Abort> {
    if core.s.cr0 & cr0::PE != 0 && core.s.cpl() > core.iopl() {
        return core.raise(Exception::gp(0));
    }
    flag(core, IF, value)
}

fn supervisor_access(core: &mut Core<'_>, value: bool) -> Result<(), Abort> {
    if core.s.cpl() != 0 || core.config.cr4_allowed & cr4::SMAP == 0 {
        return core.raise(Exception::ud());
    }
    flag(core, AC, value)
}

fn lahf(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let image = core.s.rflags & (SF | ZF | AF | PF | CF) | RESERVED_ONE;
    core.set_register::<u8>(Operand::High(RAX as u8), image);
    Ok(())
}

fn sahf(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let image = core.s.gpr[RAX] >> 8;
    core.set_flags(SF | ZF | AF | PF | CF, image);
    Ok(())
}

fn pushf<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.intercept(op, Intercept::Pushf)? == Outcome::Done {
        return Ok(());
    }
    let image = core.s.rflags & !(RF | VM);
    core.push::<T>(image)
}

fn popf<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.intercept(op, Intercept::Popf)? == Outcome::Done {
        return Ok(());
    }
    if core.s.rflags & VM != 0 {
        return decode::unknown(core, op);
    }
    let image = core.stack_read::<T>(0)?;
    core.release_stack(T::BYTES as u64);
    let cpl = core.s.cpl();
    core.load_flags::<T>(image & !RF, cpl);
    Ok(())
}
