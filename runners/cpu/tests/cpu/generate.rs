//! Random instructions of a form, and the state to run them in.

use iced_x86::{Code, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as K, OpKind, Register};
use privet_cpu::fpu::FpuState;
use privet_cpu::state::gpr::{RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use proptest::prelude::*;

use crate::native::{DATA, Registers};

/// Registers that stay what the case set them to, so that memory operands stay where they should.
pub(crate) const MEMORY_BASE: Register = Register::R15;
pub(crate) const MEMORY_INDEX: Register = Register::R14;
const BASE_VALUE: u64 = DATA + 0x800;
const STACK_VALUE: u64 = DATA + 0x1800;
/// Around a page boundary.
const STRINGS: u64 = DATA + 0xf00;

/// The flags that instructions compute, and the direction.
pub(crate) const COMPARED_FLAGS: u64 = 0xcd5;
/// IF and the bit that is always set: what a process in ring 3 has.
const FIXED_FLAGS: u64 = 0x202;

/// One experiment.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Decides registers and memory.
    pub(crate) seed: u64,
    /// Decide operands, one after the other.
    pub(crate) choices: Vec<u64>,
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    (any::<u64>(), prop::collection::vec(any::<u64>(), 12)).prop_map(|(seed, choices)| Case { seed, choices })
}

/// Integers and bit patterns worth more than chance gives them.
const EDGES: [u64; 20] = [
    0,
    1,
    u64::MAX,
    1 << 63,
    1 << 31,
    0x7fff_ffff,
    i64::MAX as u64,
    0xffff_ffff,
    0x80,
    0x7f,
    0x8000,
    0xffff,
    u64::MAX << 31,
    u64::MAX << 32,
    63,
    64,
    31,
    32,
    33,
    65,
];
/// The same for floating-point numbers, double or two single.
const FLOATS: [u64; 8] = [
    0,
    1,
    0x8000_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0x7fc0_0000_7f80_0001,
    0x3ff0_0000_0000_0000,
    0x3f80_0000_bf80_0000,
];

/// Numbers from a seed (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn raw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn integer(&mut self) -> u64 {
        match self.raw() % 6 {
            0 => EDGES[self.raw() as usize % EDGES.len()],
            1 => self.raw() % 300,
            _ => self.raw(),
        }
    }

    /// Half of an XMM register: raw, or floating-point numbers of the kinds that matter.
    pub(crate) fn half(&mut self) -> u64 {
        let number = (self.raw() % 2000) as i32 - 1000;
        match self.raw() % 6 {
            0 => FLOATS[self.raw() as usize % FLOATS.len()],
            1 => (f64::from(number) / 8.0).to_bits(),
            2 => u64::from((number as f32 / 8.0).to_bits()) << 32 | self.raw() >> 32,
            3 => self.raw() & 0xbfff_ffff_bfff_ffff,
            _ => self.raw(),
        }
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.half()) | u128::from(self.half()) << 64
    }

    pub(crate) fn registers(&mut self) -> Registers {
        Registers {
            fpu: FpuState {
                xmm: std::array::from_fn(|_| self.wide()),
                ymm_high: std::array::from_fn(|_| self.wide()),
                mxcsr: 0x1f80 | ((self.raw() % 4) as u32) << 13,
                st: std::array::from_fn(|_| self.extended()),
                // All exceptions masked; any precision that exists, any rounding.
                fcw: 0x7f | [0, 0x200, 0x300][self.raw() as usize % 3] | ((self.raw() % 4) as u16) << 10,
                fsw: self.raw() as u16 & 0x7f00,
                ftw: (self.raw() | self.raw()) as u8,
                ..FpuState::default()
            },
            gpr: std::array::from_fn(|_| self.integer()),
            rflags: self.raw() & COMPARED_FLAGS | FIXED_FLAGS,
        }
    }

    /// An x87 register: numbers of common sizes, special ones, or anything.
    fn extended(&mut self) -> u128 {
        let mantissa = match self.raw() % 4 {
            0 => 0,
            1 => self.raw() & !0 << 40,
            _ => self.raw(),
        };
        let (exponent, integer) = match self.raw() % 8 {
            0 => (0x7fff, 1 << 63),
            1 => (0, 0),
            2 => (self.raw() % 0x8000, self.raw() & 1 << 63),
            _ => (0x3fff - 40 + self.raw() % 110, 1 << 63),
        };
        let sign = self.raw() % 2;
        u128::from(mantissa & u64::MAX >> 1 | integer) | u128::from(sign << 15 | exponent) << 64
    }
}

