//! Operations on integers and bits that do to each half of a YMM register what SSE does to an XMM register,
//! and that string functions use all the time. What is here is faster than in [`crate::native`], no more.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::op::{Handler, Op, Operand, operand_size};
use crate::sse::arithmetic::{self as sse, Integer};
use crate::sse::byte_signs;

macro_rules! lanes {
    ($($mnemonic:ident $operation:ident,)*) => {
        pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
            let wide = operand_size(instruction, 1) == 32;
            Some(match instruction.mnemonic() {
                $(Mnemonic::$mnemonic if wide => lanes::<sse::$operation, 32>,
                Mnemonic::$mnemonic => lanes::<sse::$operation, 16>,)*
                Mnemonic::Vpmovmskb if wide => sign_bits::<32>,
                Mnemonic::Vpmovmskb => sign_bits::<16>,
                _ => return None,
            })
        }
    };
}

lanes! {
    Vpand Pand, Vpandn Pandn, Vpor Por, Vpxor Pxor,
    Vpcmpeqb Pcmpeqb, Vpcmpeqw Pcmpeqw, Vpcmpeqd Pcmpeqd, Vpcmpgtb Pcmpgtb,
    Vpminub Pminub, Vpmaxub Pmaxub, Vpminud Pminud,
    Vpaddb Paddb, Vpaddd Paddd, Vpaddq Paddq, Vpsubb Psubb, Vpsubd Psubd, Vpsubq Psubq,
    Vpshufb Pshufb,
}

#[inline(always)]
fn lanes<I: Integer, const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_avx()?;
    let [low, high] = if op.c == Operand::Mem {
        let linear = core.linear(&op.mem, BYTES, false)?;
        let low = core.read_wide(linear)?;
        [low, if BYTES == 32 { core.read_wide(linear.wrapping_add(16))? } else { 0 }]
    } else {
        core.ymm(op.c)
    };
    let b = core.ymm(op.b);
    core.set_ymm(op.a, [I::apply(b[0], low), if BYTES == 32 { I::apply(b[1], high) } else { 0 }]);
    Ok(())
}

fn sign_bits<const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_avx()?;
    let [low, high] = core.ymm(op.b);
    let high = if BYTES == 32 { byte_signs(high) << 16 } else { 0 };
    core.set_register::<u64>(op.a, byte_signs(low) | high);
    Ok(())
}
