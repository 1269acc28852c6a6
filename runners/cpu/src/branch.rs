//! Near branches, and what tests a condition: Jcc, SETcc, CMOVcc.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::flags::{CF, OF, PF, SF, ZF};
use crate::memory::is_canonical;
use crate::op::{Handler, Op, by_size, operand_size};
use crate::state::gpr::RCX;
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    if instruction.is_jcc_short_or_near() {
        return by_condition(instruction, Use::Jump);
    }
    if instruction.is_jmp_short_or_near() {
        return Some(jump);
    }
    let mask = counter_handler(instruction);
    if mask.is_some() {
        return mask;
    }
    match instruction.mnemonic() {
        Mnemonic::Jmp if instruction.is_jmp_near_indirect() => by_size!(operand_size(instruction, 0), jump_indirect),
        Mnemonic::Call if instruction.is_call_near() => {
            by_size!(instruction.stack_pointer_increment().unsigned_abs() as usize, call)
        }
        Mnemonic::Call if instruction.is_call_near_indirect() => by_size!(operand_size(instruction, 0), call_indirect),
        Mnemonic::Ret => by_size!(return_width(instruction), near_return),
        _ if is_setcc(instruction) => by_condition(instruction, Use::Set),
        _ if is_cmovcc(instruction) => match operand_size(instruction, 0) {
            2 => by_condition(instruction, Use::Move16),
            4 => by_condition(instruction, Use::Move32),
            _ => by_condition(instruction, Use::Move64),
        },
        _ => None,
    }
}

fn return_width(instruction: &Instruction) -> usize {
    use iced_x86::Code;
    match instruction.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    }
}

fn is_setcc(instruction: &Instruction) -> bool {
    instruction.condition_code() != ConditionCode::None
        && instruction.op_count() == 1
        && operand_size(instruction, 0) == 1
}

fn is_cmovcc(instruction: &Instruction) -> bool {
    instruction.condition_code() != ConditionCode::None
        && instruction.op_count() == 2
        && instruction.op0_register().is_gpr()
        && operand_size(instruction, 0) == operand_size(instruction, 1)
}

enum Use {
    Jump,
    Set,
    Move16,
    Move32,
    Move64,
}

/// A condition on flags; the type chooses it, so that each condition has handlers of its own.
trait Condition {
    fn holds(flags: u64) -> bool;
}

macro_rules! conditions {
    ($($name:ident: |$flags:ident| $holds:expr;)*) => {
        $(#[expect(non_camel_case_types, reason = "the names are iced-x86's")]
        struct $name;
        impl Condition for $name {
            #[inline(always)]
            fn holds($flags: u64) -> bool {
                $holds
            }
        })*

        fn by_condition(instruction: &Instruction, purpose: Use) -> Option<Handler> {
            match instruction.condition_code() {
                $(ConditionCode::$name => Some(match purpose {
                    Use::Jump => jump_if::<$name>,
                    Use::Set => set_if::<$name>,
                    Use::Move16 => move_if::<u16, $name>,
                    Use::Move32 => move_if::<u32, $name>,
                    Use::Move64 => move_if::<u64, $name>,
                }),)*
                _ => None,
            }
        }
    };
}

#[inline(always)]
fn less(flags: u64) -> bool {
    (flags & SF != 0) != (flags & OF != 0)
}

conditions! {
    o: |flags| flags & OF != 0;
    no: |flags| flags & OF == 0;
    b: |flags| flags & CF != 0;
    ae: |flags| flags & CF == 0;
    e: |flags| flags & ZF != 0;
    ne: |flags| flags & ZF == 0;
    be: |flags| flags & (CF | ZF) != 0;
    a: |flags| flags & (CF | ZF) == 0;
    s: |flags| flags & SF != 0;
    ns: |flags| flags & SF == 0;
    p: |flags| flags & PF != 0;
    np: |flags| flags & PF == 0;
    l: |flags| less(flags);
    ge: |flags| !less(flags);
    le: |flags| less(flags) || flags & ZF != 0;
    g: |flags| !less(flags) && flags & ZF == 0;
}

