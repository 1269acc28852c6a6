//! How a row ended, and where that was seen.

use std::fmt;

use privet_harness::outcome::Stop;
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

impl From<&Stop> for Verdict {
    fn from(stop: &Stop) -> Verdict {
        match stop {
            Stop::Fail(_) => Verdict::Fail,
            Stop::Error(_) => Verdict::Error,
            Stop::Timeout(_) => Verdict::Timeout,
            Stop::Skip(_) => Verdict::Skip,
        }
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
