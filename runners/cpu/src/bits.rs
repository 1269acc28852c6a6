//! Bit tests, scans and counts; BMI1 and BMI2; CRC32.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::core::{Abort, Core};
use crate::flags::{ARITHMETIC, CF, ZF};
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::word::{Word, result_flags};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    let by_register = instruction.op_count() > 1 && instruction.op_kind(1) == OpKind::Register;
    match (instruction.mnemonic(), by_register) {
        (Mnemonic::Bt, false) => by_size!(size, bit, Test),
        (Mnemonic::Bts, false) => by_size!(size, bit, Set),
        (Mnemonic::Btr, false) => by_size!(size, bit, Reset),
        (Mnemonic::Btc, false) => by_size!(size, bit, Complement),
        (Mnemonic::Bt, true) => by_size!(size, bit_string, Test),
        (Mnemonic::Bts, true) => by_size!(size, bit_string, Set),
        (Mnemonic::Btr, true) => by_size!(size, bit_string, Reset),
        (Mnemonic::Btc, true) => by_size!(size, bit_string, Complement),
        (Mnemonic::Bsf, _) => by_size!(size, bsf),
        (Mnemonic::Bsr, _) => by_size!(size, bsr),
        (Mnemonic::Tzcnt, _) => by_size!(size, tzcnt),
        (Mnemonic::Lzcnt, _) => by_size!(size, lzcnt),
        (Mnemonic::Popcnt, _) => by_size!(size, popcnt),
        (Mnemonic::Rdrand | Mnemonic::Rdseed, _) => by_size!(size, random),
        (Mnemonic::Andn, _) => by_size!(size, andn),
        (Mnemonic::Bextr, _) => by_size!(size, bextr),
        (Mnemonic::Blsi, _) => by_size!(size, blsi),
        (Mnemonic::Blsmsk, _) => by_size!(size, blsmsk),
        (Mnemonic::Blsr, _) => by_size!(size, blsr),
        (Mnemonic::Bzhi, _) => by_size!(size, bzhi),
        (Mnemonic::Pdep, _) => by_size!(size, pdep),
        (Mnemonic::Pext, _) => by_size!(size, pext),
        (Mnemonic::Crc32, _) => by_size!(operand_size(instruction, 1), crc32),
        _ => None,
    }
}

/// What happens to a bit after CF took it.
trait Change {
    const WRITES: bool = true;
    fn change(value: u64, bit: u64) -> u64;
}

struct Test;
impl Change for Test {
    const WRITES: bool = false;
    fn change(value: u64, _: u64) -> u64 {
        value
    }
}
struct Set;
impl Change for Set {
    fn change(value: u64, bit: u64) -> u64 {
        value | bit
    }
}
struct Reset;
impl Change for Reset {
    fn change(value: u64, bit: u64) -> u64 {
        value & !bit
    }
}
struct Complement;
impl Change for Complement {
    fn change(value: u64, bit: u64) -> u64 {
        value ^ bit
    }
}

/// The bit number is an immediate, or the bit base is a register: modulo the operand size.
fn bit<T: Word, C: Change>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let index = core.get::<T>(op, op.b)? & u64::from(T::BITS - 1);
    let old = if C::WRITES {
        core.change::<T>(op, op.a, |old| C::change(old, 1 << index))?
    } else {
        core.get::<T>(op, op.a)?
    };
    core.set_flags(CF, old >> index & CF);
    Ok(())
}

/// The bit number is a register: in memory, it is an index into a string of bits around the operand.
fn bit_string<T: Word, C: Change>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if op.a != Operand::Mem {
        return bit::<T, C>(core, op);
    }
    let index = T::signed(core.get::<T>(op, op.b)?);
    let element = index >> T::BITS.trailing_zeros();
    let mut mem = op.mem;
    mem.disp = mem.disp.wrapping_add((element * T::BYTES as i64) as u64);
    let linear = core.linear(&mem, T::BYTES, C::WRITES)?;
    let bit = index as u64 & u64::from(T::BITS - 1);
    let old = if C::WRITES {
        core.modify::<T>(linear, op.lock, |old| C::change(old, 1 << bit))?
    } else {
        core.read::<T>(linear)?
    };
    core.set_flags(CF, old >> bit & CF);
    Ok(())
}

fn bsf<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    scan::<T>(core, op, value, value.trailing_zeros())
}

