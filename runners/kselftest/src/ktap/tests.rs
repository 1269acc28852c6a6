//! Documents as programs print them, and properties of all documents.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn outcome_of(text: &str) -> Option<Outcome> {
    Document::read(text).outcome().map(|(outcome, _)| outcome)
}

#[test]
fn output_without_tap_is_no_document() {
    let text = "Random seed: 0x6b8b4567\nok then\nok\n1.. 3\nnot ok\nIt took 1..2 seconds\nnok 1 x\nok 1x\n";
    assert_eq!(Document::read(text), Document::default());
    assert_eq!(outcome_of(text), None);
}

#[test]
fn the_harness_of_kselftest_is_read() {
    let text = "TAP version 13\n1..4\n# Starting 4 tests from 1 test cases.\n#  RUN           gmem.init ...\n\
                #            OK  gmem.init\nok 1 gmem.init\nok 2 gmem.pin # SKIP no gup_test\n\
                # gmem.c:10:indexing:Expected 1 (1) == 2 (2)\nnot ok 3 gmem.indexing\nok 4 # SKIP gmem.fork\n\
                # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:2 error:0\n";
    let document = Document::read(text);
    let seen: Vec<_> = document.results.iter().map(|r| (r.name.as_str(), r.outcome, r.reason.as_str())).collect();
    assert_eq!(
        seen,
        [
            ("gmem.init", Outcome::Pass, ""),
            ("gmem.pin", Outcome::Skip, "no gup_test"),
            ("gmem.indexing", Outcome::Fail, ""),
            ("gmem.fork", Outcome::Skip, "gmem.fork"),
        ]
    );
    assert_eq!(document.outcome(), Some((Outcome::Fail, "gmem.indexing failed".into())));
    assert!(document.problems.is_empty());
}

#[test]
fn directives_are_read_in_either_case() {
    for (line, outcome) in [
        ("ok 1 a # SKIP", Outcome::Skip),
        ("not ok 1 a # skip: no", Outcome::Skip),
        ("ok 1 a # XFAIL known", Outcome::XFail),
        ("not ok 1 a # XFAIL known", Outcome::XFail),
        ("ok 1 a # XPASS", Outcome::Pass),
        ("not ok 1 a # TODO later", Outcome::XFail),
        ("ok 1 a # TODO later", Outcome::Pass),
        ("not ok 1 a # TIMEOUT 45 seconds", Outcome::Timeout),
        ("ok 1 a # TIMEOUT 45 seconds", Outcome::Timeout),
        ("not ok 1 # error a", Outcome::Error),
        ("not ok 1 a # exit=139", Outcome::Fail),
        ("ok 1 a #  a comment", Outcome::Pass),
        ("ok 1 a # SKIPPED is another word", Outcome::Pass),
    ] {
        let document = Document::read(line);
        assert_eq!(document.results[0].outcome, outcome, "{line}");
        assert_eq!(document.results[0].name, "a", "{line}");
    }
}

#[test]
fn subtests_belong_to_the_result_after_them() {
    let text = "KTAP version 1\n1..2\n  KTAP version 1\n  1..2\n    KTAP version 1\n    1..1\n    # why\n    not ok 1 c\n  \
                ok 1 b\n  ok 2 d\nok 1 a\nok 2 e\n";
    let document = Document::read(text);
    assert_eq!(document.results.len(), 2);
    // Two parents said "ok" over a failure.
    assert_eq!(document.results[0].outcome, Outcome::Fail);
    let leaves: Vec<_> = document.leaves().into_iter().map(|(path, leaf)| (path, leaf.outcome)).collect();
    assert_eq!(leaves, [("a.b.c".into(), Outcome::Fail), ("a.d".into(), Outcome::Pass), ("e".into(), Outcome::Pass)]);
}

#[test]
fn the_kernels_runner_nests_by_number_signs() {
    let text = "TAP version 13\n1..2\n# timeout set to 120\n# selftests: kvm: a\n# TAP version 13\n# 1..1\n# ok 1 inner\n\
                ok 1 selftests: kvm: a\n# selftests: kvm: b\n# ok 7 is only talk\nnot ok 2 selftests: kvm: b # exit=254\n";
    let document = Document::read(text);
    assert_eq!(document.leaves()[0].0, "selftests: kvm: a.inner");
    assert_eq!(document.results[1].outcome, Outcome::Fail);
    assert_eq!(document.results[1].inside, None);
    assert!(document.problems.is_empty(), "{:?}", document.problems);
}

#[test]
fn tap_14_nests_by_spaces_and_a_plan() {
    let text = "TAP version 14\n1..1\n# Subtest: a\n    1..1\n    ok 1 - inner\nok 1 - a\n";
    assert_eq!(Document::read(text).leaves()[0].0, "a.inner");
}

#[test]
fn plans_are_kept() {
    assert_eq!(outcome_of("1..2\nok 1 a\n"), Some(Outcome::Error));
    assert_eq!(outcome_of("1..1\nok 1 a\nok 2 b\n"), Some(Outcome::Error));
    assert_eq!(outcome_of("ok 1 a\nok 2 b\n1..2\n"), Some(Outcome::Pass));
    assert_eq!(outcome_of("1..1\n1..1\nok 1 a\n"), Some(Outcome::Error));
    assert_eq!(outcome_of("1..2\nok 2 a\nok 1 b\n"), Some(Outcome::Error));
    assert_eq!(outcome_of("TAP version 13\n"), Some(Outcome::Error));
    let skipped = Document::read("1..0 # SKIP - Requirement not met: kvm_cpu_has(X86_FEATURE_SEV)\n");
    assert_eq!(skipped.outcome(), Some((Outcome::Skip, "- Requirement not met: kvm_cpu_has(X86_FEATURE_SEV)".into())));
}