/// Decides operands from a case's numbers.
pub(crate) struct Choices<'a> {
    pub(crate) left: std::slice::Iter<'a, u64>,
}

impl Choices<'_> {
    pub(crate) fn next(&mut self) -> u64 {
        self.left.next().copied().unwrap_or(0)
    }

    fn register(&mut self, class: &[Register]) -> Register {
        class[self.next() as usize % class.len()]
    }

    /// A memory operand in the data area, at a multiple of `alignment`.
    fn memory(&mut self, alignment: i64) -> MemoryOperand {
        let offset = (self.next() % 0x300) as i64;
        let offset = offset & !(alignment - 1);
        if self.next().is_multiple_of(2) {
            MemoryOperand::with_base_displ(MEMORY_BASE, offset)
        } else {
            MemoryOperand::with_base_index_scale_displ_size(MEMORY_BASE, MEMORY_INDEX, 4, offset, 4)
        }
    }
}

const R64: [Register; 13] = {
    use Register as R;
    [R::RAX, R::RCX, R::RDX, R::RBX, R::RBP, R::RSI, R::RDI, R::R8, R::R9, R::R10, R::R11, R::R12, R::R13]
};
const R32: [Register; 13] = {
    use Register as R;
    [R::EAX, R::ECX, R::EDX, R::EBX, R::EBP, R::ESI, R::EDI, R::R8D, R::R9D, R::R10D, R::R11D, R::R12D, R::R13D]
};
const R16: [Register; 13] = {
    use Register as R;
    [R::AX, R::CX, R::DX, R::BX, R::BP, R::SI, R::DI, R::R8W, R::R9W, R::R10W, R::R11W, R::R12W, R::R13W]
};
const R8: [Register; 8] = {
    use Register as R;
    [R::AL, R::CL, R::DL, R::BL, R::R8L, R::R9L, R::SIL, R::R13L]
};
/// Without a REX prefix also the second bytes of registers.
const R8_LEGACY: [Register; 8] = {
    use Register as R;
    [R::AL, R::CL, R::DL, R::BL, R::AH, R::CH, R::DH, R::BH]
};
const XMM: [Register; 16] = {
    use Register as R;
    [
        R::XMM0,
        R::XMM1,
        R::XMM2,
        R::XMM3,
        R::XMM4,
        R::XMM5,
        R::XMM6,
        R::XMM7,
        R::XMM8,
        R::XMM9,
        R::XMM10,
        R::XMM11,
        R::XMM12,
        R::XMM13,
        R::XMM14,
        R::XMM15,
    ]
};

const YMM: [Register; 16] = {
    use Register as R;
    [
        R::YMM0,
        R::YMM1,
        R::YMM2,
        R::YMM3,
        R::YMM4,
        R::YMM5,
        R::YMM6,
        R::YMM7,
        R::YMM8,
        R::YMM9,
        R::YMM10,
        R::YMM11,
        R::YMM12,
        R::YMM13,
        R::YMM14,
        R::YMM15,
    ]
};
const MM: [Register; 8] = {
    use Register as R;
    [R::MM0, R::MM1, R::MM2, R::MM3, R::MM4, R::MM5, R::MM6, R::MM7]
};
const ST: [Register; 8] = {
    use Register as R;
    [R::ST0, R::ST1, R::ST2, R::ST3, R::ST4, R::ST5, R::ST6, R::ST7]
};

