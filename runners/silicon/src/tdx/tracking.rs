//! TLB tracking: whether a vCPU may still remember what the host has blocked (TDX module base architecture, "TLB
//! Tracking").

use serde::{Deserialize, Serialize};

use super::status::{Code, Operand, Status};

/// The epochs of a TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Epochs {
    current: u64,
    /// How many vCPUs run that were entered in an epoch of this parity.
    running: [u32; 2],
}

impl Epochs {
    /// Of a new TD.
    pub(super) fn new() -> Epochs {
        Epochs { current: 1, running: [0; 2] }
    }

    /// The current one.
    pub(super) fn current(&self) -> u64 {
        self.current
    }

    /// A vCPU is entered. The epoch that it runs in; what it remembers from another one goes.
    pub(super) fn enter(&mut self) -> u64 {
        self.running[(self.current & 1) as usize] += 1;
        self.current
    }

    /// A vCPU that was entered in this epoch is left.
    pub(super) fn leave(&mut self, epoch: u64) {
        let running = &mut self.running[(epoch & 1) as usize];
        *running = running.saturating_sub(1);
    }

    /// How many vCPUs run that were entered before the current epoch.
    fn behind(&self) -> u32 {
        self.running[(self.current.wrapping_sub(1) & 1) as usize]
    }

    /// MEM.TRACK: the next epoch begins.
    pub(super) fn advance(&mut self) -> Result<(), Status> {
        if self.behind() > 0 {
            return Err(Code::PreviousTlbEpochBusy.on(Operand::TdEpoch));
        }
        self.force()
    }

    /// The next one, whoever runs.
    pub(super) fn force(&mut self) -> Result<(), Status> {
        self.current += 1;
        Ok(())
    }

    /// Whether no vCPU can remember what was blocked in this epoch.
    pub(super) fn tracked(&self, blocked: u64) -> bool {
        self.current > blocked && (self.current > blocked + 1 || self.behind() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_vcpus_one_epoch_is_enough() {
        let mut epochs = Epochs::new();
        let blocked = epochs.current();
        assert!(!epochs.tracked(blocked));
        epochs.advance().unwrap();
        assert!(epochs.tracked(blocked));
    }

    #[test]
    fn a_vcpu_that_runs_on_remembers() {
        let mut epochs = Epochs::new();
        let entered = epochs.enter();
        let blocked = epochs.current();
        epochs.advance().unwrap();
        assert!(!epochs.tracked(blocked));
        assert_eq!(epochs.advance(), Err(Code::PreviousTlbEpochBusy.on(Operand::TdEpoch)));
        epochs.leave(entered);
        assert!(epochs.tracked(blocked));
    }

    #[test]
    fn a_vcpu_of_the_new_epoch_does_not() {
        let mut epochs = Epochs::new();
        let blocked = epochs.current();
        epochs.advance().unwrap();
        epochs.enter();
        assert!(epochs.tracked(blocked));
        epochs.advance().unwrap();
        assert!(epochs.tracked(blocked), "two epochs later whoever runs");
    }
}
