//! Port I/O.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::Intercept;
use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::exit::{CpuExit, Datum};
use crate::flags::{DF, IOPL};
use crate::intercept::Outcome;
use crate::op::{FLAT, Handler, Op, Operand, Rep, by_size, operand_size};
use crate::segment::Seg;
use crate::state::cr0;
use crate::state::gpr::{RAX, RDI, RDX, RSI};
use crate::word::Word;

/// KVM reads ahead at most so many bytes for REP INS (`arch/x86/kvm/emulate.c:pio_in_emulated`).
const READ_AHEAD: u64 = 1024;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    match instruction.mnemonic() {
        Mnemonic::In => by_size!(operand_size(instruction, 0), input),
        Mnemonic::Out => by_size!(operand_size(instruction, 1), output),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => by_size!(instruction.memory_size().size(), ins),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => by_size!(instruction.memory_size().size(), outs),
        _ => None,
    }
}

impl Core<'_> {
    /// Checks IOPL and the I/O permission bitmap.
    fn check_port(&mut self, port: u16, size: u64) -> Result<(), Abort> {
        let iopl = (self.s.rflags & IOPL) >> IOPL.trailing_zeros();
        if self.s.cr0 & cr0::PE == 0 || u64::from(self.s.cpl()) <= iopl {
            return Ok(());
        }
        let limit = u64::from(self.s.tr.limit);
        if limit < 0x67 {
            return self.raise(Exception::gp(0));
        }
        let bitmap = self.read_system::<u16>(self.s.tr.base.wrapping_add(0x66))? + u64::from(port) / 8;
        if bitmap + 1 > limit {
            return self.raise(Exception::gp(0));
        }
        let denied = self.read_system::<u16>(self.s.tr.base.wrapping_add(bitmap))? >> (port % 8);
        if denied & ((1 << size) - 1) != 0 { self.raise(Exception::gp(0)) } else { Ok(()) }
    }

    /// Reads a port in place, if the bus does that.
    fn read_port<T: Word>(&mut self, port: u16) -> Option<u64> {
        self.with_bus(|core| core.bus.port_read(core.s, port, T::BYTES as u8)).map(u64::from)
    }

    /// Writes a port in place; says whether the bus does that.
    fn write_port<T: Word>(&mut self, port: u16, value: u64) -> bool {
        self.with_bus(|core| core.bus.port_write(core.s, port, T::BYTES as u8, (value & T::MASK) as u32))
    }

    /// One element of INS in place; says whether the bus does that.
    fn ins_in_place<T: Word>(&mut self, op: &Op, port: u16) -> Result<bool, Abort> {
        // What a port gives is gone: the element must have where to go.
        let to = self.string_destination::<T>(op, true)?;
        self.prepare_write(to, T::BYTES)?;
        let Some(value) = self.read_port::<T>(port) else { return Ok(false) };
        self.write::<T>(to, value)?;
        self.advance::<T>(op, RDI, 1);
        self.count_down(op, 1);
        self.repeat_port(op);
        Ok(true)
    }

    /// INS or OUTS has done an element, and is the next instruction again if there are more.
    fn repeat_port(&mut self, op: &Op) {
        let left = if op.rep == Rep::None { 0 } else { self.string_count(op) };
        if left != 0 && !self.portion_ends(left) {
            self.stay();
        }
    }

    /// Lets the bus intercept a port access.
    fn intercept_port(&mut self, op: &Op, port: u16, size: usize, input: bool, string: bool) -> Result<Outcome, Abort> {
        let rep = op.rep != Rep::None;
        let address_size = (op.mem.address_mask().count_ones() / 8) as u8;
        let segment = match op.mem.seg {
            _ if input => Seg::Es,
            FLAT => Seg::Ds,
            seg => Seg::from_index(usize::from(seg)),
        };
        let immediate = op.a == Operand::Imm || op.b == Operand::Imm;
        let linear = if string { self.string_linear(op, input) } else { 0 };
        let size = size as u8;
        let what = Intercept::PortIo { port, size, input, string, rep, address_size, segment, immediate, linear };
        self.intercept(op, what)
    }
}

fn port(core: &Core<'_>, operand: Operand, op: &Op) -> u16 {
    if operand == Operand::Imm { op.imm as u16 & 0xff } else { core.s.gpr[RDX] as u16 }
}

fn input<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let port = port(core, op.b, op);
    if let Some(value) = core.completion.take_port_in(T::BYTES) {
        core.set_register::<T>(Operand::Gpr(RAX as u8), value);
        return Ok(());
    }
    core.check_port(port, T::BYTES as u64)?;
    if core.intercept_port(op, port, T::BYTES, true, false)? == Outcome::Done {
        return Ok(());
    }
    match core.read_port::<T>(port) {
        Some(value) => {
            core.set_register::<T>(Operand::Gpr(RAX as u8), value);
            Ok(())
        }
        None => core.ask_port(port, T::BYTES as u8, 1),
    }
}

fn output<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let port = port(core, op.a, op);
    if std::mem::take(&mut core.completion.port_out_done) {
        return Ok(());
    }
    core.check_port(port, T::BYTES as u64)?;
    if core.intercept_port(op, port, T::BYTES, false, false)? == Outcome::Done {
        return Ok(());
    }
    let value = core.s.gpr[RAX];
    if core.write_port::<T>(port, value) {
        return Ok(());
    }
    let data = Datum::from_slice(&value.to_le_bytes()[..T::BYTES]);
    core.completion.wait_at(core.s.linear_rip());
    core.completion.port_out_done = true;
    core.exit(CpuExit::PortOut { port, data })
}

fn ins<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let size = T::BYTES as u64;
    let port = core.s.gpr[RDX] as u16;
    let left = core.string_count(op);
    if left == 0 {
        return Ok(());
    }
    if core.completion.port_in.is_empty() {
        core.check_port(port, size)?;
        if core.intercept_port(op, port, T::BYTES, true, true)? == Outcome::Done {
            return Ok(());
        }
        if core.ins_in_place::<T>(op, port)? {
            return Ok(());
        }
        let to = core.s.gpr[RDI];
        let in_page = if core.flag(DF) { to & 0xfff } else { 0x1000 - (to & 0xfff) };
        let count = (in_page.min(READ_AHEAD) / size).min(left).max(1);
        return core.ask_port(port, T::BYTES as u8, count as u32);
    }
    for done in 1..=left {
        let Some(value) = core.completion.take_port_in(T::BYTES) else { break };
        let to = core.string_destination::<T>(op, true)?;
        core.write::<T>(to, value)?;
        core.advance::<T>(op, RDI, 1);
        core.count_down(op, 1);
        if done == left {
            return Ok(());
        }
    }
    core.stay();
    Ok(())
}

fn outs<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let port = core.s.gpr[RDX] as u16;
    let left = core.string_count(op);
    if left == 0 {
        return Ok(());
    }
    core.check_port(port, T::BYTES as u64)?;
    if core.intercept_port(op, port, T::BYTES, false, true)? == Outcome::Done {
        return Ok(());
    }
    let from = core.string_source::<T>(op)?;
    let value = core.read::<T>(from)?;
    let in_place = core.write_port::<T>(port, value);
    core.advance::<T>(op, RSI, 1);
    core.count_down(op, 1);
    core.repeat_port(op);
    if in_place {
        return Ok(());
    }
    core.exit_after(CpuExit::PortOut { port, data: Datum::from_slice(&value.to_le_bytes()[..T::BYTES]) });
    Ok(())
}
