//! Brings results that arrive in any order back into the order of the plan.

use std::collections::BTreeMap;

/// Holds results back until all before them have come.
#[derive(Debug)]
pub struct InOrder<T> {
    next: usize,
    early: BTreeMap<usize, T>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self { next: 0, early: BTreeMap::new() }
    }
}

impl<T> InOrder<T> {
    /// Takes the result of job `index`, and gives those whose turn it is now.
    pub fn push(&mut self, index: usize, result: T) -> Vec<(usize, T)> {
        self.early.insert(index, result);
        let mut ready = Vec::new();
        while let Some(result) = self.early.remove(&self.next) {
            ready.push((self.next, result));
            self.next += 1;
        }
        ready
    }

    /// Gives what is still held back, in order, at the end of a run that was cut short.
    pub fn rest(&mut self) -> Vec<(usize, T)> {
        std::mem::take(&mut self.early).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_wait_for_those_before_them() {
        let mut order = InOrder::default();
        assert!(order.push(1, 'b').is_empty());
        assert_eq!(order.push(0, 'a'), [(0, 'a'), (1, 'b')]);
        assert!(order.push(3, 'd').is_empty());
        assert_eq!(order.rest(), [(3, 'd')]);
    }
}
