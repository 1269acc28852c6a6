//! MOV and its extensions, exchanges, LEA, far pointers, the stack.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::op::{Handler, Op, Operand, by_size, operand_size};
use crate::segment::Seg;
use crate::state::Shadow;
use crate::state::gpr::{RAX, RBP, RBX, RSP};
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    let size = operand_size(instruction, 0);
    match instruction.mnemonic() {
        Mnemonic::Mov if instruction.op0_register().is_segment_register() => Some(mov_to_segment),
        Mnemonic::Mov if is_segment(instruction, 1) => by_size!(size, mov),
        Mnemonic::Mov if is_special(instruction) => None,
        Mnemonic::Mov if is_low(instruction, 0) && is_low(instruction, 1) => by_size!(size, copy),
        Mnemonic::Mov if is_low(instruction, 0) && instruction.op1_kind() == OpKind::Memory => by_size!(size, load),
        Mnemonic::Mov if is_low(instruction, 1) && instruction.op0_kind() == OpKind::Memory => by_size!(size, store),
        Mnemonic::Mov | Mnemonic::Movnti => by_size!(size, mov),
        Mnemonic::Movzx => match (size, operand_size(instruction, 1)) {
            (2, 1) => Some(movzx::<u16, u8>),
            (2, 2) => Some(movzx::<u16, u16>),
            (4, 1) => Some(movzx::<u32, u8>),
            (4, 2) => Some(movzx::<u32, u16>),
            (8, 1) => Some(movzx::<u64, u8>),
            (8, 2) => Some(movzx::<u64, u16>),
            _ => None,
        },
        Mnemonic::Movsx | Mnemonic::Movsxd => match (size, operand_size(instruction, 1)) {
            (2, 1) => Some(movsx::<u16, u8>),
            (2, 2) => Some(movsx::<u16, u16>),
            (4, 1) => Some(movsx::<u32, u8>),
            (4, 2) => Some(movsx::<u32, u16>),
            (4, 4) => Some(movsx::<u32, u32>),
            (8, 1) => Some(movsx::<u64, u8>),
            (8, 2) => Some(movsx::<u64, u16>),
            (8, 4) => Some(movsx::<u64, u32>),
            _ => None,
        },
        Mnemonic::Lds => by_size!(size, load_far_pointer, Ds),
        Mnemonic::Les => by_size!(size, load_far_pointer, Es),
        Mnemonic::Lss => by_size!(size, load_far_pointer, Ss),
        Mnemonic::Lfs => by_size!(size, load_far_pointer, Fs),
        Mnemonic::Lgs => by_size!(size, load_far_pointer, Gs),
        Mnemonic::Movbe => by_size!(size, movbe),
        Mnemonic::Movdir64b => Some(movdir64b),
        Mnemonic::Lea => by_size!(size, lea),
        Mnemonic::Xchg => by_size!(size, xchg),
        Mnemonic::Bswap => by_size!(size, bswap),
        Mnemonic::Nop
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Reservednop
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchwt1 => Some(nop),
        Mnemonic::Mfence | Mnemonic::Serialize => Some(full_fence),
        // The other fences order what is ordered anyway: guest accesses are host accesses in program order.
        Mnemonic::Lfence | Mnemonic::Sfence => Some(nop),
        Mnemonic::Xlatb => Some(xlatb),
        Mnemonic::Push => by_size!(stack_width(instruction), push),
        Mnemonic::Pop if instruction.op0_register().is_segment_register() => {
            by_size!(stack_width(instruction), pop_segment)
        }
        Mnemonic::Pop => by_size!(stack_width(instruction), pop),
        Mnemonic::Pusha => Some(push_all::<u16>),
        Mnemonic::Pushad => Some(push_all::<u32>),
        Mnemonic::Popa => Some(pop_all::<u16>),
        Mnemonic::Popad => Some(pop_all::<u32>),
        Mnemonic::Enter => by_size!(stack_width(instruction), enter),
        Mnemonic::Leave => by_size!(stack_width(instruction), leave),
        _ => None,
    }
}

fn is_segment(instruction: &Instruction, operand: u32) -> bool {
    instruction.op_kind(operand) == OpKind::Register && instruction.op_register(operand).is_segment_register()
}

