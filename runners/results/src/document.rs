//! `report.json`: all results as one, for other programs and for [`crate::page`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use privet_harness::outcome::LackOf;
use privet_report::{Attempt, Ending, Excuse, Verdict};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::run_file::RowFacts;
use crate::seat::Seat;

/// What [`Document::format`] says.
pub const FORMAT: &str = "privet-report";

/// The version of the format: it changes when a reader of the old one would misunderstand the new one.
pub const VERSION: u32 = 1;

/// All results as one.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The version of privet that has made it.
    pub privet: String,
    /// When, as in RFC 3339.
    pub made: String,
    /// The places, which are the columns.
    pub places: Vec<Seat>,
    /// The rows that were to run, in the order of the table.
    pub rows: Vec<RowFacts>,
    /// Each run of a row in a place.
    pub results: Vec<Outcome>,
    /// The runs that it was made of.
    pub shards: Vec<Shard>,
    /// What the kernel's own selftests say, if `privet compare` was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstream: Vec<UpstreamVerdict>,
    /// Tables of what guests and hosts do and what comes of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truth_tables: Vec<TruthTable>,
    /// What the rows executed of the kernel's source, by file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coverage: Vec<CoveredFile>,
    /// Changes of the kernel's source that were tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mutants: Vec<MutantTrial>,
}

/// One run of a row in a place.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The id of the row.
    pub id: String,
    /// Its name in the run: the id, and the iteration and the vendor where there are several.
    pub label: String,
    /// Where it ran, or was to run: an index into the places.
    pub place: usize,
    /// Of which run it is: an index into the shards.
    pub shard: usize,
    /// How it ended.
    pub verdict: Word,
    /// One line that says why; empty for a pass.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the place lacks, for a skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<LackOf>,
    /// Wall-clock time in microseconds.
    pub duration_us: u64,
    /// How often KVM_RUN returned.
    pub exits: u64,
    /// The seed of everything random in it.
    pub seed: u64,
    /// The seed of the schedule of the machine's processors, if it was not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<u64>,
    /// A command line that runs it again in the same way.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repro: String,
    /// What helps to understand it: exits, host steps, kernel log. One line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    /// The attempts before it, all of them red.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Attempt>,
    /// What excuses a red verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<Excuse>,
    /// That it passed, against all expectations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surprise: Option<String>,
}

/// A verdict, or that there is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// The kernel did something else than the row expects.
    Fail,
    /// The harness or the guest broke.
    Error,
    /// A time limit was reached.
    Timeout,
    /// It was to run, and nothing came back.
    Missing,
    /// Everything that the row expects was seen.
    Pass,
    /// The place cannot run it.
    Skip,
}

impl Word {
    /// All of them, the worst first.
    pub const ALL: [Word; 6] = [Word::Fail, Word::Error, Word::Timeout, Word::Missing, Word::Pass, Word::Skip];

    /// As files and pages have it.
    pub fn name(self) -> &'static str {
        match self {
            Word::Fail => "fail",
            Word::Error => "error",
            Word::Timeout => "timeout",
            Word::Missing => "missing",
            Word::Pass => "pass",
            Word::Skip => "skip",
        }
    }
}

impl From<Verdict> for Word {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Word::Pass,
            Verdict::Fail => Word::Fail,
            Verdict::Error => Word::Error,
            Verdict::Timeout => Word::Timeout,
            Verdict::Skip => Word::Skip,
        }
    }
}

impl Outcome {
    /// What came back.
    pub fn seen(label: &str, ending: Ending, place: usize, shard: usize) -> Self {
        let Ending { report, earlier, quarantined, surprise } = ending;
        Self {
            id: report.id,
            label: label.to_owned(),
            place,
            shard,
            verdict: report.verdict.into(),
            reason: report.reason,
            lacks: report.lacks,
            duration_us: report.duration_us,
            exits: report.exits,
            seed: report.seed,
            schedule: report.schedule,
            repro: report.repro,
            details: report.details,
            earlier,
            quarantined,
            surprise,
        }
    }

