//! #VE: instructions for which a TD has to ask its host (GHCI specification, 2.3; TDX module base architecture,
//! "Virtualization Exception").
//!
//! The module says what the instruction is about and how long it is. Loads and stores of MMIO are recognized by their
//! bytes; string instructions, and an access to private memory that is not accepted, stay exceptions.
#![expect(unsafe_code, reason = "the instruction is read")]

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::Fault;

use crate::frame::Frame;
use crate::mmio_instruction::{Move, decode, merged};
use crate::tdx::{port_in, port_out, ve_info, vmcall};
use crate::vc::Handled;
use crate::vcpu::Vcpu;

/// Vector of #VE.
pub(crate) const VIRTUALIZATION_EXCEPTION: u64 = 20;

/// Exit reasons (SDM volume 3, appendix C), which are functions of the host, too.
const CPUID: u64 = 10;
const VMCALL: u64 = 18;
const IO: u64 = 30;
const RDMSR: u64 = 31;
const WRMSR: u64 = 32;
const EPT_VIOLATION: u64 = 48;

/// Exit qualification of IN and OUT.
const IO_IN: u64 = 1 << 3;
const IO_STRING: u64 = 1 << 4;

/// Vector of #GP, which an MSR raises that the host has not.
const GENERAL_PROTECTION: u64 = 13;

/// Does what the instruction at `frame.rip` shall do.
pub(crate) fn handle(vcpu: &Vcpu, frame: &mut Frame, fault: Fault) -> Handled {
    let Some([reason, qualification, _, gpa, length]) = ve_info() else { return Handled::Unknown };
    let done = match reason {
        CPUID => cpuid(frame),
        VMCALL => hypercall(frame),
        IO if qualification & IO_STRING == 0 => port(frame, qualification),
        RDMSR => match vmcall([0, RDMSR, frame.rcx & 0xffff_ffff, 0, 0, 0]) {
            [0, value, ..] => {
                (frame.rax, frame.rdx) = (value & 0xffff_ffff, value >> 32);
                true
            }
            _ => return Handled::Raises(Fault { vector: GENERAL_PROTECTION, error_code: 0, ..fault }),
        },
        WRMSR => {
            let value = frame.rax & 0xffff_ffff | frame.rdx << 32;
            if vmcall([0, WRMSR, frame.rcx & 0xffff_ffff, value, 0, 0])[0] != 0 {
                return Handled::Raises(Fault { vector: GENERAL_PROTECTION, error_code: 0, ..fault });
            }
            true
        }
        EPT_VIOLATION => return mmio(vcpu, frame, gpa),
        _ => false,
    };
    if !done {
        return Handled::Unknown;
    }
    frame.rip += length;
    Handled::Done
}

fn cpuid(frame: &mut Frame) -> bool {
    let [status, _, eax, ebx, ecx, edx] = vmcall([0, CPUID, frame.rax & 0xffff_ffff, frame.rcx & 0xffff_ffff, 0, 0]);
    (frame.rax, frame.rbx, frame.rcx, frame.rdx) = (eax, ebx, ecx, edx);
    status == 0
}

/// VMCALL as KVM's guests use it: the number in R10, arguments behind it.
fn hypercall(frame: &mut Frame) -> bool {
    let [rax, ..] = vmcall([frame.rax, frame.rbx, frame.rcx, frame.rdx, frame.rsi, 0]);
    frame.rax = rax;
    true
}

fn port(frame: &mut Frame, qualification: u64) -> bool {
    let (port, bytes) = ((qualification >> 16) as u16, (qualification & 7) + 1);
    if qualification & IO_IN == 0 {
        return port_out(port, bytes, merged(0, frame.rax, bytes));
    }
    match port_in(port, bytes) {
        Some(value) => {
            frame.rax = merged(frame.rax, value, bytes);
            true
        }
        None => false,
    }
}

/// One access to memory that is none; one to private memory is an exception, and so is any other instruction.
fn mmio(vcpu: &Vcpu, frame: &mut Frame, gpa: u64) -> Handled {
    let shared = vcpu.mailbox().start().map_or(0, |start| start.aliases.shared);
    if gpa & shared == 0 {
        return Handled::Unknown;
    }
    let Some(Move { write, size, length }) = decode(instruction(frame.rip)) else { return Handled::Unknown };
    let [status, value, ..] = vmcall([0, EPT_VIOLATION, size, write.into(), gpa, frame.rax]);
    if status != 0 {
        return Handled::Unknown;
    }
    if !write {
        frame.rax = merged(frame.rax, value, size);
    }
    frame.rip += length;
    if length == 0 {
        frame.rdi += size;
        frame.rcx -= 1;
        frame.rip += if frame.rcx == 0 { 3 } else { 0 };
    }
    Handled::Done
}

/// The first bytes of the instruction at `rip`.
pub(crate) fn instruction(rip: u64) -> [u8; 3] {
    // SAFETY: the CPU has just decoded it, and no code lies at the end of mapped memory.
    [0, 1, 2].map(|index| unsafe { &*with_exposed_provenance_mut::<AtomicU8>((rip + index) as usize) }.load(Relaxed))
}
