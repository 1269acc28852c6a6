//! KTAP version 1 (Documentation/dev-tools/ktap.rst), nested: VM type, group, row.

use std::io::{self, Write};

use privet_report::{CaseReport, Verdict};

use super::in_order::InOrder;
use super::{Report, one_line, place};
use crate::plan::Job;
use crate::summary::Summary;

/// Writes nested KTAP, in the order of the plan.
pub struct Ktap<W> {
    out: W,
    plan: Vec<Job>,
    waiting: InOrder<CaseReport>,
    /// The subtests that are open: VM type, then group.
    open: Vec<Subtest>,
    /// The VM types that are done.
    top: u32,
}

/// A subtest whose own result line is still to come.
struct Subtest {
    name: String,
    /// Results seen inside.
    results: u32,
    failed: bool,
    all_skipped: bool,
}

impl<W: Write> Ktap<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, plan: Vec::new(), waiting: InOrder::default(), open: Vec::new(), top: 0 }
    }

    fn row(&mut self, index: usize, report: &CaseReport) -> io::Result<()> {
        let job = self.plan[index].clone();
        let wanted = [job.vm(), job.group()];
        let same = self.open.iter().zip(wanted).take_while(|(open, name)| open.name == *name).count();
        self.close_down_to(same)?;
        for depth in same..wanted.len() {
            self.open(&wanted[..=depth])?;
        }
        for line in report_lines(report) {
            self.line(2, &format!("# {line}"))?;
        }
        self.result(&one_line(job.leaf()), report.verdict, &report.reason)
    }

    /// Starts the subtest named by the last of `path`, with a plan of what lies below it.
    fn open(&mut self, path: &[&str]) -> io::Result<()> {
        let inside = self.plan.iter().filter(|job| path.iter().zip([job.vm(), job.group()]).all(|(a, b)| *a == b));
        let results = match path {
            [_vm] => distinct(inside.map(Job::group)),
            _ => inside.count(),
        };
        let name = path.last().copied().unwrap_or_default();
        let depth = path.len();
        self.line(depth, "KTAP version 1")?;
        self.line(depth, &format!("# Subtest: {name}"))?;
        self.line(depth, &format!("1..{results}"))?;
        self.open.push(Subtest { name: name.to_owned(), results: 0, failed: false, all_skipped: true });
        Ok(())
    }

    /// Ends subtests until `depth` of them are open.
    fn close_down_to(&mut self, depth: usize) -> io::Result<()> {
        while self.open.len() > depth {
            let Some(done) = self.open.pop() else { break };
            // Skipped rows do not fail their parent, failed ones do.
            let (verdict, reason) = match &done {
                Subtest { failed: true, .. } => (Verdict::Fail, ""),
                Subtest { all_skipped: true, .. } => (Verdict::Skip, "all rows skipped"),
                _ => (Verdict::Pass, ""),
            };
            self.result(&done.name, verdict, reason)?;
        }
        Ok(())
    }

    /// Writes a result line at the innermost open level.
    fn result(&mut self, name: &str, verdict: Verdict, reason: &str) -> io::Result<()> {
        let depth = self.open.len();
        let number = match self.open.last_mut() {
            Some(parent) => {
                parent.failed |= !matches!(verdict, Verdict::Pass | Verdict::Skip);
                parent.all_skipped &= verdict == Verdict::Skip;
                &mut parent.results
            }
            None => &mut self.top,
        };
        *number += 1;
        let number = *number;
        self.line(depth, &result_line(number, name, verdict, reason))
    }

    fn line(&mut self, depth: usize, line: &str) -> io::Result<()> {
        writeln!(self.out, "{:1$}{line}", "", depth * 2)
    }
}

/// A result line. A row that broke or took too long is "not ok" with the directive that says so.
pub(crate) fn result_line(number: u32, name: &str, verdict: Verdict, reason: &str) -> String {
    // A description must not contain the sign that starts a directive.
    let name = name.replace('#', "_");
    let (ok, directive) = match verdict {
        Verdict::Pass => ("ok", None),
        Verdict::Skip => ("ok", Some("SKIP")),
        Verdict::Fail => ("not ok", None),
        Verdict::Error => ("not ok", Some("ERROR")),
        Verdict::Timeout => ("not ok", Some("TIMEOUT")),
    };
    match directive {
        None => format!("{ok} {number} {name}"),
        Some(directive) => format!("{ok} {number} {name} # {directive} {}", one_line(reason)).trim_end().to_owned(),
    }
}

/// The diagnostic lines of a row, which stand before its result line.
pub(crate) fn report_lines(report: &CaseReport) -> Vec<String> {
    let mut lines = Vec::new();
    if matches!(report.verdict, Verdict::Fail | Verdict::Error | Verdict::Timeout) {
        lines.push(one_line(&report.reason));
        lines.extend(report.details.iter().map(|line| one_line(line)));
        lines.push(format!("repeat: {}", one_line(&report.repro)));
    }
    lines.push(format!("on {}, seed {}", one_line(&place(report)), report.seed));
    lines
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.collect::<std::collections::BTreeSet<_>>().len()
}

impl<W: Write> Report for Ktap<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.plan = plan.to_vec();
        self.line(0, "KTAP version 1")?;
        self.line(0, &format!("1..{}", distinct(plan.iter().map(Job::vm))))?;
        self.out.flush()
    }

    fn finished(&mut self, index: usize, report: &CaseReport) -> io::Result<()> {
        for (index, report) in self.waiting.push(index, report.clone()) {
            self.row(index, &report)?;
        }
        self.out.flush()
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        for (index, report) in self.waiting.rest() {
            self.row(index, &report)?;
        }
        self.close_down_to(0)?;
        if let Some(trouble) = &summary.trouble {
            self.line(0, &format!("# {}", one_line(trouble)))?;
        }
        if let Some(signal) = summary.signal {
            self.line(0, &format!("# interrupted by signal {signal}: {} rows did not run", summary.not_run))?;
        }
        self.out.flush()
    }
}
