//! Gathers: elements from addresses that a vector of indices gives, where a mask selects them.

use iced_x86::{Instruction, Mnemonic, Register};

use super::{element, register, set_element};
use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::op::{Handler, Op};

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let wide = [instruction.op0_register(), instruction.memory_index()].into_iter().any(Register::is_ymm);
    Some(match (instruction.mnemonic(), wide) {
        (M::Vgatherdps | M::Vpgatherdd, false) => gather::<4, 4, 4>,
        (M::Vgatherdps | M::Vpgatherdd, true) => gather::<4, 4, 8>,
        (M::Vgatherdpd | M::Vpgatherdq, false) => gather::<8, 4, 2>,
        (M::Vgatherdpd | M::Vpgatherdq, true) => gather::<8, 4, 4>,
        (M::Vgatherqps | M::Vpgatherqd, false) => gather::<4, 8, 2>,
        (M::Vgatherqps | M::Vpgatherqd, true) => gather::<4, 8, 4>,
        (M::Vgatherqpd | M::Vpgatherqq, false) => gather::<8, 8, 2>,
        (M::Vgatherqpd | M::Vpgatherqq, true) => gather::<8, 8, 4>,
        _ => return None,
    })
}

/// `COUNT` elements of `ELEMENT` bytes, by indices of `INDEX` bytes. After a fault the elements before
/// it are done, and no longer in the mask: the instruction goes on where it was.
fn gather<const ELEMENT: usize, const INDEX: usize, const COUNT: usize>(
    core: &mut Core<'_>,
    op: &Op,
) -> Result<(), Abort> {
    core.require_avx()?;
    let index_register = usize::from(op.mem.index & 15);
    let (target, mask) = (register(op.a), register(op.c));
    if target == mask || target == index_register || mask == index_register {
        return core.raise(Exception::ud());
    }
    let indices = [core.s.fpu.xmm[index_register], core.s.fpu.ymm_high[index_register]];
    for position in 0..COUNT {
        let mut selected = core.ymm(op.c);
        if element(selected, position, ELEMENT) >> (ELEMENT * 8 - 1) == 0 {
            continue;
        }
        let index = element(indices, position, INDEX);
        let index = if INDEX == 4 { index as u32 as i32 as u64 } else { index };
        let mut mem = op.mem;
        mem.disp = mem.disp.wrapping_add(index << mem.scale);
        let linear = core.linear(&mem, ELEMENT, false)?;
        let value = if ELEMENT == 4 { core.read::<u32>(linear)? } else { core.read::<u64>(linear)? };
        let mut result = core.ymm(op.a);
        set_element(&mut result, position, ELEMENT, value);
        core.set_ymm(op.a, result);
        set_element(&mut selected, position, ELEMENT, 0);
        core.set_ymm(op.c, selected);
    }
    let mut result = core.ymm(op.a);
    for position in COUNT..32 / ELEMENT {
        set_element(&mut result, position, ELEMENT, 0);
    }
    core.set_ymm(op.a, result);
    core.set_ymm(op.c, [0; 2]);
    Ok(())
}
