//! What runs in a TD before its kernel: the first processor accepts the memory that the launch has not filled, which is what
//! a kernel takes for granted, and jumps to the kernel; the others wait for it to wake them (ACPI specification 6.5, 5.2.12.19).

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ecx, esi, qword_ptr, r10, r10d, r11d, r12, rax, rbx, rcx, rdi, word_ptr,
};

use super::unfilled;

const TDCALL: [u8; 4] = [0x66, 0x0f, 0x01, 0xcc];
/// TDG.MEM.PAGE.ACCEPT.
const ACCEPT: u32 = 6;
/// ReportFatalError of TDG.VP.VMCALL, and the registers that the host sees of it: R10 to R12.
const REPORT_FATAL_ERROR: u32 = 0x1_0003;
const R10_TO_R12: u32 = 0x1c00;
/// Offsets in the mailbox.
const APIC_ID: i32 = 4;
const WAKEUP_VECTOR: i32 = 8;
const WAKE_UP: i32 = 1;

/// The loader's page: code, and behind it the ranges to be accepted. It is entered in 64-bit mode with the number of the
/// processor in RSI, which is its APIC ID, too. A page that cannot be accepted ends the TD.
///
/// # Errors
/// If it does not assemble.
pub(crate) fn loader(
    gpa: u64,
    unaccepted: &[Range<u64>],
    boot_params: u64,
    entry: u64,
    mailbox: u64,
) -> Result<Vec<u8>, IcedError> {
    let mut code = CodeAssembler::new(64)?;
    let [mut broken, mut wait] = std::array::from_fn(|_| code.create_label());
    code.cli()?;
    code.mov(rbx, mailbox)?;
    code.test(esi, esi)?;
    code.jnz(wait)?;

    unfilled::walk_and_jump(&mut code, gpa, boot_params, entry, |code| {
        code.mov(rcx, rdi)?;
        code.mov(eax, ACCEPT)?;
        code.db(&TDCALL)?;
        code.test(rax, rax)?;
        code.jnz(broken)
    })?;

    code.set_label(&mut broken)?;
    code.mov(r12, rax)?;
    code.xor(r10d, r10d)?;
    code.mov(r11d, REPORT_FATAL_ERROR)?;
    code.mov(ecx, R10_TO_R12)?;
    code.xor(eax, eax)?;
    code.db(&TDCALL)?;
    code.jmp(broken)?;

    code.set_label(&mut wait)?;
    code.pause()?;
    code.cmp(word_ptr(rbx), WAKE_UP)?;
    code.jne(wait)?;
    code.cmp(dword_ptr(rbx + APIC_ID), esi)?;
    code.jne(wait)?;
    code.mov(r10, qword_ptr(rbx + WAKEUP_VECTOR))?;
    // The operating system may use the mailbox for the next one.
    code.mov(word_ptr(rbx), 0)?;
    code.jmp(r10)?;

    unfilled::page(&mut code, gpa, unaccepted)
}
