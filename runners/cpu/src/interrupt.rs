//! Delivery of exceptions and interrupts through the IDT (SDM volume 3, chapter 6; APM volume 2, 8).

use crate::bus::Reaction;
use crate::config::Vendor;
use crate::core::{Abort, Core, Why};
use crate::exception::{Exception, vector};
use crate::exit::{CpuExit, MAX_INSTRUCTION_BYTES};
use crate::flags;
use crate::memory::is_canonical;
use crate::segment::{Seg, Segment};
use crate::state::{Injection, Shadow, cr0, gpr};

/// Bit 0 of an error code: the event came from outside the program.
const EXT: u32 = 1;
/// Bit 1 of an error code: the rest is an index into the IDT.
const IDT: u32 = 2;

const GATE_TASK: u8 = 0x5;
const GATE_INTERRUPT16: u8 = 0x6;
const GATE_TRAP16: u8 = 0x7;
const GATE_INTERRUPT32: u8 = 0xe;
const GATE_TRAP32: u8 = 0xf;

/// A descriptor of the IDT.
struct Gate {
    selector: u16,
    offset: u64,
    kind: u8,
    dpl: u8,
    present: bool,
    /// Interrupt stack table entry, 0 for none.
    ist: u8,
}

impl Gate {
    fn is_interrupt(&self) -> bool {
        matches!(self.kind, GATE_INTERRUPT16 | GATE_INTERRUPT32)
    }
}

/// What is delivered, reduced to what delivery depends on.
#[derive(Clone, Copy)]
struct Delivery {
    vector: u8,
    error_code: Option<u32>,
    software: bool,
    /// EXT, or 0 for software interrupts.
    ext: u32,
    /// Pushed with RF set: a fault.
    resume: bool,
}