#[inline(always)]
fn jump_if<C: Condition>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if C::holds(core.s.rflags) {
        core.next_rip = op.imm;
    }
    Ok(())
}

fn set_if<C: Condition>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let value = u64::from(C::holds(core.s.rflags));
    core.set::<u8>(op, op.a, value)
}

#[inline(always)]
fn move_if<T: Word, C: Condition>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    // The source is read in any case, and 32 bits clear the upper half in any case.
    let value = core.get::<T>(op, op.b)?;
    let old = core.get::<T>(op, op.a)?;
    core.set_register::<T>(op.a, if C::holds(core.s.rflags) { value } else { old });
    Ok(())
}

fn jump(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.next_rip = op.imm;
    Ok(())
}

/// A target that came from a register or from memory.
#[inline(always)]
fn check(core: &mut Core<'_>, target: u64) -> Result<(), Abort> {
    if core.bits == 64 && !is_canonical(target, core.s.cr4) { core.raise(Exception::gp(0)) } else { Ok(()) }
}

fn jump_indirect<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let target = core.get::<T>(op, op.a)?;
    check(core, target)?;
    core.next_rip = target;
    Ok(())
}

fn call<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.push::<T>(core.next_rip)?;
    core.next_rip = op.imm;
    Ok(())
}

fn call_indirect<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let target = core.get::<T>(op, op.a)?;
    check(core, target)?;
    core.push::<T>(core.next_rip)?;
    core.next_rip = target;
    Ok(())
}

fn near_return<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let target = core.stack_read::<T>(0)?;
    check(core, target)?;
    core.release_stack(T::BYTES as u64 + op.imm);
    core.next_rip = target;
    Ok(())
}

/// JCXZ and LOOP, whose counter is as wide as addresses are.
fn counter_handler(instruction: &Instruction) -> Option<Handler> {
    use iced_x86::Code as C;
    Some(match instruction.code() {
        C::Jcxz_rel8_16 | C::Jcxz_rel8_32 => jump_if_no_count::<u16>,
        C::Jecxz_rel8_16 | C::Jecxz_rel8_32 | C::Jecxz_rel8_64 => jump_if_no_count::<u32>,
        C::Jrcxz_rel8_16 | C::Jrcxz_rel8_64 => jump_if_no_count::<u64>,
        C::Loop_rel8_16_CX | C::Loop_rel8_32_CX => count::<u16, Always>,
        C::Loop_rel8_16_ECX | C::Loop_rel8_32_ECX | C::Loop_rel8_64_ECX => count::<u32, Always>,
        C::Loop_rel8_16_RCX | C::Loop_rel8_64_RCX => count::<u64, Always>,
        C::Loope_rel8_16_CX | C::Loope_rel8_32_CX => count::<u16, e>,
        C::Loope_rel8_16_ECX | C::Loope_rel8_32_ECX | C::Loope_rel8_64_ECX => count::<u32, e>,
        C::Loope_rel8_16_RCX | C::Loope_rel8_64_RCX => count::<u64, e>,
        C::Loopne_rel8_16_CX | C::Loopne_rel8_32_CX => count::<u16, ne>,
        C::Loopne_rel8_16_ECX | C::Loopne_rel8_32_ECX | C::Loopne_rel8_64_ECX => count::<u32, ne>,
        C::Loopne_rel8_16_RCX | C::Loopne_rel8_64_RCX => count::<u64, ne>,
        _ => return None,
    })
}

struct Always;

impl Condition for Always {
    fn holds(_: u64) -> bool {
        true
    }
}

fn jump_if_no_count<T: Word>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    if core.s.gpr[RCX] & T::MASK == 0 {
        core.next_rip = op.imm;
    }
    Ok(())
}

fn count<T: Word, C: Condition>(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let left = core.s.gpr[RCX].wrapping_sub(1) & T::MASK;
    core.set_register::<T>(crate::op::Operand::Gpr(RCX as u8), left);
    if left != 0 && C::holds(core.s.rflags) {
        core.next_rip = op.imm;
    }
    Ok(())
}
