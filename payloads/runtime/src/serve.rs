//! The life of a vCPU: take a request, execute it, answer, ring.

use core::sync::atomic::Ordering::Relaxed;

use privet_protocol::{Doorbell, Field, Op, Refusal, Reply, Start};

use crate::failure::park;
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
        _ => park(Doorbell::Port),
    };
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
        doorbell::ring(start.doorbell);
    }
}
