//! Running a few instructions on the processor underneath, in ring 3 of this process.
#![expect(unsafe_code, reason = "generated code is mapped and called")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use iced_x86::code_asm::*;

/// Where generated code goes. The interpreter sees the same addresses, so they are fixed.
pub(crate) const CODE: u64 = 0x20_0000_0000;
const TRAMPOLINE: u64 = CODE + 0x1000;
const SAVE: u64 = CODE + 0x2000;
/// Memory that tested instructions may touch.
pub(crate) const DATA: u64 = CODE + 0x4000;
pub(crate) const DATA_SIZE: usize = 0x2000;
const SIZE: usize = 0x6000;

/// The registers that an unprivileged instruction works on.
#[repr(C, align(16))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) xmm: [u128; 16],
    pub(crate) gpr: [u64; 16],
    pub(crate) rflags: u64,
    pub(crate) mxcsr: u64,
}

const XMM: u64 = 0;
const GPR: u64 = 256;
const RFLAGS: u64 = 384;
const MXCSR: u64 = 392;
/// In the save page: registers in, registers out, then the host's.
const IN: u64 = SAVE;
const OUT: u64 = SAVE + 512;
const HOST_RSP: u64 = SAVE + 1024;
const HOST_MXCSR: u64 = SAVE + 1032;
const SCRATCH_STACK: u64 = SAVE + 4096;

const GPRS: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const XMMS: [AsmRegisterXmm; 16] =
    [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15];

/// The mapping, and the right to use it: one test at a time.
pub(crate) struct Native {
    _exclusive: MutexGuard<'static, ()>,
    exit: u64,
}

static EXCLUSIVE: Mutex<()> = Mutex::new(());

impl Native {
    /// Maps the memory at its fixed place.
    pub(crate) fn new() -> Native {
        let exclusive = EXCLUSIVE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a new mapping; MAP_FIXED_NOREPLACE takes nothing away from anybody.
        let at = unsafe {
            libc::mmap(
                CODE as *mut libc::c_void,
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        assert_eq!(at as u64, CODE, "the fixed mapping for generated code");
        let (code, exit) = trampoline().expect("the trampoline assembles");
        let mut native = Native { _exclusive: exclusive, exit };
        native.write(TRAMPOLINE, &code);
        native
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(at >= CODE && at + bytes.len() as u64 <= CODE + SIZE as u64);
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping, which nobody holds references into.
            unsafe { (at as *mut u8).add(index).write_volatile(byte) };
        }
    }

    pub(crate) fn read(&self, at: u64, size: usize) -> Vec<u8> {
        assert!(at >= CODE && at + size as u64 <= CODE + SIZE as u64);
        // SAFETY: inside the mapping.
        (0..size).map(|index| unsafe { (at as *const u8).add(index).read_volatile() }).collect()
    }

    /// Executes `code` with these registers on the processor; returns the registers after it.
    pub(crate) fn run(&mut self, code: &[u8], registers: &Registers) -> Registers {
        let mut with_exit = code.to_vec();
        let next = CODE + code.len() as u64 + 5;
        with_exit.push(0xe9);
        with_exit.extend_from_slice(&(self.exit.wrapping_sub(next) as u32).to_le_bytes());
        self.write(CODE, &with_exit);
        // SAFETY: `IN` and `OUT` are aligned places in the mapping; the trampoline keeps to the C ABI
        // and the tested code returns to it without touching memory outside `DATA`.
        unsafe {
            (IN as *mut Registers).write_volatile(*registers);
            let call: extern "C" fn() = std::mem::transmute(TRAMPOLINE as *const ());
            call();
            (OUT as *const Registers).read_volatile()
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; no code in it is running.
        unsafe { libc::munmap(CODE as *mut libc::c_void, SIZE) };
    }
}

/// Code that loads all registers, jumps to the tested code, and stores all registers when that jumps
/// back; and the address to jump back to.
fn trampoline() -> Result<(Vec<u8>, u64), iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.mov(rax, HOST_RSP)?;
    a.mov(qword_ptr(rax), rsp)?;
    a.mov(rax, HOST_MXCSR)?;
    a.stmxcsr(dword_ptr(rax))?;
    a.mov(rax, IN)?;
    for (index, register) in XMMS.into_iter().enumerate() {
        a.movups(register, xmmword_ptr(rax + (XMM + index as u64 * 16) as i32))?;
    }
    a.ldmxcsr(dword_ptr(rax + MXCSR as i32))?;
    a.mov(rsp, SCRATCH_STACK)?;
    a.push(qword_ptr(rax + RFLAGS as i32))?;
    a.popfq()?;
    for (index, register) in GPRS.into_iter().enumerate().rev() {
        a.mov(register, qword_ptr(rax + (GPR + index as u64 * 8) as i32))?;
    }
    a.jmp(CODE)?;
    let enter = a.assemble(TRAMPOLINE)?;

    let exit_at = TRAMPOLINE + enter.len() as u64;
    let mut a = CodeAssembler::new(64)?;
    // No register is free before RAX is stored; its absolute form needs none.
    a.add_instruction(iced_x86::Instruction::with2(
        iced_x86::Code::Mov_moffs64_RAX,
        iced_x86::MemoryOperand::with_displ(OUT + GPR, 8),
        iced_x86::Register::RAX,
    )?)?;
    a.mov(rax, OUT)?;
    for (index, register) in GPRS.into_iter().enumerate().skip(1) {
        a.mov(qword_ptr(rax + (GPR + index as u64 * 8) as i32), register)?;
    }
    a.mov(rsp, SCRATCH_STACK)?;
    a.pushfq()?;
    a.pop(qword_ptr(rax + RFLAGS as i32))?;
    a.stmxcsr(dword_ptr(rax + MXCSR as i32))?;
    for (index, register) in XMMS.into_iter().enumerate() {
        a.movups(xmmword_ptr(rax + (XMM + index as u64 * 16) as i32), register)?;
    }
    a.mov(rax, HOST_MXCSR)?;
    a.ldmxcsr(dword_ptr(rax))?;
    a.cld()?;
    a.mov(rax, HOST_RSP)?;
    a.mov(rsp, qword_ptr(rax))?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()?;
    let mut code = enter;
    code.extend(a.assemble(exit_at)?);
    Ok((code, exit_at))
}
