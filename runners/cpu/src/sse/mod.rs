//! SSE to SSE4.2 on XMM registers, but for what [`crate::native`] does with the host's help.

pub(crate) mod arithmetic;
mod compare;
mod convert;
mod moves;
mod shuffle;

pub(crate) use arithmetic::quiet;
pub(crate) use moves::{byte_signs, ldmxcsr, stmxcsr};

use iced_x86::{EncodingKind, Instruction};

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::op::{Handler, Op, Operand};
use crate::state::{cr0, cr4};
use crate::tlb::within_page;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let mmx = (0..instruction.op_count()).any(|operand| instruction.op_register(operand).is_mm());
    if mmx || instruction.encoding() != EncodingKind::Legacy {
        return None;
    }
    moves::select(instruction)
        .or_else(|| arithmetic::select(instruction))
        .or_else(|| shuffle::select(instruction))
        .or_else(|| compare::select(instruction))
        .or_else(|| convert::select(instruction))
}

impl Core<'_> {
    /// Raises what SSE instructions raise while the guest has not enabled them.
    #[inline(always)]
    pub(crate) fn require_sse(&mut self) -> Result<(), Abort> {
        if self.s.cr0 & (cr0::EM | cr0::TS) == 0 && self.s.cr4 & cr4::OSFXSR != 0 {
            return Ok(());
        }
        if self.s.cr0 & cr0::EM != 0 || self.s.cr4 & cr4::OSFXSR == 0 {
            return self.raise(Exception::ud());
        }
        self.raise(Exception::plain(vector::NM))
    }

    /// A source operand of `BYTES` bytes in an XMM register or memory, the rest zero or the register's.
    /// In memory, 16 bytes must be aligned.
    #[inline(always)]
    fn wide_source<const BYTES: usize>(&mut self, op: &Op, operand: Operand) -> Result<u128, Abort> {
        match operand {
            Operand::Xmm(index) => Ok(self.s.fpu.xmm[usize::from(index & 15)]),
            _ => {
                let linear = self.linear(&op.mem, BYTES, false)?;
                match BYTES {
                    2 => self.read::<u16>(linear).map(u128::from),
                    4 => self.read::<u32>(linear).map(u128::from),
                    8 => self.read::<u64>(linear).map(u128::from),
                    _ => {
                        self.require_alignment(linear)?;
                        self.read_wide(linear)
                    }
                }
            }
        }
    }

    /// Reads a value of any size, those of vectors quickly.
    pub(crate) fn read_vector(&mut self, linear: u64, into: &mut [u8]) -> Result<(), Abort> {
        match into.len() {
            4 => into.copy_from_slice(&self.read::<u32>(linear)?.to_le_bytes()[..4]),
            8 => into.copy_from_slice(&self.read::<u64>(linear)?.to_le_bytes()),
            16 => into.copy_from_slice(&self.read_wide(linear)?.to_le_bytes()),
            32 => {
                into[..16].copy_from_slice(&self.read_wide(linear)?.to_le_bytes());
                into[16..].copy_from_slice(&self.read_wide(linear.wrapping_add(16))?.to_le_bytes());
            }
            _ => self.read_bytes(linear, into)?,
        }
        Ok(())
    }

    /// Writes a value of any size, those of vectors quickly: all of it, or nothing if the write faults.
    pub(crate) fn write_vector(&mut self, linear: u64, from: &[u8]) -> Result<(), Abort> {
        match *from {
            [a, b, c, d] => self.write::<u32>(linear, u64::from(u32::from_le_bytes([a, b, c, d]))),
            [a, b, c, d, e, f, g, h] => self.write::<u64>(linear, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
            _ => match from.as_chunks::<16>() {
                ([only], []) => self.write_wide(linear, u128::from_le_bytes(*only)),
                ([low, high], []) => self.write_ymm(linear, [u128::from_le_bytes(*low), u128::from_le_bytes(*high)]),
                _ => self.write_bytes(linear, from),
            },
        }
    }

    /// Writes 32 bytes: all of them, or nothing if the write faults.
    pub(crate) fn write_ymm(&mut self, linear: u64, [low, high]: [u128; 2]) -> Result<(), Abort> {
        if within_page(linear, 32) {
            self.write_wide(linear, low)?;
            return self.write_wide(linear.wrapping_add(16), high);
        }
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&low.to_le_bytes());
        bytes[16..].copy_from_slice(&high.to_le_bytes());
        self.write_bytes(linear, &bytes)
    }

    /// #GP(0) unless an address is a multiple of 16.
    #[inline(always)]
    pub(crate) fn require_alignment(&mut self, linear: u64) -> Result<(), Abort> {
        if linear & 15 == 0 { Ok(()) } else { self.raise(Exception::gp(0)) }
    }

    /// The XMM register that an operand names.
    #[inline(always)]
    fn xmm(&mut self, operand: Operand) -> &mut u128 {
        let index = if let Operand::Xmm(index) = operand { index } else { 0 };
        &mut self.s.fpu.xmm[usize::from(index & 15)]
    }

    /// Accumulates floating-point exception flags; an unmasked one is #XM, and the result is not stored.
    pub(crate) fn float_flags(&mut self, raised: u32) -> Result<(), Abort> {
        self.s.fpu.mxcsr |= raised & 0x3f;
        if raised & 0x3f & !(self.s.fpu.mxcsr >> 7) == 0 {
            return Ok(());
        }
        let exception = if self.s.cr4 & cr4::OSXMMEXCPT != 0 { Exception::plain(vector::XM) } else { Exception::ud() };
        self.raise(exception)
    }
}
