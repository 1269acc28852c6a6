//! Everything that follows a run: reports, artifacts, the count. What cannot be written ends the run.

use std::io;

use nix::sys::signal::Signal;
use privet_report::{CaseReport, Verdict};

use crate::artifacts::Artifacts;
use crate::interrupt::Interrupt;
use crate::plan::Job;
use crate::report::Report;
use crate::repro::Repro;
use crate::summary::Summary;

/// Changes the report of a job to what the whole command line makes of it.
type HoldTo<'a> = &'a dyn Fn(&Job, &mut CaseReport);

/// Passes on what happens in a run.
pub struct Followers<'a> {
    plan: &'a [Job],
    reports: Vec<Box<dyn Report + 'a>>,
    artifacts: Option<Artifacts>,
    repro: Repro<'a>,
    /// Has the last word on a verdict.
    hold_to: HoldTo<'a>,
    interrupt: &'a Interrupt,
    summary: Summary,
    /// The first reason of a skipped row.
    first_skip: Option<String>,
    broken: Option<io::Error>,
}

impl<'a> Followers<'a> {
    /// Starts all reports of a run over `plan`.
    pub fn begin(
        plan: &'a [Job],
        reports: Vec<Box<dyn Report + 'a>>,
        artifacts: Option<Artifacts>,
        repro: Repro<'a>,
        hold_to: HoldTo<'a>,
        interrupt: &'a Interrupt,
    ) -> Self {
        let (summary, first_skip, broken) = (Summary::default(), None, None);
        let mut followers = Self { plan, reports, artifacts, repro, hold_to, interrupt, summary, first_skip, broken };
        followers.each(|report| report.begin(plan));
        followers
    }

    /// So many machines are booting for the run.
    pub fn booting(&mut self, machines: usize) {
        self.each(|report| report.booting(machines));
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
        report.repro = self.repro.line(job, report.on);
        (self.hold_to)(job, &mut report);
        if report.verdict == Verdict::Skip {
            self.first_skip.get_or_insert_with(|| report.reason.clone());
        }
        self.summary.add(report.verdict);
        let kept = self.artifacts.as_ref().map_or(Ok(()), |artifacts| artifacts.finished(job, &report, stdout, stderr));
        self.note(kept);
        self.each(|follower| follower.finished(index, &report));
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
        self.summary.duration_us = duration_us;
        self.summary.not_run = self.plan.len() - self.summary.seen();
        // A report that could not be written ends the run as a signal does, but nobody sent one.
        self.summary.signal = self.interrupt.signal().filter(|_| self.broken.is_none());
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

    /// Ends the run at the first error: verdicts that nobody sees are not worth their time.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.broken.is_none()
        {
            self.broken = Some(error);
            self.interrupt.trigger(Signal::SIGPIPE);
        }
    }
}