/// Builds an instruction of this form; `None` if the choices do not go together.
pub(crate) fn build(code: Code, choices: &mut Choices<'_>) -> Option<Instruction> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut has_memory = false;
    let legacy_bytes = choices.next().is_multiple_of(2)
        && !info.op_kinds().iter().any(|kind| matches!(kind, K::r64_reg | K::r64_or_mem | K::r64_opcode))
        && info
            .op_kinds()
            .iter()
            .all(|kind| matches!(kind, K::r8_reg | K::r8_or_mem | K::r8_opcode | K::imm8 | K::al | K::cl | K::None));
    let bytes: &[Register] = if legacy_bytes { &R8_LEGACY } else { &R8 };
    let kinds = format!("{:?}", info.op_kinds());
    let vex_unaligned = info.encoding() == EncodingKind::VEX && choices.next().is_multiple_of(2);
    let alignment = if is_xsave(&instruction) || matches!(info.mnemonic(), Mnemonic::Fxsave | Mnemonic::Fxsave64) {
        64
    } else if vex_unaligned {
        1
    } else if kinds.contains("ymm") {
        32
    } else if kinds.contains("xmm") || matches!(code, Code::Cmpxchg16b_m128) {
        16
    } else {
        1
    };
    for index in 0..info.op_count() {
        let kind = info.op_kind(index);
        let memory_or = |choices: &mut Choices<'_>, class: &[Register]| {
            if choices.next().is_multiple_of(2) { None } else { Some(choices.register(class)) }
        };
        let mut memory = |instruction: &mut Instruction, choices: &mut Choices<'_>| {
            let operand = choices.memory(alignment);
            instruction.set_op_kind(index, OpKind::Memory);
            instruction.set_memory_base(if legacy_bytes { Register::RDI } else { operand.base });
            instruction.set_memory_index(if legacy_bytes { Register::None } else { operand.index });
            instruction.set_memory_index_scale(operand.scale);
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(operand.displacement as u64);
            has_memory = true;
        };
        let set = |instruction: &mut Instruction, register: Register| {
            instruction.set_op_kind(index, OpKind::Register);
            instruction.set_op_register(index, register);
        };
        match kind {
            K::mem => memory(&mut instruction, choices),
            K::r8_or_mem => match memory_or(choices, bytes) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::r16_or_mem => match memory_or(choices, &R16) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::r32_or_mem => match memory_or(choices, &R32) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::r64_or_mem => match memory_or(choices, &R64) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::xmm_or_mem => match memory_or(choices, &XMM) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::r8_reg | K::r8_opcode => set(&mut instruction, choices.register(bytes)),
            K::r16_reg | K::r16_rm | K::r16_opcode => set(&mut instruction, choices.register(&R16)),
            K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => set(&mut instruction, choices.register(&R32)),
            K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => set(&mut instruction, choices.register(&R64)),
            K::ymm_or_mem => match memory_or(choices, &YMM) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::mm_or_mem => match memory_or(choices, &MM) {
                Some(register) => set(&mut instruction, register),
                None => memory(&mut instruction, choices),
            },
            K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y => {
                memory(&mut instruction, choices);
                let wide = matches!(kind, K::mem_vsib32y | K::mem_vsib64y);
                instruction.set_memory_index(choices.register(if wide { &YMM } else { &XMM }));
            }
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => set(&mut instruction, choices.register(&YMM)),
            K::xmm_vvvv | K::xmm_is4 => set(&mut instruction, choices.register(&XMM)),
            K::mm_reg | K::mm_rm => set(&mut instruction, choices.register(&MM)),
            K::st0 => set(&mut instruction, Register::ST0),
            K::sti_opcode => set(&mut instruction, choices.register(&ST)),
            K::seg_rDI => instruction.set_op_kind(index, OpKind::MemorySegRDI),
            K::xmm_reg | K::xmm_rm => set(&mut instruction, choices.register(&XMM)),
            K::al => set(&mut instruction, Register::AL),
            K::cl => set(&mut instruction, Register::CL),
            K::ax => set(&mut instruction, Register::AX),
            K::dx => set(&mut instruction, Register::DX),
            K::eax => set(&mut instruction, Register::EAX),
            K::rax => set(&mut instruction, Register::RAX),
            K::imm8 => immediate(&mut instruction, index, OpKind::Immediate8, choices.next()),
            K::imm8_const_1 => immediate(&mut instruction, index, OpKind::Immediate8, 1),
            K::imm16 => immediate(&mut instruction, index, OpKind::Immediate16, choices.next()),
            K::imm32 => immediate(&mut instruction, index, OpKind::Immediate32, choices.next()),
            K::imm64 => immediate(&mut instruction, index, OpKind::Immediate64, choices.next()),
            K::imm8sex16 => immediate(&mut instruction, index, OpKind::Immediate8to16, choices.next()),
            K::imm8sex32 => immediate(&mut instruction, index, OpKind::Immediate8to32, choices.next()),
            K::imm8sex64 => immediate(&mut instruction, index, OpKind::Immediate8to64, choices.next()),
            K::imm32sex64 => immediate(&mut instruction, index, OpKind::Immediate32to64, choices.next()),
            K::mem_offs => {
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(BASE_VALUE + choices.next() % 0x300);
                has_memory = true;
            }
            K::seg_rSI => instruction.set_op_kind(index, OpKind::MemorySegRSI),
            K::es_rDI => instruction.set_op_kind(index, OpKind::MemoryESRDI),
            K::seg_rBX_al => {
                instruction.set_op_kind(index, OpKind::Memory);
                instruction.set_memory_base(Register::RBX);
                instruction.set_memory_index(Register::AL);
            }
            other => panic!("{code:?}: no operand of kind {other:?} is ever built"),
        }
    }
    if instruction.is_string_instruction() {
        match choices.next() % 3 {
            0 => {}
            1 if info.can_use_rep_prefix() => instruction.set_has_rep_prefix(true),
            _ if info.can_use_repne_prefix() => instruction.set_has_repne_prefix(true),
            _ => {}
        }
    }
    let exclusive = choices.next().is_multiple_of(2) && instruction.op0_kind() == OpKind::Memory;
    if exclusive && info.can_use_lock_prefix() && has_memory {
        instruction.set_has_lock_prefix(true);
    }
    Some(instruction)
}

