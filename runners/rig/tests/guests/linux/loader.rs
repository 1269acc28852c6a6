//! What runs in the guest before its kernel: it validates the memory that the launch of an SNP guest has not filled, which
//! is what a kernel takes for granted, and jumps to the kernel.

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, eax, ecx, edx, qword_ptr, rax, rbp, rbx, rdi, rdx, rsi};
use privet_harness::units::PAGE_SIZE;

const PVALIDATE: [u8; 4] = [0xf2, 0x0f, 0x01, 0xff];
const VMGEXIT: [u8; 4] = [0xf3, 0x0f, 0x01, 0xd9];
const GHCB_MSR: u32 = 0xc001_0130;
/// Ends the guest, for a general reason (GHCB specification 56421, 2.3.1).
const TERMINATE: u32 = 0x100;

/// The loader's page: code, and behind it the ranges to be validated. A page that was validated already, or cannot be,
/// ends the guest.
///
/// # Errors
/// If it does not assemble.
pub(crate) fn loader(gpa: u64, unvalidated: &[Range<u64>], boot_params: u64, entry: u64) -> Result<Vec<u8>, IcedError> {
    const TABLE: u64 = 0x800;
    let mut code = CodeAssembler::new(64)?;
    let [mut next_range, mut next_page, mut done, mut broken] = std::array::from_fn(|_| code.create_label());
    code.cli()?;
    code.mov(rbx, gpa + TABLE)?;
    code.set_label(&mut next_range)?;
    code.mov(rdi, qword_ptr(rbx))?;
    code.mov(rbp, qword_ptr(rbx + 8))?;
    code.test(rbp, rbp)?;
    code.jz(done)?;
    code.set_label(&mut next_page)?;
    code.mov(rax, rdi)?;
    code.xor(ecx, ecx)?;
    code.mov(edx, 1_u32)?;
    code.db(&PVALIDATE)?;
    code.jc(broken)?;
    code.test(eax, eax)?;
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
    code.mov(ecx, GHCB_MSR)?;
    code.mov(eax, TERMINATE)?;
    code.xor(rdx, rdx)?;
    code.wrmsr()?;
    code.db(&VMGEXIT)?;
    code.jmp(broken)?;
    let mut page = code.assemble(gpa)?;
    page.resize(TABLE as usize, 0);
    for word in unvalidated.iter().flat_map(|range| [range.start, range.end]).chain([0, 0]) {
        page.extend(word.to_le_bytes());
    }
    page.resize(PAGE_SIZE as usize, 0);
    Ok(page)
}
