//! Executes instructions on the x87 stack and on MMX registers.
//!
//! The guest's exception masks are in force: an unmasked exception makes the x87 pending, as it would
//! for the guest, and what is reported is nothing until the next instruction. That one is the guest's:
//! it finds the exception here ([`Core::check_x87_exceptions`]), never on the host.
#![expect(unsafe_code, reason = "calls the instruction with the guest's x87 state on the host's x87")]

use std::arch::asm;
use std::mem::offset_of;

use super::form::Kind;
use super::{form_of, read_memory_operand};
use crate::core::{Abort, Core};
use crate::exception::Exception;
use crate::flags;
use crate::fpu;
use crate::op::{Op, Operand};
use crate::sse::quiet;
use crate::state::cr0;

/// What the instruction finds in the host's registers, and leaves there.
#[repr(C, align(16))]
struct Image {
    /// The memory operand, at `[rdi]`.
    memory: [u8; 112],
    /// As FXSAVE64 stores it.
    registers: [u8; 512],
    /// The operands, R8 to R11.
    gpr: [u64; 4],
    entry: *const u8,
    /// RFLAGS before and after the instruction.
    flags: u64,
    host_mxcsr: u32,
    host_fcw: u16,
}

/// Exceptions that keep an instruction from storing its result in memory: all but precision, denormal
/// operands and division, which no store raises (SDM volume 1, 8.5).
const NOTHING_STORED: u16 = fpu::status::IE | fpu::status::OE | fpu::status::UE;

pub(super) fn execute(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let form = form_of(core, op)?;
    if form.kind == Kind::Mmx && core.s.cr0 & cr0::EM != 0 {
        return core.raise(Exception::ud());
    }
    core.require_x87()?;
    if form.waits {
        core.check_x87_exceptions()?;
    }
    let mut image = Image {
        memory: [0; 112],
        registers: [0; 512],
        gpr: [0; 4],
        entry: form.code.entry(op.imm as u8),
        flags: core.s.rflags & flags::ARITHMETIC | flags::RESERVED_ONE | flags::IF,
        host_mxcsr: 0,
        host_fcw: 0,
    };
    image.load_registers(core, op);
    let address = read_memory_operand(core, op, form, &mut image.memory)?;
    call(&mut image);

    let mut after = core.s.fpu.clone();
    after.load_x87(&image.registers);
    (after.fip, after.fdp, after.fop) = (core.s.fpu.fip, core.s.fpu.fdp, core.s.fpu.fop);
    if form.kind == Kind::Mmx {
        after.load_xmm(&image.registers);
        core.float_flags(u32::from_le_bytes(image.registers[24..28].try_into().expect("4 bytes")))?;
        after.mxcsr = core.s.fpu.mxcsr;
    }
    let before = std::mem::replace(&mut core.s.fpu, after);
    let size = form.memory.map_or(0, |memory| memory.size);
    form.pointers.apply(core, op, &mut image.memory[..size]);
    let raised = form.waits && core.s.fpu.fsw & !core.s.fpu.fcw & NOTHING_STORED != 0;
    if let Some(memory) = form.memory
        && memory.write
        && !raised
        && let Err(abort) = core.write_vector(address, &image.memory[..memory.size])
    {
        core.s.fpu = before;
        return Err(abort);
    }
    core.set_flags(form.flags, image.flags);
    for (position, operand) in op.operands().into_iter().enumerate() {
        if let Operand::Gpr(index) = operand
            && form.written[position]
        {
            core.s.gpr[usize::from(index & 15)] = image.gpr[position];
        }
    }
    Ok(())
}

impl Image {
    fn load_registers(&mut self, core: &Core<'_>, op: &Op) {
        let mut state = core.s.fpu.clone();
        state.mxcsr = quiet(state.mxcsr);
        // As the processor keeps them: pending exactly if a flag is set that is not masked.
        state.fsw =
            state.fsw & !fpu::status::PENDING | if state.exception_pending() { fpu::status::PENDING } else { 0 };
        self.registers = state.fxsave();
        for (position, operand) in op.operands().into_iter().enumerate() {
            if let Operand::Gpr(index) = operand {
                self.gpr[position] = core.s.gpr[usize::from(index & 15)];
            }
        }
    }
}

fn call(image: &mut Image) {
    // The host's x87 stack is empty between functions of Rust, so that its control word is all there is to restore.
    // Exceptions of the guest's x87 are pending at most before FNINIT drops them: no instruction that would report one
    // runs until then, because those that wait come here with none pending. MXCSR masks all of its own (see `quiet`).
    // SAFETY: `entry` is code that `Form` has checked to touch nothing but the registers of FXSAVE, R8 to R11 and the
    // memory at RDI up to the size of `memory`, and to return; all of these are in the image or named as clobbered.
    unsafe {
        asm!(
            "stmxcsr [rdi + {host_mxcsr}]",
            "fnstcw [rdi + {host_fcw}]",
            "fxrstor64 [rdi + {registers}]",
            "mov r8, [rdi + {gpr}]",
            "mov r9, [rdi + {gpr} + 8]",
            "mov r10, [rdi + {gpr} + 16]",
            "mov r11, [rdi + {gpr} + 24]",
            "push [rdi + {flags}]",
            "popfq",
            "call [rdi + {entry}]",
            "pushfq",
            "pop [rdi + {flags}]",
            "fxsave64 [rdi + {registers}]",
            "fninit",
            "fldcw [rdi + {host_fcw}]",
            "ldmxcsr [rdi + {host_mxcsr}]",
            "mov [rdi + {gpr}], r8",
            "mov [rdi + {gpr} + 8], r9",
            "mov [rdi + {gpr} + 16], r10",
            "mov [rdi + {gpr} + 24], r11",
            host_mxcsr = const offset_of!(Image, host_mxcsr),
            host_fcw = const offset_of!(Image, host_fcw),
            registers = const offset_of!(Image, registers),
            gpr = const offset_of!(Image, gpr),
            entry = const offset_of!(Image, entry),
            flags = const offset_of!(Image, flags),
            in("rdi") image as *mut Image,
            clobber_abi("sysv64"),
        );
    }
}
