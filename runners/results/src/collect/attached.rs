//! What belongs into a report beside verdicts of rows, told by what it looks like: `privet compare --format json`,
//! `trials.jsonl` of `privet mutants --kernel`, what `privet run --coverage` writes for a kernel with
//! debug info, and pages in Markdown with tables, as `privet explain --truth-table` writes them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::document::{CoveredFile, Document, MutantTrial, TruthTable, UpstreamVerdict};
use crate::truth_table::tables_in;

/// A part of a report.
pub(super) enum Attached {
    Upstream(Vec<UpstreamVerdict>),
    Mutants(Vec<MutantTrial>),
    Coverage(Vec<CoveredFile>),
    TruthTables(Vec<TruthTable>),
}

impl Attached {
    fn has_some(&self) -> bool {
        match self {
            Attached::Upstream(verdicts) => !verdicts.is_empty(),
            Attached::Mutants(trials) => !trials.is_empty(),
            Attached::Coverage(files) => !files.is_empty(),
            Attached::TruthTables(tables) => !tables.is_empty(),
        }
    }

    pub(super) fn into_document(self, document: &mut Document) {
        match self {
            Attached::Upstream(verdicts) => document.upstream.extend(verdicts),
            Attached::Mutants(trials) => document.mutants.extend(trials),
            Attached::Coverage(files) => document.coverage.extend(files),
            Attached::TruthTables(tables) => document.truth_tables.extend(tables),
        }
    }
}

/// What this text is, if it is one of these.
pub(super) fn read(text: &str) -> Option<Attached> {
    let start = text.trim_start();
    if start.starts_with("TN:") || start.starts_with("SF:") {
        return Some(Attached::Coverage(coverage(text)));
    }
    if start.starts_with("# ") {
        return Some(Attached::TruthTables(tables_in(text))).filter(Attached::has_some);
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return None;
    }
    let trials: Result<Vec<Trial>, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
    if let Ok(trials) = trials {
        return Some(Attached::Mutants(trials.into_iter().map(MutantTrial::from).collect()));
    }
    let compared: Result<Vec<Compared>, _> = lines.iter().map(|line| serde_json::from_str(line)).collect();
    compared.ok().map(|lines| Attached::Upstream(lines.into_iter().filter_map(Compared::verdict).collect()))
}

/// A line of `trials.jsonl`.
#[derive(Deserialize)]
struct Trial {
    name: String,
    fate: String,
    by: Option<String>,
}

impl From<Trial> for MutantTrial {
    fn from(Trial { name, fate, by }: Trial) -> Self {
        Self { name, fate, by }
    }
}

/// A line of `privet compare --format json`.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Compared {
    Comparison { test: String, subtest: Option<String>, upstream: Option<Said>, relation: String },
    Ours {},
    Change {},
    Summary {},
}

#[derive(Deserialize)]
struct Said {
    verdict: String,
    reason: String,
}

impl Compared {
    fn verdict(self) -> Option<UpstreamVerdict> {
        let Compared::Comparison { test, subtest, upstream, relation } = self else { return None };
        let test = subtest.map_or_else(|| test.clone(), |subtest| format!("{test}: {subtest}"));
        let (verdict, reason) = upstream.map_or((None, String::new()), |said| (Some(said.verdict), said.reason));
        Some(UpstreamVerdict { test, verdict, reason, relation })
    }
}

/// What an lcov trace file says of each file: lines with `DA:line,count`, added up over all tests.
fn coverage(text: &str) -> Vec<CoveredFile> {
    let mut files: BTreeMap<&str, BTreeMap<u32, bool>> = BTreeMap::new();
    let mut file = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("SF:") {
            file = Some(name);
        } else if let (Some(file), Some((number, count))) =
            (file, line.strip_prefix("DA:").and_then(|rest| rest.split_once(',')))
            && let Ok(number) = number.parse()
        {
            *files.entry(file).or_default().entry(number).or_default() |= count.split(',').next() != Some("0");
        }
    }
    let told = |(file, lines): (&str, BTreeMap<u32, bool>)| CoveredFile {
        file: file.to_owned(),
        executed: lines.values().filter(|executed| **executed).count(),
        lines: lines.len(),
    };
    files.into_iter().map(told).collect()
}
