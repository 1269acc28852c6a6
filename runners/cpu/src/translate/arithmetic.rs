//! ADD and its like, comparisons, shifts by a constant.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic};

use super::emitter::Emitter;
use super::flags::{self, CLEARED_BY_LOGIC, SET_BY_LOGIC};
use super::memory::For;
use super::moves::{get, load, put};
use crate::flags::{ARITHMETIC, CF};
use crate::op::{Op, Operand, operand_size};

/// An instruction on rax, or on rax and rcx, of an operand size.
macro_rules! sized {
    ($emitter:expr, $size:expr, $instruction:ident) => {
        match $size {
            1 => dynasm!($emitter.asm; $instruction al),
            2 => dynasm!($emitter.asm; $instruction ax),
            4 => dynasm!($emitter.asm; $instruction eax),
            _ => dynasm!($emitter.asm; $instruction rax),
        }
    };
    ($emitter:expr, $size:expr, $instruction:ident, rcx) => {
        match $size {
            1 => dynasm!($emitter.asm; $instruction al, cl),
            2 => dynasm!($emitter.asm; $instruction ax, cx),
            4 => dynasm!($emitter.asm; $instruction eax, ecx),
            _ => dynasm!($emitter.asm; $instruction rax, rcx),
        }
    };
    ($emitter:expr, $size:expr, $instruction:ident, by $count:expr) => {
        match $size {
            1 => dynasm!($emitter.asm; $instruction al, $count),
            2 => dynasm!($emitter.asm; $instruction ax, $count),
            4 => dynasm!($emitter.asm; $instruction eax, $count),
            _ => dynasm!($emitter.asm; $instruction rax, $count),
        }
    };
}

pub(super) fn emit(emitter: &mut Emitter<'_>, instruction: &Instruction, op: &Op) -> Option<()> {
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Add | Mnemonic::Adc | Mnemonic::Sub | Mnemonic::Sbb => {
            operands(emitter, op, size, For::Write);
            match instruction.mnemonic() {
                Mnemonic::Add => sized!(emitter, size, add, rcx),
                Mnemonic::Sub => sized!(emitter, size, sub, rcx),
                Mnemonic::Adc => {
                    flags::load_carry(emitter);
                    sized!(emitter, size, adc, rcx);
                }
                _ => {
                    flags::load_carry(emitter);
                    sized!(emitter, size, sbb, rcx);
                }
            }
            put(emitter, op.a, size);
            flags::store(emitter, ARITHMETIC, 0);
        }
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => {
            operands(emitter, op, size, For::Write);
            match instruction.mnemonic() {
                Mnemonic::And => sized!(emitter, size, and, rcx),
                Mnemonic::Or => sized!(emitter, size, or, rcx),
                _ => sized!(emitter, size, xor, rcx),
            }
            put(emitter, op.a, size);
            flags::store(emitter, SET_BY_LOGIC, CLEARED_BY_LOGIC);
        }
        Mnemonic::Cmp => {
            operands(emitter, op, size, For::Read);
            sized!(emitter, size, cmp, rcx);
            flags::store(emitter, ARITHMETIC, 0);
        }
        Mnemonic::Test => {
            operands(emitter, op, size, For::Read);
            sized!(emitter, size, test, rcx);
            flags::store(emitter, SET_BY_LOGIC, CLEARED_BY_LOGIC);
        }
        Mnemonic::Inc => {
            operand(emitter, op, size);
            sized!(emitter, size, inc);
            put(emitter, op.a, size);
            flags::store(emitter, ARITHMETIC & !CF, 0);
        }
        Mnemonic::Dec => {
            operand(emitter, op, size);
            sized!(emitter, size, dec);
            put(emitter, op.a, size);
            flags::store(emitter, ARITHMETIC & !CF, 0);
        }
        Mnemonic::Neg => {
            operand(emitter, op, size);
            sized!(emitter, size, neg);
            put(emitter, op.a, size);
            flags::store(emitter, ARITHMETIC, 0);
        }
        Mnemonic::Not => {
            operand(emitter, op, size);
            sized!(emitter, size, not);
            put(emitter, op.a, size);
        }
        Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar => return shift(emitter, instruction, op, size),
        _ => return None,
    }
    Some(())
}

/// Both operands of an instruction in rax and rcx; rdi points to the first if that is memory.
fn operands(emitter: &mut Emitter<'_>, op: &Op, size: usize, purpose: For) {
    if op.a == Operand::Mem {
        emitter.find(&op.mem, size, purpose);
        load(emitter, size, 0);
        get(emitter, op, op.b, size, 1);
    } else {
        get(emitter, op, op.b, size, 1);
        get(emitter, op, op.a, size, 0);
    }
}

/// The only operand of an instruction, which replaces it, in rax.
fn operand(emitter: &mut Emitter<'_>, op: &Op, size: usize) {
    if op.a == Operand::Mem {
        emitter.find(&op.mem, size, For::Write);
        load(emitter, size, 0);
    } else {
        get(emitter, op, op.a, size, 0);
    }
}

/// A shift by a constant below the operand's width. AF, and OF of more than one bit, are as [`crate::shift`] has them.
fn shift(emitter: &mut Emitter<'_>, instruction: &Instruction, op: &Op, size: usize) -> Option<()> {
    let count = (op.b == Operand::Imm).then_some(op.imm as u8 & if size == 8 { 63 } else { 31 })?;
    if count == 0 || usize::from(count) >= 8 * size {
        return None;
    }
    operand(emitter, op, size);
    let count = count as i8;
    let top = 8 * size as i8 - 1;
    match instruction.mnemonic() {
        Mnemonic::Shl => sized!(emitter, size, shl, by count),
        Mnemonic::Shr => {
            dynasm!(emitter.asm; bt rax, top; setc r8b);
            sized!(emitter, size, shr, by count);
        }
        _ => sized!(emitter, size, sar, by count),
    }
    put(emitter, op.a, size);
    if !emitter.flags_are_seen() {
        return Some(());
    }
    dynasm!(emitter.asm; lahf; movzx eax, ah);
    match instruction.mnemonic() {
        // The carry differs from the sign.
        Mnemonic::Shl => dynasm!(emitter.asm
            ; mov ecx, eax
            ; shr ecx, 7
            ; xor ecx, eax
            ; and ecx, 1
            ; shl ecx, 11
            ; or eax, ecx
        ),
        // The sign that was.
        Mnemonic::Shr => dynasm!(emitter.asm
            ; movzx ecx, r8b
            ; shl ecx, 11
            ; or eax, ecx
        ),
        _ => {}
    }
    flags::merge(emitter, ARITHMETIC & !crate::flags::AF, crate::flags::AF);
    Some(())
}
