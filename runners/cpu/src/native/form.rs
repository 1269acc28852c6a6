//! What the host has to know to execute an instruction: its encoding with operands of our choosing,
//! and what it reads and writes.
//!
//! The operand at position *i* becomes XMM*i+1* (or YMM), R8+*i* if it is a general register, and
//! `[rdi]` if it is in memory. Registers that an instruction uses without naming them (XMM0, RAX, RCX,
//! RDX) keep their place, and so do ST and MMX registers, and XMM registers beside these.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use iced_x86::{
    CodeSize, CpuidFeature, Encoder, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register, RflagsBits,
};

use super::code::Code;
use super::host_has;
use super::pointers::Pointers;
use crate::flags;

/// Which state the instruction works on, and so what has to be enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// XMM registers; their upper halves stay.
    Sse,
    /// YMM registers.
    Vex,
    /// The x87 stack.
    X87,
    /// MMX registers, which are the x87 stack's, with XMM registers maybe.
    Mmx,
}

/// The memory operand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// Bytes.
    pub(super) size: usize,
    pub(super) read: bool,
    pub(super) write: bool,
    /// #GP unless the address is a multiple of the size.
    pub(super) aligned: bool,
}

/// An instruction but for its registers, address and immediate.
#[derive(Debug)]
pub(crate) struct Form {
    pub(super) code: Code,
    pub(super) kind: Kind,
    pub(super) memory: Option<Memory>,
    /// The operands that are written, by position.
    pub(super) written: [bool; 4],
    /// XMM0 is written without being named.
    pub(super) writes_xmm0: bool,
    /// RCX is written without being named.
    pub(super) writes_rcx: bool,
    /// The bits of RFLAGS that it computes.
    pub(super) flags: u64,
    /// x87: what becomes of the pointers to the last instruction and its operand.
    pub(super) pointers: Pointers,
    /// x87: reports exceptions of earlier instructions first.
    pub(super) waits: bool,
}

/// The largest memory operands: of FNSAVE, and a YMM register.
const MAX_X87_MEMORY: usize = 108;
const MAX_VECTOR_MEMORY: usize = 32;

/// All forms met so far, by their encoding with a zero immediate. There are so many as the instruction
/// set has, a few thousand; they are never dropped.
static FORMS: LazyLock<Mutex<HashMap<Vec<u8>, Option<&'static Form>>>> = LazyLock::new(Mutex::default);

impl Form {
    /// The form of an instruction; `None` if the host cannot execute it for a guest.
    pub(crate) fn of(instruction: &Instruction) -> Option<&'static Form> {
        let kind = kind(instruction)?;
        let canonical = canonical(kind, instruction)?;
        let key = encode(&canonical, 0)?;
        let mut forms = FORMS.lock().unwrap_or_else(PoisonError::into_inner);
        *forms.entry(key).or_insert_with(|| Form::new(kind, &canonical).map(|form| &*Box::leak(Box::new(form))))
    }

    fn new(kind: Kind, canonical: &Instruction) -> Option<Form> {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(canonical);
        let mut memory = None;
        let mut written = [false; 4];
        for position in 0..canonical.op_count() {
            let (read, write) = match info.op_access(position) {
                OpAccess::Read => (true, false),
                OpAccess::Write => (false, true),
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                // Registers only: one that may be written is stored as it is after the instruction.
                OpAccess::CondWrite if canonical.op_kind(position) == OpKind::Register => (true, true),
                OpAccess::CondRead if canonical.op_kind(position) == OpKind::Register => (true, false),
                OpAccess::None => (false, false),
                _ => return None,
            };
            written[position as usize] = write;
            if canonical.op_kind(position) == OpKind::Memory {
                let size = canonical.memory_size().size();
                memory = Some(Memory { size, read, write, aligned: is_aligned(kind, canonical, size) });
            }
        }
        let x87 = matches!(kind, Kind::X87 | Kind::Mmx);
        let room = if x87 { MAX_X87_MEMORY } else { MAX_VECTOR_MEMORY };
        if memory.is_some_and(|memory| !(1..=room).contains(&memory.size)) {
            return None;
        }
        // Nothing but the registers that are loaded and stored, and the buffer.
        let operands = info.used_registers().iter().all(|used| match used.register() {
            register if register.is_vector_register() => register.number() <= 4 || x87,
            register if register.is_gpr() => is_loaded(register.full_register()),
            register => register.is_st() || register.is_mm(),
        });
        let buffer = info.used_memory().iter().all(|used| used.base() == Register::RDI && memory.is_some());
        if !operands || !buffer {
            return None;
        }
        let writes = |register: Register| {
            let named = (0..canonical.op_count()).any(|operand| canonical.op_register(operand) == register);
            !named
                && info.used_registers().iter().any(|used| {
                    let read = matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
                    !read && full(used.register()) == full(register)
                })
        };
        if writes(Register::RAX) || writes(Register::RDX) {
            return None;
        }
        let (writes_xmm0, writes_rcx) = (!x87 && writes(Register::XMM0), writes(Register::RCX));
        let immediates = (0..canonical.op_count()).any(|operand| canonical.op_kind(operand) == OpKind::Immediate8);
        Some(Form {
            code: Code::map(if immediates { 256 } else { 1 }, |immediate| encode(canonical, immediate))?,
            kind,
            memory,
            written,
            writes_xmm0,
            writes_rcx,
            flags: flags(canonical.rflags_modified()),
            pointers: Pointers::after(kind, canonical.mnemonic()),
            waits: !matches!(canonical.mnemonic(), Mnemonic::Fninit | Mnemonic::Fnstenv | Mnemonic::Fnsave),
        })
    }
}

