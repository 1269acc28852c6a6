//! String instructions, with their repetitions.
//!
//! A repeated instruction executes as a loop that stays on the instruction: between two iterations the
//! state is that of an instruction which has yet to do the rest, so faults, exits and requests from
//! outside fit in anywhere.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::flags::{ARITHMETIC, DF, ZF};
use crate::op::{FLAT, Handler, Op, Operand, Rep, by_size};
use crate::segment::Seg;
use crate::state::gpr::{RAX, RCX, RDI, RSI};
use crate::word::{Word, sub_flags};

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    if !instruction.is_string_instruction() {
        return None;
    }
    let size = instruction.memory_size().size();
    match instruction.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => by_size!(size, movs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => by_size!(size, stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => by_size!(size, lods),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => by_size!(size, scas),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => by_size!(size, cmps),
        _ => None,
    }
}

/// So many iterations take the time of an instruction, so that a turn ends however long a repetition is.
const PORTION: u64 = 1024;

impl Core<'_> {
    /// How many iterations are left; 1 without a prefix.
    pub(crate) fn string_count(&self, op: &Op) -> u64 {
        if op.rep == Rep::None { 1 } else { self.s.gpr[RCX] & op.mem.address_mask() }
    }

    /// Linear address of the source element.
    pub(crate) fn string_source<T: Word>(&mut self, op: &Op) -> Result<u64, Abort> {
        let offset = self.s.gpr[RSI] & op.mem.address_mask();
        if op.mem.seg == FLAT { Ok(offset) } else { self.in_segment(op.mem.seg, offset, T::BYTES, false) }
    }

    /// Linear address of the destination element, which is always in ES.
    pub(crate) fn string_destination<T: Word>(&mut self, op: &Op, write: bool) -> Result<u64, Abort> {
        let offset = self.s.gpr[RDI] & op.mem.address_mask();
        if self.bits == 64 { Ok(offset) } else { self.in_segment(Seg::Es as u8, offset, T::BYTES, write) }
    }

    /// Linear address of the element in memory, before any checks.
    pub(crate) fn string_linear(&self, op: &Op, destination: bool) -> u64 {
        let (register, seg) = if destination { (RDI, Seg::Es as u8) } else { (RSI, op.mem.seg) };
        let offset = self.s.gpr[register] & op.mem.address_mask();
        match seg {
            seg if seg == FLAT || self.bits == 64 && seg < Seg::Fs as u8 => offset,
            seg => self.s.segments[usize::from(seg)].base.wrapping_add(offset),
        }
    }

    /// Moves an index register over `count` elements.
    pub(crate) fn advance<T: Word>(&mut self, op: &Op, register: usize, count: u64) {
        let bytes = count.wrapping_mul(T::BYTES as u64);
        let step = if self.flag(DF) { bytes.wrapping_neg() } else { bytes };
        self.set_counter(op, register, self.s.gpr[register].wrapping_add(step));
    }

    /// Counts `count` iterations off.
    pub(crate) fn count_down(&mut self, op: &Op, count: u64) {
        if op.rep != Rep::None {
            self.set_counter(op, RCX, self.s.gpr[RCX].wrapping_sub(count));
        }
    }

    fn set_counter(&mut self, op: &Op, register: usize, value: u64) {
        let operand = Operand::Gpr(register as u8);
        match op.mem.address_mask() {
            0xffff => self.set_register::<u16>(operand, value),
            0xffff_ffff => self.set_register::<u32>(operand, value),
            _ => self.s.gpr[register] = value,
        }
    }

    /// Whether the loop of a repeated instruction has to be left between two iterations; the
    /// instruction stays the next one.
    pub(crate) fn string_pauses(&mut self) -> bool {
        let pauses = self.stepping || self.attention || self.kick.any();
        if pauses {
            self.stay();
        }
        pauses
    }

    /// Whether a repeated instruction with so many iterations left has done a portion: it stays the next one, and has
    /// taken the time of an instruction. Where portions end depends on the count alone.
    pub(crate) fn portion_ends(&mut self, left: u64) -> bool {
        let ends = left.is_multiple_of(PORTION);
        if ends {
            self.next_rip = self.s.rip;
        }
        ends
    }

    /// Executes iterations until the count is used up or `once`, which does one or more and says how
    /// many, stops.
    fn repeat(&mut self, op: &Op, once: impl Fn(&mut Self, u64) -> Result<Iteration, Abort>) -> Result<(), Abort> {
        loop {
            let left = self.string_count(op);
            if left == 0 {
                return Ok(());
            }
            let iteration = once(self, (left - 1) % PORTION + 1)?;
            self.count_down(op, iteration.count);
            if op.rep == Rep::None || iteration.last || iteration.count == left {
                return Ok(());
            }
            if self.portion_ends(left - iteration.count) || self.string_pauses() {
                return Ok(());
            }
        }
    }
}

