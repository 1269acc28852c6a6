//! What a TD asks its TDX module and, through it, its host: TDCALL (TDX module ABI; GHCI specification).
#![expect(unsafe_code, reason = "an instruction without a name in Rust")]

use core::arch::asm;

use privet_protocol::Sharing;

use crate::paging::PAGE_SIZE;
use crate::snp::Validated;

/// The leaf of the module that calls the host.
pub const VP_VMCALL: u64 = 0;
/// Others.
const VP_VEINFO_GET: u64 = 3;
const MEM_PAGE_ACCEPT: u64 = 6;

/// Functions of the host.
const IO: u64 = 30;
const MAP_GPA: u64 = 0x1_0001;
const REPORT_FATAL_ERROR: u64 = 0x1_0003;

/// R10 of a function that shall be called again.
const RETRY: u64 = 1;
/// Registers that the host sees, and that it may set: R10 to R15.
const R10_TO_R15: u64 = 0xfc00;
/// How often a function is called again that comes no further.
const ATTEMPTS: usize = 1000;

/// What a leaf of the module has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// RAX.
    pub status: u64,
    /// RCX, RDX, R8, R9, R10 and R11.
    pub values: [u64; 6],
}

/// Calls a leaf of the module, which is not TDG.VP.VMCALL, with RCX, RDX, R8 and R9.
pub fn tdcall(leaf: u64, [rcx, rdx, r8, r9]: [u64; 4]) -> Answer {
    let mut values = [rcx, rdx, r8, r9, 0, 0];
    let [rcx, rdx, r8, r9, r10, r11] = &mut values;
    let status;
    // SAFETY: the module changes these registers, and memory that the caller has named for it.
    unsafe {
        asm!(
            ".byte 0x66, 0x0f, 0x01, 0xcc",
            inout("rax") leaf => status,
            inout("rcx") *rcx, inout("rdx") *rdx, inout("r8") *r8, inout("r9") *r9,
            inout("r10") *r10, inout("r11") *r11,
            options(nostack),
        );
    }
    Answer { status, values }
}

/// TDG.VP.VMCALL: calls the host with R10 to R15, which are its answer afterwards.
pub fn vmcall(mut registers: [u64; 6]) -> [u64; 6] {
    let [r10, r11, r12, r13, r14, r15] = &mut registers;
    // SAFETY: as above; of the host's answer only these registers arrive.
    unsafe {
        asm!(
            ".byte 0x66, 0x0f, 0x01, 0xcc",
            inout("rax") VP_VMCALL => _,
            inout("rcx") R10_TO_R15 => _,
            inout("r10") *r10, inout("r11") *r11, inout("r12") *r12,
            inout("r13") *r13, inout("r14") *r14, inout("r15") *r15,
            options(nostack),
        );
    }
    registers
}

/// Why the last #VE was raised: the exit reason, its qualification, the linear and the guest-physical address, and the
/// length of the instruction. None if there was none.
pub(crate) fn ve_info() -> Option<[u64; 5]> {
    let Answer { status: 0, values: [reason, qualification, gla, gpa, length, _] } = tdcall(VP_VEINFO_GET, [0; 4])
    else {
        return None;
    };
    Some([reason, qualification, gla, gpa, length & 0xffff_ffff])
}

/// Writes `value` to a port: Instruction.IO. Whether the host has done it.
pub(crate) fn port_out(port: u16, bytes: u64, value: u64) -> bool {
    vmcall([0, IO, bytes, 1, port.into(), value])[0] == 0
}

/// Reads a port likewise: None if the host has not done it.
pub(crate) fn port_in(port: u16, bytes: u64) -> Option<u64> {
    let [status, value, ..] = vmcall([0, IO, bytes, 0, port.into(), 0]);
    (status == 0).then_some(value)
}

/// ReportFatalError: ends the TD with this code. The host sees `KVM_SYSTEM_EVENT_TDX_FATAL`.
pub(crate) fn report_fatal_error(code: u64) -> ! {
    loop {
        vmcall([0, REPORT_FATAL_ERROR, code, 0, 0, 0]);
    }
}

/// MapGPA of pages from `gpa` on, which is the private address; `shared` is the shared bit. R10 of the answer, 0 if all is
/// done.
pub fn map_gpa(gpa: u64, pages: u64, shared: u64, to: Sharing) -> u64 {
    let bit = match to {
        Sharing::Private => 0,
        Sharing::Shared => shared,
    };
    let end = gpa + pages * PAGE_SIZE;
    let mut next = gpa;
    for _ in 0..ATTEMPTS {
        let [status, failed, ..] = vmcall([0, MAP_GPA, next | bit, end - next, 0, 0]);
        if status != RETRY {
            return status;
        }
        next = failed & !shared;
        if !(gpa..end).contains(&next) {
            break;
        }
    }
    RETRY
}

/// TDG.MEM.PAGE.ACCEPT of pages of 4 KiB from `gpa` on, one after the other until one fails.
pub fn accept(gpa: u64, pages: u64) -> Validated {
    let mut all = Validated::default();
    for page in 0..pages {
        let Answer { status, .. } = tdcall(MEM_PAGE_ACCEPT, [gpa + page * PAGE_SIZE, 0, 0, 0]);
        if status != 0 {
            return Validated { code: status, ..all };
        }
        all.done += 1;
    }
    all
}
