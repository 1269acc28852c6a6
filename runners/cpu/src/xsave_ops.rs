//! The XSAVE family: XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR and XRSTORS (SDM volume 1, chapter 13).
//!
//! CPUID 0xD may offer all of them (0xD.1 EAX bits 0 to 3); the sizes that it has to tell are
//! [`crate::fpu::standard_size`] and [`crate::fpu::compacted_size`]. There is no supervisor component:
//! IA32_XSS is 0. XSAVEOPT and its like know which components are in their initial state, and do not
//! know which are unmodified.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Intercept;
use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::fpu::{
    COMPACTED, EXTENDED, Layout, MXCSR_RESET, XCR0_AVX, XCR0_SSE, XCR0_X87, XSAVE_AVX, XSAVE_HEADER, XSAVE_SIZE,
};
use crate::fpu_ops::image_address;
use crate::op::{Handler, Op};
use crate::state::{cr0, cr4};

/// The variants of an instruction that saves.
#[derive(Clone, Copy)]
struct Saving {
    compacted: bool,
    /// Leaves out components in their initial state.
    optimized: bool,
    supervisor: bool,
}

const XSAVE: Saving = Saving { compacted: false, optimized: false, supervisor: false };
const XSAVEOPT: Saving = Saving { compacted: false, optimized: true, supervisor: false };
const XSAVEC: Saving = Saving { compacted: true, optimized: true, supervisor: false };
const XSAVES: Saving = Saving { compacted: true, optimized: true, supervisor: true };

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Xsave => |core, op| save(core, op, XSAVE, SHORT_POINTERS),
        M::Xsave64 => |core, op| save(core, op, XSAVE, u64::MAX),
        M::Xsaveopt => |core, op| save(core, op, XSAVEOPT, SHORT_POINTERS),
        M::Xsaveopt64 => |core, op| save(core, op, XSAVEOPT, u64::MAX),
        M::Xsavec => |core, op| save(core, op, XSAVEC, SHORT_POINTERS),
        M::Xsavec64 => |core, op| save(core, op, XSAVEC, u64::MAX),
        M::Xsaves => |core, op| save(core, op, XSAVES, SHORT_POINTERS),
        M::Xsaves64 => |core, op| save(core, op, XSAVES, u64::MAX),
        M::Xrstor => |core, op| restore(core, op, false, SHORT_POINTERS),
        M::Xrstor64 => |core, op| restore(core, op, false, u64::MAX),
        M::Xrstors => |core, op| restore(core, op, true, SHORT_POINTERS),
        M::Xrstors64 => |core, op| restore(core, op, true, u64::MAX),
        _ => return None,
    })
}

/// Without REX.W, FIP and FDP are 32 bits and a selector, which is 0 here.
const SHORT_POINTERS: u64 = 0xffff_ffff;
/// Places in the image.
const POINTERS: [usize; 2] = [8, 16];
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

/// The components that an instruction is about (RFBM): EDX:EAX and XCR0, or IA32_XSS.
fn requested(core: &mut Core<'_>, op: &Op, supervisor: bool) -> Result<u64, Abort> {
    if core.s.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(Exception::ud());
    }
    if supervisor {
        core.intercept(op, Intercept::Xsaves)?;
        core.require_cpl0()?;
    }
    if core.s.cr0 & cr0::TS != 0 {
        return core.raise(Exception::plain(vector::NM));
    }
    Ok(core.edx_eax() & enabled(core, supervisor))
}

fn enabled(core: &Core<'_>, supervisor: bool) -> u64 {
    core.s.xcr0 | if supervisor { core.s.xss } else { 0 }
}

/// Without 64-bit code, XMM8 to XMM15 and their upper halves are left alone.
fn vector_bytes(core: &Core<'_>) -> usize {
    if core.bits == 64 { 256 } else { 128 }
}

fn save(core: &mut Core<'_>, op: &Op, saving: Saving, pointers: u64) -> Result<(), Abort> {
    let requested = requested(core, op, saving.supervisor)?;
    let linear = image_address(core, op, XSAVE_HEADER + 64, 64, true)?;
    let in_use = core.s.fpu.in_use() & requested;
    let written = if saving.optimized { in_use } else { requested };
    let mut image = core.s.fpu.xsave(u64::MAX);
    for at in POINTERS {
        mask_pointer(&mut image[..], at, pointers);
    }
    let write = |core: &mut Core<'_>, to: usize, from: &[u8]| core.write_bytes(linear.wrapping_add(to as u64), from);
    if written & XCR0_X87 != 0 {
        write(core, 0, &image[..MXCSR])?;
        write(core, ST, &image[ST..XMM])?;
    }
    // MXCSR belongs to both vector components, but in the compacted format to that of SSE alone.
    let mxcsr = if saving.compacted { written & XCR0_SSE } else { requested & (XCR0_SSE | XCR0_AVX) };
    if mxcsr != 0 {
        write(core, MXCSR, &image[MXCSR..ST])?;
    }
    let vectors = vector_bytes(core);
    if written & XCR0_SSE != 0 {
        write(core, XMM, &image[XMM..XMM + vectors])?;
    }
    let layout = if saving.compacted { Layout::Compacted(requested) } else { Layout::Standard };
    for component in EXTENDED.iter().filter(|component| written & component.bit != 0) {
        let size = if component.bit == XCR0_AVX { vectors } else { component.size };
        write(core, layout.offset(component), &image[component.offset..component.offset + size])?;
    }
    if saving.compacted {
        let header = u128::from(in_use) | u128::from(requested | COMPACTED) << 64;
        return write(core, XSAVE_HEADER, &header.to_le_bytes());
    }
    let mut old = [0; 8];
    core.read_bytes(linear.wrapping_add(XSAVE_HEADER as u64), &mut old)?;
    let saved = u64::from_le_bytes(old) & !requested | in_use;
    write(core, XSAVE_HEADER, &saved.to_le_bytes())
}

