//! The subcommands, one file each.

pub mod collect;
pub mod compare;
pub mod completions;
pub mod diff;
pub mod difference;
pub mod explain;
pub mod fleet;
pub mod kernel_mutants;
pub mod kselftests;
pub mod list;
pub mod list_defects;
pub mod list_upstream;
pub mod measure;
pub mod model;
pub mod mutants;
pub mod probe;
pub mod report;
pub mod rig_build;
pub mod rig_fetch;
pub mod rig_snapshots;
pub mod run;
mod run_on;
mod show;
pub mod silicon_mutants;
pub mod sim;
