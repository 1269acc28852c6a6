//! Instructions about descriptor tables and descriptors.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::{Intercept, TableRegister};
use crate::core::{Abort, Core, Why};
use crate::exception::{Exception, vector};
use crate::flags::ZF;
use crate::intercept::Outcome;
use crate::memory::is_canonical;
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::segment::{LDT, Segment, Table};
use crate::state::{cr0, cr4};
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Lgdt => lgdt,
        M::Lidt => lidt,
        M::Sgdt => sgdt,
        M::Sidt => sidt,
        M::Lldt => lldt,
        M::Ltr => ltr,
        M::Sldt => return by_size!(operand_size(instruction, 0), sldt),
        M::Str => return by_size!(operand_size(instruction, 0), str),
        M::Verr => |core, op| verify(core, op, false),
        M::Verw => |core, op| verify(core, op, true),
        M::Lar => return by_size!(operand_size(instruction, 0), lar),
        M::Lsl => return by_size!(operand_size(instruction, 0), lsl),
        _ => return None,
    })
}

impl Core<'_> {
    /// #GP for SGDT and its like in user mode with CR4.UMIP.
    pub(crate) fn require_no_umip(&mut self) -> Result<(), Abort> {
        if self.s.cr4 & cr4::UMIP != 0 { self.require_cpl0() } else { Ok(()) }
    }

    fn intercept_table(&mut self, op: &Op, register: TableRegister, write: bool) -> Result<Outcome, Abort> {
        self.intercept(op, Intercept::Table { register, write })
    }

    /// SMSW, SLDT and STR store 16 bits to memory whatever the operand size, and fill registers.
    pub(crate) fn store_selector<T: Word>(&mut self, op: &Op, value: u64) -> Result<(), Abort> {
        if op.a == Operand::Mem { self.set::<u16>(op, op.a, value) } else { self.set::<T>(op, op.a, value) }
    }
}

/// Base and limit of a descriptor table in memory.
fn table_operand(core: &mut Core<'_>, op: &Op) -> Result<Table, Abort> {
    let width = if core.bits == 64 { 8 } else { 4 };
    let linear = core.linear(&op.mem, 2 + width, false)?;
    let mut image = [0; 10];
    core.read_bytes(linear, &mut image[..2 + width])?;
    let base = u64::from_le_bytes(image[2..].try_into().expect("8 bytes"));
    if core.bits == 64 && !is_canonical(base, core.s.cr4) {
        return core.raise(Exception::gp(0));
    }
    // With 16-bit operands only 24 bits of the base count; toolchains emit 32-bit operands.
    Ok(Table { base, limit: u16::from_le_bytes([image[0], image[1]]) })
}

fn lgdt(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    if core.intercept_table(op, TableRegister::Gdtr, true)? != Outcome::Done {
        core.s.gdtr = table_operand(core, op)?;
    }
    Ok(())
}

fn lidt(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_cpl0()?;
    if core.intercept_table(op, TableRegister::Idtr, true)? != Outcome::Done {
        core.s.idtr = table_operand(core, op)?;
    }
    Ok(())
}

fn sgdt(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_no_umip()?;
    if core.intercept_table(op, TableRegister::Gdtr, false)? == Outcome::Done {
        return Ok(());
    }
    store_table(core, op, core.s.gdtr)
}

fn sidt(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_no_umip()?;
    if core.intercept_table(op, TableRegister::Idtr, false)? == Outcome::Done {
        return Ok(());
    }
    store_table(core, op, core.s.idtr)
}

fn store_table(core: &mut Core<'_>, op: &Op, table: Table) -> Result<(), Abort> {
    let width = if core.bits == 64 { 8 } else { 4 };
    let linear = core.linear(&op.mem, 2 + width, true)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    core.write_bytes(linear, &image[..2 + width])
}

/// A system segment for LLDT or LTR: its descriptor checked, its base complete.
fn system_segment(core: &mut Core<'_>, selector: u16, kinds: &[u8]) -> Result<(Segment, u64), Abort> {
    let code = u32::from(selector & !3);
    if selector & 4 != 0 {
        return core.raise(Exception::gp(code));
    }
    let (mut segment, at) = core.descriptor(selector, Exception::gp(code))?;
    if segment.code_or_data || !kinds.contains(&segment.kind) {
        return core.raise(Exception::gp(code));
    }
    if !segment.present {
        return core.raise(Exception::with_code(vector::NP, code));
    }
    if core.s.long_mode() {
        segment.base |= core.read_system::<u32>(at.wrapping_add(8))? << 32;
    }
    Ok((segment, at))
}

