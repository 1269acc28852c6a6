//! KTAP version 1 without nesting, for LAVA. Its parser (Linaro/test-definitions, parse-output.py) looks
//! at lines one by one: it takes the prefix of all names from a "# selftests:" line, any line with "ok N"
//! in it for a result, and whatever follows "# SKIP" for a part of the name.

use std::io::{self, Write};

use privet_report::{Ending, Verdict, one_line};

use super::Report;
use super::in_order::InOrder;
use super::ktap::{Said, report_lines, result_line};
use crate::plan::Job;
use crate::summary::Summary;

/// Writes flat KTAP, in the order of the plan.
pub struct Flat<W> {
    out: W,
    labels: Vec<String>,
    waiting: InOrder<Ending>,
    results: u32,
}

impl<W: Write> Flat<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, labels: Vec::new(), waiting: InOrder::default(), results: 0 }
    }

    fn row(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        let report = &ending.report;
        let mut lines = report_lines(ending);
        if report.verdict == Verdict::Skip {
            lines.push(format!("skipped: {}", one_line(&report.reason)));
        }
        for line in lines {
            writeln!(self.out, "# {}", no_result(&line))?;
        }
        self.results += 1;
        // The reason is in the lines above: here it would become a part of the name.
        writeln!(self.out, "{}", result_line(self.results, &name(&self.labels[index]), Said::of(ending), ""))
    }
}

/// A label in the characters that LAVA leaves alone.
fn name(label: &str) -> String {
    label.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect()
}

/// A diagnostic line that is not taken for a result or for a new prefix.
fn no_result(line: &str) -> String {
    line.replace("ok ", "ok: ").replace("# selftests:", "#selftests:")
}

impl<W: Write> Report for Flat<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.labels = plan.iter().map(|job| job.label.clone()).collect();
        writeln!(self.out, "KTAP version 1")?;
        writeln!(self.out, "1..{}", plan.len())?;
        writeln!(self.out, "# selftests: kvm: privet")?;
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
        if let Some(trouble) = &summary.trouble {
            writeln!(self.out, "# {}", no_result(&one_line(trouble)))?;
        }
        if let Some(why) = &summary.ended_early {
            writeln!(self.out, "# {why}: {} rows did not run", summary.not_run)?;
        }
        self.out.flush()
    }
}
