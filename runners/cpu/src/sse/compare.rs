//! Comparisons: into masks, into flags, and PTEST.
#![expect(unsafe_code, reason = "each operation is one instruction in inline assembly")]

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic};

use super::arithmetic::{from_xmm, quiet, to_xmm, with_mxcsr};
use crate::core::{Abort, Core};
use crate::flags::{ARITHMETIC, CF, PF, ZF};
use crate::op::{Handler, Op};

pub(super) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Cmpps => by_predicate::<Cmpps, 16>,
        M::Cmppd => by_predicate::<Cmppd, 16>,
        M::Cmpss => by_predicate::<Cmpss, 4>,
        M::Cmpsd if !instruction.is_string_instruction() => by_predicate::<Cmpsd, 8>,
        M::Roundps => by_predicate::<Roundps, 16>,
        M::Roundpd => by_predicate::<Roundpd, 16>,
        M::Roundss => by_predicate::<Roundss, 4>,
        M::Roundsd => by_predicate::<Roundsd, 8>,
        M::Comiss => to_flags::<Comiss, 4>,
        M::Comisd => to_flags::<Comisd, 8>,
        M::Ucomiss => to_flags::<Ucomiss, 4>,
        M::Ucomisd => to_flags::<Ucomisd, 8>,
        M::Ptest => ptest,
        _ => return None,
    })
}

/// An operation that an immediate modifies.
trait Predicated {
    /// The bits of the immediate that count.
    const MASK: u8;
    fn apply(a: u128, b: u128, predicate: u8, mxcsr: u32) -> (u128, u32);
}

macro_rules! predicated {
    ($($name:ident $insn:literal $mask:literal [$($predicate:literal)*];)*) => {
        $(struct $name;
        impl Predicated for $name {
            const MASK: u8 = $mask;
            fn apply(a: u128, b: u128, predicate: u8, mxcsr: u32) -> (u128, u32) {
                let mut a = to_xmm(a);
                let mut mxcsr = mxcsr;
                match predicate {
                    $($predicate => {
                        with_mxcsr!(mxcsr, concat!($insn, " {a}, {b}, ", $predicate), a = inout(xmm_reg) a,
                            b = in(xmm_reg) to_xmm(b));
                    })*
                    _ => {}
                }
                (from_xmm(a), mxcsr)
            }
        })*
    };
}

predicated! {
    Cmpps "cmpps" 7 [0 1 2 3 4 5 6 7];
    Cmppd "cmppd" 7 [0 1 2 3 4 5 6 7];
    Cmpss "cmpss" 7 [0 1 2 3 4 5 6 7];
    Cmpsd "cmpsd" 7 [0 1 2 3 4 5 6 7];
    Roundps "roundps" 15 [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15];
    Roundpd "roundpd" 15 [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15];
    Roundss "roundss" 15 [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15];
    Roundsd "roundsd" 15 [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15];
}

fn by_predicate<P: Predicated, const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<BYTES>(op, op.b)?;
    let a = *core.xmm(op.a);

    let predicate = op.imm as u8 & P::MASK;
    let (result, raised) = P::apply(a, b, predicate, quiet(core.s.fpu.mxcsr));
    core.float_flags(raised)?;
    *core.xmm(op.a) = result;
    Ok(())
}

/// A comparison that sets ZF, PF and CF.
trait Flags {
    /// The low byte of the flags, and MXCSR.
    fn apply(a: u128, b: u128, mxcsr: u32) -> (u64, u32);
}

macro_rules! flags {
    ($($name:ident $insn:literal;)*) => {
        $(struct $name;
        impl Flags for $name {
            fn apply(a: u128, b: u128, mxcsr: u32) -> (u64, u32) {
                let mut mxcsr = mxcsr;
                let flags: u64;
                with_mxcsr!(mxcsr, concat!($insn, " {a}, {b}\nlahf\nmovzx eax, ah"), a = in(xmm_reg) to_xmm(a),
                    b = in(xmm_reg) to_xmm(b), out("rax") flags);
                (flags, mxcsr)
            }
        })*
    };
}

flags! {
    Comiss "comiss";
    Comisd "comisd";
    Ucomiss "ucomiss";
    Ucomisd "ucomisd";
}

fn to_flags<F: Flags, const BYTES: usize>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<BYTES>(op, op.b)?;
    let a = *core.xmm(op.a);
    let (flags, raised) = F::apply(a, b, quiet(core.s.fpu.mxcsr));
    core.float_flags(raised)?;
    core.set_flags(ARITHMETIC, flags & (ZF | PF | CF));
    Ok(())
}

fn ptest(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.require_sse()?;
    let b = core.wide_source::<16>(op, op.b)?;
    let a = *core.xmm(op.a);
    let flags = if a & b == 0 { ZF } else { 0 } | if !a & b == 0 { CF } else { 0 };
    core.set_flags(ARITHMETIC, flags);
    Ok(())
}
