//! What holds for whatever a selftest prints and however it ends. The fuzz target tries it with inputs that it
//! grows, tests/reading.rs with inputs that look like reports.

use privet_kselftest::ktap::Document;
use privet_kselftest::reading::{End, Observation, Verdict};

/// Reads it, and panics if that says what it must not: a reading is never better than its process.
pub(crate) fn hold(how: u8, bytes: &[u8]) {
    let output = String::from_utf8_lossy(bytes).into_owned();
    let document = Document::read(&output);
    let leaves = document.leaves().len();
    assert!(leaves <= output.lines().count() + document.problems.len());
    let end = match how % 4 {
        0 => End::Exited(0),
        1 => End::Exited(i32::from(how >> 2)),
        2 => End::Signaled(11),
        _ => End::OutOfTime(1000),
    };
    let clean = end == End::Exited(0);
    let reading = Observation { end, output }.read();
    assert!(!reading.reason.contains('\n'), "a reason is one line");
    if reading.verdict == Verdict::Pass {
        assert!(clean, "a pass needs exit status 0");
        assert!(document.problems.is_empty(), "a pass needs a document without problems");
        assert!(document.wrong_count().is_none(), "a pass needs all results that were planned");
        assert!(reading.subtests.iter().all(|test| !test.verdict.is_bad()), "a pass has no bad results");
    }
}
