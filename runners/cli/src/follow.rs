//! Everything that follows a run: further attempts, reports, artifacts, the count. What cannot be written ends the
//! run.

use std::collections::BTreeMap;
use std::io;

use nix::sys::utsname::uname;
use privet_report::{Attempt, CaseReport, Ending, Verdict};

use crate::artifacts::Artifacts;
use crate::interrupt::{Cause, Interrupt};
use crate::plan::Job;
use crate::report::Report;
use crate::repro::Repro;
use crate::summary::Summary;

/// Changes the report of a job to what the whole command line makes of it.
type HoldTo<'a> = &'a dyn Fn(&Job, &mut CaseReport);

/// Tells an end that is expected from one that is not.
type Judge<'a> = &'a dyn Fn(&Job, &mut Ending);

/// What the command line makes of the ends of rows.
#[derive(Default)]
pub struct Policy<'a> {
    /// Has the last word on a verdict.
    pub hold_to: Option<HoldTo<'a>>,
    /// Excuses a red row.
    pub excuse: Option<Judge<'a>>,
    /// How many more attempts a red row gets.
    pub retries: u32,
    /// How many red rows end the run.
    pub max_fail: Option<usize>,
}

/// Passes on what happens in a run.
pub struct Followers<'a> {
    plan: &'a [Job],
    reports: Vec<Box<dyn Report + 'a>>,
    artifacts: Option<Artifacts>,
    repro: Repro<'a>,
    policy: Policy<'a>,
    interrupt: &'a Interrupt,
    summary: Summary,
    /// Jobs that are red and have attempts left, by their index: all attempts so far, with what was printed.
    due: BTreeMap<usize, (Vec<Attempt>, Said)>,
    /// The first reason of a skipped row.
    first_skip: Option<String>,
    broken: Option<io::Error>,
}

/// A report, and what its worker printed.
struct Said {
    report: CaseReport,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Followers<'a> {
    /// Starts all reports of a run over `plan`.
    pub fn begin(
        plan: &'a [Job],
        reports: Vec<Box<dyn Report + 'a>>,
        artifacts: Option<Artifacts>,
        repro: Repro<'a>,
        policy: Policy<'a>,
        interrupt: &'a Interrupt,
    ) -> Self {
        let host_kernel = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
        let seed = plan.first().map_or(0, |job| job.seed);
        let summary = Summary { seed, host_kernel, ..Summary::default() };
        let (due, first_skip, broken) = (BTreeMap::new(), None, None);
        let mut followers =
            Self { plan, reports, artifacts, repro, policy, interrupt, summary, due, first_skip, broken };
        followers.each(|report| report.begin(plan));
        followers
    }

    /// Where the rows run, in one line, because privet had the choice.
    pub fn placed(&mut self, words: &str) {
        self.each(|report| report.placed(words));
    }

    /// So many machines are booting for the run, and this is what one of them wrote last.
    pub fn booting(&mut self, machines: usize, console: &str) {
        self.each(|report| report.booting(machines, console));
    }

    /// A job starts.
    pub fn started(&mut self, index: usize) {
        let kept = self.artifacts.as_ref().map_or(Ok(()), |artifacts| artifacts.started(&self.plan[index]));
        self.note(kept);
        self.each(|report| report.started(index));
    }

    /// A job has ended with `report` and has printed `stdout` and `stderr`.
    pub fn finished(&mut self, index: usize, mut report: CaseReport, stdout: &[u8], stderr: &[u8]) {
        let job = &self.plan[index];
        report.id.clone_from(&job.id);
        report.repro = self.repro.line(job, &report);
        if let Some(hold_to) = self.policy.hold_to {
            hold_to(job, &mut report);
        }
        let mut attempts = self.due.remove(&index).map(|(attempts, _)| attempts).unwrap_or_default();
        let mut ending = Ending { earlier: attempts.clone(), ..Ending::of(report) };
        if let Some(excuse) = self.policy.excuse {
            excuse(job, &mut ending);
        }
        if ending.is_red() && attempts.len() < self.policy.retries as usize {
            attempts.push(Attempt::from(&ending.report));
            self.each(|follower| follower.retried(index, &ending.report));
            let said = Said { report: ending.report, stdout: stdout.to_vec(), stderr: stderr.to_vec() };
            self.due.insert(index, (attempts, said));
            return;
        }
        self.ended(index, &ending, stdout, stderr);
    }

