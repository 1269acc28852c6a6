//! A comparison as JUnit XML: a suite per test of upstream's, a case per line of the table.

use std::io;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::baseline::Against;
use super::{Compared, Comparison, Relation, RowResult};
use crate::comparison::pretty::counted;

/// The whole report.
///
/// # Errors
/// If there is something that XML cannot say.
pub fn report(compared: &Compared, against: Option<&Against>) -> io::Result<String> {
    let mut document = Report::new("privet compare");
    for suite in compared.comparisons.chunk_by(|a, b| a.test == b.test) {
        let mut cases = TestSuite::new(suite[0].test.as_str());
        cases.add_property(("place", compared.place_in_words().as_str()));
        cases.add_property(("upstream", compared.source.as_str()));
        cases.add_test_cases(suite.iter().map(case));
        document.add_test_suite(cases);
    }
    if !compared.ours_only.is_empty() {
        let mut ours = TestSuite::new("ours-only");
        ours.set_system_out(told(&compared.ours_only));
        document.add_test_suite(ours);
    }
    if let Some(against) = against {
        let mut suite = TestSuite::new("changes");
        let changed =
            against.changes.iter().map(|change| format!("{}: {}: {}", change.kind, change.name, change.reason));
        suite.set_system_out(against.elsewhere_in_words().into_iter().chain(changed).collect::<Vec<_>>().join("\n"));
        document.add_test_suite(suite);
    }
    document.to_string().map_err(io::Error::other)
}

fn case(comparison: &Comparison) -> TestCase {
    let upstream = comparison.upstream.as_ref().map_or("nothing to run".to_owned(), |upstream| {
        format!("{} {}", upstream.verdict, upstream.reason).trim_end().to_owned()
    });
    let message = format!("{}: upstream: {upstream}; rows: {}", comparison.relation, counted(&comparison.rows));
    let mut status = match comparison.relation {
        Relation::Disagree => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Relation::Agree | Relation::Stricter => TestCaseStatus::success(),
        Relation::UpstreamSkips | Relation::NotCovered | Relation::OursOnly => TestCaseStatus::skipped(),
    };
    if !matches!(comparison.relation, Relation::Agree | Relation::Stricter) {
        status.set_message(message.as_str());
    }
    let mut case = TestCase::new(comparison.subtest.as_deref().unwrap_or("test"), status);
    case.set_classname(comparison.test.as_str());
    if let Some(upstream) = &comparison.upstream {
        case.set_time(Duration::from_micros(upstream.duration_us));
    }
    case.add_property(("relation", comparison.relation.to_string().as_str()));
    case.set_system_out(told(&comparison.rows));
    case
}

/// Each row on a line.
fn told(rows: &[RowResult]) -> String {
    let rows = rows.iter().map(|row| format!("{} {} {}", row.verdict, row.id, row.reason).trim_end().to_owned());
    rows.collect::<Vec<_>>().join("\n")
}
