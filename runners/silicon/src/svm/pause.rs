//! The filter of the PAUSE intercept (APM volume 2, 15.14.4).

use serde::{Deserialize, Serialize};

use super::control::Control;
use super::features::Features;

/// Counts a guest's PAUSEs. The VMCB keeps the count that it starts from: nothing is written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PauseFilter {
    start: u16,
    threshold: u16,
    left: u16,
    /// When the last PAUSE was: an instruction stands for a cycle.
    last: u64,
}

impl PauseFilter {
    /// The filter at VMRUN.
    pub(crate) fn new(control: &Control, features: &Features) -> PauseFilter {
        let start = if features.pause_filter { control.pause_count } else { 0 };
        let threshold = if features.pause_filter_threshold { control.pause_threshold } else { 0 };
        PauseFilter { start, threshold, left: start, last: 0 }
    }

    /// An intercepted PAUSE at `now`: whether it exits. PAUSEs that are further apart than the threshold are no loop
    /// and have the count start again.
    pub(crate) fn pause(&mut self, now: u64) -> bool {
        if self.threshold != 0 {
            let apart = now.wrapping_sub(self.last);
            self.last = now;
            if apart > u64::from(self.threshold) {
                self.left = self.start;
            }
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return true,
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(start: u16, threshold: u16) -> PauseFilter {
        PauseFilter { start, threshold, left: start, last: 0 }
    }

    #[test]
    fn without_a_count_every_pause_exits() {
        assert!(filter(0, 0).pause(5));
        assert!(filter(0, 100).pause(1000));
    }

    #[test]
    fn the_count_is_how_many_pauses_are_for_free() {
        let mut filter = filter(3, 0);
        let exits: Vec<bool> = (0..5).map(|_| filter.pause(0)).collect();
        assert_eq!(exits, [false, false, false, true, true]);
    }

    #[test]
    fn pauses_far_apart_are_no_loop() {
        let mut filter = filter(2, 100);
        let times = [1000, 2000, 3000, 3100, 3200, 3201];
        assert_eq!(times.map(|now| filter.pause(now)), [false, false, false, false, true, true]);
    }
}
