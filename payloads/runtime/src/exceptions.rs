//! Exceptions: a fault in a probe becomes its result, any other one a failure.
#![expect(unsafe_code, reason = "vector stubs, and the table of probes that the linker collects")]

use core::arch::{asm, global_asm};
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::Fault;

use crate::descriptor_tables::VECTORS;
use crate::failure;
use crate::frame::Frame;
use crate::probe::execute_faulted;
use crate::vc::{self, Handled, VMM_COMMUNICATION};
use crate::vcpu::Vcpu;
use crate::ve::{self, VIRTUALIZATION_EXCEPTION};

/// The exceptions that push an error code: #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX.
const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

/// Bytes between two stubs.
const STUB_BYTES: usize = 16;

global_asm!(
    ".section .text.privet.vectors, \"ax\", @progbits",
    ".balign {stub_bytes}",
    "privet_vectors:",
    ".set vector, 0",
    ".rept {vectors}",
    ".balign {stub_bytes}",
    ".if ({with_error_code} >> vector) & 1",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp 2f",
    ".set vector, vector + 1",
    ".endr",
    "2:",
    ".irp register, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15",
    "push \\register",
    ".endr",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp", // Kept by the callee.
    // What is interrupted may hold values in vector registers, and the handler uses them too.
    "sub rsp, 512",
    "and rsp, -16",
    "fxsave64 [rsp]",
    "call {handle}",
    "fxrstor64 [rsp]",
    "mov rsp, rbx",
    ".irp register, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax",
    "pop \\register",
    ".endr",
    "add rsp, 16", // Vector and error code.
    "iretq",
    ".text",
    stub_bytes = const STUB_BYTES,
    vectors = const VECTORS,
    with_error_code = const WITH_ERROR_CODE,
    handle = sym handle,
);

/// One probe: a fault at an instruction of `start .. end` goes on at `resume`. Each is relative to the place
/// where it is stored.
#[repr(C)]
struct Probe {
    start: i32,
    end: i32,
    resume: i32,
}

unsafe extern "C" {
    safe static privet_vectors: u8;
    // The linker knows where a section begins and ends whose name is a C identifier.
    safe static __start_privet_probes: Probe;
    safe static __stop_privet_probes: Probe;
}

/// The address of the stub of `vector`.
#[cfg_attr(not(privet_payload), expect(dead_code, reason = "only payloads have an entry point"))]
pub(crate) fn stub(vector: usize) -> u64 {
    (&raw const privet_vectors as u64) + (vector * STUB_BYTES) as u64
}

extern "C" fn handle(frame: &mut Frame) {
    let fault = Fault { vector: frame.vector, error_code: frame.error_code, rip: frame.rip, cr2: cr2() };
    let vcpu = Vcpu::current();
    // Most exceptions share a stack, so the frame of the first is lost and nothing but a report is left to do.
    match vcpu.handling.swap(fault.vector + 1, Relaxed) {
        0 => {}
        outer => failure::nested_exception(vcpu, fault, outer - 1),
    }
    handle_first(vcpu, frame, fault);
    vcpu.handling.store(0, Relaxed);
}

fn handle_first(vcpu: &'static Vcpu, frame: &mut Frame, mut fault: Fault) {
    if fault.vector == VMM_COMMUNICATION {
        match vc::handle(vcpu, frame, fault) {
            Handled::Done => return vcpu.count_reflected(),
            Handled::Raises(raised) => fault = raised,
            Handled::Unknown => {}
        }
    }
    if fault.vector == VIRTUALIZATION_EXCEPTION {
        match ve::handle(vcpu, frame, fault) {
            Handled::Done => return vcpu.count_reflected(),
            Handled::Raises(raised) => fault = raised,
            Handled::Unknown => {}
        }
    }
    if let Some(resume) = probe_resuming_from(frame.rip) {
        vcpu.set_fault(fault);
        frame.rip = resume;
        return;
    }
    let execute_rsp = vcpu.execute[0].swap(0, Relaxed);
    if execute_rsp != 0 {
        vcpu.set_fault(fault);
        frame.rip = execute_faulted();
        frame.rsp = execute_rsp;
        return;
    }
    failure::exception(vcpu, fault)
}

fn probe_resuming_from(rip: u64) -> Option<u64> {
    let first = &raw const __start_privet_probes;
    let count = (&raw const __stop_privet_probes as usize - first as usize) / size_of::<Probe>();
    // SAFETY: between the two symbols the linker put what `probe!` wrote: entries of this layout.
    let probes = unsafe { core::slice::from_raw_parts(first, count) };
    let place = |field: &i32| (field as *const i32 as u64).wrapping_add_signed(i64::from(*field));
    probes.iter().find(|probe| (place(&probe.start)..place(&probe.end)).contains(&rip)).map(|p| place(&p.resume))
}

fn cr2() -> u64 {
    let cr2;
    // SAFETY: reads a register that means nothing to Rust; handlers run in ring 0.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags)) };
    cr2
}