fn immediate(instruction: &mut Instruction, index: u32, kind: OpKind, value: u64) {
    instruction.set_op_kind(index, kind);
    match kind {
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        OpKind::Immediate64 => instruction.set_immediate64(value),
        OpKind::Immediate8to16 => instruction.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(i32::from(value as i8)),
        OpKind::Immediate8to64 => instruction.set_immediate8to64(i64::from(value as i8)),
        _ => instruction.set_immediate32to64(i64::from(value as i32)),
    }
}

/// Points the registers that the instruction uses as addresses into the data area.
pub(crate) fn prepare(instruction: &Instruction, registers: &mut Registers) {
    let gpr = &mut registers.gpr;
    gpr[MEMORY_BASE.number()] = BASE_VALUE;
    gpr[MEMORY_INDEX.number()] %= 8;
    gpr[MEMORY_INDEX.number()] *= 4;
    gpr[RSP] = STACK_VALUE;
    if instruction.is_string_instruction() {
        gpr[RSI] = STRINGS + gpr[RSI] % 0x200;
        gpr[RDI] = STRINGS + gpr[RDI] % 0x200;
        gpr[RCX] %= 16;
    }
    if instruction.memory_base() == Register::RDI {
        gpr[RDI] = BASE_VALUE;
    }
    if instruction.op0_kind() == OpKind::MemorySegRDI {
        gpr[RDI] = BASE_VALUE + gpr[RDI] % 64;
    }
    // Lengths of strings: mostly of some.
    if matches!(instruction.mnemonic(), Mnemonic::Pcmpestri | Mnemonic::Pcmpestrm) {
        gpr[RAX] %= 24;
        gpr[RDX] %= 24;
    }
    // Of the components, those that this CPU has.
    if is_xsave(instruction) {
        gpr[RAX] %= 8;
        gpr[RDX] = 0;
    }
    if instruction.is_vsib() {
        let index = instruction.memory_index().number();
        let small = if instruction.is_vsib32() {
            0xff_u128 * 0x1_0000_0001_0000_0001_0000_0001
        } else {
            0xff_u128 << 64 | 0xff
        };
        registers.fpu.xmm[index] &= small;
        registers.fpu.ymm_high[index] &= small;
    }
    let gpr = &mut registers.gpr;
    if instruction.mnemonic() == Mnemonic::Xlatb {
        gpr[RBX] = BASE_VALUE;
    }
    if instruction.mnemonic() == Mnemonic::Leave {
        gpr[RBP] = BASE_VALUE;
    }
    // The bit offset of BT and its like reaches far out of the operand.
    let bit_string = matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if bit_string && instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register {
        let register = &mut gpr[instruction.op1_register().full_register().number()];
        *register = ((*register % 2000) as i64 - 1000) as u64;
    }
}

