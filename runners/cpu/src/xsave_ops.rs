//! XSAVE, XSAVEOPT and XRSTOR in the standard format. The compacted ones (XSAVEC, XSAVES) are not
//! implemented; CPUID must not offer them.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::fpu::{XCR0_AVX, XCR0_PKRU, XCR0_SSE, XCR0_X87, XSAVE_AVX, XSAVE_HEADER, XSAVE_PKRU, XSAVE_SIZE};
use crate::fpu_ops::image_address;
use crate::op::{Handler, Op};
use crate::state::{cr0, cr4};

/// Parts of the image and the components, one of which must be asked for, to which they belong.
const PARTS: [(u64, usize, usize); 7] = [
    (XCR0_X87, 0, 24),
    (XCR0_SSE | XCR0_AVX, 24, 8),
    (XCR0_X87, 32, 128),
    (XCR0_SSE, 160, 256),
    (u64::MAX, XSAVE_HEADER, 8),
    (XCR0_AVX, XSAVE_AVX, 256),
    (XCR0_PKRU, XSAVE_PKRU, 4),
];

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xrstor,
        _ => return None,
    })
}

/// The components that an instruction is about: EDX:EAX and XCR0.
fn components(core: &mut Core<'_>) -> Result<u64, Abort> {
    if core.s.cr4 & cr4::OSXSAVE == 0 {
        return core.raise(Exception::ud());
    }
    if core.s.cr0 & cr0::TS != 0 {
        return core.raise(Exception::plain(vector::NM));
    }
    Ok(core.edx_eax() & core.s.xcr0)
}

fn xsave(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let components = components(core)?;
    let linear = image_address(core, op, XSAVE_HEADER + 64, 64, true)?;
    let mut header = [0; 8];
    core.read_bytes(linear.wrapping_add(XSAVE_HEADER as u64), &mut header)?;
    let mut image = core.s.fpu.xsave(u64::MAX);
    let saved = u64::from_le_bytes(header) & !components | core.s.fpu.in_use() & components;
    image[XSAVE_HEADER..XSAVE_HEADER + 8].copy_from_slice(&saved.to_le_bytes());
    for (needed, at, size) in PARTS {
        if needed == u64::MAX || components & needed != 0 {
            core.write_bytes(linear.wrapping_add(at as u64), &image[at..at + size])?;
        }
    }
    Ok(())
}

fn xrstor(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let components = components(core)?;
    let linear = image_address(core, op, XSAVE_HEADER + 64, 64, false)?;
    let mut image = [0; XSAVE_SIZE];
    core.read_bytes(linear.wrapping_add(XSAVE_HEADER as u64), &mut image[XSAVE_HEADER..XSAVE_HEADER + 64])?;
    for (needed, at, size) in PARTS {
        if components & needed != 0 {
            core.read_bytes(linear.wrapping_add(at as u64), &mut image[at..at + size])?;
        }
    }
    let saved = u64::from_le_bytes(image[XSAVE_HEADER..XSAVE_HEADER + 8].try_into().expect("8 bytes"));
    if saved & !core.s.xcr0 != 0 || core.s.fpu.load_xsave(&image, components).is_err() {
        return core.raise(Exception::gp(0));
    }
    Ok(())
}
