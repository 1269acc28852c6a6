//! #VC: instructions for which an SEV-ES or SEV-SNP guest has to ask its host (APM volume 2, 15.35.5).
//!
//! The CPU tells the exit code and no more. Instructions are recognized by their bytes, exactly as this runtime and the
//! code that rows send emit them: CPUID, RDMSR, WRMSR, VMMCALL; IN and OUT through DX, REP INSB and OUTSB; loads and
//! stores of RAX through RDI alone, and REP STOSQ, for MMIO. Anything else stays an exception.
#![expect(unsafe_code, reason = "the instruction is read, and string instructions access memory")]

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::Fault;

use crate::cpuid_page::{self, CpuidPage};
use crate::frame::Frame;
use crate::ghcb::{
    Answer, BUFFER_BYTES, CPL, Ghcb, IOIO, RAX, RBX, RCX, RDX, RSI, SCRATCH, XCR0, port_access, terminate,
};
use crate::mmio_instruction::{Move, decode, merged};
use crate::paging::{PAGE_SIZE, translate};
use crate::vcpu::Vcpu;
use crate::ve::instruction;

/// Vector of #VC.
pub(crate) const VMM_COMMUNICATION: u64 = 29;

/// Exit codes: the error code of #VC, and what the host is asked with.
const CPUID: u64 = 0x72;
const MSR: u64 = 0x7c;
const VMMCALL: u64 = 0x81;
const NESTED_PAGE_FAULT: u64 = 0x400;
const MMIO_READ: u64 = 0x8000_0001;
const MMIO_WRITE: u64 = 0x8000_0002;

/// SW_EXITINFO1 of IOIO (APM volume 2, 15.10.2).
const IOIO_IN: u64 = 1 << 0;
const IOIO_STRING: u64 = 1 << 2;
const IOIO_REPEATED: u64 = 1 << 3;
const IOIO_A64: u64 = 1 << 9;
/// Segment of a string in memory: ES for IN, DS for OUT.
const IOIO_DS: u64 = 3 << 10;

/// The leaf of CPUID whose answer depends on XCR0.
const XSAVE_LEAF: u64 = 0xd;
/// XCR0 as it is after a reset; no payload changes it.
const XCR0_AT_RESET: u64 = 1;

/// What became of the instruction.
pub(crate) enum Handled {
    /// It is done, or will be repeated for its rest.
    Done,
    /// It raises this exception instead.
    Raises(Fault),
    /// It is none that is handled here.
    Unknown,
}

/// Does what the instruction at `frame.rip` shall do.
pub(crate) fn handle(vcpu: &Vcpu, frame: &mut Frame, fault: Fault) -> Handled {
    if !matches!(frame.error_code, CPUID | IOIO | MSR | VMMCALL | NESTED_PAGE_FAULT) {
        // The instruction itself may be what cannot be read: in a page that is not validated.
        return Handled::Unknown;
    }
    let Some(ghcb) = vcpu.ghcb() else { terminate(VMM_COMMUNICATION) };
    let answer = match (frame.error_code, instruction(frame.rip)) {
        (CPUID, [0x0f, 0xa2, ..]) => match cpuid_page::of(vcpu) {
            Some(table) => cpuid_of(table, frame),
            None => cpuid(ghcb, frame),
        },
        (MSR, [0x0f, 0x32, ..]) => read_msr(ghcb, frame),
        (MSR, [0x0f, 0x30, ..]) => write_msr(ghcb, frame),
        (VMMCALL, [0x0f, 0x01, 0xd9, ..]) => hypercall(ghcb, frame),
        (IOIO, [0xec, ..]) => port_in(ghcb, frame, 1, 1),
        (IOIO, [0x66, 0xed, ..]) => port_in(ghcb, frame, 2, 2),
        (IOIO, [0xed, ..]) => port_in(ghcb, frame, 4, 1),
        (IOIO, [0xee, ..]) => port_out(ghcb, frame, 1, 1),
        (IOIO, [0x66, 0xef, ..]) => port_out(ghcb, frame, 2, 2),
        (IOIO, [0xef, ..]) => port_out(ghcb, frame, 4, 1),
        (IOIO, [0xf3, 0x6c, ..]) => string_in(ghcb, frame),
        (IOIO, [0xf3, 0x6e, ..]) => string_out(ghcb, frame),
        (NESTED_PAGE_FAULT, bytes) => match mmio(vcpu, ghcb, frame, bytes) {
            Some(answer) => answer,
            None => return Handled::Unknown,
        },
        _ => return Handled::Unknown,
    };
    match answer {
        Answer::Done(_) => Handled::Done,
        Answer::Raise(vector, error_code) => Handled::Raises(Fault { vector, error_code, ..fault }),
        Answer::Refused(info_1, info_2) => crate::failure::refused(frame.error_code, info_1, info_2),
    }
}

