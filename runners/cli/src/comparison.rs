//! What upstream's selftests and the rows that cover them say about the same kernel, side by side.

use std::collections::BTreeMap;
use std::fmt;

use privet_cases::Entry;
use privet_kselftest::catalogue::Test;
use privet_kselftest::reading::{self, Reading};
use privet_report::{CaseReport, Verdict, place_of};
use serde::Serialize;

use crate::place::Context;

pub mod baseline;
pub mod json;
pub mod junit;
pub mod ktap;
pub mod pretty;

/// How the two sides relate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// Both passed, or neither did.
    Agree,
    /// Both passed, and a row that did checks more than upstream.
    Stricter,
    /// One passed and the other did not.
    Disagree,
    /// Upstream claims nothing here: it was skipped, or failed as it is known to.
    UpstreamSkips,
    /// No row covers it, or none of those that do could run here.
    NotCovered,
    /// Only we have it here: upstream has no such test, or its program was not built.
    OursOnly,
}

impl Relation {
    /// All, in the order in which they are counted.
    pub const ALL: [Relation; 6] = [
        Relation::Agree,
        Relation::Stricter,
        Relation::Disagree,
        Relation::UpstreamSkips,
        Relation::NotCovered,
        Relation::OursOnly,
    ];

    /// What follows from what upstream says, if it says anything, and the rows that cover it.
    pub fn of(upstream: Option<reading::Verdict>, rows: &[RowResult]) -> Self {
        use reading::Verdict as Upstream;
        let spoke: Vec<&RowResult> = rows.iter().filter(|row| row.verdict != Verdict::Skip).collect();
        let rows_passed = spoke.iter().all(|row| row.verdict == Verdict::Pass);
        match upstream {
            _ if rows.is_empty() => Relation::NotCovered,
            None => Relation::OursOnly,
            Some(Upstream::Skip | Upstream::XFail) => Relation::UpstreamSkips,
            Some(_) if spoke.is_empty() => Relation::NotCovered,
            Some(verdict) if (verdict == Upstream::Pass) != rows_passed => Relation::Disagree,
            Some(_) if rows_passed && spoke.iter().any(|row| row.exceeds) => Relation::Stricter,
            Some(_) => Relation::Agree,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Relation::Agree => "agree",
            Relation::Stricter => "stricter",
            Relation::Disagree => "disagree",
            Relation::UpstreamSkips => "upstream-skips",
            Relation::NotCovered => "not-covered",
            Relation::OursOnly => "ours-only",
        })
    }
}

/// The verdict of a row.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RowResult {
    /// The id of the row.
    pub id: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why, in one line; empty for a pass.
    pub reason: String,
    /// Whether the row checks more than what it is compared with.
    pub exceeds: bool,
    /// Wall-clock time of the row, in microseconds.
    pub duration_us: u64,
}

/// What upstream says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UpstreamResult {
    /// How it ended.
    pub verdict: reading::Verdict,
    /// Why, in one line.
    pub reason: String,
    /// Wall-clock time of the program, in microseconds.
    pub duration_us: u64,
}

/// One line of the table.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Comparison {
    /// Upstream's test.
    pub test: String,
    /// Its sub-test, where it prints results of its own.
    pub subtest: Option<String>,
    /// What upstream says; `None` where it has nothing to run.
    pub upstream: Option<UpstreamResult>,
    /// How many functions of the test the catalogue has, without those that are parts of others.
    pub functions: usize,
    /// How many of them rows cover.
    pub covered: usize,
    /// The rows that cover it.
    pub rows: Vec<RowResult>,
    /// How the two relate.
    pub relation: Relation,
    /// Wall-clock time of all of them, in microseconds.
    pub rows_duration_us: u64,
    /// How many times as long as the rows upstream took; `None` where one side took no time.
    pub duration_ratio: Option<f64>,
}

impl Comparison {
    /// The name in reports: the test, and the sub-test after a colon.
    pub fn name(&self) -> String {
        match &self.subtest {
            None => self.test.clone(),
            Some(subtest) => format!("{}: {subtest}", self.test),
        }
    }
}

/// What a program did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ran {
    /// What it said.
    pub reading: Reading,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// A whole comparison.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Where both sides ran.
    pub place: Context,
    /// The source of upstream's tests.
    pub source: String,
    /// Line by line, in the order of the catalogue.
    pub comparisons: Vec<Comparison>,
    /// The rows that name no counterpart.
    pub ours_only: Vec<RowResult>,
}

