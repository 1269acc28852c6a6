//! Transfers to inner rings outside long mode: the stacks that the TSS names, and call gates (SDM volume 3, 5.8; APM
//! volume 2, 4.11 and 12.2). Hardware task switching does not exist here, and says so.

use crate::core::{Abort, Core};
use crate::exception::{Exception, vector};
use crate::exit::MAX_INSTRUCTION_BYTES;
use crate::paging::View;
use crate::segment::{Seg, Segment};
use crate::state::gpr;

const TSS16: u8 = 0x1;
const CALL16: u8 = 0x4;
const TASK: u8 = 0x5;
const TSS32: u8 = 0x9;
const CALL32: u8 = 0xc;

/// Where a far JMP or CALL goes.
pub(crate) enum Target {
    /// To the offset that it says, in this segment.
    Code(Segment),
    Gate(CallGate),
}

/// A call gate whose checks have passed, and its code segment.
pub(crate) struct CallGate {
    pub(crate) offset: u64,
    pub(crate) segment: Segment,
    /// Of 32 bits, not 16.
    pub(crate) wide: bool,
    /// How many words go from the old stack to the new one.
    parameters: u8,
}

impl Core<'_> {
    /// What a far JMP, or CALL, to `selector` leads to.
    pub(crate) fn far_target(&mut self, selector: u16, call: bool) -> Result<Target, Abort> {
        if selector & !3 == 0 {
            return self.raise(Exception::gp(0));
        }
        let code = u32::from(selector & !3);
        let (descriptor, at) = self.descriptor(selector, Exception::gp(code))?;
        if descriptor.code_or_data {
            return Ok(Target::Code(self.code_segment(selector, false)?));
        }
        let level = self.s.cpl().max((selector & 3) as u8);
        match descriptor.kind {
            CALL16 | CALL32 if !self.s.long_mode() => {}
            // Task switches, and gates of 16 bytes.
            TSS16 | TSS32 | TASK if !self.s.long_mode() => return self.give_up(MAX_INSTRUCTION_BYTES),
            CALL32 => return self.give_up(MAX_INSTRUCTION_BYTES),
            _ => return self.raise(Exception::gp(code)),
        }
        if descriptor.dpl < level {
            return self.raise(Exception::gp(code));
        }
        if !descriptor.present {
            return self.raise(Exception::with_code(vector::NP, code));
        }
        let raw = self.read_system::<u64>(at)?;
        let wide = descriptor.kind == CALL32;
        let offset = raw & 0xffff | if wide { raw >> 32 & 0xffff_0000 } else { 0 };
        let segment = self.gate_segment((raw >> 16) as u16, call)?;
        if offset > u64::from(segment.limit) {
            return self.raise(Exception::gp(0));
        }
        Ok(Target::Gate(CallGate { offset, segment, wide, parameters: (raw >> 32 & 0x1f) as u8 }))
    }

    /// The code segment that a call gate names. Only a CALL may go to an inner ring.
    fn gate_segment(&mut self, selector: u16, call: bool) -> Result<Segment, Abort> {
        if selector & !3 == 0 {
            return self.raise(Exception::gp(0));
        }
        let code = u32::from(selector & !3);
        let (mut segment, at) = self.descriptor(selector, Exception::gp(code))?;
        let cpl = self.s.cpl();
        let inner_allowed = call || segment.is_conforming();
        if !segment.is_code() || segment.dpl > cpl || segment.dpl < cpl && !inner_allowed {
            return self.raise(Exception::gp(code));
        }
        if !segment.present {
            return self.raise(Exception::with_code(vector::NP, code));
        }
        self.set_accessed(&mut segment, at)?;
        let level = if segment.is_conforming() { cpl } else { segment.dpl };
        segment.selector = selector & !3 | u16::from(level);
        Ok(segment)
    }

    /// Pushes what CALL pushes through a gate, onto the stack of the inner ring if it goes there.
    pub(crate) fn call_through(&mut self, gate: &CallGate, return_rip: u64) -> Result<(), Abort> {
        let old_cs = u64::from(self.s.segment(Seg::Cs).selector);
        let level = (gate.segment.selector & 3) as u8;
        if level == self.s.cpl() {
            return self.push_all_or_none(gate.wide, &[old_cs, return_rip]);
        }
        let mut frame = self.old_stack().to_vec();
        let width = if gate.wide { 4 } else { 2 };
        for index in (0..u64::from(gate.parameters)).rev() {
            let value =
                if gate.wide { self.stack_read::<u32>(index * width) } else { self.stack_read::<u16>(index * width) };
            frame.push(value?);
        }
        frame.extend([old_cs, return_rip]);
        self.push_on_inner_stack(level, 0, gate.wide, &frame)
    }

    /// SS and ESP as a transfer to an inner ring pushes them.
    pub(crate) fn old_stack(&self) -> [u64; 2] {
        [u64::from(self.s.segment(Seg::Ss).selector), self.s.gpr[gpr::RSP]]
    }

    /// Switches to the stack that the TSS has for a ring, and pushes these words there. `ext` is EXT of error codes.
    /// If it fails, the old stack is in place.
    pub(crate) fn push_on_inner_stack(&mut self, ring: u8, ext: u32, wide: bool, words: &[u64]) -> Result<(), Abort> {
        let (stack, top) = self.inner_stack(ring, ext)?;
        let old = (self.s.segments[Seg::Ss as usize], self.s.gpr[gpr::RSP], self.view);
        self.s.segments[Seg::Ss as usize] = stack;
        self.s.gpr[gpr::RSP] = top;
        self.view = View::Supervisor;
        words.iter().try_for_each(|&word| self.push_word(wide, word)).inspect_err(|_| {
            (self.s.segments[Seg::Ss as usize], self.s.gpr[gpr::RSP], self.view) = old;
        })
    }

    /// Pushes words of 32 or 16 bits; if one cannot be, the stack is as before.
    pub(crate) fn push_all_or_none(&mut self, wide: bool, words: &[u64]) -> Result<(), Abort> {
        let rsp = self.s.gpr[gpr::RSP];
        words.iter().try_for_each(|&word| self.push_word(wide, word)).inspect_err(|_| self.s.gpr[gpr::RSP] = rsp)
    }

    fn push_word(&mut self, wide: bool, value: u64) -> Result<(), Abort> {
        if wide { self.push::<u32>(value) } else { self.push::<u16>(value) }
    }

    /// The stack that the TSS has for a ring, checked.
    fn inner_stack(&mut self, ring: u8, ext: u32) -> Result<(Segment, u64), Abort> {
        let wide = self.s.tr.kind & 8 != 0;
        let (offset, width) = if wide { (4 + u64::from(ring) * 8, 4) } else { (2 + u64::from(ring) * 4, 2) };
        if offset + width + 1 > u64::from(self.s.tr.limit) {
            return self.raise(Exception::with_code(vector::TS, u32::from(self.s.tr.selector & !3) | ext));
        }
        let at = self.s.tr.base.wrapping_add(offset);
        let top = if wide { self.read_system::<u32>(at)? } else { self.read_system::<u16>(at)? };
        let selector = self.read_system::<u16>(at.wrapping_add(width))? as u16;
        let code = u32::from(selector & !3) | ext;
        let invalid = Exception::with_code(vector::TS, code);
        if selector & !3 == 0 {
            return self.raise(Exception::with_code(vector::TS, ext));
        }
        let (mut segment, at) = self.descriptor(selector, invalid)?;
        if selector & 3 != u16::from(ring) || segment.dpl != ring || !segment.is_writable() {
            return self.raise(invalid);
        }
        if !segment.present {
            return self.raise(Exception::ss(code));
        }
        self.set_accessed(&mut segment, at)?;
        Ok((segment, top))
    }
}