impl Core<'_> {
    /// Delivers an exception that was raised, unless the bus takes it.
    ///
    /// # Errors
    /// As [`Core::deliver_all`].
    pub(crate) fn raised(&mut self, exception: Exception) -> Result<(), CpuExit> {
        match self.escalate(exception)? {
            Some(exception) => self.deliver_all(Injection::Exception(exception)),
            None => Ok(()),
        }
    }

    /// Delivers an event, and what goes wrong while delivering it, up to a triple fault.
    ///
    /// # Errors
    /// `run` has to return this; the event that was being delivered is kept for the next time.
    pub(crate) fn deliver_all(&mut self, injection: Injection) -> Result<(), CpuExit> {
        let mut current = injection;
        loop {
            self.s.injection = None;
            self.s.vectoring = Some(current);
            let rip = self.s.rip;
            let delivered = self.deliver(current, rip);
            self.update_mode();
            if delivered.is_ok() {
                self.s.vectoring = None;
                self.s.shadow = Shadow::None;
                self.s.instructions = self.s.instructions.wrapping_add(1);
                return Ok(());
            }
            let nested = match self.why {
                Why::Exit(exit) => {
                    (self.s.injection, self.s.vectoring) = (Some(current), None);
                    return Err(exit);
                }
                // The emulator delivers nothing.
                Why::Emulate(gpa) => {
                    (self.s.injection, self.s.vectoring) = (Some(current), None);
                    return Err(CpuExit::NoMemory { gpa });
                }
                Why::Switched => {
                    self.enter_world();
                    return Ok(());
                }
                Why::NonCanonical => Exception::gp(0),
                Why::Exception(nested) => nested,
            };
            match self.escalate(nested)? {
                Some(exception) => current = Injection::Exception(exception),
                None => return Ok(()),
            }
        }
    }

    /// What is to be delivered now that `exception` was raised, perhaps while [`CpuState::vectoring`] was
    /// delivered; `None` if the bus has taken it to another world.
    ///
    /// [`CpuState::vectoring`]: crate::CpuState::vectoring
    ///
    /// # Errors
    /// A triple fault.
    fn escalate(&mut self, exception: Exception) -> Result<Option<Exception>, CpuExit> {
        let vectoring = self.s.vectoring;
        let mut reaction = self.react(|bus, state| bus.exception(state, exception));
        let mut result = exception;
        if reaction == Reaction::Native
            && let Some(Injection::Exception(first)) = vectoring
        {
            match combine(first, exception) {
                Some(combined) if combined == exception => {}
                Some(double) => {
                    reaction = self.react(|bus, state| bus.exception(state, double));
                    result = double;
                }
                None => {
                    reaction = self.react(|bus, state| bus.shutdown(state));
                    if reaction == Reaction::Native {
                        self.s.vectoring = None;
                        return Err(CpuExit::Shutdown);
                    }
                }
            }
        }
        if reaction == Reaction::Switched {
            self.enter_world();
            return Ok(None);
        }
        Ok(Some(result))
    }

    /// Goes on in the world that the bus has put in place of the one that was.
    #[cold]
    pub(crate) fn enter_world(&mut self) {
        self.s.vectoring = None;
        self.s.instructions = self.s.instructions.wrapping_add(1);
        self.completion.forget();
        self.select_context();
        self.update_mode();
        self.new_world = true;
    }

    /// Delivers what the current instruction is for, which then is complete.
    pub(crate) fn deliver_behind(&mut self, injection: Injection) -> Result<(), Abort> {
        let rip = self.s.rip;
        // If delivery fails, this says what the exception came from.
        self.s.vectoring = Some(injection);
        self.deliver(injection, self.next_rip)?;
        self.s.vectoring = None;
        self.delivered = true;
        // Delivery moved RIP already; the loop moves it once more.
        self.next_rip = std::mem::replace(&mut self.s.rip, rip);
        Ok(())
    }

    /// Delivers one event, with `return_rip` as the address to come back to. The state changes only on
    /// success, except CR2 and DR6.
    pub(crate) fn deliver(&mut self, injection: Injection, return_rip: u64) -> Result<(), Abort> {
        let delivery = match injection {
            Injection::Exception(exception) => {
                match exception.vector {
                    vector::PF => self.s.cr2 = exception.payload,
                    vector::DB => {
                        self.s.dr6 = self.s.dr6 & !0xf | exception.payload;
                        self.s.dr7 &= !(1 << 13);
                    }
                    _ => {}
                }
                Delivery {
                    vector: exception.vector,
                    error_code: exception.error_code,
                    software: false,
                    ext: if self.config.vendor == Vendor::Intel { EXT } else { 0 },
                    resume: !exception.is_trap(),
                }
            }
            Injection::SoftInterrupt(vector) | Injection::SoftException(vector) => {
                Delivery { vector, error_code: None, software: true, ext: 0, resume: false }
            }
            Injection::Interrupt(vector) => {
                Delivery { vector, error_code: None, software: false, ext: EXT, resume: false }
            }
            Injection::Nmi => {
                Delivery { vector: vector::NMI, error_code: None, software: false, ext: EXT, resume: false }
            }
        };
        if self.s.cr0 & cr0::PE == 0 {
            self.deliver_real(delivery.vector, return_rip)?;
        } else if self.s.long_mode() {
            self.deliver_long(delivery, return_rip)?;
        } else {
            self.deliver_protected(delivery, return_rip)?;
        }
        if injection == Injection::Nmi {
            self.s.nmi_blocked = true;
        }
        Ok(())
    }

    fn deliver_real(&mut self, vector: u8, return_rip: u64) -> Result<(), Abort> {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.s.idtr.limit) {
            return self.raise(Exception::gp(0));
        }
        let handler = self.read_system::<u32>(self.s.idtr.base.wrapping_add(entry))?;
        let rsp = self.s.gpr[gpr::RSP];
        let frame = [self.s.rflags, u64::from(self.s.segment(Seg::Cs).selector), return_rip];
        for value in frame {
            if let Err(abort) = self.push::<u16>(value) {
                self.s.gpr[gpr::RSP] = rsp;
                return Err(abort);
            }
        }
        self.s.rflags &= !(flags::IF | flags::TF | flags::AC | flags::RF);
        let selector = (handler >> 16) as u16;
        let cs = &mut self.s.segments[Seg::Cs as usize];
        cs.selector = selector;
        cs.base = u64::from(selector) << 4;
        self.s.rip = handler & 0xffff;
        Ok(())
    }

    /// Reads and checks the gate of a vector.
    fn gate(&mut self, delivery: Delivery, size: u64) -> Result<Gate, Abort> {
        let code = u32::from(delivery.vector) << 3 | IDT | delivery.ext;
        let entry = u64::from(delivery.vector) * size;
        if entry + size - 1 > u64::from(self.s.idtr.limit) {
            return self.raise(Exception::gp(code));
        }
        let low = self.read_system::<u64>(self.s.idtr.base.wrapping_add(entry))?;
        let high = if size == 16 { self.read_system::<u64>(self.s.idtr.base.wrapping_add(entry + 8))? } else { 0 };
        let gate = Gate {
            selector: (low >> 16) as u16,
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            kind: (low >> 40 & 0xf) as u8,
            dpl: (low >> 45 & 3) as u8,
            present: low >> 47 & 1 != 0,
            ist: if size == 16 { (low >> 32 & 7) as u8 } else { 0 },
        };
        let known = match gate.kind {
            GATE_INTERRUPT32 | GATE_TRAP32 => true,
            GATE_INTERRUPT16 | GATE_TRAP16 => size == 8,
            _ => false,
        };
        if gate.kind == GATE_TASK && size == 8 && low >> 44 & 1 == 0 {
            // Hardware task switching does not exist here: say so instead of faulting.
            return self.give_up(MAX_INSTRUCTION_BYTES);
        }
        if !known || low >> 44 & 1 != 0 || delivery.software && gate.dpl < self.s.cpl() {
            return self.raise(Exception::gp(code));
        }
        if !gate.present {
            return self.raise(Exception::with_code(vector::NP, code));
        }
        Ok(gate)
    }

    /// Reads and checks the code segment of a handler.
    fn handler_segment(&mut self, gate: &Gate, ext: u32) -> Result<Segment, Abort> {
        if gate.selector & !3 == 0 {
            return self.raise(Exception::gp(ext));
        }
        let code = u32::from(gate.selector & !3) | ext;
        let (segment, _) = self.descriptor(gate.selector, Exception::gp(code))?;
        if !segment.is_code() || segment.dpl > self.s.cpl() {
            return self.raise(Exception::gp(code));
        }
        if self.s.long_mode() && (!segment.long || segment.db) {
            return self.raise(Exception::gp(code));
        }
        if !segment.present {
            return self.raise(Exception::with_code(vector::NP, code));
        }
        Ok(segment)
    }

    fn deliver_long(&mut self, delivery: Delivery, return_rip: u64) -> Result<(), Abort> {
        let gate = self.gate(delivery, 16)?;
        let segment = self.handler_segment(&gate, delivery.ext)?;
        let cpl = self.s.cpl();
        let new_cpl = if segment.is_conforming() { cpl } else { segment.dpl };
        let old_rsp = self.s.gpr[gpr::RSP];
        let stack = if gate.ist != 0 {
            self.tss_stack(0x24 + u64::from(gate.ist - 1) * 8, delivery.ext)?
        } else if new_cpl < cpl {
            self.tss_stack(4 + u64::from(new_cpl) * 8, delivery.ext)?
        } else {
            old_rsp
        };
        let old_ss = self.s.segment(Seg::Ss).selector;
        let old_cs = self.s.segment(Seg::Cs).selector;
        let rf = if delivery.resume { flags::RF } else { 0 };
        let mut top = stack & !0xf;
        if !is_canonical(top.wrapping_sub(1), self.s.cr4) {
            return self.raise(Exception::ss(delivery.ext));
        }
        let frame = [u64::from(old_ss), old_rsp, self.s.rflags | rf, u64::from(old_cs), return_rip];
        let error = delivery.error_code.map(u64::from);
        let view = self.view;
        self.view = crate::paging::View::Supervisor;
        for value in frame.into_iter().chain(error) {
            top = top.wrapping_sub(8);
            if let Err(abort) = self.write::<u64>(top, value) {
                self.view = view;
                if self.why == Why::NonCanonical {
                    return self.raise(Exception::ss(delivery.ext));
                }
                return Err(abort);
            }
        }
        self.s.gpr[gpr::RSP] = top;
        if new_cpl < cpl {
            self.s.segments[Seg::Ss as usize] =
                Segment { dpl: new_cpl, selector: u16::from(new_cpl), ..Segment::null(u16::from(new_cpl)) };
        }
        self.enter_handler(&gate, segment, new_cpl);
        Ok(())
    }

    /// A stack pointer from the 64-bit TSS.
    fn tss_stack(&mut self, offset: u64, ext: u32) -> Result<u64, Abort> {
        if offset + 7 > u64::from(self.s.tr.limit) {
            return self.raise(Exception::with_code(vector::TS, u32::from(self.s.tr.selector & !3) | ext));
        }
        let stack = self.read_system::<u64>(self.s.tr.base.wrapping_add(offset))?;
        if !is_canonical(stack, self.s.cr4) {
            return self.raise(Exception::ss(ext));
        }
        Ok(stack)
    }

    fn deliver_protected(&mut self, delivery: Delivery, return_rip: u64) -> Result<(), Abort> {
        if self.s.rflags & flags::VM != 0 {
            // Virtual-8086 mode does not exist here.
            return self.give_up(MAX_INSTRUCTION_BYTES);
        }
        let gate = self.gate(delivery, 8)?;
        let segment = self.handler_segment(&gate, delivery.ext)?;
        let cpl = self.s.cpl();
        let new_cpl = if segment.is_conforming() { cpl } else { segment.dpl };
        let wide = matches!(gate.kind, GATE_INTERRUPT32 | GATE_TRAP32);
        let rf = if delivery.resume { flags::RF } else { 0 };
        let mut frame = if new_cpl < cpl { self.old_stack().to_vec() } else { Vec::new() };
        frame.extend([self.s.rflags | rf, u64::from(self.s.segment(Seg::Cs).selector), return_rip]);
        frame.extend(delivery.error_code.map(u64::from));
        if new_cpl < cpl {
            self.push_on_inner_stack(new_cpl, delivery.ext, wide, &frame)?;
        } else {
            self.push_all_or_none(wide, &frame)?;
        }
        self.enter_handler(&gate, segment, new_cpl);
        Ok(())
    }

    fn enter_handler(&mut self, gate: &Gate, segment: Segment, cpl: u8) {
        let selector = gate.selector & !3 | u16::from(cpl);
        self.s.segments[Seg::Cs as usize] = Segment { selector, kind: segment.kind | 1, ..segment };
        self.s.rip = gate.offset;
        self.s.rflags &= !(flags::TF | flags::NT | flags::RF | flags::VM);
        if gate.is_interrupt() {
            self.s.rflags &= !flags::IF;
        }
    }
}

/// What becomes of an exception while another is delivered (SDM table 7-5); `None` is a triple fault.
fn combine(first: Exception, second: Exception) -> Option<Exception> {
    let double = Exception::with_code(vector::DF, 0);
    if first.vector == vector::DF {
        return None;
    }
    let doubles = first.is_contributory() && second.is_contributory()
        || first.is_page_fault_class() && (second.is_contributory() || second.is_page_fault_class());
    Some(if doubles { double } else { second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_double_faults() {
        let de = Exception::plain(vector::DE);
        let gp = Exception::gp(0);
        let pf = Exception::pf(0, 0);
        let ud = Exception::ud();
        let df = Exception::with_code(vector::DF, 0);
        assert_eq!(combine(de, gp), Some(df));
        assert_eq!(combine(gp, pf), Some(pf), "a page fault while delivering #GP is served first");
        assert_eq!(combine(pf, gp), Some(df));
        assert_eq!(combine(pf, pf), Some(df));
        assert_eq!(combine(ud, gp), Some(gp));
        assert_eq!(combine(df, pf), None);
    }
}
