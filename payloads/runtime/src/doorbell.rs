//! Leaving the guest: the host looks into the mailbox whenever the doorbell rings.
#![expect(unsafe_code, reason = "an I/O instruction")]

use core::arch::asm;

use privet_protocol::DOORBELL_PORT;

use crate::vc;
use crate::vcpu::Vcpu;

/// Rings. Returns when the host enters the guest again.
pub fn ring(vcpu: &Vcpu) {
    match vcpu.ghcb() {
        None => out(),
        Some(ghcb) => vc::ring(ghcb),
    }
}

fn out() {
    // SAFETY: the port belongs to the host's side of the protocol; the instruction changes nothing in the
    // guest, and whatever the host changes meanwhile lies in memory that is only accessed as atomics.
    unsafe { asm!("out dx, al", in("dx") DOORBELL_PORT, in("al") 0u8, options(nostack, preserves_flags)) };
}
