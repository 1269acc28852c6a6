//! From one translated block to the next, without a look at the blocks' cache.
//!
//! Where a block ends by a branch whose target is known, it has a jump of its own for it, a *link*: at first out of the code,
//! and once the block there is translated, to that. Where the target comes from a register or from memory, it is looked up
//! in a small table of targets. Whoever comes to a block by one of them comes to its checks: that the CPU has no request,
//! that its turn is not over, and that the block is what the guest would fetch now. If not, the code ends, and says by which
//! [`Way`] it came there, so that the link or the table can be mended.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

use super::emitter::Emitter;
use super::layout::{CODE_VERSION, ENTRY_PAGE, ENTRY_READ, INSTRUCTIONS, KICK, REQUESTS, RIP, TLB_NUMBER, TURN_ENDS};
use crate::code::CodePage;
use crate::tlb::{self, Entry};

/// Targets are looked up among so many.
pub(super) const TARGETS: usize = 4096;

/// Where the code of a block is, for whoever comes to a RIP.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Target {
    pub(super) rip: u64,
    pub(super) code: u64,
}

impl Target {
    /// Not canonical: nobody comes there.
    pub(super) const NONE: Target = Target { rip: 1 << 63, code: 0 };

    /// Which of the [`TARGETS`] is for a RIP.
    pub(super) fn index(rip: u64) -> usize {
        (rip ^ rip >> 12) as usize % TARGETS
    }
}

/// By which way translated code came to where it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// One that is not made shorter.
    Any,
    /// By a target that is looked up.
    Target,
    /// By the link whose offset is at this place of the buffer.
    Link(u32),
}

/// The ways in edx that are no links.
const ANY: u32 = 0;
const TARGET: u32 = 1;

impl Way {
    pub(super) fn of_code(ended: u64) -> Way {
        match (ended >> 32) as u32 {
            ANY => Way::Any,
            TARGET => Way::Target,
            link => Way::Link(link),
        }
    }
}

/// What a block was decoded from: this place of a page, when that had this version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodeVersion<'a> {
    pub(crate) page: &'a CodePage,
    pub(crate) version: u32,
}

/// The checks before a block at `rip`, for who does not come from the cache. As [`crate::block`] makes them.
pub(super) fn checks(emitter: &mut Emitter<'_>, rip: u64, origin: CodeVersion<'_>) {
    let out = emitter.asm.new_dynamic_label();
    let body = emitter.asm.new_dynamic_label();
    let entry = (tlb::index(rip) * size_of::<Entry>()) as i32;
    let version_at = std::ptr::from_ref(origin.page).expose_provenance() + CODE_VERSION;
    let version = origin.version as i32;
    dynasm!(emitter.asm
        ; cmp rbp, [rbx + TURN_ENDS]
        ; jae =>out
        ; mov rax, [r14 + KICK]
        ; cmp DWORD [rax + REQUESTS], 0
        ; jne =>out
    );
    emitter.immediate(0, rip & !0xfff);
    dynasm!(emitter.asm
        ; or rax, [r12 + TLB_NUMBER]
        ; cmp rax, [r15 + entry + ENTRY_READ]
        ; jne =>out
    );
    emitter.immediate(0, origin.page.address() as u64);
    dynasm!(emitter.asm
        ; cmp rax, [r15 + entry + ENTRY_PAGE]
        ; jne =>out
    );
    emitter.immediate(0, version_at as u64);
    dynasm!(emitter.asm
        ; cmp DWORD [rax], version
        ; je =>body
        ; =>out
    );
    emitter.set_rip(rip);
    leave(emitter);
    dynasm!(emitter.asm; =>body);
}

/// Ends the code: RIP is set, and edx says by which way it came there.
fn leave(emitter: &mut Emitter<'_>) {
    dynasm!(emitter.asm
        ; mov [rbx + INSTRUCTIONS], rbp
        ; mov eax, edx
        ; shl rax, 32
        ; ret
    );
}

/// Goes on at a place that is known, behind the block.
pub(super) fn go_on(emitter: &mut Emitter<'_>, rip: u64) {
    let out = emitter.asm.new_dynamic_label();
    let at = emitter.place();
    // A move of 5 bytes, the opcode of the jump, and the link. The jump goes behind itself at first.
    let link = at + 6;
    dynasm!(emitter.asm
        ; mov edx, link as i32
        ; jmp =>out
        ; =>out
    );
    debug_assert_eq!(emitter.place(), link + 4, "the link is where it was said to be");
    emitter.set_rip(rip);
    leave(emitter);
}

/// Goes on at the place in rax, behind the block.
pub(super) fn go_on_at_target(emitter: &mut Emitter<'_>) {
    let out = emitter.asm.new_dynamic_label();
    let targets = emitter.targets;
    let mask = TARGETS as i32 - 1;
    dynasm!(emitter.asm
        ; mov rcx, rax
        ; shr rcx, 12
        ; xor ecx, eax
        ; and ecx, mask
        ; shl ecx, 4
        ; mov rsi, QWORD targets as i64
        ; add rsi, rcx
        ; mov edx, TARGET as i32
        ; cmp rax, [rsi]
        ; jne =>out
        ; jmp QWORD [rsi + 8]
        ; =>out
        ; mov [rbx + RIP], rax
    );
    leave(emitter);
}

/// The code that enters a block, see [`super::Enter`].
pub(super) fn enter() -> Vec<u8> {
    let mut asm: VecAssembler<X64Relocation> = VecAssembler::new(0);
    dynasm!(asm
        ; push rbx
        ; push rbp
        ; push r12
        ; push r13
        ; push r14
        ; push r15
        ; mov r14, rdi
        ; mov rbx, rsi
        ; mov r12, rdx
        ; mov r13, rcx
        ; mov r15, r9
        ; mov rbp, [rbx + INSTRUCTIONS]
        // The stack is aligned for calls, once the return address is on it.
        ; call r8
        ; pop r15
        ; pop r14
        ; pop r13
        ; pop r12
        ; pop rbp
        ; pop rbx
        ; ret
    );
    asm.finalize().expect("it has no labels")
}
