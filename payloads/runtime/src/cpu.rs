//! Instructions that need no protection against faults.
#![expect(unsafe_code, reason = "an instruction without a name in Rust")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(leaf, subleaf);
    [eax, ebx, ecx, edx]
}

/// `ud2`: raises #UD. A function of its own, so that a failure report can name it.
#[inline(never)]
pub fn undefined_instruction() -> ! {
    // SAFETY: the instruction does nothing but raise an exception, which does not return.
    unsafe { asm!("ud2", options(noreturn)) }
}