fn lldt(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.s.cr0 & cr0::PE == 0 {
        return core.raise(Exception::ud());
    }
    core.require_cpl0()?;
    if core.intercept_table(op, TableRegister::Ldtr, true)? == Outcome::Done {
        return Ok(());
    }
    let selector = core.get::<u16>(op, op.a)? as u16;
    core.s.ldtr = if selector & !3 == 0 { Segment::null(selector) } else { system_segment(core, selector, &[LDT])?.0 };
    Ok(())
}

fn ltr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.s.cr0 & cr0::PE == 0 {
        return core.raise(Exception::ud());
    }
    core.require_cpl0()?;
    if core.intercept_table(op, TableRegister::Tr, true)? == Outcome::Done {
        return Ok(());
    }
    let selector = core.get::<u16>(op, op.a)? as u16;
    if selector & !3 == 0 {
        return core.raise(Exception::gp(0));
    }
    // Available TSS, 32-bit or 64-bit, or 16-bit outside long mode.
    let kinds: &[u8] = if core.s.long_mode() { &[9] } else { &[1, 9] };
    let (mut segment, at) = system_segment(core, selector, kinds)?;
    segment.kind |= 2;
    let byte = core.read_system::<u8>(at.wrapping_add(5))?;
    core.write_system::<u8>(at.wrapping_add(5), byte | 2)?;
    core.s.tr = segment;
    Ok(())
}

fn sldt<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_no_umip()?;
    if core.intercept_table(op, TableRegister::Ldtr, false)? == Outcome::Done {
        return Ok(());
    }
    core.store_selector::<T>(op, u64::from(core.s.ldtr.selector))
}

fn str<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_no_umip()?;
    if core.intercept_table(op, TableRegister::Tr, false)? == Outcome::Done {
        return Ok(());
    }
    core.store_selector::<T>(op, u64::from(core.s.tr.selector))
}

/// The descriptor that VERR, LAR and LSL look at, if there is one that this CPL may see.
fn visible(core: &mut Core<'_>, selector: u16) -> Result<Option<(Segment, u64)>, Abort> {
    if core.s.cr0 & cr0::PE == 0 {
        return core.raise(Exception::ud());
    }
    if selector & !3 == 0 {
        return Ok(None);
    }
    let outside = Exception::gp(u32::MAX);
    let (segment, at) = match core.descriptor(selector, outside) {
        Ok(found) => found,
        Err(_) if core.why == Why::Exception(outside) => return Ok(None),
        Err(abort) => return Err(abort),
    };
    let level = core.s.cpl().max((selector & 3) as u8);
    Ok((segment.is_conforming() || segment.dpl >= level).then_some((segment, at)))
}

fn set_zero(core: &mut Core<'_>, value: bool) {
    core.set_flags(ZF, if value { ZF } else { 0 });
}

fn verify(core: &mut Core<'_>, op: &Op, write: bool) -> Result<(), Abort> {
    let selector = core.get::<u16>(op, op.a)? as u16;
    let found = visible(core, selector)?;
    let good = found.is_some_and(|(segment, _)| if write { segment.is_writable() } else { segment.is_readable() });
    set_zero(core, good);
    Ok(())
}

fn lar<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let selector = core.get::<u16>(op, op.b)? as u16;
    let found = visible(core, selector)?;
    let long = core.s.long_mode();
    let rights = match found {
        Some((segment, _)) if !segment.code_or_data && !matches!(segment.kind, 2 | 9 | 0xb | 0xc) && long => None,
        Some((_, at)) => Some(core.read_system::<u32>(at.wrapping_add(4))? & 0xf0_ff00),
        None => None,
    };
    if let Some(rights) = rights {
        core.set_register::<T>(op.a, rights);
    }
    set_zero(core, rights.is_some());
    Ok(())
}

fn lsl<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let selector = core.get::<u16>(op, op.b)? as u16;
    let found = visible(core, selector)?;
    let long = core.s.long_mode();
    let limit = found
        .filter(|(segment, _)| {
            segment.code_or_data || matches!(segment.kind, 2 | 9 | 0xb) || !long && matches!(segment.kind, 1 | 3)
        })
        .map(|(segment, _)| segment.limit);
    if let Some(limit) = limit {
        core.set_register::<T>(op.a, u64::from(limit));
    }
    set_zero(core, limit.is_some());
    Ok(())
}
