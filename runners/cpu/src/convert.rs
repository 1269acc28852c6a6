//! Sign extension of the accumulator.

use iced_x86::{Instruction, Mnemonic};

use crate::core::{Abort, Core};
use crate::op::{Handler, Op, Operand};
use crate::state::gpr::{RAX, RDX};
use crate::word::Word;

pub(crate) fn select(instruction: &Instruction) -> Option<Handler> {
    Some(match instruction.mnemonic() {
        Mnemonic::Cbw => extend::<u16, u8>,
        Mnemonic::Cwde => extend::<u32, u16>,
        Mnemonic::Cdqe => extend::<u64, u32>,
        Mnemonic::Cwd => spread::<u16>,
        Mnemonic::Cdq => spread::<u32>,
        Mnemonic::Cqo => spread::<u64>,
        _ => return None,
    })
}

fn extend<T: Word, F: Word>(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let value = F::signed(core.s.gpr[RAX]);
    core.set_register::<T>(Operand::Gpr(RAX as u8), value as u64);
    Ok(())
}

fn spread<T: Word>(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    let sign = if core.s.gpr[RAX] & T::SIGN == 0 { 0 } else { u64::MAX };
    core.set_register::<T>(Operand::Gpr(RDX as u8), sign);
    Ok(())
}
