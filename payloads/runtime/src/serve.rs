//! The life of a vCPU: take a request, execute it, answer, ring.
#![expect(unsafe_code, reason = "the host says where this vCPU's GHCB is")]

use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::{Conversion, Doorbell, Field, Op, Refusal, Reply, Start};

use crate::failure::park;
use crate::ghcb::{Ghcb, terminate};
use crate::vc::VMM_COMMUNICATION;
use crate::vcpu::Vcpu;
use crate::{doorbell, tlb};

/// Executes an operation on a vCPU of a VM that is as the host has said.
pub type Execute = fn(&'static Vcpu, Start, Op) -> Reply;

/// Serves requests on this vCPU, for good.
pub fn serve(vcpu: &'static Vcpu, execute: Execute) -> ! {
    let mailbox = vcpu.mailbox();
    let start = match mailbox.start() {
        Ok(start) if mailbox.is_ready() => start,
        // Nothing that is written there would be believed; the host finds its own magic missing.
        _ => park(vcpu),
    };
    match start.doorbell {
        Doorbell::Port => {}
        Doorbell::Ghcb { gpa } => open_ghcb(vcpu, start, gpa),
        Doorbell::Tdvmcall => vcpu.set_in_td(),
    }
    loop {
        let answered = vcpu.sequence.load(Relaxed);
        let next = answered.wrapping_add(1);
        match mailbox.request(answered) {
            Ok(op) => {
                vcpu.sequence.store(next, Relaxed);
                vcpu.busy.store(1, Relaxed);
                tlb::catch_up(vcpu);
                let reply = execute(vcpu, start, op);
                vcpu.busy.store(0, Relaxed);
                mailbox.answer(next, reply);
            }
            // Entered without a new request. The number that the host waits for is the one in the mailbox.
            Err(error) if error.field == Field::RequestSequence => {
                mailbox.answer(error.word, Reply::Refused(Refusal::BadRequest, error.word));
            }
            Err(error) => {
                vcpu.sequence.store(next, Relaxed);
                mailbox.answer(next, Reply::Refused(Refusal::BadRequest, error.word));
            }
        }
        doorbell::ring(vcpu);
    }
}

/// Makes the page at `gpa` the GHCB of this vCPU, which in an SNP guest has to be told before its first use.
fn open_ghcb(vcpu: &'static Vcpu, start: Start, gpa: u64) {
    // SAFETY: the host has said so: the page is this vCPU's, next to the mailboxes, in memory that stays shared.
    unsafe { vcpu.set_ghcb(gpa) };
    if start.conversion == Conversion::PageStateChange && !vcpu.ghcb().is_some_and(Ghcb::register) {
        terminate(VMM_COMMUNICATION);
    }
}
