//! Leaving the guest: the host looks into the mailbox whenever the doorbell rings.
#![expect(unsafe_code, reason = "an I/O instruction")]

use core::arch::asm;

use privet_protocol::DOORBELL_PORT;

use crate::ghcb::{Answer, Ghcb, IOIO, NO_DOORBELL, RAX, port_access, terminate};
use crate::tdx;
use crate::vcpu::Vcpu;

/// Rings. Returns when the host enters the guest again.
pub fn ring(vcpu: &Vcpu) {
    match vcpu.ghcb() {
        None if vcpu.is_in_td() => tdvmcall(),
        None => out(),
        Some(ghcb) => ask(ghcb),
    }
}

/// One byte, 0, for the doorbell's port, as OUT would write it: without OUT, and so without #VC.
fn ask(ghcb: Ghcb) {
    if let Answer::Refused(..) = ghcb.request(IOIO, [port_access(DOORBELL_PORT, 1), 0], &[(RAX, 0)]) {
        terminate(NO_DOORBELL);
    }
}

/// The same of a TD, without OUT and so without #VE.
fn tdvmcall() {
    if !tdx::port_out(DOORBELL_PORT, 1, 0) {
        tdx::report_fatal_error(NO_DOORBELL);
    }
}

fn out() {
    // SAFETY: the port belongs to the host's side of the protocol; the instruction changes nothing in the
    // guest, and whatever the host changes meanwhile lies in memory that is only accessed as atomics.
    unsafe { asm!("out dx, al", in("dx") DOORBELL_PORT, in("al") 0u8, options(nostack, preserves_flags)) };
}
