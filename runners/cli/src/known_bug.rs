//! Failures by kernel bugs that are known are named as such.

use privet_cases::Entry;
use privet_report::{CaseReport, Verdict};

/// Says in a failure's reason that the kernel where it was seen is known for it.
pub fn name(row: &Entry, report: &mut CaseReport) {
    if report.verdict == Verdict::Fail
        && let Some(bug) = row.known_bug(&report.kernel, &report.reason)
    {
        report.reason = format!("{} ({bug})", report.reason);
    }
}
