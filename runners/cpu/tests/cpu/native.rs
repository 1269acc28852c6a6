//! Running a few instructions on the processor underneath, in ring 3 of this process. It has to have AVX.
#![expect(unsafe_code, reason = "generated code is mapped and called")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use iced_x86::code_asm::*;
use privet_cpu::fpu::FpuState;

/// Where generated code goes. The interpreter sees the same addresses, so they are fixed.
pub(crate) const CODE: u64 = 0x20_0000_0000;
const TRAMPOLINE: u64 = CODE + 0x1000;
const SAVE: u64 = CODE + 0x2000;
/// Memory that tested instructions may touch.
pub(crate) const DATA: u64 = CODE + 0x4000;
pub(crate) const DATA_SIZE: usize = 0x2000;
const SIZE: usize = 0x6000;

/// The registers that an unprivileged instruction works on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Registers {
    pub(crate) fpu: FpuState,
    pub(crate) gpr: [u64; 16],
    pub(crate) rflags: u64,
}

/// The registers where generated code finds and leaves them.
#[repr(C, align(16))]
struct Area {
    fxsave: [u8; 512],
    ymm_high: [u128; 16],
    gpr: [u64; 16],
    rflags: u64,
}

const YMM_HIGH: u64 = 512;
const GPR: u64 = 768;
const RFLAGS: u64 = 896;
/// In the save page: registers in, registers out, then the host's.
const IN: u64 = SAVE;
const OUT: u64 = SAVE + 1024;
const HOST_RSP: u64 = SAVE + 2048;
const HOST_MXCSR: u64 = SAVE + 2056;
const HOST_FCW: u64 = SAVE + 2060;
const SCRATCH_STACK: u64 = SAVE + 4096;

const GPRS: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const YMMS: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];

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
        let area = Area {
            fxsave: registers.fpu.fxsave(),
            ymm_high: registers.fpu.ymm_high,
            gpr: registers.gpr,
            rflags: registers.rflags,
        };
        // SAFETY: `IN` and `OUT` are aligned places in the mapping; the trampoline keeps to the C ABI
        // and the tested code returns to it without touching memory outside `DATA`.
        let area = unsafe {
            (IN as *mut Area).write_volatile(area);
            let call: extern "C" fn() = std::mem::transmute(TRAMPOLINE as *const ());
            call();
            (OUT as *const Area).read_volatile()
        };
        let mut fpu = FpuState { ymm_high: area.ymm_high, ..FpuState::default() };
        fpu.load_x87(&area.fxsave);
        fpu.load_xmm(&area.fxsave);
        fpu.load_mxcsr(&area.fxsave).expect("the processor stores no reserved bits");
        Registers { fpu, gpr: area.gpr, rflags: area.rflags }
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
    a.mov(rax, HOST_FCW)?;
    a.fnstcw(word_ptr(rax))?;
    a.mov(rax, IN)?;
    a.fxrstor64(ptr(rax))?;
    for (index, register) in YMMS.into_iter().enumerate() {
        a.vinsertf128(register, register, xmmword_ptr(rax + (YMM_HIGH + index as u64 * 16) as i32), 1)?;
    }
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
    a.fxsave64(ptr(rax))?;
    for (index, register) in YMMS.into_iter().enumerate() {
        a.vextractf128(xmmword_ptr(rax + (YMM_HIGH + index as u64 * 16) as i32), register, 1)?;
    }
    a.vzeroupper()?;
    a.mov(rax, HOST_MXCSR)?;
    a.ldmxcsr(dword_ptr(rax))?;
    a.fninit()?;
    a.mov(rax, HOST_FCW)?;
    a.fldcw(word_ptr(rax))?;
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
