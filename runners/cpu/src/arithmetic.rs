//! ADD and its like, comparisons, the atomic exchanges, and ADX.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::flags::{ARITHMETIC, CF, OF, ZF};
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::state::gpr::{RAX, RBX, RCX, RDX};
use crate::word::{Word, add_flags, result_flags, sub_flags};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Add => by_size!(size, binary, Add),
        Mnemonic::Adc => by_size!(size, binary, Adc),
        Mnemonic::Sub => by_size!(size, binary, Sub),
        Mnemonic::Sbb => by_size!(size, binary, Sbb),
        Mnemonic::And => by_size!(size, binary, And),
        Mnemonic::Or => by_size!(size, binary, Or),
        Mnemonic::Xor => by_size!(size, binary, Xor),
        Mnemonic::Cmp => by_size!(size, compare, Sub),
        Mnemonic::Test => by_size!(size, compare, And),
        Mnemonic::Inc => by_size!(size, inc),
        Mnemonic::Dec => by_size!(size, dec),
        Mnemonic::Neg => by_size!(size, neg),
        Mnemonic::Not => by_size!(size, not),
        Mnemonic::Xadd => by_size!(size, xadd),
        Mnemonic::Cmpxchg => by_size!(size, cmpxchg),
        Mnemonic::Adcx => by_size!(size, add_with, CarryFlag),
        Mnemonic::Adox => by_size!(size, add_with, OverflowFlag),
        Mnemonic::Cmpxchg8b => Some(cmpxchg8b),
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b),
        _ => None,
    }
}

/// An operation of two operands and the carry flag.
trait Binary {
    fn result(a: u64, b: u64, carry: u64) -> u64;
    fn flags<T: Word>(a: u64, b: u64, result: u64) -> u64;
}

macro_rules! binary {
    ($name:ident, |$a:ident, $b:ident, $carry:ident| $result:expr, $flags:ident) => {
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn result($a: u64, $b: u64, $carry: u64) -> u64 {
                let _ = $carry;
                $result
            }
            #[inline(always)]
            fn flags<T: Word>(a: u64, b: u64, result: u64) -> u64 {
                $flags::<T>(a, b, result)
            }
        }
    };
}

#[inline(always)]
fn logic_flags<T: Word>(_: u64, _: u64, result: u64) -> u64 {
    result_flags::<T>(result)
}

binary!(Add, |a, b, carry| a.wrapping_add(b), add_flags);
binary!(Adc, |a, b, carry| a.wrapping_add(b).wrapping_add(carry), add_flags);
binary!(Sub, |a, b, carry| a.wrapping_sub(b), sub_flags);
binary!(Sbb, |a, b, carry| a.wrapping_sub(b).wrapping_sub(carry), sub_flags);
binary!(And, |a, b, carry| a & b, logic_flags);
binary!(Or, |a, b, carry| a | b, logic_flags);
binary!(Xor, |a, b, carry| a ^ b, logic_flags);

#[inline(always)]
fn binary<T: Word, B: Binary>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let b = core.get::<T>(op, op.b)?;
    let carry = core.s.rflags & CF;
    let a = core.change::<T>(op, op.a, |a| B::result(a, b, carry) & T::MASK)?;
    let result = B::result(a, b, carry) & T::MASK;
    core.set_flags(ARITHMETIC, B::flags::<T>(a, b, result));
    Ok(())
}

#[inline(always)]
fn compare<T: Word, B: Binary>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let a = core.get::<T>(op, op.a)?;
    let b = core.get::<T>(op, op.b)?;
    core.set_flags(ARITHMETIC, B::flags::<T>(a, b, B::result(a, b, 0) & T::MASK));
    Ok(())
}

fn inc<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let old = core.change::<T>(op, op.a, |old| old.wrapping_add(1) & T::MASK)?;
    core.set_flags(ARITHMETIC & !CF, add_flags::<T>(old, 1, old.wrapping_add(1) & T::MASK));
    Ok(())
}

