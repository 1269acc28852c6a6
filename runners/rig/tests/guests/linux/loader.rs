//! What runs in the guest before its kernel: it validates the memory that the launch of an SNP guest has not filled, which
//! is what a kernel takes for granted, and jumps to the kernel.

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, eax, ecx, edx, rax, rdi, rdx};

use super::unfilled;

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
    let mut code = CodeAssembler::new(64)?;
    let mut broken = code.create_label();
    code.cli()?;
    unfilled::walk_and_jump(&mut code, gpa, boot_params, entry, |code| {
        code.mov(rax, rdi)?;
        code.xor(ecx, ecx)?;
        code.mov(edx, 1_u32)?;
        code.db(&PVALIDATE)?;
        code.jc(broken)?;
        code.test(eax, eax)?;
        code.jnz(broken)
    })?;
    code.set_label(&mut broken)?;
    code.mov(ecx, GHCB_MSR)?;
    code.mov(eax, TERMINATE)?;
    code.xor(rdx, rdx)?;
    code.wrmsr()?;
    code.db(&VMGEXIT)?;
    code.jmp(broken)?;
    unfilled::page(&mut code, gpa, unvalidated)
}
