//! Rows on many hosts.
//!
//! [`Node`] says what a host has to offer, in the words of Slurm and of Kubernetes' Node Feature Discovery. [`Fleet`] is
//! work in arrays of jobs; it is written down as scripts for Slurm, and as a plan for [`privet_results::collect`], which
//! then knows what did not come back. [`Tokens`] count what a host has little of, for rows that run side by side.

mod fleet;
mod lava;
mod node;
mod shell;
mod slurm;
mod tokens;

pub use fleet::{Claim, Fleet, JobArray, KeyIds, Spread};
pub use lava::lava_definition;
pub use node::Node;
pub use slurm::write;
pub use tokens::{Held, NoTokens, Tokens, Wanted};
