//! The arguments of what is done with results: `privet collect`, `privet diff` and `privet report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What results are given as.
#[derive(Debug, Args)]
pub struct Results {
    /// Results: files of `privet run --format json` or of `privet collect`, directories with such files, or the
    /// directory of a fleet. What `privet compare --format json`, `privet mutants --kernel` (trials.jsonl),
    /// `privet run --coverage` (lcov) and `privet explain --truth-table` write is taken into the report, too
    #[arg(value_name = "RESULT", required = true)]
    pub results: Vec<PathBuf>,
}

/// `privet collect`.
#[derive(Debug, Args)]
pub struct Collect {
    /// Which results.
    #[command(flatten)]
    pub results: Results,
    /// How to write them
    #[arg(long, value_enum, default_value = "json")]
    pub format: CollectFormat,
    /// Write to FILE, and the matrix in short to standard output; without it, all goes there
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Who reports, as KCIDB's operators know him: for --format kcidb
    #[arg(long, value_name = "NAME", value_parser = origin, default_value = "privet")]
    pub origin: String,
}

/// The formats of `privet collect`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CollectFormat {
    /// One JSON document, report.json: see runners/results/README.md
    Json,
    /// For people: what is red, missing, or differs between places
    Pretty,
    /// A report for KCIDB, of its schema v5.3
    Kcidb,
    /// KTAP version 1, nested by VM type and group
    Ktap,
    /// KTAP version 1, flat, as LAVA's line parser wants it
    KtapFlat,
    /// JUnit XML
    Junit,
}

/// `privet diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The result before: a file or a directory, as for `privet collect`
    pub before: PathBuf,
    /// The result now
    pub now: PathBuf,
    /// How to tell it
    #[arg(long, value_enum, default_value = "pretty")]
    pub format: DiffFormat,
}

/// The formats of `privet diff`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DiffFormat {
    /// For people
    Pretty,
    /// One JSON document
    Json,
}

/// `privet report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Which results.
    #[command(flatten)]
    pub results: Results,
    /// The page to write: one file that needs no network
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
}

/// The name of an origin, in the characters that KCIDB allows.
fn origin(name: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match !name.is_empty() && name.chars().all(is_allowed) {
        true => Ok(name.to_owned()),
        false => Err("give lower-case letters, digits and _".to_owned()),
    }
}