impl Compared {
    /// How many lines, and rows without a counterpart, relate so.
    pub fn count(&self, relation: Relation) -> usize {
        let lines = self.comparisons.iter().filter(|comparison| comparison.relation == relation).count();
        lines + if relation == Relation::OursOnly { self.ours_only.len() } else { 0 }
    }

    /// Where both sides ran, in words.
    pub fn place_in_words(&self) -> String {
        let Context { on, machine, kernel, vendor, module_params, defect } = &self.place;
        let place = place_of(*on, machine.as_deref(), kernel, vendor, defect.as_deref());
        let params = if module_params.is_empty() { String::new() } else { format!(" ({})", module_params.join(" ")) };
        format!("on {place}{params}")
    }

    /// Whether anything at all said more than that it cannot run here.
    pub fn says_anything(&self) -> bool {
        let upstream = self.comparisons.iter().filter_map(|comparison| comparison.upstream.as_ref());
        let rows = self.comparisons.iter().flat_map(|comparison| &comparison.rows).chain(&self.ours_only);
        upstream.into_iter().any(|upstream| upstream.verdict != reading::Verdict::Skip)
            || rows.into_iter().any(|row| row.verdict != Verdict::Skip)
    }
}

/// The lines of one test: one for each result that its program printed, and one for the whole test if it
/// printed none. `reports` has the rows that ran, by id.
pub fn lines(
    test: &Test,
    ran: Option<&Ran>,
    table: &[Entry],
    reports: &BTreeMap<String, CaseReport>,
) -> Vec<Comparison> {
    let rows = |function: Option<&str>| rows(test, function, table, reports);
    let is_covered = |function: &str| !rows(Some(function)).is_empty();
    let line = |subtest: Option<String>, upstream: Option<UpstreamResult>, functions: &[&str], rows: Vec<RowResult>| {
        let covered = functions.iter().filter(|function| is_covered(function)).count();
        let relation = Relation::of(upstream.as_ref().map(|upstream| upstream.verdict), &rows);
        let rows_duration_us = rows.iter().map(|row| row.duration_us).sum();
        let duration_ratio = ratio(upstream.as_ref().map_or(0, |upstream| upstream.duration_us), rows_duration_us);
        Comparison {
            test: test.name.to_owned(),
            subtest,
            upstream,
            functions: functions.len(),
            covered,
            rows,
            relation,
            rows_duration_us,
            duration_ratio,
        }
    };
    let all: Vec<&str> = test.whole_functions().map(|function| function.name).collect();
    let Some(ran) = ran else { return vec![line(None, None, &all, rows(None))] };
    let said =
        |verdict, reason: &str| UpstreamResult { verdict, reason: reason.to_owned(), duration_us: ran.duration_us };
    if ran.reading.subtests.is_empty() {
        return vec![line(None, Some(said(ran.reading.verdict, &ran.reading.reason)), &all, rows(None))];
    }
    let mut lines = Vec::new();
    for subtest in &ran.reading.subtests {
        let functions: Vec<&str> = test.function_of(&subtest.name).map(|function| function.name).into_iter().collect();
        let rows = functions.first().map(|function| rows(Some(function))).unwrap_or_default();
        lines.push(line(Some(subtest.name.clone()), Some(said(subtest.verdict, &subtest.reason)), &functions, rows));
    }
    // A program can be worse than its results, and that must not be lost.
    let is_told = ran.reading.subtests.iter().any(|subtest| subtest.verdict.is_bad());
    if ran.reading.verdict.is_bad() && !is_told {
        lines.push(line(None, Some(said(ran.reading.verdict, &ran.reading.reason)), &all, rows(None)));
    }
    lines
}

/// The first time by the second, if both are known.
fn ratio(us: u64, by_us: u64) -> Option<f64> {
    (us > 0 && by_us > 0).then(|| us as f64 / by_us as f64)
}

/// The rows that name this test, and this function if there is one.
fn rows(
    test: &Test,
    function: Option<&str>,
    table: &[Entry],
    reports: &BTreeMap<String, CaseReport>,
) -> Vec<RowResult> {
    let names = |row: &Entry| {
        let of_test = || row.upstream.iter().filter(|counterpart| counterpart.test == test.name);
        let mut named =
            of_test().filter(|counterpart| function.is_none_or(|name| name == counterpart.function)).peekable();
        named.peek()?;
        let report = reports.get(&row.id)?;
        Some(result(report, named.any(|counterpart| counterpart.is_exceeded)))
    };
    table.iter().filter_map(names).collect()
}