/// What one pass of the loop did.
struct Iteration {
    count: u64,
    /// The condition of REPE or REPNE ends the instruction.
    last: bool,
}

const ONE: Iteration = Iteration { count: 1, last: false };

/// Whether many elements may be moved at once.
fn in_bulk(core: &Core<'_>, op: &Op, left: u64) -> bool {
    left > 1 && op.rep != Rep::None && !core.flag(DF) && core.bits == 64 && !core.stepping
}

fn movs<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.repeat(op, |core, left| {
        let from = core.string_source::<T>(op)?;
        let to = core.string_destination::<T>(op, true)?;
        let mut count = if in_bulk(core, op, left) { core.bulk_move(to, from, left, T::BYTES as u64) } else { 0 };
        if count == 0 {
            let value = core.read::<T>(from)?;
            core.write::<T>(to, value)?;
            count = 1;
        }
        core.advance::<T>(op, RSI, count);
        core.advance::<T>(op, RDI, count);
        Ok(Iteration { count, last: false })
    })
}

fn stos<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.repeat(op, |core, left| {
        let to = core.string_destination::<T>(op, true)?;
        let value = core.s.gpr[RAX];
        let mut count = if in_bulk(core, op, left) { core.bulk_store(to, value, left, T::BYTES as u64) } else { 0 };
        if count == 0 {
            core.write::<T>(to, value)?;
            count = 1;
        }
        core.advance::<T>(op, RDI, count);
        Ok(Iteration { count, last: false })
    })
}

fn lods<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.repeat(op, |core, _| {
        let from = core.string_source::<T>(op)?;
        let value = core.read::<T>(from)?;
        core.set_register::<T>(Operand::Gpr(RAX as u8), value);
        core.advance::<T>(op, RSI, 1);
        Ok(ONE)
    })
}

/// Sets the flags of `a - b` and says whether the prefix goes on after that.
fn compared<T: Word>(core: &mut Core<'_>, op: &Op, a: u64, b: u64) -> Iteration {
    core.set_flags(ARITHMETIC, sub_flags::<T>(a, b, a.wrapping_sub(b) & T::MASK));
    Iteration { count: 1, last: condition_ends(core, op) }
}

/// Whether the condition of REPE or REPNE is no longer met.
fn condition_ends(core: &Core<'_>, op: &Op) -> bool {
    core.flag(ZF) != (op.rep == Rep::Equal)
}

fn scas<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.repeat(op, |core, left| {
        let at = core.string_destination::<T>(op, false)?;
        let accumulator = core.s.gpr[RAX] & T::MASK;
        if in_bulk(core, op, left) {
            let (count, flags) = core.bulk_scan(at, accumulator, left, T::BYTES as u64, op.rep == Rep::Equal);
            if count > 0 {
                core.set_flags(ARITHMETIC, flags);
                core.advance::<T>(op, RDI, count);
                return Ok(Iteration { count, last: condition_ends(core, op) });
            }
        }
        let value = core.read::<T>(at)?;
        core.advance::<T>(op, RDI, 1);
        Ok(compared::<T>(core, op, accumulator, value))
    })
}

fn cmps<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.repeat(op, |core, _| {
        let from = core.string_source::<T>(op)?;
        let at = core.string_destination::<T>(op, false)?;
        let a = core.read::<T>(from)?;
        let b = core.read::<T>(at)?;
        core.advance::<T>(op, RSI, 1);
        core.advance::<T>(op, RDI, 1);
        Ok(compared::<T>(core, op, a, b))
    })
}
