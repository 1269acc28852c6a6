//! The x87 instructions that control and save its state; what works on its stack is [`crate::native`]'s.
//!
//! Exceptions are #MF whatever CR0.NE says: there is no FERR# pin and no 8259 input 13 behind it.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::fpu::{FpuState, status};
use crate::op::{Handler, Op, Operand};
use crate::state::cr0;
use crate::state::gpr::RAX;

/// FXSAVE stores so many bytes; the rest of its 512 is the software's.
const FXSAVE_BYTES: usize = 416;
/// Without XMM8 to XMM15, which only 64-bit code has.
const FXSAVE_BYTES_LEGACY: usize = 288;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Fnclex => fnclex,
        Mnemonic::Wait => wait,
        Mnemonic::Fnstcw => |core, op| store_word(core, op, |fpu| fpu.fcw),
        Mnemonic::Fnstsw => |core, op| store_word(core, op, |fpu| fpu.fsw),
        Mnemonic::Fldcw => fldcw,
        Mnemonic::Fxsave => |core, op| fxsave(core, op, 0xffff_ffff),
        Mnemonic::Fxsave64 => |core, op| fxsave(core, op, u64::MAX),
        Mnemonic::Fxrstor => |core, op| fxrstor(core, op, 0xffff_ffff),
        Mnemonic::Fxrstor64 => |core, op| fxrstor(core, op, u64::MAX),
        _ => return None,
    })
}

impl Core<'_> {
    /// #NM while x87 is emulated or lazily switched.
    pub(crate) fn require_x87(&mut self) -> Result<(), Abort> {
        if self.s.cr0 & (cr0::EM | cr0::TS) != 0 { self.raise(Exception::plain(vector::NM)) } else { Ok(()) }
    }

    /// Delivers a pending unmasked x87 exception as #MF.
    pub(crate) fn check_x87_exceptions(&mut self) -> Result<(), Abort> {
        if self.s.fpu.exception_pending() { self.raise(Exception::plain(vector::MF)) } else { Ok(()) }
    }
}

fn fnclex(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    core.require_x87()?;
    core.s.fpu.fsw &= 0x7f00;
    Ok(())
}

fn wait(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    if core.s.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return core.raise(Exception::plain(vector::NM));
    }
    core.check_x87_exceptions()
}

fn store_word(core: &mut Core<'_>, op: &Op, word: fn(&FpuState) -> u16) -> Result<(), Abort> {
    core.require_x87()?;
    let value = u64::from(word(&core.s.fpu));
    if op.a == Operand::Mem {
        return core.set::<u16>(op, op.a, value);
    }
    core.set_register::<u16>(Operand::Gpr(RAX as u8), value);
    Ok(())
}

fn fldcw(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_x87()?;
    core.check_x87_exceptions()?;
    let fpu_control = core.get::<u16>(op, op.a)? as u16;
    let fpu = &mut core.s.fpu;
    fpu.fcw = fpu_control & 0x1f7f | 0x40;
    fpu.fsw = fpu.fsw & !status::PENDING | if fpu.exception_pending() { status::PENDING } else { 0 };
    Ok(())
}

/// Linear address of an image of `size` bytes whose alignment is checked.
pub(crate) fn image_address(
    core: &mut Core<'_>,
    op: &Op,
    size: usize,
    alignment: u64,
    write: bool,
) -> Result<u64, Abort> {
    let linear = core.linear(&op.mem, size, write)?;
    if linear & (alignment - 1) != 0 {
        return core.raise(Exception::gp(0));
    }
    Ok(linear)
}

fn fxsave(core: &mut Core<'_>, op: &Op, pointer_mask: u64) -> Result<(), Abort> {
    core.require_x87()?;
    let linear = image_address(core, op, 512, 16, true)?;
    let mut image = core.s.fpu.fxsave();
    for at in [8, 16] {
        let pointer = u64::from_le_bytes(image[at..at + 8].try_into().expect("8 bytes")) & pointer_mask;
        image[at..at + 8].copy_from_slice(&pointer.to_le_bytes());
    }
    let size = if core.bits == 64 { FXSAVE_BYTES } else { FXSAVE_BYTES_LEGACY };
    core.write_bytes(linear, &image[..size])
}

fn fxrstor(core: &mut Core<'_>, op: &Op, pointer_mask: u64) -> Result<(), Abort> {
    core.require_x87()?;
    let linear = image_address(core, op, 512, 16, false)?;
    let mut image = core.s.fpu.fxsave();
    let size = if core.bits == 64 { FXSAVE_BYTES } else { FXSAVE_BYTES_LEGACY };
    core.read_bytes(linear, &mut image[..size])?;
    if core.s.fpu.load_mxcsr(&image).is_err() {
        return core.raise(Exception::gp(0));
    }
    core.s.fpu.load_x87(&image);
    core.s.fpu.load_xmm(&image);
    core.s.fpu.fip &= pointer_mask;
    core.s.fpu.fdp &= pointer_mask;
    Ok(())
}
