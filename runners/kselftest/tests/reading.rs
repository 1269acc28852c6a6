//! The properties of the fuzz target, on output that looks like that of tests.

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../fuzz/properties.rs"]
mod properties;

/// Lines that mean something to the reader, with any margin, in any order.
fn output() -> impl Strategy<Value = String> {
    let lines = [
        "KTAP version 1",
        "TAP version 13",
        "1..2",
        "1..0 # SKIP x",
        "ok 1 a",
        "ok 2 b # SKIP why",
        "ok 2 b # XFAIL",
        "not ok 1 c",
        "not ok 2 d # TIMEOUT 45 seconds",
        "not ok 1 e # TODO",
        "ok 18446744073709551616 f",
        "Bail out! x",
        "# Subtest: g",
        "#  RUN           g.h ...",
        "==== Test Assertion Failure ====",
        "  x.c:1: r == 0",
        "Skipping tests for x",
        "noise\rnoise",
        "\u{85}\u{2028}",
    ];
    let line = ("[ #]{0,4}", proptest::sample::select(lines.to_vec())).prop_map(|(margin, line)| margin + line);
    vec(line, 0..24).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn a_reading_is_never_better_than_its_process(how in any::<u8>(), output in output()) {
        properties::hold(how, output.as_bytes());
    }

    #[test]
    fn any_bytes_are_read(how in any::<u8>(), bytes in vec(any::<u8>(), 0..200)) {
        properties::hold(how, &bytes);
    }
}
