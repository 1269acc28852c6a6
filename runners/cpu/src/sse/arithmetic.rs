//! Arithmetic on whole XMM registers, done by the host's own instruction of the same name.
//!
//! A result can then not differ from hardware's, approximations and NaN payloads included. The host has
//! x86-64-v2, as the guest is told to have.
#![expect(unsafe_code, reason = "each operation is one instruction in inline assembly")]

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::op::{Handler, Op};

/// An operation on integers or bits: no exceptions, no rounding.
pub(crate) trait Integer {
    fn apply(a: u128, b: u128) -> u128;
}

/// An operation on floating-point numbers under a rounding mode.
trait Float {
    /// The result, and MXCSR after it.
    fn apply(a: u128, b: u128, mxcsr: u32) -> (u128, u32);
}

fn integer<I: Integer, const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<BYTES>(op, op.b)?;
    let a = core.xmm(op.a);
    *a = I::apply(*a, b);
    Ok(())
}

fn float<F: Float, const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<BYTES>(op, op.b)?;
    let a = *core.xmm(op.a);
    let (result, raised) = F::apply(a, b, quiet(core.s.fpu.mxcsr));
    core.float_flags(raised)?;
    *core.xmm(op.a) = result;
    Ok(())
}

/// The guest's MXCSR with all exceptions masked and none raised: the host must not trap.
pub(crate) fn quiet(mxcsr: u32) -> u32 {
    mxcsr & !0x3f | 0x1f80
}

pub(super) fn to_xmm(value: u128) -> __m128i {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { std::mem::transmute(value) }
}

pub(super) fn from_xmm(value: __m128i) -> u128 {
    // SAFETY: both are 16 bytes without invalid values.
    unsafe { std::mem::transmute(value) }
}

/// Runs instructions under `mxcsr`, leaves what they made of it there, and restores the host's.
macro_rules! with_mxcsr {
    ($mxcsr:ident, $insn:expr, $($operands:tt)*) => {{
        let mut host = 0_u32;
        // SAFETY: the instructions touch the named operands and MXCSR, which is put back; all exceptions
        // are masked in `$mxcsr` (see `quiet`).
        unsafe {
            asm!("stmxcsr [{host}]", "ldmxcsr [{guest}]", $insn, "stmxcsr [{guest}]", "ldmxcsr [{host}]",
                host = in(reg) &raw mut host, guest = in(reg) &raw mut $mxcsr, $($operands)*, options(nostack));
        }
    }};
}
pub(super) use with_mxcsr;

macro_rules! operations {
    (integer { $($int:ident $int_insn:literal $int_bytes:literal,)* } float { $($float:ident $float_insn:literal $float_bytes:literal,)* }) => {
        $(pub(crate) struct $int;
        impl Integer for $int {
            #[inline(always)]
            fn apply(a: u128, b: u128) -> u128 {
                let mut a = to_xmm(a);
                // SAFETY: one instruction on the two registers that are named.
                unsafe {
                    asm!(concat!($int_insn, " {a}, {b}"), a = inout(xmm_reg) a, b = in(xmm_reg) to_xmm(b),
                        options(pure, nomem, nostack, preserves_flags));
                }
                from_xmm(a)
            }
        })*

        $(struct $float;
        impl Float for $float {
            fn apply(a: u128, b: u128, mxcsr: u32) -> (u128, u32) {
                let mut a = to_xmm(a);
                let mut mxcsr = mxcsr;
                with_mxcsr!(mxcsr, concat!($float_insn, " {a}, {b}"), a = inout(xmm_reg) a, b = in(xmm_reg) to_xmm(b));
                (from_xmm(a), mxcsr)
            }
        })*

        pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
            Some(match instruction.mnemonic() {
                $(Mnemonic::$int => {
                    // Shifts by an immediate are elsewhere.
                    if instruction.op_kind(1) == iced_x86::OpKind::Immediate8 {
                        return None;
                    }
                    integer::<$int, $int_bytes>
                })*
                // The string instruction of the same name is not on XMM registers and comes earlier.
                $(Mnemonic::$float => float::<$float, $float_bytes>,)*
                _ => return None,
            })
        }
    };
}

