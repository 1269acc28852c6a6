//! How a run is told: one trait, one file per format.

use std::io;

use clap::ValueEnum;
use privet_report::{CaseReport, Place};

use crate::ending::Ending;

use crate::plan::Job;
use crate::summary::Summary;

pub mod flat;
pub mod in_order;
pub mod json;
pub mod junit;
pub mod ktap;
pub mod paint;
pub mod pretty;
pub mod seen;

/// The formats of `privet run`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people: failures with what explains them, then a summary
    Pretty,
    /// One JSON object a line, as rows end; a summary at the end
    Json,
    /// KTAP version 1, nested by VM type and group
    Ktap,
    /// KTAP version 1, flat, as LAVA's line parser wants it
    KtapFlat,
    /// JUnit XML, written at the end
    Junit,
}

/// Something that follows a run. Jobs are named by their index in the plan.
pub trait Report {
    /// The run starts.
    ///
    /// # Errors
    /// If the output cannot be written; so for the others.
    fn begin(&mut self, plan: &[Job]) -> io::Result<()>;

    /// So many machines are booting, and this is what one of them wrote last to its console.
    ///
    /// # Errors
    /// See [`Report::begin`].
    fn booting(&mut self, _machines: usize, _console: &str) -> io::Result<()> {
        Ok(())
    }

    /// Where the rows run, in one line, if privet had the choice.
    ///
    /// # Errors
    /// See [`Report::begin`].
    fn placed(&mut self, _words: &str) -> io::Result<()> {
        Ok(())
    }

    /// A job starts.
    ///
    /// # Errors
    /// See [`Report::begin`].
    fn started(&mut self, _index: usize) -> io::Result<()> {
        Ok(())
    }

    /// A job is red and gets another attempt.
    ///
    /// # Errors
    /// See [`Report::begin`].
    fn retried(&mut self, _index: usize, _report: &CaseReport) -> io::Result<()> {
        Ok(())
    }

    /// A job has ended.
    ///
    /// # Errors
    /// See [`Report::begin`].
    fn finished(&mut self, index: usize, ending: &Ending) -> io::Result<()>;

    /// The run is over.
    ///
    /// # Errors
    /// See [`Report::begin`].
    fn end(&mut self, summary: &Summary) -> io::Result<()>;
}

/// The report in `format`, written to `out`.
pub fn in_format<'a>(format: Format, out: Box<dyn io::Write + 'a>) -> Box<dyn Report + 'a> {
    match format {
        Format::Pretty => Box::new(pretty::Pretty::quiet(out)),
        Format::Json => Box::new(json::Json::new(out)),
        Format::Ktap => Box::new(ktap::Ktap::new(out)),
        Format::KtapFlat => Box::new(flat::Flat::new(out)),
        Format::Junit => Box::new(junit::Junit::new(out)),
    }
}

/// Where a verdict was obtained: `rig, machine sim, Linux 7.3.4, kvm_amd`, or `the model, which is no hardware, kvm_amd`.
pub(crate) fn place(report: &CaseReport) -> String {
    place_of(report.on, report.machine.as_deref(), &report.kernel, &report.vendor, report.defect.as_deref())
}

/// A place with this machine, kernel, vendor and defect, in the words of [`place`].
pub(crate) fn place_of(on: Place, machine: Option<&str>, kernel: &str, vendor: &str, defect: Option<&str>) -> String {
    let mut place = match on {
        Place::Model => "the model, which is no hardware".to_owned(),
        on => on.to_string(),
    };
    if let Some(machine) = machine {
        place += &format!(", machine {machine}");
    }
    place += &match (on, kernel) {
        (Place::Model, _) => String::new(),
        (_, "") => ", without a kernel".to_owned(),
        (_, kernel) => format!(", Linux {kernel}"),
    };
    if !vendor.is_empty() {
        place += &format!(", kvm_{vendor}");
    }
    if let Some(defect) = defect {
        place += &format!(", with the defect {defect}");
    }
    place
}

/// `text` as one line without control characters, whatever a guest or a kernel has put into it.
pub(crate) fn one_line(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}
