//! Blocks that execute often, as machine code of the host.
//!
//! What an interpreter spends on an instruction is mostly the jump to its handler, which the host's processor cannot
//! predict. A translated block does the common forms of the common instructions in place ([`moves`], [`arithmetic`],
//! [`branch`], on what [`memory`] finds in the TLB), and calls the handlers of all others, and its own handler where an
//! instruction in place meets what it is not made for: a translation that is not in the TLB, an address that is not
//! canonical. Until then it has done nothing of the instruction. So there is one meaning of an instruction, its
//! handler's; that both do the same, flags that the architecture leaves undefined included, a test checks with programs
//! that run both ways.
//!
//! A translation belongs to its block, and is as good as the block is (see [`crate::block`]). One whose page tells of
//! writes looks itself whether it still is ([`chain`]), so that others can jump to it. Only 64-bit code is translated.
//! Where somebody watches each instruction (single steps, breakpoints, records) the handlers alone are used.
//!
//! ```text
//! execute ── block ── translate ── emitter ── moves, arithmetic, branch ── memory, flags
//!                         │           └────── chain                            layout
//!                         └── buffer: the code that enters blocks, and theirs
//! ```
#![expect(unsafe_code, reason = "machine code is made here, and called")]
#![expect(clippy::useless_conversion, reason = "dynasm! converts numbers of registers to what they are")]

mod arithmetic;
mod branch;
mod buffer;
mod chain;
mod emitter;
mod flags;
mod layout;
mod memory;
mod moves;

use iced_x86::{Decoder, DecoderOptions};

pub(crate) use buffer::CodeBuffer;
pub(crate) use chain::{CodeVersion, Way};
use emitter::Emitter;

use crate::core::Core;
use crate::op::Op;
use crate::state::CpuState;
use crate::tlb::{Entry, Tlbs};

/// How a block ended, and what translated code went on to from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All that was begun has executed. RIP is where it goes on, by this way.
    Done(Way),
    /// Likewise, and the last instruction may have changed what following code means.
    Changed,
    /// An instruction did not complete; RIP is at it. Its op's operand is, or is not, relative to the stack.
    Aborted { stack: bool },
    /// Behind an instruction that has completed something has to be seen to.
    Attention,
}

/// What a call of the code returns, in the low half; in the high half is the [`Way`].
const DONE: u64 = 0;
const ABORTED: u64 = 1;
const ABORTED_ON_STACK: u64 = 2;
const ATTENTION: u64 = 3;
const CHANGED: u64 = 4;

/// What the code that enters a block is called as: it has the host's registers saved, and set for the code.
type Enter = unsafe extern "sysv64" fn(
    core: *mut Core<'_>,
    registers: *mut u64,
    tlbs: *const Tlbs,
    entries: *const Entry,
    code: *const u8,
    fetches: *const Entry,
) -> u64;

/// Has the handler of an op execute it: at this RIP, so many instructions after RESET.
extern "sysv64" fn complete(core: &mut Core<'_>, op: &Op, rip: u64, instructions: u64) -> u64 {
    core.s.rip = rip;
    core.next_rip = rip.wrapping_add(u64::from(op.len));
    core.s.instructions = instructions;
    match (op.run)(core, op) {
        Err(_) if op.mem.stack => ABORTED_ON_STACK,
        Err(_) => ABORTED,
        Ok(()) => {
            core.s.instructions = core.s.instructions.wrapping_add(1);
            if core.attention { ATTENTION } else { DONE }
        }
    }
}

/// A block that is to be translated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// What it was decoded from, and where that is.
    pub(crate) code: &'a [u8],
    pub(crate) rip: u64,
    /// They stay where they are for as long as the translation is used.
    pub(crate) ops: &'a [Op],
    /// Where other translations may jump to it: what it checks then.
    pub(crate) origin: Option<CodeVersion<'a>>,
    /// Behind it the loop has to look around.
    pub(crate) changes_mode: bool,
}

/// Where a translated block is in the buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Translated {
    /// Where it is entered.
    start: u32,
    /// Where others jump to.
    checked: Option<u32>,
}

/// Puts the translation of a block into the buffer, or `None` if that is full.
pub(crate) fn translate(buffer: &mut CodeBuffer, source: Source<'_>) -> Option<Translated> {
    let mut decoder = Decoder::with_ip(64, source.code, source.rip, DecoderOptions::NONE);
    let instructions: Vec<_> = source.ops.iter().map(|_| decoder.decode()).collect();
    let (code, start) = Emitter::new(source, &instructions, buffer).block();
    let offset = buffer.add(&code)?;
    Some(Translated { start: offset + start, checked: source.origin.map(|_| offset) })
}

/// Executes a translated block of the buffer, whose ops are still where they were, and those that it jumps to.
#[inline(always)]
pub(crate) fn enter(core: &mut Core<'_>, buffer: &CodeBuffer, block: Translated) -> Ended {
    let enter = buffer.enter();
    let [entries, fetches] = core.tlbs.entries(core.view);
    let state: *mut CpuState = core.s;
    let tlbs: *const Tlbs = core.tlbs;
    // SAFETY: the buffer begins with code that `chain::enter` made, of this signature, and at the offset is what
    // `Emitter::block` made of the block that is about to execute. It accesses the state, the TLBs and the core at the
    // offsets that the compiler gave them, guest memory through an entry of the TLB as `Core::read` does, and the core as a
    // whole only in `complete`, during which it uses none of these pointers. All of them come from exclusive references.
    let ended = unsafe {
        let registers = (&raw mut (*state).gpr).cast::<u64>();
        enter(std::ptr::from_mut(core).cast(), registers, tlbs, entries, buffer.address(block.start), fetches)
    };
    match ended & u64::from(u32::MAX) {
        DONE => Ended::Done(Way::of_code(ended)),
        CHANGED => Ended::Changed,
        ATTENTION => Ended::Attention,
        aborted => Ended::Aborted { stack: aborted == ABORTED_ON_STACK },
    }
}
