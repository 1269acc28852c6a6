//! KTAP version 1 (Documentation/dev-tools/ktap.rst), nested: VM type, group, row.

use std::io::{self, Write};

use privet_report::{Ending, Verdict, one_line, place};

use super::Report;
use super::in_order::InOrder;
use crate::plan::Job;
use crate::summary::Summary;

/// Writes nested KTAP, in the order of the plan.
pub struct Ktap<W> {
    out: W,
    plan: Vec<Job>,
    waiting: InOrder<Ending>,
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

    fn row(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        let job = self.plan[index].clone();
        let wanted = [job.vm(), job.group()];
        let same = self.open.iter().zip(wanted).take_while(|(open, name)| open.name == *name).count();
        self.close_down_to(same)?;
        for depth in same..wanted.len() {
            self.open(&wanted[..=depth])?;
        }
        for line in report_lines(ending) {
            self.line(2, &format!("# {line}"))?;
        }
        self.result(&one_line(job.leaf()), Said::of(ending), &ending.report.reason)
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
            let (said, reason) = match &done {
                Subtest { failed: true, .. } => (Said::Fail, ""),
                Subtest { all_skipped: true, .. } => (Said::Skip, "all rows skipped"),
                _ => (Said::Pass, ""),
            };
            self.result(&done.name, said, reason)?;
        }
        Ok(())
    }

    /// Writes a result line at the innermost open level.
    fn result(&mut self, name: &str, said: Said, reason: &str) -> io::Result<()> {
        let depth = self.open.len();
        let number = match self.open.last_mut() {
            Some(parent) => {
                parent.failed |= !matches!(said, Said::Pass | Said::Skip | Said::XFail);
                parent.all_skipped &= said == Said::Skip;
                &mut parent.results
            }
            None => &mut self.top,
        };
        *number += 1;
        let number = *number;
        self.line(depth, &result_line(number, name, said, reason))
    }

    fn line(&mut self, depth: usize, line: &str) -> io::Result<()> {
        writeln!(self.out, "{:1$}{line}", "", depth * 2)
    }
}

/// What a result line says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Pass,
    Fail,
    Error,
    Timeout,
    Skip,
    /// Red as expected.
    XFail,
}

impl Said {
    pub(crate) fn of(ending: &Ending) -> Self {
        match ending.report.verdict {
            _ if ending.quarantined.is_some() => Said::XFail,
            Verdict::Pass => Said::Pass,
            Verdict::Fail => Said::Fail,
            Verdict::Error => Said::Error,
            Verdict::Timeout => Said::Timeout,
            Verdict::Skip => Said::Skip,
        }
    }
}

/// A result line. A row that broke or took too long is "not ok" with the directive that says so; one that is red as
/// expected is "ok", as kselftest.h says it.
pub(crate) fn result_line(number: u32, name: &str, said: Said, reason: &str) -> String {
    // A description must not contain the sign that starts a directive.
    let name = name.replace('#', "_");
    let (ok, directive) = match said {
        Said::Pass => ("ok", None),
        Said::Skip => ("ok", Some("SKIP")),
        Said::XFail => ("ok", Some("XFAIL")),
        Said::Fail => ("not ok", None),
        Said::Error => ("not ok", Some("ERROR")),
        Said::Timeout => ("not ok", Some("TIMEOUT")),
    };
    match directive {
        None => format!("{ok} {number} {name}"),
        Some(directive) => format!("{ok} {number} {name} # {directive} {}", one_line(reason)).trim_end().to_owned(),
    }
}

/// The diagnostic lines of a row, which stand before its result line.
pub(crate) fn report_lines(ending: &Ending) -> Vec<String> {
    let report = &ending.report;
    let mut lines: Vec<String> = ending.notes().iter().map(|note| one_line(note)).collect();
    if report.verdict.is_red() {
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

    fn finished(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        for (index, ending) in self.waiting.push(index, ending.clone()) {
            self.row(index, &ending)?;
        }
        self.out.flush()
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        for (index, ending) in self.waiting.rest() {
            self.row(index, &ending)?;
        }
        self.close_down_to(0)?;
        if let Some(trouble) = &summary.trouble {
            self.line(0, &format!("# {}", one_line(trouble)))?;
        }
        if let Some(why) = &summary.ended_early {
            self.line(0, &format!("# {why}: {} rows did not run", summary.not_run))?;
        }
        self.out.flush()
    }
}
