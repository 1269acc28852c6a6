//! The memory that a launch has not filled, and that a kernel takes for granted: the code that makes a page after the other of
//! it usable, and jumps to the kernel.

use std::ops::Range;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rbp, rbx, rdi, rsi};
use privet_harness::units::PAGE_SIZE;

/// Where the loader's page has its ranges, behind its code.
const TABLE: u64 = 0x800;

/// Has `make_usable` do it with the page at RDI for each of the page's ranges, and jumps to `entry` with the address of the
/// boot parameters. RBX, RDI and RBP have to stay.
///
/// # Errors
/// If it does not assemble.
pub(super) fn walk_and_jump(
    code: &mut CodeAssembler,
    gpa: u64,
    boot_params: u64,
    entry: u64,
    make_usable: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let [mut next_range, mut next_page, mut done] = std::array::from_fn(|_| code.create_label());
    code.mov(rbx, gpa + TABLE)?;
    code.set_label(&mut next_range)?;
    code.mov(rdi, qword_ptr(rbx))?;
    code.mov(rbp, qword_ptr(rbx + 8))?;
    code.test(rbp, rbp)?;
    code.jz(done)?;
    code.set_label(&mut next_page)?;
    make_usable(code)?;
    code.add(rdi, PAGE_SIZE as i32)?;
    code.cmp(rdi, rbp)?;
    code.jb(next_page)?;
    code.add(rbx, 16)?;
    code.jmp(next_range)?;
    code.set_label(&mut done)?;
    code.mov(rsi, boot_params)?;
    code.mov(rax, entry)?;
    code.jmp(rax)
}

/// The loader's page: code, and behind it the ranges.
///
/// # Errors
/// If it does not assemble.
pub(super) fn page(code: &mut CodeAssembler, gpa: u64, ranges: &[Range<u64>]) -> Result<Vec<u8>, IcedError> {
    let mut page = code.assemble(gpa)?;
    page.resize(TABLE as usize, 0);
    for word in ranges.iter().flat_map(|range| [range.start, range.end]).chain([0, 0]) {
        page.extend(word.to_le_bytes());
    }
    page.resize(PAGE_SIZE as usize, 0);
    Ok(page)
}
