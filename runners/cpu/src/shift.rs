//! Shifts and rotations.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::flags::{AF, ARITHMETIC, CF, OF};
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::word::{Word, result_flags};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => by_size!(size, shift, Shl),
        Mnemonic::Shr => by_size!(size, shift, Shr),
        Mnemonic::Sar => by_size!(size, shift, Sar),
        Mnemonic::Rol => by_size!(size, rotate, Rol),
        Mnemonic::Ror => by_size!(size, rotate, Ror),
        Mnemonic::Rcl => by_size!(size, rotate, Rcl),
        Mnemonic::Rcr => by_size!(size, rotate, Rcr),
        Mnemonic::Shld => by_size!(size, double_shift, Shl),
        Mnemonic::Shrd => by_size!(size, double_shift, Shr),
        Mnemonic::Shlx => by_size!(size, flagless, Shl),
        Mnemonic::Shrx => by_size!(size, flagless, Shr),
        Mnemonic::Sarx => by_size!(size, flagless, Sar),
        Mnemonic::Rorx => by_size!(size, rorx),
        _ => None,
    }
}

/// A value and the flags among CF and OF that go with it.
type Shifted = (u64, u64);

/// A shift by at least one bit; the count is masked to 5 or 6 bits already.
trait Shift {
    fn shift<T: Word>(value: u64, count: u32) -> Shifted;
}

/// A rotation by at least one bit, through CF or not.
trait Rotate {
    fn rotate<T: Word>(value: u64, count: u32, carry: bool) -> Shifted;
}

fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

struct Shl;
impl Shift for Shl {
    fn shift<T: Word>(value: u64, count: u32) -> Shifted {
        let wide = u128::from(value) << count;
        let result = wide as u64 & T::MASK;
        let carry = wide >> T::BITS & 1 != 0;
        (result, flag(carry, CF) | flag(carry != (result & T::SIGN != 0), OF))
    }
}

struct Shr;
impl Shift for Shr {
    fn shift<T: Word>(value: u64, count: u32) -> Shifted {
        let before = value.checked_shr(count - 1).unwrap_or(0);
        // OF is the old sign bit, for a shift by one; elsewhere it is undefined.
        (before >> 1, flag(before & 1 != 0, CF) | flag(value & T::SIGN != 0, OF))
    }
}

struct Sar;
impl Shift for Sar {
    fn shift<T: Word>(value: u64, count: u32) -> Shifted {
        let before = T::signed(value) >> (count - 1).min(63);
        ((before >> 1) as u64 & T::MASK, flag(before & 1 != 0, CF))
    }
}

struct Rol;
impl Rotate for Rol {
    fn rotate<T: Word>(value: u64, count: u32, _: bool) -> Shifted {
        let count = count % T::BITS;
        let result = (value << count | value.checked_shr(T::BITS - count).unwrap_or(0)) & T::MASK;
        let carry = result & 1 != 0;
        (result, flag(carry, CF) | flag(carry != (result & T::SIGN != 0), OF))
    }
}

struct Ror;
impl Rotate for Ror {
    fn rotate<T: Word>(value: u64, count: u32, _: bool) -> Shifted {
        let count = count % T::BITS;
        let result = (value >> count | value.checked_shl(T::BITS - count).unwrap_or(0)) & T::MASK;
        let top = result & T::SIGN != 0;
        (result, flag(top, CF) | flag(top != (result & T::SIGN >> 1 != 0), OF))
    }
}

struct Rcl;
impl Rotate for Rcl {
    fn rotate<T: Word>(value: u64, count: u32, carry: bool) -> Shifted {
        let width = T::BITS + 1;
        let count = count % width;
        let wide = u128::from(value) | u128::from(carry) << T::BITS;
        let rotated = wide << count | wide >> (width - count);
        let result = rotated as u64 & T::MASK;
        let carry = rotated >> T::BITS & 1 != 0;
        (result, flag(carry, CF) | flag(carry != (result & T::SIGN != 0), OF))
    }
}

