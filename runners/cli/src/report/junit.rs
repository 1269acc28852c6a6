//! JUnit XML: one suite per VM type and group, written when the run is over.

use std::io::{self, Write};
use std::time::Duration;

use privet_report::{CaseReport, Verdict};
use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use super::Report;
use crate::plan::Job;
use crate::summary::Summary;

/// Collects a run and writes it as JUnit XML.
pub struct Junit<W> {
    out: W,
    rows: Vec<(Job, Option<CaseReport>)>,
}

impl<W: Write> Junit<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, rows: Vec::new() }
    }
}

/// A row as a test case. One without a report did not get its turn before the run was interrupted.
fn case(job: &Job, report: Option<&CaseReport>) -> TestCase {
    let Some(report) = report else {
        let mut status = TestCaseStatus::skipped();
        status.set_message("not run: the run was interrupted");
        return TestCase::new(job.label.as_str(), status);
    };
    let mut status = match report.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Skip => TestCaseStatus::skipped(),
        Verdict::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Verdict::Error | Verdict::Timeout => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    if report.verdict != Verdict::Pass {
        status.set_message(report.reason.as_str());
    }
    if matches!(report.verdict, Verdict::Fail | Verdict::Error | Verdict::Timeout) {
        status.set_type(report.verdict.to_string());
    }
    let mut case = TestCase::new(job.label.as_str(), status);
    case.set_classname(format!("{}.{}", job.vm(), job.group()));
    case.set_time(Duration::from_micros(report.duration_us));
    for (name, value) in [
        ("on", report.on.to_string()),
        ("kernel", report.kernel.clone()),
        ("vendor", report.vendor.clone()),
        ("module_params", report.module_params.join(" ")),
        ("seed", report.seed.to_string()),
        ("repro", report.repro.clone()),
    ] {
        case.add_property((name, value.as_str()));
    }
    if !report.details.is_empty() {
        case.set_system_out(report.details.join("\n"));
    }
    case
}

impl<W: Write> Report for Junit<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.rows = plan.iter().map(|job| (job.clone(), None)).collect();
        Ok(())
    }

    fn finished(&mut self, index: usize, report: &CaseReport) -> io::Result<()> {
        self.rows[index].1 = Some(report.clone());
        Ok(())
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        let mut document = Document::new("privet");
        document.set_time(summary.duration());
        for suite in self.rows.chunk_by(|(a, _), (b, _)| a.vm() == b.vm() && a.group() == b.group()) {
            let mut cases = TestSuite::new(format!("{}.{}", suite[0].0.vm(), suite[0].0.group()));
            let time = suite.iter().flat_map(|(_, report)| report).map(|report| report.duration_us).sum();
            cases.set_time(Duration::from_micros(time));
            cases.add_test_cases(suite.iter().map(|(job, report)| case(job, report.as_ref())));
            document.add_test_suite(cases);
        }
        document.serialize(&mut self.out).map_err(io::Error::other)?;
        self.out.flush()
    }
}
