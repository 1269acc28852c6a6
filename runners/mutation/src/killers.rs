//! Rows that have noticed mutants: they go first the next time.

use std::collections::BTreeMap;

use crate::mutant::{Fate, Trial};

/// What a row costs whatever it does, in microseconds: a copy of a machine is put back, its guest gets a request.
const FIXED_COST_US: u64 = 50_000;

/// How much more than any other a mutant of the same function counts.
const SAME_FUNCTION: u64 = 30;

/// How many mutants each row has killed.
#[derive(Clone, Default, Debug)]
pub struct Killers {
    by_row: BTreeMap<String, u64>,
    /// By the function, as [`function_of`] names it, and the row.
    by_function: BTreeMap<(String, String), u64>,
}

impl Killers {
    /// Remembers who has killed this one, if anybody has.
    pub fn add(&mut self, trial: &Trial) {
        let Fate::Killed { by, .. } = &trial.fate else { return };
        *self.by_row.entry(by.clone()).or_default() += 1;
        *self.by_function.entry((function_of(&trial.name).to_owned(), by.clone())).or_default() += 1;
    }

    /// The rows, of which `of` tells id and duration in microseconds, in the order in which the mutant of this name is most
    /// likely killed soon: those first that are quick for how much they have killed. Of several rows of one story, one
    /// goes first, as the others will mostly say the same.
    pub fn sort<T>(&self, mutant: &str, rows: &mut [T], of: impl Fn(&T) -> (&str, u64)) {
        let function = function_of(mutant).to_owned();
        let cost = |row: &T| {
            let (id, duration_us) = of(row);
            let killed = self.by_row.get(id).copied().unwrap_or_default();
            let here = self.by_function.get(&(function.clone(), id.to_owned())).copied().unwrap_or_default();
            (duration_us + FIXED_COST_US) / (1 + killed + SAME_FUNCTION * here)
        };
        rows.sort_by_cached_key(cost);
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        rows.sort_by_cached_key(|row| {
            let before = told.entry(story_of(of(row).0).to_owned()).or_default();
            *before += 1;
            cost(row) * *before
        });
    }
}

/// File and function of a mutant's name.
fn function_of(mutant: &str) -> &str {
    mutant.match_indices(':').nth(1).map_or(mutant, |(end, _)| &mutant[..end])
}

/// A row's id without its variant.
fn story_of(id: &str) -> &str {
    id.match_indices('.').nth(2).map_or(id, |(end, _)| &id[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killed(name: &str, by: &str) -> Trial {
        let fate = Fate::Killed { by: by.into(), reason: "x".into() };
        Trial { name: name.into(), content: "c".into(), judge: "j".into(), fate, rows: 1, milliseconds: 1 }
    }

    fn order(killers: &Killers, mutant: &str, mut rows: Vec<(&'static str, u64)>) -> Vec<&'static str> {
        killers.sort(mutant, &mut rows, |row| *row);
        rows.into_iter().map(|row| row.0).collect()
    }

    #[test]
    fn who_killed_here_goes_before_who_killed_elsewhere_and_that_before_who_is_only_quick() {
        let rows = vec![("upm.a.quick", 1_000), ("upm.a.slow", 200_000), ("upm.b.slow", 200_000)];
        let mut killers = Killers::default();
        assert_eq!(order(&killers, "a.c:f:drop:1", rows.clone()), ["upm.a.quick", "upm.a.slow", "upm.b.slow"]);
        killers.add(&killed("a.c:f:negate:1", "upm.b.slow"));
        (0..9).for_each(|_| killers.add(&killed("a.c:g:negate:1", "upm.a.slow")));
        assert_eq!(order(&killers, "a.c:f:drop:1", rows.clone()), ["upm.b.slow", "upm.a.slow", "upm.a.quick"]);
        assert_eq!(order(&killers, "a.c:h:drop:1", rows), ["upm.a.slow", "upm.a.quick", "upm.b.slow"]);
    }

    #[test]
    fn every_story_is_told_once_before_one_is_told_again() {
        let rows = vec![("upm.a.b.v1", 1_000), ("upm.a.b.v2", 2_000), ("upm.a.c", 9_000)];
        assert_eq!(order(&Killers::default(), "a.c:f:drop:1", rows), ["upm.a.b.v1", "upm.a.c", "upm.a.b.v2"]);
    }
}
