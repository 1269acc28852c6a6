//! FIP, FDP and FOP: what x87 instructions leave for exception handlers (SDM volume 1, 8.1.8).
//!
//! The host's own would point to our code, and processors differ in when they store them: here every
//! instruction that computes stores FIP, one with a memory operand FDP, and one that raises an unmasked
//! exception FOP. Selectors are 0, as on processors that have deprecated them (CPUID 7.EBX bit 13).

use iced_x86::Mnemonic;

use super::form::Kind;
use crate::core::Core;
use crate::fpu::FpuState;
use crate::op::{Op, Operand};

/// What an instruction does with the pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pointers {
    /// Nothing: control instructions and MMX.
    Keep,
    /// They point to it.
    Update,
    /// Stores them in its memory operand.
    Store,
    /// Clears them, and stores them before if it has a memory operand.
    Clear,
    /// Loads them from its memory operand.
    Load,
}

impl Pointers {
    pub(super) fn after(kind: Kind, mnemonic: Mnemonic) -> Pointers {
        match mnemonic {
            _ if kind != Kind::X87 => Pointers::Keep,
            Mnemonic::Fnstenv => Pointers::Store,
            Mnemonic::Fnsave | Mnemonic::Fninit => Pointers::Clear,
            Mnemonic::Fldenv | Mnemonic::Frstor => Pointers::Load,
            _ => Pointers::Update,
        }
    }

    /// Brings the pointers up to date, in the registers or in the memory operand, after the instruction.
    pub(super) fn apply(self, core: &mut Core<'_>, op: &Op, memory: &mut [u8]) {
        match self {
            Pointers::Keep => {}
            Pointers::Update => {
                core.s.fpu.fip = core.s.rip;
                if op.a == Operand::Mem || op.b == Operand::Mem {
                    core.s.fpu.fdp = core.offset(&op.mem);
                }
                if core.s.fpu.exception_pending() {
                    core.s.fpu.fop = opcode(core, op);
                }
            }
            Pointers::Store => store(&core.s.fpu, memory),
            Pointers::Clear => {
                if !memory.is_empty() {
                    store(&core.s.fpu, memory);
                }
                (core.s.fpu.fip, core.s.fpu.fdp, core.s.fpu.fop) = (0, 0, 0);
            }
            Pointers::Load => load(&mut core.s.fpu, memory),
        }
    }
}

/// The low bits of the two opcode bytes, of which the first is D8 to DF.
fn opcode(core: &mut Core<'_>, op: &Op) -> u16 {
    let (bytes, len) = core.instruction_bytes(usize::from(op.len));
    let bytes = &bytes[..len];
    let at = bytes.iter().position(|byte| byte & 0xf8 == 0xd8);
    at.and_then(|at| bytes.get(at..at + 2)).map_or(0, |code| u16::from(code[0] & 7) << 8 | u16::from(code[1]))
}

/// Whether an environment is in the 16-bit format: 14 bytes, or 94 with the registers.
fn is_short(memory: &[u8]) -> bool {
    matches!(memory.len(), 14 | 94)
}

/// Fills in the pointers of an environment (SDM volume 1, figures 8-9 and 8-11).
fn store(fpu: &FpuState, memory: &mut [u8]) {
    if is_short(memory) {
        memory[6..8].copy_from_slice(&(fpu.fip as u16).to_le_bytes());
        memory[8..10].fill(0);
        memory[10..12].copy_from_slice(&(fpu.fdp as u16).to_le_bytes());
        memory[12..14].fill(0);
    } else {
        memory[12..16].copy_from_slice(&(fpu.fip as u32).to_le_bytes());
        memory[16..18].fill(0);
        memory[18..20].copy_from_slice(&fpu.fop.to_le_bytes());
        memory[20..24].copy_from_slice(&(fpu.fdp as u32).to_le_bytes());
        memory[24..26].fill(0);
    }
}

/// Takes the pointers out of an environment.
fn load(fpu: &mut FpuState, memory: &[u8]) {
    let half = |at: usize| u16::from_le_bytes([memory[at], memory[at + 1]]);
    let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 2)) << 16;
    (fpu.fip, fpu.fdp, fpu.fop) = if is_short(memory) {
        (u64::from(half(6)), u64::from(half(10)), 0)
    } else {
        (word(12), word(20), half(18) & 0x7ff)
    };
}
