//! The instructions of VMX (SDM volume 3, chapter 32): operands are read and results stored here, all else is the
//! bus' ([`crate::Bus::vmx`]). And what ModR/M names, which hypervisors are told of some instructions.

use iced_x86::{Instruction, Mnemonic};

use crate::bus::{Intercept, MemoryOperand, OperandPlace, Operands, VmxAnswer, VmxCall, VmxInstruction};
use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::intercept::Outcome;
use crate::op::{FLAT, Handler, Op, Operand, Width, by_size, operand_size};
use crate::segment::Seg;
use crate::state::cr4;
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    Some(match instruction.mnemonic() {
        M::Vmxon => |core, op| with_pointer(core, op, VmxInstruction::Vmxon, VmxCall::Vmxon),
        M::Vmclear => |core, op| with_pointer(core, op, VmxInstruction::Vmclear, VmxCall::Vmclear),
        M::Vmptrld => |core, op| with_pointer(core, op, VmxInstruction::Vmptrld, VmxCall::Vmptrld),
        M::Vmptrst => vmptrst,
        M::Vmxoff => |core, op| alone(core, op, VmxInstruction::Vmxoff, VmxCall::Vmxoff),
        M::Vmlaunch => |core, op| alone(core, op, VmxInstruction::Vmlaunch, VmxCall::Vmlaunch),
        M::Vmresume => |core, op| alone(core, op, VmxInstruction::Vmresume, VmxCall::Vmresume),
        M::Vmread => return by_size!(operand_size(instruction, 0), vmread),
        M::Vmwrite => return by_size!(operand_size(instruction, 0), vmwrite),
        M::Invept => |core, op| invalidate(core, op, VmxInstruction::Invept),
        M::Invvpid => |core, op| invalidate(core, op, VmxInstruction::Invvpid),
        _ => return None,
    })
}

impl Core<'_> {
    /// What the ModR/M byte names: the operand in memory, or the one that Intel writes first, is `r/m`.
    pub(crate) fn operands(&self, op: &Op) -> Operands {
        let place = |operand: Operand| match operand {
            Operand::Gpr(register) => OperandPlace::Register(register),
            Operand::Mem => OperandPlace::Memory(memory_operand(op)),
            _ => OperandPlace::Nothing,
        };
        let (place, register) = if op.b == Operand::Mem { (place(op.b), op.a) } else { (place(op.a), op.b) };
        Operands { place, register: if let Operand::Gpr(register) = register { register } else { 0 } }
    }

    /// Has the bus decide whether an instruction of VMX is carried out now. CR4.VMXE has to be set for all of them: for
    /// VMXON, and then it cannot be cleared.
    fn permit(&mut self, op: &Op, instruction: VmxInstruction, operands: Operands) -> Result<(), Abort> {
        if self.s.cr4 & cr4::VMXE == 0 {
            return self.raise(Exception::ud());
        }
        match self.intercept(op, Intercept::Vmx { instruction, operands })? {
            Outcome::Native | Outcome::Instead(_) => Ok(()),
            Outcome::Done => self.raise(Exception::ud()),
        }
    }

    /// Has the bus carry it out; a result that there is has to be stored, and nothing has happened if that fails.
    fn carry_out(&mut self, call: VmxCall) -> Result<Option<u64>, Abort> {
        match self.with_bus(|core| core.bus.vmx(core.s, call)) {
            VmxAnswer::Done => Ok(None),
            VmxAnswer::Value(value) => Ok(Some(value)),
            VmxAnswer::Switched => self.switch(),
            VmxAnswer::Reflect(exception) => self.raise(exception),
        }
    }

    /// Likewise, for an instruction with a result in its first operand.
    fn carry_out_into<T: Word>(&mut self, op: &Op, call: VmxCall) -> Result<(), Abort> {
        let flags = self.s.rflags;
        match self.carry_out(call)? {
            None => Ok(()),
            Some(value) => self.set::<T>(op, op.a, value).inspect_err(|_| self.s.rflags = flags),
        }
    }
}

fn memory_operand(op: &Op) -> MemoryOperand {
    let mem = &op.mem;
    MemoryOperand {
        base: (mem.base_width != Width::Nothing).then_some(mem.base),
        index: (mem.index_width != Width::Nothing).then_some(mem.index),
        scale: mem.scale,
        displacement: mem.disp,
        address_size: (mem.address_mask().count_ones() / 8) as u8,
        segment: match mem.seg {
            FLAT if mem.stack => Seg::Ss,
            FLAT => Seg::Ds,
            seg => Seg::from_index(usize::from(seg)),
        },
    }
}

/// Without operands.
fn alone(core: &mut Core<'_>, op: &Op, instruction: VmxInstruction, call: VmxCall) -> Result<(), Abort> {
    core.permit(op, instruction, Operands { register: 0, place: OperandPlace::Nothing })?;
    core.carry_out(call)?;
    Ok(())
}

/// With a physical address in 64 bits of memory.
fn with_pointer(
    core: &mut Core<'_>,
    op: &Op,
    instruction: VmxInstruction,
    call: fn(u64) -> VmxCall,
) -> Result<(), Abort> {
    core.permit(op, instruction, core.operands(op))?;
    let pointer = core.get::<u64>(op, op.a)?;
    core.carry_out(call(pointer))?;
    Ok(())
}

fn vmptrst(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.permit(op, VmxInstruction::Vmptrst, core.operands(op))?;
    core.carry_out_into::<u64>(op, VmxCall::Vmptrst)
}

fn vmread<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.permit(op, VmxInstruction::Vmread, core.operands(op))?;
    let field = core.get::<T>(op, op.b)?;
    core.carry_out_into::<T>(op, VmxCall::Vmread { field })
}

fn vmwrite<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    // The value is what ModR/M names in `r/m`, although Intel writes it second.
    let operands = core.operands(op);
    let operands = match op.b {
        Operand::Gpr(value) => Operands { register: register(op.a), place: OperandPlace::Register(value) },
        _ => operands,
    };
    core.permit(op, VmxInstruction::Vmwrite, operands)?;
    let value = core.get::<T>(op, op.b)?;
    let field = core.get::<T>(op, op.a)?;
    core.carry_out(VmxCall::Vmwrite { field, value })?;
    Ok(())
}

fn register(operand: Operand) -> u8 {
    if let Operand::Gpr(register) = operand { register } else { 0 }
}

fn invalidate(core: &mut Core<'_>, op: &Op, instruction: VmxInstruction) -> Result<(), Abort> {
    core.permit(op, instruction, core.operands(op))?;
    let kind = if core.bits == 64 { core.get::<u64>(op, op.a)? } else { core.get::<u32>(op, op.a)? };
    let linear = core.linear(&op.mem, 16, false)?;
    let descriptor = core.read_wide(linear)?;
    let call = match instruction {
        VmxInstruction::Invept => VmxCall::Invept { kind, descriptor },
        _ => VmxCall::Invvpid { kind, descriptor },
    };
    core.carry_out(call)?;
    Ok(())
}
