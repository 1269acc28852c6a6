//! Whether a vCPU sleeps in the kernel, as KVM's own statistics tell.

use std::thread;
use std::time::{Duration, Instant};

use privet_harness::outcome::{Outcome, Stop};
use privet_harness::stats::Stats;
use privet_harness::vcpu::Vcpu;

const LIMIT: Duration = Duration::from_secs(20);

/// The statistics of a vCPU. To be had while it is not running, and of use while it is.
pub(crate) struct Asleep(Stats);

impl Asleep {
    pub(crate) fn of(vcpu: &Vcpu) -> Outcome<Asleep> {
        vcpu.stats().map(Asleep)
    }

    /// Waits until the vCPU sleeps.
    pub(crate) fn wait(&self) -> Outcome {
        let deadline = Instant::now() + LIMIT;
        while self.0.get("blocking")? != Some(1) {
            if Instant::now() > deadline {
                return Err(Stop::Timeout(format!("{} did not sleep within {LIMIT:?}", self.0.id())));
            }
            thread::yield_now();
        }
        Ok(())
    }
}