/// A byte of memory.
///
/// # Safety
/// It is mapped, and accessed as an atomic or by the host.
unsafe fn byte(gva: u64) -> &'static AtomicU8 {
    // SAFETY: the caller's.
    unsafe { &*with_exposed_provenance_mut(gva as usize) }
}

/// CPUID as the table has it, without the host.
fn cpuid_of(table: CpuidPage, frame: &mut Frame) -> Answer {
    let [eax, ebx, ecx, edx] = table.answer(frame.rax as u32, frame.rcx as u32);
    (frame.rax, frame.rbx, frame.rcx, frame.rdx) = (eax, ebx, ecx, edx);
    frame.rip += 2;
    Answer::Done(0)
}

fn cpuid(ghcb: Ghcb, frame: &mut Frame) -> Answer {
    let leaf = low(frame.rax);
    let registers = [(RAX, leaf), (RCX, low(frame.rcx)), (XCR0, XCR0_AT_RESET)];
    // XCR0 goes along only where the host needs it.
    let given = if leaf == XSAVE_LEAF { &registers[..] } else { &registers[..2] };
    let answer = ghcb.request(CPUID, [0, 0], given);
    (frame.rax, frame.rbx) = (low(ghcb.get(RAX)), low(ghcb.get(RBX)));
    (frame.rcx, frame.rdx) = (low(ghcb.get(RCX)), low(ghcb.get(RDX)));
    frame.rip += 2;
    answer
}

fn read_msr(ghcb: Ghcb, frame: &mut Frame) -> Answer {
    let answer = ghcb.request(MSR, [0, 0], &[(RCX, low(frame.rcx))]);
    if let Answer::Done(_) = answer {
        (frame.rax, frame.rdx) = (low(ghcb.get(RAX)), low(ghcb.get(RDX)));
        frame.rip += 2;
    }
    answer
}

fn write_msr(ghcb: Ghcb, frame: &mut Frame) -> Answer {
    let registers = [(RCX, low(frame.rcx)), (RAX, low(frame.rax)), (RDX, low(frame.rdx))];
    let answer = ghcb.request(MSR, [1, 0], &registers);
    if let Answer::Done(_) = answer {
        frame.rip += 2;
    }
    answer
}

fn hypercall(ghcb: Ghcb, frame: &mut Frame) -> Answer {
    let Frame { rax, rbx, rcx, rdx, rsi, .. } = *frame;
    // Nothing here is ever in another ring: CPL is 0.
    let registers = [(RAX, rax), (RBX, rbx), (RCX, rcx), (RDX, rdx), (RSI, rsi), (CPL, 0)];
    let answer = ghcb.request(VMMCALL, [0, 0], &registers);
    frame.rax = ghcb.get(RAX);
    frame.rip += 3;
    answer
}

/// The port in DX and the size of an access, as IOIO wants them.
fn port(frame: &Frame, bytes: u64) -> u64 {
    port_access(frame.rdx as u16, bytes)
}

