//! What runs in a TD before its kernel: the first processor accepts the memory that the launch has not filled, which is what
//! a kernel takes for granted, and jumps to the kernel; the others wait for it to wake them (ACPI specification 6.5, 5.2.12.19).

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ecx, esi, qword_ptr, r10, r10d, r11d, r12, rax, rbp, rbx, rcx, rdi, rsi, word_ptr,
};
use privet_harness::units::PAGE_SIZE;

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
    const TABLE: u64 = 0x800;
    let mut code = CodeAssembler::new(64)?;
    let [mut next_range, mut next_page, mut done, mut broken, mut wait] = std::array::from_fn(|_| code.create_label());
    code.cli()?;
    code.mov(rbx, mailbox)?;
    code.test(esi, esi)?;
    code.jnz(wait)?;

    code.mov(rbx, gpa + TABLE)?;
    code.set_label(&mut next_range)?;
    code.mov(rdi, qword_ptr(rbx))?;
    code.mov(rbp, qword_ptr(rbx + 8))?;
    code.test(rbp, rbp)?;
    code.jz(done)?;
    code.set_label(&mut next_page)?;
    code.mov(rcx, rdi)?;
    code.mov(eax, ACCEPT)?;
    code.db(&TDCALL)?;
    code.test(rax, rax)?;
    code.jnz(broken)?;
    code.add(rdi, PAGE_SIZE as i32)?;
    code.cmp(rdi, rbp)?;
    code.jb(next_page)?;
    code.add(rbx, 16)?;
    code.jmp(next_range)?;
    code.set_label(&mut done)?;
    code.mov(rsi, boot_params)?;
    code.mov(rax, entry)?;
    code.jmp(rax)?;

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

    let mut page = code.assemble(gpa)?;
    page.resize(TABLE as usize, 0);
    for word in unaccepted.iter().flat_map(|range| [range.start, range.end]).chain([0, 0]) {
        page.extend(word.to_le_bytes());
    }
    page.resize(PAGE_SIZE as usize, 0);
    Ok(page)
}