fn bsr<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    scan::<T>(core, op, value, 63 - value.leading_zeros().min(63))
}

fn scan<T: Word>(core: &mut Core<'_>, op: &Op, value: u64, index: u32) -> Result<(), Abort> {
    core.set_flags(ZF, if value == 0 { ZF } else { 0 });
    // Of zero the destination is undefined by one vendor and unchanged by the other (and in practice
    // by both).
    if value != 0 {
        core.set_register::<T>(op.a, u64::from(index));
    }
    Ok(())
}

/// Result and flags of TZCNT and LZCNT.
fn counted<T: Word>(core: &mut Core<'_>, op: &Op, value: u64, count: u32) -> Result<(), Abort> {
    core.set_register::<T>(op.a, u64::from(count));
    let flags = if value == 0 { CF } else { 0 } | if count == 0 { ZF } else { 0 };
    core.set_flags(CF | ZF, flags);
    Ok(())
}

fn tzcnt<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    counted::<T>(core, op, value, value.trailing_zeros().min(T::BITS))
}

fn lzcnt<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    counted::<T>(core, op, value, value.leading_zeros() - (64 - T::BITS))
}

fn popcnt<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    core.set_register::<T>(op.a, u64::from(value.count_ones()));
    core.set_flags(ARITHMETIC, if value == 0 { ZF } else { 0 });
    Ok(())
}

/// RDRAND and RDSEED, which always have something. It follows from how much was executed, so that a run can be repeated
/// (the mixing of SplitMix64); nobody is to be kept from guessing it.
fn random<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let mut word = (core.s.instructions ^ core.s.rip.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    core.set_register::<T>(op.a, word ^ word >> 31);
    core.set_flags(ARITHMETIC, CF);
    Ok(())
}

/// Stores a result whose flags are those of logic, but for CF.
fn logic<T: Word>(core: &mut Core<'_>, op: &Op, result: u64, carry: bool) -> Result<(), Abort> {
    core.set_register::<T>(op.a, result);
    core.set_flags(ARITHMETIC, result_flags::<T>(result) | if carry { CF } else { 0 });
    Ok(())
}

fn andn<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let a = core.get::<T>(op, op.b)?;
    let b = core.get::<T>(op, op.c)?;
    logic::<T>(core, op, !a & b & T::MASK, false)
}

fn bextr<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    let control = core.get::<T>(op, op.c)?;
    let (start, length) = (control as u8, (control >> 8) as u8);
    let shifted = value.checked_shr(u32::from(start)).unwrap_or(0);
    logic::<T>(core, op, shifted & low_bits(u32::from(length)), false)
}

/// A mask of the lowest `count` bits.
fn low_bits(count: u32) -> u64 {
    1_u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1)
}

fn blsi<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    logic::<T>(core, op, value & value.wrapping_neg(), value != 0)
}

fn blsmsk<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    logic::<T>(core, op, (value ^ value.wrapping_sub(1)) & T::MASK, value == 0)
}

fn blsr<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    logic::<T>(core, op, value & value.wrapping_sub(1), value == 0)
}

fn bzhi<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    let index = core.get::<u8>(op, op.c)? as u32;
    logic::<T>(core, op, value & low_bits(index), index >= T::BITS)
}

fn pdep<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let mut source = core.get::<T>(op, op.b)?;
    let mut mask = core.get::<T>(op, op.c)?;
    let mut result = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            result |= lowest;
        }
        source >>= 1;
        mask ^= lowest;
    }
    core.set_register::<T>(op.a, result);
    Ok(())
}

fn pext<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let source = core.get::<T>(op, op.b)?;
    let mut mask = core.get::<T>(op, op.c)?;
    let (mut result, mut at) = (0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & lowest != 0 {
            result |= 1 << at;
        }
        at += 1;
        mask ^= lowest;
    }
    core.set_register::<T>(op.a, result);
    Ok(())
}

/// CRC-32C, bit by bit, least significant first.
fn crc32<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let data = core.get::<T>(op, op.b)?;
    let mut crc = core.get::<u32>(op, op.a)? ^ data & 0xffff_ffff;
    let mut rest = data >> 32;
    for bit in 0..T::BITS {
        if bit == 32 {
            crc ^= std::mem::take(&mut rest);
        }
        crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
    }
    core.set_register::<u32>(op.a, crc);
    Ok(())
}
