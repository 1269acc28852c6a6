//! AVX and AVX2 as far as more than computing is in them (moves, masked accesses, gathers, clearing of
//! upper halves), and the few operations that C libraries' string functions consist of. The rest is
//! [`crate::native`]'s.

mod gather;
mod lanes;
mod masked;
mod moves;

pub(crate) use masked::store_bytes;

use iced_x86::{EncodingKind, Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::flags;
use crate::fpu::{XCR0_AVX, XCR0_SSE};
use crate::op::{Handler, Op, Operand};
use crate::state::{cr0, cr4};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    if instruction.encoding() != EncodingKind::VEX {
        return None;
    }
    match instruction.mnemonic() {
        Mnemonic::Vzeroupper => Some(zero_upper),
        Mnemonic::Vzeroall => Some(zero_all),
        _ => moves::select(instruction)
            .or_else(|| lanes::select(instruction))
            .or_else(|| masked::select(instruction))
            .or_else(|| gather::select(instruction)),
    }
}

impl Core<'_> {
    /// Raises what VEX-encoded vector instructions raise while the guest has not enabled them (SDM
    /// volume 2, 2.8).
    #[inline(always)]
    pub(crate) fn require_avx(&mut self) -> Result<(), Abort> {
        const STATE: u64 = XCR0_SSE | XCR0_AVX;
        let enabled = self.s.cr4 & cr4::OSXSAVE != 0 && self.s.xcr0 & STATE == STATE;
        if !enabled || !self.s.protected() || self.s.rflags & flags::VM != 0 {
            return self.raise(Exception::ud());
        }
        if self.s.cr0 & cr0::TS != 0 { self.raise(Exception::plain(vector::NM)) } else { Ok(()) }
    }

    /// Both halves of a vector operand.
    #[inline(always)]
    fn ymm(&self, operand: Operand) -> [u128; 2] {
        let index = register(operand);
        [self.s.fpu.xmm[index], self.s.fpu.ymm_high[index]]
    }

    /// Stores both halves of a vector operand.
    #[inline(always)]
    fn set_ymm(&mut self, operand: Operand, value: [u128; 2]) {
        let index = register(operand);
        [self.s.fpu.xmm[index], self.s.fpu.ymm_high[index]] = value;
    }
}

fn register(operand: Operand) -> usize {
    match operand {
        Operand::Xmm(index) | Operand::Ymm(index) => usize::from(index & 15),
        _ => 0,
    }
}

/// The low 64 bits of element `index` of `bytes` bytes.
fn element(vector: [u128; 2], index: usize, bytes: usize) -> u64 {
    let at = index * bytes;
    (vector[at / 16] >> (at % 16 * 8)) as u64 & u64::MAX >> (64 - bytes * 8)
}

/// Replaces element `index` of `bytes` bytes.
fn set_element(vector: &mut [u128; 2], index: usize, bytes: usize, value: u64) {
    let at = index * bytes;
    let mask = u128::from(u64::MAX >> (64 - bytes * 8)) << (at % 16 * 8);
    let half = &mut vector[at / 16];
    *half = *half & !mask | u128::from(value) << (at % 16 * 8) & mask;
}

/// Without 64-bit code there are eight registers, and the others keep what they have.
fn registers(core: &Core<'_>) -> usize {
    if core.bits == 64 { 16 } else { 8 }
}

fn zero_upper(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    core.require_avx()?;
    let count = registers(core);
    core.s.fpu.ymm_high[..count].fill(0);
    Ok(())
}

fn zero_all(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    zero_upper(core, op)?;
    let count = registers(core);
    core.s.fpu.xmm[..count].fill(0);
    Ok(())
}
