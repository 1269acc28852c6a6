//! For people: what is wrong as soon as it is known, and at the end what became of every row.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use privet_report::{CaseReport, Verdict};

use super::{Report, one_line, place};
use crate::plan::Job;
use crate::summary::Summary;

/// Writes prose, with a progress bar where someone looks on.
pub struct Pretty<W> {
    out: W,
    bar: ProgressBar,
    plan: Vec<Job>,
    running: Vec<usize>,
    /// How many machines are booting.
    booting: usize,
    /// The reports of all rows, by label.
    seen: Vec<(String, CaseReport)>,
}

impl<W: Write> Pretty<W> {
    /// Writes to `out` only.
    pub fn quiet(out: W) -> Self {
        Self { out, bar: ProgressBar::hidden(), plan: Vec::new(), running: Vec::new(), booting: 0, seen: Vec::new() }
    }

    /// Writes to `out`, and draws a progress bar if standard error is a terminal.
    pub fn with_bar(out: W) -> Self {
        let mut pretty = Self::quiet(out);
        if io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
            pretty.bar = ProgressBar::new(0).with_style(style.expect("the template is well-formed"));
        }
        pretty
    }

    fn show_running(&self) {
        let booting = match self.booting {
            0 => None,
            1 => Some("a machine boots".to_owned()),
            machines => Some(format!("{machines} machines boot")),
        };
        let running = self.running.iter().map(|index| self.plan[*index].label.clone());
        self.bar.set_message(booting.into_iter().chain(running).collect::<Vec<_>>().join(" "));
    }

    /// Writes `text` without tearing the bar.
    fn write(&mut self, text: &str) -> io::Result<()> {
        let Self { out, bar, .. } = self;
        bar.suspend(|| {
            out.write_all(text.as_bytes())?;
            out.flush()
        })
    }
}

/// A failure with everything that helps to understand it.
fn story(label: &str, report: &CaseReport) -> String {
    let mut text = format!("{} {label} (on {}, {})\n", report.verdict, place(report), time(report.duration_us));
    text += &format!("    {}\n", one_line(&report.reason));
    for detail in &report.details {
        text += &format!("    | {}\n", one_line(detail));
    }
    text += &format!("    repeat: {}\n\n", report.repro);
    text
}

fn time(us: u64) -> String {
    let time = Duration::from_micros(us);
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// A number of rows in words.
pub(crate) fn rows(count: usize) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{count} rows") }
}

/// Each place where rows ran, with its counts.
fn places(seen: &[(String, CaseReport)]) -> String {
    let mut places: BTreeMap<String, Summary> = BTreeMap::new();
    for (_, report) in seen {
        let mut place = place(report);
        if !report.module_params.is_empty() {
            place += &format!(" ({})", report.module_params.join(" "));
        }
        places.entry(place).or_default().add(report.verdict);
    }
    places.iter().map(|(place, counts)| format!("on {place}: {}\n", counted(counts))).collect()
}

fn counted(summary: &Summary) -> String {
    let counts = [
        (summary.pass, "passed"),
        (summary.fail, "failed"),
        (summary.error, "broke"),
        (summary.timeout, "timed out"),
        (summary.skip, "skipped"),
        (summary.not_run, "did not run"),
    ];
    let counts: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if counts.is_empty() { "nothing ran".to_owned() } else { counts.join(", ") }
}

/// Skipped rows under the reason that they share, each reason once.
fn skips(seen: &[(String, CaseReport)]) -> String {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (label, report) in seen.iter().filter(|(_, report)| report.verdict == Verdict::Skip) {
        reasons.entry(one_line(&report.reason)).or_default().push(label);
    }
    let mut text = String::new();
    for (reason, labels) in reasons {
        const NAMED: usize = 4;
        let more = match labels.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text += &format!("skip    {}: {reason}\n", rows(labels.len()));
        text += &format!("        {}{more}\n", labels[..labels.len().min(NAMED)].join(" "));
    }
    text
}

impl<W: Write> Report for Pretty<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.plan = plan.to_vec();
        self.bar.set_length(plan.len() as u64);
        // The time goes on while machines boot.
        self.bar.enable_steady_tick(Duration::from_millis(500));
        Ok(())
    }

    fn booting(&mut self, machines: usize) -> io::Result<()> {
        self.booting = machines;
        self.show_running();
        Ok(())
    }

    fn started(&mut self, index: usize) -> io::Result<()> {
        self.running.push(index);
        self.show_running();
        Ok(())
    }

    fn finished(&mut self, index: usize, report: &CaseReport) -> io::Result<()> {
        self.running.retain(|running| *running != index);
        self.show_running();
        self.bar.inc(1);
        let label = self.plan[index].label.clone();
        if report.verdict.is_red() {
            self.write(&story(&label, report))?;
        }
        self.seen.push((label, report.clone()));
        Ok(())
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.bar.finish_and_clear();
        self.seen.sort_by_key(|(label, _)| self.plan.iter().position(|job| job.label == *label));
        let mut text = skips(&self.seen);
        for (label, report) in self.seen.iter().filter(|(_, report)| report.verdict.is_red()) {
            text += &format!("{:<7} {label}: {}\n", report.verdict, one_line(&report.reason));
        }
        text += &places(&self.seen);
        if let Some(trouble) = &summary.trouble {
            text += &format!("error   {}\n", one_line(trouble));
        }
        if let Some(signal) = summary.signal {
            text += &format!("interrupted by signal {signal}\n");
        }
        let seed = self.plan.first().map_or(String::new(), |job| format!(", seed {}", job.seed));
        let (rows, time) = (rows(self.plan.len()), time(summary.duration_us));
        text += &format!("{rows}: {} in {time}{seed}\n", counted(summary));
        self.write(&text)
    }
}