#[test]
fn bailing_out_is_failing() {
    let text = "TAP version 13\n1..2\nok 1 a\nBail out! no memory\n";
    assert_eq!(Document::read(text).outcome(), Some((Outcome::Fail, "Bail out! no memory".into())));
}

#[test]
fn subtests_that_are_cut_off_are_no_pass() {
    let text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 b\n";
    assert_eq!(outcome_of(text), Some(Outcome::Error));
    let deep: String = (1..200).map(|n| format!("{:n$}KTAP version 1\n", "")).collect();
    assert_eq!(outcome_of(&deep), Some(Outcome::Error));
}

/// Names without what has a meaning in TAP.
fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_:/-]{0,12}"
}

fn leaf() -> impl Strategy<Value = TestResult> {
    let outcomes = [Outcome::Pass, Outcome::Fail, Outcome::Skip, Outcome::XFail, Outcome::Timeout, Outcome::Error];
    (name(), proptest::sample::select(outcomes.to_vec()), "([a-z=]{1,8}( [a-z=]{1,8}){0,3})?").prop_map(
        |(name, outcome, reason)| {
            let reason = if matches!(outcome, Outcome::Pass | Outcome::Fail) { String::new() } else { reason };
            TestResult { number: 0, name, outcome, reason, inside: None }
        },
    )
}

/// A document that has what it plans and whose parents are as good as their subtests.
fn document() -> impl Strategy<Value = Document> {
    let result = leaf().prop_recursive(3, 24, 4, |inner| {
        (name(), vec(inner, 1..4)).prop_map(|(name, results)| {
            let inside = whole(results);
            let result = TestResult { number: 0, name, outcome: Outcome::Pass, reason: String::new(), inside: None };
            result.with(Some(inside))
        })
    });
    vec(result, 1..5).prop_map(whole)
}

fn whole(mut results: Vec<TestResult>) -> Document {
    for (index, result) in results.iter_mut().enumerate() {
        result.number = index as u64 + 1;
    }
    let plan = Some(Plan { count: results.len() as u64, skip: None });
    Document { plan, results, bail_out: None, problems: Vec::new(), has_version: true }
}

fn written(document: &Document, margin: &str) -> String {
    let mut text = format!("{margin}KTAP version 1\n{margin}1..{}\n", document.results.len());
    for result in &document.results {
        if let Some(inside) = &result.inside {
            text += &written(inside, &format!("{margin}  "));
        }
        text += &format!("{margin}# what was seen\nsome noise\n");
        let (ok, directive) = match result.outcome {
            Outcome::Pass => ("ok", ""),
            Outcome::Fail => ("not ok", ""),
            Outcome::Skip => ("ok", "SKIP"),
            Outcome::XFail => ("ok", "XFAIL"),
            Outcome::Timeout => ("not ok", "TIMEOUT"),
            Outcome::Error => ("not ok", "ERROR"),
        };
        text += &format!("{margin}{ok} {} {}", result.number, result.name);
        if !directive.is_empty() {
            text += &format!(" # {directive} {}", result.reason);
        } else if !result.reason.is_empty() {
            text += &format!(" # {}", result.reason);
        }
        text = text.trim_end().to_owned() + "\n";
    }
    text
}

/// Lines that mean something here, in any order.
fn soup() -> impl Strategy<Value = String> {
    let lines = [
        "KTAP version 1",
        "TAP version 13",
        "1..2",
        "1..0 # SKIP x",
        "ok 1 a",
        "ok 2 b # SKIP",
        "not ok 1 c",
        "ok 99999999999999999999 d",
        "Bail out! x",
        "# Subtest: e",
        "noise",
    ];
    let line = ("[ #]{0,6}", proptest::sample::select(lines.to_vec())).prop_map(|(margin, line)| margin + line);
    vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn what_was_written_is_read_back(document in document()) {
        prop_assert_eq!(Document::read(&written(&document, "")), document);
    }

    #[test]
    fn nothing_that_is_cut_off_passes(document in document(), part in 0.0..1.0f64) {
        let text = written(&document, "");
        let lines: Vec<&str> = text.lines().collect();
        let kept = (lines.len() as f64 * part) as usize;
        let outcome = outcome_of(&lines[..kept].join("\n"));
        prop_assert!(!matches!(outcome, Some(Outcome::Pass | Outcome::Skip | Outcome::XFail)), "{:?}", outcome);
    }

    #[test]
    fn a_failure_anywhere_is_a_failure_of_the_whole(document in document()) {
        let is_bad = document.leaves().iter().any(|(_, leaf)| leaf.outcome.is_bad());
        prop_assert_eq!(outcome_of(&written(&document, "")).is_some_and(Outcome::is_bad), is_bad);
    }

    #[test]
    fn any_soup_of_lines_is_read(text in soup()) {
        let document = Document::read(&text);
        if outcome_of(&text) == Some(Outcome::Pass) {
            prop_assert!(document.problems.is_empty());
            prop_assert!(document.results.iter().all(|result| !result.outcome.is_bad()));
        }
    }

    #[test]
    fn any_text_is_read(text in any::<String>()) {
        let _ = Document::read(&text).outcome();
    }
}
