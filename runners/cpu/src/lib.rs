//! An x86-64 CPU in software.
//!
//! A [`Cpu`] executes guest code out of memory that somebody else owns and reaches through a
//! [`Bus`]: the model's KVM resolves guest-physical pages, keeps CPUID and MSRs, and is told by
//! [`CpuExit`] what a hypervisor would be told by hardware. The crate knows nothing of KVM's ioctls.
//!
//! An instruction that is not implemented ends in [`CpuExit::UnknownInstruction`], never in a wrong
//! result. Implemented are the general-purpose instructions of x86-64, x87, MMX, SSE to SSE4.2, BMI, ADX,
//! CMPXCHG16B, the XSAVE family, and the system instructions that a small kernel needs; and of AVX, AVX2,
//! FMA, F16C, AES, PCLMULQDQ and SHA what the host has ([`Extensions`]). In long mode with 4-level or
//! 5-level paging, in protected mode with 32-bit, PAE or no paging, and in real mode. The host must have x86-64-v2
//! itself: arithmetic on vectors and on the x87 stack is done by the host's instruction of the same name.
//!
//! RDRAND and RDSEED give what follows from the count of executed instructions, the same in every run.
//!
//! Not implemented, so that CPUID must not offer them: AVX-512, AMX, XOP, FMA4, SSE4A, GFNI, MOVDIRI, MONITORX, WAITPKG,
//! TSX, MPX, CET, FRED, INVLPGB, key locker. MASKMOVQ is not implemented either. The example `missing`
//! lists what a program has of these; C libraries, kernels and compiled programs have nothing beyond them.
//!
//! ```text
//! Cpu::run ── execute ── block ── decode          one basic block after the other
//!                │          │       │
//!                │      translate   │             what executes often, as the host's own code
//!                │          │       │
//!                │       arithmetic, moves, sse ... handlers, one file a family;
//!                │                  native      the rest is the host's to execute
//!                │                  │
//!            interrupt           memory ── tlb ── place ── paging, Bus::resolve
//! ```
//!
//! # Threads
//! A CPU runs on one thread at a time. Others reach it through its [`Kick`], which says how
//! translations are taken away from running CPUs. While `run` is on the stack no signal handler
//! may leave it by a jump: it would stay marked as running, and flushes would wait for it for ever.

mod arithmetic;
mod avx;
mod bits;
mod block;
mod branch;
mod breakpoint;
mod bus;
mod code;
mod completion;
mod config;
mod control;
mod convert;
mod core;
mod cpu;
mod decode;
mod descriptor;
mod exception;
mod execute;
mod exit;
mod far;
mod flag_ops;
pub mod flags;
pub mod fpu;
mod fpu_ops;
mod gate;
mod host;
mod intercept;
mod interrupt;
mod kick;
mod memory;
mod moves;
mod msr;
mod multiply;
mod native;
mod op;
pub mod paging;
mod place;
mod port;
pub mod segment;
mod shift;
mod sse;
pub mod state;
mod string;
mod syscall;
mod system;
mod tables;
mod tlb;
mod translate;
mod vmx;
mod word;
mod xsave_ops;

pub use bus::{
    Access, AccessKind, Bus, Call, CpuidResult, CrAccess, Encryption, Event, HostPage, Intercept, Intercepted,
    MemoryOperand, OperandPlace, Operands, PAGE_SIZE, Reaction, Resolve, TableRegister, Trap, VmxAnswer, VmxCall,
    VmxInstruction,
};
pub use code::CodePages;
pub use config::{Config, DebugControl, Vendor};
pub use cpu::Cpu;
pub use decode::implements;
pub use exception::{Exception, vector};
pub use exit::{CpuExit, Datum, MAX_INSTRUCTION_BYTES};
pub use kick::{Flush, Kick};
pub use native::Extensions;
pub use segment::{Seg, Segment};
pub use state::{CpuState, World};

/// A CPU looks at its requests at least once in this many instructions.
pub const MAX_BLOCK_OPS: usize = 32;
