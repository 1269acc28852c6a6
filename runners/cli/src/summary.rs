//! The count of a run, and the exit status that follows from it.

use std::time::Duration;

use privet_report::{CaseReport, Ending, Place, Verdict};
use serde::Serialize;

use crate::exit::Status;
use crate::interrupt::Cause;

/// How many rows ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Rows that passed.
    pub pass: usize,
    /// Those of them that did not pass at once.
    #[serde(skip_serializing_if = "is_zero")]
    pub flaky: usize,
    /// Rows that show the kernel to be wrong.
    pub fail: usize,
    /// Rows that broke.
    pub error: usize,
    /// Rows that reached their time limit.
    pub timeout: usize,
    /// Rows that are red as the quarantine file expects.
    #[serde(skip_serializing_if = "is_zero")]
    pub quarantined: usize,
    /// Rows that could not run.
    pub skip: usize,
    /// Selected rows without a verdict, because the run ended early.
    #[serde(skip_serializing_if = "is_zero")]
    pub not_run: usize,
    /// From the start of the first row to the end of the last, in microseconds.
    pub duration_us: u64,
    /// The seed of the run.
    pub seed: u64,
    /// The release of the kernel of the machine that privet ran on, whatever the rows ran on.
    pub host_kernel: String,
    /// Where rows ran, each place once.
    pub places: Vec<RanAt>,
    /// The signal that interrupted the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why the run ended early, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_early: Option<String>,
    /// Something that is wrong and that no row can be blamed for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// A place where rows ran, as their reports describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RanAt {
    on: Place,
    /// Empty on the model, which has none.
    kernel: String,
    vendor: String,
    module_params: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    defect: Option<String>,
}

impl RanAt {
    fn of(report: &CaseReport) -> Self {
        Self {
            on: report.on,
            kernel: report.kernel.clone(),
            vendor: report.vendor.clone(),
            module_params: report.module_params.clone(),
            defect: report.defect.clone(),
        }
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Summary {
    /// Counts one more row.
    pub fn add(&mut self, ending: &Ending) {
        self.flaky += usize::from(ending.is_flaky());
        *match ending.report.verdict {
            _ if ending.quarantined.is_some() => &mut self.quarantined,
            Verdict::Pass => &mut self.pass,
            Verdict::Fail => &mut self.fail,
            Verdict::Error => &mut self.error,
            Verdict::Timeout => &mut self.timeout,
            Verdict::Skip => &mut self.skip,
        } += 1;
        let place = RanAt::of(&ending.report);
        if ending.report.verdict != Verdict::Skip && !self.places.contains(&place) {
            self.places.push(place);
        }
    }

    /// The run ended early.
    pub fn end_early(&mut self, cause: Cause) {
        let (signal, why) = match cause {
            Cause::Signal(signal) => (Some(signal as i32), format!("interrupted by signal {}", signal as i32)),
            Cause::MaxFail(most) => (None, format!("ended by --max-fail {most}")),
            Cause::GlobalTimeout(limit) => {
                let trouble = format!("the run did not end within --global-timeout {}", limit.as_secs_f64());
                self.trouble.get_or_insert(trouble);
                (None, "ended by --global-timeout".to_owned())
            }
            // Nobody can be told.
            Cause::Unwritable => return,
        };
        (self.signal, self.ended_early) = (signal, Some(why));
    }

    /// The rows that are wrong and that nobody expects to be.
    pub fn red(&self) -> usize {
        self.fail + self.error + self.timeout
    }

    /// The rows that have a verdict.
    pub fn seen(&self) -> usize {
        self.pass + self.red() + self.quarantined + self.skip
    }

    /// The wall-clock time.
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.duration_us)
    }

    /// The exit status of the run.
    pub fn status(&self) -> Status {
        if let Some(signal) = self.signal {
            Status::Interrupted(signal)
        } else if self.red() > 0 || self.trouble.is_some() {
            Status::Failed
        } else if self.pass + self.quarantined == 0 {
            Status::NothingRan
        } else {
            Status::Passed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::place::Context;
    use crate::plan;
    use privet_report::{Attempt, Excuse};

    fn ending(verdict: Verdict) -> Ending {
        let jobs = plan::jobs(&["upm.slots.a".to_owned()], 1, 7, Duration::ZERO);
        Ending::of(Context::nowhere(Place::Rig).report(&jobs[0], verdict, String::new()))
    }

    fn status(endings: &[Ending]) -> u8 {
        let mut summary = Summary::default();
        endings.iter().for_each(|ending| summary.add(ending));
        summary.status().code()
    }

    fn status_of(verdicts: &[Verdict]) -> u8 {
        status(&verdicts.iter().map(|verdict| ending(*verdict)).collect::<Vec<_>>())
    }

    #[test]
    fn the_exit_status_is_that_of_the_design() {
        assert_eq!(status_of(&[Verdict::Pass]), 0);
        assert_eq!(status_of(&[Verdict::Pass, Verdict::Skip]), 0);
        assert_eq!(status_of(&[Verdict::Skip]), 4);
        assert_eq!(status_of(&[]), 4);
        for bad in [Verdict::Fail, Verdict::Error, Verdict::Timeout] {
            assert_eq!(status_of(&[Verdict::Pass, bad, Verdict::Skip]), 1);
        }
        let interrupted = Summary { pass: 1, fail: 1, signal: Some(2), ..Summary::default() };
        assert_eq!(interrupted.status().code(), 130);
    }

    #[test]
    fn what_is_excused_or_flaky_is_no_failure_and_is_counted() {
        let mut excused = ending(Verdict::Fail);
        excused.quarantined = Some(Excuse { reason: "known".into(), until: "2026-12-31".into() });
        let mut flaky = ending(Verdict::Pass);
        flaky.earlier.push(Attempt { verdict: Verdict::Timeout, reason: String::new(), duration_us: 1 });
        assert_eq!(status(&[excused.clone()]), 0);
        let mut summary = Summary::default();
        [excused, flaky].iter().for_each(|ending| summary.add(ending));
        assert_eq!((summary.pass, summary.flaky, summary.quarantined, summary.red()), (1, 1, 1, 0));
        assert_eq!(summary.seen(), 2);
    }

    #[test]
    fn a_run_that_is_out_of_time_has_failed() {
        let mut summary = Summary { pass: 3, not_run: 1, ..Summary::default() };
        summary.end_early(Cause::GlobalTimeout(Duration::from_secs(5)));
        assert_eq!(summary.status().code(), 1);
    }
}