fn is_xsave(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(instruction.mnemonic(), M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64)
}

/// These bits of iced-x86's as bits of RFLAGS.
fn flags(iced: u32) -> u64 {
    use iced_x86::RflagsBits as B;
    [(B::CF, 1), (B::PF, 4), (B::AF, 0x10), (B::ZF, 0x40), (B::SF, 0x80), (B::OF, 0x800), (B::DF, 0x400)]
        .into_iter()
        .filter(|(bit, _)| iced & bit != 0)
        .fold(0, |flags, (_, flag)| flags | flag)
}

/// The flags that are undefined after these instructions; `None` if one of them uses a flag that is.
pub(crate) fn undefined_flags(instructions: &[Instruction], registers: &Registers) -> Option<u64> {
    let mut undefined = 0;
    for (index, instruction) in instructions.iter().enumerate() {
        if flags(instruction.rflags_read()) & undefined != 0 {
            return None;
        }
        // With the count in CL: what is undefined depends on its value, which iced-x86 cannot know, and
        // which is only known here at the start.
        let by_cl = (1..instruction.op_count()).any(|operand| instruction.op_register(operand) == Register::CL);
        if !by_cl {
            undefined &= !flags(instruction.rflags_modified());
        }
        undefined |= flags(instruction.rflags_undefined());
        // iced-x86 takes a rotation by all bits and CF for none; OF is undefined all the same.
        if matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr) && instruction.immediate8() & 0x3f > 1 {
            undefined |= 0x800;
        }
        if by_cl && (index > 0 || registers.gpr[RCX] & 0x3f != 0) {
            let shifts = matches!(
                instruction.mnemonic(),
                Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sar | Mnemonic::Sal | Mnemonic::Shld | Mnemonic::Shrd
            );
            undefined |= 0x800 | if shifts { 0x10 } else { 0 };
        }
    }
    Some(undefined)
}

/// Whether the manuals leave the result itself undefined: double shifts of 16 bits by more than that.
pub(crate) fn result_is_undefined(instruction: &Instruction, registers: &Registers) -> bool {
    let count = match instruction.code() {
        Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8 => u64::from(instruction.immediate8()),
        Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_CL => registers.gpr[RCX],
        _ => 0,
    };
    count & 0x1f > 16
}

/// Whether an instruction can stand anywhere in a sequence: it needs no register of its own prepared,
/// does not fault, and its result is always defined.
pub(crate) fn fits_a_sequence(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let by_register = instruction.op_count() > 1 && instruction.op1_kind() == OpKind::Register;
    let reaches_far = matches!(instruction.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && instruction.op0_kind() == OpKind::Memory
        && by_register;
    !instruction.is_string_instruction()
        && instruction.memory_base() != Register::RDI
        && !instruction.is_vsib()
        && !is_xsave(instruction)
        && instruction.op0_kind() != OpKind::MemorySegRDI
        && !matches!(instruction.mnemonic(), M::Xlatb | M::Leave | M::Div | M::Idiv | M::Shld | M::Shrd)
        // They may unmask exceptions, or store pointers to the instruction before.
        && !matches!(instruction.mnemonic(), M::Fldcw | M::Fldenv | M::Frstor | M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64)
        && !reaches_far
}
