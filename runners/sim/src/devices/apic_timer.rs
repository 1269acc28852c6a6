//! The timer of a local APIC (SDM volume 3, section 12.5.4).

use serde::{Deserialize, Serialize};

/// How the timer runs: bits 18:17 of its local vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// TSC ticks in one tick of the timer's own clock, before its divider.
const TSC_TICKS: u64 = 20;

/// Counts in ticks of the TSC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApicTimer {
    mode: Mode,
    initial_count: u32,
    /// The divide configuration register.
    divide: u32,
    /// When it fires next, in ticks of the TSC.
    deadline: Option<u64>,
}

impl Default for ApicTimer {
    fn default() -> ApicTimer {
        ApicTimer { mode: Mode::OneShot, initial_count: 0, divide: 0, deadline: None }
    }
}

impl ApicTimer {
    /// The local vector was written. A change between counting and TSC-deadline mode disarms.
    pub(crate) fn set_mode(&mut self, local_vector: u32) {
        let mode = match local_vector >> 17 & 3 {
            1 => Mode::Periodic,
            2 => Mode::TscDeadline,
            _ => Mode::OneShot,
        };
        if (mode == Mode::TscDeadline) != (self.mode == Mode::TscDeadline) {
            self.deadline = None;
        }
        self.mode = mode;
    }

    pub(crate) fn divide(&self) -> u32 {
        self.divide
    }

    pub(crate) fn set_divide(&mut self, value: u32) {
        self.divide = value & 0b1011;
    }

    /// TSC ticks for one count (table 12-10: bits 0, 1 and 3 are an exponent; 111 divides by one).
    fn ticks_per_count(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        TSC_TICKS << ((code + 1) % 8)
    }

    pub(crate) fn initial_count(&self) -> u32 {
        self.initial_count
    }

    /// Starts counting down, or stops the timer with 0. Ignored in TSC-deadline mode.
    pub(crate) fn set_initial_count(&mut self, count: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial_count = count;
        self.deadline = (count != 0).then(|| now + u64::from(count) * self.ticks_per_count());
    }

    pub(crate) fn current_count(&self, now: u64) -> u32 {
        match self.deadline {
            Some(deadline) if self.mode != Mode::TscDeadline => {
                deadline.saturating_sub(now).div_ceil(self.ticks_per_count()) as u32
            }
            _ => 0,
        }
    }

    /// MSR 0x6E0: zero unless armed in TSC-deadline mode.
    pub(crate) fn tsc_deadline(&self) -> u64 {
        self.deadline.filter(|_| self.mode == Mode::TscDeadline).unwrap_or(0)
    }

    /// Arms, or disarms with 0. Ignored in the other modes.
    pub(crate) fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = (deadline != 0).then_some(deadline);
        }
    }

    /// When it wants to be asked again.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Whether it fires now. A periodic timer that is behind fires once for all periods that it missed.
    pub(crate) fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) else { return false };
        let period = u64::from(self.initial_count) * self.ticks_per_count();
        self.deadline =
            (self.mode == Mode::Periodic && period != 0).then(|| deadline + ((now - deadline) / period + 1) * period);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shot_fires_once_after_its_count() {
        let mut timer = ApicTimer::default();
        timer.set_divide(0b1011);
        timer.set_initial_count(10, 1000);
        assert_eq!(timer.current_count(1000), 10);
        assert!(!timer.expire(1000 + 10 * TSC_TICKS - 1));
        assert!(timer.expire(1000 + 10 * TSC_TICKS));
        assert!(!timer.expire(u64::MAX));
        assert_eq!(timer.current_count(1300), 0);
    }

    #[test]
    fn periodic_goes_on() {
        let mut timer = ApicTimer::default();
        timer.set_mode(1 << 17);
        timer.set_initial_count(5, 0);
        let period = 5 * 2 * TSC_TICKS;
        assert!(timer.expire(period));
        assert_eq!(timer.deadline(), Some(2 * period));
        assert!(timer.expire(7 * period + 1));
        assert_eq!(timer.deadline(), Some(8 * period));
    }

    #[test]
    fn the_deadline_of_the_tsc_is_absolute_and_reads_zero_when_it_has_passed() {
        let mut timer = ApicTimer::default();
        timer.set_tsc_deadline(5);
        assert_eq!(timer.tsc_deadline(), 0, "not in this mode");
        timer.set_mode(2 << 17);
        timer.set_tsc_deadline(500);
        timer.set_initial_count(7, 0);
        assert_eq!((timer.tsc_deadline(), timer.current_count(0)), (500, 0));
        assert!(timer.expire(500));
        assert_eq!(timer.tsc_deadline(), 0);
    }

    #[test]
    fn the_divider_is_an_exponent() {
        let mut timer = ApicTimer::default();
        for (register, divider) in [(0b0000, 2), (0b0001, 4), (0b0011, 16), (0b1000, 32), (0b1010, 128), (0b1011, 1)] {
            timer.set_divide(register);
            assert_eq!(timer.ticks_per_count(), divider * TSC_TICKS);
        }
    }
}