    /// What did not come back.
    pub fn missing(id: &str, label: &str, reason: String, place: usize, shard: usize) -> Self {
        Self {
            id: id.to_owned(),
            label: label.to_owned(),
            place,
            shard,
            verdict: Word::Missing,
            reason,
            lacks: None,
            duration_us: 0,
            exits: 0,
            seed: 0,
            schedule: None,
            repro: String::new(),
            details: Vec::new(),
            earlier: Vec::new(),
            quarantined: None,
            surprise: None,
        }
    }

    /// Whether something is wrong that nobody expects.
    pub fn is_red(&self) -> bool {
        !matches!(self.verdict, Word::Pass | Word::Skip) && self.quarantined.is_none()
    }

    /// Whether it passed, but not at once.
    pub fn is_flaky(&self) -> bool {
        self.verdict == Word::Pass && !self.earlier.is_empty()
    }
}

/// A run that the document was made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shard {
    /// What it is called: its file.
    pub name: String,
    /// How much of it came back.
    pub state: ShardState,
    /// How many rows were to run.
    pub planned: usize,
    /// How many of them have no verdict.
    pub missing: usize,
    /// The machine that privet ran on; empty if it never came back.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// When it began, as in RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub began: String,
    /// From the start of its first row to the end of its last, in microseconds; none if it did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// What is wrong with it and no row can be blamed for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How much of a run came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// All of it.
    Whole,
    /// A part: it was interrupted, or it died.
    Cut,
    /// Nothing.
    Missing,
}

impl ShardState {
    /// As files and pages have it.
    pub fn name(self) -> &'static str {
        match self {
            ShardState::Whole => "whole",
            ShardState::Cut => "cut",
            ShardState::Missing => "missing",
        }
    }
}

/// What one of the kernel's own selftests says, and how that relates to the rows: a line of `privet compare`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpstreamVerdict {
    /// The test, with its sub-test where it has some.
    pub test: String,
    /// What it says; none where there is nothing to run.
    pub verdict: Option<String>,
    /// Why, in one line.
    #[serde(default)]
    pub reason: String,
    /// How that relates to what the rows say, as in `privet compare`.
    pub relation: String,
}

/// A table of conditions and what comes of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TruthTable {
    /// What it is about.
    pub title: String,
    /// The heads of the columns.
    pub columns: Vec<String>,
    /// The lines, each with as many cells as there are columns.
    pub lines: Vec<Vec<String>>,
}

/// What rows executed of one file of the kernel's source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CoveredFile {
    /// The file.
    pub file: String,
    /// Lines that rows executed.
    pub executed: usize,
    /// Lines that have code.
    pub lines: usize,
}

/// A change of the kernel's source that was tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MutantTrial {
    /// Its name.
    pub name: String,
    /// What became of it: `killed`, `survived`, `unreached` and so on.
    pub fate: String,
    /// The row that noticed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// How many results ended how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// By verdict, in the order of [`Word::ALL`], without those that are excused.
    by_word: [usize; Word::ALL.len()],
    /// Red ones that are expected.
    pub quarantined: usize,
    /// Passes that were none at once.
    pub flaky: usize,
}

impl Counts {
    /// The counts of these.
    pub fn of<'a>(results: impl IntoIterator<Item = &'a Outcome>) -> Self {
        let mut counts = Self::default();
        for result in results {
            counts.flaky += usize::from(result.is_flaky());
            if result.quarantined.is_some() {
                counts.quarantined += 1;
            } else if let Some(place) = Word::ALL.iter().position(|word| *word == result.verdict) {
                counts.by_word[place] += 1;
            }
        }
        counts
    }

    /// Those with this verdict.
    pub fn with(&self, word: Word) -> usize {
        Word::ALL.iter().zip(self.by_word).find(|(other, _)| **other == word).map_or(0, |(_, count)| count)
    }

    /// Those that are wrong and nobody expects to be.
    pub fn red(&self) -> usize {
        [Word::Fail, Word::Error, Word::Timeout, Word::Missing].iter().map(|word| self.with(*word)).sum()
    }

    /// All of them in words: `3 passed, 1 failed, 2 missing`.
    pub fn in_words(&self) -> String {
        let named = [
            (self.with(Word::Pass), "passed"),
            (self.with(Word::Fail), "failed"),
            (self.with(Word::Error), "broke"),
            (self.with(Word::Timeout), "timed out"),
            (self.with(Word::Missing), "missing"),
            (self.quarantined, "quarantined"),
            (self.with(Word::Skip), "skipped"),
        ];
        let words: Vec<String> =
            named.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
    }
}

