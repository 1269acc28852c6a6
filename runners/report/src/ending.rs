//! How a row ended, once nothing can change it any more: the last of its attempts, those before it, and what is
//! expected of it.

use serde::{Deserialize, Serialize};

use crate::{CaseReport, Verdict};

/// The end of a row.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Ending {
    /// The last attempt.
    #[serde(flatten)]
    pub report: CaseReport,
    /// The attempts before it, all of them red: `--retries` asked for another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Attempt>,
    /// What excuses a red verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<Excuse>,
    /// That it passed, against all expectations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surprise: Option<String>,
}

/// An attempt that `--retries` did not leave it at.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// How it ended.
    pub verdict: Verdict,
    /// Why, in one line.
    pub reason: String,
    /// Wall-clock time, in microseconds.
    pub duration_us: u64,
}

/// An entry of the quarantine file that expects what was seen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Excuse {
    /// Why the row is expected to be red.
    pub reason: String,
    /// The last day on which it is, as YYYY-MM-DD.
    pub until: String,
}

impl Ending {
    /// The end of a row that had one attempt, and of which nothing special is expected.
    pub fn of(report: CaseReport) -> Self {
        Self { report, earlier: Vec::new(), quarantined: None, surprise: None }
    }

    /// Whether something is wrong that nobody expects.
    pub fn is_red(&self) -> bool {
        self.report.verdict.is_red() && self.quarantined.is_none()
    }

    /// Whether it passed, but not at once.
    pub fn is_flaky(&self) -> bool {
        self.report.verdict == Verdict::Pass && !self.earlier.is_empty()
    }

    /// The attempts before the last and the excuse, one line each.
    pub fn notes(&self) -> Vec<String> {
        let of = self.earlier.len() + 1;
        let earlier = self.earlier.iter().enumerate().map(|(number, attempt)| {
            format!("attempt {} of {of}: {}: {}", number + 1, attempt.verdict, attempt.reason)
        });
        let excuse =
            self.quarantined.iter().map(|excuse| format!("quarantined until {}: {}", excuse.until, excuse.reason));
        earlier.chain(excuse).chain(self.surprise.clone()).collect()
    }
}

impl From<&CaseReport> for Attempt {
    fn from(report: &CaseReport) -> Self {
        Self { verdict: report.verdict, reason: report.reason.clone(), duration_us: report.duration_us }
    }
}