fn port_in(ghcb: Ghcb, frame: &mut Frame, bytes: u64, length: u64) -> Answer {
    let answer = ghcb.request(IOIO, [port(frame, bytes) | IOIO_IN, 0], &[]);
    frame.rax = merged(frame.rax, ghcb.get(RAX), bytes);
    frame.rip += length;
    answer
}

fn port_out(ghcb: Ghcb, frame: &mut Frame, bytes: u64, length: u64) -> Answer {
    let value = merged(0, frame.rax, bytes);
    let answer = ghcb.request(IOIO, [port(frame, bytes), 0], &[(RAX, value)]);
    frame.rip += length;
    answer
}

/// What a register of 32 bits holds.
const fn low(register: u64) -> u64 {
    register & 0xffff_ffff
}

/// REP INSB and OUTSB: as many bytes as fit into the buffer, in one request. The instruction is repeated for the rest.
fn string(ghcb: Ghcb, frame: &mut Frame, direction: u64) -> Answer {
    let count = frame.rcx.min(BUFFER_BYTES);
    let info = port(frame, 1) | direction | IOIO_STRING | IOIO_REPEATED | IOIO_A64;
    let answer = ghcb.request(IOIO, [info, count], &[(SCRATCH, ghcb.buffer())]);
    frame.rcx -= count;
    if frame.rcx == 0 {
        frame.rip += 2;
    }
    answer
}

fn string_out(ghcb: Ghcb, frame: &mut Frame) -> Answer {
    let (from, left) = (frame.rsi, frame.rcx);
    for index in 0..left.min(BUFFER_BYTES) {
        // SAFETY: the host has named this string, and memory of the guest is the host's to read, as in `probe`.
        let value = unsafe { byte(from + index) }.load(Relaxed);
        set_byte(ghcb, index, value);
    }
    let answer = string(ghcb, frame, IOIO_DS);
    frame.rsi += left - frame.rcx;
    answer
}

fn string_in(ghcb: Ghcb, frame: &mut Frame) -> Answer {
    let (to, left) = (frame.rdi, frame.rcx);
    let answer = string(ghcb, frame, IOIO_IN);
    for index in 0..left - frame.rcx {
        let value = ghcb.buffer_word(index as usize / 8).load(Relaxed) >> (index % 8 * 8);
        // SAFETY: as above, and it is the host's to write.
        unsafe { byte(to + index) }.store(value as u8, Relaxed);
    }
    frame.rdi += left - frame.rcx;
    answer
}

fn set_byte(ghcb: Ghcb, index: u64, value: u8) {
    let (word, shift) = (ghcb.buffer_word(index as usize / 8), index % 8 * 8);
    word.store(word.load(Relaxed) & !(0xff << shift) | u64::from(value) << shift, Relaxed);
}

/// One access to memory that is none. None if the instruction is unknown, or the access is private.
fn mmio(vcpu: &Vcpu, ghcb: Ghcb, frame: &mut Frame, bytes: [u8; 3]) -> Option<Answer> {
    let Move { write, size, length } = decode(bytes)?;
    let code = if write { MMIO_WRITE } else { MMIO_READ };
    let aliases = vcpu.mailbox().start().ok()?.aliases;
    let gva = frame.rdi;
    let entry = translate(aliases, gva)?;
    if entry.bits & aliases.private != 0 {
        return None;
    }
    if code == MMIO_WRITE {
        ghcb.buffer_word(0).store(frame.rax, Relaxed);
    }
    let gpa = entry.gpa + gva % PAGE_SIZE;
    let answer = ghcb.request(code, [gpa, size], &[(SCRATCH, ghcb.buffer())]);
    let Answer::Done(_) = answer else { return Some(answer) };
    if code == MMIO_READ {
        frame.rax = merged(frame.rax, ghcb.buffer_word(0).load(Relaxed), size);
    }
    frame.rip += length;
    if length == 0 {
        frame.rdi += size;
        frame.rcx -= 1;
        frame.rip += if frame.rcx == 0 { 3 } else { 0 };
    }
    Some(answer)
}
