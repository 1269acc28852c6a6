//! Conversions between general registers and floating-point numbers in XMM registers.
#![expect(unsafe_code, reason = "each operation is one instruction in inline assembly")]

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic};

use super::arithmetic::{from_xmm, quiet, to_xmm, with_mxcsr};
use crate::core::{Abort, Core};
use crate::op::{Handler, Op, operand_size};
use crate::word::Word;

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    let wide = |operand| operand_size(instruction, operand) == 8;
    Some(match instruction.mnemonic() {
        Mnemonic::Cvtsi2ss if wide(1) => from_integer::<u64, Si2ss64>,
        Mnemonic::Cvtsi2ss => from_integer::<u32, Si2ss32>,
        Mnemonic::Cvtsi2sd if wide(1) => from_integer::<u64, Si2sd64>,
        Mnemonic::Cvtsi2sd => from_integer::<u32, Si2sd32>,
        Mnemonic::Cvtss2si if wide(0) => to_integer::<u64, Ss2si64, 4>,
        Mnemonic::Cvtss2si => to_integer::<u32, Ss2si32, 4>,
        Mnemonic::Cvttss2si if wide(0) => to_integer::<u64, Tss2si64, 4>,
        Mnemonic::Cvttss2si => to_integer::<u32, Tss2si32, 4>,
        Mnemonic::Cvtsd2si if wide(0) => to_integer::<u64, Sd2si64, 8>,
        Mnemonic::Cvtsd2si => to_integer::<u32, Sd2si32, 8>,
        Mnemonic::Cvttsd2si if wide(0) => to_integer::<u64, Tsd2si64, 8>,
        Mnemonic::Cvttsd2si => to_integer::<u32, Tsd2si32, 8>,
        _ => return None,
    })
}

/// From an integer, into the low element of `a`.
trait FromInteger {
    fn apply(a: u128, value: u64, mxcsr: u32) -> (u128, u32);
}

/// To an integer, from the low element.
trait ToInteger {
    fn apply(value: u128, mxcsr: u32) -> (u64, u32);
}

macro_rules! conversions {
    (from { $($from:ident $from_insn:literal;)* } to { $($to:ident $to_insn:literal;)* }) => {
        $(struct $from;
        impl FromInteger for $from {
            fn apply(a: u128, value: u64, mxcsr: u32) -> (u128, u32) {
                let mut a = to_xmm(a);
                let mut mxcsr = mxcsr;
                with_mxcsr!(mxcsr, $from_insn, a = inout(xmm_reg) a, v = in(reg) value);
                (from_xmm(a), mxcsr)
            }
        })*
        $(struct $to;
        impl ToInteger for $to {
            fn apply(value: u128, mxcsr: u32) -> (u64, u32) {
                let mut mxcsr = mxcsr;
                let result: u64;
                with_mxcsr!(mxcsr, $to_insn, a = in(xmm_reg) to_xmm(value), v = out(reg) result);
                (result, mxcsr)
            }
        })*
    };
}

conversions! {
    from {
    Si2ss32 "cvtsi2ss {a}, {v:e}";
    Si2ss64 "cvtsi2ss {a}, {v:r}";
    Si2sd32 "cvtsi2sd {a}, {v:e}";
    Si2sd64 "cvtsi2sd {a}, {v:r}";
    }
    to {
    Ss2si32 "cvtss2si {v:e}, {a}";
    Ss2si64 "cvtss2si {v:r}, {a}";
    Tss2si32 "cvttss2si {v:e}, {a}";
    Tss2si64 "cvttss2si {v:r}, {a}";
    Sd2si32 "cvtsd2si {v:e}, {a}";
    Sd2si64 "cvtsd2si {v:r}, {a}";
    Tsd2si32 "cvttsd2si {v:e}, {a}";
    Tsd2si64 "cvttsd2si {v:r}, {a}";
    }
}

fn from_integer<T: Word, F: FromInteger>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let value = core.get::<T>(op, op.b)?;
    let a = *core.xmm(op.a);
    let (result, raised) = F::apply(a, value, quiet(core.s.fpu.mxcsr));
    core.float_flags(raised)?;
    *core.xmm(op.a) = result;
    Ok(())
}

fn to_integer<T: Word, F: ToInteger, const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let value = core.wide_source::<BYTES>(op, op.b)?;
    let (result, raised) = F::apply(value, quiet(core.s.fpu.mxcsr));
    core.float_flags(raised)?;
    core.set_register::<T>(op.a, result);
    Ok(())
}
