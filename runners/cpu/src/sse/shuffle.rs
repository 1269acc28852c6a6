//! Shuffles, blends, insertions and shifts that an immediate controls.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::core::{Abort, Core};
use crate::op::{Handler, Op, Operand};

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Pshufd => |core, op| combine(core, op, |_, b, imm| pick(b, b, 32, imm)),
        M::Pshuflw => |core, op| combine(core, op, |_, b, imm| b >> 64 << 64 | pick_words(b, imm)),
        M::Pshufhw => |core, op| combine(core, op, |_, b, imm| b << 64 >> 64 | pick_words(b >> 64, imm) << 64),
        M::Shufps => |core, op| combine(core, op, |a, b, imm| pick(a, b, 32, imm)),
        M::Shufpd => |core, op| combine(core, op, shufpd),
        M::Palignr => |core, op| combine(core, op, palignr),
        M::Blendps => |core, op| combine(core, op, |a, b, imm| blend(a, b, 32, imm)),
        M::Blendpd => |core, op| combine(core, op, |a, b, imm| blend(a, b, 64, imm)),
        M::Pblendw => |core, op| combine(core, op, |a, b, imm| blend(a, b, 16, imm)),
        M::Pblendvb => |core, op| blend_by_sign(core, op, 8),
        M::Blendvps => |core, op| blend_by_sign(core, op, 32),
        M::Blendvpd => |core, op| blend_by_sign(core, op, 64),
        M::Pslldq => |core, op| shift(core, op, |a, imm| a.checked_shl(imm * 8).unwrap_or(0)),
        M::Psrldq => |core, op| shift(core, op, |a, imm| a.checked_shr(imm * 8).unwrap_or(0)),
        _ if instruction.op_count() > 1 && instruction.op_kind(1) == OpKind::Immediate8 => {
            return element_shift(instruction);
        }
        M::Insertps => insertps,
        M::Extractps => |core, op| extract(core, op, 32),
        M::Pinsrb => |core, op| insert(core, op, 8),
        M::Pinsrw => |core, op| insert(core, op, 16),
        M::Pinsrd => |core, op| insert(core, op, 32),
        M::Pinsrq => |core, op| insert(core, op, 64),
        M::Pextrb => |core, op| extract(core, op, 8),
        M::Pextrw => |core, op| extract(core, op, 16),
        M::Pextrd => |core, op| extract(core, op, 32),
        M::Pextrq => |core, op| extract(core, op, 64),
        _ => return None,
    })
}

/// Shifts of elements by an immediate.
fn element_shift(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.code() {
        Code::Psllw_xmm_imm8 => |core, op| shift(core, op, |a, imm| elements(a, 16, |e| (imm < 16).then(|| e << imm))),
        Code::Pslld_xmm_imm8 => |core, op| shift(core, op, |a, imm| elements(a, 32, |e| (imm < 32).then(|| e << imm))),
        Code::Psllq_xmm_imm8 => |core, op| shift(core, op, |a, imm| elements(a, 64, |e| (imm < 64).then(|| e << imm))),
        Code::Psrlw_xmm_imm8 => |core, op| shift(core, op, |a, imm| elements(a, 16, |e| (imm < 16).then(|| e >> imm))),
        Code::Psrld_xmm_imm8 => |core, op| shift(core, op, |a, imm| elements(a, 32, |e| (imm < 32).then(|| e >> imm))),
        Code::Psrlq_xmm_imm8 => |core, op| shift(core, op, |a, imm| elements(a, 64, |e| (imm < 64).then(|| e >> imm))),
        Code::Psraw_xmm_imm8 => {
            |core, op| shift(core, op, |a, imm| elements(a, 16, |e| Some((e as u16 as i16 >> imm.min(15)) as u64)))
        }
        Code::Psrad_xmm_imm8 => {
            |core, op| shift(core, op, |a, imm| elements(a, 32, |e| Some((e as u32 as i32 >> imm.min(31)) as u64)))
        }
        _ => return None,
    })
}

/// Maps every element of `bits` bits; `None` is zero.
fn elements(value: u128, bits: u32, map: impl Fn(u64) -> Option<u64>) -> u128 {
    let mask = u64::MAX >> (64 - bits);
    (0..128 / bits).fold(0, |result, index| {
        let element = map((value >> (index * bits)) as u64 & mask).unwrap_or(0) & mask;
        result | u128::from(element) << (index * bits)
    })
}

