//! What a fleet was told to run: `fleet.json`, which `privet fleet` writes beside its scripts. Without it nobody would
//! know what never came back.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The name of the file.
pub const NAME: &str = "fleet.json";

/// The version of the format.
pub const VERSION: u32 = 1;

/// What a fleet was told to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FleetPlan {
    /// [`VERSION`].
    pub version: u32,
    /// What its shards do.
    pub work: Work,
    /// The arrays of jobs, in the order in which they run.
    pub arrays: Vec<Array>,
}

/// What shards do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// They run rows, and leave results of runs.
    Rows,
    /// They try mutants of the kernel, and leave lists of trials.
    KernelMutants,
}

/// Jobs that differ in their rows only.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Array {
    /// Its name, which is that of its script.
    pub name: String,
    /// The features that a node needs for it.
    pub features: Vec<String>,
    /// Its jobs, from the first on.
    pub shards: Vec<PlannedShard>,
}

/// One job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PlannedShard {
    /// The file that it writes, relative to the plan.
    pub file: String,
    /// The ids of its rows; empty if it tries mutants.
    pub rows: Vec<String>,
}

impl FleetPlan {
    /// The plan in a directory; none if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or is something else.
    pub fn in_dir(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(NAME);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(Error::unreadable(&path))?;
        let plan: Self = serde_json::from_str(&text)
            .map_err(|error| Error::no_result(&path, format!("is no plan of a fleet: {error}")))?;
        if plan.version != VERSION {
            let why = format!("is a plan of version {}, and this privet reads {VERSION}", plan.version);
            return Err(Error::no_result(&path, why));
        }
        Ok(Some(plan))
    }
}
