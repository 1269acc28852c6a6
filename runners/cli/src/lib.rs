//! The command line of privet: selects rows of the table, runs each in a process of its own on this machine
//! or in a rig, and reports their verdicts.

pub mod args;
pub mod artifacts;
pub mod closed_stdout;
pub mod commands;
pub mod comparison;
pub mod config;
pub mod descriptors;
pub mod dispatch;
pub mod doing;
pub mod exit;
pub mod filterset;
pub mod follow;
pub mod guest_program;
pub mod interrupt;
pub mod known_bug;
pub mod kselftest_worker;
pub mod model;
pub mod output;
pub mod place;
pub mod plan;
pub mod pool;
pub mod process;
pub mod quarantine;
pub mod recorded;
pub mod report;
pub mod repro;
pub mod require;
pub mod rig;
pub mod row_facts;
pub mod selection;
pub mod slots;
pub mod summary;
pub mod worker;