/// The state that an instruction works on, if it is one to execute on the host.
fn kind(instruction: &Instruction) -> Option<Kind> {
    let features = instruction.cpuid_features();
    if features.is_empty() || !features.iter().all(|&feature| host_has(feature)) {
        return None;
    }
    let any = |class: fn(Register) -> bool| {
        (0..instruction.op_count()).any(|operand| class(instruction.op_register(operand)))
    };
    match instruction.encoding() {
        EncodingKind::VEX => Some(Kind::Vex),
        EncodingKind::Legacy if any(Register::is_mm) || features.contains(&CpuidFeature::MMX) => Some(Kind::Mmx),
        EncodingKind::Legacy if features.iter().any(is_x87) => Some(Kind::X87),
        EncodingKind::Legacy if any(Register::is_vector_register) => Some(Kind::Sse),
        _ => None,
    }
}

fn is_x87(feature: &CpuidFeature) -> bool {
    matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
}

/// The instruction with operands of our choosing.
fn canonical(kind: Kind, instruction: &Instruction) -> Option<Instruction> {
    const GPR: [[Register; 4]; 3] = {
        use Register as R;
        [[R::R8W, R::R9W, R::R10W, R::R11W], [R::R8D, R::R9D, R::R10D, R::R11D], [R::R8, R::R9, R::R10, R::R11]]
    };
    const XMM: [Register; 4] = [Register::XMM1, Register::XMM2, Register::XMM3, Register::XMM4];
    const YMM: [Register; 4] = [Register::YMM1, Register::YMM2, Register::YMM3, Register::YMM4];

    if instruction.is_vsib() || instruction.op_count() > 4 {
        return None;
    }
    let mut canonical = *instruction;
    // As 64-bit code would have it, wherever it comes from.
    canonical.set_code_size(CodeSize::Code64);
    canonical.set_segment_prefix(Register::None);
    canonical.set_has_rep_prefix(false);
    canonical.set_has_repne_prefix(false);
    for operand in 0..instruction.op_count() {
        let position = operand as usize;
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = match instruction.op_register(operand) {
                    same if same.is_st() || same.is_mm() => continue,
                    xmm if kind == Kind::Mmx && xmm.is_xmm() => continue,
                    // The third operand of the blends and SHA256RNDS2, which is always this one.
                    Register::XMM0 if is_implied(instruction, operand) => continue,
                    xmm if xmm.is_xmm() => XMM[position],
                    ymm if ymm.is_ymm() => YMM[position],
                    gpr if gpr.is_gpr() && gpr.size() >= 2 => GPR[gpr.size().trailing_zeros() as usize - 1][position],
                    _ => return None,
                };
                canonical.set_op_register(operand, register);
            }
            OpKind::Memory => {
                canonical.set_memory_base(Register::RDI);
                canonical.set_memory_index(Register::None);
                canonical.set_memory_index_scale(1);
                canonical.set_memory_displacement64(0);
                canonical.set_memory_displ_size(0);
            }
            OpKind::Immediate8 => {}
            _ => return None,
        }
    }
    Some(canonical)
}

