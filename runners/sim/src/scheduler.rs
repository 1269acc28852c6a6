//! Whose turn it is, and for how long.
//!
//! Processors take turns on one thread. How many instructions a turn has is drawn from the seed, so that every seed is
//! another interleaving, and the same seed the same one. A turn ends early where waiting on would be a waste: at an
//! interprocessor interrupt, PAUSE and HLT.

use rand_pcg::Pcg32;
use rand_pcg::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// How turns are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Turns {
    /// Long ones, for speed.
    #[default]
    Long,
    /// Short ones that end where processors meet, too: for finding races.
    Short,
}

impl Turns {
    /// How many instructions a turn may have.
    fn lengths(self) -> std::ops::Range<u64> {
        match self {
            Turns::Long => 2_000..20_000,
            Turns::Short => 1..400,
        }
    }
}

/// Who executes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scheduler {
    random: Pcg32,
    turns: Turns,
    current: usize,
    /// Instructions that the current processor's turn still has.
    left: u64,
}

impl Scheduler {
    pub(crate) fn new(seed: u64) -> Scheduler {
        Scheduler { random: Pcg32::seed_from_u64(seed), turns: Turns::default(), current: 0, left: 0 }
    }

    /// Another interleaving from here on.
    pub(crate) fn reseed(&mut self, seed: u64, turns: Turns) {
        *self = Scheduler { turns, current: self.current, ..Scheduler::new(seed) };
    }

    /// The processor whose turn it is, of those that can execute, and how many instructions it has left; `None` if
    /// there is none.
    pub(crate) fn turn(&mut self, runnable: impl Fn(usize) -> bool, cpus: usize) -> Option<(usize, u64)> {
        if self.left == 0 || !runnable(self.current) {
            // The next one in line, which may be the same.
            self.current = (1..=cpus).map(|step| (self.current + step) % cpus).find(|cpu| runnable(*cpu))?;
            let lengths = self.turns.lengths();
            self.left = lengths.start + u64::from(self.random.next_u32()) % (lengths.end - lengths.start);
        }
        Some((self.current, self.left))
    }

    /// The processor has executed so many instructions of its turn.
    pub(crate) fn used(&mut self, instructions: u64) {
        self.left = self.left.saturating_sub(instructions);
    }

    /// The turn is over early.
    pub(crate) fn end_turn(&mut self) {
        self.left = 0;
    }

    /// Whether turns are cut to find races.
    pub(crate) fn explores(&self) -> bool {
        self.turns == Turns::Short
    }

    /// Whether a turn also ends at a place where processors may meet: sometimes, while exploring.
    pub(crate) fn ends_at_meeting(&mut self) -> bool {
        self.explores() && self.random.next_u32() & 3 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interleaving(seed: u64, turns: Turns) -> Vec<(usize, u64)> {
        let mut scheduler = Scheduler::new(0);
        scheduler.reseed(seed, turns);
        (0..100)
            .map(|_| {
                let turn = scheduler.turn(|_| true, 3).unwrap();
                scheduler.used(turn.1);
                turn
            })
            .collect()
    }

    #[test]
    fn a_seed_is_an_interleaving() {
        assert_eq!(interleaving(7, Turns::Long), interleaving(7, Turns::Long));
        assert_ne!(interleaving(7, Turns::Long), interleaving(8, Turns::Long));
        assert!(interleaving(7, Turns::Short).iter().all(|(_, length)| Turns::Short.lengths().contains(length)));
    }

    #[test]
    fn everybody_who_can_run_gets_turns_and_nobody_else() {
        let mut scheduler = Scheduler::new(1);
        let mut seen = [0; 4];
        for _ in 0..100 {
            let (cpu, _) = scheduler.turn(|cpu| cpu != 2, 4).unwrap();
            seen[cpu] += 1;
            scheduler.end_turn();
        }
        assert_eq!(seen[2], 0);
        assert!([0, 1, 3].iter().all(|cpu| seen[*cpu] > 30));
        assert_eq!(scheduler.turn(|_| false, 4), None);
    }

    #[test]
    fn an_unfinished_turn_goes_on() {
        let mut scheduler = Scheduler::new(1);
        let (cpu, length) = scheduler.turn(|_| true, 2).unwrap();
        scheduler.used(length - 1);
        assert_eq!(scheduler.turn(|_| true, 2), Some((cpu, 1)));
    }
}