    /// The jobs that get another attempt.
    pub fn due(&self) -> Vec<usize> {
        self.due.keys().copied().collect()
    }

    /// Nothing can change the end of this job any more.
    fn ended(&mut self, index: usize, ending: &Ending, stdout: &[u8], stderr: &[u8]) {
        if ending.report.verdict == Verdict::Skip {
            self.first_skip.get_or_insert_with(|| ending.report.reason.clone());
        }
        self.summary.add(ending);
        let job = &self.plan[index];
        let kept = self.artifacts.as_ref().map_or(Ok(()), |artifacts| artifacts.finished(job, ending, stdout, stderr));
        self.note(kept);
        self.each(|follower| follower.finished(index, ending));
        if let Some(most) = self.policy.max_fail.filter(|most| self.summary.red() >= *most) {
            self.interrupt.end(Cause::MaxFail(most));
        }
    }

    /// Something is wrong that no row can be blamed for.
    pub fn trouble(&mut self, what: String) {
        self.summary.trouble.get_or_insert(what);
    }

    /// The run is over, after `duration_us`.
    ///
    /// # Errors
    /// The first thing that could not be written.
    pub fn end(mut self, duration_us: u64) -> io::Result<(Summary, Option<String>)> {
        // The run ended before their next attempt did.
        for (index, (mut attempts, said)) in std::mem::take(&mut self.due) {
            attempts.pop();
            let ending = Ending { earlier: attempts, ..Ending::of(said.report) };
            self.ended(index, &ending, &said.stdout, &said.stderr);
        }
        self.summary.duration_us = duration_us;
        self.summary.not_run = self.plan.len() - self.summary.seen();
        // What comes after the last row ends nothing.
        if self.summary.not_run > 0
            && let Some(cause) = self.interrupt.cause()
        {
            self.summary.end_early(cause);
        }
        let summary = self.summary.clone();
        self.each(|report| report.end(&summary));
        match self.broken {
            Some(error) => Err(error),
            None => Ok((summary, self.first_skip)),
        }
    }

    fn each(&mut self, mut tell: impl FnMut(&mut dyn Report) -> io::Result<()>) {
        for index in 0..self.reports.len() {
            let told = tell(self.reports[index].as_mut());
            self.note(told);
        }
    }

    /// Ends the run at the first error.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.broken.is_none()
        {
            self.broken = Some(error);
            self.interrupt.end(Cause::Unwritable);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use privet_report::Place;

    use super::*;
    use crate::args::RigOptions;
    use crate::place::Context;
    use crate::plan;

    /// The count after attempts that end so, of a row that gets two more.
    fn after(verdicts: &[Verdict]) -> (Summary, Vec<usize>) {
        let jobs = plan::jobs(&["upm.slots.a".to_owned()], 1, 7, Duration::ZERO);
        let (interrupt, rig) = (Interrupt::new().unwrap(), RigOptions::default());
        let repro = Repro { rig: &rig, timeout: None, vendor_on_model: false, defect: None };
        let policy = Policy { retries: 2, ..Policy::default() };
        let mut followers = Followers::begin(&jobs, Vec::new(), None, repro, policy, &interrupt);
        for verdict in verdicts {
            followers.finished(0, Context::nowhere(Place::Rig).report(&jobs[0], *verdict, String::new()), &[], &[]);
        }
        let due = followers.due();
        (followers.end(1).unwrap().0, due)
    }

    #[test]
    fn a_row_is_flaky_if_it_passes_after_it_did_not() {
        use Verdict::{Fail, Pass, Skip, Timeout};
        for (verdicts, due, pass, flaky, red) in [
            (&[Pass][..], 0, 1, 0, 0),
            (&[Skip], 0, 0, 0, 0),
            (&[Fail, Pass], 0, 1, 1, 0),
            (&[Fail, Timeout, Pass], 0, 1, 1, 0),
            (&[Fail, Fail, Fail], 0, 0, 0, 1),
            // The run ended before the next attempt.
            (&[Fail], 1, 0, 0, 1),
        ] {
            let (summary, left) = after(verdicts);
            assert_eq!(
                (left.len(), summary.pass, summary.flaky, summary.red()),
                (due, pass, flaky, red),
                "{verdicts:?}"
            );
            assert_eq!(summary.not_run, 0, "{verdicts:?}");
        }
    }
}
