//! The instruction forms that the CPU has to implement as the processor underneath does: all that
//! 64-bit code may use without privilege, of the features that the guest is told to have.

use iced_x86::{Code, CpuidFeature as F, EncodingKind, FlowControl, Mnemonic as M, OpCodeOperandKind as K};
use privet_cpu::Extensions;

const FEATURES: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::LZCNT,
    F::BMI1,
    F::BMI2,
    F::MOVBE,
    F::MULTIBYTENOP,
    F::CLFSH,
    F::PAUSE,
    F::ADX,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::MMX,
    F::FXSR,
    F::XSAVE,
    F::XSAVEC,
    F::XSAVEOPT,
];

/// Those that the CPU has where the host has them.
fn of_host(feature: F) -> bool {
    let host = Extensions::of_host();
    match feature {
        F::AES => host.aes,
        F::PCLMULQDQ => host.pclmulqdq,
        F::SHA => host.sha,
        F::AVX => host.avx,
        F::AVX2 => host.avx2,
        F::FMA => host.fma,
        F::F16C => host.f16c,
        F::VAES => host.vaes,
        F::VPCLMULQDQ => host.vpclmulqdq,
        _ => false,
    }
}

/// Forms of the features above that this comparison leaves out, and why.
fn left_out(code: Code) -> bool {
    let info = code.op_code();
    // Control leaves the sequence, or comes back somewhere else: `programs` and `exceptions` have these.
    let branches = code.flow_control() != FlowControl::Next;
    // Privileged, or about segments and descriptors: `system` has these.
    let system = info.is_privileged()
        || matches!(
            info.mnemonic(),
            M::Sgdt
                | M::Sidt
                | M::Sldt
                | M::Smsw
                | M::Str
                | M::Lar
                | M::Lsl
                | M::Verr
                | M::Verw
                | M::Arpl
                | M::In
                | M::Out
                | M::Insb
                | M::Insw
                | M::Insd
                | M::Outsb
                | M::Outsw
                | M::Outsd
                | M::Xgetbv
                | M::Xsetbv
                | M::Cli
                | M::Sti
                | M::Lds
                | M::Les
                | M::Bound
                | M::Lfs
                | M::Lgs
                | M::Lss
        )
        || (0..info.op_count()).any(|index| {
            matches!(
                info.op_kind(index),
                K::seg_reg | K::cr_reg | K::dr_reg | K::tr_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs
            )
        });
    // POPF may set TF, which the processor underneath would obey; the direction flag is varied from outside.
    let flags = matches!(info.mnemonic(), M::Popf | M::Popfq | M::Popfd);
    // Rarities.
    let unknown = matches!(info.mnemonic(), M::Maskmovq | M::Enter | M::Fnsetpm);
    // They refuse random memory: `extended_state` has these.
    let unknown = unknown || matches!(info.mnemonic(), M::Fxrstor | M::Fxrstor64 | M::Xrstor | M::Xrstor64);
    // A prefix and an instruction in one, which is executed as two.
    let unknown = unknown || info.fwait();
    branches || system || flags || unknown
}

/// Whether no 64-bit program can contain the form, or iced-x86 cannot encode it from its parts.
fn not_an_instruction(code: Code) -> bool {
    let info = code.op_code();
    !info.mode64()
        || !info.is_instruction()
        || !matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || matches!(info.mnemonic(), M::Ud0 | M::Ud1 | M::Ud2 | M::Reservednop)
}

/// All forms to compare.
pub(crate) fn forms() -> Vec<Code> {
    Code::values()
        .filter(|&code| code != Code::INVALID && !not_an_instruction(code))
        .filter(|&code| {
            let features = code.cpuid_features();
            !features.is_empty() && features.iter().all(|&feature| FEATURES.contains(&feature) || of_host(feature))
        })
        .filter(|&code| !left_out(code))
        .collect()
}

#[test]
fn no_family_is_forgotten() {
    let forms = forms();
    for code in [
        Code::Add_rm64_r64,
        Code::Imul_r32_rm32_imm8,
        Code::Shld_rm16_r16_CL,
        Code::Cmpxchg16b_m128,
        Code::Movsq_m64_m64,
        Code::Pshufb_xmm_xmmm128,
        Code::Cvttsd2si_r64_xmmm64,
        Code::Crc32_r64_rm8,
        Code::VEX_Pdep_r64_r64_rm64,
        Code::Pushfq,
        Code::Leaveq,
        Code::Fsin,
        Code::Paddb_mm_mmm64,
        Code::Pcmpistri_xmm_xmmm128_imm8,
        Code::VEX_Vaddps_ymm_ymm_ymmm256,
        Code::VEX_Vpgatherqd_xmm_vm64y_xmm,
    ] {
        assert!(forms.contains(&code), "{code:?}");
    }
    assert!(forms.len() > 1400, "{} forms", forms.len());
}
