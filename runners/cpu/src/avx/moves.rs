//! Moves of whole registers.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::op::{Handler, Op, Operand, operand_size};

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let wide = operand_size(instruction, 0) == 32;
    Some(match instruction.mnemonic() {
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => {
            if wide {
                move_vector::<32, true>
            } else {
                move_vector::<16, true>
            }
        }
        M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => {
            if wide {
                move_vector::<32, false>
            } else {
                move_vector::<16, false>
            }
        }
        M::Vldmxcsr => |core, op| {
            core.require_avx()?;
            crate::sse::ldmxcsr(core, op)
        },
        M::Vstmxcsr => |core, op| {
            core.require_avx()?;
            crate::sse::stmxcsr(core, op)
        },
        _ => return None,
    })
}

#[inline(always)]
fn move_vector<const BYTES: usize, const ALIGNED: bool>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_avx()?;
    let store = op.a == Operand::Mem;
    if !store && op.b != Operand::Mem {
        let [low, high] = core.ymm(op.b);
        core.set_ymm(op.a, [low, if BYTES == 32 { high } else { 0 }]);
        return Ok(());
    }
    let linear = core.linear(&op.mem, BYTES, store)?;
    if ALIGNED && linear & (BYTES as u64 - 1) != 0 {
        return core.raise(Exception::gp(0));
    }
    if store {
        let [low, high] = core.ymm(op.b);
        if BYTES == 16 {
            return core.write_wide(linear, low);
        }
        return core.write_ymm(linear, [low, high]);
    }
    let low = core.read_wide(linear)?;
    let high = if BYTES == 32 { core.read_wide(linear.wrapping_add(16))? } else { 0 };
    core.set_ymm(op.a, [low, high]);
    Ok(())
}