fn restore(core: &mut Core<'_>, op: &Op, supervisor: bool, pointers: u64) -> Result<(), Abort> {
    let requested = requested(core, op, supervisor)?;
    let linear = image_address(core, op, XSAVE_HEADER + 64, 64, false)?;
    let mut header = [0; 64];
    core.read_bytes(linear.wrapping_add(XSAVE_HEADER as u64), &mut header)?;
    let Some((saved, layout)) = layout(&header, enabled(core, supervisor)) else { return core.raise(Exception::gp(0)) };
    if supervisor && layout == Layout::Standard {
        return core.raise(Exception::gp(0));
    }

    // The registers as they are, with what is restored over them: in the standard format in any case.
    let mut image = core.s.fpu.xsave(u64::MAX);
    let mut read = |core: &mut Core<'_>, from: usize, into: usize, size: usize| {
        core.read_bytes(linear.wrapping_add(from as u64), &mut image[into..into + size])
    };
    let restored = requested & saved;
    if restored & XCR0_X87 != 0 {
        read(core, 0, 0, MXCSR)?;
        read(core, ST, ST, XMM - ST)?;
    }
    let vectors = vector_bytes(core);
    if restored & XCR0_SSE != 0 {
        read(core, XMM, XMM, vectors)?;
    }
    for component in EXTENDED.iter().filter(|component| restored & component.bit != 0) {
        let size = if component.bit == XCR0_AVX { vectors } else { component.size };
        read(core, layout.offset(component), component.offset, size)?;
    }
    match layout {
        Layout::Standard if requested & (XCR0_SSE | XCR0_AVX) != 0 => read(core, MXCSR, MXCSR, 4)?,
        Layout::Compacted(_) if restored & XCR0_SSE != 0 => read(core, MXCSR, MXCSR, 4)?,
        Layout::Compacted(_) if requested & XCR0_SSE != 0 => {
            image[MXCSR..MXCSR + 4].copy_from_slice(&MXCSR_RESET.to_le_bytes());
        }
        _ => {}
    }
    for (component, at) in [(XCR0_SSE, XMM), (XCR0_AVX, XSAVE_AVX)] {
        if requested & !saved & component != 0 {
            image[at..at + vectors].fill(0);
        }
    }
    for at in POINTERS {
        mask_pointer(&mut image[..], at, if restored & XCR0_X87 != 0 { pointers } else { u64::MAX });
    }
    // What is initialized by filling with zeros counts as loaded, so that the upper registers stay.
    let loaded = saved | XCR0_SSE | XCR0_AVX;
    image[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&loaded.to_le_bytes());
    let loaded: &[u8; XSAVE_SIZE] = &image;
    if core.s.fpu.load_xsave(loaded, requested).is_err() {
        return core.raise(Exception::gp(0));
    }
    Ok(())
}

fn mask_pointer(image: &mut [u8], at: usize, mask: u64) {
    let pointer = u64::from_le_bytes(image[at..at + 8].try_into().expect("8 bytes")) & mask;
    image[at..at + 8].copy_from_slice(&pointer.to_le_bytes());
}

/// The components that an image has (XSTATE_BV) and where; `None` if its header is invalid (SDM volume
/// 1, 13.8).
fn layout(header: &[u8; 64], enabled: u64) -> Option<(u64, Layout)> {
    let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
    let (saved, format) = (word(0), word(8));
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    if format & COMPACTED == 0 {
        return (saved & !enabled == 0 && zero(&header[8..24])).then_some((saved, Layout::Standard));
    }
    let components = format & !COMPACTED;
    let valid = components & !enabled == 0 && saved & !components == 0 && zero(&header[16..]);
    valid.then_some((saved, Layout::Compacted(components)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(saved: u64, format: u64) -> [u8; 64] {
        let mut header = [0; 64];
        header[..8].copy_from_slice(&saved.to_le_bytes());
        header[8..16].copy_from_slice(&format.to_le_bytes());
        header
    }

    #[test]
    fn a_header_names_enabled_components_only() {
        assert_eq!(layout(&header(7, 0), 7), Some((7, Layout::Standard)));
        assert_eq!(layout(&header(7, 0), 3), None);
        assert_eq!(layout(&header(2, COMPACTED | 6), 7), Some((2, Layout::Compacted(6))));
        assert_eq!(layout(&header(2, COMPACTED | 6), 3), None);
    }

    #[test]
    fn a_compacted_image_has_room_for_what_it_saved() {
        assert_eq!(layout(&header(4, COMPACTED | 3), 7), None);
    }

    #[test]
    fn reserved_bytes_of_a_header_are_zero() {
        for (at, format, valid) in [(16, 0, false), (24, 0, true), (16, COMPACTED, false), (24, COMPACTED, false)] {
            let mut header = header(0, format);
            header[at] = 1;
            assert_eq!(layout(&header, 7).is_some(), valid, "byte {at}, XCOMP_BV {format:x}");
        }
    }
}
