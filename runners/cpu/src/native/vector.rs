//! Executes instructions on XMM and YMM registers.
#![expect(unsafe_code, reason = "calls the instruction with the guest's operands in the host's registers")]

use std::arch::asm;
use std::mem::offset_of;

use super::form::{Form, Kind};
use super::{form_of, read_memory_operand};
use crate::core::{Abort, Core};
use crate::fpu::FpuState;
use crate::op::{Op, Operand};
use crate::sse::quiet;
use crate::state::gpr::{RAX, RCX, RDX};

/// What the instruction finds in the host's registers, and leaves there.
#[repr(C, align(32))]
struct Image {
    /// The memory operand, at `[rdi]`.
    memory: [u8; 32],
    /// Low and high halves of YMM0 and of the operands, YMM1 to YMM4.
    vectors: [[u128; 2]; 5],
    /// RAX, RCX, RDX, and the operands, R8 to R11.
    gpr: [u64; 7],
    entry: *const u8,
    /// RFLAGS after the instruction.
    flags: u64,
    mxcsr: u32,
    host_mxcsr: u32,
}

/// Index in [`Image::gpr`] of the first operand.
const OPERANDS: usize = 3;

pub(super) fn execute(core: &mut Core<'_>, op: &Op) -> Result<(), Abort> {
    let form = form_of(core, op)?;
    match form.kind {
        Kind::Vex => core.require_avx()?,
        _ => core.require_sse()?,
    }
    let mut image = Image {
        memory: [0; 32],
        vectors: [[0; 2]; 5],
        gpr: [0; 7],
        entry: form.code.entry(op.imm as u8),
        flags: 0,
        mxcsr: quiet(core.s.fpu.mxcsr),
        host_mxcsr: 0,
    };
    image.load_registers(core, op);
    let address = read_memory_operand(core, op, form, &mut image.memory)?;
    match form.kind {
        Kind::Vex => call_vex(&mut image),
        _ => call_sse(&mut image),
    }
    core.float_flags(image.mxcsr)?;
    if let Some(memory) = form.memory
        && memory.write
    {
        core.write_vector(address, &image.memory[..memory.size])?;
    }
    image.store_registers(core, op, form);
    Ok(())
}

impl Image {
    fn load_registers(&mut self, core: &Core<'_>, op: &Op) {
        let state = &*core.s;
        self.vectors[0] = ymm(&state.fpu, 0);
        self.gpr[..OPERANDS].copy_from_slice(&[state.gpr[RAX], state.gpr[RCX], state.gpr[RDX]]);
        for (position, operand) in op.operands().into_iter().enumerate() {
            match operand {
                Operand::Xmm(index) | Operand::Ymm(index) => self.vectors[position + 1] = ymm(&state.fpu, index),
                Operand::Gpr(index) => self.gpr[position + OPERANDS] = state.gpr[usize::from(index & 15)],
                _ => {}
            }
        }
    }

    fn store_registers(&self, core: &mut Core<'_>, op: &Op, form: &Form) {
        let state = &mut *core.s;
        let high = form.kind == Kind::Vex;
        let mut store = |index: u8, value: [u128; 2]| {
            let index = usize::from(index & 15);
            state.fpu.xmm[index] = value[0];
            if high {
                state.fpu.ymm_high[index] = value[1];
            }
        };
        if form.writes_xmm0 {
            store(0, self.vectors[0]);
        }
        for (position, operand) in op.operands().into_iter().enumerate().filter(|&(position, _)| form.written[position])
        {
            match operand {
                Operand::Xmm(index) | Operand::Ymm(index) => store(index, self.vectors[position + 1]),
                Operand::Gpr(index) => state.gpr[usize::from(index & 15)] = self.gpr[position + OPERANDS],
                _ => {}
            }
        }
        if form.writes_rcx {
            state.gpr[RCX] = self.gpr[1];
        }
        core.set_flags(form.flags, self.flags);
    }
}

fn ymm(fpu: &FpuState, index: u8) -> [u128; 2] {
    let index = usize::from(index & 15);
    [fpu.xmm[index], fpu.ymm_high[index]]
}

/// Loads registers, calls the instruction and stores registers, with `$mov` for the vectors.
macro_rules! call {
    ($image:expr, $mov:literal, $class:literal, $after:literal) => {
        // SAFETY: `entry` is code that `Form` has checked to touch nothing but flags, MXCSR, the registers
        // that are loaded here and the memory at RDI up to the size of `memory`, and to return; all of
        // these are in the image or named as clobbered. MXCSR is put back, and no exception of it is
        // unmasked meanwhile (see `quiet`).
        unsafe {
            asm!(
                concat!($mov, " ", $class, "mm0, [rdi + {vectors}]"),
                concat!($mov, " ", $class, "mm1, [rdi + {vectors} + 32]"),
                concat!($mov, " ", $class, "mm2, [rdi + {vectors} + 64]"),
                concat!($mov, " ", $class, "mm3, [rdi + {vectors} + 96]"),
                concat!($mov, " ", $class, "mm4, [rdi + {vectors} + 128]"),
                "mov rax, [rdi + {gpr}]",
                "mov rcx, [rdi + {gpr} + 8]",
                "mov rdx, [rdi + {gpr} + 16]",
                "mov r8, [rdi + {gpr} + 24]",
                "mov r9, [rdi + {gpr} + 32]",
                "mov r10, [rdi + {gpr} + 40]",
                "mov r11, [rdi + {gpr} + 48]",
                "stmxcsr [rdi + {host_mxcsr}]",
                "ldmxcsr [rdi + {mxcsr}]",
                "call [rdi + {entry}]",
                "stmxcsr [rdi + {mxcsr}]",
                "ldmxcsr [rdi + {host_mxcsr}]",
                "mov [rdi + {gpr} + 8], rcx",
                "mov [rdi + {gpr} + 24], r8",
                "mov [rdi + {gpr} + 32], r9",
                "mov [rdi + {gpr} + 40], r10",
                "mov [rdi + {gpr} + 48], r11",
                "pushfq",
                "pop [rdi + {flags}]",
                concat!($mov, " [rdi + {vectors}], ", $class, "mm0"),
                concat!($mov, " [rdi + {vectors} + 32], ", $class, "mm1"),
                concat!($mov, " [rdi + {vectors} + 64], ", $class, "mm2"),
                concat!($mov, " [rdi + {vectors} + 96], ", $class, "mm3"),
                concat!($mov, " [rdi + {vectors} + 128], ", $class, "mm4"),
                $after,
                vectors = const offset_of!(Image, vectors),
                gpr = const offset_of!(Image, gpr),
                host_mxcsr = const offset_of!(Image, host_mxcsr),
                mxcsr = const offset_of!(Image, mxcsr),
                entry = const offset_of!(Image, entry),
                flags = const offset_of!(Image, flags),
                in("rdi") $image as *mut Image,
                clobber_abi("sysv64"),
            );
        }
    };
}

fn call_sse(image: &mut Image) {
    call!(image, "movups", "x", "");
}

/// The host has AVX if there is a form of this kind.
fn call_vex(image: &mut Image) {
    call!(image, "vmovups", "y", "vzeroupper");
}