operations! {
    integer {
    Paddb "paddb" 16, Paddw "paddw" 16, Paddd "paddd" 16, Paddq "paddq" 16,
    Paddsb "paddsb" 16, Paddsw "paddsw" 16, Paddusb "paddusb" 16, Paddusw "paddusw" 16,
    Psubb "psubb" 16, Psubw "psubw" 16, Psubd "psubd" 16, Psubq "psubq" 16,
    Psubsb "psubsb" 16, Psubsw "psubsw" 16, Psubusb "psubusb" 16, Psubusw "psubusw" 16,
    Pmullw "pmullw" 16, Pmulhw "pmulhw" 16, Pmulhuw "pmulhuw" 16, Pmuludq "pmuludq" 16,
    Pmaddwd "pmaddwd" 16, Psadbw "psadbw" 16, Pavgb "pavgb" 16, Pavgw "pavgw" 16,
    Pminub "pminub" 16, Pminsw "pminsw" 16, Pmaxub "pmaxub" 16, Pmaxsw "pmaxsw" 16,
    Pcmpeqb "pcmpeqb" 16, Pcmpeqw "pcmpeqw" 16, Pcmpeqd "pcmpeqd" 16,
    Pcmpgtb "pcmpgtb" 16, Pcmpgtw "pcmpgtw" 16, Pcmpgtd "pcmpgtd" 16,
    Pand "pand" 16, Pandn "pandn" 16, Por "por" 16, Pxor "pxor" 16,
    Andps "andps" 16, Andpd "andpd" 16, Andnps "andnps" 16, Andnpd "andnpd" 16,
    Orps "orps" 16, Orpd "orpd" 16, Xorps "xorps" 16, Xorpd "xorpd" 16,
    Punpcklbw "punpcklbw" 16, Punpcklwd "punpcklwd" 16, Punpckldq "punpckldq" 16, Punpcklqdq "punpcklqdq" 16,
    Punpckhbw "punpckhbw" 16, Punpckhwd "punpckhwd" 16, Punpckhdq "punpckhdq" 16, Punpckhqdq "punpckhqdq" 16,
    Unpcklps "unpcklps" 16, Unpckhps "unpckhps" 16, Unpcklpd "unpcklpd" 16, Unpckhpd "unpckhpd" 16,
    Packsswb "packsswb" 16, Packssdw "packssdw" 16, Packuswb "packuswb" 16,
    Psllw "psllw" 16, Pslld "pslld" 16, Psllq "psllq" 16, Psrlw "psrlw" 16, Psrld "psrld" 16, Psrlq "psrlq" 16,
    Psraw "psraw" 16, Psrad "psrad" 16,
    // SSE3
    Movsldup "movsldup" 16, Movshdup "movshdup" 16, Movddup "movddup" 8,
    // SSSE3
    Pshufb "pshufb" 16, Phaddw "phaddw" 16, Phaddd "phaddd" 16, Phaddsw "phaddsw" 16,
    Phsubw "phsubw" 16, Phsubd "phsubd" 16, Phsubsw "phsubsw" 16,
    Psignb "psignb" 16, Psignw "psignw" 16, Psignd "psignd" 16, Pmulhrsw "pmulhrsw" 16, Pmaddubsw "pmaddubsw" 16,
    Pabsb "pabsb" 16, Pabsw "pabsw" 16, Pabsd "pabsd" 16,
    // SSE4
    Pminsb "pminsb" 16, Pminsd "pminsd" 16, Pminuw "pminuw" 16, Pminud "pminud" 16,
    Pmaxsb "pmaxsb" 16, Pmaxsd "pmaxsd" 16, Pmaxuw "pmaxuw" 16, Pmaxud "pmaxud" 16,
    Pmulld "pmulld" 16, Pmuldq "pmuldq" 16, Packusdw "packusdw" 16, Pcmpeqq "pcmpeqq" 16, Pcmpgtq "pcmpgtq" 16,
    Phminposuw "phminposuw" 16,
    Pmovsxbw "pmovsxbw" 8, Pmovsxbd "pmovsxbd" 4, Pmovsxbq "pmovsxbq" 2, Pmovsxwd "pmovsxwd" 8, Pmovsxwq "pmovsxwq" 4,
    Pmovsxdq "pmovsxdq" 8,
    Pmovzxbw "pmovzxbw" 8, Pmovzxbd "pmovzxbd" 4, Pmovzxbq "pmovzxbq" 2, Pmovzxwd "pmovzxwd" 8, Pmovzxwq "pmovzxwq" 4,
    Pmovzxdq "pmovzxdq" 8,
    // Approximations: they raise nothing and do not round.
    Rcpps "rcpps" 16, Rcpss "rcpss" 4, Rsqrtps "rsqrtps" 16, Rsqrtss "rsqrtss" 4,
    }
    float {
    Addps "addps" 16, Addpd "addpd" 16, Addss "addss" 4, Addsd "addsd" 8,
    Subps "subps" 16, Subpd "subpd" 16, Subss "subss" 4, Subsd "subsd" 8,
    Mulps "mulps" 16, Mulpd "mulpd" 16, Mulss "mulss" 4, Mulsd "mulsd" 8,
    Divps "divps" 16, Divpd "divpd" 16, Divss "divss" 4, Divsd "divsd" 8,
    Minps "minps" 16, Minpd "minpd" 16, Minss "minss" 4, Minsd "minsd" 8,
    Maxps "maxps" 16, Maxpd "maxpd" 16, Maxss "maxss" 4, Maxsd "maxsd" 8,
    Sqrtps "sqrtps" 16, Sqrtpd "sqrtpd" 16, Sqrtss "sqrtss" 4, Sqrtsd "sqrtsd" 8,
    Haddps "haddps" 16, Haddpd "haddpd" 16, Hsubps "hsubps" 16, Hsubpd "hsubpd" 16,
    Addsubps "addsubps" 16, Addsubpd "addsubpd" 16,
    Cvtdq2ps "cvtdq2ps" 16, Cvtps2dq "cvtps2dq" 16, Cvttps2dq "cvttps2dq" 16, Cvtdq2pd "cvtdq2pd" 8,
    Cvtpd2dq "cvtpd2dq" 16, Cvttpd2dq "cvttpd2dq" 16, Cvtps2pd "cvtps2pd" 8, Cvtpd2ps "cvtpd2ps" 16,
    Cvtss2sd "cvtss2sd" 4, Cvtsd2ss "cvtsd2ss" 8,
    }
}