fn dec<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let old = core.change::<T>(op, op.a, |old| old.wrapping_sub(1) & T::MASK)?;
    core.set_flags(ARITHMETIC & !CF, sub_flags::<T>(old, 1, old.wrapping_sub(1) & T::MASK));
    Ok(())
}

fn neg<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let old = core.change::<T>(op, op.a, |old| old.wrapping_neg() & T::MASK)?;
    core.set_flags(ARITHMETIC, sub_flags::<T>(0, old, old.wrapping_neg() & T::MASK));
    Ok(())
}

fn not<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.change::<T>(op, op.a, |old| !old & T::MASK)?;
    Ok(())
}

/// The flag that an addition of ADX carries by; it touches no other.
trait Carry {
    const FLAG: u64;
}

struct CarryFlag;
impl Carry for CarryFlag {
    const FLAG: u64 = CF;
}
struct OverflowFlag;
impl Carry for OverflowFlag {
    const FLAG: u64 = OF;
}

fn add_with<T: Word, C: Carry>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let (a, b) = (core.get::<T>(op, op.a)?, core.get::<T>(op, op.b)?);
    let sum = u128::from(a) + u128::from(b) + u128::from(core.flag(C::FLAG));
    core.set_register::<T>(op.a, sum as u64);
    core.set_flags(C::FLAG, if sum >> T::BITS != 0 { C::FLAG } else { 0 });
    Ok(())
}

fn xadd<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let addend = core.get::<T>(op, op.b)?;
    let old = core.change::<T>(op, op.a, |old| old.wrapping_add(addend) & T::MASK)?;
    let sum = old.wrapping_add(addend) & T::MASK;
    // With both operands the same register the sum is what stays.
    if op.a != op.b {
        core.set_register::<T>(op.b, old);
    }
    core.set_flags(ARITHMETIC, add_flags::<T>(old, addend, sum));
    Ok(())
}

fn cmpxchg<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let expected = core.s.gpr[RAX] & T::MASK;
    let new = core.get::<T>(op, op.b)?;
    let old = if op.a == Operand::Mem {
        core.change::<T>(op, op.a, |old| if old == expected { new } else { old })?
    } else {
        core.get::<T>(op, op.a)?
    };
    if old != expected {
        core.set_register::<T>(Operand::Gpr(RAX as u8), old);
    } else if op.a != Operand::Mem {
        // Only then is a register written, and the upper half of a 32-bit one cleared.
        core.set_register::<T>(op.a, new);
    }
    core.set_flags(ARITHMETIC, sub_flags::<T>(expected, old, expected.wrapping_sub(old) & T::MASK));
    Ok(())
}

fn cmpxchg8b(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let low = |core: &Core<'_>, low: usize, high: usize| core.s.gpr[low] & 0xffff_ffff | core.s.gpr[high] << 32;
    let expected = low(core, RAX, RDX);
    let new = low(core, RBX, RCX);
    let linear = core.linear(&op.mem, 8, true)?;
    let old = core.modify::<u64>(linear, op.lock, |old| if old == expected { new } else { old })?;
    if old != expected {
        core.s.gpr[RAX] = old & 0xffff_ffff;
        core.s.gpr[RDX] = old >> 32;
    }
    core.set_flags(ZF, if old == expected { ZF } else { 0 });
    Ok(())
}

fn cmpxchg16b(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let pair =
        |core: &Core<'_>, low: usize, high: usize| u128::from(core.s.gpr[low]) | u128::from(core.s.gpr[high]) << 64;
    let linear = core.linear(&op.mem, 16, true)?;
    if linear & 15 != 0 {
        return core.raise(Exception::gp(0));
    }
    let expected = pair(core, RAX, RDX);
    let new = pair(core, RBX, RCX);
    let old = core.compare_exchange_wide(linear, expected, new)?;
    if op.lock && core.debug.tells_locked {
        core.tell_locked();
    }
    if old != expected {
        core.s.gpr[RAX] = old as u64;
        core.s.gpr[RDX] = (old >> 64) as u64;
    }
    core.set_flags(ZF, if old == expected { ZF } else { 0 });
    Ok(())
}
