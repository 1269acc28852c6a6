//! Port accesses that the host asks for.
#![expect(unsafe_code, reason = "I/O instructions")]

use core::arch::asm;

use privet_protocol::Width;

use crate::probe::{Probed, probe};
use crate::vcpu::Vcpu;

/// IN. There is none of 8 bytes: it is one of 4.
pub fn read(port: u16, width: Width) -> Probed<u64> {
    let mut value: u64 = 0;
    match width {
        Width::B1 => probe!(["in al, dx"], in("dx") port, inout("rax") value),
        Width::B2 => probe!(["in ax, dx"], in("dx") port, inout("rax") value),
        Width::B4 | Width::B8 => probe!(["in eax, dx"], in("dx") port, inout("rax") value),
    }?;
    Ok(value)
}

/// OUT, likewise.
pub fn write(port: u16, width: Width, value: u64) -> Probed {
    match width {
        Width::B1 => probe!(["out dx, al"], in("dx") port, in("rax") value),
        Width::B2 => probe!(["out dx, ax"], in("dx") port, in("rax") value),
        Width::B4 | Width::B8 => probe!(["out dx, eax"], in("dx") port, in("rax") value),
    }
}

/// REP INSB: RCX afterwards.
pub fn read_bytes(port: u16, gva: u64, count: u64) -> Probed<u64> {
    let left;
    probe!(["rep insb"], in("dx") port, inout("rdi") gva => _, inout("rcx") count => left)?;
    Ok(left)
}

/// REP OUTSB: RCX afterwards.
pub fn write_bytes(port: u16, gva: u64, count: u64) -> Probed<u64> {
    let left;
    probe!(["rep outsb"], in("dx") port, inout("rsi") gva => _, inout("rcx") count => left)?;
    Ok(left)
}
