//! What a selftest said: from how its process ended and what it printed.
//!
//! The exit status comes first, after tools/testing/selftests/kselftest.h and kselftest/runner.sh: 0 is a
//! pass, 1 a failure, 2 an expected failure, 4 a skip, anything else a failure, too. What was printed can
//! only make that worse: results that fail, are missing or contradict the plan, and a death after the last
//! "ok".

use std::fmt;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::ktap::{Document, Outcome};

/// What a runner saw of one program.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Observation {
    /// How its process ended.
    pub end: End,
    /// Its standard output, and after that its standard error.
    pub output: String,
}

/// How a process ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It was killed after so many milliseconds.
    OutOfTime(u64),
    /// It could not be started or watched, for this reason.
    NotRun(String),
}

/// What upstream says about something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It failed as it is known to.
    XFail,
    /// It cannot say anything here.
    Skip,
    /// It did not end.
    Timeout,
    /// It died, or contradicted itself.
    Error,
}

impl Verdict {
    /// Whether something went wrong.
    pub fn is_bad(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::Timeout | Verdict::Error)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::XFail => "xfail",
            Verdict::Skip => "skip",
            Verdict::Timeout => "timeout",
            Verdict::Error => "error",
        })
    }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Pass => Verdict::Pass,
            Outcome::Fail => Verdict::Fail,
            Outcome::Skip => Verdict::Skip,
            Outcome::XFail => Verdict::XFail,
            Outcome::Timeout => Verdict::Timeout,
            Outcome::Error => Verdict::Error,
        }
    }
}

/// The verdict of a program and of its subtests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The verdict of the whole program.
    pub verdict: Verdict,
    /// Why, in one line. A pass has one if a part of it was skipped without a result that says so.
    pub reason: String,
    /// The subtests that it printed results of, by name.
    pub subtests: Vec<Subtest>,
}

/// A result that a program printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subtest {
    /// Its name, after those of the tests that it is nested in.
    pub name: String,
    /// What it says.
    pub verdict: Verdict,
    /// Why, in one line.
    pub reason: String,
}

impl Observation {
    /// What the program said.
    pub fn read(&self) -> Reading {
        let document = Document::read(&self.output);
        let mut subtests: Vec<Subtest> = document
            .leaves()
            .into_iter()
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, leaf)| Subtest { name, verdict: leaf.outcome.into(), reason: leaf.reason.clone() })
            .collect();
        let (verdict, reason) = self.verdict(&document);
        // Where the harness of kselftest died, it had named the test before.
        if matches!(verdict, Verdict::Error | Verdict::Timeout)
            && let Some(running) = begun(&self.output).filter(|name| subtests.iter().all(|test| test.name != *name))
        {
            subtests.push(Subtest { name: running.to_owned(), verdict, reason: reason.clone() });
        }
        Reading { verdict, reason, subtests }
    }

    fn verdict(&self, document: &Document) -> (Verdict, String) {
        let said = document.outcome();
        let status = match &self.end {
            End::NotRun(why) => return (Verdict::Error, format!("it could not be run: {why}")),
            End::OutOfTime(limit_ms) => {
                let limit = *limit_ms as f64 / 1000.0;
                return (Verdict::Timeout, format!("it did not end within {limit} s{}", self.after(document)));
            }
            End::Signaled(signal) => {
                let name = Signal::try_from(*signal).map_or_else(|_| format!("signal {signal}"), |s| s.to_string());
                return (Verdict::Error, format!("it died of {name}{}", self.after(document)));
            }
            End::Exited(status) => *status,
        };
        match (status, said) {
            (0 | 2 | 4, Some((outcome, reason))) if outcome.is_bad() => {
                (outcome.into(), format!("{reason} (although its exit status is {status})"))
            }
            (0, Some((outcome @ (Outcome::Skip | Outcome::XFail), reason))) => (outcome.into(), plain(&reason)),
            (0, _) => (Verdict::Pass, self.silently_skipped()),
            (2, _) => (Verdict::XFail, self.last_words()),
            (4, Some((Outcome::Skip, reason))) => (Verdict::Skip, plain(&reason)),
            (4, _) => (Verdict::Skip, plain(&self.skip_reason())),
            (126 | 127, None) => {
                (Verdict::Error, format!("it could not be run (exit status {status}): {}", self.last_words()))
            }
            (_, Some((outcome, reason))) if outcome.is_bad() => (Verdict::Fail, reason),
            (1, Some(_)) => (Verdict::Fail, self.failure("exit status 1, although no result says why")),
            (3, _) => (Verdict::Fail, "it passed, although it was expected to fail (exit status 3)".to_owned()),
            (status, _) => (Verdict::Fail, self.failure(&format!("exit status {status}"))),
        }
    }

    /// How far a program came that was ended.
    fn after(&self, document: &Document) -> String {
        match &document.plan {
            Some(plan) => format!(", after {} of {} results", document.results.len(), plan.count),
            None if document.is_there() => format!(", after {} results", document.results.len()),
            None => String::new(),
        }
    }

    /// What lib/assert.c prints: where, which condition, and the message after the stack.
    fn failure(&self, otherwise: &str) -> String {
        let mut lines = self.output.lines().skip_while(|line| !line.contains("Test Assertion Failure"));
        if lines.next().is_none() {
            let last = self.last_words();
            return if last.is_empty() { otherwise.to_owned() } else { format!("{otherwise}: {last}") };
        }
        let condition = lines.next().unwrap_or_default().trim();
        let is_message = |line: &&str| {
            let line = line.trim();
            let is_stack = line.starts_with("pid=") || line.starts_with('(') || line.contains("addr2line");
            let is_frame = line.split_once(['\t', ':']).is_some_and(|(number, _)| number.trim().parse::<u64>().is_ok());
            !line.is_empty() && !is_stack && !is_frame
        };
        let message = lines.filter(is_message).last().map(str::trim).unwrap_or_default();
        let failure = format!("{condition}: {message}");
        failure.trim_end_matches([' ', ':']).to_owned()
    }

    /// The line that says why the whole program was skipped.
    fn skip_reason(&self) -> String {
        let said = self.output.lines().find(|line| line.to_ascii_lowercase().contains("skip"));
        said.map_or_else(|| self.last_words(), |line| line.trim().to_owned())
    }

    /// Programs of KVM skip parts of themselves with a sentence and still pass.
    fn silently_skipped(&self) -> String {
        let skipped: Vec<&str> =
            self.output.lines().map(str::trim).filter(|line| line.starts_with("Skipping ")).collect();
        skipped.join("; ")
    }

    fn last_words(&self) -> String {
        self.output.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }
}

