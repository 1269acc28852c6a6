//! Accesses that may fault: the fault is the result.
#![expect(unsafe_code, reason = "accesses whatever address the host names")]

use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::{Fault, Width};

use crate::vcpu::Vcpu;

/// The result of an access.
pub type Probed<T = ()> = Result<T, Fault>;

/// Executes the instructions in the first brackets. If one of them faults, what follows it is left out and the
/// result is the fault. Operands as in `asm!`; `rflags` and memory count as changed.
macro_rules! probe {
    ([$($instruction:literal),+ $(,)?], $($operands:tt)*) => {{
        let failed: u32;
        // SAFETY: the address is the host's. All memory of a guest is the host's to read and write at any
        // time, so an access that it asks the guest for can do nothing that it could not do itself; a fault
        // comes back here by the table of probes.
        unsafe {
            asm!(
                "mov {failed:e}, 1",
                "772:",
                $($instruction,)+
                "773:",
                "xor {failed:e}, {failed:e}",
                "774:",
                ".pushsection privet_probes, \"a\", @progbits",
                ".long 772b - .",
                ".long 773b - .",
                ".long 774b - .",
                ".popsection",
                failed = out(reg) failed,
                $($operands)*
            )
        };
        if failed == 0 { Ok(()) } else { Err(Vcpu::current().fault()) }
    }};
}
pub(crate) use probe;

/// Loads one value. In these registers, because the handler of #VC (`vc`) knows only these instructions.
pub fn read(gva: u64, width: Width) -> Probed<u64> {
    let mut value: u64 = 0;
    match width {
        Width::B1 => probe!(["mov al, [rdi]"], in("rdi") gva, inout("rax") value),
        Width::B2 => probe!(["mov ax, [rdi]"], in("rdi") gva, inout("rax") value),
        Width::B4 => probe!(["mov eax, [rdi]"], in("rdi") gva, inout("rax") value),
        Width::B8 => probe!(["mov rax, [rdi]"], in("rdi") gva, inout("rax") value),
    }?;
    Ok(value)
}

/// Stores one value, likewise.
pub fn write(gva: u64, width: Width, value: u64) -> Probed {
    match width {
        Width::B1 => probe!(["mov [rdi], al"], in("rdi") gva, in("rax") value),
        Width::B2 => probe!(["mov [rdi], ax"], in("rdi") gva, in("rax") value),
        Width::B4 => probe!(["mov [rdi], eax"], in("rdi") gva, in("rax") value),
        Width::B8 => probe!(["mov [rdi], rax"], in("rdi") gva, in("rax") value),
    }
}

/// Fills `words` 8-byte words with `value`.
pub fn fill(gva: u64, words: u64, value: u64) -> Probed {
    probe!(["rep stosq"], inout("rdi") gva => _, inout("rcx") words => _, in("rax") value)
}

/// The index of the first of `words` 8-byte words that is not `value`.
pub fn first_other_than(gva: u64, words: u64, value: u64) -> Probed<Option<u64>> {
    let (differs, left): (u8, u64);
    probe!(
        // The XOR sets ZF, which stays if there is no word at all.
        ["xor edx, edx", "repe scasq", "setne dl"],
        inout("rdi") gva => _,
        inout("rcx") words => left,
        in("rax") value,
        out("dl") differs,
    )?;
    Ok((differs != 0).then(|| words - left - 1))
}

/// The index of the first of `words` 8-byte words that is `value`.
pub fn first_equal_to(gva: u64, words: u64, value: u64) -> Probed<Option<u64>> {
    let (equals, left): (u8, u64);
    probe!(
        // The OR clears ZF, which stays if there is no word at all.
        ["or edx, 1", "repne scasq", "sete dl"],
        inout("rdi") gva => _,
        inout("rcx") words => left,
        in("rax") value,
        out("dl") equals,
    )?;
    Ok((equals != 0).then(|| words - left - 1))
}

/// `lock cmpxchg` of 8 bytes: what was there before.
pub fn compare_exchange(gva: u64, expected: u64, new: u64) -> Probed<u64> {
    let before;
    probe!(["lock cmpxchg [{a}], {n}"], a = in(reg) gva, n = in(reg) new, inout("rax") expected => before)?;
    Ok(before)
}

/// `lock xadd` of 8 bytes: what was there before.
pub fn fetch_add(gva: u64, addend: u64) -> Probed<u64> {
    let before;
    probe!(["lock xadd [{a}], {v}"], a = in(reg) gva, v = inout(reg) addend => before)?;
    Ok(before)
}

/// RDMSR.
pub fn read_msr(msr: u32) -> Probed<u64> {
    let (low, high): (u32, u32);
    probe!(["rdmsr"], in("ecx") msr, out("eax") low, out("edx") high)?;
    Ok(u64::from(high) << 32 | u64::from(low))
}

/// WRMSR.
pub fn write_msr(msr: u32, value: u64) -> Probed {
    probe!(["wrmsr"], in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

global_asm!(
    // extern "C" fn(gva: rdi, argument: rsi, execute: rdx) -> rax: 1 if the called code returned, 0 if it
    // faulted. RDX points to `Vcpu::execute`.
    ".section .text.privet.execute, \"ax\", @progbits",
    "privet_execute:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdx",
    "mov [rdx], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "pop rdx",
    "mov qword ptr [rdx], 0",
    "mov [rdx + 8], rax",
    "mov eax, 1",
    "jmp 3f",
    // Exceptions in the called code end up here, with RSP as it was stored.
    "privet_execute_faulted:",
    "cld",
    "pop rdx",
    "xor eax, eax",
    "3: pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".text",
);

/// Calls `extern "C" fn(u64) -> u64` at an address. An exception in there, wherever it comes from, ends the
/// call; the code may leave nothing but caller-saved registers changed.
pub fn execute(gva: u64, argument: u64) -> Probed<u64> {
    let vcpu = Vcpu::current();
    // SAFETY: the host vouches for the code, as the documentation says; `execute` is the pair of words that
    // the stub wants, and only this vCPU uses it.
    match unsafe { privet_execute(gva, argument, vcpu.execute.as_ptr().cast_mut().cast()) } {
        0 => Err(vcpu.fault()),
        _ => Ok(vcpu.execute[1].load(Relaxed)),
    }
}

unsafe extern "C" {
    fn privet_execute(gva: u64, argument: u64, execute: *mut u64) -> u64;
    safe static privet_execute_faulted: u8;
}

/// Where the called code of [`execute`] goes on after a fault.
pub(crate) fn execute_faulted() -> u64 {
    &raw const privet_execute_faulted as u64
}
