//! How a story ends: with what it made, or with why it stopped.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a place cannot run a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lack {
    /// What is missing.
    pub of: LackOf,
    /// One line that a person can act on.
    pub reason: String,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// What a place can lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LackOf {
    /// All of it: there is no KVM, no rig, or no model.
    Place,
    /// VMs of the row's type.
    VmType,
    /// Something that KVM offers or does not: a capability, a feature, guest code that runs.
    Feature,
    /// Another value of a module parameter.
    Setting,
    /// The other vendor's half of KVM.
    Vendor,
    /// Another processor of the same vendor.
    Cpu,
    /// Another kernel: a newer one, or one without something.
    Kernel,
    /// Something that this machine may have at another time: free memory, a huge page, a device.
    Resource,
}

impl LackOf {
    /// Whether the row is about another half of the matrix: what has that half lacks this one.
    pub fn is_the_other_half(self) -> bool {
        matches!(self, LackOf::Setting | LackOf::Vendor | LackOf::Cpu | LackOf::Kernel)
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
    Skip(Lack),
}

/// What a story returns.
pub type Outcome<T = ()> = Result<T, Stop>;
