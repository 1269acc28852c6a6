//! The entry point: from the state in which the host starts a vCPU to Rust.
//!
//! On entry: 64-bit mode, ring 0, interrupts off, low memory identity-mapped; RDI is the GVA of this vCPU's
//! mailbox, RSI its index. RSP means nothing.
#![expect(unsafe_code, reason = "the entry point has no stack and no caller that Rust knows")]

use core::arch::global_asm;

use privet_protocol::MAX_VCPUS;

use crate::exceptions::stub;
use crate::vcpu::{AREA_BYTES, AREAS, Vcpu};

global_asm!(
    ".section .text.privet.entry, \"ax\", @progbits",
    ".global _start",
    "_start:",
    // An index without a stack: no mailbox to say so in is known to be good, so shut down.
    "cmp rsi, {max_vcpus}",
    "jae 9f",
    "lea rax, [rsi + 1]",
    "imul rax, rax, {area_bytes}",
    "lea rsp, [rax + {areas}]",
    // Rust uses SSE. Write control registers only if something is missing: some VM types intercept writes.
    "mov rax, cr0",
    "mov rcx, rax",
    "and rcx, ~0xc", // EM, TS
    "or rcx, 0x2",   // MP
    "cmp rax, rcx",
    "je 2f",
    "mov cr0, rcx",
    "2: mov rax, cr4",
    "mov rcx, rax",
    "or rcx, 0x600", // OSFXSR, OSXMMEXCPT
    "cmp rax, rcx",
    "je 3f",
    "mov cr4, rcx",
    "3: fninit",
    "push 0x1f80", // All SSE exceptions masked.
    "ldmxcsr [rsp]",
    "pop rax",
    "cld",
    "xor ebp, ebp",
    "call {start}",
    "9: ud2",
    "jmp 9b",
    ".text",
    max_vcpus = const MAX_VCPUS,
    area_bytes = const AREA_BYTES,
    areas = sym AREAS,
    start = sym start,
);

unsafe extern "C" {
    /// The payload's own code, made by `payload!`.
    safe fn privet_main(vcpu: &'static Vcpu) -> !;
}

extern "C" fn start(mailbox: u64) -> ! {
    // SAFETY: `_start` runs once on each vCPU and has set up its stack; the host promises that RDI is the GVA
    // of this vCPU's mailbox for good.
    privet_main(unsafe { Vcpu::start(mailbox, stub) })
}
