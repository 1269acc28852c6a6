//! Near branches, and what tests a condition.

use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, ConditionCode, Instruction};

use super::emitter::{Emitter, Next};
use super::layout::RSP;
use super::memory::For;
use super::{flags, moves};
use crate::op::{Op, Operand, operand_size};

/// The number of a condition in opcodes, of an instruction that tests one and is in place.
pub(super) fn condition(instruction: &Instruction) -> Option<u8> {
    let tests = instruction.is_jcc_short_or_near() || is_setcc(instruction) || is_cmovcc(instruction);
    (tests && instruction.condition_code() != ConditionCode::None).then(|| instruction.condition_code() as u8 - 1)
}

fn is_setcc(instruction: &Instruction) -> bool {
    instruction.op_count() == 1 && operand_size(instruction, 0) == 1
}

fn is_cmovcc(instruction: &Instruction) -> bool {
    instruction.op_count() == 2
        && instruction.op0_register().is_gpr()
        && operand_size(instruction, 0) == operand_size(instruction, 1)
}

pub(super) fn emit(emitter: &mut Emitter<'_>, instruction: &Instruction, op: &Op, next: u64) -> Option<Next> {
    if let Some(condition) = condition(instruction) {
        return Some(on_condition(emitter, instruction, op, next, condition));
    }
    match instruction.code() {
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Some(Next::Known(op.imm)),
        Code::Call_rel32_64 => {
            push_constant(emitter, next);
            Some(Next::Known(op.imm))
        }
        Code::Jmp_rm64 => {
            target(emitter, op);
            Some(Next::Target)
        }
        Code::Call_rm64 => {
            target(emitter, op);
            push_constant(emitter, next);
            Some(Next::Target)
        }
        Code::Retnq | Code::Retnq_imm16 => {
            let released = 8 + op.imm as i32;
            dynasm!(emitter.asm; mov rdi, [BYTE rbx + RSP]);
            emitter.find_linear(8, For::Read);
            dynasm!(emitter.asm; mov rax, [rdi]);
            check_canonical(emitter);
            dynasm!(emitter.asm; add QWORD [BYTE rbx + RSP], released);
            Some(Next::Target)
        }
        _ => None,
    }
}

fn on_condition(emitter: &mut Emitter<'_>, instruction: &Instruction, op: &Op, next: u64, condition: u8) -> Next {
    if !emitter.has_condition() {
        flags::evaluate(emitter, condition);
    }
    if instruction.is_jcc_short_or_near() {
        return Next::Either(next, op.imm);
    }
    if is_setcc(instruction) {
        if op.a == Operand::Mem {
            emitter.find(&op.mem, 1, For::Write);
        }
        dynasm!(emitter.asm; mov eax, r8d);
        moves::put(emitter, op.a, 1);
        return Next::Following;
    }
    let size = operand_size(instruction, 0);
    moves::get(emitter, op, op.b, size, 1);
    moves::get(emitter, op, op.a, size, 0);
    dynasm!(emitter.asm
        ; test r8b, r8b
        ; cmovne rax, rcx
    );
    moves::put(emitter, op.a, size);
    Next::Following
}

/// The target of an indirect branch in rax.
fn target(emitter: &mut Emitter<'_>, op: &Op) {
    moves::get(emitter, op, op.a, 8, 0);
    check_canonical(emitter);
}

/// Leaves an address in rax that may not be canonical (one that is so with 5-level paging only among them) to the handler.
fn check_canonical(emitter: &mut Emitter<'_>) {
    let slow = emitter.slow();
    dynasm!(emitter.asm
        ; mov rcx, rax
        ; sar rcx, 47
        ; inc rcx
        ; cmp rcx, 1
        ; ja =>slow
    );
}

/// Pushes an address that is known; rax stays.
fn push_constant(emitter: &mut Emitter<'_>, value: u64) {
    dynasm!(emitter.asm
        ; mov rdi, [BYTE rbx + RSP]
        ; sub rdi, 8
    );
    emitter.find_linear(8, For::Write);
    emitter.immediate(1, value);
    dynasm!(emitter.asm
        ; mov [rdi], rcx
        ; sub QWORD [BYTE rbx + RSP], 8
    );
}