struct Rcr;
impl Rotate for Rcr {
    fn rotate<T: Word>(value: u64, count: u32, carry: bool) -> Shifted {
        let width = T::BITS + 1;
        let count = count % width;
        let wide = u128::from(value) | u128::from(carry) << T::BITS;
        let rotated = wide >> count | wide << (width - count);
        let result = rotated as u64 & T::MASK;
        let carry = rotated >> T::BITS & 1 != 0;
        let top_two_differ = (result & T::SIGN != 0) != (result & T::SIGN >> 1 != 0);
        (result, flag(carry, CF) | flag(top_two_differ, OF))
    }
}

/// The count operand, masked as the processor masks it.
fn count<T: Word>(core: &mut Core<'_>, op: &Op, operand: Operand) -> Result<u32, Abort> {
    let mask = if T::BITS == 64 { 63 } else { 31 };
    Ok(core.get::<u8>(op, operand)? as u32 & mask)
}

fn shift<T: Word, S: Shift>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let count = count::<T>(core, op, op.b)?;
    if count == 0 {
        // Flags stay, but the upper half of a 32-bit register is cleared and memory is written.
        core.change::<T>(op, op.a, |old| old)?;
        return Ok(());
    }
    let old = core.change::<T>(op, op.a, |old| S::shift::<T>(old, count).0)?;
    let (result, carry_overflow) = S::shift::<T>(old, count);
    core.set_flags(ARITHMETIC, result_flags::<T>(result) | carry_overflow);
    Ok(())
}

fn rotate<T: Word, R: Rotate>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let count = count::<T>(core, op, op.b)?;
    let carry = core.flag(CF);
    if count == 0 {
        core.change::<T>(op, op.a, |old| old)?;
        return Ok(());
    }
    let old = core.change::<T>(op, op.a, |old| R::rotate::<T>(old, count, carry).0)?;
    core.set_flags(CF | OF, R::rotate::<T>(old, count, carry).1);
    Ok(())
}

/// SHLD and SHRD. With 16 bits and counts above 16 the result is undefined; processors shift
/// operand, source and operand again.
fn double_shift<T: Word, S: Side>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let source = core.get::<T>(op, op.b)?;
    let operand = if op.c == Operand::None { op.b } else { op.c };
    let count = count::<T>(core, op, operand)?;
    if count == 0 {
        core.change::<T>(op, op.a, |old| old)?;
        return Ok(());
    }
    let old = core.change::<T>(op, op.a, |old| S::double::<T>(old, source, count).0)?;
    let (result, carry) = S::double::<T>(old, source, count);
    let overflow = (old ^ result) & T::SIGN != 0;
    core.set_flags(ARITHMETIC & !AF, result_flags::<T>(result) | flag(carry, CF) | flag(overflow, OF));
    Ok(())
}

/// Which way a double shift goes.
trait Side {
    fn double<T: Word>(value: u64, source: u64, count: u32) -> (u64, bool);
}

impl Side for Shl {
    fn double<T: Word>(value: u64, source: u64, count: u32) -> (u64, bool) {
        // value : source : value, of which the window of T's width starts `count` bits from the top.
        let (value, source) = (u128::from(value), u128::from(source));
        if T::BITS == 16 {
            let wide = value << 32 | source << 16 | value;
            let shifted = wide << count;
            return ((shifted >> 32) as u64 & T::MASK, shifted >> 48 & 1 != 0);
        }
        let wide = value << T::BITS | source;
        let result = (wide << count >> T::BITS) as u64 & T::MASK;
        (result, value >> (T::BITS - count) & 1 != 0)
    }
}

impl Side for Shr {
    fn double<T: Word>(value: u64, source: u64, count: u32) -> (u64, bool) {
        let (value, source) = (u128::from(value), u128::from(source));
        let wide = if T::BITS == 16 { value << 32 | source << 16 | value } else { source << T::BITS | value };
        ((wide >> count) as u64 & T::MASK, wide >> (count - 1) & 1 != 0)
    }
}

fn flagless<T: Word, S: Shift>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    let count = core.get::<T>(op, op.c)? as u32 & (T::BITS - 1);
    core.set_register::<T>(op.a, if count == 0 { value } else { S::shift::<T>(value, count).0 });
    Ok(())
}

fn rorx<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    let count = op.imm as u32 & (T::BITS - 1);
    core.set_register::<T>(op.a, if count == 0 { value } else { Ror::rotate::<T>(value, count, false).0 });
    Ok(())
}
