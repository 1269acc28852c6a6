//! For people: what is wrong as soon as it is known, and at the end what became of every row. Where nobody looks on
//! while it runs, each row that ran is a line, so that a log tells how far a run came.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use privet_report::{CaseReport, Ending, Verdict, one_line, place};

use super::Report;
use super::paint::Paint;
use crate::plan::Job;
use crate::summary::Summary;

/// How often a log hears that something is still going on.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Writes prose, with a progress bar where someone looks on.
pub struct Pretty<W> {
    out: W,
    bar: ProgressBar,
    paint: Paint,
    /// Whether each row that ran is a line.
    is_log: bool,
    /// When something was written last.
    last_line: Instant,
    plan: Vec<Job>,
    running: Vec<usize>,
    /// How many machines are booting.
    booting: usize,
    /// What one of them wrote last.
    console: String,
    /// The ends of all rows, by label.
    seen: Vec<(String, Ending)>,
}

impl Pretty<io::Stdout> {
    /// Writes to standard output, in colours if those are wanted.
    pub fn on_stdout(paint: Paint) -> Self {
        let is_log = !io::stdout().is_terminal();
        Pretty { paint, is_log, bar: bar(), ..Self::quiet(io::stdout()) }
    }
}

impl Pretty<io::Sink> {
    /// Draws a progress bar if standard error is a terminal, and says nothing else.
    pub fn bar_only() -> Self {
        Pretty { bar: bar(), ..Self::quiet(io::sink()) }
    }
}

