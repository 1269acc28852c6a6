//! The result of one run as it grows: what `privet run --format json` writes, one JSON object a line.
//!
//! The first line says what is to run, so that whoever reads what a killed run has left knows what is missing.

use std::fs;
use std::path::Path;

use privet_report::Ending;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The version of the format: it changes when a reader of the old one would misunderstand the new one.
pub const VERSION: u32 = 1;

/// A line, told from others by its `type`.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Run(Began),
    Case(Ended),
    Summary(Summary),
}

/// The first line: what is to run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Began {
    /// [`VERSION`].
    pub version: u32,
    /// The version of privet.
    pub privet: String,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// The seed of the run.
    pub seed: u64,
    /// When it began, as in RFC 3339.
    pub began: String,
    /// The name of the machine that privet ran on, whatever the rows ran on.
    pub host: String,
    /// The release of that machine's kernel.
    pub host_kernel: String,
    /// The slice of the rows that this is, as `--partition` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Each run of a row, in order.
    pub plan: Vec<Planned>,
    /// The rows, each once.
    pub rows: Vec<RowFacts>,
}

/// One run of one row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Planned {
    /// Its name in the run: the id, and the iteration and the vendor where there are several.
    pub label: String,
    /// The id of the row.
    pub id: String,
}

/// What the table says of a row.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RowFacts {
    /// Its id.
    pub id: String,
    /// What it checks, in a sentence.
    pub about: String,
    /// On what the expectation is based: kernel files, documents, commits.
    pub basis: Vec<String>,
    /// What it needs beside its VM type.
    pub needs: Vec<String>,
    /// The functions of the kernel's own selftests that check something of the kind.
    pub upstream: Vec<Counterpart>,
}

/// A function of one of the kernel's own selftests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Counterpart {
    /// The test: its file below tools/testing/selftests/kvm, without `.c`.
    pub test: String,
    /// The function in it.
    pub function: String,
    /// Whether the row checks more than it does.
    pub exceeded: bool,
}

/// How one run of a row ended.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// Its name in the run, as [`Planned::label`].
    pub label: String,
    /// How it ended.
    #[serde(flatten)]
    pub ending: Ending,
}

/// What readers take from the last line, which the command writes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// From the start of the first row to the end of the last, in microseconds.
    pub duration_us: u64,
    /// Why the run ended early, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_early: Option<String>,
    /// Something that is wrong and that no row can be blamed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The result of one run, as far as it came.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RunFile {
    /// What was to run.
    pub began: Began,
    /// What ended, in the order in which it did.
    pub ended: Vec<Ended>,
    /// The last line; none if the run was killed.
    pub summary: Option<Summary>,
}

impl RunFile {
    /// Reads a file. A last line that was not written to its end does not count.
    ///
    /// # Errors
    /// If it cannot be read, or is something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::unreadable(path))?;
        Self::parse(&text).map_err(|why| Error::no_result(path, why))
    }

    /// Reads the text of a file likewise.
    ///
    /// # Errors
    /// One line that says what it is not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let lines: Result<Vec<Line>, String> = (1..)
            .zip(whole.lines())
            .map(|(number, line)| {
                serde_json::from_str(line).map_err(|error| format!("line {number} is none of a result: {error}"))
            })
            .collect();
        let mut lines = lines?.into_iter();
        let Some(Line::Run(began)) = lines.next() else {
            return Err("is no result: write one with `privet run --format json --output FILE`".to_owned());
        };
        if began.version != VERSION {
            return Err(format!("is a result of version {}, and this privet reads {VERSION}", began.version));
        }
        let mut run = Self { began, ..Self::default() };
        for line in lines {
            match line {
                Line::Case(ended) => run.ended.push(ended),
                Line::Summary(summary) => run.summary = Some(summary),
                Line::Run(_) => {
                    return Err("has a second beginning: these are two results, give them as two files".into());
                }
            }
        }
        Ok(run)
    }

    /// What was to run and did not end.
    pub fn missing(&self) -> Vec<&Planned> {
        let ended: std::collections::HashSet<&str> = self.ended.iter().map(|ended| ended.label.as_str()).collect();
        self.began.plan.iter().filter(|planned| !ended.contains(planned.label.as_str())).collect()
    }
}

/// The first line of a file.
///
/// # Errors
/// None in practice: it is data.
pub fn first_line(began: &Began) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Line::Run(began.clone()))
}

/// The line of a row that has ended.
///
/// # Errors
/// None in practice: it is data.
pub fn case_line(label: &str, ending: &Ending) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Line::Case(Ended { label: label.to_owned(), ending: ending.clone() }))
}