/// Whether an operand is the low part of a general register.
fn is_low(instruction: &Instruction, operand: u32) -> bool {
    let register = instruction.op_register(operand);
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    instruction.op_kind(operand) == OpKind::Register && register.is_gpr() && !high
}

/// MOV from or to control, debug or test registers.
fn is_special(instruction: &Instruction) -> bool {
    [0, 1].into_iter().any(|operand| {
        instruction.op_kind(operand) == OpKind::Register && {
            let register = instruction.op_register(operand);
            register.is_cr() || register.is_dr() || register.is_tr()
        }
    })
}

/// Bytes that a push or pop moves.
fn stack_width(instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        Code::Leaveq => 8,
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        Code::Enterq_imm16_imm8 => 8,
        _ => instruction.stack_pointer_increment().unsigned_abs() as usize,
    }
}

#[inline(always)]
fn mov<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    core.set::<T>(op, op.a, value)
}

// The forms of MOV that most programs consist of.

#[inline(always)]
fn copy<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.low(op.b);
    core.set_low::<T>(op.a, value);
    Ok(())
}

#[inline(always)]
fn load<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let linear = core.linear(&op.mem, T::BYTES, false)?;
    let value = core.read::<T>(linear)?;
    core.set_low::<T>(op.a, value);
    Ok(())
}

#[inline(always)]
fn store<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let linear = core.linear(&op.mem, T::BYTES, true)?;
    let value = core.low(op.b);
    core.write::<T>(linear, value)
}

fn mov_to_segment(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let selector = core.get::<u16>(op, op.b)? as u16;
    let Operand::Seg(index) = op.a else { return crate::decode::undefined(core, op) };
    let seg = Seg::from_index(usize::from(index));
    if seg == Seg::Cs {
        return crate::decode::undefined(core, op);
    }
    core.load_segment(seg, selector)?;
    if seg == Seg::Ss {
        core.cast_shadow(Shadow::MovSs);
    }
    Ok(())
}

#[inline(always)]
fn movzx<T: Word, F: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<F>(op, op.b)?;
    core.set_register::<T>(op.a, value);
    Ok(())
}

#[inline(always)]
fn movsx<T: Word, F: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<F>(op, op.b)?;
    core.set_register::<T>(op.a, F::signed(value) as u64);
    Ok(())
}

/// MOVDIR64B: 64 bytes from memory to where the register points, in ES.
fn movdir64b(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    const BYTES: usize = 64;
    let from = core.linear(&op.mem, BYTES, false)?;
    let mut bytes = [0; BYTES];
    core.read_bytes(from, &mut bytes)?;
    let offset = core.low(op.a) & op.mem.address_mask();
    let to = if core.bits == 64 { offset } else { core.in_segment(Seg::Es as u8, offset, BYTES, true)? };
    if !to.is_multiple_of(BYTES as u64) {
        return core.raise(Exception::gp(0));
    }
    core.write_bytes(to, &bytes)
}

fn movbe<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.b)?;
    core.set::<T>(op, op.a, value.swap_bytes() >> (64 - T::BITS))
}

#[inline(always)]
fn lea<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let offset = core.offset(&op.mem);
    core.set_register::<T>(op.a, offset);
    Ok(())
}

fn xchg<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let (memory, register) = if op.b == Operand::Mem { (op.b, op.a) } else { (op.a, op.b) };
    let new = core.get::<T>(op, register)?;
    let old = core.change::<T>(op, memory, |_| new)?;
    core.set_register::<T>(register, old);
    Ok(())
}

fn bswap<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.a)?;
    // Of 16 bits: undefined, and zero on the processors that there are.
    let swapped = if T::BITS == 16 { 0 } else { value.swap_bytes() >> (64 - T::BITS) };
    core.set_register::<T>(op.a, swapped);
    Ok(())
}

fn nop(_: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    Ok(())
}