/// A progress bar, hidden where standard error is no terminal, or where what is written to standard output may come
/// back to that terminal at any time, as through `tee`.
fn bar() -> ProgressBar {
    if fs::metadata("/dev/stdout").is_ok_and(|stdout| stdout.file_type().is_fifo()) {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
    ProgressBar::new(0).with_style(style.expect("the template is well-formed"))
}

impl<W: Write> Pretty<W> {
    /// Writes to `out` only, without colours.
    pub fn quiet(out: W) -> Self {
        Self {
            out,
            bar: ProgressBar::hidden(),
            paint: Paint::Plain,
            is_log: true,
            last_line: Instant::now(),
            plan: Vec::new(),
            running: Vec::new(),
            booting: 0,
            console: String::new(),
            seen: Vec::new(),
        }
    }

    /// What is going on, in one line.
    fn doing(&self) -> String {
        let booting = match self.booting {
            0 => None,
            1 => Some("a machine boots".to_owned()),
            machines => Some(format!("{machines} machines boot")),
        };
        let console = Some(format!("({})", self.console)).filter(|_| self.booting > 0 && !self.console.is_empty());
        let running = self.running.iter().map(|index| self.plan[*index].label.clone());
        booting.into_iter().chain(console).chain(running).collect::<Vec<_>>().join(" ")
    }

    fn show_running(&self) {
        self.bar.set_message(self.doing());
    }

    /// Writes `text` without tearing the bar.
    fn write(&mut self, text: &str) -> io::Result<()> {
        let Self { out, bar, last_line, .. } = self;
        *last_line = Instant::now();
        bar.suspend(|| {
            out.write_all(text.as_bytes())?;
            out.flush()
        })
    }
}

/// A failure with everything that helps to understand it.
fn story(label: &str, ending: &Ending, paint: Paint) -> String {
    let report = &ending.report;
    let word = paint.verdict(report.verdict, &report.verdict.to_string());
    let mut text = format!("{word} {label} (on {}, {})\n", place(report), time(report.duration_us));
    if !report.reason.is_empty() {
        text += &format!("    {}\n", one_line(&report.reason));
    }
    for note in ending.notes() {
        text += &format!("    {}\n", one_line(&note));
    }
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
fn places(seen: &[(String, Ending)]) -> String {
    let mut places: BTreeMap<String, Summary> = BTreeMap::new();
    for (_, ending) in seen {
        let report = &ending.report;
        let mut place = place(report);
        if !report.module_params.is_empty() {
            place += &format!(" ({})", report.module_params.join(" "));
        }
        places.entry(place).or_default().add(ending);
    }
    places.iter().map(|(place, counts)| format!("on {place}: {}\n", counted(counts))).collect()
}

fn counted(summary: &Summary) -> String {
    let counts = [
        (summary.pass, "passed"),
        (summary.flaky, "of them flaky"),
        (summary.fail, "failed"),
        (summary.error, "broke"),
        (summary.timeout, "timed out"),
        (summary.quarantined, "quarantined"),
        (summary.skip, "skipped"),
        (summary.not_run, "did not run"),
    ];
    let counts: Vec<_> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    if counts.is_empty() { "nothing ran".to_owned() } else { counts.join(", ") }
}

/// Skipped rows under the reason that they share, each reason once.
fn skips(seen: &[(String, Ending)], paint: Paint) -> String {
    let mut reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (label, ending) in seen.iter().filter(|(_, ending)| ending.report.verdict == Verdict::Skip) {
        reasons.entry(one_line(&ending.report.reason)).or_default().push(label);
    }
    let word = paint.verdict(Verdict::Skip, "skip   ");
    let mut text = String::new();
    for (reason, labels) in reasons {
        const NAMED: usize = 4;
        let more = match labels.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        text += &format!("{word} {}: {reason}\n", rows(labels.len()));
        text += &format!("        {}{more}\n", labels[..labels.len().min(NAMED)].join(" "));
    }
    text
}

/// A row in one line: what is wrong with it, or what is odd about it.
fn line(label: &str, ending: &Ending, paint: Paint) -> Option<String> {
    let report = &ending.report;
    let (word, why) = match report.verdict {
        _ if ending.quarantined.is_some() => {
            ("xfail".to_owned(), format!("{}; {}", report.reason, ending.notes().join("; ")))
        }
        red if red.is_red() => (red.to_string(), report.reason.clone()),
        _ if ending.surprise.is_some() => ("xpass".to_owned(), ending.notes().join("; ")),
        _ if ending.is_flaky() => ("flaky".to_owned(), ending.notes().join("; ")),
        _ => return None,
    };
    Some(format!("{} {label}: {}\n", paint.ending(ending, &format!("{word:<7}")), one_line(&why)))
}

impl<W: Write> Report for Pretty<W> {
    fn begin(&mut self, plan: &[Job]) -> io::Result<()> {
        self.plan = plan.to_vec();
        self.bar.set_length(plan.len() as u64);
        // The time goes on while machines boot.
        self.bar.enable_steady_tick(Duration::from_millis(500));
        Ok(())
    }

    fn placed(&mut self, words: &str) -> io::Result<()> {
        self.write(&format!("{}\n", one_line(words)))
    }

    fn booting(&mut self, machines: usize, console: &str) -> io::Result<()> {
        self.booting = machines;
        self.console = one_line(console);
        self.show_running();
        if self.is_log && machines > 0 && self.last_line.elapsed() >= HEARTBEAT {
            let (ended, all) = (self.seen.len(), self.plan.len());
            self.write(&format!("{ended} of {all} rows have ended; {}\n", self.doing()))?;
        }
        Ok(())
    }

    fn started(&mut self, index: usize) -> io::Result<()> {
        self.running.push(index);
        self.show_running();
        Ok(())
    }

    fn retried(&mut self, index: usize, report: &CaseReport) -> io::Result<()> {
        self.running.retain(|running| *running != index);
        self.show_running();
        let label = &self.plan[index].label;
        self.write(&format!("retry   {label}: {}: {}\n", report.verdict, one_line(&report.reason)))
    }

    fn finished(&mut self, index: usize, ending: &Ending) -> io::Result<()> {
        self.running.retain(|running| *running != index);
        self.show_running();
        self.bar.inc(1);
        let label = self.plan[index].label.clone();
        // What was skipped is told at the end, once for each reason.
        let is_skip = ending.report.verdict == Verdict::Skip && !ending.is_red();
        if !is_skip && (ending.is_red() || !ending.report.details.is_empty()) {
            self.write(&story(&label, ending, self.paint))?;
        } else if self.is_log && !is_skip {
            let word = if ending.quarantined.is_some() { "xfail  " } else { "pass   " };
            let (word, time) = (self.paint.ending(ending, word), time(ending.report.duration_us));
            let machine = ending.report.machine.as_ref().map_or_else(String::new, |machine| format!(", {machine}"));
            self.write(&format!("{word} {label} (on {}{machine}, {time})\n", ending.report.on))?;
        }
        self.seen.push((label, ending.clone()));
        Ok(())
    }

    fn end(&mut self, summary: &Summary) -> io::Result<()> {
        self.bar.finish_and_clear();
        self.seen.sort_by_key(|(label, _)| self.plan.iter().position(|job| job.label == *label));
        let mut text = skips(&self.seen, self.paint);
        text.extend(self.seen.iter().filter_map(|(label, ending)| line(label, ending, self.paint)));
        text += &places(&self.seen);
        if let Some(trouble) = &summary.trouble {
            text += &format!("{} {}\n", self.paint.verdict(Verdict::Error, "error  "), one_line(trouble));
        }
        if let Some(why) = &summary.ended_early {
            text += &format!("{why}\n");
        }
        let seed = self.plan.first().map_or(String::new(), |job| format!(", seed {}", job.seed));
        let (rows, time) = (rows(self.plan.len()), time(summary.duration_us));
        text += &format!("{rows}: {} in {time}{seed}\n", counted(summary));
        self.write(&text)
    }
}
