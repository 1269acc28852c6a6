//! Hypercalls of KVM (Documentation/virt/kvm/x86/hypercalls.rst).
#![expect(unsafe_code, reason = "hypercalls take RBX, which is no operand that Rust offers")]

use core::arch::global_asm;

use privet_protocol::{HypercallInstruction, Sharing};

use crate::probe::Probed;
use crate::vcpu::Vcpu;

/// KVM_HC_MAP_GPA_RANGE.
const MAP_GPA_RANGE: u64 = 12;
/// Attribute of KVM_HC_MAP_GPA_RANGE: the range becomes encrypted, which is private.
const ENCRYPTED: u64 = 1 << 4;

global_asm!(
    // extern "C" fn(registers: rdi, instruction: rsi) -> (rax, rdx: 1 if the instruction faulted).
    ".section .text.privet.hypercall, \"ax\", @progbits",
    "privet_hypercall:",
    "push rbx",
    "mov r8, rsi",
    "mov r9d, 1",
    "mov rax, [rdi]",
    "mov rbx, [rdi + 8]",
    "mov rcx, [rdi + 16]",
    "mov rdx, [rdi + 24]",
    "mov rsi, [rdi + 32]",
    "cmp r8, {vmmcall}",
    "je 3f",
    "2: vmcall",
    "jmp 4f",
    "3: vmmcall",
    "4: xor r9d, r9d",
    "5: mov rdx, r9",
    "pop rbx",
    "ret",
    ".pushsection privet_probes, \"a\", @progbits",
    ".long 2b - .",
    ".long 4b - .",
    ".long 5b - .",
    ".popsection",
    ".text",
    vmmcall = const HypercallInstruction::Vmmcall as u64,
);

#[repr(C)]
struct Returned {
    rax: u64,
    faulted: u64,
}

unsafe extern "C" {
    fn privet_hypercall(registers: *const u64, instruction: u64) -> Returned;
}

/// A hypercall with RAX, RBX, RCX, RDX, RSI: RAX afterwards. The instruction itself may fault (#UD).
pub fn call(instruction: HypercallInstruction, registers: [u64; 5]) -> Probed<u64> {
    // SAFETY: the stub reads five registers. Like the Linux guest ABI, KVM's hypercalls change RAX only; what
    // one makes the host do to memory is the host's to choose.
    let Returned { rax, faulted } = unsafe { privet_hypercall(registers.as_ptr(), instruction as u64) };
    if faulted == 0 { Ok(rax) } else { Err(Vcpu::current().fault()) }
}

/// KVM_HC_MAP_GPA_RANGE: RAX afterwards.
pub fn map_gpa_range(instruction: HypercallInstruction, gpa: u64, pages: u64, attributes: u64) -> Probed<u64> {
    call(instruction, [MAP_GPA_RANGE, gpa, pages, attributes, 0])
}

/// The attributes of KVM_HC_MAP_GPA_RANGE for a conversion in pages of 4 KiB.
pub const fn attributes(to: Sharing) -> u64 {
    match to {
        Sharing::Shared => 0,
        Sharing::Private => ENCRYPTED,
    }
}
