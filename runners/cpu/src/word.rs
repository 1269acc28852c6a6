//! Operand sizes of integer instructions, and the flags of arithmetic on them.
//!
//! Values travel as `u64`, zero extended; the type parameter says how wide they are.

use crate::flags::{AF, CF, OF, PF, SF, ZF};
use crate::host::Cell;

/// An integer of an operand size.
pub(crate) trait Word: Cell {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize = Self::BITS as usize / 8;
    /// All bits set.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    /// The sign bit.
    const SIGN: u64 = 1 << (Self::BITS - 1);

    /// The low bits of a value.
    fn cut(value: u64) -> Self;
    /// Zero extended.
    fn wide(self) -> u64;

    /// Sign extended to 64 bits.
    fn signed(value: u64) -> i64 {
        (value << (64 - Self::BITS)) as i64 >> (64 - Self::BITS)
    }
}

macro_rules! word {
    ($($type:ty),*) => {
        $(impl Word for $type {
            const BITS: u32 = <$type>::BITS;
            #[inline(always)]
            fn cut(value: u64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn wide(self) -> u64 {
                u64::from(self)
            }
        })*
    };
}

word!(u8, u16, u32, u64);

/// SF, ZF and PF of a result.
#[inline(always)]
pub(crate) fn result_flags<T: Word>(result: u64) -> u64 {
    let low = result as u8;
    let parity = 0x9669_u32 >> ((low ^ low >> 4) & 0xf) & 1;
    (if result & T::MASK == 0 { ZF } else { 0 })
        | (if result & T::SIGN == 0 { 0 } else { SF })
        | u64::from(parity) << PF.trailing_zeros()
}

/// All six flags of `a + b + carry = result`.
#[inline(always)]
pub(crate) fn add_flags<T: Word>(a: u64, b: u64, result: u64) -> u64 {
    let carries = a & b | (a | b) & !result;
    let overflow = (a ^ result) & (b ^ result);
    result_flags::<T>(result)
        | (if carries & T::SIGN == 0 { 0 } else { CF })
        | (if overflow & T::SIGN == 0 { 0 } else { OF })
        | (a ^ b ^ result) & AF
}

/// All six flags of `a - b - borrow = result`.
#[inline(always)]
pub(crate) fn sub_flags<T: Word>(a: u64, b: u64, result: u64) -> u64 {
    let borrows = !a & b | (!a | b) & result;
    let overflow = (a ^ b) & (a ^ result);
    result_flags::<T>(result)
        | (if borrows & T::SIGN == 0 { 0 } else { CF })
        | (if overflow & T::SIGN == 0 { 0 } else { OF })
        | (a ^ b ^ result) & AF
}