/// A reason without the dash that TEST_REQUIRE puts before it.
fn plain(reason: &str) -> String {
    reason.trim_start_matches('-').trim().to_owned()
}

/// The test that the harness of kselftest began last: `#  RUN           suite.test ...`
fn begun(output: &str) -> Option<&str> {
    let begun = output.lines().rev().find_map(|line| line.strip_prefix("#  RUN "))?;
    begun.trim().strip_suffix("...").map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(end: End, output: &str) -> Reading {
        Observation { end, output: output.to_owned() }.read()
    }

    fn verdict(end: End, output: &str) -> (Verdict, String) {
        let reading = read(end, output);
        (reading.verdict, reading.reason)
    }

    const TWO_OK: &str = "TAP version 13\n1..2\nok 1 a\nok 2 b\n";

    #[test]
    fn programs_without_tap_speak_by_their_exit_status() {
        assert_eq!(verdict(End::Exited(0), "Random seed: 0x1\n"), (Verdict::Pass, String::new()));
        assert_eq!(verdict(End::Exited(1), "no\n"), (Verdict::Fail, "exit status 1: no".into()));
        assert_eq!(verdict(End::Exited(2), "known\n"), (Verdict::XFail, "known".into()));
        assert_eq!(verdict(End::Exited(3), "").0, Verdict::Fail);
        let skipped = verdict(End::Exited(4), "1..0 # SKIP - Requirement not met: kvm_has_cap(KVM_CAP_X)\n");
        assert_eq!(skipped, (Verdict::Skip, "Requirement not met: kvm_has_cap(KVM_CAP_X)".into()));
        assert_eq!(
            verdict(End::Exited(4), "Access denied - Exiting, skipping test\n").1,
            "Access denied - Exiting, skipping test"
        );
        assert_eq!(verdict(End::Exited(127), "libuuid.so.1: not found\n").0, Verdict::Error);
    }

    #[test]
    fn a_failed_assertion_is_told_in_one_line() {
        let output = "==== Test Assertion Failure ====\n  guest_memfd_test.c:57: mem != MAP_FAILED\n  pid=9 tid=9 \
                      errno=22 - Invalid argument\n     1\t0x0000000000402b5c: main at x.c:10\n  (stack trace \
                      empty)\n  mmap() for guest_memfd should succeed.\n";
        let expected = "guest_memfd_test.c:57: mem != MAP_FAILED: mmap() for guest_memfd should succeed.";
        assert_eq!(verdict(End::Exited(254), output), (Verdict::Fail, expected.into()));
    }

    #[test]
    fn a_part_that_is_skipped_in_prose_is_told() {
        let output = "Skipping tests for KVM_MEM_GUEST_MEMFD memory regions\nTesting MOVE\n";
        let reason = "Skipping tests for KVM_MEM_GUEST_MEMFD memory regions";
        assert_eq!(verdict(End::Exited(0), output), (Verdict::Pass, reason.into()));
    }

    #[test]
    fn results_can_make_an_exit_status_worse_and_never_better() {
        assert_eq!(verdict(End::Exited(0), TWO_OK).0, Verdict::Pass);
        assert_eq!(verdict(End::Exited(0), "1..2\nok 1 a\nnot ok 2 b\n").0, Verdict::Fail);
        assert_eq!(verdict(End::Exited(0), "1..2\nok 1 a\n").0, Verdict::Error);
        assert_eq!(verdict(End::Exited(4), "1..1\nnot ok 1 a\n").0, Verdict::Fail);
        assert_eq!(verdict(End::Exited(0), "1..1\nok 1 a # SKIP why\n"), (Verdict::Skip, "why".into()));
        assert_eq!(verdict(End::Exited(1), TWO_OK).0, Verdict::Fail);
        assert_eq!(verdict(End::Exited(254), TWO_OK).0, Verdict::Fail);
    }

    #[test]
    fn a_test_that_says_ok_and_dies_has_not_passed() {
        let (verdict, reason) = verdict(End::Signaled(11), TWO_OK);
        assert_eq!(verdict, Verdict::Error);
        assert_eq!(reason, "it died of SIGSEGV, after 2 of 2 results");
    }

    #[test]
    fn a_hang_is_put_down_to_the_test_that_ran() {
        let reading = read(
            End::OutOfTime(120_000),
            "TAP version 13\n1..2\n#  RUN           x.a ...\nok 1 x.a\n#  RUN           x.b ...\n",
        );
        assert_eq!(reading.verdict, Verdict::Timeout);
        assert_eq!(reading.reason, "it did not end within 120 s, after 1 of 2 results");
        let subtests: Vec<_> = reading.subtests.iter().map(|test| (test.name.as_str(), test.verdict)).collect();
        assert_eq!(subtests, [("x.a", Verdict::Pass), ("x.b", Verdict::Timeout)]);
    }
}