fn combine(core: &mut Core<'_>, op: &Op, combine: fn(u128, u128, u32) -> u128) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<16>(op, op.b)?;
    let imm = op.imm as u32 & 0xff;
    let a = core.xmm(op.a);
    *a = combine(*a, b, imm);
    Ok(())
}

fn shift(core: &mut Core<'_>, op: &Op, shift: impl Fn(u128, u32) -> u128) -> Result<(), Abort> {
    core.require_sse()?;
    let imm = op.imm as u32 & 0xff;
    let a = core.xmm(op.a);
    *a = shift(*a, imm);
    Ok(())
}

/// Four elements by two bits of `imm` each: the first two out of `a`, the others out of `b`.
fn pick(a: u128, b: u128, bits: u32, imm: u32) -> u128 {
    let mask = u128::MAX >> (128 - bits);
    (0..4).fold(0, |result, index| {
        let source = if index < 2 { a } else { b };
        result | (source >> ((imm >> (index * 2) & 3) * bits) & mask) << (index * bits)
    })
}

fn pick_words(value: u128, imm: u32) -> u128 {
    pick(value, value, 16, imm)
}

fn shufpd(a: u128, b: u128, imm: u32) -> u128 {
    let half = |value: u128, high: u32| value >> (high * 64) & u128::from(u64::MAX);
    half(a, imm & 1) | half(b, imm >> 1 & 1) << 64
}

fn palignr(a: u128, b: u128, imm: u32) -> u128 {
    match imm {
        0 => b,
        1..16 => b >> (imm * 8) | a << (128 - imm * 8),
        16..32 => a >> ((imm - 16) * 8),
        _ => 0,
    }
}

/// Elements of `b` where the bit of `imm` is set, else of `a`.
fn blend(a: u128, b: u128, bits: u32, imm: u32) -> u128 {
    let element = u128::MAX >> (128 - bits);
    (0..128 / bits).filter(|index| imm >> index & 1 != 0).fold(a, |result, index| {
        let mask = element << (index * bits);
        result & !mask | b & mask
    })
}

/// Blends by the sign bits of the elements of XMM0.
fn blend_by_sign(core: &mut Core<'_>, op: &Op, bits: u32) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<16>(op, op.b)?;
    let selector = core.s.fpu.xmm[0];
    let imm = (0..128 / bits).fold(0, |imm, index| imm | ((selector >> (index * bits + bits - 1)) as u32 & 1) << index);
    let a = core.xmm(op.a);
    *a = blend(*a, b, bits, imm);
    Ok(())
}

fn insert(core: &mut Core<'_>, op: &Op, bits: u32) -> Result<(), Abort> {
    core.require_sse()?;
    let value = match bits {
        8 => core.get::<u8>(op, op.b)?,
        16 => core.get::<u16>(op, op.b)?,
        32 => core.get::<u32>(op, op.b)?,
        _ => core.get::<u64>(op, op.b)?,
    };
    let at = op.imm as u32 % (128 / bits) * bits;
    let mask = u128::MAX >> (128 - bits) << at;
    let a = core.xmm(op.a);
    *a = *a & !mask | u128::from(value) << at;
    Ok(())
}

fn extract(core: &mut Core<'_>, op: &Op, bits: u32) -> Result<(), Abort> {
    core.require_sse()?;
    let at = op.imm as u32 % (128 / bits) * bits;
    let value = (*core.xmm(op.b) >> at) as u64 & u64::MAX >> (64 - bits);
    match (op.a, bits) {
        (Operand::Mem, 8) => core.set::<u8>(op, op.a, value),
        (Operand::Mem, 16) => core.set::<u16>(op, op.a, value),
        (Operand::Mem, 32) => core.set::<u32>(op, op.a, value),
        _ => core.set::<u64>(op, op.a, value),
    }
}

fn insertps(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let imm = op.imm as u32;
    let source = core.wide_source::<4>(op, op.b)?;
    let from = if op.b == Operand::Mem { 0 } else { imm >> 6 & 3 };
    let element = source >> (from * 32) & 0xffff_ffff;
    let at = (imm >> 4 & 3) * 32;
    let a = core.xmm(op.a);
    let inserted = *a & !(0xffff_ffff << at) | element << at;
    *a = blend(inserted, 0, 32, imm & 0xf);
    Ok(())
}
