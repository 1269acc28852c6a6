//! The count of a run, and the exit status that follows from it.

use std::time::Duration;

use privet_report::Verdict;
use serde::Serialize;

use crate::exit::Status;

/// How many rows ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Rows that passed.
    pub pass: usize,
    /// Rows that show the kernel to be wrong.
    pub fail: usize,
    /// Rows that broke.
    pub error: usize,
    /// Rows that reached their time limit.
    pub timeout: usize,
    /// Rows that could not run.
    pub skip: usize,
    /// Selected rows without a verdict, because the run was interrupted.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_run: usize,
    /// From the start of the first row to the end of the last, in microseconds.
    pub duration_us: u64,
    /// The signal that interrupted the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Something that is wrong and that no row can be blamed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Summary {
    /// Counts one more row.
    pub fn add(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Pass => &mut self.pass,
            Verdict::Fail => &mut self.fail,
            Verdict::Error => &mut self.error,
            Verdict::Timeout => &mut self.timeout,
            Verdict::Skip => &mut self.skip,
        } += 1;
    }

    /// The rows that have a verdict.
    pub fn seen(&self) -> usize {
        self.pass + self.fail + self.error + self.timeout + self.skip
    }

    /// The wall-clock time.
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.duration_us)
    }

    /// The exit status of the run.
    pub fn status(&self) -> Status {
        if let Some(signal) = self.signal {
            Status::Interrupted(signal)
        } else if self.fail + self.error + self.timeout > 0 || self.trouble.is_some() {
            Status::Failed
        } else if self.pass == 0 {
            Status::NothingRan
        } else {
            Status::Passed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(verdicts: &[Verdict]) -> u8 {
        let mut summary = Summary::default();
        verdicts.iter().for_each(|verdict| summary.add(*verdict));
        summary.status().code()
    }

    #[test]
    fn the_exit_status_is_that_of_the_design() {
        assert_eq!(status(&[Verdict::Pass]), 0);
        assert_eq!(status(&[Verdict::Pass, Verdict::Skip]), 0);
        assert_eq!(status(&[Verdict::Skip]), 4);
        assert_eq!(status(&[]), 4);
        for bad in [Verdict::Fail, Verdict::Error, Verdict::Timeout] {
            assert_eq!(status(&[Verdict::Pass, bad, Verdict::Skip]), 1);
        }
        let interrupted = Summary { pass: 1, fail: 1, signal: Some(2), ..Summary::default() };
        assert_eq!(interrupted.status().code(), 130);
    }
}
