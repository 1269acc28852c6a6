//! KVM's statistics as expectations.

use privet_harness::guest::Guest;
use privet_harness::outcome::{Outcome, Stop};
use privet_harness::stats::Stats;

/// Counts of a VM or a vCPU that a row compares at two moments.
pub(crate) struct Counters {
    stats: Stats,
}

impl Counters {
    /// Those of the VM: `pages_4k`, `pages_2m`.
    pub(crate) fn of_vm(g: &Guest) -> Outcome<Counters> {
        Ok(Counters { stats: g.vm().stats()? })
    }

    /// Those of vCPU 0: `pf_taken` and so on. Take them while it is not running.
    pub(crate) fn of_vcpu(g: &Guest) -> Outcome<Counters> {
        Ok(Counters { stats: g.vcpu(0).kvm().stats()? })
    }

    /// The value now.
    pub(crate) fn get(&self, name: &str) -> Outcome<u64> {
        self.stats.get(name)?.ok_or_else(|| Stop::Error(format!("KVM has no statistic {name} in {}", self.stats.id())))
    }

    /// Expects that `step` makes a value grow by exactly this much.
    pub(crate) fn expect_growth(&self, name: &str, by: i64, step: impl FnOnce() -> Outcome) -> Outcome {
        let before = self.get(name)?;
        step()?;
        match self.get(name)?.wrapping_sub(before) as i64 {
            seen if seen == by => Ok(()),
            seen => Err(Stop::Fail(format!("{name} grew by {seen}, expected {by}"))),
        }
    }
}
