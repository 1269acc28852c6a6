//! Operations that go on until the host stops them.

use privet_protocol::Reply;
use privet_runtime::paging::PAGE_SIZE;
use privet_runtime::probe;
use privet_runtime::{Vcpu, tlb};

use crate::memory::zeropad;

pub(crate) fn zeropad_until_stopped(vcpu: &'static Vcpu, gva: u64, limit: u64, allowed: [u64; 3]) -> Reply {
    let (mut padded, mut faults, mut wrong, mut last_wrong) = (0, 0, 0, 0);
    let loads = rounds(vcpu, limit, || {
        match zeropad(gva) {
            Ok(load) => {
                padded += u64::from(load.fault.is_some());
                if !allowed.contains(&load.value) {
                    wrong += 1;
                    last_wrong = load.value;
                }
            }
            Err(_) => faults += 1,
        }
        Ok(())
    });
    loads.map_or_else(|reply| reply, |loads| Reply::done([loads, padded, faults, wrong, last_wrong]))
}

pub(crate) fn add_until_stopped(vcpu: &'static Vcpu, gva: u64, pages: u64, limit: u64) -> Reply {
    let rounds = rounds(vcpu, limit, || {
        for page in 0..pages {
            probe::fetch_add(gva.wrapping_add(page.wrapping_mul(PAGE_SIZE)), 1).map_err(Reply::Fault)?;
        }
        Ok(())
    });
    rounds.map_or_else(|reply| reply, |rounds| Reply::done([rounds]))
}

/// Repeats `round` until the host wants it to stop, it fails, or it was done `limit` times (0: no limit): how
/// often it was done.
fn rounds(vcpu: &'static Vcpu, limit: u64, mut round: impl FnMut() -> Result<(), Reply>) -> Result<u64, Reply> {
    let mailbox = vcpu.mailbox();
    tlb::promptly(vcpu, || {
        let mut done = 0;
        while !mailbox.must_stop() && (limit == 0 || done < limit) {
            round()?;
            tlb::catch_up(vcpu);
            done += 1;
            mailbox.set_rounds(done);
        }
        Ok(done)
    })
}
