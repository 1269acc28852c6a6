//! A block op by op: what is done in place, where the handlers are called, and the ways out.

use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler, dynasm};
use iced_x86::Instruction;

use super::layout::{INSTRUCTIONS, NEXT_RIP, RIP};
use super::{CHANGED, CodeBuffer, DONE, Source, arithmetic, branch, chain, complete, flags, moves};
use crate::op::Operand;

/// Where execution goes on behind an instruction in place.
pub(super) enum Next {
    /// Behind it.
    Following,
    Known(u64),
    /// At the place in rax.
    Target,
    /// At the second place if r8b is not 0, else at the first.
    Either(u64, u64),
}

/// Emits one block.
pub(super) struct Emitter<'a> {
    pub(super) asm: VecAssembler<X64Relocation>,
    source: Source<'a>,
    instructions: &'a [Instruction],
    /// Where in the buffer it will be, and where the table of targets is.
    offset: u32,
    pub(super) targets: u64,
    /// The instruction that is being emitted.
    index: usize,
    /// Where its handler is called, and whether something jumps there.
    slow: DynamicLabel,
    slow_is_used: bool,
    leave: DynamicLabel,
    detours: Vec<Detour>,
}

/// A call of a handler off the way of a block.
struct Detour {
    index: usize,
    rip: u64,
    start: DynamicLabel,
    /// Where it goes on; there is nothing behind the last instruction.
    back: Option<DynamicLabel>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(source: Source<'a>, instructions: &'a [Instruction], buffer: &CodeBuffer) -> Emitter<'a> {
        let mut asm = VecAssembler::new(0);
        let [slow, leave] = [(); 2].map(|()| asm.new_dynamic_label());
        Emitter {
            asm,
            source,
            instructions,
            offset: buffer.next_offset(),
            targets: buffer.targets(),
            index: 0,
            slow,
            slow_is_used: false,
            leave,
            detours: Vec::new(),
        }
    }

    /// The code of the block, and where in it the block begins, behind the checks.
    pub(super) fn block(mut self) -> (Vec<u8>, u32) {
        let Source { ops, origin, .. } = self.source;
        let mut rip = self.source.rip;
        if let Some(origin) = origin {
            chain::checks(&mut self, rip, origin);
        }
        let start = self.place() - self.offset;
        let mut last = None;
        for (index, op) in ops.iter().enumerate() {
            self.index = index;
            self.slow = self.asm.new_dynamic_label();
            self.slow_is_used = false;
            let next = rip.wrapping_add(u64::from(op.len));
            last = self.in_place(next);
            if last.is_none() {
                self.call_handler(index, rip);
            } else if self.slow_is_used {
                let back = (index + 1 < ops.len()).then(|| self.asm.new_dynamic_label());
                self.detours.push(Detour { index, rip, start: self.slow, back });
                if let Some(back) = back {
                    dynasm!(self.asm; =>back);
                }
            }
            rip = next;
        }
        match last {
            Some(next) => {
                let count = ops.len() as i32;
                dynasm!(self.asm; add rbp, count);
                self.go_on(next, rip);
            }
            None => self.handled(),
        }
        for detour in std::mem::take(&mut self.detours) {
            dynasm!(self.asm; =>detour.start);
            self.call_handler(detour.index, detour.rip);
            match detour.back {
                Some(back) => {
                    if let Some(condition) = self.condition_behind(detour.index) {
                        flags::evaluate(&mut self, condition);
                    }
                    dynasm!(self.asm; jmp =>back);
                }
                None => self.handled(),
            }
        }
        dynasm!(self.asm; =>self.leave; ret);
        (self.asm.finalize().expect("all labels are defined, and near"), start)
    }

    /// Emits the current instruction; `None`, with nothing emitted, if its handler has to execute it.
    fn in_place(&mut self, next: u64) -> Option<Next> {
        let (instruction, op) = (&self.instructions[self.index], &self.source.ops[self.index]);
        let is_last = self.index + 1 == self.source.ops.len();
        let address_is_strange = [op.a, op.b].contains(&Operand::Mem) && !Emitter::knows_address(&op.mem);
        if op.lock || address_is_strange || is_last && self.source.changes_mode {
            return None;
        }
        if moves::emit(self, instruction, op).or_else(|| arithmetic::emit(self, instruction, op)).is_some() {
            return Some(Next::Following);
        }
        branch::emit(self, instruction, op, next)
    }

    /// What comes behind the block, whose last instruction was done in place.
    fn go_on(&mut self, next: Next, following: u64) {
        match next {
            Next::Following => chain::go_on(self, following),
            Next::Known(rip) => chain::go_on(self, rip),
            Next::Target => chain::go_on_at_target(self),
            Next::Either(not, then) => {
                let taken = self.asm.new_dynamic_label();
                dynasm!(self.asm; test r8b, r8b; jne =>taken);
                chain::go_on(self, not);
                dynasm!(self.asm; =>taken);
                chain::go_on(self, then);
            }
        }
    }

    /// The last instruction was executed by its handler.
    fn handled(&mut self) {
        let ended = if self.source.changes_mode { CHANGED } else { DONE };
        dynasm!(self.asm
            ; mov rax, [r14 + NEXT_RIP]
            ; mov [rbx + RIP], rax
            ; mov eax, ended as i32
            ; ret
        );
    }

    fn call_handler(&mut self, index: usize, rip: u64) {
        let op = (&raw const self.source.ops[index]).expose_provenance() as i64;
        let handler = (complete as *const ()).expose_provenance() as i64;
        let count = index as i32;
        dynasm!(self.asm
            ; mov rdi, r14
            ; mov rsi, QWORD op
        );
        self.immediate(2, rip);
        dynasm!(self.asm
            ; lea rcx, [rbp + count]
            ; mov rax, QWORD handler
            ; call rax
            ; test eax, eax
            ; jne =>self.leave
        );
        if index + 1 < self.source.ops.len() {
            // The handler may have had more to do than count to one.
            dynasm!(self.asm
                ; mov rbp, [rbx + INSTRUCTIONS]
                ; sub rbp, count + 1
            );
        }
    }

    /// Where the next byte will be in the buffer.
    pub(super) fn place(&self) -> u32 {
        self.offset + self.asm.offset().0 as u32
    }

    /// Where the handler executes the current instruction, which has done nothing yet.
    pub(super) fn slow(&mut self) -> DynamicLabel {
        self.slow_is_used = true;
        self.slow
    }

    /// A constant in a register of the host, by its number.
    pub(super) fn immediate(&mut self, register: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            dynasm!(self.asm; mov Rd(register), value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            dynasm!(self.asm; mov Rq(register), value);
        } else {
            dynasm!(self.asm; mov Rq(register), QWORD value as i64);
        }
    }

    /// Execution goes on at a place that is known; edx stays.
    pub(super) fn set_rip(&mut self, rip: u64) {
        if let Ok(value) = i32::try_from(rip as i64) {
            dynasm!(self.asm; mov QWORD [rbx + RIP], value);
        } else {
            self.immediate(1, rip);
            dynasm!(self.asm; mov [rbx + RIP], rcx);
        }
    }

    /// The condition that the instruction behind this one tests, if it wants it in r8b.
    fn condition_behind(&self, index: usize) -> Option<u8> {
        let (setter, user) = (self.instructions.get(index)?, self.instructions.get(index + 1)?);
        let condition = branch::condition(user)?;
        (!self.source.ops[index].lock && flags::keeps(setter, condition)).then_some(condition)
    }

    /// The condition that the current instruction leaves in r8b for the next one.
    pub(super) fn wanted_condition(&self) -> Option<u8> {
        self.condition_behind(self.index)
    }

    /// Whether the current instruction finds its condition in r8b already.
    pub(super) fn has_condition(&self) -> bool {
        self.index > 0 && self.condition_behind(self.index - 1).is_some()
    }

    /// Whether anybody can see the flags that the current instruction sets.
    pub(super) fn flags_are_seen(&self) -> bool {
        if self.wanted_condition().is_some() {
            return true;
        }
        let behind = self.instructions.iter().zip(self.source.ops).skip(self.index + 1);
        for (instruction, op) in behind {
            if op.lock || [op.a, op.b, op.c].contains(&Operand::Mem) {
                return true;
            }
            match flags::effect(instruction) {
                flags::Effect::None => {}
                flags::Effect::Overwrites => return false,
                flags::Effect::Other => return true,
            }
        }
        true
    }
}