fn full_fence(_: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

fn xlatb(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let offset = core.s.gpr[RBX].wrapping_add(core.s.gpr[RAX] & 0xff) & op.mem.address_mask();
    let linear = if op.mem.seg == crate::op::FLAT { offset } else { core.in_segment(op.mem.seg, offset, 1, false)? };
    let value = core.read::<u8>(linear)?;
    core.set_register::<u8>(Operand::Gpr(RAX as u8), value);
    Ok(())
}

#[inline(always)]
fn push<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.get::<T>(op, op.a)?;
    core.push::<T>(value)
}

fn pop<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = core.stack_read::<T>(0)?;
    let old = core.s.gpr[RSP];
    // POP computes a destination address with the stack pointer already moved.
    core.release_stack(T::BYTES as u64);
    if let Err(abort) = core.set::<T>(op, op.a, value) {
        core.s.gpr[RSP] = old;
        return Err(abort);
    }
    Ok(())
}

fn pop_segment<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let selector = core.stack_read::<u16>(0)? as u16;
    let Operand::Seg(index) = op.a else { return crate::decode::undefined(core, op) };
    let seg = Seg::from_index(usize::from(index));
    core.load_segment(seg, selector)?;
    core.release_stack(T::BYTES as u64);
    if seg == Seg::Ss {
        core.cast_shadow(Shadow::MovSs);
    }
    Ok(())
}

/// The segment register that a far pointer goes to.
trait Target {
    const SEG: Seg;
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(struct $name;
        impl Target for $name {
            const SEG: Seg = Seg::$name;
        })*
    };
}

targets! { Ds Es Ss Fs Gs }

/// LDS and its like: an offset, and a selector behind it.
fn load_far_pointer<T: Word, S: Target>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let linear = core.linear(&op.mem, T::BYTES + 2, false)?;
    let offset = core.read::<T>(linear)?;
    let selector = core.read::<u16>(linear.wrapping_add(T::BYTES as u64))? as u16;
    core.load_segment(S::SEG, selector)?;
    core.set_register::<T>(op.a, offset);
    Ok(())
}

fn push_all<T: Word>(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let old = core.s.gpr[RSP];
    for index in 0..8 {
        let value = if index == RSP { old } else { core.s.gpr[index] };
        if let Err(abort) = core.push::<T>(value) {
            core.s.gpr[RSP] = old;
            return Err(abort);
        }
    }
    Ok(())
}

fn pop_all<T: Word>(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let mut values = [0; 8];
    for (index, value) in values.iter_mut().enumerate() {
        *value = core.stack_read::<T>(((7 - index) * T::BYTES) as u64)?;
    }
    for (index, value) in values.into_iter().enumerate() {
        if index != RSP {
            core.set_register::<T>(Operand::Gpr(index as u8), value);
        }
    }
    core.release_stack(8 * T::BYTES as u64);
    Ok(())
}

fn enter<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let frame_size = op.imm & 0xffff;
    if op.imm >> 16 & 0x1f != 0 {
        // Nested frames: no compiler has emitted them for decades.
        return crate::decode::unknown(core, op);
    }
    let old = core.s.gpr[RSP];
    let rbp = core.s.gpr[RBP];
    core.push::<T>(rbp)?;
    let frame = core.s.gpr[RSP];
    core.release_stack(frame_size.wrapping_neg());
    // The processor checks that the new top can be written.
    let top = core.s.gpr[RSP] & core.stack_mask();
    let linear = if core.bits == 64 { Ok(top) } else { core.in_segment(Seg::Ss as u8, top, T::BYTES, true) };
    if let Err(abort) = linear.and_then(|linear| core.prepare_write(linear, T::BYTES)) {
        core.s.gpr[RSP] = old;
        return Err(abort);
    }
    core.set_register::<T>(Operand::Gpr(RBP as u8), frame);
    Ok(())
}

fn leave<T: Word>(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let old = core.s.gpr[RSP];
    let frame = core.s.gpr[RBP];
    core.set_rsp(frame);
    match core.stack_read::<T>(0) {
        Ok(value) => {
            core.release_stack(T::BYTES as u64);
            core.set_register::<T>(Operand::Gpr(RBP as u8), value);
            Ok(())
        }
        Err(abort) => {
            core.s.gpr[RSP] = old;
            Err(abort)
        }
    }
}
