//! Multiplication and division.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::flags::{ARITHMETIC, CF, OF};
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::state::gpr::{RAX, RDX};
use crate::word::{Word, result_flags};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Mul => by_size!(size, mul),
        Mnemonic::Imul if instruction.op_count() == 1 => by_size!(size, imul_wide),
        Mnemonic::Imul => by_size!(size, imul),
        Mnemonic::Div => by_size!(size, div),
        Mnemonic::Idiv => by_size!(size, idiv),
        Mnemonic::Mulx => by_size!(size, mulx),
        _ => None,
    }
}

/// CF and OF are defined; the others are as on no particular processor.
fn set_flags<T: Word>(core: &mut Core<'_>, result: u64, overflow: bool) {
    let carry = if overflow { CF | OF } else { 0 };
    core.set_flags(ARITHMETIC, result_flags::<T>(result) & !(CF | OF) | carry);
}

/// Stores a double-width value: in AX, or in rDX:rAX.
fn set_pair<T: Word>(core: &mut Core<'_>, value: u128) {
    if T::BITS == 8 {
        core.set_register::<u16>(Operand::Gpr(RAX as u8), value as u64);
    } else {
        core.set_register::<T>(Operand::Gpr(RAX as u8), value as u64);
        core.set_register::<T>(Operand::Gpr(RDX as u8), (value >> T::BITS) as u64);
    }
}

fn pair<T: Word>(core: &Core<'_>) -> u128 {
    if T::BITS == 8 {
        u128::from(core.s.gpr[RAX] & 0xffff)
    } else {
        u128::from(core.s.gpr[RAX] & T::MASK) | u128::from(core.s.gpr[RDX] & T::MASK) << T::BITS
    }
}

fn mul<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let factor = core.get::<T>(op, op.a)?;
    let product = u128::from(core.s.gpr[RAX] & T::MASK) * u128::from(factor);
    set_pair::<T>(core, product);
    set_flags::<T>(core, product as u64, product >> T::BITS != 0);
    Ok(())
}

fn imul_wide<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let factor = core.get::<T>(op, op.a)?;
    let product = i128::from(T::signed(core.s.gpr[RAX])) * i128::from(T::signed(factor));
    set_pair::<T>(core, product as u128);
    set_flags::<T>(core, product as u64, i128::from(T::signed(product as u64)) != product);
    Ok(())
}

fn imul<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let (a, b) = if op.c == Operand::None { (op.a, op.b) } else { (op.b, op.c) };
    let a = core.get::<T>(op, a)?;
    let b = core.get::<T>(op, b)?;
    let product = i128::from(T::signed(a)) * i128::from(T::signed(b));
    core.set_register::<T>(op.a, product as u64);
    set_flags::<T>(core, product as u64, i128::from(T::signed(product as u64)) != product);
    Ok(())
}

fn mulx<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let factor = core.get::<T>(op, op.c)?;
    let product = u128::from(core.s.gpr[RDX] & T::MASK) * u128::from(factor);
    core.set_register::<T>(op.b, product as u64);
    core.set_register::<T>(op.a, (product >> T::BITS) as u64);
    Ok(())
}

/// Stores quotient and remainder: in AL and AH, or in rAX and rDX.
fn set_quotient<T: Word>(core: &mut Core<'_>, quotient: u64, remainder: u64) {
    if T::BITS == 8 {
        core.set_register::<u16>(Operand::Gpr(RAX as u8), quotient & 0xff | (remainder & 0xff) << 8);
    } else {
        core.set_register::<T>(Operand::Gpr(RAX as u8), quotient);
        core.set_register::<T>(Operand::Gpr(RDX as u8), remainder);
    }
}

fn div<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let divisor = u128::from(core.get::<T>(op, op.a)?);
    let dividend = pair::<T>(core);
    if divisor == 0 || dividend / divisor > u128::from(T::MASK) {
        return core.raise(Exception::plain(vector::DE));
    }
    set_quotient::<T>(core, (dividend / divisor) as u64, (dividend % divisor) as u64);
    Ok(())
}

fn idiv<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let divisor = i128::from(T::signed(core.get::<T>(op, op.a)?));
    let unused = 128 - 2 * T::BITS;
    let dividend = (pair::<T>(core) << unused) as i128 >> unused;
    let Some(quotient) = dividend.checked_div(divisor) else {
        return core.raise(Exception::plain(vector::DE));
    };
    if i128::from(T::signed(quotient as u64)) != quotient {
        return core.raise(Exception::plain(vector::DE));
    }
    set_quotient::<T>(core, quotient as u64, (dividend % divisor) as u64);
    Ok(())
}
