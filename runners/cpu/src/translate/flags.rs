//! The guest's flags: from what the host's own have become, and back.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Mnemonic};

use super::emitter::Emitter;
use super::layout::RFLAGS;
use crate::flags::{AF, ARITHMETIC, CF, OF, PF, SF, ZF};

/// What an instruction in place that has no memory operand does about flags.
pub(super) enum Effect {
    /// It neither reads nor writes any.
    None,
    /// It writes all of them, whatever they were.
    Overwrites,
    /// Anything else; or it may be one that is not in place.
    Other,
}

/// See [`Effect`].
pub(super) fn effect(instruction: &Instruction) -> Effect {
    match instruction.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd | Mnemonic::Nop
            if !instruction.op0_register().is_segment_register() && instruction.op0_register().is_gpr() =>
        {
            Effect::None
        }
        Mnemonic::Add
        | Mnemonic::Sub
        | Mnemonic::And
        | Mnemonic::Or
        | Mnemonic::Xor
        | Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::Neg => Effect::Overwrites,
        _ => Effect::Other,
    }
}

/// Whether an instruction in place leaves a condition (by its number in opcodes) in the host's flags as the guest has it.
pub(super) fn keeps(instruction: &Instruction, condition: u8) -> bool {
    let reads = match condition >> 1 {
        0 => OF,
        1 => CF,
        2 => ZF,
        3 => CF | ZF,
        4 => SF,
        5 => PF,
        6 => SF | OF,
        _ => SF | OF | ZF,
    };
    let right = match instruction.mnemonic() {
        Mnemonic::Add
        | Mnemonic::Adc
        | Mnemonic::Sub
        | Mnemonic::Sbb
        | Mnemonic::And
        | Mnemonic::Or
        | Mnemonic::Xor
        | Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::Neg => ARITHMETIC,
        Mnemonic::Inc | Mnemonic::Dec => ARITHMETIC & !CF,
        _ => 0,
    };
    reads & !right == 0
}

/// Puts the flags of `mask`, as the host has them, into the guest's; the others of the guest stay, and those of `clear`
/// become 0. Before, the condition that the next instruction wants goes to r8b. Neither rax nor rcx survives.
pub(super) fn store(emitter: &mut Emitter<'_>, mask: u64, clear: u64) {
    if let Some(condition) = emitter.wanted_condition() {
        dynasm!(emitter.asm; .bytes [0x41, 0x0f, 0x90 + condition, 0xc0]);
    }
    if !emitter.flags_are_seen() {
        return;
    }
    dynasm!(emitter.asm; lahf);
    if mask & OF != 0 {
        dynasm!(emitter.asm
            ; seto al
            ; movzx ecx, ah
            ; movzx eax, al
            ; shl eax, 11
            ; or eax, ecx
        );
    } else {
        dynasm!(emitter.asm; movzx eax, ah);
    }
    merge(emitter, mask, clear);
}

/// Replaces those of the guest's flags that are in `mask` by what eax has of them, and those of `clear` by 0.
pub(super) fn merge(emitter: &mut Emitter<'_>, mask: u64, clear: u64) {
    let (mask, keep) = (mask as i32, !(mask | clear) as i32);
    dynasm!(emitter.asm
        ; and eax, mask
        ; mov rcx, [rbx + RFLAGS]
        ; and rcx, keep
        ; or rcx, rax
        ; mov [rbx + RFLAGS], rcx
    );
}

/// The result of a condition on the guest's flags in r8b. Neither rax nor rcx survives.
pub(super) fn evaluate(emitter: &mut Emitter<'_>, condition: u8) {
    dynasm!(emitter.asm
        ; mov ecx, [rbx + RFLAGS]
        ; mov eax, ecx
        ; shl eax, 8
        ; shr ecx, 11
        ; and ecx, 1
        // OF, if it was 1.
        ; add cl, 0x7f
        // The others.
        ; sahf
        ; .bytes [0x41, 0x0f, 0x90 + condition, 0xc0]
    );
}

/// The guest's CF in the host's.
pub(super) fn load_carry(emitter: &mut Emitter<'_>) {
    dynasm!(emitter.asm; bt DWORD [rbx + RFLAGS], 0);
}

/// What AND and its like set, and what they clear: AF, too, which the architecture leaves undefined.
pub(super) const SET_BY_LOGIC: u64 = SF | ZF | PF;
pub(super) const CLEARED_BY_LOGIC: u64 = CF | OF | AF;
