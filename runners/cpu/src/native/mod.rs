//! Instructions that the host's own processor executes for the guest: x87 and MMX, everything that is
//! VEX encoded and computes, and the rarer SSE ones (string comparisons, AES, carry-less products ...).
//!
//! A result can then not differ from hardware's. The instruction is encoded once more with operands of
//! our choosing ([`form`]): registers by their position, memory as a buffer beside them. That is a few
//! bytes of machine code that touch nothing else ([`code`]); [`vector`] and [`x87`] load the guest's
//! operands, call it, and store what it made of them.
//!
//! What the host lacks, [`Form::of`] refuses, and the instruction is unknown to the CPU; [`Extensions`]
//! says so beforehand.

mod code;
mod form;
mod pointers;
mod vector;
mod x87;

use iced_x86::CpuidFeature;
use serde::{Deserialize, Serialize};

pub(crate) use form::Form;

use crate::core::{Abort, Core};
use crate::decode;
use crate::fpu::{XCR0_AVX, XCR0_SSE, XCR0_X87};
use crate::op::{Handler, Op, Operand};
use form::Kind;

/// What executes an op that has a form.
pub(crate) fn handler(form: &Form) -> Handler {
    match form.kind {
        Kind::Sse | Kind::Vex => vector::execute,
        Kind::X87 | Kind::Mmx => x87::execute,
    }
}

/// The extensions that the CPU has if the host has them: CPUID must not offer a guest the others.
#[expect(missing_docs, reason = "the names of CPUID's bits say it")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extensions {
    pub aes: bool,
    pub pclmulqdq: bool,
    pub sha: bool,
    pub avx: bool,
    pub avx2: bool,
    pub fma: bool,
    pub f16c: bool,
    pub vaes: bool,
    pub vpclmulqdq: bool,
}

impl Extensions {
    /// Those of this host.
    #[must_use]
    pub fn of_host() -> Extensions {
        use CpuidFeature as F;
        let avx = host_has(F::AVX);
        Extensions {
            aes: host_has(F::AES),
            pclmulqdq: host_has(F::PCLMULQDQ),
            sha: host_has(F::SHA),
            avx,
            avx2: avx && host_has(F::AVX2),
            fma: avx && host_has(F::FMA),
            f16c: avx && host_has(F::F16C),
            vaes: avx && host_has(F::VAES),
            vpclmulqdq: avx && host_has(F::VPCLMULQDQ),
        }
    }

    /// The components of XCR0 that go with them: x87 and SSE, and AVX if there is AVX.
    #[must_use]
    pub fn xcr0(self) -> u64 {
        XCR0_X87 | XCR0_SSE | if self.avx { XCR0_AVX } else { 0 }
    }
}

/// Whether the host has an extension that guest instructions are executed with here; `false` also for
/// those that are none of this module's business. The host has x86-64-v2 in any case.
pub(crate) fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::FPU | F::FPU287 | F::FPU387 | F::CMOV | F::MMX => true,
        F::SSE | F::SSE2 | F::SSE3 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 => true,
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::SHA => is_x86_feature_detected!("sha"),
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::VAES => is_x86_feature_detected!("vaes"),
        F::VPCLMULQDQ => is_x86_feature_detected!("vpclmulqdq"),
        _ => false,
    }
}

/// Reads the memory operand that the form has, if it has one and reads it, into the start of `memory`. Returns its linear
/// address, for what is written there later.
fn read_memory_operand(core: &mut Core<'_>, op: &Op, form: &Form, memory: &mut [u8]) -> Result<u64, Abort> {
    let Some(operand) = form.memory else { return Ok(0) };
    let linear = core.linear(&op.mem, operand.size, operand.write)?;
    if operand.aligned {
        core.require_alignment(linear)?;
    }
    if operand.read {
        core.read_vector(linear, &mut memory[..operand.size])?;
    }
    Ok(linear)
}

/// The form of an op. Ops with a handler of this module have one; others end as unknown, and so do all of them where
/// a hypervisor's emulator is at work (see [`crate::Access::emulated`]): KVM's knows no arithmetic of x87 or SSE.
fn form_of(core: &mut Core<'_>, op: &Op) -> Result<&'static Form, Abort> {
    match op.form {
        Some(form) if !core.emulating => Ok(form),
        _ => decode::unknown(core, op).and(Err(Abort)),
    }
}

impl Op {
    /// The operands by position.
    fn operands(&self) -> [Operand; 4] {
        [self.a, self.b, self.c, self.d]
    }
}
