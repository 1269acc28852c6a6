//! Where the code finds what it works on: registers of the host, and offsets from them.
//!
//! | register | holds |
//! |---|---|
//! | rbx | the guest's general registers, of a [`CpuState`] |
//! | rbp | what [`CpuState::instructions`] was before the first instruction of the block that executes |
//! | r12 | the [`Tlbs`] |
//! | r13 | the entries of the TLB for the current [`crate::paging::View`] |
//! | r14 | the [`Core`] |
//! | r15 | the entries of the TLB for fetches |
//!
//! The others are free within an instruction: addresses travel in rdi, values in rax and rcx, and the result of a condition,
//! from an instruction that sets flags to the next one, in r8b. From block to block edx tells by which link they came.

use std::mem::{offset_of, size_of};

use crate::code::CodePage;
use crate::core::Core;
use crate::kick::Kick;
use crate::op::Operand;
use crate::segment::Segment;
use crate::state::{CpuState, gpr};
use crate::tlb::{Entry, Tlbs};

/// From rbx.
const fn in_state(offset: usize) -> i32 {
    offset as i32 - offset_of!(CpuState, gpr) as i32
}

pub(super) const RIP: i32 = in_state(offset_of!(CpuState, rip));
pub(super) const RFLAGS: i32 = in_state(offset_of!(CpuState, rflags));
pub(super) const INSTRUCTIONS: i32 = in_state(offset_of!(CpuState, instructions));
pub(super) const TURN_ENDS: i32 = in_state(offset_of!(CpuState, turn_ends));
pub(super) const RAX: i8 = 8 * gpr::RAX as i8;
pub(super) const RDX: i8 = 8 * gpr::RDX as i8;
pub(super) const RSP: i8 = 8 * gpr::RSP as i8;
pub(super) const RBP: i8 = 8 * gpr::RBP as i8;

/// From r12.
pub(super) const TLB_NUMBER: i32 = offset_of!(Tlbs, number) as i32;

/// From r13 or r15 and the offset of an entry.
pub(super) const ENTRY_READ: i32 = offset_of!(Entry, read) as i32;
pub(super) const ENTRY_WRITE: i32 = offset_of!(Entry, write) as i32;
pub(super) const ENTRY_PAGE: i32 = offset_of!(Entry, page) as i32;

/// From r14.
pub(super) const NEXT_RIP: i32 = offset_of!(Core<'static>, next_rip) as i32;

pub(super) const KICK: i32 = offset_of!(Core<'static>, kick) as i32;

/// From the beginning of a [`CodePage`].
pub(super) const CODE_VERSION: usize = offset_of!(CodePage, version);

/// From the mailbox of the CPU.
pub(super) const REQUESTS: i32 = offset_of!(Kick, requests) as i32;

/// The base of a segment, from rbx.
pub(super) fn segment_base(seg: u8) -> i32 {
    in_state(offset_of!(CpuState, segments) + usize::from(seg) * size_of::<Segment>() + offset_of!(Segment, base))
}

/// Where a general register, or the part of it that an operand is, begins, from rbx.
pub(super) fn register(operand: Operand) -> Option<i8> {
    match operand {
        Operand::Gpr(index) => Some(8 * (index & 15) as i8),
        Operand::High(index) => Some(8 * (index & 3) as i8 + 1),
        _ => None,
    }
}