impl Document {
    /// A document without anything in it.
    pub fn empty(privet: &str, made: String) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            privet: privet.to_owned(),
            made,
            places: Vec::new(),
            rows: Vec::new(),
            results: Vec::new(),
            shards: Vec::new(),
            upstream: Vec::new(),
            truth_tables: Vec::new(),
            coverage: Vec::new(),
            mutants: Vec::new(),
        }
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// If it is something else, or does not fit together.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let wrong = |why: String| Error::no_result(path, why);
        let document: Self =
            serde_json::from_str(text).map_err(|error| wrong(format!("is no report of privet's: {error}")))?;
        if (document.format.as_str(), document.version) != (FORMAT, VERSION) {
            let (format, version) = (&document.format, document.version);
            return Err(wrong(format!("is {format} {version}, and this privet reads {FORMAT} {VERSION}")));
        }
        let fits = |result: &Outcome| result.place < document.places.len() && result.shard < document.shards.len();
        match document.results.iter().find(|result| !fits(result)) {
            None => Ok(document),
            Some(result) => Err(wrong(format!("{} is of a place or a shard that is not there", result.label))),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is something else, or does not fit together.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(Error::unreadable(path))?;
        Self::parse(path, &text)
    }

    /// The text of a file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a document is data");
        text.push('\n');
        text
    }

    /// The results of each row in each place: `by_row()[id][place]`, the worst first.
    pub fn matrix(&self) -> BTreeMap<&str, BTreeMap<usize, Vec<&Outcome>>> {
        let mut matrix: BTreeMap<&str, BTreeMap<usize, Vec<&Outcome>>> = BTreeMap::new();
        for result in &self.results {
            matrix.entry(&result.id).or_default().entry(result.place).or_default().push(result);
        }
        for results in matrix.values_mut().flat_map(BTreeMap::values_mut) {
            results.sort_by_key(|result| (!result.is_red(), result.verdict));
        }
        matrix
    }

    /// The rows that ended differently where they ran: a pass in one place and none in another.
    pub fn disagreeing(&self) -> BTreeSet<&str> {
        let mut passed = BTreeSet::new();
        let mut did_not = BTreeSet::new();
        for result in self.results.iter().filter(|result| !matches!(result.verdict, Word::Skip | Word::Missing)) {
            let set = if result.verdict == Word::Pass { &mut passed } else { &mut did_not };
            set.insert(result.id.as_str());
        }
        passed.intersection(&did_not).copied().collect()
    }

    /// The counts of all.
    pub fn counts(&self) -> Counts {
        Counts::of(&self.results)
    }

    /// It in a line: `3 rows in 1 place: 2 passed, 1 failed`.
    pub fn in_words(&self) -> String {
        let counted = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
        let (rows, places) = (counted(self.rows.len(), "row"), counted(self.places.len(), "place"));
        format!("{rows} in {places}: {}", self.counts().in_words())
    }

    /// Whether something is wrong: with a row, or with a run.
    pub fn is_red(&self) -> bool {
        let is_wrong = |shard: &Shard| shard.trouble.is_some() || shard.state == ShardState::Missing;
        self.counts().red() > 0 || self.shards.iter().any(is_wrong)
    }
}

#[cfg(test)]
mod tests;
