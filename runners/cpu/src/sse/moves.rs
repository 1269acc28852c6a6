//! Moves between XMM registers, memory and general registers; MXCSR.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::fpu::MXCSR_MASK;
use crate::op::{Handler, Op, Operand};

const LOW: u128 = u64::MAX as u128;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => move_wide::<true>,
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => move_wide::<false>,
        M::Movd => match instruction.code() {
            Code::Movd_xmm_rm32 => |core, op| from_integer(core, op, false),
            Code::Movd_rm32_xmm => |core, op| to_integer(core, op, false),
            _ => return None,
        },
        M::Movq => match instruction.code() {
            Code::Movq_xmm_rm64 => |core, op| from_integer(core, op, true),
            Code::Movq_rm64_xmm => |core, op| to_integer(core, op, true),
            Code::Movq_xmm_xmmm64 => movq_load,
            Code::Movq_xmmm64_xmm => movq_store,
            _ => return None,
        },
        M::Movss if !instruction.is_string_instruction() => move_scalar::<4>,
        M::Movsd if !instruction.is_string_instruction() => move_scalar::<8>,
        M::Movlps | M::Movlpd => move_low,
        M::Movhps | M::Movhpd => move_high,
        M::Movlhps => |core, op| combine(core, op, |a, b| a & LOW | b << 64),
        M::Movhlps => |core, op| combine(core, op, |a, b| a & !LOW | b >> 64),
        M::Movmskps => |core, op| mask(core, op, 32),
        M::Movmskpd => |core, op| mask(core, op, 64),
        M::Pmovmskb => |core, op| {
            core.require_sse()?;
            let mask = byte_signs(*core.xmm(op.b));
            core.set_register::<u64>(op.a, mask);
            Ok(())
        },
        M::Maskmovdqu => |core, op| {
            core.require_sse()?;
            crate::avx::store_bytes(core, op)
        },
        M::Ldmxcsr => ldmxcsr,
        M::Stmxcsr => stmxcsr,
        _ => return None,
    })
}

#[inline(always)]
fn move_wide<const ALIGNED: bool>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let memory = op.a == Operand::Mem || op.b == Operand::Mem;
    if !memory {
        let value = *core.xmm(op.b);
        *core.xmm(op.a) = value;
        return Ok(());
    }
    let linear = core.linear(&op.mem, 16, op.a == Operand::Mem)?;
    if ALIGNED {
        core.require_alignment(linear)?;
    }
    if op.a == Operand::Mem {
        let value = *core.xmm(op.b);
        return core.write_wide(linear, value);
    }
    *core.xmm(op.a) = core.read_wide(linear)?;
    Ok(())
}

fn from_integer(core: &mut Core<'_>, op: &Op, wide: bool) -> Result<(), Abort> {
    core.require_sse()?;
    let value = if wide { core.get::<u64>(op, op.b)? } else { core.get::<u32>(op, op.b)? };
    *core.xmm(op.a) = u128::from(value);
    Ok(())
}

fn to_integer(core: &mut Core<'_>, op: &Op, wide: bool) -> Result<(), Abort> {
    core.require_sse()?;
    let value = *core.xmm(op.b) as u64;
    if wide { core.set::<u64>(op, op.a, value) } else { core.set::<u32>(op, op.a, value) }
}

fn movq_load(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    *core.xmm(op.a) = core.wide_source::<8>(op, op.b)? & LOW;
    Ok(())
}

fn movq_store(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let value = *core.xmm(op.b) & LOW;
    if op.a == Operand::Mem {
        return core.set::<u64>(op, op.a, value as u64);
    }
    *core.xmm(op.a) = value;
    Ok(())
}

/// MOVSS and MOVSD: between registers only the low part moves, from memory the rest is cleared.
fn move_scalar<const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let part = u128::MAX >> (128 - BYTES * 8);
    if op.a == Operand::Mem {
        let value = *core.xmm(op.b) as u64;
        return if BYTES == 4 { core.set::<u32>(op, op.a, value) } else { core.set::<u64>(op, op.a, value) };
    }
    let value = core.wide_source::<BYTES>(op, op.b)? & part;
    let keep = if op.b == Operand::Mem { 0 } else { !part };
    let a = core.xmm(op.a);
    *a = *a & keep | value;
    Ok(())
}

fn move_low(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    if op.a == Operand::Mem {
        let value = *core.xmm(op.b) as u64;
        return core.set::<u64>(op, op.a, value);
    }
    let value = core.wide_source::<8>(op, op.b)? & LOW;
    let a = core.xmm(op.a);
    *a = *a & !LOW | value;
    Ok(())
}

fn move_high(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    if op.a == Operand::Mem {
        let value = (*core.xmm(op.b) >> 64) as u64;
        return core.set::<u64>(op, op.a, value);
    }
    let value = core.wide_source::<8>(op, op.b)? << 64;
    let a = core.xmm(op.a);
    *a = *a & LOW | value;
    Ok(())
}

fn combine(core: &mut Core<'_>, op: &Op, combine: fn(u128, u128) -> u128) -> Result<(), Abort> {
    core.require_sse()?;
    let b = *core.xmm(op.b);
    let a = core.xmm(op.a);
    *a = combine(*a, b);
    Ok(())
}

/// The sign bits of the 16 bytes.
pub(crate) fn byte_signs(value: u128) -> u64 {
    // The multiplication moves the lowest bits of eight bytes side by side into the highest byte.
    let half = |half: u64| (half >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    half(value as u64) | half((value >> 64) as u64) << 8
}

/// The sign bits of the elements of `bits` bits.
fn mask(core: &mut Core<'_>, op: &Op, bits: usize) -> Result<(), Abort> {
    core.require_sse()?;
    let value = *core.xmm(op.b);
    let mask = (0..128 / bits).fold(0, |mask, index| mask | (value >> (index * bits + bits - 1) & 1) << index);
    core.set_register::<u64>(op.a, mask as u64);
    Ok(())
}

pub(crate) fn ldmxcsr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let value = core.get::<u32>(op, op.a)? as u32;
    if value & !MXCSR_MASK != 0 {
        return core.raise(Exception::gp(0));
    }
    core.s.fpu.mxcsr = value;
    Ok(())
}

pub(crate) fn stmxcsr(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let value = u64::from(core.s.fpu.mxcsr);
    core.set::<u32>(op, op.a, value)
}
