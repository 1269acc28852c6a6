//! A decoded instruction, ready to execute.

use crate::core::{Abort, Core};
use crate::native::Form;

/// What executes an [`Op`]. On success the caller moves RIP to [`Core::next_rip`]; on failure nothing
/// of the instruction has happened, or it may happen again.
pub(crate) type Handler = fn(&mut Core<'_>, &Op) -> Result<(), Abort>;

/// Where an operand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    None,
    /// A general register, low part.
    Gpr(u8),
    /// AH, CH, DH or BH: bits 8 to 15 of this register.
    High(u8),
    /// [`Op::mem`].
    Mem,
    /// [`Op::imm`].
    Imm,
    Xmm(u8),
    Ymm(u8),
    Mmx(u8),
    Seg(u8),
    Cr(u8),
    Dr(u8),
    St(u8),
}

/// Index of "no segment": linear address is the offset.
pub(crate) const FLAT: u8 = 6;

/// How much of a register, or of an address, counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Width {
    /// Nothing: there is no such register.
    Nothing,
    Bits16,
    Bits32,
    Bits64,
}

impl Width {
    #[inline(always)]
    pub(crate) fn mask(self) -> u64 {
        [0, 0xffff, 0xffff_ffff, u64::MAX][self as usize]
    }

    /// The width of so many bytes: 2, 4 or 8.
    pub(crate) fn of_bytes(bytes: usize) -> Width {
        match bytes {
            2 => Width::Bits16,
            4 => Width::Bits32,
            _ => Width::Bits64,
        }
    }
}

/// A memory operand: `disp + base + (index << scale)`, in a segment. Small, because there are so many: an operand that
/// is not in the processor's cache costs more than what is done with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mem {
    pub(crate) disp: u64,
    pub(crate) base: u8,
    pub(crate) base_width: Width,
    pub(crate) index: u8,
    pub(crate) index_width: Width,
    pub(crate) scale: u8,
    pub(crate) address_width: Width,
    /// A [`crate::Seg`], or [`FLAT`].
    pub(crate) seg: u8,
    /// Relative to the stack segment: a bad address is #SS.
    pub(crate) stack: bool,
}

impl Mem {
    /// Address size as a mask.
    #[inline(always)]
    pub(crate) fn address_mask(&self) -> u64 {
        self.address_width.mask()
    }
}

/// Repeat prefix of a string instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rep {
    None,
    /// REP or REPE.
    Equal,
    /// REPNE.
    NotEqual,
}

/// A decoded instruction.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// Immediate, sign extended as the instruction does; or the target of a near branch.
    pub(crate) imm: u64,
    pub(crate) mem: Mem,
    /// Operands in Intel order.
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) c: Operand,
    pub(crate) d: Operand,
    /// For instructions that the host executes.
    pub(crate) form: Option<&'static Form>,
    pub(crate) lock: bool,
    pub(crate) rep: Rep,
    /// Bytes.
    pub(crate) len: u8,
}

/// Bytes of an operand as the instruction uses it: a register's or the memory operand's size.
pub(crate) fn operand_size(instruction: &iced_x86::Instruction, index: u32) -> usize {
    match instruction.op_kind(index) {
        iced_x86::OpKind::Register => instruction.op_register(index).size(),
        iced_x86::OpKind::Memory => instruction.memory_size().size(),
        _ => 0,
    }
}

/// The instance of a handler for an operand size in bytes; `None` for a size that there is not.
macro_rules! by_size {
    ($size:expr, $handler:ident $(, $parameter:ty)*) => {
        match $size {
            1 => Some($handler::<u8 $(, $parameter)*> as $crate::op::Handler),
            2 => Some($handler::<u16 $(, $parameter)*> as $crate::op::Handler),
            4 => Some($handler::<u32 $(, $parameter)*> as $crate::op::Handler),
            8 => Some($handler::<u64 $(, $parameter)*> as $crate::op::Handler),
            _ => None,
        }
    };
}
pub(crate) use by_size;
