//! How a run is told: one trait, one file per format.

use std::io;

use clap::ValueEnum;
use privet_report::{CaseReport, Ending};

use crate::plan::Job;
use crate::selection::Partition;
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
    /// One JSON object a line: what is to run, rows as they end, a summary. `privet collect`, `diff` and `report` read it
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

/// The report in `format` of a run of this slice of the rows, written to `out`.
pub fn in_format<'a>(
    format: Format,
    partition: Option<Partition>,
    out: Box<dyn io::Write + 'a>,
) -> Box<dyn Report + 'a> {
    match format {
        Format::Pretty => Box::new(pretty::Pretty::quiet(out)),
        Format::Json => Box::new(json::Json::new(out, partition)),
        Format::Ktap => Box::new(ktap::Ktap::new(out)),
        Format::KtapFlat => Box::new(flat::Flat::new(out)),
        Format::Junit => Box::new(junit::Junit::new(out)),
    }
}
