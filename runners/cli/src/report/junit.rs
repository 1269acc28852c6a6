//! JUnit XML: one suite per VM type and group. The totals stand before the rows, so that the document is written
//! anew as it grows, where that can be done, and at the end where it cannot.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, FixedOffset, Utc};
use nix::sys::utsname::uname;
use privet_report::{Attempt, CaseReport, Ending, Verdict};
use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::Report;
use crate::output::Output;
use crate::plan::Job;
use crate::summary::Summary;

/// Puts a whole document in the place of the one before.
type Replace<W> = fn(&mut W, &[u8]) -> io::Result<()>;

/// Collects a run and writes it as JUnit XML.
pub struct Junit<W> {
    out: W,
    /// `None` where what is written is gone, as in a pipe.
    replace: Option<Replace<W>>,
    rows: Vec<Row>,
    began: SystemTime,
    hostname: String,
}

struct Row {
    job: Job,
    /// When it ended, and how; `None` as long as it has not.
    ended: Option<(SystemTime, Ending)>,
}

impl<W: Write> Junit<W> {
    /// Writes to `out` when the run is over.
    pub fn new(out: W) -> Self {
        let hostname = uname().map(|name| name.nodename().to_string_lossy().into_owned()).unwrap_or_default();
        Self { out, replace: None, rows: Vec::new(), began: SystemTime::now(), hostname }
    }

    /// The document as far as it is known.
    fn document(&self, time: Duration) -> io::Result<String> {
        let mut document = Document::new("privet");
        document.set_time(time).set_timestamp(date(self.began));
        let same_suite = |a: &Row, b: &Row| a.job.vm() == b.job.vm() && a.job.group() == b.job.group();
        for rows in self.rows.chunk_by(same_suite) {
            let mut suite = TestSuite::new(format!("{}.{}", rows[0].job.vm(), rows[0].job.group()));
            let ended = || rows.iter().flat_map(|row| &row.ended);
            suite.set_time(Duration::from_micros(ended().map(|(_, ending)| ending.report.duration_us).sum()));
            let started = ended().map(|(at, ending)| started(*at, &ending.report)).min();
            suite.set_timestamp(date(started.unwrap_or(self.began)));
            suite.extra.insert("hostname".into(), self.hostname.as_str().into());
            suite.add_test_cases(rows.iter().map(case));
            document.add_test_suite(suite);
        }
        document.to_string().map_err(io::Error::other)
    }
}

impl<'a> Junit<&'a mut Output> {
    /// Writes to a file, where a whole document is found at any time if it is a regular one.
    pub fn into_file(out: &'a mut Output) -> Self {
        let replace: Replace<&'a mut Output> = |out, whole| out.replace(whole);
        let replace = out.is_replaceable().then_some(replace);
        Self { replace, ..Self::new(out) }
    }
}

/// A time as XML has it.
fn date(time: SystemTime) -> DateTime<FixedOffset> {
    DateTime::<Utc>::from(time).fixed_offset()
}

fn started(ended: SystemTime, report: &CaseReport) -> SystemTime {
    ended.checked_sub(Duration::from_micros(report.duration_us)).unwrap_or(ended)
}

/// A row as a test case. One that has not ended did not get its turn before the run did.
fn case(row: &Row) -> TestCase {
    let Some((ended, ending)) = &row.ended else {
        let mut status = TestCaseStatus::skipped();
        status.set_message("not run: the run ended before");
        return TestCase::new(row.job.label.as_str(), status);
    };
    let report = &ending.report;
    let mut case = TestCase::new(row.job.label.as_str(), status(ending));
    case.set_classname(format!("{}.{}", row.job.vm(), row.job.group()));
    case.set_time(Duration::from_micros(report.duration_us));
    case.set_timestamp(date(started(*ended, report)));
    for (name, value) in [
        ("on", report.on.to_string()),
        ("machine", report.machine.clone().unwrap_or_default()),
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

fn status(ending: &Ending) -> TestCaseStatus {
    let report = &ending.report;
    if let Some(excuse) = &ending.quarantined {
        let mut status = TestCaseStatus::skipped();
        let (verdict, reason) = (report.verdict, &report.reason);
        status.set_message(format!("quarantined until {}, {}: {verdict}: {reason}", excuse.until, excuse.reason));
        return status;
    }
    let mut status = match report.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Skip => TestCaseStatus::skipped(),
        red => TestCaseStatus::non_success(kind(red)),
    };
    if report.verdict != Verdict::Pass {
        status.set_message(report.reason.as_str());
    }
    if report.verdict.is_red() {
        status.set_type(report.verdict.to_string());
    }
    if report.verdict != Verdict::Skip {
        status.add_reruns(ending.earlier.iter().map(rerun));
    }
    status
}

fn kind(red: Verdict) -> NonSuccessKind {
    if red == Verdict::Fail { NonSuccessKind::Failure } else { NonSuccessKind::Error }
}

fn rerun(attempt: &Attempt) -> TestRerun {
    let mut rerun = TestRerun::new(kind(attempt.verdict));
    rerun.set_message(attempt.reason.as_str()).set_type(attempt.verdict.to_string());
    rerun.set_time(Duration::from_micros(attempt.duration_us));
    rerun
}

impl<W: Write> Report for Junit<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.began = SystemTime::now();
        self.rows = plan.iter().map(|job| Row { job: job.clone(), ended: None }).collect();
        Ok(())
    }

    fn finished(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        self.rows[index].ended = Some((SystemTime::now(), ending.clone()));
        let Some(replace) = self.replace else { return Ok(()) };
        let document = self.document(self.began.elapsed().unwrap_or_default())?;
        replace(&mut self.out, document.as_bytes())
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        let document = self.document(summary.duration())?;
        match self.replace {
            Some(replace) => replace(&mut self.out, document.as_bytes())?,
            None => self.out.write_all(document.as_bytes())?,
        }
        self.out.flush()
    }
}
