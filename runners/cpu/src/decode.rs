//! From iced-x86's instruction to an [`Op`]: operands resolved, handler chosen.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::exit::{CpuExit, MAX_INSTRUCTION_BYTES};
use crate::native::{self, Form};
use crate::op::{FLAT, Handler, Mem, Op, Operand, Rep, Width};
use crate::segment::Seg;
use crate::{
    arithmetic, avx, bits, branch, control, convert, far, flag_ops, fpu_ops, moves, multiply, port, shift, sse, string,
    syscall, system, tables, vmx, xsave_ops,
};

/// The families of instructions: each knows the handlers of its own.
const FAMILIES: [fn(&Instruction) -> Option<Handler>; 20] = [
    arithmetic::select,
    moves::select,
    branch::select,
    shift::select,
    multiply::select,
    bits::select,
    convert::select,
    flag_ops::select,
    string::select,
    port::select,
    far::select,
    syscall::select,
    control::select,
    tables::select,
    system::select,
    vmx::select,
    sse::select,
    avx::select,
    fpu_ops::select,
    xsave_ops::select,
];

/// The op of a decoded instruction.
pub(crate) fn op(instruction: &Instruction, bits: u8) -> Op {
    let (run, form) = match handler(instruction) {
        Some(run) => (run, None),
        None => Form::of(instruction).map_or((unknown as Handler, None), |form| (native::handler(form), Some(form))),
    };
    let operand = |index: u32| if index < instruction.op_count() { operand(instruction, index) } else { Operand::None };
    Op {
        run,
        imm: immediate(instruction),
        mem: memory(instruction, bits),
        a: operand(0),
        b: operand(1),
        c: operand(2),
        d: operand(3),
        form,
        lock: instruction.has_lock_prefix() || instruction.mnemonic() == iced_x86::Mnemonic::Xchg,
        rep: if instruction.has_repne_prefix() {
            Rep::NotEqual
        } else if instruction.has_rep_prefix() {
            Rep::Equal
        } else {
            Rep::None
        },
        len: instruction.len() as u8,
    }
}

/// RMPREAD (APM volume 3), which iced-x86 takes for invalid, if that is what `code` begins with.
pub(crate) fn rmpread(instruction: &Instruction, code: &[u8], bits: u8) -> Option<Op> {
    const RMPREAD: [u8; 4] = [0xf2, 0x0f, 0x01, 0xfd];
    let is_it = instruction.code() == Code::INVALID && code.starts_with(&RMPREAD);
    is_it.then(|| Op { run: system::rmpread, len: RMPREAD.len() as u8, ..op(instruction, bits) })
}

/// The handler of an instruction, if it is implemented.
pub(crate) fn handler(instruction: &Instruction) -> Option<Handler> {
    if instruction.code() == Code::INVALID {
        return Some(undefined);
    }
    FAMILIES.iter().find_map(|select| select(instruction))
}

/// Whether the CPU executes an instruction; `true` also for invalid ones, which are #UD.
#[must_use]
pub fn implements(instruction: &Instruction) -> bool {
    handler(instruction).is_some() || Form::of(instruction).is_some()
}

/// #UD.
pub(crate) fn undefined(core: &mut Core<'_>, _: &Op) -> Result<(), Abort> {
    core.raise(Exception::ud())
}

/// An instruction that exists but is not implemented.
pub(crate) fn unknown(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    core.give_up(usize::from(op.len))
}

impl Core<'_> {
    /// Leaves `run` because the instruction at RIP, of `len` bytes, does something that is not
    /// implemented.
    pub(crate) fn give_up<T>(&mut self, len: usize) -> Result<T, Abort> {
        let (bytes, len) = self.instruction_bytes(len);
        self.exit(CpuExit::UnknownInstruction { rip: self.s.rip, bytes, len: len as u8 })
    }

    /// The bytes of the instruction at RIP, which is `len` bytes long, and how many could be fetched.
    pub(crate) fn instruction_bytes(&mut self, len: usize) -> ([u8; MAX_INSTRUCTION_BYTES], usize) {
        let mut bytes = [0; MAX_INSTRUCTION_BYTES];
        let wanted = &mut bytes[..len.min(MAX_INSTRUCTION_BYTES)];
        let linear = self.s.linear_rip();
        let mut fetched = self.fetch_code(linear, wanted).unwrap_or(0);
        if fetched < wanted.len() {
            fetched += self.fetch_code(linear.wrapping_add(fetched as u64), &mut wanted[fetched..]).unwrap_or(0);
        }
        (bytes, fetched)
    }
}

