//! Whatever a selftest prints and however it ends, it is read, and never to be better than its process.
//! `cargo +nightly fuzz run reading` in runners/kselftest.

#![no_main]

use libfuzzer_sys::fuzz_target;
use privet_kselftest::ktap::Document;
use privet_kselftest::reading::{End, Observation, Verdict};

fuzz_target!(|input: (u8, &[u8])| {
    let (how, bytes) = input;
    let output = String::from_utf8_lossy(bytes).into_owned();
    let document = Document::read(&output);
    let leaves = document.leaves().len();
    assert!(leaves <= output.lines().count() + document.problems.len());
    let end = match how % 4 {
        0 => End::Exited(0),
        1 => End::Exited(i32::from(how)),
        2 => End::Signaled(11),
        _ => End::OutOfTime(1000),
    };
    let clean = end == End::Exited(0);
    let reading = Observation { end, output }.read();
    if reading.verdict == Verdict::Pass {
        assert!(clean, "a pass needs exit status 0");
        assert!(document.problems.is_empty(), "a pass needs a document without problems");
        assert!(reading.subtests.iter().all(|test| !test.verdict.is_bad()), "a pass has no bad results");
    }
});
