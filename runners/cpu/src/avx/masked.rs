//! Moves that touch only those elements of memory whose mask has its sign bit set.

use iced_x86::{Instruction, Mnemonic};

use super::{element, set_element};
use crate::core::{Abort, Core};
use crate::op::{Handler, Op, Operand, Width, operand_size};
use crate::state::gpr::RDI;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let wide = operand_size(instruction, 1) == 32;
    Some(match (instruction.mnemonic(), wide) {
        (M::Vmaskmovps | M::Vpmaskmovd, false) => move_masked::<4, 4>,
        (M::Vmaskmovps | M::Vpmaskmovd, true) => move_masked::<4, 8>,
        (M::Vmaskmovpd | M::Vpmaskmovq, false) => move_masked::<8, 2>,
        (M::Vmaskmovpd | M::Vpmaskmovq, true) => move_masked::<8, 4>,
        (M::Vmaskmovdqu, _) => |core, op| {
            core.require_avx()?;
            store_bytes(core, op)
        },
        _ => return None,
    })
}

fn move_masked<const ELEMENT: usize, const COUNT: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_avx()?;
    let mask = core.ymm(op.b);
    let store = op.a == Operand::Mem;
    let linear = core.linear(&op.mem, ELEMENT * COUNT, store)?;
    if store {
        let value = core.ymm(op.c);
        return store_elements(core, linear, ELEMENT, COUNT, mask, value);
    }
    let mut result = [0; 2];
    for index in (0..COUNT).filter(|&index| is_selected(mask, index, ELEMENT)) {
        let at = linear.wrapping_add((index * ELEMENT) as u64);
        let value = if ELEMENT == 4 { core.read::<u32>(at)? } else { core.read::<u64>(at)? };
        set_element(&mut result, index, ELEMENT, value);
    }
    core.set_ymm(op.a, result);
    Ok(())
}

/// MASKMOVDQU: bytes, to DS:RDI or another segment.
pub(crate) fn store_bytes(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let mut mem = op.mem;
    (mem.base, mem.base_width) = (RDI as u8, Width::Bits64);
    let linear = core.linear(&mem, 16, true)?;
    let (value, mask) = (core.ymm(op.b), core.ymm(op.c));
    store_elements(core, linear, 1, 16, mask, value)
}

/// Stores the elements that the mask selects: all of them, or none if one faults.
fn store_elements(
    core: &mut Core<'_>,
    linear: u64,
    bytes: usize,
    count: usize,
    mask: [u128; 2],
    value: [u128; 2],
) -> Result<(), Abort> {
    let selected = || (0..count).filter(|&index| is_selected(mask, index, bytes));
    let address = |index: usize| linear.wrapping_add((index * bytes) as u64);
    for index in selected() {
        core.prepare_write(address(index), bytes)?;
    }
    for index in selected() {
        let value = element(value, index, bytes);
        match bytes {
            1 => core.write::<u8>(address(index), value)?,
            4 => core.write::<u32>(address(index), value)?,
            _ => core.write::<u64>(address(index), value)?,
        }
    }
    Ok(())
}

fn is_selected(mask: [u128; 2], index: usize, bytes: usize) -> bool {
    element(mask, index, bytes) >> (bytes * 8 - 1) != 0
}
