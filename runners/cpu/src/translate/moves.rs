//! MOV and its extensions, LEA, the stack.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, Instruction, Mnemonic};

use super::emitter::Emitter;
use super::layout::{self, RAX, RBP, RDX, RSP};
use super::memory::For;
use crate::op::{Op, Operand, operand_size};

pub(super) fn emit(emitter: &mut Emitter<'_>, instruction: &Instruction, op: &Op) -> Option<()> {
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Nop | Mnemonic::Endbr64 => {}
        Mnemonic::Mov if is_general(op.a) && is_general(op.b) => {
            if op.a == Operand::Mem {
                emitter.find(&op.mem, size, For::Write);
            }
            get(emitter, op, op.b, size, 0);
            put(emitter, op.a, size);
        }
        Mnemonic::Movzx => {
            get(emitter, op, op.b, operand_size(instruction, 1), 0);
            put(emitter, op.a, size);
        }
        Mnemonic::Movsx | Mnemonic::Movsxd => {
            get(emitter, op, op.b, operand_size(instruction, 1), 0);
            match operand_size(instruction, 1) {
                1 => dynasm!(emitter.asm; movsx rax, al),
                2 => dynasm!(emitter.asm; movsx rax, ax),
                _ => dynasm!(emitter.asm; movsxd rax, eax),
            }
            put(emitter, op.a, size);
        }
        Mnemonic::Lea => {
            emitter.offset(&op.mem);
            dynasm!(emitter.asm; mov rax, rdi);
            put(emitter, op.a, size);
        }
        Mnemonic::Push
            if matches!(
                instruction.code(),
                Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Push_rm64
            ) =>
        {
            get(emitter, op, op.a, 8, 0);
            dynasm!(emitter.asm; mov rdi, [BYTE rbx + RSP]; sub rdi, 8);
            emitter.find_linear(8, For::Write);
            dynasm!(emitter.asm; mov [rdi], rax; sub QWORD [BYTE rbx + RSP], 8);
        }
        Mnemonic::Pop if instruction.code() == Code::Pop_r64 => {
            dynasm!(emitter.asm; mov rdi, [BYTE rbx + RSP]);
            emitter.find_linear(8, For::Read);
            // POP RSP ends with what it has read.
            dynasm!(emitter.asm; mov rax, [rdi]; add QWORD [BYTE rbx + RSP], 8);
            put(emitter, op.a, 8);
        }
        Mnemonic::Leave if instruction.code() == Code::Leaveq => {
            dynasm!(emitter.asm; mov rdi, [BYTE rbx + RBP]; mov rcx, rdi);
            emitter.find_linear(8, For::Read);
            dynasm!(emitter.asm
                ; mov rax, [rdi]
                ; add rcx, 8
                ; mov [BYTE rbx + RSP], rcx
                ; mov [BYTE rbx + RBP], rax
            );
        }
        Mnemonic::Cdqe => {
            dynasm!(emitter.asm; movsxd rax, DWORD [BYTE rbx + RAX]; mov [BYTE rbx + RAX], rax)
        }
        Mnemonic::Cqo => {
            dynasm!(emitter.asm; mov rax, [BYTE rbx + RAX]; sar rax, 63; mov [BYTE rbx + RDX], rax);
        }
        Mnemonic::Cdq => {
            dynasm!(emitter.asm; mov eax, [BYTE rbx + RAX]; sar eax, 31; mov [BYTE rbx + RDX], rax);
        }
        _ => return None,
    }
    Some(())
}

fn is_general(operand: Operand) -> bool {
    matches!(operand, Operand::Gpr(_) | Operand::High(_) | Operand::Imm | Operand::Mem)
}

/// An operand, zero extended, in rax (0) or rcx (1). Memory is looked for first, and rdi is spent on it.
pub(super) fn get(emitter: &mut Emitter<'_>, op: &Op, operand: Operand, size: usize, to: u8) {
    match layout::register(operand) {
        Some(from) => match size {
            1 => dynasm!(emitter.asm; movzx Rd(to), BYTE [BYTE rbx + from]),
            2 => dynasm!(emitter.asm; movzx Rd(to), WORD [BYTE rbx + from]),
            4 => dynasm!(emitter.asm; mov Rd(to), [BYTE rbx + from]),
            _ => dynasm!(emitter.asm; mov Rq(to), [BYTE rbx + from]),
        },
        None if operand == Operand::Mem => {
            emitter.find(&op.mem, size, For::Read);
            load(emitter, size, to);
        }
        None => emitter.immediate(to, op.imm & u64::MAX >> (64 - 8 * size)),
    }
}

/// What rdi points to, zero extended, in rax (0) or rcx (1).
pub(super) fn load(emitter: &mut Emitter<'_>, size: usize, to: u8) {
    match size {
        1 => dynasm!(emitter.asm; movzx Rd(to), BYTE [rdi]),
        2 => dynasm!(emitter.asm; movzx Rd(to), WORD [rdi]),
        4 => dynasm!(emitter.asm; mov Rd(to), [rdi]),
        _ => dynasm!(emitter.asm; mov Rq(to), [rdi]),
    }
}

/// Stores rax into an operand; memory is where rdi points to. The flags of the host stay.
pub(super) fn put(emitter: &mut Emitter<'_>, operand: Operand, size: usize) {
    match layout::register(operand) {
        Some(to) => match size {
            1 => dynasm!(emitter.asm; mov [BYTE rbx + to], al),
            2 => dynasm!(emitter.asm; mov [BYTE rbx + to], ax),
            4 => dynasm!(emitter.asm; mov eax, eax; mov [BYTE rbx + to], rax),
            _ => dynasm!(emitter.asm; mov [BYTE rbx + to], rax),
        },
        None => match size {
            1 => dynasm!(emitter.asm; mov [rdi], al),
            2 => dynasm!(emitter.asm; mov [rdi], ax),
            4 => dynasm!(emitter.asm; mov [rdi], eax),
            _ => dynasm!(emitter.asm; mov [rdi], rax),
        },
    }
}
