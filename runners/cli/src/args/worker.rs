//! The arguments of `privet worker`.

use clap::Args;
use serde::{Deserialize, Serialize};

/// `privet worker`.
#[derive(Debug, Args, Serialize, Deserialize)]
pub struct Worker {
    /// The id of the row
    pub id: String,
    /// Seed of everything random in the row
    #[arg(long)]
    pub seed: u64,
    /// Milliseconds that the row may take
    #[arg(long)]
    pub limit_ms: u64,
    /// Tell the exits of a pass, too
    #[arg(long)]
    pub keep: bool,
    /// Compiled code is known to run in the guest's ring 0 here
    #[arg(long)]
    pub ring0_works: bool,
    /// Hypercalls are known to come back here
    #[arg(long)]
    pub hypercalls_work: bool,
}
