//! How a row ended, where that was seen, and the report that carries both.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a row ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything that the row expects was seen.
    Pass,
    /// The kernel did something else than the row expects.
    Fail,
    /// The harness or the guest broke: nothing is known about the kernel.
    Error,
    /// A time limit was reached.
    Timeout,
    /// This place cannot run the row; the reason says what is missing.
    Skip,
}

impl Verdict {
    /// Whether something is wrong: with the kernel, with the row or, where time ran out, with one of both.
    pub fn is_red(self) -> bool {
        matches!(self, Verdict::Fail | Verdict::Error | Verdict::Timeout)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Error => "error",
            Verdict::Timeout => "timeout",
            Verdict::Skip => "skip",
        })
    }
}

/// Where a row ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// This machine's `/dev/kvm`.
    Host,
    /// A real kernel inside a rig.
    Rig,
    /// The model: a KVM in user space. What passes there may still fail on a kernel or on hardware.
    Model,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Host => "host",
            Place::Rig => "rig",
            Place::Model => "model",
        })
    }
}

/// Why a row did not pass: the `Err` of every story. Each is one line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Stop {
    /// The kernel did something else than the row expects.
    #[error("{0}")]
    Fail(String),
    /// The harness or the guest broke.
    #[error("{0}")]
    Error(String),
    /// A time limit was reached.
    #[error("{0}")]
    Timeout(String),
    /// This place cannot run the row.
    #[error("{0}")]
    Skip(String),
}

impl Stop {
    /// The verdict that this stop stands for.
    pub fn verdict(&self) -> Verdict {
        match self {
            Stop::Fail(_) => Verdict::Fail,
            Stop::Error(_) => Verdict::Error,
            Stop::Timeout(_) => Verdict::Timeout,
            Stop::Skip(_) => Verdict::Skip,
        }
    }
}

/// What a story returns.
pub type Outcome<T = ()> = Result<T, Stop>;

/// The report of one row: one line of JSON with `"type":"case"`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CaseReport {
    /// The id of the row.
    pub id: String,
    /// Where the verdict was obtained.
    pub on: Place,
    /// The release of the kernel whose KVM ran the row, as `uname -r` prints it; empty if none did, as on the model.
    pub kernel: String,
    /// Whose half of KVM ran the row: `amd` or `intel`, or what else follows `kvm_` in the name of the module;
    /// empty if there was none.
    #[serde(default)]
    pub vendor: String,
    /// The VM type, as in the first segment of the id.
    pub vm: String,
    /// The module parameters that rows depend on, as they were in effect: `kvm.mmio_caching=Y`.
    #[serde(default)]
    pub module_params: Vec<String>,
    /// The defect that the model had, by its name; none elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defect: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// One line that says why; empty for a pass.
    pub reason: String,
    /// Wall-clock time from the start of the worker to its end, in microseconds.
    pub duration_us: u64,
    /// How often KVM_RUN returned.
    pub exits: u64,
    /// The seed of everything random in the row.
    pub seed: u64,
    /// A command line that runs this row again in the same way.
    pub repro: String,
    /// What helps to understand a verdict other than pass: exit trace, guest failure, kernel log. One
    /// line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}
