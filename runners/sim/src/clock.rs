//! Virtual time. It is counted in ticks of the TSC, and only execution and waiting make it pass.
//!
//! Every executed instruction takes the same time, whichever processor executes it: the processors of a machine share
//! one clock, so their TSCs never disagree, and what a guest sees does not depend on how fast or busy the real
//! machine is. An access to a port takes longer, as on a bus. When all processors wait, the clock jumps to whatever
//! happens next.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Frequency of the TSC.
pub(crate) const TSC_HZ: u64 = 2_000_000_000;

/// Ticks of the TSC that an instruction takes: 250 million instructions a second.
pub(crate) const TICKS_PER_INSTRUCTION: u64 = 8;

/// Ticks that an access to a port takes, 1 us. It makes loops short that wait for a chip's counter.
pub(crate) const TICKS_PER_PORT_ACCESS: u64 = TSC_HZ / 1_000_000;

/// Ticks that PAUSE takes, half a microsecond: who waits for time to pass shall not take many instructions for it.
pub(crate) const TICKS_PER_PAUSE: u64 = TSC_HZ / 2_000_000;

/// What time it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// The time when the running processor's count of instructions was `since`.
    base: u64,
    since: u64,
}

impl Clock {
    /// The time when the running processor has executed so many instructions.
    pub(crate) fn at(&self, instructions: u64) -> u64 {
        self.base + (instructions - self.since) * TICKS_PER_INSTRUCTION
    }

    /// The count that the running processor has at `time`, or shortly after it.
    pub(crate) fn instructions_at(&self, time: u64) -> u64 {
        self.since + time.saturating_sub(self.base).div_ceil(TICKS_PER_INSTRUCTION)
    }

    /// From one processor's turn to the next.
    pub(crate) fn hand_over(&mut self, from: u64, to: u64) {
        *self = Clock { base: self.at(from), since: to };
    }

    /// Time passes without an instruction.
    pub(crate) fn pass(&mut self, ticks: u64) {
        self.base += ticks;
    }
}

/// Ticks as a time since power-on.
pub(crate) fn duration(ticks: u64) -> Duration {
    Duration::from_nanos(counts(ticks, 1_000_000_000))
}

/// The first tick at or after a time since power-on.
pub(crate) fn from_duration(duration: Duration) -> u64 {
    (duration.as_nanos() * u128::from(TSC_HZ)).div_ceil(1_000_000_000).try_into().unwrap_or(u64::MAX)
}

/// Counts of a chip that counts with `hz`, in so many ticks of the TSC.
pub(crate) fn counts(ticks: u64, hz: u64) -> u64 {
    (u128::from(ticks) * u128::from(hz) / u128::from(TSC_HZ)) as u64
}

/// The first tick of the TSC at which a chip that counts with `hz` has counted that far.
pub(crate) fn ticks(counts: u64, hz: u64) -> u64 {
    (u128::from(counts) * u128::from(TSC_HZ)).div_ceil(u128::from(hz)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_share_one_clock() {
        let mut clock = Clock::default();
        let first_turn = clock.at(100);
        assert_eq!(first_turn, 100 * TICKS_PER_INSTRUCTION);
        clock.hand_over(100, 7);
        assert_eq!(clock.at(7), first_turn);
        clock.pass(3);
        assert_eq!(clock.at(8), first_turn + 3 + TICKS_PER_INSTRUCTION);
        assert_eq!(clock.instructions_at(clock.at(50)), 50);
        assert_eq!(clock.instructions_at(0), 7);
    }

    #[test]
    fn chips_count_in_their_own_frequency() {
        assert_eq!(counts(TSC_HZ, 3_579_545), 3_579_545);
        assert_eq!(duration(TSC_HZ * 3 + TSC_HZ / 4), Duration::from_millis(3250));
        for count in [0, 1, 5, 1_000_003] {
            let at = ticks(count, 1_193_182);
            assert_eq!(counts(at, 1_193_182), count);
            assert!(at == 0 || counts(at - 1, 1_193_182) < count);
        }
    }
}