/// Whether the encoding has no field for this register operand.
fn is_implied(instruction: &Instruction, operand: u32) -> bool {
    instruction.encoding() == EncodingKind::Legacy
        && operand == 2
        && matches!(
            instruction.mnemonic(),
            Mnemonic::Blendvps | Mnemonic::Blendvpd | Mnemonic::Pblendvb | Mnemonic::Sha256rnds2
        )
}

/// The bytes of an instruction with another immediate.
fn encode(instruction: &Instruction, immediate: u8) -> Option<Vec<u8>> {
    let mut instruction = *instruction;
    if (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Immediate8) {
        instruction.set_immediate8(immediate);
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&instruction, 0).ok()?;
    Some(encoder.take_buffer())
}

/// Whether memory operands must be aligned: those of 16 bytes without VEX, but for the string comparisons.
fn is_aligned(kind: Kind, instruction: &Instruction, size: usize) -> bool {
    use Mnemonic as M;
    let strings = matches!(
        instruction.mnemonic(),
        M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64
    );
    matches!(kind, Kind::Sse | Kind::Mmx) && size == 16 && !strings
}

fn is_loaded(register: Register) -> bool {
    use Register as R;
    matches!(register, R::RAX | R::RCX | R::RDX | R::RDI | R::R8 | R::R9 | R::R10 | R::R11)
}

fn full(register: Register) -> Register {
    register.full_register()
}

/// These bits of iced-x86's as bits of RFLAGS.
fn flags(iced: u32) -> u64 {
    use RflagsBits as B;
    [
        (B::CF, flags::CF),
        (B::PF, flags::PF),
        (B::AF, flags::AF),
        (B::ZF, flags::ZF),
        (B::SF, flags::SF),
        (B::OF, flags::OF),
    ]
    .into_iter()
    .filter(|(bit, _)| iced & bit != 0)
    .fold(0, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    fn form(bits: u32, code: &[u8]) -> Option<&'static Form> {
        Form::of(&Decoder::new(bits, code, DecoderOptions::NONE).decode())
    }

    #[test]
    fn a_form_knows_nothing_of_registers_addresses_and_modes() {
        // FIST word ptr [bx+si]; [eax]; [r8+rcx*2+1]; with a segment.
        let forms = [
            form(16, &[0xdf, 0x10]),
            form(32, &[0xdf, 0x10]),
            form(64, &[0x41, 0xdf, 0x54, 0x48, 0x01]),
            form(64, &[0x64, 0xdf, 0x10]),
        ];
        let first = forms[0].expect("FIST is executed here");
        for form in forms {
            assert!(form.is_some_and(|form| std::ptr::eq(form, first)));
        }
    }

    #[test]
    fn what_touches_more_than_its_operands_has_no_form() {
        // FXSAVE, MASKMOVDQU, VZEROALL, VGATHERDPS, ADD, RDRAND.
        let codes: [&[u8]; 6] = [
            &[0x0f, 0xae, 0x00],
            &[0x66, 0x0f, 0xf7, 0xc1],
            &[0xc5, 0xfc, 0x77],
            &[0xc4, 0xe2, 0x71, 0x92, 0x04, 0x91],
            &[0x01, 0x00],
            &[0x0f, 0xc7, 0xf0],
        ];
        for code in codes {
            assert!(form(64, code).is_none(), "{code:02x?}");
        }
    }
}