/// The result of a row from its report.
pub fn result(report: &CaseReport, exceeds: bool) -> RowResult {
    RowResult {
        id: report.id.clone(),
        verdict: report.verdict,
        reason: report.reason.clone(),
        exceeds,
        duration_us: report.duration_us,
    }
}

#[cfg(test)]
mod tests {
    use privet_kselftest::catalogue;
    use privet_kselftest::reading::{End, Observation};

    use super::*;
    use crate::kselftest_worker;
    use privet_cases::{Row, Types};
    use privet_report::Place;
    use std::time::Duration;

    fn row(verdict: Verdict, exceeds: bool) -> RowResult {
        RowResult { id: "upm.a.b".into(), verdict, reason: String::new(), exceeds, duration_us: 0 }
    }

    #[test]
    fn relations_are_as_documented() {
        use reading::Verdict as Upstream;
        let pass = || row(Verdict::Pass, false);
        let fail = || row(Verdict::Fail, false);
        let skip = || row(Verdict::Skip, false);
        for (upstream, rows, relation) in [
            (Some(Upstream::Pass), vec![pass()], Relation::Agree),
            (Some(Upstream::Pass), vec![pass(), row(Verdict::Pass, true)], Relation::Stricter),
            (Some(Upstream::Pass), vec![pass(), row(Verdict::Skip, true)], Relation::Agree),
            (Some(Upstream::Pass), vec![row(Verdict::Pass, true), fail()], Relation::Disagree),
            (Some(Upstream::Fail), vec![pass()], Relation::Disagree),
            (Some(Upstream::Error), vec![pass()], Relation::Disagree),
            (Some(Upstream::Timeout), vec![row(Verdict::Timeout, true)], Relation::Agree),
            (Some(Upstream::Fail), vec![fail(), pass()], Relation::Agree),
            (Some(Upstream::Skip), vec![fail()], Relation::UpstreamSkips),
            (Some(Upstream::XFail), vec![pass()], Relation::UpstreamSkips),
            (Some(Upstream::Skip), vec![], Relation::NotCovered),
            (Some(Upstream::Pass), vec![skip()], Relation::NotCovered),
            (Some(Upstream::Fail), vec![], Relation::NotCovered),
            (None, vec![], Relation::NotCovered),
            (None, vec![pass()], Relation::OursOnly),
        ] {
            assert_eq!(Relation::of(upstream, &rows), relation, "{upstream:?} {rows:?}");
        }
    }

    fn ran(end: End, output: &str) -> Ran {
        Ran { reading: Observation { end, output: output.to_owned() }.read(), duration_us: 7 }
    }

    /// A table of one row for a function, and its report.
    fn side(test: &'static str, verdict: Verdict) -> (Vec<Entry>, BTreeMap<String, CaseReport>) {
        let row = Entry::all_of(Row::new("a.b", Types::UPM, "", |_| Ok(())).exceeds(test)).pop().unwrap();
        let job = kselftest_worker::job("x", Duration::ZERO);
        let mut report = Context::here(Place::Host).report(&job, verdict, String::new());
        report.id = row.id.clone();
        (vec![row], BTreeMap::from([("upm.a.b".to_owned(), report)]))
    }

    #[test]
    fn a_program_that_prints_no_results_is_one_line_with_all_rows() {
        let (table, reports) = side("guest_memfd_test: test_fallocate", Verdict::Pass);
        let test = catalogue::test("guest_memfd_test").unwrap();
        let lines = lines(test, Some(&ran(End::Exited(0), "")), &table, &reports);
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].relation, lines[0].covered), (Relation::Stricter, 1));
        assert_eq!(lines[0].functions, test.whole_functions().count());
    }

    #[test]
    fn every_printed_result_is_a_line_and_a_death_after_them_is_one_more() {
        let (table, reports) = side("x86/guest_memfd_conversions_test: truncate", Verdict::Pass);
        let test = catalogue::test("x86/guest_memfd_conversions_test").unwrap();
        let output = "TAP version 13\n1..2\nok 1 gmem.init_shared\nok 2 gmem.truncate\n";
        let named = |end| {
            let lines = lines(test, Some(&ran(end, output)), &table, &reports);
            lines.into_iter().map(|line| (line.subtest.unwrap_or_default(), line.relation)).collect::<Vec<_>>()
        };
        let init = ("gmem.init_shared".to_owned(), Relation::NotCovered);
        let truncate = ("gmem.truncate".to_owned(), Relation::Stricter);
        assert_eq!(named(End::Exited(0)), [init.clone(), truncate.clone()]);
        assert_eq!(named(End::Signaled(11)), [init, truncate, (String::new(), Relation::Disagree)]);
    }
}