fn operand(instruction: &Instruction, index: u32) -> Operand {
    match instruction.op_kind(index) {
        OpKind::Register => register(instruction.op_register(index)),
        OpKind::Memory => Operand::Mem,
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64
        | OpKind::NearBranch16
        | OpKind::NearBranch32
        | OpKind::NearBranch64
        | OpKind::FarBranch16
        | OpKind::FarBranch32 => Operand::Imm,
        _ => Operand::None,
    }
}

fn register(register: Register) -> Operand {
    let number = register.number() as u8;
    match register {
        Register::AH | Register::CH | Register::DH | Register::BH => Operand::High(number & 3),
        _ if register.is_gpr() => Operand::Gpr(gpr_index(register)),
        _ if register.is_xmm() => Operand::Xmm(number),
        _ if register.is_ymm() => Operand::Ymm(number),
        _ if register.is_mm() => Operand::Mmx(number),
        _ if register.is_segment_register() => Operand::Seg(number),
        _ if register.is_cr() => Operand::Cr(number),
        _ if register.is_dr() => Operand::Dr(number),
        _ if register.is_st() => Operand::St(number),
        _ => Operand::None,
    }
}

/// The index of the general register that `register` is a part of.
fn gpr_index(register: Register) -> u8 {
    register.full_register().number() as u8
}

/// The immediate, the target of a near branch, or selector and offset of a far one.
fn immediate(instruction: &Instruction) -> u64 {
    let mut value = None;
    for index in 0..instruction.op_count() {
        let this = match instruction.op_kind(index) {
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => instruction.near_branch_target(),
            OpKind::FarBranch16 => {
                u64::from(instruction.far_branch_selector()) << 32 | u64::from(instruction.far_branch16())
            }
            OpKind::FarBranch32 => {
                u64::from(instruction.far_branch_selector()) << 32 | u64::from(instruction.far_branch32())
            }
            // ENTER's nesting level goes above its frame size.
            OpKind::Immediate8_2nd => value.unwrap_or(0) | u64::from(instruction.immediate8_2nd()) << 16,
            _ => match instruction.try_immediate(index) {
                Ok(immediate) => immediate,
                Err(_) => continue,
            },
        };
        value = Some(this);
    }
    value.unwrap_or(0)
}

/// The memory operand; for string instructions the segment and address size of the source.
fn memory(instruction: &Instruction, bits: u8) -> Mem {
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    let segment = instruction.memory_segment();
    let relative_to_ip = instruction.is_ip_rel_memory_operand();
    let has = |register: Register| register.is_gpr() && !relative_to_ip;
    let seg = if segment == Register::None { Seg::Ds as u8 } else { segment.number() as u8 };
    Mem {
        disp: if relative_to_ip { instruction.ip_rel_memory_address() } else { instruction.memory_displacement64() },
        base_width: if has(base) { Width::of_bytes(base.size()) } else { Width::Nothing },
        index_width: if has(index) { Width::of_bytes(index.size()) } else { Width::Nothing },
        address_width: address_width(instruction, bits),
        base: if has(base) { gpr_index(base) } else { 0 },
        // Of a vector register too, whose elements are added by the instruction.
        index: if index == Register::None { 0 } else { index.number() as u8 & 15 },
        scale: instruction.memory_index_scale().trailing_zeros() as u8,
        seg: if bits == 64 && seg < Seg::Fs as u8 { FLAT } else { seg },
        stack: seg == Seg::Ss as u8,
    }
}

/// The address size: of the memory operand, or of the implicit operands of string instructions.
fn address_width(instruction: &Instruction, bits: u8) -> Width {
    for index in 0..instruction.op_count() {
        match instruction.op_kind(index) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return Width::Bits16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return Width::Bits32,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return Width::Bits64,
            _ => {}
        }
    }
    let base = instruction.memory_base();
    let index = instruction.memory_index();
    for register in [base, index] {
        if matches!(register, Register::RIP) || register.size() == 8 && register != Register::None {
            return Width::Bits64;
        }
        if matches!(register, Register::EIP) || register.size() == 4 && register != Register::None {
            return Width::Bits32;
        }
        if register.size() == 2 && register != Register::None {
            return Width::Bits16;
        }
    }
    match instruction.memory_displ_size() {
        8 => Width::Bits64,
        4 => Width::Bits32,
        2 => Width::Bits16,
        _ if bits == 64 => Width::Bits64,
        _ => Width::Bits32,
    }
}
