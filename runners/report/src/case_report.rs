//! The report of one row: its verdict and what belongs to it.

use privet_harness::outcome::LackOf;
use serde::{Deserialize, Serialize};

use crate::{Place, Verdict};

/// The report of one row: one line of JSON with `"type":"case"`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CaseReport {
    /// The id of the row.
    pub id: String,
    /// Where the verdict was obtained.
    pub on: Place,
    /// What played the machine of a rig: `sim`, `qemu` or `bochs`; none elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
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
    /// What the place lacks, for a skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<LackOf>,
    /// Wall-clock time from the start of the worker to its end, in microseconds.
    pub duration_us: u64,
    /// How often KVM_RUN returned.
    pub exits: u64,
    /// The seed of everything random in the row.
    pub seed: u64,
    /// The seed of the schedule under which it ended so: how the processors of the machine took turns. None if it was
    /// the usual one, or all that were tried passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<u64>,
    /// A command line that runs this row again in the same way.
    pub repro: String,
    /// What helps to understand a verdict other than pass: exit trace, guest failure, kernel log. One
    /// line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}
